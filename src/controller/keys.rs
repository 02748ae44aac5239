//! Reads a Secret with static keys when the watch shows another version of it, so that only other keys count as a change.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Shared;
use crate::plan::Halt;
use crate::plan::auth::Reference;
use crate::plan::references::KeysScope;
use crate::plan::schedule::RetryPolicy;
use crate::token::Cluster;

/// The Secret is read at most so often, however often somebody changes it.
const BETWEEN_READS: Duration = Duration::from_secs(1);

/// How long to wait after a read that failed.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(60) };

/// How long reads fail before the work begins without the keys.
const FAILED: Duration = Duration::from_secs(10);

/// One Secret with static keys, and the version of it that is to be read.
pub(super) struct KeysReader {
    cluster: Arc<dyn Cluster>,
    scope: KeysScope,
    shared: Arc<Shared>,
    /// Whether it is in the list under way.
    listed: bool,
    /// The version that was read last.
    read: Option<String>,
    /// The version to read, and when.
    due: Option<(String, Instant)>,
    last: Option<Instant>,
    /// Since when reads fail, and how many have.
    failing: Option<(Instant, u32)>,
}

impl KeysReader {
    pub(super) fn new(cluster: Arc<dyn Cluster>, scope: KeysScope, shared: Arc<Shared>) -> Self {
        Self { cluster, scope, shared, listed: false, read: None, due: None, last: None, failing: None }
    }

    /// A list begins.
    pub(super) const fn list_begins(&mut self) {
        self.listed = false;
    }

    /// The Secret is there in this version.
    pub(super) fn seen(&mut self, version: Option<String>) {
        self.listed = true;
        let version = version.unwrap_or_default();
        if self.read.as_ref() == Some(&version) {
            return;
        }
        let now = Instant::now();
        let at =
            self.due.take().map_or_else(|| self.last.map_or(now, |last| now.max(last + BETWEEN_READS)), |due| due.1);
        self.due = Some((version, at));
    }

    /// The Secret is gone.
    pub(super) fn gone(&mut self) {
        (self.read, self.due, self.failing) = (None, None, None);
        self.shared.keys_seen(&self.scope, None);
    }

    /// A list has ended.
    pub(super) fn list_ends(&mut self) {
        if !self.listed {
            self.gone();
        }
        if self.due.is_none() {
            self.shared.reference_known(Reference::Keys(self.scope.clone()), false);
        }
    }

