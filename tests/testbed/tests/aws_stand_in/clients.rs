//! A stand-in with one role, and the real SDKs as its clients.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_sts::error::ProvideErrorMetadata;
use jiff::SignedDuration;
use testbed::aws::{AwsStandIn, Issuer, Role, Service, Trust};

pub const ISSUER: &str = "https://oidc.example.test";
pub const SUBJECT: &str = "system:serviceaccount:registry:puller";
pub const AUDIENCE: &str = "sts.amazonaws.com";
pub const ROLE: &str = "arn:aws:iam::123456789012:role/teams/pull";
pub const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// A stand-in with one role that trusts one ServiceAccount of one issuer.
pub fn stand_in() -> (AwsStandIn, Issuer) {
    let aws = AwsStandIn::start().unwrap();
    let issuer = trusted_issuer(&aws);
    (aws, issuer)
}

/// An issuer, and the one role that trusts it.
pub fn trusted_issuer(aws: &AwsStandIn) -> Issuer {
    let issuer = Issuer::new(ISSUER).unwrap();
    aws.set_jwks(ISSUER, &issuer.jwks().unwrap());
    aws.add_role(Role::new(ROLE).trusting(Trust::web_identity(ISSUER, SUBJECT, AUDIENCE)));
    issuer
}

pub fn good_token(issuer: &Issuer) -> String {
    issuer.token(SUBJECT, AUDIENCE, HOUR).unwrap()
}

/// An SDK configuration for one service without retries, so that a test sees the first answer.
pub async fn config(region: &str, endpoint: String, credentials: Option<Credentials>) -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .endpoint_url(endpoint)
        .retry_config(aws_config::retry::RetryConfig::disabled());
    match credentials {
        Some(credentials) => loader.credentials_provider(credentials).load().await,
        None => loader.no_credentials().load().await,
    }
}

pub async fn sts(aws: &AwsStandIn, credentials: Option<Credentials>) -> aws_sdk_sts::Client {
    aws_sdk_sts::Client::new(&config("eu-west-1", aws.endpoint(Service::Sts), credentials).await)
}

pub async fn ecr(aws: &AwsStandIn, region: &str, credentials: &Credentials) -> aws_sdk_ecr::Client {
    aws_sdk_ecr::Client::new(&config(region, aws.endpoint(Service::Ecr), Some(credentials.clone())).await)
}

pub async fn public(aws: &AwsStandIn, region: &str, credentials: &Credentials) -> aws_sdk_ecrpublic::Client {
    aws_sdk_ecrpublic::Client::new(&config(region, aws.endpoint(Service::EcrPublic), Some(credentials.clone())).await)
}

/// The session that a web identity token gives, or the code of the refusal.
pub async fn session(aws: &AwsStandIn, token: &str) -> Result<Credentials, String> {
    let call = sts(aws, None).await.assume_role_with_web_identity();
    let answer = call.role_arn(ROLE).role_session_name("testbed").web_identity_token(token).send().await;
    match answer {
        Ok(answer) => Ok(credentials(answer.credentials())),
        Err(error) => Err(code(&error)),
    }
}

/// A session of the one role.
pub async fn good_session() -> (AwsStandIn, Issuer, Credentials) {
    let (aws, issuer) = stand_in();
    let credentials = session(&aws, &good_token(&issuer)).await.unwrap();
    (aws, issuer, credentials)
}

pub fn credentials(answer: Option<&aws_sdk_sts::types::Credentials>) -> Credentials {
    let answer = answer.expect("STS answers with credentials");
    let token = Some(answer.session_token().to_owned());
    Credentials::new(answer.access_key_id(), answer.secret_access_key(), token, None, "testbed")
}

/// Calls ECR; on failure the code of the error.
pub async fn ecr_code(aws: &AwsStandIn, region: &str, credentials: &Credentials) -> String {
    let answer = ecr(aws, region, credentials).await.get_authorization_token().send().await;
    answer.map_or_else(|error| code(&error), |_| "OK".to_owned())
}

pub async fn public_code(aws: &AwsStandIn, region: &str, credentials: &Credentials) -> String {
    let answer = public(aws, region, credentials).await.get_authorization_token().send().await;
    answer.map_or_else(|error| code(&error), |_| "OK".to_owned())
}

/// The service's error code, or `-` where the failure has none.
pub fn code(error: &impl ProvideErrorMetadata) -> String {
    error.code().unwrap_or("-").to_owned()
}

/// The service's own words.
pub fn message(error: &impl ProvideErrorMetadata) -> String {
    error.message().unwrap_or_default().to_owned()
}
