//! The index of what the watches have seen: after any events, in any order, it answers as one that starts from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::{NamespaceSelection, OutputFormat};
use ecr_credential_operator::controller::cluster_state::ClusterState;
use ecr_credential_operator::plan::Uid;
use ecr_credential_operator::plan::outputs::WantedSecret;
use ecr_credential_operator::plan::references::References;
use ecr_credential_operator::plan::targets::{
    Activity, CredentialRef, Labels, NamespaceMatcher, NamespaceUid, SelectorIndex,
};
use ecr_credential_operator::secret::Selection;
use ecr_credential_operator::secret::ownership::{ManagedFieldsDigest, SecretRecord};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::selection::selects;
use crate::material::{self, NAMESPACES};

const UIDS: [&str; 4] = ["u0", "u1", "u2", "u3"];
const SECRETS: [&str; 2] = ["pull", "other"];

/// A Secret's name and namespace.
type SecretKey = (String, String);
/// What an `EcrCredential` may do in each place, and the version of the Secret that is there.
type Places = BTreeMap<SecretKey, Treatment>;
type Treatment = (Selection, Option<Box<str>>);

/// What there is, in the plainest form.
#[derive(Default)]
struct Model {
    allowed: Option<BTreeSet<Arc<str>>>,
    namespaces: BTreeMap<String, (Labels, bool)>,
    claimants: BTreeMap<String, (CredentialRef, Option<NamespaceSelection>)>,
    secrets: BTreeMap<SecretKey, Arc<SecretRecord>>,
}

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let allowed = u.ratio(1, 4)?.then(|| material::some(u, &NAMESPACES)).transpose()?;
    let allowed: Option<BTreeSet<Arc<str>>> = allowed.map(|names| names.into_iter().map(Into::into).collect());
    let mut world = ClusterState::new(SelectorIndex::new(allowed.clone()), References::default());
    let mut model = Model { allowed, ..Model::default() };
    for _ in 0..48 {
        if u.is_empty() {
            break;
        }
        let before: Vec<Places> = UIDS.iter().map(|uid| model.places(uid)).collect();
        let (concerned, of_secret) = event(u, &mut world, &mut model)?;
        for (uid, before) in UIDS.iter().zip(before) {
            let after = model.places(uid);
            let gone = !model.claimants.contains_key(*uid);
            let told = concerned.contains(&Uid((*uid).into()));
            let same = entitled(&before) == entitled(&after) && (!of_secret || before == after);
            assert!(gone || same || told, "{uid} is not told: {before:?} before, {after:?} after");
            compare(&world, &model, uid, &after);
        }
    }
    Ok(())
}

/// The places that an `EcrCredential` wants. Those that it has left are also looked at once a minute, and of a change by which
/// another's claim to one ends nobody is told sooner.
fn entitled(places: &Places) -> Vec<(&SecretKey, &Treatment)> {
    places
        .iter()
        .filter(|(_, (claim, _))| matches!(claim, Selection::Selected | Selection::Conflict(_) | Selection::Blocked(_)))
        .collect()
}

/// One event, for both; returns whom the world says that it concerns, and whether it is of a Secret.
fn event(u: &mut Unstructured<'_>, world: &mut ClusterState, model: &mut Model) -> Result<(BTreeSet<Uid>, bool)> {
    let namespace = *u.choose(&NAMESPACES)?;
    let uid = *u.choose(&UIDS)?;
    let spot = ((*u.choose(&SECRETS)?).to_owned(), namespace.to_owned());
    let kind = u.int_in_range(0..=9)?;
    let concerned = match kind {
        0..=2 => {
            let (labels, terminating) = (material::labels(u)?, u.ratio(1, 6)?);
            let incarnation = NamespaceUid::of(u.choose(&["x", "y"])?, None);
            model.namespaces.insert(namespace.to_owned(), (labels.clone(), terminating));
            world.set_namespace(namespace, incarnation, &labels, terminating)
        }
        3 => {
            model.namespaces.remove(namespace);
            world.index.remove_namespace(namespace)
        }
        4..=5 => {
            let (claimant, spec) = claimant(u, uid)?;
            model.claimants.insert(uid.to_owned(), (claimant.clone(), spec));
            world.set_claimant(&Uid(uid.into()), claimant)
        }
        6 => {
            model.claimants.remove(uid);
            world.remove_claimant(&Uid(uid.into()))
        }
        7..=8 => {
            let record = Arc::new(record(u)?);
            let known = model.secrets.get(&spot);
            if known.is_none_or(|known| version(&record) >= version(known)) {
                model.secrets.insert(spot.clone(), record.clone());
            }
            world.set_secret(&spot.0, &spot.1, record)
        }
        _ => {
            model.secrets.remove(&spot);
            world.remove_secret(&spot.0, &spot.1, None)
        }
    };
    Ok((concerned, kind >= 7))
}

