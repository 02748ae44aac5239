//! The state of the cluster behind its lock, and the queue: every event goes in here, and whom it concerns comes out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};

use super::cluster_state::ClusterState;
use super::watches::{CredentialList, credential_ref, unreadable};
use crate::api::observed::Unreadable;
use crate::api::{EcrCredential, EcrCredentialStatus, refresh_request};
use crate::attach::{Fault, ServiceAccountRecord, Wanted};
use crate::lenient::Observed;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::outputs::include_not_readable;
use crate::plan::references::AccountRecord;
use crate::plan::scopes::{AccountScope, Reference, SecretKey, SecretScope};
use crate::plan::{Limits, Uid};
use crate::secret::ownership::SecretRecord;

/// What watches and reconciliations share.
pub struct Shared {
    /// What has been seen. Never held across an await.
    pub state: Mutex<ClusterState>,
    versions: Mutex<HashMap<Uid, Version>>,
    /// The names of the `EcrCredentials` that are being deleted, which are not in the state.
    deleting: Mutex<HashMap<Uid, Arc<str>>>,
    queue: UnboundedSender<Uid>,
    listed: watch::Sender<Listed>,
    targets_changed: Notify,
    limits: Limits,
    skipped: Mutex<BTreeMap<(&'static str, String), usize>>,
    observer: Box<dyn WatchObserver>,
}

/// Hears of what the watches see.
pub trait WatchObserver: Send + Sync {
    /// An `EcrCredential` is gone.
    fn gone(&self, uid: &Uid);
    /// An `EcrCredential` of this name cannot be read, and this was last said of it.
    fn unreadable(&self, uid: &Uid, name: &str, status: Option<&EcrCredentialStatus>);
    /// So many objects of a kind cannot be read at all, and are skipped.
    fn skipped(&self, kind: &'static str, count: usize);
}

/// What a reconciliation depends on of an `EcrCredential`: its generation, the refresh asked for, and who serves it.
type Version = (Option<i64>, Option<String>, Option<String>);

/// Which watches have brought a whole list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    credentials: bool,
    namespaces: bool,
    secrets: HashSet<SecretScope>,
    refused: HashSet<SecretScope>,
    references: HashSet<Reference>,
}

impl Listed {
    /// Whether all have, of so many watches of our Secrets and of what identities refer to; those that are refused do not
    /// count, unless all of them are.
    pub fn is_complete(&self, secret_scopes: usize, references: usize) -> bool {
        let secrets = !self.secrets.is_empty() && self.secrets.union(&self.refused).count() >= secret_scopes;
        self.credentials && self.namespaces && secrets && self.references.len() >= references
    }

    /// Whether the watch that would show a Secret is refused and has never brought a list.
    fn lacks(&self, key: &SecretKey) -> bool {
        let shows = |scope: &SecretScope| scope.contains(key);
        self.refused.iter().any(shows) && !self.secrets.iter().any(shows)
    }
}

impl Shared {
    /// Shares an empty state. `limits` say which specs are usable.
    pub fn new(
        state: ClusterState,
        limits: Limits,
        queue: UnboundedSender<Uid>,
        observer: impl WatchObserver + 'static,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            versions: Mutex::default(),
            deleting: Mutex::default(),
            queue,
            listed: watch::Sender::new(Listed::default()),
            targets_changed: Notify::new(),
            limits,
            skipped: Mutex::default(),
            observer: Box::new(observer),
        }
    }

    /// Tells of an `EcrCredential` while it is there as this object says: it can be read and is served, or it is being deleted. Its end,
    /// and that it cannot be read any more, are told later than this or it is not told: an observer would keep for ever what it hears
    /// of one that is gone.
    pub(super) fn while_there(&self, uid: &Uid, object: &EcrCredential, tell: impl FnOnce()) {
        if object.metadata.deletion_timestamp.is_some() {
            let deleting = self.deleting.lock();
            if deleting.contains_key(uid) {
                tell();
            }
            return;
        }
        let state = self.state.lock();
        if state.index.is_readable(uid) {
            tell();
        }
    }

    /// Whether an `EcrCredential` is there as this object says.
    pub(super) fn is_there(&self, uid: &Uid, object: &EcrCredential) -> bool {
        let mut there = false;
        self.while_there(uid, object, || there = true);
        there
    }

