//! A watch that never ends: what hinders it is logged once and waited out, and objects that cannot be read are skipped and counted.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::core::Status;
use kube::runtime::watcher::{Error, Event, Result};
use tokio::time::Instant;

use super::Shared;
use crate::plan::schedule::RetryPolicy;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_millis(500);

/// For a while no wait is longer than this: new namespaces wait for it, and an API server that has just been started refuses for a
/// moment what it allows.
const QUICK: Duration = Duration::from_secs(3);

/// After that, a wait is at most this part of the time that the watch has failed: what was away for a minute is back within seconds.
const PART: u32 = 10;

/// The longest wait while the API server cannot be reached, or fails.
const LONGEST_UNREACHABLE: Duration = Duration::from_secs(30);

/// The longest wait while the API server refuses the watch, or does not know the kind: until somebody changes that.
const LONGEST_REFUSED: Duration = Duration::from_secs(60);

/// A watch that has gone well for so long has recovered.
const WELL: Duration = Duration::from_secs(30);

/// How long a watch is refused before the work begins without it.
const REFUSED: Duration = Duration::from_secs(10);

/// The longest error that is logged: it may quote an answer.
const LONGEST_ERROR: usize = 300;

/// What a watch is of.
pub(super) struct Subject {
    /// In the plural, for the log.
    pub(super) what: &'static str,
    /// The kind, for the metrics.
    pub(super) kind: &'static str,
    /// Which of the watches of this kind.
    pub(super) scope: String,
}

/// The events of a watch, which `begin` begins. `refused` is called each time that the API server has refused it for long.
pub(super) fn follow<K, S>(
    subject: Subject,
    shared: Arc<Shared>,
    begin: impl Fn() -> S,
    refused: impl Fn(),
) -> impl Stream<Item = Event<K>>
where
    K: Resource,
    S: Stream<Item = Result<Event<K>>> + Send + 'static,
{
    let stream = Box::pin(begin());
    let follower = Follower { subject, shared, stream, begin, refused, retries: Retries::default(), skips: Skips::default() };
    futures::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await;
        Some((event, follower))
    })
}

struct Follower<S, B, R> {
    subject: Subject,
    shared: Arc<Shared>,
    stream: Pin<Box<S>>,
    begin: B,
    refused: R,
    retries: Retries,
    skips: Skips,
}

impl<K, S, B, R> Follower<S, B, R>
where
    K: Resource,
    S: Stream<Item = Result<Event<K>>>,
    B: Fn() -> S,
    R: Fn(),
{
    async fn next(&mut self) -> Event<K> {
        loop {
            match self.stream.next().await {
                Some(Ok(event)) => {
                    if !matches!(event, Event::Init) {
                        self.retries.succeeded();
                    }
                    if let Some(event) = self.readable(event) {
                        return event;
                    }
                }
                Some(Err(error)) => self.failed(&error).await,
                // kube's watches do not end.
                None => self.begin_anew().await,
            }
        }
    }

    /// The event, unless its object has no name, which no stored object lacks.
    fn readable(&mut self, event: Event<K>) -> Option<Event<K>> {
        let is_readable = |object: &K| object.meta().name.as_deref().is_some_and(|name| !name.is_empty());
        let skips = match &event {
            Event::Init => self.skips.begin(),
            Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) if !is_readable(object) => {
                self.skips.add(matches!(event, Event::InitApply(_)));
                self.report_skips();
                return None;
            }
            Event::InitDone => self.skips.listed(),
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => false,
        };
        if skips {
            self.report_skips();
        }
        Some(event)
    }

    fn report_skips(&mut self) {
        let Subject { what, kind, scope } = &self.subject;
        let count = self.skips.known;
        if count > 0 && !std::mem::replace(&mut self.skips.told, true) {
            tracing::warn!(what, count, "objects that cannot be read are skipped");
        }
        self.shared.skipped(kind, scope, count);
    }

    async fn failed(&mut self, error: &Error) {
        let failure = Failure::of(error);
        let Subject { what, scope, .. } = &self.subject;
        if let Some(text) = self.retries.failed(error) {
            tracing::warn!(what, scope, error = %text, "{}", failure.hint(what));
        }
        if failure == Failure::Forbidden && self.retries.lasted() >= REFUSED {
            (self.refused)();
        }
        tokio::time::sleep(self.retries.wait(failure, scope)).await;
        self.retries.waited = Some(Instant::now());
        if failure == Failure::Garbled {
            // What the line was about is lost, unless all is listed again.
            self.stream = Box::pin((self.begin)());
        }
    }

    async fn begin_anew(&mut self) {
        tokio::time::sleep(FIRST).await;
        self.stream = Box::pin((self.begin)());
    }
}

