//! A strict stand-in for STS, ECR and ECR Public over real HTTP: it verifies every signature, session and web identity, and fails on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use futures::future::BoxFuture;
use jiff::SignedDuration;
use parking_lot::Mutex;

mod api;
mod assume;
mod auth;
mod authority;
mod calls;
mod clock;
mod connect;
mod credentials;
mod ecr;
mod error;
mod fault;
mod fault_plan;
mod form;
mod gate;
mod hosts;
mod iam;
mod issuer;
mod policy;
mod rate;
mod region;
mod server;
mod service;
pub mod sigv4;
mod spoil;
mod sts;
mod tokens;
mod users;
mod web_identity;

pub use calls::{Call, CallCounts, Mark, count_calls};
pub use clock::Clock;
pub use connect::{AwsProxy, Tunnel};
pub use credentials::{Credential, Principal};
pub use fault::{Fault, Field, ThrottleCode};
pub use fault_plan::{FaultBuilder, FaultHandle};
pub use hosts::{ApiHost, Variant};
pub use iam::{Permissions, PrincipalTrust, Refusal, Role, Trust, WebIdentityTrust};
pub use issuer::Issuer;
pub use rate::Rate;
pub use service::Service;
pub use tokens::{CANARY, IssuedToken};
pub use users::AccessKey;
pub use web_identity::JwksSource;

/// A running stand-in; clones are the same one, and it ends with the last of them.
#[derive(Clone)]
pub struct AwsStandIn {
    inner: Arc<Inner>,
    addresses: [SocketAddr; 3],
    _stop: Arc<server::StopOnDrop>,
}

/// What all the requests share.
#[derive(Default)]
struct Inner {
    clock: Clock,
    settings: Mutex<Settings>,
    roles: Mutex<BTreeMap<String, Role>>,
    users: users::Users,
    rates: rate::Rates,
    providers: web_identity::Providers,
    credentials: credentials::Credentials,
    tokens: tokens::Tokens,
    calls: calls::Calls,
    faults: fault_plan::Faults,
    web_identity_tokens: Mutex<BTreeSet<String>>,
}

#[derive(Clone)]
struct Settings {
    token_life: SignedDuration,
    /// Bytes of a password.
    token_size: usize,
    session_life: Option<SignedDuration>,
}

impl Default for Settings {
    fn default() -> Self {
        // 12 h and about 2.5 KB are what ECR gives out.
        Settings { token_life: SignedDuration::from_hours(12), token_size: 2500, session_life: None }
    }
}

impl AwsStandIn {
    /// Starts on free loopback ports, in a thread and runtime of its own: a test may block or pause its own time.
    pub fn start() -> Result<Self> {
        Self::start_on(IpAddr::from([127, 0, 0, 1]))
    }

    /// The same on another address of this machine, for callers in other network namespaces.
    pub fn start_on(address: IpAddr) -> Result<Self> {
        let inner = Arc::new(Inner::default());
        let (addresses, stop) = server::start(&inner, address)?;
        Ok(AwsStandIn { inner, addresses, _stop: Arc::new(stop) })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self, service: Service) -> String {
        format!("http://{}", self.addresses[service as usize])
    }

