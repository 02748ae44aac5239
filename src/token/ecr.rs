//! GetAuthorizationToken of ECR and of ECR Public, and what their errors mean.

use std::collections::HashMap;
use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use secrecy::SecretString;

use super::identity::OperatorIdentity;
use super::{RawToken, TokenError, TokenSource};
use crate::api::registry::{AccountId, PUBLIC_REGION, Region};
use crate::plan::{Identity, Service, TokenKey};

/// The error codes by which ECR and STS ask to slow down; the SDK knows only some of them.
const THROTTLING: [&str; 6] = [
    "ThrottlingException",
    "ThrottleException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "LimitExceededException",
];

/// How the identity cache's own error begins, whose type is not public (aws-smithy-runtime, identity/cache/lazy.rs).
const IDENTITY_TIMED_OUT: &str = "identity resolver timed out";

const LATE_CREDENTIALS: &str =
    "the source of AWS credentials did not answer in time: check that STS can be reached from the cluster";

/// Fetches tokens from AWS.
pub struct Ecr {
    identity: OperatorIdentity,
    clients: Mutex<HashMap<Region, aws_sdk_ecr::Client>>,
    public: aws_sdk_ecrpublic::Client,
}

impl Ecr {
    /// Clients are made when first needed, one for each region.
    pub fn new(identity: OperatorIdentity) -> Self {
        let config = aws_sdk_ecrpublic::config::Builder::from(&identity.config)
            .region(aws_sdk_ecrpublic::config::Region::from_static(PUBLIC_REGION))
            // ECR Public has no FIPS endpoint: a FIPS setting meant for the other calls would name a host that is not.
            .use_fips(false)
            .build();
        let public = aws_sdk_ecrpublic::Client::from_conf(config);
        Self { identity, clients: Mutex::default(), public }
    }

    fn client(&self, region: &Region) -> aws_sdk_ecr::Client {
        let make = || {
            let config = aws_sdk_ecr::config::Builder::from(&self.identity.config)
                .region(aws_sdk_ecr::config::Region::new(region.as_str().to_owned()))
                .build();
            aws_sdk_ecr::Client::from_conf(config)
        };
        self.clients.lock().entry(region.clone()).or_insert_with(make).clone()
    }

    async fn private(&self, region: &Region, registry_ids: &[AccountId]) -> Result<Vec<RawToken>, TokenError> {
        let ids = registry_ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
        #[allow(deprecated, reason = "the one way to get a token for each registry id, when the spec asks for it")]
        let call = self.client(region).get_authorization_token().set_registry_ids((!ids.is_empty()).then_some(ids));
        let answer = call.send().await.map_err(|e| classify(&e, "ECR", &format!("ECR in {region}")))?;
        let data = answer.authorization_data.unwrap_or_default();
        Ok(data
            .into_iter()
            .map(|entry| RawToken {
                token: entry.authorization_token.map(SecretString::from),
                expires_at: entry.expires_at.and_then(|at| Timestamp::from_second(at.secs()).ok()),
                account: entry.proxy_endpoint.and_then(|endpoint| account_of(&endpoint)),
            })
            .collect())
    }

    async fn public(&self) -> Result<Vec<RawToken>, TokenError> {
        let call = self.public.get_authorization_token();
        let answer =
            call.send().await.map_err(|e| classify(&e, "ECR Public", &format!("ECR Public in {PUBLIC_REGION}")))?;
        let entry = answer.authorization_data.map(|entry| RawToken {
            token: entry.authorization_token.map(SecretString::from),
            expires_at: entry.expires_at.and_then(|at| Timestamp::from_second(at.secs()).ok()),
            account: None,
        });
        Ok(entry.into_iter().collect())
    }
}

impl TokenSource for Ecr {
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        match &key.service {
            Service::Private { region, registry_ids } => self.private(region, registry_ids).boxed(),
            Service::Public => self.public().boxed(),
        }
    }

    fn fingerprint(&self, key: &TokenKey) -> String {
        match key.identity {
            Identity::Operator => format!("operator/{}", self.identity.fingerprint),
        }
    }
}

/// The account in a `proxyEndpoint`, which is `https://` and the plain host of a registry: `ID.dkr.ecr.`...
fn account_of(endpoint: &str) -> Option<AccountId> {
    AccountId::parse(endpoint.strip_prefix("https://")?.split_once('.')?.0).ok()
}

