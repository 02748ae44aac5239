//! What the ValidatingAdmissionPolicy lets the operator's own account do with Secrets, asked as that account.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{PATIENCE, poll};
use testbed::control_plane::{ControlPlane, shared};

use super::helm::{Helm, apply, chart, namespace};
use super::stolen_token::merged;

pub(crate) const MANAGER: &str = "ecr-credential-operator";
pub(crate) const TYPE: &str = "only Secrets of the type kubernetes.io/dockerconfigjson";
const KEY: &str = "only the key .dockerconfigjson";
pub(crate) const OWN: &str = "not the operator's own Secret";
const DELETE: &str = "delete only its own Secrets";
pub(crate) const EARLIER: &str = "a token by one that expires earlier";

pub(crate) struct Cluster {
    plane: &'static ControlPlane,
    pub(crate) home: String,
    pub(crate) admin: Client,
    pub(crate) operator: Client,
}

/// The chart in a namespace of its own, and the operator's account as a client.
pub(crate) async fn installed(name: &str, policy: Value) -> Cluster {
    installed_with(name, policy, json!({})).await
}

/// The same with further values.
pub(crate) async fn installed_with(name: &str, policy: Value, further: Value) -> Cluster {
    let plane = shared().await.unwrap();
    plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
    let admin = plane.admin_client().unwrap();
    let home = format!("chart-policy-{name}");
    namespace(&admin, &home).await;
    let helm = Helm::on(plane, "v3");
    let mut values =
        json!({ "crds": { "enabled": false }, "validatingAdmissionPolicy": policy, "allSecretNames": true });
    values.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    let (chart, file) = (chart(), helm.values(&values));
    let args =
        ["install", MANAGER, &chart.to_string_lossy(), "--namespace", &home, "--values", &file.to_string_lossy()];
    helm.run(&args).unwrap();
    let token = plane.service_account_token(&home, MANAGER, "", 3600).await.unwrap();
    let cluster = Cluster { plane, operator: plane.client(&token).unwrap(), admin, home };
    cluster.until_in_force().await;
    cluster
}

impl Cluster {
    /// The API server tells no one when it has taken note of a policy.
    async fn until_in_force(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let wrong = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "ecr-pull-secret" }, "type": "Opaque" });
        let params = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER) };
        loop {
            let answer = self.secrets(&self.operator).patch("ecr-pull-secret", &params, &Patch::Apply(&wrong)).await;
            if answer.as_ref().is_err_and(|why| why.to_string().contains("ValidatingAdmissionPolicy")) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the policy is not in force: {answer:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn secrets(&self, client: &Client) -> Api<Secret> {
        Api::namespaced(client.clone(), &self.home)
    }

    /// Applies a Secret as the operator does.
    pub(crate) async fn write(&self, name: &str, secret: Value) -> Result<Secret, String> {
        self.write_as(&self.operator, name, secret).await
    }

    /// Applies a Secret under the name of the operator's field manager.
    async fn write_as(&self, client: &Client, name: &str, secret: Value) -> Result<Secret, String> {
        let mut secret = secret;
        secret["apiVersion"] = json!("v1");
        secret["kind"] = json!("Secret");
        secret["metadata"]["name"] = json!(name);
        let params = PatchParams::apply(MANAGER).force();
        let answer = self.secrets(client).patch(name, &params, &Patch::Apply(&secret)).await;
        answer.map_err(|error| error.to_string())
    }

    /// Takes an added key out of a Secret, writes it, and removes it, as the operator may with what is its own.
    async fn put_right(&self, name: &str, secret: Value) -> Result<(), String> {
        self.edit(name, json!({ "data": { "more": "eA==" } })).await;
        for written in [false, true] {
            if written {
                self.write(name, secret.clone()).await.map_err(|why| format!("{name}: {why}"))?;
            }
            let strip = Patch::Merge(json!({ "data": { "more": null } }));
            let stripped = self.secrets(&self.operator).patch(name, &PatchParams::default(), &strip).await;
            let stripped = stripped.map_err(|why| format!("{name}, to strip it: {why}"))?;
            assert_eq!(stripped.data.unwrap().len(), 1, "{name}");
        }
        self.remove(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        let answer = self.secrets(&self.operator).delete(name, &DeleteParams::default()).await;
        answer.map(drop).map_err(|error| error.to_string())
    }

    /// Somebody else's Secret.
    pub(crate) async fn foreign(&self, name: &str) -> Secret {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": self.home },
            "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": "e30=" },
        });
        serde_json::from_value(apply(&self.admin, &secret, false).await.unwrap()).unwrap()
    }

    pub(crate) async fn edit(&self, name: &str, patch: Value) {
        self.secrets(&self.admin).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }
}

