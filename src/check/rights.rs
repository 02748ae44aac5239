//! The permissions that the operator needs in the cluster, by its flags.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::plan::Limits;
use crate::plan::scopes::{AccountScope, SecretKey, SecretScope};

/// One permission, as in RBAC.
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
    /// The chart's value with which it is granted.
    pub(super) chart_value: &'static str,
}

/// The Lease for leader election.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeaseScope {
    /// Its namespace.
    pub(super) namespace: Arc<str>,
    /// Its name.
    pub(super) name: Arc<str>,
}

/// `the Lease operator in namespace system`.
impl fmt::Display for LeaseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the Lease {} in namespace {}", self.name, self.namespace)
    }
}

/// All permissions that are needed; those on the Lease only if there is one.
pub(super) fn needed(scopes: &[SecretScope], limits: &Limits, lease: Option<&LeaseScope>) -> Vec<Right> {
    let allowed = &limits.identities;
    let mut rights = vec![
        right("list", "pullsecrets.dev", "ecrcredentials"),
        right("watch", "pullsecrets.dev", "ecrcredentials"),
        right("patch", "pullsecrets.dev", "ecrcredentials/status"),
        right("list", "", "namespaces"),
        right("watch", "", "namespaces"),
    ];
    // Events about cluster-scoped objects are stored there.
    let events =
        ["create", "patch"].map(|verb| right(verb, "events.k8s.io", "events").at(Some(&"default".into()), None));
    rights.extend(events);
    if let Some(LeaseScope { name, namespace }) = lease {
        let lease = |verb: &'static str| right(verb, "coordination.k8s.io", "leases");
        // RBAC cannot limit create by name.
        rights.push(lease("create").at(Some(namespace), None));
        rights.extend(["get", "update"].map(|verb| lease(verb).at(Some(namespace), Some(name))));
    }
    for SecretScope { name, namespace } in scopes {
        let verbs = ["get", "list", "watch", "create", "patch", "delete"];
        let value = match name {
            Some(name) if limits.secret_names.as_ref().is_some_and(|names| !names.contains(name)) => "outputs",
            Some(_) => "secretNames",
            None => "allSecretNames",
        };
        let secrets = |verb| right(verb, "", "secrets").at(namespace.as_ref(), name.as_ref()).by(value);
        rights.extend(verbs.map(secrets));
    }
    for AccountScope { namespace, name } in &allowed.accounts {
        let asked = [("list", "serviceaccounts"), ("watch", "serviceaccounts"), ("create", "serviceaccounts/token")];
        let account = |(verb, resource)| right(verb, "", resource).at(namespace.as_ref(), Some(name));
        rights.extend(asked.map(account).map(|right| right.by("auth.serviceAccounts")));
    }
    if !allowed.accounts.is_empty() {
        // A namespace is read again before it gets tokens of its own: it may have been recreated.
        rights.push(right("get", "", "namespaces"));
    }
    for SecretKey { namespace, name } in &allowed.keys {
        let keys = |verb| right(verb, "", "secrets").at(Some(namespace), Some(name)).by("auth.secrets");
        rights.extend(["get", "list", "watch"].map(keys));
    }
    for SecretKey { namespace, name } in &limits.includes {
        let include = |verb| right(verb, "", "secrets").at(Some(namespace), Some(name)).by("include.secrets");
        rights.extend(["get", "list", "watch"].map(include));
    }
    for AccountScope { namespace, name } in limits.attach_scopes() {
        let account = |verb| right(verb, "", "serviceaccounts").at(namespace.as_ref(), Some(&name));
        rights.extend(["list", "watch", "patch"].map(account).map(|right| right.by("attach.serviceAccounts")));
    }
    rights
}

/// The permissions for Events in target namespaces.
pub(super) fn for_namespace_events(limits: &Limits) -> Vec<Right> {
    let mut rights = Vec::new();
    for namespace in limits.each_namespace() {
        let event = |verb| right(verb, "events.k8s.io", "events").at(namespace.as_ref(), None);
        rights.extend(["create", "patch"].map(event).map(|right| right.by("rbac.namespaceEvents")));
    }
    rights
}

/// A permission on all objects of a kind, which the chart always grants.
fn right(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, namespace: None, name: None, chart_value: "rbac.create" }
}

impl Right {
    fn at(self, namespace: Option<&Arc<str>>, name: Option<&Arc<str>>) -> Self {
        Self { namespace: namespace.cloned(), name: name.cloned(), ..self }
    }

    fn by(self, chart_value: &'static str) -> Self {
        Self { chart_value, ..self }
    }
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
