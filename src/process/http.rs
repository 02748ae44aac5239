//! The HTTP side: liveness, readiness, metrics.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The media type of OpenMetrics, which is what is written.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Whether this process is ready; false until somebody says so.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says whether it is.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }
}

#[derive(Clone)]
struct Sources {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop` ends.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Arc<Registry>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Sources { readiness, registry });
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// Opens the listener. One for all addresses of IPv6 serves those of IPv4 too, whatever the system's default, and where there is no
/// IPv6 those alone.
///
/// # Errors
/// The address is in use, or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    or_ipv4_alone(address, open)
}

fn or_ipv4_alone<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let is_all = address.is_ipv6() && address.ip().is_unspecified();
    open(address).or_else(|error| match error.kind() {
        // Another has one of the two: what it does not have would be half a service.
        io::ErrorKind::AddrInUse => Err(error),
        _ if is_all => open((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        _ => Err(error),
    })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A successor need not wait until the connections of its predecessor are forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    if sources.readiness.0.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the watches have not brought their lists yet\n")
    }
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &sources.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn all_addresses_of_ipv6_are_those_of_ipv4_too() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ipv6 = listener.local_addr().unwrap().is_ipv6();
        let stop = std::future::pending();
        tokio::spawn(serve(listener, Readiness::default(), Arc::new(Registry::default()), stop));
        let loopback =
            if std::net::TcpListener::bind("[::1]:0").is_ok() { vec!["127.0.0.1", "::1"] } else { vec!["127.0.0.1"] };
        for host in loopback {
            assert!(ipv6 || host != "::1", "there is IPv6, and it is not served");
            let mut stream = TcpStream::connect((host, port)).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{host}: {answer}");
        }
    }

    #[test]
    fn ipv4_alone_is_served_where_there_is_no_ipv6_and_nowhere_else() {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable, Unsupported};
        for (address, why, tried) in [
            ("[::]:8080", Unsupported, vec!["[::]:8080", "0.0.0.0:8080"]),
            ("[::]:8080", AddrNotAvailable, vec!["[::]:8080", "0.0.0.0:8080"]),
            ("[::]:8080", AddrInUse, vec!["[::]:8080"]),
            ("[::1]:8080", Unsupported, vec!["[::1]:8080"]),
            ("0.0.0.0:8080", AddrNotAvailable, vec!["0.0.0.0:8080"]),
        ] {
            let opened = RefCell::new(Vec::new());
            let open = |address: SocketAddr| {
                opened.borrow_mut().push(address.to_string());
                if address.is_ipv6() || tried.len() == 1 { Err(why.into()) } else { Ok(()) }
            };
            let result = or_ipv4_alone(address.parse().unwrap(), open);
            assert_eq!(*opened.borrow(), tried, "{address} {why}");
            assert_eq!(result.is_ok(), tried.len() == 2, "{address} {why}");
        }
    }
}
