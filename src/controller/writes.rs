//! The writes of one round: what each place should hold, which come first, and when the round is over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::Context;
use super::history::{History, Tally};
use super::under_way::spot;
use super::world::{Spot, World};
use crate::plan::targets::Incarnation;
use crate::plan::{Halt, Plan};
use crate::secret::{self, Desired, Owner, Place, Verdict, verdict};

/// A look at all places takes time that grows with their number. While writes are under way, the next one waits for so many
/// times that long: thousands of namespaces that are labelled at once must not cost a look each.
const LOOK_PAUSE: u32 = 20;

/// How long a round waits for writes of which none ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the target namespaces should hold.
pub(super) enum Content {
    /// All of them the same.
    Alike(Option<Arc<Desired>>),
    /// Each its own.
    Each(HashMap<Arc<str>, Share>),
}

/// What one namespace should hold.
pub(super) struct Share {
    /// Which of the namespaces that had this name it is for.
    pub(super) incarnation: Incarnation,
    pub(super) desired: Option<Arc<Desired>>,
    /// Whether the identities behind it are those of now. While they are not, a Secret that is there stays, but none is made:
    /// the namespace may be another by now, and its end not heard of.
    pub(super) current: bool,
    /// Why it has no valid password for one of the registries.
    pub(super) lacks: Option<Halt>,
    /// Why its passwords could not be renewed.
    pub(super) failure: Option<Halt>,
}

impl Content {
    pub(super) fn share(&self, place: &Place) -> Option<&Share> {
        match self {
            Self::Alike(_) => None,
            Self::Each(shares) => shares.get(&place.namespace).filter(|share| share.incarnation == place.incarnation),
        }
    }

    pub(super) fn at(&self, place: &Place) -> Option<&Arc<Desired>> {
        match self {
            Self::Alike(desired) => desired.as_ref(),
            Self::Each(_) => self.share(place)?.desired.as_ref(),
        }
    }

    /// Whether it is known what a place should hold.
    fn covers(&self, place: &Place) -> bool {
        match self {
            Self::Alike(_) => true,
            Self::Each(_) => place.claim != secret::Claim::Wanted || self.share(place).is_some(),
        }
    }
}

/// How a round of writes ended.
pub(super) enum Round {
    /// Every place is as it should be or has failed.
    Done(Tally),
    /// Nothing is left but writes that are slow. It is to be looked at again soon; there is a tally if some hang.
    Slow(Option<Tally>),
    /// The `EcrCredential` is not what it was when the round began, and the next round is queued; or the process is ending.
    Superseded,
}

/// Writes until every place is as it should be, has failed, or is slow.
pub(super) async fn write(ctx: &Arc<Context>, task: &Task<'_>, content: &Content, history: &mut History) -> Round {
    history.expect(content);
    let mut jobs: VecDeque<(Place, Verdict)> = VecDeque::new();
    let mut looked_at = None;
    let mut look_after = Instant::now();
    loop {
        // Before the look at the revision, so that no change falls in between.
        let mut woken = std::pin::pin!(ctx.shared.news());
        woken.as_mut().enable();
        let urgent = task.urgent(ctx, content, history);
        if !urgent.is_empty() {
            for (place, verdict) in urgent {
                begin(ctx, task, content, history, place, verdict);
            }
            // They are sent before all the others are looked at.
            tokio::task::yield_now().await;
        }
        let revision = ctx.shared.world.lock().revision(&task.owner.uid);
        let (begun, idle) = (Instant::now(), jobs.is_empty() && history.under_way.is_empty());
        let mut behind = looked_at != Some(revision);
        if idle || (behind && begun >= look_after) {
            behind = false;
            let again = looked_at.replace(revision) == Some(revision);
            let Some(verdicts) = task.verdicts(ctx, content, history) else { return Round::Superseded };
            jobs = history.jobs(&verdicts, (ctx.now)());
            if jobs.is_empty() && history.under_way.is_empty() {
                return Round::Done(history.tally(&verdicts, content));
            }
            if again {
                // Everything planned was done and something is left: new since, or it failed in a way that lets it be
                // tried at once. Others get their turn first.
                tokio::task::yield_now().await;
            }
            look_after = Instant::now() + begun.elapsed() * LOOK_PAUSE;
        }
        while !ctx.stop.is_cancelled() && history.under_way.has_room(ctx.concurrency) {
            let Some((place, verdict)) = jobs.pop_front() else { break };
            if history.under_way.is_at(&spot(&place)) {
                continue;
            }
            // It may have been done as urgent since it was planned, or the world has moved on: the next look tells what is to
            // be done instead, if anything.
            if !task.still_holds(ctx, &place, &verdict, content, history) {
                continue;
            }
            begin(ctx, task, content, history, place, verdict);
        }
        tokio::select! {
            biased;
            ended = history.under_way.next() => match ended {
                Some(ended) => history.note(&ended, content, &ctx.retry, (ctx.now)()),
                // A process that is ending leaves the rest, and the last word, to its successor.
                None if ctx.stop.is_cancelled() => return Round::Superseded,
                None => {}
            },
            // A namespace that is new must not wait for writes that hang.
            () = woken => {}
            () = tokio::time::sleep(look_after.saturating_duration_since(Instant::now())), if behind => {}
            () = tokio::time::sleep(PATIENCE), if !ctx.stop.is_cancelled() => {
                let verdicts = history.under_way.hangs().then(|| task.verdicts(ctx, content, history)).flatten();
                return Round::Slow(verdicts.map(|verdicts| history.tally(&verdicts, content)));
            }
        }
    }
}

