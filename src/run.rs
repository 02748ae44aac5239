//! The command `run`: wires the modules together, starts them in order, and shuts them down.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector;
use kube::{Client, Config};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::registry::Region;
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::apply::Writer;
use crate::cli::{RunArgs, host_name, is_proxy_of_environment};
use crate::clock::Clock;
use crate::cluster::ApiServer;
use crate::controller::cluster_state::ClusterState;
use crate::controller::events::Events;
use crate::controller::references;
use crate::controller::service_accounts::{self, Attacher};
use crate::controller::watches::{self, SecretScope};
use crate::controller::{self, Context, CredentialStates, Shared, WatchObserver};
use crate::plan::references::References;
use crate::plan::schedule::RetryPolicy;
use crate::plan::{Limits, Uid};
use crate::process::fence::Fence;
use crate::process::http::{self, Readiness};
use crate::process::lease::{self, Leadership, LeaseSettings};
use crate::process::retries::Retries;
use crate::process::telemetry::{self, Exposition, Metrics};
use crate::report::{self, Reporter};
use crate::token::cache::{CacheSettings, TokenCache};
use crate::token::ecr::Ecr;
use crate::token::identity::{self, HttpRequest};

/// The longest that one write to the API server may take. The API server itself ends a request after 60 seconds (its flag
/// `--request-timeout`), in which several admission webhooks may take up to 30 seconds each.
const WRITE_TIMEOUT: Duration = Duration::from_secs(65);

/// The most threads that work. What they wait for is the API server; on a node with many processors and no CPU limit, each
/// thread more would only be memory.
const MOST_WORKERS: usize = 4;

