//! How many namespaces hold their Secret, kept up to date Secret by Secret, so that a status costs no look at all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::api::status::{NamespaceFailure, Reason};
use crate::outcome::TargetCounts;
use crate::plan::scopes::SecretKey;

/// How one Secret counts in the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SyncState {
    /// Whether its namespace is selected.
    pub(super) selected: bool,
    /// Whether it is as desired.
    pub(super) synced: bool,
    /// Whether it waits for the first token of its namespace.
    pub(super) fetching: bool,
    /// What the status says about it.
    pub(super) problem: Option<(Reason, String)>,
}

/// The Secrets of one `EcrCredential` that are not simply as desired. Nothing is kept of the others: of 10,000 namespaces almost
/// always all are synced.
#[derive(Debug, Default)]
pub(super) struct SyncLedger(BTreeMap<SecretKey, SyncState>);

/// The selected namespaces, and what the status says about some of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SyncCounts {
    /// The namespaces of each Secret, by its name.
    secrets: HashMap<Arc<str>, TargetCounts>,
    /// What the status says, each with the Secret's name.
    pub(super) failures: Vec<NamespaceFailure>,
}

impl SyncLedger {
    /// Takes how a Secret counts now, in place of how it counted before.
    pub(super) fn record(&mut self, key: SecretKey, state: SyncState) {
        if state.synced == state.selected && state.problem.is_none() {
            self.0.remove(&key);
        } else {
            self.0.insert(key, state);
        }
    }

    /// Forgets everything, before all Secrets are recorded again.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The counts, of so many selected namespaces for each Secret.
    pub(super) fn counts<'a>(&self, selected: impl Iterator<Item = (&'a Arc<str>, usize)>) -> SyncCounts {
        let all = |(name, selected): (&Arc<str>, usize)| {
            (name.clone(), TargetCounts { selected, synced: selected, ..TargetCounts::default() })
        };
        let mut counts = SyncCounts { secrets: selected.map(all).collect(), failures: Vec::new() };
        // In order of the namespaces.
        for (SecretKey { namespace, name }, SyncState { selected, synced, fetching, problem }) in &self.0 {
            let failure = problem.as_ref().map(|(reason, message)| NamespaceFailure {
                namespace: namespace.to_string(),
                secret: Some(name.to_string()),
                reason: reason.as_str().to_owned(),
                message: message.clone(),
            });
            if *selected && !synced {
                let of_secret = counts.secrets.entry(name.clone()).or_default();
                of_secret.synced = of_secret.synced.saturating_sub(1);
                of_secret.failed = of_secret.failed.saturating_add(usize::from(problem.is_some()));
                of_secret.fetching = of_secret.fetching.saturating_add(usize::from(*fetching));
                of_secret.first_failure = of_secret.first_failure.take().or_else(|| failure.clone());
            }
            counts.failures.extend(failure);
        }
        counts
    }
}

impl SyncCounts {
    /// The namespaces of one Secret.
    pub(super) fn of(&self, name: &str) -> TargetCounts {
        self.secrets.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_that_of_a_namespace_that_lacks_the_secret() {
        let mut ledger = SyncLedger::default();
        let failing = |selected, synced| SyncState {
            selected,
            synced,
            problem: Some((Reason::AccessDenied, "no".to_owned())),
            ..SyncState::default()
        };
        for (namespace, name, state) in [
            ("a", "pull", failing(true, true)),
            ("b", "pull", failing(false, false)),
            ("c", "out", failing(true, false)),
            ("d", "pull", SyncState { selected: true, fetching: true, ..SyncState::default() }),
            ("e", "pull", failing(true, false)),
            ("f", "pull", failing(true, false)),
        ] {
            ledger.record(SecretKey::new(name, namespace), state);
        }
        let names: [Arc<str>; 3] = ["pull".into(), "out".into(), "other".into()];
        let counts = ledger.counts(names.iter().map(|name| (name, 6)));
        let first = |name: &str| counts.of(name).first_failure.map(|failure| failure.namespace);
        assert_eq!(["pull", "out", "other"].map(first), [Some("e".to_owned()), Some("c".to_owned()), None]);
        assert_eq!((counts.of("pull").failed, counts.failures.len()), (2, 5));
    }
}
