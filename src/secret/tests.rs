//! Tables of targets and what is done about them, and of tokens and the Secrets that are made of them.

mod outputs;
mod persisted;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::api::{EcrCredentialSpec, OutputFormat};
use crate::plan::namespaces::NamespaceUid;
use crate::plan::schedule::Life;
use crate::plan::{Identity, Limits, Service, plan};

const NOW: i64 = 1_000_000;
const HOUR: i64 = 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(json: serde_json::Value) -> EcrCredentialSpec {
    serde_json::from_value(json).unwrap()
}

fn two_registries() -> EcrCredentialSpec {
    spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1" } }, { "public": {} }],
        "namespaces": { "names": ["a"] },
    }))
}

fn planned(spec: &EcrCredentialSpec) -> Plan {
    plan(spec, &Limits::default()).unwrap()
}

fn token(password: &str, account: Option<&str>, issued: i64, expires: i64) -> Arc<AuthorizationToken> {
    let auth = DockerAuth::parse(STANDARD.encode(format!("AWS:{password}"))).unwrap();
    let account = account.map(|id| AccountId::parse(id).unwrap());
    let life = Life { issued_at: at(issued), expires_at: at(expires) };
    Arc::new(AuthorizationToken { tokens: vec![Token { auth, account }], life, identity: Identity::operator() })
}

fn owner() -> Owner {
    Owner { name: "platform".to_owned(), uid: Uid("me".into()) }
}

/// The value of a key of the data.
fn value(desired: &Desired, key: &str) -> Vec<u8> {
    let (_, value) = desired.payload.expose_data().find(|(found, _)| *found == key).unwrap();
    STANDARD.decode(value).unwrap()
}

fn hosts(desired: &Desired) -> Vec<String> {
    docker_config::parse(&value(desired, ".dockerconfigjson")).keys().map(ToString::to_string).collect()
}

fn all(spec: &EcrCredentialSpec, published: &Published) -> Bundle {
    bundle(&planned(spec), &owner(), published, &Included::default(), at(NOW)).unwrap()
}

fn build(spec: &EcrCredentialSpec, published: &Published) -> Option<Desired> {
    all(spec, published).remove(spec.secret.name.as_str()).map(Arc::unwrap_or_clone)
}

fn published(spec: &EcrCredentialSpec, private_expires: i64, public_expires: Option<i64>) -> Published {
    let plan = planned(spec);
    let mut published = Published::new();
    let issued = NOW - 6 * HOUR;
    published
        .insert(plan.registries[0].token_specs[0].clone(), token("p", Some("111122223333"), issued, private_expires));
    if let Some(expires) = public_expires {
        published.insert(plan.registries[1].token_specs[0].clone(), token("q", None, issued, expires));
    }
    published
}

const OWN: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

#[test]
fn the_secret_holds_what_is_valid_and_records_the_earliest_expiry() {
    let spec = two_registries();
    let table = [
        ("both valid", NOW + 2 * HOUR, Some(NOW + HOUR), Some((vec![OWN, "public.ecr.aws"], NOW + HOUR))),
        ("public not fetched yet", NOW + 2 * HOUR, None, Some((vec![OWN], NOW + 2 * HOUR))),
        ("public expired", NOW + 2 * HOUR, Some(NOW - 1), Some((vec![OWN], NOW + 2 * HOUR))),
        ("private expired", NOW - 1, Some(NOW + HOUR), Some((vec!["public.ecr.aws"], NOW + HOUR))),
        ("both expired: public pulls work without a login", NOW - 2, Some(NOW - 1), Some((vec![], NOW - 1))),
    ];
    for (name, private, public, expected) in table {
        let desired = build(&spec, &published(&spec, private, public));
        let seen = desired.as_ref().map(|d| (hosts(d), d.expires_at.as_second()));
        let expected = expected.map(|(hosts, at)| (hosts.into_iter().map(str::to_owned).collect::<Vec<_>>(), at));
        assert_eq!(seen, expected, "{name}");
        if let Some(desired) = desired {
            assert_eq!(desired.has_entries, !hosts(&desired).is_empty(), "{name}");
        }
    }
}

