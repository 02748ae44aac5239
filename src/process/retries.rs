//! A layer of the API client that retries requests that a busy API server postpones, but not requests that were refused.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response};
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::retry::Policy;
use tower::{BoxError, Layer, Service};

/// The longest time for which one request is retried. After that, the last response is returned.
const LONGEST: Duration = Duration::from_secs(45);

/// Retries as kube's client does, with two exceptions.
///
/// An admission webhook may refuse with any status code, including 429 and 503. kube's client would send such a write fifteen times
/// within minutes, and nobody would see the reason. The API server itself sets `Retry-After` if a request should be retried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retries;

impl<S> Layer<S> for Retries {
    type Service = Retried<S>;

    fn layer(&self, inner: S) -> Retried<S> {
        Retried(Arc::new(Mutex::new(inner)))
    }
}

/// A service behind [`Retries`].
#[derive(Debug)]
pub struct Retried<S>(Arc<Mutex<S>>);

impl<S> Clone for Retried<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, R> Service<Request<Body>> for Retried<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<R>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.lock().poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        // The service was polled ready for this request.
        let mut next = Policy::<_, Response<R>, _>::clone_request(&mut RetryPolicy::server_retry(), &request);
        let is_read = request.method() == Method::GET;
        let first = inner.lock().call(request);
        async move {
            let begun = Instant::now();
            let mut policy = RetryPolicy::server_retry();
            let mut result = first.await.map_err(Into::into);
            while let Some(mut request) = next {
                if result.as_ref().is_ok_and(|answer| !is_read && is_final(answer)) {
                    break;
                }
                let Some(wait) = policy.retry(&mut request, &mut result) else { break };
                if wait.deadline().duration_since(begun) > LONGEST {
                    break;
                }
                wait.await;
                next = Policy::<_, Response<R>, _>::clone_request(&mut policy, &request);
                futures::future::poll_fn(|cx| inner.lock().poll_ready(cx)).await.map_err(Into::into)?;
                let again = inner.lock().call(request);
                result = again.await.map_err(Into::into);
            }
            result
        }
        .boxed()
    }
}

/// Whether the response to a write is a refusal, and not a request to retry.
fn is_final<R>(answer: &Response<R>) -> bool {
    let is_json = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/"));
    is_json && !answer.headers().contains_key(RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::ServiceExt;

    const JSON: &str = "application/json";
    const TEXT: &str = "text/plain; charset=utf-8";

    /// Sends a request to a server that answers so for a while and then with 200; returns the last status, how often it was asked,
    /// and the time that passed.
    async fn send(
        method: Method,
        code: u16,
        kind: &'static str,
        after: Option<u64>,
        times: usize,
    ) -> (u16, usize, Duration) {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let inner = tower::service_fn(move |_: Request<Body>| {
            let mut count = count.lock();
            *count += 1;
            let status = if *count > times { 200 } else { code };
            let mut answer = Response::builder().status(status).header(CONTENT_TYPE, kind);
            if let Some(seconds) = after {
                answer = answer.header(RETRY_AFTER, seconds);
            }
            std::future::ready(Ok::<_, Infallible>(answer.body(()).unwrap()))
        });
        let begun = Instant::now();
        let request = Request::builder().method(method).uri("/").body(Body::from(b"{}".to_vec())).unwrap();
        let answer = Retries.layer(inner).oneshot(request).await.unwrap();
        let asked = *asked.lock();
        (answer.status().as_u16(), asked, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_off_is_tried_again_when_it_says_so_and_a_refusal_is_none() {
        let put = || Method::PATCH;
        for (what, (method, code, kind, after, times), expected) in [
            ("fair queueing", (put(), 429, TEXT, Some(2), 3), (200, 4, 6)),
            ("a server that starts", (put(), 503, JSON, Some(15), 1), (200, 2, 15)),
            ("a webhook that refuses with 429", (put(), 429, JSON, None, 1), (429, 1, 0)),
            ("a webhook that refuses with 503", (put(), 503, JSON, None, 1), (503, 1, 0)),
            ("a webhook that says when to come back", (put(), 429, JSON, Some(3600), 99), (429, 1, 0)),
            ("a webhook that says so again and again", (put(), 503, JSON, Some(30), 99), (503, 2, 30)),
            ("a read", (Method::GET, 429, JSON, None, 1), (200, 2, 0)),
            ("any other refusal", (put(), 409, JSON, Some(1), 1), (409, 1, 0)),
            ("success", (put(), 200, JSON, None, 0), (200, 1, 0)),
        ] {
            let (status, asked, took) = send(method, code, kind, after, times).await;
            assert_eq!((status, asked, took.as_secs()), expected, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_always_busy_is_not_asked_for_ever() {
        let (status, asked, took) = send(Method::PATCH, 429, TEXT, Some(1), usize::MAX).await;
        assert!(status == 429 && asked <= 46 && took <= LONGEST, "{asked} in {took:?}");
    }
}
