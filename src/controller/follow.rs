//! A watch that never ends: what hinders it is logged once and waited out, and skipping objects that cannot be read and counted.

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

/// A watch that has failed for so long begins with a list: the API server may have forgotten the version at which it stopped. By default
/// it compacts its history every five minutes (kube-apiserver, `--etcd-compaction-interval`).
const STALE: Duration = Duration::from_secs(300);

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

/// The events of a watch, which `begin` begins. `refused` is called each time that the API server has refused it for long; once it is
/// allowed again, a list follows.
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
    let (retries, skips) = Default::default();
    let (lists, is_refused) = (false, false);
    let follower = Follower { subject, shared, stream, begin, refused, retries, skips, lists, is_refused };
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
    /// Whether a list is under way.
    lists: bool,
    /// Whether `refused` was called since the last list.
    is_refused: bool,
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
            let item = if self.is_refused && !self.lists {
                let Ok(item) = tokio::time::timeout(WELL, self.stream.next()).await else {
                    // kube goes on without a word. A list tells that the watch is allowed again.
                    self.begin_anew();
                    continue;
                };
                item
            } else {
                self.stream.next().await
            };
            match item {
                Some(Ok(event)) => {
                    if !matches!(event, Event::Init) {
                        self.retries.succeeded();
                    }
                    match event {
                        Event::Init => self.lists = true,
                        Event::InitDone => (self.lists, self.is_refused) = (false, false),
                        _ if self.is_refused && !self.lists => self.begin_anew(),
                        _ => {}
                    }
                    if let Some(event) = self.readable(event) {
                        return event;
                    }
                }
                Some(Err(error)) => self.failed(&error).await,
                // kube's watches do not end.
                None => {
                    tokio::time::sleep(FIRST).await;
                    self.stream = Box::pin((self.begin)());
                }
            }
        }
    }

    /// The event, unless its object has no name, which no stored object lacks.
    fn readable(&mut self, event: Event<K>) -> Option<Event<K>> {
        let is_readable = |object: &K| object.meta().name.as_deref().is_some_and(|name| !name.is_empty());
        match &event {
            Event::Init => self.skips.listing = 0,
            Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) if !is_readable(object) => {
                match event {
                    Event::InitApply(_) => self.skips.listing = self.skips.listing.saturating_add(1),
                    // Which of them it is about cannot be told, so ten events do not mean ten objects.
                    Event::Apply(_) => self.skips.known = self.skips.known.max(1),
                    _ => {}
                }
                self.report_skips();
                return None;
            }
            Event::InitDone => {
                if self.skips.listed() {
                    self.report_skips();
                }
            }
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
        }
        Some(event)
    }

    fn report_skips(&mut self) {
        let Subject { what, kind, scope } = &self.subject;
        let count = self.skips.known;
        if count > 0 && !std::mem::replace(&mut self.skips.told, true) {
            tracing::warn!(what, count, "skipping objects that cannot be read");
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
            self.is_refused = true;
            (self.refused)();
        }
        tokio::time::sleep(self.retries.wait(failure, scope)).await;
        self.retries.waited = Some(Instant::now());
        // What a line that cannot be read was about is lost, and so is what a forgotten version would go on from. kube lists by itself only
        // if a watch that has begun ends with 410.
        let expired = status(error).is_some_and(|status| status.code == 410);
        if failure == Failure::Garbled || expired || self.retries.stale() >= STALE {
            self.begin_anew();
        }
    }

    /// Begins with a list.
    fn begin_anew(&mut self) {
        self.retries.last = Some(Instant::now());
        self.stream = Box::pin((self.begin)());
    }
}

/// The objects that were skipped.
#[derive(Debug, Default)]
struct Skips {
    /// In the list that has begun.
    listing: usize,
    /// In the last list, and at least one if an event has shown one since.
    known: usize,
    /// Whether the log says so.
    told: bool,
}

impl Skips {
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
            Some(status) if matches!(status.code, 401 | 403) => Self::Forbidden,
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
    /// When it last showed something, or began with a list.
    last: Option<Instant>,
    /// When the last wait ended.
    waited: Option<Instant>,
    /// What the log says.
    told: String,
}

