//! Deletion: nothing is left, or everything under Retain, and nothing waits for AWS or for one bad namespace.

use std::time::Duration;

use serde_json::json;

use super::{Case, calm, case, has, is_secret_write, no_right, ready, ready_with};
use crate::api_server::{Action, Kind, Rule};
use crate::aws::Failure;
use crate::judge::short::{I7, I9, I13, I14};
use crate::sim::{Sim, Until};
use crate::workloads::{self, SECRET, credential};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("deleted while AWS hangs and one namespace gives no right", &[I9, I13], |sim| {
            ready(sim);
            sim.aws.fail(Failure::Hangs, None);
            let refusal = Action::Answer(no_right(Kind::Secret, "b", "delete"));
            sim.api.faults().place(Rule::new(is_secret_write, refusal));
            sim.harm += 1;
            sim.api.delete(Kind::Credential, "", "platform");
            sim.until(5, I13, "no Secret is left", |api| api.all(Kind::Secret).is_empty());
            sim.expect_quiet();
        }),
        case("deselected while one namespace gives no right", &[I9, I13], |sim| {
            ready(sim);
            let refusal = Action::Answer(no_right(Kind::Secret, "b", "delete"));
            sim.api.faults().place(Rule::new(|r| is_secret_write(r) && r.target.namespace == "b", refusal));
            workloads::edit(
                &sim.api,
                "platform",
                json!({ "namespaces": { "names": ["elsewhere"], "selector": null } }),
            );
            sim.until(5, I13, "the others have lost theirs", |api| !has(api, "a") && !has(api, "c"));
            sim.run_for(Duration::from_secs(60));
            calm(sim);
            let gone = !has(&sim.api, "b");
            sim.expect(gone, I13, "a Secret is left where it could not be deleted at first");
        }),
        case("deleted in the middle of a refresh", &[I13], |sim| {
            ready(sim);
            sim.run_for(Duration::from_secs(1640));
            let then = Action::Then(std::sync::Arc::new(|api| drop(api.delete(Kind::Credential, "", "platform"))));
            sim.api.faults().place(Rule::new(is_secret_write, then).times(1));
            sim.run_for(Duration::from_secs(300));
            sim.until(5, I13, "no Secret is left", |api| api.all(Kind::Secret).is_empty());
            sim.expect_quiet();
        }),
        case("deleted while AWS fetches the first token", &[I13], |sim| {
            workloads::namespaces(&sim.api, &["a", "b"]);
            sim.aws.fail(Failure::Hangs, None);
            credential(&sim.api, "platform", json!({}));
            sim.run_for(Duration::from_secs(5));
            sim.api.delete(Kind::Credential, "", "platform");
            sim.aws.recover();
            sim.wait(Until::Quiet);
            let empty = sim.api.all(Kind::Secret).is_empty();
            sim.expect(empty, I13, "a Secret was made for an EcrCredential that is gone");
        }),
        case("kept under Retain, and taken over by the next of that name", &[I7, I13, I14], |sim| {
            ready_with(sim, json!({ "secret": { "deletionPolicy": "Retain" } }));
            sim.api.delete(Kind::Credential, "", "platform");
            sim.wait(Until::Quiet);
            let kept = ["a", "b", "c"].iter().all(|ns| sim.api.get(Kind::Secret, ns, SECRET).is_some());
            sim.expect(kept, I13, "a Secret is gone in spite of Retain");
            sim.crash();
            sim.wait(Until::Quiet);
            credential(&sim.api, "platform", json!({}));
            calm(sim);
            sim.api.delete(Kind::Credential, "", "platform");
            sim.run_for(Duration::from_secs(10));
            let none = sim.api.all(Kind::Secret).is_empty();
            sim.expect(none, I13, "a Secret that was taken over is left under Delete");
        }),
        case("made again while a status of its predecessor is under way", &[I13, I14], |sim| {
            ready(sim);
            let slow = Action::Delay(std::time::Duration::from_secs(10));
            sim.api.faults().place(Rule::new(super::is_status_write, slow).times(1));
            // The label makes the predecessor say that it has one namespace more.
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(2));
            sim.api.delete(Kind::Credential, "", "platform");
            sim.run_for(Duration::from_secs(2));
            credential(&sim.api, "platform", json!({ "namespaces": { "selector": null, "names": ["a"] } }));
            sim.run_for(Duration::from_secs(20));
            calm(sim);
            let object = sim.api.get(Kind::Credential, "", "platform").expect("it is there");
            let said = object["status"]["namespaces"]["summary"].as_str().unwrap_or_default().to_owned();
            sim.expect(said == "1/1", I14, &format!("the status says {said} of one namespace"));
        }),
        case("a Secret name that is not allowed any more", &[I13, I14], renamed),
    ]
}

/// After an upgrade that forbids a Secret's name the EcrCredential is stalled, and says so.
fn renamed(sim: &mut Sim) {
    ready(sim);
    let settings = crate::operator::Settings { secret_names: vec!["other-secret".to_owned()], ..sim.settings.clone() };
    sim.restart(settings);
    sim.run_for(Duration::from_secs(70));
    let reason = super::ready_reason(&sim.api, "platform");
    sim.expect(reason.as_deref() == Some("SecretNameNotAllowed"), I14, &format!("the status says {reason:?}"));
    workloads::edit(&sim.api, "platform", json!({ "secret": { "name": "other-secret" } }));
    calm(sim);
}
