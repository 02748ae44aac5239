//! What is kept of the writes of one `EcrCredential` between reconciliations: which Secrets wait to be written, which fail or are
//! contested, and when they may be written again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::cluster_state::Change;
use super::desired_secrets::{DesiredSecrets, NamespaceSecrets, TokenProblem};
use super::in_flight::{Ended, InFlight};
use super::sync_ledger::{SyncLedger, SyncState};
use super::work_queue::{WorkQueue, WritePriority};
use crate::api::status::Reason;
use crate::apply::{WriteError, Written};
use crate::plan::SpecError;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::schedule::{RetryPolicy, later, until};
use crate::plan::scopes::SecretKey;
use crate::secret::ownership::ManagedFieldsDigest;
use crate::secret::{Bundle, Desired, SecretAction, SecretTarget, Selection};

/// The wait after a write that met a changed Secret, unless the watch shows the change sooner.
const STALE_WAIT: Duration = Duration::from_secs(1);

/// So many writes of one Secret that the changes of others cause are done at once, whether they succeed or not. After that each one
/// waits: somebody else keeps writing the Secret.
const QUICK_REPAIRS: u32 = 5;

/// The waits between further ones.
const REPAIR_BACKOFF: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(30) };

/// A Secret that was left alone for so long is not contested any more.
const PEACE: Duration = Duration::from_secs(60);

/// A Secret that stays as it is only until something in it expires is examined again after so long.
const RECHECK: Duration = Duration::from_secs(30);

/// All Secrets are examined again after so long, though events and timers have shown each change: a missed change would leave a
/// namespace without a valid token. Clocks that jump are noticed sooner, by the timers and by `follow_clock`.
const RESYNC_INTERVAL: Duration = Duration::from_secs(600);

/// A clock is set back by so little when it follows the servers, whose times are in whole seconds.
const CLOCK_CORRECTION: Duration = Duration::from_secs(2);

/// What is kept of the writes of one `EcrCredential`.
#[derive(Default)]
pub(super) struct RetryState {
    /// What was to be written last.
    expected: Expected,
    /// What the API server made of our write, where it is not what we wrote.
    accepted: HashMap<SecretKey, ManagedFieldsDigest>,
    failing: HashMap<SecretKey, Failing>,
    repairs: HashMap<SecretKey, Repairs>,
    /// When time alone may change what is to be done about a Secret: one that fails, is contested, or is kept until it expires.
    timers: BTreeSet<(Timestamp, SecretKey)>,
    /// The timer of each Secret.
    scheduled: HashMap<SecretKey, Timestamp>,
    /// Until when the tokens are valid of each Secret that stays as it is for now.
    kept: HashMap<SecretKey, Timestamp>,
    pub(super) in_flight: InFlight,
    /// The Secrets that wait to be written.
    pub(super) queue: WorkQueue,
    /// How each Secret counts.
    pub(super) ledger: SyncLedger,
    /// The Secrets whose write has ended, or hangs, since they were last examined.
    unexamined: BTreeSet<Change>,
    /// What events have shown, and first tokens of single namespaces, since the Secrets there were last examined. Missing Secrets
    /// among them are urgent.
    pub(super) shown: BTreeSet<Change>,
    /// The latest time that was seen.
    latest: Option<Timestamp>,
    /// The generation of the spec of which the process before has said that every Secret is synced.
    pub(super) synced_before: Option<i64>,
    /// The last resync, if the queue and the ledger have been complete ever since.
    pub(super) resynced: Option<Resync>,
}

/// A comparison of all Secrets with what they should be.
#[derive(Clone, Copy)]
pub(super) struct Resync {
    /// The generation of the spec that it was for.
    pub(super) generation: Option<i64>,
    pub(super) at: Timestamp,
}

impl Resync {
    /// Whether it is still good for a spec of this generation.
    pub(super) fn is_current(&self, generation: Option<i64>, now: Timestamp) -> bool {
        self.generation == generation && until(self.at, now) < RESYNC_INTERVAL
    }
}

/// What was to be written last, without its tokens.
enum Expected {
    /// In all namespaces the same.
    Alike(Appearances),
    /// In each namespace its own.
    Each(HashMap<Arc<str>, ExpectedIn>),
}

/// What was to be written last in one namespace that has its own.
#[derive(PartialEq)]
struct ExpectedIn {
    namespace_uid: NamespaceUid,
    appearances: Appearances,
    current: bool,
    problems: BTreeMap<Arc<str>, TokenProblem>,
}

/// How each Secret looks in its metadata, by its name, and whether a token is missing in it.
type Appearances = BTreeMap<Arc<str>, (ManagedFieldsDigest, bool)>;

