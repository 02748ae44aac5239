//! Docker configs of others are merged into ours, and whatever becomes of them, no login that is good is lost.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::Service;
use testbed::bed::{Bed, condition};

use super::demand::page_until;
use super::look::{at_once, event_until, quiet, spec, version};
use super::{CRD, OWN, launch};

const HUB: &str = "https://index.docker.io/v1/";

/// Makes or changes the Secret to include.
async fn hub(bed: &Bed, ops: &str, config: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "hub" },
        "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": config },
    });
    let params = PatchParams::apply("somebody").force();
    bed.secrets(ops).patch("hub", &params, &Patch::Apply(secret)).await.unwrap();
}

/// A docker config with a login of Docker Hub, and one for our own host, which is never taken.
fn config(auth: &str) -> String {
    let auths = json!({ HUB: { "auth": auth }, OWN: { "auth": "dGhlaXJzOnRoZWlycw==" } });
    json!({ "auths": auths }).to_string()
}

/// The entries of a docker config.
fn auths(secret: Option<&Secret>, key: &str) -> Value {
    let data = secret.and_then(|secret| secret.data.as_ref()).and_then(|data| data.get(key));
    data.map(|data| serde_json::from_slice::<Value>(&data.0).unwrap()["auths"].take()).unwrap_or_default()
}

/// Whether a docker config has this login of Docker Hub beside a working one of ours.
fn has(bed: &Bed, secret: Option<&Secret>, key: &str, auth: &str) -> bool {
    let auths = auths(secret, key);
    auths[HUB]["auth"] == auth && auths[OWN]["auth"].as_str().is_some_and(|auth| bed.aws.is_valid(auth))
}

