//! Odd objects that whoever may create one can make: none stops the service of anybody else, at no time and after no restart.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::bed::{Bed, Operator, PATIENCE, condition};
use testbed::control_plane::{ControlPlane, Options};
use testbed::recorder::{Invariant, Recorder};

use super::demand::*;
use super::look::failure;
use super::{CRD, OWN, bed, launch};

mod generated;

/// It stands in odd objects, and may be in no log.
const CANARY: &str = "the-content-of-an-odd-object";

/// What is odd about an object, and its metadata besides name and namespace.
fn oddities(uid: &str) -> Vec<(&'static str, Value)> {
    let entry = |manager: &str, operation: &str, time: &str, fields: Value| json!([{ "manager": manager, "operation": operation, "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields }]);
    let now = "2026-01-01T00:00:00Z";
    let many = |count: usize| (0..count).map(|number| (format!("f:{number}"), json!({}))).collect::<Value>();
    let data = json!({ "f:data": many(5000), "f:immutable": {}, "f:metadata": { "f:labels": many(5000) } });
    let owners = (0..500).map(|number| {
        let kind = if number % 2 == 0 { "EcrCredential" } else { "Pod" };
        json!({ "apiVersion": "pullsecrets.dev/v9", "kind": kind, "name": "x", "uid": format!("{uid}-{number}-{}", "x".repeat(500)) })
    });
    vec![
        ("nested", json!({ "managedFields": entry("kubectl", "Update", now, nested(130)) })),
        ("deep", json!({ "managedFields": entry("ecr-credential-operator", "Apply", now, nested(300)) })),
        (
            "late",
            json!({ "managedFields": entry("kubectl", "Update", "9999-12-31T23:59:59Z", json!({ "f:type": {} })) }),
        ),
        (
            "early",
            json!({ "managedFields": entry("kubectl", "Update", "0001-01-01T00:00:00Z", json!({ "f:type": {} })) }),
        ),
        ("many", json!({ "managedFields": entry("ecr-credential-operator", "Apply", now, data) })),
        ("huge", json!({ "annotations": { "a": format!("{CANARY}{}", "x".repeat(250_000)) } })),
        ("owned", json!({ "ownerReferences": owners.collect::<Vec<_>>() })),
        (
            "held",
            json!({ "finalizers": ["example.com/never"], "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator" } }),
        ),
    ]
}

/// A set of fields, so many levels deep.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!({}), |fields, _| json!({ (format!("f:{CANARY}")): fields }))
}

/// Creates an object as anybody could, with a plain POST.
async fn post(bed: &Bed, path: &str, kind: &str, version: &str, name: &str, odd: &Value, more: Value) {
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": odd });
    object["metadata"]["name"] = json!(name);
    object["metadata"]["labels"]["bed"] = json!(bed.prefix);
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request = http::Request::post(path).header("content-type", "application/json");
    let answer = bed.client.request_text(request.body(object.to_string().into_bytes()).unwrap()).await;
    answer.unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
}

/// Creates an odd object of every kind in every way.
async fn make_everything_odd(bed: &Bed) -> Vec<String> {
    let mut credentials = Vec::new();
    for (what, odd) in oddities("00000000-0000-4000-8000-000000000000") {
        let namespace = bed.name(&format!("odd-{what}"));
        // Others own no namespace, and a finalizer there would be the API server's to remove.
        let of_namespace = if ["owned", "held"].contains(&what) { json!({}) } else { odd.clone() };
        post(bed, "/api/v1/namespaces", "Namespace", "v1", &namespace, &of_namespace, json!({})).await;
        let inside = format!("/api/v1/namespaces/{namespace}");
        let config = json!({ "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": "{\"auths\":{}}" } });
        post(bed, &format!("{inside}/secrets"), "Secret", "v1", &bed.secret, &odd, config).await;
        let references: Vec<Value> = (0..300).map(|number| json!({ "name": format!("{CANARY}-{number}") })).collect();
        let references = json!({ "imagePullSecrets": references });
        post(bed, &format!("{inside}/serviceaccounts"), "ServiceAccount", "v1", &bed.name("puller"), &odd, references)
            .await;
        let name = bed.name(&format!("credential-{what}"));
        let (path, version) = ("/apis/pullsecrets.dev/v1alpha1/ecrcredentials", "pullsecrets.dev/v1alpha1");
        // It wants a Secret like all others, in a namespace of its own.
        let spec = json!({
            "registries": [{ "private": {} }], "namespaces": { "names": [bed.name(&format!("late-{what}"))] },
            "secret": { "name": bed.secret },
        });
        post(bed, path, "EcrCredential", version, &name, &odd, json!({ "spec": spec })).await;
        credentials.push(name);
    }
    let home = format!("/api/v1/namespaces/{}/secrets", bed.home);
    let odd = json!({ "managedFields": oddities("x")[0].1["managedFields"] });
    post(bed, &home, "Secret", "v1", "keys", &odd, json!({ "stringData": { "AWS_ACCESS_KEY_ID": "x" } })).await;
    credentials
}

