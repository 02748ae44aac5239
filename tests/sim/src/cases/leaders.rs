//! Several replicas: who holds the Lease writes, and nobody else, whatever becomes of them.

use std::time::Duration;

use serde_json::json;

use super::{Case, calm, case, has, ready};
use crate::api_server::{Action, Kind, Request, Rule};
use crate::judge::short::{I4, I7, I9, I12};
use crate::sim::{Sim, Until};
use crate::workloads;

pub(super) fn cases() -> Vec<Case> {
    let cases = vec![
        case("the leader dies in the middle of a batch", &[I4, I7, I12], |sim| {
            pair(sim);
            for number in 0..30 {
                sim.api.create_namespace(&format!("n{number}"), json!({ "pull": "ecr" }));
            }
            sim.run_for(Duration::from_millis(8));
            kill_leader(sim);
            calm(sim);
        }),
        case("the leader dies at the refresh", &[I4, I7, I12], |sim| {
            pair(sim);
            sim.run_for(Duration::from_secs(1725));
            kill_leader(sim);
            calm(sim);
        }),
        case("the Lease is deleted", &[I7, I12], |sim| {
            pair(sim);
            sim.api.delete(Kind::Lease, "operator", "ecr-credential-operator");
            sim.harm += 1;
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            calm(sim);
        }),
        case("the Lease is taken by somebody else", &[I7, I12], |sim| {
            pair(sim);
            let spec = json!({ "spec": { "holderIdentity": "nobody", "leaseDurationSeconds": 15 } });
            sim.api.edit(Kind::Lease, "operator", "ecr-credential-operator", spec);
            sim.harm += 1;
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            calm(sim);
        }),
        case("renewals of the Lease say nothing for a minute", &[I7, I12], |sim| {
            pair(sim);
            let renewals = |r: &Request| r.target.kind == Kind::Lease && r.is_mutation();
            sim.api.faults().place(Rule::new(renewals, Action::Hang));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(60));
            calm(sim);
        }),
        case("renewals are done and their answers lost, for a minute", &[I7, I12], |sim| {
            pair(sim);
            let renewals = |r: &Request| r.target.kind == Kind::Lease && r.is_mutation();
            sim.api.faults().place(Rule::new(renewals, Action::LoseAnswer));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(60));
            calm(sim);
        }),
        case("writes are under way when the Lease is lost", &[I4, I12], |sim| {
            pair(sim);
            let writes = |r: &Request| r.is_mutation() && r.target.kind == Kind::Secret;
            sim.api.faults().place(Rule::new(writes, Action::Delay(Duration::from_secs(14))).times(3));
            let renewals = |r: &Request| r.target.kind == Kind::Lease && r.is_mutation();
            sim.api.faults().place(Rule::new(renewals, Action::Hang).times(8));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(60));
            calm(sim);
        }),
        case("no right on the Lease, for ten minutes", &[I12], |sim| {
            pair(sim);
            let leases = |r: &Request| r.target.kind == Kind::Lease;
            let refusal = super::no_right(Kind::Lease, "operator", "update");
            sim.api.faults().place(Rule::new(leases, Action::Answer(refusal)));
            sim.run_for(Duration::from_secs(600));
            calm(sim);
        }),
        case("a machine that sleeps while writes of its leader are under way", &[I12], |sim| {
            pair(sim);
            let writes = |r: &Request| r.is_mutation() && r.target.kind == Kind::Secret;
            sim.api.faults().place(Rule::new(writes, Action::Delay(Duration::from_millis(300))).times(4));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_millis(100));
            crate::clock::sleep_machine(Duration::from_secs(3600));
            sim.harm += 1;
            calm(sim);
        }),
        case("a leader that gives the Lease back", &[I7, I9, I12], |sim| {
            pair(sim);
            sim.restart(sim.settings.clone());
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.until(20, I9, "a new namespace has its Secret", |api| has(api, "elsewhere"));
            calm(sim);
        }),
    ];
    let led = |mut case: Case| {
        case.settings.lease = Some(Duration::from_secs(15));
        case
    };
    cases.into_iter().map(led).collect()
}

/// Two replicas, one of which leads.
fn pair(sim: &mut Sim) {
    sim.replicas = 2;
    ready(sim);
    workloads::edit(&sim.api, "platform", json!({ "secret": { "labels": { "team": "x" } } }));
    sim.wait(Until::Ready);
}

fn kill_leader(sim: &mut Sim) {
    if let Some(index) = sim.leader() {
        sim.kill_one(index);
    }
}
