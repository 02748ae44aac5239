//! What the cluster's mutating admission adds to pull secrets is not held against the operator.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{PATIENCE, poll};
use testbed::proxy::Match;
use testbed::recorder::Invariant;

use super::helm::{apply, version_of};
use super::operator::{launch, with_the_chart};
use super::policy::{installed, refused};
use super::stolen_token::{Owners, additions, merged};

/// A MutatingAdmissionPolicy for the objects of one kind in one namespace.
pub(crate) struct MutatingPolicy(String);

impl MutatingPolicy {
    /// Whether the control plane has such policies: Kubernetes 1.36 and later do, so that no test of them passes there without them.
    pub(crate) async fn is_served(client: &Client) -> bool {
        let group = client.list_api_group_resources("admissionregistration.k8s.io/v1").await.unwrap();
        let is_served = group.resources.iter().any(|resource| resource.kind == "MutatingAdmissionPolicy");
        let version = version_of(client).await;
        let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
        assert_eq!(is_served, minor >= 36, "Kubernetes {version}");
        is_served
    }

    /// Creates one for docker configs.
    async fn create(client: &Client, namespace: &str, mutations: Value) -> Self {
        Self::of_type(client, namespace, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", mutations).await
    }

    /// Creates one that adds a key to the data of Secrets of a type, which needs the `key`.
    pub(crate) async fn of_type(client: &Client, namespace: &str, kind: &str, key: &str, mutations: Value) -> Self {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let probe = json!({ "metadata": { "name": "probe" }, "type": kind, "stringData": { key: "{}" } });
        let probe: Secret = serde_json::from_value(probe).unwrap();
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let acts = async || secrets.create(&params, &probe).await.unwrap().data.unwrap().len() > 1;
        let conditions = json!([{ "name": "of-the-type", "expression": format!("object.type == '{kind}'") }]);
        Self::on(client, namespace, "secrets", conditions, mutations, acts).await
    }

    /// Creates one for a resource, and waits until it `acts`: the API server tells no one when.
    pub(crate) async fn on(
        client: &Client,
        namespace: &str,
        resource: &str,
        conditions: Value,
        mutations: Value,
        acts: impl AsyncFn() -> bool,
    ) -> Self {
        let group = "admissionregistration.k8s.io/v1";
        let policy = json!({
            "apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": { "name": namespace },
            "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded", "mutations": mutations,
                "matchConstraints": {
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                    "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE", "UPDATE"] }],
                },
                "matchConditions": conditions,
            },
        });
        let binding = json!({
            "apiVersion": group, "kind": "MutatingAdmissionPolicyBinding", "metadata": { "name": namespace },
            "spec": { "policyName": namespace },
        });
        for object in [&policy, &binding] {
            apply(client, object, false).await.unwrap();
        }
        poll("the mutating policy acts", acts).await;
        Self(namespace.to_owned())
    }

    pub(crate) async fn delete(self, client: &Client) {
        for kind in ["mutatingadmissionpolicybindings", "mutatingadmissionpolicies"] {
            let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}/{}", self.0);
            client.request::<Value>(http::Request::delete(path).body(vec![]).unwrap()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_admission_adds_is_not_held_against_the_operator() {
    let cluster = installed("mutated", json!({})).await;
    if !MutatingPolicy::is_served(&cluster.admin).await {
        return;
    }
    let owners = Owners::create(&cluster).await;
    let object = "Object{data: {'config.json': object.data['.dockerconfigjson']}, \
        metadata: Object.metadata{labels: {'added': 'x'}, finalizers: ['example.com/added']}}";
    let owner = format!(
        "has(object.metadata.ownerReferences) && !object.metadata.ownerReferences.exists(o, o.kind == 'ConfigMap') ? \
        [JSONPatch{{op: 'add', path: '/metadata/ownerReferences/-', value: Object.metadata.ownerReferences{{\
        apiVersion: 'v1', kind: 'ConfigMap', name: 'owner', uid: '{}', blockOwnerDeletion: true}}}}] : []",
        owners.foreign["uid"].as_str().unwrap()
    );
    let mutations = json!([
        { "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": object } },
        { "patchType": "JSONPatch", "jsonPatch": { "expression": owner } },
    ]);
    let policy = MutatingPolicy::create(&cluster.admin, &cluster.home, mutations).await;
    for hour in [1, 2] {
        let mut secret = owners.owned(hour);
        secret["data"][".dockerconfigjson"] = json!(if hour == 1 { "e30=" } else { "eyJhdXRocyI6e319" });
        let stored = cluster.write("x", secret).await.unwrap();
        assert_eq!(stored.data.as_ref().unwrap().len(), 2, "{hour}");
        assert_eq!(stored.data.as_ref().unwrap()["config.json"], stored.data.as_ref().unwrap()[".dockerconfigjson"]);
        assert_eq!(stored.finalizers(), ["example.com/added"]);
        assert_eq!(stored.owner_references().len(), 2);
    }
    // What comes with the write itself is refused all the same.
    for (what, part, says) in additions(&owners) {
        refused(cluster.write("y", merged(owners.owned(1), &part)).await.map_err(|why| format!("{what}: {why}")), says);
        // The one was added by the policy before, and the other is the operator's own with a right less.
        if !["an owner", "an owner that does not control"].contains(&what) {
            let answer = cluster.write("x", merged(owners.owned(2), &part)).await;
            refused(answer.map_err(|why| format!("{what}, over: {why}")), says);
        }
    }
    policy.delete(&cluster.admin).await;
    let finalizers = json!({ "metadata": { "finalizers": null } });
    cluster.edit("x", finalizers).await;
}

/// A second form of the docker config, as a cluster may want it for consumers that read a file.
#[tokio::test]
async fn a_key_that_admission_adds_neither_stops_a_refresh_nor_is_fought_over() {
    let bed = with_the_chart("chart-mutated", json!({})).await;
    if !MutatingPolicy::is_served(&bed.client).await {
        return bed.finish().await.unwrap();
    }
    let a = bed.namespace("a", &[]).await.unwrap();
    bed.recorder.excuse(Invariant::I3WellFormed, format!("{a}/{}", bed.secret), "a policy adds a key to the data");
    let object = "Object{data: {'config.json': object.data['.dockerconfigjson']}}";
    let mutations = json!([{ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": object } }]);
    let policy = MutatingPolicy::create(&bed.client, &a, mutations).await;
    let operator = bed.operator(launch()).await.unwrap();
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": [a] } });
    let name = bed.credential("x", spec).await.unwrap();
    let has_both = |secret: Option<&Secret>| {
        secret
            .and_then(|secret| secret.data.as_ref())
            .is_some_and(|data| data.get("config.json") == data.get(".dockerconfigjson"))
    };
    let first = bed.secret_until(&a, "two keys", has_both).await.unwrap().unwrap();
    bed.ready(&name).await.unwrap();

    // The token is refreshed, by one write.
    let mark = bed.proxy.log().mark();
    bed.request_refresh(&name, "1").await.unwrap();
    let is_new = |secret: Option<&Secret>| has_both(secret) && secret.is_some_and(|secret| secret.data != first.data);
    bed.secret_until(&a, "a new token", is_new).await.unwrap();
    bed.refreshed(&name, "1").await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.proxy.log().count_since(mark, &Match::secret_writes()), 1);

    // The operator removes keys that somebody else writes. This one comes back at once, and that is the end of it.
    bed.recorder.excuse(Invariant::I1Scope, format!("{a}/{}", bed.secret), "a policy adds a key to the data");
    let mark = bed.proxy.log().mark();
    let edit = Patch::Merge(json!({ "stringData": { "config.json": "{}", "more": "x" } }));
    bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &edit).await.unwrap();
    let is_clean = |secret: Option<&Secret>| {
        has_both(secret) && secret.is_some_and(|secret| secret.data.as_ref().unwrap().len() == 2)
    };
    bed.secret_until(&a, "no other key", is_clean).await.unwrap();
    bed.proxy.log().wait_quiet(std::time::Duration::from_secs(3), PATIENCE).await.unwrap();
    let writes = bed.proxy.log().writes_to_secrets_since(mark);
    assert!(writes.len() <= 2, "{writes:#?}");
    bed.ready(&name).await.unwrap();
    policy.delete(&bed.client).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
