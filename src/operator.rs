//! The assembled operator: leader election, watches, token cache, controller and metrics, over any API server, clock and source of
//! tokens. The command `run` and the simulation of `tests/sim` run the same.

use std::sync::Arc;

use futures::FutureExt;
use http::{Request, Response};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::{Body, ClientBuilder, DynBody};
use kube::runtime::reflector;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::BoxError;
use tower::util::{BoxService, MapResponseLayer};

use crate::answers::without_odd_codes;
use crate::api::EcrCredential;
use crate::api::registry::Region;
use crate::apply::Writer;
use crate::cli::{RunArgs, host_name};
use crate::clock::Clock;
use crate::cluster::{ApiServer, REQUEST_TIMEOUT};
use crate::controller::cluster_state::ClusterState;
use crate::controller::events::Events;
use crate::controller::references;
use crate::controller::service_accounts::{self, Attacher};
use crate::controller::unreadable::UnreadableReports;
use crate::controller::{self, Context, CredentialStates, Shared, watches};
use crate::plan::references::References;
use crate::plan::schedule::RetryPolicy;
use crate::plan::scopes::AccountScope;
use crate::plan::{Limits, Uid};
use crate::process::fence::Fence;
use crate::process::http::Readiness;
use crate::process::lease::{self, LeaseSettings};
use crate::process::retries::Retries;
use crate::process::telemetry::{Exposition, Metrics};
use crate::report::{self, Reporter};
use crate::token::TokenSource;
use crate::token::cache::{CacheSettings, TokenCache};
use observer::Watched;
use term::Term;

mod observer;
mod term;

/// Why the operator ends by itself. Each message says what happens next.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The lease was lost, and with it the right to write.
    #[error("no longer the leader, exiting so that only one replica writes: {0}")]
    LeaseLost(String),
    /// A watch ended, which none does by itself.
    #[error("a watch has ended unexpectedly: restarting")]
    WatchEnded,
}

/// A connection to the API server, without the operator's layers.
pub type Connection = ClientBuilder<BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>>;

/// The clients of the API server.
pub struct Clients {
    /// The lease must be written before we hold it.
    lease: Client,
    /// The client of all other requests. Its writes pass the fence.
    pub fenced: Client,
}

/// AWS, as the operator reaches it.
pub struct Aws {
    /// The source of authorization tokens.
    pub source: Arc<dyn TokenSource>,
    /// The region of registries that name none.
    pub region: Option<Region>,
    /// Whether all calls go to one endpoint of ECR, so that no registry can choose another.
    pub fixed_api: bool,
}

/// The operator of one process.
pub struct Operator {
    /// The command line.
    pub args: RunArgs,
    /// The clock.
    pub clock: Clock,
    /// Ends the operator.
    pub stop: CancellationToken,
    /// Whether it has listed everything, or stands by.
    pub readiness: Readiness,
    /// Its metrics.
    pub metrics: Metrics,
    /// The same, as they are served.
    pub exposition: Arc<Exposition>,
    fence: Fence,
}

impl Operator {
    /// An operator that has not started. `fence` is closed.
    pub fn new(args: RunArgs, clock: Clock, fence: Fence, stop: CancellationToken) -> Self {
        if args.lease.no_leader_election {
            fence.open();
        }
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.process.started.set(Timestamp::now().as_duration().as_secs_f64());
        report::start_counters(&metrics, &args.scope.limits().identities);
        let exposition = Arc::new(Exposition::new(registry));
        let process = metrics.process.clone();
        exposition.before_each(move || process.refresh());
        Self { args, clock, stop, readiness: Readiness::default(), metrics, exposition, fence }
    }

    /// The clients over two connections.
    pub fn clients(&self, lease: Connection, fenced: Connection) -> Clients {
        let errors = MapResponseLayer::new(without_odd_codes);
        let stack = |connection: Connection| {
            connection.with_layer(&Retries).with_layer(&errors).with_layer(&self.clock.layer())
        };
        Clients { lease: stack(lease).build(), fenced: stack(fenced).with_layer(&self.fence).build() }
    }

