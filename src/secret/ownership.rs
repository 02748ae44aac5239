//! The ownership of a Secret, and whether it is as we applied it, by its metadata alone.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::formats::{Payload, form};
use super::metadata::{Fields, FieldsEntry, Metadata};
use super::{CREDENTIAL_UID, EXPIRES_AT, FIELD_MANAGER, HOSTS_HASH, IDENTITY_HASH, MANAGED_BY, OUTPUT};
use crate::api::{GROUP, OutputFormat};
use crate::plan::Uid;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::schedule::{LONGEST_LIFE, later};

/// The longest uid that is kept of an owner reference, which may contain any text.
const LONGEST_UID: usize = 64;

/// How much later than possible a recorded expiry may be: clocks differ.
const EXPIRY_TOLERANCE: Duration = Duration::from_secs(600);

/// The most keys of others that are kept of a Secret.
const MOST_EXTRA_KEYS: usize = 16;

/// A digest of the fields of a Secret that we own, in 16 bytes: Secrets that we applied with equal metadata have the same digest.
///
/// It covers the fields that our server-side apply owns (`managedFields`), and their values in the metadata. If anyone else changes such a
/// field, the API server removes it from our entry, so the digest changes, although the data itself is never read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ManagedFieldsDigest([u8; 16]);

/// A field of a Secret that our apply owns, with its value if it is in the metadata.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Line<'a> {
    Data,
    Type,
    Label(&'a str, &'a str),
    Annotation(&'a str, &'a str),
    Owner(&'a str),
}

impl<'a> Line<'a> {
    /// What kind of field it is, its name, and its value.
    const fn parts(self) -> [&'a str; 3] {
        match self {
            Self::Data => ["data", "", ""],
            Self::Type => ["type", "", ""],
            Self::Label(key, value) => ["label", key, value],
            Self::Annotation(key, value) => ["annotation", key, value],
            Self::Owner(uid) => ["owner", uid, ""],
        }
    }
}

/// The field's name in messages.
impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kind, name, _] = self.parts();
        write!(f, "{kind} {name}")
    }
}

impl ManagedFieldsDigest {
    fn of(lines: &BTreeSet<Line<'_>>) -> Self {
        let mut hasher = Sha256::new();
        for part in lines.iter().flat_map(|line| line.parts()) {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(hasher.finalize()) {
            *to = from;
        }
        Self(short)
    }

    /// The digest of a Secret after this metadata was applied.
    pub fn desired(metadata: &ObjectMeta) -> Self {
        Self::of(&lines_desired(metadata))
    }
}

/// The fields that we own after this metadata was applied.
fn lines_desired(metadata: &ObjectMeta) -> BTreeSet<Line<'_>> {
    let labels = metadata.labels.iter().flatten().map(|(key, value)| Line::Label(key, value));
    let annotations = metadata.annotations.iter().flatten().map(|(key, value)| Line::Annotation(key, value));
    let owners = metadata.owner_references.iter().flatten().map(|owner| Line::Owner(&owner.uid));
    [Line::Data, Line::Type].into_iter().chain(labels).chain(annotations).chain(owners).collect()
}

/// The fields of a Secret that we own.
fn lines_observed<'a>(metadata: &'a Metadata<'_>, ours: Option<&'a Fields<'_>>) -> BTreeSet<Line<'a>> {
    let Some(fields) = ours else { return BTreeSet::new() };
    let names = |path: &[&str]| fields.find(path).into_iter().flat_map(Fields::names);
    let labels = names(&["f:metadata", "f:labels"])
        .map(|key| Line::Label(key, metadata.labels.get(key).map_or("", |value| value)));
    let annotations = names(&["f:metadata", "f:annotations"])
        .map(|key| Line::Annotation(key, metadata.annotations.get(key).map_or("", |value| value)));
    let is_ours =
        |uid: &str| fields.find(&["f:metadata", "f:ownerReferences", &format!("k:{{\"uid\":\"{uid}\"}}")]).is_some();
    let owners = metadata.owner_references.0.iter().map(|owner| &*owner.uid);
    let owners = owners.filter(|uid| is_ours(uid)).map(Line::Owner);
    let data = owns_data(fields, format(metadata, ours)).then_some(Line::Data);
    let type_ = fields.find(&["f:type"]).map(|_| Line::Type);
    data.into_iter().chain(type_).chain(labels).chain(annotations).chain(owners).collect()
}

