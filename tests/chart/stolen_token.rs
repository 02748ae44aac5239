//! What somebody who has stolen the operator's token can write: what the operator itself writes, and no more.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Error, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{poll, unreadable_managed_field};

use super::helm::apply;
use super::policy::{Cluster, MANAGER, good, installed, refused, with};

const FINALIZER: &str = "may not add finalizers";
const OWNER: &str = "may add no owner reference";
pub(crate) const KEY: &str = "only the key .dockerconfigjson";
const IMMUTABLE: &str = "may not make a Secret immutable";
const LARGE: &str = "may not add so many or so large labels and annotations";
const LEASE: &str = "only its own Lease";

/// The owner reference that the operator writes, and one that is not the operator's. Both owners exist, so that nothing is
/// garbage collected.
pub(crate) struct Owners {
    own: Value,
    pub(crate) foreign: Value,
}

impl Owners {
    pub(crate) async fn create(cluster: &Cluster) -> Self {
        let spec =
            json!({ "registries": [{ "private": {} }], "namespaces": { "names": [cluster.home] }, "suspend": true });
        let credential = json!({ "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": cluster.home }, "spec": spec });
        let mut own = reference(&apply(&cluster.admin, &credential, false).await.unwrap());
        own["controller"] = json!(true);
        let other = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "owner", "namespace": cluster.home } });
        let mut foreign = reference(&apply(&cluster.admin, &other, false).await.unwrap());
        foreign["blockOwnerDeletion"] = json!(true);
        Self { own, foreign }
    }

    /// A Secret as the operator writes it, with its owner.
    pub(crate) fn owned(&self, hour: u32) -> Value {
        merged(good(hour), &self.owned_by())
    }

    /// The part of a Secret that says so.
    pub(crate) fn owned_by(&self) -> Value {
        json!({ "metadata": { "ownerReferences": [self.own] } })
    }
}

fn reference(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "name": metadata["name"], "uid": metadata["uid"] })
}

/// Annotations of this size in all, each as large as an EcrCredential allows.
fn annotations(bytes: usize) -> Value {
    let many = (0..bytes.div_ceil(4096)).map(|number| (format!("example.com/{number}"), json!("x".repeat(4096 - 16))));
    Value::Object(many.collect())
}

fn labels(number: usize) -> Value {
    Value::Object((0..number).map(|number| (format!("l{number}"), json!("x".repeat(63)))).collect())
}

/// Everything that is not the operator's to write, as parts of a Secret.
pub(crate) fn additions(Owners { own, foreign }: &Owners) -> Vec<(&'static str, Value, &'static str)> {
    let owner = |reference: Value| json!({ "metadata": { "ownerReferences": [reference] } });
    let with = |reference: &Value, key, value| owner(with(reference.clone(), "", key, value));
    vec![
        ("a finalizer", json!({ "metadata": { "finalizers": ["example.com/hang"] } }), FINALIZER),
        ("an owner", owner(foreign.clone()), OWNER),
        ("an owner with an odd uid", with(foreign, "uid", json!("c\"}")), OWNER),
        ("an owner that waits", with(own, "blockOwnerDeletion", json!(true)), OWNER),
        ("an owner that does not control", with(own, "controller", json!(false)), OWNER),
        ("an owner of another version", with(own, "apiVersion", json!("pullsecrets.dev/v2")), OWNER),
        ("an owner of another kind", with(own, "kind", json!("Secret")), OWNER),
        ("a key", json!({ "data": { "more": "eA==" } }), KEY),
        ("a key as text", json!({ "stringData": { "more": "x" } }), KEY),
        ("immutable", json!({ "immutable": true }), IMMUTABLE),
        ("many annotations", json!({ "metadata": { "annotations": annotations(200 << 10) } }), LARGE),
        ("many labels", json!({ "metadata": { "labels": labels(4000) } }), LARGE),
    ]
}

/// Adds `part` to `secret`, as a merge patch does.
pub(crate) fn merged(mut secret: Value, part: &Value) -> Value {
    for (key, value) in part.as_object().unwrap() {
        let into = secret.as_object_mut().unwrap().entry(key).or_insert(json!({}));
        *into = if value.is_object() && into.is_object() { merged(into.take(), value) } else { value.clone() };
    }
    secret
}

/// What managed fields say of a Secret as the operator has written it.
fn managed_fields(manager: &str) -> Value {
    json!([{
        "manager": manager, "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "time": "2026-01-01T00:00:00Z",
        "fieldsV1": { "f:data": { "f:.dockerconfigjson": {} }, "f:type": {} },
    }])
}