    /// Runs until it is stopped or loses the lease.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn run(&self, clients: Clients, aws: Aws) -> Result<(), OperatorError> {
        let parts = self.assemble(&clients.fenced, aws);
        let Some(term) = self.lead(clients.lease).await else { return Ok(()) };
        let result = self.serve(&clients.fenced, parts, term).await;
        self.metrics.leader.set(0);
        result
    }

    /// Runs until it is stopped or loses the lease; then completes writes in flight within the grace period, and releases the lease.
    async fn serve(&self, client: &Client, parts: Parts, mut term: Term) -> Result<(), OperatorError> {
        let mut watches = self.watch(client, &parts.ctx, parts.writer);
        let mut work = self.reconcile(parts.ctx, parts.store, parts.queue).boxed();
        tokio::select! {
            () = &mut work => {}
            why = term.lost() => return Err(OperatorError::LeaseLost(why)),
            _ = watches.join_next() => return Err(OperatorError::WatchEnded),
            () = self.stop.cancelled() => {
                tracing::info!("stopping");
                tokio::select! {
                    () = &mut work => {}
                    why = term.lost() => return Err(OperatorError::LeaseLost(why)),
                    () = tokio::time::sleep(self.args.grace_period) => tracing::warn!("not all work finished within the grace period"),
                }
            }
        }
        drop(work);
        term.release().await;
        Ok(())
    }

    /// Waits for the initial lists, then runs the controller.
    async fn reconcile(
        &self,
        ctx: Arc<Context>,
        store: reflector::Store<EcrCredential>,
        queue: UnboundedReceiver<Uid>,
    ) {
        let mut listed = ctx.shared.listed();
        let limits = &ctx.limits;
        let scopes = limits.secret_scopes().len();
        let references = limits.identities.accounts.len() + limits.identities.keys.len() + limits.includes.len();
        tokio::select! {
            _ = listed.wait_for(|listed| listed.is_complete(scopes, references)) => {}
            () = self.stop.cancelled() => return,
        }
        self.readiness.set(true);
        self.metrics.leader.set(1);
        let writes = ctx.writes.clone();
        controller::run(ctx, store, controller::queue(queue, self.stop.clone().cancelled_owned())).await;
        writes.close();
        writes.wait().await;
    }

    /// Waits for the lease; none if the process is stopped before. A standby replica is ready as well.
    async fn lead(&self, client: Client) -> Option<Term> {
        if self.args.lease.no_leader_election {
            return Some(Term::default());
        }
        let nanos = Timestamp::now().as_nanosecond();
        let namespace = self.args.lease.lease_namespace.as_deref().unwrap_or(client.default_namespace());
        let settings = LeaseSettings {
            namespace: namespace.to_owned(),
            name: self.args.lease.lease_name.clone(),
            // A restarted container is a different process: it must not take its predecessor's lease for its own.
            identity: format!("{}_{}_{nanos}", self.replica(), std::process::id()),
            duration: self.args.lease_duration,
        };
        let leadership = tokio::select! {
            leadership = lease::acquire(client, settings, self.fence.clone(), || self.readiness.set(true)) => leadership,
            () = self.stop.cancelled() => return None,
        };
        self.readiness.set(false);
        Some(Term::of(leadership))
    }

    /// The name of this replica.
    fn replica(&self) -> String {
        self.args.replica_name.clone().unwrap_or_else(host_name)
    }

    /// Starts the watches. Only the leader has them: their lists are never older than the lease, so that nothing a predecessor wrote
    /// counts as absent.
    fn watch(
        &self,
        client: &Client,
        ctx: &Arc<Context>,
        store: reflector::store::Writer<EcrCredential>,
    ) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        let (limits, shared, interval) = (&ctx.limits, &ctx.shared, self.args.retry_max);
        let selector = self.args.credential_selector.clone();
        let reports = UnreadableReports::new(ctx.writer.clone(), self.clock.clone());
        watches.spawn(watches::credentials(client.clone(), selector, shared.clone(), store, reports));
        watches.spawn(watches::namespaces(client.clone(), shared.clone()));
        for scope in limits.secret_scopes() {
            watches.spawn(watches::secrets(client.clone(), scope, shared.clone()));
        }
        for scope in limits.identities.accounts.clone() {
            watches.spawn(references::accounts(client.clone(), scope, shared.clone(), interval));
        }
        for secret in limits.identities.keys.clone() {
            watches.spawn(references::keys(client.clone(), cluster(client), secret, shared.clone(), interval));
        }
        for secret in limits.includes.clone() {
            let reader = Writer::new(client.clone(), 1, REQUEST_TIMEOUT);
            watches.spawn(references::include(client.clone(), reader, secret, shared.clone(), interval));
        }
        for scope in limits.attach_scopes() {
            watches.spawn(self.attach(client, scope, ctx));
        }
        watches
    }

    /// Attaches Secrets to the ServiceAccounts of a scope, once all EcrCredentials, namespaces and Secrets are known: what is no longer
    /// asked for is taken back.
    fn attach(&self, client: &Client, scope: AccountScope, ctx: &Arc<Context>) -> impl Future<Output = ()> + use<> {
        let (client, shared, stop) = (client.clone(), ctx.shared.clone(), self.stop.clone());
        let scopes = ctx.limits.secret_scopes().len();
        let writer = Writer::new(client.clone(), service_accounts::CONCURRENCY, REQUEST_TIMEOUT);
        let attacher = Arc::new(Attacher::new(shared.clone(), writer, ctx.retry));
        async move {
            let mut listed = shared.listed();
            let known = async { listed.wait_for(|listed| listed.is_complete(scopes, 0)).await.is_ok() };
            let work = async {
                if known.await {
                    attacher.run(client, scope).await;
                }
            };
            tokio::select! {
                () = work => {}
                // The other watches run until the process ends.
                () = stop.cancelled() => std::future::pending().await,
            }
        }
    }

    /// Creates the parts of the controller.
    fn assemble(&self, client: &Client, aws: Aws) -> Parts {
        let args = &self.args;
        let limits = Limits { region: aws.region, fixed_api: aws.fixed_api, ..args.scope.limits() };
        let retry = RetryPolicy { initial: args.retry_initial, max: args.retry_max };
        let clock = self.clock.clone();
        let cache =
            CacheSettings { retry, min_life: args.minimum_token_life, rate: args.aws_rate, clock: clock.clone() };
        let (send, queue) = unbounded_channel();
        let reporter = Arc::new(Reporter::new(self.metrics.clone()));
        let seen = reporter.clone();
        let tokens = Arc::new(TokenCache::new(aws.source, cache, send.clone(), move |f| seen.fetched(f)));
        let states = CredentialStates::default();
        let observer = Watched { reporter: reporter.clone(), states: states.clone(), tokens: tokens.clone() };
        let state = ClusterState::new(limits.index(), References::new(limits.identities.clone()));
        let ctx = Arc::new(Context {
            shared: Arc::new(Shared::new(state, limits.clone(), send, observer)),
            tokens,
            writer: Writer::new(client.clone(), usize::from(args.concurrency), REQUEST_TIMEOUT),
            events: Events::new(client.clone(), "ecr-credential-operator", &self.replica())
                .in_namespaces(args.scope.namespace_events),
            installation: args.lease.installation(client.default_namespace()).into(),
            limits,
            retry,
            concurrency: usize::from(args.concurrency),
            clock,
            observer: reporter.clone(),
            stop: self.stop.clone(),
            writes: TaskTracker::new(),
            states,
        });
        let (metrics, seen) = (self.metrics.clone(), ctx.clone());
        self.exposition.before_each(move || {
            report::tokens_now(&metrics, &seen.tokens);
            let unattached = seen.shared.state.lock().unattached.len();
            reporter.unattached(unattached);
            reporter.publish();
        });
        let (store, writer) = reflector::store();
        Parts { ctx, store, writer, queue }
    }
}

/// Reads the credentials of identities in the cluster.
pub fn cluster(client: &Client) -> Arc<ApiServer> {
    Arc::new(ApiServer::new(client.clone()))
}

/// The parts of the controller.
struct Parts {
    ctx: Arc<Context>,
    store: reflector::Store<EcrCredential>,
    writer: reflector::store::Writer<EcrCredential>,
    queue: UnboundedReceiver<Uid>,
}