    /// Ends when the Secret is to be read.
    pub(super) async fn due(&self) {
        match &self.due {
            Some((_, at)) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Reads the Secret. What was known before stays when that fails.
    pub(super) async fn read(&mut self) {
        let now = Instant::now();
        self.last = Some(now);
        match self.cluster.keys_record(&self.scope).await {
            Ok(record) => {
                self.read = self.due.take().map(|(version, _)| version);
                self.failing = None;
                self.shared.keys_seen(&self.scope, record);
                self.shared.reference_known(Reference::Keys(self.scope.clone()), false);
            }
            Err(error) => {
                let (since, count) = self.failing.map_or((now, 1), |(since, count)| (since, count.saturating_add(1)));
                self.failing = Some((since, count));
                if count == 1 {
                    tracing::warn!(secret = %self.scope, %error, "a Secret with AWS keys could not be read");
                }
                let why = Halt { reason: error.reason(), message: error.to_string() };
                self.shared.keys_unread(&self.scope, why, since.elapsed() >= FAILED);
                if let Some((_, at)) = &mut self.due {
                    *at = Instant::now() + RETRY.delay(count, 1, &self.scope.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EcrCredentialStatus;
    use crate::api::status::Reason;
    use crate::controller::shared::WatchObserver;
    use crate::controller::watches::{CredentialList, SecretScope};
    use crate::controller::world::World;
    use crate::plan::auth::{Account, KeyMaterial, Keys};
    use crate::plan::references::{KeysRecord, Lent, References};
    use crate::plan::targets::Index;
    use crate::plan::{Limits, Uid};
    use crate::token::{StaticKeys, TokenError};
    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use secrecy::SecretString;
    use std::collections::{BTreeSet, HashSet, VecDeque};

    type Answer = Result<Option<KeysRecord>, TokenError>;

    /// Answers in turn, and nothing else.
    struct Answers(Mutex<VecDeque<Answer>>);

    impl Cluster for Answers {
        fn web_identity<'a>(&'a self, _: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>> {
            unreachable!("no ServiceAccount is used")
        }

        fn keys_record<'a>(&'a self, _: &'a KeysScope) -> BoxFuture<'a, Answer> {
            let answer = self.0.lock().pop_front().unwrap();
            Box::pin(async move { answer })
        }

        fn static_keys<'a>(&'a self, _: &'a Keys, _: &'a KeyMaterial) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
            unreachable!("no token is fetched")
        }
    }

    /// Nobody who is told of what the watches see.
    struct Nobody;

    impl WatchObserver for Nobody {
        fn gone(&self, _: &Uid) {}
        fn unreadable(&self, _: &Uid, _: &str, _: Option<&EcrCredentialStatus>) {}
        fn skipped(&self, _: &'static str, _: usize) {}
    }

    struct Setting {
        reader: KeysReader,
        answers: Arc<Answers>,
        shared: Arc<Shared>,
        scope: KeysScope,
    }

    impl Setting {
        fn new(answers: impl Into<VecDeque<Answer>>) -> Self {
            let scope = KeysScope { namespace: "ops".into(), name: "keys".into() };
            let lent = Lent { keys: BTreeSet::from([scope.clone()]), ..Lent::default() };
            let (queue, _) = tokio::sync::mpsc::unbounded_channel();
            let world = World::new(Index::default(), References::new(lent));
            let shared = Arc::new(Shared::new(world, Limits::default(), queue, Nobody));
            // All other watches have listed.
            shared.credentials_listed(&CredentialList::default());
            shared.namespaces_listed(&HashSet::new());
            shared.secrets_listed(&SecretScope { name: None, namespace: None }, &HashSet::new());
            let answers = Arc::new(Answers(Mutex::new(answers.into())));
            let reader = KeysReader::new(answers.clone(), scope.clone(), shared.clone());
            Self { reader, answers, shared, scope }
        }

        /// Reads until nothing is due.
        async fn work(&mut self) {
            while self.reader.due.is_some() {
                self.reader.due().await;
                self.reader.read().await;
            }
        }

        fn known(&self) -> Result<KeysRecord, Reason> {
            self.shared.world.lock().references.keys(&self.scope).cloned().map_err(|halt| halt.reason)
        }

        /// Whether the work may begin.
        fn is_listed(&self) -> bool {
            self.shared.listed().borrow().is_complete(1, 1)
        }

        fn unread_answers(&self) -> usize {
            self.answers.0.lock().len()
        }
    }

    fn record(text: &str) -> KeysRecord {
        KeysRecord::of([("key", text)])
    }

    fn version(number: u32) -> Option<String> {
        Some(number.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn each_version_is_read_once_and_the_work_waits_for_the_first() {
        let mut s = Setting::new([Ok(Some(record("a"))), Ok(Some(record("b")))]);
        s.reader.list_begins();
        s.reader.seen(version(1));
        s.reader.list_ends();
        assert!(!s.is_listed(), "the keys are not known yet");
        s.work().await;
        assert_eq!((s.known(), s.is_listed()), (Ok(record("a")), true));
        s.reader.list_begins();
        s.reader.seen(version(1));
        s.reader.list_ends();
        s.work().await;
        assert_eq!(s.unread_answers(), 1, "a list of the same version is no reason to read");
        let before = Instant::now();
        for number in 2..10 {
            s.reader.seen(version(number));
        }
        s.work().await;
        assert_eq!((s.known(), s.unread_answers()), (Ok(record("b")), 0), "many versions, one read");
        assert_eq!(before.elapsed(), BETWEEN_READS);
        s.reader.list_begins();
        s.reader.list_ends();
        assert_eq!(s.known(), Err(Reason::IdentityNotFound), "gone while nobody watched");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_fails_is_tried_again_and_takes_nothing_away() {
        let down = || Err(TokenError::Cluster("down".to_owned()));
        let mut s = Setting::new([down(), Ok(Some(record("a"))), down(), Ok(Some(record("b")))]);
        s.reader.seen(version(1));
        s.reader.list_ends();
        s.reader.read().await;
        assert_eq!(s.known(), Err(Reason::ApiError), "it is there, so it is not told as missing");
        assert!(!s.is_listed());
        s.work().await;
        assert_eq!(s.known(), Ok(record("a")));
        s.reader.seen(version(2));
        s.reader.read().await;
        assert_eq!(s.known(), Ok(record("a")));
        s.work().await;
        assert_eq!(s.known(), Ok(record("b")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_does_not_wait_for_ever_for_keys_that_cannot_be_read() {
        let refused = || Err(TokenError::Forbidden("refused".to_owned()));
        let mut s = Setting::new((0..20).map(|_| refused()).collect::<VecDeque<_>>());
        s.reader.seen(version(1));
        s.reader.list_ends();
        let begun = Instant::now();
        while !s.is_listed() {
            s.reader.due().await;
            s.reader.read().await;
        }
        assert!(begun.elapsed() >= FAILED && s.unread_answers() > 10, "{:?}", begun.elapsed());
        assert_eq!(s.known(), Err(Reason::Forbidden));
    }
}
