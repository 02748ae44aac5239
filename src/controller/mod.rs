//! The controller: watches, queue, reconciliations, and the one place where their results are reported.

mod accounts;
mod change_limit;
pub mod cluster_state;
mod desired_secrets;
mod diff;
mod docker_configs;
pub mod error;
pub mod events;
pub mod expectations;
mod follow;
mod in_flight;
pub mod includes;
mod keys;
mod pace;
mod reader;
mod reconcile;
pub mod recover;
pub mod references;
mod retry_state;
mod secret_list;
pub mod service_accounts;
pub mod shared;
mod status_writer;
mod sync_ledger;
mod tenant;
mod tenants;
mod tokens;
pub mod unreadable;
pub mod watches;
mod work_queue;
mod writes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::applier;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{ObjectRef, Store};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::registry::Host;
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::apply::{WriteError, Writer, Written};
use crate::clock::Clock;
use crate::plan::schedule::RetryPolicy;
use crate::plan::{Identity, Limits, Uid};
use crate::secret::{Published, SecretAction};
use crate::token::cache::TokenCache;
use crate::token::{DockerAuth, TokenHash};
use error::Error;
use events::Events;
pub use shared::{Shared, WatchObserver};

/// How many `EcrCredentials` are worked on at a time. They share the writer's slots.
const CONCURRENCY: u16 = 32;

/// How long to wait after a reconciliation that could not be ended.
const ERROR_WAIT: Duration = Duration::from_secs(5);

/// Hears of what happens, for metrics and logs.
pub trait Observer: Send + Sync {
    /// A write has ended.
    fn wrote(&self, action: &SecretAction, result: &Result<Written, WriteError>);
    /// An `EcrCredential` of this name has a status.
    fn concluded(&self, uid: &Uid, name: &str, status: &EcrCredentialStatus);
    /// A reconciliation has ended: how long it took, and why it failed if it did.
    fn reconciled(&self, took: Duration, error: Option<&Error>);
}

/// What every reconciliation needs.
pub struct Context {
    /// The cluster state and the queue.
    pub shared: Arc<Shared>,
    /// The tokens.
    pub tokens: Arc<TokenCache>,
    /// The writer.
    pub writer: Writer,
    /// The Events.
    pub events: Events,
    /// The name of this installation, the same for all its replicas.
    pub installation: Arc<str>,
    /// What the operator may do.
    pub limits: Limits,
    /// How long to wait between tries of a namespace.
    pub retry: RetryPolicy,
    /// How many writes one `EcrCredential` may have under way.
    pub concurrency: usize,
    /// The clock.
    pub clock: Clock,
    /// Hears of everything that happens.
    pub observer: Arc<dyn Observer>,
    /// Cancelled when the process is to end: no new write begins after that.
    pub stop: CancellationToken,
    /// The writes under way, which a process that is ending waits for.
    pub writes: TaskTracker,
    /// What is remembered of each `EcrCredential`.
    pub states: CredentialStates,
}

/// What is remembered of all `EcrCredentials`.
#[derive(Clone, Default)]
pub struct CredentialStates(Arc<Mutex<HashMap<Uid, Arc<tokio::sync::Mutex<CredentialState>>>>>);

impl CredentialStates {
    /// Forgets one that is gone.
    pub fn forget(&self, uid: &Uid) {
        self.0.lock().remove(uid);
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Begins to remember one.
    #[cfg(test)]
    pub fn remember(&self, uid: &Uid) {
        self.0.lock().entry(uid.clone()).or_default();
    }
}

impl Context {
    fn credential_state(&self, uid: &Uid) -> Arc<tokio::sync::Mutex<CredentialState>> {
        self.states.0.lock().entry(uid.clone()).or_default().clone()
    }

    /// By what a status vouches for the logins of a registry, which this identity fetched.
    fn hash(&self, identity: &Identity, logins: &[(Host, &DockerAuth)]) -> TokenHash {
        TokenHash::of(&self.tokens.fingerprint(identity), logins)
    }
}

/// What is remembered of one `EcrCredential` between reconciliations. All of it can be found again or done without.
#[derive(Default)]
pub struct CredentialState {
    published: Published,
    tenants: tenants::Tenants,
    recovery: recover::Recovery,
    demand: Option<Requested>,
    retries: retry_state::RetryState,
    pace: pace::Pace,
    status: status_writer::StatusWriter,
    /// Since when the first tokens of all are being fetched.
    first_asked: Option<tokio::time::Instant>,
}

impl CredentialState {
    /// Whether any token is known.
    fn has_tokens(&self) -> bool {
        !self.published.is_empty() || self.tenants.have_tokens()
    }

    /// When the oldest of its tokens was issued.
    fn oldest_token(&self) -> Option<Timestamp> {
        self.published.values().map(|token| token.life.issued_at).chain(self.tenants.oldest()).min()
    }

    /// When to read Secrets to find tokens again, if there are any left to read.
    fn recovers_at(&self) -> Option<tokio::time::Instant> {
        let shared = self.recovery.next_pass().map(|next| next.at);
        shared.into_iter().chain(self.tenants.recovers_at()).min()
    }
}

/// A refresh on demand. It is kept when it is served until the status says so, or it would be served again.
struct Requested {
    value: String,
    since: Timestamp,
    first: bool,
    served: bool,
}

/// Works off the queue until it ends, and reports every result.
pub async fn run(ctx: Arc<Context>, store: Store<EcrCredential>, queue: impl Stream<Item = Uid> + Send + 'static) {
    let shared = ctx.shared.clone();
    let requests = queue.filter_map(move |uid| {
        let request = shared
            .credential_name(&uid)
            .map(|name| controller::ReconcileRequest::from(ObjectRef::<EcrCredential>::new(&name)));
        std::future::ready(request.map(Ok::<_, std::convert::Infallible>))
    });
    let reconciler = |object: Arc<EcrCredential>, ctx: Arc<Context>| {
        // On a task of its own: it may use another core, and a panic in it ends nobody else.
        let task = tokio::spawn(async move {
            let start = std::time::Instant::now();
            let result = reconcile::reconcile(object, ctx.clone()).await;
            ctx.observer.reconciled(start.elapsed(), result.as_ref().err());
            result
        });
        task.map(|ended| ended.unwrap_or(Err(Error::Died))).boxed()
    };
    let config = controller::Config::default().concurrency(CONCURRENCY);
    let mut work = std::pin::pin!(applier(reconciler, on_error, ctx, store, Box::pin(requests), config));
    while let Some(result) = work.next().await {
        match result {
            Err(controller::Error::ReconcilerFailed(error, object)) => {
                tracing::warn!(name = %object.name, %error, "a reconciliation failed and is retried");
            }
            // An object that is gone by the time its turn comes.
            Err(error) => tracing::debug!(%error, "skipped"),
            Ok(_) => {}
        }
    }
}

fn on_error(_: Arc<EcrCredential>, error: &Error, _: Arc<Context>) -> Action {
    Action::requeue(error.wait().unwrap_or(ERROR_WAIT))
}

/// Turns a channel into the queue's stream, which ends when `stop` does.
pub fn queue<T: Send>(
    receiver: UnboundedReceiver<T>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = T> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
        .take_until(stop)
}

#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;
