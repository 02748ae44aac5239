//! Named faults: each case says which invariants it tries, does its harm, and says what must be true besides the invariants.

use std::time::Duration;

use ::judge::marks::owner;
use k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};

use crate::api_server::{Answer, ApiServer, Kind, Request};
use crate::clock;
use crate::judge::short::{I5, I9};
use crate::judge::{Invariant, Violation, judge, least_life};
use crate::operator::Settings;
use crate::sim::{Sim, Until};
use crate::workloads::{self, SECRET};

mod admission;
mod attach;
mod aws;
mod deletion;
mod keys;
mod leaders;
mod objects;
mod outputs;
mod places;
mod reads;
mod registries;
mod tenants;
mod unseen;

/// See the file's first line.
pub struct Case {
    pub name: String,
    /// The kind of fault, for the table.
    pub class: &'static str,
    pub tries: &'static [Invariant],
    pub settings: Settings,
    pub play: Box<dyn Fn(&mut Sim) + Send + Sync>,
}

/// What a case came to.
pub struct Verdict {
    pub name: String,
    pub class: &'static str,
    pub tries: &'static [Invariant],
    pub seed: u64,
    pub faults: usize,
    pub least_life: Option<SignedDuration>,
    pub violations: Vec<Violation>,
}

impl Case {
    pub fn run(&self, seed: u64) -> Verdict {
        let mut sim = Sim::new(seed, self.settings.clone());
        (self.play)(&mut sim);
        sim.api.faults().heal();
        Verdict {
            name: self.name.clone(),
            class: self.class,
            tries: self.tries,
            seed,
            faults: sim.api.faults().hits() + sim.deaths + sim.harm,
            least_life: least_life(&sim),
            violations: judge(&sim),
        }
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    let parts = [
        ("changes that no watch shows", unseen::cases()),
        ("Secrets that are foreign, edited, or wanted by two", objects::cases()),
        ("namespaces and rights that refuse", places::cases()),
        ("admission by chance", admission::cases()),
        ("reads that fail", reads::cases()),
        ("AWS, identities and clocks", aws::cases()),
        ("one registry in every state beside a good one", registries::cases()),
        ("several replicas", leaders::cases()),
        ("deletion", deletion::cases()),
        ("namespaces with identities of their own", tenants::cases()),
        ("static keys in a Secret", keys::cases()),
        ("outputs in other formats", outputs::cases()),
        ("Secrets that are attached to ServiceAccounts", attach::cases()),
    ];
    let classed =
        parts.into_iter().flat_map(|(class, cases)| cases.into_iter().map(move |case| Case { class, ..case }));
    classed.collect()
}

fn case(name: impl Into<String>, tries: &'static [Invariant], play: impl Fn(&mut Sim) + Send + Sync + 'static) -> Case {
    Case { name: name.into(), class: "", tries, settings: Settings::default(), play: Box::new(play) }
}

/// Three selected namespaces and one `EcrCredential`, ready.
fn ready(sim: &mut Sim) {
    ready_with(sim, json!({}));
}

fn ready_with(sim: &mut Sim, changes: Value) {
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    workloads::credential(&sim.api, "platform", changes);
    sim.wait(Until::Ready);
}

/// All is well again: ready within the bound, and then not a word.
fn calm(sim: &mut Sim) {
    sim.api.faults().heal();
    // The longest wait between tries: until then something that failed may not have been tried again.
    sim.run_for(Duration::from_secs(305));
    sim.wait(Until::Ready);
    sim.expect_quiet();
}

/// The process dies, and its successor writes no Secret in so many seconds: it has no new token.
fn restart_without_writes(sim: &mut Sim, seconds: u64) {
    let writes = sim.secret_writes();
    sim.crash();
    sim.run_for(Duration::from_secs(seconds));
    let writes = sim.secret_writes() - writes;
    sim.expect(writes == 0, I5, &format!("{writes} writes without a new token"));
}

/// The process dies, and so many seconds later a namespace comes: it gets all that it should have, and so many writes are all.
fn restart_and_late_namespace(
    sim: &mut Sim,
    seconds: u64,
    expected: usize,
    what: &str,
    has: fn(&ApiServer, &str) -> bool,
) {
    let writes = sim.secret_writes();
    sim.crash();
    sim.run_for(Duration::from_secs(seconds));
    sim.api.create_namespace("late", json!({ "pull": "ecr" }));
    sim.until(5, I9, what, |api| has(api, "late"));
    let writes = sim.secret_writes() - writes;
    sim.expect(writes == expected, I5, &format!("{writes} writes without a new token, for one new namespace"));
}

fn is_secret_write(request: &Request) -> bool {
    request.is_mutation() && request.target.kind == Kind::Secret
}

fn is_status_write(request: &Request) -> bool {
    request.is_mutation() && request.target.kind == Kind::Credential
}

fn no_right(kind: Kind, namespace: &str, verb: &str) -> Answer {
    Answer::no_right(&crate::api_server::target(kind, namespace, SECRET), verb)
}

impl Sim {
    fn expect(&mut self, holds: bool, invariant: Invariant, what: &str) {
        if !holds {
            self.complain(invariant, what);
        }
    }

    /// Lets time pass until something holds; how long it took, or a complaint.
    fn until(&mut self, seconds: u64, invariant: Invariant, what: &str, holds: impl Fn(&ApiServer) -> bool) {
        let start = clock::true_now();
        while !holds(&self.api) {
            if clock::true_now().duration_since(start)
                > SignedDuration::from_secs(i64::try_from(seconds).expect("a time"))
            {
                self.complain(invariant, format!("not within {seconds} s: {what}"));
                return;
            }
            self.run_for(Duration::from_millis(100));
        }
    }

    /// So many writes to Secrets so far.
    fn secret_writes(&self) -> usize {
        self.api.sent().iter().filter(|sent| sent.is_mutation && sent.target.kind == Kind::Secret).count()
    }
}

/// Whether a namespace holds a Secret of ours.
fn has(api: &ApiServer, namespace: &str) -> bool {
    api.get(Kind::Secret, namespace, SECRET).is_some_and(|secret| owner(&secret).is_some())
}

/// The reason that the status gives for a namespace.
fn failure(api: &ApiServer, credential: &str, namespace: &str) -> Option<String> {
    let object = api.get(Kind::Credential, "", credential)?;
    let failures = object["status"]["failures"].as_array()?.clone();
    let failure = failures.into_iter().find(|failure| failure["namespace"] == namespace)?;
    failure["reason"].as_str().map(str::to_owned)
}

fn ready_reason(api: &ApiServer, credential: &str) -> Option<String> {
    let object = api.get(Kind::Credential, "", credential)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|c| c["type"] == "Ready").and_then(|c| c["reason"].as_str().map(str::to_owned))
}

/// A Secret of somebody else.
fn foreign(api: &ApiServer, namespace: &str, changes: &Value) {
    let mut secret = json!({
        "metadata": { "name": SECRET, "labels": { "theirs": "yes" } },
        "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": "eyJhdXRocyI6e319" },
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        secret[key] = value.clone();
    }
    api.create(Kind::Secret, namespace, secret);
}
