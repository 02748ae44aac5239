//! The answers that writes wait for: the watch may overtake them, and show first that the Secret is gone.

use std::collections::HashMap;

use super::secret_key::SecretKey;

/// The Secrets with writes in flight, and what the watch has shown of them since.
///
/// An answer shows the Secret as it was when it was written. If it has been deleted since, no other event will say so again.
#[derive(Debug, Default)]
pub struct Expectations(HashMap<SecretKey, Since>);

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
        self.0.entry(key).or_default().writes += 1;
    }

    /// A write has ended, with an answer or without.
    pub fn end(&mut self, key: &SecretKey) {
        if let Some(since) = self.0.get_mut(key) {
            since.writes = since.writes.saturating_sub(1);
            if since.writes == 0 {
                self.0.remove(key);
            }
        }
    }

    /// A Secret has gone; without a uid, the one that a list should have shown, whichever it is.
    pub fn gone(&mut self, key: &SecretKey, uid: Option<&str>) {
        if let Some(since) = self.0.get_mut(key) {
            match uid {
                Some(uid) => since.gone.push(uid.into()),
                None => since.missed = true,
            }
        }
    }

    /// Whether an answer shows the current state, as far as is known. For a Secret that was missing in a list only the watch counts:
    /// if it was created after the list, its event is still to come.
    pub fn holds(&self, key: &SecretKey, uid: &str) -> bool {
        self.0.get(key).is_none_or(|since| !since.missed && since.gone.iter().all(|gone| **gone != *uid))
    }

    /// Whether a write of a Secret is in flight.
    pub fn contains(&self, key: &SecretKey) -> bool {
        self.0.contains_key(key)
    }

    /// The Secrets with writes in flight.
    pub fn keys(&self) -> impl Iterator<Item = &SecretKey> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests;
