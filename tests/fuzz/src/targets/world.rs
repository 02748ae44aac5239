//! The index of what the watches have seen: after any events, in any order, it answers as one that starts from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::status::Reason;
use ecr_credential_operator::api::{
    EcrCredential, EcrCredentialSpec, Include, IncludedSecret, NamespaceSelection, OutputFormat,
};
use ecr_credential_operator::controller::cluster_state::ClusterState;
use ecr_credential_operator::controller::watches;
use ecr_credential_operator::plan::namespaces::{Labels, NamespaceMatcher, NamespaceUid};
use ecr_credential_operator::plan::references::References;
use ecr_credential_operator::plan::scopes::{OutputScope, Reference, SecretKey};
use ecr_credential_operator::plan::targets::{Activity, CredentialRef};
use ecr_credential_operator::plan::{self, Limits, SpecError, Uid};
use ecr_credential_operator::secret::Selection;
use ecr_credential_operator::secret::include::IncludedConfig;
use ecr_credential_operator::secret::ownership::{ManagedFieldsDigest, SecretRecord, Trust};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;

use super::selection::selects;
use crate::material::{self, NAMESPACES};

const UIDS: [&str; 4] = ["u0", "u1", "u2", "u3"];
/// Each is the name of pull secrets and of outputs.
const SECRETS: [&str; 3] = ["pull", "other", "third"];
const FORMATS: [OutputFormat; 3] = [OutputFormat::DockerConfigJson, OutputFormat::BasicAuth, OutputFormat::ArgoCDHelm];
/// The one host that all specs write.
const HOST: &str = "public.ecr.aws";
const INCLUDES: [(&str, &str); 2] = [("a", "hub"), ("b", "hub")];

/// A Secret's name and namespace.
type NameAndNamespace = (String, String);
/// What an `EcrCredential` may do in each place, and the version of the Secret that is there.
type Places = BTreeMap<NameAndNamespace, Treatment>;
type Treatment = (Selection, Option<Box<str>>);

/// One Secret of a spec, in the plainest form.
struct Wish {
    name: String,
    format: OutputFormat,
    /// None where the selection cannot be used.
    namespaces: Option<NamespaceSelection>,
    is_output: bool,
    /// Whether it is written nowhere, as its host is not one of the spec's or the installation allows it nowhere.
    is_refused: bool,
}

/// An `EcrCredential`.
struct Claimant {
    claimant: CredentialRef,
    wishes: Vec<Wish>,
    includes: Vec<SecretKey>,
}

/// What there is, in the plainest form.
#[derive(Default)]
struct Model {
    limits: Limits,
    namespaces: BTreeMap<String, (Labels, bool)>,
    claimants: BTreeMap<String, Claimant>,
    secrets: BTreeMap<NameAndNamespace, Arc<SecretRecord>>,
    /// Of each docker config of others: the last good one, and why there is no newer one.
    included: BTreeMap<SecretKey, (Option<Arc<IncludedConfig>>, Option<SpecError>)>,
}

/// What an `EcrCredential` has a right to, computed from nothing but the model.
#[derive(Debug, Default)]
struct Share {
    /// By name and namespace, with the format.
    targets: BTreeMap<NameAndNamespace, OutputFormat>,
    /// What it selects and may not be written.
    denied: BTreeSet<NameAndNamespace>,
    places: Places,
}

/// The shares of all.
#[derive(Default)]
struct View {
    shares: BTreeMap<String, Share>,
    none: Share,
}

impl View {
    fn of(&self, uid: &str) -> &Share {
        self.shares.get(uid).unwrap_or(&self.none)
    }
}

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let limits = limits(u)?;
    let mut world = ClusterState::new(limits.index(), References::default());
    let mut model = Model { limits, ..Model::default() };
    let mut before = model.view();
    for _ in 0..48 {
        if u.is_empty() {
            break;
        }
        let concerned = event(u, &mut world, &mut model)?;
        let after = model.view();
        for uid in UIDS {
            let (old, new) = (before.of(uid), after.of(uid));
            let told = concerned.contains(&Uid(uid.into()));
            let gone = !model.claimants.contains_key(uid);
            let same = old.places == new.places && old.denied == new.denied;
            assert!(gone || same || told, "{uid} is not told: {old:?} before, {new:?} after");
            compare(&world, &model, uid, &after);
        }
        before = after;
    }
    Ok(())
}

