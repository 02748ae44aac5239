//! The requests that are sent, and neither answered nor given up: a run is not over before them and what follows from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::request::{Kind, Request};
use crate::clock;

/// What follows from a request that takes less is no later than what follows from one that takes no time.
const LONG: SignedDuration = SignedDuration::from_secs(1);

/// See the file's first line. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct UnderWay(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    next: u64,
    /// When each was sent, and whether the link of its process is cut.
    sent: BTreeMap<u64, (Timestamp, Arc<AtomicBool>)>,
    /// When the last one ended that had been under way for long.
    last: Option<Timestamp>,
}

/// A request that is under way as long as this is kept.
pub(super) struct Passage {
    under_way: UnderWay,
    number: u64,
}

impl UnderWay {
    /// A request sets out over a link. Nobody waits for those about Leases and Events.
    pub(super) fn enter(&self, request: &Request, cut: &Arc<AtomicBool>) -> Option<Passage> {
        if matches!(request.target.kind, Kind::Lease | Kind::Event) {
            return None;
        }
        let mut inner = self.0.lock();
        let number = inner.next;
        inner.next += 1;
        inner.sent.insert(number, (clock::true_now(), cut.clone()));
        Some(Passage { under_way: self.clone(), number })
    }

    /// When one was under way the last time; none if all of them took a moment.
    pub(super) fn last(&self) -> Option<Timestamp> {
        let inner = self.0.lock();
        let now = clock::true_now();
        let is_long = |(sent, cut): &(Timestamp, Arc<AtomicBool>)| {
            now.duration_since(*sent) > LONG && !cut.load(Ordering::Relaxed)
        };
        if inner.sent.values().any(is_long) { Some(now) } else { inner.last }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut inner = self.under_way.0.lock();
        let now = clock::true_now();
        if let Some((sent, _)) = inner.sent.remove(&self.number)
            && now.duration_since(sent) > LONG
        {
            inner.last = Some(now);
        }
    }
}
