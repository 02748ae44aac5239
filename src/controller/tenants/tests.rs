//! What is kept of each namespace that has an identity of its own, and for how long.

use std::time::Duration;

use serde_json::json;

use super::super::stage::{HOUR, NOW, Stage, at, identity_of, token};
use super::*;
use crate::clock::{Clock, Server};
use crate::plan::Identity;
use crate::plan::namespaces::NamespaceUid;
use crate::secret::include::Included;

fn stage() -> Stage {
    let each = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    Stage::new(json!([{ "private": {}, "auth": each }, { "public": {} }]))
}

fn context<'a>(stage: &'a Stage, shared: &'a Published) -> TenantContext<'a> {
    static NONE: Included = Included { configs: Vec::new(), incomplete: false };
    TenantContext { ctx: &stage.ctx, uid: &stage.uid, plan: &stage.plan, owner: &stage.owner, shared, included: &NONE }
}

/// The identity of a namespace.
fn identity(stage: &Stage, namespace: &str) -> Identity {
    identity_of(stage, own_token_specs(&stage.plan).first().unwrap(), namespace)
}

/// A namespace that holds a token of its own.
fn tenant(stage: &Stage, namespace: &str, password: &str, expires: i64) -> Tenant {
    let token_spec = (*own_token_specs(&stage.plan).first().unwrap()).clone();
    let published = [(token_spec, token(password, expires, &identity(stage, namespace)))].into();
    Tenant { namespace_uid: NamespaceUid::of(namespace, None), published, recovered: true, made: None }
}

fn hosts(tenant: &mut Tenant, context: &TenantContext<'_>, version: u64, now: i64) -> Option<usize> {
    let (bundle, _) = tenant.desired(context, version, at(now)).unwrap();
    bundle.get("pull").map(|desired| {
        use base64::Engine;
        let (_, value) = desired.payload.expose_data().next().unwrap();
        let json = base64::engine::general_purpose::STANDARD.decode(value).unwrap();
        crate::secret::docker_config::parse(&json).len()
    })
}

#[tokio::test]
async fn a_content_is_kept_until_a_login_in_it_expires_or_what_all_share_changes() {
    let stage = stage();
    let public = stage.plan.registries[1].token_specs[0].clone();
    let (none, shared) = (Published::new(), [(public, token("q", NOW + 9 * HOUR, &Identity::operator()))].into());
    let mut tenant = tenant(&stage, "a", "p", NOW + HOUR);
    let (alone, both) = (context(&stage, &none), context(&stage, &shared));
    assert_eq!(hosts(&mut tenant, &alone, 1, NOW), Some(1));
    assert_eq!(hosts(&mut tenant, &both, 1, NOW), Some(1), "it is not made anew for each look");
    assert_eq!(hosts(&mut tenant, &both, 2, NOW), Some(2), "what all share has changed");
    assert_eq!(hosts(&mut tenant, &both, 2, NOW + HOUR - 1), Some(2));
    assert_eq!(hosts(&mut tenant, &both, 2, NOW + HOUR), Some(1), "its own login has expired");
}

#[tokio::test]
async fn a_namespace_that_was_made_again_is_another_tenant() {
    let stage = stage();
    let none = Published::new();
    let mut tenants = Tenants::default();
    for namespace in ["a", "b", "gone"] {
        tenants.each.insert(namespace.into(), Tenant { recovered: true, ..tenant(&stage, "a", "p", NOW + HOUR) });
    }
    // `a` is the one that it was, `b` has another uid than its tokens, `gone` is not there any more.
    let context = context(&stage, &none);
    drop(tenants.prepare(&context, at(NOW)).await);
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
    ] {
        let stage = stage();
        let none = Published::new();
        let before = tenant(&stage, "a", "p", NOW + HOUR);
        let desired = stage.desired(&before.published);
        let digest =
            if forged { stage.desired(&tenant(&stage, "a", "q", NOW + HOUR).published).digest } else { desired.digest };
        stage.server.has_secret("a", &desired);
        stage.sees("a", digest, expires);
        let other = Uid("other".into());
        let mut context = context(&stage, &none);
        if !owned {
            context.uid = &other;
        }
        let mut tenant = Tenant { namespace_uid: NamespaceUid::of("a", None), ..Tenant::default() };
        recover_tenant(&context, &"a".into(), &mut tenant, at(NOW)).await;
        assert_eq!(!tenant.published.is_empty(), taken, "{what}");
        assert!(tenant.recovered, "{what}");
    }
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
    let keys = tenants.prepare(&context, at(NOW)).await;
    let progress = tenants.advance(&context, keys, None, at(NOW));
    let DesiredSecrets::Each(shares) = tenants.content(&context, &progress) else { panic!("each has its own") };
    let seen = ["a", "b", "c"].map(|namespace| (shares[namespace].lacks.is_none(), shares[namespace].current));
    assert_eq!(seen, [(true, true), (false, true), (true, false)]);
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
    let keys = tenants.prepare(&context, earliest).await;
    let progress = tenants.advance(&context, keys, None, now);
    let DesiredSecrets::Each(shares) = tenants.content(&context, &progress) else { panic!("each has its own") };
    let pull = shares["a"].desired.get("pull").unwrap();
    assert_eq!((pull.has_entries, pull.expires_at), (true, at(NOW + HOUR)));
}
