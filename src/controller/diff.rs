//! One look at all places of an `EcrCredential`: what is to be written there, and what is told of them.

use std::collections::{HashSet, VecDeque};

use k8s_openapi::jiff::Timestamp;

use super::Context;
use super::cluster_state::{ClusterState, SecretKey};
use super::in_flight::spot;
use super::retry_state::{RetryState, SyncCounts};
use super::writes::DesiredSecrets;
use crate::plan::Plan;
use crate::plan::outputs::output_not_allowed;
use crate::secret::{Owner, SecretAction, SecretTarget, action};

/// What one round is about.
pub(super) struct Task<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    /// The generation of the spec that the round works on.
    pub(super) generation: Option<i64>,
}

/// What a look at all places has found.
#[derive(Default)]
pub(super) struct Diff {
    pub(super) jobs: WorkQueue,
    pub(super) counts: SyncCounts,
}

/// The order of writes. Missing Secrets go first: someone is waiting for them, while those that exist are still good.
/// Deletions come when nothing else is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WritePriority {
    Create,
    Repair,
    Delete,
}

impl WritePriority {
    /// That of what is to be done in a place; none when nothing is.
    const fn of(action: &SecretAction) -> Option<Self> {
        match action {
            SecretAction::Create => Some(Self::Create),
            SecretAction::Update(_) | SecretAction::Strip(_) => Some(Self::Repair),
            SecretAction::Delete(_) => Some(Self::Delete),
            SecretAction::Keep | SecretAction::Wait | SecretAction::Refuse(..) => None,
        }
    }
}

/// Where something is to be written, by rank. What exactly is judged anew when its turn comes: thousands of places are kept
/// here, and the world moves on.
#[derive(Default)]
pub(super) struct WorkQueue {
    creations: VecDeque<SecretKey>,
    repairs: VecDeque<SecretKey>,
    deletions: VecDeque<SecretKey>,
}

impl WorkQueue {
    fn push(&mut self, rank: WritePriority, spot: SecretKey) {
        match rank {
            WritePriority::Create => self.creations.push_back(spot),
            WritePriority::Repair => self.repairs.push_back(spot),
            WritePriority::Delete => self.deletions.push_back(spot),
        }
    }

    pub(super) fn pop(&mut self) -> Option<(WritePriority, SecretKey)> {
        let creation = self.creations.pop_front().map(|spot| (WritePriority::Create, spot));
        let repair = || self.repairs.pop_front().map(|spot| (WritePriority::Repair, spot));
        let deletion = || self.deletions.pop_front().map(|spot| (WritePriority::Delete, spot));
        creation.or_else(repair).or_else(deletion)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.creations.is_empty() && self.repairs.is_empty() && self.deletions.is_empty()
    }
}

impl Task<'_> {
    /// Looks at every place, as the world is now; none when the `EcrCredential` has changed or gone, or has gained a namespace
    /// that needs tokens of its own. The places are not collected: that would be the most that is in memory for each.
    pub(super) fn diff(&self, ctx: &Context, content: &DesiredSecrets, history: &mut RetryState) -> Option<Diff> {
        let (now, earliest) = (ctx.clock.now(), ctx.clock.earliest());
        history.forgive(now);
        let mut diff = Diff::default();
        let mut failing = HashSet::new();
        let world = ctx.shared.state.lock();
        for place in world.places(&self.owner.uid, self.generation)? {
            if !content.covers(&place) {
                return None;
            }
            let action = self.judge(&place, content, history, earliest);
            if let Some(rank) = WritePriority::of(&action) {
                let early = rank == WritePriority::Delete && self.is_unmet(&world, &place, content, history, earliest);
                if !early && history.may_write(&place, now) {
                    diff.jobs.push(rank, spot(&place));
                }
                if history.has_failed() {
                    failing.insert(spot(&place));
                }
            } else {
                history.forget_failure(&place);
            }
            history.count(&mut diff.counts, &place, &action, content);
        }
        for (name, namespace) in world.index.denied(&self.owner.uid) {
            if let Some(secret) = self.plan.secret_named(name) {
                let denied = || output_not_allowed(name, secret.format, Some(namespace), "");
                diff.counts.deny(name, namespace, &secret.refusal.clone().unwrap_or_else(denied));
            }
        }
        history.retain_failures(&failing);
        history.retain_accepted(|(name, namespace)| world.index.wants(&self.owner.uid, name, namespace));
        Some(diff)
    }

    /// An old Secret stays until the new ones of its format are there in its namespace.
    fn is_unmet(
        &self,
        world: &ClusterState,
        old: &SecretTarget,
        content: &DesiredSecrets,
        history: &RetryState,
        earliest: Timestamp,
    ) -> bool {
        let format = old.ownership.record().map(|record| record.format);
        let alike = self.plan.secrets().filter(|secret| Some(secret.format) == format);
        let places = alike.filter_map(|secret| self.place_at(world, &(secret.name.clone(), old.namespace.clone())));
        places.into_iter().any(|place| {
            let action = self.judge(&place, content, history, earliest);
            !matches!(action, SecretAction::Keep | SecretAction::Delete(_)) || history.in_flight.is_at(&spot(&place))
        })
    }

    /// What is to be done in a place that is due, as the world is now; none when that is nothing of this rank any more.
    pub(super) fn still_due(
        &self,
        ctx: &Context,
        (rank, spot): (WritePriority, SecretKey),
        content: &DesiredSecrets,
        history: &RetryState,
    ) -> Option<(SecretTarget, SecretAction)> {
        let place = self.place_at(&ctx.shared.state.lock(), &spot)?;
        let action = self.judge(&place, content, history, ctx.clock.earliest());
        (WritePriority::of(&action) == Some(rank) && history.may_write(&place, ctx.clock.now()))
            .then_some((place, action))
    }

    /// The Secrets that the next new namespace lacks.
    pub(super) fn next_urgent(
        &self,
        ctx: &Context,
        content: &DesiredSecrets,
        history: &RetryState,
    ) -> Option<Vec<(SecretTarget, SecretAction)>> {
        loop {
            let namespace = ctx.shared.state.lock().next_news(&self.owner.uid)?;
            let spots = self.plan.secrets().map(|secret| (secret.name.clone(), namespace.clone()));
            let urgent: Vec<_> =
                spots.filter_map(|spot| self.still_due(ctx, (WritePriority::Create, spot), content, history)).collect();
            if !urgent.is_empty() {
                return Some(urgent);
            }
        }
    }

    fn place_at(&self, world: &ClusterState, spot: &SecretKey) -> Option<SecretTarget> {
        world.place_at(&self.owner.uid, self.generation, spot)
    }

    /// `earliest` is the time that has passed by every clock: what is good is written over only when it has expired by it.
    fn judge(
        &self,
        place: &SecretTarget,
        content: &DesiredSecrets,
        history: &RetryState,
        earliest: Timestamp,
    ) -> SecretAction {
        let desired = content.at(place).map(AsRef::as_ref);
        match action(place, desired, self.plan.conflict_policy, history.accepted(place), earliest) {
            SecretAction::Create if content.share(place).is_some_and(|share| !share.current) => SecretAction::Wait,
            action => action,
        }
    }
}
