//! What AWS refuses: bad signatures, foreign and dead sessions, wrong web identities, missing rights.

use aws_credential_types::Credentials;
use jiff::SignedDuration;
use testbed::aws::{Issuer, Permissions, Role, Service, Trust};

use crate::clients::*;

fn with(credentials: &Credentials, secret: Option<&str>, token: Option<Option<&str>>) -> Credentials {
    let secret = secret.unwrap_or(credentials.secret_access_key());
    let token = token.unwrap_or(credentials.session_token()).map(str::to_owned);
    Credentials::new(credentials.access_key_id(), secret, token, None, "testbed")
}

#[tokio::test]
async fn a_wrong_secret_key_makes_a_wrong_signature() {
    let (aws, _, good) = good_session().await;
    let wrong = with(&good, Some("not-the-secret"), None);
    assert_eq!(ecr_code(&aws, "eu-west-1", &wrong).await, "InvalidSignatureException");
    let answer = sts(&aws, Some(wrong)).await.get_caller_identity().send().await;
    assert_eq!(code(&answer.unwrap_err()), "SignatureDoesNotMatch");
}

#[tokio::test]
async fn a_session_is_refused_with_another_ones_token_or_none_or_an_unknown_key() {
    let (aws, issuer, good) = good_session().await;
    let other = session(&aws, &good_token(&issuer)).await.unwrap();
    let foreign = Credentials::new("ASIAFOREIGNFOREIGN22", "secret", Some("token".to_owned()), None, "testbed");
    let cases = [
        ("another's", with(&good, None, Some(other.session_token()))),
        ("none", with(&good, None, Some(None))),
        ("foreign", foreign),
    ];
    for (name, wrong) in cases {
        assert_eq!(ecr_code(&aws, "eu-west-1", &wrong).await, "UnrecognizedClientException", "{name}");
        let answer = sts(&aws, Some(wrong)).await.get_caller_identity().send().await;
        assert_eq!(code(&answer.unwrap_err()), "InvalidClientTokenId", "{name}");
    }
}

#[tokio::test]
async fn an_expired_session_is_refused() {
    let (aws, issuer) = stand_in();
    aws.set_session_life(Some(SignedDuration::from_secs(60)));
    let short = session(&aws, &good_token(&issuer)).await.unwrap();
    assert_eq!(ecr_code(&aws, "eu-west-1", &short).await, "OK");
    aws.clock().advance(SignedDuration::from_secs(61));
    assert_eq!(ecr_code(&aws, "eu-west-1", &short).await, "ExpiredTokenException");
    let answer = sts(&aws, Some(short)).await.get_caller_identity().send().await;
    assert_eq!(code(&answer.unwrap_err()), "ExpiredToken");
}

#[tokio::test]
async fn a_clock_more_than_five_minutes_off_is_refused_on_either_side() {
    let (aws, _, good) = good_session().await;
    for (minutes, expected) in
        [(4, "OK"), (-4, "OK"), (6, "InvalidSignatureException"), (-6, "InvalidSignatureException")]
    {
        aws.clock().set_offset(SignedDuration::from_mins(minutes));
        assert_eq!(ecr_code(&aws, "eu-west-1", &good).await, expected, "{minutes} minutes");
    }
    let error = ecr(&aws, "eu-west-1", &good).await.get_authorization_token().send().await.unwrap_err();
    let message = aws_sdk_ecr::error::ProvideErrorMetadata::message(&error).unwrap_or_default().to_owned();
    assert!(message.starts_with("Signature not yet current: "), "{message}");
}

#[tokio::test]
async fn a_signature_for_one_service_is_not_good_for_another() {
    let (aws, _, good) = good_session().await;
    let astray = config("us-east-1", aws.endpoint(Service::EcrPublic), Some(good)).await;
    let answer = aws_sdk_ecr::Client::new(&astray).get_authorization_token().send().await;
    assert_eq!(code(&answer.unwrap_err()), "UnknownOperationException");
}

#[tokio::test]
async fn ecr_public_is_only_in_us_east_1() {
    let (aws, _, good) = good_session().await;
    assert_eq!(public_code(&aws, "eu-west-1", &good).await, "UnsupportedCommandException");
    assert_eq!(public_code(&aws, "us-east-1", &good).await, "OK");
}

#[tokio::test]
async fn a_missing_right_is_refused_in_iams_words() {
    let (aws, _, good) = good_session().await;
    aws.set_permissions(ROLE, Permissions::pull().without("ecr:GetAuthorizationToken"));
    let error = ecr(&aws, "eu-west-1", &good).await.get_authorization_token().send().await.unwrap_err();
    assert_eq!(code(&error), "AccessDeniedException");
    assert_eq!(
        aws_sdk_ecr::error::ProvideErrorMetadata::message(&error),
        Some(
            "User: arn:aws:sts::123456789012:assumed-role/pull/testbed is not authorized to perform: \
             ecr:GetAuthorizationToken on resource: * because no identity-based policy allows the \
             ecr:GetAuthorizationToken action"
        )
    );
    for action in ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"] {
        aws.set_permissions(ROLE, Permissions::pull().without(action));
        assert_eq!(public_code(&aws, "us-east-1", &good).await, "AccessDeniedException", "{action}");
    }
}

#[tokio::test]
async fn a_web_identity_is_judged_by_key_issuer_times_audience_and_subject() {
    let (aws, issuer) = stand_in();
    let impostor = Issuer::new(ISSUER).unwrap();
    let stranger = Issuer::new("https://elsewhere.example.test").unwrap();
    let elsewhere = Trust::web_identity(ISSUER, SUBJECT, "another.example.test");
    aws.add_role(Role::new("arn:aws:iam::123456789012:role/another").trusting(elsewhere));
    let good = good_token(&issuer);
    let tampered = good.replacen('.', ".e", 1);
    let cases = [
        ("good", good, "OK"),
        ("another key under the same name", good_token(&impostor), "InvalidIdentityToken"),
        ("an issuer that nobody trusts", good_token(&stranger), "InvalidIdentityToken"),
        ("tampered", tampered, "InvalidIdentityToken"),
        ("not a token", "not.a.token".to_owned(), "InvalidIdentityToken"),
        ("expired", issuer.token(SUBJECT, AUDIENCE, -HOUR).unwrap(), "ExpiredTokenException"),
        ("audience", issuer.token(SUBJECT, "kubernetes.default.svc", HOUR).unwrap(), "InvalidIdentityToken"),
        ("another role's audience", issuer.token(SUBJECT, "another.example.test", HOUR).unwrap(), "AccessDenied"),
        ("subject", issuer.token("system:serviceaccount:other:puller", AUDIENCE, HOUR).unwrap(), "AccessDenied"),
    ];
    for (name, token, expected) in cases {
        let got = session(&aws, &token).await.map_or_else(|code| code, |_| "OK".to_owned());
        assert_eq!(got, expected, "{name}");
    }
}

#[tokio::test]
async fn rotated_keys_count_from_the_next_token_on() {
    let (aws, old) = stand_in();
    let new = Issuer::new(ISSUER).unwrap();
    aws.set_jwks(ISSUER, &new.jwks().unwrap());
    assert_eq!(session(&aws, &good_token(&old)).await.unwrap_err(), "InvalidIdentityToken");
    assert!(session(&aws, &good_token(&new)).await.is_ok());
    aws.set_jwks_source(ISSUER, || Box::pin(async { anyhow::bail!("the issuer is away") }));
    assert_eq!(session(&aws, &good_token(&new)).await.unwrap_err(), "IDPCommunicationError");
}