#[test]
fn a_host_that_two_identities_would_fill_is_the_first_ones() {
    let role = "arn:aws:iam::999999999999:role/other";
    let own = serde_json::json!({ "private": { "region": "eu-west-1", "extraHosts": ["vpce.example.com"] } });
    let named = |auth| serde_json::json!({ "private": { "region": "eu-west-1", "accountIds": ["111122223333"] }, "auth": auth });
    let other = named(serde_json::json!({ "assumeRoles": [{ "roleArn": role }] }));
    for (what, registries, winner, taken) in [
        ("the caller's own first", [own.clone(), other.clone()], "0", vec![(OWN, 0, 1)]),
        ("the caller's own second", [other, own.clone()], "0", vec![(OWN, 0, 1)]),
        ("one password for both", [own, named(serde_json::json!({}))], "0", vec![]),
    ] {
        let spec = spec(serde_json::json!({ "registries": registries, "namespaces": { "names": ["a"] } }));
        let plan = planned(&spec);
        let mut all = Published::new();
        for (number, registry) in plan.registries.iter().enumerate() {
            let token = token(&number.to_string(), Some("111122223333"), NOW, NOW + HOUR);
            all.entry(registry.token_specs[0].clone()).or_insert(token);
        }
        let found = taken_hosts(&plan, &all);
        let seen: Vec<_> = found.iter().map(|taken| (taken.host.as_str(), taken.earlier, taken.later)).collect();
        assert_eq!(seen, taken, "{what}");
        let desired = build(&spec, &all).unwrap();
        let entries = docker_config::parse(&value(&desired, ".dockerconfigjson"));
        assert_eq!(entries[&Host::parse(OWN).unwrap()].expose(), STANDARD.encode(format!("AWS:{winner}")), "{what}");
        assert_eq!(entries.len(), 2, "{what}: the other host is written");
    }
}

#[test]
fn a_private_secret_is_never_emptied() {
    let spec = spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1" } }],
        "namespaces": { "names": ["a"] },
    }));
    assert!(build(&spec, &Published::new()).is_none());
    assert!(build(&spec, &published(&spec, NOW - 1, None)).is_none());
}

#[test]
fn each_token_of_a_registry_id_goes_to_its_own_host() {
    let spec = spec(serde_json::json!({
        "registries": [{ "private": {
            "region": "eu-west-1", "requestRegistryIds": true, "extraHosts": ["vpce.example.com"],
            "accountIds": (0..11).map(|n| format!("{:012}", n + 1)).collect::<Vec<_>>(),
        } }],
        "namespaces": { "names": ["a"] },
    }));
    let plan = planned(&spec);
    assert_eq!(plan.registries[0].token_specs.len(), 2, "ten ids in one call, one in the other");
    let mut all = Published::new();
    for key in &plan.registries[0].token_specs {
        let crate::plan::Service::Private { registry_ids, .. } = &key.service else { panic!("private") };
        let tokens = registry_ids.iter().map(|id| Token {
            auth: DockerAuth::parse(STANDARD.encode(format!("AWS:{id}"))).unwrap(),
            account: Some(id.clone()),
        });
        let life = Life { issued_at: at(NOW), expires_at: at(NOW + HOUR) };
        all.insert(
            key.clone(),
            Arc::new(AuthorizationToken { tokens: tokens.collect(), life, identity: Identity::operator() }),
        );
    }
    let entries = registry_entries(&plan.registries[0], &all).unwrap();
    assert_eq!(entries.len(), 12);
    for (host, auth) in entries {
        let decoded = String::from_utf8(STANDARD.decode(auth.expose()).unwrap()).unwrap();
        let account = host.account().map_or("000000000001".to_owned(), |id| id.to_string());
        assert_eq!(decoded, format!("AWS:{account}"), "{host}");
    }
}

