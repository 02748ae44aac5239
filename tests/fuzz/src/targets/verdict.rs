//! The verdict over any place: nothing of others is touched, nothing good is replaced by less, and what is done once is done.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::registry::Host;
use ecr_credential_operator::api::{ConflictPolicy, OutputFormat};
use ecr_credential_operator::plan::Uid;
use ecr_credential_operator::secret::docker_config::{DockerConfig, Entries};
use ecr_credential_operator::secret::formats::{Payload, form};
use ecr_credential_operator::secret::ownership::{Footprint, SecretRecord, Standing};
use ecr_credential_operator::secret::{Claim, Desired, Place, Verdict, verdict};
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
    let accepted = u.ratio(1, 4)?.then(|| footprint(u)).transpose()?;
    let lost = Claim::Lost("older".into());
    let claims = [Claim::Wanted, Claim::Wanted, lost, Claim::Left, Claim::LeftToAnother, Claim::Renamed];
    let claim = u.choose(&claims)?.clone();
    let standing = standing(u)?;
    let place = Place { namespace: "a".into(), incarnation: Default::default(), name: "pull".into(), standing, claim };
    let said = verdict(&place, desired.as_ref(), policy, accepted, now);
    safe(&said, &place, desired.as_ref(), policy, now);
    if place.claim == Claim::Wanted
        && let Some(desired) = &desired
    {
        useful(&said, &place, desired, policy, now);
        settled(&said, &place, desired, policy, now);
    }
    Ok(())
}

fn footprint(u: &mut Unstructured<'_>) -> Result<Footprint> {
    let name = Some((*u.choose(&["x", "y", "z"])?).to_owned());
    let annotations = name.map(|name| [(name, String::new())].into());
    Ok(Footprint::desired(&ObjectMeta { annotations, ..ObjectMeta::default() }))
}

fn config(u: &mut Unstructured<'_>) -> Result<(DockerConfig, bool)> {
    let hosts = some(u, &["a.example", "public.ecr.aws"])?;
    let entries: Entries = hosts.into_iter().map(|host| (Host::parse(host).expect("a host"), login("x"))).collect();
    let has_entries = !entries.is_empty();
    Ok((DockerConfig::render(&entries).expect("strings"), has_entries))
}

fn desired(u: &mut Unstructured<'_>) -> Result<Desired> {
    let (config, has_entries) = config(u)?;
    Ok(Desired {
        metadata: ObjectMeta::default(),
        payload: Payload::docker_config(form(OutputFormat::DockerConfigJson), config),
        footprint: footprint(u)?,
        expires_at: moment(u)?,
        identity: u.int_in_range(1..=2)?,
        incomplete: u.arbitrary()?,
        of_one_namespace: u.arbitrary()?,
        has_entries,
    })
}

fn standing(u: &mut Unstructured<'_>) -> Result<Standing> {
    let me = Uid("me".into());
    let owner = u.choose(&[Some("me"), Some("me"), Some("other"), None])?.map(|uid| Uid(uid.into()));
    let record = SecretRecord {
        uid: "s".into(),
        resource_version: "7".into(),
        owner,
        footprint: footprint(u)?,
        expires_at: u.ratio(5, 6)?.then(|| moment(u)).transpose()?,
        hosts: u.ratio(5, 6)?.then(|| Ok(config(u)?.0.hosts())).transpose()?,
        identity: u.ratio(5, 6)?.then(|| u.int_in_range(1..=2)).transpose()?,
        format: OutputFormat::DockerConfigJson,
        extra_keys: some(u, &["extra".to_owned()])?.into(),
        sets_immutable: u.ratio(1, 6)?,
        applied: u.ratio(5, 6)?,
        held_by: u.ratio(1, 6)?.then(|| "example.com/x".into()),
    };
    let alive = u.arbitrary::<bool>()?;
    Ok(Standing::of(u.ratio(5, 6)?.then(|| Arc::new(record)).as_ref(), &me, |_| alive))
}

/// The Secret that a verdict changes, if it changes one.
fn changed(said: &Verdict) -> Option<&Arc<SecretRecord>> {
    match said {
        Verdict::Update(record) | Verdict::Strip(record) | Verdict::Delete(record) => Some(record),
        _ => None,
    }
}