fn appearances(bundle: &Bundle) -> Appearances {
    bundle.iter().map(|(name, desired)| (name.clone(), (desired.digest, desired.incomplete))).collect()
}

impl From<&NamespaceSecrets> for ExpectedIn {
    fn from(share: &NamespaceSecrets) -> Self {
        let NamespaceSecrets { namespace_uid, desired, current, problems } = share;
        let (namespace_uid, current, problems) = (*namespace_uid, *current, problems.clone());
        Self { namespace_uid, appearances: appearances(desired), current, problems }
    }
}

impl Default for Expected {
    fn default() -> Self {
        Self::Alike(Appearances::new())
    }
}

impl Expected {
    fn of(desired: &DesiredSecrets) -> Self {
        match desired {
            DesiredSecrets::Alike(bundle) => Self::Alike(appearances(bundle)),
            DesiredSecrets::Each(shares) => {
                Self::Each(shares.iter().map(|(namespace, share)| (namespace.clone(), share.into())).collect())
            }
        }
    }

    fn at(&self, key: &SecretKey) -> Option<ManagedFieldsDigest> {
        let appearances = match self {
            Self::Alike(appearances) => appearances,
            Self::Each(each) => &each.get(&key.namespace)?.appearances,
        };
        appearances.get(&key.name).map(|(digest, _)| *digest)
    }

    /// The namespaces in which something else was to be written; none if that may be so in all of them.
    fn differing<'a>(&'a self, before: &'a Self) -> Option<BTreeSet<&'a Arc<str>>> {
        match (before, self) {
            (Self::Alike(before), Self::Alike(now)) if before == now => Some(BTreeSet::new()),
            (Self::Each(before), Self::Each(now)) => {
                let namespaces = before.keys().chain(now.keys());
                Some(namespaces.filter(|namespace| before.get(*namespace) != now.get(*namespace)).collect())
            }
            _ => None,
        }
    }
}

/// A Secret whose last write failed.
struct Failing {
    count: u32,
    since: Timestamp,
    wait: Duration,
    problem: Option<(Reason, String)>,
    /// The resourceVersion that the Secret had.
    seen: Option<Box<str>>,
}

/// How often the same content was written because somebody else had changed the Secret, or a Secret was deleted that somebody else
/// had created where none is wanted.
#[derive(Clone, Copy)]
struct Repairs {
    /// Whether the Secret was wanted. Once that changes, nobody else has changed it yet.
    wanted: bool,
    count: u32,
    /// How many of them changed nothing: what others do within one second to fields of their own can look like a change of ours.
    needless: u32,
    last: Timestamp,
}

impl RetryState {
    /// Takes what is to be written from now on; returns whether that may differ from before in all namespaces. Where it differs in
    /// some, those are examined next: where a Secret is missing, its first token has come. What failed, and what the API server made of a
    /// write, is forgotten where the content is new.
    pub(super) fn expect(&mut self, desired: &DesiredSecrets) -> bool {
        let before = std::mem::replace(&mut self.expected, Expected::of(desired));
        let differing = self.expected.differing(&before);
        if differing.as_ref().is_some_and(BTreeSet::is_empty) {
            return false;
        }
        let everywhere = differing.is_none();
        self.shown.extend(differing.into_iter().flatten().map(|namespace| Change::Namespace(namespace.clone())));
        let stays = |key: &SecretKey| before.at(key) == self.expected.at(key);
        self.accepted.retain(|key, _| stays(key));
        self.failing.retain(|key, _| stays(key));
        self.repairs.retain(|key, _| stays(key));
        everywhere
    }

    /// Prepares for a resync, which examines every Secret and so rebuilds the queue, the ledger and the timers. `is_concerned` says which
    /// Secrets it will examine.
    pub(super) fn begin_resync(&mut self, now: Timestamp, is_concerned: impl Fn(&SecretKey) -> bool) {
        let urgent = self.queue.iter().take_while(|(priority, _)| *priority == WritePriority::Urgent);
        self.shown.extend(urgent.map(|(_, key)| Change::Secret(key.clone())));
        self.queue.clear();
        self.ledger.clear();
        self.accepted.retain(|key, _| is_concerned(key));
        self.failing.retain(|key, _| is_concerned(key));
        self.repairs.retain(|key, repairs| (is_concerned(key) || !repairs.wanted) && !repairs.is_over(now));
        self.timers.clear();
        self.scheduled.clear();
        self.kept.clear();
    }

