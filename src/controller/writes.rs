//! The writes of one round: which places come first, what is under way, and what is remembered of those that fail.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;

use super::Context;
use super::world::Spot;
use crate::api::status::{NamespaceFailure, Reason};
use crate::apply::{WriteError, Written};
use crate::plan::schedule::{RetryPolicy, later, until};
use crate::plan::{Halt, Plan, Uid};
use crate::secret::ownership::Footprint;
use crate::secret::{self, Desired, Owner, Place, Published, Verdict, verdict};

/// A write that met a changed Secret is tried again after this many seconds, unless the watch brings us back sooner.
const STALE_WAIT: Duration = Duration::from_secs(1);

/// So many repairs of one Secret in a row are done at once; after that somebody else is writing it, too, and each one waits.
const QUICK_REPAIRS: u32 = 5;

/// The waits between further repairs.
const BRAKE: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(30) };

/// A Secret that was left alone for so long is not being fought over.
const PEACE: Duration = Duration::from_secs(60);

/// What is remembered of the writes of one `EcrCredential`.
#[derive(Default)]
pub(super) struct History {
    expected: Option<Footprint>,
    /// What the API server made of our write, where it is not what we wrote.
    accepted: HashMap<Spot, Footprint>,
    failing: HashMap<Spot, Failing>,
    repairs: HashMap<Spot, Repairs>,
}

/// A place where the last write failed.
struct Failing {
    count: u32,
    since: Timestamp,
    wait: Duration,
    shown: Option<(Reason, String)>,
    seen: Option<Box<str>>,
}

/// How often the same content was written over somebody else's.
struct Repairs {
    count: u32,
    last: Timestamp,
}

/// The selected namespaces after a round.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How many are selected.
    pub(super) selected: usize,
    /// How many hold the Secret as desired.
    pub(super) synced: usize,
    /// The others of which something is to be said.
    pub(super) failures: Vec<NamespaceFailure>,
}

/// Writes until every place is as it should be or has failed. None when the `EcrCredential` is not what it was when the
/// round began: the next round is queued already.
pub(super) async fn write(
    ctx: &Context,
    task: &Task<'_>,
    published: &Published,
    history: &mut History,
) -> Result<Option<Tally>, Halt> {
    let now = (ctx.now)();
    let desired = secret::desired(task.plan, &task.owner, task.template, published, now)?.map(Arc::new);
    history.expect(desired.as_deref());
    let mut under_way = FuturesUnordered::new();
    let mut busy: HashSet<Spot> = HashSet::new();
    let mut jobs: VecDeque<(Place, Verdict)> = VecDeque::new();
    let mut looked_at = None;
    loop {
        let revision = ctx.shared.world.lock().revision(&task.owner.uid);
        if looked_at != Some(revision) || (jobs.is_empty() && under_way.is_empty()) {
            let again = looked_at.replace(revision) == Some(revision);
            let Some(verdicts) = task.verdicts(ctx, desired.as_deref(), history) else { return Ok(None) };
            jobs = history.jobs(&verdicts, &busy, (ctx.now)());
            if jobs.is_empty() && under_way.is_empty() {
                return Ok(Some(history.tally(&verdicts)));
            }
            if again {
                // Everything planned was done and something is left: new since, or it failed in a way that lets it be
                // tried at once. Others get their turn first.
                tokio::task::yield_now().await;
            }
        }
        while under_way.len() < ctx.concurrency && !ctx.stop.is_cancelled() {
            let Some((place, verdict)) = jobs.pop_front() else { break };
            busy.insert(spot(&place));
            under_way.push(perform(ctx, &task.owner.uid, place, verdict, desired.clone()));
        }
        match under_way.next().await {
            Some((place, verdict, result)) => {
                busy.remove(&spot(&place));
                history.note(&place, &verdict, result, desired.as_deref(), &ctx.retry, (ctx.now)());
            }
            // A process that is ending leaves the rest, and the last word, to its successor.
            None if ctx.stop.is_cancelled() => return Ok(None),
            None => {}
        }
    }
}

/// What one round is about.
pub(super) struct Task<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: Owner,
    pub(super) template: &'a crate::api::SecretTemplate,
    /// The generation of the spec that the round works on.
    pub(super) generation: Option<i64>,
}

