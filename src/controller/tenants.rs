//! Namespaces that have an identity of their own: each has its own tokens, and fails alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::Context;
use super::desired_secrets::{DesiredSecrets, NamespaceSecrets, TokenProblem};
use super::recover::{NextPass, PASS, may_recover, recover_tenant};
use super::tenant::{Tenant, TenantContext, TenantRecovery, own_token_specs};
use super::tokens::{Keys, Progress, TokenGroup, keys};
use crate::api::status::Reason;
use crate::plan::outputs::SecretPlan;
use crate::plan::refresh::Demand;
use crate::plan::schedule::{Life, RetryPolicy};
use crate::plan::{RegistryPlan, SpecError, TokenSpec, Uid};
use crate::secret::{self, Bundle, Published};

/// How many Secrets are read at a time to find tokens again after a restart.
const READS: usize = 16;

/// How long to wait before Secrets that could not be read are read again. There may be thousands.
const AGAIN: RetryPolicy = RetryPolicy { initial: Duration::from_secs(5), max: Duration::from_secs(300) };

/// What is remembered of all of them.
#[derive(Default)]
pub(super) struct Tenants {
    each: HashMap<Arc<str>, Tenant>,
    /// When Secrets that could not be read are read again. One time for all: each pass holds up a reconciliation.
    next_pass: Option<NextPass>,
}

/// What has become of all of them in one reconciliation.
#[derive(Default)]
pub(super) struct TenantsProgress {
    each: BTreeMap<Arc<str>, Progress>,
    /// Whether there was no time yet to find the tokens of some namespaces again. Nothing was requested for them.
    pub(super) pending: bool,
}

impl Tenants {
    /// Whether any of them has a token.
    pub(super) fn have_tokens(&self) -> bool {
        self.each.values().any(|tenant| !tenant.published.is_empty())
    }

