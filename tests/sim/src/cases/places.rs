//! Namespaces that refuse: quota, rights, an end, silence. The others must not wait for them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{Case, calm, case, failure, has, is_secret_write, is_status_write, no_right, ready, ready_with};
use crate::api_server::{Action, Answer, Kind, Request, Rule};
use crate::judge::short::{I1, I7, I9, I14};
use crate::sim::Sim;
use crate::workloads::{self, SECRET, credential};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a quota that is used up", &[I9, I14], |sim| {
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            sim.api.set_quota("b", Some(0));
            sim.harm += 1;
            credential(&sim.api, "platform", json!({}));
            sim.until(5, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
            sim.until(5, I14, "the status names the quota", |api| {
                failure(api, "platform", "b").as_deref() == Some("QuotaExceeded")
            });
            sim.api.set_quota("b", None);
            calm(sim);
        }),
        case("a namespace that ends", &[I1, I7, I14], |sim| {
            ready(sim);
            sim.api.delete(Kind::Namespace, "", "b");
            calm(sim);
        }),
        case("a namespace that ends at the very write, and is made again", &[I7, I9, I14], ends_at_the_write),
        case("a namespace that ends just after the write", &[I7, I14], |sim| {
            let then = Action::Then(Arc::new(|api| drop(api.delete(Kind::Namespace, "", "b"))));
            sim.api.faults().place(Rule::new(in_b, then).times(1));
            ready(sim);
            calm(sim);
        }),
        case("a new namespace while all writes of a round say nothing", &[I9], silence),
        case("the spec changes while all writes of a round say nothing", &[I9, I14], silence_and_edit),
        case("no right in one namespace", &[I9, I14], |sim| {
            refused(sim, in_b, no_right(Kind::Secret, "b", "patch"), "Forbidden");
        }),
        case("an admission policy refuses in one namespace", &[I9, I14], |sim| {
            let target = crate::api_server::target(Kind::Secret, "b", SECRET);
            let refusal = Answer::forbidden(&target, "ValidatingAdmissionPolicy 'no' denied request: no");
            refused(sim, in_b, refusal, "AdmissionRefused");
        }),
        case("an error without end in one namespace", &[I9, I14], |sim| {
            refused(sim, in_b, Answer::refusal(500, "InternalError", "no"), "ApiError");
        }),
        case("429 without end in one namespace", &[I9], |sim| {
            sim.api.faults().place(Rule::new(in_b, Action::Answer(Answer::too_many_requests(1))));
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            credential(&sim.api, "platform", json!({}));
            sim.until(5, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
            sim.run_for(Duration::from_secs(120));
            calm(sim);
        }),
        case("no right on any Secret, for an hour", &[I7, I9], |sim| no_rights_at_all(sim, is_secret_write)),
        case("no right on the status, for an hour", &[I7, I9], |sim| no_rights_at_all(sim, is_status_write)),
        case("no right on Events", &[I7], |sim| {
            let events = |r: &Request| r.target.kind == Kind::Event;
            sim.api.faults().place(Rule::new(events, Action::Answer(no_right(Kind::Event, "default", "create"))));
            ready(sim);
            sim.expect_quiet();
        }),
        case("no right to watch, for ten minutes", &[I7, I14], |sim| {
            ready(sim);
            let reads = |r: &Request| r.is_watch() || r.is_list();
            sim.api.faults().place(Rule::new(reads, Action::Answer(no_right(Kind::Secret, "", "watch"))));
            sim.api.cut_watches();
            sim.run_for(Duration::from_secs(300));
            sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
            sim.run_for(Duration::from_secs(300));
            calm(sim);
        }),
        case("a restart without the right to watch", &[I7], |sim| {
            ready(sim);
            let reads = |r: &Request| r.is_watch() || r.is_list();
            sim.api.faults().place(Rule::new(reads, Action::Answer(no_right(Kind::Secret, "", "list"))));
            sim.crash();
            sim.run_for(Duration::from_secs(120));
            calm(sim);
        }),
        case("the API server away for five minutes at the refresh", &[I7, I14], |sim| {
            ready(sim);
            sim.run_for(Duration::from_secs(1500));
            sim.api.take_watches_away(true);
            sim.api.faults().place(Rule::new(|_| true, Action::Refuse));
            sim.run_for(Duration::from_secs(300));
            sim.api.take_watches_away(false);
            calm(sim);
        }),
    ];
    cases.push(namespaced());
    cases
}

