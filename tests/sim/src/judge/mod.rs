//! The invariants, over every request of the operator and every version of every object of a run.

pub use ::judge::{Invariant, Violation};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::aws::Aws;
use crate::clock;
use crate::operator::Settings;
use crate::sim::Sim;
use history::History;

mod calls;
mod credentials;
pub mod history;
mod requests;
mod secrets;

/// The invariants by their numbers alone, for tables.
pub mod short {
    pub use ::judge::Invariant::{
        I1Scope as I1, I2Foreign as I2, I3WellFormed as I3, I4Monotone as I4, I5FailStatic as I5, I6NoGap as I6,
        I7Quiet as I7, I9Isolation as I9, I10AwsBound as I10, I12SingleWriter as I12, I13Deletion as I13,
        I14TrueStatus as I14,
    };
}

/// What the judge looks at.
pub struct Evidence<'a> {
    pub history: History,
    pub aws: &'a Aws,
    pub settings: &'a [Settings],
    pub now: Timestamp,
    /// How old the state may be that the operator acts on.
    pub staleness: SignedDuration,
}

impl Evidence<'_> {
    /// Whether every process was allowed this namespace.
    fn allows(&self, namespace: &str) -> bool {
        let allowed =
            |settings: &Settings| settings.namespaces.as_ref().is_none_or(|all| all.iter().any(|n| n == namespace));
        self.settings.iter().all(allowed)
    }
}

/// Everything that was wrong in a run.
pub fn judge(sim: &Sim) -> Vec<Violation> {
    let evidence = Evidence {
        history: History::of(sim.api.changes(), clock::true_now()),
        aws: &sim.aws,
        settings: &sim.all_settings,
        now: clock::true_now(),
        staleness: sim.staleness,
    };
    let sent = sim.api.sent();
    let mut violations = requests::judge(&evidence, &sent);
    violations.extend(secrets::judge(&evidence));
    violations.extend(credentials::judge(&evidence));
    violations.extend(calls::judge(&evidence));
    violations.extend(sim.complaints.iter().cloned());
    violations.retain(|violation| {
        !sim.exceptions
            .iter()
            .any(|(invariant, about)| *invariant == violation.invariant && (about == "*" || *about == violation.about))
    });
    violations
}

/// I6: the least remaining life of a password that a selected namespace ever had.
pub fn least_life(sim: &Sim) -> Option<SignedDuration> {
    let history = History::of(sim.api.changes(), clock::true_now());
    secrets::least_life(&history, &sim.aws)
}
