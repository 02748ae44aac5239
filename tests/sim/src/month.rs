//! Days, or thirty of them, of refreshes with outages, wrong clocks, sleeping machines, restarts and changes of leader.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::api_server::{Action, Kind, Rule};
use crate::aws::Failure;
use crate::clock;
use crate::judge::{Invariant, Violation, judge, least_life};
use crate::operator::Settings;
use crate::sim::{Sim, Until};
use crate::workloads::{self, SECRET};

/// The longest time without AWS, without the API server, or asleep. Tokens live for 12 h and are replaced after 6 h, so
/// that a little less than an hour is left for the wait between tries, a wrong clock, and a new leader.
const LONGEST: u64 = 5 * 3600;

/// What a month came to.
pub struct Verdict {
    pub seed: u64,
    pub faults: usize,
    pub calls: usize,
    pub writes: usize,
    /// The least remaining life of any password in a selected namespace.
    pub least_life: SignedDuration,
    pub violations: Vec<Violation>,
}

/// Plays so many days, which depend on the seed alone.
pub fn play(seed: u64, days: i64) -> Verdict {
    let mut random = fastrand::Rng::with_seed(seed);
    // Half of them with two replicas. The long lease keeps a month of renewals short.
    let led = seed.is_multiple_of(2);
    let lease = led.then_some(Duration::from_secs(900));
    let mut sim = Sim::new(seed, Settings { lease, ..Settings::default() });
    sim.replicas = if led { 2 } else { 1 };
    sim.step = Duration::from_secs(30);
    sim.staleness = SignedDuration::from_secs(330);
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    let default = json!({ "refresh": { "atPercent": 50, "maxAge": "6h" } });
    workloads::credential(&sim.api, "platform", default);
    sim.wait(Until::Ready);
    let end = clock::true_now().checked_add(SignedDuration::from_hours(24 * days)).expect("within the run");
    while clock::true_now() < end {
        sim.run_for(Duration::from_secs(random.u64(1800..16 * 3600)));
        let length = Duration::from_secs(random.u64(60..LONGEST));
        trouble(&mut sim, &mut random, length, led);
        // Between two troubles there is time for one refresh: AWS answers at least once in each life less the margin.
        sim.run_for(Duration::from_secs(1200));
    }
    sim.skew(SignedDuration::ZERO);
    sim.run_for(Duration::from_secs(1200));
    sim.wait(Until::Ready);
    sim.expect_quiet();
    finish(&sim, seed)
}

fn trouble(sim: &mut Sim, random: &mut fastrand::Rng, length: Duration, led: bool) {
    sim.harm += 1;
    match random.u8(0..10) {
        0..3 => {
            let failure = Failure::ALL[random.usize(0..Failure::ALL.len())];
            sim.aws.fail(failure, None);
            sim.run_for(length);
            sim.aws.recover();
        }
        3 => {
            sim.aws.fail(Failure::Throttled, Some("public"));
            sim.run_for(length);
            sim.aws.recover();
        }
        4 => {
            sim.api.take_watches_away(true);
            sim.api.faults().place(Rule::new(|_| true, Action::Refuse));
            sim.run_for(length);
            sim.api.faults().heal();
            sim.api.take_watches_away(false);
        }
        5 => {
            let code = [429, 500, 503][random.usize(0..3)];
            let answer = crate::api_server::Answer::refusal(code, "Trouble", "a fault of the simulation");
            sim.api.faults().place(Rule::new(crate::api_server::Request::is_mutation, Action::Answer(answer)));
            sim.run_for(length);
            sim.api.faults().heal();
        }
        6 => sim.skew(SignedDuration::from_secs(random.i64(-20 * 3600..20 * 3600))),
        7 => clock::sleep_machine(length),
        8 if led => {
            if let Some(index) = sim.leader() {
                sim.kill_one(index);
            }
        }
        8 => sim.crash(),
        _ => small(sim, random),
    }
}

/// What happens every day.
fn small(sim: &mut Sim, random: &mut fastrand::Rng) {
    match random.u8(0..4) {
        0 => drop(sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }))),
        1 => drop(sim.api.label_namespace("elsewhere", json!({ "pull": null }))),
        2 => drop(sim.api.edit(Kind::Secret, "b", SECRET, json!({ "data": { "more": "eA==" } }))),
        _ => drop(sim.api.delete(Kind::Secret, "c", SECRET)),
    }
}

fn finish(sim: &Sim, seed: u64) -> Verdict {
    let least_life = least_life(sim).unwrap_or(SignedDuration::ZERO);
    let mut violations = judge(sim);
    if least_life <= SignedDuration::ZERO {
        let what = format!("a password was dead for {}", -least_life);
        violations.push(Violation::new(Invariant::I6NoGap, "run", Timestamp::MIN, what));
    }
    Verdict {
        seed,
        faults: sim.harm + sim.deaths + sim.api.faults().hits(),
        calls: sim.aws.calls().len(),
        writes: sim.api.sent().iter().filter(|sent| sent.is_change()).count(),
        least_life,
        violations,
    }
}