/// The objects that were skipped.
#[derive(Debug, Default)]
struct Skips {
    /// In the list that has begun.
    listing: usize,
    /// In the last list, and since.
    known: usize,
    /// Whether the log says so.
    told: bool,
}

impl Skips {
    /// A list begins. Returns whether the count has changed.
    const fn begin(&mut self) -> bool {
        self.listing = 0;
        false
    }

    const fn add(&mut self, in_list: bool) {
        if in_list {
            self.listing = self.listing.saturating_add(1);
        } else {
            self.known = self.known.saturating_add(1);
        }
    }

    /// A list has ended. Returns whether the count has changed.
    const fn listed(&mut self) -> bool {
        let changed = self.known != self.listing;
        self.known = self.listing;
        self.told &= self.known > 0;
        changed
    }
}

/// What hinders a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The API server cannot be reached, fails, or has forgotten the version.
    Unreachable,
    /// The API server refuses the watch.
    Forbidden,
    /// The API server does not know the kind.
    Missing,
    /// An answer or an event that cannot be read.
    Garbled,
}

impl Failure {
    fn of(error: &Error) -> Self {
        match status(error) {
            Some(status) if status.is_forbidden() || status.code == 401 => Self::Forbidden,
            Some(status) if status.code == 404 => Self::Missing,
            None if matches!(cause(error), Some(kube::Error::SerdeError(_))) => Self::Garbled,
            _ => Self::Unreachable,
        }
    }

    const fn longest_wait(self) -> Duration {
        match self {
            Self::Unreachable | Self::Garbled => LONGEST_UNREACHABLE,
            Self::Forbidden | Self::Missing => LONGEST_REFUSED,
        }
    }

    fn hint(self, what: &str) -> &'static str {
        match self {
            Self::Missing if what == "EcrCredentials" => {
                "the CRD ecrcredentials.pullsecrets.dev is not installed: waiting for it"
            }
            Self::Forbidden => "the operator is not allowed to watch: check its ClusterRole",
            Self::Unreachable | Self::Missing | Self::Garbled => "a watch was interrupted and is retried",
        }
    }
}

/// The failures of a watch in a row. kube's own backoff is reset whenever a list begins, although it may fail again.
#[derive(Debug, Default)]
struct Retries {
    count: u32,
    since: Option<Instant>,
    /// When the last wait ended.
    waited: Option<Instant>,
    /// What the log says.
    told: String,
}

impl Retries {
    fn succeeded(&mut self) {
        self.told.clear();
    }

    /// Notes a failure. Returns what is to be logged: each text once, until the watch goes on.
    fn failed(&mut self, error: &Error) -> Option<String> {
        if self.waited.is_some_and(|waited| waited.elapsed() > WELL) {
            *self = Self { told: std::mem::take(&mut self.told), ..Self::default() };
        }
        self.count = self.count.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
        let text = describe(error);
        (text != self.told).then(|| text.clone_into(&mut self.told)).map(|()| text)
    }

    /// How long it has failed.
    fn lasted(&self) -> Duration {
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn wait(&self, failure: Failure, seed: &str) -> Duration {
        wait(failure, self.count, self.lasted(), seed)
    }
}

/// The wait after a number of failures in a row, over so long a time. Watches with different seeds do not come back together.
fn wait(failure: Failure, count: u32, lasted: Duration, seed: &str) -> Duration {
    let max = (lasted / PART).clamp(QUICK, failure.longest_wait());
    RetryPolicy { initial: FIRST, max }.delay(count, 1, seed)
}

/// What an error says, in brief and without the content of any object.
fn describe(error: &Error) -> String {
    let text = match cause(error) {
        Some(kube::Error::SerdeError(error)) => {
            format!("the answer cannot be read: {:?} error in column {}", error.classify(), error.column())
        }
        _ => error.to_string(),
    };
    text.chars().take(LONGEST_ERROR).collect()
}

const fn cause(error: &Error) -> Option<&kube::Error> {
    match error {
        Error::InitialListFailed(cause) | Error::WatchStartFailed(cause) | Error::WatchFailed(cause) => Some(cause),
        Error::WatchError(_) | Error::NoResourceVersion => None,
    }
}

fn status(error: &Error) -> Option<&Status> {
    match (cause(error), error) {
        (Some(kube::Error::Api(status)), _) | (_, Error::WatchError(status)) => Some(status),
        _ => None,
    }
}
