//! The cache of tokens: one token, at most one fetch in flight, and the backoff for each key.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::limiter::{FairRateLimiter, Priority};
use super::{AuthorizationToken, InvalidToken, TokenError, TokenSource, check};
use crate::clock::Clock;
use crate::plan::schedule::{Life, RetryPolicy, later};
use crate::plan::{Identity, TokenKey, Uid};

/// The shortest time between two successful fetches of a key.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// How long a token for one namespace is kept after its fetch, even without users: a namespace whose label is added and removed in a
/// loop costs one call in this time, and not one for each change.
const KEPT: Duration = Duration::from_secs(300);

/// A fetch that waits longer for the cluster takes another turn to call AWS.
const SLOW: Duration = Duration::from_secs(1);

/// How long the results for single namespaces are collected before their waiters are notified.
const BATCH: Duration = Duration::from_millis(300);

/// The state of a key.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest valid response; the token may have expired since.
    pub token: Option<Arc<AuthorizationToken>>,
    /// The last failure, if it is newer than the token.
    pub failure: Option<Failure>,
    /// Whether a fetch is in flight.
    pub in_flight: bool,
}

/// A fetch that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why.
    pub error: TokenError,
    /// How many failed in a row.
    pub count: u32,
    /// When the last of them ended.
    pub at: Timestamp,
    /// When the next may be tried.
    pub retry_at: Timestamp,
}

#[derive(Debug, Default)]
struct Slot {
    state: Snapshot,
    succeeded: Option<Instant>,
    /// Until when its token is kept without users.
    kept_until: Option<Instant>,
    waiters: BTreeSet<Uid>,
    /// The end of the backoff, by the clock's uptime, which never jumps.
    wait_until: Duration,
    /// The `EcrCredentials` that use it.
    users: BTreeSet<Uid>,
    /// The dispatch of the fetch in flight.
    turn: Option<Dispatch>,
    /// Cancels the fetch while it is queued, once nobody uses the token any more.
    waiting: Option<DropGuard>,
}

impl Slot {
    /// The priority of a fetch.
    fn priority(&self, turn: Dispatch, now: Timestamp) -> Priority {
        let held = self.state.token.as_ref().is_some_and(|token| token.life.is_valid(now));
        match (turn, held, self.state.failure.is_some()) {
            (Dispatch::Immediate, ..) => Priority::Shared,
            (Dispatch::Queued, false, false) => Priority::First,
            (Dispatch::Queued, true, false) => Priority::Renewal,
            (Dispatch::Queued, true, true) => Priority::RetriedRenewal,
            (Dispatch::Queued, false, true) => Priority::RetriedFirst,
        }
    }

    /// Whether it can be dropped. A backoff is kept until its end, and a new token for a while, so that removing and adding a namespace
    /// or an `EcrCredential` does not bypass them.
    fn is_idle(&self, uptime: Duration) -> bool {
        let fetching = self.state.in_flight && self.waiting.is_none();
        let failed = self.state.failure.is_some() && self.wait_until > uptime;
        let kept = self.kept_until.is_some_and(|until| until > Instant::now());
        self.users.is_empty() && !fetching && !failed && !kept
    }
}

/// All slots, and the keys that each `EcrCredential` uses.
#[derive(Debug, Default)]
struct Slots {
    by_key: HashMap<TokenKey, Slot>,
    wanted: HashMap<Uid, BTreeSet<TokenKey>>,
    /// The number of slots with users for each identity.
    identities: HashMap<Identity, usize>,
    /// When idle slots were dropped last.
    swept: Option<Instant>,
}

impl Slots {
    fn slot(&mut self, key: &TokenKey) -> &mut Slot {
        self.by_key.entry(key.clone()).or_default()
    }

    fn add_user(&mut self, key: &TokenKey, who: &Uid) {
        let slot = self.slot(key);
        let first = slot.users.is_empty();
        slot.users.insert(who.clone());
        if first {
            *self.identities.entry(key.identity.clone()).or_default() += 1;
        }
    }

