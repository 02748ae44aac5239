//! GetAuthorizationToken of ECR and of ECR Public.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;

use super::errors::{Call, classify};
use super::identity::OperatorIdentity;
use super::session::{Session, Sessions};
use super::{Cluster, RawToken, TokenError, TokenSource};
use crate::api::HostVariant;
use crate::api::registry::{AccountId, PUBLIC_REGION, Region};
use crate::encoding::Fields;
use crate::plan::auth::IdentitySource;
use crate::plan::{Identity, Service, TokenKey};

/// Fetches tokens from AWS.
pub struct Ecr {
    sessions: Sessions,
}

impl Ecr {
    /// Sessions and clients are created on demand.
    pub fn new(operator: OperatorIdentity, cluster: Arc<dyn Cluster>) -> Self {
        Self { sessions: Sessions::new(operator, cluster) }
    }

    /// The ARN of an identity, by GetCallerIdentity.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn caller(&self, identity: &Identity) -> Result<String, TokenError> {
        let answer = self.sessions.of(identity).sts().get_caller_identity().send().await;
        let answer = answer.map_err(|error| classify(&error, Call::CallerIdentity, "STS"))?;
        answer.arn.ok_or_else(|| TokenError::Unreadable("STS returned no ARN".to_owned()))
    }
}

async fn private(
    session: &Session,
    region: &Region,
    endpoint: HostVariant,
    registry_ids: &[AccountId],
) -> Result<Vec<RawToken>, TokenError> {
    let ids = registry_ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
    #[allow(deprecated, reason = "the one way to get a token for each registry id, when the spec asks for it")]
    let call =
        session.ecr(region, endpoint).get_authorization_token().set_registry_ids((!ids.is_empty()).then_some(ids));
    let answer = call.send().await.map_err(|e| classify(&e, Call::Ecr, &format!("ECR in {region}")))?;
    let data = answer.authorization_data.unwrap_or_default();
    Ok(data
        .into_iter()
        .map(|entry| RawToken {
            token: entry.authorization_token.map(SecretString::from),
            expires_at: entry.expires_at.and_then(|at| Timestamp::from_second(at.secs()).ok()),
            account: entry.proxy_endpoint.and_then(|endpoint| account_of(&endpoint)),
        })
        .collect())
}

async fn public(session: &Session) -> Result<Vec<RawToken>, TokenError> {
    let call = session.public().get_authorization_token();
    let endpoint = format!("ECR Public in {PUBLIC_REGION}");
    let answer = call.send().await.map_err(|e| classify(&e, Call::EcrPublic, &endpoint))?;
    let entry = answer.authorization_data.map(|entry| RawToken {
        token: entry.authorization_token.map(SecretString::from),
        expires_at: entry.expires_at.and_then(|at| Timestamp::from_second(at.secs()).ok()),
        account: None,
    });
    Ok(entry.into_iter().collect())
}

impl TokenSource for Ecr {
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        let session = self.sessions.of(&key.identity);
        async move {
            let answer = match &key.service {
                Service::Private { region, endpoint, registry_ids } => {
                    private(&session, region, *endpoint, registry_ids).await
                }
                Service::Public => public(&session).await,
            };
            if let Err(TokenError::Denied(_)) = &answer {
                self.sessions.refused(&key.identity);
            }
            answer
        }
        .boxed()
    }

    fn fingerprint(&self, identity: &Identity) -> String {
        fingerprint(identity, &self.sessions.operator.fingerprint)
    }

    fn forget(&self, identity: &Identity) {
        self.sessions.forget(identity);
    }
}

/// See [`TokenSource::fingerprint`]. `operator` is the fingerprint of the operator's own identity.
fn fingerprint(identity: &Identity, operator: &str) -> String {
    let own = (*identity.source() == IdentitySource::Operator).then_some(operator);
    Fields::new("fingerprint/v1").digest(identity.digest()).optional(own).finish().to_string()
}

/// The account in a `proxyEndpoint`, which is `https://` and the plain host of a registry: `ID.dkr.ecr.`...
pub fn account_of(endpoint: &str) -> Option<AccountId> {
    AccountId::parse(endpoint.strip_prefix("https://")?.split_once('.')?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use crate::plan::auth::AuthPlan;
    use crate::plan::references::References;

    #[test]
    fn the_fingerprints_of_identities_are_the_same_in_every_build() {
        let role = r#"{ "assumeRoles": [{ "roleArn": "arn:aws:iam::111122223333:role/1" }] }"#;
        let role: api::Auth = serde_json::from_str(role).unwrap();
        let role = AuthPlan::parse(Some(&role), &Region::parse("eu-west-1").unwrap(), None).unwrap();
        let role = role.resolve(None, &References::default()).unwrap();
        let table = [
            (
                "the operator's own",
                Identity::operator(),
                "57eb7b8bd7c6b0109d0d7760e0730ae9a75faf92bc0794120ce5872120366202",
            ),
            ("a role that it assumes", role, "7404e674f2e70d454b8f4f4d3097a210195a5ebe94fc96449fa5a4e38bb7dd3c"),
            (
                "one that does not begin with it",
                Identity::unresolved(),
                "da7095b2746edac8eb32f2ea3db025b1fec79184eadc0aa8af38d0160b5c5f30",
            ),
        ];
        for (name, identity, expected) in table {
            assert_eq!(fingerprint(&identity, "own"), expected, "{name}");
        }
        assert_ne!(fingerprint(&Identity::operator(), "own"), fingerprint(&Identity::operator(), "other"));
        assert_eq!(fingerprint(&Identity::unresolved(), "own"), fingerprint(&Identity::unresolved(), "other"));
    }
}
