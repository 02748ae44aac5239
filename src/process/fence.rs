//! A layer of the API client that lets no request change anything once our lease has run out.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// Until when this process may change things. Shared by the lease, which moves it, and the client, which obeys it.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

/// The request was not sent, or was given up, because our lease has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process is not the leader (any more)")]
pub struct NotLeader;

impl Fence {
    /// A fence that stays open, for a process that runs without a lease.
    pub fn open() -> Self {
        let far = Instant::now().checked_add(std::time::Duration::from_secs(100 * 365 * 24 * 3600));
        Self(Arc::new(Mutex::new(far)))
    }

    /// Moves the time until which we may write.
    pub fn hold_until(&self, deadline: Instant) {
        *self.0.lock() = Some(deadline);
    }

    /// Forbids everything from now on.
    pub fn close(&self) {
        *self.0.lock() = None;
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.lock().filter(|deadline| *deadline > Instant::now())
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
            return self.inner.call(request).map(|result| result.map_err(Into::into)).boxed();
        }
        let Some(deadline) = self.fence.deadline() else {
            return std::future::ready(Err(NotLeader.into())).boxed();
        };
        // The client below tries again by itself: that must end with the lease, too.
        let call = self.inner.call(request);
        async move {
            match tokio::time::timeout_at(deadline, call).await {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err(NotLeader.into()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::time::Duration;
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
        fence.hold_until(Instant::now() + Duration::from_secs(10));
        assert!(send(&fence, Method::PATCH, Duration::from_secs(9)).await);
        assert!(!send(&fence, Method::DELETE, Duration::from_secs(9)).await, "it would end after the lease");
        assert!(!send(&fence, Method::PATCH, Duration::ZERO).await);
        fence.hold_until(Instant::now() + Duration::from_secs(10));
        fence.close();
        assert!(!send(&fence, Method::POST, Duration::ZERO).await);
    }
}