/// Why the process fails. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The runtime could not be started.
    #[error("the runtime could not be started: {0}")]
    Runtime(#[source] std::io::Error),
    /// The log filter is wrong.
    #[error("{0}")]
    Logs(String),
    /// No cluster was found.
    #[error("no Kubernetes cluster: run inside a cluster, or set KUBECONFIG: {0}")]
    NoCluster(String),
    /// A setting is wrong.
    #[error("{0}")]
    Settings(String),
    /// The region cannot be one.
    #[error("the AWS region is wrong: {0}")]
    BadRegion(#[source] crate::api::registry::NameError),
    /// The HTTP address cannot be opened.
    #[error("cannot serve HTTP on {address}: {error}: choose another --http-address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The lease was lost, and with it the right to write.
    #[error("no longer the leader, exiting so that only one replica writes: {0}")]
    LeaseLost(String),
    /// A watch ended, which none does by itself.
    #[error("a watch has ended unexpectedly: restarting")]
    WatchEnded,
    /// The CRD could not be printed.
    #[error("the CRD could not be printed: {0}")]
    Crd(String),
}

/// Runs the controller until SIGTERM, SIGINT, or the loss of the lease.
///
/// # Errors
/// [`RunError`].
pub fn run(args: RunArgs) -> Result<(), RunError> {
    telemetry::start_logs(&args.log, args.log_format).map_err(RunError::Logs)?;
    // With two providers in the binary, rustls panics unless one is installed as default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.map_err(RunError::Runtime)?;
    let result = runtime.block_on(Process::start(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

struct Process {
    args: RunArgs,
    stop: CancellationToken,
    readiness: Readiness,
    metrics: Metrics,
    exposition: Arc<Exposition>,
}

impl Process {
    async fn start(args: RunArgs) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        stop_on_signal(stop.clone())?;
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.process.started.set(Timestamp::now().as_duration().as_secs_f64());
        report::start_counters(&metrics, &args.scope.allowed_identities());
        let exposition = Arc::new(Exposition::new(registry));
        let process = metrics.process.clone();
        exposition.before_each(move || process.refresh());
        let mut config = Config::infer().await.map_err(|error| RunError::NoCluster(error.to_string()))?;
        // A proxy in the environment is for AWS only. kube would use it for the API server as well, and ignores NO_PROXY.
        if config.proxy_url.as_ref().is_some_and(|url| is_proxy_of_environment(&url.to_string())) {
            config.proxy_url = None;
        }
        // Longer than an idle watch, which the library ends after 290 seconds.
        config.read_timeout = Some(Duration::from_secs(300));
        // Replaced by our own: see `Retries`.
        config.default_retry = false;
        let readiness = Readiness::default();
        let listener =
            http::listen(args.http_address).map_err(|error| RunError::Listen { address: args.http_address, error })?;
        let http =
            tokio::spawn(http::serve(listener, readiness.clone(), exposition.clone(), stop.clone().cancelled_owned()));
        let process = Self { args, stop: stop.clone(), readiness, metrics, exposition };
        let result = process.work(config).await;
        stop.cancel();
        // An incomplete request must not delay the shutdown.
        let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
        result
    }

    async fn work(&self, config: Config) -> Result<(), RunError> {
        let namespace = self.args.lease.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let fence = if self.args.lease.no_leader_election { Fence::open() } else { Fence::default() };
        let cluster = |error: kube::Error| RunError::NoCluster(error.to_string());
        // The lease must be written before we hold it; all other writes pass the fence.
        let clock = Clock::default();
        let builder = |config| {
            let base = kube::client::ClientBuilder::try_from(config).map_err(cluster)?;
            Ok::<_, RunError>(base.with_layer(&Retries).with_layer(&clock))
        };
        let plain = builder(config.clone())?.build();
        let client = builder(config)?.with_layer(&fence).build();
        let parts = self.assemble(&client, clock).await?;
        let Some(leadership) = self.lead(plain, namespace, fence).await else { return Ok(()) };
        let keeping = CancellationToken::new();
        let keeper = leadership.map(|leadership| keep(leadership, keeping.clone()));
        self.metrics.leader.set(1);
        let result = self.serve(&client, parts, keeper, keeping).await;
        self.metrics.leader.set(0);
        result
    }

    /// Runs until it is stopped or loses the lease; then completes writes in flight within the grace period, and releases the lease.
    async fn serve(
        &self,
        client: &Client,
        parts: Parts,
        keeper: Option<JoinHandle<Result<Leadership, String>>>,
        keeping: CancellationToken,
    ) -> Result<(), RunError> {
        let mut lost = keeper.map_or_else(|| futures::future::pending().boxed(), FutureExt::boxed);
        let mut watches = self.watch(client, parts.ctx.shared.clone(), parts.writer);
        for scope in self.attach_scopes() {
            watches.spawn(self.attach(client, scope, &parts.ctx));
        }
        let mut work = self.reconcile(parts.ctx, parts.store, parts.queue).boxed();
        tokio::select! {
            () = &mut work => {}
            why = &mut lost => return Err(deposed(why)),
            _ = watches.join_next() => return Err(RunError::WatchEnded),
            () = self.stop.cancelled() => {
                tracing::info!("stopping");
                tokio::select! {
                    () = &mut work => {}
                    why = &mut lost => return Err(deposed(why)),
                    () = tokio::time::sleep(self.args.grace_period) => tracing::warn!("not all work finished within the grace period"),
                }
            }
        }
        drop(work);
        keeping.cancel();
        if !self.args.lease.no_leader_election
            && let Ok(Ok(leadership)) = lost.await
        {
            leadership.release().await;
        }
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
        let scopes = self.scopes().len();
        let allowed = self.args.scope.allowed_identities();
        let references = allowed.accounts.len() + allowed.keys.len() + self.args.scope.allowed_includes().len();
        tokio::select! {
            _ = listed.wait_for(|listed| listed.is_complete(scopes, references)) => {}
            () = self.stop.cancelled() => return,
        }
        self.readiness.set(true);
        let writes = ctx.writes.clone();
        controller::run(ctx, store, controller::queue(queue, self.stop.clone().cancelled_owned())).await;
        writes.close();
        writes.wait().await;
    }

    /// Attaches Secrets to the ServiceAccounts of a scope, once all EcrCredentials and namespaces are known: what is no longer asked
    /// for is taken back.
    fn attach(
        &self,
        client: &Client,
        scope: service_accounts::Scope,
        ctx: &Arc<Context>,
    ) -> impl Future<Output = ()> + use<> {
        let (client, shared, stop) = (client.clone(), ctx.shared.clone(), self.stop.clone());
        let attacher = Arc::new(Attacher::new(shared.clone(), ctx.writer.clone(), ctx.retry));
        async move {
            let mut listed = shared.listed();
            let known = async { listed.wait_for(|listed| listed.has_targets()).await.is_ok() };
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

    /// One watch of ServiceAccounts for each allowed name in each allowed namespace.
    fn attach_scopes(&self) -> Vec<service_accounts::Scope> {
        let namespaces = self.args.scope.allowed_namespaces();
        let namespaces: Vec<Option<Arc<str>>> =
            namespaces.map_or_else(|| vec![None], |all| all.into_iter().map(Some).collect());
        let names = self.args.scope.attachable();
        let pairs = names.iter().flat_map(|name| namespaces.iter().map(move |namespace| (name, namespace)));
        pairs
            .map(|(name, namespace)| service_accounts::Scope { name: name.clone(), namespace: namespace.clone() })
            .collect()
    }

    /// Waits for the lease; none if the process is stopped before. A standby replica is ready as well.
    async fn lead(&self, client: Client, namespace: String, fence: Fence) -> Option<Option<Leadership>> {
        if self.args.lease.no_leader_election {
            return Some(None);
        }
        let nanos = Timestamp::now().as_nanosecond();
        let replica = self.args.replica_name.clone().unwrap_or_else(host_name);
        let settings = LeaseSettings {
            namespace,
            name: self.args.lease.lease_name.clone(),
            // A restarted container is a different process: it must not take its predecessor's lease for its own.
            identity: format!("{replica}_{}_{nanos}", std::process::id()),
            duration: self.args.lease_duration,
        };
        let leadership = tokio::select! {
            leadership = lease::acquire(client, settings, fence, || self.readiness.set(true)) => leadership,
            () = self.stop.cancelled() => return None,
        };
        self.readiness.set(false);
        Some(Some(leadership))
    }

    /// Starts the watches. Only the leader has them: their lists are never older than the lease, so that nothing a predecessor wrote
    /// counts as absent.
    fn watch(
        &self,
        client: &Client,
        shared: Arc<Shared>,
        store: reflector::store::Writer<EcrCredential>,
    ) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        let selector = self.args.credential_selector.clone();
        watches.spawn(watches::credentials(client.clone(), selector, shared.clone(), store));
        watches.spawn(watches::namespaces(client.clone(), shared.clone()));
        for scope in self.scopes() {
            watches.spawn(watches::secrets(client.clone(), scope, shared.clone()));
        }
        let (allowed, interval) = (self.args.scope.allowed_identities(), self.args.retry_max);
        for scope in allowed.accounts {
            watches.spawn(references::accounts(client.clone(), scope, shared.clone(), interval));
        }
        for scope in allowed.keys {
            watches.spawn(references::keys(client.clone(), self.cluster(client), scope, shared.clone(), interval));
        }
        for scope in self.args.scope.allowed_includes() {
            let reader = Writer::new(client.clone(), 1, WRITE_TIMEOUT);
            watches.spawn(references::include(client.clone(), reader, scope, shared.clone(), interval));
        }
        watches
    }

    /// Creates the parts.
    async fn assemble(&self, client: &Client, clock: Clock) -> Result<Parts, RunError> {
        let args = &self.args;
        let settings = args.aws.settings().map_err(RunError::Settings)?;
        let origins = self.metrics.clone();
        let found = move |origin| report::found_identity(&origins, origin);
        let requests = self.metrics.clone();
        let requested = move |request: &HttpRequest| report::requested(&requests, request);
        let identity = identity::load(&settings, &clock, found, requested).await.map_err(RunError::Settings)?;
        let region = identity.config.region().map(|region| Region::parse(region.as_ref()));
        let region = region.transpose().map_err(RunError::BadRegion)?;
        if region.is_none() {
            tracing::warn!(
                "no default AWS region: set the chart's aws.region (flag --aws-region, variable AWS_REGION), or region in each private registry"
            );
        }
        let limits = Limits {
            region,
            secret_names: args.scope.allowed_names(),
            outputs: Some(args.scope.allowed_outputs()),
            includes: args.scope.allowed_includes(),
            namespaces: args.scope.allowed_namespaces(),
            identities: args.scope.allowed_identities(),
            attach_pods: args.scope.attach_pods,
            attach_service_accounts: args.scope.attachable(),
            fixed_api: identity.endpoints.ecr.is_some(),
        };
        let retry = RetryPolicy { initial: args.retry_initial, max: args.retry_max };
        let (send, queue) = unbounded_channel();
        let reporter = Arc::new(Reporter::new(self.metrics.clone()));
        let cache =
            CacheSettings { retry, min_life: args.minimum_token_life, rate: args.aws_rate, clock: clock.clone() };
        let seen = reporter.clone();
        let source = Arc::new(Ecr::new(identity, self.cluster(client)));
        let tokens = Arc::new(TokenCache::new(source, cache, send.clone(), move |f| seen.fetched(f)));
        let states = CredentialStates::default();
        let observer = Watched { reporter: reporter.clone(), states: states.clone(), tokens: tokens.clone() };
        let state = ClusterState::new(limits.index(), References::new(limits.identities.clone()));
        let shared = Arc::new(Shared::new(state, limits.clone(), send, observer));
        let ctx = Arc::new(Context {
            shared: shared.clone(),
            tokens,
            writer: Writer::new(client.clone(), usize::from(args.concurrency), WRITE_TIMEOUT),
            events: Events::new(
                client.clone(),
                "ecr-credential-operator",
                &args.replica_name.clone().unwrap_or_else(host_name),
            )
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
        Ok(Parts { ctx, store, writer, queue })
    }

    /// The credentials of identities in the cluster.
    fn cluster(&self, client: &Client) -> Arc<ApiServer> {
        Arc::new(ApiServer::new(client.clone(), self.args.aws.aws_timeout.mul_f64(0.7)))
    }

    /// One watch of Secrets for each name that may be written, in each allowed namespace: no wider than the permissions.
    fn scopes(&self) -> Vec<SecretScope> {
        let scope = &self.args.scope;
        let outputs = Some(scope.allowed_outputs());
        watches::secret_scopes(scope.allowed_names().as_ref(), scope.allowed_namespaces().as_ref(), outputs.as_ref())
    }
}

/// Sends uids from the watches to the queue.
struct Watched {
    reporter: Arc<Reporter>,
    states: CredentialStates,
    tokens: Arc<TokenCache>,
}

impl WatchObserver for Watched {
    fn gone(&self, uid: &Uid) {
        self.reporter.forget(uid);
        self.states.forget(uid);
        self.tokens.want(uid, BTreeSet::new());
    }

    fn unreadable(&self, uid: &Uid, name: &str, status: Option<&EcrCredentialStatus>) {
        self.reporter.unreadable(uid, name, status);
    }

    fn skipped(&self, kind: &'static str, count: usize) {
        self.reporter.skipped(kind, count);
    }
}

/// The parts of the controller.
struct Parts {
    ctx: Arc<Context>,
    store: reflector::Store<EcrCredential>,
    writer: reflector::store::Writer<EcrCredential>,
    queue: UnboundedReceiver<Uid>,
}

/// Renews the lease on a task of its own, so that long reconciliations cannot delay it. It ends with the reason for the loss, or with the
/// lease when it is stopped.
fn keep(mut leadership: Leadership, until: CancellationToken) -> JoinHandle<Result<Leadership, String>> {
    tokio::spawn(async move {
        let why = tokio::select! {
            why = leadership.keep() => Some(why),
            () = until.cancelled() => None,
        };
        match why {
            Some(why) => Err(why),
            None => Ok(leadership),
        }
    })
}

fn deposed(ended: Result<Result<Leadership, String>, tokio::task::JoinError>) -> RunError {
    let why = match ended {
        Ok(Err(why)) => why,
        Ok(Ok(_)) => "it was given back".to_owned(),
        // The error would quote the message of the panic.
        Err(_) => "the task that renews the lease has died".to_owned(),
    };
    RunError::LeaseLost(why)
}

fn stop_on_signal(stop: CancellationToken) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Runtime)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests;