fn claimant(u: &mut Unstructured<'_>, uid: &str) -> Result<(CredentialRef, Option<NamespaceSelection>)> {
    let spec = material::selection(u)?;
    let selection = NamespaceMatcher::parse(&spec).ok();
    let spec = selection.is_some().then_some(spec);
    let claimant = CredentialRef {
        name: format!("name-{uid}").into(),
        created: material::second(u.int_in_range(0..=2)?),
        activity: *u.choose(&[Activity::Active, Activity::Active, Activity::Idle, Activity::Unreadable])?,
        secrets: vec![WantedSecret::anywhere(u.choose(&SECRETS)?, selection)],
        generation: Some(u.int_in_range(1..=2)?),
        references: BTreeSet::new(),
        attach: Vec::new(),
    };
    Ok((claimant, spec))
}

fn record(u: &mut Unstructured<'_>) -> Result<SecretRecord> {
    let owner = u.ratio(3, 4)?.then(|| u.choose(&UIDS)).transpose()?.map(|uid| Uid((*uid).into()));
    let version = u.int_in_range(1..=9_u8)?.to_string();
    Ok(SecretRecord {
        uid: "s".into(),
        resource_version: version.into(),
        owner,
        footprint: ManagedFieldsDigest::desired(&ObjectMeta::default()),
        expires_at: None,
        hosts: None,
        identity: None,
        format: OutputFormat::DockerConfigJson,
        extra_keys: Box::default(),
        sets_immutable: false,
        applied: true,
        held_by: None,
    })
}

fn version(record: &SecretRecord) -> u64 {
    record.resource_version.parse().expect("a number")
}

/// Whoever makes no use of its claims comes last, then the older first.
fn rank(claimant: &CredentialRef) -> impl Ord + use<'_> {
    (claimant.activity == Activity::Idle, claimant.created, &claimant.name)
}

