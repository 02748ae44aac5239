//! What a reconciliation tells and keeps, whatever happens around it.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::super::Observer;
use super::super::stage::{HOUR, NOW, Stage, at, identity_of, token};
use super::*;
use crate::apply::{WriteError, Written};
use crate::clock::{Clock, Server};
use crate::secret::SecretAction;

const STATUS: &str = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/x/status";

/// Counts the statuses that it is told.
#[derive(Default)]
struct Told(AtomicUsize);

impl Observer for Told {
    fn wrote(&self, _: &SecretAction, _: &Result<Written, WriteError>) {}
    fn reconciled(&self, _: Duration, _: Option<&Error>) {}

    fn concluded(&self, _: &Uid, _: &str, _: &EcrCredentialStatus) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The EcrCredential of a stage with these registries.
fn object(registries: &Value, suspend: bool) -> Arc<EcrCredential> {
    let namespaces = super::super::stage::NAMESPACES;
    let object = json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
        "metadata": { "name": "x", "uid": "x", "generation": 1 },
        "spec": {
            "registries": registries, "namespaces": { "names": namespaces }, "secret": { "name": "pull" },
            "suspend": suspend,
        },
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

/// Whether the observer is told of a status, while the EcrCredential ends if it is `gone`.
async fn is_told(gone: bool) -> bool {
    let registries = json!([{ "public": {} }]);
    let mut stage = Stage::new(registries.clone());
    let told = Arc::new(Told::default());
    stage.ctx.observer = told.clone();
    let object = object(&registries, true);
    stage.server.answers(STATUS, 200, serde_json::to_value(&object).unwrap());
    let held = stage.server.hold().await;
    let Stage { ctx, server, .. } = stage;
    let ctx = Arc::new(ctx);
    let end = async {
        while server.asked(STATUS) == 0 {
            tokio::task::yield_now().await;
        }
        if gone {
            ctx.shared.credential_gone(object.meta());
        }
        drop(held);
    };
    let (result, ()) = tokio::join!(reconcile(object.clone(), ctx.clone()), end);
    assert!(result.is_ok() && server.asked(STATUS) == 1);
    told.0.load(Ordering::Relaxed) > 0
}

#[tokio::test]
async fn nothing_is_told_of_an_ecrcredential_that_ends_while_its_status_is_written() {
    assert!(is_told(false).await);
    assert!(!is_told(true).await);
}

#[tokio::test(start_paused = true)]
async fn a_node_clock_that_is_ahead_takes_no_login_of_a_namespace_after_a_restart() {
    let registries = json!([
        { "private": {}, "auth": { "serviceAccount": { "fromTargetNamespace": "puller" } } },
        { "public": {} },
    ]);
    let mut stage = Stage::new(registries.clone());
    stage.ctx.clock = Clock::new(|| at(NOW + 13 * HOUR), Duration::default);
    stage.ctx.clock.hear(Server::Kubernetes, "Fri, 15 Jan 2027 08:00:00 GMT", Duration::ZERO);
    assert_eq!(stage.ctx.clock.earliest(), at(NOW));
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    let token = token("p", NOW + HOUR, &identity_of(&stage, &token_spec, "a"));
    let desired = stage.desired(&[(token_spec, token)].into());
    stage.server.has_secret("a", &desired);
    stage.sees("a", desired.digest, NOW + HOUR);
    let object = object(&registries, false);
    stage.server.answers(STATUS, 200, serde_json::to_value(&object).unwrap());
    let Stage { ctx, server, uid, .. } = stage;
    let ctx = Arc::new(ctx);
    reconcile(object, ctx.clone()).await.unwrap();
    let state = ctx.credential_state(&uid);
    assert!(state.lock().await.tenants.has_any(), "its token was found again");
    assert_eq!(server.asked("/namespaces/a/secrets/pull"), 1, "it was read, and not changed");
}
