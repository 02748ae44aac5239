//! What is kept of each namespace that has an identity of its own, and for how long.

use std::time::Duration;

use serde_json::json;

use super::super::retry_state::RetryState;
use super::super::stage::{HOUR, NAMESPACES, NOW, Stage, at, identity_of, refusal, token};
use super::*;
use crate::clock::{Clock, Server};
use crate::plan::namespaces::NamespaceUid;
use crate::plan::outputs::SecretPlan;
use crate::plan::references::AccountRecord;
use crate::plan::{Identity, plan};
use crate::secret::include::Included;
use crate::secret::ownership::Ownership;
use crate::secret::{Desired, SecretAction, SecretTarget, Selection};

fn stage() -> Stage {
    stage_of(&NAMESPACES)
}

fn stage_of(namespaces: &[&str]) -> Stage {
    let each = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    Stage::of(json!([{ "private": {}, "auth": each }, { "public": {} }]), namespaces)
}

fn context<'a>(stage: &'a Stage, shared: &'a Published) -> TenantContext<'a> {
    static NONE: Included = Included { configs: Vec::new(), incomplete: false };
    let version = (None, None);
    TenantContext { ctx: &stage.ctx, plan: &stage.plan, owner: &stage.owner, shared, included: &NONE, version }
}

/// The identity of a namespace.
fn identity(stage: &Stage, namespace: &str) -> Identity {
    identity_of(stage, own_token_specs(&stage.plan).first().unwrap(), namespace)
}

/// A namespace that holds a token of its own.
fn tenant(stage: &Stage, namespace: &str, password: &str, expires: i64) -> Tenant {
    let token_spec = (*own_token_specs(&stage.plan).first().unwrap()).clone();
    let published = [(token_spec, token(password, expires, &identity(stage, namespace)))].into();
    Tenant { namespace_uid: NamespaceUid::of(namespace, None), published, recovery: TenantRecovery::Done, made: None }
}

fn made(tenant: &mut Tenant, context: TenantContext<'_>, generation: i64, now: i64) -> Bundle {
    tenant.desired(&TenantContext { version: (Some(generation), None), ..context }, at(now)).unwrap().0
}

fn hosts(tenant: &mut Tenant, context: TenantContext<'_>, generation: i64, now: i64) -> Option<usize> {
    made(tenant, context, generation, now).get("pull").map(|desired| logins(desired))
}

fn logins(desired: &Desired) -> usize {
    use base64::Engine;
    let (_, value) = desired.payload.expose_data().next().unwrap();
    let json = base64::engine::general_purpose::STANDARD.decode(value).unwrap();
    crate::secret::docker_config::parse(&json).len()
}

#[tokio::test]
async fn a_content_is_kept_until_a_login_in_it_expires_or_what_it_is_made_of_changes() {
    let stage = stage();
    let public = stage.plan.registries[1].token_specs[0].clone();
    let (none, shared) = (Published::new(), [(public, token("q", NOW + 9 * HOUR, &Identity::operator()))].into());
    let mut tenant = tenant(&stage, "a", "p", NOW + HOUR);
    let (alone, both) = (context(&stage, &none), context(&stage, &shared));
    assert_eq!(hosts(&mut tenant, alone, 1, NOW), Some(1));
    assert_eq!(hosts(&mut tenant, both, 1, NOW), Some(2), "what all share has changed");
    let (mut once, mut again) = [1, 1].map(|generation| made(&mut tenant, both, generation, NOW)).into();
    assert!(Arc::ptr_eq(&once.remove("pull").unwrap(), &again.remove("pull").unwrap()), "it is not made for each look");
    let mut anew = made(&mut tenant, both, 2, NOW);
    assert!(!Arc::ptr_eq(&made(&mut tenant, both, 1, NOW)["pull"], &anew.remove("pull").unwrap()));
    assert_eq!(hosts(&mut tenant, both, 2, NOW + HOUR - 1), Some(2));
    assert_eq!(hosts(&mut tenant, both, 2, NOW + HOUR), Some(1), "its own login has expired");
}

#[tokio::test]
async fn a_namespace_that_was_made_again_is_another_tenant() {
    let stage = stage();
    let none = Published::new();
    let mut tenants = Tenants::default();
    for namespace in ["a", "b", "gone"] {
        tenants.each.insert(
            namespace.into(),
            Tenant { recovery: TenantRecovery::Done, ..tenant(&stage, "a", "p", NOW + HOUR) },
        );
    }
    // `a` is the one that it was, `b` has another uid than its tokens, `gone` is not there any more.
    let context = context(&stage, &none);
    drop(tenants.prepare(&context, true, at(NOW)).await);
    let with_tokens: Vec<_> =
        tenants.each.iter().filter(|(_, t)| !t.published.is_empty()).map(|(ns, _)| &**ns).collect();
    assert_eq!(with_tokens, ["a"]);
    assert_eq!(tenants.each.len(), 4, "every target has an entry, and nobody else");
}

