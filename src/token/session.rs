//! The sessions of all identities: each has its own configuration and clients, created on demand and kept while in use.

use std::collections::HashMap;
use std::sync::Arc;

use aws_config::{Region as SdkRegion, SdkConfig};
use futures::FutureExt;
use parking_lot::Mutex;

use super::assume_role::AssumedRole;
use super::from_cluster::{FromCluster, Prepare};
use super::identity::OperatorIdentity;
use super::sdk::{anew, sts, time_of, with_credentials};
use super::static_keys::StoredKeys;
use super::web_identity::{TokenFrom, WebIdentity};
use super::{Cluster, Prepared, TokenError};
use crate::api::HostVariant;
use crate::api::registry::{PUBLIC_REGION, Region};
use crate::plan::Identity;
use crate::plan::auth::IdentitySource;

/// The most ECR clients that are kept for an identity. The operator's own session lives as long as the process, while regions come
/// and go with specs. Creating a client makes no call.
const MOST_CLIENTS: usize = 128;

/// All sessions.
pub(super) struct Sessions {
    pub(super) operator: OperatorIdentity,
    /// The operator's configuration with its session, from which its roles are assumed.
    own: Mutex<SdkConfig>,
    cluster: Arc<dyn Cluster>,
    sessions: Mutex<HashMap<Identity, Arc<Session>>>,
}

/// The clients of one identity.
pub(super) struct Session {
    config: SdkConfig,
    /// What the identity takes from the cluster, if anything.
    from_cluster: Option<Arc<dyn Prepare>>,
    /// The region whose STS is called; none for the operator's own identity.
    sts: Option<Region>,
    operator: OperatorIdentity,
    clients: Mutex<HashMap<(Region, HostVariant), aws_sdk_ecr::Client>>,
}

impl Sessions {
    pub(super) fn new(operator: OperatorIdentity, cluster: Arc<dyn Cluster>) -> Self {
        let own = Mutex::new(operator.config.clone());
        Self { operator, own, cluster, sessions: Mutex::default() }
    }

    /// The session of an identity. No call is made before it is used.
    pub(super) fn of(&self, identity: &Identity) -> Arc<Session> {
        let make = || {
            let ((config, from_cluster), operator) = (self.config(identity), self.operator.clone());
            Arc::new(Session {
                config,
                from_cluster,
                sts: identity.sts_region().cloned(),
                operator,
                clients: Mutex::default(),
            })
        };
        self.sessions.lock().entry(identity.clone()).or_insert_with(make).clone()
    }

    /// Drops the session of an identity. A call in flight is not interrupted.
    pub(super) fn forget(&self, identity: &Identity) {
        self.sessions.lock().remove(identity);
    }

    /// Drops the session of an identity that AWS has denied. It may have been revoked, so the next attempt creates a new
    /// one. The backoff limits how often that happens.
    pub(super) fn refused(&self, identity: &Identity) {
        self.forget(identity);
        if *identity.source() == IdentitySource::Operator {
            {
                let mut own = self.own.lock();
                *own = anew(&own, self.operator.timeout);
            }
            self.forget(&Identity::operator());
        }
    }

    /// The configuration of an identity: its source, then each role assumed with the one before it. And what the source takes from
    /// the cluster.
    fn config(&self, identity: &Identity) -> (SdkConfig, Option<Arc<dyn Prepare>>) {
        let OperatorIdentity { config, endpoints, timeout, .. } = &self.operator;
        let own = || self.own.lock().clone();
        let region = identity.sts_region().map(|region| SdkRegion::new(region.as_str().to_owned()));
        let time = time_of(config);
        let mut calls = 1;
        let (mut config, from_cluster): (_, Option<Arc<dyn Prepare>>) = match identity.source() {
            IdentitySource::Operator => (own(), None),
            // Nothing is fetched with it, and never with the operator's own keys.
            IdentitySource::Unresolved => (unsigned(config), None),
            IdentitySource::Account(account) => {
                let (cluster, asked) = (self.cluster.clone(), account.clone());
                let token = FromCluster::new(time, move || {
                    let (cluster, account) = (cluster.clone(), asked.clone());
                    async move { cluster.web_identity(&account).await }.boxed()
                });
                let from = TokenFrom::Cluster { token: token.clone(), account: account.clone() };
                let sts = sts(&unsigned(config), region.clone(), endpoints);
                (with_credentials(config, WebIdentity { sts, from }, *timeout, calls), Some(token))
            }
            IdentitySource::Keys { keys, material } => {
                let (cluster, asked, material) = (self.cluster.clone(), keys.clone(), *material);
                let secret = keys.secret.clone();
                let keys = FromCluster::new(time, move || {
                    let (cluster, keys) = (cluster.clone(), asked.clone());
                    async move { cluster.static_keys(&keys, &material).await }.boxed()
                });
                (with_credentials(config, StoredKeys { keys: keys.clone(), secret }, *timeout, calls), Some(keys))
            }
        };
        for step in identity.roles() {
            calls += 1;
            let sts = sts(&config, region.clone(), endpoints);
            config = with_credentials(&config, AssumedRole { sts, step: step.clone() }, *timeout, calls);
        }
        (config, from_cluster)
    }
}

