//! The key of everything that is kept for one Secret.

use std::sync::Arc;

use crate::secret::SecretTarget;

/// A Secret's name, then its namespace.
pub type SecretKey = (Arc<str>, Arc<str>);

/// A Secret's namespace, then its name: in an ordered set the Secrets of a namespace stand together.
pub type NamespaceFirst = (Arc<str>, Arc<str>);

/// A namespace in which something has changed, and the name of the Secret that has, if it is one.
pub type Change = (Arc<str>, Option<Arc<str>>);

/// A change of one Secret.
pub(super) fn change_of((name, namespace): SecretKey) -> Change {
    (namespace, Some(name))
}

/// The key of a target.
pub(super) fn key_of(target: &SecretTarget) -> SecretKey {
    (target.name.clone(), target.namespace.clone())
}
