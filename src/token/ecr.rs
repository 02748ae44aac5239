//! GetAuthorizationToken of ECR and of ECR Public.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;

use super::errors::{Call, classify};
use super::identity::OperatorIdentity;
use super::session::{Session, Sessions};
use super::{Cluster, Prepared, RawToken, TokenError, TokenSource};
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
        let session = self.sessions.of(identity);
        let _prepared = session.prepare().await?;
        let answer = session.sts().get_caller_identity().send().await;
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
    fn prepare<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Prepared, TokenError>> {
        let session = self.sessions.of(&key.identity);
        async move { session.prepare().await }.boxed()
    }

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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use aws_config::{BehaviorVersion, SdkConfig};
    use aws_smithy_async::rt::sleep::TokioSleep;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_types::body::SdkBody;
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::api;
    use crate::plan::auth::{Account, AuthPlan, KeyMaterial, Keys};
    use crate::plan::references::{AccountRecord, AllowedIdentities, KeysRecord, References};
    use crate::plan::scopes::{AccountScope, SecretKey};
    use crate::token::StaticKeys;
    use crate::token::settings::Endpoints;

    /// A slow API server; counts the requests.
    #[derive(Default)]
    struct Slow(Mutex<u32>);

    impl Slow {
        async fn answer<T>(&self, answer: T) -> Result<T, TokenError> {
            *self.0.lock() += 1;
            tokio::time::sleep(Duration::from_secs(50)).await;
            Ok(answer)
        }
    }

    impl Cluster for Slow {
        fn web_identity<'a>(&'a self, _: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>> {
            self.answer(SecretString::from("a web identity token")).boxed()
        }

        fn keys_record<'a>(&'a self, _: &'a SecretKey) -> BoxFuture<'a, Result<Option<KeysRecord>, TokenError>> {
            self.answer(None).boxed()
        }

        fn static_keys<'a>(&'a self, _: &'a Keys, _: &'a KeyMaterial) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
            let text = || SecretString::from("a-key");
            let keys = StaticKeys { access_key_id: text(), secret_access_key: text(), session_token: None };
            self.answer(keys).boxed()
        }
    }

    /// AWS, which answers STS and ECR after some seconds, as an SDK's HTTP client.
    #[derive(Debug)]
    struct Aws(u64);

    impl HttpConnector for Aws {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let seconds = self.0;
            let is_ecr = request.headers().contains_key("x-amz-target");
            HttpConnectorFuture::new(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let body = if is_ecr {
                    json!({ "authorizationData": [{ "authorizationToken": "QVdTOng=", "expiresAt": 4_000_000_000_i64 }] })
                        .to_string()
                } else {
                    let credentials = "<Credentials><AccessKeyId>a</AccessKeyId><SecretAccessKey>b</SecretAccessKey><SessionToken>c</SessionToken><Expiration>2096-01-01T00:00:00Z</Expiration></Credentials>";
                    format!(
                        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>{credentials}</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                    )
                };
                Ok(HttpResponse::new(200.try_into().unwrap(), SdkBody::from(body)))
            })
        }
    }

    /// ECR behind AWS that takes so long for each call, with a timeout of ten seconds for one.
    fn ecr(cluster: &Arc<Slow>, seconds: u64) -> Ecr {
        let http = http_client_fn(move |_, _| SharedHttpConnector::new(Aws(seconds)));
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(TokioSleep::new()))
            .build();
        let (endpoints, timeout) = (Endpoints::default(), Duration::from_secs(10));
        Ecr::new(OperatorIdentity { config, fingerprint: String::new(), endpoints, timeout }, cluster.clone())
    }

    /// The key of ECR in a region for a ServiceAccount, or for static keys.
    fn key(of_account: bool, region: &str) -> TokenKey {
        let keys = SecretKey { namespace: "ops".into(), name: "keys".into() };
        let accounts = BTreeSet::from([AccountScope { namespace: Some("ops".into()), name: "puller".into() }]);
        let mut references = References::new(AllowedIdentities { accounts, keys: BTreeSet::from([keys.clone()]) });
        let role = Some("arn:aws:iam::111122223333:role/x".to_owned());
        let account = AccountRecord { uid: "u".into(), created: Timestamp::UNIX_EPOCH, role, audience: None };
        references.set_account("ops", "puller", Some(account));
        let texts = [("AWS_ACCESS_KEY_ID", "a-key"), ("AWS_SECRET_ACCESS_KEY", "a-key")];
        references.set_keys(&keys, Some(KeysRecord::of(texts)));
        let auth = if of_account {
            json!({ "serviceAccount": { "namespace": "ops", "name": "puller" } })
        } else {
            json!({ "secretRef": { "namespace": "ops", "name": "keys" } })
        };
        let auth: api::Auth = serde_json::from_value(auth).unwrap();
        let auth = AuthPlan::parse(Some(&auth), &Region::parse("eu-west-1").unwrap(), None).unwrap();
        let region = Region::parse(region).unwrap();
        let service = Service::Private { region, endpoint: HostVariant::Standard, registry_ids: Vec::new() };
        TokenKey { identity: auth.resolve(None, &references).unwrap(), service }
    }

    async fn fetch(ecr: &Ecr, key: &TokenKey) -> Result<Vec<RawToken>, TokenError> {
        let _prepared = ecr.prepare(key).await?;
        ecr.fetch(key).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_api_server_uses_up_none_of_the_time_that_a_call_to_aws_may_take() {
        for of_account in [true, false] {
            let cluster = Arc::new(Slow::default());
            let quick = ecr(&cluster, 1);
            let regions = ["eu-west-1", "us-east-1"].map(|region| key(of_account, region));
            let (first, second) = tokio::join!(fetch(&quick, &regions[0]), fetch(&quick, &regions[1]));
            assert!(first.is_ok() && second.is_ok(), "{of_account}: {first:?} {second:?}");
            let again = fetch(&quick, &regions[0]).await;
            assert!(again.is_ok() && *cluster.0.lock() == 1, "{of_account}: {again:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_to_aws_may_take_no_longer_for_what_the_cluster_has_taken() {
        for of_account in [true, false] {
            let begun = tokio::time::Instant::now();
            let late = fetch(&ecr(&Arc::new(Slow::default()), 3600), &key(of_account, "eu-west-1")).await;
            assert!(matches!(late, Err(TokenError::Unavailable(_))), "{late:?}");
            assert!(begun.elapsed() <= Duration::from_secs(61), "{of_account}: {:?}", begun.elapsed());
        }
    }

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
