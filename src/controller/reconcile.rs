//! One round for one `EcrCredential`: plan, tokens, desired Secret, writes, outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::error::Error;
use super::recover::recover;
use super::writes::{self, Tally, Task};
use super::{Context, Memory, Requested};
use crate::api::{EcrCredential, EcrCredentialStatus, REFRESH_REQUESTED_AT};
use crate::outcome::{Course, NamespaceReport, Outcome, RegistryReport, conclude};
use crate::plan::refresh::{Demand, Held, Step, step};
use crate::plan::{self, Hosts, Plan, TokenKey, Uid};
use crate::secret::{Owner, registry_entries};
use crate::token::cache::Snapshot;
use crate::token::{Grant, TokenHash};

/// When to look again at writes that are slow.
const SOON: Duration = Duration::from_secs(1);

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
    let course = match round.course(&mut memory).await? {
        Turn::Told(course) => course,
        Turn::Wait => return Ok(Action::await_change()),
        Turn::Soon => return Ok(Action::requeue(SOON)),
    };
    let outcome = conclude(course, &status, object.meta().generation, (ctx.now)());
    round.report(outcome, &mut memory).await
}

/// What a round comes to.
enum Turn {
    /// Something to tell.
    Told(Course),
    /// Nothing to say before something else happens, which puts it on the queue again.
    Wait,
    /// Nothing to say before the writes that are slow have ended.
    Soon,
}

struct Round<'a> {
    object: &'a EcrCredential,
    ctx: &'a Arc<Context>,
    uid: &'a Uid,
    status: &'a EcrCredentialStatus,
}

