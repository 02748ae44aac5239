//! Compares target Secrets with what they should be: those that an event has touched, or all of them in a resync.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

use super::cluster_state::{Change, ClusterState};
use super::desired_secrets::DesiredSecrets;
use super::retry_state::{Resync, RetryState};
use super::sync_ledger::{SyncCounts, SyncState};
use super::work_queue::WritePriority;
use crate::clock::Clock;
use crate::plan::Plan;
use crate::plan::outputs::output_not_allowed;
use crate::plan::scopes::SecretKey;
use crate::secret::ownership::{Ownership, Trust};
use crate::secret::{Now, Owner, SecretAction, SecretTarget, action};

/// What one reconciliation compares with, and what it may use for that.
pub(super) struct Diff<'a> {
    pub(super) state: &'a Mutex<ClusterState>,
    pub(super) clock: &'a Clock,
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    /// The generation of the spec that the reconciliation works on.
    pub(super) generation: Option<i64>,
    pub(super) desired: &'a DesiredSecrets,
}

/// The `EcrCredential` has changed or is gone, or has gained a namespace that needs tokens of its own. Another reconciliation is
/// queued.
pub(super) struct Superseded;

/// A write that may begin now.
type DueWrite = (WritePriority, SecretTarget, SecretAction);

/// What is to be done about one Secret, and how it counts.
struct Assessment {
    /// The write that is due now.
    due: Option<DueWrite>,
    /// Whether there is something to write, now or later.
    unwritten: bool,
    /// Whether time alone may change what is to be done.
    expires: bool,
    /// Until when its tokens are valid, if it is wanted and stays as it is for now.
    kept_until: Option<Timestamp>,
    counts: SyncState,
}

