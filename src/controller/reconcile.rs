//! One reconciliation of an `EcrCredential`: plan, tokens, desired Secrets, writes, outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::desired_secrets::DesiredSecrets;
use super::diff::Diff;
use super::error::Error;
use super::recover::{Recovery, auth_hash, recover};
use super::status_writer::StatusWrite;
use super::sync_ledger::SyncCounts;
use super::tenant::TenantContext;
use super::tenants::{Tenants, TenantsProgress};
use super::tokens::{Progress, TokenGroup, keys};
use super::writes::{WritesOutcome, write};
use super::{Context, CredentialState, Requested};
use crate::api::registry::Host;
use crate::api::status::{NamespaceFailure, Reason, condition};
use crate::api::{EcrCredential, EcrCredentialStatus, refresh_request};
use crate::attach::{Allowed, Attachment, attachment};
use crate::outcome::{
    NamespaceReport, Observation, Outcome, OutputReport, RegistryReport, Report, ReportedEvent, conclude,
};
use crate::plan::outputs::SecretPlan;
use crate::plan::refresh::Demand;
use crate::plan::schedule::Life;
use crate::plan::{self, Hosts, Plan, RegistryPlan, SpecError, TokenSpec, Uid};
use crate::secret::include::Included;
use crate::secret::{self, LeftOut, Owner, TakenHost, registry_entries};

/// When to reconcile again while writes are slow.
const SOON: Duration = Duration::from_secs(1);

/// How long a reconciliation waits for the very first tokens: as long as one call to AWS may take.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// Does what an `EcrCredential` asks for, as far as that is possible now.
pub(super) async fn reconcile(object: Arc<EcrCredential>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = Uid(object.uid().ok_or(Error::NoUid)?.into());
    // One that cannot be read any more is still in the store as it was before.
    if !ctx.shared.is_there(&uid, &object) {
        return Ok(Action::await_change());
    }
    let state = ctx.credential_state(&uid);
    let mut state = state.lock().await;
    if let Some(wait) = state.pace.begin() {
        return Ok(Action::requeue(wait));
    }
    let (status, stored) = state.status.known(&object);
    let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &stored };
    let Reconciled { observation, again } = reconciliation.run(&mut state).await;
    if !ctx.shared.is_there(&uid, &object) {
        if !ctx.shared.state.lock().index.is_alive(&uid) {
            // Deleted meanwhile: drop the state that this reconciliation has created.
            ctx.states.forget(&uid);
            ctx.tokens.want(&uid, BTreeSet::new());
        }
        return Ok(Action::await_change());
    }
    let Some(observation) = observation else {
        return Ok(again.map_or_else(Action::await_change, Action::requeue));
    };
    let begun = Instant::now();
    let now = ctx.clock.now();
    let mut outcome = conclude(observation, &status, object.meta().generation, now);
    outcome.served_by(state.status.installations(&ctx, &object, &stored), &status, &stored, now);
    state.pace.computed(begun);
    if let Some(again) = again {
        outcome.requeue_after = outcome.requeue_after.min(again);
    }
    reconciliation.report(outcome, &mut state).await
}

/// What the status says of one that a finalizer keeps.
const DELETING: &str = "it is being deleted and its Secrets are no longer refreshed: a finalizer in metadata.finalizers blocks the deletion";

/// What follows from a reconciliation. Without anything else, an event queues the next one.
#[derive(Default)]
struct Reconciled {
    /// What there is to report.
    observation: Option<Observation>,
    /// After how long another one follows at the latest: the first tokens are being fetched, writes are slow, or Secrets are to be
    /// read once more.
    again: Option<Duration>,
}

impl From<Observation> for Reconciled {
    fn from(observation: Observation) -> Self {
        Self { observation: Some(observation), again: None }
    }
}

struct Reconciliation<'a> {
    object: &'a EcrCredential,
    ctx: &'a Arc<Context>,
    uid: &'a Uid,
    /// The status that was reported last.
    status: &'a EcrCredentialStatus,
    /// The status that is stored, as far as it is known.
    stored: &'a EcrCredentialStatus,
}

/// What one reconciliation works on.
struct Inputs {
    plan: Plan,
    owner: Owner,
    /// The docker configs of others that are merged into ours.
    included: Included,
    /// Why one of them is missing.
    include_failure: Option<SpecError>,
}