    /// Returns the identity if this was the last user of all its slots. Its session is then dropped, while a backoff
    /// stays.
    fn remove_user(&mut self, key: &TokenKey, who: &Uid) -> Option<Identity> {
        let slot = self.by_key.get_mut(key)?;
        slot.waiters.remove(who);
        if !slot.users.remove(who) || !slot.users.is_empty() {
            return None;
        }
        let count = self.identities.get_mut(&key.identity)?;
        *count = count.saturating_sub(1);
        (*count == 0).then(|| self.identities.remove(&key.identity));
        self.without_users(&key.identity)
    }

    fn without_users(&self, identity: &Identity) -> Option<Identity> {
        (!self.identities.contains_key(identity)).then(|| identity.clone())
    }

    /// Whether another fetch of this identity is queued or in flight: it can use the same session.
    fn is_busy(&self, identity: &Identity) -> bool {
        self.by_key.iter().any(|(key, slot)| slot.state.in_flight && key.identity == *identity)
    }

    /// Drops idle slots.
    fn sweep(&mut self, uptime: Duration) {
        self.swept = Some(Instant::now());
        self.by_key.retain(|_, slot| !slot.is_idle(uptime));
    }
}

/// How the waiters of a fetch are notified. The rate limit applies to both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatch {
    /// At once: the token is shared by all namespaces.
    Immediate,
    /// In batches: the token is for one of perhaps thousands of namespaces.
    Queued,
}

/// A finished fetch, for logs and metrics.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What was fetched.
    pub key: TokenKey,
    /// The life of the token, or why there is none.
    pub result: Result<Life, TokenError>,
}

/// The settings of the cache.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// How long to wait after failures.
    pub retry: RetryPolicy,
    /// A token with less remaining life is refused.
    pub min_life: Duration,
    /// The most calls of each service in a second.
    pub rate: u16,
    /// The clock.
    pub clock: Clock,
}

/// The cache of tokens. Fetches run on tasks of their own: requests return at once, and waiters are notified at the end.
pub struct TokenCache {
    source: Arc<dyn TokenSource>,
    settings: CacheSettings,
    slots: Mutex<Slots>,
    limiter: Arc<FairRateLimiter>,
    /// The waiters of the next batch of notifications.
    later: Mutex<BTreeSet<Uid>>,
    finished: UnboundedSender<Uid>,
    observer: Box<dyn Fn(&Fetched) + Send + Sync>,
}

impl TokenCache {
    /// An empty cache. `finished` gets each waiter once its token was fetched or has failed; `observer` is called once for
    /// each fetch.
    pub fn new(
        source: Arc<dyn TokenSource>,
        settings: CacheSettings,
        finished: UnboundedSender<Uid>,
        observer: impl Fn(&Fetched) + Send + Sync + 'static,
    ) -> Self {
        let limiter = FairRateLimiter::new(settings.rate);
        let (slots, later) = Default::default();
        Self { source, settings, slots, limiter, later, finished, observer: Box::new(observer) }
    }

    /// Sets the keys that an `EcrCredential` uses from now on, before it requests any. Unused tokens, and sessions of unused
    /// identities, are dropped.
    pub fn want(&self, who: &Uid, keys: BTreeSet<TokenKey>) {
        let gone = {
            let mut slots = self.slots.lock();
            let before = slots.wanted.remove(who).unwrap_or_default();
            for key in keys.difference(&before) {
                slots.add_user(key, who);
            }
            let gone: Vec<_> = before.difference(&keys).filter_map(|key| slots.remove_user(key, who)).collect();
            let dropped = !before.is_subset(&keys);
            if !keys.is_empty() {
                slots.wanted.insert(who.clone(), keys);
            }
            if dropped {
                slots.sweep(self.settings.clock.uptime());
            }
            gone
        };
        for identity in gone {
            self.source.forget(&identity);
        }
    }

    /// The state of a key now.
    pub fn look(&self, key: &TokenKey) -> Snapshot {
        let slots = self.slots.lock();
        let Some(slot) = slots.by_key.get(key) else { return Snapshot::default() };
        let mut known = slot.state.clone();
        if let Some(failure) = &mut known.failure {
            // The clock may have been corrected since. A backoff that is over must not start again for a reader with an earlier time.
            let clock = &self.settings.clock;
            let left = slot.wait_until.saturating_sub(clock.uptime());
            failure.retry_at = if left.is_zero() { Timestamp::MIN } else { later(clock.now(), left) };
        }
        known
    }