    /// Follows the clock; returns whether it was set back. Then no timer is good any more, so that all Secrets have to be examined, and
    /// what happened in the future delays nothing.
    pub(super) fn follow_clock(&mut self, now: Timestamp) -> bool {
        let latest = self.latest.unwrap_or(now);
        let was_set_back = until(now, latest) > CLOCK_CORRECTION;
        self.latest = Some(if was_set_back { now } else { latest.max(now) });
        if was_set_back {
            self.repairs.retain(|_, repairs| repairs.last <= now);
            for failing in self.failing.values_mut().filter(|failing| failing.since > now) {
                (failing.since, failing.wait) = (now, Duration::ZERO);
            }
        }
        was_set_back
    }

    /// What to examine for another reason: a write has ended, or a wait is over.
    pub(super) fn unexamined(&mut self, now: Timestamp) -> &BTreeSet<Change> {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            self.unexamined.extend(self.timers.pop_first().map(|(_, key)| Change::Secret(key)));
        }
        &self.unexamined
    }

    /// Everything has been examined.
    pub(super) fn examined(&mut self) {
        self.shown.clear();
        self.unexamined.clear();
    }

    /// Sets the timer of a Secret for when it may have to be examined again; if it is kept only until it expires, after a while.
    pub(super) fn schedule(&mut self, key: &SecretKey, expires: bool, now: Timestamp) {
        let retry = self.failing.get(key).map(Failing::retry_at);
        let repairs = self.repairs.get(key).into_iter().flat_map(|repairs| repairs.changes(key));
        let recheck = expires.then(|| later(now, RECHECK));
        // One that is over would go off again and again: a failure and repairs may end at different times.
        let next = retry.into_iter().chain(repairs).chain(recheck).filter(|at| *at > now).min();
        if let Some(at) = self.scheduled.remove(key) {
            self.timers.remove(&(at, key.clone()));
        }
        if let Some(at) = next {
            self.scheduled.insert(key.clone(), at);
            self.timers.insert((at, key.clone()));
        }
    }

    /// Notes until when a Secret is valid that stays as it is for now, and of any other that it does not.
    pub(super) fn keep_until(&mut self, key: &SecretKey, valid_until: Option<Timestamp>) {
        match valid_until {
            Some(at) => drop(self.kept.insert(key.clone(), at)),
            None => drop(self.kept.remove(key)),
        }
    }

    /// When the first token expires in a Secret that stays as it is for now.
    pub(super) fn kept_until(&self) -> Option<Timestamp> {
        self.kept.values().min().copied()
    }

    /// Whether the last write of a Secret failed.
    pub(super) fn is_failing(&self, key: &SecretKey) -> bool {
        self.failing.contains_key(key)
    }

    /// How many timers there are, and how many Secrets have one.
    #[cfg(test)]
    pub(super) fn timers(&self) -> (usize, usize) {
        (self.timers.len(), self.scheduled.len())
    }

    /// Takes note of writes that have been in flight for long; returns whether there are any.
    pub(super) fn note_hanging(&mut self) -> bool {
        self.unexamined.extend(self.in_flight.hanging().cloned().map(Change::Secret));
        self.in_flight.hanging().next().is_some()
    }

    /// Whether nothing is to be written and nothing is being written.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// When the next Secret is to be examined again, or all of them are.
    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let resync = self.resynced.map(|last| later(last.at, RESYNC_INTERVAL));
        timer.into_iter().chain(resync).min()
    }

    /// What the API server made of our write of a Secret, where it is not what we wrote.
    pub(super) fn accepted(&self, target: &SecretTarget) -> Option<ManagedFieldsDigest> {
        // Almost always there is none, and a resync asks for each of thousands.
        (!self.accepted.is_empty()).then(|| self.accepted.get(&target.key()).copied()).flatten()
    }

    /// Forgets what the API server made of our write of a Secret that is not wanted any more.
    pub(super) fn forget_accepted(&mut self, key: &SecretKey) {
        self.accepted.remove(key);
    }

    /// Forgets that a Secret has failed, when nothing is to be written there; returns whether it had. If it fails again soon, somebody
    /// has changed it back.
    pub(super) fn forget_failure(&mut self, key: &SecretKey, wanted: bool, now: Timestamp) -> bool {
        let had_failed = self.failing.remove(key).is_some();
        if had_failed {
            self.count_repairs(key, wanted, 0, now);
        }
        had_failed
    }

    /// Forgets the repairs of a Secret while it was wanted. Without the right to change the namespace itself nobody may cause this for
    /// a Secret that is wanted there: repairs would not be limited any more.
    pub(super) fn forget_repairs(&mut self, key: &SecretKey) {
        if self.repairs.get(key).is_some_and(|repairs| repairs.wanted) {
            self.repairs.remove(key);
        }
    }

    /// Whether a Secret may be written now: it is not being written, has not just failed, and is not contested.
    pub(super) fn may_write(&self, target: &SecretTarget, now: Timestamp) -> bool {
        let key = target.key();
        !self.in_flight.is_at(&key)
            && self.failing.get(&key).is_none_or(|failing| failing.may_retry(target, now))
            && !self.must_wait(&key, is_wanted(target), now)
    }

    /// Whether the next repair of a Secret has to wait.
    fn must_wait(&self, key: &SecretKey, wanted: bool, now: Timestamp) -> bool {
        self.repairs(key, wanted, now).and_then(|repairs| repairs.not_before(key)).is_some_and(|at| at > now)
    }

    /// How a Secret counts about which this is to be done.
    pub(super) fn sync_state(
        &self,
        target: &SecretTarget,
        action: &SecretAction,
        desired: &DesiredSecrets,
        now: Timestamp,
    ) -> SyncState {
        let selected = is_wanted(target);
        let tokens = desired.problem(target).filter(|_| target.selection == Selection::Selected);
        let key = target.key();
        let mut synced = false;
        let problem = match action {
            // As desired for now: whoever else writes it has not stopped.
            SecretAction::Keep if selected && self.is_contested(&key, selected, now) => {
                self.problem(&key, selected, now)
            }
            SecretAction::Keep if tokens.is_none_or(|tokens| tokens.lacks.is_none()) => {
                synced = selected;
                tokens.and_then(|tokens| problem_of(tokens.failure.as_ref()))
            }
            SecretAction::Refuse(reason, message) => Some((*reason, message.clone())),
            _ => self
                .problem(&key, selected, now)
                .or_else(|| self.hanging(&key))
                .or_else(|| tokens.and_then(|tokens| problem_of(tokens.lacks.as_ref()))),
        };
        let lacks = tokens.filter(|_| !synced && problem.is_none()).and_then(|tokens| tokens.lacks.as_ref());
        let fetching = lacks.is_some_and(|lacks| lacks.reason == Reason::FetchingToken);
        SyncState { selected, synced, fetching, problem }
    }

    /// Whether somebody else keeps writing a Secret. It is so until it was left alone for a while, or the status would flap.
    fn is_contested(&self, key: &SecretKey, wanted: bool, now: Timestamp) -> bool {
        self.repairs(key, wanted, now).is_some_and(Repairs::is_contested)
    }

    fn hanging(&self, key: &SecretKey) -> Option<(Reason, String)> {
        let message = "the API server is slow to answer: check its admission webhooks";
        self.in_flight.is_hanging_at(key).then(|| (Reason::ApiError, message.to_owned()))
    }

    fn problem(&self, key: &SecretKey, wanted: bool, now: Timestamp) -> Option<(Reason, String)> {
        let contested = || {
            let message = if wanted {
                "another client keeps changing or deleting the Secret, so it is repaired less often: check its managedFields or the audit log to see which"
            } else {
                "another client keeps creating the Secret, which is not wanted here, so it is deleted less often: check its managedFields or the audit log to see which"
            };
            self.is_contested(key, wanted, now).then(|| (Reason::Contested, message.to_owned()))
        };
        self.failing.get(key).and_then(|failing| failing.problem.clone()).or_else(contested)
    }

    /// Records how a write has ended.
    pub(super) fn record(&mut self, ended: &Ended, desired: &DesiredSecrets, retry: &RetryPolicy, now: Timestamp) {
        let Ended { target, action, result, .. } = ended;
        self.unexamined.insert(Change::Secret(target.key()));
        if matches!((action, result), (SecretAction::Delete(_), Ok(_))) {
            // Only what is not wanted is deleted. Wanted again, the Secret is created, which is no repair.
            self.count_repairs(&target.key(), false, 1, now);
        }
        let desired = desired.at(target).map(AsRef::as_ref);
        // The result of an older content says nothing about this one.
        if ended.desired.as_deref().map(|d| d.digest) != desired.map(|d| d.digest) {
            return;
        }
        let (key, wanted) = (target.key(), is_wanted(target));
        let before = self.failing.remove(&key);
        let count = before.as_ref().map_or(1, |failing| failing.count.saturating_add(1));
        let (problem, wait) = match result {
            Ok(written) => return self.record_written(key, action, written, desired, now),
            // The namespace's own event follows; until then there is nothing to say.
            Err(WriteError::NamespaceGone) => (None, retry.delay(count, 1, &target.namespace).max(STALE_WAIT)),
            // Once means that the watch was behind. Again and again is worth a message.
            Err(WriteError::Stale) if count < 5 => (None, STALE_WAIT),
            Err(WriteError::Stale) => {
                let message = "writing the Secret keeps failing because it changes, or because another field manager owns its data: check its managedFields";
                (Some((Reason::Contested, message.to_owned())), retry.delay(count, 1, &target.namespace))
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                (Some((*reason, message.clone())), retry.delay(count, 1, &target.namespace))
            }
        };
        // It was tried before its wait was over, or has failed again, because of a change by somebody else. Who changes the Secret all
        // the time must not cause a write each time.
        if before.map_or_else(|| self.repairs(&key, wanted, now).is_some(), |failing| failing.retry_at() > now) {
            self.count_repairs(&key, wanted, 1, now);
        }
        let failing = Failing { count, since: now, wait, problem, seen: target.ownership.version() };
        self.failing.insert(key.clone(), failing);
        self.schedule(&key, false, now);
    }

    fn record_written(
        &mut self,
        key: SecretKey,
        action: &SecretAction,
        written: &Written,
        desired: Option<&Desired>,
        now: Timestamp,
    ) {
        // To create a Secret again that somebody else deletes in a loop is a repair like any other; its first creation is none.
        let is_first = *action == SecretAction::Create && self.repairs(&key, true, now).is_none();
        if matches!(action, SecretAction::Create | SecretAction::Update(_) | SecretAction::Strip(_)) {
            let repairs = self.count_repairs(&key, true, u32::from(!is_first), now);
            if let (SecretAction::Update(before), Written::Stored(after)) = (action, written)
                && before.resource_version == after.resource_version
            {
                repairs.needless = repairs.needless.saturating_add(1);
            }
        }
        let Written::Stored(record) = written else { return };
        if desired.is_some_and(|d| d.digest != record.digest) {
            self.accepted.insert(key, record.digest);
        } else {
            self.accepted.remove(&key);
        }
    }

    /// The repairs of a Secret that are remembered, while it is wanted or while it is not.
    fn repairs(&self, key: &SecretKey, wanted: bool, now: Timestamp) -> Option<&Repairs> {
        self.repairs.get(key).filter(|repairs| repairs.wanted == wanted && !repairs.is_over(now))
    }

    /// Counts so many more repairs of a Secret, and remembers those before for a while longer.
    fn count_repairs(&mut self, key: &SecretKey, wanted: bool, more: u32, now: Timestamp) -> &mut Repairs {
        let recent = self.repairs(key, wanted, now);
        let (count, needless) = recent.map_or((0, 0), |repairs| (repairs.count, repairs.needless));
        let repairs = Repairs { wanted, count: count.saturating_add(more), needless, last: now };
        self.repairs.entry(key.clone()).insert_entry(repairs).into_mut()
    }
}

