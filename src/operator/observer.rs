//! What follows from what the watches see: state and metrics of objects that are gone are dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::EcrCredentialStatus;
use crate::controller::{CredentialStates, WatchObserver};
use crate::plan::Uid;
use crate::report::Reporter;
use crate::token::cache::TokenCache;

/// Forgets whoever is gone, and passes on what the watches cannot read.
pub(super) struct Watched {
    pub(super) reporter: Arc<Reporter>,
    pub(super) states: CredentialStates,
    pub(super) tokens: Arc<TokenCache>,
}

impl WatchObserver for Watched {
    fn gone(&self, uid: &Uid) {
        self.reporter.forget(uid);
        self.states.forget(uid);
        self.tokens.want(uid, BTreeSet::new());
    }

    fn unreadable(&self, uid: &Uid, name: &str, status: Option<&EcrCredentialStatus>) {
        self.reporter.unreadable(uid, name, status);
    }

    fn skipped(&self, kind: &'static str, count: usize) {
        self.reporter.skipped(kind, count);
    }
}

#[cfg(test)]
mod tests;