    /// The name of an `EcrCredential` that is served, or is being deleted.
    pub(super) fn credential_name(&self, uid: &Uid) -> Option<Arc<str>> {
        let served = self.state.lock().index.credential_name(uid);
        served.or_else(|| self.deleting.lock().get(uid).cloned())
    }

    /// Follows which watches have brought a whole list.
    pub fn listed(&self) -> watch::Receiver<Listed> {
        self.listed.subscribe()
    }

    fn send(&self, concerned: &BTreeSet<Uid>) {
        for uid in concerned {
            // The receiver ends with the process alone.
            let _ = self.queue.send(uid.clone());
        }
    }

    /// Changes the state and puts whom that concerns on the queue; returns whether anyone is affected.
    fn change(&self, change: impl FnOnce(&mut ClusterState) -> BTreeSet<Uid>) -> bool {
        let concerned = change(&mut self.state.lock());
        self.send(&concerned);
        !concerned.is_empty()
    }

    /// The same for a change of targets, for which a reconciliation that is writing wakes.
    fn change_targets(&self, change: impl FnOnce(&mut ClusterState) -> BTreeSet<Uid>) {
        if self.change(change) {
            self.targets_changed.notify_waiters();
        }
    }

    /// Ends when somebody's targets change, from the moment it is enabled.
    pub(super) fn targets_changed(&self) -> Notified<'_> {
        self.targets_changed.notified()
    }

    pub(super) fn credential_seen(&self, object: &EcrCredential) {
        let Some(uid) = object.uid().map(|uid| Uid(uid.into())) else { return };
        if object.metadata.deletion_timestamp.is_some() {
            if self.deleting.lock().insert(uid.clone(), object.name_any().into()).is_none() {
                self.credential_removed(&uid);
            }
            self.send(&BTreeSet::from([uid]));
            return;
        }
        // Our own status writes come back as events, and are no news.
        let request = refresh_request(object);
        let served_by = object.status.as_ref().and_then(|status| status.served_by.clone());
        let version = (object.metadata.generation, request, served_by);
        let before = self.versions.lock().insert(uid.clone(), version.clone());
        if let Some((generation, request, served_by)) = &before
            && (generation, request) == (&version.0, &version.1)
        {
            // Another installation may have written it. The first name comes with the first status.
            if served_by.is_some() && *served_by != version.2 {
                self.send(&BTreeSet::from([uid]));
            }
            return;
        }
        self.change_targets(|state| state.set_credential(&uid, credential_ref(object, &self.limits)));
    }

    pub(super) fn credential_gone(&self, metadata: &ObjectMeta) {
        if let Some(uid) = metadata.uid.as_deref().map(|uid| Uid(uid.into())) {
            self.deleting.lock().remove(&uid);
            self.credential_removed(&uid);
        }
    }

    pub(super) fn credential_unreadable(&self, object: &Unreadable) {
        let Some(uid) = object.metadata.uid.as_deref().map(|uid| Uid(uid.into())) else { return };
        if object.metadata.deletion_timestamp.is_some() {
            self.credential_removed(&uid);
            return;
        }
        self.versions.lock().remove(&uid);
        self.change_targets(|state| state.set_credential(&uid, unreadable(object)));
        let name = object.metadata.name.as_deref().unwrap_or_default();
        self.observer.unreadable(&uid, name, object.status.as_ref());
    }

    fn credential_removed(&self, uid: &Uid) {
        self.versions.lock().remove(uid);
        self.change(|state| state.remove_credential(uid));
        // Its own reconciliation, which may be writing, is not concerned any more and ends.
        self.targets_changed.notify_waiters();
        self.observer.gone(uid);
    }

    /// A whole list: who is not on it is gone.
    pub(super) fn credentials_listed(&self, list: &CredentialList) {
        let good = list.good.iter().map(EcrCredential::meta);
        let uids = good.chain(list.unreadable.iter().map(|object| &object.metadata)).filter_map(|m| m.uid.as_deref());
        let seen: HashSet<Uid> = uids.map(|uid| Uid(uid.into())).collect();
        let mut known = self.state.lock().index.credentials();
        known.extend(self.deleting.lock().extract_if(|uid, _| !seen.contains(uid)).map(|(uid, _)| uid));
        for uid in known.iter().filter(|uid| !seen.contains(uid)) {
            self.credential_removed(uid);
        }
        for object in &list.good {
            self.credential_seen(object);
        }
        for object in &list.unreadable {
            self.credential_unreadable(object);
        }
        self.listed.send_modify(|listed| listed.credentials = true);
    }

    /// So many objects of a kind that one watch has seen cannot be read.
    pub(super) fn skipped(&self, kind: &'static str, scope: &str, count: usize) {
        let mut skipped = self.skipped.lock();
        let place = (kind, scope.to_owned());
        if count == 0 {
            skipped.remove(&place)
        } else {
            skipped.insert(place, count)
        };
        let sum = skipped.iter().filter(|((of, _), _)| *of == kind).map(|(_, count)| count).sum();
        self.observer.skipped(kind, sum);
    }

    pub(super) fn namespace_seen(&self, object: &Observed<Namespace>) {
        let terminating = object.meta().deletion_timestamp.is_some();
        let (name, namespace_uid) = (object.name_any(), NamespaceUid::of_namespace(object.meta()));
        self.change_targets(|state| state.set_namespace(&name, namespace_uid, object.labels(), terminating));
    }

    pub(super) fn namespace_gone(&self, name: &str) {
        self.change_targets(|state| state.remove_namespace(name));
    }

    pub(super) fn namespaces_listed(&self, seen: &HashSet<String>) {
        let known = self.state.lock().index.namespace_names();
        for name in known.iter().filter(|name| !seen.contains(&***name)) {
            self.namespace_gone(name);
        }
        self.listed.send_modify(|listed| listed.namespaces = true);
    }

    /// A Secret as a list shows it.
    pub fn secret_listed(&self, name: &str, namespace: &str, record: Arc<SecretRecord>) {
        self.change(|state| {
            self.secret_shown(state, name, namespace, |state| state.set_secret(name, namespace, record))
        });
    }

    /// A Secret as an event shows it, which was created or changed.
    pub fn secret_changed(&self, name: &str, namespace: &str, record: Arc<SecretRecord>) {
        self.change(|state| {
            self.secret_shown(state, name, namespace, |state| state.change_secret(name, namespace, record))
        });
    }

    /// Takes a Secret as it is now; returns whom that concerns.
    fn secret_shown(
        &self,
        state: &mut ClusterState,
        name: &str,
        namespace: &str,
        change: impl FnOnce(&mut ClusterState) -> BTreeSet<Uid>,
    ) -> BTreeSet<Uid> {
        let hindered = state.hinders_attaching(name, namespace);
        let concerned = change(state);
        let turned = state.hinders_attaching(name, namespace) != hindered;
        if turned || (!concerned.is_empty() && state.concerns_renamed(name, namespace)) {
            // ServiceAccounts may name it now, or need not name the Secret of the old name any more. They are looked at after this lock.
            self.targets_changed.notify_waiters();
        }
        concerned
    }

    /// Announces a write, before it is sent, of content that may be for one namespace alone.
    pub(super) fn write_begins(&self, key: SecretKey, content_of: Option<NamespaceUid>) -> Write<'_> {
        self.state.lock().awaited.begin(key.clone(), content_of);
        Write { shared: self, key }
    }

    /// A Secret that is gone.
    pub fn secret_gone(&self, name: &str, namespace: &str, uid: Option<&str>) {
        self.change(|state| self.remove_secret(state, name, namespace, uid));
    }

    fn remove_secret(&self, state: &mut ClusterState, name: &str, namespace: &str, uid: Option<&str>) -> BTreeSet<Uid> {
        if state.is_left_in_place(name, namespace)
            || state.concerns_renamed(name, namespace)
            || state.hinders_attaching(name, namespace)
        {
            // ServiceAccounts name it no longer, or may name it now. They are looked at after this lock.
            self.targets_changed.notify_waiters();
        }
        state.remove_secret(name, namespace, uid)
    }

    /// The keys of the Secrets in a scope that are known or being written.
    pub(super) fn secret_keys(&self, scope: &SecretScope) -> Vec<SecretKey> {
        self.state.lock().secret_keys(scope)
    }

    /// The Secrets in a scope that are known.
    pub(super) fn secrets_known(&self, scope: &SecretScope) -> HashMap<SecretKey, Arc<SecretRecord>> {
        let state = self.state.lock();
        let keys = state.secret_keys(scope).into_iter();
        keys.filter_map(|key| state.record(&key.name, &key.namespace).cloned().map(|record| (key, record))).collect()
    }

    /// A list has come without a Secret, which had the uid `before` when the list began. Returns the uid of one that was written since
    /// and stays: it may be newer than the list.
    pub(super) fn secret_unlisted(&self, key: &SecretKey, before: Option<&str>) -> Option<Box<str>> {
        let mut newer = None;
        self.change(|state| {
            let known = state.record(&key.name, &key.namespace).map(|record| record.uid.clone());
            newer = known.filter(|uid| before != Some(&**uid));
            match newer {
                Some(_) => BTreeSet::new(),
                None => self.remove_secret(state, &key.name, &key.namespace, None),
            }
        });
        newer
    }

    /// A whole list of the Secrets in a scope has come.
    pub(super) fn secrets_listed(&self, scope: &SecretScope) {
        self.state.lock().awaited.listed(scope);
        self.listed.send_modify(|listed| {
            if listed.secrets.insert(scope.clone()) && listed.refused.contains(scope) {
                // Whether ServiceAccounts keep what they name is known now.
                self.targets_changed.notify_waiters();
            }
        });
    }

    pub(super) fn secrets_refused(&self, scope: &SecretScope) {
        self.listed.send_modify(|listed| {
            listed.refused.insert(scope.clone());
        });
    }

    /// Changes what is known of something that specs refer to; returns whether that is news, which queues those who refer to it.
    pub(super) fn change_reference(
        &self,
        reference: &Reference,
        change: impl FnOnce(&mut ClusterState) -> bool,
    ) -> bool {
        let mut is_news = false;
        self.change(|state| {
            is_news = change(state);
            if is_news { concerned(state, reference) } else { BTreeSet::new() }
        });
        is_news
    }

    /// A ServiceAccount that identities may begin with, as it takes effect, or that it is gone.
    pub(super) fn account_seen(&self, namespace: &str, name: &str, record: Option<AccountRecord>) {
        let scope = AccountScope { namespace: Some(namespace.into()), name: name.into() };
        self.change_reference(&Reference::Account(scope), |state| {
            // One of a namespace that was deleted and made again, whose end is not heard of yet.
            let namespace_uid = state.index.namespace_uid(namespace);
            let record = record.filter(|record| !namespace_uid.is_after(record.created));
            state.references.set_account(namespace, name, record)
        });
    }

    /// Whether something that specs refer to has changed so often that its changes wait.
    pub(super) fn reference_limited(&self, reference: &Reference, limited: bool) {
        self.change_reference(reference, |state| match reference {
            Reference::Include(scope) => state.includes.set_limited(scope, limited),
            Reference::Account(_) | Reference::Keys(_) => state.references.set_limited(reference, limited),
        });
    }

    /// Whether what specs refer to may be watched is known now.
    pub(super) fn reference_known(&self, reference: Reference, refused: bool) {
        self.change_reference(&reference, |state| match &reference {
            Reference::Account(scope) => state.references.set_accounts_refused(scope, refused),
            Reference::Keys(secret) => refused && state.references.set_keys_refused(secret),
            Reference::Include(secret) => refused && state.includes.set(secret, Err(include_not_readable(secret))),
        });
        self.reference_listed(reference);
    }

    /// Marks a reference as listed, so that startup does not wait for it any longer.
    pub(super) fn reference_listed(&self, reference: Reference) {
        self.listed.send_modify(|listed| {
            listed.references.insert(reference);
        });
    }

    /// The pull secrets that a ServiceAccount should name, and those that it keeps.
    pub(super) fn pull_secrets_of(&self, namespace: &str, name: &str, account: &ServiceAccountRecord) -> Wanted {
        let unknown: BTreeSet<Arc<str>> = {
            let listed = self.listed.borrow();
            let is_unknown = |secret: &&str| listed.lacks(&SecretKey::new(*secret, namespace));
            let marked = if listed.refused.is_empty() { BTreeSet::new() } else { account.marked() };
            marked.into_iter().filter(is_unknown).map(Arc::from).collect()
        };
        // After that: the first list may come at any time, and what it has shown is in the state before it counts as listed.
        let mut wanted = self.state.lock().pull_secrets_of(namespace, name, account);
        // They may be there, and left in place.
        wanted.kept.extend(unknown);
        wanted
    }

    /// Whether the ServiceAccounts of a scope, to which Secrets are attached, may be watched.
    pub(super) fn accounts_watched(&self, scope: &AccountScope, watched: bool) {
        self.change(|state| {
            let news = if watched { state.unwatched.remove(scope) } else { state.unwatched.insert(scope.clone()) };
            if news { state.index.attaching().clone() } else { BTreeSet::new() }
        });
    }

    /// What is wrong with the pull secrets of a ServiceAccount, if anything is.
    pub(super) fn attachment(&self, namespace: &str, name: &str, fault: Fault) {
        self.change(|state| {
            let place: (Arc<str>, Arc<str>) = (namespace.into(), name.into());
            let news = if fault == Fault::default() {
                state.unattached.remove(&place).is_some()
            } else {
                state.unattached.insert(place, fault.clone()) != Some(fault)
            };
            if news { state.index.attached_by(namespace, name) } else { BTreeSet::new() }
        });
    }
}

