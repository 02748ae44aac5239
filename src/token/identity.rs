//! The operator's own AWS identity: where it is looked for, and the SDK's configuration with every timeout set.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::identity::IdentityCache;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::hex;
pub use super::web_identity::WebIdentityFile;
use super::web_identity::{TokenFrom, WebIdentity};

/// Sessions are renewed this long before they end, so that none ends in the middle of a call and no token is fetched from a
/// session about to die.
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
    /// The operator's web identity, if it has one.
    pub web_identity: Option<WebIdentityFile>,
    /// Whether the node's own role may be used when nothing else is there.
    pub node_identity: bool,
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
    /// See [`AwsSettings::endpoints`].
    pub endpoints: Endpoints,
    /// See [`AwsSettings::timeout`].
    pub timeout: Duration,
}

/// Prepares the operator's identity: environment, profile, web identity (IRSA), container (EKS Pod Identity), and the node's
/// role if that is allowed; the first that is there. `found` hears where it was found, whenever that changes.
pub async fn load(settings: &AwsSettings, found: impl Fn(Origin) + Send + Sync + 'static) -> OperatorIdentity {
    let http = http_client(settings.ca_bundle.clone());
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts(settings.timeout, 1))
        // One place decides when to try again, with a wait that is known and shown: token::cache.
        .retry_config(RetryConfig::disabled())
        .no_credentials();
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    let bare = loader.load().await;
    let chain = chain(settings, &bare, http, found).await;
    let config = with_credentials(&bare, chain, settings.timeout, 1);
    let endpoints = settings.endpoints.clone();
    OperatorIdentity {
        config,
        fingerprint: fingerprint(&settings.identity_hints),
        endpoints,
        timeout: settings.timeout,
    }
}

/// The same configuration with other credentials, and sessions of its own. `calls` is how many calls of STS one session takes.
pub(super) fn with_credentials(
    base: &SdkConfig,
    provider: impl ProvideCredentials + 'static,
    timeout: Duration,
    calls: u32,
) -> SdkConfig {
    // Shorter than the whole call's, of which it is a part, so that the error says which of the two was late.
    let session = timeout.mul_f64(0.8) * calls.max(1);
    let cache = IdentityCache::lazy().buffer_time(SESSION_BUFFER).load_timeout(session).build();
    base.to_builder()
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .identity_cache(cache)
        .timeout_config(timeouts(timeout, calls))
        .build()
}

fn timeouts(timeout: Duration, calls: u32) -> TimeoutConfig {
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
        builder = builder.endpoint_url(url);
    }
    aws_sdk_sts::Client::from_conf(builder.build())
}

/// An HTTP client that goes through the proxy of the environment and trusts the given certificates as well as public ones.
fn http_client(ca_bundle: Option<Vec<u8>>) -> SharedHttpClient {
    let mut trusted = TrustStore::default();
    if let Some(pem) = ca_bundle {
        trusted = trusted.with_pem_certificate(pem);
    }
    // It fails on nothing but an unreadable certificate, which was read before.
    let tls = TlsContext::builder().with_trust_store(trusted).build().unwrap_or_default();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(tls.clone()).build()
    })
}

/// Tries each source in turn.
struct Chain {
    sources: Vec<(Origin, SharedCredentialsProvider)>,
    last: Mutex<Option<Origin>>,
    found: Arc<dyn Fn(Origin) + Send + Sync>,
}

async fn chain(
    settings: &AwsSettings,
    bare: &SdkConfig,
    http: SharedHttpClient,
    found: impl Fn(Origin) + Send + Sync + 'static,
) -> Chain {
    let provider = ProviderConfig::default()
        .with_http_client(http)
        .with_region(bare.region().cloned())
        .with_timeout_config(timeouts(settings.timeout, 1));
    let share = |provider| -> SharedCredentialsProvider { provider };
    let mut sources = vec![
        (Origin::Environment, share(SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()))),
        (
            Origin::Profile,
            share(SharedCredentialsProvider::new(
                ProfileFileCredentialsProvider::builder().configure(&provider).build(),
            )),
        ),
    ];
    if let Some(file) = &settings.web_identity {
        let sts = sts(bare, None, &settings.endpoints);
        let own = WebIdentity { sts, from: TokenFrom::File(file.clone()) };
        sources.push((Origin::WebIdentity, SharedCredentialsProvider::new(own)));
    }
    let container = EcsCredentialsProvider::builder().configure(&provider).build();
    sources.push((Origin::Container, SharedCredentialsProvider::new(container)));
    if settings.node_identity {
        let node = ImdsCredentialsProvider::builder().configure(&provider).build();
        sources.push((Origin::Node, SharedCredentialsProvider::new(node)));
    }
    Chain { sources, last: Mutex::default(), found: Arc::new(found) }
}

impl Chain {
    async fn credentials(&self) -> provider::Result {
        for (origin, source) in &self.sources {
            match source.provide_credentials().await {
                Err(CredentialsError::CredentialsNotLoaded(_)) => {}
                Err(error) => return Err(error),
                Ok(credentials) => {
                    if self.last.lock().replace(*origin) != Some(*origin) {
                        (self.found)(*origin);
                    }
                    return Ok(credentials);
                }
            }
        }
        Err(CredentialsError::not_loaded_no_source())
    }
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources.iter().map(|(origin, _)| origin)).finish()
    }
}

fn fingerprint(hints: &[String]) -> String {
    let mut hasher = Sha256::new();
    for hint in hints {
        hasher.update((hint.len() as u64).to_be_bytes());
        hasher.update(hint.as_bytes());
    }
    hex(&hasher.finalize())
}