/// Sorts an SDK error into our classes. The SDK's own text is not used: it can hold the whole answer. `place` is the API
/// with its region, for people.
fn classify<E>(error: &SdkError<E, HttpResponse>, api: &str, place: &str) -> TokenError
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let status = error.raw_response().map(|r| r.status().as_u16());
    match error {
        SdkError::ServiceError(context) => {
            let (code, message) = (context.err().code(), context.err().message().unwrap_or_default());
            tracing::debug!(place, code, message, "AWS answered with an error");
            by_code(code, status, api, place)
        }
        SdkError::TimeoutError(_) => TokenError::Unavailable(format!("{place} did not answer in time")),
        SdkError::ResponseError(_) => match status {
            Some(429) => TokenError::Throttled("HTTP status 429".to_owned()),
            Some(status) if status >= 500 => TokenError::Unavailable(format!("{place}: HTTP status {status}")),
            _ => TokenError::Unreadable(format!("the answer of {place} is not of its protocol")),
        },
        _ => from_identity(error).unwrap_or_else(|| {
            TokenError::Unavailable(format!(
                "no connection to {place}: check that the region has it, and the way out of the cluster"
            ))
        }),
    }
}

fn by_code(code: Option<&str>, status: Option<u16>, api: &str, place: &str) -> TokenError {
    let status = status.unwrap_or_default();
    match code {
        Some(code) if THROTTLING.contains(&code) => TokenError::Throttled(format!("{code} from {place}")),
        _ if status == 429 => TokenError::Throttled(format!("HTTP status 429 from {place}")),
        _ if status >= 500 => {
            TokenError::Unavailable(format!("{place}: {}", code.map_or(format!("HTTP status {status}"), str::to_owned)))
        }
        // The provider of web identities is away, which passes.
        Some("IDPCommunicationError") => {
            TokenError::Unavailable(format!("{place} could not reach the cluster's OIDC issuer"))
        }
        Some(code) => TokenError::Denied(format!("{code} from {place}: {}", advice(code, api))),
        None if status < 400 => TokenError::Unreadable(format!("the answer of {place} is not of its protocol")),
        None => TokenError::Unreadable(format!("HTTP status {status} from {place} without an error code")),
    }
}

/// What to do about an error code of AWS.
fn advice(code: &str, api: &str) -> &'static str {
    match (code, api) {
        ("AccessDeniedException" | "AccessDenied", "ECR Public") => {
            "allow ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on Resource \"*\" (deploy/iam)"
        }
        ("AccessDeniedException", "ECR") => "allow ecr:GetAuthorizationToken on Resource \"*\" (deploy/iam)",
        ("AccessDenied", _) => {
            "check that the role's trust policy names this ServiceAccount as subject and the cluster's issuer"
        }
        ("InvalidIdentityToken", _) => {
            "check the cluster's OIDC provider in IAM, and that the token's audience is sts.amazonaws.com"
        }
        ("ExpiredTokenException" | "ExpiredToken", _) => {
            "the AWS session or web identity token has expired: check that it is rotated"
        }
        ("InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestTimeTooSkewed", _) => {
            "check the AWS keys and the clock of this node"
        }
        ("UnrecognizedClientException" | "InvalidClientTokenId", _) => {
            "AWS does not know these keys: check them, and that the region is enabled for the account"
        }
        ("ValidationError", "STS") => "check AWS_ROLE_ARN, and that the web identity token file is not empty",
        ("UnsupportedCommandException", _) => "this region has no such API",
        _ => "see the AWS documentation of this error code",
    }
}

/// An error of the credentials that were needed before the call could be signed.
fn from_identity(error: &(dyn StdError + 'static)) -> Option<TokenError> {
    let mut credentials = None;
    for current in sources(error).skip(1) {
        if let Some(sts) = current.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>() {
            return Some(classify(sts, "STS", "STS"));
        }
        if current.to_string().starts_with(IDENTITY_TIMED_OUT) {
            return Some(TokenError::Unavailable(LATE_CREDENTIALS.to_owned()));
        }
        credentials = credentials.or_else(|| current.downcast_ref::<CredentialsError>());
    }
    credentials.map(|error| match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            TokenError::NoCredentials("no AWS identity was found: annotate the ServiceAccount with eks.amazonaws.com/role-arn (IRSA), or create an EKS Pod Identity association".to_owned())
        }
        CredentialsError::ProviderTimedOut(_) => TokenError::Unavailable(LATE_CREDENTIALS.to_owned()),
        CredentialsError::InvalidConfiguration(_) => TokenError::NoCredentials("the AWS configuration is invalid: check AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE and the profile".to_owned()),
        _ => provider_error(error),
    })
}

fn provider_error(error: &CredentialsError) -> TokenError {
    let is_missing_file = |e: &(dyn StdError + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound)
    };
    if sources(error).any(is_missing_file) {
        return TokenError::NoCredentials(
            "the web identity token file is missing: check the ServiceAccount's token volume".to_owned(),
        );
    }
    TokenError::Unavailable(
        "the source of AWS credentials failed: check that STS can be reached from the cluster".to_owned(),
    )
}

/// An error and everything that it was caused by.
fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        next = current.source();
        Some(current)
    })
}
