//! The command `run`: gives an [`Operator`] its threads, signals, sockets and AWS.
//!
//! This file is all that the simulation (`tests/sim`) cannot share: it runs the same operator on one thread and virtual time, with
//! stand-ins for the API server and AWS, and without signals, the HTTP server, kubeconfig, TLS and the AWS SDK.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::registry::Region;
use crate::cli::{RunArgs, kube_config};
use crate::clock::Clock;
use crate::operator::{self, Aws, Connection, Operator, OperatorError};
use crate::process::fence::Fence;
use crate::process::{http, telemetry};
use crate::report;
use crate::token::ecr::Ecr;
use crate::token::identity::{self, HttpRequest};

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
    /// The operator has ended by itself.
    #[error(transparent)]
    Ended(#[from] OperatorError),
    /// The CRD could not be printed.
    #[error("the CRD could not be printed: {0}")]
    Crd(String),
}

/// Runs the operator until SIGTERM, SIGINT, or the loss of the lease.
///
/// # Errors
/// [`RunError`].
pub fn run(args: RunArgs) -> Result<(), RunError> {
    telemetry::start_logs(&args.log, args.log_format).map_err(RunError::Logs)?;
    args.consistent().map_err(RunError::Settings)?;
    // With two providers in the binary, rustls panics unless one is installed as default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.map_err(RunError::Runtime)?;
    let result = runtime.block_on(start(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn start(args: RunArgs) -> Result<(), RunError> {
    let operator = Operator::new(args, Clock::default(), Fence::default(), CancellationToken::new());
    stop_on_signal(operator.stop.clone())?;
    let config = kube_config().await.map_err(|error| RunError::NoCluster(error.to_string()))?;
    let config = with_timeouts(config);
    let address = operator.args.http_address;
    let listener = http::listen(address).map_err(|error| RunError::Listen { address, error })?;
    let (readiness, exposition) = (operator.readiness.clone(), operator.exposition.clone());
    let http = tokio::spawn(http::serve(listener, readiness, exposition, operator.stop.clone().cancelled_owned()));
    let result = work(&operator, &config).await;
    operator.stop.cancel();
    // An incomplete request must not delay the shutdown.
    let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
    result
}

async fn work(operator: &Operator, config: &Config) -> Result<(), RunError> {
    let clients = operator.clients(connection(config)?, connection(config)?);
    let aws = aws(operator, &clients.fenced).await?;
    Ok(operator.run(clients, aws).await?)
}

/// How long nothing may arrive on a connection before it is given up: a router may have forgotten it without a sign. The API server sends
/// a bookmark to an idle watch every 60 seconds (`bookmarkFrequency` in k8s.io/apiserver's cacher).
const READ_TIMEOUT: Duration = Duration::from_secs(90);

fn with_timeouts(mut config: Config) -> Config {
    config.read_timeout = Some(READ_TIMEOUT);
    // Replaced by our own: see `process::retries`.
    config.default_retry = false;
    config
}

fn connection(config: &Config) -> Result<Connection, RunError> {
    ClientBuilder::try_from(config.clone()).map_err(|error| RunError::NoCluster(error.to_string()))
}

/// ECR, called as the operator's own AWS identity or as others. `client` reads their credentials.
async fn aws(operator: &Operator, client: &Client) -> Result<Aws, RunError> {
    let settings = operator.args.aws.settings().map_err(RunError::Settings)?;
    let origins = operator.metrics.clone();
    let found = move |origin| report::found_identity(&origins, origin);
    let requests = operator.metrics.clone();
    let requested = move |request: &HttpRequest| report::requested(&requests, request);
    let identity = identity::load(&settings, &operator.clock, found, requested).await.map_err(RunError::Settings)?;
    let region = identity.config.region().map(|region| Region::parse(region.as_ref()));
    let region = region.transpose().map_err(RunError::BadRegion)?;
    if region.is_none() {
        tracing::warn!(
            "no default AWS region: set the chart's aws.region (flag --aws-region, variable AWS_REGION), or region in each private registry"
        );
    }
    let fixed_api = identity.endpoints.ecr.is_some();
    Ok(Aws { source: Arc::new(Ecr::new(identity, operator::cluster(client))), region, fixed_api })
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
mod tests {
    use std::net::SocketAddr;

    use futures::{AsyncBufReadExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// An API server that begins to answer one request, and is never heard of again.
    async fn falls_silent() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(connection.read(&mut request).await.unwrap() > 0);
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
            connection.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        address
    }

    #[tokio::test]
    async fn a_watch_whose_connection_has_gone_silent_is_given_up_after_the_next_bookmark_is_overdue() {
        let uri = format!("http://{}", falls_silent().await).parse().unwrap();
        let client = Client::try_from(with_timeouts(Config::new(uri))).unwrap();
        let request = ::http::Request::get("/api/v1/namespaces?watch=true").body(Vec::new()).unwrap();
        let mut lines = client.request_stream(request).await.unwrap().lines();
        assert_eq!(lines.next().await.unwrap().unwrap(), "{}");
        tokio::time::pause();
        let silent = Instant::now();
        assert!(lines.next().await.is_none_or(|line| line.is_err()));
        let waited = silent.elapsed();
        assert!(waited > Duration::from_secs(60) && waited <= Duration::from_secs(100), "{waited:?}");
    }
}
