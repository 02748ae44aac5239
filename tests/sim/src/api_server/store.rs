//! The objects, every change to them, and what the control plane does by itself: garbage collection, ends of namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::fields::{self, Manager};
use super::owed::Owed;
use super::request::{Kind, Target};
use super::selector::Selector;
use crate::clock;

/// Kind, namespace, name.
pub type Key = (Kind, String, String);

/// Who makes a change: an operator process by its number, or anybody else.
pub type Actor = Option<u32>;

#[derive(Clone)]
pub(super) struct Stored {
    pub(super) object: Value,
    pub(super) managers: Vec<Manager>,
    pub(super) shown: Arc<Value>,
    pub(super) since: Timestamp,
}

/// One change: what watches show and what the judge looks at.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub at: Timestamp,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Arc<Value>,
    pub deleted: bool,
    pub by: Actor,
}

/// See the file's first line.
#[derive(Default)]
pub struct Store {
    pub(super) objects: BTreeMap<Key, Stored>,
    pub(super) version: u64,
    pub(super) oldest: u64,
    pub(super) changes: Vec<Change>,
    pub(super) quotas: BTreeMap<String, usize>,
    pub(super) events: Vec<(Timestamp, Value)>,
    /// Until when each process holds the Lease by its last renewal.
    pub(super) holds: BTreeMap<u32, Timestamp>,
    owed: Owed,
    uids: u64,
}

impl Store {
    pub(super) fn get(&self, key: &Key) -> Option<&Stored> {
        self.objects.get(key)
    }

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Stored)> {
        let first = (kind, String::new(), String::new());
        self.objects.range(first..).take_while(move |(key, _)| key.0 == kind)
    }

    pub(super) fn in_namespace<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Stored)> {
        let first = (kind, namespace.to_owned(), String::new());
        self.objects.range(first..).take_while(move |(key, _)| key.0 == kind && key.1 == namespace)
    }

    /// What a list may mean, found by namespace and name as far as they are given: of a million Secrets those of one name
    /// are where the namespaces are.
    pub(super) fn candidates<'a>(
        &'a self,
        kind: Kind,
        selector: &'a Selector,
    ) -> Box<dyn Iterator<Item = (&'a Key, &'a Stored)> + 'a> {
        match (selector.namespace(), selector.name()) {
            ("", Some(name)) if kind == Kind::Secret => {
                let in_home = move |(home, _): (&Key, _)| (kind, home.2.clone(), name.to_owned());
                Box::new(
                    self.of_kind(Kind::Namespace).filter_map(move |home| self.objects.get_key_value(&in_home(home))),
                )
            }
            ("", _) => Box::new(self.of_kind(kind)),
            (namespace, _) => Box::new(self.in_namespace(kind, namespace)),
        }
    }

    pub(super) fn fresh_uid(&mut self) -> String {
        self.uids += 1;
        format!("00000000-0000-4000-8000-{:012}", self.uids)
    }

    /// Stores an object under the next version.
    pub(super) fn put(&mut self, key: &Key, mut object: Value, managers: Vec<Manager>, by: Actor) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let mut shown = object.clone();
        if key.0 == Kind::Secret {
            shown["metadata"]["managedFields"] = fields::render(&managers, key.0.api_version());
        }
        let shown = Arc::new(shown);
        let before = self.objects.get(key).map(|stored| stored.shown.clone());
        let stored = Stored { object, managers, shown: shown.clone(), since: clock::true_now() };
        self.owed.stored(key, &stored.object);
        self.objects.insert(key.clone(), stored);
        self.note(key, before, shown.clone(), false, by);
        shown
    }

    pub(super) fn remove(&mut self, key: &Key, by: Actor) -> Option<Arc<Value>> {
        let stored = self.objects.remove(key)?;
        self.version += 1;
        self.owed.removed(key, &stored.object);
        if key.0 == Kind::Credential {
            let left = self.objects.range((Kind::Secret, String::new(), String::new())..);
            let left = left.take_while(|(key, _)| key.0 == Kind::Secret);
            left.for_each(|(key, left)| self.owed.stored(key, &left.object));
        }
        let mut last = (*stored.shown).clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.note(key, Some(stored.shown.clone()), Arc::new(last), true, by);
        Some(stored.shown)
    }

    fn note(&mut self, key: &Key, before: Option<Arc<Value>>, after: Arc<Value>, deleted: bool, by: Actor) {
        let at = clock::true_now();
        if key.0 == Kind::Lease {
            // Nobody watches Leases, and a month has very many renewals.
            self.note_lease(&after, by);
            return;
        }
        self.changes.push(Change { version: self.version, at, key: key.clone(), before, after, deleted, by });
    }

    /// Objects of a kind as they were at a version.
    pub(super) fn at(&self, kind: Kind, version: u64) -> Vec<Arc<Value>> {
        let mut then: BTreeMap<&Key, &Change> = BTreeMap::new();
        for change in self.changes.iter().filter(|change| change.key.0 == kind && change.version <= version) {
            then.insert(&change.key, change);
        }
        then.into_values().filter(|change| !change.deleted).map(|change| change.after.clone()).collect()
    }

    fn note_lease(&mut self, lease: &Value, by: Actor) {
        let Some(process) = by else { return };
        let mine = lease["spec"]["holderIdentity"] == crate::operator::identity(process).as_str();
        let seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or_default();
        let until = clock::true_now().checked_add(SignedDuration::from_secs(seconds));
        match until.ok().filter(|_| mine) {
            Some(until) => self.holds.insert(process, until),
            None => self.holds.remove(&process),
        };
    }

    /// Whether a process holds the Lease by its own last renewal.
    pub(super) fn is_leader(&self, by: Actor) -> bool {
        by.and_then(|process| self.holds.get(&process)).is_some_and(|until| clock::true_now() < *until)
    }

    /// Does what the control plane owes by now.
    pub(super) fn tick(&mut self) {
        let since = |key: &Key| self.objects.get(key).map(|stored| stored.since);
        for key in self.owed.collected(since) {
            self.remove(&key, None);
        }
        let since = |key: &Key| self.objects.get(key).map(|stored| stored.since);
        for (key, is_over) in self.owed.ended(since) {
            let inside: Vec<Key> = Kind::ALL
                .into_iter()
                .flat_map(|kind| self.in_namespace(kind, &key.2).map(|(key, _)| key.clone()).collect::<Vec<_>>())
                .collect();
            inside.iter().for_each(|key| drop(self.remove(key, None)));
            if is_over {
                self.remove(&key, None);
            }
        }
    }

    pub(super) fn terminate(&mut self, target: &Target, by: Actor) -> Option<Arc<Value>> {
        let key = key(target);
        let mut object = self.get(&key)?.object.clone();
        object["metadata"]["deletionTimestamp"] = now_text().into();
        object["status"] = json!({ "phase": "Terminating" });
        Some(self.put(&key, object, vec![], by))
    }
}

pub(super) fn key(target: &Target) -> Key {
    (target.kind, target.namespace.clone(), target.name.clone())
}

pub(super) fn is_terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The time as the API server writes it.
pub(super) fn now_text() -> String {
    let now = clock::true_now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
