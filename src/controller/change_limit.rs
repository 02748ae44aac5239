//! A limit on how often a change that tenants can make takes effect: each one may cost calls to AWS and a write to every Secret.

use std::time::Duration;

use tokio::time::Instant;

/// So many changes in a row take effect at once. To delete a ServiceAccount and create it again takes two.
const BURST: u32 = 4;

/// The changes of one object so far, as a token bucket: after a burst, one change takes effect in each interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeLimit {
    interval: Duration,
    /// When the bucket is full again. That says it all.
    full_at: Instant,
}

impl ChangeLimit {
    /// The limit of an object that has not changed yet.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, full_at: Instant::now() }
    }

    /// How long the next change waits.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let room = self.interval.saturating_mul(BURST.saturating_sub(1));
        self.full_at.saturating_duration_since(now).saturating_sub(room)
    }

    /// Notes a change that takes effect now.
    pub(super) fn changed(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }

    /// Whether it says no more than a new one.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(300);

    /// The seconds at which changes take effect that are wanted at these.
    fn effects(wanted: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let begun = Instant::now();
        let mut limit = ChangeLimit { interval: INTERVAL, full_at: begun };
        let mut effects = Vec::new();
        for second in wanted {
            let now = begun + Duration::from_secs(second);
            if limit.wait(now).is_zero() {
                limit.changed(now);
                effects.push(second);
            }
        }
        effects
    }

    #[test]
    fn a_few_changes_take_effect_at_once_and_many_in_a_row_one_in_each_interval() {
        let table: [(&str, Vec<u64>, Vec<u64>); 5] = [
            ("now and then", vec![5, 900, 2000], vec![5, 900, 2000]),
            ("a burst", vec![0, 1, 2, 3], vec![0, 1, 2, 3]),
            ("one more than that", vec![0, 1, 2, 3, 4, 299, 300], vec![0, 1, 2, 3, 300]),
            ("all the time", (0..1300).collect(), vec![0, 1, 2, 3, 300, 600, 900, 1200]),
            ("two bursts", vec![0, 0, 0, 0, 1200, 1200, 1200, 1200, 1200], vec![0, 0, 0, 0, 1200, 1200, 1200, 1200]),
        ];
        for (what, wanted, expected) in table {
            assert_eq!(effects(wanted), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn in_no_time_are_there_more_than_a_burst_and_one_in_each_interval(waits in prop::collection::vec(0_u64..700, 1..300)) {
            let wanted = waits.into_iter().scan(0, |at, wait| { *at += wait; Some(*at) });
            let times = effects(wanted);
            for (first, from) in times.iter().enumerate() {
                for (count, until) in times[first..].iter().enumerate() {
                    prop_assert!(count as u64 <= 3 + (until - from) / 300, "{} in {} s", count + 1, until - from);
                }
            }
        }
    }
}
