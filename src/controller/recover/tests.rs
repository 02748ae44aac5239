//! What a restarted process takes out of its Secrets, and from whom it takes nothing.

use kube::runtime::controller::Action;
use serde_json::json;

use super::super::reconcile::reconcile;
use super::super::stage::{ACCOUNT, HOUR, NAMESPACES, NOW, Stage, at, refusal, token};
use super::*;
use crate::api::{EcrCredential, EcrCredentialSpec};
use crate::apply::Writer;

const HOST: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

fn stage() -> Stage {
    Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]))
}

/// What the status says of a token with this password.
fn status(stage: &Stage, password: &str, expires: i64) -> EcrCredentialStatus {
    let token = token(password, expires, &Identity::operator());
    let host = Host::parse(HOST).unwrap();
    let hash = stage.ctx.hash(&token.identity, &[(host, &token.tokens[0].auth)]);
    let registry = RegistryStatus {
        hosts: vec![HOST.to_owned()],
        region: Some("eu-west-1".to_owned()),
        issued_at: Some(at(NOW - HOUR)),
        expires_at: Some(at(expires)),
        token_hash: Some(hash.as_str().to_owned()),
        ..RegistryStatus::default()
    };
    EcrCredentialStatus { registries: vec![registry], ..EcrCredentialStatus::default() }
}

/// Each namespace has the Secret with a password of its own.
fn secrets(stage: &Stage, passwords: &[(&str, &str)]) {
    for (namespace, password) in passwords {
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let desired = stage.desired(&[(token_spec, token(password, NOW + HOUR, &Identity::operator()))].into());
        stage.server.has_secret(namespace, &desired);
        stage.sees(namespace, desired.digest, NOW + HOUR);
    }
}

/// The passwords that are published afterwards.
async fn recovered(stage: &Stage, status: &EcrCredentialStatus, state: &mut CredentialState) -> Vec<String> {
    let token_specs = stage.plan.token_specs().into_iter().collect();
    recover(&stage.ctx, &stage.uid, &stage.plan, &token_specs, status, state, at(NOW)).await;
    let auths = state.published.values().map(|token| token.tokens[0].auth.expose().to_owned());
    auths.collect()
}

fn auth(password: &str) -> String {
    token(password, NOW, &Identity::operator()).tokens[0].auth.expose().to_owned()
}

#[tokio::test]
async fn a_token_that_the_status_vouches_for_is_taken_and_one_that_it_does_not_is_not() {
    for (what, told, expires, in_secret, expected) in [
        ("as it was", "good", NOW + HOUR, "good", vec![auth("good")]),
        ("a tenant has put a login of its own there", "good", NOW + HOUR, "forged", vec![]),
        ("it has expired", "good", NOW - 1, "good", vec![]),
    ] {
        let stage = stage();
        secrets(&stage, &[("a", in_secret)]);
        let status = status(&stage, told, expires);
        let found = recovered(&stage, &status, &mut CredentialState::default()).await;
        assert_eq!(found, expected, "{what}");
    }
}

