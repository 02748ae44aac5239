//! Plans: each workload with one blow or several, each around one of its mutating requests, compared with the run without.

use std::collections::BTreeMap;

use k8s_openapi::jiff::SignedDuration;

use crate::api_server::Kind;
use crate::blow::Blow;
use crate::judge::{Invariant, Violation, judge};
use crate::operator::Settings;
use crate::sim::Sim;
use crate::snapshot::snapshot;
use crate::workloads::{self, Workload};

/// A workload and the blows in it, each after so many mutating requests; what follows a death is counted from then.
#[derive(Clone, Debug)]
pub struct Plan {
    pub workload: usize,
    pub blows: Vec<(usize, Blow)>,
    pub seed: u64,
}

/// What a plan came to.
pub struct Verdict {
    pub plan: Plan,
    pub name: &'static str,
    pub deaths: usize,
    /// How many blows hit.
    pub hits: usize,
    pub violations: Vec<Violation>,
}

/// What each workload comes to without a death.
pub struct Baselines {
    workloads: Vec<Workload>,
    ends: Vec<BTreeMap<String, String>>,
    requests: Vec<usize>,
}

impl Default for Baselines {
    fn default() -> Self {
        let workloads = workloads::all();
        let mut baselines = Self { workloads, ends: Vec::new(), requests: Vec::new() };
        for workload in 0..baselines.workloads.len() {
            let plan = Plan { workload, blows: vec![], seed: 1 };
            let (sim, requests) = baselines.play(&plan);
            let violations = judge(&sim);
            assert!(violations.is_empty(), "{} without a death: {violations:?}", baselines.workloads[workload].name);
            baselines.ends.push(snapshot(&sim.api));
            baselines.requests.push(requests);
        }
        baselines
    }
}

impl Baselines {
    /// Each of these blows at every request of every workload.
    pub fn singles(&self, blows: &[Blow]) -> Vec<Plan> {
        let mut plans = Vec::new();
        for (workload, requests) in self.requests.iter().enumerate() {
            for number in 0..*requests {
                for blow in blows {
                    plans.push(Plan { workload, blows: vec![(number, *blow)], seed: plans.len() as u64 });
                }
            }
        }
        plans
    }

    /// Two or three of these blows, by chance.
    pub fn sampled(&self, blows: &[Blow], count: usize, seed: u64) -> Vec<Plan> {
        let mut random = fastrand::Rng::with_seed(seed);
        let busy: Vec<usize> = (0..self.requests.len()).filter(|workload| self.requests[*workload] > 0).collect();
        let mut plan = |seed| {
            let workload = busy[random.usize(0..busy.len())];
            let number = if random.u8(0..4) == 0 { 3 } else { 2 };
            let chosen =
                (0..number).map(|_| (random.usize(0..self.requests[workload]), blows[random.usize(0..blows.len())]));
            Plan { workload, blows: chosen.collect(), seed }
        };
        (0..count as u64).map(|number| plan(seed.wrapping_mul(1_000_003).wrapping_add(number))).collect()
    }

    fn play(&self, plan: &Plan) -> (Sim, usize) {
        let workload = &self.workloads[plan.workload];
        // Many writes at a time, as by default, or one after the other.
        let concurrency = plan.seed.is_multiple_of(2).then_some(1);
        let lease = plan.seed.is_multiple_of(3).then_some(std::time::Duration::from_secs(15));
        let mut sim = Sim::new(plan.seed, Settings { concurrency, lease, ..workload.settings.clone() });
        sim.play(&workload.ground);
        let counted = |sim: &Sim| {
            sim.api.sent().iter().filter(|sent| sent.is_mutation && sent.target.kind != Kind::Lease).count()
        };
        let before = counted(&sim);
        if plan.blows.iter().any(|(_, blow)| !matches!(blow, Blow::Die(_))) {
            // Watches that are away or stalled for 20 s, and the wait until they are tried again.
            let delays: std::time::Duration = plan.blows.iter().map(|(_, blow)| blow.delays()).sum();
            sim.staleness = SignedDuration::from_secs(35) + SignedDuration::try_from(delays).expect("a time");
        }
        sim.planned.clone_from(&plan.blows);
        sim.plan_next();
        sim.play(&workload.steps);
        let requests = counted(&sim) - before;
        sim.api.faults().heal();
        sim.expect_quiet();
        (sim, requests)
    }

    /// Plays a plan and says what was wrong.
    pub fn try_plan(&self, plan: &Plan) -> Verdict {
        let (sim, _) = self.play(plan);
        let mut violations = judge(&sim);
        let end = snapshot(&sim.api);
        let without = &self.ends[plan.workload];
        for key in end.keys().chain(without.keys()).collect::<std::collections::BTreeSet<_>>() {
            if end.get(key) != without.get(key) {
                let detail = format!("ends as {:?}, without a death as {:?}", end.get(key), without.get(key));
                violations.push(Violation::new(
                    Invariant::I8CrashEquivalence,
                    key.clone(),
                    crate::clock::true_now(),
                    detail,
                ));
            }
        }
        Verdict {
            plan: plan.clone(),
            name: self.workloads[plan.workload].name,
            deaths: sim.deaths,
            hits: sim.api.faults().hits(),
            violations,
        }
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.workloads.iter().map(|workload| workload.name).collect()
    }
}