impl Diff<'_> {
    /// Examines every Secret that may have changed since the last call, and queues those that are to be written: all of them unless
    /// `resynced` is still good. Where it ends early, the next call examines the same again.
    pub(super) fn sync(&self, retries: &mut RetryState, resynced: &mut Option<Resync>) -> Result<(), Superseded> {
        let (me, now) = (&self.owner.uid, self.now());
        let mut state = self.current_state()?;
        let touched = state.take_touched(me);
        retries.shown.extend(touched.changes);
        let everything = retries.follow_clock(now.time) || touched.everything;
        *resynced = resynced.filter(|last| !everything && last.is_current(self.generation, now.time));
        let keys_of = |changes: &BTreeSet<Change>| -> BTreeSet<SecretKey> {
            changes.iter().flat_map(|change| state.keys_of(me, change)).collect()
        };
        if resynced.is_none() {
            retries.begin_resync(now.time, |key| state.is_concerned(me, key));
            self.queue(&state, state.keys(me), false, retries, now)?;
            *resynced = Some(Resync { generation: self.generation, at: now.time });
        } else {
            self.queue(&state, keys_of(retries.unexamined(now.time)), false, retries, now)?;
        }
        self.queue(&state, keys_of(&retries.shown), true, retries, now)?;
        retries.examined();
        Ok(())
    }

    /// The state of the cluster, while the `EcrCredential` is as it was when the reconciliation began. To one that is gone, all of
    /// its Secrets would seem left over.
    fn current_state(&self) -> Result<MutexGuard<'_, ClusterState>, Superseded> {
        let state = self.state.lock();
        if state.is_current(&self.owner.uid, self.generation) { Ok(state) } else { Err(Superseded) }
    }

    /// Examines some Secrets and queues those that are to be written. Where an event has just `shown` that one is missing, which was
    /// not tried yet, it goes first.
    fn queue(
        &self,
        state: &ClusterState,
        keys: impl IntoIterator<Item = SecretKey>,
        shown: bool,
        retries: &mut RetryState,
        now: Now,
    ) -> Result<(), Superseded> {
        for key in keys {
            match self.examine(state, &key, retries, now)? {
                Some((WritePriority::Create, ..)) if shown && !retries.is_failing(&key) => {
                    retries.queue.insert((WritePriority::Urgent, key));
                }
                Some((priority, ..)) => {
                    retries.queue.insert((priority, key));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Whether every Secret has been examined since it has changed, and nothing is left to be written.
    pub(super) fn is_settled(&self, retries: &RetryState) -> bool {
        retries.is_settled() && self.current_state().is_ok_and(|state| !state.is_touched(&self.owner.uid))
    }

    /// The counts, unless a Secret has changed since it was examined.
    pub(super) fn counts(&self, retries: &RetryState) -> Option<SyncCounts> {
        let state = self.current_state().ok().filter(|state| !state.is_touched(&self.owner.uid))?;
        Some(retries.ledger.counts(state.index.secrets(&self.owner.uid)))
    }

    /// The next write from the queue that is still to be done. `has_room` says whether one of a priority may begin.
    pub(super) fn next_write(
        &self,
        retries: &mut RetryState,
        has_room: impl Fn(&RetryState, WritePriority) -> bool,
    ) -> Result<Option<(SecretTarget, SecretAction)>, Superseded> {
        let now = self.now();
        while retries.queue.first().is_some_and(|(priority, _)| has_room(retries, *priority)) {
            let Some((priority, key)) = retries.queue.pop_first() else { break };
            let due = self.current_state().and_then(|state| self.examine(&state, &key, retries, now));
            let Ok(due) = due else {
                retries.queue.insert((priority, key));
                return Err(Superseded);
            };
            match due {
                // It can wait longer than it could when it was queued.
                Some((current, ..)) if current > priority.max(WritePriority::Create) => {
                    retries.queue.insert((current, key));
                }
                Some((_, target, action)) => return Ok(Some((target, action))),
                None => {}
            }
        }
        Ok(None)
    }

    fn now(&self) -> Now {
        Now { earliest: self.clock.earliest(), time: self.clock.now(), latest: self.clock.latest() }
    }

    /// Records how a Secret counts now; returns the write that is due, if any.
    fn examine(
        &self,
        state: &ClusterState,
        key: &SecretKey,
        retries: &mut RetryState,
        now: Now,
    ) -> Result<Option<DueWrite>, Superseded> {
        let mut assessment = self.assess(state, key, retries, now)?;
        if !assessment.unwritten && retries.forget_failure(key, assessment.counts.selected, now.time) {
            // It counts without its failure.
            assessment = self.assess(state, key, retries, now)?;
        }
        let Assessment { due, unwritten, expires, kept_until, counts } = assessment;
        if !counts.selected {
            retries.forget_accepted(key);
            if !unwritten {
                // The namespace was deselected or is going. If it comes back, nobody else has changed its Secret. What was deleted
                // there is not forgotten: somebody else may create it again.
                retries.forget_repairs(key);
            }
        }
        retries.schedule(key, expires, now.time);
        retries.keep_until(key, kept_until);
        retries.ledger.record(key.clone(), counts);
        Ok(due)
    }

    fn assess(
        &self,
        state: &ClusterState,
        key: &SecretKey,
        retries: &RetryState,
        now: Now,
    ) -> Result<Assessment, Superseded> {
        let me = &self.owner.uid;
        let Some(target) = state.target(me, key) else {
            let is_denied = state.index.is_denied(me, &key.name, &key.namespace);
            let counts = if is_denied { self.denied(key) } else { SyncState::default() };
            return Ok(Assessment { due: None, unwritten: false, expires: false, kept_until: None, counts });
        };
        if !self.desired.covers(&target) {
            return Err(Superseded);
        }
        let action = self.action(&target, retries, now);
        let waits = self.waits_for_includes_alone(&target, &action, retries);
        let counted = if waits { &SecretAction::Keep } else { &action };
        let counts = retries.sync_state(&target, counted, self.desired, now.time);
        let expires = self.is_kept_for_now(&target, &action, retries);
        let record = target.ownership.record().filter(|_| expires && counts.selected);
        let kept_until = record.and_then(|record| now.validity(record));
        let priority = WritePriority::of(&action);
        let early = || {
            priority == Some(WritePriority::Delete)
                && !target.holds_anothers_token()
                && self.is_unmet(state, &target, retries, now)
        };
        let due = priority.filter(|_| !early() && retries.may_write(&target, now.time));
        let due = due.map(|priority| (priority, target, action));
        Ok(Assessment { due, unwritten: priority.is_some(), expires, kept_until, counts })
    }

    /// Whether a Secret that is not as desired is left as it is: its tokens are still good, and that ends.
    fn is_kept_for_now(&self, target: &SecretTarget, action: &SecretAction, retries: &RetryState) -> bool {
        let Some(record) = target.ownership.record() else { return false };
        let as_desired = || self.desired.at(target).is_some_and(|desired| desired.digest_of(record) == record.digest);
        matches!(action, SecretAction::Keep | SecretAction::Wait)
            && !as_desired()
            && retries.accepted(target) != Some(record.digest)
    }

    /// Whether a Secret has a valid token of every registry, and waits only because it may have entries of an included docker config
    /// that is missing since a restart. Its metadata does not tell which hosts it has: the process before has said that they are all
    /// there.
    fn waits_for_includes_alone(&self, target: &SecretTarget, action: &SecretAction, retries: &RetryState) -> bool {
        *action == SecretAction::Wait
            && retries.synced_before.is_some_and(|generation| self.generation == Some(generation))
            && matches!(&target.ownership, Ownership::Owned(record) if record.trust != Trust::Forged)
            && self.desired.at(target).is_some_and(|desired| desired.lacks_includes)
    }

    /// How a Secret counts whose namespace is selected and in which it may not be written.
    fn denied(&self, key: &SecretKey) -> SyncState {
        let SecretKey { namespace, name } = key;
        let Some(secret) = self.plan.secret_named(name) else { return SyncState::default() };
        let denied = || output_not_allowed(name, secret.format, namespace);
        let why = secret.refusal.clone().unwrap_or_else(denied);
        SyncState { selected: true, problem: Some((why.reason, why.message)), ..SyncState::default() }
    }

    /// Whether an old Secret has to stay, because a new one of its format is not yet there in its namespace.
    fn is_unmet(&self, state: &ClusterState, old: &SecretTarget, retries: &RetryState, now: Now) -> bool {
        let format = old.ownership.record().map(|record| record.format);
        let alike = self.plan.secrets().filter(|secret| Some(secret.format) == format);
        let mut keys = alike.map(|secret| SecretKey::new(secret.name.clone(), old.namespace.clone()));
        keys.any(|key| {
            state.target(&self.owner.uid, &key).is_some_and(|target| {
                let action = self.action(&target, retries, now);
                !matches!(action, SecretAction::Keep | SecretAction::Delete(_)) || retries.in_flight.is_at(&key)
            })
        })
    }

    fn action(&self, target: &SecretTarget, retries: &RetryState, now: Now) -> SecretAction {
        let desired = self.desired.at(target).map(AsRef::as_ref);
        match action(target, desired, self.plan.conflict_policy, retries.accepted(target), now) {
            // A Secret that holds shared tokens alone does not depend on the identity of the namespace.
            SecretAction::Create
                if desired.is_some_and(|desired| desired.of_one_namespace)
                    && self.desired.share(target).is_some_and(|share| !share.current) =>
            {
                SecretAction::Wait
            }
            action => action,
        }
    }
}

#[cfg(test)]
mod tests;
