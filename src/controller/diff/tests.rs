//! After any events, writes, failures and waits, the queue and the ledger are what a comparison of all Secrets gives.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::super::desired_secrets::{NamespaceSecrets, TokenProblem};
use super::super::in_flight::Ended;
use super::super::stage::{ACCOUNT, HOUR, NOW, at, token, uid};
use super::super::watches::credential_ref;
use super::*;
use crate::api::registry::Region;
use crate::api::status::{NamespaceFailure, Reason};
use crate::api::{EcrCredential, NamespaceSelection, OutputFormat};
use crate::apply::{WriteError, Written};
use crate::clock::Server;
use crate::outcome::TargetCounts;
use crate::plan::namespaces::{Labels, NamespaceMatcher, NamespaceUid};
use crate::plan::outputs::WantedSecret;
use crate::plan::references::References;
use crate::plan::schedule::RetryPolicy;
use crate::plan::scopes::OutputScope;
use crate::plan::scopes::SecretKey;
use crate::plan::targets::{Activity, CredentialRef};
use crate::plan::{Identity, Limits, SpecError, Uid, plan};
use crate::secret::ownership::{ManagedFieldsDigest, SecretRecord};
use crate::secret::{Bundle, Desired, Published, bundle};

const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];
/// The pull secret, an output that may be written in one namespace, and a name that the spec had before.
const NAMES: [&str; 3] = ["pull", "out", "former"];
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };

thread_local! {
    static TIME: Cell<i64> = const { Cell::new(NOW) };
}

#[derive(Clone, Debug)]
enum Step {
    Namespace {
        namespace: usize,
        namespace_uid: u8,
        terminating: bool,
    },
    NamespaceGone(usize),
    Secret {
        name: usize,
        namespace: usize,
        owner: usize,
        content: usize,
        held: bool,
    },
    SecretGone {
        name: usize,
        namespace: usize,
    },
    /// An older EcrCredential wants the Secret of a name in the first namespaces, or is gone.
    Rival {
        activity: usize,
        name: usize,
        namespaces: usize,
    },
    /// The spec selects these namespaces.
    Retarget(u8),
    /// Other tokens are published, where each namespace has its own in one of them.
    Tokens {
        tokens: usize,
        namespace: usize,
    },
    Pass(i64),
    /// The next write begins.
    Begin,
    /// A write in flight ends.
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let namespace = || 0..NAMESPACES.len();
    let name = || 0..NAMES.len();
    let step = prop_oneof![
        2 => (namespace(), 0_u8..2, prop::bool::weighted(0.2))
            .prop_map(|(namespace, namespace_uid, terminating)| Step::Namespace { namespace, namespace_uid, terminating }),
        1 => namespace().prop_map(Step::NamespaceGone),
        4 => (name(), namespace(), 0_usize..4, 0_usize..4, prop::bool::weighted(0.1))
            .prop_map(|(name, namespace, owner, content, held)| Step::Secret { name, namespace, owner, content, held }),
        2 => (name(), namespace()).prop_map(|(name, namespace)| Step::SecretGone { name, namespace }),
        1 => (0_usize..4, name(), 0..=NAMESPACES.len())
            .prop_map(|(activity, name, namespaces)| Step::Rival { activity, name, namespaces }),
        1 => (0_u8..16).prop_map(Step::Retarget),
        1 => (0_usize..3, namespace()).prop_map(|(tokens, namespace)| Step::Tokens { tokens, namespace }),
        3 => (-20_i64..40).prop_map(Step::Pass),
        6 => Just(Step::Begin),
        6 => (0_usize..8).prop_map(Step::End),
    ];
    prop::collection::vec(step, 1..80)
}