/// A Secret as the operator writes it, with an expiry at this hour.
pub(crate) fn good(hour: u32) -> Value {
    json!({
        "metadata": {
            "labels": { "app.kubernetes.io/managed-by": MANAGER, "pullsecrets.dev/credential-uid": "u" },
            "annotations": { "pullsecrets.dev/expires-at": format!("2026-01-01T{hour:02}:00:00Z"), "pullsecrets.dev/hosts-hash": "aa" },
        },
        "type": "kubernetes.io/dockerconfigjson",
        "data": { ".dockerconfigjson": "e30=" },
    })
}

pub(crate) fn with(mut secret: Value, pointer: &str, key: &str, value: Value) -> Value {
    secret.pointer_mut(pointer).unwrap()[key] = value;
    secret
}

#[track_caller]
pub(crate) fn refused(answer: Result<impl std::fmt::Debug, String>, says: &str) {
    let why = answer.expect_err(says);
    assert!(why.contains(says) && why.contains("ValidatingAdmissionPolicy"), "{why}");
}

#[tokio::test]
async fn the_operator_writes_one_kind_of_secret_and_only_its_own() {
    let cluster = installed("own", json!({})).await;
    let opaque = json!({ "type": "Opaque", "data": { "password": "eA==" } });
    refused(cluster.write("new", opaque).await, TYPE);
    let token = json!({ "type": "kubernetes.io/service-account-token", "metadata": { "annotations": { "kubernetes.io/service-account.name": "default" } } });
    refused(cluster.write("new", token).await, TYPE);
    refused(cluster.write("new", with(good(1), "/data", "more", json!("eA=="))).await, KEY);
    cluster.write("new", good(1)).await.unwrap();
    refused(cluster.write("new", with(good(1), "/data", "more", json!("eA=="))).await, KEY);

    cluster.foreign("foreign").await;
    refused(cluster.write("foreign", good(1)).await, OWN);
    refused(cluster.remove("foreign").await, OWN);
    // One label of the two is not the mark.
    cluster.edit("foreign", json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": MANAGER } } })).await;
    refused(cluster.write("foreign", good(1)).await, OWN);
    // Of an owner reference either, only ours counts.
    let other = json!([{ "apiVersion": "example.com/v1", "kind": "EcrCredential", "name": "x", "uid": "u", "controller": true }]);
    cluster.edit("foreign", json!({ "metadata": { "ownerReferences": other } })).await;
    refused(cluster.write("foreign", good(1)).await, OWN);
    let ours = json!([{ "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "x", "uid": "u", "controller": true }]);
    cluster.edit("foreign", json!({ "metadata": { "ownerReferences": ours, "labels": null } })).await;
    cluster.write("foreign", good(1)).await.unwrap();
    cluster.remove("foreign").await.unwrap();
    cluster.remove("new").await.unwrap();
}

#[tokio::test]
async fn an_expiry_does_not_go_back_unless_it_cannot_be_compared() {
    let cluster = installed("expiry", json!({})).await;
    cluster.write("x", good(5)).await.unwrap();
    for (what, secret, says) in [
        ("the same", good(5), None),
        ("later", good(6), None),
        ("earlier", good(5), Some(EARLIER)),
        (
            "later by a fraction",
            with(good(6), "/metadata/annotations", "pullsecrets.dev/expires-at", json!("2026-01-01T06:00:00.5Z")),
            None,
        ),
        (
            "none",
            with(good(6), "/metadata", "annotations", json!({ "pullsecrets.dev/hosts-hash": "aa" })),
            Some(EARLIER),
        ),
        ("garbage", with(good(6), "/metadata/annotations", "pullsecrets.dev/expires-at", json!("soon")), Some(EARLIER)),
        (
            "by so much that the old one seems far",
            with(good(6), "/metadata/annotations", "pullsecrets.dev/expires-at", json!("2000-01-01T00:00:00Z")),
            Some(EARLIER),
        ),
        ("another's, earlier", with(good(4), "/metadata/labels", "pullsecrets.dev/credential-uid", json!("v")), None),
        (
            "with other hosts, earlier",
            with(good(3), "/metadata/annotations", "pullsecrets.dev/hosts-hash", json!("bb")),
            None,
        ),
    ] {
        let mut secret = secret;
        if what.starts_with("with other hosts") {
            secret["metadata"]["labels"]["pullsecrets.dev/credential-uid"] = json!("v");
        }
        match says {
            Some(says) => refused(cluster.write("x", secret).await, says),
            None => drop(cluster.write("x", secret).await.unwrap_or_else(|why| panic!("{what}: {why}"))),
        }
    }
}

/// By the time of the API server, whatever the managed fields of the request say.
#[tokio::test]
async fn an_expiry_goes_back_only_where_aws_cannot_have_issued_the_token() {
    let cluster = installed("ahead", json!({})).await;
    let ahead = |hours: i64| (Timestamp::now() + SignedDuration::from_hours(hours)).strftime("%FT%TZ").to_string();
    let expires = |at: &str| json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": at } } });
    let write = async |hours| cluster.write("x", merged(good(1), &expires(&ahead(hours)))).await;
    let written = write(12).await.unwrap();
    refused(write(11).await, EARLIER);
    for manager in [MANAGER, "kubectl"] {
        let mut managed = serde_json::to_value(written.managed_fields()).unwrap();
        (managed[0]["time"], managed[0]["manager"]) = (json!("2000-01-01T00:00:00Z"), json!(manager));
        let metadata = json!({ "metadata": { "managedFields": managed } });
        let patch = Patch::Merge(merged(expires(&ahead(11)), &metadata));
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        let answer = cluster.secrets(&cluster.operator).patch("x", &params, &patch).await;
        refused(answer.map_err(|error| error.to_string()), EARLIER);
    }
    write(13).await.unwrap();
    write(11).await.unwrap();
    refused(write(10).await, EARLIER);
}

#[tokio::test]
async fn what_somebody_else_has_changed_can_be_put_right() {
    let cluster = installed("repair", json!({})).await;
    for (name, edit) in [
        ("far", json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "2999-01-01T00:00:00Z" } } })),
        ("garbage", json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "never" } } })),
        ("gone", json!({ "metadata": { "annotations": null } })),
        ("data", json!({ "data": { ".dockerconfigjson": "eyJhdXRocyI6e319" } })),
        ("key", json!({ "data": { "more": "eA==" } })),
        ("labels", json!({ "metadata": { "labels": { "team": "x" } } })),
    ] {
        cluster.write(name, good(5)).await.unwrap();
        cluster.edit(name, edit).await;
        // The data that somebody else wrote has no expiry of ours, so even an earlier one is better.
        let hour = if name == "key" || name == "labels" { 5 } else { 4 };
        cluster.put_right(name, good(hour)).await.unwrap();
    }
}