/// What the installation allows: namespaces, outputs and docker configs of others.
fn limits(u: &mut Unstructured<'_>) -> Result<Limits> {
    let names = |names: Vec<&str>| names.into_iter().map(Into::into).collect::<BTreeSet<Arc<str>>>();
    let namespaces = u.ratio(1, 4)?.then(|| material::some(u, &NAMESPACES)).transpose()?.map(names);
    let scope = |u: &mut Unstructured<'_>| {
        let namespace = u.arbitrary::<bool>()?.then(|| u.choose(&NAMESPACES)).transpose()?;
        let (name, format) = ((*u.choose(&SECRETS)?).into(), *u.choose(&FORMATS)?);
        Ok(OutputScope { namespace: namespace.map(|namespace| (*namespace).into()), name, format })
    };
    let number = u.int_in_range(0..=6)?;
    let outputs = (0..number).map(|_| scope(u)).collect::<Result<_>>()?;
    Ok(Limits {
        namespaces,
        outputs: u.ratio(3, 4)?.then_some(outputs),
        includes: material::some(u, &INCLUDES)?.into_iter().map(include_scope).collect(),
        ..Limits::default()
    })
}

fn include_scope((namespace, name): (&str, &str)) -> SecretKey {
    SecretKey { namespace: namespace.into(), name: name.into() }
}

