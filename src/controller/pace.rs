//! How often all places of one `EcrCredential` are looked at: it takes time that grows with their number.

use std::time::Duration;

use tokio::time::Instant;

/// The next look waits for so many times as long as the last one took: thousands of namespaces that are labelled at once, or
/// come one after another, must not cost a look each.
const PAUSE: u32 = 20;

/// With nothing else to do the wait is not longer than this: it is what the status waits for.
const LONGEST_IDLE: Duration = Duration::from_millis(500);

/// When the last look was, and how long it took.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    took: Duration,
    put_off: bool,
}

impl Pace {
    /// How long the next look waits.
    pub(super) fn wait(&self, idle: bool) -> Duration {
        let pause = self.took * PAUSE;
        let pause = if idle { pause.min(LONGEST_IDLE) } else { pause };
        self.last.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed()))
    }

    /// Notes a look that began then.
    pub(super) fn looked(&mut self, begun: Instant) {
        *self = Self { last: Some(Instant::now()), took: begun.elapsed(), put_off: false };
    }

    /// Puts the next look off once: something urgent is under way, and another may follow.
    pub(super) fn put_off(&mut self) {
        if !std::mem::replace(&mut self.put_off, true) {
            self.last = self.last.map(|_| Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_take_a_twentieth_of_the_time_and_the_status_waits_half_a_second_at_most() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(true), Duration::ZERO, "the first look is at once");
        let begun = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        pace.looked(begun);
        assert_eq!(pace.wait(false), Duration::from_secs(2));
        assert_eq!(pace.wait(true), LONGEST_IDLE);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(pace.wait(true), Duration::ZERO);
        assert_eq!(pace.wait(false), Duration::from_millis(1500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_is_put_off_once_and_not_for_ever() {
        let mut pace = Pace::default();
        pace.put_off();
        assert_eq!(pace.wait(true), Duration::ZERO, "what is not known to take long is not put off");
        let begun = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        pace.looked(begun);
        tokio::time::advance(Duration::from_millis(150)).await;
        pace.put_off();
        assert_eq!(pace.wait(true), Duration::from_millis(200));
        tokio::time::advance(Duration::from_millis(150)).await;
        pace.put_off();
        assert_eq!(pace.wait(true), Duration::from_millis(50));
    }
}