#[tokio::test]
async fn of_a_tenants_secret_only_what_we_would_write_is_taken() {
    for (what, forged, owned, expires, taken) in [
        ("as we wrote it", false, true, NOW + HOUR, true),
        ("its owner has edited it", true, true, NOW + HOUR, false),
        ("it is another EcrCredential's", false, false, NOW + HOUR, false),
        ("it has expired", false, true, NOW - 1, false),
        ("it is good for longer than AWS issues tokens", false, true, NOW + 13 * HOUR, false),
    ] {
        let mut stage = stage();
        let none = Published::new();
        let before = tenant(&stage, "a", "p", expires.max(NOW + HOUR));
        let desired = stage.desired(&before.published);
        let digest =
            if forged { stage.desired(&tenant(&stage, "a", "q", NOW + HOUR).published).digest } else { desired.digest };
        stage.server.has_secret("a", &desired);
        if !owned {
            stage.uid = Uid("other".into());
        }
        stage.sees("a", digest, expires);
        let context = context(&stage, &none);
        let mut tenant = Tenant { namespace_uid: NamespaceUid::of("a", None), ..Tenant::default() };
        recover_tenant(&context, &"a".into(), &mut tenant, true, Instant::now() + PASS, at(NOW)).await;
        assert_eq!(!tenant.published.is_empty(), taken, "{what}");
        assert_eq!(tenant.recovery, TenantRecovery::Done, "{what}");
    }
}

/// The namespaces whose Secret can be read and has a token that is valid.
fn with_secrets(stage: &Stage, namespaces: &[&str]) {
    for namespace in namespaces {
        let desired = stage.desired(&tenant(stage, namespace, "p", NOW + HOUR).published);
        stage.server.has_secret(namespace, &desired);
        stage.sees(namespace, desired.digest, NOW + HOUR);
    }
}

/// The namespaces whose tokens are known.
fn recovered(tenants: &Tenants) -> Vec<&str> {
    let known = tenants.each.iter().filter(|(_, tenant)| !tenant.published.is_empty());
    let mut known: Vec<&str> = known.map(|(namespace, _)| &**namespace).collect();
    known.sort_unstable();
    known
}

#[tokio::test(start_paused = true)]
async fn a_tenants_secret_that_could_not_be_read_is_read_again_after_a_while() {
    let stage = stage();
    with_secrets(&stage, &["a", "b"]);
    let path = "/api/v1/namespaces/a/secrets/pull";
    let good = stage.server.answer(path);
    stage.server.answers(path, 500, refusal(500, "no"));
    let (none, mut tenants) = (Published::new(), Tenants::default());
    let context = context(&stage, &none);
    for _ in 0..2 {
        drop(tenants.prepare(&context, true, at(NOW)).await);
        assert_eq!(recovered(&tenants), ["b"]);
    }
    assert_eq!(stage.server.asked(path), 1, "not at once");
    stage.server.answers(path, 200, good);
    for _ in 0..2 {
        tokio::time::advance(AGAIN.max).await;
        drop(tenants.prepare(&context, true, at(NOW)).await);
        assert_eq!(recovered(&tenants), ["a", "b"]);
    }
    assert_eq!(stage.server.asked("/secrets/pull"), 3, "never again");
}

#[tokio::test(start_paused = true)]
async fn what_is_found_again_later_is_in_the_content() {
    let stage = stage();
    with_secrets(&stage, &["a"]);
    let path = "/api/v1/namespaces/a/secrets/pull";
    let good = stage.server.answer(path);
    stage.server.answers(path, 500, refusal(500, "no"));
    let public = stage.plan.registries[1].token_specs[0].clone();
    let (none, shared) = (Published::new(), [(public, token("q", NOW + 9 * HOUR, &Identity::operator()))].into());
    let mut tenants = Tenants::default();
    let mut entries = async |shared: &Published| {
        let context = context(&stage, shared);
        let keys = tenants.prepare(&context, true, at(NOW)).await;
        let progress = tenants.advance(&context, keys, None, at(NOW));
        let DesiredSecrets::Each(shares) = tenants.content(&context, &progress) else { panic!("each has its own") };
        shares["a"].desired.get("pull").map(|desired| logins(desired))
    };
    assert_eq!(entries(&none).await, None);
    stage.server.answers(path, 200, good);
    tokio::time::advance(AGAIN.max).await;
    assert_eq!(entries(&none).await, Some(1), "its own");
    assert_eq!(entries(&shared).await, Some(2), "and one that all share");
}