/// Without credentials: the call that exchanges a web identity token is not signed.
fn unsigned(config: &SdkConfig) -> SdkConfig {
    let mut builder = config.to_builder();
    builder.set_credentials_provider(None);
    builder.build()
}

impl Session {
    /// See [`super::TokenSource::prepare`].
    pub(super) async fn prepare(&self) -> Result<Prepared, TokenError> {
        match &self.from_cluster {
            Some(value) => value.prepare().await,
            None => Ok(None),
        }
    }

    /// ECR in a region.
    pub(super) fn ecr(&self, region: &Region, endpoint: HostVariant) -> aws_sdk_ecr::Client {
        let make = || {
            let mut builder = aws_sdk_ecr::config::Builder::from(&self.config)
                .region(aws_sdk_ecr::config::Region::new(region.as_str().to_owned()));
            if endpoint != HostVariant::Standard {
                builder = builder
                    .use_fips(matches!(endpoint, HostVariant::Fips | HostVariant::DualStackFips))
                    .use_dual_stack(matches!(endpoint, HostVariant::DualStack | HostVariant::DualStackFips));
            }
            if let Some(url) = &self.operator.endpoints.ecr {
                builder = builder.endpoint_url(url).use_fips(false).use_dual_stack(false);
            }
            aws_sdk_ecr::Client::from_conf(builder.build())
        };
        let mut clients = self.clients.lock();
        let key = (region.clone(), endpoint);
        if clients.len() >= MOST_CLIENTS && !clients.contains_key(&key) {
            clients.clear();
        }
        clients.entry(key).or_insert_with(make).clone()
    }

    /// ECR Public.
    pub(super) fn public(&self) -> aws_sdk_ecrpublic::Client {
        let mut builder = aws_sdk_ecrpublic::config::Builder::from(&self.config)
            .region(aws_sdk_ecrpublic::config::Region::from_static(PUBLIC_REGION))
            // ECR Public has no FIPS endpoint.
            .use_fips(false);
        if let Some(url) = &self.operator.endpoints.ecr_public {
            builder = builder.endpoint_url(url).use_dual_stack(false);
        }
        aws_sdk_ecrpublic::Client::from_conf(builder.build())
    }

    /// STS, for GetCallerIdentity.
    pub(super) fn sts(&self) -> aws_sdk_sts::Client {
        let region = self.sts.as_ref().map(|region| SdkRegion::new(region.as_str().to_owned()));
        sts(&self.config, region, &self.operator.endpoints)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_config::BehaviorVersion;
    use aws_smithy_runtime_api::client::http::http_client_fn;

    use super::*;
    use crate::token::settings::Endpoints;

    #[test]
    fn clients_of_regions_that_come_and_go_are_not_all_kept() {
        let http = http_client_fn(|_, _| panic!("nothing is called"));
        let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).http_client(http).build();
        let (endpoints, timeout) = (Endpoints::default(), Duration::from_secs(1));
        let operator = OperatorIdentity { config: config.clone(), fingerprint: String::new(), endpoints, timeout };
        let session = Session { config, from_cluster: None, sts: None, operator, clients: Mutex::default() };
        for (first, second) in ('a'..='j').flat_map(|first| ('a'..='z').map(move |second| (first, second))) {
            let region = Region::parse(&format!("{first}{second}-west-1")).unwrap();
            assert_eq!(
                session.ecr(&region, HostVariant::Standard).config().region().unwrap().as_ref(),
                region.as_str()
            );
            assert!(session.clients.lock().len() <= MOST_CLIENTS);
        }
    }
}
