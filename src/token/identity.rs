//! The operator's own AWS identity: where it is looked for, and the SDK's configuration with every timeout set.

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::time::SharedTimeSource;
use aws_smithy_http_client::pool::{self, ConnectionPool};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::identity::SharedIdentityCache;
use aws_smithy_runtime_api::shared::IntoShared;
use aws_types::service_config::ServiceConfigKey;

use super::chain::{Clients, ProviderChain};
pub use super::dates::HttpRequest;
use super::dates::{AwsTime, Listening, Requests};
use super::lasting::MinRemainingLife;
pub use super::web_identity::WebIdentityFile;
use crate::clock::Clock;
use crate::encoding::Fields;

/// Sessions are renewed this long before they end, less up to a half at random. What is given with less life than that is used
/// once, if [`MinRemainingLife`] takes it.
const SESSION_BUFFER: Duration = Duration::from_secs(300);

/// What the command line says about AWS.
#[derive(Clone, Debug)]
pub struct AwsSettings {
    /// The operator's own region, if given.
    pub region: Option<String>,
    /// The longest that one call may take. The SDK has no limit of its own.
    pub timeout: Duration,
    /// What chooses the identity in the SDK's chain (role, profile, key id, container endpoint); it is only hashed.
    pub identity_hints: Vec<String>,
    /// The profile that is used of the shared configuration files, if one is named.
    pub profile: Option<String>,
    /// The operator's web identity, if it has one.
    pub web_identity: Option<WebIdentityFile>,
    /// Whether the operator uses no identity but that of its workload: a web identity, or that of its container.
    pub workload_identity_only: bool,
    /// Hosts that are called instead of AWS's own.
    pub endpoints: Endpoints,
    /// Certificates in PEM that are trusted besides those of public authorities.
    pub ca_bundle: Option<Vec<u8>>,
}

/// Hosts that are called instead of AWS's own, as URLs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For ECR.
    pub ecr: Option<String>,
    /// For ECR Public.
    pub ecr_public: Option<String>,
    /// For STS.
    pub sts: Option<String>,
}

impl Endpoints {
    /// With what AWS_ENDPOINT_URL and the profile say, where nothing else is said.
    fn or_configured(self, config: &SdkConfig) -> Self {
        // The names by which the SDK's clients look themselves up.
        let or = |given: Option<String>, service| given.or_else(|| configured(config, service));
        Self { ecr: or(self.ecr, "ECR"), ecr_public: or(self.ecr_public, "ECR PUBLIC"), sts: or(self.sts, "STS") }
    }
}

/// The URL that the SDK would call for a service, if it is told one.
fn configured(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url");
    let own = key.build().ok().and_then(|key| config.service_config()?.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Where the operator's own identity was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Keys in the environment.
    Environment,
    /// A profile of the shared configuration files.
    Profile,
    /// IRSA.
    WebIdentity,
    /// EKS Pod Identity, or another endpoint for containers.
    Container,
    /// The node's role, by the instance metadata service.
    Node,
}

impl Origin {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Environment, Self::Profile, Self::WebIdentity, Self::Container, Self::Node];

    /// Whether it is an identity of this workload alone, which nobody has to hand over and which ends by itself.
    pub const fn is_workloads(self) -> bool {
        matches!(self, Self::WebIdentity | Self::Container)
    }

    /// A word for metric labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Profile => "profile",
            Self::WebIdentity => "web_identity",
            Self::Container => "container",
            Self::Node => "node",
        }
    }
}

/// The operator's identity and region.
#[derive(Clone, Debug)]
pub struct OperatorIdentity {
    /// The SDK's configuration.
    pub config: SdkConfig,
    /// See [`super::TokenSource::fingerprint`].
    pub fingerprint: String,
    /// [`AwsSettings::endpoints`], and what the SDK's own settings say where these say nothing.
    pub endpoints: Endpoints,
    /// See [`AwsSettings::timeout`].
    pub timeout: Duration,
}

