//! What the control plane owes: to collect Secrets without owners, and to end namespaces. Each is noted when it comes about, so
//! that no request looks through all objects.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::request::Kind;
use super::store::{Key, is_terminating};
use crate::clock;

/// How long the garbage collector takes.
const COLLECTION: Duration = Duration::from_secs(1);

/// How long a namespace takes to end, in each of its two steps.
const TERMINATION: Duration = Duration::from_secs(2);

/// See the file's first line.
#[derive(Default)]
pub(super) struct Owed {
    /// The uids of the `EcrCredentials`. None comes twice, so what has lost its owners never finds them again.
    alive: BTreeSet<String>,
    /// When the last of them went.
    last_end: Option<Timestamp>,
    orphans: BTreeSet<Key>,
    ending: BTreeSet<Key>,
}

impl Owed {
    /// Notes an object as it is now.
    pub(super) fn stored(&mut self, key: &Key, object: &Value) {
        match key.0 {
            Kind::Credential => drop(self.alive.insert(uid(&object["metadata"]))),
            Kind::Secret => note(&mut self.orphans, key, is_orphan(&self.alive, object)),
            Kind::Namespace => note(&mut self.ending, key, is_terminating(object)),
            Kind::ServiceAccount | Kind::Lease | Kind::Event => {}
        }
    }

    /// Notes the end of one. After that of an `EcrCredential` every Secret is to be noted again.
    pub(super) fn removed(&mut self, key: &Key, object: &Value) {
        if key.0 == Kind::Credential {
            self.alive.remove(&uid(&object["metadata"]));
            self.last_end = Some(clock::true_now());
        }
        self.orphans.remove(key);
        self.ending.remove(key);
    }

    /// The Secrets to collect by now, by when each was stored.
    pub(super) fn collected(&self, since: impl Fn(&Key) -> Option<Timestamp>) -> Vec<Key> {
        let from = |key: &Key| since(key).map(|since| since.max(self.last_end.unwrap_or(since)));
        let due = |key: &&Key| from(key).is_some_and(|from| is_due(from, COLLECTION));
        self.orphans.iter().filter(due).cloned().collect()
    }

    /// The namespaces that are to be emptied by now, and whether they are to go themselves.
    pub(super) fn ended(&self, since: impl Fn(&Key) -> Option<Timestamp>) -> Vec<(Key, bool)> {
        let since = self.ending.iter().filter_map(|key| Some((key, since(key)?)));
        let due = since.filter(|(_, since)| is_due(*since, TERMINATION));
        due.map(|(key, since)| (key.clone(), is_due(since, TERMINATION * 2))).collect()
    }
}

fn note(set: &mut BTreeSet<Key>, key: &Key, belongs: bool) {
    if belongs {
        set.insert(key.clone());
    } else {
        set.remove(key);
    }
}

fn is_due(since: Timestamp, after: Duration) -> bool {
    SignedDuration::try_from(after).is_ok_and(|after| clock::true_now().duration_since(since) >= after)
}

fn uid(reference: &Value) -> String {
    reference["uid"].as_str().unwrap_or_default().to_owned()
}

fn is_orphan(alive: &BTreeSet<String>, object: &Value) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.is_some_and(|owners| !owners.is_empty() && owners.iter().all(|owner| !alive.contains(&uid(owner))))
}
