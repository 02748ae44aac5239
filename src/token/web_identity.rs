//! Credentials by AssumeRoleWithWebIdentity: a ServiceAccount's token for a role's session.

use std::sync::Arc;

use aws_credential_types::provider;
use aws_sdk_sts::Client;
use secrecy::{ExposeSecret, SecretString};

use super::TokenError;
use super::errors::{Call, classify};
use super::from_cluster::FromCluster;
use super::provider::{CredentialSource, credentials};
use super::settings::WebIdentityFile;
use crate::plan::auth::{Account, SESSION_NAME};

/// The source of the web identity token.
pub(super) enum TokenFrom {
    File(WebIdentityFile),
    Cluster { token: Arc<FromCluster<SecretString>>, account: Account },
}

/// The credentials of a role, in exchange for a web identity token.
pub(super) struct WebIdentity {
    pub(super) sts: Client,
    pub(super) from: TokenFrom,
}

impl CredentialSource for WebIdentity {
    async fn credentials(&self) -> provider::Result {
        let token = self.token().await?;
        let (role, name, call) = match &self.from {
            TokenFrom::File(file) => {
                let name = file.session_name.as_deref().unwrap_or(SESSION_NAME);
                (file.role_arn.as_str(), name, Call::OwnWebIdentity)
            }
            TokenFrom::Cluster { account, .. } => (account.role.as_str(), SESSION_NAME, Call::WebIdentity),
        };
        let request = self.sts.assume_role_with_web_identity().role_arn(role).role_session_name(name);
        let answer = request.web_identity_token(token.expose_secret()).send().await;
        let answer = answer.map_err(|error| classify(&error, call, &format!("STS for {role}")))?;
        let session = credentials(answer.credentials, "WebIdentity")?;
        if let TokenFrom::Cluster { token, .. } = &self.from {
            token.used(session.expiry());
        }
        Ok(session)
    }
}

impl WebIdentity {
    async fn token(&self) -> Result<SecretString, TokenError> {
        match &self.from {
            TokenFrom::Cluster { token, .. } => token.get().await,
            TokenFrom::File(file) => match tokio::fs::read_to_string(&file.token_file).await {
                Ok(text) => Ok(SecretString::from(text.trim())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(TokenError::NoCredentials(
                    "the web identity token file is missing: check the ServiceAccount's token volume".to_owned(),
                )),
                Err(error) => Err(TokenError::NoCredentials(format!(
                    "the web identity token file cannot be read ({}): check the ServiceAccount's token volume",
                    error.kind()
                ))),
            },
        }
    }
}
