//! The operator's rights in a test: the least that it needs, by Secret name.

use anyhow::{Context, Result};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;

/// Grants the ServiceAccount `operator` in `home` what it needs to write Secrets of these names.
pub async fn grant(client: &Client, prefix: &str, home: &str, secret_names: &[String]) -> Result<()> {
    let subject = json!([{ "kind": "ServiceAccount", "name": "operator", "namespace": home }]);
    let role = json!({
        "metadata": { "name": prefix },
        "rules": [
            { "apiGroups": [""], "resources": ["secrets"], "resourceNames": secret_names,
              "verbs": ["get", "list", "watch", "create", "patch", "delete"] },
            { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["pullsecrets.dev"], "resources": ["ecrcredentials"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["pullsecrets.dev"], "resources": ["ecrcredentials/status"], "verbs": ["patch"] },
            { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] },
        ],
    });
    let binding = json!({
        "metadata": { "name": prefix },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": prefix },
        "subjects": subject,
    });
    let params = PostParams::default();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.create(&params, &serde_json::from_value(role)?).await.context("create the operator's ClusterRole")?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&params, &serde_json::from_value(binding)?).await.context("bind the operator's ClusterRole")?;
    let role = json!({
        "metadata": { "name": "lease" },
        "rules": [
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] },
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["ecr-credential-operator"],
              "verbs": ["get", "update"] },
        ],
    });
    let binding = json!({
        "metadata": { "name": "lease" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lease" },
        "subjects": subject,
    });
    let roles: Api<Role> = Api::namespaced(client.clone(), home);
    roles.create(&params, &serde_json::from_value(role)?).await.context("create the operator's Role")?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), home);
    bindings.create(&params, &serde_json::from_value(binding)?).await.context("bind the operator's Role")?;
    Ok(())
}