/// The fields of this metadata that we do not own in the existing Secret, or that have other values there.
pub fn lost_fields(desired: &ObjectMeta, found: &Metadata<'_>) -> Vec<String> {
    let there = lines_observed(found, our_fields(found));
    let lost = lines_desired(desired).into_iter().filter(|line| !there.contains(line));
    lost.map(|line| line.to_string().trim_end().to_owned()).collect()
}

/// The fields that our apply owns, by `managedFields`.
fn our_fields<'a, 'b>(metadata: &'a Metadata<'b>) -> Option<&'a Fields<'b>> {
    our_entry(metadata)?.fields_v1.as_ref()
}

/// The entry of our apply in `managedFields`.
fn our_entry<'a, 'b>(metadata: &'a Metadata<'b>) -> Option<&'a FieldsEntry<'b>> {
    metadata.managed_fields.entries.iter().find(|entry| is_our_apply(entry))
}

/// The time of the entry of our apply, in seconds; 0 if there is none.
fn applied_at(metadata: &Metadata<'_>) -> u32 {
    let time = our_entry(metadata).and_then(|entry| entry.time.as_ref());
    time.and_then(|time| u32::try_from(time.0.as_second()).ok()).unwrap_or_default()
}

/// Whether the data of a Secret can be ours, by what has changed in its metadata since our last write, or since the first list after a
/// restart. Whoever applies under the name of our field manager leaves the [`ManagedFieldsDigest`] as it is, but the API server sets
/// the time of our entry whenever an apply changes something. And whoever sends `managedFields` that the API server cannot read leaves
/// all of them as they are (Kubernetes 1.37), although every other change of an object but a deletion alters them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Nothing of ours has changed.
    #[default]
    Unchanged,
    /// Something has changed once. If the Secret is as desired, then by a write of ours whose answer was lost. The hash of the new
    /// content is known to nobody else, unless it was written in another namespace already (docs/security.md).
    Changed,
    /// Somebody else has applied under our name, or has hidden what was written.
    Forged,
}

impl fmt::Debug for ManagedFieldsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::encoding::hex(&self.0))
    }
}

/// Whether we own all keys of a format.
fn owns_data(fields: &Fields<'_>, format: OutputFormat) -> bool {
    form(format).keys.iter().all(|key| fields.find(&["f:data", &format!("f:{key}")]).is_some())
}

/// The format in which we wrote a Secret, by its annotation.
fn format(metadata: &Metadata<'_>, ours: Option<&Fields<'_>>) -> OutputFormat {
    let told = ours.and_then(|fields| own_value(metadata, fields, OUTPUT));
    told.and_then(OutputFormat::parse).unwrap_or_default()
}

/// An annotation about the data, if both are as we wrote them.
fn own_annotation<'a>(metadata: &'a Metadata<'_>, ours: Option<&Fields<'_>>, key: &str) -> Option<&'a str> {
    let fields = ours.filter(|fields| owns_data(fields, format(metadata, ours)))?;
    own_value(metadata, fields, key)
}

/// The value of an annotation that is as we wrote it.
fn own_value<'a>(metadata: &'a Metadata<'_>, ours: &Fields<'_>, key: &str) -> Option<&'a str> {
    ours.find(&["f:metadata", "f:annotations"])?.names().find(|name| *name == key)?;
    metadata.annotations.get(key).map(|value| &**value)
}