/// What is applied under the name of the operator's field manager looks like the operator's own.
#[tokio::test]
async fn an_expiry_that_is_forged_under_the_operators_name_can_be_put_right() {
    let cluster = installed("forged", json!({})).await;
    let mut wrong = vec![];
    for (name, expires_at) in [
        ("far", "2999-01-01T00:00:00Z"),
        ("last", "9999-12-31T23:59:59Z"),
        ("garbage", "never"),
        ("empty", ""),
        ("no-such-day", "2025-02-31T00:00:00Z"),
        ("no-such-month", "2025-99-01T00:00:00Z"),
        ("offset", "2026-01-01T05:00:00+01:00"),
        ("long", &format!("2026-01-01T05:00:00.{}Z", "0".repeat(200 << 10))),
    ] {
        cluster.write(name, good(5)).await.unwrap();
        let mut forged = with(good(5), "/metadata/annotations", "pullsecrets.dev/expires-at", json!(expires_at));
        forged["data"] = json!({ ".dockerconfigjson": "eyJhdXRocyI6e319" });
        cluster.write_as(&cluster.admin, name, forged).await.unwrap();
        wrong.extend(cluster.put_right(name, good(4)).await.err());
    }
    // Managed fields may say anything, also of an annotation that is not there.
    let co_owner = |time: Value| {
        let fields = json!({ "f:metadata": { "f:annotations": { "f:pullsecrets.dev/expires-at": {} } } });
        json!([{ "manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "time": time, "fieldsV1": fields }])
    };
    for (name, change, more, hour) in [
        ("without-annotations", json!({ "annotations": null }), json!([]), 4),
        ("without-expiry", json!({ "annotations": { "pullsecrets.dev/expires-at": null } }), json!([]), 4),
        ("without-time", json!({}), co_owner(json!(null)), 5),
    ] {
        let written = cluster.write(name, good(5)).await.unwrap();
        let mut managed = serde_json::to_value(written.managed_fields()).unwrap();
        managed.as_array_mut().unwrap().extend(more.as_array().unwrap().clone());
        cluster.edit(name, json!({ "metadata": change })).await;
        cluster.edit(name, json!({ "metadata": { "managedFields": managed } })).await;
        wrong.extend(cluster.put_right(name, good(hour)).await.err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn adopting_can_be_allowed_and_deleting_what_is_foreign_cannot() {
    let cluster = installed("adopt", json!({ "allowAdopt": true })).await;
    cluster.foreign("foreign").await;
    refused(cluster.remove("foreign").await, DELETE);
    cluster.write("foreign", good(1)).await.unwrap();
    cluster.remove("foreign").await.unwrap();
}

#[tokio::test]
async fn others_are_not_bound_by_it() {
    let cluster = installed("others", json!({})).await;
    let opaque = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "any", "namespace": cluster.home }, "type": "Opaque",
        "stringData": { "a": "b", "c": "d" },
    });
    apply(&cluster.admin, &opaque, false).await.unwrap();
    namespace(&cluster.admin, "chart-policy-another").await;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": { "name": "default-edits", "namespace": "chart-policy-another" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "chart-policy-another" }],
    });
    apply(&cluster.admin, &role, false).await.unwrap();
    let token = cluster.plane.service_account_token("chart-policy-another", "default", "", 3600).await.unwrap();
    let mut theirs = opaque;
    theirs["metadata"]["namespace"] = json!("chart-policy-another");
    let client = cluster.plane.client(&token).unwrap();
    poll("the right holds", async || !apply(&client, &theirs, true).await.is_err_and(|why| why.contains(" cannot ")))
        .await;
    let created = apply(&client, &theirs, false).await.unwrap();
    assert_eq!(created["metadata"]["name"], "any");
    let names: Vec<String> = cluster
        .secrets(&cluster.admin)
        .list(&Default::default())
        .await
        .unwrap()
        .into_iter()
        .map(|s| s.name_any())
        .collect();
    assert!(names.contains(&"any".to_owned()));
}