    /// Visits the life of each token in use.
    pub fn each_life(&self, mut see: impl FnMut(&TokenKey, Life)) {
        for (key, slot) in &self.slots.lock().by_key {
            if let Some(token) = slot.state.token.as_ref().filter(|_| !slot.users.is_empty()) {
                see(key, token.life);
            }
        }
    }

    /// Stores a token that was recovered from a Secret, unless a newer one is cached.
    pub fn seed(&self, key: &TokenKey, token: &Arc<AuthorizationToken>) {
        let mut slots = self.slots.lock();
        let slot = slots.slot(key);
        if slot.state.token.as_ref().is_none_or(|held| held.life.issued_at < token.life.issued_at) {
            slot.state.token = Some(token.clone());
        }
    }

    /// See [`TokenSource::fingerprint`].
    pub fn fingerprint(&self, identity: &Identity) -> String {
        self.source.fingerprint(identity)
    }

    /// Requests a new token, for `who`. Joins the fetch in flight, if any.
    pub fn request(self: &Arc<Self>, key: &TokenKey, who: &Uid, turn: Dispatch) {
        let waiting = CancellationToken::new();
        let (not_before, priority) = {
            let mut slots = self.slots.lock();
            // Tokens that are kept without users are dropped eventually, even if no use ends.
            if slots.swept.is_some_and(|at| at.elapsed() >= KEPT) {
                slots.sweep(self.settings.clock.uptime());
            }
            let slot = slots.slot(key);
            slot.waiters.insert(who.clone());
            if std::mem::replace(&mut slot.state.in_flight, true) {
                return;
            }
            slot.waiting = Some(waiting.clone().drop_guard());
            slot.turn = Some(turn);
            let not_before = slot.succeeded.map_or_else(Instant::now, |last| last + SHORTEST_INTERVAL);
            (not_before, slot.priority(turn, self.settings.clock.now()))
        };
        let (tokens, key, who) = (self.clone(), key.clone(), who.clone());
        tokio::spawn(async move {
            let my_turn = async {
                tokio::time::sleep_until(not_before).await;
                tokens.limiter.acquire(priority, &who, calls(&key)).await;
            };
            tokio::select! {
                () = waiting.cancelled() => return,
                () = my_turn => {}
            }
            if !tokens.begin(&key, &waiting) {
                return;
            }
            // A panic in a dependency must not leave the key in flight forever.
            let fetched = AssertUnwindSafe(tokens.fetch(&key, &who)).catch_unwind().await;
            let interrupted = |_| Err(TokenError::Unavailable("the fetch was interrupted".to_owned()));
            tokens.finish(&key, fetched.unwrap_or_else(interrupted));
        });
    }

    async fn fetch(&self, key: &TokenKey, who: &Uid) -> Result<AuthorizationToken, TokenError> {
        let begun = Instant::now();
        let _prepared = self.source.prepare(key).await?;
        if begun.elapsed() >= SLOW {
            // Its turn has passed. All that a slow API server has held up must not call AWS in the same moment.
            self.limiter.acquire(Priority::Shared, who, calls(key)).await;
        }
        let raw = self.source.fetch(key).await?;
        Ok(check(raw, key, self.settings.clock.now(), self.settings.min_life)?)
    }

    /// Starts a queued fetch; false if it was cancelled.
    fn begin(&self, key: &TokenKey, waiting: &CancellationToken) -> bool {
        let mut slots = self.slots.lock();
        if waiting.is_cancelled() {
            return false;
        }
        if let Some(guard) = slots.by_key.get_mut(key).and_then(|slot| slot.waiting.take()) {
            guard.disarm();
        }
        true
    }

    /// Adds a waiter to the fetch in flight. If it has just ended, the waiter is notified at once.
    pub fn join(&self, key: &TokenKey, who: &Uid) {
        let mut slots = self.slots.lock();
        match slots.by_key.get_mut(key).filter(|slot| slot.state.in_flight) {
            Some(slot) => {
                slot.waiters.insert(who.clone());
            }
            None => self.notify(who.clone()),
        }
    }

