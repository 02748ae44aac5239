//! Credentials from static keys in a Secret.

use std::fmt;
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};
use secrecy::ExposeSecret;

use super::from_cluster::FromCluster;
use super::provider::{is_sendable, provided};
use super::{StaticKeys, TokenError};
use crate::plan::auth::Keys;

/// The keys in a Secret. Changed keys are a different identity.
pub(super) struct StoredKeys {
    pub(super) keys: Arc<FromCluster<StaticKeys>>,
    /// Where they are.
    pub(super) secret: Keys,
}

impl StoredKeys {
    async fn read(&self) -> Result<Credentials, TokenError> {
        let found = self.keys.get().await?;
        self.keys.used(None);
        let credentials = Credentials::new(
            found.access_key_id.expose_secret(),
            found.secret_access_key.expose_secret(),
            found.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
            None,
            "Secret",
        );
        let Keys { namespace, name, .. } = &self.secret;
        let odd = || {
            format!(
                "the access key ID or the session token in Secret {namespace}/{name} has a character that none of AWS has"
            )
        };
        if is_sendable(&credentials) { Ok(credentials) } else { Err(TokenError::IdentityNotFound(odd())) }
    }
}

impl ProvideCredentials for StoredKeys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move { provided(self.read().await) })
    }
}

impl fmt::Debug for StoredKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredKeys")
    }
}
