//! The rights that the operator needs in the cluster, by what it was told that it may do.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::controller::watches::SecretScope;
use crate::plan::references::Lent;

/// One right, as RBAC has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Right {
    /// `get`, `list`, ...
    pub(super) verb: &'static str,
    /// The API group; empty for the core.
    pub(super) group: &'static str,
    /// The resource, with its subresource after a slash.
    pub(super) resource: &'static str,
    /// The namespace; none for all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<Arc<str>>,
    /// The object's name; none for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Arc<str>>,
}

/// Every right that is needed.
pub(super) fn needed(scopes: &[SecretScope], lent: &Lent) -> Vec<Right> {
    let mut rights = Vec::new();
    let mut add = |group, resource, verbs: &[&'static str], namespace: Option<&Arc<str>>, name: Option<&Arc<str>>| {
        let right =
            |verb: &&'static str| Right { verb, group, resource, namespace: namespace.cloned(), name: name.cloned() };
        rights.extend(verbs.iter().map(right));
    };
    add("pullsecrets.dev", "ecrcredentials", &["list", "watch"], None, None);
    add("pullsecrets.dev", "ecrcredentials/status", &["patch"], None, None);
    add("", "namespaces", &["list", "watch"], None, None);
    // Events about objects without a namespace are kept there.
    add("events.k8s.io", "events", &["create", "patch"], Some(&"default".into()), None);
    for SecretScope { name, namespace } in scopes {
        let verbs = ["get", "list", "watch", "create", "patch", "delete"];
        add("", "secrets", &verbs, namespace.as_ref(), name.as_ref());
    }
    for scope in &lent.accounts {
        add("", "serviceaccounts", &["list", "watch"], scope.namespace.as_ref(), Some(&scope.name));
        add("", "serviceaccounts/token", &["create"], scope.namespace.as_ref(), Some(&scope.name));
    }
    for scope in &lent.keys {
        add("", "secrets", &["get", "list", "watch"], Some(&scope.namespace), Some(&scope.name));
    }
    rights
}

/// `list secrets named x in all namespaces`.
impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, " named {name}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None if self.resource == "namespaces" || self.group == "pullsecrets.dev" => Ok(()),
            None => f.write_str(" in all namespaces"),
        }
    }
}
