//! The tokens in memory: one for each key, one fetch under way for each key, and the wait after a failure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::{Grant, InvalidToken, RawToken, TokenError, TokenSource, check};
use crate::plan::schedule::{RetryPolicy, later, until};
use crate::plan::{TokenKey, Uid};

/// However soon a token is wanted again after a good answer, AWS is not asked sooner than this.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a token right now.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest good token; it may have expired.
    pub grant: Option<Arc<Grant>>,
    /// The last failure, if it is newer than the grant.
    pub failure: Option<Failure>,
    /// Whether a fetch is under way.
    pub in_flight: bool,
}

/// A fetch that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why.
    pub error: TokenError,
    /// How many failed in a row.
    pub count: u32,
    /// When the next may be tried.
    pub retry_at: Timestamp,
}

#[derive(Debug, Default)]
struct Slot {
    state: Snapshot,
    succeeded: Option<Instant>,
    waiters: BTreeSet<Uid>,
}

/// A finished fetch, for logs and metrics.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What was fetched.
    pub key: TokenKey,
    /// When the token expires, or why there is none.
    pub result: Result<Timestamp, TokenError>,
}

/// What the cache is told at start.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// How long to wait after failures.
    pub retry: RetryPolicy,
    /// A token that lives less than this is refused.
    pub min_life: Duration,
    /// The clock.
    pub now: fn() -> Timestamp,
}

/// All tokens. Fetches run on tasks of their own: nobody waits for AWS, who asked is told when it answered.
pub struct Tokens {
    source: Arc<dyn TokenSource>,
    settings: CacheSettings,
    slots: Mutex<HashMap<TokenKey, Slot>>,
    finished: UnboundedSender<Uid>,
    observer: Box<dyn Fn(&Fetched) + Send + Sync>,
}

impl Tokens {
    /// An empty cache. `finished` gets everyone who asked for a token once it was fetched or failed; `observer` sees each
    /// fetch once.
    pub fn new(
        source: Arc<dyn TokenSource>,
        settings: CacheSettings,
        finished: UnboundedSender<Uid>,
        observer: impl Fn(&Fetched) + Send + Sync + 'static,
    ) -> Self {
        Self { source, settings, slots: Mutex::default(), finished, observer: Box::new(observer) }
    }

    /// What is known of a token.
    pub fn look(&self, key: &TokenKey) -> Snapshot {
        let mut known = self.slots.lock().get(key).map(|slot| slot.state.clone()).unwrap_or_default();
        let now = (self.settings.now)();
        // A wait longer than the longest was measured by a clock that has been set back since.
        if let Some(failure) = known.failure.as_mut().filter(|f| until(now, f.retry_at) > self.settings.retry.max) {
            failure.retry_at = now;
        }
        known
    }

    /// Takes a token that was found again in a Secret, unless a newer one is there.
    pub fn seed(&self, key: &TokenKey, grant: &Arc<Grant>) {
        let mut slots = self.slots.lock();
        let slot = slots.entry(key.clone()).or_default();
        if slot.state.grant.as_ref().is_none_or(|held| held.life.issued_at < grant.life.issued_at) {
            slot.state.grant = Some(grant.clone());
        }
    }

    /// See [`TokenSource::fingerprint`].
    pub fn fingerprint(&self, key: &TokenKey) -> String {
        self.source.fingerprint(key)
    }

