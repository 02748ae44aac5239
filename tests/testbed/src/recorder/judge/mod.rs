//! The judgement: each invariant is a pure function of the evidence.

use super::Violation;
use super::evidence::Evidence;

use progress::crowd;

pub(super) use credentials::is_collected;

mod conduct;
mod credentials;
mod progress;
mod requests;
mod secrets;
mod tenancy;
mod well_formed;

/// Everything that was wrong, in the order of the invariants.
pub(super) fn judge(evidence: &Evidence) -> Vec<Violation> {
    let checks: [fn(&Evidence) -> Vec<Violation>; 18] = [
        requests::scope,
        requests::rbac,
        secrets::foreign,
        secrets::monotone,
        secrets::fail_static,
        well_formed::well_formed,
        credentials::deletion,
        credentials::true_status,
        credentials::small_status,
        progress::no_loop,
        progress::no_flapping,
        progress::counters,
        tenancy::tenancy,
        conduct::true_time,
        conduct::no_idle_writes,
        conduct::named_failures,
        conduct::no_storm,
        conduct::single_writer,
    ];
    let mut violations = evidence.found.clone();
    violations.extend(checks.iter().flat_map(|check| check(evidence)));
    violations.sort_by_key(|violation| (violation.invariant, violation.at));
    violations
}
