//! The invariants by name, and a broken one.

use std::fmt;

use jiff::Timestamp;

/// What must always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Every mutating request is for an allowed Secret in a selected namespace, the own status, the own Lease, or an Event; every
    /// token that is asked for is one of an allowed ServiceAccount, for AWS alone.
    I1Scope,
    /// A Secret without our marks keeps its resourceVersion.
    I2Foreign,
    /// Every version of every Secret of ours is well formed.
    I3WellFormed,
    /// The recorded expiry of a Secret never goes back.
    I4Monotone,
    /// While AWS fails, no Secret whose entries are still valid is written.
    I5FailStatic,
    /// No target namespace is without a valid password while AWS gives new ones.
    I6NoGap,
    /// No changes once the desired state is reached.
    I7Quiet,
    /// Wherever the process dies, the end state is that of a run without a crash.
    I8CrashEquivalence,
    /// A namespace that fails is named with a reason.
    I9Isolation,
    /// AWS calls depend on (identity, region) and time only.
    I10AwsBound,
    /// No secret appears outside of Secrets.
    I11Secrecy,
    /// Nothing is written by a process after another has its Lease.
    I12SingleWriter,
    /// After an EcrCredential is gone none of its Secrets is left, or all under Retain.
    I13Deletion,
    /// `Ready=True` is true, and the status stays small.
    I14TrueStatus,
    /// No input makes the operator panic.
    I15NoPanic,
    /// The operator is never refused for lack of rights.
    I16Rbac,
    /// No version of any Secret in a tenant's namespace holds a login that AWS issued to somebody else.
    I17Tenancy,
    /// Nothing that a tenant does to its own objects makes the operator send change after change without progress.
    I18Neighbours,
    /// What is told is true: counters are of selected namespaces and never negative, and a condition does not flap.
    I20TrueWords,
    /// Of a ServiceAccount only the operator's own entries in `imagePullSecrets` are changed.
    I23Attach,
}

impl Invariant {
    /// Its number, as the documentation has it: `I3`.
    pub fn number(self) -> String {
        let name = format!("{self:?}");
        name.split_at(1 + name.chars().skip(1).take_while(char::is_ascii_digit).count()).0.to_owned()
    }
}

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    /// `namespace/name` of a Secret, the name of an EcrCredential, or where a text was found.
    pub about: String,
    pub at: Timestamp,
    pub detail: String,
}

impl Violation {
    pub fn new(invariant: Invariant, about: impl Into<String>, at: Timestamp, detail: impl Into<String>) -> Violation {
        Violation { invariant, about: about.into(), at, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} at {}: {}", self.invariant, self.about, self.at, self.detail)
    }
}
