//! Two installations that serve one EcrCredential: both say so, for as long as both are there.

use std::collections::BTreeSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use testbed::bed::{Bed, PATIENCE, condition};
use testbed::proxy::{Match, Proxy};

use super::look::spec;
use super::rights::allow_lease;
use super::{OWN, bed, launch};

/// The words of the warning in the log.
const WARNING: &str = "several installations serve this EcrCredential";

#[tokio::test]
async fn two_installations_that_serve_one_ecrcredential_warn_of_each_other_until_one_is_gone() {
    let bed = bed("installations").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let elsewhere = bed.namespace("elsewhere", &[]).await.unwrap();
    allow_lease(&bed, &elsewhere).await;
    let [one, two] = [&bed.home, &elsewhere].map(|namespace| format!("{namespace}/ecr-credential-operator"));
    let other = || launch().env("POD_NAMESPACE", &elsewhere).env("POD_NAME", "elsewhere-0");

    let first = bed.operator(launch().env("POD_NAME", "home-0")).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    assert_eq!(served_by(&bed.ready(&name).await.unwrap()), Some(&*one));

    // It has a Lease of its own, so neither waits for the other.
    let proxy = Proxy::start(bed.plane).unwrap();
    let second = bed.operator_through(&proxy, other()).await.unwrap();
    let contested = bed.condition_until(&name, "Contested", "True", "Contested").await.unwrap();
    let message = condition(&contested, "Contested").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with(WARNING) && message.contains(&one) && message.contains(&two), "{message}");
    events_from(&bed, &name, &["home-0", "elsewhere-0"]).await;
    for operator in [&first, &second] {
        assert!(operator.tail().contains(&message), "{}", operator.tail());
    }
    assert_eq!(condition(&contested, "Ready").unwrap()["status"], "True");

    second.stop().await.unwrap();
    let alone = |object: &DynamicObject| served_by(object) == Some(&one) && condition(object, "Contested").is_none();
    // The warning ends 90 seconds after the other has written for the last time, which is longer than one wait.
    if bed.credential_until(&name, "served by one again", alone).await.is_err() {
        bed.credential_until(&name, "served by one again after two waits", alone).await.unwrap();
    }
    assert!(first.tail().contains("no other installation serves the EcrCredential"), "{}", first.tail());

    // An installation that replaces another warns of nothing.
    first.stop().await.unwrap();
    let before = bed.recorder.credential_versions(&name).len();
    let mark = proxy.log().mark();
    let successor = bed.operator_through(&proxy, other()).await.unwrap();
    bed.credential_until(&name, "served by the successor", |object| served_by(object) == Some(&two)).await.unwrap();
    assert!(!successor.tail().contains(WARNING), "{}", successor.tail());
    successor.stop().await.unwrap();
    let writes = Match::any().method("PATCH").resource("ecrcredentials");
    assert_eq!(proxy.log().matching_since(mark, &writes).len(), 1, "it writes its name and nothing else");
    let since = bed.recorder.credential_versions(&name).split_off(before);
    assert!(!since.iter().any(|version| version.to_string().contains(WARNING)), "{since:?}");
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.finish().await.unwrap();
}

fn served_by(object: &DynamicObject) -> Option<&str> {
    object.data.pointer("/status/servedBy")?.as_str()
}

/// Waits until each of these replicas has sent the Event.
async fn events_from(bed: &Bed, name: &str, replicas: &[&str]) {
    let events: Api<Event> = Api::namespaced(bed.client.clone(), "default");
    let about = watcher::Config::default().fields(&format!("involvedObject.name={name},reason=Contested"));
    let mut stream = std::pin::pin!(watcher(events, about));
    let mut missing: BTreeSet<&str> = replicas.iter().copied().collect();
    let search = async {
        while !missing.is_empty() {
            let event = stream.next().await.unwrap().unwrap();
            let (watcher::Event::Apply(event) | watcher::Event::InitApply(event)) = event else { continue };
            missing.remove(event.reporting_instance.as_deref().unwrap_or_default());
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no Event about {name} of {missing:?}"));
}
