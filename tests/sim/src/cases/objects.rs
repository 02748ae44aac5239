//! Secrets that are somebody else's, sealed, of another type, edited, fought over, or wanted by two.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Case, calm, case, failure, foreign, has, ready, ready_with};
use crate::api_server::{Action, Answer, ApiServer, Kind, Rule};
use crate::judge::short::{I1, I2, I3, I4, I7, I9, I13, I14};
use crate::sim::{Sim, Until};
use crate::workloads::{self, SECRET, credential, edit};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a foreign Secret, left alone and then deleted", &[I2, I7, I14], |sim| {
            beside(sim, json!({}), "Fail", Some("SecretNotOwned"));
            sim.api.delete(Kind::Secret, "b", SECRET);
            calm(sim);
        }),
        case("a foreign Secret, adopted", &[I2, I3, I14], |sim| {
            beside(sim, json!({}), "Adopt", None);
            calm(sim);
        }),
        case("a foreign immutable Secret under Adopt", &[I2, I9, I14], |sim| {
            beside(sim, json!({ "immutable": true }), "Adopt", Some("Immutable"));
        }),
        case("a foreign Secret of another type under Adopt", &[I2, I9, I14], |sim| {
            beside(sim, json!({ "type": "Opaque" }), "Adopt", Some("WrongType"));
        }),
        case("a foreign Secret appears just before ours is created", &[I2, I14], |sim| {
            let first = Action::First(Arc::new(|api| foreign(api, "b", &json!({}))));
            let rule = Rule::new(|r| super::is_secret_write(r) && r.target.namespace == "b", first);
            sim.api.faults().place(rule.times(1));
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            credential(&sim.api, "platform", json!({}));
            sim.wait(Until::Quiet);
            let said = failure(&sim.api, "platform", "b").as_deref() == Some("SecretNotOwned");
            sim.expect(said, I14, "the status does not name the foreign Secret");
        }),
        case("namespaces that are excluded", &[I1], |sim| {
            let all = json!({ "selector": null, "names": ["*"], "exclude": ["operator", "else*"] });
            ready_with(sim, json!({ "namespaces": all }));
            sim.api.create_namespace("elsewhere-2", json!({ "pull": "ecr" }));
            calm(sim);
            let none = ["elsewhere", "elsewhere-2", "operator"].iter().all(|namespace| !has(&sim.api, namespace));
            sim.expect(none, I1, "an excluded namespace has a Secret");
        }),
        case("deleted before the answer to its creation comes", &[I7, I14], |sim| overtaken(sim, delete_b)),
        case("deleted and listed before the answer to its creation comes", &[I7, I14], |sim| {
            overtaken(sim, delete_and_list)
        }),
        case("deleted and made by somebody else before the answer to its creation comes", &[I2, I14], |sim| {
            overtaken(sim, |api| {
                delete_b(api);
                foreign(api, "b", &json!({}));
            });
        }),
        case("two EcrCredentials for one Secret", &[I2, I4, I7, I13], two),
        case("an editor that never stops", &[I7, I9, I14], fight),
        case("a status arrives whose answer is lost, and then all is as it was", &[I7, I14], |sim| {
            ready(sim);
            let refused = Action::Answer(Answer::refusal(409, "Conflict", "a fault of the simulation"));
            let rules =
                [(Rule::new(super::is_secret_write, refused)), Rule::new(super::is_status_write, Action::LoseAnswer)];
            rules.into_iter().for_each(|rule| sim.api.faults().place(rule.times(1)));
            sim.api.delete(Kind::Secret, "b", SECRET);
            sim.run_for(Duration::from_secs(10));
            calm(sim);
        }),
        case("suspended and resumed", &[I7, I14], suspended),
        case("a refresh on demand, once", &[I4, I7], |sim| {
            ready(sim);
            let calls = sim.aws.calls().len();
            let ask = json!({ "metadata": { "annotations": { "pullsecrets.dev/refresh-requested-at": "now" } } });
            sim.run_for(Duration::from_secs(5));
            sim.api.edit(Kind::Credential, "", "platform", ask);
            calm(sim);
            let asked = sim.aws.calls().len() - calls;
            sim.expect(asked == 2, I7, "a refresh on demand is not one call for each token");
            sim.crash();
            sim.run_for(Duration::from_secs(60));
            let again = sim.aws.calls().len() - calls;
            sim.expect(again == 2, I7, "a refresh on demand was served again after a restart");
            calm(sim);
        }),
    ];
    cases.extend(edits().into_iter().map(|(name, patch)| {
        case(format!("by hand: {name}"), &[I3, I4, I7], move |sim| {
            ready(sim);
            sim.harm += 1;
            sim.api.edit(Kind::Secret, "b", SECRET, patch.clone());
            calm(sim);
            sim.crash();
            calm(sim);
        })
    }));
    // At once is within the second of the operator's own write.
    let pauses = [("at once", Duration::ZERO), ("later", Duration::from_secs(5))];
    let forgeries = forgeries().into_iter().flat_map(|(name, forge)| pauses.map(|pause| (name, forge, pause)));
    cases.extend(forgeries.map(|(name, forge, (when, pause))| {
        case(format!("applied under the operator's name {when}: {name}"), &[I3, I4, I7], move |sim| {
            ready(sim);
            sim.run_for(pause);
            sim.harm += 1;
            let good = sim.api.get(Kind::Secret, "b", SECRET).expect("it is there");
            forge(&sim.api, &good);
            sim.run_for(Duration::from_secs(10));
            let now = sim.api.get(Kind::Secret, "b", SECRET).expect("it is there");
            sim.expect(now["data"] == good["data"], I3, "what was forged is still there");
            calm(sim);
            sim.crash();
            calm(sim);
        })
    }));
    cases
}

