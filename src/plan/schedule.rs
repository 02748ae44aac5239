//! When to refresh and when to try again, as functions of times that are passed in.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

/// The largest jitter, in percent of the age at refresh. Jitter only makes a refresh earlier: `maxAge` is never exceeded, and
/// refreshes at `maxAge` are spread as well.
const JITTER_PERCENT: f64 = 5.0;

/// From which part of its age at refresh a token is refreshed together with another that is due. The tokens of one Secret are then
/// refreshed in one write.
const TOGETHER: f64 = 0.75;

/// The longest life of a token (ECR API Reference, AuthorizationData: 12 hours). A later expiry is not believed: a token
/// held for ten years would be preferred to every true one that comes after it.
pub const LONGEST_LIFE: Duration = Duration::from_secs(12 * 3600);

/// When tokens are refreshed, from the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshPolicy {
    /// At which part of a token's life, 10 to 70 percent.
    pub at_percent: u8,
    /// The longest a token is kept.
    pub max_age: Duration,
}

/// The life of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it was issued, by our clock.
    pub issued_at: Timestamp,
    /// When it expires, as AWS says.
    pub expires_at: Timestamp,
}

impl Life {
    /// Whether the token is still accepted at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }

    /// The life that ends first; of several, the one that began first. It compares whole seconds, as Secrets and statuses record
    /// them, so that a restarted process gets the same result.
    pub fn earliest(lives: impl Iterator<Item = Self>) -> Option<Self> {
        lives.min_by_key(|life| (life.expires_at.as_second(), life.issued_at.as_second()))
    }
}

impl RefreshPolicy {
    /// When a token is due: at its part of the life or at the greatest age, whichever is first, less the jitter. The same
    /// `seed` gives the same jitter, so that a restart does not move the time.
    pub fn due_at(&self, life: Life, seed: &str) -> Timestamp {
        later(life.issued_at, self.age_at_refresh(life, seed))
    }

    /// Whether a token is close enough to its refresh time to be refreshed together with another that is due now.
    pub fn due_together(&self, life: Life, seed: &str, now: Timestamp) -> bool {
        now >= later(life.issued_at, self.age_at_refresh(life, seed).mul_f64(TOGETHER))
    }

    fn age_at_refresh(&self, life: Life, seed: &str) -> Duration {
        let span = Duration::try_from(life.expires_at.duration_since(life.issued_at)).unwrap_or_default();
        let latest = span.mul_f64(f64::from(self.at_percent) / 100.0).min(self.max_age);
        latest.mul_f64(1.0 - unit(seed) * JITTER_PERCENT / 100.0)
    }
}

/// How long to wait between tries: from `initial`, doubling, to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The wait after the first failure.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl RetryPolicy {
    /// The wait after `failures` failures in a row (1 or more). It is `scale` times longer for errors that rarely resolve by
    /// themselves, and shorter by up to half by jitter from `seed`.
    pub fn delay(&self, failures: u32, scale: u32, seed: &str) -> Duration {
        let doubling = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let full = self.initial.saturating_mul(scale.max(1)).saturating_mul(doubling.max(1)).min(self.max);
        full.mul_f64(1.0 - 0.5 * unit(&format!("{seed}/{failures}")))
    }
}

/// Reads a duration such as `6h`, `1h30m` or `500ms`. Those that overflow, or have a sign, make kube's own parser panic.
pub fn duration(text: &str) -> Option<Duration> {
    let small = |number: &str| number.len() <= 9 && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let plain = text.len() <= 24 && text.split(|c: char| c.is_ascii_lowercase()).all(small);
    plain.then(|| text.parse::<kube::core::Duration>().ok()).flatten().map(Duration::from)
}

/// `at` plus `wait`, or the end of time.
pub fn later(at: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| at.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

/// A time rounded down to whole seconds, as Kubernetes writes times: it survives being written and read.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The time from `now` until `at`, zero when it is past.
pub fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// A number in [0, 1) that depends on `seed` alone.
fn unit(seed: &str) -> f64 {
    let digest = Sha256::digest(seed.as_bytes());
    let number = digest.iter().take(4).fold(0_u32, |n, byte| (n << 8) | u32::from(*byte));
    f64::from(number) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const HOUR: i64 = 3600;
    const POLICY: RefreshPolicy = RefreshPolicy { at_percent: 50, max_age: Duration::from_secs(6 * 3600) };

    #[test]
    fn a_token_of_twelve_hours_is_due_near_half_of_its_life_and_never_after_max_age() {
        let life = Life { issued_at: at(0), expires_at: at(12 * HOUR) };
        for seed in ["a", "b", "c", "d", "e"] {
            let due = POLICY.due_at(life, seed).as_second();
            assert!((20_520..=21_600).contains(&due), "{seed}: {due}");
        }
    }

    #[test]
    fn the_refreshes_of_many_are_spread_evenly_also_where_the_greatest_age_is_what_counts() {
        for hours in [12, 24] {
            let life = Life { issued_at: at(0), expires_at: at(hours * HOUR) };
            let mut twelfths = [0; 12];
            for seed in 0..12_000 {
                let due = POLICY.due_at(life, &format!("seed-{seed}")).as_second();
                twelfths[usize::try_from((due - 20_520) / 90).unwrap().min(11)] += 1;
            }
            assert!(twelfths.iter().all(|count| (850..1150).contains(count)), "{hours} h: {twelfths:?}");
        }
    }

    #[test]
    fn a_lie_about_the_expiry_does_not_keep_a_token_beyond_max_age() {
        let life = Life { issued_at: at(0), expires_at: at(10 * 365 * 24 * HOUR) };
        let due = POLICY.due_at(life, "x").as_second();
        assert!((20_520..=21_600).contains(&due), "{due}");
    }

    #[test]
    fn a_token_that_expired_before_it_was_issued_is_due_at_once() {
        let life = Life { issued_at: at(HOUR), expires_at: at(0) };
        assert_eq!(POLICY.due_at(life, "x"), at(HOUR));
    }

    #[test]
    fn the_same_token_is_due_at_the_same_time_in_every_build() {
        let life = Life { issued_at: at(0), expires_at: at(12 * HOUR) };
        assert_eq!(
            POLICY.due_at(life, "3b6cbb5c-1f5e-4f0f-8f7b-111122223333").to_string(),
            "1970-01-01T05:45:30.033527082Z"
        );
    }

    #[test]
    fn durations_are_read_and_what_is_none_is_refused() {
        let table = [("6h", 21_600_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1500), ("0s", 0)];
        for (text, millis) in table {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["1h-5m", "-1h", "+1h", "99999999999999999999h", "1e30h", "6", "h", "6 h", "6x", "NaNs", "infs"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_refresh_is_always_within_the_life(percent in 10_u8..=70, span in 1_i64..=12 * HOUR, seed in "[a-z]{1,8}") {
            let policy = RefreshPolicy { at_percent: percent, max_age: Duration::from_secs(6 * 3600) };
            let due = policy.due_at(Life { issued_at: at(0), expires_at: at(span) }, &seed);
            prop_assert!(due >= at(0) && due < at(span));
        }

        #[test]
        fn a_retry_waits_between_half_and_all_of_its_step(failures in 1_u32..100, scale in 1_u32..20, seed in "[a-z]{1,8}") {
            let policy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
            let delay = policy.delay(failures, scale, &seed);
            prop_assert!(delay <= policy.max);
            prop_assert!(delay >= Duration::from_millis(500));
        }
    }
}
