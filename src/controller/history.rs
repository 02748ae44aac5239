//! What is remembered of the writes of one `EcrCredential`: what fails, what is fought over, and so what is to be written now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::pace::Pace;
use super::under_way::{Ended, UnderWay, spot};
use super::world::Spot;
use super::writes::{Content, Share};
use crate::api::status::{NamespaceFailure, Reason};
use crate::apply::{WriteError, Written};
use crate::plan::Halt;
use crate::plan::schedule::{RetryPolicy, later, until};
use crate::secret::ownership::Footprint;
use crate::secret::{self, Desired, Place, Verdict};

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
    /// What was to be written last, where all are alike.
    expected: Option<Footprint>,
    /// The same for each namespace, where each has its own.
    expected_in: HashMap<Arc<str>, Footprint>,
    /// What the API server made of our write, where it is not what we wrote.
    accepted: HashMap<Spot, Footprint>,
    failing: HashMap<Spot, Failing>,
    repairs: HashMap<Spot, Repairs>,
    pub(super) under_way: UnderWay,
    /// When all places may be looked at again.
    pub(super) pace: Pace,
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
    /// Those of which something is to be said.
    pub(super) failures: Vec<NamespaceFailure>,
    /// How many of these are synced all the same: their passwords are good and could not be renewed.
    pub(super) lagging: usize,
    /// How many of these are not selected any more: a Secret that is left over could not be deleted.
    pub(super) unselected: usize,
}

impl Tally {
    /// How many selected namespaces are not as desired, as far as something is to be said of them.
    pub(super) fn failed(&self) -> usize {
        self.failures.len().saturating_sub(self.lagging).saturating_sub(self.unselected)
    }
}

impl History {
    /// Starts afresh where a new content is to be written: what the API server made of the old one, and what failed, is
    /// history.
    pub(super) fn expect(&mut self, content: &Content) {
        match content {
            Content::Alike(desired) => {
                let footprint = desired.as_ref().map(|d| d.footprint);
                if self.expected != footprint || !self.expected_in.is_empty() {
                    let (under_way, pace) = (std::mem::take(&mut self.under_way), std::mem::take(&mut self.pace));
                    *self = Self { expected: footprint, under_way, pace, ..Self::default() };
                }
            }
            Content::Each(shares) => {
                self.expected = None;
                let footprint = |share: &Share| share.desired.as_ref().map(|d| d.footprint);
                let changed: HashSet<&Arc<str>> = shares
                    .iter()
                    .filter(|(namespace, share)| self.expected_in.get(*namespace).copied() != footprint(share))
                    .map(|(namespace, _)| namespace)
                    .collect();
                let stays = |spot: &Spot| !changed.contains(&spot.1);
                self.accepted.retain(|spot, _| stays(spot));
                self.failing.retain(|spot, _| stays(spot));
                self.repairs.retain(|spot, _| stays(spot));
                let expected = shares.iter().filter_map(|(ns, share)| Some((ns.clone(), footprint(share)?)));
                self.expected_in = expected.collect();
            }
        }
    }

    /// When the next failing or contested place may be written.
    pub(super) fn retry_at(&self, now: Timestamp) -> Option<Timestamp> {
        let failing = self.failing.values().map(Failing::retry_at);
        let contested = self.repairs.iter().map(|(spot, repairs)| repairs.not_before(spot));
        let peace = self.repairs.values().filter(|repairs| repairs.count > QUICK_REPAIRS);
        let peace = peace.map(|repairs| later(repairs.last, PEACE));
        failing.chain(contested.chain(peace).filter(|at| *at > now)).min()
    }

    /// What the API server made of our write in a place, where it is not what we wrote.
    pub(super) fn accepted(&self, place: &Place) -> Option<Footprint> {
        // Almost always there is none, and a look asks for each of thousands.
        (!self.accepted.is_empty()).then(|| self.accepted.get(&spot(place)).copied()).flatten()
    }

    /// Forgets what the API server made of writes in places that are wanted no more.
    pub(super) fn retain_accepted(&mut self, is_wanted: impl Fn(&Spot) -> bool) {
        self.accepted.retain(|spot, _| is_wanted(spot));
    }