fn in_b(request: &Request) -> bool {
    is_secret_write(request) && request.target.namespace == "b"
}

/// Only some namespaces are allowed, and one of them gives no right to look.
fn namespaced() -> Case {
    let allowed = vec!["a".to_owned(), "b".to_owned()];
    let mut case = case("one namespace of two gives no right to watch", &[I1, I9], |sim| {
        let reads = |r: &Request| (r.is_watch() || r.is_list()) && r.target.namespace == "b";
        sim.api.faults().place(Rule::new(reads, Action::Answer(no_right(Kind::Secret, "b", "list"))));
        workloads::namespaces(&sim.api, &["a", "b", "c"]);
        credential(&sim.api, "platform", json!({}));
        sim.until(20, I9, "the other namespace has its Secret", |api| has(api, "a"));
        sim.run_for(Duration::from_secs(60));
        let none = !has(&sim.api, "c");
        sim.expect(none, I1, "a namespace that is not allowed has a Secret");
        calm(sim);
    });
    case.settings.namespaces = Some(allowed);
    case
}

fn ends_at_the_write(sim: &mut Sim) {
    let first = Action::First(Arc::new(|api| drop(api.delete(Kind::Namespace, "", "b"))));
    sim.api.faults().place(Rule::new(in_b, first).times(1));
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    credential(&sim.api, "platform", json!({}));
    sim.until(5, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
    sim.run_for(Duration::from_secs(6));
    sim.api.create_namespace("b", json!({ "pull": "ecr" }));
    sim.until(5, I9, "the namespace that was made again has its Secret", |api| has(api, "b"));
    calm(sim);
}

/// All writes that are under way hang; the round must see that there is a new namespace.
fn silence(sim: &mut Sim) {
    let known = |r: &Request| is_secret_write(r) && ["a", "b", "c"].contains(&r.target.namespace.as_str());
    ready_with(sim, json!({}));
    sim.api.faults().place(Rule::new(known, Action::Hang));
    sim.api.edit(Kind::Secret, "a", SECRET, json!({ "data": { ".dockerconfigjson": "e30=" } }));
    sim.run_for(Duration::from_secs(2));
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, "a new namespace has its Secret while a write hangs", |api| has(api, "late"));
    sim.run_for(Duration::from_secs(35));
    calm(sim);
}

fn silence_and_edit(sim: &mut Sim) {
    ready_with(sim, json!({}));
    sim.api.faults().place(Rule::new(in_b, Action::Hang));
    sim.api.edit(Kind::Secret, "b", SECRET, json!({ "data": { ".dockerconfigjson": "e30=" } }));
    sim.run_for(Duration::from_secs(2));
    workloads::edit(&sim.api, "platform", json!({ "secret": { "labels": { "team": "x" } } }));
    sim.until(5, I9, "the other namespaces have the new labels while a write hangs", |api| {
        let labelled = |ns| api.get(Kind::Secret, ns, SECRET).is_some_and(|s| s["metadata"]["labels"]["team"] == "x");
        labelled("a") && labelled("c")
    });
    sim.run_for(Duration::from_secs(35));
    calm(sim);
}

fn refused(sim: &mut Sim, requests: fn(&Request) -> bool, answer: Answer, reason: &'static str) {
    sim.api.faults().place(Rule::new(requests, Action::Answer(answer)));
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    credential(&sim.api, "platform", json!({}));
    sim.until(5, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
    sim.until(5, I14, "the status says why", |api| failure(api, "platform", "b").as_deref() == Some(reason));
    sim.run_for(Duration::from_secs(900));
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, "a new namespace has its Secret", |api| has(api, "late"));
    calm(sim);
}

fn no_rights_at_all(sim: &mut Sim, requests: fn(&Request) -> bool) {
    ready(sim);
    sim.api.faults().place(Rule::new(requests, Action::Answer(no_right(Kind::Secret, "a", "patch"))));
    sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }));
    let before = sim.api.sent().iter().filter(|sent| sent.is_change()).count();
    sim.run_for(Duration::from_secs(3600));
    let tries = sim.api.sent().iter().filter(|sent| sent.is_change()).count() - before;
    sim.expect(tries < 120, I7, &format!("{tries} tries in an hour without the right"));
    calm(sim);
}
