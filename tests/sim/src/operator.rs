//! The operator in this process, wired as `run` wires it; the one file that names the operator's own types.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ecr_credential_operator::api::registry::{AccountId, Region};
use ecr_credential_operator::api::{EcrCredential, EcrCredentialStatus};
use ecr_credential_operator::apply::{WriteError, Writer, Written};
use ecr_credential_operator::clock::{Clock, Server};
use ecr_credential_operator::controller::cluster_state::ClusterState;
use ecr_credential_operator::controller::error::Error;
use ecr_credential_operator::controller::events::Events;
use ecr_credential_operator::controller::watches::{self, SecretScope};
use ecr_credential_operator::controller::{self, Context, CredentialStates, Observer, Shared, WatchObserver};
use ecr_credential_operator::plan::references::References;
use ecr_credential_operator::plan::schedule::RetryPolicy;
use ecr_credential_operator::plan::targets::SelectorIndex;
use ecr_credential_operator::plan::{Identity, Limits, Service, TokenKey, Uid};
use ecr_credential_operator::process::fence::Fence;
use ecr_credential_operator::process::lease::{self, LeaseSettings};
use ecr_credential_operator::process::retries::Retries;
use ecr_credential_operator::secret::SecretAction;
use ecr_credential_operator::token::cache::{CacheSettings, TokenCache};
use ecr_credential_operator::token::{RawToken, TokenError, TokenSource};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::SignedDuration;
use kube::client::ClientBuilder;
use kube::runtime::reflector;
use secrecy::SecretString;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api_server::{ApiServer, Link};
use crate::aws::{ACCOUNT, Aws, Failure};
use crate::clock;

/// The flags that a simulation can set; the others are as the command line has them.
#[derive(Clone, Debug)]
pub struct Settings {
    pub secret_names: Vec<String>,
    pub namespaces: Option<Vec<String>>,
    pub region: String,
    pub identity: String,
    pub concurrency: u16,
    /// How long the Lease lasts; none without leader election.
    pub lease: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secret_names: vec!["ecr-pull-secret".to_owned(), "other-secret".to_owned()],
            namespaces: None,
            region: "eu-west-1".to_owned(),
            identity: "role/operator".to_owned(),
            concurrency: 32,
            lease: None,
        }
    }
}

/// The longest that one call to AWS may take.
const AWS_TIMEOUT: Duration = Duration::from_secs(10);

/// A running operator.
pub struct Process {
    pub number: u32,
    link: Link,
    stop: CancellationToken,
    work: JoinHandle<()>,
}

/// Who holds the Lease in the name of a process.
pub fn identity(number: u32) -> String {
    format!("replica-{number}")
}

impl Process {
    /// Starts one on the runtime that is entered.
    pub fn start(number: u32, server: &ApiServer, aws: &Aws, settings: &Settings) -> Self {
        let link = Link::new(server, number);
        let stop = CancellationToken::new();
        let parts = (link.clone(), aws.clone(), settings.clone(), stop.clone());
        let work = tokio::spawn(async move {
            let (link, aws, settings, stop) = parts;
            live(number, &link, aws, settings, stop).await;
            // What it has spawned may still run; as a process it would have ended with it.
            link.cut();
        });
        Self { number, link, stop, work }
    }

    /// SIGTERM.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// SIGKILL, as far as anybody else can tell.
    pub fn kill(&self) {
        self.link.cut();
        self.work.abort();
    }

    pub fn has_ended(&self) -> bool {
        self.work.is_finished()
    }
}

async fn live(number: u32, link: &Link, aws: Aws, settings: Settings, stop: CancellationToken) {
    let fence = if settings.lease.is_some() { Fence::with_clock(clock::system_now) } else { Fence::open() };
    let time = Clock::new(clock::operator_now, clock::uptime);
    // The same layers as in `run`.
    let stack = || ClientBuilder::new(link.clone(), "operator").with_layer(&Retries).with_layer(&time);
    let (plain, client) = (stack().build(), stack().with_layer(&fence).build());
    let mut lost = futures::future::pending().boxed();
    let keeping = CancellationToken::new();
    if let Some(duration) = settings.lease {
        let lease = LeaseSettings {
            namespace: "operator".to_owned(),
            name: "ecr-credential-operator".to_owned(),
            identity: identity(number),
            duration,
        };
        let mut leadership = tokio::select! {
            leadership = lease::acquire(plain, lease, fence, || ()) => leadership,
            () = stop.cancelled() => return,
        };
        let until = keeping.clone();
        lost = tokio::spawn(async move {
            tokio::select! {
                _ = leadership.keep() => {}
                () = until.cancelled() => leadership.release().await,
            }
        })
        .map(drop)
        .boxed();
    }
    let mut work = work(number, client, (aws, time), &settings, stop.clone()).boxed();
    let ended = tokio::select! {
        () = &mut work => true,
        () = &mut lost => false,
    };
    drop(work);
    keeping.cancel();
    if ended && settings.lease.is_some() {
        lost.await;
    }
}

