//! What a list of Secrets proves gone: not what was written while the list was under way and may be newer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Shared;
use crate::plan::scopes::{SecretKey, SecretScope};
use crate::secret::ownership::SecretRecord;

/// How long the watch that follows a list may take to show a Secret that is newer than the list. It shows it at once, or never if the
/// Secret was deleted before the list.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// The lists of one watch of Secrets.
pub(super) struct SecretList {
    scope: SecretScope,
    shared: Arc<Shared>,
    /// The Secrets that were known when the list began.
    before: HashMap<SecretKey, Arc<SecretRecord>>,
    /// The Secrets in the list under way.
    listed: HashSet<SecretKey>,
    /// The Secrets that were written while the list was under way, by their uids, and are neither in it nor shown by the watch since.
    unshown: HashMap<SecretKey, Box<str>>,
    /// When those count as gone.
    until: Instant,
}

impl SecretList {
    /// No list yet.
    pub(super) fn new(scope: SecretScope, shared: Arc<Shared>) -> Self {
        let (before, listed, unshown) = Default::default();
        Self { scope, shared, before, listed, unshown, until: Instant::now() }
    }

    /// A list begins: its request has not been sent yet.
    pub(super) fn begins(&mut self) {
        self.listed.clear();
        // They are known, and so among those that this list has to show.
        self.unshown.clear();
        self.before = self.shared.secrets_known(&self.scope);
    }

    /// A Secret is in the list.
    pub(super) fn lists(&mut self, key: SecretKey) {
        self.listed.insert(key);
    }

    /// The watch shows a Secret, or its end.
    pub(super) fn shown(&mut self, key: &SecretKey) {
        self.unshown.remove(key);
    }

    /// A list has ended.
    pub(super) fn ends(&mut self) {
        // The room as well is given back: the next list may never come.
        let (before, listed) = (std::mem::take(&mut self.before), std::mem::take(&mut self.listed));
        let unlisted = |key: SecretKey| {
            let before = before.get(&key).map(|record| &*record.uid);
            self.shared.secret_unlisted(&key, before).map(|uid| (key, uid))
        };
        let known = self.shared.secret_keys(&self.scope).into_iter().filter(|key| !listed.contains(key));
        self.unshown = known.filter_map(unlisted).collect();
        self.until = Instant::now() + SHOWN_WITHIN;
        self.shared.secrets_listed(&self.scope);
    }

    /// Ends when what the watch has not shown counts as gone.
    pub(super) async fn due(&self) {
        if self.unshown.is_empty() { std::future::pending().await } else { sleep_until(self.until).await }
    }

    /// What the watch has not shown is gone.
    pub(super) fn expire(&mut self) {
        for (key, uid) in std::mem::take(&mut self.unshown) {
            self.shared.secret_gone(&key.name, &key.namespace, Some(&uid));
        }
    }
}
