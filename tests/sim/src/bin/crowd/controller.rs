//! The operator's own controller on the API server's stand-in, in virtual time: all from nothing, a refresh of all, a restart, and
//! namespaces that come one after the other.

use std::time::{Duration, Instant};

use serde_json::json;
use sim::api_server::Kind;
use sim::clock;
use sim::operator::Settings;
use sim::sim::{Sim, Until};
use sim::workloads;

use super::cost::{Cost, resident};

/// The head of the table.
pub(super) const HEAD: &str = "\
| EcrCredentials x namespaces | what | writes for each Secret | of the status, for each EcrCredential | other requests | calls to AWS | CPU for each Secret, us: operator | stand-in | resident, MiB | peak |
|---|---|---|---|---|---|---|---|---|---|";

/// How many namespaces come one after the other.
const MORE: usize = 20;

/// The longest that a step may take, in virtual time.
const BOUND: Duration = Duration::from_secs(3600);

struct Crowd {
    sim: Sim,
    credentials: usize,
    namespaces: usize,
    start: Instant,
}

/// Prints what each step takes.
pub(super) fn measure(credentials: usize, namespaces: usize) {
    let secret_names: Vec<String> = (0..credentials).map(name).collect();
    let settings = Settings { secret_names, ..Settings::default() };
    let mut crowd = Crowd { sim: Sim::new(1, settings), credentials, namespaces, start: Instant::now() };
    crowd.sim.api.be_thrifty();
    crowd.fill();
    crowd.phase("all from nothing", 1, |crowd| crowd.until(|sim| sim.unready().is_empty()));
    crowd.rest();
    crowd.phase("a refresh of all", 1, Crowd::refresh);
    crowd.rest();
    crowd.phase("a restart", 1, |crowd| crowd.sim.restart(crowd.sim.settings.clone()));
    crowd.rest();
    crowd.phase("a namespace more", MORE, |crowd| (0..MORE).for_each(|number| crowd.one_more(number)));
    crowd.rest();
    assert!(crowd.sim.complaints.is_empty(), "{:?}", crowd.sim.complaints);
}

fn name(credential: usize) -> String {
    format!("pull-{credential:03}")
}

impl Crowd {
    /// Namespaces and EcrCredentials, before the operator begins.
    fn fill(&self) {
        for number in 0..self.namespaces {
            self.sim.api.create_namespace(&format!("team-{number:05}"), json!({ "pull": "ecr" }));
        }
        for name in (0..self.credentials).map(name) {
            let refresh = json!({ "atPercent": 50, "maxAge": "6h" });
            workloads::credential(&self.sim.api, &name, json!({ "secret": { "name": name }, "refresh": refresh }));
        }
    }

    /// Does something and prints what it took. `times` is how many namespaces came, one after the other.
    fn phase(&mut self, what: &str, times: usize, work: impl FnOnce(&mut Self)) {
        let before = Cost::so_far(&self.sim, self.start);
        work(self);
        let cost = Cost::so_far(&self.sim, self.start).since(&before);
        let each = self.credentials * if times == 1 { self.namespaces } else { times };
        let each = |sum: f64| sum / each as f64;
        let (operator, stand_in) = cost.seconds();
        let (now, peak) = resident();
        println!(
            "| {} x {} | {what} | {:.3} | {:.2} | {} | {} | {:.1} | {:.1} | {} | {} |",
            self.credentials,
            self.namespaces,
            each(cost.secret_writes() as f64),
            cost.status_writes() as f64 / (self.credentials * times) as f64,
            cost.other_requests(),
            cost.calls(),
            each(operator) * 1e6,
            each(stand_in) * 1e6,
            now >> 20,
            peak >> 20,
        );
    }

    /// A minute without a write, and until then; and as long as it takes until all Secrets have been examined once more.
    fn rest(&mut self) {
        self.phase("eleven minutes at rest", 1, |crowd| {
            crowd.sim.wait(Until::Quiet);
            crowd.sim.run_for(Duration::from_secs(600));
        });
    }

    fn until(&mut self, done: impl Fn(&Sim) -> bool) {
        let mut left = BOUND;
        while !done(&self.sim) {
            left = left.checked_sub(Duration::from_secs(1)).expect("that it ends");
            self.sim.run_for(Duration::from_secs(1));
        }
    }

    fn refresh(&mut self) {
        let asked = clock::true_now().to_string();
        for name in (0..self.credentials).map(name) {
            let annotations = json!({ "pullsecrets.dev/refresh-requested-at": asked });
            self.sim.api.edit(Kind::Credential, "", &name, json!({ "metadata": { "annotations": annotations } }));
        }
        self.until(|sim| {
            let all = sim.api.all(Kind::Credential);
            all.iter().all(|(_, object)| object["status"]["handledRefreshRequest"] == asked.as_str())
        });
    }

    fn one_more(&mut self, number: usize) {
        let namespace = format!("more-{number}");
        self.sim.api.create_namespace(&namespace, json!({ "pull": "ecr" }));
        let credentials = self.credentials;
        self.until(|sim| (0..credentials).all(|n| sim.api.get(Kind::Secret, &namespace, &name(n)).is_some()));
        // Each for itself, with a status of its own.
        self.sim.run_for(Duration::from_secs(2));
    }
}