    /// Asks for a new token, for `who`. Joins the fetch that is under way, if any.
    pub fn request(self: &Arc<Self>, key: &TokenKey, who: &Uid) {
        let not_before = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(key.clone()).or_default();
            slot.waiters.insert(who.clone());
            if std::mem::replace(&mut slot.state.in_flight, true) {
                return;
            }
            slot.succeeded.map_or_else(Instant::now, |last| last + SHORTEST_INTERVAL)
        };
        let (tokens, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            // A panic in a dependency must not leave the key in flight for good.
            let landing = Landing { tokens: tokens.clone(), key: key.clone(), landed: false };
            tokio::time::sleep_until(not_before).await;
            let result = tokens.source.fetch(&key).await;
            landing.land(result);
        });
    }

    /// Joins a fetch that is under way, so as to be told when it is done.
    pub fn join(&self, key: &TokenKey, who: &Uid) {
        if let Some(slot) = self.slots.lock().get_mut(key).filter(|slot| slot.state.in_flight) {
            slot.waiters.insert(who.clone());
        }
    }

    /// Forgets every token that is not in use, so that what nobody wants any more is not kept in memory. A wait after a
    /// failure is kept until it is over.
    pub fn retain(&self, in_use: &BTreeSet<TokenKey>) {
        let now = (self.settings.now)();
        self.slots.lock().retain(|key, slot| {
            let waiting = slot.state.failure.as_ref().is_some_and(|failure| failure.retry_at > now);
            slot.state.in_flight || waiting || in_use.contains(key)
        });
    }

    fn finish(&self, key: &TokenKey, result: Result<Grant, TokenError>) {
        let now = (self.settings.now)();
        let (waiters, fetched) = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(key.clone()).or_default();
            slot.state.in_flight = false;
            let result = result.and_then(|grant| refuse_shorter(grant, slot.state.grant.as_deref(), now));
            let result = match result {
                Ok(grant) => {
                    let expires_at = grant.life.expires_at;
                    slot.state.grant = Some(Arc::new(grant));
                    slot.state.failure = None;
                    slot.succeeded = Some(Instant::now());
                    Ok(expires_at)
                }
                Err(error) => {
                    let count = slot.state.failure.as_ref().map_or(1, |f| f.count.saturating_add(1));
                    let wait = self.settings.retry.delay(count, error.retry_scale(), &format!("{key:?}"));
                    slot.state.failure = Some(Failure { error: error.clone(), count, retry_at: later(now, wait) });
                    Err(error)
                }
            };
            (std::mem::take(&mut slot.waiters), Fetched { key: key.clone(), result })
        };
        (self.observer)(&fetched);
        for who in waiters {
            // The receiver ends with the process alone.
            let _ = self.finished.send(who);
        }
    }
}

/// A Secret's expiry never goes back: a token that expires before the valid one held is not taken.
fn refuse_shorter(grant: Grant, held: Option<&Grant>, now: Timestamp) -> Result<Grant, TokenError> {
    match held {
        Some(held) if held.life.is_valid(now) && grant.life.expires_at < held.life.expires_at => {
            Err(InvalidToken::ShorterThanHeld(grant.life.expires_at).into())
        }
        _ => Ok(grant),
    }
}

/// Ends a fetch exactly once, also when its task dies.
struct Landing {
    tokens: Arc<Tokens>,
    key: TokenKey,
    landed: bool,
}