impl Task<'_> {
    /// Every place with its verdict, as the world is now; none when the `EcrCredential` has changed or gone.
    fn verdicts(&self, ctx: &Context, desired: Option<&Desired>, history: &History) -> Option<Vec<(Place, Verdict)>> {
        let places = ctx.shared.world.lock().places(&self.owner.uid, &self.plan.secret_name, self.generation)?;
        let now = (ctx.now)();
        let judge = |place: Place| {
            let accepted = history.accepted.get(&spot(&place)).copied();
            let verdict = verdict(&place, desired, self.plan.conflict_policy, accepted, now);
            (place, verdict)
        };
        Some(places.into_iter().map(judge).collect())
    }
}

async fn perform(
    ctx: &Context,
    me: &Uid,
    place: Place,
    verdict: Verdict,
    desired: Option<Arc<Desired>>,
) -> (Place, Verdict, Result<Written, WriteError>) {
    let result = ctx.writer.perform(&place, &verdict, desired.as_deref()).await;
    // The world hears of it from us before the watch tells it.
    match &result {
        Ok(Written::Stored(record)) => {
            ctx.shared.secret_written(&place.name, &place.namespace, record.clone(), me);
        }
        Ok(Written::Deleted) => {
            let uid = match &verdict {
                Verdict::Update(record) | Verdict::Strip(record) | Verdict::Delete(record) => Some(&*record.uid),
                _ => None,
            };
            ctx.shared.secret_gone(&place.name, &place.namespace, uid);
        }
        Err(_) => {}
    }
    ctx.observer.wrote(&verdict, &result);
    (place, verdict, result)
}

/// Missing Secrets go first: someone is waiting for them, while those that exist are still good.
const fn rank(verdict: &Verdict) -> Option<u8> {
    match verdict {
        Verdict::Create => Some(0),
        Verdict::Update(_) | Verdict::Strip(_) => Some(1),
        Verdict::Delete(_) => Some(2),
        Verdict::Keep | Verdict::Wait | Verdict::Refuse(..) => None,
    }
}

impl History {
    /// Starts afresh with a new desired Secret: what the API server made of the old one, and what failed, is history.
    fn expect(&mut self, desired: Option<&Desired>) {
        let footprint = desired.map(|d| d.footprint);
        if self.expected != footprint {
            *self = Self { expected: footprint, ..Self::default() };
        }
    }

    /// When the next failing or contested place may be written.
    pub(super) fn retry_at(&self, now: Timestamp) -> Option<Timestamp> {
        let failing = self.failing.values().map(Failing::retry_at);
        let contested = self.repairs.iter().map(|(spot, repairs)| repairs.not_before(spot));
        failing.chain(contested.filter(|at| *at > now)).min()
    }

    /// What to write now, in order. Deletions come when nothing else is left, and an old Secret stays until the new one of
    /// its namespace is there.
    fn jobs(
        &mut self,
        verdicts: &[(Place, Verdict)],
        busy: &HashSet<Spot>,
        now: Timestamp,
    ) -> VecDeque<(Place, Verdict)> {
        let to_do: HashSet<Spot> =
            verdicts.iter().filter(|(_, v)| rank(v).is_some()).map(|(place, _)| spot(place)).collect();
        self.failing.retain(|spot, _| to_do.contains(spot));
        self.repairs.retain(|_, repairs| until(repairs.last, now) < PEACE);
        let unmet: HashSet<&Arc<str>> = verdicts
            .iter()
            .filter(|(place, v)| !matches!(v, Verdict::Keep | Verdict::Delete(_)) || busy.contains(&spot(place)))
            .map(|(place, _)| &place.namespace)
            .collect();
        let may = |place: &Place, verdict: &Verdict| {
            let spot = spot(place);
            !busy.contains(&spot)
                && self.failing.get(&spot).is_none_or(|failing| failing.may_retry(place, now))
                && (!matches!(verdict, Verdict::Delete(_)) || !unmet.contains(&place.namespace))
                && !self.is_contested(&spot, now)
        };
        let mut jobs: Vec<(u8, &(Place, Verdict))> = verdicts
            .iter()
            .filter_map(|job| rank(&job.1).map(|rank| (rank, job)))
            .filter(|(_, (place, verdict))| may(place, verdict))
            .collect();
        jobs.sort_by_key(|(rank, _)| *rank);
        jobs.into_iter().map(|(_, job)| job.clone()).collect()
    }