#[tokio::test]
async fn nothing_can_be_added_to_a_secret_in_any_way_of_writing() {
    let cluster = installed("additions", json!({})).await;
    let owners = Owners::create(&cluster).await;
    let own = cluster.write("own", good(1)).await.unwrap();
    let mut restored = serde_json::to_value(own.managed_fields()).unwrap();
    restored.as_array_mut().unwrap().push(unreadable_managed_field());
    let secrets = cluster.secrets(&cluster.operator);
    for (what, part, says) in additions(&owners) {
        let created = merged(good(1), &part);
        refused(cluster.write("new", created.clone()).await.map_err(|why| format!("{what}: {why}")), says);
        refused(cluster.write("own", created.clone()).await.map_err(|why| format!("{what}, over: {why}")), says);
        // A create and a merge patch may say what is in the managed fields.
        let recorded = [managed_fields(MANAGER), managed_fields("kubectl"), json!([unreadable_managed_field()])];
        let recorded = recorded.into_iter().chain([restored.clone()]);
        for managed in [json!(null), json!([]), json!([{}])].into_iter().chain(recorded) {
            let metadata = json!({ "metadata": { "name": "new", "managedFields": managed } });
            let post = merged(created.clone(), &metadata);
            let post = serde_json::from_value(post).unwrap();
            let answer =
                secrets.create(&PostParams::default(), &post).await.map_err(|error| format!("{what}: {error}"));
            refused(answer, says);
            let patch = merged(part.clone(), &json!({ "metadata": { "managedFields": managed } }));
            let answer = secrets.patch("own", &PatchParams::default(), &Patch::Merge(&patch)).await;
            refused(answer.map_err(|error| format!("{what}, {managed}: {error}")), says);
        }
    }
    // Without managed fields nobody can say who wrote what.
    let reset = json!({ "metadata": { "managedFields": [{}] } });
    secrets.patch("own", &PatchParams::default(), &Patch::Merge(&reset)).await.unwrap();
    for (what, part, says) in additions(&owners) {
        let answer = secrets.patch("own", &PatchParams::default(), &Patch::Merge(&part)).await;
        refused(answer.map_err(|error| format!("{what}, without managed fields: {error}")), says);
    }
    cluster.write("own", good(1)).await.unwrap();
}

#[tokio::test]
async fn the_operators_own_writes_are_accepted_also_over_what_others_have_added() {
    let cluster = installed("accepted", json!({})).await;
    let owners = Owners::create(&cluster).await;
    let owned = owners.owned(1);
    // As large as an EcrCredential allows: 32 labels and 32 annotations of its own.
    let large = json!({ "metadata": { "labels": labels(32), "annotations": annotations(32 * 4096) } });
    for (name, written) in [("owned", owned.clone()), ("retained", good(1)), ("large", merged(owned.clone(), &large))] {
        let first = cluster.write(name, written.clone()).await.unwrap_or_else(|why| panic!("{name}: {why}"));
        let guard = json!({ "metadata": { "uid": first.uid(), "resourceVersion": first.resource_version() } });
        cluster.write(name, merged(written, &guard)).await.unwrap_or_else(|why| panic!("{name} again: {why}"));
    }
    for (what, part, _) in additions(&owners) {
        // An immutable Secret can only be deleted, and an owner of the same uid takes the place of the operator's.
        if what.starts_with("an owner ") || what == "immutable" {
            continue;
        }
        let name = what.replace(' ', "-");
        cluster.write(&name, owned.clone()).await.unwrap();
        let both = json!({ "metadata": { "ownerReferences": [owners.own, owners.foreign] } });
        let part = if what == "an owner" { both } else { part };
        cluster.edit(&name, part).await;
        let longer = json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "2026-01-01T01:00:00.123456789Z" } } });
        let written = cluster.write(&name, merged(owned.clone(), &longer)).await;
        let version = written.unwrap_or_else(|why| panic!("{what}: {why}")).resource_version();
        let strip = json!({ "metadata": { "resourceVersion": version }, "data": { "more": null }, "immutable": null });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let stripped = cluster.secrets(&cluster.operator).patch(&name, &params, &Patch::Merge(&strip)).await;
        let stripped = stripped.unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(stripped.data.as_ref().unwrap().len(), 1, "{what}");
        let guard = Preconditions { uid: stripped.uid(), resource_version: stripped.resource_version() };
        let params = DeleteParams::default().preconditions(guard);
        cluster.secrets(&cluster.operator).delete(&name, &params).await.unwrap_or_else(|why| panic!("{what}: {why}"));
        if what == "a finalizer" {
            cluster.edit(&name, json!({ "metadata": { "finalizers": null } })).await;
        }
    }
}

