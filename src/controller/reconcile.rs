//! One round for one `EcrCredential`: plan, tokens, desired Secret, writes, outcome.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::error::Error;
use super::recover::recover;
use super::world::Spot;
use super::{Context, Failing, Memory};
use crate::api::status::{NamespaceFailure, Reason};
use crate::api::{EcrCredential, EcrCredentialStatus, REFRESH_REQUESTED_AT};
use crate::apply::{WriteError, Written};
use crate::outcome::{Course, NamespaceReport, Outcome, RegistryReport, conclude};
use crate::plan::refresh::{Demand, Held, Step, step};
use crate::plan::schedule::later;
use crate::plan::{self, Halt, Hosts, Plan, TokenKey, Uid};
use crate::secret::{self, Desired, Owner, Place, Verdict, registry_entries, verdict};
use crate::token::TokenHash;

/// A write that met a changed Secret is tried again after this many seconds, unless the watch brings us back sooner.
const STALE_WAIT: Duration = Duration::from_secs(1);

/// Brings everything that an `EcrCredential` asks for about, as far as it can be now.
pub(super) async fn reconcile(object: Arc<EcrCredential>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = Uid(object.uid().ok_or(Error::NoUid)?.into());
    if object.meta().deletion_timestamp.is_some() || !ctx.shared.world.lock().index.is_alive(&uid) {
        return Ok(Action::await_change());
    }
    let memory = ctx.memory(&uid);
    let mut memory = memory.lock().await;
    let status = memory.last_status.clone().or_else(|| object.status.clone()).unwrap_or_default();
    let round = Round { object: &object, ctx: &ctx, uid: &uid, status: &status };
    let Some(course) = round.course(&mut memory).await? else { return Ok(Action::await_change()) };
    let outcome = conclude(course, &status, object.meta().generation, (ctx.now)());
    round.report(outcome, &mut memory).await
}

struct Round<'a> {
    object: &'a EcrCredential,
    ctx: &'a Context,
    uid: &'a Uid,
    status: &'a EcrCredentialStatus,
}