impl Model {
    fn is_open(&self, namespace: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(namespace))
            && self.namespaces.get(namespace).is_some_and(|(_, terminating)| !terminating)
    }

    fn targets(&self, uid: &str) -> BTreeSet<&str> {
        let Some((_, Some(spec))) = self.claimants.get(uid) else { return BTreeSet::new() };
        let selected =
            |(name, (labels, _)): &(&String, &(Labels, bool))| self.is_open(name) && selects(spec, name, labels);
        self.namespaces.iter().filter(selected).map(|(name, _)| name.as_str()).collect()
    }

    /// Who wants a Secret, the oldest first.
    fn claims(&self, (secret, namespace): &SecretKey) -> Vec<&str> {
        let wants = |(uid, (claimant, _)): &(&String, &(CredentialRef, _))| {
            *claimant.secrets[0].name == **secret && self.targets(uid).contains(namespace.as_str())
        };
        let mut all: Vec<_> = self.claimants.iter().filter(wants).map(|(uid, (c, _))| (rank(c), uid)).collect();
        all.sort();
        all.into_iter().map(|(_, uid)| uid.as_str()).collect()
    }

    /// Whether what an `EcrCredential` asks for is unknown.
    fn is_unreadable(&self, uid: &str) -> bool {
        self.claimants.get(uid).is_some_and(|(claimant, _)| claimant.activity == Activity::Unreadable)
    }

    /// Who has a Secret, cannot be read, and ranks before the one that wants it.
    fn blocker(&self, spot: &SecretKey, me: &str) -> Option<Arc<str>> {
        let owner = self.secrets.get(spot)?.owner.as_ref()?;
        let (blocker, _) = self.claimants.get(&*owner.0)?;
        let (claimant, _) = self.claimants.get(me)?;
        let before = (rank(blocker), &*owner.0) < (rank(claimant), me);
        (self.is_unreadable(&owner.0) && before).then(|| blocker.name.clone())
    }

    fn places(&self, me: &str) -> Places {
        let Some((claimant, _)) = self.claimants.get(me) else { return Places::new() };
        let wanted =
            self.targets(me).into_iter().map(|namespace| (claimant.secrets[0].name.to_string(), namespace.to_owned()));
        let mine = |spot: &SecretKey| {
            let owner = self.secrets.get(spot).and_then(|record| record.owner.as_ref());
            owner.is_some_and(|owner| *owner.0 == *me)
        };
        let owned = self.secrets.keys().filter(|spot| mine(spot)).cloned();
        let claim = |spot: &SecretKey| {
            let claims = self.claims(spot);
            if claims.first() == Some(&me) {
                return Some(self.blocker(spot, me).map_or(Selection::Selected, Selection::Blocked));
            }
            if claims.contains(&me) {
                let winner = self.claimants[claims[0]].0.name.clone();
                let unreadable = self.is_unreadable(claims[0]);
                return Some(if unreadable { Selection::Blocked(winner) } else { Selection::Conflict(winner) });
            }
            let renamed = spot.0 != *claimant.secrets[0].name && self.targets(me).contains(&*spot.1);
            let left = match (claims.is_empty(), renamed) {
                (false, _) => Selection::Superseded,
                (true, true) => Selection::Renamed,
                (true, false) => Selection::Deselected,
            };
            self.is_open(&spot.1).then_some(left)
        };
        let version = |spot: &SecretKey| self.secrets.get(spot).map(|record| record.resource_version.clone());
        let spots: BTreeSet<SecretKey> = wanted.chain(owned).collect();
        spots.into_iter().filter_map(|spot| Some((spot.clone(), (claim(&spot)?, version(&spot))))).collect()
    }
}

fn compare(world: &ClusterState, model: &Model, me: &str, expected: &Places) {
    let uid = Uid(me.into());
    let Some((claimant, _)) = model.claimants.get(me) else {
        assert!(!world.index.is_alive(&uid) && world.index.targets(&uid).next().is_none());
        return;
    };
    assert_eq!(
        world.index.targets(&uid).map(|(_, namespace)| &**namespace).collect::<BTreeSet<&str>>(),
        model.targets(me)
    );
    for secret in SECRETS {
        for namespace in NAMESPACES {
            let claims = world.index.claims(secret, namespace);
            let claims: Vec<&str> = claims.iter().map(|uid| &*uid.0).collect();
            assert_eq!(claims, model.claims(&(secret.to_owned(), namespace.to_owned())), "{secret} in {namespace}");
        }
    }
    let places = world.places(&uid, claimant.generation).expect("it is alive");
    let places: Vec<_> = places.collect();
    for place in &places {
        let spot = (place.name.clone(), place.namespace.clone());
        let again = world.place_at(&uid, claimant.generation, &spot).expect("the same place");
        assert_eq!((again.claim, again.standing), (place.claim.clone(), place.standing.clone()));
    }
    let seen = places
        .into_iter()
        .map(|place| ((place.name.to_string(), place.namespace.to_string()), (place.claim, place.standing.version())));
    assert_eq!(seen.collect::<Places>(), *expected, "the places of {me}");
    assert!(world.places(&uid, Some(99)).is_none(), "of another generation");
}
