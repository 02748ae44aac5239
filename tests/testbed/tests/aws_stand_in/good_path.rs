//! What a well-behaved caller gets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use testbed::aws::{CANARY, Issuer, Mark, Service, count_calls};

use crate::clients::*;

#[tokio::test]
async fn a_web_identity_gets_a_session_that_knows_who_it_is() {
    let (aws, _, credentials) = good_session().await;
    let identity = sts(&aws, Some(credentials)).await.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some("arn:aws:sts::123456789012:assumed-role/pull/testbed"));
    assert_eq!(identity.account(), Some("123456789012"));
}

#[tokio::test]
async fn an_issuer_may_sign_with_rsa() {
    let (aws, old) = stand_in();
    let issuer = Issuer::with_rsa_key(ISSUER).unwrap();
    aws.set_jwks(ISSUER, &issuer.jwks().unwrap());
    assert!(session(&aws, &good_token(&issuer)).await.is_ok());
    assert_eq!(session(&aws, &good_token(&old)).await.unwrap_err(), "InvalidIdentityToken");
}

#[tokio::test]
async fn ecr_gives_a_token_for_the_callers_own_account_in_the_signed_region() {
    let (aws, _, credentials) = good_session().await;
    let answer = ecr(&aws, "eu-central-1", &credentials).await.get_authorization_token().send().await.unwrap();
    let [data] = answer.authorization_data() else { panic!("one entry") };
    assert_eq!(data.proxy_endpoint(), Some("https://123456789012.dkr.ecr.eu-central-1.amazonaws.com"));
    let left = data.expires_at().unwrap().secs() - Timestamp::now().as_second();
    assert!((12 * 3600 - 60..=12 * 3600).contains(&left), "{left}");
    let auth = data.authorization_token().unwrap();
    let decoded = String::from_utf8(BASE64.decode(auth).unwrap()).unwrap();
    let password = decoded.strip_prefix("AWS:").unwrap();
    assert!((2400..=2600).contains(&password.len()), "{}", password.len());
    let blob: serde_json::Value = serde_json::from_slice(&BASE64.decode(password).unwrap()).unwrap();
    assert!(blob["payload"].as_str().unwrap().starts_with(CANARY));
    assert!(aws.is_valid(auth));
    assert_eq!(aws.token_of(auth).unwrap().region, "eu-central-1");
}

#[tokio::test]
async fn ecr_gives_one_token_for_each_registry_asked_for() {
    let (aws, _, credentials) = good_session().await;
    let call = ecr(&aws, "cn-north-1", &credentials).await.get_authorization_token();
    // A session of one partition is unknown in another.
    assert_eq!(code(&call.send().await.unwrap_err()), "UnrecognizedClientException");
    #[allow(deprecated)]
    let call = ecr(&aws, "us-gov-west-1", &credentials).await.get_authorization_token().registry_ids("111122223333");
    assert_eq!(code(&call.send().await.unwrap_err()), "UnrecognizedClientException");
    #[allow(deprecated)]
    let call = ecr(&aws, "eu-west-1", &credentials)
        .await
        .get_authorization_token()
        .registry_ids("111122223333")
        .registry_ids("444455556666");
    let answer = call.send().await.unwrap();
    let endpoints: Vec<_> = answer.authorization_data().iter().filter_map(|data| data.proxy_endpoint()).collect();
    let host = |account| format!("https://{account}.dkr.ecr.eu-west-1.amazonaws.com");
    assert_eq!(endpoints, [host("111122223333"), host("444455556666")]);
    #[allow(deprecated)]
    let call = ecr(&aws, "eu-west-1", &credentials).await.get_authorization_token().registry_ids("12");
    assert_eq!(code(&call.send().await.unwrap_err()), "InvalidParameterException");
}

#[tokio::test]
async fn ecr_public_gives_one_token_in_us_east_1() {
    let (aws, _, credentials) = good_session().await;
    let answer = public(&aws, "us-east-1", &credentials).await.get_authorization_token().send().await.unwrap();
    let data = answer.authorization_data().unwrap();
    assert!(data.expires_at().is_some());
    assert!(aws.is_valid(data.authorization_token().unwrap()));
}