/// Whether a Secret is wanted, though perhaps of another `EcrCredential`.
const fn is_wanted(target: &SecretTarget) -> bool {
    matches!(target.selection, Selection::Selected | Selection::Conflict(_) | Selection::Blocked(_))
}

/// What the status says about a namespace: that a token is being fetched is no failure.
fn problem_of(error: Option<&SpecError>) -> Option<(Reason, String)> {
    error.filter(|error| error.reason != Reason::FetchingToken).map(|error| (error.reason, error.message.clone()))
}

impl Failing {
    fn retry_at(&self) -> Timestamp {
        later(self.since, self.wait)
    }

    /// Whether to try again: the wait is over, or the Secret has changed since.
    fn may_retry(&self, target: &SecretTarget, now: Timestamp) -> bool {
        self.retry_at() <= now || self.seen != target.ownership.version()
    }
}

impl Repairs {
    /// Whether somebody else has changed what is ours too often.
    const fn is_contested(&self) -> bool {
        self.count.saturating_sub(self.needless) > QUICK_REPAIRS
    }

    /// When the next repair may be done; none while it need not wait.
    fn not_before(&self, key: &SecretKey) -> Option<Timestamp> {
        let beyond = self.count.checked_sub(QUICK_REPAIRS).filter(|beyond| *beyond > 0)?;
        Some(later(self.last, REPAIR_BACKOFF.delay(beyond, 1, &key.namespace)))
    }

    /// When the Secret has been left alone for long enough.
    fn peace_at(&self) -> Timestamp {
        later(self.last, PEACE)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.peace_at() <= now
    }

    /// When time alone changes something, once there have been too many.
    fn changes(&self, key: &SecretKey) -> impl Iterator<Item = Timestamp> + use<> {
        let not_before = self.not_before(key);
        not_before.into_iter().chain(not_before.map(|_| self.peace_at()))
    }
}

#[cfg(test)]
mod tests;