#[test]
fn a_secret_beyond_the_limit_of_kubernetes_is_refused_with_the_way_out() {
    let spec = spec(serde_json::json!({
        "registries": [{ "private": {
            "region": "eu-west-1", "hostVariants": ["Standard", "Fips", "DualStack", "DualStackFips"],
            "accountIds": (0..100).map(|n| format!("{n:012}")).collect::<Vec<_>>(),
        } }],
        "namespaces": { "names": ["a"] },
    }));
    let plan = planned(&spec);
    let long = "x".repeat(4000);
    let published = Published::from([(
        plan.registries[0].token_specs[0].clone(),
        token(&long, Some("111122223333"), NOW, NOW + HOUR),
    )]);
    let error = bundle(&plan, &owner(), &published, &Included::default(), at(NOW)).unwrap_err();
    assert!(matches!(error, DesiredError::TooLarge(n) if n > MAX_SECRET_BYTES) && error.to_string().contains("split"));
}

#[test]
fn a_registry_that_does_not_fit_is_left_out_and_the_others_are_written() {
    let ids = |count: usize| (0..count).map(|n| format!("{n:012}")).collect::<Vec<_>>();
    let large = serde_json::json!({ "private": { "region": "eu-west-1", "accountIds": ids(100) } });
    let small = serde_json::json!({ "private": { "region": "eu-central-1", "accountIds": ["111122223333"] } });
    let public = serde_json::json!({ "public": {} });
    let long = "x".repeat(10_000);
    for (registries, number) in [([large.clone(), small.clone()], 0), ([small, large.clone()], 1), ([public, large], 1)]
    {
        let spec = spec(serde_json::json!({ "registries": registries, "namespaces": { "names": ["a"] } }));
        let plan = planned(&spec);
        let mut published = Published::new();
        for (n, registry) in plan.registries.iter().enumerate() {
            let (password, issued) = if n == number { (long.as_str(), NOW) } else { ("p", NOW - HOUR) };
            published.insert(registry.token_specs[0].clone(), token(password, None, issued, issued + 2 * HOUR));
        }
        let taken = taken_hosts(&plan, &published);
        let left: Vec<_> =
            left_out(&plan, &plan.secret, &published, &taken, at(NOW)).iter().map(|left| left.number).collect();
        assert_eq!(left, [number]);
        let error = SpecError::from(&left_out(&plan, &plan.secret, &published, &taken, at(NOW))[0]);
        assert!(error.message.starts_with(&format!("spec.registries[{number}]: ")) && error.message.contains("split"));
        let desired = build(&spec, &published).unwrap();
        assert_eq!(hosts(&desired).len(), 1);
        assert!(desired.incomplete, "an existing Secret may have the others");
        let refreshed_at = &desired.metadata.annotations.as_ref().unwrap()[REFRESHED_AT];
        assert_eq!(*refreshed_at, at(NOW - HOUR).to_string(), "a token that is not in the Secret does not refresh it");
    }
}

#[test]
fn hosts_that_cannot_be_told_make_no_secret_poorer_before_its_time() {
    let spec = spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1" } }, { "private": { "region": "europe" } }],
        "namespaces": { "names": ["a"] },
    }));
    let published = published(&spec, NOW + 10 * HOUR, None);
    let good = build(&spec, &published).unwrap();
    let other_hosts = |expires| {
        target(
            Ownership::Owned(record(ManagedFieldsDigest::desired(&ObjectMeta::default()), Some(expires))),
            Selection::Selected,
        )
    };
    assert_eq!(judge(&other_hosts(NOW + 5 * HOUR), Some(&good), ConflictPolicy::Fail), "wait");
    assert_eq!(judge(&other_hosts(NOW + 60), Some(&good), ConflictPolicy::Fail), "update");
    assert_eq!(judge(&target(Ownership::Absent, Selection::Selected), Some(&good), ConflictPolicy::Fail), "create");
}