    fn notify(&self, who: Uid) {
        // The receiver lives as long as the process.
        let _ = self.finished.send(who);
    }

    /// Notifies these with the next batch.
    fn notify_later(self: &Arc<Self>, whom: BTreeSet<Uid>) {
        let mut later = self.later.lock();
        let first = later.is_empty();
        later.extend(whom);
        if !first || later.is_empty() {
            return;
        }
        let tokens = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(BATCH).await;
            for who in std::mem::take(&mut *tokens.later.lock()) {
                tokens.notify(who);
            }
        });
    }

    fn finish(self: &Arc<Self>, key: &TokenKey, result: Result<AuthorizationToken, TokenError>) {
        let now = self.settings.clock.now();
        let (waiters, turn, fetched, gone, busy) = {
            let mut slots = self.slots.lock();
            let slot = slots.slot(key);
            slot.state.in_flight = false;
            let turn = slot.turn.take();
            let result = result.and_then(|token| refuse_shorter(token, slot.state.token.as_deref(), now));
            let result = match result {
                Ok(token) => {
                    let life = token.life;
                    slot.state.token = Some(Arc::new(token));
                    slot.state.failure = None;
                    slot.succeeded = Some(Instant::now());
                    slot.kept_until = (turn == Some(Dispatch::Queued)).then(|| Instant::now() + KEPT);
                    Ok(life)
                }
                Err(error) => {
                    let count = slot.state.failure.as_ref().map_or(1, |f| f.count.saturating_add(1));
                    let wait = self.settings.retry.delay(count, error.retry_scale(), &format!("{key:?}"));
                    slot.wait_until = self.settings.clock.uptime().saturating_add(wait);
                    // An equal refusal keeps its first request id, so that a status is not written for each attempt.
                    let before = slot.state.failure.take().map(|failure| failure.error).filter(|old| *old == error);
                    let told = before.unwrap_or_else(|| error.clone());
                    slot.state.failure = Some(Failure { error: told, count, at: now, retry_at: later(now, wait) });
                    Err(error)
                }
            };
            let waiters = std::mem::take(&mut slot.waiters);
            let uptime = self.settings.clock.uptime();
            if slot.is_idle(uptime) {
                slots.sweep(uptime);
            }
            // This fetch outlived the last user of the identity.
            let gone = slots.without_users(&key.identity);
            (waiters, turn, Fetched { key: key.clone(), result }, gone, slots.is_busy(&key.identity))
        };
        (self.observer)(&fetched);
        if let Some(identity) = gone {
            self.source.forget(&identity);
        }
        if turn == Some(Dispatch::Queued) {
            if !busy {
                // Its session would be idle until the next refresh, for each of perhaps thousands of namespaces.
                self.source.forget(&key.identity);
            }
            self.notify_later(waiters);
        } else {
            waiters.into_iter().for_each(|who| self.notify(who));
        }
    }
}

/// The most calls of one service that a fetch makes: of STS for a ServiceAccount, then for each role.
fn calls(key: &TokenKey) -> u32 {
    u32::try_from(key.identity.roles().len()).unwrap_or(u32::MAX).saturating_add(1)
}