/// What is kept of a Secret: a few dozen bytes, and nothing of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRecord {
    /// Its uid.
    pub uid: Box<str>,
    /// Its resourceVersion, by which writes are guarded.
    pub resource_version: Box<str>,
    /// The uid of the `EcrCredential` that owns it.
    pub owner: Option<Uid>,
    /// See [`ManagedFieldsDigest`].
    pub digest: ManagedFieldsDigest,
    /// When an apply under our name last changed something, in seconds; 0 if that is unknown.
    pub applied_at: u32,
    /// A hash over all of `managedFields`; none where they are empty.
    pub managed_fields: Option<NonZeroU64>,
    /// See [`Trust`].
    pub trust: Trust,
    /// The recorded expiry, unless somebody else wrote it or the data. It may be forged: see [`Self::valid_until`].
    pub expires_at: Option<Timestamp>,
    /// The hash over its hosts, unless somebody else wrote it or the data.
    pub hosts: Option<u64>,
    /// The hash over the identities that fetched its logins, unless somebody else wrote it or the data.
    pub identity: Option<u64>,
    /// The format in which we wrote it.
    pub format: OutputFormat,
    /// Keys in its data besides those of its format. Only the first are kept, to limit memory.
    pub extra_keys: Box<[String]>,
    /// Whether somebody has set `immutable`. An immutable Secret cannot be refreshed.
    pub sets_immutable: bool,
    /// Whether `managedFields` has an entry of our apply, or is empty. A copy of one of our Secrets has our owner reference, but no
    /// entry of our apply.
    pub applied: bool,
    /// The first finalizer of a Secret that is being deleted; empty if there is none. The Secret exists until its finalizers are removed.
    pub held_by: Option<Box<str>>,
    /// The namespace that a token in it is for, if this process has written it with the token of one. It is not the namespace of the Secret
    /// if that was deleted and made again while the write was under way: the API server compares no uid of namespaces.
    pub content_of: Option<Box<NamespaceUid>>,
}

impl SecretRecord {
    /// Reads a Secret's metadata; none for metadata without uid and resourceVersion, which no stored object lacks.
    pub fn of(metadata: &Metadata<'_>) -> Option<Self> {
        let ours = our_fields(metadata);
        let mut extra_keys: BTreeSet<&str> = BTreeSet::new();
        let mut sets_immutable = false;
        let format = format(metadata, ours);
        for fields in metadata.managed_fields.entries.iter().filter_map(|entry| entry.fields_v1.as_ref()) {
            let keys = fields.find(&["f:data"]).into_iter().flat_map(Fields::names);
            extra_keys.extend(keys.filter(|key| !form(format).keys.contains(key)));
            sets_immutable |= fields.find(&["f:immutable"]).is_some();
        }
        Some(Self {
            uid: metadata.uid.as_deref()?.into(),
            resource_version: metadata.resource_version.as_deref()?.into(),
            owner: owner(metadata, ours),
            digest: ManagedFieldsDigest::of(&lines_observed(metadata, ours)),
            applied_at: applied_at(metadata),
            managed_fields: metadata.managed_fields.hash,
            trust: Trust::default(),
            expires_at: own_annotation(metadata, ours, EXPIRES_AT).and_then(|at| at.parse().ok()),
            hosts: own_annotation(metadata, ours, HOSTS_HASH).and_then(number),
            identity: own_annotation(metadata, ours, IDENTITY_HASH).and_then(number),
            format,
            extra_keys: extra_keys.into_iter().take(MOST_EXTRA_KEYS).map(str::to_owned).collect(),
            sets_immutable,
            applied: ours.is_some() || metadata.managed_fields.entries.is_empty(),
            held_by: metadata.deletion_timestamp.as_ref().map(|_| {
                let first = metadata.finalizers.0.first();
                first
                    .map_or("", |name| name.get(..name.floor_char_boundary(LONGEST_FINALIZER)).unwrap_or_default())
                    .into()
            }),
            content_of: None,
        })
    }

    /// Whether it has the token of another namespace than the one of its name.
    pub fn is_of_another(&self, namespace_uid: NamespaceUid) -> bool {
        self.content_of.as_ref().is_some_and(|content_of| **content_of != namespace_uid)
    }

