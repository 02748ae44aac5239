//! Every version of every watched object, in the order in which they were seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Secret,
    Credential,
    Namespace,
    Event,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn of(kind: Kind, object: &Value) -> Key {
        let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        Key { kind, namespace: field("namespace"), name: field("name") }
    }

    /// `namespace/name`, or the name alone of what has no namespace.
    pub(super) fn about(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// One version of an object.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// When it was seen.
    pub(super) at: Timestamp,
    /// It was there before the recorder, so nobody in this test wrote it.
    pub(super) initial: bool,
    /// The object's end; `object` is its last state.
    pub(super) deleted: bool,
    pub(super) object: Arc<Value>,
}

impl Version {
    pub(super) fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    pub(super) fn resource_version(&self) -> &str {
        self.object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.object["metadata"]["labels"][name].as_str()
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.object["metadata"]["annotations"][name].as_str()
    }

    pub(super) fn generation(&self) -> i64 {
        self.object["metadata"]["generation"].as_i64().unwrap_or_default()
    }

    /// It exists and is not about to end.
    pub(super) fn is_active(&self) -> bool {
        !self.deleted && self.object["metadata"]["deletionTimestamp"].is_null()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct History(BTreeMap<Key, Vec<Version>>);

impl History {
    /// Adds a version; `false` if it is known already.
    pub(super) fn add(&mut self, kind: Kind, version: Version) -> bool {
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

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &[Version])> {
        self.0.iter().filter(move |(key, _)| key.kind == kind).map(|(key, versions)| (key, versions.as_slice()))
    }

    pub(super) fn versions(&self, key: &Key) -> &[Version] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn namespace(&self, name: &str) -> &[Version] {
        self.versions(&Key { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() })
    }

    /// The last version of each object that still exists.
    pub(super) fn live(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Version)> {
        self.of_kind(kind).filter_map(|(key, versions)| Some((key, versions.last().filter(|last| !last.deleted)?)))
    }
}

/// The versions, ends included, that somebody may have acted on at `time`, who saw everything at most `staleness` late.
pub(super) fn visible_at(versions: &[Version], time: Timestamp, staleness: Duration) -> impl Iterator<Item = &Version> {
    let since = time - staleness;
    // A watch may bring the recorder an event later than the operator.
    let until = time + Duration::from_secs(2);
    let oldest = versions.iter().rposition(|version| version.at <= since).unwrap_or(0);
    versions.iter().skip(oldest).take_while(move |version| version.at <= until || version.initial)
}
