//! A run: the stand-ins, the operator's processes on a runtime with paused time, and steps of whoever changes the world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::runtime::{Builder, Runtime};

use crate::api_server::{ApiServer, Kind};
use crate::aws::Aws;
use crate::blow::Blow;
use crate::clock;
use crate::judge::{Invariant, Violation};
use crate::operator::{Process, Settings};

/// Longer than the longest time without a look at the clock.
const QUIET: SignedDuration = SignedDuration::from_secs(65);

/// Everything is as desired after at most so long: two of the longest waits between tries.
pub const BOUND: Duration = Duration::from_secs(660);

/// How long it takes until a process that has died is there again.
const DOWN: Duration = Duration::from_secs(3);

/// See the file's first line.
pub struct Sim {
    pub api: ApiServer,
    pub aws: Aws,
    pub settings: Settings,
    /// How many replicas there should be.
    pub replicas: usize,
    /// How often a process died or ended.
    pub deaths: usize,
    /// How often a case did harm in another way.
    pub harm: usize,
    /// What was wrong that only the driver can see.
    pub complaints: Vec<Violation>,
    /// Every setting that a process had.
    pub all_settings: Vec<Settings>,
    /// How old the state may be that the operator acts on.
    pub staleness: SignedDuration,
    /// The roles and users of each namespace that has identities of its own.
    pub tenants: BTreeMap<String, BTreeSet<String>>,
    /// Deaths to come, each after so many mutating requests of the process.
    pub planned: Vec<(usize, Blow)>,
    /// How long the control plane may take to do what it owes, in virtual time.
    pub step: Duration,
    runtime: Option<Runtime>,
    processes: Vec<Process>,
    started: u32,
}

/// How a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nothing is written any more, and every `EcrCredential` is ready.
    Ready,
    /// Nothing is written any more.
    Quiet,
    /// So many seconds have passed.
    Passed(u64),
}

impl Sim {
    pub fn new(seed: u64, settings: Settings) -> Self {
        clock::reset();
        fastrand::seed(seed);
        Self {
            api: ApiServer::new(seed),
            aws: Aws::default(),
            settings: settings.clone(),
            replicas: 1,
            deaths: 0,
            harm: 0,
            complaints: Vec::new(),
            all_settings: vec![settings],
            staleness: SignedDuration::from_secs(10),
            tenants: BTreeMap::new(),
            planned: Vec::new(),
            step: Duration::from_secs(1),
            runtime: None,
            processes: Vec::new(),
            started: 0,
        }
    }

    /// Lets time pass until the step's end; complains when that does not come.
    pub fn wait(&mut self, until: Until) {
        let start = clock::true_now();
        match until {
            Until::Passed(seconds) => self.run_for(Duration::from_secs(seconds)),
            Until::Ready | Until::Quiet => {
                while !self.has_settled(start, until) {
                    if clock::true_now().duration_since(start) > SignedDuration::try_from(BOUND).expect("a bound") {
                        let why = format!("not {until:?} within {} s: {}", BOUND.as_secs(), self.unready());
                        self.complain(Invariant::I7Quiet, why);
                        return;
                    }
                    self.run_for(Duration::from_secs(5));
                }
            }
        }
    }

    fn has_settled(&self, start: Timestamp, until: Until) -> bool {
        let now = clock::true_now();
        let last = self.api.activity().1.map_or(start, |last| last.max(start));
        now.duration_since(last) > QUIET && (until == Until::Quiet || self.unready().is_empty())
    }

    /// Notes what only the driver can see.
    pub fn complain(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.complaints.push(Violation::new(invariant, "run", clock::true_now(), what));
    }

    /// From now on the operator's clock is wrong by this.
    pub fn skew(&mut self, by: SignedDuration) {
        clock::skew(by);
    }

    fn next_refresh(&self) -> Option<Timestamp> {
        let all = self.api.all(Kind::Credential);
        all.iter().filter_map(|(_, object)| object["status"]["nextRefreshAt"].as_str()?.parse().ok()).min()
    }