/// A write that has been announced, until it ends.
pub(super) struct Write<'a> {
    shared: &'a Shared,
    key: SecretKey,
}

impl Write<'_> {
    /// It was done: known at once.
    pub(super) fn stored(&self, record: Arc<SecretRecord>, writer: &Uid) {
        let SecretKey { namespace, name } = &self.key;
        let concerned = {
            let mut state = self.shared.state.lock();
            self.shared.secret_shown(&mut state, name, namespace, |state| state.answered(&self.key, record))
        };
        self.queue_others(concerned, writer);
    }

    /// It was not done. A change that was taken for it was somebody else's.
    pub(super) fn refused(&self, writer: &Uid) {
        let concerned = self.shared.state.lock().refused(&self.key);
        self.queue_others(concerned, writer);
    }

    /// Who wrote it examines the Secret anyway, and is not queued.
    fn queue_others(&self, mut concerned: BTreeSet<Uid>, writer: &Uid) {
        concerned.remove(writer);
        self.shared.send(&concerned);
    }

    /// It is unknown whether it was done.
    pub(super) fn unanswered(&self) {
        self.shared.state.lock().awaited.unanswered(self.key.clone());
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().awaited.end(&self.key);
    }
}

/// Whose identities refer to something; a ServiceAccount in one namespace is also one of those of its name in each.
fn concerned(state: &ClusterState, reference: &Reference) -> BTreeSet<Uid> {
    let mut concerned = state.index.referring_to(reference);
    if let Reference::Account(scope) = reference {
        let any = AccountScope { namespace: None, name: scope.name.clone() };
        concerned.extend(state.index.referring_to(&Reference::Account(any)));
    }
    concerned
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::plan::references::AllowedIdentities;
    use crate::plan::targets::{Activity, CredentialRef};
    use crate::secret::ownership::ManagedFieldsDigest;

    #[test]
    fn what_was_attached_stays_also_where_the_first_list_comes_while_it_is_looked_at() {
        let shared = crate::controller::tests::shared(AllowedIdentities::default());
        let (me, scope) = (Uid("x".into()), SecretScope { name: Some("pull".into()), namespace: None });
        let suspended = CredentialRef {
            name: "x".into(),
            created: Timestamp::UNIX_EPOCH,
            activity: Activity::Idle,
            secrets: Vec::new(),
            generation: Some(1),
            references: BTreeSet::new(),
            attach: Vec::new(),
        };
        shared.state.lock().set_credential(&me, suspended);
        shared.secrets_refused(&scope);
        let account = ServiceAccountRecord { attached: Some("pull".into()), ..ServiceAccountRecord::default() };
        let digest = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let secret = Arc::new(SecretRecord::fixture(Some(me), "7", digest));
        let wanted = std::thread::scope(|threads| {
            let mut look = None;
            shared.listed.send_modify(|listed| {
                look = Some(threads.spawn(|| shared.pull_secrets_of("a", "default", &account)));
                // It has read by then what it reads first. Whatever that is, the outcome is the same.
                std::thread::sleep(Duration::from_millis(200));
                shared.state.lock().set_secret("pull", "a", secret);
                listed.secrets.insert(scope.clone());
            });
            look.unwrap().join().unwrap()
        });
        assert_eq!(wanted.kept, BTreeSet::from(["pull".into()]));
    }
}
