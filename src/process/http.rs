//! The HTTP server: liveness, readiness, metrics.
//!
//! Any pod of the cluster may connect, and probes must be answered nevertheless. So a connection serves one request within bounded time
//! and memory, and the number of connections is limited.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::telemetry::{Exposition, Form};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How many connections are open at a time. A new one replaces the oldest: the new one may be a probe, and a request takes
/// milliseconds.
const MOST_CONNECTIONS: usize = 128;

/// How long a client may take for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of the read and write buffers in bytes: a longer request head is rejected (431).
const BUFFER: usize = 16 * 1024;

/// The wait after a connection could not be accepted, for example without free file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long an answer about readiness waits for it: a probe that comes while the process starts would otherwise be a failure, with a
/// warning Event. It is less than the `timeoutSeconds` of the probe.
const READINESS_WAIT: Duration = Duration::from_secs(4);

/// Whether this process is ready; false at first.
#[derive(Clone, Debug, Default)]
pub struct Readiness(watch::Sender<bool>);

impl Readiness {
    /// Sets whether it is ready.
    pub fn set(&self, ready: bool) {
        self.0.send_replace(ready);
    }

    /// Whether it is ready by [`READINESS_WAIT`] from now.
    async fn soon(&self) -> bool {
        let mut changes = self.0.subscribe();
        tokio::time::timeout(READINESS_WAIT, changes.wait_for(|ready| *ready)).await.is_ok()
    }
}

/// The content of the pages.
#[derive(Clone)]
struct Pages {
    readiness: Readiness,
    exposition: Arc<Exposition>,
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop` ends, then closes open connections.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    exposition: Arc<Exposition>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let pages = Pages { readiness, exposition };
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest.retain(|connection| !connection.is_finished());
        if oldest.len() >= MOST_CONNECTIONS
            && let Some(connection) = oldest.pop_front()
        {
            connection.abort();
        }
        oldest.push_back(connections.spawn(connection(stream, pages.clone())));
    }
    drop(listener);
    // Requests in progress are completed.
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, pages: Pages) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // The client sees how it ends.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
}

impl Pages {
    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        let (status, content_type, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.readiness.soon().await {
                true => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
                false => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    PLAIN,
                    "the watches have not completed their first lists yet\n".to_owned(),
                ),
            },
            (&Method::GET | &Method::HEAD, "/metrics") => {
                let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let form = Form::preferred(accept);
                match self.exposition.render(form) {
                    Ok(text) => (StatusCode::OK, form.content_type(), text),
                    Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, String::new()),
                }
            }
            (_, "/livez" | "/readyz" | "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, String::new()),
            _ => (StatusCode::NOT_FOUND, PLAIN, String::new()),
        };
        let mut answer = Response::new(Full::from(text));
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        answer
    }
}

/// Opens the listener. One for all IPv6 addresses serves IPv4 as well, whatever the system's default, and only IPv4 on a system
/// without IPv6.
///
/// # Errors
/// The address is in use, or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    or_ipv4_alone(address, open)
}

fn or_ipv4_alone<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let is_all = address.is_ipv6() && address.ip().is_unspecified();
    open(address).or_else(|error| match error.kind() {
        // Another process has one of the two families: the other alone would be incomplete.
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
    // A restarted process can bind at once, while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Serves, and returns where.
    fn served() -> SocketAddr {
        served_with(Readiness::default())
    }

    fn served_with(readiness: Readiness) -> SocketAddr {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, readiness, Arc::default(), std::future::pending()));
        address
    }

    /// A connection on which some bytes were sent.
    async fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// What is answered until the end of the connection.
    async fn answer(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A connection that is reset has ended, too.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(address: SocketAddr, path: &str, headers: &str) -> String {
        answer(sent(address, format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes()).await).await
    }

    #[tokio::test]
    async fn whoever_sends_too_little_or_too_slowly_is_cut_off() {
        let address = served();
        let began = Instant::now();
        let silent: Vec<TcpStream> = futures::future::join_all(
            [&b""[..], b"G", b"GET /livez HTTP/1.1\r\nhost: x\r\n"].map(|bytes| sent(address, bytes)),
        )
        .await;
        for stream in silent {
            assert!(!answer(stream).await.contains(" 200 "));
        }
        assert!(began.elapsed() < HEAD_TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_probe_that_comes_early_waits_until_the_process_is_ready() {
        let readiness = Readiness::default();
        let address = served_with(readiness.clone());
        let early = sent(address, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(get(address, "/livez", "").await.starts_with("HTTP/1.1 200"), "that waits for nothing");
        readiness.set(true);
        assert!(answer(early).await.starts_with("HTTP/1.1 200"));
        readiness.set(false);
        let late = get(address, "/readyz", "").await;
        assert!(late.starts_with("HTTP/1.1 503") && late.ends_with("first lists yet\n"), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_holds_connections_open_keeps_nobody_from_an_answer() {
        // The clock stands still beside a blocking task: only what waits for a timeout takes time, however slow the machine is.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || wait.recv_timeout(Duration::from_secs(60)));
        let address = served();
        let mut held = Vec::new();
        for _ in 0..MOST_CONNECTIONS + 40 {
            held.push(sent(address, b"G").await);
        }
        let began = Instant::now();
        assert!(get(address, "/livez", "").await.ends_with("ok\n"));
        assert!(began.elapsed() < HEAD_TIMEOUT, "{:?}", began.elapsed());
        // The oldest have made room.
        for stream in held.drain(..40) {
            answer(stream).await;
        }
        assert!(began.elapsed() < HEAD_TIMEOUT, "{:?}", began.elapsed());
        drop(done);
    }

    #[tokio::test]
    async fn heads_are_bounded_and_each_connection_serves_one_request() {
        let address = served();
        let long = format!("x: {}\r\n", "y".repeat(2 * BUFFER));
        assert!(get(address, "/livez", &long).await.starts_with("HTTP/1.1 431"));
        assert!(get(address, "/livez", &"x: y\r\n".repeat(1000)).await.starts_with("HTTP/1.1 431"));
        let two = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2);
        assert_eq!(answer(sent(address, two.as_bytes()).await).await.matches("HTTP/1.1 200").count(), 1);
        assert!(get(address, "/nothing", "").await.starts_with("HTTP/1.1 404"));
        let post = sent(address, b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
        assert!(answer(post).await.starts_with("HTTP/1.1 405"));
    }

    #[tokio::test]
    async fn metrics_are_served_in_the_form_that_is_asked_for() {
        let address = served();
        let plain = get(address, "/metrics", "").await;
        assert!(plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
        let open = get(address, "/metrics", "accept: application/openmetrics-text\r\n").await;
        assert!(
            open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{open}"
        );
        assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"), "{open}");
    }

    #[tokio::test]
    async fn all_addresses_of_ipv6_are_those_of_ipv4_too() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ipv6 = listener.local_addr().unwrap().is_ipv6();
        let stop = std::future::pending();
        tokio::spawn(serve(listener, Readiness::default(), Arc::default(), stop));
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