    /// The recorded expiry, if AWS can have issued the tokens by `latest`, the latest time of all clocks.
    pub fn valid_until(&self, latest: Timestamp) -> Option<Timestamp> {
        self.expires_at.filter(|at| *at <= later(latest, LONGEST_LIFE.saturating_add(EXPIRY_TOLERANCE)))
    }

    /// The trust in this state of a Secret, which follows another one and was not shown by the answer to a write. It may still come of a
    /// write of ours, in flight or without an answer.
    pub fn trust_after(&self, before: &Self, may_be_ours: bool) -> Trust {
        let is_applied_again = self.uid != before.uid || self.applied_at != before.applied_at;
        match (self.digest == before.digest, before.trust) {
            (true, trust) if !is_applied_again && !self.hides_a_change_of(before) => trust,
            (false, Trust::Unchanged) if self.uid == before.uid => Trust::Changed,
            (false, Trust::Changed) if self.uid == before.uid && may_be_ours => Trust::Changed,
            // With equal metadata we would have written equal data, which changes no time. And two changes may have undone each other.
            _ => Trust::Forged,
        }
    }

    /// Whether something was written that `managedFields` do not show.
    fn hides_a_change_of(&self, before: &Self) -> bool {
        self.resource_version != before.resource_version
            && self.held_by.is_some() == before.held_by.is_some()
            && self.managed_fields.is_some()
            && self.managed_fields == before.managed_fields
    }

    /// Whether somebody made additions that an apply does not remove and that must be removed.
    pub fn has_additions(&self, desired: Option<&Payload>) -> bool {
        self.sets_immutable || self.added_keys(desired).next().is_some()
    }

    /// Keys in its data that somebody added, without those of the desired payload: the format may be unknown because somebody
    /// else wrote its annotation.
    pub fn added_keys(&self, desired: Option<&Payload>) -> impl Iterator<Item = &String> {
        self.extra_keys.iter().filter(move |key| !desired.is_some_and(|desired| desired.has_key(key)))
    }

    /// Whether `other` is a later version of the same Secret. The API server's resourceVersions are increasing numbers.
    pub fn is_older_than(&self, other: &Self) -> bool {
        match (self.resource_version.parse::<u64>(), other.resource_version.parse::<u64>()) {
            (Ok(mine), Ok(other)) => mine < other,
            _ => true,
        }
    }
}

fn number(hash: &str) -> Option<u64> {
    u64::from_str_radix(hash, 16).ok()
}

fn is_our_apply(entry: &FieldsEntry<'_>) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && entry.subresource.is_none()
}

/// The longest finalizer that is kept, in bytes.
const LONGEST_FINALIZER: usize = 100;

/// The owner of a Secret of ours whose owner label was overwritten: an unknown `EcrCredential`.
const UNKNOWN_OWNER: &str = "";

/// The owner by our owner reference or, if that is missing (Retain, or removed), by one of our labels. Labels count only if our apply owns
/// them: a copy of a Secret with its labels belongs to whoever made it. One of the two labels is enough, so that overwriting the other
/// does not make the Secret unmanaged, which would let it expire.
fn owner(metadata: &Metadata<'_>, ours: Option<&Fields<'_>>) -> Option<Uid> {
    let is_of_our_group = |version: &str| version.strip_prefix(GROUP).is_some_and(|rest| rest.starts_with('/'));
    let by_reference = metadata
        .owner_references
        .0
        .iter()
        .filter(|o| o.uid.len() <= LONGEST_UID)
        .find(|o| &*o.kind == "EcrCredential" && is_of_our_group(&o.api_version) && o.controller == Some(true))
        .map(|o| Uid((&*o.uid).into()));
    let by_label = || {
        let applied = ours?.find(&["f:metadata", "f:labels"])?;
        let own = |key: &str| metadata.labels.get(key).filter(|_| applied.names().any(|name| name == key));
        let managed = || own(MANAGED_BY).filter(|by| &***by == FIELD_MANAGER).map(|_| UNKNOWN_OWNER.into());
        own(CREDENTIAL_UID).map(|uid| (&**uid).into()).or_else(managed).map(Uid)
    };
    by_reference.or_else(by_label)
}

