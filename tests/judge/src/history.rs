//! Every version of every watched object, in the order in which they were seen, and who wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Secret,
    Credential,
    Namespace,
    /// Where it is recorded.
    ServiceAccount,
    Event,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn of(kind: Kind, object: &Value) -> Key {
        let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        Key { kind, namespace: field("namespace"), name: field("name") }
    }

    pub fn secret(namespace: &str, name: &str) -> Key {
        Key { kind: Kind::Secret, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `namespace/name`, or the name alone of what has no namespace.
    pub fn about(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// One version of an object.
#[derive(Clone, Debug)]
pub struct Version {
    /// When it was seen.
    pub at: Timestamp,
    /// When it was sent, as far as that is known, else when it was seen.
    pub sent: Timestamp,
    pub by_operator: bool,
    /// It was there before the run, so nobody in it wrote it.
    pub initial: bool,
    /// The object's end; `object` is its last state.
    pub deleted: bool,
    pub object: Arc<Value>,
}

impl Version {
    /// One of which it is not known yet who wrote it.
    pub fn seen(at: Timestamp, object: Arc<Value>) -> Version {
        Version { at, sent: at, by_operator: false, initial: false, deleted: false, object }
    }

    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    pub fn resource_version(&self) -> &str {
        self.object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.object["metadata"]["labels"][name].as_str()
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.object["metadata"]["annotations"][name].as_str()
    }

    pub fn generation(&self) -> i64 {
        self.object["metadata"]["generation"].as_i64().unwrap_or_default()
    }

    /// It exists and is not about to end.
    pub fn is_active(&self) -> bool {
        !self.deleted && self.object["metadata"]["deletionTimestamp"].is_null()
    }
}

#[derive(Clone, Debug, Default)]
pub struct History(pub(crate) BTreeMap<Key, Vec<Version>>);

impl History {
    /// Adds a version; `false` if it is known already.
    pub fn add(&mut self, kind: Kind, version: Version) -> bool {
        let versions = self.0.entry(Key::of(kind, &version.object)).or_default();
        let known = versions.last().is_some_and(|last| {
            last.deleted == version.deleted
                && (version.deleted || last.resource_version() == version.resource_version())
        });
        if !known {
            versions.push(version);
        }
        !known
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &[Version])> {
        let first = Key { kind, namespace: String::new(), name: String::new() };
        let all = self.0.range(first..).take_while(move |(key, _)| key.kind == kind);
        all.map(|(key, versions)| (key, versions.as_slice()))
    }

    /// Every version of every object of a kind.
    pub fn versions_of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Version)> {
        self.of_kind(kind).flat_map(|(key, versions)| versions.iter().map(move |version| (key, version)))
    }

    pub fn versions(&self, key: &Key) -> &[Version] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn namespace(&self, name: &str) -> &[Version] {
        self.versions(&Key { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() })
    }

    /// The last version of each object that still exists.
    pub fn live(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Version)> {
        self.of_kind(kind).filter_map(|(key, versions)| Some((key, versions.last().filter(|last| !last.deleted)?)))
    }
}

/// The versions, ends included, that were current at some time in between.
pub fn during(versions: &[Version], from: Timestamp, until: Timestamp) -> impl Iterator<Item = &Version> {
    let first = versions.partition_point(|version| version.at < from).saturating_sub(1);
    versions.iter().skip(first).take_while(move |version| version.at <= until || version.initial)
}
