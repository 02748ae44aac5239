//! One namespace that has an identity of its own: its tokens, and what its Secrets should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::Context;
use super::tokens::{Progress, resolved};
use crate::plan::namespaces::NamespaceUid;
use crate::plan::{Plan, SpecError, TokenSpec};
use crate::secret::include::Included;
use crate::secret::{self, Bundle, DesiredError, Owner, Published};
use crate::token::AuthorizationToken;

/// What one reconciliation works on, as far as tenants depend on it.
#[derive(Clone, Copy)]
pub(super) struct TenantContext<'a> {
    pub(super) ctx: &'a Context,
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    /// What all namespaces share.
    pub(super) shared: &'a Published,
    /// The docker configs of others that are merged into ours.
    pub(super) included: &'a Included,
    pub(super) version: Version,
}

/// The generation of the spec, and a digest of what is included.
pub(super) type Version = (Option<i64>, Option<u64>);

/// What is remembered of one namespace.
#[derive(Default)]
pub(super) struct Tenant {
    /// Which of the namespaces that had this name.
    pub(super) namespace_uid: NamespaceUid,
    pub(super) published: Published,
    pub(super) recovery: TenantRecovery,
    pub(super) made: Option<Made>,
}

/// How far the tokens of a namespace were found again after a restart. The order is that in which namespaces are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TenantRecovery {
    /// Nothing was read yet.
    #[default]
    Due,
    /// A Secret could not be read then, and a token is missing.
    Unread(Instant),
    /// There is no more to find.
    Done,
}

/// A Secret's content as it was made last. To make it is most of the work of a reconciliation where there are thousands.
pub(super) struct Made {
    version: Version,
    /// Of which tokens: those that all namespaces share, and its own.
    of: Vec<Arc<AuthorizationToken>>,
    /// When a login in it expires, which changes it.
    until: Option<Timestamp>,
    desired: Bundle,
    /// Why a registry lacks a host in it.
    taken: Option<SpecError>,
}

impl TenantRecovery {
    /// Whether a Secret is to be read in this pass, which may be one that reads `again` what could not be read.
    pub(super) const fn is_due(self, again: bool) -> bool {
        match self {
            Self::Due => true,
            Self::Unread(_) => again,
            Self::Done => false,
        }
    }
}

impl Tenant {
    /// Whether the identities that fetched its tokens are those of now.
    pub(super) fn is_current(&self, progress: &Progress) -> bool {
        let mut published = self.published.iter();
        published.all(|(spec, token)| resolved(&progress.keys, spec).is_some_and(|key| key.identity == token.identity))
    }

    /// Whether it has a valid token.
    pub(super) fn has_valid(&self, token_spec: &TokenSpec, now: Timestamp) -> bool {
        self.published.get(token_spec).is_some_and(|token| token.life.is_valid(now))
    }

    pub(super) fn desired(
        &mut self,
        context: &TenantContext<'_>,
        now: Timestamp,
    ) -> Result<(Bundle, Option<SpecError>), DesiredError> {
        let version = context.version;
        let tokens = || context.shared.values().chain(self.published.values());
        let is_good = |made: &&Made| {
            made.version == version
                && made.until.is_none_or(|at| now < at)
                && made.of.len() == tokens().count()
                && made.of.iter().zip(tokens()).all(|(then, token)| Arc::ptr_eq(then, token))
        };
        if let Some(made) = self.made.as_ref().filter(is_good) {
            return Ok((made.desired.clone(), made.taken.clone()));
        }
        let of = tokens().cloned().collect();
        let all = self.with(context.shared);
        let desired = secret::bundle(context.plan, context.owner, &all, context.included, now)?;
        let until = all.values().map(|token| token.life.expires_at).filter(|at| *at > now).min();
        let taken = secret::taken_hosts(context.plan, &all);
        let left_out =
            || secret::left_out(context.plan, &context.plan.secret, &all, &taken, now).first().map(SpecError::from);
        let taken = taken.first().map(SpecError::from).or_else(left_out);
        self.made = Some(Made { version, of, until, desired: desired.clone(), taken: taken.clone() });
        Ok((desired, taken))
    }

    /// Its tokens with those that all namespaces share.
    pub(super) fn with(&self, shared: &Published) -> Published {
        shared.iter().chain(&self.published).map(|(token_spec, token)| (token_spec.clone(), token.clone())).collect()
    }
}

/// What each namespace needs for itself.
pub(super) fn own_token_specs(plan: &Plan) -> BTreeSet<&TokenSpec> {
    plan.token_specs().into_iter().filter(|token_spec| token_spec.auth.is_each_targets()).collect()
}