/// Whether this operator writes the Secret, for any `EcrCredential`.
pub fn is_ours(metadata: &Metadata<'_>) -> bool {
    owner(metadata, our_fields(metadata)).is_some()
}

/// The ownership of a Secret, from the point of view of one `EcrCredential`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// There is no Secret.
    Absent,
    /// It belongs to this `EcrCredential`.
    Owned(Arc<SecretRecord>),
    /// It is ours, but its `EcrCredential` does not exist: kept by Retain, or not yet garbage collected.
    Orphaned(Arc<SecretRecord>),
    /// It belongs to another existing `EcrCredential`.
    OwnedByOther(Arc<SecretRecord>),
    /// It is not ours.
    Unmanaged(Arc<SecretRecord>),
}

impl Ownership {
    /// The ownership by a record. `is_alive` says whether an `EcrCredential` with a uid exists.
    pub fn of(record: Option<&Arc<SecretRecord>>, me: &Uid, is_alive: impl Fn(&Uid) -> bool) -> Self {
        let Some(record) = record else { return Self::Absent };
        let record = record.clone();
        match &record.owner {
            Some(owner) if owner == me => Self::Owned(record),
            Some(owner) if is_alive(owner) => Self::OwnedByOther(record),
            Some(_) => Self::Orphaned(record),
            None => Self::Unmanaged(record),
        }
    }

    /// The Secret there, if there is one.
    pub const fn record(&self) -> Option<&Arc<SecretRecord>> {
        match self {
            Self::Absent => None,
            Self::Owned(r) | Self::Orphaned(r) | Self::OwnedByOther(r) | Self::Unmanaged(r) => Some(r),
        }
    }

    /// The resourceVersion of the Secret there, if there is one.
    pub fn version(&self) -> Option<Box<str>> {
        self.record().map(|record| record.resource_version.clone())
    }
}