/// As `run::Process::assemble`, `watch` and `reconcile`.
async fn work(
    number: u32,
    client: kube::Client,
    (aws, time): (Aws, Clock),
    settings: &Settings,
    stop: CancellationToken,
) {
    let names = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect::<BTreeSet<Arc<str>>>();
    let limits = Limits {
        region: Region::parse(&settings.region).ok(),
        secret_names: Some(names(&settings.secret_names)),
        namespaces: settings.namespaces.as_deref().map(names),
        ..Limits::default()
    };
    let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
    let (send, queue) = unbounded_channel();
    let cache = CacheSettings { retry, min_life: Duration::from_secs(300), rate: 10, clock: time.clone() };
    let source = Source { aws, process: number, identity: settings.identity.clone(), clock: time.clone() };
    let tokens = Arc::new(TokenCache::new(Arc::new(source), cache, send.clone(), |_| ()));
    let states = CredentialStates::default();
    let world =
        ClusterState::new(SelectorIndex::new(limits.namespaces.clone()), References::new(limits.identities.clone()));
    let observer = Watched { states: states.clone(), tokens: tokens.clone() };
    let shared = Arc::new(Shared::new(world, limits.clone(), send, observer));
    let concurrency = usize::from(settings.concurrency);
    let ctx = Arc::new(Context {
        shared: shared.clone(),
        tokens,
        writer: Writer::new(client.clone(), concurrency, Duration::from_secs(30)),
        events: Events::new(client.clone(), "ecr-credential-operator", &identity(number)),
        installation: "operator/operator".into(),
        limits,
        retry,
        concurrency,
        clock: time,
        observer: Arc::new(Nobody),
        stop: stop.clone(),
        writes: TaskTracker::new(),
        states,
    });
    let (store, writer) = reflector::store();
    let mut watching = JoinSet::new();
    watching.spawn(watches::credentials(client.clone(), None, shared.clone(), writer));
    watching.spawn(watches::namespaces(client.clone(), shared.clone()));
    let namespaces: Vec<Option<Arc<str>>> = match &settings.namespaces {
        Some(namespaces) => namespaces.iter().map(|namespace| Some(namespace.as_str().into())).collect(),
        None => vec![None],
    };
    let mut scopes = 0;
    for namespace in namespaces {
        for name in &settings.secret_names {
            let scope = SecretScope { name: Some(name.as_str().into()), namespace: namespace.clone() };
            watching.spawn(watches::secrets(client.clone(), scope, shared.clone()));
            scopes += 1;
        }
    }
    let mut listed = shared.listed();
    tokio::select! {
        _ = listed.wait_for(|listed| listed.is_complete(scopes, 0)) => {}
        () = stop.cancelled() => return,
    }
    let writes = ctx.writes.clone();
    controller::run(ctx, store, controller::queue(queue, stop.cancelled_owned())).await;
    writes.close();
    writes.wait().await;
}

/// Forgets whoever is gone.
struct Watched {
    states: CredentialStates,
    tokens: Arc<TokenCache>,
}

