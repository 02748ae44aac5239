//! What all sources of credentials have in common: how the SDK calls them, their errors, and which credentials are used at all.

use std::time::{Duration, SystemTime};
use std::{any, fmt};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_smithy_async::time::SharedTimeSource;
use k8s_openapi::jiff::Timestamp;

use super::TokenError;

/// A session with less remaining life is refused: it would expire in transit, which looks like a refusal by AWS.
const SHORTEST_SESSION: Duration = Duration::from_secs(30);

/// A source of credentials, called once for each session.
pub(super) trait CredentialSource: Send + Sync + 'static {
    fn credentials(&self) -> impl Future<Output = provider::Result> + Send;
}

/// A [`CredentialSource`] for the SDK.
pub(super) struct Provider<S>(pub(super) S);

impl<S: CredentialSource> ProvideCredentials for Provider<S> {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.0.credentials())
    }
}

/// `ProvideCredentials` requires it. Only the type is printed, because a source may hold secrets.
impl<S> fmt::Debug for Provider<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(any::type_name::<S>())
    }
}

/// The SDK's error carries ours to the caller.
impl From<TokenError> for CredentialsError {
    fn from(error: TokenError) -> Self {
        Self::provider_error(error)
    }
}

/// A source that refuses what the SDK would use all the same: sessions that are about to expire, and credentials that cannot be sent.
/// It cannot detect the extended expiry that the SDK sets on an expired session of the node's role: in that case ECR reports the expiry.
pub(super) struct UsableCredentials<S> {
    pub(super) source: S,
    pub(super) time: SharedTimeSource,
}

impl<S: CredentialSource> CredentialSource for UsableCredentials<S> {
    async fn credentials(&self) -> provider::Result {
        let given = lasting(self.source.credentials().await?, self.time.now())?;
        Ok(sendable(given, "").map_err(TokenError::Unreadable)?)
    }
}

/// Credentials that can be sent, or what is wrong with them. The access key ID and the session token stand in headers, and the SDK
/// panics over a character that a header may not have. `place` says where they are, if that is known.
pub(super) fn sendable(given: Credentials, place: &str) -> Result<Credentials, String> {
    let texts = [Some(given.access_key_id()), given.session_token()];
    if texts.into_iter().flatten().all(|text| text.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Ok(given);
    }
    Err(format!("the access key ID or the session token{place} has a character that none of AWS has"))
}

fn lasting(given: Credentials, now: SystemTime) -> Result<Credentials, TokenError> {
    match given.expiry() {
        Some(end) if end.duration_since(now).unwrap_or_default() < SHORTEST_SESSION => {
            Err(TokenError::NearlyOver(Timestamp::try_from(end).unwrap_or(Timestamp::MIN)))
        }
        _ => Ok(given),
    }
}

/// The credentials in a response of STS.
pub(super) fn credentials(
    answer: Option<aws_sdk_sts::types::Credentials>,
    provider: &'static str,
) -> Result<Credentials, TokenError> {
    let answer = answer.ok_or_else(|| TokenError::Unavailable("STS returned no credentials".to_owned()))?;
    let expires_at = SystemTime::try_from(answer.expiration)
        .map_err(|_| TokenError::Unreadable("STS returned an invalid expiration time".to_owned()))?;
    Ok(Credentials::new(
        answer.access_key_id,
        answer.secret_access_key,
        Some(answer.session_token),
        Some(expires_at),
        provider,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl CredentialSource for Credentials {
        async fn credentials(&self) -> provider::Result {
            Ok(self.clone())
        }
    }

    #[test]
    fn a_session_that_is_nearly_over_is_refused_and_one_without_an_end_is_not() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ends = |end: Option<SystemTime>| lasting(Credentials::new("id", "key", None, end, "test"), now).is_ok();
        let after = |seconds| Some(now + Duration::from_secs(seconds));
        assert!(ends(None) && ends(after(30)) && ends(after(3600)));
        assert!(!ends(after(29)) && !ends(Some(now)) && !ends(Some(now - Duration::from_secs(60))));
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_sent_are_refused_before_the_sdk_panics() {
        let table = [
            ("ASIA1", "FwoGZXIvYXdzEA/+=", true),
            ("ASIA1\n", "x", false),
            ("ASIA1\0", "x", false),
            ("é", "x", false),
            ("ASIA1", "a b", false),
            ("ASIA1", "x\r\nx-injected: y", false),
            ("ASIA1", "\u{7f}", false),
        ];
        for (id, token, expected) in table {
            let source = Credentials::new(id, "any ké\ny", Some(token.to_owned()), None, "test");
            let provider = UsableCredentials { source, time: SharedTimeSource::default() };
            let given = provider.credentials().await;
            assert_eq!(given.is_ok(), expected, "{id:?} {token:?}: {given:?}");
        }
    }
}
