//! The Secrets with static keys that identities begin with.

use std::sync::Arc;

use super::cluster_state::ClusterState;
use super::reader::Watched;
use crate::plan::SpecError;
use crate::plan::references::KeysRecord;
use crate::plan::scopes::{Reference, SecretKey};
use crate::token::Cluster;

/// One Secret with static keys, which `cluster` reads.
pub(super) struct WatchedKeys {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) secret: SecretKey,
}

impl Watched for WatchedKeys {
    type Record = KeysRecord;

    fn secret(&self) -> &SecretKey {
        &self.secret
    }

    fn reference(&self) -> Reference {
        Reference::Keys(self.secret.clone())
    }

    async fn read(&self) -> Result<Option<KeysRecord>, SpecError> {
        let record = self.cluster.keys_record(&self.secret).await;
        record.map_err(SpecError::from)
    }

    fn seen(&self, state: &mut ClusterState, record: Option<KeysRecord>) -> bool {
        state.references.set_keys(&self.secret, record)
    }

    fn unread(&self, state: &mut ClusterState, why: SpecError) -> bool {
        state.references.set_keys_unread(&self.secret, why)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Shared;
    use super::super::reader::{BETWEEN_READS, FAILED, Reader};
    use super::*;
    use crate::api::status::Reason;
    use crate::controller::watches::CredentialList;
    use crate::plan::auth::{Account, KeyMaterial, Keys};
    use crate::plan::references::AllowedIdentities;
    use crate::plan::scopes::SecretScope;
    use crate::token::{StaticKeys, TokenError};
    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use secrecy::SecretString;
    use std::collections::{BTreeSet, HashSet, VecDeque};
    use std::time::Duration;
    use tokio::time::Instant;

    const INTERVAL: Duration = Duration::from_secs(300);

    type Answer = Result<Option<KeysRecord>, TokenError>;

    /// Answers in turn, and nothing else.
    struct Answers(Mutex<VecDeque<Answer>>);

    impl Cluster for Answers {
        fn web_identity<'a>(&'a self, _: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>> {
            unreachable!("no ServiceAccount is used")
        }

        fn keys_record<'a>(&'a self, _: &'a SecretKey) -> BoxFuture<'a, Answer> {
            let answer = self.0.lock().pop_front().unwrap();
            Box::pin(async move { answer })
        }

        fn static_keys<'a>(&'a self, _: &'a Keys, _: &'a KeyMaterial) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
            unreachable!("no token is fetched")
        }
    }

    struct Setting {
        reader: Reader<WatchedKeys>,
        answers: Arc<Answers>,
        shared: Arc<Shared>,
        scope: SecretKey,
    }

    impl Setting {
        fn new(answers: impl Into<VecDeque<Answer>>) -> Self {
            let scope = SecretKey { namespace: "ops".into(), name: "keys".into() };
            let allowed = AllowedIdentities { keys: BTreeSet::from([scope.clone()]), ..AllowedIdentities::default() };
            let shared = super::super::tests::shared(allowed);
            // All other watches have listed.
            shared.credentials_listed(&CredentialList::default());
            shared.namespaces_listed(&HashSet::new());
            shared.secrets_listed(&SecretScope { name: None, namespace: None });
            let answers = Arc::new(Answers(Mutex::new(answers.into())));
            let watched = WatchedKeys { cluster: answers.clone(), secret: scope.clone() };
            let reader = Reader::new(watched, shared.clone(), INTERVAL);
            Self { reader, answers, shared, scope }
        }

        /// Reads until nothing is due.
        async fn work(&mut self) {
            while self.reader.due.is_some() {
                self.reader.due().await;
                self.reader.take_turn().await;
            }
        }

        fn known(&self) -> Result<KeysRecord, Reason> {
            self.shared.state.lock().references.keys(&self.scope).cloned().map_err(|error| error.reason)
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
    #[tokio::test(start_paused = true)]
    async fn keys_that_change_all_the_time_take_effect_now_and_then_and_what_else_changes_of_the_secret_costs_nothing()
    {
        let texts = (0..20).map(|number| Ok(Some(record(&number.to_string()))));
        let mut s = Setting::new(texts.collect::<VecDeque<_>>());
        let limited = |s: &Setting| {
            let reference = Reference::Keys(s.scope.clone());
            s.shared.state.lock().references.is_limited(&reference)
        };
        let begun = Instant::now();
        let mut taken = Vec::new();
        for number in 0..8 {
            s.reader.seen(version(number));
            s.work().await;
            taken.push(begun.elapsed().as_secs());
        }
        // The first is no change, then four in a row.
        assert_eq!(taken, [0, 1, 2, 3, 4, 301, 601, 901]);
        assert_eq!(s.known(), Ok(record("7")));
        assert!(limited(&s));
        while limited(&s) {
            s.reader.due().await;
            s.reader.take_turn().await;
        }
        assert_eq!(begun.elapsed().as_secs(), 1201);

        // Another version with the same keys.
        let same = || Ok(Some(record("x")));
        let mut s = Setting::new((0..20).map(|_| same()).collect::<VecDeque<_>>());
        for number in 0..20 {
            s.reader.seen(version(number));
            s.work().await;
        }
        assert!(!limited(&s));
    }
}