/// An EcrCredential `x` in a cluster, with writes that end as the steps say.
struct Scene {
    limits: Limits,
    plan: Plan,
    owner: Owner,
    state: Mutex<ClusterState>,
    clock: Clock,
    generation: i64,
    /// What is to be written with each of the tokens.
    contents: Vec<Bundle>,
    tokens: [usize; NAMESPACES.len()],
    /// Whether each namespace has tokens of its own.
    each: bool,
    retries: RetryState,
    resynced: Option<Resync>,
    in_flight: Vec<(SecretTarget, SecretAction, Option<Arc<Desired>>)>,
    version: u32,
    /// How often all Secrets were compared.
    resyncs: usize,
}

fn object(generation: i64, namespaces: &[&str]) -> EcrCredential {
    serde_json::from_value(json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
        "metadata": { "name": "x", "uid": "x", "generation": generation },
        "spec": {
            "registries": [{ "private": { "accountIds": [ACCOUNT] } }],
            "namespaces": { "names": namespaces },
            "secret": { "name": "pull" },
            "outputs": [{ "name": "out", "format": "DockerConfigJson" }],
        },
    }))
    .unwrap()
}

impl Scene {
    fn new(each: bool) -> Self {
        TIME.set(NOW);
        let scope =
            OutputScope { namespace: Some("a".into()), name: "out".into(), format: OutputFormat::DockerConfigJson };
        let limits = Limits {
            region: Region::parse("eu-west-1").ok(),
            outputs: Some(BTreeSet::from([scope])),
            ..Limits::default()
        };
        let plan = plan(&object(1, &NAMESPACES).spec, &limits).unwrap();
        let owner = Owner { name: "x".to_owned(), uid: uid("x") };
        let token_spec = plan.registries[0].token_specs[0].clone();
        let published = |password: &str, hours: i64| -> Published {
            [(token_spec.clone(), token(password, NOW + hours * HOUR, &Identity::operator()))].into()
        };
        let contents = [published("p", 10), published("q", 11), Published::new()]
            .iter()
            .map(|published| bundle(&plan, &owner, published, &Default::default(), at(NOW)).unwrap())
            .collect();
        let mut state = ClusterState::new(limits.index(), References::default());
        state.set_credential(&uid("x"), credential_ref(&object(1, &NAMESPACES), &limits));
        Self {
            limits,
            plan,
            owner,
            state: Mutex::new(state),
            clock: Clock::new(|| at(TIME.get()), Duration::default),
            generation: 1,
            contents,
            tokens: [0; NAMESPACES.len()],
            each,
            retries: RetryState::default(),
            resynced: None,
            in_flight: Vec::new(),
            version: 0,
            resyncs: 0,
        }
    }

    fn desired(&self) -> DesiredSecrets {
        if !self.each {
            return DesiredSecrets::Alike(self.contents[self.tokens[0]].clone());
        }
        let state = self.state.lock();
        let shares = NAMESPACES.iter().zip(self.tokens).map(|(namespace, tokens)| {
            let lacks = SpecError { reason: Reason::AccessDenied, message: "no".to_owned() };
            let problem = TokenProblem { lacks: (tokens == 2).then_some(lacks), failure: None };
            let share = NamespaceSecrets {
                namespace_uid: state.index.namespace_uid(namespace),
                desired: self.contents[tokens].clone(),
                current: true,
                problems: NAMES.iter().map(|name| (Arc::from(*name), problem.clone())).collect(),
            };
            (Arc::from(*namespace), share)
        });
        DesiredSecrets::Each(shares.collect())
    }

