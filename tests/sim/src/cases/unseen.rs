//! Events that are never seen: the watch is away, cut, too old, or stalled while the world changes.

use std::time::Duration;

use ::judge::marks::owner;
use k8s_openapi::jiff::SignedDuration;
use serde_json::json;

use super::{Case, calm, case, failure, foreign, has, ready};
use crate::api_server::{ApiServer, Kind};
use crate::judge::Invariant;
use crate::judge::short::{I1, I2, I4, I7, I9, I13, I14};
use crate::sim::{Sim, Until};
use crate::workloads::{self, SECRET};

type Change = fn(&mut Sim);

/// What happens while nobody looks, what must be true then, and which invariants that tries.
const CHANGES: [(&str, Change, Change, &[Invariant]); 8] = [
    ("a label set and taken away", label_on_and_off, elsewhere_is_empty, &[I1, I7, I13]),
    ("a label taken away and set", label_off_and_on, nothing, &[I4, I7]),
    ("a new label", label_on, nothing, &[I9, I14]),
    ("a label taken away", label_off, b_is_empty, &[I1, I13]),
    ("an EcrCredential deleted and made again", remade, owned_by_the_new_one, &[I13, I14]),
    ("our Secret deleted and somebody else's made", replaced, theirs_is_left_alone, &[I2, I14]),
    ("a namespace deleted and made again", rehoused, nothing, &[I7, I14]),
    ("the spec edited twice", edited_twice, nothing, &[I14]),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, change, then, tries) in CHANGES {
        cases.push(case(format!("{name}, while the watches are away"), tries, move |sim| {
            around(sim, change, then, |api| api.take_watches_away(true), |api| api.take_watches_away(false));
        }));
        cases.push(case(format!("{name}, unseen, and then 410 Gone"), tries, move |sim| {
            around(
                sim,
                change,
                then,
                |api| api.take_watches_away(true),
                |api| {
                    api.compact();
                    api.take_watches_away(false);
                },
            );
        }));
        cases.push(case(format!("{name}, while the watches stall"), tries, move |sim| {
            // The library gives a silent watch up after 295 s.
            sim.staleness = SignedDuration::from_secs(310);
            around(sim, change, then, |api| api.stall_watches(true), |_| ());
            sim.api.stall_watches(false);
        }));
    }
    cases
}

fn around(sim: &mut Sim, change: Change, then: Change, before: fn(&ApiServer), after: fn(&ApiServer)) {
    ready(sim);
    sim.staleness = sim.staleness.max(SignedDuration::from_secs(20));
    before(&sim.api);
    sim.harm += 1;
    sim.run_for(Duration::from_secs(2));
    change(sim);
    sim.run_for(Duration::from_secs(3));
    after(&sim.api);
    sim.run_for(Duration::from_secs(5));
    sim.api.stall_watches(false);
    // Where somebody else's Secret is, the EcrCredential will not be ready.
    let theirs = sim.api.all(Kind::Secret).iter().any(|(_, secret)| secret["metadata"]["labels"]["theirs"] == "yes");
    if theirs {
        sim.wait(Until::Quiet);
    } else {
        calm(sim);
    }
    then(sim);
}

fn nothing(_: &mut Sim) {}

fn label_on(sim: &mut Sim) {
    sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
}

fn label_on_and_off(sim: &mut Sim) {
    label_on(sim);
    sim.run_for(Duration::from_secs(1));
    sim.api.label_namespace("elsewhere", json!({ "pull": null }));
}

fn label_off(sim: &mut Sim) {
    sim.api.label_namespace("b", json!({ "pull": null }));
}

fn label_off_and_on(sim: &mut Sim) {
    label_off(sim);
    sim.run_for(Duration::from_secs(1));
    sim.api.label_namespace("b", json!({ "pull": "ecr" }));
}

fn elsewhere_is_empty(sim: &mut Sim) {
    let empty = !has(&sim.api, "elsewhere");
    sim.expect(empty, I13, "a namespace that is not selected has a Secret");
}

fn b_is_empty(sim: &mut Sim) {
    let empty = !has(&sim.api, "b");
    sim.expect(empty, I13, "a namespace that is not selected any more has a Secret");
}

fn remade(sim: &mut Sim) {
    sim.api.delete(Kind::Credential, "", "platform");
    sim.run_for(Duration::from_millis(500));
    workloads::credential(&sim.api, "platform", json!({}));
}

fn owned_by_the_new_one(sim: &mut Sim) {
    let credential = sim.api.get(Kind::Credential, "", "platform").expect("it is there");
    for namespace in ["a", "b", "c"] {
        let secret = sim.api.get(Kind::Secret, namespace, SECRET);
        let is_its = secret.is_some_and(|secret| owner(&secret) == credential["metadata"]["uid"].as_str());
        sim.expect(is_its, I13, "a Secret of an EcrCredential that is gone");
    }
}

fn replaced(sim: &mut Sim) {
    sim.api.delete(Kind::Secret, "b", SECRET);
    foreign(&sim.api, "b", &json!({}));
}

fn theirs_is_left_alone(sim: &mut Sim) {
    let theirs = sim.api.get(Kind::Secret, "b", SECRET).is_some_and(|s| s["metadata"]["labels"]["theirs"] == "yes");
    sim.expect(theirs, I2, "somebody else's Secret was changed");
    let said = failure(&sim.api, "platform", "b").as_deref() == Some("SecretNotOwned");
    sim.expect(said, I14, "the status does not say that a Secret is not ours");
}

fn rehoused(sim: &mut Sim) {
    sim.api.delete(Kind::Namespace, "", "b");
    sim.run_for(Duration::from_secs(6));
    sim.api.create_namespace("b", json!({ "pull": "ecr" }));
}

fn edited_twice(sim: &mut Sim) {
    workloads::edit(&sim.api, "platform", json!({ "secret": { "labels": { "team": "x" } } }));
    sim.run_for(Duration::from_millis(10));
    workloads::edit(&sim.api, "platform", json!({ "registries": [{ "public": {} }] }));
}
