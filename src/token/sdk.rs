//! Configurations and STS clients of the AWS SDK, with every timeout set.

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::timeout::TimeoutConfig;
use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::time::SharedTimeSource;
use aws_smithy_runtime_api::client::identity::SharedIdentityCache;

use super::provider::MinRemainingLife;
use super::settings::Endpoints;

/// Sessions are renewed this long before they end, less up to a half at random. What is given with less life than that is used
/// once, if [`MinRemainingLife`] takes it.
const SESSION_BUFFER: Duration = Duration::from_secs(300);

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

/// The timeouts of one operation that makes so many calls.
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