    /// When the oldest of their tokens was issued.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let published = self.each.values().flat_map(|tenant| tenant.published.values());
        published.map(|token| token.life.issued_at).min()
    }

    /// When the next token of any is due. One that has expired is not renewed on time any more.
    pub(super) fn due_at(&self, context: &TenantContext<'_>, now: Timestamp) -> Option<Timestamp> {
        let due = |(namespace, tenant): (&Arc<str>, &Tenant)| {
            let seed = seed(&context.owner.uid, namespace);
            let valid = tenant.published.values().map(|token| token.life).filter(|life| life.is_valid(now));
            valid.map(|life| context.plan.refresh.due_at(life, &seed)).min()
        };
        self.each.iter().filter_map(due).min()
    }

    /// Goes through all target namespaces: finds tokens again after a restart, and says what each needs. Those for which there was
    /// no time yet are left out: their Secrets most likely hold their tokens.
    pub(super) async fn prepare(
        &mut self,
        context: &TenantContext<'_>,
        shared_known: bool,
        now: Timestamp,
    ) -> BTreeMap<Arc<str>, Keys> {
        let TenantContext { ctx, plan, owner, .. } = context;
        let targets = ctx.shared.state.lock().own_targets(&owner.uid);
        // A namespace that was deleted and made again is another tenant.
        self.each.retain(|namespace, tenant| targets.get(namespace) == Some(&tenant.namespace_uid));
        for (namespace, namespace_uid) in &targets {
            let tenant = || Tenant { namespace_uid: *namespace_uid, ..Tenant::default() };
            self.each.entry(namespace.clone()).or_insert_with(tenant);
        }
        self.recover(context, shared_known, now).await;
        let token_specs = own_token_specs(plan);
        let keys = |(namespace, tenant): (&Arc<str>, &Tenant)| {
            (namespace.clone(), keys(ctx, &token_specs, Some((&**namespace, tenant.namespace_uid))))
        };
        self.each.iter().filter(|(_, tenant)| tenant.recovery != TenantRecovery::Due).map(keys).collect()
    }

    /// Asks for what is due, publishes what has come.
    pub(super) fn advance(
        &mut self,
        context: &TenantContext<'_>,
        mut keys: BTreeMap<Arc<str>, Keys>,
        demand: Option<Demand>,
        now: Timestamp,
    ) -> TenantsProgress {
        let TenantContext { ctx, plan, owner, .. } = context;
        let token_specs = own_token_specs(plan);
        let mut all = TenantsProgress::default();
        for (namespace, tenant) in &mut self.each {
            let Some(keys) = keys.remove(namespace) else {
                all.pending = true;
                continue;
            };
            let seed = seed(&owner.uid, namespace);
            let target = Some((&**namespace, tenant.namespace_uid));
            let group = TokenGroup { token_specs: &token_specs, target, policy: &plan.refresh, seed: &seed };
            let progress = group.advance(ctx, &owner.uid, keys, demand, &mut tenant.published, now);
            all.each.insert(namespace.clone(), progress);
        }
        all
    }

    /// When to read Secrets to find tokens again, if there are any left to read.
    pub(super) fn recovers_at(&self) -> Option<Instant> {
        let is_due = |tenant: &Tenant| tenant.recovery == TenantRecovery::Due;
        if self.each.values().any(is_due) { Some(Instant::now()) } else { self.next_pass.map(|next| next.at) }
    }

    async fn recover(&mut self, context: &TenantContext<'_>, shared_known: bool, now: Timestamp) {
        let deadline = Instant::now() + PASS;
        let again = self.next_pass.take_if(|next| next.is_due());
        let mut due: Vec<_> =
            self.each.iter_mut().filter(|(_, tenant)| tenant.recovery.is_due(again.is_some())).collect();
        // Where there is nothing to read, nobody waits for the reads of others.
        due.retain_mut(|(namespace, tenant)| {
            let may_recover = may_recover(context, namespace, now);
            if !may_recover {
                tenant.recovery = TenantRecovery::Done;
            }
            may_recover
        });
        due.sort_by_key(|(_, tenant)| tenant.recovery);
        let read = |(namespace, tenant)| async move {
            if Instant::now() < deadline {
                recover_tenant(context, namespace, tenant, shared_known, deadline, now).await;
            }
        };
        stream::iter(due).for_each_concurrent(READS, read).await;
        let unread = self.each.values().any(|tenant| matches!(tenant.recovery, TenantRecovery::Unread(_)));
        let next = || self.next_pass.unwrap_or_else(|| NextPass::after(again, AGAIN, &context.owner.uid.0));
        self.next_pass = unread.then(next);
    }

    /// What each namespace should hold.
    pub(super) fn content(&mut self, context: &TenantContext<'_>, all: &TenantsProgress) -> DesiredSecrets {
        // A login is dropped only when it has expired by every clock.
        let (now, earliest) = (context.ctx.clock.now(), context.ctx.clock.earliest());
        let own = own_token_specs(context.plan);
        let mut shares = HashMap::with_capacity(self.each.len());
        for (namespace, tenant) in &mut self.each {
            let progress = all.each.get(namespace);
            let (desired, wrong) = match tenant.desired(context, earliest) {
                Ok((desired, None)) => (desired, None),
                Ok((desired, Some(error))) => (desired, Some(Wrong::Registry(error))),
                Err(error) => (Bundle::new(), Some(Wrong::Bundle(error.into()))),
            };
            let problems = TenantProblems {
                wrong,
                lacking: own
                    .iter()
                    .copied()
                    .filter(|spec| progress.is_none() || !tenant.has_valid(spec, now))
                    .collect(),
                failures: progress.map(|progress| progress.failures(context.ctx)).unwrap_or_default(),
            };
            let problems = problems.by_secret(context, tenant);
            let current = progress.is_some_and(|progress| tenant.is_current(progress));
            let namespace_uid = tenant.namespace_uid;
            shares.insert(namespace.clone(), NamespaceSecrets { namespace_uid, desired, current, problems });
        }
        DesiredSecrets::Each(shares)
    }

    /// The earliest life of any namespace's token for a registry. One that has expired counts only if all have: a namespace whose identity
    /// is denied has a failure of its own, and must not hide when the tokens of others expire.
    pub(super) fn life(&self, registry: &RegistryPlan, now: Timestamp) -> Option<Life> {
        let lives = || {
            let published = self.each.values().map(|tenant| &tenant.published);
            published
                .flat_map(|all| registry.token_specs.iter().filter_map(|spec| all.get(spec)))
                .map(|token| token.life)
        };
        Life::earliest(lives().filter(|life| life.is_valid(now))).or_else(|| Life::earliest(lives()))
    }
}

