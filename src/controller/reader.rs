//! Reads a Secret of others when the watch shows another version of it, so that only other contents count as a change.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::change_limit::ChangeLimit;
use super::cluster_state::ClusterState;
use crate::plan::SpecError;
use crate::plan::schedule::RetryPolicy;
use crate::plan::scopes::{Reference, SecretKey};

/// The Secret is read at most so often, however often somebody changes it.
pub(super) const BETWEEN_READS: Duration = Duration::from_secs(1);

/// How long to wait after a read that failed.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(60) };

/// How long reads fail before the work begins without the Secret.
pub(super) const FAILED: Duration = Duration::from_secs(10);

/// A Secret that somebody else writes.
pub(super) trait Watched {
    /// What is kept of it.
    type Record;

    /// Which Secret it is.
    fn secret(&self) -> &SecretKey;

    /// The reference to it in specs.
    fn reference(&self) -> Reference;

    /// Reads it; none when it is gone.
    async fn read(&self) -> Result<Option<Self::Record>, SpecError>;

    /// It is like this now, or gone; returns whether that is news.
    fn seen(&self, state: &mut ClusterState, record: Option<Self::Record>) -> bool;

    /// Records that it could not be read; returns whether that is news. If that goes on for [`FAILED`], nobody waits for it any longer.
    fn unread(&self, state: &mut ClusterState, why: SpecError) -> bool;
}

/// One Secret, and the version of it that is to be read.
pub(super) struct Reader<W> {
    watched: W,
    shared: Arc<Shared>,
    /// Whether it is in the list under way.
    listed: bool,
    /// The version that was read last.
    read: Option<String>,
    /// The version to read, and when.
    pub(super) due: Option<(String, Instant)>,
    last: Option<Instant>,
    /// Since when reads fail, and how many have.
    failing: Option<(Instant, u32)>,
    /// How often its content has changed.
    changes: ChangeLimit,
    /// Until when it has changed too often.
    limited: Option<Instant>,
}

impl<W: Watched> Reader<W> {
    /// Nothing seen yet. After a burst of changes one in each `interval` takes effect.
    pub(super) fn new(watched: W, shared: Arc<Shared>, interval: Duration) -> Self {
        let (listed, read, due, last, failing, limited) = Default::default();
        Self { watched, shared, listed, read, due, last, failing, changes: ChangeLimit::new(interval), limited }
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
        let wait = self.changes.wait(now);
        let at = match self.due.take() {
            Some((_, at)) => at,
            None => self.last.map_or(now, |last| now.max(last + BETWEEN_READS)).max(now + wait),
        };
        self.due = Some((version, at));
        if !wait.is_zero() {
            self.limit(Some(now + wait));
        }
    }

    /// Notes until when it has changed too often, if it has.
    fn limit(&mut self, until: Option<Instant>) {
        self.limited = until;
        self.shared.reference_limited(&self.watched.reference(), until.is_some());
    }

    /// The Secret is gone.
    pub(super) fn gone(&mut self) {
        (self.read, self.due, self.failing) = (None, None, None);
        self.seen_now(None);
    }

    /// The Secret is like this now, or gone; returns whether that is news.
    fn seen_now(&self, record: Option<W::Record>) -> bool {
        self.shared.change_reference(&self.watched.reference(), |state| self.watched.seen(state, record))
    }

    /// A list has ended.
    pub(super) fn list_ends(&mut self) {
        if !self.listed {
            self.gone();
        }
        if self.due.is_none() {
            self.known();
        }
    }

    fn known(&self) {
        self.shared.reference_known(self.watched.reference(), false);
    }

    /// Ends when the Secret is to be read, or when it has not changed for long enough.
    pub(super) async fn due(&self) {
        match self.due.iter().map(|(_, at)| *at).chain(self.limited).min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Does what is due.
    pub(super) async fn take_turn(&mut self) {
        let now = Instant::now();
        if self.due.as_ref().is_some_and(|(_, at)| *at <= now) {
            self.read().await;
        } else if self.limited.is_some_and(|until| until <= now) {
            self.limit(None);
        }
    }

    /// Reads the Secret. What was known before stays when that fails.
    pub(super) async fn read(&mut self) {
        let now = Instant::now();
        let first = self.last.replace(now).is_none();
        match self.watched.read().await {
            Ok(record) => {
                self.read = self.due.take().map(|(version, _)| version);
                self.failing = None;
                if self.seen_now(record) && !first {
                    self.changes.changed(now);
                }
                if self.limited.is_some() {
                    self.limit(Some(now + self.changes.wait(now)));
                }
                self.known();
            }
            Err(why) => {
                let (since, count) = self.failing.map_or((now, 1), |(since, count)| (since, count.saturating_add(1)));
                self.failing = Some((since, count));
                let (secret, reference) = (self.watched.secret(), self.watched.reference());
                if count == 1 {
                    tracing::warn!(%secret, error = %why.message, "a Secret could not be read");
                }
                self.shared.change_reference(&reference, |state| self.watched.unread(state, why));
                if since.elapsed() >= FAILED {
                    self.shared.reference_listed(reference);
                }
                if let Some((_, at)) = &mut self.due {
                    *at = Instant::now() + RETRY.delay(count, 1, &secret.to_string());
                }
            }
        }
    }
}