    /// A repair that lies ahead was noted before the clock was set back, and holds nobody up.
    fn is_contested(&self, spot: &Spot, now: Timestamp) -> bool {
        self.repairs.get(spot).is_some_and(|repairs| repairs.last <= now && repairs.not_before(spot) > now)
    }

    /// Counts what holds after all writes.
    fn tally(&self, verdicts: &[(Place, Verdict)]) -> Tally {
        let mut tally = Tally::default();
        for (place, verdict) in verdicts {
            let wanted = matches!(place.claim, secret::Claim::Wanted | secret::Claim::Lost(_));
            tally.selected += usize::from(wanted);
            let shown = match verdict {
                Verdict::Keep => {
                    tally.synced += usize::from(wanted);
                    None
                }
                Verdict::Refuse(reason, message) => Some((*reason, message.clone())),
                _ => self.failure(&spot(place)),
            };
            if let Some((reason, message)) = shown {
                let (namespace, reason) = (place.namespace.to_string(), reason.as_str().to_owned());
                tally.failures.push(NamespaceFailure { namespace, reason, message });
            }
        }
        tally
    }

    fn failure(&self, spot: &Spot) -> Option<(Reason, String)> {
        let contested = || {
            let quick = self.repairs.get(spot).is_none_or(|repairs| repairs.count <= QUICK_REPAIRS);
            let message =
                "somebody else keeps changing the Secret, so it is repaired less often: see its managedFields for who";
            (!quick).then(|| (Reason::Contested, message.to_owned()))
        };
        self.failing.get(spot).and_then(|failing| failing.shown.clone()).or_else(contested)
    }

    /// Remembers what became of a place.
    fn note(
        &mut self,
        place: &Place,
        verdict: &Verdict,
        result: Result<Written, WriteError>,
        desired: Option<&Desired>,
        retry: &RetryPolicy,
        now: Timestamp,
    ) {
        let spot = spot(place);
        let count = self.failing.get(&spot).map_or(1, |failing| failing.count.saturating_add(1));
        let (shown, wait) = match result {
            Ok(written) => {
                self.failing.remove(&spot);
                self.note_written(spot, verdict, &written, desired, now);
                return;
            }
            // The namespace's own event follows; until then there is nothing to say.
            Err(WriteError::NamespaceGone) => (None, retry.delay(count, 1, &place.namespace).max(STALE_WAIT)),
            // Once is nothing: the watch was behind. Again and again is worth a word.
            Err(WriteError::Stale) if count < 5 => (None, STALE_WAIT),
            Err(WriteError::Stale) => {
                let message = "the Secret there is not as the watch shows it, or another field manager holds its data: see who else writes it";
                (Some((Reason::Contested, message.to_owned())), retry.delay(count, 1, &place.namespace))
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                (Some((reason, message)), retry.delay(count, 1, &place.namespace))
            }
        };
        let failing = Failing { count, since: now, wait, shown, seen: place.standing.version() };
        self.failing.insert(spot, failing);
    }

    fn note_written(
        &mut self,
        spot: Spot,
        verdict: &Verdict,
        written: &Written,
        desired: Option<&Desired>,
        now: Timestamp,
    ) {
        let Written::Stored(record) = written else { return };
        if desired.is_some_and(|d| d.footprint != record.footprint) {
            self.accepted.insert(spot.clone(), record.footprint);
        } else {
            self.accepted.remove(&spot);
        }
        if matches!(verdict, Verdict::Update(_) | Verdict::Strip(_)) {
            let repairs = self.repairs.entry(spot).or_insert(Repairs { count: 0, last: now });
            repairs.count = repairs.count.saturating_add(1);
            repairs.last = now;
        }
    }
}

impl Failing {
    fn retry_at(&self) -> Timestamp {
        later(self.since, self.wait)
    }

    /// Whether to try again: the wait is over, the Secret there has changed since, or the clock has been set back.
    fn may_retry(&self, place: &Place, now: Timestamp) -> bool {
        self.retry_at() <= now || now < self.since || self.seen != place.standing.version()
    }
}

impl Repairs {
    /// When the next repair may be done.
    fn not_before(&self, (_, namespace): &Spot) -> Timestamp {
        match self.count.checked_sub(QUICK_REPAIRS) {
            None | Some(0) => self.last,
            Some(beyond) => later(self.last, BRAKE.delay(beyond, 1, namespace)),
        }
    }
}

fn spot(place: &Place) -> Spot {
    (place.name.clone(), place.namespace.clone())
}
