//! What tests about places look at: whose a Secret is, what a namespace's failure says, who wrote how often.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event, Namespace, Secret};
use kube::api::{Api, DynamicObject, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::{ResourceExt, core::ObjectMeta};
use serde_json::{Value, json};
use testbed::bed::{Bed, Operator, PATIENCE};
use testbed::proxy::{Action, Fault, Mark, Match, Request};
use testbed::recorder::Invariant;

/// What an event brings about comes within this time. Tokens and timers are looked at once a minute anyway: what takes longer than
/// this was not brought about by an event.
pub(super) const AT_ONCE: Duration = Duration::from_secs(20);

/// How long nothing must be written before writes are counted.
const QUIET: Duration = Duration::from_millis(700);

/// A spec for the operator's own registry.
pub(super) fn spec(namespaces: Value) -> Value {
    json!({ "registries": [{ "private": {} }], "namespaces": namespaces })
}

/// What comes of an event, if it comes at once.
pub(super) async fn at_once<T, E: Debug>(what: impl Future<Output = Result<T, E>>) -> T {
    tokio::time::timeout(AT_ONCE, what).await.expect("it was to happen at once").unwrap()
}

/// Does something to a Secret, and waits until the operator's watch tells of it.
pub(super) async fn shown<T>(bed: &Bed, doing: impl Future<Output = T>) -> T {
    let none_is_lost = Action::LoseEvents(Arc::new(|_: &Value| false));
    let events = bed.proxy.place(Fault::new(Match::watches("secrets"), none_is_lost));
    let done = doing.await;
    tokio::time::timeout(PATIENCE, events.hit(1)).await.expect("the watch tells of it");
    events.remove();
    done
}

/// Excuses the end of tokens that last seconds, once nobody is left to renew them: a slow machine judges after it.
pub(super) fn nobody_renews(bed: &Bed, credential: &str, namespaces: &[&str], secret: &str) {
    let why = "nobody is left to renew a token of a few seconds";
    bed.recorder.excuse(Invariant::I14TrueStatus, credential, why);
    for namespace in namespaces {
        bed.recorder.excuse(Invariant::I6NoGap, format!("{namespace}/{secret}"), why);
    }
}

/// The uid of a Secret.
pub(super) fn uid(secret: &Secret) -> String {
    secret.uid().unwrap()
}

/// The resourceVersion of a Secret.
pub(super) fn version(secret: &Secret) -> String {
    secret.resource_version().unwrap()
}

/// The uid of the EcrCredential that owns a Secret, so that the garbage collector removes the one with the other.
pub(super) fn owner(secret: &Secret) -> Option<String> {
    let owners = secret.metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.kind == "EcrCredential").map(|owner| owner.uid.clone()).next()
}

/// The uid of the EcrCredential that a Secret is labelled with.
pub(super) fn labelled_owner(secret: &Secret) -> Option<&str> {
    secret.labels().get("pullsecrets.dev/credential-uid").map(String::as_str)
}

/// The reason why a namespace's Secret is not as desired, as the status tells it.
pub(super) fn failure<'a>(object: &'a DynamicObject, namespace: &str) -> Option<&'a str> {
    let failures = object.data.pointer("/status/failures")?.as_array()?;
    failures.iter().find(|failure| failure["namespace"] == namespace)?["reason"].as_str()
}

/// The counts of the status: selected, synced and failed.
pub(super) fn counts(object: &DynamicObject) -> [u64; 3] {
    ["selected", "synced", "failed"].map(|count| {
        object.data.pointer(&format!("/status/namespaces/{count}")).and_then(Value::as_u64).unwrap_or_default()
    })
}

/// Waits until the status tells of a namespace's failure, and that the others are synced.
pub(super) async fn failure_until(bed: &Bed, name: &str, namespace: &str, reason: &str) -> DynamicObject {
    let what = format!("{namespace} has failed: {reason}");
    let told = |object: &DynamicObject| {
        let [selected, synced, failed] = counts(object);
        failure(object, namespace) == Some(reason) && failed == 1 && synced + failed == selected
    };
    bed.credential_until(name, &what, told).await.unwrap()
}

/// Requests to write Secrets in a namespace, refused ones too.
pub(super) fn writes_in(bed: &Bed, since: Mark, namespace: &str) -> Vec<Request> {
    bed.proxy.log().matching_since(since, &Match::secret_writes().namespace(namespace))
}

/// How many writes the API server carried out in a namespace.
pub(super) fn stored_in(bed: &Bed, since: Mark, namespace: &str) -> usize {
    writes_in(bed, since, namespace).iter().filter(|write| write.is_committed()).count()
}

/// Waits until the operator has nothing more to write.
pub(super) async fn quiet(bed: &Bed) {
    bed.proxy.log().wait_quiet(QUIET, PATIENCE).await.unwrap();
}

/// How often the operator looked at an EcrCredential so far, by its metrics.
pub(super) async fn looks(operator: &Operator) -> f64 {
    let (_, metrics) = operator.get("/metrics").await.unwrap();
    let counts = metrics.lines().filter(|line| line.contains("reconcile_duration_seconds_count"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Waits until an Event about an EcrCredential has these words.
pub(super) async fn event_until(bed: &Bed, name: &str, words: &[&str]) -> Event {
    let events: Api<Event> = Api::namespaced(bed.client.clone(), "default");
    let about = watcher::Config::default().fields(&format!("involvedObject.name={name}"));
    let mut stream = std::pin::pin!(watcher(events, about));
    let search = async {
        while let Some(event) = stream.next().await {
            let (watcher::Event::Apply(event) | watcher::Event::InitApply(event)) = event.unwrap() else { continue };
            let text = event.message.clone().unwrap_or_default();
            if words.iter().all(|word| text.contains(word)) {
                return event;
            }
        }
        panic!("the watch of Events has ended")
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no Event about {name} with {words:?}"))
}

/// Makes a Secret in the operator's stead, as a user would.
pub(super) async fn make_secret(bed: &Bed, namespace: &str, type_: &str, data: &[(&str, &str)]) -> Secret {
    let secret = Secret {
        metadata: ObjectMeta { name: Some(bed.secret.clone()), ..ObjectMeta::default() },
        type_: Some(type_.to_owned()),
        string_data: Some(data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        ..Secret::default()
    };
    bed.secrets(namespace).create(&PostParams::default(), &secret).await.unwrap()
}

/// Makes a namespace with a finalizer, so that it stays Terminating when it is deleted; returns its whole name.
pub(super) async fn make_lingering_namespace(bed: &Bed, name: &str, labels: &[(&str, &str)]) -> String {
    let name = bed.name(name);
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let namespace =
        json!({ "metadata": { "name": name, "labels": labels, "finalizers": ["example.com/slow-clean-up"] } });
    let api: Api<Namespace> = Api::all(bed.client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    name
}