#[tokio::test]
async fn an_adopted_secret_keeps_what_others_have_put_there() {
    let cluster = installed("adopted", json!({ "allowAdopt": true })).await;
    let owners = Owners::create(&cluster).await;
    // The API server changes no immutable Secret, and the garbage collector deletes one whose owners do not exist.
    let impossible =
        ["immutable", "an owner with an odd uid", "an owner of another version", "an owner of another kind"];
    for (what, part, _) in additions(&owners).into_iter().filter(|(what, ..)| !impossible.contains(what)) {
        let name = what.replace(' ', "-");
        cluster.foreign(&name).await;
        cluster.edit(&name, part).await;
        cluster.write(&name, good(1)).await.unwrap_or_else(|why| panic!("{what}: {why}"));
    }
    // Another controller may be made to step back, but not to come forward.
    let owners = |controller: bool, blocks: bool| {
        let other = with(owners.foreign.clone(), "", "controller", json!(controller));
        json!({ "metadata": { "ownerReferences": [with(other, "", "blockOwnerDeletion", json!(blocks))] } })
    };
    cluster.foreign("controlled").await;
    let secrets = cluster.secrets(&cluster.operator);
    cluster.edit("controlled", owners(true, false)).await;
    for (controller, blocks, accepted) in [(true, true, false), (false, false, true), (true, false, false)] {
        let patch = Patch::Merge(owners(controller, blocks));
        let answer = secrets.patch("controlled", &PatchParams::default(), &patch).await;
        match answer {
            Ok(_) => assert!(accepted, "{controller} {blocks}"),
            Err(error) if !accepted => refused(Err::<(), _>(error.to_string()), OWNER),
            Err(error) => panic!("{controller} {blocks}: {error}"),
        }
    }
}

#[tokio::test]
async fn no_lease_but_the_operators_own_can_be_made_and_no_event_that_stays() {
    let cluster = installed("leases", json!({})).await;
    let owners = Owners::create(&cluster).await;
    let leases: Api<Lease> = Api::namespaced(cluster.operator.clone(), &cluster.home);
    let create = async |metadata: Value| {
        let lease: Lease =
            serde_json::from_value(json!({ "metadata": metadata, "spec": { "holderIdentity": "me" } })).unwrap();
        leases.create(&PostParams::default(), &lease).await.map_err(|error| error.to_string())
    };
    let probe = serde_json::from_value(json!({ "metadata": { "name": "probe" } })).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    poll("the policy is in force", async || {
        leases.create(&dry, &probe).await.is_err_and(|why| why.to_string().contains(LEASE))
    })
    .await;
    refused(create(json!({ "name": "kube-scheduler" })).await, LEASE);
    refused(create(json!({ "generateName": "ecr-credential-operator" })).await, LEASE);
    refused(create(json!({ "name": MANAGER, "finalizers": ["example.com/hang"] })).await, FINALIZER);
    refused(create(json!({ "name": MANAGER, "ownerReferences": [owners.foreign] })).await, OWNER);
    let mut own = create(json!({ "name": MANAGER })).await.unwrap();
    own.spec.as_mut().unwrap().holder_identity = Some("again".to_owned());
    let mut own = leases.replace(MANAGER, &PostParams::default(), &own).await.unwrap();
    own.metadata.finalizers = Some(vec!["example.com/hang".to_owned()]);
    refused(leases.replace(MANAGER, &PostParams::default(), &own).await.map_err(|error| error.to_string()), FINALIZER);
    let others: Api<Lease> = Api::namespaced(cluster.admin.clone(), &cluster.home);
    let events: Api<Event> = Api::namespaced(cluster.operator.clone(), "default");
    for (metadata, says) in [
        (json!({}), None),
        (json!({ "finalizers": ["example.com/hang"] }), Some(FINALIZER)),
        (json!({ "ownerReferences": [owners.foreign] }), Some(OWNER)),
    ] {
        let event = merged(
            json!({
                "metadata": { "generateName": "x-", "namespace": "default" }, "eventTime": "2026-01-01T00:00:00.000000Z",
                "reportingController": "x", "reportingInstance": "x", "action": "x", "reason": "x", "type": "Normal",
                "regarding": { "kind": "EcrCredential", "apiVersion": "pullsecrets.dev/v1alpha1", "name": "x" },
            }),
            &json!({ "metadata": metadata }),
        );
        let answer = events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await;
        match says {
            Some(says) => refused(answer.map_err(|error| error.to_string()), says),
            None => drop(answer.unwrap()),
        }
    }
    let other: Lease = serde_json::from_value(json!({ "metadata": { "name": "others" } })).unwrap();
    others.create(&PostParams::default(), &other).await.unwrap();
}

