//! One registry in every state that it can be in, while another is good: nothing waits for it but its own logins.

use std::time::Duration;

use ::judge::logins;
use serde_json::{Value, json};

use super::{Case, calm, case, ready_reason, ready_with};
use crate::api_server::{ApiServer, Kind};
use crate::aws::Failure;
use crate::judge::Invariant;
use crate::judge::short::{I3, I4, I5, I6, I7, I9, I13, I14, I17};
use crate::sim::Sim;
use crate::workloads::SECRET;

const OWN: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

const TRIED: &[Invariant] = &[I3, I4, I5, I7, I9, I13, I14];

/// How the other registry came to be in its state.
#[derive(Clone, Copy, Debug)]
enum History {
    /// It is new in the spec.
    New,
    /// Its token is good and due.
    Due,
    /// Its token has expired.
    Expired,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for history in [History::New, History::Due, History::Expired] {
        for failure in [Failure::Hangs, Failure::Unavailable, Failure::Denied, Failure::Throttled, Failure::NotBase64] {
            let name = format!("one registry of two is {history:?}, and its fetch: {failure:?}");
            cases.push(case(name, TRIED, move |sim| one_of_two(sim, history, failure)));
        }
    }
    cases.push(case("a first Secret is written once, with all that comes within a moment", &[I7], |sim| {
        ready_with(sim, json!({}));
        let writes = sim.secret_writes();
        sim.expect(writes == 3, I7, &format!("{writes} writes for three first Secrets with two registries each"));
    }));
    cases.push(case("a first Secret, while one registry of two hangs", &[I3, I9], |sim| {
        sim.aws.fail(Failure::Hangs, Some("public"));
        sim.harm += 1;
        crate::workloads::namespaces(&sim.api, &["a"]);
        crate::workloads::credential(&sim.api, "platform", json!({}));
        sim.until(15, I9, "it has the login that is there", |api| hosts(api, "a") == [OWN]);
        sim.aws.recover();
        calm(sim);
    }));
    for restart in [false, true] {
        let name = format!("an auth edited into one that is not allowed, restart {restart}");
        cases.push(case(name, &[I4, I5, I6, I9, I14, I17], move |sim| edited(sim, restart)));
    }
    cases
}

/// The token of the former `auth` stays in each Secret until the first token there is about to expire, and goes into no new one.
fn edited(sim: &mut Sim, restart: bool) {
    ready_with(sim, json!({ "refresh": { "atPercent": 50, "maxAge": "6h" } }));
    let keys = json!({ "namespace": "elsewhere", "name": "keys", "accessKeyIdKey": "id", "secretAccessKeyKey": "key" });
    let not_allowed = json!([private(), { "public": {}, "auth": { "secretRef": keys } }]);
    sim.api.edit(Kind::Credential, "", "platform", json!({ "spec": { "registries": not_allowed } }));
    sim.harm += 1;
    sim.run_for(Duration::from_secs(3600));
    if restart {
        sim.crash();
    }
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(60, I9, "a new namespace has the login that is there", |api| hosts(api, "late") == [OWN]);
    sim.run_for(Duration::from_secs(10 * 3600 + 2000));
    sim.expect(hosts(&sim.api, "a").len() == 2, I5, "a login is gone before its end");
    sim.expect(hosts(&sim.api, "late") == [OWN], I17, "a login of the former auth is in a new namespace");
    let least = crate::judge::least_life(sim).unwrap_or_default();
    sim.run_for(Duration::from_secs(2200));
    sim.expect(hosts(&sim.api, "a") == [OWN], I5, "the login that has expired is still there");
    sim.expect(least.is_positive(), I6, "a login had expired");
    let reason = ready_reason(&sim.api, "platform");
    sim.expect(reason.as_deref() == Some("AuthNotAllowed"), I14, &format!("{reason:?}"));
    let registries = json!([private(), { "public": {} }]);
    sim.api.edit(Kind::Credential, "", "platform", json!({ "spec": { "registries": registries } }));
    calm(sim);
}

fn private() -> Value {
    json!({ "private": { "hostVariants": ["Standard"], "requestRegistryIds": false } })
}

fn one_of_two(sim: &mut Sim, history: History, failure: Failure) {
    let both = json!([private(), { "public": {} }]);
    let first = if matches!(history, History::New) { json!([private()]) } else { both.clone() };
    ready_with(sim, json!({ "registries": first }));
    sim.aws.fail(failure, Some("public"));
    sim.harm += 1;
    match history {
        History::New => drop(sim.api.edit(Kind::Credential, "", "platform", json!({ "spec": { "registries": both } }))),
        History::Due => sim.run_for(Duration::from_secs(1805)),
        History::Expired => sim.run_for(Duration::from_secs(13 * 3600)),
    }
    // In the middle of a call, and between two.
    for number in 0..4 {
        let calls = public_calls(sim);
        let mut patience = 400;
        while number % 2 == 0 && public_calls(sim) == calls && patience > 0 {
            sim.run_for(Duration::from_secs(1));
            patience -= 1;
        }
        goes_on(sim, number);
        sim.run_for(Duration::from_secs(30));
    }
    let reason = ready_reason(&sim.api, "platform");
    let good = matches!(history, History::Due);
    sim.expect((reason.as_deref() == Some("Synced")) == good, I14, &format!("{reason:?} with {history:?} {failure:?}"));
    sim.aws.recover();
    calm(sim);
}

fn public_calls(sim: &Sim) -> usize {
    sim.aws.calls().iter().filter(|call| call.key == "public").count()
}

/// A new namespace, an edit by hand, a namespace that leaves, and the status: none of them waits.
fn goes_on(sim: &mut Sim, number: usize) {
    let name = format!("late{number}");
    sim.api.create_namespace(&name, json!({ "pull": "ecr" }));
    sim.until(5, I9, "a new namespace has the login that is there", |api| hosts(api, &name).contains(&OWN.to_owned()));
    sim.api.edit(
        Kind::Secret,
        "a",
        SECRET,
        json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "x" } } }),
    );
    sim.until(5, I9, "an edit is undone", |api| {
        api.get(Kind::Secret, "a", SECRET).is_some_and(|secret| {
            secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "ecr-credential-operator"
        })
    });
    let selected = |api: &ApiServer| {
        api.get(Kind::Credential, "", "platform").and_then(|object| object["status"]["namespaces"]["selected"].as_u64())
    };
    let before = selected(&sim.api);
    sim.api.label_namespace(&name, json!({ "pull": null }));
    sim.until(5, I13, "the Secret of a namespace that has left is gone", |api| {
        api.get(Kind::Secret, &name, SECRET).is_none()
    });
    sim.until(5, I14, "the status has counted it", |api| selected(api) < before);
}

fn hosts(api: &ApiServer, namespace: &str) -> Vec<String> {
    let secret = api.get(Kind::Secret, namespace, SECRET);
    secret.and_then(|secret| logins(&secret).ok()).unwrap_or_default().into_keys().collect()
}
