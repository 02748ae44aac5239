//! What users are told: a status that others change, namespaces out of reach, a region that nobody names, Events where tenants see them.

use k8s_openapi::api::core::v1::{Event, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use serde_json::{Value, json};
use testbed::aws::Service;
use testbed::bed::{Bed, PATIENCE, condition};
use testbed::proxy::Match;
use testbed::recorder::Invariant;

use super::look::{at_once, counts, spec, uid};
use super::{OWN, bed, launch, operator};

#[tokio::test]
async fn a_status_that_somebody_empties_is_written_again_and_not_fought_over() {
    let bed = bed("emptied").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.request_refresh(&name, "once").await.unwrap();
    bed.refreshed(&name, "once").await.unwrap();
    let (mark, asked) = (bed.proxy.log().mark(), bed.aws.calls(Service::Ecr).len());
    bed.recorder.excuse(Invariant::I14TrueStatus, &name, "somebody else empties the status");
    // As often as the Secret may be deleted until it is left alone for a while.
    for _ in 0..4 {
        let empty = Patch::Merge(json!({ "status": null }));
        bed.credentials().patch_status(&name, &PatchParams::default(), &empty).await.unwrap();
        // The operator looks at it again at once.
        let secret = bed.secret(&a).await.unwrap().unwrap();
        bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
        let anew = |found: Option<&Secret>| found.is_some_and(|found| uid(found) != uid(&secret));
        at_once(bed.secret_until(&a, "made anew", anew)).await;
    }
    let status = bed.ready(&name).await.unwrap();
    assert_eq!(counts(&status), [1, 1, 0]);
    assert_eq!(status.data.pointer("/status/handledRefreshRequest"), Some(&json!("once")));
    assert_eq!(bed.aws.calls(Service::Ecr).len(), asked, "nothing was forgotten with the status");
    let writes = Match::any().method("PATCH").resource("ecrcredentials");
    let written = bed.proxy.log().matching_since(mark, &writes).len();
    assert!((1..=2).contains(&written), "{written} writes of the status");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn namespaces_that_are_out_of_reach_or_missing_are_named() {
    let bed = bed("out-of-reach").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = bed.operator(launch().args(&["--namespace", &a])).await.unwrap();
    let alone = bed.credential("alone", spec(json!({ "names": [b] }))).await.unwrap();
    let found = bed.condition_until(&alone, "Stalled", "True", "NamespaceNotAllowed").await.unwrap();
    let message = |object, type_| condition(object, type_).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message(&found, "Ready").contains(&b), "{}", message(&found, "Ready"));
    assert_eq!(found.data.pointer("/status/namespaces"), None, "0 of 0 would look like a success");
    let both = bed.credential("both", spec(json!({ "names": [a, b] }))).await.unwrap();
    let found = bed.condition_until(&both, "Ready", "False", "NamespaceNotAllowed").await.unwrap();
    assert_eq!(counts(&found), [1, 1, 0]);
    bed.logins_until(&a, &[OWN]).await.unwrap();
    let typo = json!({ "selector": { "matchLabels": { "pull": "typo" } } });
    let typo = bed.credential("typo", spec(typo)).await.unwrap();
    let found = bed.condition_until(&typo, "Ready", "True", "NoNamespaces").await.unwrap();
    assert!(message(&found, "Ready").contains("spec.namespaces.selector"), "{}", message(&found, "Ready"));
    assert!(bed.secret(&b).await.unwrap().is_none());
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn without_a_region_of_its_own_the_operator_serves_what_names_one() {
    let bed = bed("no-region").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(launch().env("AWS_REGION", "")).await.unwrap();
    let named = json!({ "registries": [{ "private": { "region": "eu-west-1" } }], "namespaces": { "names": [a] } });
    let named = bed.credential("named", named).await.unwrap();
    bed.ready(&named).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    let lacking = bed.credential("lacking", spec(json!({ "names": [a] }))).await.unwrap();
    let found = bed.condition_until(&lacking, "Stalled", "True", "NoRegion").await.unwrap();
    let message = condition(&found, "Ready").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("aws.region"), "{message}");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// Waits for an Event about a Secret of a namespace.
pub(super) async fn event_in(bed: &Bed, namespace: &str, secret: &str, type_: &str, words: &str) {
    let events: Api<Event> = Api::namespaced(bed.client.clone(), namespace);
    let about = watcher::Config::default().fields(&format!("involvedObject.name={secret}"));
    let is_it = |event: &Event| {
        let value = serde_json::to_value(event).unwrap();
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        text("/type") == type_
            && (text("/message") + &text("/reason")).contains(words)
            && text("/related/kind") == "EcrCredential"
    };
    let mut stream = std::pin::pin!(watcher(events, about));
    let search = async {
        while let Some(event) = futures::StreamExt::next(&mut stream).await {
            if let watcher::Event::Apply(event) | watcher::Event::InitApply(event) = event.unwrap()
                && is_it(&event)
            {
                return;
            }
        }
        panic!("the watch of Events has ended")
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no {type_} Event in {namespace}: {words}"));
}
