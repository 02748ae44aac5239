//! How often an `EcrCredential` is reconciled when each reconciliation takes time that grows with the number of namespaces.

use std::time::Duration;

use tokio::time::Instant;

/// The next reconciliation waits for so many times as long as the last one computed.
const PAUSE: u32 = 20;

/// The wait is not longer than this: it is what a new namespace and the status wait for.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// When the last reconciliation computed, and for how long. Waits for AWS and for writes do not count.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    took: Duration,
}

impl Pace {
    /// How long the next reconciliation has to wait; none if it may begin, which it then does.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        let pause = (self.took * PAUSE).min(LONGEST_PAUSE);
        let wait = self.last.map(|last| pause.saturating_sub(last.elapsed())).filter(|wait| !wait.is_zero());
        if wait.is_none() {
            self.took = Duration::ZERO;
        }
        wait
    }

    /// Adds what was computed from then until now.
    pub(super) fn computed(&mut self, begun: Instant) {
        self.took += begun.elapsed();
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn computing_takes_a_twentieth_of_the_time_and_nobody_waits_longer_than_half_a_second() {
        let mut pace = Pace::default();
        for (took, pause) in [(0, 0), (1, 20), (10, 200), (100, 500)] {
            assert_eq!(pace.begin(), None);
            let begun = Instant::now();
            tokio::time::advance(Duration::from_millis(took)).await;
            pace.computed(begun);
            assert_eq!(pace.begin(), Some(Duration::from_millis(pause)).filter(|pause| !pause.is_zero()), "{took}");
            tokio::time::advance(Duration::from_millis(pause)).await;
        }
        assert_eq!(pace.begin(), None);
        assert_eq!(pace.begin(), None, "what computes nothing has no pause after it");
    }
}