/// One event, for both; returns whom the world says that it concerns.
fn event(u: &mut Unstructured<'_>, world: &mut ClusterState, model: &mut Model) -> Result<BTreeSet<Uid>> {
    let namespace = *u.choose(&NAMESPACES)?;
    let uid = *u.choose(&UIDS)?;
    let spot = ((*u.choose(&SECRETS)?).to_owned(), namespace.to_owned());
    Ok(match u.int_in_range(0..=10)? {
        0..=2 => {
            let (labels, terminating) = (material::labels(u)?, u.ratio(1, 6)?);
            let namespace_uid = NamespaceUid::of(u.choose(&["x", "y"])?, None);
            model.namespaces.insert(namespace.to_owned(), (labels.clone(), terminating));
            world.set_namespace(namespace, namespace_uid, &labels, terminating)
        }
        3 => {
            model.namespaces.remove(namespace);
            world.remove_namespace(namespace)
        }
        4..=5 => {
            let claimant = claimant(u, uid, &model.limits)?;
            let concerned = world.set_credential(&Uid(uid.into()), claimant.claimant.clone());
            model.claimants.insert(uid.to_owned(), claimant);
            concerned
        }
        6 => {
            model.claimants.remove(uid);
            world.remove_credential(&Uid(uid.into()))
        }
        7 => {
            included(u, world, model)?;
            BTreeSet::new()
        }
        8..=9 => {
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
    })
}

/// A docker config of others, as it is now: one of two, or none that can be used.
fn included(u: &mut Unstructured<'_>, world: &mut ClusterState, model: &mut Model) -> Result<()> {
    let scope = include_scope(*u.choose(&INCLUDES)?);
    let config = |auth: &str| {
        let json = format!(r#"{{"auths":{{"hub.example":{{"auth":"{auth}"}}}}}}"#);
        IncludedConfig::parse("kubernetes.io/dockerconfigjson", json.as_bytes())
    };
    let now = match u.int_in_range(0..=3)? {
        0 => config("eDpvbmU="),
        1 => config("eDp0d28="),
        2 => IncludedConfig::parse("Opaque", b"{}"),
        _ => IncludedConfig::parse("kubernetes.io/dockerconfigjson", b"{}"),
    };
    let now = now.map(Arc::new).map_err(|why| SpecError { reason: Reason::IncludeFailed, message: why.to_string() });
    let news = world.includes.set(&scope, now.clone());
    let known = model.included.entry(scope).or_default();
    let digest = |known: &Option<Arc<IncludedConfig>>| known.as_ref().map(|config| config.digest());
    let before = (digest(&known.0), known.1.clone());
    match now {
        Ok(config) => *known = (Some(config), None),
        Err(failure) => known.1 = Some(failure),
    }
    assert_eq!(news, before != (digest(&known.0), known.1.clone()));
    Ok(())
}

fn claimant(u: &mut Unstructured<'_>, uid: &str, limits: &Limits) -> Result<Claimant> {
    let spec = spec(u)?;
    let mut object = EcrCredential::new(&format!("name-{uid}"), spec);
    object.metadata.creation_timestamp = Some(Time(material::second(u.int_in_range(0..=2)?)));
    object.metadata.generation = Some(u.int_in_range(1..=2)?);
    let mut claimant = watches::credential_ref(&object, limits);
    if u.ratio(1, 6)? {
        claimant.activity = Activity::Unreadable;
    }
    let idle = object.spec.suspend || plan::plan(&object.spec, limits).is_err();
    assert!(claimant.activity == Activity::Unreadable || idle == (claimant.activity == Activity::Idle));
    let includes = object.spec.include.iter().map(|include| &include.secret_ref);
    let includes = includes.map(|secret| include_scope((&secret.namespace, &secret.name))).collect();
    Ok(Claimant { claimant, wishes: wishes(&object.spec, limits), includes })
}

/// A spec of ECR Public with a pull secret, outputs of which some are refused, and docker configs of others.
fn spec(u: &mut Unstructured<'_>) -> Result<EcrCredentialSpec> {
    let plain = json!({ "registries": [{ "public": {} }], "namespaces": { "names": ["*"] } });
    let mut spec: EcrCredentialSpec = serde_json::from_value(plain).expect("a spec");
    spec.namespaces = material::selection(u)?;
    spec.secret.name = (*u.choose(&SECRETS)?).to_owned();
    spec.suspend = u.ratio(1, 6)?;
    let number = u.int_in_range(0..=3)?;
    let output = |u: &mut Unstructured<'_>| {
        let mut output = material::output(u, 0)?;
        output.name = (*u.choose(&SECRETS)?).to_owned();
        output.format = *u.choose(&FORMATS)?;
        output.host = u.choose(&[Some(HOST), Some(HOST), Some("ecr-public.aws.com"), None])?.map(str::to_owned);
        output.namespaces = u.ratio(1, 2)?.then(|| material::selection(u)).transpose()?;
        Ok(output)
    };
    spec.outputs = (0..number).map(|_| output(u)).collect::<Result<_>>()?;
    let secret_ref =
        |(namespace, name): (&str, &str)| IncludedSecret { namespace: namespace.to_owned(), name: name.to_owned() };
    spec.include = material::some(u, &INCLUDES)?.into_iter().map(|of| Include { secret_ref: secret_ref(of) }).collect();
    Ok(spec)
}

/// The Secrets of a spec; of two with one name the first.
fn wishes(spec: &EcrCredentialSpec, limits: &Limits) -> Vec<Wish> {
    let usable =
        |namespaces: &NamespaceSelection| NamespaceMatcher::parse(namespaces).is_ok().then(|| namespaces.clone());
    let mut wishes = vec![Wish {
        name: spec.secret.name.clone(),
        format: OutputFormat::DockerConfigJson,
        namespaces: usable(&spec.namespaces),
        is_output: false,
        is_refused: false,
    }];
    let cannot_be_used = plan::plan(spec, limits).is_err();
    for output in &spec.outputs {
        if wishes.iter().any(|wish| wish.name == output.name) {
            continue;
        }
        let fits = match output.host.as_deref() {
            Some(host) => host == HOST,
            None => output.format == OutputFormat::DockerConfigJson,
        };
        wishes.push(Wish {
            name: output.name.clone(),
            format: output.format,
            namespaces: usable(output.namespaces.as_ref().unwrap_or(&spec.namespaces)),
            is_output: true,
            is_refused: !fits && !cannot_be_used,
        });
    }
    wishes
}

fn record(u: &mut Unstructured<'_>) -> Result<SecretRecord> {
    let owner = u.ratio(3, 4)?.then(|| u.choose(&UIDS)).transpose()?.map(|uid| Uid((*uid).into()));
    let version = u.int_in_range(1..=9_u8)?.to_string();
    Ok(SecretRecord {
        uid: "s".into(),
        resource_version: version.into(),
        owner,
        digest: ManagedFieldsDigest::desired(&ObjectMeta::default()),
        applied_at: 0,
        managed_fields: None,
        trust: Trust::Unchanged,
        expires_at: None,
        hosts: None,
        identity: None,
        format: *u.choose(&FORMATS)?,
        extra_keys: Box::default(),
        sets_immutable: false,
        applied: true,
        held_by: None,
        content_of: None,
    })
}

fn version(record: &SecretRecord) -> u64 {
    record.resource_version.parse().expect("a number")
}

/// Whoever makes no use of its claims comes last, then the older first.
fn rank(claimant: &CredentialRef) -> impl Ord + use<'_> {
    (claimant.activity == Activity::Idle, claimant.created, &claimant.name)
}

/// What an `EcrCredential` wants in a namespace of one of its Secrets.
enum Want {
    Target,
    Denied,
    Nothing,
}