#[test]
fn a_registry_without_a_token_withholds_others_only_where_a_secret_may_have_its_hosts() {
    const CENTRAL: &str = "111122223333.dkr.ecr.eu-central-1.amazonaws.com";
    const SOUTH: &str = "111122223333.dkr.ecr.eu-south-1.amazonaws.com";
    let private = |region| serde_json::json!({ "private": { "region": region } });
    let registries: Vec<_> = ["eu-west-1", "eu-south-1", "eu-central-1"].map(private).into();
    let spec = spec(serde_json::json!({ "registries": registries, "namespaces": { "names": ["a"] } }));
    let plan = planned(&spec);
    // The second one was added together with the third and is denied.
    let token = |number: usize| {
        let token_spec = plan.registries[number].token_specs[0].clone();
        (token_spec, token("p", Some("111122223333"), NOW, NOW + 12 * HOUR))
    };
    let desired = build(&spec, &[token(0), token(2)].into()).unwrap();
    assert_eq!(hosts(&desired), [CENTRAL, OWN]);
    for (what, hosts, expected) in [
        ("before they were added", Some(&[OWN][..]), "update"),
        ("the other one that is good", Some(&[CENTRAL]), "update"),
        ("a refresh", Some(&[OWN, CENTRAL]), "update"),
        ("it had a token before", Some(&[OWN, SOUTH]), "wait"),
        ("it has all", Some(&[OWN, SOUTH, CENTRAL]), "wait"),
        ("another was replaced", Some(&["former.example.com"]), "wait"),
        ("an included host is unknown since a restart", Some(&[OWN, "hub.example.com"]), "wait"),
        ("its hosts are unknown", None, "wait"),
    ] {
        let other = record(ManagedFieldsDigest::desired(&ObjectMeta::default()), Some(NOW + 6 * HOUR));
        let hosts = hosts.map(|hosts| docker_config::hash_of(hosts.iter().copied()));
        let found = target(Ownership::Owned(Arc::new(SecretRecord { hosts, ..(*other).clone() })), Selection::Selected);
        assert_eq!(judge(&found, Some(&desired), ConflictPolicy::Fail), expected, "{what}");
    }
}

#[test]
fn tokens_of_one_registry_from_different_seconds_give_the_same_secret_as_what_the_status_says_of_them() {
    let ids: Vec<String> = (0..12).map(|number| format!("{number:012}")).collect();
    let spec = spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1", "accountIds": ids, "requestRegistryIds": true } }],
        "namespaces": { "names": ["a"] },
    }));
    let plan = planned(&spec);
    let token_specs = &plan.registries[0].token_specs;
    let of = |lives: [Life; 2]| -> Published {
        let tokens = token_specs.iter().zip(lives).map(|(spec, life)| {
            let Service::Private { registry_ids, .. } = &spec.service else { panic!("a private registry") };
            let auth = DockerAuth::parse(STANDARD.encode("AWS:p")).unwrap();
            let tokens =
                registry_ids.iter().map(|id| Token { auth: auth.clone(), account: Some(id.clone()) }).collect();
            (spec.clone(), Arc::new(AuthorizationToken { tokens, life, identity: Identity::operator() }))
        });
        tokens.collect()
    };
    let life = |issued: i64| Life { issued_at: at(issued), expires_at: at(issued + 12 * HOUR) };
    let lives = [life(NOW), life(NOW + 1)];
    let earliest = Life::earliest(lives.into_iter()).unwrap();
    let (written, found_again) = (build(&spec, &of(lives)).unwrap(), build(&spec, &of([earliest; 2])).unwrap());
    assert_eq!(written.metadata, found_again.metadata);
}