/// Prepares the operator's identity: environment, profile, web identity (IRSA), container (EKS Pod Identity), and the node's
/// role; the first that is there, of those that are allowed. `clock` hears AWS's time, `found` where the identity was found,
/// whenever that changes, and `requested` of each HTTP request.
///
/// # Errors
/// There is no HTTP client to be had; the text says why.
pub async fn load(
    settings: &AwsSettings,
    clock: &Clock,
    found: impl Fn(Origin) + Send + Sync + 'static,
    requested: impl Fn(&HttpRequest) + Send + Sync + 'static,
) -> Result<OperatorIdentity, String> {
    let http = http_client(settings.ca_bundle.clone(), ProxyConfig::from_env())?;
    let requests = Requests(std::sync::Arc::new(requested));
    let http: SharedHttpClient = Listening { inner: http, clock: clock.clone(), requests }.into_shared();
    let near = http_client(None, ProxyConfig::disabled())?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        // The clock hears AWS's time from every answer. A client that corrected it once more would sign with another.
        .time_source(AwsTime(clock.clone()))
        .disable_clock_skew_correction(true)
        .timeout_config(timeouts(settings.timeout, 1))
        // One place decides when to try again, with a wait that is known and shown: token::cache.
        .retry_config(RetryConfig::disabled())
        .no_credentials();
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    let bare = loader.load().await;
    let endpoints = settings.endpoints.clone().or_configured(&bare);
    let chain = ProviderChain::new(settings, &bare, &endpoints, Clients { http, near }, Box::new(found));
    let config = with_credentials(&bare, chain, settings.timeout, 1);
    let fingerprint = fingerprint(&settings.identity_hints);
    Ok(OperatorIdentity { config, fingerprint, endpoints, timeout: settings.timeout })
}

/// The same configuration with other credentials, and sessions of its own. `calls` is how many calls of STS one session takes.
pub(super) fn with_credentials(
    base: &SdkConfig,
    provider: impl ProvideCredentials + 'static,
    timeout: Duration,
    calls: u32,
) -> SdkConfig {
    base.to_builder()
        .credentials_provider(SharedCredentialsProvider::new(MinRemainingLife {
            source: provider,
            time: time_of(base),
        }))
        .identity_cache(no_session_yet(timeout, calls))
        .timeout_config(timeouts(timeout, calls))
        .build()
}

/// The same configuration of the operator without the session that it has.
pub(super) fn anew(own: &SdkConfig, timeout: Duration) -> SdkConfig {
    own.to_builder().identity_cache(no_session_yet(timeout, 1)).build()
}

/// The time by which a configuration signs.
pub(super) fn time_of(config: &SdkConfig) -> SharedTimeSource {
    config.time_source().unwrap_or_default()
}

fn no_session_yet(timeout: Duration, calls: u32) -> SharedIdentityCache {
    // Shorter than the whole call's, of which it is a part, so that the error says which of the two was late.
    let session = timeout.mul_f64(0.8) * calls.max(1);
    IdentityCache::lazy().buffer_time(SESSION_BUFFER).load_timeout(session).build()
}

pub(super) fn timeouts(timeout: Duration, calls: u32) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(timeout.min(Duration::from_secs(5)))
        .read_timeout(timeout)
        .operation_timeout(timeout * calls.max(1))
        .build()
}

/// STS with the credentials of a configuration.
pub(super) fn sts(config: &SdkConfig, region: Option<Region>, endpoints: &Endpoints) -> aws_sdk_sts::Client {
    let mut builder = aws_sdk_sts::config::Builder::from(config);
    builder.set_region(region.or_else(|| config.region().cloned()));
    if let Some(url) = &endpoints.sts {
        // The URL is the choice of a host. The SDK makes no call when it is told of a URL and of a kind of host.
        builder = builder.endpoint_url(url).use_fips(false).use_dual_stack(false);
    }
    aws_sdk_sts::Client::from_conf(builder.build())
}

/// An HTTP client that goes through a proxy and trusts the given certificates as well as those of the
/// system. The SDK's own takes no certificates, and a pool for each client.
///
/// # Errors
/// The text says why there is none.
fn http_client(ca_bundle: Option<Vec<u8>>, proxy: ProxyConfig) -> Result<SharedHttpClient, String> {
    let mut trusted = TrustStore::default();
    if let Some(pem) = ca_bundle {
        trusted = trusted.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build().map_err(|error| error.to_string())?;
    let pool = ConnectionPool::builder()
        .proxy_config(proxy)
        .tls_provider(Provider::rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https()
        .map_err(|error| error.to_string())?;
    Ok(pool::Client::new(&pool).map_err(|error| error.to_string())?.into_shared())
}

fn fingerprint(hints: &[String]) -> String {
    Fields::new("operator/v1").texts(hints).finish().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_of_the_operators_own_identity_is_the_same_in_every_build() {
        let hints = ["AWS_ROLE_ARN=arn:aws:iam::111122223333:role/own".to_owned(), "AWS_PROFILE=".to_owned()];
        assert_eq!(fingerprint(&hints), "607d2baafc9dda7275d6e26823d41e320a8d588507a5b289f40085699fa5c4d0");
    }
}