    /// The environment that sends an SDK here, in eu-west-1, and away from the machine's own profiles and metadata service.
    pub fn env(&self) -> Vec<(String, String)> {
        let endpoints = Service::ALL.map(|service| (service.endpoint_variable().to_owned(), self.endpoint(service)));
        let fixed = [
            ("AWS_REGION", "eu-west-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        endpoints.into_iter().chain(fixed).collect()
    }

    /// Adds a role, or replaces the one of the same ARN.
    pub fn add_role(&self, role: Role) {
        self.inner.roles.lock().insert(role.arn.clone(), role);
    }

    pub fn remove_role(&self, arn: &str) {
        self.inner.roles.lock().remove(arn);
    }

    /// Changes what a role or a user may do, for its open sessions too.
    pub fn set_permissions(&self, arn: &str, permissions: Permissions) {
        if !self.inner.users.set_permissions(arn, &permissions)
            && let Some(role) = self.inner.roles.lock().get_mut(arn)
        {
            role.permissions = permissions;
        }
    }

    /// Trusts the tokens that one of these keys has signed for `issuer`; a second call rotates the keys.
    pub fn set_jwks(&self, issuer: &str, jwks_json: &str) {
        let jwks = jwks_json.to_owned();
        self.set_jwks_source(issuer, move || {
            let jwks = jwks.clone();
            Box::pin(async move { Ok(jwks) })
        });
    }

    /// Asks `source` for the issuer's keys at every token.
    pub fn set_jwks_source(
        &self,
        issuer: &str,
        source: impl Fn() -> BoxFuture<'static, Result<String>> + Send + Sync + 'static,
    ) {
        self.inner.providers.set(issuer, Arc::new(source));
    }

    pub fn clock(&self) -> Clock {
        self.inner.clock.clone()
    }

    /// The life of the registry tokens issued from now on; 12 h unless set.
    pub fn set_token_life(&self, life: SignedDuration) {
        self.inner.settings.lock().token_life = life;
    }

    /// About how many bytes a password has from now on; 2500 unless set.
    pub fn set_token_size(&self, bytes: usize) {
        self.inner.settings.lock().token_size = bytes;
    }

    /// The life of the sessions issued from now on, whatever duration was asked for; `None` follows the request.
    pub fn set_session_life(&self, life: Option<SignedDuration>) {
        self.inner.settings.lock().session_life = life;
    }

    /// Prepares a fault of one service.
    pub fn fault(&self, service: Service, fault: Fault) -> FaultBuilder {
        FaultBuilder { inner: self.inner.clone(), plan: fault_plan::Plan::new(service, fault) }
    }

    pub fn clear_faults(&self) {
        self.inner.faults.clear(|_| true);
    }

    /// All registry tokens issued so far, those of faults included, oldest first.
    pub fn tokens(&self) -> Vec<IssuedToken> {
        self.inner.tokens.all()
    }

    /// The token behind a docker `auth` value, which is also what follows `Basic ` in a registry's request.
    pub fn token_of(&self, auth: &str) -> Option<IssuedToken> {
        self.inner.tokens.find(auth)
    }

    /// Whether a registry accepts this `auth` now: issued here, well formed, not expired, not revoked.
    pub fn is_valid(&self, auth: &str) -> bool {
        self.token_of(auth).is_some_and(|token| token.is_accepted(self.inner.clock.now()))
    }

    /// Lets registries refuse the matching tokens before their time.
    pub fn revoke_tokens(&self, matching: impl Fn(&IssuedToken) -> bool) {
        self.inner.tokens.revoke(matching);
    }

    /// The sessions issued so far, in no order.
    pub fn sessions(&self) -> Vec<Arc<Credential>> {
        let all = self.inner.credentials.all().into_iter();
        all.filter(|credential| credential.session_token.is_some()).collect()
    }

    /// Forgets every session: its keys are unknown from now on.
    pub fn revoke_sessions(&self) {
        self.inner.credentials.revoke_sessions();
    }

    /// All that must never be seen outside a Secret, whether or not it is still good: tokens, passwords, secret keys, session tokens and the web identity tokens received.
    pub fn secrets_issued(&self) -> Vec<String> {
        let tokens = self.tokens().into_iter().flat_map(|token| [token.auth, token.password]);
        let keys = self.inner.credentials.ever().into_iter().flat_map(|credential| {
            [Some(credential.secret_key.clone()), credential.session_token.clone()].into_iter().flatten()
        });
        let received = self.inner.web_identity_tokens.lock().clone().into_iter();
        tokens.chain(keys).chain(received).filter(|secret| !secret.is_empty()).collect()
    }

    /// The calls to one service so far, oldest first.
    pub fn calls(&self, service: Service) -> Vec<Call> {
        self.calls_since(Mark::default()).into_iter().filter(|call| call.service == service).collect()
    }

    /// The calls to all services since a mark; `Mark::default()` is the start.
    pub fn calls_since(&self, mark: Mark) -> Vec<Call> {
        self.inner.calls.since(mark)
    }

    /// The place in the log after the calls so far.
    pub fn mark(&self) -> Mark {
        self.inner.calls.mark()
    }

    /// Returns once `service` has been called `n` times since the start.
    pub async fn wait_for_calls(&self, service: Service, n: usize) {
        self.wait_until(|calls| calls.iter().filter(|call| call.service == service).count() >= n).await;
    }

    /// Returns once there is a call after `mark`.
    pub async fn wait_for_call_after(&self, mark: Mark) {
        self.wait_until(|calls| calls.len() > mark.0).await;
    }

    /// Returns once `done` holds for the log since the start.
    pub async fn wait_until(&self, done: impl Fn(&[Call]) -> bool) {
        self.inner.calls.wait_until(done).await;
    }
}
