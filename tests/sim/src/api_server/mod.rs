//! A stand-in for the API server, as far as the operator uses it: in memory, by counters instead of chance, with faults by rule.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch as channel;

pub use answer::Answer;
pub use faults::{Action, Faults, Point, Rule};
pub use link::Link;
pub use log::{Counts, Sent};
pub use request::{Kind, Request, Target};
pub use store::{Actor, Change, Key};

use admission::Admission;
use log::Log;
use stopwatch::Stopwatch;
use store::Store;
use under_way::UnderWay;

mod accounts;
mod admission;
mod answer;
mod faults;
mod fields;
mod kept;
mod link;
mod log;
mod owed;
mod page;
mod request;
mod selector;
mod stopwatch;
mod store;
mod under_way;
mod verbs;
mod watches;

/// How many changes a thrifty one keeps: many more than any watch is behind.
const WINDOW: usize = 1_000;

/// What happens to all watches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// Changes when all are cut.
    epoch: u64,
    /// They stay open and say nothing.
    stalled: bool,
    /// No list and no watch gets through.
    away: bool,
}

/// See the file's first line. Clones are the same.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    version: channel::Sender<u64>,
    weather: channel::Sender<Weather>,
    faults: Faults,
    admission: Admission,
    log: Mutex<Log>,
    under_way: UnderWay,
    stopwatch: Stopwatch,
    random: Mutex<fastrand::Rng>,
    deaths: channel::Sender<Option<Point>>,
}

