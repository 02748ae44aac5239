//! The operator's own AWS identity: the SDK's configuration with every timeout set.

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use sha2::{Digest, Sha256};

use super::hex;

/// Sessions are renewed this long before they end, so that none ends in the middle of a call.
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
}

/// The operator's identity and region.
#[derive(Clone, Debug)]
pub struct OperatorIdentity {
    /// The SDK's configuration.
    pub config: SdkConfig,
    /// See [`super::TokenSource::fingerprint`].
    pub fingerprint: String,
}

/// Loads the SDK's default chain: environment, profile, web identity (IRSA), container (EKS Pod Identity), IMDS.
pub async fn load(settings: &AwsSettings) -> OperatorIdentity {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.timeout.min(Duration::from_secs(5)))
        .read_timeout(settings.timeout)
        .operation_timeout(settings.timeout)
        .build();
    // Shorter than the whole call's, of which it is a part, so that the error says which of the two was late.
    let identity_timeout = settings.timeout.mul_f64(0.8);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts)
        // One place decides when to try again, with a wait that is known and shown: token::cache.
        .retry_config(RetryConfig::disabled())
        .identity_cache(IdentityCache::lazy().buffer_time(SESSION_BUFFER).load_timeout(identity_timeout).build());
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    OperatorIdentity { config: loader.load().await, fingerprint: fingerprint(&settings.identity_hints) }
}

fn fingerprint(hints: &[String]) -> String {
    let mut hasher = Sha256::new();
    for hint in hints {
        hasher.update((hint.len() as u64).to_be_bytes());
        hasher.update(hint.as_bytes());
    }
    hex(&hasher.finalize())
}
