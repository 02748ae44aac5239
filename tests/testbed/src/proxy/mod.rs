//! A recording reverse proxy between one operator process and the API server: it sees every request and can hurt any of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::net::TcpListener;

pub use ::judge::{Request, Stored, Target};
pub use fault::{Action, Answer, Fault, Gate, Match, Placed};
pub use log::{GrantedToken, Log, Mark};

use crate::control_plane::{ControlPlane, install_crypto_provider};
use fault::Faults;
use forward::Forwarder;
use stream::OpenWatches;
use view::Views;

mod fault;
mod forward;
mod log;
mod stream;
mod view;

/// A proxy on a loopback port, plain HTTP/1.1 and HTTP/2 without TLS. It runs on threads of its own, so a test may block.
pub struct Proxy {
    address: SocketAddr,
    log: Arc<Log>,
    faults: Arc<Faults>,
    watches: Arc<OpenWatches>,
    views: Arc<Views>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    /// A proxy in front of this control plane's API server.
    pub fn start(plane: &ControlPlane) -> Result<Proxy> {
        Proxy::to(&plane.url(), plane.ca_pem())
    }

    /// A proxy in front of `url`, whose certificate `ca_pem` signed.
    pub fn to(url: &str, ca_pem: &str) -> Result<Proxy> {
        install_crypto_provider();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("proxy").enable_all().build()?;
        let upstream = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(ca_pem.as_bytes())?])
            .no_proxy()
            .http1_only()
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("open a loopback port for the proxy")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;

        let forwarder = Arc::new(Forwarder {
            base: url.to_owned(),
            upstream,
            log: Arc::default(),
            faults: Arc::default(),
            watches: Arc::default(),
            views: Arc::default(),
        });
        let Forwarder { log, faults, watches, views, .. } = &*forwarder;
        let (log, faults, watches, views) = (log.clone(), faults.clone(), watches.clone(), views.clone());
        let listener = {
            let _on_its_runtime = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, forwarder));
        Ok(Proxy { address, log, faults, watches, views, runtime: Some(runtime) })
    }

    /// The address to give to the operator in place of the API server's.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Puts a fault in place; of several that match a request, the oldest hits.
    pub fn place(&self, fault: Fault) -> Placed {
        self.faults.place(fault)
    }

    /// Removes every fault. What waits at a gate goes on waiting for the gate.
    pub fn heal(&self) {
        self.faults.clear();
    }

    /// From now on the lists and watches of a resource show only the objects whose name begins with `prefix`.
    pub fn show_only(&self, resource: &str, prefix: &str) {
        let prefix = prefix.to_owned();
        let shown = move |object: &serde_json::Value| {
            object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&prefix))
        };
        self.views.add(Match::any().method("GET").resource(resource).name(""), Arc::new(shown));
    }

    /// Breaks the open watches that match; the number of them.
    pub fn cut_watches(&self, on: &Match) -> usize {
        self.watches.cut(on)
    }

    /// Puts bytes into the open watches that match, such as an ERROR event with 410, or half an event; the number of them.
    pub fn send_to_watches(&self, on: &Match, bytes: impl Into<Bytes>) -> usize {
        self.watches.send(on, &bytes.into())
    }

    /// How many watches that match are open now.
    pub fn open_watches(&self, on: &Match) -> usize {
        self.watches.count(on)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test drops this within its own runtime, where waiting for another one is not allowed.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, forwarder: Arc<Forwarder>) -> io::Result<()> {
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let forwarder = forwarder.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| forwarder.clone().serve(request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // An error is a connection that the caller or a fault has cut.
            let _ = server.serve_connection(TokioIo::new(connection), service).await;
        });
    }
}
