//! The stand-in answers as the real API server does: the same requests to both, and the same answers from both.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use anyhow::{Context, Result};
use futures::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use sim::api_server::{ApiServer, Link};
use testbed::bed::poll;
use testbed::control_plane::shared;

const NAMESPACE: &str = "likeness";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// A request; `{uid:NAME}` and `{rv:NAME}` stand for what the last answer about NAME said, `{list:1}` for the first list's version,
/// `{continue}` for the next page of the last.
struct Call {
    what: &'static str,
    method: &'static str,
    path: String,
    content_type: &'static str,
    accept: &'static str,
    body: Value,
}

impl Call {
    /// The name that it watches, if it is a watch.
    fn watched(&self) -> Option<&str> {
        let (_, name) = self.path.split_once("?watch=true&fieldSelector=metadata.name%3D")?;
        name.split('&').next()
    }
}

fn call(what: &'static str, method: &'static str, path: &str, content_type: &'static str, body: Value) -> Call {
    let path = path.replace("{ns}", NAMESPACE);
    Call { what, method, path, content_type, accept: JSON, body }
}

fn secret(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}")
}

/// An apply in the operator's name.
fn apply(what: &'static str, name: &str, force: bool, body: Value) -> Call {
    let force = if force { "&force=true" } else { "" };
    let path = format!("{}?fieldManager=ecr-credential-operator{force}", secret(name));
    Call { accept: METADATA, ..call(what, "PATCH", &path, APPLY, body) }
}

fn merge(what: &'static str, name: &str, manager: &str, body: Value) -> Call {
    call(what, "PATCH", &format!("{}?fieldManager={manager}", secret(name)), MERGE, body)
}

/// What the operator applies, with some of it changed.
fn manifest(name: &str, password: &str, metadata: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator", "pullsecrets.dev/credential": "likeness" },
            "annotations": { "pullsecrets.dev/expires-at": "2030-01-01T12:00:00Z" },
            "ownerReferences": [{
                "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "likeness",
                "uid": "{uid:likeness}", "controller": true,
            }],
        },
        "data": { ".dockerconfigjson": base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD, format!("{{\"auths\":{{\"h\":{{\"auth\":\"{password}\"}}}}}}")) },
    });
    let target = object["metadata"].as_object_mut().expect("an object");
    for (key, value) in metadata.as_object().into_iter().flatten() {
        if value.is_null() {
            target.remove(key);
        } else {
            target.insert(key.clone(), value.clone());
        }
    }
    object
}

fn credential() -> Value {
    json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": "likeness" },
        "spec": sim::workloads::spec(json!({ "namespaces": { "selector": null, "names": ["nobody"] } })),
    })
}

fn status(what: &'static str, name: &str, uid: &str, expires: &str) -> Call {
    let path =
        format!("/apis/pullsecrets.dev/v1alpha1/ecrcredentials/{name}/status?fieldManager=ecr-credential-operator");
    let body = json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "add", "path": "/status", "value": { "expiresAt": expires, "observedGeneration": 1 } },
    ]);
    call(what, "PATCH", &path, JSON_PATCH, body)
}

fn account(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}")
}

fn token(what: &'static str, name: &str, uid: &str) -> Call {
    let spec = json!({ "audiences": ["sts.amazonaws.com"], "expirationSeconds": 600 });
    call(what, "POST", &format!("{}/token", account(name)), JSON, json!({ "metadata": { "uid": uid }, "spec": spec }))
}

/// A patch of a ServiceAccount's pull secrets, guarded by its version.
fn attach(what: &'static str, name: &str, version: &str, operations: &[Value]) -> Call {
    let test = json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version });
    let operations: Vec<Value> = std::iter::once(test).chain(operations.iter().cloned()).collect();
    let path = format!("{}?fieldManager=ecr-credential-operator", account(name));
    call(what, "PATCH", &path, JSON_PATCH, operations.into())
}