    /// Calls something with the comparison and what it changes.
    fn with<T>(&mut self, call: impl FnOnce(&Diff<'_>, &mut RetryState, &mut Option<Resync>) -> T) -> T {
        let desired = self.desired();
        let diff = Diff {
            state: &self.state,
            clock: &self.clock,
            plan: &self.plan,
            owner: &self.owner,
            generation: Some(self.generation),
            desired: &desired,
        };
        call(&diff, &mut self.retries, &mut self.resynced)
    }

    fn record(&mut self, owner: Option<Uid>, desired: Option<&Desired>, held: bool) -> Arc<SecretRecord> {
        self.version += 1;
        let digest = desired.map_or_else(|| ManagedFieldsDigest::desired(&Default::default()), |d| d.digest);
        Arc::new(SecretRecord {
            expires_at: desired.map(|desired| desired.expires_at),
            hosts: desired.map(|desired| desired.payload.hosts),
            identity: desired.map(|desired| desired.identity),
            held_by: held.then(|| "finalizer".into()),
            ..SecretRecord::fixture(owner, &self.version.to_string(), digest)
        })
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Namespace { namespace, namespace_uid, terminating } => {
                let namespace_uid = NamespaceUid::of(&namespace_uid.to_string(), None);
                self.state.lock().set_namespace(NAMESPACES[*namespace], namespace_uid, &Labels::new(), *terminating);
            }
            Step::NamespaceGone(namespace) => drop(self.state.lock().remove_namespace(NAMESPACES[*namespace])),
            Step::Secret { name, namespace, owner, content, held } => {
                let owner = [None, Some(uid("x")), Some(uid("x")), Some(uid("rival"))][*owner].clone();
                let desired = self.contents.get(*content).and_then(|bundle| bundle.get("pull")).cloned();
                let record = self.record(owner, desired.as_deref(), *held);
                self.state.lock().set_secret(NAMES[*name], NAMESPACES[*namespace], record);
            }
            Step::SecretGone { name, namespace } => {
                self.state.lock().remove_secret(NAMES[*name], NAMESPACES[*namespace], None);
            }
            Step::Rival { activity, name, namespaces } => self.rival(*activity, NAMES[*name], *namespaces),
            Step::Retarget(mask) => {
                self.generation += 1;
                let chosen: Vec<&str> =
                    (0..NAMESPACES.len()).filter(|n| mask >> n & 1 == 1).map(|n| NAMESPACES[n]).collect();
                let chosen = if chosen.is_empty() { vec!["nowhere"] } else { chosen };
                let credential = credential_ref(&object(self.generation, &chosen), &self.limits);
                self.state.lock().set_credential(&uid("x"), credential);
            }
            Step::Tokens { tokens, namespace } if self.each => self.tokens[*namespace] = *tokens,
            Step::Tokens { tokens, .. } => self.tokens = [*tokens; NAMESPACES.len()],
            Step::Pass(seconds) => TIME.set(TIME.get() + seconds),
            Step::Begin => {
                let next = self.with(|diff, retries, _| diff.next_write(retries, |_, _| true)).ok().flatten();
                if let Some((target, action)) = next {
                    self.retries.in_flight.pretend(&target.key(), true);
                    let desired = self.desired().at(&target).cloned();
                    self.in_flight.push((target, action, desired));
                }
            }
            Step::End(how) => self.end(*how),
        }
    }

    fn rival(&mut self, activity: usize, name: &str, namespaces: usize) {
        let mut state = self.state.lock();
        let Some(activity) = [Activity::Active, Activity::Idle, Activity::Unreadable].get(activity) else {
            state.remove_credential(&uid("rival"));
            return;
        };
        let names = NAMESPACES.iter().take(namespaces).map(|name| (*name).to_owned()).collect();
        let selection = NamespaceSelection { names, ..NamespaceSelection::default() };
        let rival = CredentialRef {
            name: "rival".into(),
            created: at(NOW - HOUR),
            activity: *activity,
            secrets: vec![WantedSecret::anywhere(name, NamespaceMatcher::parse(&selection).ok())],
            generation: Some(1),
            references: BTreeSet::new(),
            attach: Vec::new(),
        };
        state.set_credential(&uid("rival"), rival);
    }

    /// The EcrCredential `x` has another generation.
    fn become_one_of(&mut self, activity: Activity) {
        let credential = credential_ref(&object(self.generation + 1, &NAMESPACES), &self.limits);
        self.state.lock().set_credential(&uid("x"), CredentialRef { activity, ..credential });
    }

