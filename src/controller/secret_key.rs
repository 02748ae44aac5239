//! The key of everything that is kept for one Secret, and the scopes in which Secrets are watched.

use std::fmt;
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

/// One watch of Secrets, as narrow as the rights allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretScope {
    /// Only Secrets of this name.
    pub name: Option<Arc<str>>,
    /// Only Secrets in this namespace.
    pub namespace: Option<Arc<str>>,
}

impl SecretScope {
    /// Whether a Secret is in this scope.
    pub(super) fn contains(&self, key: &SecretKey) -> bool {
        self.has(Some(&key.name), Some(&key.namespace))
    }

    /// Whether each Secret in another scope is in this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.has(other.name.as_ref(), other.namespace.as_ref())
    }

    fn has(&self, name: Option<&Arc<str>>, namespace: Option<&Arc<str>>) -> bool {
        let within = |outer: Option<&Arc<str>>, inner| outer.is_none() || outer == inner;
        within(self.name.as_ref(), name) && within(self.namespace.as_ref(), namespace)
    }
}

impl fmt::Display for SecretScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |part: &Option<Arc<str>>| part.clone().unwrap_or_else(|| "*".into());
        write!(f, "{}/{}", any(&self.namespace), any(&self.name))
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
