//! The answers that writes wait for: the watch may overtake them, and show first that the Secret is gone.

use std::collections::{HashMap, HashSet};

use crate::plan::scopes::{SecretKey, SecretScope};

/// The Secrets with writes in flight, and what the watch has shown of them since.
///
/// An answer shows the Secret as it was when it was written. If it has been deleted since, no other event will say so again.
#[derive(Debug, Default)]
pub struct Expectations {
    in_flight: HashMap<SecretKey, Since>,
    /// Where a write that has ended may have been done: its event may still come.
    unanswered: HashSet<SecretKey>,
}

#[derive(Debug, Default)]
struct Since {
    writes: usize,
    /// The uids of Secrets that have gone.
    gone: Vec<Box<str>>,
    /// Whether a whole list has come without it.
    missed: bool,
}

impl Expectations {
    /// A write begins.
    pub fn begin(&mut self, key: SecretKey) {
        self.in_flight.entry(key).or_default().writes += 1;
    }

    /// A write has ended, with an answer or without.
    pub fn end(&mut self, key: &SecretKey) {
        if let Some(since) = self.in_flight.get_mut(key) {
            since.writes = since.writes.saturating_sub(1);
            if since.writes == 0 {
                self.in_flight.remove(key);
            }
        }
    }

    /// A Secret has gone; without a uid, the one that a list should have shown, whichever it is.
    pub fn gone(&mut self, key: &SecretKey, uid: Option<&str>) {
        if let Some(since) = self.in_flight.get_mut(key) {
            match uid {
                Some(uid) => since.gone.push(uid.into()),
                None => since.missed = true,
            }
        }
    }

    /// Whether an answer shows the current state, as far as is known. For a Secret that was missing in a list only the watch counts:
    /// if it was created after the list, its event is still to come.
    pub fn holds(&self, key: &SecretKey, uid: &str) -> bool {
        self.in_flight.get(key).is_none_or(|since| !since.missed && since.gone.iter().all(|gone| **gone != *uid))
    }

    /// A write has ended without an answer that says whether it was done.
    pub fn unanswered(&mut self, key: SecretKey) {
        self.unanswered.insert(key);
    }

    /// Whether what is shown of a Secret may come of a write: one is in flight, or has ended without an answer and was not shown yet.
    pub fn shown(&mut self, key: &SecretKey) -> bool {
        self.unanswered.remove(key) || self.in_flight.contains_key(key)
    }

    /// A list of a scope has come.
    pub fn listed(&mut self, scope: &SecretScope) {
        self.unanswered.retain(|key| !scope.contains(key));
    }

    /// A namespace has gone.
    pub fn namespace_gone(&mut self, namespace: &str) {
        self.unanswered.retain(|key| *key.namespace != *namespace);
    }

    /// The Secrets with writes in flight.
    pub fn keys(&self) -> impl Iterator<Item = &SecretKey> {
        self.in_flight.keys()
    }
}

#[cfg(test)]
mod tests;
