//! A layer of the API client that stops all writes once our lease has expired.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// How long a read may wait for the headers of its response.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The time until which this process may write. The lease extends it, and the client checks it.
#[derive(Clone, Debug)]
pub struct Fence {
    end: Arc<Mutex<Option<Deadline>>>,
    wall: fn() -> SystemTime,
}

impl Default for Fence {
    fn default() -> Self {
        Self::with_clock(SystemTime::now)
    }
}

/// The end by two clocks; the first to reach it counts: the monotonic clock stops while the machine sleeps, and the other may be
/// set.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    monotonic: Instant,
    wall: SystemTime,
}

/// The request was not sent, or was aborted, because our lease has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process is not the leader")]
pub struct NotLeader;

impl Fence {
    /// A closed fence with this clock besides the monotonic one.
    pub fn with_clock(wall: fn() -> SystemTime) -> Self {
        Self { end: Arc::default(), wall }
    }

    /// Allows writes for good, for a process that runs without a lease.
    pub fn open(&self) {
        self.hold_for(Instant::now(), Duration::from_secs(100 * 365 * 24 * 3600));
    }

    /// Allows writes for a duration that began at `since`.
    pub fn hold_for(&self, since: Instant, time: Duration) {
        let left = (since + time).saturating_duration_since(Instant::now());
        *self.end.lock() = Some(Deadline { monotonic: since + time, wall: (self.wall)() + left });
    }

    /// Rejects all requests from now on.
    pub fn close(&self) {
        *self.end.lock() = None;
    }

    /// Until when writes are allowed; none if they are not.
    pub fn deadline(&self) -> Option<Instant> {
        let Deadline { monotonic, wall } = (*self.end.lock())?;
        (monotonic > Instant::now() && wall > (self.wall)()).then_some(monotonic)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced { fence: self.clone(), inner }
    }
}

/// A service behind a [`Fence`].
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    fence: Fence,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<R>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.method() == Method::GET {
            let call = self.inner.call(request);
            // Only until the headers: the body of a watch is endless. A server that accepts a connection and does not respond must not block us.
            return async move {
                match tokio::time::timeout(READ_TIMEOUT, call).await {
                    Ok(result) => result.map_err(Into::into),
                    Err(_) => Err("the API server did not answer in time".into()),
                }
            }
            .boxed();
        }
        let Some(deadline) = self.fence.deadline() else {
            return std::future::ready(Err(NotLeader.into())).boxed();
        };
        let fence = self.fence.clone();
        // The client below retries by itself, which must end with the lease as well.
        let call = self.inner.call(request);
        async move {
            let mut call = std::pin::pin!(call);
            let mut end = std::pin::pin!(tokio::time::sleep_until(deadline));
            std::future::poll_fn(move |cx| {
                // Checked before each step: a process that was suspended, or whose machine was asleep, must not continue. A renewal
                // of the lease meanwhile gives a slow request more time.
                while let Some(deadline) = fence.deadline() {
                    if deadline > end.deadline() {
                        end.as_mut().reset(deadline);
                    }
                    if end.as_mut().poll(cx).is_pending() {
                        return call.as_mut().poll(cx).map_err(Into::into);
                    }
                }
                Poll::Ready(Err(NotLeader.into()))
            })
            .await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::ServiceExt;

    async fn send(fence: &Fence, method: Method, takes: Duration) -> bool {
        let inner = tower::service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(Response::new(()))
        });
        let request = Request::builder().method(method).body(()).unwrap();
        fence.layer(inner).oneshot(request).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_reads_pass_without_a_lease_and_nothing_outlives_it() {
        let fence = Fence::default();
        assert!(!send(&fence, Method::PATCH, Duration::ZERO).await);
        assert!(send(&fence, Method::GET, Duration::ZERO).await);
        fence.hold_for(Instant::now(), Duration::from_secs(10));
        assert!(send(&fence, Method::PATCH, Duration::from_secs(9)).await);
        assert!(!send(&fence, Method::DELETE, Duration::from_secs(9)).await, "the lease has run out meanwhile");
        assert!(!send(&fence, Method::PATCH, Duration::ZERO).await);
        fence.hold_for(Instant::now(), Duration::from_secs(10));
        fence.close();
        assert!(!send(&fence, Method::POST, Duration::ZERO).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_goes_on_as_long_as_the_lease_is_renewed() {
        let fence = Fence::default();
        fence.hold_for(Instant::now(), Duration::from_secs(10));
        let renewing = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                fence.hold_for(Instant::now(), Duration::from_secs(10));
            }
        };
        let slow = send(&fence, Method::PATCH, Duration::from_secs(30));
        let (passed, ()) = tokio::join!(slow, renewing);
        assert!(passed, "a webhook may take 30 seconds");
        let started = Instant::now();
        assert!(!send(&fence, Method::PATCH, Duration::from_secs(60)).await);
        assert_eq!(started.elapsed(), Duration::from_secs(10), "it is given up when the lease runs out, and not later");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_nobody_answers_is_given_up() {
        let started = Instant::now();
        assert!(!send(&Fence::default(), Method::GET, Duration::from_secs(100_000)).await);
        assert!(started.elapsed() <= Duration::from_secs(90), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_the_end_of_the_lease_overtook_takes_no_further_step() {
        overtaken(Fence::default(), || tokio::time::advance(Duration::from_secs(11))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_a_sleep_of_the_machine_overtook_takes_no_further_step() {
        thread_local!(static ASLEEP: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) });
        let fence = Fence::with_clock(|| SystemTime::UNIX_EPOCH + ASLEEP.get());
        overtaken(fence, || async { ASLEEP.set(Duration::from_secs(11)) }).await;
    }

    async fn overtaken<F: Future<Output = ()>>(fence: Fence, time_passes: impl FnOnce() -> F) {
        fence.hold_for(Instant::now(), Duration::from_secs(10));
        let (connected, connection) = tokio::sync::oneshot::channel();
        let connection = Arc::new(Mutex::new(Some(connection)));
        let sent = Arc::new(Mutex::new(false));
        let done = sent.clone();
        let inner = tower::service_fn(move |_: Request<()>| {
            let (connection, sent) = (connection.lock().take(), sent.clone());
            async move {
                connection.unwrap().await.unwrap();
                *sent.lock() = true;
                Ok::<_, Infallible>(Response::new(()))
            }
        });
        let request = Request::builder().method(Method::PATCH).body(()).unwrap();
        let mut call = Box::pin(fence.layer(inner).oneshot(request));
        assert!(futures::poll!(&mut call).is_pending());
        // Both at once, as after a stop and a continuation of the process.
        time_passes().await;
        connected.send(()).unwrap();
        assert!(call.await.is_err() && !*done.lock());
    }
}