/// Refuses a token that expires before the valid one in the cache: the expiry of a Secret never moves back.
fn refuse_shorter(
    token: AuthorizationToken,
    held: Option<&AuthorizationToken>,
    now: Timestamp,
) -> Result<AuthorizationToken, TokenError> {
    match held {
        Some(held) if held.life.is_valid(now) && token.life.expires_at < held.life.expires_at => {
            Err(InvalidToken::ShorterThanHeld(token.life.expires_at).into())
        }
        _ => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::HostVariant;
    use crate::api::registry::{AccountId, Region};
    use crate::plan::Service;
    use crate::token::{Prepared, RawToken};
    use base64::Engine;
    use futures::future::BoxFuture;
    use secrecy::SecretString;
    use std::collections::VecDeque;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const NOW: i64 = 1_000_000;
    const HOUR: i64 = 3600;

    /// Answers in turn; each answer is an expiry or an error. Counts the sessions that it was to forget.
    struct Script(Mutex<VecDeque<Result<i64, TokenError>>>, Mutex<usize>);

    impl Script {
        fn new(answers: impl Into<VecDeque<Result<i64, TokenError>>>) -> Arc<Self> {
            Arc::new(Self(Mutex::new(answers.into()), Mutex::default()))
        }
    }

    impl TokenSource for Script {
        fn fetch<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
            let answer = self.0.lock().pop_front().unwrap();
            Box::pin(async move {
                let expires_at = Timestamp::from_second(answer?).ok();
                let text = base64::engine::general_purpose::STANDARD.encode("AWS:x");
                Ok(vec![RawToken { token: Some(SecretString::from(text)), expires_at, account: None }])
            })
        }

        fn fingerprint(&self, _: &Identity) -> String {
            String::new()
        }

        fn forget(&self, _: &Identity) {
            *self.1.lock() += 1;
        }
    }

    fn key() -> TokenKey {
        TokenKey { identity: Identity::operator(), service: Service::Public }
    }

    fn tokens(answers: Vec<Result<i64, TokenError>>) -> (Arc<TokenCache>, UnboundedReceiver<Uid>) {
        tokens_from(Script::new(answers))
    }

    fn tokens_from(source: Arc<dyn TokenSource>) -> (Arc<TokenCache>, UnboundedReceiver<Uid>) {
        tokens_by(clock(), source)
    }

    fn tokens_by(clock: Clock, source: Arc<dyn TokenSource>) -> (Arc<TokenCache>, UnboundedReceiver<Uid>) {
        let (sender, receiver) = unbounded_channel();
        let retry = RetryPolicy { initial: Duration::from_secs(10), max: Duration::from_secs(300) };
        let settings = CacheSettings { retry, min_life: Duration::from_secs(60), rate: 10, clock };
        (Arc::new(TokenCache::new(source, settings, sender, |_| ())), receiver)
    }

    fn ask(tokens: &Arc<TokenCache>, who: &str) {
        tokens.want(&uid(who), BTreeSet::from([key()]));
        tokens.request(&key(), &uid(who), Dispatch::Immediate);
    }

    /// A clock that stands still.
    fn clock() -> Clock {
        Clock::new(|| Timestamp::from_second(NOW).unwrap(), Duration::default)
    }

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    #[tokio::test]
    async fn everyone_who_asks_shares_one_fetch_and_is_told() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + 12 * HOUR)]);
        for who in ["a", "b", "c"] {
            ask(&tokens, who);
        }
        let mut names = BTreeSet::new();
        for _ in 0..3 {
            names.insert(told.recv().await.unwrap());
        }
        assert_eq!(names, BTreeSet::from([uid("a"), uid("b"), uid("c")]));
        assert!(tokens.look(&key()).token.is_some() && !tokens.look(&key()).in_flight);
    }

    #[tokio::test]
    async fn a_failure_keeps_the_good_token_and_waits_longer_each_time() {
        let down = || Err(TokenError::Unavailable("down".to_owned()));
        let (tokens, mut told) = tokens(vec![Ok(NOW + HOUR), down(), down(), Ok(NOW + 2 * HOUR)]);
        let mut waits = Vec::new();
        for _ in 0..3 {
            ask(&tokens, "a");
            told.recv().await.unwrap();
            let known = tokens.look(&key());
            assert!(known.token.is_some());
            waits.push(known.failure.map(|f| f.retry_at.as_second() - NOW));
        }
        assert!(waits[0].is_none() && waits[1] < waits[2], "{waits:?}");
        ask(&tokens, "a");
        told.recv().await.unwrap();
        assert!(tokens.look(&key()).failure.is_none());
    }

    #[tokio::test]
    async fn a_token_that_expires_before_the_one_held_is_not_taken() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + 2 * HOUR), Ok(NOW + HOUR)]);
        for _ in 0..2 {
            ask(&tokens, "a");
            told.recv().await.unwrap();
        }
        let known = tokens.look(&key());
        assert_eq!(known.token.unwrap().life.expires_at.as_second(), NOW + 2 * HOUR);
        assert!(matches!(known.failure.unwrap().error, TokenError::Invalid(InvalidToken::ShorterThanHeld(_))));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_changes_no_wait() {
        thread_local!(static AHEAD: std::cell::Cell<i64> = const { std::cell::Cell::new(13 * HOUR) });
        let now = || Timestamp::from_second(NOW + AHEAD.get()).unwrap();
        thread_local!(static UPTIME: std::cell::Cell<u64> = const { std::cell::Cell::new(7) });
        let clock = Clock::new(now, || Duration::from_secs(UPTIME.get()));
        let down = Script::new([Err(TokenError::Unavailable("down".to_owned()))]);
        let (tokens, mut told) = tokens_by(clock, down);
        ask(&tokens, "a");
        told.recv().await.unwrap();
        let wait = || tokens.look(&key()).failure.unwrap().retry_at.duration_since(now());
        let before = wait();
        assert!(before.is_positive());
        AHEAD.set(0);
        assert_eq!(wait(), before);
        UPTIME.set(7 + 10);
        assert!(wait().is_negative(), "it is over, also for who has looked at the clock a moment before");
    }

    #[tokio::test]
    async fn a_source_that_panics_counts_as_a_failure() {
        let (tokens, mut told) = tokens(vec![]);
        ask(&tokens, "a");
        told.recv().await.unwrap();
        assert!(tokens.look(&key()).failure.is_some() && !tokens.look(&key()).in_flight);
    }

    #[tokio::test]
    async fn who_joins_a_fetch_that_has_just_ended_is_told_at_once() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + HOUR)]);
        ask(&tokens, "a");
        told.recv().await.unwrap();
        tokens.join(&key(), &uid("b"));
        assert_eq!(told.recv().await, Some(uid("b")));
    }

    #[tokio::test]
    async fn another_ones_end_does_not_take_the_token_that_one_waits_for() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + HOUR)]);
        tokens.want(&uid("a"), BTreeSet::from([key()]));
        tokens.want(&uid("b"), BTreeSet::from([key()]));
        ask(&tokens, "b");
        tokens.want(&uid("a"), BTreeSet::new());
        assert_eq!(told.recv().await, Some(uid("b")));
        assert!(tokens.look(&key()).token.is_some());
    }

    #[tokio::test]
    async fn a_token_that_nobody_wants_any_more_is_forgotten_also_if_it_comes_later() {
        let (tokens, _told) = tokens(vec![Ok(NOW + HOUR)]);
        tokens.want(&uid("a"), BTreeSet::from([key()]));
        ask(&tokens, "a");
        tokens.want(&uid("a"), BTreeSet::new());
        assert!(!tokens.look(&key()).in_flight, "the fetch had not begun");
        tokens.want(&uid("a"), BTreeSet::from([key()]));
        tokens.finish(&key(), Err(TokenError::Unavailable("down".to_owned())));
        tokens.want(&uid("a"), BTreeSet::new());
        assert!(tokens.look(&key()).failure.is_some(), "the wait stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_comes_and_goes_costs_one_call_in_a_while_and_its_token_is_forgotten_in_the_end() {
        let (tokens, mut told) = tokens((0..9).map(|_| Ok(NOW + HOUR)).collect());
        let begun = Instant::now();
        let mut calls = Vec::new();
        // Its label is removed and added every ten seconds for a quarter of an hour.
        while begun.elapsed() < Duration::from_secs(900) {
            tokens.want(&uid("a"), BTreeSet::from([key()]));
            if tokens.look(&key()).token.is_none() {
                tokens.request(&key(), &uid("a"), Dispatch::Queued);
                told.recv().await.unwrap();
                calls.push(begun.elapsed().as_secs());
            }
            tokens.want(&uid("a"), BTreeSet::new());
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(calls.len(), 3, "{calls:?}");
        let mut lives = 0;
        tokens.each_life(|_, _| lives += 1);
        assert_eq!(lives, 0, "nobody uses it");
        tokio::time::sleep(KEPT * 2).await;
        tokens.want(&uid("b"), BTreeSet::from([numbered(1)]));
        tokens.request(&numbered(1), &uid("b"), Dispatch::Queued);
        assert!(!tokens.slots.lock().by_key.contains_key(&key()));
        // One that serves all namespaces goes with its last user, as it would with the process.
        ask(&tokens, "c");
        while told.recv().await.unwrap() != uid("c") {}
        tokens.want(&uid("c"), BTreeSet::new());
        assert!(tokens.look(&key()).token.is_none());
    }

    #[tokio::test]
    async fn the_session_of_one_that_fails_goes_with_its_last_user_and_the_wait_stays() {
        let down = || Err(TokenError::Unavailable("down".to_owned()));
        let script = Script::new([down(), down()]);
        let (tokens, mut told) = tokens_from(script.clone());
        tokens.want(&uid("b"), BTreeSet::from([key()]));
        ask(&tokens, "a");
        told.recv().await.unwrap();
        tokens.want(&uid("a"), BTreeSet::new());
        assert_eq!(*script.1.lock(), 0, "another uses it");
        tokens.want(&uid("b"), BTreeSet::new());
        assert_eq!(*script.1.lock(), 1);
        assert!(tokens.look(&key()).failure.is_some());
        // A fetch that ends after that leaves none behind either.
        tokens.request(&key(), &uid("b"), Dispatch::Immediate);
        told.recv().await.unwrap();
        assert_eq!(*script.1.lock(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_stays_while_another_token_of_its_identity_is_to_be_fetched() {
        let down = || Err(TokenError::Unavailable("down".to_owned()));
        let script = Script::new([down(), down()]);
        let (tokens, mut told) = tokens_from(script.clone());
        let keys = [numbered(1), numbered(2)];
        tokens.want(&uid("a"), keys.iter().cloned().collect());
        for key in &keys {
            tokens.request(key, &uid("a"), Dispatch::Queued);
        }
        while keys.iter().any(|key| tokens.look(key).in_flight) {
            told.recv().await.unwrap();
        }
        assert_eq!(*script.1.lock(), 1, "forgotten once, after the last");
    }

    /// One of many keys.
    fn numbered(number: u32) -> TokenKey {
        let (region, endpoint) = (Region::parse("eu-west-1").unwrap(), HostVariant::Standard);
        let registry_ids = vec![AccountId::parse(&format!("{number:012}")).unwrap()];
        TokenKey { identity: Identity::operator(), service: Service::Private { region, endpoint, registry_ids } }
    }

    /// A token that is good for an hour.
    fn held() -> Arc<AuthorizationToken> {
        let at = |second| Timestamp::from_second(second).unwrap();
        let life = Life { issued_at: at(NOW), expires_at: at(NOW + HOUR) };
        Arc::new(AuthorizationToken { tokens: Vec::new(), life, identity: Identity::operator() })
    }

    /// An API server that answers nobody until then; notes when each fetch calls AWS.
    struct Slow {
        until: Instant,
        calls: Mutex<Vec<Instant>>,
    }

    impl TokenSource for Slow {
        fn prepare<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Prepared, TokenError>> {
            Box::pin(async {
                tokio::time::sleep_until(self.until).await;
                Ok(None)
            })
        }

        fn fetch<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
            self.calls.lock().push(Instant::now());
            Box::pin(async { Err(TokenError::Unavailable("down".to_owned())) })
        }

        fn fingerprint(&self, _: &Identity) -> String {
            String::new()
        }

        fn forget(&self, _: &Identity) {}
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_a_slow_api_server_has_held_up_do_not_call_aws_all_at_once() {
        let source = Arc::new(Slow { until: Instant::now() + Duration::from_secs(30), calls: Mutex::default() });
        let (tokens, mut told) = tokens_from(source.clone());
        let keys: BTreeSet<TokenKey> = (0..400).map(numbered).collect();
        tokens.want(&uid("x"), keys.clone());
        for key in &keys {
            tokens.request(key, &uid("x"), Dispatch::Queued);
        }
        while source.calls.lock().len() < keys.len() {
            told.recv().await.unwrap();
        }
        let calls = source.calls.lock();
        let within_a_second =
            |from: &Instant| calls.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(at)).count();
        let most = calls.iter().map(within_a_second).max().unwrap();
        assert!(most <= 25, "{most} calls in a second");
    }

    /// Notes who is fetched, and fails.
    #[derive(Default)]
    struct Order(Mutex<Vec<TokenKey>>);

    impl TokenSource for Order {
        fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
            self.0.lock().push(key.clone());
            Box::pin(async { Err(TokenError::Unavailable("down".to_owned())) })
        }

        fn fingerprint(&self, _: &Identity) -> String {
            String::new()
        }

        fn forget(&self, _: &Identity) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_token_does_not_wait_for_those_that_are_renewed() {
        let order = Arc::new(Order::default());
        let (tokens, mut told) = tokens_from(order.clone());
        let token = held();
        let renewed: BTreeSet<TokenKey> = (0..2000).map(numbered).collect();
        tokens.want(&uid("old"), renewed.clone());
        for key in &renewed {
            tokens.seed(key, &token);
            tokens.request(key, &uid("old"), Dispatch::Queued);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (before, first) = (order.0.lock().len(), numbered(9999));
        assert!((50..=70).contains(&before), "{before} in five seconds");
        tokens.want(&uid("new"), BTreeSet::from([first.clone()]));
        tokens.request(&first, &uid("new"), Dispatch::Queued);
        while told.recv().await.unwrap() != uid("new") {}
        let place = order.0.lock().iter().position(|key| *key == first).unwrap();
        assert!(place <= before + 2, "{place} after {before}");
    }

    /// Fails for everyone; notes each call with its time.
    #[derive(Default)]
    struct Fails(Mutex<Vec<(TokenKey, Instant)>>);

    impl TokenSource for Fails {
        fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
            let mut calls = self.0.lock();
            calls.push((key.clone(), Instant::now()));
            let error = TokenError::Unavailable("down".to_owned());
            Box::pin(async { Err(error) })
        }

        fn fingerprint(&self, _: &Identity) -> String {
            String::new()
        }

        fn forget(&self, _: &Identity) {}
    }

    #[tokio::test(start_paused = true)]
    async fn however_tokens_are_asked_for_there_are_no_more_calls_than_the_rate() {
        for turn in [Dispatch::Immediate, Dispatch::Queued] {
            let source = Arc::new(Fails::default());
            let (tokens, _told) = tokens_from(source.clone());
            let keys: BTreeSet<TokenKey> = (0..100).map(numbered).collect();
            tokens.want(&uid("x"), keys.clone());
            for key in &keys {
                tokens.request(key, &uid("x"), turn);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            let calls = source.0.lock().len();
            assert!((50..=51).contains(&calls), "{turn:?}: {calls} calls in five seconds");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_is_tried_again_beside_a_thousand_that_are_denied_within_the_rate() {
        thread_local!(static BEGUN: std::cell::OnceCell<Instant> = const { std::cell::OnceCell::new() });
        let uptime = || BEGUN.with(|begun| begun.get_or_init(Instant::now).elapsed());
        let clock = Clock::new(|| Timestamp::from_second(NOW).unwrap(), uptime);
        let healthy = numbered(9999);
        let source = Arc::new(Fails::default());
        let (tokens, _told) = tokens_by(clock, source.clone());
        let mut keys: BTreeSet<TokenKey> = (0..1000).map(numbered).collect();
        keys.insert(healthy.clone());
        tokens.want(&uid("x"), keys.clone());
        tokens.seed(&healthy, &held());
        // As each reconciliation does: whatever has waited long enough is asked for again.
        for _ in 0..1800 {
            for key in &keys {
                let known = tokens.look(key);
                let waits = known.failure.is_some_and(|f| f.retry_at > Timestamp::from_second(NOW).unwrap());
                if !known.in_flight && !waits {
                    tokens.request(key, &uid("x"), Dispatch::Queued);
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let calls = source.0.lock();
        let tries: Vec<Instant> = calls.iter().filter(|(key, _)| *key == healthy).map(|(_, at)| *at).collect();
        assert!(tries.len() >= 7, "{} tries in half an hour", tries.len());
        assert!(calls.len() <= 18_001, "{} calls in half an hour", calls.len());
    }
}

#[cfg(test)]
mod priorities;
