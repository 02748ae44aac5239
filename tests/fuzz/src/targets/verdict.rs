//! The verdict over any place: nothing of others is touched, nothing good is replaced by less, and what is done once is done.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::registry::Host;
use ecr_credential_operator::api::{ConflictPolicy, OutputFormat};
use ecr_credential_operator::plan::Uid;
use ecr_credential_operator::secret::docker_config::{DockerConfig, Entries};
use ecr_credential_operator::secret::formats::{Payload, form};
use ecr_credential_operator::secret::host_parts::HostParts;
use ecr_credential_operator::secret::ownership::{ManagedFieldsDigest, Ownership, SecretRecord, Trust};
use ecr_credential_operator::secret::{Desired, IDENTITY_HASH, SecretAction, SecretTarget, Selection, action};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::material::{login, moment, some};

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let now = moment(u)?;
    let desired = u.ratio(5, 6)?.then(|| desired(u)).transpose()?;
    let policy = *u.choose(&[ConflictPolicy::Fail, ConflictPolicy::Adopt])?;
    let accepted = u
        .ratio(1, 4)?
        .then(|| {
            let of = identity(u)?;
            Ok(ManagedFieldsDigest::desired(&metadata(u, of)?))
        })
        .transpose()?;
    let lost = Selection::Conflict("older".into());
    let claims = [
        Selection::Selected,
        Selection::Selected,
        lost,
        Selection::Deselected,
        Selection::Superseded,
        Selection::Renamed,
    ];
    let selection = u.choose(&claims)?.clone();
    let ownership = ownership(u)?;
    let place = SecretTarget {
        namespace: "a".into(),
        namespace_uid: Default::default(),
        name: "pull".into(),
        ownership,
        selection,
    };
    let said = action(&place, desired.as_ref(), policy, accepted, now.into());
    safe(&said, &place, desired.as_ref(), policy, now);
    if place.selection == Selection::Selected
        && let Some(desired) = &desired
    {
        useful(&said, &place, desired, policy, now);
        settled(&said, &place, desired, policy, now);
    }
    Ok(())
}

/// The metadata of one of three Secrets, with the identities that it records.
fn metadata(u: &mut Unstructured<'_>, identity: u64) -> Result<ObjectMeta> {
    let name = (*u.choose(&["x", "y", "z"])?).to_owned();
    let annotations = [(name, String::new()), (IDENTITY_HASH.to_owned(), format!("{identity:016x}"))].into();
    Ok(ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() })
}

fn identity(u: &mut Unstructured<'_>) -> Result<u64> {
    u.int_in_range(1..=2)
}

fn config(u: &mut Unstructured<'_>) -> Result<(DockerConfig, bool)> {
    let hosts = some(u, &["a.example", "public.ecr.aws"])?;
    let entries: Entries = hosts.into_iter().map(|host| (Host::parse(host).expect("a host"), login("x"))).collect();
    let has_entries = !entries.is_empty();
    Ok((DockerConfig::render(&entries).expect("strings"), has_entries))
}

fn desired(u: &mut Unstructured<'_>) -> Result<Desired> {
    let (config, has_entries) = config(u)?;
    let identity = identity(u)?;
    let metadata = metadata(u, identity)?;
    Ok(Desired {
        digest: ManagedFieldsDigest::desired(&metadata),
        metadata,
        payload: Payload::docker_config(form(OutputFormat::DockerConfigJson), config),
        expires_at: moment(u)?,
        identity,
        of_unknown_identity: u.arbitrary()?,
        incomplete: u.arbitrary()?,
        lacks_includes: u.arbitrary()?,
        hosts: HostParts::default(),
        of_one_namespace: u.arbitrary()?,
        has_entries,
    })
}

fn ownership(u: &mut Unstructured<'_>) -> Result<Ownership> {
    let me = Uid("me".into());
    let owner = u.choose(&[Some("me"), Some("me"), Some("other"), None])?.map(|uid| Uid(uid.into()));
    let recorded = identity(u)?;
    let mut record = SecretRecord {
        uid: "s".into(),
        resource_version: "7".into(),
        owner,
        digest: ManagedFieldsDigest::desired(&metadata(u, recorded)?),
        applied_at: 0,
        managed_fields: None,
        trust: Trust::Unchanged,
        expires_at: u.ratio(5, 6)?.then(|| moment(u)).transpose()?,
        hosts: u.ratio(5, 6)?.then(|| Ok(config(u)?.0.hosts)).transpose()?,
        identity: u.ratio(5, 6)?.then_some(recorded),
        format: OutputFormat::DockerConfigJson,
        extra_keys: some(u, &["extra".to_owned()])?.into(),
        sets_immutable: u.ratio(1, 6)?,
        applied: u.ratio(5, 6)?,
        held_by: u.ratio(1, 6)?.then(|| "example.com/x".into()),
        content_of: None,
    };
    let (alive, is_there) = (u.arbitrary::<bool>()?, u.ratio(5, 6)?);
    record.trust = *u.choose(&[Trust::Unchanged, Trust::Changed, Trust::Forged])?;
    Ok(Ownership::of(is_there.then(|| Arc::new(record)).as_ref(), &me, |_| alive))
}