async fn start(bed: &Bed) -> Operator {
    let keys = format!("{}/keys", bed.home);
    let puller = bed.name("puller");
    let launch = launch().service_account(&format!("*/{puller}")).credentials_secret(&keys).attaching(&puller);
    bed.operator(launch).await.unwrap()
}

#[tokio::test]
async fn odd_objects_of_tenants_stop_nobody_neither_at_once_nor_after_a_restart() {
    // A control plane of its own: other tests list namespaces as well.
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let bed = Bed::on(plane, "hostile", CRD).await.unwrap();
    bed.recorder.excuse(
        Invariant::I2Foreign,
        "*",
        "odd objects are adopted, and some say that the operator wrote them",
    );
    // These say that the operator wrote them.
    for what in ["odd-deep", "odd-many"] {
        bed.recorder.excuse(
            Invariant::I3WellFormed,
            format!("{}/{}", bed.name(what), bed.secret),
            "odd objects are adopted, and some say that the operator wrote them",
        );
    }
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = start(&bed).await;
    let names = json!([a, bed.name("new-*")]);
    let spec = json!({
        "registries": [{ "private": {} }], "namespaces": { "names": names }, "secret": { "name": bed.secret, "conflictPolicy": "Adopt" },
        "attachTo": { "serviceAccounts": [bed.name("puller")] },
    });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    // As lines of the watches.
    let credentials = make_everything_odd(&bed).await;
    let new = bed.namespace("new-1", &[]).await.unwrap();
    bed.logins_until(&new, &[OWN]).await.unwrap();
    // As items of the lists of whoever comes next.
    let mut logs = vec![first.log.clone()];
    first.stop().await.unwrap();
    make_the_lease_odd(&bed).await;
    let second = start(&bed).await;
    let new = bed.namespace("new-2", &[]).await.unwrap();
    bed.logins_until(&new, &[OWN]).await.unwrap();
    for what in oddities("x").iter().map(|(what, _)| what) {
        let late = bed.namespace(&format!("late-{what}"), &[]).await.unwrap();
        bed.logins_until(&late, &[OWN]).await.unwrap();
    }
    for credential in &credentials {
        bed.ready(credential).await.unwrap();
    }
    // What it is told to adopt it has, whatever it contains.
    let names = json!([a, bed.name("new-*"), bed.name("odd-nested"), bed.name("odd-late")]);
    bed.change(&name, json!({ "spec": { "namespaces": { "names": names } } })).await.unwrap();
    for what in ["odd-nested", "odd-late"] {
        let adopted = |recorder: &Recorder| {
            let versions = recorder.secret_versions(&bed.name(what), &bed.secret);
            versions
                .last()
                .is_some_and(|secret| secret["metadata"]["annotations"]["pullsecrets.dev/expires-at"].is_string())
        };
        assert!(bed.recorder.until(testbed::bed::PATIENCE, adopted).await, "{what} is not adopted");
    }
    bed.ready(&name).await.unwrap();
    let shown = check(&bed).await;
    assert!(shown.contains(&name), "{shown}");
    logs.push(second.log.clone());
    second.stop().await.unwrap();
    for log in logs {
        assert!(!std::fs::read_to_string(&log).unwrap().contains(CANARY), "the content of an object is in {log:?}");
    }
    let found = bed.judge().await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
    let plane = bed.plane;
    plane.stop_controller_manager();
    plane.stop_api_server();
}

/// Somebody with rights in the operator's namespace writes times into the Lease that few can read.
async fn make_the_lease_odd(bed: &Bed) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/ecr-credential-operator", bed.home);
    let patch = json!({ "spec": {
        "holderIdentity": "somebody", "leaseDurationSeconds": 1,
        "renewTime": "9999-12-31T23:59:59.999999Z", "acquireTime": "9999-12-31T23:59:59.999999Z",
    }});
    let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    bed.client.request_text(request.body(patch.to_string().into_bytes()).unwrap()).await.unwrap();
}

/// What `check` shows.
async fn check(bed: &Bed) -> String {
    super::check::inside(bed, &["--offline"]).await.text
}

