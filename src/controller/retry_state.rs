//! What is remembered of the writes of one `EcrCredential`: what fails, what is fought over, and so what is to be written now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::cluster_state::SecretKey;
use super::in_flight::{Ended, InFlight, spot};
use super::pace::Pace;
use super::writes::DesiredSecrets;
use crate::api::status::{NamespaceFailure, Reason};
use crate::apply::{WriteError, Written};
use crate::plan::SpecError;
use crate::plan::schedule::{RetryPolicy, later, until};
use crate::secret::ownership::ManagedFieldsDigest;
use crate::secret::{self, Bundle, Desired, SecretAction, SecretTarget};

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
pub(super) struct RetryState {
    /// What was to be written last.
    expected: Expected,
    /// What the API server made of our write, where it is not what we wrote.
    accepted: HashMap<SecretKey, ManagedFieldsDigest>,
    failing: HashMap<SecretKey, Failing>,
    repairs: HashMap<SecretKey, Repairs>,
    pub(super) in_flight: InFlight,
    /// When all places may be looked at again.
    pub(super) pace: Pace,
}

/// What the Secrets of the target namespaces look like, by name.
#[derive(Default)]
struct Expected {
    /// Where all namespaces are alike.
    alike: Footprints,
    /// Where each namespace has its own.
    each: HashMap<Arc<str>, Footprints>,
}

type Footprints = BTreeMap<Arc<str>, ManagedFieldsDigest>;

impl Expected {
    fn of(content: &DesiredSecrets) -> Self {
        let digests = |bundle: &Bundle| bundle.iter().map(|(name, d)| (name.clone(), d.digest)).collect();
        match content {
            DesiredSecrets::Alike(bundle) => Self { alike: digests(bundle), ..Self::default() },
            DesiredSecrets::Each(shares) => {
                let each = shares.iter().map(|(namespace, share)| (namespace.clone(), digests(&share.desired)));
                Self { each: each.collect(), ..Self::default() }
            }
        }
    }

    fn at(&self, (name, namespace): &SecretKey) -> Option<ManagedFieldsDigest> {
        let own = self.each.get(namespace).and_then(|digests| digests.get(name));
        own.or_else(|| self.alike.get(name)).copied()
    }
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
pub(super) struct SyncCounts {
    /// Those of each Secret, by its name.
    secrets: HashMap<Arc<str>, Counts>,
    /// Those of which something is to be said, each with the Secret's name.
    pub(super) failures: Vec<NamespaceFailure>,
}

/// The selected namespaces of one Secret.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// How many are selected.
    pub(super) selected: usize,
    /// How many hold the Secret as desired.
    pub(super) synced: usize,
    /// How many do not, and something is to be said of them.
    pub(super) failed: usize,
}

impl SyncCounts {
    /// The namespaces of one Secret.
    pub(super) fn of(&self, name: &str) -> Counts {
        self.secrets.get(name).copied().unwrap_or_default()
    }

    /// Counts a namespace that is selected for a Secret which may not be written there.
    pub(super) fn deny(&mut self, name: &Arc<str>, namespace: &Arc<str>, why: &SpecError) {
        let counts = self.secrets.entry(name.clone()).or_default();
        (counts.selected, counts.failed) = (counts.selected.saturating_add(1), counts.failed.saturating_add(1));
        self.tell(name, namespace, why.reason, why.message.clone());
    }

    fn tell(&mut self, name: &str, namespace: &str, reason: Reason, message: String) {
        let (namespace, secret) = (namespace.to_string(), Some(name.to_string()));
        self.failures.push(NamespaceFailure { namespace, secret, reason: reason.as_str().to_owned(), message });
    }
}

