//! AWS is away when the operator starts, or for a while: it waits without haste, says so once, and goes on when AWS is back.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use testbed::aws::{Fault, Permissions, Service, ThrottleCode};
use testbed::bed::{ACCOUNT, Bed};

use super::demand::*;
use super::{OWN, PUBLIC, bed, operator};

#[tokio::test]
async fn whatever_ails_aws_at_the_start_the_first_good_answer_becomes_secrets() {
    let bed = bed("away").await;
    let faults = [
        (Fault::Reset, "AwsUnavailable"),
        (Fault::Hang, "AwsUnavailable"),
        (Fault::Status(500), "AwsUnavailable"),
        (Fault::Status(503), "AwsUnavailable"),
        (Fault::TooManyRequests, "Throttled"),
        (Fault::Throttled(ThrottleCode::ThrottleException), "Throttled"),
        (Fault::Html, "InvalidToken"),
        (Fault::Expired, "ExpiredToken"),
    ];
    let mut places = Vec::new();
    for (number, (fault, reason)) in faults.into_iter().enumerate() {
        let region = format!("eu-west-{}", number + 1);
        let _ = bed.aws.fault(Service::Ecr, fault).in_region(&region).until_cleared();
        let namespace = bed.namespace(&format!("n{number}"), &[]).await.unwrap();
        let registries = json!([{ "private": { "region": region } }]);
        let name = bed.credential(&format!("x{number}"), spec(registries, &[&namespace])).await.unwrap();
        places.push((format!("{ACCOUNT}.dkr.ecr.{region}.amazonaws.com"), namespace, name, reason));
    }
    let operator = operator(&bed).await;
    join_all(places.iter().map(|(_, _, name, reason)| bed.condition_until(name, "Ready", "False", reason))).await;
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 0, "there is nothing to write");
    bed.aws.clear_faults();
    for (host, namespace, name, _) in &places {
        bed.logins_until(namespace, &[host]).await.unwrap();
        bed.ready(name).await.unwrap();
    }
    operator.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), places.len());
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_closed_port_of_aws_at_the_start_is_waited_for() {
    let bed = bed("refused").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let faults = [Service::Ecr, Service::Sts, Service::EcrPublic]
        .map(|service| bed.aws.fault(service, Fault::Refused).until_cleared());
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "AwsUnavailable").await.unwrap();
    assert!(
        message(&object, "Ready").contains("STS"),
        "without STS there is no identity: {}",
        message(&object, "Ready")
    );
    assert!(bed.secret(&a).await.unwrap().is_none());
    for fault in &faults {
        fault.clear();
    }
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_region_that_is_none_is_named_and_the_other_registries_go_on() {
    let bed = bed("no-region").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    // With the SDK's own rules for names of endpoints, this one leads nowhere.
    let launch = super::launch().env("AWS_ENDPOINT_URL_ECR", "");
    let operator = bed.operator(launch).await.unwrap();
    let registries = json!([{ "private": { "region": "eu-nowhere-1" } }, { "public": {} }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    bed.logins_until(&a, &[PUBLIC]).await.unwrap();
    registry_until(&bed, &name, 0, "AwsUnavailable", &["eu-nowhere-1"]).await;
    bed.condition_until(&name, "Ready", "False", "AwsUnavailable").await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_role_without_the_right_is_told_which_and_goes_on_once_it_has_it() {
    let bed = bed("denied").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    bed.aws.set_permissions(&bed.role, Permissions::none());
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "AccessDenied").await.unwrap();
    assert!(message(&object, "Ready").contains("ecr:GetAuthorizationToken"), "{}", message(&object, "Ready"));
    let public = ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"];
    registry_until(&bed, &name, 1, "AccessDenied", &public).await;
    // What one needs for a ticket: who was refused. None of it is secret.
    assert!(message(&object, "Ready").contains("arn:aws"), "{}", message(&object, "Ready"));
    assert!(bed.secret(&a).await.unwrap().is_none());
    bed.aws.set_permissions(&bed.role, Permissions::pull().without("sts:GetServiceBearerToken"));
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "AccessDenied").await.unwrap();
    bed.aws.set_permissions(&bed.role, Permissions::pull());
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_failure_makes_neither_a_hot_loop_nor_a_flood_of_warnings() {
    let bed = Bed::with_secret_names("calm", super::CRD, &["second"]).await.unwrap();
    let fault = bed.aws.fault(Service::Ecr, Fault::Status(503)).until_cleared();
    let mut namespaces = Vec::new();
    for n in 0..3 {
        namespaces.push(bed.namespace(&format!("n{n}"), &[]).await.unwrap());
    }
    let operator = bed.operator(super::launch().args(&["--secret-name", &bed.name("second")])).await.unwrap();
    let targets: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let mut names = Vec::new();
    for n in 0..4 {
        let target = if n < 3 { &targets[n..=n] } else { &targets[..] };
        let mut spec = spec(json!([{ "private": {} }]), target);
        if n == 3 {
            spec["secret"]["name"] = json!(bed.name("second"));
        }
        names.push(bed.credential(&format!("x{n}"), spec).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (calls, warnings) = (fetches(&bed).0, log_lines(&operator, " WARN "));
    // The waits are 0.2, 0.4, 0.8, 1.6, 2 s, less up to a half.
    assert!((3..=10).contains(&calls), "{calls} calls in 5 s for four EcrCredentials that share a token");
    assert!(warnings <= calls + 3, "{warnings} warnings for {calls} calls");
    let changes = bed.proxy.log().mutations();
    let (events, statuses): (Vec<_>, Vec<_>) = changes.iter().partition(|r| r.target.resource == "events");
    assert!(events.len() <= 2 * names.len(), "{} Events", events.len());
    assert!(statuses.len() <= 2 * names.len(), "{} writes, none of them of use", statuses.len());
    fault.clear();
    all_ready(&bed, &names).await;
    // Now that none is under way, each call is counted by what became of it.
    let (_, text) = operator.get("/metrics").await.unwrap();
    let counted = |result: &str| {
        metric(&text, &format!("aws_requests_total{{api=\"ecr\",identity=\"operator\",result=\"{result}\"}}"))
    };
    assert_eq!(counted("success"), Some(1.0), "{text}");
    assert_eq!(counted("AwsUnavailable"), Some(fetches(&bed).0 as f64 - 1.0), "{text}");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

async fn all_ready(bed: &Bed, names: &[String]) {
    for name in names {
        bed.ready(name).await.unwrap();
    }
}