#[tokio::test]
async fn a_token_of_a_service_account_lives_an_hour_at_most() {
    let values = json!({ "auth": { "serviceAccounts": [{ "name": "one" }] } });
    let cluster = super::policy::installed_with("lives", json!({}), values).await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "one", "namespace": cluster.home } });
    apply(&cluster.admin, &account, false).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.operator.clone(), &cluster.home);
    let ask = async |seconds: Option<i64>| {
        let spec = json!({ "audiences": ["sts.amazonaws.com"], "expirationSeconds": seconds });
        let request: TokenRequest = serde_json::from_value(json!({ "spec": spec })).unwrap();
        accounts.create_token_request("one", &PostParams::default(), &request).await
    };
    poll("the policy is in force", async || {
        ask(Some(10 * 365 * 24 * 3600)).await.is_err_and(|why| why.to_string().contains("at most an hour"))
    })
    .await;
    for (seconds, accepted) in
        [(Some(600), true), (None, true), (Some(3600), true), (Some(3601), false), (Some(86_400), false)]
    {
        match ask(seconds).await {
            Ok(_) => assert!(accepted, "{seconds:?}"),
            Err(Error::Api(status)) => {
                assert!(!accepted && status.message.contains("at most an hour"), "{seconds:?}: {}", status.message)
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What RBAC refuses, with the chart's rights by name.
#[tokio::test]
async fn rights_end_at_the_names_and_verbs_that_the_operator_needs() {
    let cluster = super::policy::installed_with("rights", json!({}), json!({ "allSecretNames": false })).await;
    cluster.foreign("foreign").await;
    cluster.write("ecr-pull-secret", good(1)).await.unwrap();
    let secrets = format!("/api/v1/namespaces/{}/secrets", cluster.home);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "ecr-pull-secret" } });
    let credential = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/x";
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", cluster.home);
    for (method, path, body) in [
        ("GET", format!("{secrets}/foreign"), json!(null)),
        ("GET", secrets.clone(), json!(null)),
        ("GET", "/api/v1/secrets".to_owned(), json!(null)),
        ("GET", "/api/v1/secrets?watch=true".to_owned(), json!(null)),
        ("PATCH", format!("{secrets}/foreign"), good(1)),
        ("PUT", format!("{secrets}/ecr-pull-secret"), secret.clone()),
        ("POST", secrets.clone(), merged(secret, &json!({ "metadata": { "name": "other" } }))),
        ("DELETE", format!("{secrets}/foreign"), json!({})),
        ("DELETE", secrets.clone(), json!({})),
        ("GET", "/api/v1/configmaps".to_owned(), json!(null)),
        ("GET", "/api/v1/pods".to_owned(), json!(null)),
        ("GET", "/api/v1/serviceaccounts".to_owned(), json!(null)),
        ("POST", format!("/api/v1/namespaces/{}/serviceaccounts/default/token", cluster.home), json!({ "spec": {} })),
        ("PATCH", credential.to_owned(), json!({ "spec": { "suspend": true } })),
        ("DELETE", credential.to_owned(), json!({})),
        (
            "POST",
            roles,
            json!({ "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" } }),
        ),
        ("GET", "/apis/coordination.k8s.io/v1/leases".to_owned(), json!(null)),
    ] {
        let request = http::Request::builder().method(method).uri(&path);
        let request = request.header(
            "Content-Type",
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
        );
        let body = if body.is_null() { vec![] } else { serde_json::to_vec(&body).unwrap() };
        match cluster.operator.request::<Value>(request.body(body).unwrap()).await {
            Err(Error::Api(status)) => assert!(status.is_forbidden(), "{method} {path}: {status:?}"),
            other => panic!("{method} {path}: {other:?}"),
        }
    }
    let impersonated = http::Request::get(format!("{secrets}/ecr-pull-secret")).header("Impersonate-User", "admin");
    let answer = cluster.operator.request::<Value>(impersonated.body(vec![]).unwrap()).await;
    assert!(matches!(&answer, Err(Error::Api(status)) if status.is_forbidden()), "{answer:?}");
}
