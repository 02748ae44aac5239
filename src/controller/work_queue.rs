//! The Secrets that wait to be written, the most urgent first.

use std::collections::BTreeSet;

use crate::plan::scopes::SecretKey;
use crate::secret::SecretAction;

/// The order of writes. Missing Secrets go first: someone is waiting for them, while those that exist are still good. Deletions
/// come when nothing else is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WritePriority {
    /// A missing Secret that an event has just shown, and that was not tried yet. It goes ahead of thousands that are created for a new `EcrCredential`.
    Urgent,
    Create,
    Repair,
    Delete,
}

impl WritePriority {
    /// The priority of an action; none for one that writes nothing.
    pub(super) const fn of(action: &SecretAction) -> Option<Self> {
        match action {
            SecretAction::Create => Some(Self::Create),
            SecretAction::Update(_) | SecretAction::Strip(_) => Some(Self::Repair),
            SecretAction::Delete(_) => Some(Self::Delete),
            SecretAction::Keep | SecretAction::Wait | SecretAction::Refuse(..) => None,
        }
    }
}

/// The keys of the Secrets to write, each with its priority. The action is decided anew when a write begins: thousands of keys are
/// kept here, and the cluster changes meanwhile.
pub(super) type WorkQueue = BTreeSet<(WritePriority, SecretKey)>;
