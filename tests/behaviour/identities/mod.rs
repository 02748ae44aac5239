//! Whose AWS identity fetches the tokens: what these tests set up and look at.

mod caching;
mod chains;
mod changes;
mod check;
mod clocks;
mod endpoints;
mod flapping;
mod kinds;
mod recreated;
mod refusals;
mod restart;
mod rights;
mod scale;
mod tenants;

use k8s_openapi::jiff::SignedDuration;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use testbed::aws::{AccessKey, Call, IssuedToken, Permissions, Role, Service, Trust};
use testbed::bed::identities::ROLE_ARN;
use testbed::bed::{ACCOUNT, Bed, logins};
use testbed::recorder::Invariant;

use super::demand::spec;
use super::look::AT_ONCE;
use super::{CRD, OWN, PUBLIC, bed, launch};

/// Shorter than the time before their end at which sessions are renewed, so that each fetch needs a new one. The SDK takes up
/// to half of those 300 s off at random.
const SHORT_SESSION: SignedDuration = SignedDuration::from_secs(100);

/// Accounts that are not the operator's.
const ONE: &str = "111111111111";
const TWO: &str = "222222222222";

/// The host of an account's registry in the operator's region.
fn host_of(account: &str) -> String {
    format!("{account}.dkr.ecr.eu-west-1.amazonaws.com")
}

/// A spec for the registry of whoever this is.
fn spec_as(auth: Value, namespaces: &[&str]) -> Value {
    let mut spec = spec(json!([{ "private": {} }]), namespaces);
    spec["auth"] = auth;
    spec
}

/// One ServiceAccount's identity.
fn as_account(namespace: &str, name: &str) -> Value {
    json!({ "serviceAccount": { "namespace": namespace, "name": name } })
}

/// The identity of each target namespace's own ServiceAccount.
fn as_each(name: &str) -> Value {
    json!({ "serviceAccount": { "fromTargetNamespace": name } })
}

/// The keys in a Secret.
fn as_keys(namespace: &str, name: &str) -> Value {
    json!({ "secretRef": { "namespace": namespace, "name": name } })
}

/// The operator's own identity through roles.
fn as_roles(roles: Value) -> Value {
    json!({ "assumeRoles": roles })
}

/// A ServiceAccount that is annotated with a role of this account, which trusts it; returns the role's ARN.
async fn account_with_role(bed: &Bed, account: &str, namespace: &str, name: &str) -> String {
    let role = bed.tenant_role_in(account, namespace, name);
    bed.service_account(namespace, name, &[(ROLE_ARN, &role)]).await.unwrap();
    role
}

/// A role of an account that one principal may assume; returns its ARN.
fn role_trusting(bed: &Bed, account: &str, name: &str, trust: impl Into<Trust>) -> String {
    let arn = format!("arn:aws:iam::{account}:role/{}-{name}", bed.prefix);
    bed.aws.add_role(Role::new(&arn).trusting(trust));
    arn
}

/// A user of an account with a key; returns its ARN as well.
fn user_with_key(bed: &Bed, account: &str, name: &str) -> (String, AccessKey) {
    let arn = format!("arn:aws:iam::{account}:user/{}-{name}", bed.prefix);
    bed.aws.create_user(&arn, Permissions::pull());
    let key = bed.aws.create_access_key(&arn).unwrap();
    (arn, key)
}

/// Waits until all logins in a namespace's Secret work and were issued to this role or user; returns one of them.
async fn token_of(bed: &Bed, namespace: &str, who: &str) -> IssuedToken {
    let issued = |auth: &String| bed.aws.token_of(auth).filter(|token| token.is_of(who) && bed.aws.is_valid(auth));
    let what = format!("logins of {who} alone");
    let secret = bed.secret_until(namespace, &what, |secret| {
        let logins = secret.and_then(|secret| logins(secret).ok());
        logins.is_some_and(|logins| !logins.is_empty() && logins.values().all(|auth| issued(auth).is_some()))
    });
    let logins = logins(&secret.await.unwrap().unwrap()).unwrap();
    logins.values().find_map(issued).unwrap()
}

/// The same, if it comes of an event and not of the reconciliation once a minute.
async fn token_at_once(bed: &Bed, namespace: &str, who: &str) -> IssuedToken {
    tokio::time::timeout(AT_ONCE, token_of(bed, namespace, who)).await.expect("it was to happen at once")
}

/// Waits until an EcrCredential is not ready for a reason, and its message has these words; returns the message.
async fn not_ready_until(bed: &Bed, name: &str, reason: &str, words: &[&str]) -> String {
    told_until(bed, name, ("Ready", "False"), reason, words).await
}

/// Waits until an EcrCredential is retried for a reason, ready or not, and its message has these words; returns the message.
async fn retried_until(bed: &Bed, name: &str, reason: &str, words: &[&str]) -> String {
    told_until(bed, name, ("Reconciling", "True"), reason, words).await
}

async fn told_until(bed: &Bed, name: &str, (type_, status): (&str, &str), reason: &str, words: &[&str]) -> String {
    let has_words = |object: &DynamicObject| {
        let condition = testbed::bed::condition(object, type_);
        condition.is_some_and(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            condition["status"] == status
                && condition["reason"] == reason
                && condition["observedGeneration"].as_i64() == object.metadata.generation
                && words.iter().all(|word| message.contains(word))
        })
    };
    let object = bed.credential_until(name, &format!("{type_}={status}: {reason} {words:?}"), has_words).await.unwrap();
    super::demand::message(&object, type_)
}

/// What the status says of a namespace that has failed.
fn failure_of(object: &DynamicObject, namespace: &str) -> Option<(String, String)> {
    let failures = object.data.pointer("/status/failures")?.as_array()?;
    let failure = failures.iter().find(|failure| failure["namespace"] == namespace)?;
    let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
    Some((text("reason"), text("message")))
}

/// Waits until the status tells of a namespace's failure in these words; returns the message.
async fn namespace_fails(bed: &Bed, name: &str, namespace: &str, reason: &str, words: &[&str]) -> String {
    let fails = |object: &DynamicObject| {
        let failure = failure_of(object, namespace);
        failure.is_some_and(|(why, message)| why == reason && words.iter().all(|word| message.contains(word)))
    };
    let what = format!("{namespace} fails: {reason} {words:?}");
    let object = bed.credential_until(name, &what, fails).await.unwrap();
    failure_of(&object, namespace).unwrap().1
}

/// The calls of STS that were for roles other than the operator's own.
fn sessions_asked(bed: &Bed) -> Vec<Call> {
    bed.aws.calls(Service::Sts).into_iter().filter(|call| call.assumes.as_deref() != Some(&bed.role)).collect()
}

/// Every file that an advice names is there for people to take.
fn names_a_file(message: &str) {
    let files: Vec<&str> = message.split(['(', ')', ' ', ',']).filter(|word| word.starts_with("deploy/")).collect();
    assert!(!files.is_empty(), "{message}");
    for file in files {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        assert!(path.is_file(), "{file} is not there: {message}");
    }
}