impl Round<'_> {
    /// The round itself; none while there is nothing to say before a fetch that is under way has ended.
    async fn course(&self, memory: &mut Memory) -> Result<Option<Course>, Error> {
        let plan = match plan::plan(&self.object.spec, &self.ctx.limits) {
            Ok(plan) => plan,
            Err(halt) => return Ok(Some(Course::Halted(halt))),
        };
        if self.object.spec.suspend {
            return Ok(Some(Course::Suspended));
        }
        recover(self.ctx, self.uid, &plan, self.status, memory, (self.ctx.now)()).await?;
        let step = self.tokens(&plan, memory);
        if step.incomplete && self.is_first_try(&plan, memory) {
            return Ok(None);
        }
        let namespaces = match self.namespaces(&plan, memory).await {
            Ok(namespaces) => namespaces,
            Err(halt) => return Ok(Some(Course::Halted(halt))),
        };
        // A process that is ending leaves the last word to its successor.
        Ok((!self.ctx.stop.is_cancelled()).then(|| self.ran(&plan, &step, namespaces, memory)))
    }

    /// Fetches what is due and publishes what has come.
    fn tokens(&self, plan: &Plan, memory: &mut Memory) -> Step {
        let now = (self.ctx.now)();
        let keys = plan.keys();
        memory.published.retain(|key, _| keys.contains(key));
        forget_without_caller(plan, memory);
        let demand = self.demand(memory, now);
        let held: BTreeMap<TokenKey, Held> = keys.iter().map(|key| ((*key).clone(), self.held(key, memory))).collect();
        let step = step(&plan.refresh, &self.uid.0, now, demand, &held);
        for key in &step.fetch {
            self.ctx.tokens.request(key, self.uid);
        }
        for (key, _) in held.iter().filter(|(_, held)| held.in_flight) {
            self.ctx.tokens.join(key, self.uid);
        }
        for key in &step.publish {
            if let Some(grant) = self.ctx.tokens.look(key).grant {
                memory.published.insert(key.clone(), grant);
            }
        }
        if let Some(demand) = &mut memory.demand {
            demand.first = false;
        }
        step
    }

    fn held(&self, key: &TokenKey, memory: &Memory) -> Held {
        let known = self.ctx.tokens.look(key);
        Held {
            published: memory.published.get(key).map(|grant| grant.life),
            cached: known.grant.map(|grant| grant.life),
            in_flight: known.in_flight,
            retry_at: known.failure.map(|failure| failure.retry_at),
        }
    }

    /// The refresh on demand that is not served yet, if any. Each value of the annotation is served once, also across
    /// restarts; on an object that was never refreshed there is nothing to renew.
    fn demand(&self, memory: &mut Memory, now: Timestamp) -> Option<Demand> {
        let value = self.object.annotations().get(REFRESH_REQUESTED_AT)?;
        if self.status.handled_refresh_request.as_ref() == Some(value) || memory.published.is_empty() {
            memory.demand = None;
            return None;
        }
        let known = memory.demand.as_ref().is_some_and(|demand| demand.value == *value);
        if !known {
            let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
            memory.demand = Some(super::Requested { value: value.clone(), since, first: true });
        }
        memory.demand.as_ref().map(|demand| Demand { since: demand.since, first: demand.first })
    }

    /// Whether the tokens that are missing are being fetched for the first time.
    fn is_first_try(&self, plan: &Plan, memory: &Memory) -> bool {
        let missing = plan.keys().into_iter().filter(|key| !memory.published.contains_key(*key));
        missing.map(|key| self.ctx.tokens.look(key)).all(|known| known.failure.is_none())
    }

    /// Writes until every place is as it should be or has failed, looking at the world anew whenever it has changed.
    async fn namespaces(&self, plan: &Plan, memory: &mut Memory) -> Result<NamespaceReport, Halt> {
        let owner = Owner { name: self.object.name_any(), uid: self.uid.clone() };
        let mut written = 0;
        loop {
            let now = (self.ctx.now)();
            let desired =
                secret::desired(plan, &owner, &self.object.spec.secret, &memory.published, now).map_err(Halt::from)?;
            memory.expect(desired.as_ref());
            let (places, revision) = {
                let world = self.ctx.shared.world.lock();
                (world.places(self.uid, &plan.secret_name), world.revision(self.uid))
            };
            let policy = plan.conflict_policy;
            let verdicts: Vec<(Place, Verdict)> = places
                .into_iter()
                .map(|place| {
                    let verdict = verdict(&place, desired.as_ref(), policy, &memory.accepted, now);
                    (place, verdict)
                })
                .collect();
            let interrupted = self.write(&verdicts, desired.as_ref(), revision, memory, &mut written).await;
            if !interrupted || self.ctx.stop.is_cancelled() {
                return Ok(self.report_namespaces(plan, desired.as_ref(), written, memory));
            }
        }
    }

    /// Performs verdicts, the missing Secrets first and deletions last; stops early and says so when the world changes.
    async fn write(
        &self,
        verdicts: &[(Place, Verdict)],
        desired: Option<&Desired>,
        revision: u64,
        memory: &mut Memory,
        written: &mut usize,
    ) -> bool {
        let now = (self.ctx.now)();
        memory.keep_failing(verdicts);
        for (phase, deletes) in [(rank as fn(&Verdict) -> Option<u8>, false), (delete_rank, true)] {
            // An old Secret stays until the new one of its namespace is there.
            let held = if deletes { memory.unmet(verdicts) } else { HashSet::new() };
            let mut jobs: Vec<(u8, &(Place, Verdict))> = verdicts
                .iter()
                .filter(|(place, _)| !held.contains(&place.namespace))
                .filter(|(place, _)| memory.failing.get(&spot(place)).is_none_or(|f| f.may_retry(place, now)))
                .filter_map(|job| phase(&job.1).map(|rank| (rank, job)))
                .collect();
            jobs.sort_by_key(|(rank, _)| *rank);
            let mut jobs = jobs.into_iter().map(|(_, job)| job);
            let mut under_way = FuturesUnordered::new();
            let mut stopped = false;
            loop {
                while under_way.len() < self.ctx.concurrency && !stopped {
                    stopped =
                        self.ctx.stop.is_cancelled() || self.ctx.shared.world.lock().revision(self.uid) != revision;
                    let Some((place, verdict)) = (if stopped { None } else { jobs.next() }) else { break };
                    under_way.push(self.perform(place, verdict, desired));
                }
                let Some((place, result)) = under_way.next().await else { break };
                *written += usize::from(result.is_ok());
                memory.note(place, result, desired, self.ctx, now);
            }
            if stopped {
                return true;
            }
        }
        false
    }

    async fn perform<'p>(
        &self,
        place: &'p Place,
        verdict: &Verdict,
        desired: Option<&Desired>,
    ) -> (&'p Place, Result<Written, WriteError>) {
        let result = self.ctx.writer.perform(place, verdict, desired).await;
        self.settle(place, verdict, &result);
        (place, result)
    }

    /// Tells the world what became of a place before the watch does, and counts it.
    fn settle(&self, place: &Place, verdict: &Verdict, result: &Result<Written, WriteError>) {
        match result {
            Ok(Written::Stored(record)) => {
                self.ctx.shared.secret_written(&place.name, &place.namespace, record.clone(), self.uid);
            }
            Ok(Written::Deleted) => {
                let uid = match verdict {
                    Verdict::Update(record) | Verdict::Delete(record) => Some(&*record.uid),
                    _ => None,
                };
                self.ctx.shared.secret_gone(&place.name, &place.namespace, uid);
            }
            Err(_) => {}
        }
        self.ctx.observer.wrote(verdict, result);
    }

    /// Counts what holds now, after all writes.
    fn report_namespaces(
        &self,
        plan: &Plan,
        desired: Option<&Desired>,
        written: usize,
        memory: &Memory,
    ) -> NamespaceReport {
        let now = (self.ctx.now)();
        let mut report = NamespaceReport { written, ..NamespaceReport::default() };
        let places = self.ctx.shared.world.lock().places(self.uid, &plan.secret_name);
        for place in places {
            let wanted = matches!(place.claim, secret::Claim::Wanted | secret::Claim::Lost(_));
            report.selected += usize::from(wanted);
            let namespace = place.namespace.to_string();
            match verdict(&place, desired, plan.conflict_policy, &memory.accepted, now) {
                Verdict::Keep if wanted => report.synced += 1,
                Verdict::Refuse(reason, message) => {
                    report.failures.push(NamespaceFailure { namespace, reason: reason.as_str().to_owned(), message });
                }
                _ => {
                    if let Some(failing) = memory.failing.get(&spot(&place))
                        && let Some((reason, message)) = &failing.shown
                    {
                        let (reason, message) = (reason.as_str().to_owned(), message.clone());
                        report.failures.push(NamespaceFailure { namespace, reason, message });
                    }
                }
            }
        }
        report
    }

    fn ran(&self, plan: &Plan, step: &Step, namespaces: NamespaceReport, memory: &mut Memory) -> Course {
        let registries = plan.registries.iter().map(|registry| self.report_registry(registry, memory)).collect();
        let served = step.fresh.then(|| memory.demand.take()).flatten().map(|demand| demand.value);
        let never_refreshed = || self.object.annotations().get(REFRESH_REQUESTED_AT).filter(|_| step.fresh).cloned();
        let seed = &self.uid.0;
        let next_refresh_at = memory.published.values().map(|grant| plan.refresh.due_at(grant.life, seed)).min();
        let retries = memory.failing.values().filter_map(|failing| failing.retry_at);
        Course::Ran {
            registries,
            namespaces,
            next_refresh_at,
            look_again: retries.chain(step.look_again).min(),
            handled_refresh_request: served
                .or_else(|| self.status.handled_refresh_request.clone().filter(|_| memory.demand.is_some()))
                .or_else(never_refreshed)
                .or_else(|| self.status.handled_refresh_request.clone()),
        }
    }

    fn report_registry(&self, registry: &plan::RegistryPlan, memory: &Memory) -> RegistryReport {
        let grants: Vec<_> = registry.keys.iter().filter_map(|key| memory.published.get(key)).collect();
        let entries = registry_entries(registry, &memory.published);
        let complete = grants.len() == registry.keys.len();
        let life = complete.then(|| grants.iter().map(|grant| grant.life).reduce(shortest)).flatten();
        let failure = registry.keys.iter().find_map(|key| self.ctx.tokens.look(key).failure).map(|f| f.error);
        let (hosts, token, hosts_error) = match entries {
            Ok(entries) => {
                let fingerprint = registry.keys.first().map(|key| self.ctx.tokens.fingerprint(key)).unwrap_or_default();
                let hash = TokenHash::of(&fingerprint, entries.iter().map(|(host, auth)| (host.as_str(), *auth)));
                (entries.into_iter().map(|(host, _)| host).collect(), life.map(|life| (life, hash)), None)
            }
            Err(error) => (Vec::new(), None, Some(error)),
        };
        RegistryReport { region: registry.region(), hosts, token, failure, hosts_error }
    }

    /// Writes the status if it has changed, sends the Events, and says when to come back.
    async fn report(&self, outcome: Outcome, memory: &mut Memory) -> Result<Action, Error> {
        if outcome.status != *self.status {
            match self.ctx.writer.status(self.object, &outcome.status).await {
                Ok(()) => memory.last_status = Some(outcome.status.clone()),
                // Gone, or made again under another uid: nobody is left to tell.
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    return Ok(Action::await_change());
                }
                Err(error) => return Err(Error::Status(error)),
            }
        }
        for note in outcome.notes {
            self.ctx.events.send(self.object, note);
        }
        self.ctx.observer.concluded(self.uid, &outcome.status);
        Ok(Action::requeue(outcome.requeue_after))
    }
}