impl Model {
    /// Whether a Secret of a name may be written in a namespace, as far as namespaces are limited.
    fn is_allowed(&self, name: &str, namespace: &str) -> bool {
        let as_output = |scope: &OutputScope| *scope.name == *name && scope.namespace.as_deref() == Some(namespace);
        self.is_selectable(namespace) || self.limits.outputs.iter().flatten().any(as_output)
    }

    /// Whether Secrets of any allowed name may be written in a namespace.
    fn is_selectable(&self, namespace: &str) -> bool {
        self.limits.namespaces.as_ref().is_none_or(|allowed| allowed.contains(namespace))
    }

    fn is_open(&self, name: &str, namespace: &str) -> bool {
        self.is_allowed(name, namespace) && self.namespaces.get(namespace).is_some_and(|(_, terminating)| !terminating)
    }

    /// What is wanted of a Secret in a namespace that is there.
    fn want(&self, wish: &Wish, namespace: &str, (labels, terminating): &(Labels, bool)) -> Want {
        let selected = wish.namespaces.as_ref().is_some_and(|spec| selects(spec, namespace, labels));
        if *terminating || !selected {
            return Want::Nothing;
        }
        let fits = |scope: &OutputScope| {
            *scope.name == *wish.name
                && scope.format == wish.format
                && scope.namespace.as_deref().is_none_or(|only| only == namespace)
        };
        let as_output = self.limits.outputs.as_ref().is_none_or(|outputs| outputs.iter().any(fits));
        match wish.is_output {
            false if self.is_selectable(namespace) => Want::Target,
            // Though an output of that name may be written there.
            false => Want::Nothing,
            true if self.is_allowed(&wish.name, namespace) && as_output && !wish.is_refused => Want::Target,
            true => Want::Denied,
        }
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for (uid, claimant) in &self.claimants {
            let mut share = Share::default();
            for wish in &claimant.wishes {
                for (namespace, state) in &self.namespaces {
                    let spot = (wish.name.clone(), namespace.clone());
                    match self.want(wish, namespace, state) {
                        Want::Target => {
                            share.targets.insert(spot, wish.format);
                        }
                        Want::Denied => {
                            share.denied.insert(spot);
                        }
                        Want::Nothing => {}
                    }
                }
            }
            view.shares.insert(uid.clone(), share);
        }
        let places: Vec<(String, Places)> =
            self.claimants.keys().map(|uid| (uid.clone(), self.places(&view, uid))).collect();
        for (uid, places) in places {
            view.shares.entry(uid).or_default().places = places;
        }
        view
    }

    /// Who wants a Secret, the oldest first.
    fn claims<'a>(&'a self, view: &View, spot: &NameAndNamespace) -> Vec<&'a str> {
        let wants = |(uid, _): &(&String, &Claimant)| view.of(uid).targets.contains_key(spot);
        let mut all: Vec<_> = self.claimants.iter().filter(wants).map(|(uid, c)| (rank(&c.claimant), uid)).collect();
        all.sort();
        all.into_iter().map(|(_, uid)| uid.as_str()).collect()
    }

    /// Whether what an `EcrCredential` asks for is unknown.
    fn is_unreadable(&self, uid: &str) -> bool {
        self.claimants.get(uid).is_some_and(|claimant| claimant.claimant.activity == Activity::Unreadable)
    }

    /// Who has a Secret, cannot be read, and ranks before the one that wants it.
    fn blocker(&self, spot: &NameAndNamespace, me: &str) -> Option<Arc<str>> {
        let owner = self.secrets.get(spot)?.owner.as_ref()?;
        let blocker = &self.claimants.get(&*owner.0)?.claimant;
        let claimant = &self.claimants.get(me)?.claimant;
        let before = (rank(blocker), &*owner.0) < (rank(claimant), me);
        (self.is_unreadable(&owner.0) && before).then(|| blocker.name.clone())
    }

    fn places(&self, view: &View, me: &str) -> Places {
        let Share { targets, denied, .. } = view.of(me);
        let mine = |spot: &NameAndNamespace| {
            let owner = self.secrets.get(spot).and_then(|record| record.owner.as_ref());
            owner.is_some_and(|owner| *owner.0 == *me)
        };
        let owned = self.secrets.keys().filter(|spot| mine(spot)).cloned();
        let selection = |spot: &NameAndNamespace| {
            let claims = self.claims(view, spot);
            if claims.first() == Some(&me) {
                return Some(self.blocker(spot, me).map_or(Selection::Selected, Selection::Blocked));
            }
            if claims.contains(&me) {
                let winner = self.claimants[claims[0]].claimant.name.clone();
                let unreadable = self.is_unreadable(claims[0]);
                return Some(if unreadable { Selection::Blocked(winner) } else { Selection::Conflict(winner) });
            }
            // Pods may name a pull secret that goes by another name now, which the spec does not have any more. Nothing that may not be
            // written is taken away.
            let pull_secret = |format| format == OutputFormat::DockerConfigJson;
            let of_spec = |name: &str| {
                self.claimants
                    .get(me)
                    .is_some_and(|one| one.claimant.secrets.iter().any(|secret| *secret.name == *name))
            };
            let renamed = !of_spec(&spot.0)
                && self.secrets.get(spot).is_some_and(|record| pull_secret(record.format))
                && targets.iter().any(|((_, namespace), format)| *namespace == spot.1 && pull_secret(*format));
            let left = match (claims.is_empty(), renamed) {
                (false, _) => Selection::Superseded,
                (true, true) => Selection::Renamed,
                (true, false) => Selection::Deselected,
            };
            (self.is_open(&spot.0, &spot.1) && !denied.contains(spot)).then_some(left)
        };
        let version = |spot: &NameAndNamespace| self.secrets.get(spot).map(|record| record.resource_version.clone());
        let spots: BTreeSet<NameAndNamespace> = targets.keys().cloned().chain(owned).collect();
        spots.into_iter().filter_map(|spot| Some((spot.clone(), (selection(&spot)?, version(&spot))))).collect()
    }

    /// What is merged for an `EcrCredential`: the docker configs that may be read, in its order; and whether one is not known or
    /// not current.
    fn included(&self, includes: &[SecretKey]) -> (Vec<Arc<IncludedConfig>>, [bool; 2]) {
        let mut configs = Vec::new();
        let (mut incomplete, mut failing) = (false, false);
        for scope in includes {
            let allowed = self.limits.includes.contains(scope);
            let known = self.included.get(scope).filter(|_| allowed);
            let config = known.and_then(|(config, _)| config.clone());
            incomplete |= config.is_none();
            failing |= !allowed || known.is_some_and(|(_, failure)| failure.is_some());
            configs.extend(config);
        }
        (configs, [incomplete, failing])
    }
}

