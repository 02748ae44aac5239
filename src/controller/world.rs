//! What the watches have seen, indexed so that an event touches only whom it concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::answers::Awaited;
use crate::api::status::Reason;
use crate::attach::Unattached;
use crate::plan::Uid;
use crate::plan::references::References;
use crate::plan::targets::{Claimant, Incarnation, Index, Labels};
use crate::secret::ownership::{SecretRecord, Standing};
use crate::secret::{Claim, Place, Records};

/// At most so many new namespaces are kept as news; more than that are found by a look at all places.
const MOST_NEWS: usize = 64;

/// A Secret's place: its name, then its namespace.
pub type Spot = (Arc<str>, Arc<str>);

/// Namespaces, `EcrCredentials`, and the metadata of the Secrets that may be ours.
#[derive(Debug)]
pub struct World {
    /// Who wants what where.
    pub index: Index,
    /// What identities refer to.
    pub references: References,
    records: HashMap<Arc<str>, Records>,
    owned: HashMap<Uid, BTreeSet<Spot>>,
    revisions: HashMap<Uid, u64>,
    last_revision: u64,
    news: HashMap<Uid, BTreeSet<Arc<str>>>,
    /// The writes under way.
    pub awaited: Awaited,
    /// The ServiceAccounts, by namespace and name, that do not name what they should, and why.
    pub unattached: BTreeMap<(Arc<str>, Arc<str>), (Reason, String)>,
}

/// At most so many ServiceAccounts are told of.
const MOST_UNATTACHED: usize = 20;

impl World {
    /// An empty world over an index, with what identities may refer to.
    pub fn new(index: Index, references: References) -> Self {
        let (records, owned, revisions, news, awaited, unattached) = Default::default();
        Self { index, references, records, owned, revisions, last_revision: 0, news, awaited, unattached }
    }

    /// Takes a Secret as it is now; returns whom it concerns. A state older than the one known is no news: the answer
    /// to a write often overtakes the watch.
    pub fn set_secret(&mut self, name: &str, namespace: &str, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
        let known = self.record(name, namespace).cloned();
        if let Some(known) = &known
            && (**known == *record || record.is_older_than(known))
        {
            return BTreeSet::new();
        }
        let spot = self.spot(name, namespace);
        let record = self.with_shared_owner(record);
        let mut concerned = self.concerned(&spot);
        self.disown(known.as_deref(), &spot, &mut concerned);
        if let Some(owner) = &record.owner {
            self.owned.entry(owner.clone()).or_default().insert(spot.clone());
            concerned.insert(owner.clone());
        }
        self.records.entry(spot.0).or_default().insert(spot.1, record);
        concerned
    }

    /// Takes the answer to a write; returns whom it concerns. It is no news where the watch has told of the Secret's end.
    pub fn answered(&mut self, spot: &Spot, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
        match self.awaited.holds(spot, &record.uid) {
            true => self.set_secret(&spot.0, &spot.1, record),
            false => BTreeSet::new(),
        }
    }

    /// Forgets a Secret that is gone; returns whom that concerns. With a `uid`, only that very Secret.
    pub fn remove_secret(&mut self, name: &str, namespace: &str, uid: Option<&str>) -> BTreeSet<Uid> {
        let spot = self.spot(name, namespace);
        self.awaited.gone(&spot, uid);
        let known = self.record(name, namespace).cloned();
        let Some(known) = known.filter(|known| uid.is_none_or(|uid| *known.uid == *uid)) else {
            return BTreeSet::new();
        };
        let mut concerned = self.concerned(&spot);
        self.disown(Some(&*known), &spot, &mut concerned);
        if let Some(records) = self.records.get_mut(name) {
            records.remove(namespace);
            if records.is_empty() {
                self.records.remove(name);
            }
        }
        concerned
    }

    /// The Secrets known in a scope, of one name or any, in one namespace or any; and those that are being written. Found by what
    /// is given: where there are a hundred names, each is asked for once a list.
    pub fn spots(&self, name: Option<&str>, namespace: Option<&str>) -> Vec<Spot> {
        let known = scoped(&self.records, name).flat_map(|(name, records)| {
            scoped(records, namespace).map(move |(namespace, _)| (name.clone(), namespace.clone()))
        });
        let within = |scope: Option<&str>, text: &str| scope.is_none_or(|scope| scope == text);
        let awaited = self.awaited.spots().filter(|(n, ns)| within(name, n) && within(namespace, ns));
        known.chain(awaited.cloned()).collect()
    }