impl RetryState {
    /// Starts afresh where a new content is to be written: what the API server made of the old one, and what failed, is
    /// history.
    pub(super) fn expect(&mut self, content: &DesiredSecrets) {
        let expected = Expected::of(content);
        let before = std::mem::replace(&mut self.expected, expected);
        let stays = |spot: &SecretKey| before.at(spot) == self.expected.at(spot);
        self.accepted.retain(|spot, _| stays(spot));
        self.failing.retain(|spot, _| stays(spot));
        self.repairs.retain(|spot, _| stays(spot));
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
    pub(super) fn accepted(&self, place: &SecretTarget) -> Option<ManagedFieldsDigest> {
        // Almost always there is none, and a look asks for each of thousands.
        (!self.accepted.is_empty()).then(|| self.accepted.get(&spot(place)).copied()).flatten()
    }

    /// Forgets what the API server made of writes in places that are wanted no more.
    pub(super) fn retain_accepted(&mut self, is_wanted: impl Fn(&SecretKey) -> bool) {
        self.accepted.retain(|spot, _| is_wanted(spot));
    }

    /// Whether any place has failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.failing.is_empty()
    }

    /// Forgets that a place has failed where nothing is to be done.
    pub(super) fn forget_failure(&mut self, place: &SecretTarget) {
        if self.has_failed() {
            self.failing.remove(&spot(place));
        }
    }

    /// Forgets all failures but those in some places.
    pub(super) fn retain_failures(&mut self, places: &HashSet<SecretKey>) {
        self.failing.retain(|spot, _| places.contains(spot));
    }

