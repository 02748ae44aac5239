//! What an identity takes from the cluster, requested before the call to AWS that needs it: a slow API server uses up none of the time
//! of that call.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::SharedTimeSource;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::sdk::SESSION_BUFFER;
use super::{Prepared, TokenError};

/// A request is shared by the fetches that begin within this time: a ServiceAccount token lives twice as long.
const SHARED: Duration = Duration::from_secs(300);

/// The SDK loads credentials without an end again after this time (aws-smithy-runtime, identity/cache/lazy.rs).
const WITHOUT_END: Duration = Duration::from_secs(900);

type Answer<T> = BoxFuture<'static, Result<T, TokenError>>;

/// A value that a session is made of. It is kept only while a fetch uses it.
pub(super) struct FromCluster<T> {
    request: Box<dyn Fn() -> Answer<T> + Send + Sync>,
    time: SharedTimeSource,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// The last request, and when it was sent.
    last: Option<(Instant, WeakShared<Answer<T>>)>,
    /// Until when the session needs no new value.
    until: Option<SystemTime>,
}

impl<T: Clone + Send + Sync + 'static> FromCluster<T> {
    pub(super) fn new(time: SharedTimeSource, request: impl Fn() -> Answer<T> + Send + Sync + 'static) -> Arc<Self> {
        let state = Mutex::new(State { last: None, until: None });
        Arc::new(Self { request: Box::new(request), time, state })
    }

    /// The value: at once if a fetch has prepared it.
    pub(super) async fn get(&self) -> Result<T, TokenError> {
        self.shared().await
    }

    /// A session was made of the value, with this end.
    pub(super) fn used(&self, end: Option<SystemTime>) {
        let end = end.unwrap_or_else(|| self.time.now() + WITHOUT_END);
        self.state.lock().until = end.checked_sub(SESSION_BUFFER);
    }

    fn is_needed(&self) -> bool {
        self.state.lock().until.is_none_or(|until| until <= self.time.now())
    }

    fn shared(&self) -> Shared<Answer<T>> {
        let mut state = self.state.lock();
        let known = state.last.as_ref().filter(|(sent, _)| sent.elapsed() < SHARED).and_then(|(_, it)| it.upgrade());
        known.unwrap_or_else(|| {
            let request = (self.request)().shared();
            state.last = request.downgrade().map(|weak| (Instant::now(), weak));
            request
        })
    }
}

/// See [`super::TokenSource::prepare`].
pub(super) trait Prepare: Send + Sync {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, TokenError>>;
}

impl<T: Clone + Send + Sync + 'static> Prepare for FromCluster<T> {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, TokenError>> {
        async {
            if !self.is_needed() {
                return Ok(None);
            }
            let request = self.shared();
            request.clone().await?;
            Ok(Some(Box::new(request) as Box<dyn Send>))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that stands still.
    #[derive(Debug)]
    struct Still;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    impl aws_smithy_async::time::TimeSource for Still {
        fn now(&self) -> SystemTime {
            NOW
        }
    }

    /// Answers after half a minute with the number of the request, and from `fails` on with an error.
    fn numbered(fails: u32) -> Arc<FromCluster<u32>> {
        let count = Arc::new(Mutex::new(0));
        FromCluster::new(SharedTimeSource::new(Still), move || {
            *count.lock() += 1;
            let number = *count.lock();
            async move {
                tokio::time::sleep(Duration::from_secs(30)).await;
                if number < fails { Ok(number) } else { Err(TokenError::Cluster("down".to_owned())) }
            }
            .boxed()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn fetches_at_the_same_time_share_one_request_whose_answer_is_kept_until_the_last_of_them_ends() {
        let value = numbered(u32::MAX);
        let (first, second) = tokio::join!(value.prepare(), value.prepare());
        let begun = Instant::now();
        drop(first);
        assert_eq!(value.get().await, Ok(1));
        assert_eq!(begun.elapsed(), Duration::ZERO, "it is there");
        drop(second);
        assert_eq!(value.get().await, Ok(2), "nothing is kept of it");
        let third = value.prepare().await;
        tokio::time::advance(SHARED).await;
        assert_eq!(value.get().await, Ok(4), "it may have expired");
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_lasts_needs_nothing_and_one_that_the_sdk_may_renew_does() {
        let value = numbered(u32::MAX);
        let is_needed = async || value.prepare().await.unwrap().is_some();
        assert!(is_needed().await, "there is no session");
        for (end, needed) in [
            (Some(NOW + SESSION_BUFFER + Duration::from_secs(1)), false),
            (Some(NOW + SESSION_BUFFER), true),
            (None, false),
            (Some(NOW - Duration::from_secs(1)), true),
        ] {
            value.used(end);
            assert_eq!(is_needed().await, needed, "{end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_that_of_all_who_waited_for_it_and_of_nobody_later() {
        let value = numbered(0);
        let (first, second) = tokio::join!(value.prepare(), value.prepare());
        assert!(first.is_err() && second.is_err());
        let begun = Instant::now();
        assert!(value.prepare().await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_secs(30), "it was requested again");
    }
}
