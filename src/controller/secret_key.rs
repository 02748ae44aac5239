//! The key of everything that is kept for one Secret.

use std::sync::Arc;

use crate::secret::SecretTarget;

/// A Secret. In an ordered set those of one namespace stand together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl SecretKey {
    /// The key of a Secret with that name.
    pub fn new(name: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a target.
    pub fn of(target: &SecretTarget) -> Self {
        Self::new(target.name.clone(), target.namespace.clone())
    }
}

/// What an event has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A namespace, and with it which Secrets belong there.
    Namespace(Arc<str>),
    /// A Secret.
    Secret(SecretKey),
}

impl Change {
    /// Where it is.
    pub(super) const fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Namespace(namespace) | Self::Secret(SecretKey { namespace, .. }) => namespace,
        }
    }

    /// The name of the Secret that has changed, if it is one.
    pub(super) const fn secret(&self) -> Option<&Arc<str>> {
        match self {
            Self::Namespace(_) => None,
            Self::Secret(key) => Some(&key.name),
        }
    }
}
