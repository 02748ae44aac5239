//! One page of a list, as `limit` and `continue` ask for it.

use super::request::{Kind, Request};
use super::store::Key;

/// See the file's first line.
pub(super) struct Page {
    /// The version that the whole list is of.
    pub(super) version: u64,
    /// What the page before ended with.
    pub(super) after: Option<Key>,
    /// How many there may be on it.
    pub(super) limit: usize,
}

impl Page {
    /// The page that is asked for, of a list that begins now at this version.
    pub(super) fn of(request: &Request, version: u64) -> Self {
        let limit = request.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let (version, after) = match continued(request.target.kind, request.parameter("continue")) {
            Some((version, after)) => (version, Some(after)),
            None => (version, None),
        };
        Self { version, after, limit }
    }

    /// What asks for the next one.
    pub(super) fn token(&self, last: &Key) -> String {
        format!("{}/{}/{}", self.version, last.1, last.2)
    }
}

fn continued(kind: Kind, token: &str) -> Option<(u64, Key)> {
    let mut parts = token.split('/').map(str::to_owned);
    Some((parts.next()?.parse().ok()?, (kind, parts.next()?, parts.next()?)))
}
