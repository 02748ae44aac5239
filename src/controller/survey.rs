//! One look at all places of an `EcrCredential`: what is to be written there, and what is told of them.

use std::collections::{HashSet, VecDeque};

use k8s_openapi::jiff::Timestamp;

use super::Context;
use super::history::{History, Tally};
use super::under_way::spot;
use super::world::{Spot, World};
use super::writes::Content;
use crate::plan::Plan;
use crate::plan::outputs::output_not_allowed;
use crate::secret::{Owner, Place, Verdict, verdict};

/// What one round is about.
pub(super) struct Task<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    /// The generation of the spec that the round works on.
    pub(super) generation: Option<i64>,
}

/// What a look at all places has found.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) jobs: Jobs,
    pub(super) tally: Tally,
}

/// The order of writes. Missing Secrets go first: someone is waiting for them, while those that exist are still good.
/// Deletions come when nothing else is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    Create,
    Repair,
    Delete,
}

impl Rank {
    /// That of what is to be done in a place; none when nothing is.
    const fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Create => Some(Self::Create),
            Verdict::Update(_) | Verdict::Strip(_) => Some(Self::Repair),
            Verdict::Delete(_) => Some(Self::Delete),
            Verdict::Keep | Verdict::Wait | Verdict::Refuse(..) => None,
        }
    }
}

/// Where something is to be written, by rank. What exactly is judged anew when its turn comes: thousands of places are kept
/// here, and the world moves on.
#[derive(Default)]
pub(super) struct Jobs {
    creations: VecDeque<Spot>,
    repairs: VecDeque<Spot>,
    deletions: VecDeque<Spot>,
}

impl Jobs {
    fn push(&mut self, rank: Rank, spot: Spot) {
        match rank {
            Rank::Create => self.creations.push_back(spot),
            Rank::Repair => self.repairs.push_back(spot),
            Rank::Delete => self.deletions.push_back(spot),
        }
    }

    pub(super) fn pop(&mut self) -> Option<(Rank, Spot)> {
        let creation = self.creations.pop_front().map(|spot| (Rank::Create, spot));
        let repair = || self.repairs.pop_front().map(|spot| (Rank::Repair, spot));
        let deletion = || self.deletions.pop_front().map(|spot| (Rank::Delete, spot));
        creation.or_else(repair).or_else(deletion)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.creations.is_empty() && self.repairs.is_empty() && self.deletions.is_empty()
    }
}

impl Task<'_> {
    /// Looks at every place, as the world is now; none when the `EcrCredential` has changed or gone, or has gained a namespace
    /// that needs tokens of its own. The places are not collected: that would be the most that is in memory for each.
    pub(super) fn survey(&self, ctx: &Context, content: &Content, history: &mut History) -> Option<Survey> {
        let (now, earliest) = (ctx.clock.now(), ctx.clock.earliest());
        history.forgive(now);
        let mut survey = Survey::default();
        let mut failing = HashSet::new();
        let world = ctx.shared.world.lock();
        for place in world.places(&self.owner.uid, self.generation)? {
            if !content.covers(&place) {
                return None;
            }
            let verdict = self.judge(&place, content, history, earliest);
            if let Some(rank) = Rank::of(&verdict) {
                let early = rank == Rank::Delete && self.is_unmet(&world, &place, content, history, earliest);
                if !early && history.may_write(&place, now) {
                    survey.jobs.push(rank, spot(&place));
                }
                if history.has_failed() {
                    failing.insert(spot(&place));
                }
            } else {
                history.forget_failure(&place);
            }
            history.count(&mut survey.tally, &place, &verdict, content);
        }
        for (name, namespace) in world.index.denied(&self.owner.uid) {
            if let Some(secret) = self.plan.secret_named(name) {
                let denied = || output_not_allowed(name, secret.format, Some(namespace), "");
                survey.tally.deny(name, namespace, &secret.refusal.clone().unwrap_or_else(denied));
            }
        }
        history.retain_failures(&failing);
        history.retain_accepted(|(name, namespace)| world.index.wants(&self.owner.uid, name, namespace));
        Some(survey)
    }

    /// An old Secret stays until the new ones of its format are there in its namespace.
    fn is_unmet(&self, world: &World, old: &Place, content: &Content, history: &History, earliest: Timestamp) -> bool {
        let format = old.standing.record().map(|record| record.format);
        let alike = self.plan.secrets().filter(|secret| Some(secret.format) == format);
        let places = alike.filter_map(|secret| self.place_at(world, &(secret.name.clone(), old.namespace.clone())));
        places.into_iter().any(|place| {
            let verdict = self.judge(&place, content, history, earliest);
            !matches!(verdict, Verdict::Keep | Verdict::Delete(_)) || history.under_way.is_at(&spot(&place))
        })
    }

    /// What is to be done in a place that is due, as the world is now; none when that is nothing of this rank any more.
    pub(super) fn still_due(
        &self,
        ctx: &Context,
        (rank, spot): (Rank, Spot),
        content: &Content,
        history: &History,
    ) -> Option<(Place, Verdict)> {
        let place = self.place_at(&ctx.shared.world.lock(), &spot)?;
        let verdict = self.judge(&place, content, history, ctx.clock.earliest());
        (Rank::of(&verdict) == Some(rank) && history.may_write(&place, ctx.clock.now())).then_some((place, verdict))
    }

    /// The Secrets that the next new namespace lacks.
    pub(super) fn next_urgent(
        &self,
        ctx: &Context,
        content: &Content,
        history: &History,
    ) -> Option<Vec<(Place, Verdict)>> {
        loop {
            let namespace = ctx.shared.world.lock().next_news(&self.owner.uid)?;
            let spots = self.plan.secrets().map(|secret| (secret.name.clone(), namespace.clone()));
            let urgent: Vec<_> =
                spots.filter_map(|spot| self.still_due(ctx, (Rank::Create, spot), content, history)).collect();
            if !urgent.is_empty() {
                return Some(urgent);
            }
        }
    }

    fn place_at(&self, world: &World, spot: &Spot) -> Option<Place> {
        world.place_at(&self.owner.uid, self.generation, spot)
    }

    /// `earliest` is the time that has passed by every clock: what is good is written over only when it has expired by it.
    fn judge(&self, place: &Place, content: &Content, history: &History, earliest: Timestamp) -> Verdict {
        let desired = content.at(place).map(AsRef::as_ref);
        match verdict(place, desired, self.plan.conflict_policy, history.accepted(place), earliest) {
            Verdict::Create if content.share(place).is_some_and(|share| !share.current) => Verdict::Wait,
            verdict => verdict,
        }
    }
}
