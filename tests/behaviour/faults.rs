//! AWS refuses, hangs, lies or sends rubbish: good Secrets stay as they are, the status says why, and the next good answer mends it.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::json;
use testbed::aws::{Fault, Field, Service, ThrottleCode};
use testbed::bed::{ACCOUNT, Bed, condition, logins};

use super::demand::*;
use super::look::at_once;
use super::{OWN, PUBLIC, bed, launch, operator};

/// A fault, the reason that the status gives for it, and words that its message has.
type Case = (Fault, &'static str, &'static str);

fn bad_answers() -> Vec<Case> {
    let error = |status, code: &str| Fault::Error { status, code: code.to_owned(), message: "no".to_owned() };
    vec![
        (Fault::Reset, "AwsUnavailable", "ECR in eu-west-"),
        (Fault::Hang, "AwsUnavailable", "did not answer in time"),
        (Fault::SlowDrip(Duration::from_millis(5)), "AwsUnavailable", "did not answer in time"),
        (Fault::Status(500), "AwsUnavailable", "HTTP status 500"),
        (Fault::Status(503), "AwsUnavailable", "HTTP status 503"),
        (Fault::ServerException, "AwsUnavailable", "ServerException"),
        (Fault::Throttled(ThrottleCode::ThrottlingException), "Throttled", "ThrottlingException"),
        (Fault::Throttled(ThrottleCode::ThrottleException), "Throttled", "ThrottleException"),
        (Fault::TooManyRequests, "Throttled", "429"),
        (Fault::AccessDenied, "AccessDenied", "ecr:GetAuthorizationToken"),
        (Fault::ExpiredToken, "AccessDenied", "has expired"),
        (error(400, "UnrecognizedClientException"), "AccessDenied", "region is enabled"),
        (error(400, "Novel"), "AccessDenied", "Novel"),
        (Fault::Html, "InvalidToken", "ECR in eu-west-"),
        (Fault::EmptyBody, "InvalidToken", ""),
        (Fault::Truncated, "InvalidToken", "ECR in eu-west-"),
        (Fault::WrongTypes, "InvalidToken", "ECR in eu-west-"),
        (Fault::Missing(Field::Data), "InvalidToken", "returned no token"),
        (Fault::Missing(Field::Token), "InvalidToken", "authorizationToken"),
        (Fault::Missing(Field::Expiry), "InvalidToken", "expiresAt"),
        (Fault::Missing(Field::ProxyEndpoint), "InvalidToken", "proxyEndpoint"),
        (Fault::EmptyList, "InvalidToken", "returned no token"),
        (Fault::NoColon, "InvalidToken", "user:password"),
        (Fault::NotBase64, "InvalidToken", "base64"),
        (Fault::NotUtf8, "InvalidToken", "UTF-8"),
        (Fault::UserNotAws, "InvalidToken", "user is not AWS"),
        (Fault::EmptyPassword, "InvalidToken", "password is empty"),
        (Fault::HugeToken, "InvalidToken", "more than a Secret can hold"),
        (Fault::Expired, "ExpiredToken", "clock of this node"),
        (Fault::NearExpiry(Duration::from_secs(1)), "ExpiredToken", "too soon"),
        (Fault::NearExpiry(Duration::from_secs(3600)), "InvalidToken", "earlier than the one in use"),
    ]
}