#[rustfmt::skip]
fn calls() -> Vec<Call> {
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    let credentials = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials";
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let current = |name: &str| json!({ "uid": format!("{{uid:{name}}}"), "resourceVersion": format!("{{rv:{name}}}") });
    let lease = |version: Option<&str>| json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "lead", "resourceVersion": version },
        "spec": { "holderIdentity": "me", "leaseDurationSeconds": 15 },
    });
    let preconditions = |uid: &str, version: &str| json!({
        "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": uid, "resourceVersion": version },
    });
    let wrong = "00000000-0000-4000-8000-00000000ffff";
    vec![
        call("a namespace", "POST", "/api/v1/namespaces", JSON, json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })),
        call("an EcrCredential", "POST", credentials, JSON, credential()),
        call("the same again", "POST", credentials, JSON, credential()),
        Call { accept: METADATA_LIST, ..call("an empty list", "GET", &format!("{secrets}?fieldSelector=metadata.name%3Dpull"), JSON, Value::Null) },
        call("a Secret that is not there", "GET", &secret("pull"), JSON, Value::Null),
        apply("applied onto nothing", "pull", false, manifest("pull", "one", json!({}))),
        apply("applied again, the same", "pull", false, manifest("pull", "one", json!({}))),
        apply("applied again, the same, with its version", "pull", true, manifest("pull", "one", current("pull"))),
        apply("applied with another password", "pull", true, manifest("pull", "two", current("pull"))),
        apply("applied with an old version", "pull", true, manifest("pull", "three", json!({ "uid": "{uid:pull}", "resourceVersion": "1" }))),
        apply("applied with another's uid", "pull", true, manifest("pull", "three", json!({ "uid": wrong, "resourceVersion": "{rv:pull}" }))),
        apply("applied with another's uid and an old version", "pull", true, manifest("pull", "three", json!({ "uid": wrong, "resourceVersion": "1" }))),
        apply("applied with another's uid alone", "pull", true, manifest("pull", "three", json!({ "uid": wrong }))),
        apply("applied with a uid onto nothing", "absent", true, manifest("absent", "one", json!({ "uid": wrong }))),
        apply("applied with uid and version onto nothing", "absent", true, manifest("absent", "one", json!({ "uid": wrong, "resourceVersion": "1" }))),
        merge("the data edited by hand", "pull", "kubectl-edit", json!({ "data": { ".dockerconfigjson": "e30=", "more": "eA==" } })),
        apply("applied without force over it", "pull", false, manifest("pull", "two", json!({}))),
        apply("applied with force over it", "pull", true, manifest("pull", "two", current("pull"))),
        merge("the further key taken out, with an old version", "pull", "ecr-credential-operator", json!({ "metadata": { "resourceVersion": "1" }, "data": { "more": null }, "immutable": null })),
        merge("the further key taken out", "pull", "ecr-credential-operator", json!({ "metadata": { "resourceVersion": "{rv:pull}" }, "data": { "more": null }, "immutable": null })),
        merge("nothing to take out", "pull", "ecr-credential-operator", json!({ "metadata": { "resourceVersion": "{rv:pull}" }, "data": {}, "immutable": null })),
        merge("our label taken away", "pull", "kubectl-edit", json!({ "metadata": { "labels": { "pullsecrets.dev/credential": null, "team": "x" } } })),
        merge("all annotations taken away", "pull", "kubectl-edit", json!({ "metadata": { "annotations": null } })),
        apply("applied over it", "pull", true, manifest("pull", "two", current("pull"))),
        apply("applied with fewer labels", "pull", true, manifest("pull", "two", json!({ "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator" } }))),
        apply("applied without the owner", "pull", true, manifest("pull", "two", json!({ "ownerReferences": null }))),
        apply("applied with the owner", "pull", true, manifest("pull", "two", json!({}))),
        merge("made immutable", "pull", "kubectl-edit", json!({ "immutable": true })),
        apply("applied to the immutable", "pull", true, manifest("pull", "four", current("pull"))),
        merge("immutable taken back", "pull", "ecr-credential-operator", json!({ "immutable": null })),
        call("a Secret of another type", "POST", &format!("{secrets}?fieldManager=helm"), JSON, json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "opaque", "labels": { "x": "y" } }, "data": { "k": "eA==" } })),
        apply("applied over another type", "opaque", true, manifest("opaque", "one", current("opaque"))),
        apply("applied over a foreign one without force", "opaque", false, manifest("opaque", "one", json!({}))),
        call("the same name again", "POST", &secrets, JSON, json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "opaque" } })),
        call("a foreign docker config", "POST", &format!("{secrets}?fieldManager=helm"), JSON, json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "metadata": { "name": "theirs" }, "data": { ".dockerconfigjson": "e30=" } })),
        apply("applied over it without force", "theirs", false, manifest("theirs", "one", json!({}))),
        apply("adopted", "theirs", true, manifest("theirs", "one", current("theirs"))),
        Call { accept: METADATA_LIST, ..call("a list of one name", "GET", &format!("{secrets}?fieldSelector=metadata.name%3Dpull"), JSON, Value::Null) },
        Call { accept: METADATA_LIST, ..call("the first page of a list", "GET", &format!("{secrets}?limit=1"), JSON, Value::Null) },
        Call { accept: METADATA_LIST, ..call("the next page", "GET", &format!("{secrets}?limit=1&continue={{continue}}"), JSON, Value::Null) },
        Call { accept: METADATA_LIST, ..call("all that is left", "GET", &format!("{secrets}?limit=500&continue={{continue}}"), JSON, Value::Null) },
        call("deleted with another's uid", "DELETE", &secret("theirs"), JSON, preconditions(wrong, "{rv:theirs}")),
        call("deleted with an old version", "DELETE", &secret("theirs"), JSON, preconditions("{uid:theirs}", "1")),
        call("deleted", "DELETE", &secret("theirs"), JSON, preconditions("{uid:theirs}", "{rv:theirs}")),
        call("deleted again", "DELETE", &secret("theirs"), JSON, preconditions("{uid:theirs}", "{rv:theirs}")),
        apply("made again", "theirs", false, manifest("theirs", "one", json!({}))),
        Call { accept: METADATA, ..call("watched from the first list on", "GET", "/api/v1/secrets?watch=true&fieldSelector=metadata.name%3Dtheirs&resourceVersion={list:1}&timeoutSeconds=60&allowWatchBookmarks=true", JSON, Value::Null) },
        Call { accept: METADATA, ..call("watched under another name", "GET", "/api/v1/secrets?watch=true&fieldSelector=metadata.name%3Dpull&resourceVersion={list:1}&timeoutSeconds=60", JSON, Value::Null) },
        status("a status", "likeness", "{uid:likeness}", "2030-01-01T12:00:00Z"),
        status("the same status", "likeness", "{uid:likeness}", "2030-01-01T12:00:00Z"),
        status("another's status", "likeness", wrong, "2030-01-01T13:00:00Z"),
        status("a status of nobody", "nobody", wrong, "2030-01-01T13:00:00Z"),
        call("the spec edited", "PATCH", &format!("{credentials}/likeness"), MERGE, json!({ "spec": { "suspend": true } })),
        call("an annotation, which is no new generation", "PATCH", &format!("{credentials}/likeness"), MERGE, json!({ "metadata": { "annotations": { "a": "b" } } })),
        call("a Lease that is not there", "GET", &format!("{leases}/lead"), JSON, Value::Null),
        call("a Lease", "POST", &leases, JSON, lease(None)),
        call("the Lease again", "POST", &leases, JSON, lease(None)),
        call("the Lease renewed", "PUT", &format!("{leases}/lead"), JSON, lease(Some("{rv:lead}"))),
        call("the Lease renewed by one who is late", "PUT", &format!("{leases}/lead"), JSON, lease(Some("1"))),
        token("a token of nobody", "puller", wrong),
        attach("attached to nobody", "puller", "1", &[]),
        call("a ServiceAccount", "POST", &accounts, JSON, json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "puller" } })),
        call("the same ServiceAccount again", "POST", &accounts, JSON, json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "puller" } })),
        Call { accept: METADATA_LIST, ..call("a list of ServiceAccounts", "GET", "/api/v1/serviceaccounts?fieldSelector=metadata.name%3Dpuller", JSON, Value::Null) },
        token("its token", "puller", "{uid:puller}"),
        token("the token of another with its name", "puller", wrong),
        attach("attached where there is nothing", "puller", "{rv:puller}", &[
            json!({ "op": "add", "path": "/imagePullSecrets", "value": [{ "name": "pull" }] }),
            json!({ "op": "add", "path": "/metadata/annotations", "value": { "pullsecrets.dev/attached": "pull" } }),
        ]),
        attach("attached to an old version", "puller", "1", &[json!({ "op": "add", "path": "/imagePullSecrets/-", "value": { "name": "late" } })]),
        attach("one more", "puller", "{rv:puller}", &[
            json!({ "op": "add", "path": "/imagePullSecrets/-", "value": { "name": "more" } }),
            json!({ "op": "add", "path": "/metadata/annotations/pullsecrets.dev~1attached", "value": "more,pull" }),
        ]),
        attach("what is not there taken out", "puller", "{rv:puller}", &[json!({ "op": "remove", "path": "/imagePullSecrets/5" })]),
        call("annotated by hand", "PATCH", &format!("{}?fieldManager=kubectl", account("puller")), MERGE, json!({ "metadata": { "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/pull" } } })),
        attach("all taken out", "puller", "{rv:puller}", &[
            json!({ "op": "remove", "path": "/imagePullSecrets/1" }),
            json!({ "op": "remove", "path": "/imagePullSecrets/0" }),
            json!({ "op": "remove", "path": "/metadata/annotations/pullsecrets.dev~1attached" }),
        ]),
        attach("nothing patched", "puller", "{rv:puller}", &[]),
        call("its pull secrets and annotations emptied by hand", "PATCH", &account("puller"), MERGE, json!({ "imagePullSecrets": [], "metadata": { "annotations": {} } })),
        Call { accept: METADATA, ..call("ServiceAccounts watched from the first list on", "GET", "/api/v1/serviceaccounts?watch=true&fieldSelector=metadata.name%3Dpuller&resourceVersion={list:1}&timeoutSeconds=60", JSON, Value::Null) },
        call("a token in no namespace", "POST", "/api/v1/namespaces/nowhere/serviceaccounts/puller/token", JSON, json!({ "spec": { "audiences": ["x"] } })),
        call("applied in no namespace", "PATCH", "/api/v1/namespaces/nowhere/secrets/pull?fieldManager=ecr-credential-operator", APPLY, manifest("pull", "one", json!({}))),
        call("QUOTA", "QUOTA", "", JSON, Value::Null),
        apply("applied beyond the quota", "more", false, manifest("more", "one", json!({}))),
        apply("applied to what is there, at the quota", "pull", true, manifest("pull", "two", json!({ "labels": { "z": "1" } }))),
        call("held", "PATCH", &secret("opaque"), MERGE, json!({ "metadata": { "finalizers": ["likeness.test/held"] } })),
        call("the namespace deleted", "DELETE", &format!("/api/v1/namespaces/{NAMESPACE}"), JSON, Value::Null),
        token("a token while it ends", "puller", "{uid:puller}"),
        attach("attached while it ends", "puller", "{rv:puller}", &[json!({ "op": "add", "path": "/imagePullSecrets", "value": [{ "name": "pull" }] })]),
        apply("applied while it ends", "again", false, manifest("again", "one", json!({}))),
        call("released", "PATCH", &secret("opaque"), MERGE, json!({ "metadata": { "finalizers": null } })),
        call("the EcrCredential deleted", "DELETE", &format!("{credentials}/likeness"), JSON, Value::Null),
    ]
}