#[test]
fn retain_has_no_owner_reference_and_delete_does_not_block() {
    let mut spec = two_registries();
    let published = published(&spec, NOW + HOUR, None);
    let references = build(&spec, &published).unwrap().metadata.owner_references.unwrap();
    assert_eq!((references.len(), references[0].controller, references[0].block_owner_deletion), (1, Some(true), None));
    spec.secret.deletion_policy = DeletionPolicy::Retain;
    assert_eq!(build(&spec, &published).unwrap().metadata.owner_references, None);
}

fn record(digest: ManagedFieldsDigest, expires: Option<i64>) -> Arc<SecretRecord> {
    let record = SecretRecord::fixture(Some(Uid("me".into())), "7", digest);
    Arc::new(SecretRecord { expires_at: expires.map(at), ..record })
}

fn target(ownership: Ownership, selection: Selection) -> SecretTarget {
    SecretTarget {
        namespace: "a".into(),
        namespace_uid: NamespaceUid::default(),
        name: "pull".into(),
        ownership,
        selection,
    }
}

fn judge(target: &SecretTarget, desired: Option<&Desired>, policy: ConflictPolicy) -> &'static str {
    match action(target, desired, policy, None, at(NOW).into()) {
        SecretAction::Keep => "keep",
        SecretAction::Wait => "wait",
        SecretAction::Create => "create",
        SecretAction::Update(_) => "update",
        SecretAction::Strip(_) => "strip",
        SecretAction::Delete(_) => "delete",
        SecretAction::Refuse(reason, _) => reason.as_str(),
    }
}

#[test]
fn a_secret_with_a_token_of_an_identity_that_is_unknown_now_is_as_desired_whatever_it_records_of_it() {
    let spec = two_registries();
    let known = published(&spec, NOW + 2 * HOUR, Some(NOW + HOUR));
    let written = build(&spec, &known).unwrap();
    let found = |digest, identity, expires| {
        let (hosts, identity) = (Some(written.payload.hosts), Some(identity));
        let own = |record: Arc<SecretRecord>| SecretRecord { hosts, identity, ..(*record).clone() };
        target(Ownership::Owned(Arc::new(own(record(digest, Some(expires))))), Selection::Selected)
    };
    let edited = ManagedFieldsDigest::desired(&ObjectMeta::default());
    // After a restart, while the Secret with the keys of the private registry is missing.
    let mut former = known;
    let first = former.values_mut().next().unwrap();
    *first = Arc::new(AuthorizationToken { identity: Identity::unresolved(), ..(**first).clone() });
    let desired = build(&spec, &former).unwrap();
    assert_ne!(desired.identity, written.identity);
    let table = [
        ("as it was written", found(written.digest, written.identity, NOW + HOUR), "keep"),
        ("edited", found(edited, written.identity, NOW + HOUR), "update"),
        ("written by a process that died", found(edited, written.identity, NOW + 3 * HOUR), "keep"),
        (
            "as it was written by one that did not know it either",
            found(desired.digest, desired.identity, NOW + HOUR),
            "keep",
        ),
    ];
    for (name, target, expected) in table {
        assert_eq!(judge(&target, Some(&desired), ConflictPolicy::Fail), expected, "{name}");
    }
    let other = Arc::new(SecretRecord { identity: Some(7), ..(*record(written.digest, Some(NOW + HOUR))).clone() });
    let other = target(Ownership::Owned(other), Selection::Selected);
    assert_eq!(judge(&other, Some(&desired), ConflictPolicy::Fail), "update", "its other fields are not as they were");
}

