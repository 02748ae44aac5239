//! Tokens are refreshed in time and on request, in place and in one write.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::json;
use testbed::aws::{Fault, Service};
use testbed::bed::logins;

use super::demand::*;
use super::look::nobody_renews;
use super::{OWN, PUBLIC, bed, operator};

const FRANKFURT: &str = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";

#[tokio::test]
async fn two_regions_are_refreshed_in_place_by_one_write_for_each_namespace() {
    let bed = bed("refresh").await;
    bed.aws.set_token_life(SignedDuration::from_secs(12));
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let registries = json!([{ "private": {} }, { "private": { "region": "eu-central-1" } }]);
    let name = bed.credential("x", spec(registries, &[&a, &b])).await.unwrap();
    let first = bed.logins_until(&a, &[OWN, FRANKFURT]).await.unwrap();
    let mut expiries = vec![expiry(&first)];
    for _ in 0..3 {
        let last = *expiries.last().unwrap();
        for namespace in [&a, &b] {
            let later = |secret: Option<&_>| secret.is_some_and(|secret| expiry(secret) > last);
            let secret = bed.secret_until(namespace, "a later expiry", later).await.unwrap().unwrap();
            if *namespace == a {
                assert_eq!(secret.uid(), first.uid(), "kubelet ties pulled images to the uid");
                expiries.push(expiry(&secret));
            }
        }
    }
    operator.stop().await.unwrap();
    nobody_renews(&bed, &name, &[&a, &b], &bed.secret);
    let calls = bed.aws.calls(Service::Ecr);
    for region in ["eu-west-1", "eu-central-1"] {
        let calls = calls.iter().filter(|call| call.region.as_deref() == Some(region));
        assert_eq!(calls.count(), 4, "one call for each region and refresh");
    }
    for namespace in [&a, &b] {
        let versions = bed.recorder.secret_versions(namespace, &bed.secret);
        let seen: Vec<_> =
            versions.iter().map(|v| &v["metadata"]["annotations"]["pullsecrets.dev/expires-at"]).collect();
        assert_eq!(seen.len(), 4, "one write for each refresh: {seen:?}");
        for host in [OWN, FRANKFURT] {
            assert!(bed.aws.is_valid(&login(&bed, namespace, host).await));
        }
    }
    let ages: Vec<i64> = expiries.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect();
    assert!(ages.iter().all(|age| (5..=8).contains(age)), "refreshed at half of the life: {ages:?}");
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 8);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_request_for_a_refresh_is_served_once_also_across_a_restart() {
    let bed = bed("demand").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = own_token(&bed, &a).await;
    let uid = bed.secret(&a).await.unwrap().unwrap().uid();
    demand(&bed, &name, "now, please").await;
    served(&bed, &name, "now, please").await;
    let after = own_token(&bed, &a).await;
    assert!(after.issued > before.issued, "the Secret holds a new token before the request counts as served");
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().uid(), uid);
    // Whatever else brings the operator back to the EcrCredential, the request stays served.
    seen_again(&bed, &name, &a, "1").await;
    first.stop().await.unwrap();
    let second = operator(&bed).await;
    seen_again(&bed, &name, &a, "2").await;
    assert_eq!((own_token(&bed, &a).await.auth, fetches(&bed)), (after.auth, (2, 0)));
    demand(&bed, &name, "once more").await;
    served(&bed, &name, "once more").await;
    assert!(own_token(&bed, &a).await.issued > after.issued);
    assert_eq!(fetches(&bed), (3, 0));
    second.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 5, "creation, two refreshes, two labels");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_request_from_before_the_first_password_asks_for_nothing_more() {
    let bed = bed("demand-first").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    demand(&bed, &name, "before anything").await;
    let operator = operator(&bed).await;
    served(&bed, &name, "before anything").await;
    bed.ready(&name).await.unwrap();
    seen_again(&bed, &name, &a, "1").await;
    operator.stop().await.unwrap();
    assert_eq!(fetches(&bed), (1, 0));
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_public_login_that_cannot_be_refreshed_is_taken_out_when_it_expires() {
    let bed = bed("public-expires").await;
    bed.aws.set_token_life(SignedDuration::from_secs(12));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    let first = bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    let public = logins(&first).unwrap()[PUBLIC].clone();
    let fault = bed.aws.fault(Service::EcrPublic, Fault::Status(503)).until_cleared();
    // A dead login would break pulls that work without any.
    let gone = |secret: Option<&_>| secret.is_some_and(|s| !logins(s).unwrap().contains_key(PUBLIC));
    bed.secret_until(&a, "without the public login", gone).await.unwrap();
    // Expiries are recorded in whole seconds.
    let expires = bed.aws.token_of(&public).unwrap().expires.as_second();
    assert!(Timestamp::now().as_second() >= expires, "it is kept for as long as it is good");
    bed.condition_until(&name, "Ready", "False", "AwsUnavailable").await.unwrap();
    let kept = bed.recorder.secret_versions(&a, &bed.secret);
    assert!(kept.len() >= 3, "the private login was refreshed meanwhile");
    bed.logins_until(&a, &[OWN]).await.unwrap();
    fault.clear();
    let last = bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    assert_eq!(last.uid(), first.uid());
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    nobody_renews(&bed, &name, &[&a], &bed.secret);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_whose_password_has_expired_stays_where_it_is_until_there_is_a_better_one() {
    let bed = bed("all-expired").await;
    bed.aws.set_token_life(SignedDuration::from_secs(8));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let fault = bed.aws.fault(Service::Ecr, Fault::Status(503)).until_cleared();
    let object = bed.condition_until(&name, "Ready", "False", "AwsUnavailable").await.unwrap();
    assert!(time(&object, "/status/expiresAt").unwrap() <= Timestamp::now(), "ready for as long as it is true");
    let before = bed.secret(&a).await.unwrap().unwrap();
    assert!(expiry(&before) <= Timestamp::now());
    // It comes back to this every two seconds, and has nothing to write.
    let mark = bed.aws.mark();
    bed.aws.wait_until(|calls| calls.len() >= mark.0 + 2).await;
    assert_eq!(bed.secret(&a).await.unwrap().as_ref(), Some(&before));
    // What comes now is good for as long as the judge may take.
    bed.aws.set_token_life(SignedDuration::from_hours(12));
    fault.clear();
    let after = bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(after.uid(), before.uid());
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// Makes the operator look at an EcrCredential again, by a label that its Secret gets.
async fn seen_again(bed: &testbed::bed::Bed, name: &str, namespace: &str, value: &str) {
    bed.change(name, json!({ "spec": { "secret": { "labels": { "seen": value } } } })).await.unwrap();
    let labelled = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
        secret.is_some_and(|s| s.labels().get("seen").is_some_and(|seen| seen == value))
    };
    bed.secret_until(namespace, "the label", labelled).await.unwrap();
    bed.ready(name).await.unwrap();
}
