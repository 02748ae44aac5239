//! What the watches have seen, indexed so that an event touches only whom it concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::expectations::Expectations;
use super::includes::Includes;
use crate::api::OutputFormat;
use crate::api::status::Reason;
use crate::attach::Unattached;
use crate::plan::Uid;
use crate::plan::namespaces::{Labels, NamespaceUid};
use crate::plan::references::References;
use crate::plan::targets::{CredentialRef, SelectorIndex};
use crate::secret::ownership::{Ownership, SecretRecord};
use crate::secret::{Records, SecretTarget, Selection};

/// At most so many new namespaces are kept as news; more than that are found by a look at all places.
const MOST_NEWS: usize = 64;

/// A Secret's place: its name, then its namespace.
pub type SecretKey = (Arc<str>, Arc<str>);

/// Namespaces, `EcrCredentials`, and the metadata of the Secrets that may be ours.
#[derive(Debug)]
pub struct ClusterState {
    /// Who wants what where.
    pub index: SelectorIndex,
    /// What identities refer to.
    pub references: References,
    records: HashMap<Arc<str>, Records>,
    owned: HashMap<Uid, BTreeSet<SecretKey>>,
    revisions: HashMap<Uid, u64>,
    last_revision: u64,
    news: HashMap<Uid, BTreeSet<Arc<str>>>,
    /// The docker configs of others that are merged into ours.
    pub includes: Includes,
    /// The writes under way.
    pub awaited: Expectations,
    /// The ServiceAccounts, by namespace and name, that do not name what they should, and why.
    pub unattached: BTreeMap<(Arc<str>, Arc<str>), (Reason, String)>,
}

/// At most so many ServiceAccounts are told of.
const MOST_UNATTACHED: usize = 20;

impl ClusterState {
    /// An empty world over an index, with what identities may refer to.
    pub fn new(index: SelectorIndex, references: References) -> Self {
        let (records, owned, revisions, news, awaited, unattached) = Default::default();
        let includes = Includes::default();
        Self { index, references, records, owned, revisions, last_revision: 0, news, includes, awaited, unattached }
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
    pub fn answered(&mut self, spot: &SecretKey, record: Arc<SecretRecord>) -> BTreeSet<Uid> {
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
    pub fn spots(&self, name: Option<&str>, namespace: Option<&str>) -> Vec<SecretKey> {
        let known = scoped(&self.records, name).flat_map(|(name, records)| {
            scoped(records, namespace).map(move |(namespace, _)| (name.clone(), namespace.clone()))
        });
        let within = |scope: Option<&str>, text: &str| scope.is_none_or(|scope| scope == text);
        let awaited = self.awaited.spots().filter(|(n, ns)| within(name, n) && within(namespace, ns));
        known.chain(awaited.cloned()).collect()
    }

    /// The Secrets marked as belonging to an `EcrCredential`.
    pub fn owned_by(&self, uid: &Uid) -> Vec<(SecretKey, Arc<SecretRecord>)> {
        let spots = self.owned.get(uid).into_iter().flatten();
        spots.filter_map(|spot| Some((spot.clone(), self.record(&spot.0, &spot.1)?.clone()))).collect()
    }

    /// Every place that concerns an `EcrCredential`: its targets, and where it has left Secrets. None unless it is alive and
    /// of that generation: what concerned its predecessor must not be done in its name.
    pub fn places<'a>(
        &'a self,
        me: &'a Uid,
        generation: Option<i64>,
    ) -> Option<impl Iterator<Item = SecretTarget> + use<'a>> {
        if !self.is_current(me, generation) {
            return None;
        }
        let owned = self.owned.get(me).into_iter().flatten().map(|(name, namespace)| (name, namespace));
        let left = owned.filter(move |(name, namespace)| !self.index.wants(me, name, namespace));
        Some(self.index.targets(me).chain(left).filter_map(move |(name, namespace)| self.concern(me, name, namespace)))
    }

    /// One place, the same way; none as well when it concerns the `EcrCredential` no more.
    pub fn place_at(&self, me: &Uid, generation: Option<i64>, spot: &SecretKey) -> Option<SecretTarget> {
        self.is_current(me, generation).then(|| self.concern(me, &spot.0, &spot.1)).flatten()
    }