fn compare(world: &ClusterState, model: &Model, me: &str, view: &View) {
    let uid = Uid(me.into());
    for scope in INCLUDES.map(include_scope) {
        let refers = model.claimants.get(me).is_some_and(|claimant| claimant.includes.contains(&scope));
        assert_eq!(world.index.referring_to(&Reference::Include(scope)).contains(&uid), refers);
    }
    let Some(Claimant { claimant, includes, .. }) = model.claimants.get(me) else {
        assert!(!world.index.is_alive(&uid) && world.index.targets(&uid).next().is_none());
        return;
    };
    let keys = |keys: Vec<(&Arc<str>, &Arc<str>)>| {
        keys.into_iter().map(|(name, namespace)| (name.to_string(), namespace.to_string())).collect::<BTreeSet<_>>()
    };
    let Share { targets, denied, places: expected } = view.of(me);
    assert_eq!(keys(world.index.targets(&uid).collect()), targets.keys().cloned().collect());
    assert_eq!(keys(world.index.denied(&uid).collect()), *denied);
    let (found, failure) = world.includes.of(includes, &model.limits.includes);
    let (configs, wrong) = model.included(includes);
    let digests =
        |configs: &[Arc<IncludedConfig>]| configs.iter().map(|config| config.digest().short()).collect::<Vec<_>>();
    assert_eq!((digests(&found.configs), [found.incomplete, failure.is_some()]), (digests(&configs), wrong));
    for secret in SECRETS {
        for namespace in NAMESPACES {
            let claims = world.index.claims(secret, namespace);
            let claims: Vec<&str> = claims.iter().map(|uid| &*uid.0).collect();
            assert_eq!(
                claims,
                model.claims(view, &(secret.to_owned(), namespace.to_owned())),
                "{secret} in {namespace}"
            );
        }
    }
    let places = world.targets(&uid, claimant.generation).expect("it is alive");
    let places: Vec<_> = places.collect();
    for place in &places {
        let again = world.target(&uid, &place.key()).expect("the same place");
        assert_eq!((again.selection, again.ownership), (place.selection.clone(), place.ownership.clone()));
    }
    let seen = places.into_iter().map(|place| {
        ((place.name.to_string(), place.namespace.to_string()), (place.selection, place.ownership.version()))
    });
    assert_eq!(seen.collect::<Places>(), *expected, "the places of {me}");
    assert!(world.targets(&uid, Some(99)).is_none(), "of another generation");
}