#[tokio::test]
async fn a_docker_config_of_others_is_merged_and_the_last_good_one_stays() {
    const FIRST: &str = "Zmlyc3Q6cGFzc3dvcmQtb25l";
    const SECOND: &str = "c2Vjb25kOnBhc3N3b3JkLXR3bw==";
    let bed = Bed::with_secret_names("include", CRD, &["file"]).await.unwrap();
    for auth in [FIRST, SECOND] {
        bed.recorder.include(HUB, json!({ "auth": auth }));
        bed.recorder.canary("a login of others", auth).unwrap();
    }
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    hub(&bed, &ops, &config(FIRST)).await;
    let file = bed.name("file");
    let launch = || launch().output(&format!("*/{file}=DockerConfigFile")).include_secret(&format!("{ops}/hub"));
    let first = bed.operator(launch()).await.unwrap();
    let mut spec = spec(json!({ "names": [a] }));
    spec["outputs"] = json!([{ "name": file, "format": "DockerConfigFile" }]);
    spec["include"] = json!([{ "secretRef": { "namespace": ops, "name": "hub" } }]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(has(&bed, bed.secret(&a).await.unwrap().as_ref(), ".dockerconfigjson", FIRST));
    assert!(has(&bed, bed.secrets(&a).get_opt(&file).await.unwrap().as_ref(), "config.json", FIRST));

    // Another login is written once, another label not at all.
    let mark = bed.proxy.log().mark();
    let label = json!({ "metadata": { "labels": { "note": "x" } } });
    bed.secrets(&ops).patch("hub", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    hub(&bed, &ops, &config(SECOND)).await;
    at_once(bed.secret_until(&a, "the other login", |s| has(&bed, s, ".dockerconfigjson", SECOND))).await;
    at_once(bed.named_secret_until(&a, &file, "the other login", |s| has(&bed, s, "config.json", SECOND))).await;
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().writes_to_secrets_since(mark).len(), 2);

    // What is not a docker config, and nothing at all, is told of and changes nothing.
    let mark = bed.proxy.log().mark();
    hub(&bed, &ops, "{}").await;
    let status = bed.condition_until(&name, "Reconciling", "True", "IncludeFailed").await.unwrap();
    let message = condition(&status, "Reconciling").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("{ops}/hub")) && message.contains("not a docker config"), "{message}");
    assert_eq!(condition(&status, "Ready").unwrap()["status"], "True");
    event_until(&bed, &name, &["hub", "not a docker config"]).await;
    let huge = json!({ "auths": { HUB: { "auth": FIRST.repeat(12_000) } } }).to_string();
    hub(&bed, &ops, &huge).await;
    let is_huge = |object: &kube::api::DynamicObject| {
        condition(object, "Reconciling")
            .is_some_and(|c| c["message"].as_str().unwrap().contains("at most 262144 are allowed"))
    };
    bed.credential_until(&name, "the include is too large", is_huge).await.unwrap();
    bed.secrets(&ops).delete("hub", &DeleteParams::default()).await.unwrap();
    let is_missing = |object: &kube::api::DynamicObject| {
        condition(object, "Reconciling").is_some_and(|c| c["message"].as_str().unwrap().contains("does not exist"))
    };
    bed.credential_until(&name, "the include is missing", is_missing).await.unwrap();
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().writes_to_secrets_since(mark).len(), 0);

    // Also after a restart, which has seen no good one.
    first.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let second = bed.operator(launch()).await.unwrap();
    let read = |_, text: &str| text.contains("reconcile_duration_seconds_count{result=\"success\"}");
    page_until(&second, "/metrics", read).await;
    quiet(&bed).await;
    bed.condition_until(&name, "Reconciling", "True", "IncludeFailed").await.unwrap();
    bed.condition_until(&name, "Ready", "True", "Synced").await.unwrap();
    let secrets = bed.recorder.changes_since(&marks);
    let secrets: Vec<String> = secrets.iter().filter(|r| r.target.resource == "secrets").map(|r| r.summary()).collect();
    assert!(secrets.is_empty(), "{secrets:?}");
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    // Whoever has none gets what there is.
    let late = bed.namespace("late", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, late] } } })).await.unwrap();
    at_once(bed.logins_until(&late, &[OWN])).await;
    hub(&bed, &ops, &config(FIRST)).await;
    for namespace in [&a, &late] {
        at_once(bed.secret_until(namespace, "the first login", |s| has(&bed, s, ".dockerconfigjson", FIRST))).await;
    }
    at_once(bed.ready(&name)).await;
    bed.condition_until(&name, "Reconciling", "False", "Synced").await.unwrap();
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_include_that_may_not_be_read_is_told_of_and_holds_up_nothing() {
    let bed = super::bed("include-denied").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    hub(&bed, &ops, &config("eDp5")).await;
    let including = |name: &str| json!([{ "secretRef": { "namespace": ops, "name": name } }]);
    let operator = bed.operator(launch().include_secret(&format!("{ops}/other"))).await.unwrap();
    let mut spec = spec(json!({ "names": [a] }));
    spec["include"] = including("hub");
    let name = bed.credential("x", spec).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    let status = bed.condition_until(&name, "Reconciling", "True", "IncludeNotAllowed").await.unwrap();
    let message = condition(&status, "Reconciling").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains(&format!("add {{namespace: {ops}, name: hub}} to the chart's include.secrets")),
        "{message}"
    );
    bed.ready(&name).await.unwrap();
    let before = version(&bed.secret(&a).await.unwrap().unwrap());
    bed.change(&name, json!({ "spec": { "include": including("other") } })).await.unwrap();
    bed.condition_until(&name, "Reconciling", "True", "IncludeFailed").await.unwrap();
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), before);
    let opaque = json!({ "metadata": { "name": "other" }, "type": "Opaque", "stringData": { "x": "y" } });
    let opaque: Secret = serde_json::from_value(opaque).unwrap();
    bed.secrets(&ops).create(&PostParams::default(), &opaque).await.unwrap();
    let is_opaque = |object: &kube::api::DynamicObject| {
        condition(object, "Reconciling").is_some_and(|c| c["message"].as_str().unwrap().contains("\"Opaque\""))
    };
    bed.credential_until(&name, "the include has another type", is_opaque).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
