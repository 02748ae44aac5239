//! What others depend on of an EcrCredential.

use std::convert::Infallible;
use std::time::Duration;

use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::super::stage::{ACCOUNT, HOUR, NOW, Stage, token};
use super::*;
use crate::plan::{Identity, Uid};
use crate::secret::ownership::SecretRecord;

fn object(spec: Value) -> EcrCredential {
    let mut whole =
        json!({ "registries": [{ "public": {} }], "namespaces": { "names": ["a"] }, "secret": { "name": "pull" } });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
        "metadata": { "name": "x", "uid": "x", "generation": 3 }, "spec": whole,
    }))
    .unwrap()
}

#[test]
fn one_that_refreshes_nothing_is_idle() {
    let region = crate::api::registry::Region::parse("eu-west-1").ok();
    let limits = Limits { region, secret_names: Some(["pull".into()].into()), ..Limits::default() };
    for (what, spec, activity) in [
        ("an ordinary one", json!({}), Activity::Active),
        ("suspended", json!({ "suspend": true }), Activity::Idle),
        ("a Secret name that is not allowed", json!({ "secret": { "name": "other" } }), Activity::Idle),
    ] {
        let credential = credential_ref(&object(spec), &limits);
        assert_eq!(credential.activity, activity, "{what}");
        assert_eq!((credential.generation, credential.created), (Some(3), Timestamp::MAX), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_newer_than_a_list_is_not_forgotten_and_one_that_is_gone_is() {
    let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    let desired = stage.desired(&[(token_spec, token("p", NOW + HOUR, &Identity::operator()))].into());
    let shared = stage.ctx.shared.clone();
    let knows = |namespace: &str| shared.state.lock().record("pull", namespace).is_some();
    stage.sees("a", desired.digest, NOW + HOUR);
    stage.sees("d", desired.digest, NOW + HOUR);
    let (arrives, arrived) = oneshot::channel();
    let (answers, answer) = oneshot::channel::<()>();
    let gates = Arc::new(Mutex::new(Some((arrives, answer))));
    let object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "name": "pull", "namespace": "b", "uid": "b", "resourceVersion": "6" },
    });
    // The API server sends the type first.
    let shown = Arc::new(Mutex::new(Some(format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n"))));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let (gates, shown) = (gates.lock().take(), shown.clone());
        async move {
            let body = if is_watch {
                let Some(event) = shown.lock().take() else { std::future::pending().await };
                event
            } else {
                let Some((arrives, answer)) = gates else { std::future::pending().await };
                arrives.send(()).unwrap();
                answer.await.unwrap();
                let list = json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": "5" }, "items": [],
                });
                list.to_string()
            };
            Ok::<_, Infallible>(http::Response::new(Body::from(body.into_bytes())))
        }
    });
    let scope = SecretScope { name: Some("pull".into()), namespace: None };
    tokio::spawn(secrets(Client::new(service, "default"), scope, shared.clone()));
    arrived.await.unwrap();
    // The answers to three writes: the list does not show what they have created, nor what they have created again.
    let record = shared.state.lock().record("pull", "d").cloned().unwrap();
    for (namespace, uid) in [("b", "b"), ("c", "c"), ("d", "another")] {
        let record = SecretRecord { uid: uid.into(), resource_version: "6".into(), ..(*record).clone() };
        shared.write_begins(SecretKey::new("pull", namespace), None).stored(Arc::new(record), &Uid("x".into()));
    }
    let mut listed = shared.listed();
    answers.send(()).unwrap();
    listed.changed().await.unwrap();
    assert_eq!(["a", "b", "c", "d"].map(knows), [false, true, true, true]);
    // The watch shows what is newer than the list. What it does not show was gone before.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(["a", "b", "c", "d"].map(knows), [false, true, false, false]);
}
