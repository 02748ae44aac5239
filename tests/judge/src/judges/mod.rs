//! The judges: each is a pure function of the evidence.

use crate::{Evidence, Violation};

use progress::crowd;

pub use credentials::is_collected;
pub use secrets::least_life;
pub use well_formed::logins;

mod attach;
mod calls;
mod conduct;
mod credentials;
mod progress;
mod requests;
mod secrets;
mod tenancy;
mod well_formed;

/// Everything that was wrong, in the order of the invariants.
pub fn judge(evidence: &Evidence) -> Vec<Violation> {
    let checks: [fn(&Evidence) -> Vec<Violation>; 23] = [
        requests::scope,
        requests::rbac,
        secrets::foreign,
        secrets::monotone,
        secrets::fail_static,
        secrets::no_login_lost,
        secrets::no_deletion_of_good,
        well_formed::well_formed,
        credentials::deletion,
        credentials::true_status,
        credentials::small_status,
        credentials::no_gap,
        progress::no_loop,
        progress::no_flapping,
        progress::counters,
        tenancy::tenancy,
        calls::no_storm,
        calls::patience,
        conduct::no_idle_writes,
        conduct::named_failures,
        conduct::quoted_refusals,
        conduct::single_writer,
        attach::entries_of_others,
    ];
    let mut violations = evidence.found.clone();
    violations.extend(checks.iter().flat_map(|check| check(evidence)));
    violations.sort_by_key(|violation| (violation.invariant, violation.at));
    violations
}