/// A token found again without its account is of no use where the account names the hosts.
fn forget_without_caller(plan: &Plan, memory: &mut Memory) {
    for registry in plan.registries.iter().filter(|r| matches!(r.hosts, Hosts::Callers { .. })) {
        for key in &registry.keys {
            if memory.published.get(key).is_some_and(|grant| grant.caller().is_none()) {
                memory.published.remove(key);
            }
        }
    }
}

fn shortest(a: plan::schedule::Life, b: plan::schedule::Life) -> plan::schedule::Life {
    if a.expires_at <= b.expires_at { a } else { b }
}

/// Missing Secrets go first: someone is waiting for them, while those that exist are still good.
fn rank(verdict: &Verdict) -> Option<u8> {
    match verdict {
        Verdict::Create => Some(0),
        Verdict::Update(_) => Some(1),
        _ => None,
    }
}

fn delete_rank(verdict: &Verdict) -> Option<u8> {
    matches!(verdict, Verdict::Delete(_)).then_some(2)
}

impl Memory {
    /// Starts afresh with a new desired Secret: what the API server made of the old one, and what failed, is history.
    fn expect(&mut self, desired: Option<&Desired>) {
        let footprint = desired.map(|d| d.footprint);
        if self.expected != footprint {
            self.expected = footprint;
            self.accepted.clear();
            self.failing.clear();
        }
    }

