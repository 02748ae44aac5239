//! For tests: the parts that a reconciliation needs, over an API server and an AWS that answer as the test says.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use http::Method;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster_state::ClusterState;
use super::error::Error;
use super::events::Events;
use super::watches::credential_ref;
use super::{Context, CredentialStates, Observer, Shared, WatchObserver};
use crate::api::registry::{AccountId, Region};
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::apply::{WriteError, Writer, Written};
use crate::clock::Clock;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::references::{AccountRecord, AllowedIdentities, References};
use crate::plan::schedule::{Life, RetryPolicy};
use crate::plan::scopes::AccountScope;
use crate::plan::targets::SelectorIndex;
use crate::plan::{Identity, Limits, Plan, TokenKey, TokenSpec, Uid, plan};
use crate::secret::ownership::{ManagedFieldsDigest, SecretRecord};
use crate::secret::{Desired, Owner, SecretAction};
use crate::token::cache::{CacheSettings, TokenCache};
use crate::token::{AuthorizationToken, DockerAuth, RawToken, Token, TokenError, TokenSource};

/// The time at which every test begins.
pub(super) const NOW: i64 = 1_800_000_000;
pub(super) const HOUR: i64 = 3600;

/// The account whose tokens are in the Secrets.
pub(super) const ACCOUNT: &str = "111122223333";

/// The processor time that this thread has taken: what others do on the machine is no part of it.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

thread_local! {
    static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Moves the clock of this test on.
pub(super) fn pass(time: Duration) {
    PASSED.set(PASSED.get() + time);
}

pub(super) fn uid(text: &str) -> Uid {
    Uid(text.into())
}

/// A token of [`ACCOUNT`] that was issued an hour ago.
pub(super) fn token(password: &str, expires: i64, identity: &Identity) -> Arc<AuthorizationToken> {
    let auth = DockerAuth::parse(STANDARD.encode(format!("AWS:{password}"))).unwrap();
    let life = Life { issued_at: at(NOW - HOUR), expires_at: at(expires) };
    let account = AccountId::parse(ACCOUNT).ok();
    Arc::new(AuthorizationToken { tokens: vec![Token { auth, account }], life, identity: identity.clone() })
}

/// The identity of a namespace that has its own.
pub(super) fn identity_of(stage: &Stage, token_spec: &TokenSpec, namespace: &str) -> Identity {
    let token_specs = BTreeSet::from([token_spec]);
    let keys = super::tokens::keys(&stage.ctx, &token_specs, Some((namespace, NamespaceUid::of(namespace, None))));
    keys[token_spec].as_ref().unwrap().identity.clone()
}

type Answer = (u16, Value);

/// What was asked of the API server, and what it answers: 404 where nothing is said.
#[derive(Clone, Default)]
pub(super) struct Server {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<(Method, String)>>>,
    /// The last body that was sent to each path.
    sent: Arc<Mutex<BTreeMap<String, Value>>>,
    /// How long every other answer takes; those between take half as long.
    takes: Arc<Mutex<Duration>>,
    /// Held while no request is answered.
    held: Arc<tokio::sync::Mutex<()>>,
    /// The ends of the paths about which nothing is said.
    silent: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Server {
    /// From now on a path is answered so.
    pub(super) fn answers(&self, path: &str, code: u16, answer: Value) {
        self.answers.lock().insert(path.to_owned(), (code, answer));
    }

    /// What a path is answered with.
    pub(super) fn answer(&self, path: &str) -> Value {
        self.answers.lock().get(path).map(|(_, answer)| answer.clone()).unwrap_or_default()
    }

    /// What was sent to a path last.
    pub(super) fn sent(&self, path: &str) -> Value {
        self.sent.lock().get(path).cloned().unwrap_or_default()
    }

    /// The Secret of a namespace can be read and has this data.
    pub(super) fn has_secret(&self, namespace: &str, desired: &Desired) {
        let annotations = desired.metadata.annotations.clone();
        let secret = json!({
            "metadata": { "name": "pull", "namespace": namespace, "annotations": annotations },
            "data": desired.payload.expose_data().collect::<BTreeMap<_, _>>(),
        });
        self.answers(&format!("/api/v1/namespaces/{namespace}/secrets/pull"), 200, secret);
    }

    /// How often something was asked whose path ends so.
    pub(super) fn asked(&self, end: &str) -> usize {
        self.asked.lock().iter().filter(|(_, path)| path.ends_with(end)).count()
    }

    /// From now on every other answer takes so long, and those between half as long.
    pub(super) fn takes(&self, time: Duration) {
        *self.takes.lock() = time;
    }

    /// From now on what is asked whose path ends so is never answered.
    pub(super) fn is_silent_about(&self, end: &'static str) {
        self.silent.lock().insert(end);
    }

    /// Answers nothing as long as the result is kept.
    pub(super) async fn hold(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.held.clone().lock_owned().await
    }

    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move {
                let path = request.uri().path().to_owned();
                let number = {
                    let mut asked = server.asked.lock();
                    asked.push((request.method().clone(), path.clone()));
                    asked.len()
                };
                let body = request.into_body().collect_bytes().await.unwrap();
                server.sent.lock().insert(path.clone(), serde_json::from_slice(&body).unwrap_or_default());
                drop(server.held.lock().await);
                if server.silent.lock().iter().any(|end| path.ends_with(end)) {
                    std::future::pending::<()>().await;
                }
                let takes = *server.takes.lock() / if number.is_multiple_of(2) { 1 } else { 2 };
                if !takes.is_zero() {
                    tokio::time::sleep(takes).await;
                }
                let missing = (404, refusal(404, "not found"));
                let (code, answer) = server.answers.lock().get(&path).cloned().unwrap_or(missing);
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }
}

/// A Status that refuses.
pub(super) fn refusal(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "x", "message": message, "code": code })
}

