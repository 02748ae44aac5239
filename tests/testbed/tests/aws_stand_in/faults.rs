//! Every fault, as the SDK sees it.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_ecr::error::SdkError;
use aws_sdk_ecr::operation::get_authorization_token::{GetAuthorizationTokenError, GetAuthorizationTokenOutput};
use aws_sdk_ecr::types::AuthorizationData;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use testbed::aws::{AwsStandIn, Fault, Field, Service, ThrottleCode};

use crate::clients::*;

/// Enough for the largest answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

type Answer = Result<GetAuthorizationTokenOutput, SdkError<GetAuthorizationTokenError>>;

async fn call(aws: &AwsStandIn, credentials: &Credentials, timeout: Duration) -> Answer {
    let config = config("eu-west-1", aws.endpoint(Service::Ecr), Some(credentials.clone())).await;
    let timeouts = aws_config::timeout::TimeoutConfig::builder().operation_timeout(timeout).build();
    let config = config.into_builder().timeout_config(timeouts).build();
    aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await
}

/// A few words about an answer: the error's code or kind, or what is odd about each token.
fn describe(aws: &AwsStandIn, answer: &Answer) -> String {
    match answer {
        Ok(answer) => {
            let entries: Vec<String> =
                answer.authorization_data().iter().map(|data| describe_entry(aws, data)).collect();
            format!("[{}]", entries.join(", "))
        }
        // What the SDK cannot parse it reports as an error of the service, with the status that it came with.
        Err(SdkError::ServiceError(error)) if error.raw().status().is_success() => "unreadable".to_owned(),
        Err(SdkError::ServiceError(error)) => format!("{} {}", error.raw().status(), code(error.err())),
        Err(SdkError::TimeoutError(_)) => "timeout".to_owned(),
        Err(SdkError::DispatchFailure(_)) => "no connection".to_owned(),
        Err(SdkError::ResponseError(_)) => "cut short".to_owned(),
        Err(other) => format!("{other:?}"),
    }
}

fn describe_entry(aws: &AwsStandIn, data: &AuthorizationData) -> String {
    let Some(auth) = data.authorization_token() else { return "no token".to_owned() };
    let Some(expires) = data.expires_at() else { return "no expiry".to_owned() };
    if data.proxy_endpoint().is_none() {
        return "no endpoint".to_owned();
    }
    let Ok(decoded) = BASE64.decode(auth) else { return "not base64".to_owned() };
    let Ok(text) = String::from_utf8(decoded) else { return "not UTF-8".to_owned() };
    let hours = (expires.secs() - Timestamp::now().as_second() + 1800).div_euclid(3600);
    let valid = if aws.is_valid(auth) { "valid" } else { "refused" };
    match text.split_once(':') {
        None => "no colon".to_owned(),
        Some((user, "")) => format!("{user} without password"),
        Some((user, rest)) => {
            format!("{user} {hours}h {valid} {} colons {} KiB", rest.matches(':').count(), auth.len() / 1024)
        }
    }
}

#[tokio::test]
async fn each_fault_of_ecr_looks_as_it_should_and_ends_after_its_count() {
    let (aws, _, credentials) = good_session().await;
    let good = "[AWS 12h valid 0 colons 3 KiB]";
    let other = Fault::Error { status: 418, code: "Teapot".to_owned(), message: "short and stout".to_owned() };
    let cases = [
        (Fault::Reset, "no connection"),
        (Fault::Hang, "timeout"),
        (Fault::SlowDrip(Duration::from_millis(5)), "timeout"),
        (Fault::Throttled(ThrottleCode::ThrottlingException), "400 ThrottlingException"),
        (Fault::Throttled(ThrottleCode::ThrottleException), "400 ThrottleException"),
        (Fault::TooManyRequests, "429 -"),
        (Fault::Status(500), "500 -"),
        (Fault::Status(503), "503 -"),
        (Fault::Html, "unreadable"),
        (Fault::EmptyBody, "[]"),
        (Fault::Truncated, "unreadable"),
        (Fault::WrongTypes, "unreadable"),
        (Fault::Missing(Field::Data), "[]"),
        (Fault::Missing(Field::Token), "[no token]"),
        (Fault::Missing(Field::Expiry), "[no expiry]"),
        (Fault::Missing(Field::ProxyEndpoint), "[no endpoint]"),
        (Fault::EmptyList, "[]"),
        (Fault::TwoEntries, "[AWS 12h valid 0 colons 3 KiB, AWS 12h valid 0 colons 3 KiB]"),
        (Fault::NoColon, "[no colon]"),
        (Fault::SeveralColons, "[AWS 12h valid 4 colons 3 KiB]"),
        (Fault::NotBase64, "[not base64]"),
        (Fault::NotUtf8, "[not UTF-8]"),
        (Fault::UserNotAws, "[admin 12h refused 0 colons 3 KiB]"),
        (Fault::EmptyPassword, "[AWS without password]"),
        (Fault::HugeToken, "[AWS 12h valid 0 colons 1024 KiB]"),
        (Fault::HugeBody, good),
        (Fault::Expired, "[AWS 0h refused 0 colons 3 KiB]"),
        (Fault::NearExpiry(Duration::from_secs(60)), "[AWS 0h valid 0 colons 3 KiB]"),
        (Fault::FarExpiry, "[AWS 87648h valid 0 colons 3 KiB]"),
        (Fault::AccessDenied, "400 AccessDeniedException"),
        (Fault::InvalidIdentityToken, "400 InvalidIdentityToken"),
        (Fault::ExpiredToken, "400 ExpiredTokenException"),
        (Fault::ServerException, "500 ServerException"),
        (other, "418 Teapot"),
    ];
    for (fault, expected) in cases {
        let name = format!("{fault:?}");
        let handle = aws.fault(Service::Ecr, fault).times(1);
        let mark = aws.mark();
        let timeout = if expected == "timeout" { Duration::from_secs(10) } else { PATIENCE };
        assert_eq!(describe(&aws, &call(&aws, &credentials, timeout).await), expected, "{name}");
        assert_eq!(handle.hits(), 1, "{name}");
        let logged = aws.calls_since(mark)[0].fault.clone().unwrap();
        assert!(name.starts_with(&logged), "{name} is logged as {logged}");
        handle.clear();
        assert_eq!(describe(&aws, &call(&aws, &credentials, PATIENCE).await), good, "after {name}");
    }
}