    /// Whether any place has failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.failing.is_empty()
    }

    /// Forgets that a place has failed where nothing is to be done.
    pub(super) fn forget_failure(&mut self, place: &Place) {
        if self.has_failed() {
            self.failing.remove(&spot(place));
        }
    }

    /// Forgets all failures but those in some places.
    pub(super) fn retain_failures(&mut self, places: &HashSet<Spot>) {
        self.failing.retain(|spot, _| places.contains(spot));
    }

    /// Forgets the repairs of Secrets that are not fought over any more.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        self.repairs.retain(|_, repairs| until(repairs.last, now) < PEACE);
    }

    /// Whether a place may be written now: it is not being written, has not just failed, and is not fought over.
    pub(super) fn may_write(&self, place: &Place, now: Timestamp) -> bool {
        let spot = spot(place);
        !self.under_way.is_at(&spot)
            && self.failing.get(&spot).is_none_or(|failing| failing.may_retry(place, now))
            && !self.is_contested(&spot, now)
    }

    /// A repair that lies ahead was noted before the clock was set back, and holds nobody up.
    fn is_contested(&self, spot: &Spot, now: Timestamp) -> bool {
        self.repairs.get(spot).is_some_and(|repairs| repairs.last <= now && repairs.not_before(spot) > now)
    }

    /// Counts a place.
    pub(super) fn count(&self, tally: &mut Tally, place: &Place, verdict: &Verdict, content: &Content) {
        let wanted = matches!(place.claim, secret::Claim::Wanted | secret::Claim::Lost(_) | secret::Claim::Blocked(_));
        tally.selected += usize::from(wanted);
        let share = content.share(place).filter(|_| place.claim == secret::Claim::Wanted);
        let synced = tally.synced;
        let shown = match verdict {
            // Good now, and not for long: whoever writes it as well has not stopped.
            Verdict::Keep if wanted && self.is_contended(&spot(place)) => self.failure(&spot(place)),
            Verdict::Keep if share.is_none_or(|share| share.lacks.is_none()) => {
                tally.synced += usize::from(wanted);
                share.and_then(|share| shown(share.failure.as_ref()))
            }
            Verdict::Refuse(reason, message) => Some((*reason, message.clone())),
            _ => self
                .failure(&spot(place))
                .or_else(|| self.hanging(&spot(place)))
                .or_else(|| share.and_then(|share| shown(share.lacks.as_ref()))),
        };
        if let Some((reason, message)) = shown {
            tally.lagging += tally.synced - synced;
            tally.unselected += usize::from(!wanted);
            let (namespace, reason) = (place.namespace.to_string(), reason.as_str().to_owned());
            tally.failures.push(NamespaceFailure { namespace, reason, message });
        }
    }

    /// Whether somebody else keeps writing a Secret. It is so until it was left alone for a while, or the status would flap.
    fn is_contended(&self, spot: &Spot) -> bool {
        self.repairs.get(spot).is_some_and(|repairs| repairs.count > QUICK_REPAIRS)
    }

    fn hanging(&self, spot: &Spot) -> Option<(Reason, String)> {
        let message = "the API server takes long to answer: see its admission webhooks";
        self.under_way.is_hanging_at(spot).then(|| (Reason::ApiError, message.to_owned()))
    }

    fn failure(&self, spot: &Spot) -> Option<(Reason, String)> {
        let contested = || {
            let message =
                "somebody else keeps changing the Secret, so it is repaired less often: see its managedFields for who";
            self.is_contended(spot).then(|| (Reason::Contested, message.to_owned()))
        };
        self.failing.get(spot).and_then(|failing| failing.shown.clone()).or_else(contested)
    }

    /// Remembers what became of a place.
    pub(super) fn note(&mut self, ended: &Ended, content: &Content, retry: &RetryPolicy, now: Timestamp) {
        let Ended { place, verdict, result, .. } = ended;
        let desired = content.at(place).map(AsRef::as_ref);
        // What became of an older content says nothing of this one.
        if ended.desired.as_deref().map(|d| d.footprint) != desired.map(|d| d.footprint) {
            return;
        }
        let spot = spot(place);
        let count = self.failing.get(&spot).map_or(1, |failing| failing.count.saturating_add(1));
        let (shown, wait) = match result {
            Ok(written) => {
                self.failing.remove(&spot);
                self.note_written(spot, verdict, written, desired, now);
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
                (Some((*reason, message.clone())), retry.delay(count, 1, &place.namespace))
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
        if matches!(verdict, Verdict::Update(_) | Verdict::Strip(_)) {
            let repairs = self.repairs.entry(spot.clone()).or_insert(Repairs { count: 0, last: now });
            repairs.count = repairs.count.saturating_add(1);
            repairs.last = now;
        }
        let Written::Stored(record) = written else { return };
        if desired.is_some_and(|d| d.footprint != record.footprint) {
            self.accepted.insert(spot.clone(), record.footprint);
        } else {
            self.accepted.remove(&spot);
        }
    }
}

/// What is told of a namespace: that a password is being fetched is no failure.
fn shown(halt: Option<&Halt>) -> Option<(Reason, String)> {
    halt.filter(|halt| halt.reason != Reason::FetchingToken).map(|halt| (halt.reason, halt.message.clone()))
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

#[cfg(test)]
mod tests;