impl WatchObserver for Watched {
    fn gone(&self, uid: &Uid) {
        self.states.forget(uid);
        self.tokens.want(uid, BTreeSet::new());
    }
    fn unreadable(&self, _: &Uid, _: &str, _: Option<&EcrCredentialStatus>) {}
    fn skipped(&self, _: &'static str, _: usize) {}
}

/// Hears everything and says nothing.
struct Nobody;

impl Observer for Nobody {
    fn wrote(&self, _: &SecretAction, _: &Result<Written, WriteError>) {}
    fn concluded(&self, _: &Uid, _: &str, _: &EcrCredentialStatus) {}
    fn reconciled(&self, _: Duration, _: Option<&Error>) {}
}

/// The scripted AWS as the operator sees it.
struct Source {
    aws: Aws,
    process: u32,
    identity: String,
    clock: Clock,
}

/// A key as the script names it: `ecr/eu-west-1` or `public`.
fn name(key: &TokenKey) -> String {
    match &key.service {
        Service::Private { region, registry_ids, .. } => {
            let ids: Vec<&str> = registry_ids.iter().map(AccountId::as_str).collect();
            let ids = if ids.is_empty() { String::new() } else { format!("/{}", ids.join("+")) };
            format!("ecr/{region}{ids}")
        }
        Service::Public => "public".to_owned(),
    }
}

impl TokenSource for Source {
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        async move {
            let sent = self.clock.uptime();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (issued, failure) = self.aws.call(self.process, &name(key));
            if failure.is_none_or(Failure::is_answered) {
                self.clock.hear(Server::Aws, &clock::aws_date(), sent);
            }
            let accounts = match &key.service {
                Service::Private { registry_ids, .. } if registry_ids.is_empty() => {
                    vec![AccountId::parse(ACCOUNT).ok()]
                }
                Service::Private { registry_ids, .. } => registry_ids.iter().cloned().map(Some).collect(),
                Service::Public => vec![None],
            };
            let good = || RawToken {
                token: Some(SecretString::from(issued.text.clone())),
                expires_at: Some(issued.expires_at),
                account: None,
            };
            let mut tokens: Vec<RawToken> =
                accounts.into_iter().map(|account| RawToken { account, ..good() }).collect();
            if let Some(failure) = failure {
                spoil(failure, &mut tokens).await?;
            }
            Ok(tokens)
        }
        .boxed()
    }

    fn fingerprint(&self, _: &Identity) -> String {
        self.identity.clone()
    }

    fn forget(&self, _: &Identity) {}
}

async fn spoil(failure: Failure, tokens: &mut Vec<RawToken>) -> Result<(), TokenError> {
    let text = |tokens: &mut Vec<RawToken>, text: String| {
        tokens.iter_mut().for_each(|token| token.token = Some(SecretString::from(text.clone())));
    };
    let coded = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let at = |seconds: i64| {
        clock::true_now().checked_add(SignedDuration::from_secs(seconds)).expect("a time within the run")
    };
    let expiry = |tokens: &mut Vec<RawToken>, at| tokens.iter_mut().for_each(|token| token.expires_at = at);
    match failure {
        Failure::NoCredentials => return Err(TokenError::NoCredentials("no provider".to_owned())),
        Failure::Denied => return Err(TokenError::Denied("AccessDenied".to_owned().into())),
        Failure::Throttled => return Err(TokenError::Throttled("ThrottlingException".to_owned())),
        Failure::Unavailable => return Err(TokenError::Unavailable("connection refused".to_owned())),
        Failure::Unreadable => return Err(TokenError::Unreadable("html".to_owned())),
        Failure::Hangs => {
            tokio::time::sleep(AWS_TIMEOUT).await;
            return Err(TokenError::Unavailable("timed out".to_owned()));
        }
        Failure::Panics => std::panic::resume_unwind(Box::new("a dependency panics")),
        Failure::Empty => tokens.clear(),
        Failure::NoToken => tokens.iter_mut().for_each(|token| token.token = None),
        Failure::NoExpiry => expiry(tokens, None),
        // ECR Public names none anyway: there it fails as if it were away.
        Failure::NoAccount if tokens.iter().all(|token| token.account.is_none()) => {
            return Err(TokenError::Unavailable("connection refused".to_owned()));
        }
        Failure::NoAccount => tokens.iter_mut().for_each(|token| token.account = None),
        Failure::NotBase64 => text(tokens, "%%%".to_owned()),
        Failure::NotUtf8 => text(tokens, coded(&[0xff, 0xfe])),
        Failure::NoColon => text(tokens, coded(b"AWSpassword")),
        Failure::WrongUser => text(tokens, coded(b"root:password")),
        Failure::EmptyPassword => text(tokens, coded(b"AWS:")),
        Failure::Huge => text(tokens, coded(&[b"AWS:".as_slice(), &[b'x'; 1 << 20]].concat())),
        Failure::Expired => expiry(tokens, Some(at(-60))),
        Failure::NearlyExpired => expiry(tokens, Some(at(30))),
        Failure::TwoTokens => tokens.extend(tokens.first().cloned()),
        Failure::TenYears => expiry(tokens, Some(at(10 * 365 * 86_400))),
    }
    Ok(())
}

/// A spec as the API server stores it: with every default.
pub fn is_readable(object: &serde_json::Value) -> bool {
    serde_json::from_value::<EcrCredential>(object.clone()).is_ok()
}