/// The Secret that a verdict changes, if it changes one.
fn changed(said: &SecretAction) -> Option<&Arc<SecretRecord>> {
    match said {
        SecretAction::Update(record) | SecretAction::Strip(record) | SecretAction::Delete(record) => Some(record),
        _ => None,
    }
}

/// A Secret with the desired hosts and identities that is good for longer than the desired one.
fn is_better(record: &SecretRecord, desired: &Desired, now: Timestamp) -> bool {
    record.hosts == Some(desired.payload.hosts)
        && (desired.of_unknown_identity || record.identity == Some(desired.identity))
        && record.valid_until(now).is_some_and(|at| at > now && at > desired.expires_at)
}

fn safe(said: &SecretAction, place: &SecretTarget, desired: Option<&Desired>, policy: ConflictPolicy, now: Timestamp) {
    if let Some(record) = changed(said) {
        let seen = match &place.ownership {
            Ownership::Absent => panic!("{said:?} of nothing"),
            Ownership::Unmanaged(seen) => {
                assert_eq!(policy, ConflictPolicy::Adopt, "{said:?} of a Secret that is not ours");
                seen
            }
            Ownership::Owned(seen) | Ownership::Orphaned(seen) | Ownership::OwnedByOther(seen) => seen,
        };
        assert_eq!(record, seen, "the very state that was seen");
    }
    let wanted = place.selection == Selection::Selected;
    match said {
        SecretAction::Create => {
            assert!(wanted && place.ownership == Ownership::Absent && desired.is_some_and(|d| d.has_entries));
        }
        SecretAction::Update(record) => {
            let desired = desired.expect("something to write");
            assert!(wanted && (desired.has_entries || matches!(place.ownership, Ownership::Owned(_))));
            let mine = matches!(place.ownership, Ownership::Owned(_));
            assert!(!mine || !is_better(record, desired, now), "{record:?} is good for longer");
        }
        SecretAction::Strip(record) => {
            assert!(
                wanted
                    && matches!(place.ownership, Ownership::Owned(_))
                    && record.has_additions(desired.map(|d| &d.payload))
            );
        }
        SecretAction::Delete(record) => {
            let expired = record.valid_until(now).is_none_or(|at| at <= now);
            let left = place.selection == Selection::Deselected || (place.selection == Selection::Renamed && expired);
            assert!(left && matches!(place.ownership, Ownership::Owned(_)));
        }
        SecretAction::Refuse(_, message) => {
            let foreign = matches!(place.ownership, Ownership::Unmanaged(_)) && policy == ConflictPolicy::Fail;
            assert!((matches!(place.selection, Selection::Conflict(_)) || wanted && foreign) && message.len() < 300);
        }
        SecretAction::Keep | SecretAction::Wait => {}
    }
    if desired.is_none() && wanted {
        assert!(changed(said).is_none() && *said != SecretAction::Create, "{said:?} without a token");
    }
}

/// What is wanted and can be done is done.
fn useful(said: &SecretAction, place: &SecretTarget, desired: &Desired, policy: ConflictPolicy, now: Timestamp) {
    match &place.ownership {
        Ownership::Absent => assert_eq!(*said == SecretAction::Create, desired.has_entries),
        Ownership::Owned(record) if record.has_additions(Some(&desired.payload)) => {
            assert!(*said == SecretAction::Wait || changed(said).is_some(), "{said:?} leaves what others added");
        }
        Ownership::Owned(record) => {
            let old = record.digest != desired.digest && record.expires_at.is_none_or(|at| at <= now);
            assert!(!old || *said == SecretAction::Keep || changed(said).is_some(), "{said:?} of an expired Secret");
            // With nothing missing, waiting gains nothing.
            assert!(desired.incomplete || *said != SecretAction::Wait);
        }
        Ownership::Unmanaged(_) if policy == ConflictPolicy::Fail => {}
        _ => assert_eq!(changed(said).is_some(), desired.has_entries),
    }
}

/// After a write there is nothing more to do.
fn settled(said: &SecretAction, place: &SecretTarget, desired: &Desired, policy: ConflictPolicy, now: Timestamp) {
    if !matches!(said, SecretAction::Create | SecretAction::Update(_)) {
        return;
    }
    let written = SecretRecord {
        uid: "s".into(),
        resource_version: "8".into(),
        owner: Some(Uid("me".into())),
        digest: desired.digest,
        applied_at: 0,
        managed_fields: None,
        trust: Trust::Unchanged,
        expires_at: Some(desired.expires_at),
        hosts: Some(desired.payload.hosts),
        identity: Some(desired.identity),
        format: OutputFormat::DockerConfigJson,
        extra_keys: Box::default(),
        sets_immutable: false,
        applied: true,
        held_by: None,
        content_of: None,
    };
    let place = SecretTarget { ownership: Ownership::Owned(Arc::new(written)), ..place.clone() };
    assert_eq!(action(&place, Some(desired), policy, None, now.into()), SecretAction::Keep);
}