#[cfg(test)]
impl SecretRecord {
    /// A pull secret as a watch shows it, without expiry.
    pub(crate) fn fixture(owner: Option<Uid>, version: &str, digest: ManagedFieldsDigest) -> Self {
        Self {
            uid: "s".into(),
            resource_version: version.into(),
            owner,
            digest,
            applied_at: 0,
            managed_fields: None,
            trust: Trust::default(),
            expires_at: None,
            hosts: None,
            identity: None,
            format: OutputFormat::DockerConfigJson,
            extra_keys: Box::default(),
            sets_immutable: false,
            applied: true,
            held_by: None,
            content_of: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, OwnerReference, Time};
    use serde_json::{Value, json};

    /// A Secret's metadata as the API server (1.36) shows it after our apply.
    fn applied() -> ObjectMeta {
        ObjectMeta {
            uid: Some("s".to_owned()),
            resource_version: Some("7".to_owned()),
            labels: Some(
                [(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned()), (CREDENTIAL_UID.to_owned(), "u".to_owned())].into(),
            ),
            annotations: Some([(EXPIRES_AT.to_owned(), "2026-01-01T12:00:00Z".to_owned())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "pullsecrets.dev/v1alpha1".to_owned(),
                kind: "EcrCredential".to_owned(),
                name: "x".to_owned(),
                uid: "u".to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            managed_fields: Some(vec![ManagedFieldsEntry {
                manager: Some(FIELD_MANAGER.to_owned()),
                operation: Some("Apply".to_owned()),
                time: Some(Time("2026-01-01T00:00:00Z".parse().unwrap())),
                fields_v1: Some(FieldsV1(json!({
                    "f:data": { "f:.dockerconfigjson": {} },
                    "f:metadata": {
                        "f:annotations": { "f:pullsecrets.dev/expires-at": {} },
                        "f:labels": { "f:app.kubernetes.io/managed-by": {}, "f:pullsecrets.dev/credential-uid": {} },
                        "f:ownerReferences": { "k:{\"uid\":\"u\"}": {} },
                    },
                    "f:type": {},
                }))),
                ..ManagedFieldsEntry::default()
            }]),
            ..ObjectMeta::default()
        }
    }

    fn fields(metadata: &mut ObjectMeta) -> &mut Value {
        &mut metadata.managed_fields.as_mut().unwrap()[0].fields_v1.as_mut().unwrap().0
    }

    #[test]
    fn a_secret_as_we_wrote_it_has_the_desired_digest() {
        let record = SecretRecord::read(&applied()).unwrap();
        assert_eq!(record.digest, ManagedFieldsDigest::desired(&applied()));
        assert_eq!(record.owner, Some(Uid("u".into())));
        assert_eq!(record.expires_at.unwrap().to_string(), "2026-01-01T12:00:00Z");
    }

    #[test]
    fn every_edit_of_ours_changes_the_digest_and_none_of_others() {
        type Edit = fn(&mut ObjectMeta);
        let edits: [(&str, Edit, bool); 9] = [
            (
                "data taken over",
                |m| {
                    fields(m).as_object_mut().unwrap().remove("f:data");
                },
                true,
            ),
            (
                "type taken over",
                |m| {
                    fields(m).as_object_mut().unwrap().remove("f:type");
                },
                true,
            ),
            (
                "label changed",
                |m| {
                    m.labels.as_mut().unwrap().insert(MANAGED_BY.to_owned(), "you".to_owned());
                },
                true,
            ),
            (
                "annotation changed",
                |m| {
                    m.annotations.as_mut().unwrap().insert(EXPIRES_AT.to_owned(), "x".to_owned());
                },
                true,
            ),
            ("owner removed", |m| m.owner_references = None, true),
            ("entry gone", |m| m.managed_fields = None, true),
            (
                "applied by another",
                |m| {
                    m.managed_fields.as_mut().unwrap()[0].manager = Some("kubectl".to_owned());
                },
                true,
            ),
            (
                "their label",
                |m| {
                    m.labels.as_mut().unwrap().insert("team".to_owned(), "a".to_owned());
                },
                false,
            ),
            (
                "their annotation",
                |m| {
                    m.annotations.as_mut().unwrap().insert("note".to_owned(), "a".to_owned());
                },
                false,
            ),
        ];
        for (name, edit, changes) in edits {
            let mut metadata = applied();
            edit(&mut metadata);
            let changed = SecretRecord::read(&metadata).unwrap().digest != ManagedFieldsDigest::desired(&applied());
            assert_eq!(changed, changes, "{name}");
        }
    }

    #[test]
    fn what_others_added_is_seen() {
        let added = |fields: Value| {
            let mut metadata = applied();
            metadata.managed_fields.as_mut().unwrap().push(ManagedFieldsEntry {
                manager: Some("kubectl-edit".to_owned()),
                operation: Some("Update".to_owned()),
                fields_v1: Some(FieldsV1(fields)),
                ..ManagedFieldsEntry::default()
            });
            SecretRecord::read(&metadata).unwrap()
        };
        assert_eq!(*added(json!({ "f:data": { "f:extra": {} } })).extra_keys, ["extra".to_owned()]);
        assert!(added(json!({ "f:data": { "f:extra": {} } })).has_additions(None));
        assert!(added(json!({ "f:immutable": {} })).has_additions(None));
        assert!(!added(json!({ "f:metadata": { "f:labels": { "f:team": {} } } })).has_additions(None));
    }

    /// The same of an output, whose data has several keys.
    fn applied_output() -> ObjectMeta {
        let mut metadata = applied();
        metadata.annotations.as_mut().unwrap().insert(OUTPUT.to_owned(), "BasicAuth".to_owned());
        let fields = fields(&mut metadata);
        fields["f:data"] = json!({ "f:password": {}, "f:username": {} });
        fields["f:metadata"]["f:annotations"][format!("f:{OUTPUT}")] = json!({});
        metadata
    }

    #[test]
    fn every_key_of_an_output_is_ours_and_no_other_belongs_there() {
        let read = |edit: fn(&mut ObjectMeta)| {
            let mut metadata = applied_output();
            edit(&mut metadata);
            SecretRecord::read(&metadata).unwrap()
        };
        let as_written = ManagedFieldsDigest::desired(&applied_output());
        let good = read(|_| {});
        assert_eq!((good.format, good.digest, good.has_additions(None)), (OutputFormat::BasicAuth, as_written, false));
        assert!(good.expires_at.is_some());
        let taken = read(|m| drop(fields(m)["f:data"].as_object_mut().unwrap().remove("f:password")));
        assert_ne!(taken.digest, as_written, "somebody else has written the password");
        assert_eq!(taken.expires_at, None, "what its annotations say is not of that password");
        let forged = read(|m| {
            fields(m)["f:metadata"]["f:annotations"].as_object_mut().unwrap().remove(&format!("f:{OUTPUT}"));
        });
        assert_ne!(forged.digest, as_written);
        assert_eq!(forged.format, OutputFormat::DockerConfigJson, "the annotation is not ours");
        assert_eq!(*forged.extra_keys, ["password".to_owned(), "username".to_owned()]);
        let auth = crate::token::DockerAuth::parse("QVdTOnA=".to_owned()).unwrap();
        let host = crate::api::registry::Host::parse("a.example").unwrap();
        let crate::secret::formats::Content::Login(texts) = form(OutputFormat::BasicAuth).content else { panic!() };
        let desired = Payload::login(form(OutputFormat::BasicAuth), texts, &host, &auth).unwrap();
        assert!(!forged.has_additions(Some(&desired)), "its own keys are never taken out");
    }

    #[test]
    fn whoever_applies_under_our_name_or_hides_a_change_is_seen() {
        use Trust::{Changed, Forged, Unchanged};
        let written = SecretRecord::read(&applied()).unwrap();
        assert_eq!((written.applied_at, written.trust), (1_767_225_600, Unchanged));
        let other = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let after = |edit: fn(&mut SecretRecord)| {
            // Whatever is written changes an entry, be it the time of one.
            let mut record =
                SecretRecord { resource_version: "8".into(), managed_fields: NonZeroU64::new(8), ..written.clone() };
            edit(&mut record);
            record
        };
        let hidden = SecretRecord { resource_version: "8".into(), ..written.clone() };
        let deleted = SecretRecord { held_by: Some("example.com/x".into()), ..hidden.clone() };
        let without = SecretRecord { managed_fields: None, ..written.clone() };
        let (label, applied) = (after(|_| {}), after(|record| record.applied_at += 1));
        let again = after(|record| record.uid = "t".into());
        let taken = SecretRecord { digest: other, ..label.clone() };
        let refreshed = SecretRecord { digest: other, ..applied.clone() };
        let table = [
            ("a label of others", &label, [Unchanged, Changed, Forged]),
            ("not shown by managedFields", &hidden, [Forged; 3]),
            ("deleted, and kept by a finalizer", &deleted, [Unchanged, Changed, Forged]),
            ("shown again", &written, [Unchanged, Changed, Forged]),
            ("the same applied again", &applied, [Forged; 3]),
            ("deleted and created again", &again, [Forged; 3]),
            ("taken over by another manager", &taken, [Changed, Forged, Forged]),
            ("something else applied", &refreshed, [Changed, Forged, Forged]),
        ];
        for (what, record, expected) in table {
            let seen = [Unchanged, Changed, Forged]
                .map(|trust| record.trust_after(&SecretRecord { trust, ..written.clone() }, false));
            assert_eq!(seen, expected, "{what}");
        }
        let later = SecretRecord { resource_version: "8".into(), ..without.clone() };
        assert_eq!(later.trust_after(&without, false), Unchanged, "there are none to tell by");
    }

    #[test]
    fn an_expiry_that_aws_cannot_have_issued_is_not_believed() {
        let record = SecretRecord::read(&applied()).unwrap();
        let expiry = record.expires_at.unwrap();
        for (minutes, is_believed) in
            [(13 * 60, false), (12 * 60 + 11, false), (12 * 60 + 9, true), (1, true), (-60, true)]
        {
            let now = expiry.checked_sub(k8s_openapi::jiff::SignedDuration::from_mins(minutes)).unwrap();
            assert_eq!(record.valid_until(now).is_some(), is_believed, "{minutes} minutes before");
        }
    }

    #[test]
    fn a_secret_is_ours_by_reference_or_by_one_of_our_labels() {
        type Edit = fn(&mut ObjectMeta);
        /// As the API server does when somebody else sets a label of ours, or removes it.
        fn lose(metadata: &mut ObjectMeta, label: &str, value: Option<&str>) {
            metadata.owner_references = None;
            let labels = metadata.labels.as_mut().unwrap();
            labels.remove(label);
            labels.extend(value.map(|value| (label.to_owned(), value.to_owned())));
            fields(metadata)["f:metadata"]["f:labels"].as_object_mut().unwrap().remove(&format!("f:{label}"));
        }
        let table: [(&str, Edit, bool); 11] = [
            ("labels stripped", |m| m.labels = None, true),
            ("reference stripped", |m| m.owner_references = None, true),
            (
                "both stripped",
                |m| {
                    m.labels = None;
                    m.owner_references = None;
                },
                false,
            ),
            ("no reference, managed-by stripped", |m| lose(m, MANAGED_BY, None), true),
            ("no reference, managed-by overwritten", |m| lose(m, MANAGED_BY, Some("helm")), true),
            ("no reference, the owner's uid stripped", |m| lose(m, CREDENTIAL_UID, None), true),
            ("no reference, the owner's uid overwritten", |m| lose(m, CREDENTIAL_UID, Some("v")), true),
            (
                "no reference, both overwritten",
                |m| {
                    lose(m, CREDENTIAL_UID, Some("v"));
                    lose(m, MANAGED_BY, Some("helm"));
                },
                false,
            ),
            (
                "no reference, both overwritten, another label of ours left",
                |m| {
                    lose(m, CREDENTIAL_UID, Some("v"));
                    lose(m, MANAGED_BY, Some("helm"));
                    fields(m)["f:metadata"]["f:labels"]["f:team"] = json!({});
                },
                false,
            ),
            (
                "a copy with both labels",
                |m| {
                    m.owner_references = None;
                    m.managed_fields.as_mut().unwrap()[0].manager = Some("kubectl-client-side-apply".to_owned());
                },
                false,
            ),
            (
                "another kind's reference",
                |m| {
                    m.labels = None;
                    m.owner_references.as_mut().unwrap()[0].api_version = "v1".to_owned();
                },
                false,
            ),
        ];
        for (name, edit, ours) in table {
            let mut metadata = applied();
            edit(&mut metadata);
            assert_eq!(SecretRecord::read(&metadata).unwrap().owner.is_some(), ours, "{name}");
        }
    }

    #[test]
    fn standing_depends_on_who_asks_and_who_lives() {
        let record = Arc::new(SecretRecord::read(&applied()).unwrap());
        let (me, other) = (Uid("u".into()), Uid("v".into()));
        assert_eq!(Ownership::of(None, &me, |_| true), Ownership::Absent);
        assert!(matches!(Ownership::of(Some(&record), &me, |_| true), Ownership::Owned(_)));
        assert!(matches!(Ownership::of(Some(&record), &other, |_| true), Ownership::OwnedByOther(_)));
        assert!(matches!(Ownership::of(Some(&record), &other, |_| false), Ownership::Orphaned(_)));
        let unknown = Arc::new(SecretRecord { owner: Some(Uid(UNKNOWN_OWNER.into())), ..(*record).clone() });
        assert!(matches!(Ownership::of(Some(&unknown), &me, |uid| *uid == me), Ownership::Orphaned(_)));
    }
}
