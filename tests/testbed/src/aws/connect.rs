//! A forward proxy that leads AWS's host names to the stand-in, over TLS with a certificate for the name that was asked for.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::{Condvar, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::authority::Authority;
use super::hosts::ApiHost;
use super::server::{Door, StopOnDrop, bind, connection, in_own_thread};
use super::{AwsStandIn, Inner};

/// A running forward proxy; it ends when it is dropped.
pub struct AwsProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    _stop: StopOnDrop,
}

struct Shared {
    inner: Arc<Inner>,
    authority: Authority,
    tunnels: Mutex<Vec<Tunnel>>,
    /// How many tunnels are open.
    open: Mutex<usize>,
    closed: Condvar,
    missing: Mutex<BTreeSet<String>>,
    login: Mutex<Option<String>>,
}

/// A CONNECT and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// `api.ecr.eu-west-1.amazonaws.com:443`.
    pub authority: String,
    /// 200, 407 without the right login, 502 for a name that is not AWS's or does not resolve.
    pub status: u16,
    /// Why no call came through it: the caller did not like the certificate, or went away.
    pub failure: Option<String>,
}

impl AwsStandIn {
    /// Starts a forward proxy through which every host name of AWS leads here.
    pub fn proxy(&self) -> Result<AwsProxy> {
        let listener = bind(Ipv4Addr::LOCALHOST.into())?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            inner: self.inner.clone(),
            authority: Authority::new()?,
            tunnels: Mutex::default(),
            open: Mutex::default(),
            closed: Condvar::default(),
            missing: Mutex::default(),
            login: Mutex::default(),
        });
        let stop = in_own_thread("aws-proxy", {
            let shared = shared.clone();
            move |stopped| accept(shared, listener, stopped)
        })?;
        Ok(AwsProxy { shared, address, _stop: stop })
    }
}

impl AwsProxy {
    /// For `HTTPS_PROXY`: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The certificate to trust, and no other signs for it.
    pub fn ca_pem(&self) -> &str {
        self.shared.authority.pem()
    }

    /// The environment that sends an SDK here by nothing but the proxy; `ca_file` is where [`ca_pem`](Self::ca_pem) was written.
    pub fn env(&self, ca_file: &Path) -> Vec<(String, String)> {
        let ca_file = ca_file.to_string_lossy();
        let url = self.url();
        let pairs = [
            ("HTTPS_PROXY", url.as_str()),
            ("NO_PROXY", "127.0.0.1,localhost"),
            ("AWS_CA_BUNDLE", &ca_file),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Every CONNECT so far, oldest first.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.shared.tunnels.lock().clone()
    }

    /// Every CONNECT so far when none of the tunnels is open any more, as after the end of the caller. Waits for that.
    pub fn closed_tunnels(&self) -> Vec<Tunnel> {
        self.shared.closed.wait_while(&mut self.shared.open.lock(), |open| *open > 0);
        self.tunnels()
    }

    /// From now on this name does not resolve, as that of an endpoint which a region does not have.
    pub fn hide(&self, host: &str) {
        self.shared.missing.lock().insert(host.to_owned());
    }

    /// From now on callers must log in with `user:password`.
    pub fn require_login(&self, login: &str) {
        *self.shared.login.lock() = Some(format!("Basic {}", BASE64.encode(login)));
    }
}

async fn accept(shared: Arc<Shared>, listener: std::net::TcpListener, mut stop: watch::Receiver<bool>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accepting a connection")?;
                tokio::spawn(caller(shared.clone(), stream));
            }
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// Answers what a caller asks of the proxy itself.
async fn caller(shared: Arc<Shared>, stream: TcpStream) {
    let answer = service_fn(move |request| {
        let answer = shared.answer(request);
        async { Ok::<_, Infallible>(answer) }
    });
    // A caller that goes away in the middle is its own business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades().await;
}

impl Shared {
    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let (status, host) = match self.judge(&request, &authority) {
            Ok(host) => (StatusCode::OK, Some(host)),
            Err(status) => (status, None),
        };
        let number = self.record(Tunnel { authority, status: status.as_u16(), failure: None });
        if let Some(host) = host {
            let shared = self.clone();
            *self.open.lock() += 1;
            tokio::spawn(async move {
                if let Err(error) = shared.lead(request, host).await {
                    shared.tunnels.lock()[number].failure = Some(format!("{error:#}"));
                }
                *shared.open.lock() -= 1;
                shared.closed.notify_all();
            });
        }
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            response.headers_mut().insert(PROXY_AUTHENTICATE, http::HeaderValue::from_static("Basic"));
        }
        response
    }

    fn record(&self, tunnel: Tunnel) -> usize {
        let mut tunnels = self.tunnels.lock();
        tunnels.push(tunnel);
        tunnels.len() - 1
    }

    /// The host of AWS that a request may be led to.
    fn judge(&self, request: &Request<Incoming>, authority: &str) -> Result<ApiHost, StatusCode> {
        if request.method() != Method::CONNECT {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let sent = request.headers().get(PROXY_AUTHORIZATION).and_then(|value| value.to_str().ok());
        if self.login.lock().as_deref().is_some_and(|login| sent != Some(login)) {
            return Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        }
        let host = authority.strip_suffix(":443").and_then(ApiHost::parse).ok_or(StatusCode::BAD_GATEWAY)?;
        let away = self.missing.lock().contains(&host.name) || self.inner.faults.gate(host.service).is_closed();
        if away { Err(StatusCode::BAD_GATEWAY) } else { Ok(host) }
    }

    /// Takes the place of the host at the other end of the tunnel.
    async fn lead(&self, request: Request<Incoming>, host: ApiHost) -> Result<()> {
        let upgraded = hyper::upgrade::on(request).await?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok().context("the tunnel is no TCP connection")?;
        if !parts.read_buf.is_empty() {
            bail!("the caller spoke before it was answered");
        }
        let tls = TlsAcceptor::from(self.authority.server(&host.name)?);
        let stream = tls.accept(parts.io.into_inner()).await?;
        let asked = stream.get_ref().1.server_name();
        if asked != Some(host.name.as_str()) {
            bail!("the caller wants the certificate of {asked:?}");
        }
        connection(self.inner.clone(), Door { service: host.service, host: Some(host) }, stream).await;
        Ok(())
    }
}
