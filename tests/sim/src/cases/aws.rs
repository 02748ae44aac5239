//! AWS fails or lies in every way that it can, at the first token and at a refresh; clocks are wrong, and machines sleep.

use std::time::Duration;

use ::judge::logins;
use k8s_openapi::jiff::SignedDuration;
use serde_json::json;

use super::{Case, calm, case, has, ready, ready_reason, ready_with};
use crate::api_server::Kind;
use crate::aws::Failure;
use crate::clock;
use crate::judge::Invariant;
use crate::judge::least_life;
use crate::judge::short::{I3, I4, I5, I6, I7, I9, I10, I14};
use crate::operator::Settings;
use crate::sim::Sim;
use crate::workloads::{self, SECRET, credential};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for failure in Failure::ALL {
        cases.push(case(format!("AWS at the first token: {failure:?}"), &[I3, I7, I10, I14], move |sim| {
            at_first(sim, failure);
        }));
        cases.push(case(
            format!("AWS at the refresh, for two hours: {failure:?}"),
            &[I4, I5, I6, I10, I14],
            move |sim| {
                at_refresh(sim, failure);
            },
        ));
    }
    cases.push(case("AWS fails for one registry of two, until its login is dead", &[I3, I5, I14], one_of_two));
    cases.push(case("AWS fails until every login is dead, and comes back", &[I3, I5, I14], until_dead));
    cases.push(case("a new namespace while AWS hangs", &[I5, I9], |sim| {
        ready(sim);
        sim.run_for(Duration::from_secs(1700));
        sim.aws.fail(Failure::Hangs, None);
        sim.run_for(Duration::from_secs(70));
        sim.api.create_namespace("late", json!({ "pull": "ecr" }));
        sim.until(5, I9, "it has the password in memory", |api| has(api, "late"));
        sim.aws.recover();
        calm(sim);
    }));
    cases.push(case("a restart while AWS is away", &[I5, I9, I10, I14], |sim| {
        ready(sim);
        sim.aws.fail(Failure::Unavailable, None);
        sim.crash();
        sim.run_for(Duration::from_secs(600));
        let reason = ready_reason(&sim.api, "platform");
        sim.expect(reason.as_deref() == Some("Synced"), I14, &format!("{reason:?} after a restart with good Secrets"));
        sim.api.create_namespace("late", json!({ "pull": "ecr" }));
        sim.until(5, I9, "it has the password found again", |api| has(api, "late"));
        sim.aws.recover();
        calm(sim);
    }));
    cases.push(case("twenty restarts in a row", &[I7, I10], |sim| {
        ready(sim);
        let (calls, writes) = (sim.aws.calls().len(), sim.secret_writes());
        for _ in 0..20 {
            sim.crash();
            sim.run_for(Duration::from_secs(7));
        }
        let (calls, writes) = (sim.aws.calls().len() - calls, sim.secret_writes() - writes);
        sim.expect(calls == 0, I10, &format!("{calls} calls by twenty restarts with good Secrets"));
        sim.expect(writes == 0, I7, &format!("{writes} writes by twenty restarts with good Secrets"));
    }));
    cases.push(case("twenty EcrCredentials and twenty namespaces", &[I7, I10], many));
    cases.push(case("AWS issues tokens that die before the ones in use", &[I4, I5, I7], |sim| {
        ready(sim);
        sim.aws.set_life(Duration::from_secs(3600));
        sim.harm += 1;
        sim.run_for(Duration::from_secs(7200));
        sim.aws.set_life(Duration::from_secs(12 * 3600));
        calm(sim);
    }));
    cases.extend(wrong_clocks());
    for hours in [-13, 13] {
        cases.push(case(format!("a clock that is wrong by {hours} h from the start"), &[I3, I4, I10], move |sim| {
            sim.skew(SignedDuration::from_hours(hours));
            sim.harm += 1;
            workloads::namespaces(&sim.api, &["a", "b"]);
            credential(&sim.api, "platform", json!({}));
            sim.run_for(Duration::from_secs(3600));
            sim.skew(SignedDuration::ZERO);
            calm(sim);
        }));
        cases.push(case(format!("a clock that goes wrong by {hours} h"), &[I3, I4, I10], move |sim| {
            ready(sim);
            sim.skew(SignedDuration::from_hours(hours));
            sim.harm += 1;
            sim.run_for(Duration::from_secs(3600));
            sim.skew(SignedDuration::ZERO);
            calm(sim);
        }));
    }
    cases.push(case("a clock that is set back while a namespace refuses and another was repaired", &[I7, I9], |sim| {
        sim.skew(SignedDuration::from_hours(13));
        sim.aws.set_life(Duration::from_secs(26 * 3600));
        sim.harm += 1;
        workloads::namespaces(&sim.api, &["a", "b", "c"]);
        sim.api.set_quota("b", Some(0));
        credential(&sim.api, "platform", json!({}));
        sim.until(30, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
        let spoilt = json!({ "data": { ".dockerconfigjson": "e30=" } });
        sim.api.edit(Kind::Secret, "a", SECRET, spoilt.clone());
        sim.run_for(Duration::from_secs(30));
        sim.skew(SignedDuration::ZERO);
        sim.api.set_quota("b", None);
        sim.api.edit(Kind::Secret, "a", SECRET, spoilt);
        sim.until(330, I9, "the namespace that had no quota has its Secret", |api| has(api, "b"));
        calm(sim);
    }));
    for minutes in [-5, 5] {
        cases.push(case(format!("a clock that is wrong by {minutes} min"), &[I4, I6, I7], move |sim| {
            sim.skew(SignedDuration::from_mins(minutes));
            sim.harm += 1;
            ready(sim);
            sim.run_for(Duration::from_secs(3600));
            calm(sim);
        }));
    }
    cases.push(case("a machine that sleeps for 14 h", &[I4, I7, I10], |sim| {
        ready(sim);
        clock::sleep_machine(Duration::from_secs(14 * 3600));
        sim.harm += 1;
        let calls = sim.aws.calls().len();
        sim.run_for(Duration::from_secs(70));
        let awake = sim.aws.calls().len() > calls;
        sim.expect(awake, I7, "nothing was refreshed within 70 s of waking");
        calm(sim);
    }));
    cases.push(case("an identity that changes at a restart", &[I3, I7, I10], |sim| {
        ready(sim);
        let calls = sim.aws.calls().len();
        sim.restart(Settings { identity: "role/other".to_owned(), ..sim.settings.clone() });
        calm(sim);
        let calls = sim.aws.calls().len() - calls;
        sim.expect(calls == 2, I10, &format!("{calls} calls for two tokens of another identity"));
    }));
    cases
}