/// What somebody does under the name of the operator's field manager to a Secret that the operator wrote.
type Forgery = fn(&ApiServer, &Value);

fn forgeries() -> Vec<(&'static str, Forgery)> {
    vec![
        ("other data", |api, good| apply(api, good, json!({}))),
        ("other data, good for a year", |api, good| {
            apply(api, good, json!({ "pullsecrets.dev/expires-at": "2040-01-01T00:00:00Z" }));
        }),
        ("other metadata, and then what was there", |api, good| {
            apply(api, good, json!({ "pullsecrets.dev/content-hash": "x" }));
            apply(api, good, json!({}));
        }),
        ("deleted, and created with other data", |api, good| {
            api.delete(Kind::Secret, "b", SECRET);
            apply(api, good, json!({}));
        }),
    ]
}

/// Applies other data with the metadata of a Secret, except for some annotations.
fn apply(api: &ApiServer, good: &Value, annotations: Value) {
    let metadata = &good["metadata"];
    let mut body = json!({
        "apiVersion": "v1", "kind": "Secret", "type": good["type"], "data": { ".dockerconfigjson": "e30=" },
        "metadata": {
            "name": SECRET, "labels": metadata["labels"], "annotations": metadata["annotations"],
            "ownerReferences": metadata["ownerReferences"],
        },
    });
    for (key, value) in annotations.as_object().into_iter().flatten() {
        body["metadata"]["annotations"][key] = value.clone();
    }
    api.apply_as("ecr-credential-operator", Kind::Secret, "b", SECRET, body);
}

fn edits() -> Vec<(&'static str, Value)> {
    vec![
        ("the data", json!({ "data": { ".dockerconfigjson": "e30=" } })),
        ("a further key", json!({ "data": { "more": "eA==" } })),
        ("our label", json!({ "metadata": { "labels": { "pullsecrets.dev/credential": null } } })),
        ("our managed-by", json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "helm" } } })),
        ("all labels", json!({ "metadata": { "labels": null } })),
        ("the owner reference", json!({ "metadata": { "ownerReferences": null } })),
        (
            "the expiry, earlier",
            json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "2029-01-01T00:00:00Z" } } }),
        ),
        (
            "the expiry, later",
            json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "2040-01-01T00:00:00Z" } } }),
        ),
        ("the content hash", json!({ "metadata": { "annotations": { "pullsecrets.dev/content-hash": "x" } } })),
        ("all annotations", json!({ "metadata": { "annotations": null } })),
        ("immutable", json!({ "immutable": true })),
        ("immutable said to be false", json!({ "immutable": false })),
        ("a label of theirs", json!({ "metadata": { "labels": { "team": "x" } } })),
    ]
}

