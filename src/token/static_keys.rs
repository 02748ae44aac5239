//! Credentials from static keys in a Secret.

use std::sync::Arc;

use aws_credential_types::{Credentials, provider};
use secrecy::ExposeSecret;

use super::from_cluster::FromCluster;
use super::provider::{CredentialSource, sendable};
use super::{StaticKeys, TokenError};
use crate::plan::scopes::SecretKey;

/// The keys in a Secret. Changed keys are a different identity.
pub(super) struct StoredKeys {
    pub(super) keys: Arc<FromCluster<StaticKeys>>,
    /// Where they are.
    pub(super) secret: SecretKey,
}

impl CredentialSource for StoredKeys {
    async fn credentials(&self) -> provider::Result {
        let found = self.keys.get().await?;
        self.keys.used(None);
        let credentials = Credentials::new(
            found.access_key_id.expose_secret(),
            found.secret_access_key.expose_secret(),
            found.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
            None,
            "Secret",
        );
        let place = format!(" in Secret {}", self.secret);
        Ok(sendable(credentials, &place).map_err(TokenError::IdentityNotFound)?)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use aws_credential_types::provider::error::CredentialsError;
    use aws_smithy_async::time::SharedTimeSource;
    use futures::FutureExt;
    use secrecy::SecretString;

    use super::*;

    #[tokio::test]
    async fn of_keys_that_cannot_be_sent_the_secret_is_named() {
        for (id, token, expected) in [("AKIA1", "x", true), ("AKIA\n1", "x", false), ("AKIA1", "x y", false)] {
            let keys = FromCluster::new(SharedTimeSource::default(), move || {
                let [access_key_id, secret_access_key, token] = [id, "key", token].map(SecretString::from);
                let keys = StaticKeys { access_key_id, secret_access_key, session_token: Some(token) };
                std::future::ready(Ok(keys)).boxed()
            });
            let secret = SecretKey::new("keys", "ops");
            let found = StoredKeys { keys, secret }.credentials().await;
            let named =
                |error: CredentialsError| error.source().is_some_and(|e| e.to_string().contains("Secret ops/keys"));
            assert!(if expected { found.is_ok() } else { found.is_err_and(named) }, "{id:?} {token:?}");
        }
    }
}