    /// Forgets failures where nothing is to be written any more: nothing is to be tried again there.
    fn keep_failing(&mut self, verdicts: &[(Place, Verdict)]) {
        let writes = verdicts.iter().filter(|(_, verdict)| rank(verdict).or(delete_rank(verdict)).is_some());
        let places: HashSet<Spot> = writes.map(|(place, _)| spot(place)).collect();
        self.failing.retain(|spot, _| places.contains(spot));
    }

    /// The namespaces that still lack the Secret that they should have.
    fn unmet<'v>(&self, verdicts: &'v [(Place, Verdict)]) -> HashSet<&'v Arc<str>> {
        let lacks = |(place, verdict): &&(Place, Verdict)| match verdict {
            Verdict::Wait | Verdict::Refuse(..) => true,
            Verdict::Create | Verdict::Update(_) => self.failing.contains_key(&spot(place)),
            Verdict::Keep | Verdict::Delete(_) => false,
        };
        verdicts.iter().filter(lacks).map(|(place, _)| &place.namespace).collect()
    }

    /// Remembers what became of a place.
    fn note(
        &mut self,
        place: &Place,
        result: Result<Written, WriteError>,
        desired: Option<&Desired>,
        ctx: &Context,
        now: Timestamp,
    ) {
        let spot = spot(place);
        let count = self.failing.get(&spot).map_or(1, |failing| failing.count.saturating_add(1));
        let (shown, wait) = match result {
            Ok(Written::Stored(record)) => {
                if desired.is_some_and(|d| d.footprint != record.footprint) {
                    self.accepted.insert(record.footprint);
                }
                self.failing.remove(&spot);
                return;
            }
            Ok(Written::Deleted) | Err(WriteError::NamespaceGone) => {
                self.failing.remove(&spot);
                return;
            }
            // Once is nothing: the watch was behind. Again and again is worth a word.
            Err(WriteError::Stale) if count < 5 => (None, STALE_WAIT),
            Err(WriteError::Stale) => {
                let message = "the Secret changes faster than it can be written: see who else writes it".to_owned();
                (Some((Reason::ApiError, message)), ctx.retry.delay(count, 1, &place.namespace))
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                (Some((reason, message)), ctx.retry.delay(count, 1, &place.namespace))
            }
        };
        let seen = place.standing.version();
        self.failing.insert(spot, Failing { count, retry_at: Some(later(now, wait)), shown, seen });
    }
}

impl Failing {
    /// Whether to try again: the wait is over, or the Secret there has changed since.
    fn may_retry(&self, place: &Place, now: Timestamp) -> bool {
        self.retry_at.is_none_or(|at| at <= now) || self.seen != place.standing.version()
    }
}

fn spot(place: &Place) -> Spot {
    (place.name.clone(), place.namespace.clone())
}

/// What is known of each place where the last write failed.
pub(super) type FailingByPlace = HashMap<Spot, Failing>;
