//! The answers that writes wait for: the watch may overtake them, and tell of the Secret's end first.

use std::collections::HashMap;

use super::cluster_state::SecretKey;

/// The places with writes under way, and what the watch has told of them since.
///
/// An answer shows the Secret as it was when it was written. Where it has been deleted since, no event will ever come that
/// says so again.
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
    pub fn begin(&mut self, spot: SecretKey) {
        self.0.entry(spot).or_default().writes += 1;
    }

    /// A write has ended, with an answer or without.
    pub fn end(&mut self, spot: &SecretKey) {
        if let Some(since) = self.0.get_mut(spot) {
            since.writes = since.writes.saturating_sub(1);
            if since.writes == 0 {
                self.0.remove(spot);
            }
        }
    }

    /// A Secret has gone; without a uid, the one that a list should have shown, whichever it is.
    pub fn gone(&mut self, spot: &SecretKey, uid: Option<&str>) {
        if let Some(since) = self.0.get_mut(spot) {
            match uid {
                Some(uid) => since.gone.push(uid.into()),
                None => since.missed = true,
            }
        }
    }

    /// Whether the answer tells what is, as far as is known. Of a Secret that a list has missed the watch tells alone: if it
    /// was made after the list, its event is still to come.
    pub fn holds(&self, spot: &SecretKey, uid: &str) -> bool {
        self.0.get(spot).is_none_or(|since| !since.missed && since.gone.iter().all(|gone| **gone != *uid))
    }

    /// Where writes are under way.
    pub fn spots(&self) -> impl Iterator<Item = &SecretKey> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests;