#[tokio::test]
async fn every_token_is_unique_and_every_secret_is_listed() {
    let (aws, issuer, credentials) = good_session().await;
    for _ in 0..3 {
        assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
    }
    let tokens = aws.tokens();
    assert_eq!(tokens.len(), 3);
    assert!(tokens[0].auth != tokens[1].auth && tokens[1].auth != tokens[2].auth);
    let secrets = aws.secrets_issued();
    for token in &tokens {
        assert!(secrets.contains(&token.auth) && secrets.contains(&token.password));
    }
    assert!(secrets.contains(&credentials.secret_access_key().to_owned()));
    assert!(secrets.contains(&credentials.session_token().unwrap().to_owned()));
    assert!(secrets.iter().any(|secret| secret.starts_with("eyJ")), "the web identity token received");
    drop(issuer);
}

#[tokio::test]
async fn a_token_ends_by_the_stand_ins_clock() {
    let (aws, _, credentials) = good_session().await;
    aws.set_token_life(SignedDuration::from_secs(30));
    assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
    let auth = aws.tokens()[0].auth.clone();
    assert!(aws.is_valid(&auth));
    aws.clock().advance(SignedDuration::from_secs(31));
    assert!(!aws.is_valid(&auth));
    assert!(!aws.is_valid("QVdTOm5vYm9keQ=="));
}

#[tokio::test]
async fn the_log_tells_who_called_what_where_and_what_came_of_it() {
    let (aws, _, credentials) = good_session().await;
    let mark = aws.mark();
    let waiting = tokio::spawn({
        let aws = aws.clone();
        async move { aws.wait_for_calls(Service::Ecr, 2).await }
    });
    assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
    assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
    waiting.await.unwrap();
    assert_eq!(public_code(&aws, "eu-west-1", &credentials).await, "UnsupportedCommandException");
    let me = "arn:aws:sts::123456789012:assumed-role/pull/testbed".to_owned();
    let counts = count_calls(&aws.calls_since(mark));
    let of = |region: &str, api: &str| counts[&(me.clone(), region.to_owned(), api.to_owned())];
    assert_eq!(of("eu-west-1", "ecr:GetAuthorizationToken"), 2);
    assert_eq!(of("eu-west-1", "ecr-public:GetAuthorizationToken"), 1);
    let all = aws.calls_since(Mark::default());
    assert_eq!(all[0].api, "AssumeRoleWithWebIdentity");
    assert_eq!((all[0].role.as_deref(), all[0].code.as_str()), (Some(ROLE), "OK"));
    assert_eq!(all.last().unwrap().code, "UnsupportedCommandException");
}

#[tokio::test]
async fn a_skewed_client_learns_the_time_from_the_answer_and_tries_again() {
    let (aws, issuer) = stand_in();
    for hours in [13, -13] {
        aws.clock().set_offset(SignedDuration::from_hours(hours));
        let now = aws.clock().now();
        let credentials = session(&aws, &issuer.token_at(now, SUBJECT, AUDIENCE, HOUR).unwrap()).await.unwrap();
        let mark = aws.mark();
        let config = config("eu-west-1", aws.endpoint(Service::Ecr), Some(credentials)).await.into_builder();
        let config = config.retry_config(aws_config::retry::RetryConfig::standard()).build();
        aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await.unwrap();
        let codes: Vec<String> = aws.calls_since(mark).into_iter().map(|call| call.code).collect();
        assert_eq!(codes, ["InvalidSignatureException", "OK"], "{hours} h");
    }
}

#[tokio::test]
async fn the_ports_close_with_the_last_handle() {
    let (aws, _) = stand_in();
    let address = aws.endpoint(Service::Ecr).trim_start_matches("http://").to_owned();
    let clone = aws.clone();
    drop(aws);
    assert!(tokio::net::TcpStream::connect(&address).await.is_ok());
    drop(clone);
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());
}
