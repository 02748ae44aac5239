//! I10: how often AWS is asked. It depends on keys and time, and failures make it less often.

use std::collections::BTreeMap;

use super::{Evidence, Invariant, Violation};
use crate::aws::Call;

/// No two calls for one key come sooner after each other, in seconds.
const SHORTEST: f64 = 0.45;

pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut by_key: BTreeMap<(u32, String), Vec<Call>> = BTreeMap::new();
    for call in evidence.aws.calls() {
        by_key.entry((call.process, call.key.clone())).or_default().push(call);
    }
    by_key.into_iter().flat_map(|((_, key), calls)| hurried(&key, &calls)).collect()
}

/// After so many failures in a row the wait is at least half of the doubled one, up to five minutes.
fn hurried(key: &str, calls: &[Call]) -> Vec<Violation> {
    let mut failures = 0_i32;
    let mut violations = Vec::new();
    for pair in calls.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let failed = before.failure.is_some_and(|failure| !failure.is_harmless());
        failures = if failed { failures + 1 } else { 0 };
        let least = if failed { (0.5 * 2_f64.powi((failures - 1).min(20))).min(150.0) * 0.9 } else { SHORTEST };
        let gap = after.at.duration_since(before.at).as_secs_f64();
        if gap < least {
            let detail = format!("{gap} s after a call that {}", if failed { "failed" } else { "went well" });
            violations.push(Violation::new(Invariant::I10AwsBound, key, after.at, detail));
        }
    }
    violations
}