impl Retries {
    fn succeeded(&mut self) {
        self.told.clear();
        self.last = Some(Instant::now());
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

    /// How long it has failed and shown nothing.
    fn stale(&self) -> Duration {
        self.since.max(self.since.and(self.last)).map(|since| since.elapsed()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::stream::{self, BoxStream};
    use k8s_openapi::api::core::v1::Namespace;
    use parking_lot::Mutex;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::api::EcrCredentialStatus;
    use crate::controller::WatchObserver;
    use crate::controller::cluster_state::ClusterState;
    use crate::lenient::Observed;
    use crate::plan::references::References;
    use crate::plan::targets::SelectorIndex;
    use crate::plan::{Limits, Uid};

    type Item = Result<Event<Observed<Namespace>>>;

    /// Remembers the last count of objects that were skipped.
    #[derive(Clone, Default)]
    struct Last(Arc<Mutex<Option<(&'static str, usize)>>>);

    impl WatchObserver for Last {
        fn gone(&self, _: &Uid) {}
        fn unreadable(&self, _: &Uid, _: &str, _: Option<&EcrCredentialStatus>) {}
        fn skipped(&self, kind: &'static str, count: usize) {
            *self.0.lock() = Some((kind, count));
        }
    }

    fn shared(observer: Last) -> Arc<Shared> {
        let cluster = ClusterState::new(SelectorIndex::default(), References::default());
        Arc::new(Shared::new(cluster, Limits::default(), unbounded_channel().0, observer))
    }

    fn subject() -> Subject {
        Subject { what: "namespaces", kind: "Namespace", scope: "test".to_owned() }
    }

    fn namespace(name: Option<&str>) -> Observed<Namespace> {
        let metadata = serde_json::json!({ "metadata": { "name": name } });
        serde_json::from_str(&metadata.to_string()).unwrap()
    }

    fn api_error(code: u16) -> Error {
        Error::InitialListFailed(kube::Error::Api(Status::failure("no", "No").with_code(code).boxed()))
    }

    fn unreachable() -> Error {
        Error::WatchStartFailed(kube::Error::Service("connection refused".into()))
    }

    fn garbled() -> Error {
        Error::WatchFailed(kube::Error::SerdeError(serde_json::from_str::<u8>("\"hunter2\"").unwrap_err()))
    }

    /// Fails until a time, and beyond it sends one namespace after another; counts the tries.
    fn away(until: Instant, error: fn() -> Error, tries: &Arc<AtomicUsize>) -> BoxStream<'static, Item> {
        let tries = tries.clone();
        let next = move |()| {
            tries.fetch_add(1, Ordering::Relaxed);
            let item = if Instant::now() < until { Err(error()) } else { Ok(Event::Apply(namespace(Some("a")))) };
            std::future::ready(Some((item, ())))
        };
        stream::unfold((), next).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_comes_back_soon_after_what_hindered_it_has_ended_and_asks_little_meanwhile() {
        let forbidden = || api_error(403);
        let missing = || api_error(404);
        let expired = || Error::WatchError(Status::failure("too old", "Expired").with_code(410).boxed());
        /// What fails, how, for how many seconds, how many seconds later the watch is back at the latest, and after how many tries.
        type Outage = (&'static str, fn() -> Error, u64, u64, usize);
        let table: [Outage; 11] = [
            ("a moment", unreachable, 1, 3, 4),
            ("some seconds", unreachable, 10, 3, 10),
            ("a minute", unreachable, 60, 6, 35),
            ("ten minutes", unreachable, 600, 30, 80),
            ("a day", unreachable, 86_400, 30, 6000),
            ("garbled for a day", garbled, 86_400, 30, 6000),
            ("forbidden for a moment", forbidden, 5, 3, 8),
            ("forbidden for a minute", forbidden, 60, 6, 35),
            ("forbidden for a day", forbidden, 86_400, 60, 3000),
            ("no CRD for an hour", missing, 3600, 60, 170),
            ("a version that is too old", expired, 1, 3, 4),
        ];
        for (name, error, lasts, latest, most) in table {
            let until = Instant::now() + Duration::from_secs(lasts);
            let tries = Arc::new(AtomicUsize::new(0));
            let begin = || away(until, error, &tries);
            let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, || {}));
            assert!(matches!(events.next().await, Some(Event::Apply(_))), "{name}");
            assert!(until.elapsed() <= Duration::from_secs(latest), "{name}: {:?} after its end", until.elapsed());
            let tries = tries.load(Ordering::Relaxed);
            assert!(tries <= most, "{name}: {tries} tries");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_was_refused_for_long_lists_anew_and_another_goes_on() {
        let forbidden =
            || Error::WatchStartFailed(kube::Error::Api(Status::failure("no", "No").with_code(403).boxed()));
        let expired = || Error::WatchStartFailed(kube::Error::Api(Status::failure("no", "No").with_code(410).boxed()));
        /// What happened, how the watch fails, for how many seconds, and whether it then begins with a list.
        type Outage = (&'static str, fn() -> Error, u64, bool);
        let table: [Outage; 6] = [
            ("refused for a minute", forbidden, 60, false),
            ("refused for an hour", forbidden, 3600, true),
            ("refused for a day", forbidden, 86_400, true),
            ("unreachable for a minute", unreachable, 60, false),
            ("unreachable for an hour", unreachable, 3600, true),
            ("its version is too old", expired, 1, true),
        ];
        for (what, error, lasts, lists) in table {
            let until = Instant::now() + Duration::from_secs(lasts);
            let begun = AtomicUsize::new(0);
            let tries = Arc::default();
            // The first is a watch that goes on where it was, the others begin with a list.
            let begin = || match begun.fetch_add(1, Ordering::Relaxed) {
                0 => away(until, error, &tries),
                _ => {
                    let list = [Ok(Event::Init), Ok(Event::InitDone)];
                    away(until, error, &tries)
                        .take_while(|item| std::future::ready(item.is_err()))
                        .chain(stream::iter(list))
                        .chain(stream::pending())
                        .boxed()
                }
            };
            let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, || {}));
            let event = events.next().await;
            assert_eq!(matches!(event, Some(Event::Init)), lists, "{what}: {event:?}");
            assert!(until.elapsed() <= Duration::from_secs(60), "{what}: {:?} after its end", until.elapsed());
        }
    }

    /// A proxy may cut each connection after some seconds.
    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_cut_again_and_again_and_shows_what_happens_between_goes_on() {
        let lists = AtomicUsize::new(0);
        let begin = || {
            lists.fetch_add(1, Ordering::Relaxed);
            let cut = |number: u32| async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                if number.is_multiple_of(2) { Ok(Event::Apply(namespace(Some("a")))) } else { Err(unreachable()) }
            };
            stream::iter(0..720).then(cut).chain(stream::pending()).boxed()
        };
        let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, || {}));
        for _ in 0..300 {
            events.next().await;
        }
        assert_eq!(lists.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_wait_depends_on_what_hinders_and_for_how_long() {
        let seconds = Duration::from_secs;
        let table = [
            (Failure::Unreachable, 1, 0, 0.25..=0.5),
            (Failure::Unreachable, 2, 1, 0.5..=1.0),
            (Failure::Unreachable, 9, 29, 1.5..=3.0),
            (Failure::Unreachable, 9, 100, 5.0..=10.0),
            (Failure::Unreachable, u32::MAX, 1_000_000, 15.0..=30.0),
            (Failure::Garbled, 1, 0, 0.25..=0.5),
            (Failure::Garbled, 99, 1_000_000, 15.0..=30.0),
            (Failure::Forbidden, 1, 0, 0.25..=0.5),
            (Failure::Forbidden, 9, 29, 1.5..=3.0),
            (Failure::Forbidden, 99, 1_000_000, 30.0..=60.0),
            (Failure::Missing, 99, 1_000_000, 30.0..=60.0),
        ];
        for (failure, count, lasted, expected) in table {
            let wait = wait(failure, count, seconds(lasted), "a").as_secs_f64();
            assert!(expected.contains(&wait), "{failure:?}, {count} failures within {lasted} s: {wait}");
        }
        let waits: std::collections::BTreeSet<Duration> =
            (0..20).map(|n| wait(Failure::Unreachable, 9, seconds(100), &n.to_string())).collect();
        assert!(waits.len() > 15, "watches come back together: {waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_cannot_be_read_makes_the_watch_list_anew_and_not_for_ever() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = begun.clone();
        // Each list is followed by a line that cannot be read.
        let begin = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let items =
                vec![Ok(Event::Init), Ok(Event::InitApply(namespace(Some("a")))), Ok(Event::InitDone), Err(garbled())];
            stream::iter(items).chain(stream::pending()).boxed()
        };
        let start = Instant::now();
        let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, || {}));
        for round in 1..=100 {
            assert!(matches!(events.next().await, Some(Event::Init)));
            assert!(matches!(events.next().await, Some(Event::InitApply(_))));
            assert!(matches!(events.next().await, Some(Event::InitDone)));
            assert_eq!(begun.load(Ordering::Relaxed), round);
        }
        assert!(start.elapsed() > Duration::from_secs(900), "100 lists in {:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_gone_well_for_a_while_begins_with_short_waits_again() {
        let mut retries = Retries::default();
        for _ in 0..200 {
            retries.failed(&unreachable());
            tokio::time::advance(retries.wait(Failure::Unreachable, "a")).await;
            retries.waited = Some(Instant::now());
        }
        assert!(retries.wait(Failure::Unreachable, "a") >= Duration::from_secs(10));
        tokio::time::advance(WELL + Duration::from_secs(1)).await;
        retries.failed(&unreachable());
        assert!(retries.wait(Failure::Unreachable, "a") <= FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn objects_without_a_name_are_skipped_and_counted() {
        let last = Last::default();
        let first = vec![
            Event::Init,
            Event::InitApply(namespace(None)),
            Event::InitApply(namespace(Some("a"))),
            Event::InitApply(namespace(Some(""))),
            Event::InitDone,
        ];
        // However often one of them changes, there are no more of them.
        let changes = || (0..100).map(|_| Event::Apply(namespace(None))).chain([Event::Delete(namespace(None))]);
        let second = [Event::Init, Event::InitApply(namespace(Some("a"))), Event::InitDone];
        let all = first.into_iter().chain(changes()).chain(second).chain(changes());
        let all = all.chain([Event::Apply(namespace(Some("b")))]);
        let items: Mutex<Option<Vec<Item>>> = Mutex::new(Some(all.map(Ok).collect()));
        let begin = || stream::iter(items.lock().take().unwrap_or_default()).chain(stream::pending());
        let mut events = std::pin::pin!(follow(subject(), shared(last.clone()), begin, || {}));
        for expected in ["Init", "InitApply", "InitDone"] {
            assert!(format!("{:?}", events.next().await).contains(expected));
        }
        assert_eq!(*last.0.lock(), Some(("Namespace", 2)));
        assert!(matches!(events.next().await, Some(Event::Init)));
        assert_eq!(*last.0.lock(), Some(("Namespace", 2)));
        events.next().await;
        assert!(matches!(events.next().await, Some(Event::InitDone)));
        assert_eq!(*last.0.lock(), Some(("Namespace", 0)));
        assert!(matches!(events.next().await, Some(Event::Apply(_))));
        assert_eq!(*last.0.lock(), Some(("Namespace", 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_scope_that_is_refused_for_long_is_told_of_and_no_sooner() {
        for (lasts, told) in [(5, false), (20, true)] {
            let refused = AtomicUsize::new(0);
            let tries = Arc::default();
            let until = Instant::now() + Duration::from_secs(lasts);
            let begin = || away(until, || api_error(403), &tries);
            let tell = || {
                refused.fetch_add(1, Ordering::Relaxed);
            };
            let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, tell));
            events.next().await;
            assert_eq!(refused.load(Ordering::Relaxed) > 0, told, "refused for {lasts} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_allowed_again_lists_so_that_this_is_known_though_nothing_happens() {
        let forbidden =
            || Error::WatchStartFailed(kube::Error::Api(Status::failure("no", "No").with_code(403).boxed()));
        /// What the resumed watch shows.
        type Resumed = fn() -> BoxStream<'static, Item>;
        let table: [(&str, Resumed); 2] = [
            ("nothing", || stream::pending().boxed()),
            ("a change", || stream::iter([Ok(Event::Apply(namespace(Some("a"))))]).chain(stream::pending()).boxed()),
        ];
        for (what, resumed) in table {
            let (begun, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let until = Instant::now() + Duration::from_secs(20);
            let begin = || {
                begun.fetch_add(1, Ordering::Relaxed);
                let list = stream::iter([Ok(Event::Init), Ok(Event::InitDone)]);
                let is_refused = move |_: &Item| std::future::ready(Instant::now() < until);
                list.chain(stream::repeat_with(move || Err(forbidden())).take_while(is_refused))
                    .chain(resumed())
                    .boxed()
            };
            let tell = || {
                refused.fetch_add(1, Ordering::Relaxed);
            };
            let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, tell));
            assert!(matches!(events.next().await, Some(Event::Init)), "{what}");
            assert!(matches!(events.next().await, Some(Event::InitDone)), "{what}");
            let mut lists = 0;
            while let Ok(event) = tokio::time::timeout(Duration::from_secs(3600), events.next()).await {
                assert!(refused.load(Ordering::Relaxed) > 0, "{what}: {event:?}");
                lists += usize::from(matches!(event, Some(Event::InitDone)));
                if lists == 1 {
                    break;
                }
            }
            assert_eq!((lists, begun.load(Ordering::Relaxed)), (1, 2), "{what}");
            assert!(until.elapsed() < Duration::from_secs(60), "{what}: {:?} after its end", until.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_list_after_a_refusal_is_not_begun_again() {
        let begun = AtomicUsize::new(0);
        let begin = || {
            begun.fetch_add(1, Ordering::Relaxed);
            let refused = stream::repeat_with(|| -> [Item; 2] { [Ok(Event::Init), Err(api_error(403))] })
                .take(20)
                .flat_map(stream::iter);
            let slow = stream::once(async {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Ok(Event::InitDone)
            });
            refused.chain(stream::iter([Ok(Event::Init)])).chain(slow).chain(stream::pending()).boxed()
        };
        let mut events = std::pin::pin!(follow(subject(), shared(Last::default()), begin, || {}));
        while !matches!(events.next().await, Some(Event::InitDone)) {}
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        assert!(tokio::time::timeout(Duration::from_secs(3600), events.next()).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_error_is_described_in_brief_and_without_content() {
        let long = Error::WatchError(Status::failure(&"x".repeat(100_000), "No").with_code(500).boxed());
        assert!(describe(&long).len() <= LONGEST_ERROR);
        assert!(!describe(&garbled()).contains("hunter2"), "{}", describe(&garbled()));
    }
}
