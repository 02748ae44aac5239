//! Admission webhooks that by chance refuse with any status code, change objects, or are slow.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use serde_json::json;

use super::{Case, calm, case, has, is_secret_write, is_status_write, ready};
use crate::api_server::{Action, Answer, Kind, Rule};
use crate::judge::short::{I1, I2, I3, I4, I5, I6, I7, I9, I13, I14};
use crate::sim::Sim;
use crate::workloads::{self, SECRET, credential, edit};

const HOMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("admission by chance when the first Secrets are created", &[I1, I3, I7, I9, I14], |sim| {
            begin(sim);
            workloads::namespaces(&sim.api, &HOMES);
            credential(&sim.api, "platform", json!({}));
            sim.until(900, I9, "every namespace has its Secret", |api| HOMES.iter().all(|home| has(api, home)));
            end(sim);
        }),
        case("admission by chance for a day of refreshes", &[I3, I4, I5, I6, I7, I14], |sim| {
            ready(sim);
            begin(sim);
            let writes = sim.secret_writes();
            sim.run_for(Duration::from_secs(24 * 3600));
            // Two tokens are refreshed every half an hour in three namespaces; one try of three is refused.
            let writes = sim.secret_writes() - writes;
            sim.expect(writes < 600, I7, &format!("{writes} writes in a day"));
            let least = crate::judge::least_life(sim).unwrap_or_default();
            sim.expect(least > SignedDuration::from_hours(9), I6, &format!("only {least:?} were left"));
            end(sim);
        }),
        case("admission by chance while users edit and restarts happen", &[I1, I2, I3, I4, I7, I9, I13, I14], |sim| {
            ready(sim);
            begin(sim);
            for number in 0..12 {
                let label = if number % 2 == 0 { json!("ecr") } else { json!(null) };
                sim.api.label_namespace("elsewhere", json!({ "pull": label }));
                sim.api.edit(Kind::Secret, "a", SECRET, json!({ "data": { ".dockerconfigjson": "e30=" } }));
                sim.api.delete(Kind::Secret, "b", SECRET);
                edit(&sim.api, "platform", json!({ "secret": { "labels": { "number": number.to_string() } } }));
                sim.run_for(Duration::from_secs(40));
                if number % 4 == 3 {
                    sim.crash();
                }
                sim.run_for(Duration::from_secs(200));
            }
            end(sim);
            let empty = !has(&sim.api, "elsewhere");
            sim.expect(empty, I13, "a namespace that is not selected any more has a Secret");
        }),
        case("a webhook refuses one status with 404", &[I6, I14], |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(is_status_write, Action::Answer(Answer::denied(404))).times(1));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(7200));
            let least = crate::judge::least_life(sim).unwrap_or_default();
            sim.expect(least > SignedDuration::from_hours(11), I6, &format!("only {least:?} were left"));
            calm(sim);
        }),
        case("a webhook refuses one deletion with 404", &[I13], |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(is_secret_write, Action::Answer(Answer::denied(404))).times(1));
            sim.api.label_namespace("b", json!({ "pull": null }));
            sim.run_for(Duration::from_secs(60));
            let gone = !has(&sim.api, "b");
            sim.expect(gone, I13, "a namespace that is not selected any more has a Secret");
            calm(sim);
        }),
        case("admission by chance when an EcrCredential is deleted and made again", &[I7, I13, I14], |sim| {
            ready(sim);
            begin(sim);
            sim.api.delete(Kind::Credential, "", "platform");
            sim.run_for(Duration::from_secs(90));
            let none = sim.api.all(Kind::Secret).is_empty();
            sim.expect(none, I13, "a Secret is left of an EcrCredential that is gone");
            credential(&sim.api, "platform", json!({}));
            sim.run_for(Duration::from_secs(120));
            end(sim);
        }),
    ]
}

fn begin(sim: &mut Sim) {
    // A write may be under way for as long as a webhook takes.
    sim.staleness = SignedDuration::from_secs(40);
    sim.api.admit_by_chance();
}

fn end(sim: &mut Sim) {
    sim.api.admit_all();
    calm(sim);
}
