//! The objects, every change to them, and what the control plane does by itself: garbage collection, ends of namespaces.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::fields::Manager;
use super::kept::{Kept, Stored};
use super::owed::Owed;
use super::request::{Kind, Target};
use super::selector::Selector;
use crate::clock;

/// Kind, namespace, name.
pub type Key = (Kind, String, String);

/// Who makes a change: an operator process by its number, or anybody else.
pub type Actor = Option<u32>;

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
    objects: BTreeMap<Key, Kept>,
    pub(super) version: u64,
    pub(super) oldest: u64,
    pub(super) changes: VecDeque<Change>,
    pub(super) quotas: BTreeMap<String, usize>,
    pub(super) events: Vec<(Timestamp, Value)>,
    /// Until when each process holds the Lease by its last renewal.
    pub(super) holds: BTreeMap<u32, Timestamp>,
    /// Whether Secrets are kept as text, and only so many of the last changes.
    window: Option<usize>,
    owed: Owed,
    uids: BTreeMap<Kind, u64>,
}

impl Store {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.objects.get(key).map(Kept::get)
    }

    /// Keeps Secrets as text from now on, and only so many of the last changes, as a real one does.
    pub(super) fn be_thrifty(&mut self, window: usize) {
        self.window = Some(window);
    }

    /// Everything of a kind, in one namespace or all, that comes after one.
    fn range<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
        after: Option<&Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Kept)> + use<'a> {
        let first =
            after.map_or_else(|| Included((kind, namespace.to_owned(), String::new())), |key| Excluded(key.clone()));
        let all = self.objects.range((first, Unbounded)).take_while(move |(key, _)| key.0 == kind);
        all.take_while(move |(key, _)| namespace.is_empty() || key.1 == namespace)
    }

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, Arc<Stored>)> {
        self.range(kind, "", None).map(|(key, kept)| (key, kept.get()))
    }

    pub(super) fn keys_in(&self, kind: Kind, namespace: &str) -> Vec<Key> {
        self.range(kind, namespace, None).map(|(key, _)| key.clone()).collect()
    }

    /// What a list may mean that comes after one, found by namespace and name as far as they are given: of a million Secrets
    /// those of one name are where the namespaces are.
    pub(super) fn candidates<'a>(
        &'a self,
        kind: Kind,
        selector: &'a Selector,
        after: Option<&Key>,
    ) -> Box<dyn Iterator<Item = (Key, Arc<Stored>)> + 'a> {
        let Some(name) = selector.name().filter(|_| kind == Kind::Secret && selector.namespace().is_empty()) else {
            let all = self.range(kind, selector.namespace(), after);
            return Box::new(all.map(|(key, kept)| (key.clone(), kept.get())));
        };
        let last_home = after.map(|key| (Kind::Namespace, String::new(), key.1.clone()));
        let homes = self.range(Kind::Namespace, "", last_home.as_ref());
        Box::new(homes.filter_map(move |(home, _)| {
            let key = (kind, home.2.clone(), name.to_owned());
            self.get(&key).map(|stored| (key, stored))
        }))
    }

    /// One of each kind comes after the other, so that the hash of an identity does not depend on how many Leases there were.
    pub(super) fn fresh_uid(&mut self, kind: Kind) -> String {
        let number = self.uids.entry(kind).or_default();
        *number += 1;
        format!("00000000-0000-4000-8{:03}-{number:012}", kind as u8)
    }

    /// Stores an object under the next version, over what was there before.
    pub(super) fn put(
        &mut self,
        key: &Key,
        before: Option<&Stored>,
        mut object: Value,
        managers: Vec<Manager>,
        by: Actor,
    ) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = before.map(|stored| stored.shown.clone());
        let stored = Stored::new(key.0, object, managers, clock::true_now());
        let shown = stored.shown.clone();
        self.owed.stored(key, &stored.object);
        let as_text = key.0 == Kind::Secret && self.window.is_some();
        self.objects.insert(key.clone(), if as_text { Kept::text(&stored) } else { Kept::whole(stored) });
        self.note(key, before, shown.clone(), false, by);
        shown
    }

    pub(super) fn remove(&mut self, key: &Key, by: Actor) -> Option<Arc<Value>> {
        let stored = self.objects.remove(key)?.get();
        self.version += 1;
        self.owed.removed(key, &stored.object);
        if key.0 == Kind::Credential {
            let left: Vec<Key> = self.keys_in(Kind::Secret, "");
            left.iter().for_each(|key| self.owed.stored(key, &self.objects[key].get().object));
        }
        let mut last = (*stored.shown).clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.note(key, Some(stored.shown.clone()), Arc::new(last), true, by);
        Some(stored.shown.clone())
    }

    fn note(&mut self, key: &Key, before: Option<Arc<Value>>, after: Arc<Value>, deleted: bool, by: Actor) {
        let at = clock::true_now();
        if key.0 == Kind::Lease {
            // Nobody watches Leases, and a month has very many renewals.
            self.note_lease(&after, by);
            return;
        }
        self.changes.push_back(Change { version: self.version, at, key: key.clone(), before, after, deleted, by });
        if self.window.is_some_and(|window| self.changes.len() > window) {
            self.oldest = self.changes.pop_front().map_or(self.oldest, |oldest| oldest.version);
        }
    }

    /// What a list may mean that comes after one, as it is or as it was at a version. One that forgets knows no past.
    pub(super) fn found_at<'a>(
        &'a self,
        version: u64,
        kind: Kind,
        selector: &'a Selector,
        after: Option<&Key>,
    ) -> Box<dyn Iterator<Item = (Key, Arc<Value>)> + 'a> {
        if version == self.version || self.window.is_some() {
            let now = self.candidates(kind, selector, after);
            return Box::new(now.map(|(key, stored)| (key, stored.shown.clone())));
        }
        let mut then: BTreeMap<&Key, &Change> = BTreeMap::new();
        let wanted = |key: &Key| key.0 == kind && after.is_none_or(|after| key > after);
        for change in self.changes.iter().filter(|change| wanted(&change.key) && change.version <= version) {
            then.insert(&change.key, change);
        }
        let left = then.into_iter().filter(|(_, change)| !change.deleted);
        Box::new(left.map(|(key, change)| (key.clone(), change.after.clone())))
    }

    fn note_lease(&mut self, lease: &Value, by: Actor) {
        let Some(process) = by else { return };
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let mine = crate::operator::is_held_by(holder, process);
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
        let since = |key: &Key| self.objects.get(key).map(Kept::since);
        for key in self.owed.collected(since) {
            self.remove(&key, None);
        }
        let since = |key: &Key| self.objects.get(key).map(Kept::since);
        for (key, is_over) in self.owed.ended(since) {
            let inside: Vec<Key> = Kind::ALL.into_iter().flat_map(|kind| self.keys_in(kind, &key.2)).collect();
            inside.iter().for_each(|key| drop(self.remove(key, None)));
            if is_over {
                self.remove(&key, None);
            }
        }
    }

    pub(super) fn terminate(&mut self, target: &Target, by: Actor) -> Option<Arc<Value>> {
        let key = key(target);
        let stored = self.get(&key)?;
        let mut object = stored.object.clone();
        object["metadata"]["deletionTimestamp"] = now_text().into();
        object["status"] = json!({ "phase": "Terminating" });
        Some(self.put(&key, Some(&stored), object, vec![], by))
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