#[tokio::test]
async fn a_slow_drip_brings_the_right_answer_to_the_patient() {
    let (aws, _, credentials) = good_session().await;
    aws.set_token_size(1);
    aws.fault(Service::Ecr, Fault::SlowDrip(Duration::from_millis(1))).times(1);
    assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
}

#[tokio::test]
async fn a_closed_port_refuses_until_it_is_cleared() {
    let (aws, _, credentials) = good_session().await;
    for _ in 0..3 {
        let fault = aws.fault(Service::Ecr, Fault::Refused).until_cleared();
        assert_eq!(describe(&aws, &call(&aws, &credentials, PATIENCE).await), "no connection");
        let address = aws.endpoint(Service::Ecr);
        let error = tokio::net::TcpStream::connect(address.trim_start_matches("http://")).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(public_code(&aws, "us-east-1", &credentials).await, "OK", "the other services stay");
        fault.clear();
        assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
    }
}

#[tokio::test]
async fn a_hanging_call_ends_with_the_fault() {
    let (aws, _, credentials) = good_session().await;
    let fault = aws.fault(Service::Ecr, Fault::Hang).until_cleared();
    let hanging = tokio::spawn({
        let (aws, credentials) = (aws.clone(), credentials.clone());
        async move { ecr(&aws, "eu-west-1", &credentials).await.get_authorization_token().send().await }
    });
    aws.wait_for_calls(Service::Ecr, 1).await;
    assert!(!hanging.is_finished());
    fault.clear();
    assert!(matches!(hanging.await.unwrap(), Err(SdkError::DispatchFailure(_))));
}

#[tokio::test]
async fn faults_keep_to_their_region_role_and_api_and_strike_in_the_order_they_were_set() {
    let (aws, _, credentials) = good_session().await;
    aws.fault(Service::Ecr, Fault::AccessDenied).in_region("eu-north-1").until_cleared();
    aws.fault(Service::Ecr, Fault::ServerException).for_role("arn:aws:iam::123456789012:role/other").until_cleared();
    aws.fault(Service::Ecr, Fault::ServerException).on_api("PutImage").until_cleared();
    aws.fault(Service::Ecr, Fault::ExpiredToken).for_role(ROLE).times(2);
    aws.fault(Service::Ecr, Fault::Throttled(ThrottleCode::ThrottleException)).times(1);
    let mut seen = Vec::new();
    for region in ["eu-north-1", "eu-west-1", "eu-west-1", "eu-west-1", "eu-west-1", "eu-north-1"] {
        seen.push(ecr_code(&aws, region, &credentials).await);
    }
    let expired = "ExpiredTokenException";
    assert_eq!(seen, ["AccessDeniedException", expired, expired, "ThrottleException", "OK", "AccessDeniedException"]);
    aws.clear_faults();
    assert_eq!(ecr_code(&aws, "eu-north-1", &credentials).await, "OK");
}

#[tokio::test]
async fn sts_and_ecr_public_have_faults_too() {
    let (aws, issuer, credentials) = good_session().await;
    let token = good_token(&issuer);
    let cases = [
        (Fault::InvalidIdentityToken, "InvalidIdentityToken"),
        (Fault::AccessDenied, "AccessDenied"),
        (Fault::ExpiredToken, "ExpiredTokenException"),
        (Fault::Throttled(ThrottleCode::ThrottlingException), "ThrottlingException"),
        (Fault::EmptyBody, "-"),
        (Fault::Html, "-"),
        (Fault::WrongTypes, "-"),
        (Fault::Status(503), "-"),
        // The SDK fills in what is missing: the time with 1970, the text with nothing or as much as came.
        (Fault::Truncated, "OK"),
        (Fault::Missing(Field::Expiry), "OK"),
        (Fault::Missing(Field::Token), "OK"),
    ];
    for (fault, expected) in cases {
        let name = format!("{fault:?}");
        aws.fault(Service::Sts, fault).times(1);
        let got = session(&aws, &token).await.map(|_| "OK".to_owned());
        assert_eq!(got.unwrap_or_else(|code| code), expected, "{name}");
    }
    aws.fault(Service::Sts, Fault::Expired).times(1);
    let dead = session(&aws, &token).await.unwrap();
    assert_eq!(ecr_code(&aws, "eu-west-1", &dead).await, "ExpiredTokenException");
    aws.fault(Service::Sts, Fault::HugeBody).times(1);
    assert!(session(&aws, &token).await.is_ok());
    for fault in [Fault::EmptyList, Fault::Missing(Field::Data)] {
        aws.fault(Service::EcrPublic, fault).times(1);
        let client = public(&aws, "us-east-1", &credentials).await;
        assert!(client.get_authorization_token().send().await.unwrap().authorization_data().is_none());
    }
    aws.fault(Service::EcrPublic, Fault::TwoEntries).times(1);
    assert_eq!(public_code(&aws, "us-east-1", &credentials).await, "-");
}
