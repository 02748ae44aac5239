//! The stand-in's clock: real time with an offset, frozen, or somebody else's.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::RwLock;

/// Every expiry, every `Date` header and the check of the signature's age go by this clock, so that a test may move 30 days in a second.
#[derive(Clone)]
pub struct Clock {
    source: Arc<RwLock<Source>>,
}

#[derive(Clone)]
enum Source {
    Offset(SignedDuration),
    Follows(Arc<dyn Fn() -> Timestamp + Send + Sync>),
}

impl Default for Clock {
    fn default() -> Self {
        Clock { source: Arc::new(RwLock::new(Source::Offset(SignedDuration::ZERO))) }
    }
}

impl Clock {
    pub fn now(&self) -> Timestamp {
        match &*self.source.read() {
            Source::Offset(offset) => Timestamp::now() + *offset,
            Source::Follows(source) => source(),
        }
    }

    /// Real time plus `offset`, which may be negative.
    pub fn set_offset(&self, offset: SignedDuration) {
        *self.source.write() = Source::Offset(offset);
    }

    /// Moves the clock by `step` from where it is, and lets it run on from there.
    pub fn advance(&self, step: SignedDuration) {
        let offset = self.now().duration_since(Timestamp::now()) + step;
        self.set_offset(offset);
    }

    /// Stops the clock at `at`.
    pub fn freeze(&self, at: Timestamp) {
        self.follow(move || at);
    }

    /// Reads the time from `source` from now on: a test's virtual clock.
    pub fn follow(&self, source: impl Fn() -> Timestamp + Send + Sync + 'static) {
        *self.source.write() = Source::Follows(Arc::new(source));
    }
}
