//! What the Secrets of one `EcrCredential` should contain: the same in every namespace, or different in each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::plan::SpecError;
use crate::plan::namespaces::NamespaceUid;
use crate::secret::{Bundle, Desired, SecretTarget, Selection};

/// What the target namespaces should hold.
pub(super) enum DesiredSecrets {
    /// All of them the same.
    Alike(Bundle),
    /// Each its own.
    Each(HashMap<Arc<str>, NamespaceSecrets>),
}

/// What one namespace should hold.
pub(super) struct NamespaceSecrets {
    /// Which of the namespaces that had this name it is for.
    pub(super) namespace_uid: NamespaceUid,
    pub(super) desired: Bundle,
    /// Whether the current identities fetched its tokens. While they did not, an existing Secret stays and none is created: the
    /// namespace may have been recreated without our having seen that yet.
    pub(super) current: bool,
    /// What is wrong with the tokens of its Secrets, by the Secret's name.
    pub(super) problems: BTreeMap<Arc<str>, TokenProblem>,
}

/// What is wrong with the tokens of one Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenProblem {
    /// Why there is no valid token for one of its registries.
    pub(super) lacks: Option<SpecError>,
    /// Why its tokens could not be refreshed.
    pub(super) failure: Option<SpecError>,
}

impl DesiredSecrets {
    /// What the namespace of a target should hold, where each namespace has its own.
    pub(super) fn share(&self, target: &SecretTarget) -> Option<&NamespaceSecrets> {
        match self {
            Self::Alike(_) => None,
            Self::Each(shares) => {
                shares.get(&target.namespace).filter(|share| share.namespace_uid == target.namespace_uid)
            }
        }
    }

    /// What is wrong with the tokens of a target, where each namespace has its own.
    pub(super) fn problem(&self, target: &SecretTarget) -> Option<&TokenProblem> {
        self.share(target)?.problems.get(&target.name)
    }

    /// What the Secret of a target should be.
    pub(super) fn at(&self, target: &SecretTarget) -> Option<&Arc<Desired>> {
        match self {
            Self::Alike(bundle) => bundle.get(&target.name),
            Self::Each(_) => self.share(target)?.desired.get(&target.name),
        }
    }

    /// Whether it is known what a target should hold.
    pub(super) fn covers(&self, target: &SecretTarget) -> bool {
        matches!(self, Self::Alike(_)) || target.selection != Selection::Selected || self.share(target).is_some()
    }
}