/// A Secret with the desired hosts and identities that is good for longer than the desired one.
fn is_better(record: &SecretRecord, desired: &Desired, now: Timestamp) -> bool {
    record.hosts == Some(desired.payload.hosts())
        && record.identity == Some(desired.identity)
        && record.expires_at.is_some_and(|at| at > now && at > desired.expires_at)
}

fn safe(said: &Verdict, place: &Place, desired: Option<&Desired>, policy: ConflictPolicy, now: Timestamp) {
    if let Some(record) = changed(said) {
        let seen = match &place.standing {
            Standing::Absent => panic!("{said:?} of nothing"),
            Standing::Foreign(seen) => {
                assert_eq!(policy, ConflictPolicy::Adopt, "{said:?} of a Secret that is not ours");
                seen
            }
            Standing::Mine(seen) | Standing::Orphan(seen) | Standing::Others(seen) => seen,
        };
        assert_eq!(record, seen, "the very state that was seen");
    }
    let wanted = place.claim == Claim::Wanted;
    match said {
        Verdict::Create => {
            assert!(wanted && place.standing == Standing::Absent && desired.is_some_and(|d| d.has_entries));
        }
        Verdict::Update(record) => {
            let desired = desired.expect("something to write");
            assert!(wanted && (desired.has_entries || matches!(place.standing, Standing::Mine(_))));
            let mine = matches!(place.standing, Standing::Mine(_));
            assert!(!mine || !is_better(record, desired, now), "{record:?} is good for longer");
        }
        Verdict::Strip(record) => {
            assert!(
                wanted
                    && matches!(place.standing, Standing::Mine(_))
                    && record.has_additions(desired.map(|d| &d.payload))
            );
        }
        Verdict::Delete(record) => {
            let expired = record.expires_at.is_none_or(|at| at <= now);
            let left = place.claim == Claim::Left || (place.claim == Claim::Renamed && expired);
            assert!(left && matches!(place.standing, Standing::Mine(_)));
        }
        Verdict::Refuse(_, message) => {
            let foreign = matches!(place.standing, Standing::Foreign(_)) && policy == ConflictPolicy::Fail;
            assert!((matches!(place.claim, Claim::Lost(_)) || wanted && foreign) && message.len() < 300);
        }
        Verdict::Keep | Verdict::Wait => {}
    }
    if desired.is_none() && wanted {
        assert!(changed(said).is_none() && *said != Verdict::Create, "{said:?} without a token");
    }
}

/// What is wanted and can be done is done.
fn useful(said: &Verdict, place: &Place, desired: &Desired, policy: ConflictPolicy, now: Timestamp) {
    match &place.standing {
        Standing::Absent => assert_eq!(*said == Verdict::Create, desired.has_entries),
        Standing::Mine(record) if record.has_additions(Some(&desired.payload)) => {
            assert!(*said == Verdict::Wait || changed(said).is_some(), "{said:?} leaves what others added");
        }
        Standing::Mine(record) => {
            let old = record.footprint != desired.footprint && record.expires_at.is_none_or(|at| at <= now);
            assert!(!old || *said == Verdict::Keep || changed(said).is_some(), "{said:?} of an expired Secret");
            // With nothing missing, waiting gains nothing.
            assert!(desired.incomplete || *said != Verdict::Wait);
        }
        Standing::Foreign(_) if policy == ConflictPolicy::Fail => {}
        _ => assert_eq!(changed(said).is_some(), desired.has_entries),
    }
}

/// After a write there is nothing more to do.
fn settled(said: &Verdict, place: &Place, desired: &Desired, policy: ConflictPolicy, now: Timestamp) {
    if !matches!(said, Verdict::Create | Verdict::Update(_)) {
        return;
    }
    let written = SecretRecord {
        uid: "s".into(),
        resource_version: "8".into(),
        owner: Some(Uid("me".into())),
        footprint: desired.footprint,
        expires_at: Some(desired.expires_at),
        hosts: Some(desired.payload.hosts()),
        identity: Some(desired.identity),
        format: OutputFormat::DockerConfigJson,
        extra_keys: Box::default(),
        sets_immutable: false,
        applied: true,
        held_by: None,
    };
    let place = Place { standing: Standing::Mine(Arc::new(written)), ..place.clone() };
    assert_eq!(verdict(&place, Some(desired), policy, None, now), Verdict::Keep);
}