impl TenantsProgress {
    /// Each namespace's progress.
    pub(super) fn progress(&self) -> impl Iterator<Item = &Progress> {
        self.each.values()
    }

    /// Why a registry's token is not new in the first namespace where it is not.
    pub(super) fn failure(&self, ctx: &Context, registry: &RegistryPlan) -> Option<SpecError> {
        self.each.iter().find_map(|(namespace, progress)| {
            let problem = registry.token_specs.iter().find_map(|token_spec| progress.failure(ctx, token_spec))?;
            Some(SpecError {
                reason: problem.reason,
                message: format!("in namespace {namespace}: {}", problem.message),
            })
        })
    }
}

/// Why the Secrets of one namespace are not as they should be.
enum Wrong {
    /// A registry lacks a host in those that hold all registries.
    Registry(SpecError),
    /// None of them can be made.
    Bundle(SpecError),
}

/// What is wrong with the tokens of one namespace.
struct TenantProblems<'a> {
    wrong: Option<Wrong>,
    /// What it has no valid token for.
    lacking: BTreeSet<&'a TokenSpec>,
    /// Why tokens could not be refreshed.
    failures: BTreeMap<&'a TokenSpec, SpecError>,
}

impl TenantProblems<'_> {
    /// The same for each of its Secrets that holds such a token. One with shared tokens alone depends on no identity of the namespace.
    fn by_secret(&self, context: &TenantContext<'_>, tenant: &Tenant) -> BTreeMap<Arc<str>, TokenProblem> {
        // Almost always there is none, and there may be thousands of namespaces.
        if self.wrong.is_none() && self.lacking.is_empty() && self.failures.is_empty() {
            return BTreeMap::new();
        }
        let published = tenant.with(context.shared);
        let problems = context.plan.secrets().map(|secret| (secret.name.clone(), self.of(context, secret, &published)));
        problems.filter(|(_, problem)| *problem != TokenProblem::default()).collect()
    }

    fn of(&self, context: &TenantContext<'_>, secret: &SecretPlan, published: &Published) -> TokenProblem {
        let token_specs = secret::token_specs_of(context.plan, secret, published);
        let mut failures = self.failures.iter().filter(|(token_spec, _)| token_specs.contains(*token_spec));
        let failure = failures.next().map(|(_, error)| error.clone());
        let wrong = match &self.wrong {
            Some(Wrong::Registry(error)) if secret.host.is_none() => Some(error.clone()),
            Some(Wrong::Bundle(error)) => Some(error.clone()),
            _ => None,
        };
        let first =
            || SpecError { reason: Reason::FetchingToken, message: "its first token is being requested".to_owned() };
        let is_lacking = !self.lacking.is_disjoint(&token_specs);
        let lacks = wrong.or_else(|| is_lacking.then(|| failure.clone().unwrap_or_else(first)));
        TokenProblem { lacks, failure }
    }
}

/// Refreshes of many namespaces spread over the jitter.
fn seed(uid: &Uid, namespace: &str) -> String {
    format!("{uid}/{namespace}")
}

#[cfg(test)]
mod tests;