impl Landing {
    fn land(mut self, result: Result<Vec<RawToken>, TokenError>) {
        let settings = &self.tokens.settings;
        let result = result.and_then(|raw| Ok(check(raw, &self.key, (settings.now)(), settings.min_life)?));
        self.landed = true;
        self.tokens.finish(&self.key, result);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.landed {
            self.tokens.finish(&self.key, Err(TokenError::Unavailable("the fetch was interrupted".to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Identity, Service};
    use base64::Engine;
    use futures::future::BoxFuture;
    use secrecy::SecretString;
    use std::collections::VecDeque;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const NOW: i64 = 1_000_000;
    const HOUR: i64 = 3600;

    /// Answers in turn; each answer is an expiry or an error.
    struct Script(Mutex<VecDeque<Result<i64, TokenError>>>);

    impl TokenSource for Script {
        fn fetch<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
            let answer = self.0.lock().pop_front().unwrap();
            Box::pin(async move {
                let expires_at = Timestamp::from_second(answer?).ok();
                let text = base64::engine::general_purpose::STANDARD.encode("AWS:x");
                Ok(vec![RawToken { token: Some(SecretString::from(text)), expires_at, account: None }])
            })
        }

        fn fingerprint(&self, _: &TokenKey) -> String {
            String::new()
        }
    }

    fn key() -> TokenKey {
        TokenKey { identity: Identity::Operator, service: Service::Public }
    }

    fn tokens(answers: Vec<Result<i64, TokenError>>) -> (Arc<Tokens>, UnboundedReceiver<Uid>) {
        let (sender, receiver) = unbounded_channel();
        let settings = CacheSettings {
            retry: RetryPolicy { initial: Duration::from_secs(10), max: Duration::from_secs(300) },
            min_life: Duration::from_secs(60),
            now: || Timestamp::from_second(NOW).unwrap(),
        };
        (Arc::new(Tokens::new(Arc::new(Script(Mutex::new(answers.into()))), settings, sender, |_| ())), receiver)
    }

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    #[tokio::test]
    async fn everyone_who_asks_shares_one_fetch_and_is_told() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + 12 * HOUR)]);
        for who in ["a", "b", "c"] {
            tokens.request(&key(), &uid(who));
        }
        let mut names = BTreeSet::new();
        for _ in 0..3 {
            names.insert(told.recv().await.unwrap());
        }
        assert_eq!(names, BTreeSet::from([uid("a"), uid("b"), uid("c")]));
        assert!(tokens.look(&key()).grant.is_some() && !tokens.look(&key()).in_flight);
    }

    #[tokio::test]
    async fn a_failure_keeps_the_good_token_and_waits_longer_each_time() {
        let down = || Err(TokenError::Unavailable("down".to_owned()));
        let (tokens, mut told) = tokens(vec![Ok(NOW + HOUR), down(), down(), Ok(NOW + 2 * HOUR)]);
        let mut waits = Vec::new();
        for _ in 0..3 {
            tokens.request(&key(), &uid("a"));
            told.recv().await.unwrap();
            let known = tokens.look(&key());
            assert!(known.grant.is_some());
            waits.push(known.failure.map(|f| f.retry_at.as_second() - NOW));
        }
        assert!(waits[0].is_none() && waits[1] < waits[2], "{waits:?}");
        tokens.request(&key(), &uid("a"));
        told.recv().await.unwrap();
        assert!(tokens.look(&key()).failure.is_none());
    }

    #[tokio::test]
    async fn a_token_that_expires_before_the_one_held_is_not_taken() {
        let (tokens, mut told) = tokens(vec![Ok(NOW + 2 * HOUR), Ok(NOW + HOUR)]);
        for _ in 0..2 {
            tokens.request(&key(), &uid("a"));
            told.recv().await.unwrap();
        }
        let known = tokens.look(&key());
        assert_eq!(known.grant.unwrap().life.expires_at.as_second(), NOW + 2 * HOUR);
        assert!(matches!(known.failure.unwrap().error, TokenError::Invalid(InvalidToken::ShorterThanHeld(_))));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_makes_no_wait_longer() {
        thread_local!(static AHEAD: std::cell::Cell<i64> = const { std::cell::Cell::new(13 * HOUR) });
        let now = || Timestamp::from_second(NOW + AHEAD.get()).unwrap();
        let (sender, mut told) = unbounded_channel();
        let retry = RetryPolicy { initial: Duration::from_secs(10), max: Duration::from_secs(300) };
        let settings = CacheSettings { retry, min_life: Duration::from_secs(60), now };
        let down = Script(Mutex::new([Err(TokenError::Unavailable("down".to_owned()))].into()));
        let tokens = Arc::new(Tokens::new(Arc::new(down), settings, sender, |_| ()));
        tokens.request(&key(), &uid("a"));
        told.recv().await.unwrap();
        assert!(tokens.look(&key()).failure.unwrap().retry_at > now());
        AHEAD.set(0);
        assert_eq!(tokens.look(&key()).failure.unwrap().retry_at, now());
    }

    #[tokio::test]
    async fn a_source_that_panics_counts_as_a_failure() {
        let (tokens, mut told) = tokens(vec![]);
        tokens.request(&key(), &uid("a"));
        told.recv().await.unwrap();
        assert!(tokens.look(&key()).failure.is_some() && !tokens.look(&key()).in_flight);
    }
}
