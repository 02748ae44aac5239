//! Reads that fail: the lists of a start, and the Secrets that hold the tokens of the process before.

use std::time::Duration;

use serde_json::json;

use super::{Case, calm, case, has, no_right, ready, restart_and_late_namespace};
use crate::api_server::{Action, Answer, Kind, Request, Rule};
use crate::aws::Failure;
use crate::judge::short::{I4, I5, I7, I9, I10, I14};
use crate::sim::Sim;

/// How a read fails, and how often: what says nothing is given up after a minute each time.
fn failures() -> Vec<(&'static str, Action, usize)> {
    vec![
        ("are refused", Action::Answer(no_right(Kind::Secret, "a", "get")), 4),
        ("fail with 500", Action::Answer(Answer::refusal(500, "InternalError", "no")), 4),
        ("are put off with 429", Action::Answer(Answer::too_many_requests(2)), 4),
        ("break before they arrive", Action::Refuse, 4),
        ("lose their answer", Action::LoseAnswer, 4),
        ("say nothing", Action::Hang, 2),
        ("take twenty seconds", Action::Delay(Duration::from_secs(20)), 4),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (how, action, times) in failures() {
        let read = action.clone();
        cases.push(case(
            format!("a restart while AWS is away, whose reads of Secrets {how}"),
            &[I4, I5, I9, I10, I14],
            move |sim| {
                ready(sim);
                sim.aws.fail(Failure::Unavailable, None);
                sim.api.faults().place(Rule::new(is_read, read.clone()).times(times));
                restart_and_late_namespace(sim, 600, 1, "it has the token that was found again", has);
                sim.aws.recover();
                calm(sim);
            },
        ));
        let read = action.clone();
        let name = format!("a restart while AWS fails for one registry of two, whose reads of Secrets {how}");
        cases.push(case(name, &[I4, I5, I14], move |sim| {
            ready(sim);
            sim.run_for(Duration::from_secs(1700));
            sim.aws.fail(Failure::Unavailable, Some("public"));
            sim.api.faults().place(Rule::new(is_read, read.clone()).times(times));
            sim.crash();
            sim.run_for(Duration::from_secs(1200));
            sim.aws.recover();
            calm(sim);
        }));
        cases.push(case(format!("a restart whose lists {how}"), &[I7, I9, I10, I14], move |sim| {
            restart_with(sim, Rule::new(Request::is_list, action.clone()).times(times));
        }));
    }
    cases
}

/// A read of one Secret.
fn is_read(request: &Request) -> bool {
    request.verb() == "get" && request.target.kind == Kind::Secret
}

/// Nothing is fetched or written until the lists are there, nor after that; and a namespace that has come is served.
fn restart_with(sim: &mut Sim, rule: Rule) {
    ready(sim);
    let (calls, writes) = (sim.aws.calls().len(), sim.secret_writes());
    sim.api.faults().place(rule);
    sim.crash();
    sim.run_for(Duration::from_secs(300));
    let (calls, writes) = (sim.aws.calls().len() - calls, sim.secret_writes() - writes);
    sim.expect(calls == 0, I10, &format!("{calls} calls by a restart with good Secrets"));
    sim.expect(writes == 0, I7, &format!("{writes} writes by a restart with good Secrets"));
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, "a new namespace has its Secret", |api| has(api, "late"));
    calm(sim);
}
