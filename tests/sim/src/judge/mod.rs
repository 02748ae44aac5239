//! The invariants, over every request of the operator and every version of every object of a run.

use std::fmt;

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

/// As the project's design numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I12,
    I13,
    I14,
}

impl Invariant {
    pub const ALL: [Self; 13] = [
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I12,
        Self::I13,
        Self::I14,
    ];
}

/// A rule that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub about: String,
    pub at: Timestamp,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} at {}: {}", self.invariant, self.about, self.at, self.detail)
    }
}

impl Violation {
    pub(crate) fn new(
        invariant: Invariant,
        about: impl Into<String>,
        at: Timestamp,
        detail: impl Into<String>,
    ) -> Self {
        Self { invariant, about: about.into(), at, detail: detail.into() }
    }
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