/// How a fetch ends: after so long, with a token or a failure.
type Ending = (Duration, Result<(), TokenError>);

/// AWS: each fetch ends as the test says, or never where it says nothing.
#[derive(Clone, Default)]
pub(super) struct Aws {
    /// By words of the identity or the region.
    endings: Arc<Mutex<BTreeMap<&'static str, Ending>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Aws {
    /// From now on each fetch fails.
    pub(super) fn fails(&self) {
        self.ends("", Duration::ZERO, Err(TokenError::Unavailable("no answer".to_owned())));
    }

    /// From now on fetches by an identity or in a region with these words end so after a while.
    pub(super) fn ends(&self, words: &'static str, after: Duration, result: Result<(), TokenError>) {
        self.endings.lock().insert(words, (after, result));
    }

    /// How many fetches there were.
    pub(super) fn asked(&self) -> usize {
        self.asked_of("")
    }

    /// How many fetches there were by an identity or in a region with these words.
    pub(super) fn asked_of(&self, words: &str) -> usize {
        self.asked.lock().iter().filter(|key| key.contains(words)).count()
    }
}

impl TokenSource for Aws {
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        let key = format!("{} {}", key.identity, key.service.region());
        let ending = self.endings.lock().iter().find(|(words, _)| key.contains(**words)).map(|(_, end)| end.clone());
        // A role's token is for the account of the role.
        let of_role = key.split_once("arn:aws:iam::").and_then(|(_, role)| role.get(..ACCOUNT.len()));
        let account = AccountId::parse(of_role.unwrap_or(ACCOUNT)).ok();
        self.asked.lock().push(key);
        Box::pin(async {
            let Some((after, result)) = ending else { return std::future::pending().await };
            tokio::time::sleep(after).await;
            let text = STANDARD.encode("AWS:fetched");
            result.map(|()| vec![RawToken { token: Some(text.into()), expires_at: Some(at(NOW + 12 * HOUR)), account }])
        })
    }

    fn fingerprint(&self, identity: &Identity) -> String {
        identity.digest().to_string()
    }

    fn forget(&self, _: &Identity) {}
}

struct Nobody;

impl Observer for Nobody {
    fn wrote(&self, _: &SecretAction, _: &Result<Written, WriteError>) {}
    fn concluded(&self, _: &Uid, _: &str, _: &EcrCredentialStatus) {}
    fn reconciled(&self, _: Duration, _: Option<&Error>) {}
}