/// One side, and what its answers have told.
struct Side {
    client: Client,
    known: BTreeMap<String, String>,
    lists: usize,
}

/// An answer without what must differ.
#[derive(Debug, PartialEq)]
struct Seen {
    code: u16,
    body: Value,
}

impl Side {
    async fn ask(&mut self, call: &Call) -> Result<Seen> {
        let fill = |text: String| {
            self.known.iter().fold(text, |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let body = if call.body.is_null() { String::new() } else { fill(call.body.to_string()) };
        let request = Request::builder()
            .method(call.method)
            .uri(fill(call.path.clone()))
            .header("content-type", call.content_type)
            .header("accept", call.accept)
            .header("user-agent", "likeness/1")
            .body(Body::from(body.into_bytes()))?;
        let answer = self.client.send(request).await?;
        let code = answer.status().as_u16();
        if let Some(name) = call.watched() {
            let last = self.known.get(&format!("rv:{name}")).context("the version of what is watched")?;
            return Ok(Seen { code, body: events(answer.into_body(), last).await? });
        }
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8(bytes.to_vec())?;
        let body: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        self.learn(&body);
        Ok(Seen { code, body: normal(&body) })
    }

    fn learn(&mut self, body: &Value) {
        let metadata = &body["metadata"];
        if body["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) {
            self.lists += 1;
            let version = metadata["resourceVersion"].as_str().unwrap_or_default();
            self.known.insert(format!("list:{}", self.lists), version.to_owned());
            self.known.insert("continue".to_owned(), more(metadata).to_owned());
        } else if let Some(name) = metadata["name"].as_str().filter(|_| body["kind"] != "TokenRequest") {
            for (key, field) in [("uid", "uid"), ("rv", "resourceVersion")] {
                self.known.insert(format!("{key}:{name}"), metadata[field].as_str().unwrap_or_default().to_owned());
            }
        }
    }
}

/// Types and names of events in their order, up to the one with the version that is the last, or until the watch ends.
async fn events(body: Body, last: &str) -> Result<Value> {
    let mut seen = vec![];
    let mut previous = 0;
    let mut lines = pin!(body.into_data_stream().map_err(std::io::Error::other).into_async_read().lines());
    while let Some(line) = lines.try_next().await? {
        let event: Value = serde_json::from_str(&line)?;
        if event["type"] == "BOOKMARK" {
            continue;
        }
        let (kind, metadata) = (&event["object"]["kind"], &event["object"]["metadata"]);
        let version = metadata["resourceVersion"].as_str().unwrap_or("0");
        let number: u64 = version.parse()?;
        seen.push(json!([event["type"], kind, metadata["name"], number > previous]));
        previous = number;
        if version == last {
            break;
        }
    }
    Ok(seen.into())
}

fn normal(body: &Value) -> Value {
    match body["kind"].as_str() {
        Some("Status") => status_of(body),
        Some("TokenRequest") => token_of(body),
        Some(kind) if kind.ends_with("List") => {
            let items = body["items"].as_array().into_iter().flatten().map(object);
            let ends = more(&body["metadata"]).is_empty();
            json!({ "kind": kind, "items": items.collect::<Vec<_>>(), "ends": ends })
        }
        _ => object(body),
    }
}

/// A token as far as the operator reads it, and what it was asked with.
fn token_of(body: &Value) -> Value {
    let is_there = body["status"]["token"].as_str().is_some_and(|token| !token.is_empty());
    json!({ "kind": body["kind"], "spec": body["spec"], "is there": is_there, "name": body["metadata"]["name"] })
}

/// What asks for the next page of a list.
fn more(metadata: &Value) -> &str {
    metadata["continue"].as_str().unwrap_or_default()
}

/// The words of the API server that the operator reads.
fn status_of(body: &Value) -> Value {
    let message = body["message"].as_str().unwrap_or_default();
    let words = ["exceeded quota", "is being terminated", "admission webhook", "ValidatingAdmissionPolicy", "User \""];
    let words: Vec<&str> = words.into_iter().filter(|word| message.contains(word)).collect();
    let causes = body["details"]["causes"].as_array().into_iter().flatten();
    let causes: BTreeSet<String> = causes
        .map(|cause| {
            let immutable = cause["message"].as_str().is_some_and(|message| message.contains("immutable"));
            format!("{} {} {immutable}", cause["reason"], cause["field"])
        })
        .collect();
    // By this the operator tells a JSON patch whose test fails from an object that is invalid.
    let unnamed = body["code"] == 422 && body["details"]["kind"].as_str().unwrap_or_default().is_empty();
    json!({
        "status": body["status"], "reason": body["reason"], "code": body["code"], "causes": causes, "words": words,
        "unnamed": unnamed,
    })
}

/// An object as far as the operator reads it.
fn object(body: &Value) -> Value {
    let metadata = &body["metadata"];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let owners: Vec<Value> = owners.map(|o| json!([o["kind"], o["name"], o["controller"]])).collect();
    let uids: Vec<&str> =
        metadata["ownerReferences"].as_array().into_iter().flatten().filter_map(|o| o["uid"].as_str()).collect();
    let is_secret = metadata["namespace"] == NAMESPACE && body["spec"].is_null() && body["kind"] != "ServiceAccount";
    let managers: BTreeSet<String> = metadata["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|_| is_secret)
        .map(|entry| {
            let mut paths = BTreeSet::new();
            collect(&entry["fieldsV1"], String::new(), &mut paths);
            let paths = paths.into_iter().collect::<Vec<_>>().join(" ");
            let paths = uids.iter().fold(paths, |text, uid| text.replace(uid, "owner"));
            format!("{} {} {paths}", entry["manager"], entry["operation"])
        })
        .collect();
    let labels = if metadata["namespace"].is_null() { Value::Null } else { metadata["labels"].clone() };
    json!({
        "kind": body["kind"], "name": metadata["name"], "namespace": metadata["namespace"], "labels": labels,
        "annotations": metadata["annotations"], "owners": owners, "managers": managers, "type": body["type"],
        "data": body["data"], "immutable": body["immutable"], "generation": metadata["generation"],
        "ends": !metadata["deletionTimestamp"].is_null(), "pull secrets": body["imagePullSecrets"],
        "status": if body["kind"] == "EcrCredential" { body["status"].clone() } else { Value::Null },
    })
}

/// The fields that are owned; what only says that a parent is there is left out, since the operator never looks at it.
fn collect(fields: &Value, path: String, paths: &mut BTreeSet<String>) {
    let children: Vec<_> = fields.as_object().into_iter().flatten().filter(|(key, _)| *key != ".").collect();
    if children.is_empty() && !path.is_empty() {
        // An emptied parent stays in the entry of who made it.
        let parents = ["/f:data", "/f:metadata/f:labels", "/f:metadata/f:annotations", "/f:metadata/f:ownerReferences"];
        if fields.get(".").is_none() && !parents.contains(&path.as_str()) {
            paths.insert(path);
        }
        return;
    }
    for (key, value) in children {
        collect(value, format!("{path}/{key}"), paths);
    }
}

/// No Secret may be added, on either side.
async fn set_quota(real: &Client, stand_ins: &[ApiServer]) -> Result<()> {
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::namespaced(real.clone(), NAMESPACE);
    let quotas: kube::Api<k8s_openapi::api::core::v1::ResourceQuota> = kube::Api::namespaced(real.clone(), NAMESPACE);
    let hard = json!({ "secrets": "0" });
    let quota = json!({ "metadata": { "name": "quota" }, "spec": { "hard": hard } });
    quotas.create(&Default::default(), &serde_json::from_value(quota)?).await?;
    let filled = json!({ "status": { "hard": hard, "used": hard } });
    quotas.patch_status("quota", &Default::default(), &kube::api::Patch::Merge(filled)).await?;
    let dry = kube::api::PostParams { dry_run: true, ..Default::default() };
    let probe = serde_json::from_value(json!({ "metadata": { "name": "probe" } }))?;
    poll("the quota is in force", async || {
        secrets.create(&dry, &probe).await.is_err_and(|why| why.to_string().contains("exceeded quota"))
    })
    .await;
    for stand_in in stand_ins {
        stand_in.set_quota(NAMESPACE, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn the_stand_in_answers_as_the_real_api_server_does() -> Result<()> {
    let plane = shared().await?;
    let crd = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../crds/ecrcredentials.pullsecrets.dev.yaml"
    ))?;
    plane.install(&[serde_saphyr::from_str(&crd)?]).await?;
    sim::clock::reset();
    let stand_ins = [ApiServer::new(1), ApiServer::new(1)];
    stand_ins[1].be_thrifty();
    let side = |client| Side { client, known: BTreeMap::new(), lists: 0 };
    let mut real = side(plane.admin_client()?);
    let mut ours = stand_ins.each_ref().map(|stand_in| side(Client::new(Link::new(stand_in, 1), NAMESPACE)));
    let mut differences = vec![];
    let calls = calls();
    for call in &calls {
        if call.method == "QUOTA" {
            set_quota(&real.client, &stand_ins).await?;
            // A namespace is emptied 5 seconds after its deletion, however few of the calls in it have been made by then.
            plane.stop_controller_manager();
            continue;
        }
        let theirs = real.ask(call).await?;
        for (side, name) in ours.iter_mut().zip(["stand-in", "thrifty stand-in"]) {
            let mine = side.ask(call).await?;
            if theirs != mine {
                differences.push(format!("{}:\n  real {theirs:?}\n  {name} {mine:?}", call.what));
            }
        }
    }
    assert!(differences.is_empty(), "{} of {} differ\n{}", differences.len(), calls.len(), differences.join("\n"));
    Ok(())
}