    /// The first write in flight ends: as it should, changed by admission, or with an error.
    fn end(&mut self, how: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let (target, action, desired) = self.in_flight.remove(0);
        let refused = || WriteError::Refused(Reason::AdmissionRefused, "no".to_owned());
        let result = match (how, &action, &desired) {
            (0, ..) => Err(WriteError::Stale),
            (1, ..) => Err(refused()),
            (2, ..) => Err(WriteError::NamespaceGone),
            (_, SecretAction::Delete(_), _) => Ok(Written::Deleted),
            (3, ..) => Ok(Written::Stored(self.record(Some(uid("x")), None, false))),
            (_, _, Some(desired)) => Ok(Written::Stored(self.record(Some(uid("x")), Some(desired), false))),
            _ => Err(refused()),
        };
        match &result {
            Ok(Written::Stored(record)) => {
                drop(self.state.lock().set_secret(&target.name, &target.namespace, record.clone()));
            }
            Ok(_) => drop(self.state.lock().remove_secret(&target.name, &target.namespace, None)),
            Err(_) => {}
        }
        self.retries.in_flight.pretend(&target.key(), false);
        let content = self.desired();
        let ended = Ended { target, action, desired, result };
        self.retries.record(&ended, &content, &RETRY, at(TIME.get()));
    }

    /// The first namespaces are there when the EcrCredential comes.
    fn begin(&mut self, namespaces: usize) {
        for namespace in 0..namespaces {
            self.apply(&Step::Namespace { namespace, namespace_uid: 0, terminating: false });
        }
        self.state.lock().take_touched(&uid("x"));
        self.check().unwrap();
    }

    /// Counts the last resync as one of this moment.
    fn postpone_resync(&mut self) {
        if let Some(resync) = &mut self.resynced {
            resync.at = resync.at.max(at(TIME.get()));
        }
    }