impl WatchObserver for Nobody {
    fn gone(&self, _: &Uid) {}
    fn unreadable(&self, _: &Uid, _: &str, _: Option<&EcrCredentialStatus>) {}
    fn skipped(&self, _: &'static str, _: usize) {}
}

/// An EcrCredential `x` for the Secret `pull` in some namespaces, in which there is a ServiceAccount `puller`.
pub(super) struct Stage {
    pub(super) ctx: Context,
    pub(super) server: Server,
    pub(super) aws: Aws,
    pub(super) object: EcrCredential,
    pub(super) plan: Plan,
    pub(super) uid: Uid,
    pub(super) owner: Owner,
    pub(super) queue: UnboundedReceiver<Uid>,
}

pub(super) const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];

impl Stage {
    /// With these registries, in the namespaces `a` to `d`.
    pub(super) fn new(registries: Value) -> Self {
        Self::of(registries, &NAMESPACES)
    }

    /// With these registries, in these namespaces.
    pub(super) fn of(registries: Value, namespaces: &[&str]) -> Self {
        let allowed = AllowedIdentities {
            accounts: BTreeSet::from([AccountScope { namespace: None, name: "puller".into() }]),
            ..AllowedIdentities::default()
        };
        let limits =
            Limits { region: Region::parse("eu-west-1").ok(), identities: allowed.clone(), ..Limits::default() };
        let object: EcrCredential = serde_json::from_value(json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
            "metadata": { "name": "x", "uid": "x", "generation": 1 },
            "spec": { "registries": registries, "namespaces": { "names": namespaces }, "secret": { "name": "pull" } },
        }))
        .unwrap();
        let mut cluster = ClusterState::new(SelectorIndex::default(), References::new(allowed));
        for &namespace in namespaces {
            cluster.set_namespace(namespace, NamespaceUid::of(namespace, None), &BTreeMap::new(), false);
            let role = Some(format!("arn:aws:iam::{ACCOUNT}:role/{namespace}"));
            let record = AccountRecord { uid: namespace.into(), created: at(NOW), role, audience: None };
            cluster.references.set_account(namespace, "puller", Some(record));
        }
        cluster.set_credential(&uid("x"), credential_ref(&object, &limits));
        let (send, queue) = unbounded_channel();
        let server = Server::default();
        PASSED.set(Duration::ZERO);
        let clock = Clock::new(|| at(NOW) + PASSED.get(), || PASSED.get());
        let aws = Aws::default();
        let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
        let cache = CacheSettings { retry, min_life: Duration::from_secs(60), rate: 10, clock: clock.clone() };
        let ctx = Context {
            shared: Arc::new(Shared::new(cluster, limits.clone(), send.clone(), Nobody)),
            tokens: Arc::new(TokenCache::new(Arc::new(aws.clone()), cache, send, |_| ())),
            writer: Writer::new(server.client(), 4, Duration::from_secs(65)),
            events: Events::new(server.client(), "test", "test"),
            installation: "operator/operator".into(),
            limits,
            retry,
            concurrency: 4,
            clock,
            observer: Arc::new(Nobody),
            stop: CancellationToken::new(),
            writes: TaskTracker::new(),
            states: CredentialStates::default(),
        };
        let plan = plan(&object.spec, &ctx.limits).unwrap();
        let owner = Owner { name: "x".to_owned(), uid: uid("x") };
        Self { ctx, server, aws, plan, uid: uid("x"), owner, object, queue }
    }

    /// What the Secret should be with these tokens.
    pub(super) fn desired(&self, published: &crate::secret::Published) -> Desired {
        let bundle = crate::secret::bundle(&self.plan, &self.owner, published, &Default::default(), at(NOW));
        Arc::unwrap_or_clone(bundle.unwrap().remove(&self.plan.secret.name).unwrap())
    }

    /// The watch shows a Secret of ours in a namespace.
    pub(super) fn sees(&self, namespace: &str, digest: ManagedFieldsDigest, expires: i64) {
        let (uid, expires_at) = (namespace.into(), Some(at(expires)));
        let record = SecretRecord { uid, expires_at, ..SecretRecord::fixture(Some(self.uid.clone()), "1", digest) };
        self.ctx.shared.secret_listed("pull", namespace, Arc::new(record));
    }
}