#[tokio::test(start_paused = true)]
async fn a_tenants_secret_whose_read_gets_no_answer_holds_up_no_reconciliation() {
    let stage = stage();
    with_secrets(&stage, &["a", "b"]);
    let (none, mut tenants) = (Published::new(), Tenants::default());
    let context = context(&stage, &none);
    let held = stage.server.hold().await;
    for _ in 0..3 {
        let prepared = tokio::time::timeout(Duration::from_secs(15), tenants.prepare(&context, true, at(NOW))).await;
        assert_eq!(prepared.expect("in time").len(), NAMESPACES.len());
        tokio::time::advance(AGAIN.max).await;
    }
    drop(held);
    drop(tenants.prepare(&context, true, at(NOW)).await);
    assert_eq!(recovered(&tenants), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_for_which_there_was_no_time_yet_requests_no_token_and_is_next() {
    let namespaces: Vec<String> = (0..READS + 4).map(|number| format!("n{number:02}")).collect();
    let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let stage = stage_of(&namespaces);
    let (new, old) = namespaces.split_first().unwrap();
    with_secrets(&stage, old);
    let (none, mut tenants) = (Published::new(), Tenants::default());
    let context = context(&stage, &none);
    let held = stage.server.hold().await;
    let keys = tenants.prepare(&context, true, at(NOW)).await;
    assert!(keys.contains_key(*new), "it has no Secret, so it waits for nobody");
    assert_eq!(keys.len(), READS + 1, "those that were tried, and that one");
    assert!(tenants.advance(&context, keys, None, at(NOW)).pending);
    assert_eq!(tenants.recovers_at(), Some(Instant::now()));
    drop(held);
    let keys = tenants.prepare(&context, true, at(NOW)).await;
    assert_eq!((keys.len(), recovered(&tenants).len()), (namespaces.len(), old.len() - READS));
    assert!(!tenants.advance(&context, keys, None, at(NOW)).pending);
    tokio::time::advance(AGAIN.max).await;
    drop(tenants.prepare(&context, true, at(NOW)).await);
    assert_eq!(recovered(&tenants), old);
    assert_eq!(tenants.recovers_at(), None);
}

#[tokio::test(start_paused = true)]
async fn a_tenants_secret_with_a_token_of_all_namespaces_is_read_again_after_that_token_was_found() {
    let stage = stage();
    let public = stage.plan.registries[1].token_specs[0].clone();
    let shared = [(public, token("q", NOW + 9 * HOUR, &Identity::operator()))].into();
    let desired = stage.desired(&tenant(&stage, "a", "p", NOW + HOUR).with(&shared));
    stage.server.has_secret("a", &desired);
    stage.sees("a", desired.digest, NOW + HOUR);
    let (none, mut tenants) = (Published::new(), Tenants::default());
    drop(tenants.prepare(&context(&stage, &none), false, at(NOW)).await);
    assert!(recovered(&tenants).is_empty());
    tokio::time::advance(AGAIN.max).await;
    drop(tenants.prepare(&context(&stage, &shared), true, at(NOW)).await);
    assert_eq!(recovered(&tenants), ["a"]);
}

#[tokio::test]
async fn a_share_says_what_it_lacks_and_whether_its_identity_is_that_of_now() {
    let stage = stage();
    let none = Published::new();
    let context = context(&stage, &none);
    let mut tenants = Tenants::default();
    tenants.each.insert("a".into(), tenant(&stage, "a", "p", NOW + HOUR));
    tenants.each.insert("b".into(), tenant(&stage, "b", "p", NOW - 1));
    // Its token was fetched by the identity of another.
    let stolen = tenant(&stage, "a", "p", NOW + HOUR);
    tenants.each.insert("c".into(), Tenant { namespace_uid: NamespaceUid::of("c", None), ..stolen });
    let keys = tenants.prepare(&context, true, at(NOW)).await;
    let progress = tenants.advance(&context, keys, None, at(NOW));
    let DesiredSecrets::Each(shares) = tenants.content(&context, &progress) else { panic!("each has its own") };
    let seen = ["a", "b", "c"].map(|namespace| (shares[namespace].problems.is_empty(), shares[namespace].current));
    assert_eq!(seen, [(true, true), (false, true), (true, false)]);
}

/// What the status says about the Secrets of a namespace that are as desired for now.
fn failing(stage: &Stage, desired: &DesiredSecrets, namespace: &str) -> BTreeMap<String, Option<Reason>> {
    let of = |secret: &SecretPlan| {
        let target = SecretTarget {
            namespace: namespace.into(),
            namespace_uid: NamespaceUid::of(namespace, None),
            name: secret.name.clone(),
            ownership: Ownership::Absent,
            selection: Selection::Selected,
        };
        let state = RetryState::default().sync_state(&target, &SecretAction::Keep, desired, at(NOW));
        assert!(state.synced || state.problem.is_some(), "{}", secret.name);
        (secret.name.to_string(), state.problem.map(|(reason, _)| reason))
    };
    stage.plan.secrets().map(of).collect()
}

#[tokio::test]
async fn an_identity_of_a_namespace_fails_only_for_the_secrets_that_hold_its_token() {
    let mut stage = stage();
    let output = |name: &str, format: &str, host: &str| json!({ "name": name, "format": format, "host": host });
    stage.object.spec.outputs = serde_json::from_value(json!([
        { "name": "all", "format": "DockerConfigJson" },
        output("own", "ArgoCDOCI", "111122223333.dkr.ecr.eu-west-1.amazonaws.com"),
        output("own-config", "DockerConfigJson", "111122223333.dkr.ecr.eu-west-1.amazonaws.com"),
        output("shared", "ArgoCDOCI", "public.ecr.aws"),
        output("shared-config", "DockerConfigJson", "public.ecr.aws"),
    ]))
    .unwrap();
    stage.plan = plan(&stage.object.spec, &stage.ctx.limits).unwrap();
    let record = AccountRecord { uid: "b".into(), created: at(NOW), role: None, audience: None };
    stage.ctx.shared.state.lock().references.set_account("b", "puller", Some(record));
    let public = stage.plan.registries[1].token_specs[0].clone();
    let shared = [(public, token("q", NOW + 9 * HOUR, &Identity::operator()))].into();
    let context = context(&stage, &shared);
    let mut tenants = Tenants::default();
    tenants.each.insert("a".into(), tenant(&stage, "a", "p", NOW + HOUR));
    let keys = tenants.prepare(&context, true, at(NOW)).await;
    let progress = tenants.advance(&context, keys, None, at(NOW));
    let desired = tenants.content(&context, &progress);
    assert!(failing(&stage, &desired, "a").values().all(Option::is_none));
    let problem = Some(Reason::IdentityNotFound);
    let expected = [
        ("all", problem),
        ("own", problem),
        ("own-config", problem),
        ("pull", problem),
        ("shared", None),
        ("shared-config", None),
    ];
    assert_eq!(failing(&stage, &desired, "b"), expected.map(|(name, why)| (name.to_owned(), why)).into());
}

#[tokio::test]
async fn a_node_clock_that_is_ahead_takes_no_login_of_a_namespace() {
    let mut stage = stage();
    stage.ctx.clock = Clock::new(|| at(NOW + 13 * HOUR), Duration::default);
    stage.ctx.clock.hear(Server::Kubernetes, "Fri, 15 Jan 2027 08:00:00 GMT", Duration::ZERO);
    let (now, earliest) = (stage.ctx.clock.now(), stage.ctx.clock.earliest());
    assert_eq!((now, earliest), (at(NOW + 13 * HOUR), at(NOW)));
    let none = Published::new();
    let context = context(&stage, &none);
    let mut tenants = Tenants::default();
    tenants.each.insert("a".into(), tenant(&stage, "a", "p", NOW + HOUR));
    let keys = tenants.prepare(&context, true, earliest).await;
    let progress = tenants.advance(&context, keys, None, now);
    let DesiredSecrets::Each(shares) = tenants.content(&context, &progress) else { panic!("each has its own") };
    let pull = shares["a"].desired.get("pull").unwrap();
    assert_eq!((pull.has_entries, pull.expires_at), (true, at(NOW + HOUR)));
}

#[tokio::test]
async fn a_tenant_whose_token_has_expired_hides_no_expiry_of_the_others() {
    let stage = stage();
    let none = Published::new();
    let context = context(&stage, &none);
    for (expiries, expires, is_due) in [
        ([NOW - 1, NOW + 5 * HOUR], NOW + 5 * HOUR, true),
        ([NOW + 2 * HOUR, NOW + 5 * HOUR], NOW + 2 * HOUR, true),
        ([NOW - 2, NOW - 1], NOW - 2, false),
    ] {
        let of = |(namespace, expires): (&str, i64)| (namespace.into(), tenant(&stage, namespace, "p", expires));
        let each = ["a", "b"].into_iter().zip(expiries).map(of).collect();
        let tenants = Tenants { each, ..Tenants::default() };
        let life = tenants.life(&stage.plan.registries[0], at(NOW)).unwrap();
        assert_eq!(life.expires_at, at(expires), "{expiries:?}");
        let due = tenants.due_at(&context, at(NOW));
        assert_eq!(due.is_some(), is_due, "{expiries:?}");
        assert!(due.is_none_or(|due| due < at(expires)), "{expiries:?}");
    }
}
