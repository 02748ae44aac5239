//! One round for one `EcrCredential`: plan, tokens, desired Secret, writes, outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::diff::Task;
use super::error::Error;
use super::recover::{auth_hash, recover};
use super::retry_state::{Counts, SyncCounts};
use super::tenants::{TenantContext, Tenants, TenantsProgress};
use super::tokens::{Progress, TokenGroup, keys};
use super::writes::{self, DesiredSecrets};
use super::{Context, CredentialState, Requested};
use crate::api::registry::Host;
use crate::api::status::NamespaceFailure;
use crate::api::{EcrCredential, EcrCredentialStatus, refresh_request};
use crate::attach::{Allowed, Attachment, attachment};
use crate::outcome::{NamespaceReport, Observation, Outcome, OutputReport, RegistryReport, ReportedEvent, conclude};
use crate::plan::outputs::SecretPlan;
use crate::plan::refresh::Demand;
use crate::plan::schedule::Life;
use crate::plan::{self, Hosts, Plan, RegistryPlan, SpecError, TokenSpec, Uid};
use crate::secret::include::Included;
use crate::secret::{self, LeftOut, Owner, TakenHost, registry_entries};

/// When to look again at writes that are slow.
const SOON: Duration = Duration::from_secs(1);

/// How long a round waits for the first tokens of all: as long as one call to AWS may take.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// The status is written at most so often: where thousands of namespaces come, each for itself, nobody reads every step.
const BETWEEN_STATUSES: Duration = Duration::from_millis(500);

/// The same where nothing has changed but the times in it, as they do with each renewal among thousands.
const BETWEEN_TIMES: Duration = Duration::from_secs(30);

/// Brings everything that an `EcrCredential` asks for about, as far as it can be now.
pub(super) async fn reconcile(object: Arc<EcrCredential>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = Uid(object.uid().ok_or(Error::NoUid)?.into());
    if object.meta().deletion_timestamp.is_some() || !ctx.shared.state.lock().index.is_alive(&uid) {
        return Ok(Action::await_change());
    }
    let memory = ctx.memory(&uid);
    let mut memory = memory.lock().await;
    let status = memory.last_status.clone().or_else(|| object.status.clone()).unwrap_or_default();
    // Others may have changed it since. What is remembered still says what was told and done.
    let is_behind = memory.status_version.is_some_and(|written| version(&object).is_none_or(|seen| seen < written));
    let stored = if is_behind { status.clone() } else { object.status.clone().unwrap_or_default() };
    let round = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &stored };
    let turn = round.course(&mut memory).await;
    if !ctx.shared.state.lock().index.is_alive(&uid) {
        // Deleted meanwhile: what was noted of it since is noted of nobody.
        ctx.memories.forget(&uid);
        ctx.tokens.want(&uid, BTreeSet::new());
        return Ok(Action::await_change());
    }
    let (course, soon) = match turn? {
        ReconcileOutcome::Report(course) => (course, false),
        ReconcileOutcome::RequeueSoon(Some(course)) => (course, true),
        ReconcileOutcome::RequeueSoon(None) => return Ok(Action::requeue(SOON)),
        ReconcileOutcome::AwaitChange => return Ok(Action::await_change()),
        ReconcileOutcome::AwaitTokens(left) => return Ok(Action::requeue(left)),
    };
    let mut outcome = conclude(course, &status, object.meta().generation, ctx.clock.now());
    if soon {
        outcome.requeue_after = outcome.requeue_after.min(SOON);
    }
    round.report(outcome, &mut memory).await
}

/// The number of a resourceVersion, which grows with each change.
fn version(object: &EcrCredential) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}

/// What a round comes to.
enum ReconcileOutcome {
    /// Something to tell.
    Report(Observation),
    /// Nothing to say before something else happens, which puts it on the queue again.
    AwaitChange,
    /// The first tokens are being fetched: nothing to say for so long, unless they come before.
    AwaitTokens(Duration),
    /// Writes are slow: there is perhaps something to tell, and it is to be looked at again soon.
    RequeueSoon(Option<Observation>),
}

struct Reconciliation<'a> {
    object: &'a EcrCredential,
    ctx: &'a Arc<Context>,
    uid: &'a Uid,
    /// What was said last.
    status: &'a EcrCredentialStatus,
    /// The status that is stored, as far as it is known.
    stored: &'a EcrCredentialStatus,
}

