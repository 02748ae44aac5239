//! I10: how often AWS is called. It depends on identities, regions and time, and failures make it less often.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::crowd;
use crate::evidence::{Call, Evidence};
use crate::{Invariant, Violation};

/// So many calls for one identity in one region within [`WINDOW`] are a storm: with waits of 200 ms that double up to 2 s, as the
/// tests set them, a fetch that fails is tried about ten times.
const MOST: usize = 40;
const WINDOW: SignedDuration = SignedDuration::from_secs(10);

/// No two calls of one process with default flags for one identity in one region come sooner after each other, in seconds.
const SHORTEST: f64 = 0.45;

/// I10: AWS is not called more often for one identity in one region than waits that double allow.
pub(super) fn no_storm(evidence: &Evidence) -> Vec<Violation> {
    let mut times: BTreeMap<(&str, &str), Vec<Timestamp>> = BTreeMap::new();
    for call in &evidence.aws.calls {
        times.entry((&call.identity, &call.registry)).or_default().push(call.at);
    }
    let storms = times.into_iter().filter_map(|(whom, times)| Some((whom, crowd(times, MOST, WINDOW)?)));
    let detail = format!("more than {MOST} calls within {WINDOW:#}");
    storms.map(|((identity, what), at)| violation(identity, what, at, detail.clone())).collect()
}

/// I10: after so many failures in a row a process with default flags waits at least half of the doubled wait, up to five minutes. Where
/// it is not known which process called, its waits cannot be told.
pub(super) fn patience(evidence: &Evidence) -> Vec<Violation> {
    let mut by_process: BTreeMap<(u32, &str, &str), Vec<&Call>> = BTreeMap::new();
    for call in &evidence.aws.calls {
        let Some(process) = call.process else { continue };
        by_process.entry((process, &call.identity, &call.registry)).or_default().push(call);
    }
    by_process.into_values().flat_map(|calls| hurried(&calls)).collect()
}

fn hurried(calls: &[&Call]) -> Vec<Violation> {
    let mut failures = 0_i32;
    let mut violations = vec![];
    for (before, after) in calls.iter().zip(calls.iter().skip(1)) {
        failures = if before.failed { failures + 1 } else { 0 };
        let doubled = (0.5 * 2_f64.powi((failures - 1).min(20))).min(150.0) * 0.9;
        let least = if before.failed { doubled } else { SHORTEST };
        let gap = after.at.duration_since(before.at).as_secs_f64();
        if gap < least {
            let detail = format!("{gap} s after a call that {}", if before.failed { "failed" } else { "went well" });
            violations.push(violation(&after.identity, &after.registry, after.at, detail));
        }
    }
    violations
}

fn violation(identity: &str, registry: &str, at: Timestamp, detail: String) -> Violation {
    Violation::new(Invariant::I10AwsBound, format!("{identity}: {registry}"), at, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Story, start};

    fn told(process: Option<u32>, failed: bool, times: impl Iterator<Item = i64>) -> Evidence {
        let mut evidence = Story::new().evidence();
        let (identity, registry) = ("role/operator".to_owned(), "ecr/eu-west-1".to_owned());
        let call = Call { identity, registry, at: start(), process, failed };
        evidence.aws.calls =
            times.map(|ms| Call { at: start() + SignedDuration::from_millis(ms), ..call.clone() }).collect();
        evidence
    }

    #[test]
    fn a_storm_of_calls_is_found_and_patience_is_not() {
        let calls = |apart: i64| no_storm(&told(None, true, (0..100).map(|n| apart * n))).len();
        assert_eq!((calls(66), calls(1000)), (1, 0));
    }

    #[test]
    fn a_process_that_does_not_wait_longer_each_time_is_found() {
        let doubled = || (0..10).map(|n| 500 * (2_i64.pow(n) - 1));
        assert_eq!(patience(&told(Some(1), true, doubled())), []);
        assert!(!patience(&told(Some(1), true, (0..10).map(|n| 500 * n))).is_empty());
        assert_eq!(patience(&told(Some(1), false, (0..10).map(|n| 500 * n))), []);
        assert_eq!(patience(&told(None, true, (0..10).map(|n| 500 * n))), []);
    }
}
