//! The operator's own AWS identity, and the HTTP clients with which it is found.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::pool::{self, ConnectionPool};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::shared::IntoShared;

use super::chain::{Clients, ProviderChain};
pub use super::dates::HttpRequest;
use super::dates::{AwsTime, Listening, Requests};
use super::sdk::{timeouts, with_credentials};
use super::settings::{AwsSettings, Endpoints, Origin};
use crate::clock::Clock;
use crate::encoding::Fields;

/// The operator's identity and region.
#[derive(Clone, Debug)]
pub struct OperatorIdentity {
    /// The SDK's configuration.
    pub config: SdkConfig,
    /// See [`super::TokenSource::fingerprint`].
    pub fingerprint: String,
    /// [`AwsSettings::endpoints`], completed by the SDK's own settings.
    pub endpoints: Endpoints,
    /// See [`AwsSettings::timeout`].
    pub timeout: Duration,
}

/// Loads the operator's identity: the first that is available and allowed of environment, profile, web identity (IRSA), container
/// (EKS Pod Identity), and the node's role. `clock` is corrected by AWS's time, `found` is called whenever the origin of the identity
/// changes, and `requested` for each HTTP request.
///
/// # Errors
/// The HTTP client cannot be built; the text says why.
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
        // The clock is corrected by every response. A client that corrected it once more would sign with another time.
        .time_source(AwsTime(clock.clone()))
        .disable_clock_skew_correction(true)
        .timeout_config(timeouts(settings.timeout, 1))
        // token::cache alone decides when to retry, and the status shows it.
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

/// An HTTP client with a proxy, which trusts the given certificates as well as those of the system. The SDK's own client supports
/// neither extra certificates nor a shared connection pool.
///
/// # Errors
/// The client cannot be built; the text says why.
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