/// A foreign Secret is there first; the other namespaces get theirs within seconds all the same.
fn beside(sim: &mut Sim, changes: Value, policy: &str, reason: Option<&str>) {
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    foreign(&sim.api, "b", &changes);
    sim.harm += 1;
    credential(&sim.api, "platform", json!({ "secret": { "conflictPolicy": policy } }));
    sim.until(5, I9, "the other namespaces have their Secrets", |api| has(api, "a") && has(api, "c"));
    sim.run_for(Duration::from_secs(30));
    let said = failure(&sim.api, "platform", "b");
    sim.expect(said.as_deref() == reason, I14, &format!("the status says {said:?} of a foreign Secret"));
}

fn two(sim: &mut Sim) {
    ready(sim);
    credential(&sim.api, "younger", json!({ "registries": [{ "public": {} }] }));
    sim.run_for(Duration::from_secs(1));
    sim.wait(Until::Quiet);
    let said = failure(&sim.api, "younger", "a");
    sim.expect(said.as_deref() == Some("Conflict"), I14, "the younger one does not say Conflict");
    sim.expect_quiet();
    // It gives up one namespace, and then is gone.
    edit(&sim.api, "platform", json!({ "namespaces": { "exclude": ["b"] } }));
    sim.wait(Until::Quiet);
    let younger = sim.api.get(Kind::Credential, "", "younger").expect("it is there");
    let secret = sim.api.get(Kind::Secret, "b", SECRET);
    let taken = secret.is_some_and(|secret| ::judge::marks::owner(&secret) == younger["metadata"]["uid"].as_str());
    sim.expect(taken, I13, "the younger one does not have what the older one gave up");
    sim.api.delete(Kind::Credential, "", "platform");
    calm(sim);
}

/// Something happens to a Secret after it was made, and the watch tells of it before the answer comes.
fn overtaken(sim: &mut Sim, by: fn(&ApiServer)) {
    let rule = Rule::new(|r| super::is_secret_write(r) && r.target.namespace == "b", Action::Overtaken(Arc::new(by)));
    sim.api.faults().place(rule.times(1));
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    credential(&sim.api, "platform", json!({}));
    sim.wait(Until::Quiet);
    let theirs = sim.api.get(Kind::Secret, "b", SECRET).is_some_and(|s| s["metadata"]["labels"]["theirs"] == "yes");
    let said = failure(&sim.api, "platform", "b");
    let expected = theirs.then(|| "SecretNotOwned".to_owned());
    sim.expect(said == expected, I14, &format!("the status says {said:?}"));
    sim.expect(has(&sim.api, "b") != theirs, I7, "the Secret was not made again");
}

fn delete_b(api: &ApiServer) {
    api.delete(Kind::Secret, "b", SECRET);
}

fn delete_and_list(api: &ApiServer) {
    delete_b(api);
    api.compact();
    api.cut_watches();
}

/// Every second, for five minutes.
fn fight(sim: &mut Sim) {
    ready(sim);
    let before = sim.secret_writes();
    for second in 0..300 {
        sim.harm += 1;
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{{\"n\":{second}}}"));
        sim.api.edit(Kind::Secret, "b", SECRET, json!({ "data": { ".dockerconfigjson": text } }));
        sim.run_for(Duration::from_secs(1));
    }
    let writes = sim.secret_writes() - before;
    sim.expect(writes < 40, I7, &format!("{writes} repairs in a fight of 300 s"));
    let said = failure(&sim.api, "platform", "b");
    sim.expect(said.as_deref() == Some("Contested"), I14, "the status does not say that a Secret is contested");
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, "a new namespace has its Secret", |api| has(api, "late"));
    calm(sim);
}

fn suspended(sim: &mut Sim) {
    ready_with(sim, json!({}));
    edit(&sim.api, "platform", json!({ "suspend": true }));
    sim.run_for(Duration::from_secs(5));
    let before = sim.secret_writes();
    sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
    sim.api.edit(Kind::Secret, "b", SECRET, json!({ "data": { "more": "eA==" } }));
    sim.run_for(Duration::from_secs(600));
    let silent = sim.secret_writes() == before;
    sim.expect(silent, I1, "it wrote while it was suspended");
    edit(&sim.api, "platform", json!({ "suspend": false }));
    calm(sim);
}