    /// Forgets the repairs of Secrets that are not fought over any more.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        self.repairs.retain(|_, repairs| until(repairs.last, now) < PEACE);
    }

    /// Whether a place may be written now: it is not being written, has not just failed, and is not fought over.
    pub(super) fn may_write(&self, place: &SecretTarget, now: Timestamp) -> bool {
        let spot = spot(place);
        !self.in_flight.is_at(&spot)
            && self.failing.get(&spot).is_none_or(|failing| failing.may_retry(place, now))
            && !self.is_contested(&spot, now)
    }

    /// A repair that lies ahead was noted before the clock was set back, and holds nobody up.
    fn is_contested(&self, spot: &SecretKey, now: Timestamp) -> bool {
        self.repairs.get(spot).is_some_and(|repairs| repairs.last <= now && repairs.not_before(spot) > now)
    }

    /// Counts a place.
    pub(super) fn count(
        &self,
        counts: &mut SyncCounts,
        place: &SecretTarget,
        action: &SecretAction,
        content: &DesiredSecrets,
    ) {
        let wanted = matches!(
            place.selection,
            secret::Selection::Selected | secret::Selection::Conflict(_) | secret::Selection::Blocked(_)
        );
        let share = content.share(place).filter(|_| place.selection == secret::Selection::Selected);
        let mut synced = false;
        let shown = match action {
            // Good now, and not for long: whoever writes it as well has not stopped.
            SecretAction::Keep if wanted && self.is_contended(&spot(place)) => self.failure(&spot(place)),
            SecretAction::Keep if share.is_none_or(|share| share.lacks.is_none()) => {
                synced = wanted;
                share.and_then(|share| shown(share.failure.as_ref()))
            }
            SecretAction::Refuse(reason, message) => Some((*reason, message.clone())),
            _ => self
                .failure(&spot(place))
                .or_else(|| self.hanging(&spot(place)))
                .or_else(|| share.and_then(|share| shown(share.lacks.as_ref()))),
        };
        if wanted {
            let counts = counts.secrets.entry(place.name.clone()).or_default();
            counts.selected = counts.selected.saturating_add(1);
            counts.synced = counts.synced.saturating_add(usize::from(synced));
            counts.failed = counts.failed.saturating_add(usize::from(!synced && shown.is_some()));
        }
        if let Some((reason, message)) = shown {
            counts.tell(&place.name, &place.namespace, reason, message);
        }
    }

    /// Whether somebody else keeps writing a Secret. It is so until it was left alone for a while, or the status would flap.
    fn is_contended(&self, spot: &SecretKey) -> bool {
        self.repairs.get(spot).is_some_and(|repairs| repairs.count > QUICK_REPAIRS)
    }

    fn hanging(&self, spot: &SecretKey) -> Option<(Reason, String)> {
        let message = "the API server is slow to answer: check its admission webhooks";
        self.in_flight.is_hanging_at(spot).then(|| (Reason::ApiError, message.to_owned()))
    }

    fn failure(&self, spot: &SecretKey) -> Option<(Reason, String)> {
        let contested = || {
            let message = "another client keeps changing or deleting the Secret, so it is repaired less often: check its managedFields or the audit log to see which";
            self.is_contended(spot).then(|| (Reason::Contested, message.to_owned()))
        };
        self.failing.get(spot).and_then(|failing| failing.shown.clone()).or_else(contested)
    }

    /// Remembers what became of a place.
    pub(super) fn note(&mut self, ended: &Ended, content: &DesiredSecrets, retry: &RetryPolicy, now: Timestamp) {
        let Ended { place, action, result, .. } = ended;
        let desired = content.at(place).map(AsRef::as_ref);
        // What became of an older content says nothing of this one.
        if ended.desired.as_deref().map(|d| d.digest) != desired.map(|d| d.digest) {
            return;
        }
        let spot = spot(place);
        let count = self.failing.get(&spot).map_or(1, |failing| failing.count.saturating_add(1));
        let (shown, wait) = match result {
            Ok(written) => {
                self.failing.remove(&spot);
                self.note_written(spot, action, written, desired, now);
                return;
            }
            // The namespace's own event follows; until then there is nothing to say.
            Err(WriteError::NamespaceGone) => (None, retry.delay(count, 1, &place.namespace).max(STALE_WAIT)),
            // Once is nothing: the watch was behind. Again and again is worth a word.
            Err(WriteError::Stale) if count < 5 => (None, STALE_WAIT),
            Err(WriteError::Stale) => {
                let message = "writing the Secret keeps failing because it changes, or because another field manager owns its data: check its managedFields";
                (Some((Reason::Contested, message.to_owned())), retry.delay(count, 1, &place.namespace))
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                (Some((*reason, message.clone())), retry.delay(count, 1, &place.namespace))
            }
        };
        let failing = Failing { count, since: now, wait, shown, seen: place.ownership.version() };
        self.failing.insert(spot, failing);
    }

    fn note_written(
        &mut self,
        spot: SecretKey,
        action: &SecretAction,
        written: &Written,
        desired: Option<&Desired>,
        now: Timestamp,
    ) {
        // Creating a Secret again that somebody deletes in a loop is a repair like any other. Its first creation is none.
        if matches!(action, SecretAction::Create | SecretAction::Update(_) | SecretAction::Strip(_)) {
            let is_first = matches!(action, SecretAction::Create) && !self.repairs.contains_key(&spot);
            let repairs = self.repairs.entry(spot.clone()).or_insert(Repairs { count: 0, last: now });
            repairs.count = repairs.count.saturating_add(u32::from(!is_first));
            repairs.last = now;
        }
        let Written::Stored(record) = written else { return };
        if desired.is_some_and(|d| d.digest != record.digest) {
            self.accepted.insert(spot.clone(), record.digest);
        } else {
            self.accepted.remove(&spot);
        }
    }
}

/// What is told of a namespace: that a password is being fetched is no failure.
fn shown(halt: Option<&SpecError>) -> Option<(Reason, String)> {
    halt.filter(|halt| halt.reason != Reason::FetchingToken).map(|halt| (halt.reason, halt.message.clone()))
}

impl Failing {
    fn retry_at(&self) -> Timestamp {
        later(self.since, self.wait)
    }

    /// Whether to try again: the wait is over, the Secret there has changed since, or the clock has been set back.
    fn may_retry(&self, place: &SecretTarget, now: Timestamp) -> bool {
        self.retry_at() <= now || now < self.since || self.seen != place.ownership.version()
    }
}

impl Repairs {
    /// When the next repair may be done.
    fn not_before(&self, (_, namespace): &SecretKey) -> Timestamp {
        match self.count.checked_sub(QUICK_REPAIRS) {
            None | Some(0) => self.last,
            Some(beyond) => later(self.last, BRAKE.delay(beyond, 1, namespace)),
        }
    }
}

#[cfg(test)]
mod tests;