/// The tokens after one reconciliation.
struct TokensProgress {
    /// Those that all namespaces share.
    shared: Progress,
    /// Those of each namespace.
    tenants: TenantsProgress,
}

impl TokensProgress {
    fn progress(&self) -> impl Iterator<Item = &Progress> {
        std::iter::once(&self.shared).chain(self.tenants.progress())
    }

    /// Every token is as new as it should be.
    fn are_fresh(&self) -> bool {
        !self.tenants.pending && self.progress().all(|progress| progress.step.fresh)
    }

    /// Every token is as new as it should be; of a namespace's own, as new as it can be: one that is denied must not make each
    /// restart renew all others.
    fn are_settled(&self) -> bool {
        let settled = !self.tenants.pending && self.tenants.progress().all(|progress| progress.step.settled);
        self.shared.step.fresh && settled
    }
}

impl Reconciliation<'_> {
    /// The reconciliation itself.
    async fn run(&self, state: &mut CredentialState) -> Reconciled {
        if self.object.meta().deletion_timestamp.is_some() {
            return Observation::Stalled(SpecError { reason: Reason::Deleting, message: DELETING.to_owned() }).into();
        }
        // Its tokens stay in memory, so that to resume costs no call.
        if self.object.spec.suspend {
            return Observation::Suspended.into();
        }
        let plan = match plan::plan(&self.object.spec, &self.ctx.limits) {
            Ok(plan) => plan,
            Err(error) => {
                self.ctx.tokens.want(self.uid, BTreeSet::new());
                return Observation::Stalled(error).into();
            }
        };
        let (included, include_failure) =
            self.ctx.shared.state.lock().includes.of(&plan.includes, &self.ctx.limits.includes);
        let owner = Owner { name: self.object.name_any(), uid: self.uid.clone() };
        let inputs = Inputs { plan, owner, included, include_failure };
        let Inputs { plan, owner, .. } = &inputs;
        let token_specs =
            plan.token_specs().into_iter().filter(|token_spec| !token_spec.auth.is_each_targets()).collect();
        let shared = TokenGroup { token_specs: &token_specs, target: None, policy: &plan.refresh, seed: &self.uid.0 };
        if matches!(state.recovery, Recovery::Due) {
            let ready = self.status.holding(condition::READY);
            state.retries.synced_before = ready.and(self.status.observed_generation);
        }
        recover(self.ctx, self.uid, plan, &token_specs, self.status, state, self.ctx.clock.earliest()).await;
        let begun = Instant::now();
        let tokens = self.tokens(&inputs, &shared, state).await;
        if let Some(left) = self.first_wait(&tokens.shared, state) {
            state.pace.computed(begun);
            return Reconciled { observation: None, again: Some(left) };
        }
        let desired = match self.desired(&inputs, &tokens.tenants, state) {
            Ok(desired) => desired,
            Err(error) => return Observation::Stalled(error).into(),
        };
        state.pace.computed(begun);
        let diff = Diff {
            state: &self.ctx.shared.state,
            clock: &self.ctx.clock,
            plan,
            owner,
            generation: self.object.meta().generation,
            desired: &desired,
        };
        let outcome = write(self.ctx, &diff, &mut state.retries).await;
        let (reports, again) = match outcome {
            WritesOutcome::Done => (true, None),
            WritesOutcome::Slow { reports } => (reports, Some(SOON)),
            WritesOutcome::Superseded => return Reconciled::default(),
        };
        let begun = Instant::now();
        // An event since then has queued another reconciliation.
        let counts = if reports { diff.counts(&state.retries) } else { None };
        let observation = counts.map(|counts| self.ran(&inputs, &tokens, counts, state));
        state.pace.computed(begun);
        let recovers_in = state.recovers_at().map(|at| at.saturating_duration_since(Instant::now()));
        Reconciled { observation, again: again.into_iter().chain(recovers_in).min() }
    }

    /// Fetches what is due and publishes what has come.
    async fn tokens(&self, inputs: &Inputs, group: &TokenGroup<'_>, state: &mut CredentialState) -> TokensProgress {
        let plan = &inputs.plan;
        let now = self.ctx.clock.now();
        forget_without_caller(plan, state);
        let each = if plan.has_tenants() {
            let shared_known = state.recovery.next_pass().is_none();
            let context = self.tenant_context(inputs, &state.published);
            state.tenants.prepare(&context, shared_known, self.ctx.clock.earliest()).await
        } else {
            state.tenants = Tenants::default();
            BTreeMap::new()
        };
        let keys = keys(self.ctx, group.token_specs, group.target);
        let in_use = each.values().chain([&keys]).flat_map(BTreeMap::values).flatten().cloned().collect();
        self.ctx.tokens.want(self.uid, in_use);
        let are_first = !state.has_tokens();
        let demand = self.demand(state, now);
        let shared = group.advance(self.ctx, self.uid, keys, demand, &mut state.published, now);
        let tenants = state.tenants.advance(&self.tenant_context(inputs, &state.published), each, demand, now);
        let tokens = TokensProgress { shared, tenants };
        let oldest = if are_first && state.demand.is_some() { state.oldest_token() } else { None };
        if let Some(requested) = &mut state.demand {
            // The first tokens serve it however old they are, also while another one is still missing.
            requested.since = oldest.map_or(requested.since, |issued| issued.min(requested.since));
            requested.first &= demand.is_none();
            // Also if the writes of this reconciliation fail: the tokens are no older for that.
            requested.served |= tokens.are_fresh();
        }
        tokens
    }

    fn tenant_context<'a>(&'a self, inputs: &'a Inputs, shared: &'a secret::Published) -> TenantContext<'a> {
        let Inputs { plan, owner, included, .. } = inputs;
        let version = (self.object.meta().generation, included.digest().map(|digest| digest.short()));
        TenantContext { ctx: self.ctx, plan, owner, shared, included, version }
    }

    /// What the target namespaces should hold.
    fn desired(
        &self,
        inputs: &Inputs,
        tenants: &TenantsProgress,
        state: &mut CredentialState,
    ) -> Result<DesiredSecrets, SpecError> {
        let Inputs { plan, owner, included, .. } = inputs;
        if plan.has_tenants() {
            let context = self.tenant_context(inputs, &state.published);
            return Ok(state.tenants.content(&context, tenants));
        }
        // A token is dropped only when it has expired by every clock.
        let earliest = self.ctx.clock.earliest();
        Ok(DesiredSecrets::Alike(secret::bundle(plan, owner, &state.published, included, earliest)?))
    }

    /// The refresh on demand that is not served yet, if any. Each value of the annotation is served once, also across restarts. Where
    /// no token is known, the first tokens serve it however old they are, and it only ends the wait after a failure.
    fn demand(&self, state: &mut CredentialState, now: Timestamp) -> Option<Demand> {
        let value = refresh_request(self.object)?;
        let known = state.demand.take().filter(|demand| demand.value == value);
        // Namespaces with tokens of their own that failed then may still need what was reported as served.
        let told = self.status.handled_refresh_request.as_ref() == Some(&value);
        if told && known.is_none() {
            return None;
        }
        let second = plan::schedule::whole_seconds(now);
        let mut demand = known.unwrap_or(Requested { value, since: second, first: true, served: false });
        // A clock that was set back must not make every new token too old.
        demand.since = demand.since.min(second);
        let demand = state.demand.insert(demand);
        let Requested { since, first, served, .. } = *demand;
        let refreshed = state.has_tokens();
        (!served).then_some(Demand { since: if refreshed { since } else { Timestamp::MIN }, first })
    }

    /// How long to wait for the very first tokens, so that a new Secret is written once and with all of them. Nobody else waits for
    /// that: there is no Secret yet, and nothing that could be written into one.
    fn first_wait(&self, shared: &Progress, state: &mut CredentialState) -> Option<Duration> {
        let fetching = shared.step.incomplete && state.published.is_empty();
        let fails = || shared.keys.keys().any(|token_spec| shared.failure(self.ctx, token_spec).is_some());
        if !fetching || fails() || self.ctx.shared.state.lock().owns_any(self.uid) {
            state.first_asked = None;
            return None;
        }
        let since = *state.first_asked.get_or_insert_with(Instant::now);
        Some(FIRST_WAIT.saturating_sub(since.elapsed())).filter(|left| !left.is_zero())
    }

    fn ran(
        &self,
        inputs: &Inputs,
        tokens: &TokensProgress,
        counts: SyncCounts,
        state: &mut CredentialState,
    ) -> Observation {
        let plan = &inputs.plan;
        let taken = secret::taken_hosts(plan, &state.published);
        let earliest = self.ctx.clock.earliest();
        let left_out = secret::left_out(plan, &plan.secret, &state.published, &taken, earliest);
        let registries = plan.registries.iter().enumerate();
        let registries = registries
            .map(|(number, registry)| {
                let taken: Vec<_> = taken.iter().filter(|taken| taken.later == number).collect();
                let left_out = left_out.iter().find(|left_out| left_out.number == number);
                self.report_registry(registry, &taken, left_out, tokens, state)
            })
            .collect();
        let outputs = plan.outputs.iter();
        let outputs =
            outputs.map(|output| report_output(plan, output, &counts, &state.published, &taken, earliest)).collect();
        let shared = state.published.values().map(|token| plan.refresh.due_at(token.life, &self.uid.0)).min();
        let each = state.tenants.due_at(&self.tenant_context(inputs, &state.published), earliest);
        let token_changes = tokens.progress().filter_map(|progress| progress.step.look_again);
        Observation::Ran(Box::new(Report {
            registries,
            outputs,
            include_failure: inputs.include_failure.clone(),
            namespaces: self.report_namespaces(plan, counts),
            kept_until: state.retries.kept_until(),
            next_refresh_at: shared.into_iter().chain(each).min(),
            look_again: state.retries.retry_at().into_iter().chain(token_changes).min(),
            handled_refresh_request: self.handled(tokens, state),
            attached: self.attached(),
        }))
    }

    /// The namespaces of the pull secret, and the failures of all Secrets.
    fn report_namespaces(&self, plan: &Plan, counts: SyncCounts) -> NamespaceReport {
        let of_pull_secret = counts.of(&plan.secret.name);
        let of_output = |name: &String| *name != *plan.secret.name;
        let failures = counts.failures.into_iter();
        let failures = failures.map(|f| NamespaceFailure { secret: f.secret.filter(of_output), ..f }).collect();
        let unselected = self.ctx.shared.state.lock().index.unselected(self.uid);
        NamespaceReport { counts: of_pull_secret, failures, unselected }
    }

    /// Whether the Secret is attached to pods and ServiceAccounts as the spec asks.
    fn attached(&self) -> Option<Attachment> {
        let (attach_to, limits) = (self.object.spec.attach_to.as_ref()?, &self.ctx.limits);
        let allowed = Allowed { pods: limits.attach_pods, service_accounts: &limits.attach_service_accounts };
        let unattached = self.ctx.shared.state.lock().unattached_of(self.uid);
        attachment(attach_to, allowed, unattached.as_ref())
    }

    /// The refresh request that is served now. Fresh tokens serve every request; others leave it as it was. A namespace with tokens of
    /// its own that fails does not keep the request from being reported as served, and is still refreshed for it.
    fn handled(&self, tokens: &TokensProgress, state: &CredentialState) -> Option<String> {
        let before = || self.status.handled_refresh_request.clone();
        if tokens.are_settled() {
            return refresh_request(self.object).or_else(before);
        }
        state.demand.as_ref().filter(|demand| demand.served).map(|demand| demand.value.clone()).or_else(before)
    }

    fn report_registry(
        &self,
        registry: &RegistryPlan,
        taken: &[&TakenHost],
        left_out: Option<&LeftOut>,
        tokens: &TokensProgress,
        state: &CredentialState,
    ) -> RegistryReport {
        let (region, problem) = (registry.region.clone(), registry.problem.clone());
        let each_targets = registry.is_each_targets();
        if each_targets {
            // The policy that attaches Secrets to pods reads them for all namespaces, so none of these decides what they are.
            let hosts = registry.hosts_of_any_account();
            let life = state.tenants.life(registry, self.ctx.clock.earliest());
            let failure = tokens.tenants.failure(self.ctx, registry);
            return RegistryReport { region, hosts, life, hash: None, auth_hash: None, problem, failure, each_targets };
        }
        // Hosts are unknown only for a token without an account, and such a token is not published.
        let mut entries = registry_entries(registry, &state.published).unwrap_or_default();
        // The policy reads them before there is a token as well: a pod that is created meanwhile would never get the Secret.
        let hosts = if entries.is_empty() {
            registry.hosts_of_any_account()
        } else {
            entries.iter().map(|(host, _)| host.clone()).collect()
        };
        let is_taken = |host: &Host| taken.iter().any(|taken| taken.host == *host);
        let hosts = hosts.into_iter().filter(|host| !is_taken(host) && left_out.is_none()).collect();
        entries.retain(|(host, _)| !is_taken(host));
        let held: Vec<_> =
            registry.token_specs.iter().filter_map(|token_spec| state.published.get(token_spec)).collect();
        let complete = held.len() == registry.token_specs.len() && left_out.is_none() && !entries.is_empty();
        let life = complete.then(|| Life::earliest(held.iter().map(|token| token.life))).flatten();
        let identity = life.and_then(|_| Some(&held.first()?.identity));
        let hash =
            identity.filter(|identity| !identity.is_unresolved()).map(|identity| self.ctx.hash(identity, &entries));
        let auth_hash = life.and_then(|_| Some(auth_hash(registry.token_specs.first()?, &entries)));
        let failure = registry.token_specs.iter().find_map(|token_spec| tokens.shared.failure(self.ctx, token_spec));
        let problem = problem
            .or_else(|| taken.first().map(|taken| SpecError::from(*taken)))
            .or_else(|| left_out.map(SpecError::from));
        RegistryReport { region, hosts, life, hash, auth_hash, problem, failure, each_targets }
    }

    /// Writes the status if it has changed, sends the Events, and says when to come back.
    async fn report(&self, outcome: Outcome, state: &mut CredentialState) -> Result<Action, Error> {
        // The metrics need not wait for a status that is written later, or cannot be written.
        self.conclude(&outcome.status);
        match state.status.write(self.ctx, self.uid, self.object, self.stored, &outcome).await? {
            StatusWrite::Done => {}
            StatusWrite::Later(wait) => return Ok(Action::requeue(wait.min(outcome.requeue_after))),
            StatusWrite::Gone => return Ok(Action::await_change()),
        }
        for event in outcome.events.into_iter().filter(|event| self.is_due(event)) {
            self.ctx.events.send(self.object, event);
        }
        Ok(Action::requeue(outcome.requeue_after))
    }

    /// Whether an Event is to be sent: nothing has recovered in a namespace that is not selected any more.
    fn is_due(&self, event: &ReportedEvent) -> bool {
        let index = &self.ctx.shared.state.lock().index;
        let secret = event.secret.as_ref().unwrap_or(&self.object.spec.secret.name);
        let wanted = |namespace: &String| index.wants(self.uid, secret, namespace);
        event.warning || event.namespace.as_ref().is_none_or(wanted)
    }

    /// Updates the metrics.
    fn conclude(&self, status: &EcrCredentialStatus) {
        let update = || self.ctx.observer.concluded(self.uid, &self.object.name_any(), status);
        self.ctx.shared.while_there(self.uid, self.object, update);
    }
}

fn report_output(
    plan: &Plan,
    output: &SecretPlan,
    counts: &SyncCounts,
    published: &secret::Published,
    taken: &[TakenHost],
    now: Timestamp,
) -> OutputReport {
    let does_not_fit = || secret::left_out(plan, output, published, taken, now).first().map(SpecError::from);
    // Where each namespace has its own token, the account and the size may differ as well.
    let wrong = || secret::lacks_host(plan, output, published).or_else(does_not_fit);
    let refusal = output.refusal.clone().or_else(|| if plan.has_tenants() { None } else { wrong() });
    OutputReport { name: output.name.clone(), format: output.format, counts: counts.of(&output.name), refusal }
}

/// A recovered token without its account is of no use where the account determines the hosts.
fn forget_without_caller(plan: &Plan, state: &mut CredentialState) {
    let callers = plan.registries.iter().filter(|r| matches!(r.hosts, Hosts::Callers { .. }));
    let token_specs: BTreeSet<&TokenSpec> = callers.flat_map(|registry| &registry.token_specs).collect();
    state.published.retain(|token_spec, token| !token_specs.contains(token_spec) || token.caller().is_some());
}

#[cfg(test)]
mod tests;
