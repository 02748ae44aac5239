//! What the watches have seen, indexed so that an event touches only whom it concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::expectations::Expectations;
use super::includes::Includes;
use crate::api::OutputFormat;
use crate::api::status::Reason;
use crate::attach::{Fault, ServiceAccountRecord, Unattached, Wanted};
use crate::plan::Uid;
use crate::plan::namespaces::{Labels, NamespaceUid};
use crate::plan::references::References;
use crate::plan::scopes::{AccountScope, SecretKey, SecretScope};
use crate::plan::targets::{CredentialRef, SelectorIndex};
use crate::secret::ownership::{Ownership, SecretRecord, Trust};
use crate::secret::{Records, SecretTarget, Selection};

/// So many changes are kept for an `EcrCredential`. After more, all of its Secrets are examined again.
const MOST_TOUCHED: usize = 1024;

/// What an event has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A namespace, and with it which Secrets belong there.
    Namespace(Arc<str>),
    /// A Secret.
    Secret(SecretKey),
}

/// What events have changed for an `EcrCredential`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// What they have shown.
    pub changes: BTreeSet<Change>,
    /// Whether any of its Secrets may have changed besides.
    pub everything: bool,
}

/// Namespaces, `EcrCredentials`, and the metadata of the Secrets that may be ours.
#[derive(Debug)]
pub struct ClusterState {
    /// Who wants what where.
    pub index: SelectorIndex,
    /// What identities refer to.
    pub references: References,
    records: HashMap<Arc<str>, Records>,
    /// The Secrets of each `EcrCredential`: those in one namespace are found without a look at all.
    owned: HashMap<Uid, BTreeSet<SecretKey>>,
    /// What events have touched since an `EcrCredential` last examined its Secrets.
    touched: HashMap<Uid, Touched>,
    /// The docker configs of others that are merged into ours.
    pub includes: Includes,
    /// The writes under way.
    pub awaited: Expectations,
    /// The ServiceAccounts, by namespace and name, to which not everything is attached as it should be, and why.
    pub unattached: BTreeMap<(Arc<str>, Arc<str>), Fault>,
    /// The ServiceAccounts to attach to that may not be watched.
    pub unwatched: BTreeSet<AccountScope>,
}

impl ClusterState {
    /// An empty state over an index, with what identities may refer to.
    pub fn new(index: SelectorIndex, references: References) -> Self {
        let (records, owned, touched, includes, awaited, unattached, unwatched) = Default::default();
        Self { index, references, records, owned, touched, includes, awaited, unattached, unwatched }
    }

    /// Takes a Secret as a list shows it; returns whom it concerns. One that was not known is believed: so it was found.
    pub fn set_secret(&mut self, name: &str, namespace: &str, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
        self.secret_shown(name, namespace, record, true)
    }

    /// Takes a Secret as an event shows it; returns whom it concerns. One that was not known was created by a write of ours, or by
    /// somebody else.
    pub fn change_secret(&mut self, name: &str, namespace: &str, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
        self.secret_shown(name, namespace, record, false)
    }

    /// A state older than the one known is no news: the answer to a write often overtakes the watch.
    fn secret_shown(
        &mut self,
        name: &str,
        namespace: &str,
        record: Arc<SecretRecord>,
        is_listed: bool,
    ) -> BTreeSet<Uid> {
        let (key, known) = (self.shared_key(name, namespace), self.record(name, namespace).cloned());
        if known.as_ref().is_some_and(|known| record.is_older_than(known)) {
            return BTreeSet::new();
        }
        // That of a Secret that is known does not change but by an answer.
        let before = known.as_ref().and_then(|known| content_before(known, &record));
        let content_of = before.or_else(|| self.awaited.content_of(&key).map(Box::new));
        let may_be_ours = self.awaited.shown(&key);
        let trust = match &known {
            Some(known) => record.trust_after(known, may_be_ours),
            None if is_listed => Trust::Unchanged,
            None if may_be_ours => Trust::Changed,
            None => Trust::Forged,
        };
        self.put_secret(key, known.as_ref(), with_content_of(with_trust(record, trust), content_of))
    }

    fn put_secret(
        &mut self,
        key: SecretKey,
        known: Option<&Arc<SecretRecord>>,
        record: Arc<SecretRecord>,
    ) -> BTreeSet<Uid> {
        if known == Some(&record) {
            return BTreeSet::new();
        }
        let record = self.with_shared_owner(record);
        let mut concerned = self.concerned(&key);
        self.disown(known.map(AsRef::as_ref), &key, &mut concerned);
        if let Some(owner) = &record.owner {
            self.owned.entry(owner.clone()).or_default().insert(key.clone());
            concerned.insert(owner.clone());
        }
        self.records.entry(key.name.clone()).or_default().insert(key.namespace.clone(), record);
        self.touch(&concerned, &Change::Secret(key));
        concerned
    }

    /// Takes the answer to a write; returns whom it concerns. It is no news where the watch has told of the Secret's end.
    pub fn answered(&mut self, key: &SecretKey, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
        if !self.awaited.holds(key, &record.uid) {
            return BTreeSet::new();
        }
        let known = self.record(&key.name, &key.namespace).cloned();
        let now = match &known {
            // The watch has shown more since, which is judged by what we have written.
            Some(known) if record.is_older_than(known) => with_trust(known.clone(), known.trust_after(&record, false)),
            _ => record,
        };
        let before = || content_before(known.as_ref()?, &now);
        let content_of = self.awaited.sent_for(key).map(Box::new).or_else(before);
        let now = with_content_of(now, content_of);
        self.put_secret(self.shared_key(&key.name, &key.namespace), known.as_ref(), now)
    }