#[tokio::test]
async fn a_credential_of_a_newer_version_is_counted_and_keeps_its_secrets() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let bed = Bed::on(plane, "newer", CRD).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = bed.operator(launch()).await.unwrap();
    let old = bed.credential("old", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&old).await.unwrap();
    let secret = bed.secret(&a).await.unwrap();
    allow_anything(&bed, "suspend", &old).await;
    bed.change(&old, json!({ "spec": { "suspend": "at night" } })).await.unwrap();
    unreadable_until(&first, 1).await;
    // Whoever looks at it, or has it checked, is told as well.
    let told = bed.condition_until(&old, "Stalled", "True", "InvalidSpec").await.unwrap();
    let [ready, stalled] = ["Ready", "Stalled"].map(|type_| message(&told, type_));
    assert!(ready == stalled && ready.contains("cannot be read") && ready.contains("at night"), "{ready}");
    assert_eq!(condition(&told, "Ready").unwrap()["status"], "False");
    assert!(told.data.pointer("/status/registries/0/tokenHash").is_some(), "{told:#?}");
    let named = format!("EcrCredential {old} cannot be read");
    super::check::inside(&bed, &["--offline"]).await.says(1, &[&named, "at night", "1 problem found."]);
    super::check::inside(&bed, &["--offline", &old]).await.says(1, &[&named]);
    let mark = bed.proxy.log().mark();
    first.stop().await.unwrap();
    let second = bed.operator(launch()).await.unwrap();
    unreadable_until(&second, 1).await;
    // It still has its claim, and the younger is told so.
    let young = bed.credential("young", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let blocked = bed.condition_until(&young, "Ready", "False", "NamespacesFailed").await.unwrap();
    assert_eq!(failure(&blocked, &a), Some("Conflict"));
    let message = message(&blocked, "Ready");
    assert!(message.contains(&old) && message.contains("cannot read it"), "{message}");
    assert_eq!(bed.secret(&a).await.unwrap(), secret);
    let writes = bed.proxy.log().mutations_since(mark).iter().filter(|request| request.target.name == old).count();
    assert_eq!(writes, 0, "what is told is not written again");
    bed.change(&old, json!({ "spec": { "suspend": false } })).await.unwrap();
    bed.ready(&old).await.unwrap();
    unreadable_until(&second, 0).await;
    second.stop().await.unwrap();
    let found = bed.judge().await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
    let plane = bed.plane;
    plane.stop_controller_manager();
    plane.stop_api_server();
}

/// Installs the CRD of a version to come, in which a field of the spec, or with none all of it, and the status may be anything, and waits
/// until the API server goes by it.
async fn allow_anything(bed: &Bed, field: &str, name: &str) {
    let crds: Api<CustomResourceDefinition> = Api::all(bed.client.clone());
    let root = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let any = json!({ "x-kubernetes-preserve-unknown-fields": true });
    let path = if field.is_empty() { format!("{root}/spec") } else { format!("{root}/spec/properties/{field}") };
    let changes = json!([
        { "op": "replace", "path": path, "value": any },
        { "op": "replace", "path": format!("{root}/status"), "value": any },
    ]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(changes).unwrap());
    crds.patch("ecrcredentials.pullsecrets.dev", &PatchParams::default(), &patch).await.unwrap();
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "spec": { "suspend": "at night" } }));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = bed.credentials().patch(name, &dry_run, &patch).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn unreadable_until(operator: &Operator, count: u32) {
    let line = format!("credentials{{state=\"unreadable\"}} {count}\n");
    page_until(operator, "/metrics", |_, text| text.contains(&line)).await;
}

#[tokio::test]
async fn the_younger_writes_while_the_older_is_suspended_or_stalled_and_no_longer() {
    let bed = bed("yields").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    let old = bed.credential("old", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&old).await.unwrap();
    let young = bed.credential("young", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let lost = |object: &DynamicObject| failure(object, &a) == Some("Conflict");
    bed.credential_until(&young, "lost", lost).await.unwrap();
    let denied = json!({ "serviceAccount": { "namespace": a, "name": "nobody" } });
    let states = [
        ("suspended", json!({ "suspend": true }), json!({ "suspend": false })),
        ("stalled", json!({ "auth": denied }), json!({ "auth": null })),
    ];
    for (what, idle, active) in states {
        bed.change(&old, json!({ "spec": idle })).await.unwrap();
        bed.ready(&young).await.unwrap();
        owner_until(&bed, &a, &young, what).await;
        bed.change(&old, json!({ "spec": active })).await.unwrap();
        bed.credential_until(&young, "lost again", lost).await.unwrap();
        bed.ready(&old).await.unwrap();
        owner_until(&bed, &a, &old, what).await;
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

async fn owner_until(bed: &Bed, namespace: &str, credential: &str, what: &str) {
    bed.secret_until(namespace, &format!("{what}: it is {credential}'s"), |secret| {
        let owners = secret.and_then(|secret| secret.metadata.owner_references.as_ref());
        owners.is_some_and(|owners| owners.len() == 1 && owners[0].name == credential)
    })
    .await
    .unwrap();
}