    /// The Secrets marked as belonging to an `EcrCredential`.
    pub fn owned_by(&self, uid: &Uid) -> Vec<(Spot, Arc<SecretRecord>)> {
        let spots = self.owned.get(uid).into_iter().flatten();
        spots.filter_map(|spot| Some((spot.clone(), self.record(&spot.0, &spot.1)?.clone()))).collect()
    }

    /// Every place that concerns an `EcrCredential`: its targets, and where it has left Secrets. None unless it is alive and
    /// of that generation: what concerned its predecessor must not be done in its name.
    pub fn places<'a>(
        &'a self,
        me: &'a Uid,
        secret_name: &'a Arc<str>,
        generation: Option<i64>,
    ) -> Option<impl Iterator<Item = Place> + use<'a>> {
        if !self.is_current(me, generation) {
            return None;
        }
        let targets = self.index.targets(me).map(move |namespace| (secret_name, namespace));
        let owned = self.owned.get(me).into_iter().flatten().map(|(name, namespace)| (name, namespace));
        let left =
            owned.filter(move |(name, namespace)| name != &secret_name || !self.index.wants(me, name, namespace));
        Some(targets.chain(left).filter_map(move |(name, namespace)| self.concern(me, secret_name, name, namespace)))
    }

    /// One place, the same way; none as well when it concerns the `EcrCredential` no more.
    pub fn place_at(&self, me: &Uid, secret_name: &Arc<str>, generation: Option<i64>, spot: &Spot) -> Option<Place> {
        self.is_current(me, generation).then(|| self.concern(me, secret_name, &spot.0, &spot.1)).flatten()
    }

    /// Whether an `EcrCredential` is alive and of that generation.
    pub fn is_current(&self, me: &Uid, generation: Option<i64>) -> bool {
        self.index.is_alive(me) && self.index.generation(me) == generation
    }

    fn concern(&self, me: &Uid, secret_name: &str, name: &Arc<str>, namespace: &Arc<str>) -> Option<Place> {
        let winner = self.index.winner(name, namespace);
        let name_of = |uid: &Uid| self.index.claimant_name(uid).unwrap_or_else(|| "unknown".into());
        let claim = match winner {
            Some(winner) if name.as_ref() == secret_name && winner == me => match self.blocker(me, name, namespace) {
                Some(blocker) => Claim::Blocked(name_of(blocker)),
                None => Claim::Wanted,
            },
            Some(winner) if name.as_ref() == secret_name && self.index.wants(me, name, namespace) => {
                match self.index.is_readable(winner) {
                    true => Claim::Lost(name_of(winner)),
                    false => Claim::Blocked(name_of(winner)),
                }
            }
            _ => {
                let mine = self.owned.get(me)?.contains(&(name.clone(), namespace.clone()));
                if !mine || !self.index.is_open(namespace) {
                    return None;
                }
                if winner.is_some() { Claim::LeftToAnother } else { Claim::Left }
            }
        };
        let standing = Standing::of(self.record(name, namespace), me, |uid| self.index.is_alive(uid));
        let incarnation = self.index.incarnation(namespace);
        Some(Place { namespace: namespace.clone(), incarnation, name: name.clone(), standing, claim })
    }

    /// Who has a Secret though it is another's by right: an `EcrCredential` that cannot be read, and so may still want it.
    fn blocker(&self, me: &Uid, name: &str, namespace: &str) -> Option<&Uid> {
        let owner = self.record(name, namespace)?.owner.as_ref()?;
        let unreadable = self.index.is_alive(owner) && !self.index.is_readable(owner);
        (unreadable && self.index.is_before(owner, me)).then_some(owner)
    }

    /// The ServiceAccounts that do not name the Secret of an `EcrCredential` though they should: the first by name.
    pub fn unattached_of(&self, me: &Uid) -> Vec<Unattached> {
        let mine = self
            .unattached
            .iter()
            .filter(|((namespace, name), _)| self.index.attached_by(namespace, name).contains(me));
        let told = |((namespace, name), (reason, message)): (&(Arc<str>, Arc<str>), &(Reason, String))| Unattached {
            account: format!("{namespace}/{name}"),
            reason: *reason,
            message: message.clone(),
        };
        mine.take(MOST_UNATTACHED).map(told).collect()
    }

    /// The namespaces that an `EcrCredential` selects and is entitled to.
    pub fn own_targets(&self, me: &Uid, secret_name: &str) -> BTreeMap<Arc<str>, Incarnation> {
        let mine = |namespace: &&Arc<str>| self.index.winner(secret_name, namespace) == Some(me);
        let incarnation = |namespace: &Arc<str>| (namespace.clone(), self.index.incarnation(namespace));
        self.index.targets(me).filter(mine).map(incarnation).collect()
    }

    /// Changes with every change to an `EcrCredential`'s targets, so that a long round of writes sees that there is news.
    pub fn revision(&self, uid: &Uid) -> u64 {
        self.revisions.get(uid).copied().unwrap_or_default()
    }

    /// Notes news for some. No number comes twice, also when one goes and comes back.
    pub fn touch(&mut self, uids: &BTreeSet<Uid>) {
        for uid in uids {
            self.last_revision = self.last_revision.wrapping_add(1);
            self.revisions.insert(uid.clone(), self.last_revision);
        }
    }

    /// Takes a namespace as it is now; returns whom it concerns.
    pub fn set_namespace(
        &mut self,
        name: &str,
        incarnation: Incarnation,
        labels: &Labels,
        terminating: bool,
    ) -> BTreeSet<Uid> {
        if self.index.incarnation(name) != incarnation {
            self.references.bury(name, incarnation);
        }
        let concerned = self.index.set_namespace(name, incarnation, labels, terminating);
        for uid in &concerned {
            let news = self.news.entry(uid.clone()).or_default();
            if news.len() < MOST_NEWS {
                news.extend(self.index.namespace_name(name));
            }
        }
        concerned
    }

    /// The next of the namespaces whose claims have changed, or of some of them: they can be served before all others are
    /// looked at.
    pub fn next_news(&mut self, uid: &Uid) -> Option<Arc<str>> {
        let news = self.news.get_mut(uid)?;
        let next = news.pop_first();
        if news.is_empty() {
            self.news.remove(uid);
        }
        next
    }

    /// Takes an `EcrCredential` as it is now; returns whom it concerns.
    pub fn set_claimant(&mut self, uid: &Uid, claimant: Claimant) -> BTreeSet<Uid> {
        let mut concerned = self.blocked_by(uid);
        concerned.extend(self.index.set_claimant(uid, claimant));
        concerned.extend(self.blocked_by(uid));
        concerned
    }

    /// Forgets an `EcrCredential` that is gone.
    pub fn remove_claimant(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let mut concerned = self.blocked_by(uid);
        self.revisions.remove(uid);
        self.news.remove(uid);
        concerned.extend(self.index.remove_claimant(uid));
        concerned.remove(uid);
        concerned
    }

    /// Those who want the Secrets that an `EcrCredential` has and that cannot be read.
    fn blocked_by(&self, uid: &Uid) -> BTreeSet<Uid> {
        if !self.index.is_alive(uid) || self.index.is_readable(uid) {
            return BTreeSet::new();
        }
        self.owned.get(uid).into_iter().flatten().flat_map(|spot| self.concerned(spot)).collect()
    }

    /// What is known of the Secret in a place.
    pub fn record(&self, name: &str, namespace: &str) -> Option<&Arc<SecretRecord>> {
        self.records.get(name)?.get(namespace)
    }

    /// The spot with the texts that are already in memory, where they are.
    fn spot(&self, name: &str, namespace: &str) -> Spot {
        let known = self.records.get_key_value(name);
        let shared_name = known.map_or_else(|| name.into(), |(key, _)| key.clone());
        let shared_namespace =
            known.and_then(|(_, records)| records.get_key_value(namespace)).map(|(key, _)| key.clone());
        (
            shared_name,
            shared_namespace.or_else(|| self.index.namespace_name(namespace)).unwrap_or_else(|| namespace.into()),
        )
    }

    /// The record with its owner's uid as it is already in memory: thousands of Secrets have the same.
    fn with_shared_owner(&self, mut record: Arc<SecretRecord>) -> Arc<SecretRecord> {
        let known = record.owner.as_ref().and_then(|owner| self.owned.get_key_value(owner));
        if let Some((owner, _)) = known {
            Arc::make_mut(&mut record).owner = Some(owner.clone());
        }
        record
    }

    fn concerned(&self, spot: &Spot) -> BTreeSet<Uid> {
        self.index.claims(&spot.0, &spot.1).into_iter().collect()
    }

    fn disown(&mut self, record: Option<&SecretRecord>, spot: &Spot, concerned: &mut BTreeSet<Uid>) {
        let Some(owner) = record.and_then(|record| record.owner.as_ref()) else { return };
        concerned.insert(owner.clone());
        if let Some(spots) = self.owned.get_mut(owner) {
            spots.remove(spot);
            if spots.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

/// The one that a scope names, or all.
fn scoped<'a, V>(all: &'a HashMap<Arc<str>, V>, scope: Option<&str>) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
    let one = scope.and_then(|key| all.get_key_value(key));
    one.into_iter().chain(scope.is_none().then_some(all).into_iter().flatten())
}