#[test]
fn every_target_has_its_action() {
    use ConflictPolicy::{Adopt, Fail};
    let spec = two_registries();
    let good = build(&spec, &published(&spec, NOW + HOUR, Some(NOW + HOUR))).unwrap();
    let one_missing = build(&spec, &published(&spec, NOW + HOUR, None)).unwrap();
    let empty = build(&spec, &published(&spec, NOW - 1, Some(NOW - 1))).unwrap();
    let written = record(good.digest, Some(NOW + HOUR));
    let edited = record(empty.digest, None);
    let older = record(empty.digest, Some(NOW + 10));
    let other_hosts = record(empty.digest, Some(NOW + 9 * HOUR));
    let of_another = Arc::new(SecretRecord { hosts: Some(good.payload.hosts), ..(*other_hosts).clone() });
    let newer = Arc::new(SecretRecord { identity: Some(good.identity), ..(*of_another).clone() });
    let newer_and_more = Arc::new(SecretRecord { extra_keys: Box::new(["x".to_owned()]), ..(*newer).clone() });
    let dead = record(empty.digest, Some(NOW - 10));
    let stuffed = Arc::new(SecretRecord { extra_keys: Box::new(["x".to_owned()]), ..(*written).clone() });
    let nearer_its_end = record(empty.digest, Some(NOW + 11 * 60));
    let near_its_end = record(empty.digest, Some(NOW + 10 * 60));
    let expired = dead.clone();
    let expired_copy = Arc::new(SecretRecord { applied: false, ..(*dead).clone() });
    let copy = Arc::new(SecretRecord { applied: false, ..(*older).clone() });
    let held = Arc::new(SecretRecord { held_by: Some("example.com/x".into()), ..(*older).clone() });
    let forged = Arc::new(SecretRecord { trust: Trust::Forged, ..(*written).clone() });
    let by_lost_answer = Arc::new(SecretRecord { trust: Trust::Changed, ..(*written).clone() });
    let forged_newer = Arc::new(SecretRecord { expires_at: Some(at(NOW + 365 * 24 * HOUR)), ..(*newer).clone() });
    let forged_others = Arc::new(SecretRecord { hosts: None, ..(*forged_newer).clone() });
    let (some, none, nothing, part) = (Some(&good), None, Some(&empty), Some(&one_missing));
    let table = [
        ("missing", Ownership::Absent, Selection::Selected, some, Fail, "create"),
        ("missing, no token", Ownership::Absent, Selection::Selected, none, Fail, "wait"),
        ("missing, nothing valid", Ownership::Absent, Selection::Selected, nothing, Fail, "wait"),
        ("as it should be", Ownership::Owned(written.clone()), Selection::Selected, some, Fail, "keep"),
        ("edited", Ownership::Owned(edited.clone()), Selection::Selected, some, Fail, "update"),
        ("applied under our name", Ownership::Owned(forged), Selection::Selected, some, Fail, "update"),
        ("the answer was lost", Ownership::Owned(by_lost_answer), Selection::Selected, some, Fail, "keep"),
        ("good for a year", Ownership::Owned(forged_newer.clone()), Selection::Selected, some, Fail, "update"),
        ("no token, good for a year", Ownership::Owned(forged_newer.clone()), Selection::Selected, none, Fail, "wait"),
        ("more hosts, good for a year", Ownership::Owned(forged_others), Selection::Selected, part, Fail, "update"),
        ("renamed, good for a year", Ownership::Owned(forged_newer), Selection::Renamed, some, Fail, "delete"),
        ("a refresh", Ownership::Owned(older.clone()), Selection::Selected, some, Fail, "update"),
        ("written by a process that died", Ownership::Owned(newer.clone()), Selection::Selected, some, Fail, "keep"),
        ("the login is another identity's", Ownership::Owned(of_another), Selection::Selected, some, Fail, "update"),
        (
            "a host was added whose token is older",
            Ownership::Owned(other_hosts.clone()),
            Selection::Selected,
            some,
            Fail,
            "update",
        ),
        (
            "a token is missing, the Secret may have it",
            Ownership::Owned(other_hosts.clone()),
            Selection::Selected,
            part,
            Fail,
            "wait",
        ),
        (
            "a token is missing, the Secret is nearer its end",
            Ownership::Owned(nearer_its_end),
            Selection::Selected,
            part,
            Fail,
            "wait",
        ),
        (
            "a token is missing, the Secret ends soon",
            Ownership::Owned(near_its_end),
            Selection::Selected,
            part,
            Fail,
            "update",
        ),
        ("a token is missing, and so is the Secret", Ownership::Absent, Selection::Selected, part, Fail, "create"),
        ("other keys in the data", Ownership::Owned(stuffed), Selection::Selected, some, Fail, "strip"),
        ("a later token and other keys", Ownership::Owned(newer_and_more), Selection::Selected, some, Fail, "strip"),
        ("no token, still good", Ownership::Owned(newer.clone()), Selection::Selected, none, Fail, "keep"),
        ("no token, expired", Ownership::Owned(dead.clone()), Selection::Selected, none, Fail, "wait"),
        ("expired, public pulls work without", Ownership::Owned(dead), Selection::Selected, nothing, Fail, "keep"),
        ("foreign", Ownership::Unmanaged(older.clone()), Selection::Selected, some, Fail, "SecretNotOwned"),
        ("foreign, adopted", Ownership::Unmanaged(older.clone()), Selection::Selected, some, Adopt, "update"),
        ("foreign, adopted, no token", Ownership::Unmanaged(older.clone()), Selection::Selected, none, Adopt, "wait"),
        (
            "foreign, adopted, nothing valid",
            Ownership::Unmanaged(older.clone()),
            Selection::Selected,
            nothing,
            Adopt,
            "wait",
        ),
        ("retained by a predecessor", Ownership::Orphaned(older.clone()), Selection::Selected, some, Fail, "update"),
        ("the younger's", Ownership::OwnedByOther(older.clone()), Selection::Selected, some, Fail, "update"),
        (
            "the older's",
            Ownership::OwnedByOther(older.clone()),
            Selection::Conflict("old".into()),
            some,
            Fail,
            "Conflict",
        ),
        (
            "the older's, still mine",
            Ownership::Owned(older.clone()),
            Selection::Conflict("old".into()),
            some,
            Adopt,
            "Conflict",
        ),
        ("deselected", Ownership::Owned(older.clone()), Selection::Deselected, some, Fail, "delete"),
        ("deselected, no token", Ownership::Owned(older.clone()), Selection::Deselected, none, Fail, "delete"),
        ("a copy elsewhere", Ownership::Owned(copy), Selection::Deselected, some, Fail, "keep"),
        ("deselected, and being deleted", Ownership::Owned(held), Selection::Deselected, some, Fail, "keep"),
        ("renamed", Ownership::Owned(older.clone()), Selection::Renamed, some, Fail, "keep"),
        ("renamed, and expired", Ownership::Owned(expired.clone()), Selection::Renamed, some, Fail, "delete"),
        ("renamed, and its expiry unknown", Ownership::Owned(edited), Selection::Renamed, some, Fail, "delete"),
        ("a copy of the old name", Ownership::Owned(expired_copy), Selection::Renamed, some, Fail, "keep"),
        ("left to another", Ownership::Owned(older.clone()), Selection::Superseded, some, Fail, "keep"),
        ("deselected, foreign", Ownership::Unmanaged(older), Selection::Deselected, some, Adopt, "keep"),
    ];
    for (name, ownership, selection, desired, policy, expected) in table {
        assert_eq!(judge(&target(ownership, selection), desired, policy), expected, "{name}");
    }
}

#[test]
fn what_admission_makes_of_a_write_counts_as_written() {
    let spec = two_registries();
    let desired = build(&spec, &published(&spec, NOW + HOUR, None)).unwrap();
    let other = build(&spec, &published(&spec, NOW - 1, Some(NOW - 1))).unwrap().digest;
    let target = target(Ownership::Owned(record(other, None)), Selection::Selected);
    assert_eq!(action(&target, Some(&desired), ConflictPolicy::Fail, Some(other), at(NOW).into()), SecretAction::Keep);
}
