//! An object as the store keeps it: whole, or as text where there are a million of them.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::fields::{self, Manager};
use super::request::Kind;

/// An object with all that is known of it.
pub(super) struct Stored {
    pub(super) object: Value,
    pub(super) managers: Vec<Manager>,
    /// With `managedFields`, as it is answered.
    pub(super) shown: Arc<Value>,
    pub(super) since: Timestamp,
}

impl Stored {
    pub(super) fn new(kind: Kind, object: Value, managers: Vec<Manager>, since: Timestamp) -> Self {
        let mut shown = object.clone();
        if kind == Kind::Secret {
            shown["metadata"]["managedFields"] = fields::render(&managers, kind.api_version());
        }
        Self { object, managers, shown: Arc::new(shown), since }
    }

    fn read(text: &str, since: Timestamp) -> Self {
        let shown: Value = serde_json::from_str(text).expect("what was written here");
        let mut object = shown.clone();
        let managed = object["metadata"].as_object_mut().and_then(|metadata| metadata.remove("managedFields"));
        Self { object, managers: fields::read(&managed.unwrap_or_else(|| json!([]))), shown: Arc::new(shown), since }
    }
}

/// See the file's first line.
pub(super) enum Kept {
    Whole(Arc<Stored>),
    /// A sixth of the memory, for some microseconds each time that it is looked at.
    Text(Box<str>, Timestamp),
}

impl Kept {
    pub(super) fn whole(stored: Stored) -> Self {
        Self::Whole(Arc::new(stored))
    }

    pub(super) fn text(stored: &Stored) -> Self {
        Self::Text(stored.shown.to_string().into(), stored.since)
    }

    pub(super) fn get(&self) -> Arc<Stored> {
        match self {
            Self::Whole(stored) => stored.clone(),
            Self::Text(text, since) => Arc::new(Stored::read(text, *since)),
        }
    }

    /// Since when it is as it is.
    pub(super) fn since(&self) -> Timestamp {
        match self {
            Self::Whole(stored) => stored.since,
            Self::Text(_, since) => *since,
        }
    }
}