/// Tried by every clock that is wrong: nothing good is taken away, and nothing is refreshed too late.
const CLOCKS: &[Invariant] = &[I3, I4, I5, I6, I7, I10, I14];

/// Clocks that are wrong, or jump, while AWS is away or not, across restarts or not: the time is that of AWS.
fn wrong_clocks() -> Vec<Case> {
    let mut cases = Vec::new();
    for hours in [-13, -5, 5, 13] {
        for restart in [false, true] {
            let name = format!("the node's clock goes wrong by {hours} h while AWS is away, restart {restart}");
            cases.push(case(name, CLOCKS, move |sim| {
                away(sim, restart, |sim| sim.skew(SignedDuration::from_hours(hours)))
            }));
            let name = format!("the API server's clock goes wrong by {hours} h while AWS is away, restart {restart}");
            cases.push(case(name, CLOCKS, move |sim| {
                away(sim, restart, |_| clock::skew_api_server(SignedDuration::from_hours(hours)));
            }));
        }
        cases.push(case(format!("the clock is set by {hours} h just before a refresh is due"), CLOCKS, move |sim| {
            ready(sim);
            sim.run_for(Duration::from_secs(1700));
            sim.skew(SignedDuration::from_hours(hours));
            sim.harm += 1;
            sim.run_for(Duration::from_secs(7200));
            enough_is_left(sim);
            calm(sim);
        }));
        cases.push(case(format!("the clock is set by {hours} h while a token is fetched"), CLOCKS, move |sim| {
            ready(sim);
            for _ in 0..3 {
                sim.aws.fail(Failure::Hangs, None);
                sim.run_for(Duration::from_secs(1805));
                sim.skew(SignedDuration::from_hours(hours));
                sim.harm += 1;
                sim.aws.recover();
                sim.run_for(Duration::from_secs(300));
                sim.skew(SignedDuration::ZERO);
            }
            calm(sim);
            enough_is_left(sim);
        }));
    }
    cases.push(case("the node's clock jumps every minute for two days", CLOCKS, |sim| {
        ready(sim);
        for minute in 0..2 * 24 * 60 {
            sim.skew(SignedDuration::from_hours((minute * 7) % 27 - 13));
            sim.run_for(Duration::from_secs(60));
        }
        sim.harm += 1;
        sim.skew(SignedDuration::ZERO);
        calm(sim);
        enough_is_left(sim);
    }));
    cases.push(case("a virtual machine that stood still for 8 h", CLOCKS, |sim| {
        ready_with(sim, json!({ "refresh": { "atPercent": 50, "maxAge": "6h" } }));
        clock::pause_machine(Duration::from_secs(8 * 3600));
        sim.harm += 1;
        // What sets the clocks of machines takes a while.
        sim.run_for(Duration::from_secs(30));
        sim.skew(SignedDuration::ZERO);
        let calls = sim.aws.calls().len();
        // Two clocks of three must tell it: the API server does at the latest when the watches are begun anew.
        sim.run_for(Duration::from_secs(360));
        let awake = sim.aws.calls().len() > calls;
        sim.expect(awake, I6, "nothing was refreshed within 6 min of the clock's being set");
        calm(sim);
    }));
    cases
}