    /// Takes the refusal of a write: what has changed meanwhile was somebody else's doing. Returns whom it concerns.
    pub fn refused(&mut self, key: &SecretKey) -> BTreeSet<Uid> {
        let known = self.record(&key.name, &key.namespace).filter(|record| record.trust == Trust::Changed).cloned();
        let Some(known) = known else { return BTreeSet::new() };
        let forged = with_trust(known.clone(), Trust::Forged);
        self.put_secret(self.shared_key(&key.name, &key.namespace), Some(&known), forged)
    }

    /// Forgets a Secret that is gone; returns whom that concerns. With a `uid`, only that very Secret.
    pub fn remove_secret(&mut self, name: &str, namespace: &str, uid: Option<&str>) -> BTreeSet<Uid> {
        let key = self.shared_key(name, namespace);
        self.awaited.gone(&key, uid);
        let known = self.record(name, namespace).cloned();
        let Some(known) = known.filter(|known| uid.is_none_or(|uid| *known.uid == *uid)) else {
            return BTreeSet::new();
        };
        let mut concerned = self.concerned(&key);
        self.disown(Some(&*known), &key, &mut concerned);
        self.touch(&concerned, &Change::Secret(key));
        if let Some(records) = self.records.get_mut(name) {
            records.remove(namespace);
            if records.is_empty() {
                self.records.remove(name);
            }
        }
        concerned
    }

    /// The Secrets known in a scope, and those that are being written. Found by what the scope names: where there are a hundred names,
    /// each is asked for once a list.
    pub fn secret_keys(&self, scope: &SecretScope) -> Vec<SecretKey> {
        let known = scoped(&self.records, scope.name.as_deref()).flat_map(|(name, records)| {
            let here = scoped(records, scope.namespace.as_deref());
            here.map(move |(namespace, _)| SecretKey::new(name.clone(), namespace.clone()))
        });
        let awaited = self.awaited.keys().filter(|key| scope.contains(key));
        known.chain(awaited.cloned()).collect()
    }

    /// The Secrets marked as belonging to an `EcrCredential`.
    pub fn owned_by(&self, uid: &Uid) -> Vec<(SecretKey, Arc<SecretRecord>)> {
        let owned = self.owned.get(uid).into_iter().flatten();
        owned.filter_map(|key| Some((key.clone(), self.record(&key.name, &key.namespace)?.clone()))).collect()
    }

    /// Whether any Secret is marked as belonging to an `EcrCredential`.
    pub fn owns_any(&self, uid: &Uid) -> bool {
        self.owned.contains_key(uid)
    }

