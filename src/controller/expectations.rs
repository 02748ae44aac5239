//! The answers that writes wait for: the watch may overtake them, and show first that the Secret is gone.

use std::collections::HashMap;

use crate::plan::namespaces::NamespaceUid;
use crate::plan::scopes::{SecretKey, SecretScope};

/// The Secrets with writes in flight, and what the watch has shown of them since.
///
/// An answer shows the Secret as it was when it was written. If it has been deleted since, no other event will say so again.
#[derive(Debug, Default)]
pub struct Expectations {
    in_flight: HashMap<SecretKey, Since>,
    /// Where a write that has ended may have been done: its event may still come. With the namespace that its content is for.
    unanswered: HashMap<SecretKey, Option<NamespaceUid>>,
}

#[derive(Debug, Default)]
struct Since {
    writes: usize,
    /// The namespace that the content is for, where it is for one.
    content_of: Option<NamespaceUid>,
    /// The uids of Secrets that have gone.
    gone: Vec<Box<str>>,
    /// Whether a whole list has come without it.
    missed: bool,
}

impl Expectations {
    /// A write begins, of content that may be for one namespace alone.
    pub fn begin(&mut self, key: SecretKey, content_of: Option<NamespaceUid>) {
        let since = self.in_flight.entry(key).or_default();
        since.writes += 1;
        since.content_of = content_of.or(since.content_of);
    }

    /// The namespace that the content of a write in flight is for, if it is for one.
    pub fn sent_for(&self, key: &SecretKey) -> Option<NamespaceUid> {
        self.in_flight.get(key)?.content_of
    }

    /// The same of a Secret that shows itself, which may come of a write without an answer.
    pub fn content_of(&self, key: &SecretKey) -> Option<NamespaceUid> {
        self.sent_for(key).or_else(|| self.unanswered.get(key).copied().flatten())
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
        let content_of = self.content_of(&key);
        self.unanswered.insert(key, content_of);
    }

    /// Whether what is shown of a Secret may come of a write: one is in flight, or has ended without an answer and was not shown yet.
    pub fn shown(&mut self, key: &SecretKey) -> bool {
        self.unanswered.remove(key).is_some() || self.in_flight.contains_key(key)
    }

    /// A list of a scope has come.
    pub fn listed(&mut self, scope: &SecretScope) {
        self.unanswered.retain(|key, _| !scope.contains(key));
    }

    /// A namespace has gone. What is for it alone may show itself in its successor.
    pub fn namespace_gone(&mut self, namespace: &str) {
        self.unanswered.retain(|key, content_of| content_of.is_some() || *key.namespace != *namespace);
    }

    /// The Secrets with writes in flight.
    pub fn keys(&self) -> impl Iterator<Item = &SecretKey> {
        self.in_flight.keys()
    }
}

#[cfg(test)]
mod tests;
