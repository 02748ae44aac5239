//! The operator's AWS identity: STS fails or refuses, the web identity token is missing, empty, rotated or for another audience.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use serde_json::json;
use testbed::aws::{Fault, Field, Permissions, Role, Service, ThrottleCode, Trust};
use testbed::bed::ACCOUNT;

use super::demand::*;
use super::{OWN, bed, launch, operator};

/// Shorter than the time before their end at which sessions are renewed, so that each fetch needs a new one.
const SHORT_SESSION: SignedDuration = SignedDuration::from_secs(60);

#[tokio::test]
async fn whatever_ails_sts_is_named_and_passes() {
    let bed = bed("sts").await;
    bed.aws.set_session_life(Some(SHORT_SESSION));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let cases = [
        (Fault::Refused, "AwsUnavailable", "STS"),
        (Fault::Reset, "AwsUnavailable", "STS"),
        (Fault::Hang, "AwsUnavailable", "in time"),
        (Fault::Status(503), "AwsUnavailable", "STS"),
        (Fault::ServerException, "AwsUnavailable", "STS"),
        (Fault::Html, "InvalidToken", "STS"),
        (Fault::Missing(Field::Data), "AwsUnavailable", "STS"),
        (Fault::Throttled(ThrottleCode::ThrottlingException), "Throttled", "ThrottlingException"),
        (Fault::TooManyRequests, "Throttled", "429"),
        (Fault::AccessDenied, "AccessDenied", "trust policy"),
        (Fault::InvalidIdentityToken, "AccessDenied", "OIDC provider"),
        (Fault::ExpiredToken, "AccessDenied", "renewed"),
        (Fault::Expired, "ExpiredToken", "too soon"),
        (Fault::NearExpiry(Duration::from_secs(20)), "ExpiredToken", "too soon"),
    ];
    for (number, (fault, reason, words)) in cases.into_iter().enumerate() {
        let (value, before) = (number.to_string(), login(&bed, &a, OWN).await);
        bed.recorder.aws_fails();
        let handle = bed.aws.fault(Service::Sts, fault.clone()).until_cleared();
        demand(&bed, &name, &value).await;
        registry_until(&bed, &name, 0, reason, &[words]).await;
        bed.ready(&name).await.unwrap();
        assert_eq!(login(&bed, &a, OWN).await, before, "{fault:?}");
        bed.recorder.aws_recovers();
        handle.clear();
        served(&bed, &name, &value).await;
        assert_ne!(login(&bed, &a, OWN).await, before, "{fault:?}");
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_rotated_web_identity_token_is_read_when_a_session_ends() {
    let bed = bed("rotated").await;
    bed.aws.set_session_life(Some(SHORT_SESSION));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let first = std::fs::read_to_string(&operator.token_file).unwrap();
    bed.write_web_identity(&operator.token_file).await.unwrap();
    let second = std::fs::read_to_string(&operator.token_file).unwrap();
    assert!(first != second && !bed.aws.secrets_issued().contains(&second));
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    assert!(bed.aws.secrets_issued().contains(&second), "STS was shown the new token");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_web_identity_token_that_is_empty_or_for_another_audience_is_told_and_mended() {
    let bed = bed("bad-identity").await;
    bed.aws.set_session_life(Some(SHORT_SESSION));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let other = bed.plane.service_account_token(&bed.home, "operator", "elsewhere.example.com", 3600).await.unwrap();
    bed.recorder.canary("a web identity token for another audience", &other).unwrap();
    for (number, (content, reason, words)) in
        [("", "AccessDenied", "not empty"), (other.as_str(), "AccessDenied", "audience")].into_iter().enumerate()
    {
        let value = number.to_string();
        std::fs::write(&operator.token_file, content).unwrap();
        demand(&bed, &name, &value).await;
        registry_until(&bed, &name, 0, reason, &[words]).await;
        bed.ready(&name).await.unwrap();
        bed.write_web_identity(&operator.token_file).await.unwrap();
        served(&bed, &name, &value).await;
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_ten_minutes_behind_costs_one_try() {
    let bed = bed("clock").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = own_token(&bed, &a).await;
    bed.aws.clock().set_offset(SignedDuration::from_mins(10));
    let mark = bed.aws.mark();
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    // The first answer refuses the signature, and its date header tells the time.
    let codes: Vec<String> = bed.aws.calls_since(mark).into_iter().map(|call| call.code).collect();
    assert_eq!(codes, ["InvalidSignatureException", "OK"]);
    let after = own_token(&bed, &a).await;
    assert!(after.issued > before.issued && bed.aws.is_valid(&after.auth));
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_missing_web_identity_token_is_named_and_used_as_soon_as_it_is_there() {
    let bed = bed("no-file").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let file = bed.dir().join("late-token");
    let launch = launch().env("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap());
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "NoCredentials").await.unwrap();
    assert!(message(&object, "Ready").contains("token file is missing"), "{}", message(&object, "Ready"));
    bed.write_web_identity(&file).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn without_any_identity_the_status_says_how_to_give_one() {
    let bed = bed("nobody").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let launch = launch().env("AWS_ROLE_ARN", "").env("AWS_WEB_IDENTITY_TOKEN_FILE", "");
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "NoCredentials").await.unwrap();
    let text = message(&object, "Ready");
    assert!(text.contains("eks.amazonaws.com/role-arn") && text.contains("Pod Identity"), "{text}");
    assert_eq!(fetches(&bed), (0, 0));
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn static_keys_serve_outside_of_eks() {
    let bed = bed("keys").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    bed.aws.add_user("AKIATESTBEDTESTBED00", "secret-key-of-the-testbed-user-0123456789", ACCOUNT);
    let launch = launch()
        .env("AWS_ROLE_ARN", "")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", "")
        .env("AWS_ACCESS_KEY_ID", "AKIATESTBEDTESTBED00")
        .env("AWS_SECRET_ACCESS_KEY", "secret-key-of-the-testbed-user-0123456789");
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.aws.calls(Service::Sts).len(), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_profile_with_a_role_serves_and_what_is_wrong_with_one_is_named_and_mended() {
    let bed = bed("profile").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let user = format!("arn:aws:iam::{ACCOUNT}:user/{}-base", bed.prefix);
    bed.aws.create_user(&user, Permissions::pull());
    let key = bed.aws.create_access_key(&user).unwrap();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{}-profile", bed.prefix);
    bed.aws.add_role(Role::new(&role));
    let file = bed.dir().join("aws-config");
    let sso = "sso_start_url = https://x.example.com\nsso_region = eu-west-1\nsso_account_id = 123456789012\nsso_role_name = x";
    let base = format!("aws_access_key_id = {}\naws_secret_access_key = {}", key.id, key.secret);
    let profile = |text: &str| format!("[profile base]\n{base}\n[profile own]\n{text}\n");
    let assuming = profile(&format!("role_arn = {role}\nsource_profile = base\nexternal_id = x-1"));
    std::fs::write(&file, profile(sso)).unwrap();
    // By the flag, which the SDK does not know, and with a kind of host that the URL makes no sense with.
    let launch = launch().args(&["--aws-endpoint-url-sts", &bed.aws.endpoint(Service::Sts)]);
    let launch = launch.env("AWS_ENDPOINT_URL_STS", "").env("AWS_USE_FIPS_ENDPOINT", "true");
    let launch = launch.env("AWS_ROLE_ARN", "").env("AWS_WEB_IDENTITY_TOKEN_FILE", "");
    let launch = launch.env("AWS_CONFIG_FILE", file.to_str().unwrap()).env("AWS_PROFILE", "own");
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    for (text, reason, words) in [
        (profile(sso), "NoCredentials", "SSO"),
        (profile("credential_process = exit 3"), "NoCredentials", "credential_process"),
        (profile("role_arn = x\nsource_profile = nobody"), "NoCredentials", "AWS identity"),
        (profile("role_arn = x\ncredential_source = nobody"), "NoCredentials", "AWS_PROFILE"),
        (assuming, "AccessDenied", "deploy/iam/trust-assume-role.json"),
    ] {
        std::fs::write(&file, text).unwrap();
        registry_until(&bed, &name, 0, reason, &[words]).await;
    }
    let mark = bed.aws.mark();
    // It is told for as long as the next try takes, so that somebody must look beforehand.
    let told = registry_until(&bed, &name, 0, "AwsUnavailable", &["STS"]);
    tokio::join!(told, async { drop(bed.aws.fault(Service::Sts, Fault::Status(503)).times(1)) });
    assert_eq!(bed.aws.calls_since(mark).iter().filter(|call| call.code != "AccessDenied").count(), 1, "tried once");
    bed.aws.add_role(Role::new(&role).trusting(Trust::principal(&user).external_id("x-1")));
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(own_token(&bed, &a).await.is_of(&role));
    assert_eq!(log_lines(&operator, "found the operator's AWS identity source=\"profile\""), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