/// What has become of the tokens in one round.
struct TokensProgress {
    /// Those that all namespaces share.
    shared: Progress,
    /// Those of each namespace.
    census: TenantsProgress,
}

impl TokensProgress {
    fn progress(&self) -> impl Iterator<Item = &Progress> {
        std::iter::once(&self.shared).chain(self.census.progress())
    }

    /// Every token is as new as it should be.
    fn are_fresh(&self) -> bool {
        self.progress().all(|progress| progress.step.fresh)
    }

    /// Every token is as new as it should be; of a namespace's own, as new as it can be: one that is denied must not make each
    /// restart renew all others.
    fn are_settled(&self) -> bool {
        self.shared.step.fresh && self.census.progress().all(|progress| progress.step.settled)
    }
}

impl Reconciliation<'_> {
    /// The round itself.
    async fn course(&self, memory: &mut CredentialState) -> Result<ReconcileOutcome, Error> {
        // Its tokens stay in memory: to go on costs no call.
        if self.object.spec.suspend {
            return Ok(ReconcileOutcome::Report(Observation::Suspended));
        }
        let plan = match plan::plan(&self.object.spec, &self.ctx.limits) {
            Ok(plan) => plan,
            Err(halt) => {
                self.ctx.tokens.want(self.uid, BTreeSet::new());
                return Ok(ReconcileOutcome::Report(Observation::Stalled(halt)));
            }
        };
        let token_specs = plan.token_specs().into_iter().filter(|need| !need.auth.is_each_targets()).collect();
        let shared = TokenGroup { token_specs: &token_specs, target: None, policy: &plan.refresh, seed: &self.uid.0 };
        recover(self.ctx, self.uid, &plan, &token_specs, self.status, memory, self.ctx.clock.earliest()).await?;
        let owner = Owner { name: self.object.name_any(), uid: self.uid.clone() };
        let tokens = self.tokens(&plan, &shared, &owner, memory).await;
        if let Some(left) = self.first_wait(&tokens.shared, memory) {
            return Ok(ReconcileOutcome::AwaitTokens(left));
        }
        let content = match self.content(&plan, &owner, &tokens.census, memory) {
            Ok(content) => content,
            Err(halt) => return Ok(ReconcileOutcome::Report(Observation::Stalled(halt))),
        };
        let task = Task { plan: &plan, owner: &owner, generation: self.object.meta().generation };
        match writes::write(self.ctx, &task, &content, &mut memory.retries).await {
            writes::WritesOutcome::Done(counts) => {
                Ok(ReconcileOutcome::Report(self.ran(&plan, &tokens, counts, memory)))
            }
            writes::WritesOutcome::Slow(counts) => {
                Ok(ReconcileOutcome::RequeueSoon(counts.map(|counts| self.ran(&plan, &tokens, counts, memory))))
            }
            writes::WritesOutcome::Superseded => Ok(ReconcileOutcome::AwaitChange),
        }
    }

    /// Fetches what is due and publishes what has come.
    async fn tokens(
        &self,
        plan: &Plan,
        group: &TokenGroup<'_>,
        owner: &Owner,
        memory: &mut CredentialState,
    ) -> TokensProgress {
        let now = self.ctx.clock.now();
        forget_without_caller(plan, memory);
        let included = self.included(plan).0;
        let each = if plan.has_tenants() {
            memory
                .tenants
                .prepare(&self.estate(plan, owner, &memory.published, &included), self.ctx.clock.earliest())
                .await
        } else {
            memory.tenants = Tenants::default();
            BTreeMap::new()
        };
        let merged = included.digest().map(|digest| digest.short());
        if std::mem::replace(&mut memory.included, merged) != merged {
            memory.tenants.shared_changed();
        }
        let keys = keys(self.ctx, group.token_specs, group.target);
        let in_use = each.values().chain([&keys]).flat_map(BTreeMap::values).flatten().cloned().collect();
        self.ctx.tokens.want(self.uid, in_use);
        let demand = self.demand(memory, now);
        let shared = group.advance(self.ctx, self.uid, keys, demand, &mut memory.published, now);
        let generation = self.object.meta().generation;
        if std::mem::replace(&mut memory.generation, generation) != generation || shared.changed {
            memory.tenants.shared_changed();
        }
        let census = memory.tenants.advance(&self.estate(plan, owner, &memory.published, &included), each, demand, now);
        let tokens = TokensProgress { shared, census };
        if let Some(requested) = &mut memory.demand {
            requested.first &= demand.is_none();
            // Also when the writes of this round come to nothing: the tokens are no older for that.
            requested.served |= tokens.are_fresh();
        }
        tokens
    }

    fn estate<'a>(
        &'a self,
        plan: &'a Plan,
        owner: &'a Owner,
        shared: &'a secret::Published,
        included: &'a Included,
    ) -> TenantContext<'a> {
        TenantContext { ctx: self.ctx, uid: self.uid, plan, owner, shared, included }
    }

    /// The docker configs of others that are merged into ours, and why one of them is missing.
    fn included(&self, plan: &Plan) -> (Included, Option<SpecError>) {
        self.ctx.shared.state.lock().includes.of(&plan.includes, &self.ctx.limits.includes)
    }

    /// What the target namespaces should hold.
    fn content(
        &self,
        plan: &Plan,
        owner: &Owner,
        census: &TenantsProgress,
        memory: &mut CredentialState,
    ) -> Result<DesiredSecrets, SpecError> {
        let included = self.included(plan).0;
        if plan.has_tenants() {
            let estate = self.estate(plan, owner, &memory.published, &included);
            return Ok(memory.tenants.content(&estate, census));
        }
        // A login is dropped only when it has expired by every clock.
        let earliest = self.ctx.clock.earliest();
        Ok(DesiredSecrets::Alike(secret::bundle(plan, owner, &memory.published, &included, earliest)?))
    }

    /// The refresh on demand that is not served yet, if any. Each value of the annotation is served once, also across
    /// restarts. Where no token is known there is nothing to renew, and the first ones serve it.
    fn demand(&self, memory: &mut CredentialState, now: Timestamp) -> Option<Demand> {
        let value = refresh_request(self.object)?;
        let known = memory.demand.take().filter(|demand| demand.value == value);
        // What was told as served may still be owed to namespaces of their own that failed then.
        let told = self.status.handled_refresh_request.as_ref() == Some(&value);
        if told && known.is_none() {
            return None;
        }
        let second = plan::schedule::whole_seconds(now);
        let mut demand = known.unwrap_or(Requested { value, since: second, first: true, served: false });
        // A clock that was set back must not make every new token too old.
        demand.since = demand.since.min(second);
        let demand = memory.demand.insert(demand);
        let refreshed = !memory.published.is_empty() || memory.tenants.has_any();
        (refreshed && !demand.served).then_some(Demand { since: demand.since, first: demand.first })
    }

    /// How long the round waits for the first tokens of all, so that a new Secret is written once and with all of them. Nobody
    /// else waits for that: there is no Secret yet, and nothing that could be written into one.
    fn first_wait(&self, shared: &Progress, memory: &mut CredentialState) -> Option<Duration> {
        let fetching = shared.step.incomplete && memory.published.is_empty();
        let fails = || shared.keys.keys().any(|need| shared.failure(self.ctx, need).is_some());
        if !fetching || fails() || !self.ctx.shared.state.lock().owned_by(self.uid).is_empty() {
            memory.first_asked = None;
            return None;
        }
        let since = *memory.first_asked.get_or_insert_with(Instant::now);
        Some(FIRST_WAIT.saturating_sub(since.elapsed())).filter(|left| !left.is_zero())
    }

    fn ran(
        &self,
        plan: &Plan,
        tokens: &TokensProgress,
        counts: SyncCounts,
        memory: &mut CredentialState,
    ) -> Observation {
        let now = self.ctx.clock.now();
        let taken = secret::taken_hosts(plan, &memory.published);
        let left_out = secret::left_out(plan, &memory.published, &taken, self.ctx.clock.earliest());
        let registries = plan.registries.iter().enumerate();
        let registries = registries
            .map(|(number, registry)| {
                let taken: Vec<_> = taken.iter().filter(|taken| taken.later == number).collect();
                let left_out = left_out.iter().find(|left_out| left_out.number == number);
                self.report_registry(registry, &taken, left_out, tokens, memory)
            })
            .collect();
        let owner = Owner { name: self.object.name_any(), uid: self.uid.clone() };
        let shared = memory.published.values().map(|grant| plan.refresh.due_at(grant.life, &self.uid.0)).min();
        let (included, include_failure) = self.included(plan);
        let each = memory.tenants.due_at(&self.estate(plan, &owner, &memory.published, &included));
        let looks = tokens.progress().filter_map(|progress| progress.step.look_again);
        Observation::Ran {
            registries,
            outputs: plan.outputs.iter().map(|output| report_output(plan, output, &counts, memory)).collect(),
            include_failure,
            namespaces: self.report_namespaces(plan, counts),
            next_refresh_at: shared.into_iter().chain(each).min(),
            look_again: memory.retries.retry_at(now).into_iter().chain(looks).min(),
            handled_refresh_request: self.handled(tokens, memory),
            attached: self.attached(),
        }
    }

    /// The namespaces of the pull secret, and those of all Secrets of which something is to be said.
    fn report_namespaces(&self, plan: &Plan, counts: SyncCounts) -> NamespaceReport {
        let Counts { selected, synced, failed } = counts.of(&plan.secret.name);
        let of_output = |name: &String| *name != *plan.secret.name;
        let failures = counts.failures.into_iter();
        let failures = failures.map(|f| NamespaceFailure { secret: f.secret.filter(of_output), ..f }).collect();
        let unselected = self.ctx.shared.state.lock().index.unselected(self.uid);
        NamespaceReport { selected, synced, failed, failures, unselected }
    }

    /// Whether the Secret is attached to pods and ServiceAccounts as the spec asks.
    fn attached(&self) -> Option<Attachment> {
        let limits = &self.ctx.limits;
        let allowed = Allowed { pods: limits.attach_pods, service_accounts: &limits.attach_service_accounts };
        let unattached = self.ctx.shared.state.lock().unattached_of(self.uid);
        attachment(self.object.spec.attach_to.as_ref(), allowed, &unattached)
    }

    /// The refresh request that is served now. What is fresh serves whatever was asked; what is not leaves it as it was. A
    /// namespace of its own that fails does not keep it from being told, but goes on being served.
    fn handled(&self, tokens: &TokensProgress, memory: &CredentialState) -> Option<String> {
        let before = || self.status.handled_refresh_request.clone();
        if tokens.are_settled() {
            return refresh_request(self.object).or_else(before);
        }
        memory.demand.as_ref().filter(|demand| demand.served).map(|demand| demand.value.clone()).or_else(before)
    }

    fn report_registry(
        &self,
        registry: &RegistryPlan,
        taken: &[&TakenHost],
        left_out: Option<&LeftOut>,
        tokens: &TokensProgress,
        memory: &CredentialState,
    ) -> RegistryReport {
        let each_targets = registry.is_each_targets();
        let published = if each_targets { memory.tenants.first() } else { Some(&memory.published) };
        // Hosts that cannot be told come of a token without an account, and such a one is not published.
        let mut entries =
            published.and_then(|published| registry_entries(registry, published).ok()).unwrap_or_default();
        let hosts: Vec<Host> = match &registry.hosts {
            // Known before any token is: the policy that attaches the Secret to pods reads them.
            Hosts::Named(named) if entries.is_empty() => named.iter().map(|(host, _)| host.clone()).collect(),
            _ => entries.iter().map(|(host, _)| host.clone()).collect(),
        };
        let is_taken = |host: &Host| taken.iter().any(|taken| taken.host == *host);
        let hosts = hosts.into_iter().filter(|host| !is_taken(host) && left_out.is_none()).collect();
        entries.retain(|(host, _)| !is_taken(host));
        if each_targets {
            let life = memory.tenants.life(registry);
            let failure = tokens.census.failure(self.ctx, registry);
            let (hash, auth_hash) = (None, None);
            let (region, problem) = (registry.region.clone(), registry.problem.clone());
            return RegistryReport { region, hosts, life, hash, auth_hash, problem, failure, each_targets };
        }
        let grants: Vec<_> = registry.token_specs.iter().filter_map(|need| memory.published.get(need)).collect();
        let complete = grants.len() == registry.token_specs.len() && left_out.is_none() && !entries.is_empty();
        let life = complete.then(|| Life::earliest(grants.iter().map(|grant| grant.life))).flatten();
        let identity = life.and_then(|_| Some(&grants.first()?.identity));
        let hash =
            identity.filter(|identity| !identity.is_unresolved()).map(|identity| self.ctx.hash(identity, &entries));
        let auth_hash = life.and_then(|_| Some(auth_hash(registry.token_specs.first()?, &entries)));
        let failure = registry.token_specs.iter().find_map(|need| tokens.shared.failure(self.ctx, need));
        let problem = registry.problem.clone();
        let problem = problem
            .or_else(|| taken.first().map(|taken| SpecError::from(*taken)))
            .or_else(|| left_out.map(SpecError::from));
        let region = registry.region.clone();
        RegistryReport { region, hosts, life, hash, auth_hash, problem, failure, each_targets }
    }

    /// Writes the status if it has changed, sends the Events, and says when to come back.
    async fn report(&self, outcome: Outcome, memory: &mut CredentialState) -> Result<Action, Error> {
        // What could not be written may be there all the same: the answer alone may have been lost.
        let unsure = memory.status_failures > 0;
        if outcome.status != *self.stored || unsure {
            let is_known =
                |status: &EcrCredentialStatus| outcome.status == *status || outcome.is_progress_alone(status);
            let progress = !unsure && outcome.is_progress_alone(self.stored);
            if progress {
                // What the process before this one left untold is no more urgent.
                memory.status_written.get_or_insert_with(Instant::now);
            }
            // Whoever changes the status again and again is not fought.
            let undone = !unsure && memory.last_status.as_ref().is_some_and(is_known);
            let wait = if progress || undone { BETWEEN_TIMES } else { BETWEEN_STATUSES };
            let next = memory.status_written.map(|last| last + wait);
            if let Some(next) = next.filter(|next| *next > Instant::now()) {
                self.conclude(&outcome.status);
                return Ok(Action::requeue(next.duration_since(Instant::now()).min(outcome.requeue_after)));
            }
            match self.ctx.writer.status(self.object, &outcome.status).await {
                Ok(version) => memory.status_version = version.and_then(|version| version.parse().ok()),
                // Nobody is left to tell.
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Action::await_change()),
                Err(_) if !self.ctx.shared.state.lock().index.is_alive(self.uid) => return Ok(Action::await_change()),
                Err(source) => {
                    memory.status_failures = memory.status_failures.saturating_add(1);
                    let wait = self.ctx.retry.delay(memory.status_failures, 3, &self.uid.0);
                    return Err(Error::Status { source, wait });
                }
            }
            memory.status_written = Some(Instant::now());
        }
        memory.status_failures = 0;
        if memory.last_status.as_ref() != Some(&outcome.status) {
            memory.last_status = Some(outcome.status.clone());
        }
        for note in outcome.notes.into_iter().filter(|note| self.is_owed(note)) {
            self.ctx.events.send(self.object, note);
        }
        self.conclude(&outcome.status);
        Ok(Action::requeue(outcome.requeue_after))
    }

    /// Whether an Event is to be sent: nothing has recovered in a namespace that is not selected any more.
    fn is_owed(&self, note: &ReportedEvent) -> bool {
        let index = &self.ctx.shared.state.lock().index;
        let wanted = |namespace: &String| index.wants(self.uid, &self.object.spec.secret.name, namespace);
        note.warning || note.namespace.as_ref().is_none_or(wanted)
    }

    /// Tells the metrics, which need not wait for a status that is put off.
    fn conclude(&self, status: &EcrCredentialStatus) {
        let tell = || self.ctx.observer.concluded(self.uid, &self.object.name_any(), status);
        self.ctx.shared.while_readable(self.uid, tell);
    }
}

fn report_output(plan: &Plan, output: &SecretPlan, counts: &SyncCounts, memory: &CredentialState) -> OutputReport {
    let Counts { selected, synced, failed } = counts.of(&output.name);
    // Where each namespace has its own token, the account may differ as well.
    let lacks_host = || secret::lacks_host(plan, output, &memory.published).filter(|_| !plan.has_tenants());
    let refusal = output.refusal.clone().or_else(lacks_host);
    OutputReport { name: output.name.clone(), format: output.format, selected, synced, failed, refusal }
}

/// A token found again without its account is of no use where the account names the hosts.
fn forget_without_caller(plan: &Plan, memory: &mut CredentialState) {
    let callers = plan.registries.iter().filter(|r| matches!(r.hosts, Hosts::Callers { .. }));
    let token_specs: BTreeSet<&TokenSpec> = callers.flat_map(|registry| &registry.token_specs).collect();
    memory.published.retain(|need, grant| !token_specs.contains(need) || grant.caller().is_some());
}