impl Round<'_> {
    /// The round itself.
    async fn course(&self, memory: &mut Memory) -> Result<Turn, Error> {
        let plan = match plan::plan(&self.object.spec, &self.ctx.limits) {
            Ok(plan) => plan,
            Err(halt) => return Ok(Turn::Told(Course::Halted(halt))),
        };
        if self.object.spec.suspend {
            return Ok(Turn::Told(Course::Suspended));
        }
        recover(self.ctx, self.uid, &plan, self.status, memory, (self.ctx.now)()).await?;
        let step = self.tokens(&plan, memory);
        if step.incomplete && self.is_first_try(&plan, memory) {
            return Ok(Turn::Wait);
        }
        let task = Task {
            plan: &plan,
            owner: Owner { name: self.object.name_any(), uid: self.uid.clone() },
            template: &self.object.spec.secret,
            generation: self.object.meta().generation,
        };
        match writes::write(self.ctx, &task, &memory.published, &mut memory.history).await {
            Ok(writes::Round::Done(tally)) => Ok(Turn::Told(self.ran(&plan, &step, tally, memory))),
            Ok(writes::Round::Slow) => Ok(Turn::Soon),
            Ok(writes::Round::Superseded) => Ok(Turn::Wait),
            Err(halt) => Ok(Turn::Told(Course::Halted(halt))),
        }
    }

    /// Fetches what is due and publishes what has come.
    fn tokens(&self, plan: &Plan, memory: &mut Memory) -> Step {
        let now = (self.ctx.now)();
        let keys = plan.keys();
        memory.published.retain(|key, _| keys.contains(key));
        self.ctx.memories.want(self.uid, keys.iter().map(|key| (*key).clone()).collect());
        forget_without_caller(plan, memory);
        let demand = self.demand(memory, now);
        // One look for the decision and for the act: between two, a token could be forgotten that another one's end left
        // without a user.
        let known: BTreeMap<&TokenKey, Snapshot> = keys.iter().map(|key| (*key, self.ctx.tokens.look(key))).collect();
        let held: BTreeMap<TokenKey, Held> =
            known.iter().map(|(key, known)| ((*key).clone(), held(known, memory.published.get(*key)))).collect();
        let step = step(&plan.refresh, &self.uid.0, now, demand, &held);
        for key in &step.fetch {
            self.ctx.tokens.request(key, self.uid);
        }
        for (key, _) in held.iter().filter(|(_, held)| held.in_flight) {
            self.ctx.tokens.join(key, self.uid);
        }
        for key in &step.publish {
            if let Some(grant) = known.get(key).and_then(|known| known.grant.clone()) {
                memory.published.insert(key.clone(), grant);
            }
        }
        if let Some(demand) = &mut memory.demand {
            demand.first = false;
        }
        step
    }

    /// The refresh on demand that is not served yet, if any. Each value of the annotation is served once, also across
    /// restarts; on an object that was never refreshed there is nothing to renew.
    fn demand(&self, memory: &mut Memory, now: Timestamp) -> Option<Demand> {
        let value = self.object.annotations().get(REFRESH_REQUESTED_AT)?;
        if self.status.handled_refresh_request.as_ref() == Some(value) || memory.published.is_empty() {
            memory.demand = None;
            return None;
        }
        let second = plan::schedule::whole_seconds(now);
        let known = memory.demand.take().filter(|demand| demand.value == *value);
        let mut demand =
            known.unwrap_or_else(|| Requested { value: value.clone(), since: second, first: true, served: false });
        // A clock that was set back must not make every new token too old.
        demand.since = demand.since.min(second);
        let demand = memory.demand.insert(demand);
        (!demand.served).then_some(Demand { since: demand.since, first: demand.first })
    }

    /// Whether the tokens that are missing are being fetched for the first time.
    fn is_first_try(&self, plan: &Plan, memory: &Memory) -> bool {
        let missing = plan.keys().into_iter().filter(|key| !memory.published.contains_key(*key));
        missing.map(|key| self.ctx.tokens.look(key)).all(|known| known.failure.is_none())
    }

    fn ran(&self, plan: &Plan, step: &Step, tally: Tally, memory: &mut Memory) -> Course {
        let now = (self.ctx.now)();
        let registries = plan.registries.iter().map(|registry| self.report_registry(registry, memory)).collect();
        let seed = &self.uid.0;
        let next_refresh_at = memory.published.values().map(|grant| plan.refresh.due_at(grant.life, seed)).min();
        Course::Ran {
            registries,
            namespaces: NamespaceReport { selected: tally.selected, synced: tally.synced, failures: tally.failures },
            next_refresh_at,
            look_again: memory.history.retry_at(now).into_iter().chain(step.look_again).min(),
            handled_refresh_request: self.handled(step, memory),
        }
    }

    /// The refresh request that is served now. What is fresh serves whatever was asked; what is not leaves it as it was.
    fn handled(&self, step: &Step, memory: &mut Memory) -> Option<String> {
        let before = || self.status.handled_refresh_request.clone();
        if step.fresh {
            if let Some(demand) = &mut memory.demand {
                demand.served = true;
            }
            return self.object.annotations().get(REFRESH_REQUESTED_AT).cloned().or_else(before);
        }
        memory.demand.as_ref().filter(|demand| demand.served).map(|demand| demand.value.clone()).or_else(before)
    }

    fn report_registry(&self, registry: &plan::RegistryPlan, memory: &Memory) -> RegistryReport {
        let grants: Vec<_> = registry.keys.iter().filter_map(|key| memory.published.get(key)).collect();
        let entries = registry_entries(registry, &memory.published);
        let complete = grants.len() == registry.keys.len();
        let life = complete.then(|| grants.iter().map(|grant| grant.life).reduce(shortest)).flatten();
        let failure = registry.keys.iter().find_map(|key| self.ctx.tokens.look(key).failure).map(|f| f.error);
        // Hosts that cannot be told come of a token without an account, and such a one is not published.
        let entries = entries.unwrap_or_default();
        let fingerprint = registry.keys.first().map(|key| self.ctx.tokens.fingerprint(key)).unwrap_or_default();
        let hash = TokenHash::of(&fingerprint, entries.iter().map(|(host, auth)| (host.as_str(), *auth)));
        RegistryReport {
            region: registry.region(),
            hosts: entries.into_iter().map(|(host, _)| host).collect(),
            token: life.map(|life| (life, hash)),
            failure,
        }
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
                Err(source) => {
                    memory.status_failures = memory.status_failures.saturating_add(1);
                    let wait = self.ctx.retry.delay(memory.status_failures, 3, &self.uid.0);
                    return Err(Error::Status { source, wait });
                }
            }
        }
        memory.status_failures = 0;
        for note in outcome.notes {
            self.ctx.events.send(self.object, note);
        }
        if self.ctx.shared.world.lock().index.is_alive(self.uid) {
            self.ctx.observer.concluded(self.uid, &outcome.status);
        }
        Ok(Action::requeue(outcome.requeue_after))
    }
}

fn held(known: &Snapshot, published: Option<&Arc<Grant>>) -> Held {
    Held {
        published: published.map(|grant| grant.life),
        cached: known.grant.as_ref().map(|grant| grant.life),
        in_flight: known.in_flight,
        retry_at: known.failure.as_ref().map(|failure| failure.retry_at),
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