    /// Every `EcrCredential` that is not ready, and why.
    pub fn unready(&self) -> String {
        let why = self.api.all(Kind::Credential).into_iter().filter_map(|(key, object)| {
            let generation = &object["metadata"]["generation"];
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|c| c["type"] == "Ready");
            let holds = ready.is_some_and(|c| c["status"] == "True" && c["observedGeneration"] == *generation);
            (!holds)
                .then(|| format!("{}: {}", key.2, ready.map_or("no status".to_owned(), |c| c["message"].to_string())))
        });
        why.collect::<Vec<_>>().join("; ")
    }

    /// Nothing may be written for longer than it takes until all Secrets are examined again, which is every ten minutes. A refresh that
    /// is due then comes first.
    pub fn expect_quiet(&mut self) {
        for _ in 0..25 {
            let soon = clock::true_now().checked_add(SignedDuration::from_secs(760)).expect("within the run");
            let Some(due) = self.next_refresh().filter(|due| *due < soon) else { break };
            let left = Duration::try_from(due.duration_since(clock::true_now())).unwrap_or_default();
            self.run_for(left + Duration::from_secs(30));
        }
        let before = self.api.activity().0;
        self.run_for(Duration::from_secs(730));
        let sent = self.api.sent();
        let noise: Vec<String> =
            sent.iter().filter(|s| s.is_change()).skip(before).map(|s| s.summary.clone()).collect();
        if !noise.is_empty() {
            self.complain(Invariant::I7Quiet, format!("{} writes when all was as desired: {noise:?}", noise.len()));
        }
    }

    /// Lets time pass. Processes that die or end are started again.
    pub fn run_for(&mut self, time: Duration) {
        let end =
            clock::true_now().checked_add(SignedDuration::try_from(time).expect("a time")).expect("within the run");
        while clock::true_now() < end {
            self.boot();
            let left = Duration::try_from(end.duration_since(clock::true_now())).unwrap_or_default();
            let runtime = self.runtime.take().expect("a runtime");
            let (api, processes, step) = (self.api.clone(), &self.processes, self.step);
            let died = runtime.block_on(async {
                clock::bind();
                let event = run(&api, processes, left, step).await;
                clock::unbind();
                event
            });
            self.runtime = Some(runtime);
            match died {
                Event::Died => self.crash(),
                Event::Ended => self.bury_ended(),
                Event::Time => {}
            }
        }
    }

    /// Starts what is missing.
    pub fn boot(&mut self) {
        if self.replicas == 0 && self.runtime.is_some() {
            return;
        }
        let runtime = self.runtime.take().unwrap_or_else(|| {
            Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
        });
        {
            let _on_it = runtime.enter();
            while self.processes.len() < self.replicas {
                self.started += 1;
                self.processes.push(Process::start(self.started, &self.api, &self.aws, &self.settings));
            }
        }
        self.runtime = Some(runtime);
    }

    /// All processes die with all that they remember, and are away for a while.
    pub fn crash(&mut self) {
        self.end_runtime();
        self.deaths += 1;
        clock::sleep_machine(DOWN);
        self.plan_next();
    }

    fn end_runtime(&mut self) {
        self.processes.clear();
        drop(self.runtime.take());
        self.api.bury();
        // Whoever was to give the watches back has died with the runtime.
        self.api.clear_weather();
    }

    /// Places what is planned up to the next death; what comes after that is counted from then.
    pub fn plan_next(&mut self) {
        while !self.planned.is_empty() {
            let (number, blow) = self.planned.remove(0);
            blow.place(&self.api, number);
            if matches!(blow, Blow::Die(_)) {
                return;
            }
        }
    }

    /// SIGTERM to all, and a new start with other settings.
    pub fn restart(&mut self, settings: Settings) {
        self.settings = settings;
        self.all_settings.push(self.settings.clone());
        let old = self.started;
        self.processes.iter().for_each(Process::stop);
        self.run_for(Duration::from_secs(25));
        let slow = self.processes.iter().position(|process| process.number <= old);
        if let Some(index) = slow {
            self.complain(Invariant::I7Quiet, "a process did not end within its grace period");
            self.kill_one(index);
        }
    }

    /// One replica dies; the others go on.
    pub fn kill_one(&mut self, index: usize) {
        if index < self.processes.len() {
            self.processes.remove(index).kill();
            self.deaths += 1;
        }
    }

    fn bury_ended(&mut self) {
        let ended: Vec<Process> = self.processes.extract_if(.., |process| process.has_ended()).collect();
        for why in ended.into_iter().filter_map(Process::failure) {
            self.complain(Invariant::I7Quiet, format!("a process has ended: {why}"));
        }
        self.deaths += 1;
    }

    /// The number of the process that holds the Lease, as the API server knows it.
    pub fn leader(&self) -> Option<usize> {
        let lease = self.api.all(Kind::Lease).into_iter().next()?.1;
        let holder = lease["spec"]["holderIdentity"].as_str()?.to_owned();
        self.processes.iter().position(|process| crate::operator::is_held_by(&holder, process.number))
    }
}

enum Event {
    Died,
    Ended,
    Time,
}

/// Until a process dies or ends, or the time is over.
async fn run(api: &ApiServer, processes: &[Process], time: Duration, step: Duration) -> Event {
    let mut deaths = api.deaths();
    let end = tokio::time::Instant::now() + time;
    loop {
        let step_end = (tokio::time::Instant::now() + step).min(end);
        if deaths.borrow_and_update().is_some() {
            return Event::Died;
        }
        tokio::select! {
            biased;
            _ = deaths.changed() => continue,
            () = tokio::time::sleep_until(step_end) => {}
        }
        api.tick();
        if processes.iter().any(Process::has_ended) {
            return Event::Ended;
        }
        if tokio::time::Instant::now() >= end {
            return Event::Time;
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.end_runtime();
    }
}