    /// Whether an `EcrCredential` is alive and of that generation.
    pub fn is_current(&self, me: &Uid, generation: Option<i64>) -> bool {
        self.index.is_alive(me) && self.index.generation(me) == generation
    }

    fn concern(&self, me: &Uid, name: &Arc<str>, namespace: &Arc<str>) -> Option<SecretTarget> {
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
                let mine = self.owned.get(me)?.contains(&(name.clone(), namespace.clone()));
                // One that may not be written any more is not given up: whoever takes the permission away may give it again.
                if !mine || !self.index.is_open(name, namespace) || self.index.is_denied(me, name, namespace) {
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

    /// Whether pods may name a Secret that goes by another name now.
    fn is_renamed(&self, me: &Uid, name: &str, namespace: &str) -> bool {
        const PULLED_WITH: OutputFormat = OutputFormat::DockerConfigJson;
        self.record(name, namespace).is_some_and(|record| record.format == PULLED_WITH)
            && self.index.wants_format(me, PULLED_WITH, namespace)
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
        let unattached = mine.take(MOST_UNATTACHED).map(|((namespace, name), (reason, message))| Unattached {
            account: format!("{namespace}/{name}"),
            reason: *reason,
            message: message.clone(),
        });
        unattached.collect()
    }

    /// The namespaces in which an `EcrCredential` selects some Secret and is entitled to it.
    pub fn own_targets(&self, me: &Uid) -> BTreeMap<Arc<str>, NamespaceUid> {
        let mine = |(name, namespace): &(&Arc<str>, &Arc<str>)| self.index.winner(name, namespace) == Some(me);
        let namespace_uid = |(_, namespace): (_, &Arc<str>)| (namespace.clone(), self.index.namespace_uid(namespace));
        self.index.targets(me).filter(mine).map(namespace_uid).collect()
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
        namespace_uid: NamespaceUid,
        labels: &Labels,
        terminating: bool,
    ) -> BTreeSet<Uid> {
        if self.index.namespace_uid(name) != namespace_uid {
            self.references.remove_predecessors_accounts(name, namespace_uid);
        }
        let concerned = self.index.set_namespace(name, namespace_uid, labels, terminating);
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
    pub fn set_credential(&mut self, uid: &Uid, credential: CredentialRef) -> BTreeSet<Uid> {
        let mut concerned = self.blocked_by(uid);
        concerned.extend(self.index.set_credential(uid, credential));
        concerned.extend(self.blocked_by(uid));
        concerned
    }

    /// Forgets an `EcrCredential` that is gone.
    pub fn remove_credential(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let mut concerned = self.blocked_by(uid);
        self.revisions.remove(uid);
        self.news.remove(uid);
        concerned.extend(self.index.remove_credential(uid));
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
    fn spot(&self, name: &str, namespace: &str) -> SecretKey {
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

    fn concerned(&self, spot: &SecretKey) -> BTreeSet<Uid> {
        self.index.claims(&spot.0, &spot.1).into_iter().collect()
    }

    fn disown(&mut self, record: Option<&SecretRecord>, spot: &SecretKey, concerned: &mut BTreeSet<Uid>) {
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

    fn world() -> ClusterState {
        let mut world = ClusterState::new(SelectorIndex::default(), References::default());
        world.set_namespace("a", NamespaceUid::default(), &Labels::new(), false);
        world
    }

    /// What an `EcrCredential` may do about the Secret in the namespace a.
    fn selection(world: &ClusterState, me: &str) -> Option<Selection> {
        let spot = ("pull".into(), "a".into());
        let generation = world.index.generation(&uid(me));
        world.place_at(&uid(me), generation, &spot).map(|place| place.selection)
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
                let mut world = world();
                for step in [order % 3, (order + 1 + order / 3) % 3, (order + 2 - order / 3) % 3] {
                    match step {
                        0 => drop(world.set_credential(&uid("old"), credential("old", 20, activity, namespaces))),
                        1 => drop(world.set_credential(&uid("young"), credential("young", 10, Active, &["a"]))),
                        _ => drop(owner.map(|owner| world.set_secret("pull", "a", record(Some(owner))))),
                    }
                }
                assert_eq!(
                    (selection(&world, "old"), selection(&world, "young")),
                    (older.clone(), younger.clone()),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_claim_that_moves_is_told_to_both_and_comes_back() {
        let both = BTreeSet::from([uid("old"), uid("young")]);
        let mut world = world();
        let set = |world: &mut ClusterState, activity| {
            world.set_credential(&uid("old"), credential("old", 20, activity, &["a"]))
        };
        set(&mut world, Activity::Active);
        world.set_credential(&uid("young"), credential("young", 10, Activity::Active, &["a"]));
        for activity in [Activity::Idle, Activity::Active, Activity::Unreadable, Activity::Idle, Activity::Active] {
            assert_eq!(set(&mut world, activity), both, "{activity:?}");
            assert_eq!(
                selection(&world, "young") == Some(Selection::Selected),
                activity == Activity::Idle,
                "{activity:?}"
            );
        }
        // A Secret that one has, of which nothing else says that it wants it.
        world.set_secret("pull", "a", record(Some("old")));
        for activity in [Activity::Unreadable, Activity::Active, Activity::Unreadable] {
            let concerned = world.set_credential(&uid("old"), credential("old", 20, activity, &[]));
            assert!(concerned.contains(&uid("young")), "{activity:?}: {concerned:?}");
        }
        assert_eq!(world.remove_credential(&uid("old")), BTreeSet::from([uid("young")]));
        assert_eq!(selection(&world, "young"), Some(Selection::Selected));
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing_behind() {
        let mut world = ClusterState::new(SelectorIndex::default(), References::default());
        for round in 0..50 {
            let (me, namespace, secret) = (format!("u{round}"), format!("n{round}"), format!("secret-{round}"));
            let account = AccountScope { namespace: Some(namespace.as_str().into()), name: "puller".into() };
            let labels = [("team".to_owned(), format!("t{round}"))].into();
            let mut credential = credential(&me, round, Activity::Active, &[&namespace]);
            credential.secrets[0].name = secret.as_str().into();
            credential.references = [crate::plan::scopes::Reference::Account(account)].into();
            credential.attach = vec![wildmatch::WildMatch::new("default")];
            let concerned = world.set_credential(&uid(&me), credential);
            world.touch(&concerned);
            world.set_namespace(&namespace, NamespaceUid::default(), &labels, false);
            let spot = (secret.as_str().into(), namespace.as_str().into());
            world.awaited.begin((Arc::clone(&spot.0), Arc::clone(&spot.1)));
            world.set_secret(&secret, &namespace, record(Some(&me)));
            world.awaited.end(&spot);
            let record = AccountRecord { uid: "s".into(), created: Timestamp::MAX, role: None, audience: None };
            world.references.set_account(&namespace, "puller", Some(record));
        }
        for round in 0..50 {
            let (me, namespace, secret) = (format!("u{round}"), format!("n{round}"), format!("secret-{round}"));
            // In one order or the other.
            if round % 2 == 0 {
                world.remove_credential(&uid(&me));
            }
            world.remove_secret(&secret, &namespace, None);
            world.references.set_account(&namespace, "puller", None);
            world.index.remove_namespace(&namespace);
            if round % 2 == 1 {
                world.remove_credential(&uid(&me));
            }
        }
        assert!(world.index.is_empty(), "{:?}", world.index);
        assert!(world.records.is_empty(), "{:?}", world.records);
        assert!(world.owned.is_empty() && world.revisions.is_empty() && world.news.is_empty());
        assert!(world.awaited.spots().next().is_none());
        assert!(world.references.is_empty(), "{:?}", world.references);
    }

    #[test]
    fn as_many_namespaces_as_service_accounts_are_seen_in_moments() {
        const MANY: usize = 10_000;
        let mut world = ClusterState::new(SelectorIndex::default(), References::default());
        let record = AccountRecord { uid: "s".into(), created: Timestamp::MAX, role: None, audience: None };
        let begun = cpu_time();
        for number in 0..MANY {
            world.references.set_account(&format!("n{number}"), "puller", Some(record.clone()));
        }
        for number in 0..MANY {
            let namespace_uid = NamespaceUid::of("u", Some(Timestamp::from_second(1).unwrap()));
            world.set_namespace(&format!("n{number}"), namespace_uid, &Labels::new(), false);
        }
        // A look at all ServiceAccounts for each namespace would take many times as long.
        let took = cpu_time().saturating_sub(begun);
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
        let scope = AccountScope { namespace: None, name: "puller".into() };
        assert_eq!(world.references.accounts_in(&scope).len(), MANY);
    }
}
