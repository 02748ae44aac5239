//! ServiceAccounts that identities begin with, as they take effect: each change at once, unless there are too many.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::change_limit::ChangeLimit;
use crate::plan::references::AccountRecord;
use crate::plan::scopes::{AccountScope, Reference};

/// From so many on, limits that say nothing any more are dropped.
const FEW: usize = 64;

/// The ServiceAccounts of one watch. What takes effect goes into the cluster state.
pub(super) struct Accounts {
    scope: AccountScope,
    shared: Arc<Shared>,
    interval: Duration,
    /// By namespace: those that have changed lately. That one is seen for the first time is no change.
    limits: HashMap<String, ChangeLimit>,
    /// When limits are looked through.
    most_limits: usize,
    /// By namespace: those that have changed too often.
    limited: HashMap<String, Limited>,
    /// The namespaces in the list under way.
    listed: HashSet<String>,
}

/// A ServiceAccount that has changed too often.
struct Limited {
    /// What is to take effect, if it is not what is in effect; nothing in it where the ServiceAccount is gone.
    held: Option<Option<AccountRecord>>,
    /// When the next change may take effect.
    until: Instant,
}

impl Accounts {
    /// None seen yet. After a burst one change in each `interval` takes effect.
    pub(super) fn new(scope: AccountScope, shared: Arc<Shared>, interval: Duration) -> Self {
        let (limits, limited, listed) = Default::default();
        Self { scope, shared, interval, limits, most_limits: FEW, limited, listed }
    }

    /// A list begins.
    pub(super) fn list_begins(&mut self) {
        self.listed.clear();
    }

    /// One is on the list.
    pub(super) fn listed(&mut self, namespace: &str, record: Option<AccountRecord>) {
        self.listed.insert(namespace.to_owned());
        self.seen(namespace, record);
    }

    /// A list has ended: those that are not on it are gone.
    pub(super) fn list_ends(&mut self) {
        let known = self.shared.state.lock().references.accounts_in(&self.scope);
        let known = known.iter().map(|namespace| namespace.to_string());
        let gone: HashSet<String> = known.chain(self.limited.keys().cloned()).collect();
        for namespace in gone.difference(&std::mem::take(&mut self.listed)) {
            self.seen(namespace, None);
        }
        self.shared.reference_known(Reference::Account(self.scope.clone()), false);
    }

    /// One is there, or gone.
    pub(super) fn seen(&mut self, namespace: &str, record: Option<AccountRecord>) {
        let now = Instant::now();
        let in_effect = self.shared.state.lock().references.known_account(namespace, &self.scope.name).cloned();
        let is_change = record != in_effect;
        if let Some(limited) = self.limited.get_mut(namespace) {
            limited.held = is_change.then_some(record);
            return;
        }
        if !is_change {
            return;
        }
        let limit = match self.limits.get_mut(namespace) {
            Some(limit) => limit,
            None if in_effect.is_none() => return self.shared.account_seen(namespace, &self.scope.name, record),
            None => {
                self.drop_unused(now);
                self.limits.entry(namespace.to_owned()).or_insert_with(|| ChangeLimit::new(self.interval))
            }
        };
        let wait = limit.wait(now);
        if wait.is_zero() {
            limit.changed(now);
            self.shared.account_seen(namespace, &self.scope.name, record);
        } else {
            self.limited.insert(namespace.to_owned(), Limited { held: Some(record), until: now + wait });
            self.shared.reference_limited(&self.reference(namespace), true);
        }
    }

