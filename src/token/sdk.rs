//! Configurations and STS clients of the AWS SDK, with every timeout set.

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::timeout::TimeoutConfig;
use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::time::SharedTimeSource;
use aws_smithy_runtime_api::client::identity::SharedIdentityCache;

use super::provider::{CredentialSource, Provider, UsableCredentials};
use super::settings::Endpoints;

/// Sessions are refreshed this long before they expire, less up to half at random. A session with less remaining life is used
/// once, if [`UsableCredentials`] accepts it.
pub(super) const SESSION_BUFFER: Duration = Duration::from_secs(300);

/// The same configuration with other credentials and its own session cache. `calls` is the number of STS calls for one session.
pub(super) fn with_credentials(
    base: &SdkConfig,
    source: impl CredentialSource,
    timeout: Duration,
    calls: u32,
) -> SdkConfig {
    let usable = UsableCredentials { source, time: time_of(base) };
    base.to_builder()
        .credentials_provider(SharedCredentialsProvider::new(Provider(usable)))
        .identity_cache(no_session_yet(timeout, calls))
        .timeout_config(timeouts(timeout, calls))
        .build()
}

/// The operator's configuration with an empty session cache.
pub(super) fn anew(own: &SdkConfig, timeout: Duration) -> SdkConfig {
    own.to_builder().identity_cache(no_session_yet(timeout, 1)).build()
}

/// The time source of a configuration.
pub(super) fn time_of(config: &SdkConfig) -> SharedTimeSource {
    config.time_source().unwrap_or_default()
}

fn no_session_yet(timeout: Duration, calls: u32) -> SharedIdentityCache {
    // Shorter than the timeout of the whole call, so that the error says which of the two timed out.
    let session = timeout.mul_f64(0.8) * calls.max(1);
    IdentityCache::lazy().buffer_time(SESSION_BUFFER).load_timeout(session).build()
}

/// The timeouts of an operation that makes this number of calls.
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
        // The SDK rejects a URL in combination with FIPS or dual stack.
        builder = builder.endpoint_url(url).use_fips(false).use_dual_stack(false);
    }
    aws_sdk_sts::Client::from_conf(builder.build())
}