#[tokio::test]
async fn one_secret_that_cannot_be_read_or_was_forged_holds_up_nobody() {
    let stage = stage();
    secrets(&stage, &NAMESPACES.map(|namespace| (namespace, "good")));
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/secrets/pull");
    stage.server.answers(&path("a"), 403, refusal(403, "no"));
    stage.server.answers(&path("b"), 404, refusal(404, "gone"));
    let forged = json!({ "metadata": {}, "data": { ".dockerconfigjson": "bm8=" } });
    for namespace in ["c", "d"] {
        stage.server.answers(&path(namespace), 200, forged.clone());
    }
    let status = status(&stage, "good", NOW + HOUR);
    let mut state = CredentialState::default();
    assert_eq!(recovered(&stage, &status, &mut state).await, Vec::<String>::new());
    // Those that cannot be read are the first that are asked.
    let of_a_kind = stage.server.asked("/secrets/pull");
    assert_eq!(of_a_kind, MOST_OF_A_KIND, "they are all of one content");
    let other = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    secrets(&other, &NAMESPACES.map(|namespace| (namespace, "good")));
    for namespace in ["c", "d"] {
        other.server.answers(&path(namespace), 403, refusal(403, "no"));
    }
    assert_eq!(recovered(&other, &status, &mut CredentialState::default()).await, [auth("good")]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_read_is_read_again_after_a_while_for_what_the_status_vouched_for_at_first() {
    let stage = stage();
    secrets(&stage, &[("a", "good")]);
    let path = "/api/v1/namespaces/a/secrets/pull";
    let good = stage.server.answer(path);
    stage.server.answers(path, 500, refusal(500, "no"));
    let (vouching, mut state) = (status(&stage, "good", NOW + HOUR), CredentialState::default());
    assert_eq!(recovered(&stage, &vouching, &mut state).await, Vec::<String>::new());
    // The status that was written meanwhile has no token to vouch for.
    let empty = EcrCredentialStatus::default();
    assert_eq!(recovered(&stage, &empty, &mut state).await, Vec::<String>::new());
    assert_eq!(stage.server.asked("/secrets/pull"), 1, "not at once");
    stage.server.answers(path, 200, good);
    tokio::time::advance(AGAIN.max).await;
    assert_eq!(recovered(&stage, &empty, &mut state).await, [auth("good")]);
    tokio::time::advance(AGAIN.max).await;
    recovered(&stage, &empty, &mut state).await;
    assert_eq!(stage.server.asked("/secrets/pull"), 2, "never again");
}

#[tokio::test(start_paused = true)]
async fn no_pass_holds_up_a_reconciliation() {
    // A read that fails without an answer of the API server, and one that nothing else ends in time.
    for timeout in [1, 65] {
        let mut stage = stage();
        stage.ctx.writer = Writer::new(stage.server.client(), 4, Duration::from_secs(timeout));
        secrets(&stage, &[("a", "good")]);
        let (status, mut state) = (status(&stage, "good", NOW + HOUR), CredentialState::default());
        let held = stage.server.hold().await;
        for pass in 1..=3 {
            for _ in 0..2 {
                let limit = Duration::from_secs(15);
                let found = tokio::time::timeout(limit, recovered(&stage, &status, &mut state)).await;
                assert_eq!(found.expect("in time"), Vec::<String>::new(), "pass {pass}, timeout of {timeout} s");
            }
            assert_eq!(stage.server.asked("/secrets/pull"), pass, "not at once, timeout of {timeout} s");
            tokio::time::advance(AGAIN.max).await;
        }
        drop(held);
        assert_eq!(recovered(&stage, &status, &mut state).await, [auth("good")], "timeout of {timeout} s");
    }
}

/// An EcrCredential whose status vouches for the token in a Secret that cannot be read.
fn with_an_unreadable_secret() -> (Arc<Context>, EcrCredential, Uid) {
    let stage = stage();
    secrets(&stage, &[("a", "good")]);
    stage.server.answers("/api/v1/namespaces/a/secrets/pull", 500, refusal(500, "no"));
    stage.server.answers("/apis/pullsecrets.dev/v1alpha1/ecrcredentials/x/status", 200, json!({ "metadata": {} }));
    let status = Some(status(&stage, "good", NOW + HOUR));
    let object = EcrCredential { status, ..stage.object.clone() };
    (Arc::new(stage.ctx), object, stage.uid)
}

#[tokio::test(start_paused = true)]
async fn the_next_pass_waits_for_no_event() {
    let (ctx, object, uid) = with_an_unreadable_secret();
    let action = reconcile(Arc::new(object), ctx.clone()).await.unwrap();
    let state = ctx.credential_state(&uid);
    let at = state.lock().await.recovers_at().unwrap();
    assert!(at - Instant::now() <= AGAIN.initial);
    assert_eq!(action, Action::requeue(at - Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn no_pass_is_due_while_it_is_suspended_or_stalled() {
    let (ctx, object, _) = with_an_unreadable_secret();
    let work = reconcile(Arc::new(object.clone()), ctx.clone()).await.unwrap();
    assert!(work != Action::await_change());
    for (suspend, registries) in [(true, object.spec.registries.clone()), (false, vec![])] {
        tokio::time::advance(AGAIN.max).await;
        let mut edited = object.clone();
        edited.spec = EcrCredentialSpec { suspend, registries, ..edited.spec };
        let action = reconcile(Arc::new(edited), ctx.clone()).await.unwrap();
        assert_eq!(action, Action::requeue(Duration::from_secs(60)), "suspend {suspend}");
    }
}

#[tokio::test]
async fn a_token_that_the_status_does_not_vouch_for_is_not_searched_for() {
    let registries =
        ["eu-west-1", "us-east-1"].map(|region| json!({ "private": { "accountIds": [ACCOUNT], "region": region } }));
    let stage = Stage::new(json!(registries));
    secrets(&stage, &[("a", "good"), ("b", "good")]);
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/secrets/pull");
    let good = stage.server.answer(&path("b"));
    // Whichever is asked first.
    for (refused, readable) in [("a", "b"), ("b", "a")] {
        stage.server.answers(&path(refused), 403, refusal(403, "no"));
        stage.server.answers(&path(readable), 200, good.clone());
        let (status, mut state) = (status(&stage, "good", NOW + HOUR), CredentialState::default());
        assert_eq!(recovered(&stage, &status, &mut state).await, [auth("good")]);
        assert!(matches!(state.recovery, Recovery::Done), "{refused} is refused");
    }
}

#[tokio::test(start_paused = true)]
async fn each_pass_reads_the_secrets_that_were_not_tried_before() {
    let stage = stage();
    secrets(&stage, &NAMESPACES.map(|namespace| (namespace, "good")));
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/secrets/pull");
    let good = stage.server.answer(&path("a"));
    for namespace in NAMESPACES {
        stage.server.answers(&path(namespace), 403, refusal(403, "no"));
    }
    let (status, mut state) = (status(&stage, "good", NOW + HOUR), CredentialState::default());
    assert_eq!(recovered(&stage, &status, &mut state).await, Vec::<String>::new());
    let untried = NAMESPACES.into_iter().find(|namespace| stage.server.asked(&path(namespace)) == 0).unwrap();
    stage.server.answers(&path(untried), 200, good);
    tokio::time::advance(AGAIN.max).await;
    assert_eq!(recovered(&stage, &status, &mut state).await, [auth("good")]);
}

#[tokio::test]
async fn the_secrets_are_read_once() {
    // Also where nothing can be taken from them, so that tokens are still missing.
    for found in ["good", "forged"] {
        let stage = stage();
        secrets(&stage, &[("a", found)]);
        let (status, mut state) = (status(&stage, "good", NOW + HOUR), CredentialState::default());
        for _ in 0..3 {
            recovered(&stage, &status, &mut state).await;
        }
        assert_eq!(stage.server.asked("/secrets/pull"), 1, "{found}");
    }
}