fn begin(
    ctx: &Arc<Context>,
    task: &Task<'_>,
    content: &Content,
    history: &mut History,
    place: Place,
    verdict: Verdict,
) {
    let desired = content.at(&place).cloned();
    history.under_way.begin(ctx, &task.owner.uid, place, verdict, desired);
}

/// What one round is about.
pub(super) struct Task<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    /// The generation of the spec that the round works on.
    pub(super) generation: Option<i64>,
}

impl Task<'_> {
    /// Every place with its verdict, as the world is now; none when the `EcrCredential` has changed or gone, or has gained a
    /// namespace that needs tokens of its own.
    fn verdicts(&self, ctx: &Context, content: &Content, history: &History) -> Option<Vec<(Place, Verdict)>> {
        let places = ctx.shared.world.lock().places(&self.owner.uid, &self.plan.secret_name, self.generation)?;
        if !places.iter().all(|place| content.covers(place)) {
            return None;
        }
        let now = (ctx.now)();
        let judged = places.into_iter().map(|place| {
            let verdict = self.judge(&place, content, history, now);
            (place, verdict)
        });
        Some(judged.collect())
    }

    /// The Secrets that new namespaces lack.
    fn urgent(&self, ctx: &Context, content: &Content, history: &History) -> Vec<(Place, Verdict)> {
        if ctx.stop.is_cancelled() {
            return Vec::new();
        }
        let mut world = ctx.shared.world.lock();
        let news =
            world.take_news(&self.owner.uid).into_iter().map(|namespace| (self.plan.secret_name.clone(), namespace));
        let places: Vec<Place> = news.filter_map(|spot| self.place_at(&world, &spot)).collect();
        drop(world);
        let now = (ctx.now)();
        let judged = places.into_iter().map(|place| {
            let verdict = self.judge(&place, content, history, now);
            (place, verdict)
        });
        judged.filter(|(place, verdict)| *verdict == Verdict::Create && history.may_write(place, now)).collect()
    }

    fn place_at(&self, world: &World, spot: &Spot) -> Option<Place> {
        world.place_at(&self.owner.uid, &self.plan.secret_name, self.generation, spot)
    }

    /// Whether a place is to be treated so, as the world is now.
    fn still_holds(
        &self,
        ctx: &Context,
        place: &Place,
        verdict: &Verdict,
        content: &Content,
        history: &History,
    ) -> bool {
        let place = self.place_at(&ctx.shared.world.lock(), &spot(place));
        place.is_some_and(|place| self.judge(&place, content, history, (ctx.now)()) == *verdict)
    }

    fn judge(&self, place: &Place, content: &Content, history: &History, now: Timestamp) -> Verdict {
        let accepted = history.accepted.get(&spot(place)).copied();
        let desired = content.at(place).map(AsRef::as_ref);
        match verdict(place, desired, self.plan.conflict_policy, accepted, now) {
            Verdict::Create if content.share(place).is_some_and(|share| !share.current) => Verdict::Wait,
            verdict => verdict,
        }
    }
}