    /// Examines what has changed, and compares the result with a look at all Secrets.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let before = self.resynced.map(|resync| resync.at);
        if self.retries.expect(&self.desired()) {
            self.resynced = None;
        }
        let synced = self.with(|diff, retries, resynced| diff.sync(retries, resynced).is_ok());
        prop_assert!(synced);
        let (timers, scheduled) = self.retries.timers();
        prop_assert_eq!(timers, scheduled);
        self.resyncs += usize::from(before != self.resynced.map(|resync| resync.at));
        self.with(|diff, retries, _| {
            let state = diff.state.lock();
            let queued: BTreeSet<SecretKey> = retries.queue.iter().map(|(_, key)| key.clone()).collect();
            let mut expected: BTreeMap<&str, TargetCounts> = BTreeMap::new();
            let mut problems = BTreeSet::new();
            let told = |f: NamespaceFailure| (f.namespace, f.secret.unwrap_or_default(), f.reason, f.message);
            for (name, namespace) in NAMES.iter().flat_map(|name| NAMESPACES.map(|namespace| (*name, namespace))) {
                let key = SecretKey::new(name, namespace);
                let Ok(assessment) = diff.assess(&state, &key, retries, diff.now()) else { panic!("superseded") };
                let SyncState { selected, synced, fetching, problem } = assessment.counts;
                prop_assert!(assessment.due.is_none() || queued.contains(&key), "{key:?} is due and not queued");
                let counts = expected.entry(name).or_default();
                counts.selected += usize::from(selected);
                counts.synced += usize::from(selected && synced);
                counts.failed += usize::from(selected && !synced && problem.is_some());
                counts.fetching += usize::from(selected && !synced && fetching);
                let failure = problem.map(|(reason, message)| NamespaceFailure {
                    namespace: namespace.to_owned(),
                    secret: Some(name.to_owned()),
                    reason: reason.as_str().to_owned(),
                    message,
                });
                if selected && !synced && counts.first_failure.is_none() {
                    counts.first_failure.clone_from(&failure);
                }
                problems.extend(failure.map(told));
            }
            let counts = retries.ledger.counts(state.index.secrets(&diff.owner.uid));
            for (name, expected) in expected {
                prop_assert_eq!(counts.of(name), expected, "{}", name);
            }
            prop_assert_eq!(counts.failures.into_iter().map(told).collect::<BTreeSet<_>>(), problems);
            Ok(())
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]
    #[test]
    fn what_is_kept_incrementally_is_what_a_comparison_of_all_secrets_gives(each: bool, steps in steps()) {
        let mut scene = Scene::new(each);
        scene.check()?;
        for step in &steps {
            scene.apply(step);
            // A resync would hide a change that was missed.
            scene.postpone_resync();
            // Now and then several events come before they are taken up.
            if !matches!(step, Step::Secret { .. }) {
                scene.check()?;
            }
        }
        scene.check()?;
    }
}

#[test]
fn an_event_examines_the_secrets_of_one_namespace_and_no_others() {
    let mut scene = Scene::new(false);
    for namespace in 0..NAMESPACES.len() {
        scene.apply(&Step::Namespace { namespace, namespace_uid: 0, terminating: false });
    }
    scene.check().unwrap();
    assert_eq!(scene.resyncs, 1);
    for step in [
        Step::SecretGone { name: 0, namespace: 1 },
        Step::Secret { name: 0, namespace: 1, owner: 1, content: 1, held: false },
        Step::Namespace { namespace: 2, namespace_uid: 1, terminating: false },
        Step::Begin,
        Step::End(0),
        Step::Pass(599),
    ] {
        scene.apply(&step);
        scene.check().unwrap();
        assert_eq!(scene.resyncs, 1, "{step:?}");
    }
    // A missed change waits no longer than this.
    scene.retries.resynced = scene.resynced;
    assert!(scene.retries.retry_at().unwrap() <= at(NOW + 600));
    for step in [
        Step::Tokens { tokens: 1, namespace: 0 },
        Step::Retarget(3),
        Step::Pass(600),
        Step::Rival { activity: 0, name: 0, namespaces: 2 },
    ] {
        let before = scene.resyncs;
        // Each resync has a time of its own.
        TIME.set(TIME.get() + 1);
        scene.apply(&step);
        scene.check().unwrap();
        assert_eq!(scene.resyncs, before + 1, "{step:?}");
    }
}

/// The Secret whose write is next, if it is known what to do.
fn next(scene: &mut Scene) -> Option<(String, SecretAction)> {
    let next = scene.with(|diff, retries, _| diff.next_write(retries, |_, _| true)).ok().flatten();
    next.map(|(target, action)| (target.namespace.to_string(), action))
}

#[test]
fn nothing_is_deleted_in_the_name_of_an_ecrcredential_that_has_gone_or_changed_since() {
    type Change = fn(&mut Scene);
    let changes: [(&str, Change); 4] = [
        ("gone", |scene| drop(scene.state.lock().remove_credential(&uid("x")))),
        ("changed", |scene| scene.become_one_of(Activity::Active)),
        ("unreadable", |scene| scene.become_one_of(Activity::Unreadable)),
        ("suspended", |scene| scene.become_one_of(Activity::Idle)),
    ];
    for (name, change) in changes {
        let mut scene = Scene::new(false);
        for namespace in 0..3 {
            scene.apply(&Step::Namespace { namespace, namespace_uid: 0, terminating: false });
            scene.apply(&Step::Secret { name: 0, namespace, owner: 1, content: 1, held: false });
        }
        scene.check().unwrap();
        change(&mut scene);
        assert!(scene.with(|diff, retries, _| diff.next_write(retries, |_, _| true)).is_err(), "{name}");
    }
}

#[test]
fn a_new_namespace_goes_before_those_that_are_tried_again() {
    let mut scene = Scene::new(false);
    scene.begin(3);
    for _ in 0..3 {
        scene.apply(&Step::Begin);
        scene.apply(&Step::End(1));
    }
    scene.check().unwrap();
    scene.apply(&Step::Pass(10));
    scene.apply(&Step::Namespace { namespace: 3, namespace_uid: 0, terminating: false });
    scene.check().unwrap();
    assert_eq!(next(&mut scene), Some(("d".to_owned(), SecretAction::Create)));
}

#[test]
fn a_new_namespace_goes_before_all_others_also_if_all_are_examined_again() {
    for news_first in [false, true] {
        let mut scene = Scene::new(false);
        scene.begin(3);
        let before = scene.resyncs;
        if news_first {
            scene.apply(&Step::Namespace { namespace: 3, namespace_uid: 0, terminating: false });
            scene.check().unwrap();
        }
        scene.apply(&Step::Pass(600));
        if !news_first {
            scene.apply(&Step::Namespace { namespace: 3, namespace_uid: 0, terminating: false });
        }
        scene.check().unwrap();
        assert_eq!(scene.resyncs, before + 1, "{news_first}");
        assert_eq!(next(&mut scene), Some(("d".to_owned(), SecretAction::Create)), "{news_first}");
    }
}

#[test]
fn a_clock_that_is_behind_makes_no_expiry_unbelievable() {
    let mut scene = Scene::new(false);
    scene.clock = Clock::new(|| at(NOW - 13 * HOUR), Duration::default);
    scene.clock.hear(Server::Kubernetes, "Fri, 15 Jan 2027 08:00:00 GMT", Duration::ZERO);
    scene.apply(&Step::Namespace { namespace: 0, namespace_uid: 0, terminating: false });
    // It is good for an hour longer than what is to be written.
    scene.apply(&Step::Secret { name: 0, namespace: 0, owner: 1, content: 1, held: false });
    scene.with(|diff, retries, resynced| diff.sync(retries, resynced)).ok().unwrap();
    while let Some((_, action)) = next(&mut scene) {
        assert_eq!(action, SecretAction::Create, "the output alone is to be written");
    }
}

#[test]
fn a_clock_that_is_corrected_by_a_second_at_a_time_costs_no_look_at_all_secrets() {
    let mut scene = Scene::new(false);
    scene.apply(&Step::Namespace { namespace: 0, namespace_uid: 0, terminating: false });
    scene.check().unwrap();
    for seconds in [3, -1, 3, -2] {
        scene.apply(&Step::Pass(seconds));
        scene.check().unwrap();
    }
    assert_eq!(scene.resyncs, 1);
    scene.apply(&Step::Pass(-30));
    scene.check().unwrap();
    assert_eq!(scene.resyncs, 2, "after such a step no timer is good");
}

#[test]
fn a_secret_that_is_kept_for_now_has_one_timer_however_often_it_is_examined() {
    let mut scene = Scene::new(false);
    scene.apply(&Step::Namespace { namespace: 0, namespace_uid: 0, terminating: false });
    scene.check().unwrap();
    for _ in 0..50 {
        // It is the operator's and has a finalizer of somebody else.
        scene.apply(&Step::Secret { name: 0, namespace: 0, owner: 1, content: 1, held: true });
        scene.apply(&Step::Tokens { tokens: 2, namespace: 0 });
        scene.apply(&Step::Pass(1));
        scene.check().unwrap();
    }
    assert!((1..=2).contains(&scene.retries.timers().0), "{:?}", scene.retries.timers());
    let now = at(TIME.get());
    let next = scene.retries.retry_at().unwrap();
    assert!(next > now && next <= at(TIME.get() + 30), "a resync would come too late for what expires");
}

#[test]
fn where_each_namespace_has_tokens_of_its_own_new_ones_examine_that_namespace_alone() {
    let mut scene = Scene::new(true);
    for namespace in 0..NAMESPACES.len() {
        scene.apply(&Step::Namespace { namespace, namespace_uid: 0, terminating: false });
        scene.apply(&Step::Secret { name: 0, namespace, owner: 1, content: 0, held: false });
    }
    scene.check().unwrap();
    let before = scene.resyncs;
    TIME.set(TIME.get() + 1);
    scene.apply(&Step::Tokens { tokens: 1, namespace: 2 });
    scene.check().unwrap();
    assert_eq!(scene.resyncs, before);
    let queued: Vec<&SecretKey> =
        scene.retries.queue.iter().map(|(_, key)| key).filter(|key| &*key.name == "pull").collect();
    assert_eq!(queued, [&SecretKey::new("pull", "c")]);
}

#[test]
fn a_new_namespace_with_tokens_of_its_own_goes_first_though_they_come_later() {
    let mut scene = Scene::new(true);
    scene.tokens[3] = 2;
    scene.begin(3);
    let before = scene.resyncs;
    // A reconciliation that is writing sees the namespace, for which it has no tokens.
    let without = scene.desired();
    TIME.set(TIME.get() + 1);
    scene.apply(&Step::Namespace { namespace: 3, namespace_uid: 0, terminating: false });
    let mut resynced = scene.resynced;
    let DesiredSecrets::Each(mut shares) = without else { panic!("each has its own") };
    shares.remove("d");
    let diff = Diff {
        state: &scene.state,
        clock: &scene.clock,
        plan: &scene.plan,
        owner: &scene.owner,
        generation: Some(scene.generation),
        desired: &DesiredSecrets::Each(shares),
    };
    assert!(diff.sync(&mut scene.retries, &mut resynced).is_err());
    scene.resynced = resynced;
    // The next one asks for them, and one of those after it has them.
    scene.check().unwrap();
    scene.apply(&Step::Tokens { tokens: 0, namespace: 3 });
    scene.check().unwrap();
    assert_eq!(scene.resyncs, before, "one namespace more is no reason to examine all");
    assert_eq!(next(&mut scene), Some(("d".to_owned(), SecretAction::Create)));
}

#[test]
fn a_wait_that_was_over_before_the_clock_was_corrected_ends_again() {
    let mut scene = Scene::new(false);
    scene.apply(&Step::Namespace { namespace: 0, namespace_uid: 0, terminating: false });
    scene.check().unwrap();
    scene.apply(&Step::Begin);
    scene.apply(&Step::End(1));
    for seconds in [0, 1, -1] {
        scene.apply(&Step::Pass(seconds));
        scene.check().unwrap();
    }
    // Its wait is not over any more. The others of its namespace go first.
    for _ in 0..scene.retries.queue.len() {
        scene.apply(&Step::Begin);
    }
    assert_eq!(scene.retries.queue.len(), 0);
    scene.apply(&Step::Pass(1));
    scene.postpone_resync();
    scene.check().unwrap();
}

#[test]
fn what_events_have_shown_goes_first_also_if_they_were_very_many() {
    let mut scene = Scene::new(false);
    scene.begin(3);
    scene.apply(&Step::Namespace { namespace: 3, namespace_uid: 0, terminating: false });
    scene.apply(&Step::Rival { activity: 0, name: 2, namespaces: 0 });
    scene.state.lock().touch_all(&BTreeSet::from([uid("x")]));
    scene.check().unwrap();
    assert_eq!(next(&mut scene), Some(("d".to_owned(), SecretAction::Create)));
}

#[test]
fn what_admission_made_of_a_secret_is_forgotten_when_it_is_not_wanted_any_more() {
    let mut scene = Scene::new(false);
    scene.begin(1);
    scene.apply(&Step::Begin);
    let key = scene.in_flight[0].0.key();
    scene.apply(&Step::End(3));
    scene.check().unwrap();
    let accepted = |scene: &Scene| {
        let target = scene.state.lock().target(&uid("x"), &key).unwrap();
        scene.retries.accepted(&target).is_some()
    };
    assert!(accepted(&scene));
    // The namespace is not selected any more, and the Secret is still there.
    scene.apply(&Step::Retarget(0b10));
    assert!(accepted(&scene));
    scene.check().unwrap();
    assert!(!accepted(&scene));
}

/// A namespace is recreated once a second. Returns the first second in which its Secret is not due at once, if there is one. The
/// writes of its Secret end so.
fn recreations_until_the_first_wait(how: usize) -> Option<i64> {
    let mut scene = Scene::new(false);
    for second in 0..20 {
        let namespace = |terminating| Step::Namespace { namespace: 0, namespace_uid: second, terminating };
        scene.apply(&namespace(false));
        scene.check().unwrap();
        scene.apply(&Step::Begin);
        if scene.in_flight.is_empty() {
            return Some(second.into());
        }
        for step in [Step::End(how), namespace(true), Step::SecretGone { name: 0, namespace: 0 }] {
            scene.apply(&step);
            scene.check().unwrap();
        }
        scene.apply(&Step::NamespaceGone(0));
        scene.check().unwrap();
        scene.apply(&Step::Pass(1));
    }
    assert_eq!(scene.retries.timers(), (0, 0));
    None
}

#[test]
fn a_namespace_that_is_recreated_again_and_again_gets_its_secret_at_once() {
    for (what, how) in [("created", 4), ("refused", 1), ("too late", 2)] {
        assert_eq!(recreations_until_the_first_wait(how), None, "{what}");
    }
}

#[test]
fn who_deletes_a_secret_in_a_selected_namespace_again_and_again_is_not_fought() {
    let mut scene = Scene::new(false);
    scene.begin(1);
    let mut creations = 0;
    for _ in 0..60 {
        scene.apply(&Step::Begin);
        creations += scene.in_flight.len();
        for step in [Step::End(4), Step::SecretGone { name: 0, namespace: 0 }, Step::Pass(1)] {
            scene.apply(&step);
            scene.check().unwrap();
        }
    }
    assert!((7..=15).contains(&creations), "{creations} creations in a minute");
}

/// A tenant makes a Secret under our name where none is wanted, 100 times in ten seconds. Returns how many deletions there are, which
/// end so, and the scene after that.
fn deletions_of_what_comes_again(how: usize) -> (usize, Scene) {
    let mut scene = Scene::new(false);
    scene.begin(1);
    scene.apply(&Step::Retarget(0b1000));
    scene.check().unwrap();
    let mut deletions = 0;
    for appearance in 1..=100 {
        scene.apply(&Step::Secret { name: 0, namespace: 0, owner: 1, content: 0, held: false });
        scene.check().unwrap();
        scene.apply(&Step::Begin);
        deletions += scene.in_flight.iter().filter(|(_, action, _)| matches!(action, SecretAction::Delete(_))).count();
        scene.apply(&Step::End(how));
        scene.check().unwrap();
        scene.apply(&Step::SecretGone { name: 0, namespace: 0 });
        scene.check().unwrap();
        scene.apply(&Step::Pass(i64::from(appearance % 10 == 0)));
    }
    (deletions, scene)
}

#[test]
fn who_makes_secrets_where_none_are_wanted_again_and_again_is_not_fought() {
    for (what, how) in [("deleted", 4), ("refused", 1), ("too late", 0)] {
        let (deletions, mut scene) = deletions_of_what_comes_again(how);
        assert!((5..=10).contains(&deletions), "{what}: {deletions} deletions in ten seconds");
        // The last one is deleted when its wait is over, although nothing happens any more.
        scene.apply(&Step::Secret { name: 0, namespace: 0, owner: 1, content: 0, held: false });
        scene.check().unwrap();
        let begin = TIME.get();
        let action = loop {
            if let Some((_, action)) = next(&mut scene) {
                break action;
            }
            TIME.set(scene.retries.retry_at().unwrap().as_second() + 1);
            scene.check().unwrap();
            assert!(TIME.get() <= begin + 31, "{what}: not deleted");
        };
        assert!(matches!(action, SecretAction::Delete(_)), "{what}: {action:?}");
    }
}

#[test]
fn a_namespace_that_is_selected_gets_its_secret_at_once_whatever_was_deleted_there_before() {
    let (_, mut scene) = deletions_of_what_comes_again(4);
    scene.apply(&Step::Retarget(0b1));
    scene.check().unwrap();
    assert_eq!(next(&mut scene), Some(("a".to_owned(), SecretAction::Create)));
}