    /// Ends when a change may take effect, or one more would.
    pub(super) async fn due(&self) {
        match self.limited.values().map(|limited| limited.until).min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Lets take effect what may. One whose last change was long enough ago is not limited any more.
    pub(super) fn take_effect(&mut self) {
        let now = Instant::now();
        let due = self.limited.iter().filter(|(_, limited)| limited.until <= now);
        for namespace in due.map(|(namespace, _)| namespace.clone()).collect::<Vec<_>>() {
            let Some(limited) = self.limited.get_mut(&namespace) else { continue };
            let Some(record) = limited.held.take() else {
                self.limited.remove(&namespace);
                self.shared.reference_limited(&self.reference(&namespace), false);
                continue;
            };
            let limit = self.limits.entry(namespace.clone()).or_insert_with(|| ChangeLimit::new(self.interval));
            limit.changed(now);
            limited.until = now + limit.wait(now);
            self.shared.account_seen(&namespace, &self.scope.name, record);
        }
    }

    fn reference(&self, namespace: &str) -> Reference {
        Reference::Account(AccountScope { namespace: Some(namespace.into()), name: self.scope.name.clone() })
    }

    /// Keeps what is remembered within twice of what is needed.
    fn drop_unused(&mut self, now: Instant) {
        if self.limits.len() >= self.most_limits {
            self.limits.retain(|_, limit| !limit.is_unused(now));
            self.most_limits = (2 * self.limits.len()).max(FEW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::references::AllowedIdentities;
    use k8s_openapi::jiff::Timestamp;

    const INTERVAL: Duration = Duration::from_secs(300);

    fn record(role: &str) -> Option<AccountRecord> {
        let (role, audience) = (Some(role.to_owned()), None);
        Some(AccountRecord { uid: "u".into(), created: Timestamp::MAX, role, audience })
    }

    struct Setting {
        accounts: Accounts,
        shared: Arc<Shared>,
    }

    impl Setting {
        fn new() -> Self {
            let scope = AccountScope { namespace: None, name: "puller".into() };
            let shared = super::super::tests::shared(AllowedIdentities {
                accounts: [scope.clone()].into(),
                ..AllowedIdentities::default()
            });
            Self { accounts: Accounts::new(scope, shared.clone(), INTERVAL), shared }
        }

        /// The role in effect, and whether it is limited.
        fn in_effect(&self, namespace: &str) -> (Option<String>, bool) {
            let cluster = self.shared.state.lock();
            let record = cluster.references.known_account(namespace, "puller");
            let reference = self.accounts.reference(namespace);
            (record.and_then(|record| record.role.clone()), cluster.references.is_limited(&reference))
        }

        /// Waits for what is due, as long as that is within so many seconds.
        async fn wait(&mut self, seconds: u64) {
            let end = Instant::now() + Duration::from_secs(seconds);
            while tokio::time::timeout_at(end, self.accounts.due()).await.is_ok() {
                self.accounts.take_effect();
            }
        }
    }

    fn effect(role: Option<&str>, limited: bool) -> (Option<String>, bool) {
        (role.map(str::to_owned), limited)
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_changes_all_the_time_takes_effect_now_and_then_and_the_last_one_in_the_end() {
        let mut s = Setting::new();
        s.accounts.seen("a", record("first"));
        let mut roles = Vec::new();
        for number in 0..20 * 60 + 10 {
            s.accounts.seen("a", record(&number.to_string()));
            roles.push(s.in_effect("a").0);
            s.wait(1).await;
        }
        roles.dedup();
        assert_eq!(roles.len(), 4 + 4, "in twenty minutes: {roles:?}");
        assert!(s.in_effect("a").1);
        s.accounts.seen("b", record("other"));
        assert_eq!(s.in_effect("b"), effect(Some("other"), false), "nobody else is limited");
        s.wait(300).await;
        assert_eq!(s.in_effect("a"), effect(Some("1209"), true));
        s.wait(300).await;
        assert_eq!(s.in_effect("a"), effect(Some("1209"), false), "nothing more has changed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_back_while_it_is_held_never_takes_effect() {
        let mut s = Setting::new();
        for role in ["0", "1", "2", "3", "4", "5"] {
            s.accounts.seen("a", record(role));
        }
        assert_eq!(s.in_effect("a"), effect(Some("4"), true));
        s.accounts.seen("a", record("4"));
        s.wait(301).await;
        assert_eq!(s.in_effect("a"), effect(Some("4"), false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_counts_as_a_change_and_a_list_ends_what_is_not_on_it() {
        let mut s = Setting::new();
        for round in 0..2 {
            s.accounts.seen("a", record("x"));
            assert_eq!(s.in_effect("a"), effect(Some("x"), false), "{round}: made");
            s.accounts.seen("a", None);
            assert_eq!(s.in_effect("a"), effect(None, false), "{round}: gone");
        }
        s.accounts.seen("a", record("x"));
        s.accounts.seen("a", None);
        s.accounts.seen("b", record("y"));
        assert_eq!(s.in_effect("a"), effect(Some("x"), true), "the fifth change waits");
        s.accounts.seen("a", record("z"));
        s.accounts.list_begins();
        s.accounts.listed("c", record("w"));
        s.accounts.list_ends();
        assert_eq!(s.in_effect("b"), effect(None, false));
        assert_eq!(s.in_effect("c"), effect(Some("w"), false));
        s.wait(300).await;
        assert_eq!(s.in_effect("a"), effect(None, true));
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_that_change_once_leave_nothing_behind() {
        let mut s = Setting::new();
        for number in 0..5000 {
            let namespace = number.to_string();
            s.accounts.seen(&namespace, record("x"));
        }
        assert_eq!(s.accounts.limits.len(), 0, "a first sight is no change");
        for number in 0..5000 {
            s.accounts.seen(&number.to_string(), record("y"));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(s.accounts.limits.len() <= 2 * 300 + FEW, "{}", s.accounts.limits.len());
        assert!(s.accounts.limited.is_empty());
    }
}