#[tokio::test]
async fn a_bad_answer_leaves_the_secret_as_it_is_and_is_named_until_a_good_one_comes() {
    let bed = bed("bad-answers").await;
    let operator = operator(&bed).await;
    let cases = bad_answers();
    let places = join_all((0..cases.len()).map(|n| Place::make(&bed, n))).await;
    let before = join_all(places.iter().map(Place::secret)).await;
    bed.recorder.aws_fails();
    let faults: Vec<_> = places
        .iter()
        .zip(&cases)
        .map(|(place, case)| bed.aws.fault(Service::Ecr, case.0.clone()).in_region(&place.region).until_cleared())
        .collect();
    join_all(places.iter().map(|place| demand(&bed, &place.name, "1"))).await;
    join_all(places.iter().zip(&cases).map(|(place, case)| place.fails(case))).await;
    let during = join_all(places.iter().map(Place::secret)).await;
    for ((secret, (fault, ..)), handle) in during.iter().zip(&cases).zip(&faults) {
        assert!(handle.hits() > 0, "{fault:?}");
        let old = before.iter().find(|old| old.metadata.uid == secret.metadata.uid);
        assert_eq!(old, Some(secret), "{fault:?}");
    }
    bed.recorder.aws_recovers();
    bed.aws.clear_faults();
    join_all(places.iter().zip(&before).map(|(place, before)| place.recovers("1", before))).await;
    let after = join_all(places.iter().map(Place::secret)).await;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.uid(), new.uid());
        assert_ne!(old.data, new.data);
    }
    operator.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2 * cases.len(), "created once and refreshed once");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_strange_answer_that_holds_a_good_token_is_used_and_so_is_the_next() {
    let bed = bed("strange-answers").await;
    let operator = operator(&bed).await;
    let cases = [Fault::SeveralColons, Fault::TwoEntries, Fault::HugeBody, Fault::FarExpiry];
    let places = join_all((0..cases.len()).map(|n| Place::make(&bed, n))).await;
    for (place, fault) in places.iter().zip(&cases) {
        let _ = bed.aws.fault(Service::Ecr, fault.clone()).in_region(&place.region).times(1);
    }
    for round in ["1", "2", "3"] {
        let before = join_all(places.iter().map(Place::secret)).await;
        join_all(places.iter().map(|place| demand(&bed, &place.name, round))).await;
        join_all(places.iter().zip(&before).map(|(place, before)| place.recovers(round, before))).await;
    }
    operator.stop().await.unwrap();
    assert_eq!(fetches(&bed).0, 4 * cases.len());
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_second_token_that_nobody_asked_for_takes_no_login_away() {
    let bed = bed("second-token").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let registries = json!([{ "private": { "accountIds": ["444455556666"] } }, { "public": {} }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let _ = bed.aws.fault(Service::Ecr, Fault::TwoEntries).times(1);
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    bed.logins_until(&a, &["444455556666.dkr.ecr.eu-west-1.amazonaws.com", PUBLIC]).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn ecr_publics_bad_answers_are_refused_by_the_same_rules() {
    let bed = bed("bad-public").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let cases: [Case; 8] = [
        (Fault::TwoEntries, "InvalidToken", "ECR Public"),
        (Fault::EmptyList, "InvalidToken", "returned no token"),
        (Fault::Missing(Field::Expiry), "InvalidToken", "expiresAt"),
        (Fault::NotBase64, "InvalidToken", "base64"),
        (Fault::Expired, "ExpiredToken", "clock of this node"),
        (Fault::AccessDenied, "AccessDenied", "ecr-public:GetAuthorizationToken"),
        (Fault::Throttled(ThrottleCode::ThrottleException), "Throttled", "ThrottleException"),
        (Fault::Refused, "AwsUnavailable", "ECR Public in us-east-1"),
    ];
    for (number, (fault, reason, words)) in cases.into_iter().enumerate() {
        let value = number.to_string();
        let public = login(&bed, &a, PUBLIC).await;
        let handle = bed.aws.fault(Service::EcrPublic, fault.clone()).until_cleared();
        demand(&bed, &name, &value).await;
        registry_until(&bed, &name, 1, reason, &[words]).await;
        bed.ready(&name).await.unwrap();
        assert_eq!(login(&bed, &a, PUBLIC).await, public, "{fault:?}");
        handle.clear();
        served(&bed, &name, &value).await;
        assert_ne!(login(&bed, &a, PUBLIC).await, public, "{fault:?}");
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn one_registry_that_fails_does_not_hold_up_the_other_also_across_a_restart() {
    let bed = bed("one-of-two").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let registries = json!([{ "private": {} }, { "private": { "region": "eu-central-1" } }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let frankfurt = format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com");
    let (old, kept) = (login(&bed, &a, OWN).await, login(&bed, &a, &frankfurt).await);
    let fault = bed.aws.fault(Service::Ecr, Fault::Status(503)).in_region("eu-central-1").until_cleared();
    demand(&bed, &name, "1").await;
    let renewed = |secret: Option<&Secret>| secret.is_some_and(|s| logins(s).unwrap()[OWN] != old);
    bed.secret_until(&a, "the other registry is refreshed", renewed).await.unwrap();
    assert_eq!(login(&bed, &a, &frankfurt).await, kept);
    registry_until(&bed, &name, 1, "AwsUnavailable", &["503"]).await;
    let object = bed.condition_until(&name, "Reconciling", "True", "AwsUnavailable").await.unwrap();
    assert_eq!(condition(&object, "Ready").unwrap()["status"], "True", "both logins are good: {object:?}");
    first.stop().await.unwrap();

    let second = operator(&bed).await;
    let b = bed.namespace("b", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    let hosts = [OWN, &frankfurt];
    bed.logins_until(&b, &hosts).await.unwrap();
    registry_until(&bed, &name, 1, "AwsUnavailable", &["503"]).await;
    for namespace in [&a, &b] {
        assert_eq!(login(&bed, namespace, &frankfurt).await, kept, "found again in the Secret");
    }
    bed.ready(&name).await.unwrap();
    fault.clear();
    served(&bed, &name, "1").await;
    for namespace in [&a, &b] {
        bed.logins_until(namespace, &hosts).await.unwrap();
        assert_ne!(login(&bed, namespace, &frankfurt).await, kept);
    }
    bed.condition_until(&name, "Reconciling", "False", "Synced").await.unwrap();
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_edit_towards_a_registry_that_fails_takes_no_login_away() {
    let bed = bed("edit").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.secret(&a).await.unwrap();
    let fault = bed.aws.fault(Service::Ecr, Fault::AccessDenied).in_region("eu-central-1").until_cleared();
    let registries = json!([{ "private": { "region": "eu-central-1" } }, { "public": {} }]);
    bed.change(&name, json!({ "spec": { "registries": registries } })).await.unwrap();
    registry_until(&bed, &name, 0, "AccessDenied", &["eu-central-1"]).await;
    bed.condition_until(&name, "Ready", "False", "AccessDenied").await.unwrap();
    assert_eq!(bed.secret(&a).await.unwrap(), before, "the old registry may still be pulled from");
    fault.clear();
    let frankfurt = format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com");
    bed.logins_until(&a, &[&frankfurt, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_new_and_denied_withholds_no_other_one() {
    let bed = bed("new-denied").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let fault = bed.aws.fault(Service::Ecr, Fault::AccessDenied).in_region("eu-central-1").until_cleared();
    let registries = json!([{ "private": {} }, { "private": { "region": "eu-central-1" } }, { "public": {} }]);
    bed.change(&name, json!({ "spec": { "registries": registries } })).await.unwrap();
    registry_until(&bed, &name, 1, "AccessDenied", &["eu-central-1"]).await;
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "AccessDenied").await.unwrap();
    fault.clear();
    let frankfurt = format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com");
    bed.logins_until(&a, &[OWN, &frankfurt, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 3);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn while_aws_hangs_new_namespaces_get_the_token_that_is_there() {
    let bed = bed("hang").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(launch().patient_with_aws()).await.unwrap();
    let mut spec = spec(json!([{ "private": {} }]), &[&a]);
    spec["namespaces"]["selector"] = json!({ "matchLabels": { (bed.prefix.clone()): "yes" } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let token = login(&bed, &a, OWN).await;
    bed.recorder.aws_fails();
    let fault = bed.aws.fault(Service::Ecr, Fault::Hang).until_cleared();
    let mark = bed.aws.mark();
    demand(&bed, &name, "1").await;
    bed.aws.wait_for_call_after(mark).await;
    let late = bed.namespace("late", &[(&bed.prefix, "yes")]).await.unwrap();
    at_once(bed.logins_until(&late, &[OWN])).await;
    assert_eq!(login(&bed, &late, OWN).await, token);
    bed.recorder.aws_recovers();
    fault.clear();
    served(&bed, &name, "1").await;
    bed.logins_until(&late, &[OWN]).await.unwrap();
    assert_ne!(login(&bed, &late, OWN).await, token);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// An EcrCredential for a region of its own, so that each case of a table can be tried at the same time.
struct Place<'b> {
    bed: &'b Bed,
    region: String,
    host: String,
    namespace: String,
    name: String,
}

impl<'b> Place<'b> {
    async fn make(bed: &'b Bed, number: usize) -> Place<'b> {
        let region = format!("eu-west-{}", number + 1);
        let host = format!("{ACCOUNT}.dkr.ecr.{region}.amazonaws.com");
        let namespace = bed.namespace(&format!("n{number}"), &[]).await.unwrap();
        let registries = json!([{ "private": { "region": region } }]);
        let name = bed.credential(&format!("x{number}"), spec(registries, &[&namespace])).await.unwrap();
        bed.ready(&name).await.unwrap();
        Place { bed, region, host, namespace, name }
    }

    async fn secret(&self) -> Secret {
        self.bed.secret(&self.namespace).await.unwrap().unwrap()
    }

    /// Waits until the status tells of the fault. The token in the Secret is still valid, so it stays ready.
    async fn fails(&self, (fault, reason, words): &Case) {
        registry_until(self.bed, &self.name, 0, reason, &[words]).await;
        let object = self.bed.condition_until(&self.name, "Reconciling", "True", reason).await.unwrap();
        assert_eq!(condition(&object, "Ready").unwrap()["status"], "True", "{fault:?}");
        assert_eq!(object.data.pointer("/status/handledRefreshRequest"), None, "{fault:?}");
    }

    /// Waits until a refresh is served, and the Secret holds a younger login than before, which is good.
    async fn recovers(&self, value: &str, before: &Secret) {
        let old = logins(before).unwrap().remove(&self.host).unwrap();
        let object = served(self.bed, &self.name, value).await;
        self.bed.logins_until(&self.namespace, &[&self.host]).await.unwrap();
        let state = &object.data["status"]["registries"][0];
        assert_eq!(state["reason"], "Synced", "{state}");
        let now = login(self.bed, &self.namespace, &self.host).await;
        let issued = |auth: &str| self.bed.aws.token_of(auth).expect("AWS issued it").issued;
        assert!(now != old && issued(&now) > issued(&old), "{}", self.name);
        assert!(self.bed.aws.is_valid(&now));
    }
}