    /// Every Secret that concerns an `EcrCredential`: its targets, and what it has left elsewhere. None unless it is alive and of that
    /// generation: what concerned its predecessor must not be done in its name.
    pub fn targets<'a>(
        &'a self,
        me: &'a Uid,
        generation: Option<i64>,
    ) -> Option<impl Iterator<Item = SecretTarget> + use<'a>> {
        let keys = self.is_current(me, generation).then(|| self.index.targets(me).chain(self.left_by(me)))?;
        Some(
            keys.filter_map(move |(name, namespace)| self.target(me, &SecretKey::new(name.clone(), namespace.clone()))),
        )
    }

    /// One Secret that concerns an `EcrCredential`; none when it does not. What comes of it may be done only while
    /// [`Self::is_current`]: to one that is gone, all of its Secrets seem left over.
    pub fn target(&self, me: &Uid, key: &SecretKey) -> Option<SecretTarget> {
        let SecretKey { namespace, name } = key;
        let winner = self.index.winner(name, namespace);
        let name_of = |uid: &Uid| self.index.credential_name(uid).unwrap_or_else(|| "unknown".into());
        let selection = match winner {
            Some(winner) if winner == me => match self.blocker(me, name, namespace) {
                Some(blocker) => Selection::Blocked(name_of(blocker)),
                None => Selection::Selected,
            },
            Some(winner) if self.index.wants(me, name, namespace) => match self.index.is_readable(winner) {
                true => Selection::Conflict(name_of(winner)),
                false => Selection::Blocked(name_of(winner)),
            },
            _ => {
                // One that may not be written any more is kept: the permission may come back.
                if !self.owns(me, key)
                    || !self.index.is_open(name, namespace)
                    || self.index.is_denied(me, name, namespace)
                {
                    return None;
                }
                match winner {
                    Some(_) => Selection::Superseded,
                    None if self.is_renamed(me, name, namespace) => Selection::Renamed,
                    None => Selection::Deselected,
                }
            }
        };
        let ownership = Ownership::of(self.record(name, namespace), me, |uid| self.index.is_alive(uid));
        let namespace_uid = self.index.namespace_uid(namespace);
        Some(SecretTarget { namespace: namespace.clone(), namespace_uid, name: name.clone(), ownership, selection })
    }

    /// Whether an `EcrCredential` is still served, and still in that relation to a Secret of that very namespace.
    pub(super) fn is_still(&self, me: &Uid, target: &SecretTarget) -> bool {
        self.index.is_active(me)
            && self
                .target(me, &target.key())
                .is_some_and(|now| now.selection == target.selection && now.namespace_uid == target.namespace_uid)
    }

    /// The keys of every Secret that concerns an `EcrCredential`, or that it may not write in a namespace that it selects.
    pub(super) fn keys<'a>(&'a self, me: &'a Uid) -> impl Iterator<Item = SecretKey> + use<'a> {
        let keys = self.index.targets(me).chain(self.left_by(me)).chain(self.index.denied(me));
        keys.map(|(name, namespace)| SecretKey::new(name.clone(), namespace.clone()))
    }

    /// The keys that a change may matter to: the Secret that has changed, and those of an `EcrCredential` in the same namespace.
    pub(super) fn keys_of(&self, me: &Uid, change: &Change) -> BTreeSet<SecretKey> {
        let (namespace, changed) = match change {
            Change::Namespace(namespace) => (namespace, None),
            Change::Secret(SecretKey { namespace, name }) => (namespace, Some(name)),
        };
        let wanted = self.index.secrets(me).map(|(name, _)| name);
        let owned = self.owned.get(me).into_iter().flat_map(|owned| in_namespace(owned, namespace));
        wanted.chain(owned).chain(changed).map(|name| SecretKey::new(name.clone(), namespace.clone())).collect()
    }

    /// Whether a Secret may concern an `EcrCredential`: it is a target, or marked as belonging to it.
    pub(super) fn is_concerned(&self, me: &Uid, key: &SecretKey) -> bool {
        self.index.wants(me, &key.name, &key.namespace) || self.owns(me, key)
    }

    fn owns(&self, me: &Uid, key: &SecretKey) -> bool {
        self.owned.get(me).is_some_and(|owned| owned.contains(key))
    }

    /// The Secrets that an `EcrCredential` has and does not want any more.
    fn left_by<'a>(&'a self, me: &'a Uid) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)> + use<'a> {
        let owned = self.owned.get(me).into_iter().flatten().map(|key| (&key.name, &key.namespace));
        owned.filter(move |(name, namespace)| !self.index.wants(me, name, namespace))
    }

    /// Whether an `EcrCredential` is alive and of that generation.
    pub fn is_current(&self, me: &Uid, generation: Option<i64>) -> bool {
        self.index.is_alive(me) && self.index.generation(me) == generation
    }

    /// Whether pods may name a Secret that goes by another name now. If the spec still has the name, the namespace was deselected, whatever
    /// other Secrets of that format it holds.
    fn is_renamed(&self, me: &Uid, name: &str, namespace: &str) -> bool {
        const PULLED_WITH: OutputFormat = OutputFormat::DockerConfigJson;
        if self.index.secrets(me).any(|(of_spec, _)| **of_spec == *name) {
            return false;
        }
        self.record(name, namespace).is_some_and(|record| record.format == PULLED_WITH)
            && self.index.wants_format(me, PULLED_WITH, namespace)
    }

    /// Who has a Secret though it is another's by right: an `EcrCredential` that cannot be read, and so may still want it.
    fn blocker(&self, me: &Uid, name: &str, namespace: &str) -> Option<&Uid> {
        let owner = self.record(name, namespace)?.owner.as_ref()?;
        let unreadable = self.index.is_alive(owner) && !self.index.is_readable(owner);
        (unreadable && self.index.is_before(owner, me)).then_some(owner)
    }

    /// The pull secrets that a ServiceAccount should name, and those that it keeps.
    pub fn pull_secrets_of(&self, namespace: &str, name: &str, account: &ServiceAccountRecord) -> Wanted {
        let attached = self.index.attached(namespace, name);
        let (foreign, desired): (BTreeSet<_>, BTreeSet<_>) =
            attached.into_iter().partition(|secret| self.is_foreign(secret, namespace));
        let is_kept = |secret: &&str| {
            foreign.contains(*secret)
                || (!desired.contains(*secret)
                    && (self.is_left_in_place(secret, namespace) || self.is_unreplaced(secret, namespace, name)))
        };
        let kept = account.marked().into_iter().filter(is_kept).map(Into::into).collect();
        Wanted { desired, kept, foreign }
    }

    /// Whether a Secret is there that is not the operator's.
    fn is_foreign(&self, name: &str, namespace: &str) -> bool {
        self.record(name, namespace).is_some_and(|record| record.owner.is_none())
    }

    /// Whether a Secret is there that is not the operator's, but would be attached to ServiceAccounts if it were.
    pub(super) fn hinders_attaching(&self, name: &str, namespace: &str) -> bool {
        self.is_foreign(name, namespace)
            && self.index.winner(name, namespace).is_some_and(|winner| self.index.attaching().contains(winner))
    }

    /// Whether a ServiceAccount keeps the Secret of an old name: the `EcrCredential` has no Secret of the new name there yet.
    fn is_unreplaced(&self, secret: &str, namespace: &str, account: &str) -> bool {
        let Some(owner) = self.record(secret, namespace).and_then(|record| record.owner.as_ref()) else { return false };
        let Some(new) = self.index.attaches(owner, account) else { return false };
        self.index.wants(owner, new, namespace)
            && !self.owns(owner, &SecretKey::new(new.clone(), namespace))
            && self
                .target(owner, &SecretKey::new(secret, namespace))
                .is_some_and(|target| target.selection == Selection::Renamed)
    }

    /// Whether a ServiceAccount may name another Secret once this one appears or is gone: its `EcrCredential` has Secrets of an old
    /// name there, or it has one itself.
    pub(super) fn concerns_renamed(&self, name: &str, namespace: &str) -> bool {
        let Some(owner) = self.record(name, namespace).and_then(|record| record.owner.as_ref()) else { return false };
        let namespace: Arc<str> = namespace.into();
        let mut owned = self.owned.get(owner).into_iter().flat_map(|owned| in_namespace(owned, &namespace));
        owned.any(|name| self.is_renamed(owner, name, &namespace))
    }

    /// Whether a Secret is there of an `EcrCredential` that is suspended, stalled or cannot be read.
    pub(super) fn is_left_in_place(&self, name: &str, namespace: &str) -> bool {
        let owner = self.record(name, namespace).and_then(|record| record.owner.as_ref());
        owner.is_some_and(|owner| self.index.is_alive(owner) && !self.index.is_active(owner))
    }

    /// The ServiceAccounts to which the Secret of an `EcrCredential` is not attached as it should be.
    pub fn unattached_of(&self, me: &Uid) -> Option<Unattached> {
        let mut mine = self.unattached.iter().filter_map(|((namespace, name), fault)| {
            let (reason, message) = fault.of(self.index.attaches_in(me, namespace, name)?)?;
            Some((namespace, name, reason, message))
        });
        let Some((namespace, name, reason, message)) = mine.next() else { return self.unwatched_of(me) };
        Some(Unattached { count: 1 + mine.count(), account: format!("{namespace}/{name}"), reason, message })
    }

    /// The ServiceAccounts of an `EcrCredential` that may not be watched.
    fn unwatched_of(&self, me: &Uid) -> Option<Unattached> {
        let attaches = |AccountScope { namespace, name }: &AccountScope| match namespace {
            Some(namespace) => self.index.attaches_in(me, namespace, name),
            None => self.index.attaches(me, name),
        };
        let scope = self.unwatched.iter().find(|scope| attaches(scope).is_some())?;
        let message = "the operator is not allowed to list and watch ServiceAccounts of this name: grant what the chart's attach.serviceAccounts grants".to_owned();
        Some(Unattached { count: 0, account: scope.to_string(), reason: Reason::Forbidden, message })
    }

    /// The namespaces in which an `EcrCredential` selects some Secret and is entitled to it.
    pub fn own_targets(&self, me: &Uid) -> BTreeMap<Arc<str>, NamespaceUid> {
        let mine = |(name, namespace): &(&Arc<str>, &Arc<str>)| self.index.winner(name, namespace) == Some(me);
        let namespace_uid = |(_, namespace): (_, &Arc<str>)| (namespace.clone(), self.index.namespace_uid(namespace));
        self.index.targets(me).filter(mine).map(namespace_uid).collect()
    }

    /// What events have touched since the last call.
    pub(super) fn take_touched(&mut self, uid: &Uid) -> Touched {
        self.touched.remove(uid).unwrap_or_default()
    }

    /// Whether events have touched anything since then.
    pub(super) fn is_touched(&self, uid: &Uid) -> bool {
        self.touched.contains_key(uid)
    }

    /// Records a change for those whom it concerns.
    fn touch(&mut self, uids: &BTreeSet<Uid>, change: &Change) {
        for uid in uids.iter().filter(|uid| self.index.is_alive(uid)) {
            let touched = self.touched.entry(uid.clone()).or_default();
            touched.changes.insert(change.clone());
            if touched.changes.len() > MOST_TOUCHED {
                *touched = Touched { everything: true, ..Touched::default() };
            }
        }
    }

    /// Records for some that any of their Secrets may have changed.
    pub(super) fn touch_all(&mut self, uids: &BTreeSet<Uid>) {
        for uid in uids.iter().filter(|uid| self.index.is_alive(uid)) {
            self.touched.entry(uid.clone()).or_default().everything = true;
        }
    }

    /// Takes a namespace as it is now; returns whom it concerns.
    pub fn set_namespace(
        &mut self,
        name: &str,
        namespace_uid: NamespaceUid,
        labels: &Labels,
        terminating: bool,
    ) -> BTreeSet<Uid> {
        if self.index.namespace_uid(name) != namespace_uid {
            self.references.remove_predecessors_accounts(name, namespace_uid);
        }
        let known = self.index.namespace(name);
        let mut concerned = self.index.set_namespace(name, namespace_uid, labels, terminating);
        if known != Some((namespace_uid, terminating)) || !concerned.is_empty() {
            concerned.extend(self.owners_in(name));
        }
        if let Some(name) = self.index.namespace_name(name) {
            self.touch(&concerned, &Change::Namespace(name));
        }
        concerned
    }

    /// Forgets a namespace that is gone; returns whom that concerns.
    pub fn remove_namespace(&mut self, name: &str) -> BTreeSet<Uid> {
        let shared_name = self.index.namespace_name(name);
        self.awaited.namespace_gone(name);
        let mut concerned = self.index.remove_namespace(name);
        concerned.extend(self.owners_in(name));
        if let Some(name) = shared_name {
            self.touch(&concerned, &Change::Namespace(name));
        }
        concerned
    }

    /// Those who have a Secret in a namespace, be it wanted or not.
    fn owners_in(&self, namespace: &str) -> BTreeSet<Uid> {
        let namespace: Arc<str> = namespace.into();
        let is_here = |owned: &BTreeSet<SecretKey>| in_namespace(owned, &namespace).next().is_some();
        self.owned.iter().filter(|(_, owned)| is_here(owned)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Takes an `EcrCredential` as it is now; returns whom it concerns.
    pub fn set_credential(&mut self, uid: &Uid, credential: CredentialRef) -> BTreeSet<Uid> {
        let mut concerned = self.beside(uid);
        concerned.extend(self.index.set_credential(uid, credential));
        concerned.extend(self.beside(uid));
        self.touch_all(&concerned);
        concerned
    }

    /// Forgets an `EcrCredential` that is gone.
    pub fn remove_credential(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let mut concerned = self.beside(uid);
        concerned.extend(self.index.remove_credential(uid));
        concerned.remove(uid);
        self.touched.remove(uid);
        self.touch_all(&concerned);
        concerned
    }

    /// Those who have a Secret that an `EcrCredential` wants, and those who want one that it has while it cannot be read.
    fn beside(&self, uid: &Uid) -> BTreeSet<Uid> {
        let owner = |(name, namespace): (&Arc<str>, &Arc<str>)| self.record(name, namespace)?.owner.as_ref();
        let mut beside: BTreeSet<Uid> = self.index.targets(uid).filter_map(owner).cloned().collect();
        if self.index.is_alive(uid) && !self.index.is_readable(uid) {
            let owned = self.owned.get(uid).into_iter().flatten();
            beside.extend(owned.flat_map(|key| self.concerned(key)));
        }
        beside
    }

    /// What is known of a Secret.
    pub fn record(&self, name: &str, namespace: &str) -> Option<&Arc<SecretRecord>> {
        self.records.get(name)?.get(namespace)
    }

    /// The key with the texts that are already in memory, where they are.
    fn shared_key(&self, name: &str, namespace: &str) -> SecretKey {
        let known = self.records.get_key_value(name);
        let shared_name = known.map_or_else(|| name.into(), |(key, _)| key.clone());
        let shared_namespace =
            known.and_then(|(_, records)| records.get_key_value(namespace)).map(|(key, _)| key.clone());
        SecretKey {
            name: shared_name,
            namespace: shared_namespace
                .or_else(|| self.index.namespace_name(namespace))
                .unwrap_or_else(|| namespace.into()),
        }
    }

    /// The record with its owner's uid as it is already in memory: thousands of Secrets have the same.
    fn with_shared_owner(&self, mut record: Arc<SecretRecord>) -> Arc<SecretRecord> {
        let known = record.owner.as_ref().and_then(|owner| self.owned.get_key_value(owner));
        if let Some((owner, _)) = known {
            Arc::make_mut(&mut record).owner = Some(owner.clone());
        }
        record
    }

    fn concerned(&self, key: &SecretKey) -> BTreeSet<Uid> {
        self.index.claims(&key.name, &key.namespace).into_iter().collect()
    }

    fn disown(&mut self, record: Option<&SecretRecord>, key: &SecretKey, concerned: &mut BTreeSet<Uid>) {
        let Some(owner) = record.and_then(|record| record.owner.as_ref()) else { return };
        concerned.insert(owner.clone());
        if let Some(owned) = self.owned.get_mut(owner) {
            owned.remove(key);
            if owned.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

fn with_trust(mut record: Arc<SecretRecord>, trust: Trust) -> Arc<SecretRecord> {
    if record.trust != trust {
        Arc::make_mut(&mut record).trust = trust;
    }
    record
}

/// The namespace that the content of a Secret was for, if it is the same Secret.
fn content_before(known: &SecretRecord, now: &SecretRecord) -> Option<Box<NamespaceUid>> {
    known.content_of.clone().filter(|_| known.uid == now.uid)
}

fn with_content_of(mut record: Arc<SecretRecord>, content_of: Option<Box<NamespaceUid>>) -> Arc<SecretRecord> {
    if record.content_of != content_of {
        Arc::make_mut(&mut record).content_of = content_of;
    }
    record
}

/// The names of the Secrets in one namespace.
fn in_namespace<'a>(
    owned: &'a BTreeSet<SecretKey>,
    namespace: &'a Arc<str>,
) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
    let from_there = owned.range(SecretKey::new(Arc::default(), namespace.clone())..);
    from_there.take_while(move |key| key.namespace == *namespace).map(|key| &key.name)
}

/// The one that a scope names, or all.
fn scoped<'a, V>(all: &'a HashMap<Arc<str>, V>, scope: Option<&str>) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
    let one = scope.and_then(|key| all.get_key_value(key));
    one.into_iter().chain(scope.is_none().then_some(all).into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use k8s_openapi::jiff::Timestamp;

    use super::super::stage::cpu_time;
    use super::*;
    use crate::api::NamespaceSelection;
    use crate::plan::namespaces::NamespaceMatcher;
    use crate::plan::outputs::WantedSecret;
    use crate::plan::references::AccountRecord;
    use crate::plan::scopes::AccountScope;
    use crate::plan::targets::Activity;
    use crate::secret::SecretAction;
    use crate::secret::ownership::ManagedFieldsDigest;

    const NOBODY: Option<&str> = None;

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    fn credential(name: &str, age: i64, activity: Activity, namespaces: &[&str]) -> CredentialRef {
        let names = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let selection = NamespaceSelection { names, ..NamespaceSelection::default() };
        CredentialRef {
            name: name.into(),
            created: Timestamp::from_second(1_000_000 - age).unwrap(),
            activity,
            secrets: vec![WantedSecret::anywhere("pull", NamespaceMatcher::parse(&selection).ok())],
            generation: Some(1),
            references: BTreeSet::new(),
            attach: Vec::new(),
        }
    }

    fn record(owner: Option<&str>) -> Arc<SecretRecord> {
        Arc::new(SecretRecord::fixture(owner.map(uid), "7", ManagedFieldsDigest::desired(&ObjectMeta::default())))
    }

    fn cluster() -> ClusterState {
        let mut cluster = ClusterState::new(SelectorIndex::default(), References::default());
        cluster.set_namespace("a", NamespaceUid::default(), &Labels::new(), false);
        cluster
    }

    #[test]
    fn all_serviceaccounts_that_do_not_name_a_secret_are_counted() {
        let mut cluster = cluster();
        let mut attaching = credential("me", 1, Activity::Active, &["a"]);
        attaching.attach = vec![wildmatch::WildMatch::new("sa-*")];
        cluster.set_credential(&uid("me"), attaching);
        let fault = |failure| Fault { failure: Some(failure), ..Fault::default() };
        for number in 0..25 {
            let failure = (Reason::Forbidden, format!("no {number}"));
            cluster.unattached.insert(("a".into(), format!("sa-{number:02}").into()), fault(failure));
        }
        cluster.unattached.insert(("a".into(), "another".into()), fault((Reason::Forbidden, String::new())));
        let Unattached { count, account, message, .. } = cluster.unattached_of(&uid("me")).unwrap();
        assert_eq!((count, &*account, &*message), (25, "a/sa-00", "no 0"));
        assert_eq!(cluster.unattached_of(&uid("other")), None);
    }

    /// What an `EcrCredential` may do about the Secret in the namespace a.
    fn selection(cluster: &ClusterState, me: &str) -> Option<Selection> {
        let key = SecretKey::new("pull", "a");
        cluster.target(&uid(me), &key).map(|target| target.selection)
    }

    #[test]
    fn a_secret_is_renamed_where_the_spec_has_its_name_no_more_and_else_deselected() {
        use Selection::{Deselected, Renamed, Selected};
        // The name and the namespace of the pull secret, and the namespace of an output of the same format.
        let table = [
            ("as it was", "pull", "a", "b", Selected),
            ("another name", "new", "a", "b", Renamed),
            ("deselected", "pull", "b", "b", Deselected),
            ("deselected, beside an output", "pull", "b", "a", Deselected),
            ("another name elsewhere", "new", "b", "b", Deselected),
            ("another name elsewhere, beside an output", "new", "b", "a", Renamed),
        ];
        for (what, name, namespace, placed, expected) in table {
            let mut cluster = cluster();
            cluster.set_secret("pull", "a", record(Some("me")));
            let mut me = credential("me", 1, Activity::Active, &[namespace]);
            me.secrets[0].name = name.into();
            let [output] = credential("me", 1, Activity::Active, &[placed]).secrets.try_into().unwrap();
            me.secrets.push(WantedSecret { name: "out".into(), ..output });
            cluster.set_credential(&uid("me"), me);
            assert_eq!(selection(&cluster, "me"), Some(expected), "{what}");
        }
    }

    #[test]
    fn whoever_is_refreshed_goes_before_an_older_one_that_is_not() {
        use Activity::{Active, Idle, Unreadable};
        let lost = |name: &str| Some(Selection::Conflict(name.into()));
        let blocked = |name: &str| Some(Selection::Blocked(name.into()));
        let wanted = || Some(Selection::Selected);
        // What the older one is, where it wants a Secret and who has it; what the older and the younger may do.
        let table = [
            ("both are well", Active, &["a"][..], NOBODY, wanted(), lost("old")),
            ("the older is idle", Idle, &["a"], NOBODY, lost("young"), wanted()),
            ("the older is idle and has the Secret", Idle, &["a"], Some("old"), lost("young"), wanted()),
            ("the older cannot be read", Unreadable, &["a"], NOBODY, wanted(), blocked("old")),
            ("the older cannot be read and has the Secret", Unreadable, &["a"], Some("old"), wanted(), blocked("old")),
            ("what the older wants cannot be read", Unreadable, &[], NOBODY, None, wanted()),
            (
                "nor that, and it has the Secret",
                Unreadable,
                &[],
                Some("old"),
                Some(Selection::Superseded),
                blocked("old"),
            ),
        ];
        for (name, activity, namespaces, owner, older, younger) in table {
            // In whichever order they are seen.
            for order in 0..6 {
                let mut cluster = cluster();
                for step in [order % 3, (order + 1 + order / 3) % 3, (order + 2 - order / 3) % 3] {
                    match step {
                        0 => drop(cluster.set_credential(&uid("old"), credential("old", 20, activity, namespaces))),
                        1 => drop(cluster.set_credential(&uid("young"), credential("young", 10, Active, &["a"]))),
                        _ => drop(owner.map(|owner| cluster.set_secret("pull", "a", record(Some(owner))))),
                    }
                }
                assert_eq!(
                    (selection(&cluster, "old"), selection(&cluster, "young")),
                    (older.clone(), younger.clone()),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn the_token_of_a_namespace_that_was_stored_in_its_successor_is_deleted_in_whatever_order_that_is_heard_of() {
        let namespace_uid = |uid: &str| NamespaceUid::of(uid, Some(Timestamp::UNIX_EPOCH));
        let (old, new) = (namespace_uid("old"), namespace_uid("new"));
        let (key, me) = (SecretKey::new("pull", "a"), uid("me"));
        let now = Timestamp::UNIX_EPOCH;
        let stored =
            Arc::new(SecretRecord { expires_at: Timestamp::from_second(3600).ok(), ..(*record(Some("me"))).clone() });
        let said = |cluster: &ClusterState| {
            let target = cluster.target(&me, &key).unwrap();
            crate::secret::action(&target, None, crate::api::ConflictPolicy::Fail, None, now.into())
        };
        for (content_of, is_answered, is_recreated) in
            [old, new].into_iter().flat_map(|of| [(of, true, true), (of, false, true), (of, true, false)])
        {
            // What the steps are, of which any order can be that in which they are heard of.
            for order in 0..24 {
                let mut cluster = cluster();
                cluster.set_credential(&me, credential("me", 1, Activity::Active, &["a"]));
                cluster.set_namespace("a", if is_recreated { old } else { content_of }, &Labels::new(), false);
                cluster.awaited.begin(key.clone(), Some(content_of));
                let mut steps = vec![0, 1, 2, 3];
                let steps: Vec<usize> =
                    [6, 2, 1, 1].into_iter().map(|each| steps.remove(order / each % steps.len())).collect();
                for step in &steps {
                    match step {
                        0 => {
                            if is_answered {
                                cluster.answered(&key, stored.clone());
                            } else {
                                cluster.awaited.unanswered(key.clone());
                            }
                            cluster.awaited.end(&key);
                        }
                        1 => drop(cluster.change_secret("pull", "a", stored.clone())),
                        2 if is_recreated => drop(cluster.remove_namespace("a")),
                        3 if is_recreated => drop(cluster.set_namespace("a", new, &Labels::new(), false)),
                        _ => {}
                    }
                }
                cluster.set_namespace("a", if is_recreated { new } else { content_of }, &Labels::new(), false);
                // Somebody labels it.
                let labelled = SecretRecord { resource_version: "8".into(), ..(*stored).clone() };
                cluster.change_secret("pull", "a", Arc::new(labelled));
                let is_deleted = matches!(said(&cluster), SecretAction::Delete(record) if record.uid == stored.uid);
                assert_eq!(is_deleted, is_recreated && content_of == old, "answered: {is_answered}, {steps:?}");
            }
        }
        let mut cluster = cluster();
        cluster.set_credential(&me, credential("me", 1, Activity::Active, &["a"]));
        cluster.set_secret("pull", "a", stored.clone());
        cluster.set_namespace("a", new, &Labels::new(), false);
        assert_eq!(said(&cluster), SecretAction::Keep, "it was found, and it is unknown which namespace it is for");
    }

    /// What is heard of the Secret in the namespace a, in which order.
    enum Heard {
        Listed(Version),
        Event(Version),
        Begin,
        Answer(Version),
        /// A write has ended without an answer.
        Lost,
        /// A write was refused.
        Refused,
        Gone,
    }

    /// The resourceVersion of a Secret, its content, and when it was applied.
    type Version = (u32, u8, u32);

    fn version((version, content, applied_at): Version) -> Arc<SecretRecord> {
        let annotations = Some([("hash".to_owned(), content.to_string())].into());
        let digest = ManagedFieldsDigest::desired(&ObjectMeta { annotations, ..ObjectMeta::default() });
        Arc::new(SecretRecord { applied_at, ..SecretRecord::fixture(Some(uid("me")), &version.to_string(), digest) })
    }

    #[test]
    fn what_others_apply_under_our_name_is_told_from_our_own_writes() {
        use Heard::{Answer, Begin, Event, Gone, Listed, Lost, Refused};
        use Trust::{Changed, Forged, Unchanged};
        let table = [
            ("found after a restart", vec![Listed((1, 1, 10))], Unchanged),
            ("written", vec![Listed((1, 1, 10)), Begin, Answer((2, 2, 20)), Event((2, 2, 20))], Unchanged),
            (
                "written, the event first",
                vec![Listed((1, 1, 10)), Begin, Event((2, 2, 20)), Answer((2, 2, 20))],
                Unchanged,
            ),
            ("written, the answer lost", vec![Listed((1, 1, 10)), Begin, Event((2, 2, 20)), Lost], Changed),
            ("written, the event late", vec![Listed((1, 1, 10)), Begin, Lost, Event((2, 2, 20))], Changed),
            ("labelled", vec![Listed((1, 1, 10)), Event((2, 1, 10))], Unchanged),
            (
                "labelled before the answer",
                vec![Begin, Event((1, 1, 10)), Event((2, 1, 10)), Answer((1, 1, 10))],
                Unchanged,
            ),
            ("forged", vec![Listed((1, 1, 10)), Event((2, 1, 20))], Forged),
            ("forged, in a list", vec![Listed((1, 1, 10)), Listed((2, 1, 20))], Forged),
            ("forged and labelled", vec![Listed((1, 1, 10)), Event((2, 1, 20)), Event((3, 1, 20))], Forged),
            ("forged and the time put back", vec![Listed((1, 1, 10)), Event((2, 1, 20)), Event((3, 1, 10))], Forged),
            ("forged in two steps", vec![Listed((1, 1, 10)), Event((2, 2, 20)), Event((3, 1, 21))], Forged),
            ("edited and forged", vec![Listed((1, 1, 10)), Event((2, 2, 10)), Event((3, 1, 21))], Forged),
            ("forged before the answer", vec![Begin, Event((1, 1, 10)), Event((2, 1, 20)), Answer((1, 1, 10))], Forged),
            ("forged, the answer late", vec![Listed((1, 1, 10)), Begin, Event((3, 2, 21)), Answer((2, 2, 20))], Forged),
            (
                "forged and repaired",
                vec![Listed((1, 1, 10)), Event((2, 1, 20)), Begin, Event((3, 1, 30)), Answer((3, 1, 30))],
                Unchanged,
            ),
            (
                "forged with our own content",
                vec![Listed((1, 1, 10)), Event((2, 1, 20)), Begin, Answer((2, 1, 20))],
                Unchanged,
            ),
            (
                "edited, and forged during the repair that this refuses",
                vec![Listed((1, 1, 10)), Event((2, 2, 10)), Begin, Event((3, 1, 20)), Refused],
                Forged,
            ),
            ("created by somebody else during our create", vec![Begin, Event((1, 1, 10)), Refused], Forged),
            ("forged, its repair refused", vec![Listed((1, 1, 10)), Event((2, 1, 20)), Begin, Lost], Forged),
            ("created", vec![Begin, Event((1, 1, 10)), Answer((1, 1, 10))], Unchanged),
            ("created, the answer lost", vec![Begin, Event((1, 1, 10)), Lost], Changed),
            ("created, the answer lost and the event late", vec![Begin, Lost, Event((1, 1, 10))], Changed),
            (
                "written twice, the answers lost and the events late",
                vec![Listed((1, 1, 10)), Begin, Lost, Event((2, 2, 20)), Begin, Lost, Event((3, 3, 30))],
                Changed,
            ),
            (
                "forged after a write without an answer",
                vec![Listed((1, 1, 10)), Begin, Lost, Event((2, 2, 20)), Event((3, 2, 30))],
                Forged,
            ),
            ("created by somebody else", vec![Event((1, 1, 10))], Forged),
            ("deleted and created", vec![Listed((1, 1, 10)), Gone, Event((3, 1, 20))], Forged),
        ];
        for (what, heard, expected) in table {
            let mut cluster = cluster();
            let key = SecretKey::new("pull", "a");
            for one in heard {
                match one {
                    Listed(record) => drop(cluster.set_secret("pull", "a", version(record))),
                    Event(record) => drop(cluster.change_secret("pull", "a", version(record))),
                    Begin => cluster.awaited.begin(key.clone(), None),
                    Answer(record) => {
                        cluster.answered(&key, version(record));
                        cluster.awaited.end(&key);
                    }
                    Lost => {
                        cluster.awaited.unanswered(key.clone());
                        cluster.awaited.end(&key);
                    }
                    Refused => {
                        let trust = |cluster: &ClusterState| cluster.record("pull", "a").map(|record| record.trust);
                        let before = trust(&cluster);
                        let concerned = cluster.refused(&key);
                        assert_eq!(!concerned.is_empty(), before != trust(&cluster), "{what}");
                        cluster.awaited.end(&key);
                    }
                    Gone => drop(cluster.remove_secret("pull", "a", None)),
                }
            }
            assert_eq!(cluster.record("pull", "a").unwrap().trust, expected, "{what}");
        }
    }

    #[test]
    fn a_claim_that_moves_is_told_to_both_and_comes_back() {
        let both = BTreeSet::from([uid("old"), uid("young")]);
        let mut cluster = cluster();
        let set = |cluster: &mut ClusterState, activity| {
            cluster.set_credential(&uid("old"), credential("old", 20, activity, &["a"]))
        };
        set(&mut cluster, Activity::Active);
        cluster.set_credential(&uid("young"), credential("young", 10, Activity::Active, &["a"]));
        for activity in [Activity::Idle, Activity::Active, Activity::Unreadable, Activity::Idle, Activity::Active] {
            assert_eq!(set(&mut cluster, activity), both, "{activity:?}");
            assert_eq!(
                selection(&cluster, "young") == Some(Selection::Selected),
                activity == Activity::Idle,
                "{activity:?}"
            );
        }
        // A Secret that one has, of which nothing else says that it wants it.
        cluster.set_secret("pull", "a", record(Some("old")));
        for activity in [Activity::Unreadable, Activity::Active, Activity::Unreadable] {
            let concerned = cluster.set_credential(&uid("old"), credential("old", 20, activity, &[]));
            assert!(concerned.contains(&uid("young")), "{activity:?}: {concerned:?}");
        }
        assert_eq!(cluster.remove_credential(&uid("old")), BTreeSet::from([uid("young")]));
        assert_eq!(selection(&cluster, "young"), Some(Selection::Selected));
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing_behind() {
        let mut cluster = ClusterState::new(SelectorIndex::default(), References::default());
        for round in 0..50 {
            let (me, namespace, secret) = (format!("u{round}"), format!("n{round}"), format!("secret-{round}"));
            let account = AccountScope { namespace: Some(namespace.as_str().into()), name: "puller".into() };
            let labels = [("team".to_owned(), format!("t{round}"))].into();
            let mut credential = credential(&me, round, Activity::Active, &[&namespace]);
            credential.secrets[0].name = secret.as_str().into();
            credential.references = [crate::plan::scopes::Reference::Account(account)].into();
            credential.attach = vec![wildmatch::WildMatch::new("default")];
            cluster.set_credential(&uid(&me), credential);
            cluster.set_namespace(&namespace, NamespaceUid::default(), &labels, false);
            let key = SecretKey::new(secret.as_str(), namespace.as_str());
            cluster.awaited.begin(key.clone(), None);
            cluster.set_secret(&secret, &namespace, record(Some(&me)));
            cluster.awaited.end(&key);
            let record = AccountRecord { uid: "s".into(), created: Timestamp::MAX, role: None, audience: None };
            cluster.references.set_account(&namespace, "puller", Some(record));
        }
        for round in 0..50 {
            let (me, namespace, secret) = (format!("u{round}"), format!("n{round}"), format!("secret-{round}"));
            // In one order or the other.
            if round % 2 == 0 {
                cluster.remove_credential(&uid(&me));
            }
            cluster.remove_secret(&secret, &namespace, None);
            cluster.references.set_account(&namespace, "puller", None);
            cluster.remove_namespace(&namespace);
            if round % 2 == 1 {
                cluster.remove_credential(&uid(&me));
            }
        }
        assert!(cluster.index.is_empty(), "{:?}", cluster.index);
        assert!(cluster.records.is_empty(), "{:?}", cluster.records);
        assert!(cluster.owned.is_empty() && cluster.touched.is_empty());
        assert!(cluster.awaited.keys().next().is_none());
        assert!(cluster.references.is_empty(), "{:?}", cluster.references);
    }

    #[test]
    fn a_namespace_is_seen_in_moments_however_many_names_secrets_have() {
        const MANY: usize = 20_000;
        let mut cluster = ClusterState::new(SelectorIndex::default(), References::default());
        for number in 0..MANY {
            cluster.set_secret(&format!("release-{number}"), "elsewhere", record(Some("other")));
        }
        cluster.set_secret("pull", "n1", record(Some("x")));
        let begun = cpu_time();
        for number in 0..MANY {
            let concerned =
                cluster.set_namespace(&format!("n{number}"), NamespaceUid::default(), &Labels::new(), false);
            assert_eq!(concerned.contains(&uid("x")), number == 1, "{number}");
        }
        // A look at all names for each namespace would take many times as long.
        let took = cpu_time().saturating_sub(begun);
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn as_many_namespaces_as_service_accounts_are_seen_in_moments() {
        const MANY: usize = 10_000;
        let mut cluster = ClusterState::new(SelectorIndex::default(), References::default());
        let record = AccountRecord { uid: "s".into(), created: Timestamp::MAX, role: None, audience: None };
        let begun = cpu_time();
        for number in 0..MANY {
            cluster.references.set_account(&format!("n{number}"), "puller", Some(record.clone()));
        }
        for number in 0..MANY {
            let namespace_uid = NamespaceUid::of("u", Some(Timestamp::from_second(1).unwrap()));
            cluster.set_namespace(&format!("n{number}"), namespace_uid, &Labels::new(), false);
        }
        // A look at all ServiceAccounts for each namespace would take many times as long.
        let took = cpu_time().saturating_sub(begun);
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
        let scope = AccountScope { namespace: None, name: "puller".into() };
        assert_eq!(cluster.references.accounts_in(&scope).len(), MANY);
    }
}