/// AWS is away for two hours, in which a clock goes wrong, and a namespace comes: it has both logins, and nobody loses one.
fn away(sim: &mut Sim, restart: bool, harm: impl Fn(&mut Sim)) {
    ready(sim);
    sim.aws.fail(Failure::Unavailable, None);
    harm(sim);
    sim.harm += 1;
    if restart {
        sim.crash();
    }
    let writes = sim.secret_writes();
    sim.run_for(Duration::from_secs(7200));
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, "it has the logins that are good", |api| {
        let secret = api.get(Kind::Secret, "late", SECRET);
        secret.and_then(|secret| logins(&secret).ok()).is_some_and(|logins| logins.len() == 2)
    });
    let writes = sim.secret_writes() - writes;
    sim.expect(writes == 1, I5, &format!("{writes} writes without a new token, for one new namespace"));
    sim.skew(SignedDuration::ZERO);
    clock::skew_api_server(SignedDuration::ZERO);
    sim.aws.recover();
    calm(sim);
    enough_is_left(sim);
}

fn enough_is_left(sim: &mut Sim) {
    let least = least_life(sim).unwrap_or(SignedDuration::ZERO);
    sim.expect(least > SignedDuration::from_hours(9), I6, &format!("only {least:?} were left"));
}

fn at_first(sim: &mut Sim, failure: Failure) {
    sim.aws.fail(failure, None);
    sim.harm += 1;
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    credential(&sim.api, "platform", json!({}));
    sim.run_for(Duration::from_secs(1200));
    // ECR Public names no account, and is not asked for one.
    let good = failure.is_harmless();
    sim.expect(
        has(&sim.api, "a") == good,
        I3,
        &format!("after {failure:?} a namespace has {} Secret", if good { "no" } else { "a" }),
    );
    let calls = sim.aws.calls().len();
    sim.expect(calls <= 40, I10, &format!("{calls} calls in twenty minutes of failure"));
    sim.aws.recover();
    calm(sim);
}

fn at_refresh(sim: &mut Sim, failure: Failure) {
    ready(sim);
    sim.aws.fail(failure, None);
    sim.harm += 1;
    let (calls, writes) = (sim.aws.calls().len(), sim.secret_writes());
    sim.run_for(Duration::from_secs(7200));
    let writes = sim.secret_writes() - writes;
    sim.expect(failure.is_harmless() || writes == 0, I5, &format!("{writes} writes while AWS failed"));
    let calls = sim.aws.calls().len() - calls;
    sim.expect(calls <= 100, I10, &format!("{calls} calls in two hours of failure"));
    sim.aws.recover();
    calm(sim);
    enough_is_left(sim);
}

/// The dead entry of ECR Public goes, since it breaks anonymous pulls; the private one is refreshed all the time.
fn one_of_two(sim: &mut Sim) {
    ready(sim);
    sim.aws.fail(Failure::Denied, Some("public"));
    sim.harm += 1;
    sim.run_for(Duration::from_secs(13 * 3600));
    let secret = sim.api.get(Kind::Secret, "a", SECRET).expect("it is there");
    let hosts: Vec<String> = logins(&secret).unwrap_or_default().into_keys().collect();
    sim.expect(hosts == ["111122223333.dkr.ecr.eu-west-1.amazonaws.com"], I5, &format!("the hosts are {hosts:?}"));
    sim.aws.recover();
    calm(sim);
}

fn until_dead(sim: &mut Sim) {
    ready_with(
        sim,
        json!({ "registries": [{ "private": { "hostVariants": ["Standard"], "requestRegistryIds": false } }] }),
    );
    let writes = sim.secret_writes();
    sim.aws.fail(Failure::Throttled, None);
    sim.harm += 1;
    sim.run_for(Duration::from_secs(14 * 3600));
    let writes = sim.secret_writes() - writes;
    sim.expect(writes == 0, I5, &format!("{writes} writes without a new password"));
    let reason = ready_reason(&sim.api, "platform");
    sim.expect(reason.as_deref() != Some("Synced"), I14, "it is ready with a dead password");
    sim.aws.recover();
    calm(sim);
}

fn many(sim: &mut Sim) {
    let names: Vec<String> = (0..20).map(|number| format!("n{number:02}")).collect();
    workloads::namespaces(&sim.api, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let settings =
        Settings { secret_names: (0..20).map(|number| format!("s{number:02}")).collect(), ..sim.settings.clone() };
    sim.restart(settings);
    for number in 0..20 {
        credential(&sim.api, &format!("c{number:02}"), json!({ "secret": { "name": format!("s{number:02}") } }));
    }
    calm(sim);
    let calls = sim.aws.calls().len();
    sim.expect(calls == 2, I10, &format!("{calls} calls for two keys"));
    sim.run_for(Duration::from_secs(1900));
    let calls = sim.aws.calls().len() - calls;
    sim.expect(calls <= 4, I10, &format!("{calls} calls for one refresh of two keys"));
    calm(sim);
}