impl ApiServer {
    /// An empty one. `seed` decides how long requests and events take.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            store: Mutex::default(),
            version: channel::Sender::new(0),
            weather: channel::Sender::default(),
            faults: Faults::default(),
            admission: Admission::default(),
            log: Mutex::default(),
            under_way: UnderWay::default(),
            stopwatch: Stopwatch::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            deaths: channel::Sender::default(),
        }))
    }

    /// From now on keeps Secrets as text, and of changes and requests as few as can be: for a million Secrets, and no judge.
    pub fn be_thrifty(&self) {
        self.0.store.lock().be_thrifty(WINDOW);
        self.0.log.lock().be_thrifty();
    }

    /// How many requests there were, lists and watches too.
    pub fn counts(&self) -> Counts {
        self.0.log.lock().counts().clone()
    }

    /// The real time that the stand-in itself has taken.
    pub fn spent(&self) -> Duration {
        self.0.stopwatch.spent()
    }

    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// From now on webhooks decide by chance about every write of a Secret or a status.
    pub fn admit_by_chance(&self) {
        let random = self.0.random.lock().fork();
        self.0.admission.begin(random);
    }

    /// No webhook is left.
    pub fn admit_all(&self) {
        self.0.admission.end();
    }

    /// Hears of the death that a rule brings.
    pub fn deaths(&self) -> channel::Receiver<Option<Point>> {
        self.0.deaths.subscribe()
    }

    /// The death is dealt with.
    pub fn bury(&self) {
        self.0.deaths.send_replace(None);
    }

    fn serve(&self, request: &Request, by: Actor) -> (Answer, u64, bool) {
        let mut store = self.0.store.lock();
        let leads = store.is_leader(by);
        let answer = store.serve(request, by);
        let version = store.version;
        drop(store);
        self.0.version.send_if_modified(|last| std::mem::replace(last, version) != version);
        (answer, version, leads)
    }

    /// Lets the control plane do what it owes by now.
    pub fn tick(&self) {
        let version = {
            let mut store = self.0.store.lock();
            store.tick();
            store.version
        };
        self.0.version.send_if_modified(|last| std::mem::replace(last, version) != version);
    }

    fn latency(&self, most: u64) -> Duration {
        Duration::from_micros(self.0.random.lock().u64(200..most))
    }

    /// Somebody else's request, which nothing disturbs.
    pub fn others(&self, method: Method, target: Target, body: Value, content_type: &str, manager: &str) -> Answer {
        let request = Request {
            method,
            target,
            parameters: [("fieldManager".to_owned(), manager.to_owned())].into(),
            content_type: content_type.to_owned(),
            metadata_only: false,
            user_agent: manager.to_owned(),
            body,
            admitted: Value::Null,
        };
        self.serve(&request, None).0
    }

    pub fn create(&self, kind: Kind, namespace: &str, body: Value) -> Answer {
        self.others(Method::POST, target(kind, namespace, ""), body, "application/json", "kubectl-create")
    }

    /// A merge patch, as an edit by hand.
    pub fn edit(&self, kind: Kind, namespace: &str, name: &str, patch: Value) -> Answer {
        let to = target(kind, namespace, name);
        self.others(Method::PATCH, to, patch, "application/merge-patch+json", "kubectl-edit")
    }

    /// A server-side apply under the name of any field manager.
    pub fn apply_as(&self, manager: &str, kind: Kind, namespace: &str, name: &str, body: Value) -> Answer {
        let to = target(kind, namespace, name);
        self.others(Method::PATCH, to, body, "application/apply-patch+yaml", manager)
    }

    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Answer {
        self.others(Method::DELETE, target(kind, namespace, name), Value::Null, "application/json", "kubectl")
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.store.lock().get(&key).map(|stored| stored.shown.clone())
    }

    /// Everything of a kind, by namespace and name.
    pub fn all(&self, kind: Kind) -> Vec<(Key, Arc<Value>)> {
        self.0.store.lock().of_kind(kind).map(|(key, stored)| (key.clone(), stored.shown.clone())).collect()
    }

    pub fn create_namespace(&self, name: &str, labels: Value) -> Answer {
        self.create(Kind::Namespace, "", json!({ "metadata": { "name": name, "labels": labels } }))
    }

    pub fn label_namespace(&self, name: &str, labels: Value) -> Answer {
        self.edit(Kind::Namespace, "", name, json!({ "metadata": { "labels": labels } }))
    }

    /// How many Secrets a namespace may hold.
    pub fn set_quota(&self, namespace: &str, secrets: Option<usize>) {
        let mut store = self.0.store.lock();
        match secrets {
            Some(limit) => store.quotas.insert(namespace.to_owned(), limit),
            None => store.quotas.remove(namespace),
        };
    }

    /// Forgets all changes up to now: a watch that begins before gets 410.
    pub fn compact(&self) {
        let mut store = self.0.store.lock();
        store.oldest = store.version;
    }

    /// Ends every watch.
    pub fn cut_watches(&self) {
        self.0.weather.send_modify(|weather| weather.epoch += 1);
    }

    /// Keeps every watch open without a word.
    pub fn stall_watches(&self, stalled: bool) {
        self.0.weather.send_modify(|weather| weather.stalled = stalled);
    }

    /// Ends every watch and lets none begin again.
    pub fn take_watches_away(&self, away: bool) {
        self.0.weather.send_modify(|weather| {
            weather.epoch += 1;
            weather.away = away;
        });
    }

    /// Watches get through again.
    pub fn clear_weather(&self) {
        self.0.weather.send_modify(|weather| {
            weather.stalled = false;
            weather.away = false;
        });
    }

    /// Every change so far.
    pub fn changes(&self) -> Vec<Change> {
        self.0.store.lock().changes.iter().cloned().collect()
    }

    /// Every request of an operator so far, lists and watches left out.
    pub fn sent(&self) -> Vec<Sent> {
        self.0.log.lock().sent().to_vec()
    }

    /// How many of them change something, and when the last of those was sent or any request was waited for.
    pub fn activity(&self) -> (usize, Option<Timestamp>) {
        let (changes, last) = self.0.log.lock().activity();
        (changes, last.max(self.0.under_way.last()))
    }

    /// Every Event sent so far.
    pub fn events(&self) -> Vec<(Timestamp, Value)> {
        self.0.store.lock().events.clone()
    }
}

/// What a path names.
pub fn target(kind: Kind, namespace: &str, name: &str) -> Target {
    Target { kind, namespace: namespace.to_owned(), name: name.to_owned(), subresource: String::new() }
}
