//! The stand-in's ports: one listener per service, and connections that may be cut, stalled or fed byte by byte.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryFutureExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::server::TlsStream;

use super::api::{Reply, handle};
use super::fault::Delivery;
use super::hosts::ApiHost;
use super::{Inner, Service};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where a call comes in: a service's own port, or one of its host names.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) service: Service,
    pub(super) host: Option<ApiHost>,
}

/// A stream over a connection that can be reset.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn socket(&self) -> SockRef<'_>;
}

impl Wire for TcpStream {
    fn socket(&self) -> SockRef<'_> {
        SockRef::from(self)
    }
}

impl Wire for TlsStream<TcpStream> {
    fn socket(&self) -> SockRef<'_> {
        SockRef::from(self.get_ref().0)
    }
}

/// A child process that is being started holds our sockets until it executes its own program.
const LONGEST_FORK: Duration = Duration::from_secs(5);

/// Ends the stand-in's thread, and so closes its ports.
pub(super) struct StopOnDrop {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // The last handle may be dropped by the thread itself, in a closure that it was given.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Binds a free port for each service and serves them in a thread of their own.
pub(super) fn start(inner: &Arc<Inner>, address: IpAddr) -> Result<([SocketAddr; 3], StopOnDrop)> {
    let listeners = [bind(address)?, bind(address)?, bind(address)?];
    let mut addresses = [SocketAddr::new(address, 0); 3];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    let inner = inner.clone();
    let stop = in_own_thread("aws-stand-in", move |stopped| {
        let all = Service::ALL.into_iter().zip(listeners);
        let servers = all.map(move |(service, listener)| serve(inner.clone(), service, listener, stopped.clone()));
        futures::future::try_join_all(servers).map_ok(drop)
    })?;
    Ok((addresses, stop))
}

/// Runs what `serve` makes in a thread and runtime of its own until it is dropped; `serve` is told when to end.
pub(super) fn in_own_thread<F>(
    name: &'static str,
    serve: impl FnOnce(watch::Receiver<bool>) -> F + Send + 'static,
) -> Result<StopOnDrop>
where
    F: Future<Output = Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = watch::channel(false);
    let run = move || {
        if let Err(error) = runtime.block_on(serve(stopped)) {
            eprintln!("the {name} stopped: {error:#}");
        }
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
    Ok(StopOnDrop { stop, thread: Some(thread) })
}

pub(super) fn bind(address: IpAddr) -> Result<std::net::TcpListener> {
    let bound = std::net::TcpListener::bind((address, 0));
    let listener = bound.with_context(|| format!("binding a port of {address} for the AWS stand-in"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves one service until `stop` holds; its port closes and opens as the gate says.
async fn serve(
    inner: Arc<Inner>,
    service: Service,
    listener: std::net::TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let address = listener.local_addr()?;
    let mut listener = TcpListener::from_std(listener)?;
    let mut closed = inner.faults.gate(service).wanted_closed();
    loop {
        if *closed.borrow_and_update() {
            drop(listener);
            let reserved = reserve(address).await?;
            inner.faults.gate(service).report_closed(true);
            tokio::select! {
                _ = closed.wait_for(|closed| !closed) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
            listener = reserved.listen(1024)?;
            inner.faults.gate(service).report_closed(false);
        }
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accepting a connection")?;
                tokio::spawn(connection(inner.clone(), Door { service, host: None }, stream));
            }
            _ = closed.changed() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// Holds the port without listening, so that calls are refused and nobody else takes it.
async fn reserve(address: SocketAddr) -> Result<TcpSocket> {
    let deadline = tokio::time::Instant::now() + LONGEST_FORK;
    loop {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("holding the closed port {address}")),
        }
    }
}

/// Answers the calls of one connection until it ends or is cut.
pub(super) async fn connection(inner: Arc<Inner>, door: Door, stream: impl Wire) {
    let cut = Arc::new(Notify::new());
    let mut closed = inner.faults.gate(door.service).wanted_closed();
    let answer = service_fn({
        let (inner, cut) = (inner.clone(), cut.clone());
        move |request| respond(inner.clone(), door.clone(), request, cut.clone())
    });
    let mut http = http1::Builder::new().auto_date_header(false).serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        // A caller that goes away in the middle is its own business.
        _ = &mut http => return,
        _ = cut.notified() => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
    // With no time to linger the kernel sends a reset instead of an orderly end.
    let _ = http.into_parts().io.inner().socket().set_linger(Some(Duration::ZERO));
}

async fn respond(
    inner: Arc<Inner>,
    door: Door,
    request: Request<Incoming>,
    cut: Arc<Notify>,
) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let reply = handle(&inner, &door, &parts, &body).await;
    match (reply.delivery, reply.fault_id) {
        (Delivery::Hang, Some(id)) => inner.faults.cleared(id).await,
        (Delivery::Reset, _) => {}
        _ => return Ok(response(&inner, door.service, reply)),
    }
    cut.notify_one();
    std::future::pending().await
}

fn response(inner: &Inner, service: Service, reply: Reply) -> Response<Body> {
    // SDKs correct their clocks by this header, so it must show the clock that judges the signatures.
    let date = inner.clock.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let request_id = if service == Service::EcrPublic { "x-amz-request-id" } else { "x-amzn-requestid" };
    let response = Response::builder()
        .status(reply.status)
        .header("content-type", reply.content_type)
        .header("content-length", reply.body.len())
        .header("date", date)
        .header(request_id, reply.request_id);
    let body = match reply.delivery {
        Delivery::Drip(pause) => drip(reply.body, pause),
        _ => Full::new(Bytes::from(reply.body)).boxed_unsync(),
    };
    response.body(body).unwrap_or_else(|error| unreachable!("every part of the response is valid: {error}"))
}

/// The body, one byte after each pause.
fn drip(body: Vec<u8>, pause: Duration) -> Body {
    let bytes = futures::stream::iter(body).then(move |byte| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(Bytes::from(vec![byte])))
    });
    StreamBody::new(bytes).boxed_unsync()
}
