//! The operator's rights in a test: changed while it runs, and waited for until the API server acts on them.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role, RoleBinding};
use kube::api::{Api, DeleteParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::bed::{Bed, poll};

/// Every verb on Secrets that the operator needs.
const ALL: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

/// Gives the operator every verb on its Secrets but one, and waits until that holds.
pub(super) async fn take_verb(bed: &Bed, verb: &str) {
    let verbs = ALL.iter().filter(|other| **other != verb).map(|verb| (*verb).to_owned()).collect();
    change_secrets_rule(bed, |rule| Some(PolicyRule { verbs, ..rule })).await;
    until_may(bed, &bed.home, verb, &bed.secret, false).await;
}

/// Gives it back.
pub(super) async fn give_verb(bed: &Bed, verb: &str) {
    change_secrets_rule(bed, |rule| Some(PolicyRule { verbs: ALL.map(str::to_owned).to_vec(), ..rule })).await;
    until_may(bed, &bed.home, verb, &bed.secret, true).await;
}

/// Lets the operator write Secrets of any name in all namespaces, as `--all-secret-names` needs.
pub(super) async fn allow_all_names(bed: &Bed) {
    change_secrets_rule(bed, |rule| Some(PolicyRule { resource_names: None, ..rule })).await;
    until_may(bed, &bed.home, "list", "", true).await;
}

/// Takes the operator's rights on Secrets away where they are not given by namespace, as `--namespace` allows.
pub(super) async fn forbid_all_namespaces(bed: &Bed) {
    change_secrets_rule(bed, |_| None).await;
    until_may(bed, &bed.home, "patch", &bed.secret, false).await;
}

/// Gives the operator its rights on Secrets in one namespace.
pub(super) async fn allow_namespace(bed: &Bed, namespace: &str) {
    let role = json!({
        "metadata": { "name": "operator" },
        "rules": [{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": [bed.secret], "verbs": ALL }],
    });
    let binding = json!({
        "metadata": { "name": "operator" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator" },
        "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": bed.home }],
    });
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(bed.client.clone(), namespace);
    roles.create(&PostParams::default(), &from(role)).await.unwrap();
    bindings.create(&PostParams::default(), &from(binding)).await.unwrap();
    until_may(bed, namespace, "patch", &bed.secret, true).await;
}

/// Lets the operator send Events in a namespace, as `--namespace-events` needs.
pub(super) async fn allow_events(bed: &Bed, namespace: &str) {
    allow(bed, namespace, "events.k8s.io", "events", &["create", "patch"]).await;
}

/// Lets the operator have its Lease in a namespace, as another installation has.
pub(super) async fn allow_lease(bed: &Bed, namespace: &str) {
    allow(bed, namespace, "coordination.k8s.io", "leases", &["create", "get", "update"]).await;
}

/// Gives the operator rights on a resource in a namespace, and waits until they hold.
async fn allow(bed: &Bed, namespace: &str, group: &str, resource: &str, verbs: &[&str]) {
    let rules = json!([{ "apiGroups": [group], "resources": [resource], "verbs": verbs }]);
    let role = json!({ "metadata": { "name": resource }, "rules": rules });
    let binding = json!({
        "metadata": { "name": resource },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": resource },
        "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": bed.home }],
    });
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(bed.client.clone(), namespace);
    roles.create(&PostParams::default(), &from(role)).await.unwrap();
    bindings.create(&PostParams::default(), &from(binding)).await.unwrap();
    let user = format!("system:serviceaccount:{}:operator", bed.home);
    let attributes = json!({ "group": group, "resource": resource, "verb": "create", "namespace": namespace });
    let question: SubjectAccessReview = from(json!({ "spec": { "user": user, "resourceAttributes": attributes } }));
    let reviews: Api<SubjectAccessReview> = Api::all(bed.client.clone());
    poll("the operator has its rights", async || {
        reviews.create(&PostParams::default(), &question).await.unwrap().status.is_some_and(|status| status.allowed)
    })
    .await;
}

/// Takes them away again.
pub(super) async fn forbid_namespace(bed: &Bed, namespace: &str) {
    let bindings: Api<RoleBinding> = Api::namespaced(bed.client.clone(), namespace);
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), namespace);
    bindings.delete("operator", &DeleteParams::default()).await.unwrap();
    roles.delete("operator", &DeleteParams::default()).await.unwrap();
    until_may(bed, namespace, "patch", &bed.secret, false).await;
}

pub(super) fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn change_secrets_rule(bed: &Bed, change: impl FnOnce(PolicyRule) -> Option<PolicyRule>) {
    let roles: Api<ClusterRole> = Api::all(bed.client.clone());
    let mut role = roles.get(&bed.prefix).await.unwrap();
    let (secrets, mut rules): (Vec<_>, Vec<_>) =
        role.rules.unwrap().into_iter().partition(|rule| rule.resources == Some(vec!["secrets".to_owned()]));
    rules.extend(secrets.into_iter().next().and_then(change));
    role.rules = Some(rules);
    roles.replace(&bed.prefix, &PostParams::default(), &role).await.unwrap();
}

async fn until_may(bed: &Bed, namespace: &str, verb: &str, name: &str, allowed: bool) {
    let question: SubjectAccessReview = from(json!({ "spec": {
        "user": format!("system:serviceaccount:{}:operator", bed.home),
        "resourceAttributes": { "namespace": namespace, "verb": verb, "resource": "secrets", "name": name },
    } }));
    let reviews: Api<SubjectAccessReview> = Api::all(bed.client.clone());
    poll("the new rights hold", async || {
        let answer = reviews.create(&PostParams::default(), &question).await.unwrap();
        answer.status.is_some_and(|status| status.allowed == allowed)
    })
    .await;
}
