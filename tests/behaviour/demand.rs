//! What tests about tokens do and look at: refreshes on demand, logins, the registries of a status, warnings in the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use testbed::aws::{IssuedToken, Service};
use testbed::bed::{Bed, Operator, PATIENCE, logins};

use super::OWN;

/// A spec for registries in namespaces.
pub(super) fn spec(registries: Value, namespaces: &[&str]) -> Value {
    json!({ "registries": registries, "namespaces": { "names": namespaces } })
}

/// Asks for a refresh.
pub(super) async fn demand(bed: &Bed, name: &str, value: &str) {
    bed.request_refresh(name, value).await.unwrap();
}

/// Waits until a refresh that was asked for has been served.
pub(super) async fn served(bed: &Bed, name: &str, value: &str) -> DynamicObject {
    bed.refreshed(name, value).await.unwrap()
}

/// Waits until the registry at an index of the status has a reason, and words in its message.
pub(super) async fn registry_until(bed: &Bed, name: &str, index: usize, reason: &str, words: &[&str]) -> DynamicObject {
    let field = |object: &DynamicObject, field: &str| {
        let path = format!("/status/registries/{index}/{field}");
        object.data.pointer(&path).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let is = |object: &DynamicObject| {
        let message = field(object, "message");
        field(object, "reason") == reason && words.iter().all(|word| message.contains(word))
    };
    bed.credential_until(name, &format!("registry {index} is {reason} {words:?}"), is).await.unwrap()
}

/// A time in an object.
pub(super) fn time(object: &DynamicObject, path: &str) -> Option<Timestamp> {
    object.data.pointer(path)?.as_str()?.parse().ok()
}

/// The message of a condition.
pub(super) fn message(object: &DynamicObject, type_: &str) -> String {
    let condition = testbed::bed::condition(object, type_).expect("the condition is there");
    condition["message"].as_str().unwrap_or_default().to_owned()
}

/// The login for a host in a namespace's Secret.
pub(super) async fn login(bed: &Bed, namespace: &str, host: &str) -> String {
    let secret = bed.secret(namespace).await.unwrap().expect("the Secret is there");
    logins(&secret).unwrap().remove(host).expect("the host has a login")
}

/// The token behind the login for the operator's own registry.
pub(super) async fn own_token(bed: &Bed, namespace: &str) -> IssuedToken {
    bed.aws.token_of(&login(bed, namespace, OWN).await).expect("AWS issued it")
}

/// How often GetAuthorizationToken was called, for each service.
pub(super) fn fetches(bed: &Bed) -> (usize, usize) {
    (bed.aws.calls(Service::Ecr).len(), bed.aws.calls(Service::EcrPublic).len())
}

/// The expiry that a Secret has recorded.
pub(super) fn expiry(secret: &Secret) -> Timestamp {
    secret.annotations()["pullsecrets.dev/expires-at"].parse().unwrap()
}

/// How many lines of an operator's log have this level or mention.
pub(super) fn log_lines(operator: &Operator, word: &str) -> usize {
    std::fs::read_to_string(&operator.log).unwrap().lines().filter(|line| line.contains(word)).count()
}

/// The value of a metric of the operator's, by its name without the prefix and with its labels; none when it is not there.
pub(super) fn metric(text: &str, name: &str) -> Option<f64> {
    let name = format!("ecr_credential_operator_{name} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

/// Waits until a page of the operator's HTTP side says what a test wants.
pub(super) async fn page_until(operator: &Operator, path: &str, test: impl Fn(u16, &str) -> bool) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Ok((status, text)) = operator.get(path).await
            && test(status, &text)
        {
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "{path} is not as awaited: {}", operator.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
