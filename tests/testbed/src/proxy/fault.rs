//! Faults: which requests they hit, how often, and what they do to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use regex::Regex;
use serde_json::Value;
use tokio::sync::watch;

use super::Request;

type Predicate = Arc<dyn Fn(&Request) -> bool + Send + Sync>;

/// A conjunction of conditions on a request.
#[derive(Clone, Default)]
pub struct Match(Vec<Predicate>);

impl Match {
    pub fn any() -> Match {
        Match::default()
    }

    /// Mutating requests other than renewals of Leases.
    pub fn changes() -> Match {
        Match::any().when(Request::is_change)
    }

    pub fn secret_writes() -> Match {
        Match::any().when(Request::is_secret_write)
    }

    /// Watches of a resource such as `secrets`.
    pub fn watches(resource: &str) -> Match {
        Match::any().when(Request::is_watch).resource(resource)
    }

    pub fn status_writes() -> Match {
        Match::any().when(|request| request.is_mutation() && request.target.subresource == "status")
    }

    /// `GET`, `PATCH` and so on.
    pub fn method(self, method: &str) -> Match {
        let method = method.to_owned();
        self.when(move |request| request.method.as_str() == method)
    }

    /// A regular expression that is found in the path. Panics when it is not one.
    pub fn path(self, pattern: &str) -> Match {
        let pattern = match Regex::new(pattern) {
            Ok(pattern) => pattern,
            Err(error) => panic!("{error}"),
        };
        self.when(move |request| pattern.is_match(&request.path))
    }

    pub fn resource(self, resource: &str) -> Match {
        let resource = resource.to_owned();
        self.when(move |request| request.target.resource == resource)
    }

    pub fn namespace(self, namespace: &str) -> Match {
        let namespace = namespace.to_owned();
        self.when(move |request| request.target.namespace == namespace)
    }

    pub fn name(self, name: &str) -> Match {
        let name = name.to_owned();
        self.when(move |request| request.target.name == name)
    }

    pub fn when(mut self, condition: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Match {
        self.0.push(Arc::new(condition));
        self
    }

    pub fn matches(&self, request: &Request) -> bool {
        self.0.iter().all(|condition| condition(request))
    }
}

/// What happens to a request that a fault hits.
#[derive(Clone)]
pub enum Action {
    /// The API server never sees it; the caller gets this answer.
    Answer(Answer),
    /// It is forwarded only after this time.
    Delay(Duration),
    /// The connection is closed; the API server never sees it.
    Drop,
    /// The API server carries it out; the connection is closed without an answer.
    CutAfterCommit,
    /// This many bytes of the answer's body arrive, then the connection is closed.
    Truncate(usize),
    /// It waits at the gate before it is forwarded. If the caller dies meanwhile, it is never sent.
    HoldRequest(Gate),
    /// It is carried out; the answer waits at the gate.
    HoldAnswer(Gate),
    /// The JSON of the answer is replaced, as by a stale cache.
    Rewrite(Arc<dyn Fn(Value) -> Value + Send + Sync>),
    /// Watch events wait at the gate, of watches that are already open too.
    StallWatch(Gate),
    /// Watch events for which this says true are never seen, of watches that are already open too.
    LoseEvents(Arc<dyn Fn(&Value) -> bool + Send + Sync>),
}

impl Action {
    pub(super) fn is_for_streams(&self) -> bool {
        matches!(self, Action::StallWatch(_) | Action::LoseEvents(_))
    }
}

/// An answer that the proxy gives in the API server's place.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub content_type: &'static str,
    pub retry_after_seconds: Option<u64>,
}

impl Answer {
    /// A Kubernetes Status object, as a real refusal has.
    pub fn refusal(status: u16, reason: &str, message: &str) -> Answer {
        let body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": status,
        });
        Answer {
            status,
            body: body.to_string().into_bytes(),
            content_type: "application/json",
            retry_after_seconds: None,
        }
    }

    /// 429, as the API server's priority and fairness answers.
    pub fn too_many_requests(retry_after_seconds: u64) -> Answer {
        let mut answer = Answer::refusal(429, "TooManyRequests", "too many requests");
        answer.retry_after_seconds = Some(retry_after_seconds);
        answer
    }

    /// Bytes that are no Kubernetes object, as from a load balancer in between.
    pub fn raw(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, body: body.into(), content_type, retry_after_seconds: None }
    }
}

/// Where requests wait until the test lets them go on.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Default)]
struct GateState {
    arrived: usize,
    open: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Gate(Arc::new(watch::channel(GateState::default()).0))
    }
}

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Waits until this many have arrived in all, whether or not they still wait.
    pub async fn arrived(&self, count: usize) {
        self.wait(|state| state.arrived >= count).await;
    }

    /// Waits until nothing waits at it any more.
    pub async fn left(&self) {
        self.0.closed().await;
    }

    /// Lets go everything that waits and everything that comes later.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    pub(super) async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        self.wait(|state| state.open).await;
    }

    async fn wait(&self, reached: impl Fn(&GateState) -> bool) {
        // The sender is alive as long as `self` is, so this ends only when the state is reached.
        let _ = self.0.subscribe().wait_for(|state| reached(state)).await;
    }
}

/// One fault: it hits matching requests from the `skip`-th on, `times` times.
#[derive(Clone)]
pub struct Fault {
    on: Match,
    action: Action,
    skip: usize,
    times: usize,
}

impl Fault {
    pub fn new(on: Match, action: Action) -> Fault {
        Fault { on, action, skip: 0, times: usize::MAX }
    }

    /// Leaves the first `skip` matching requests alone.
    pub fn skip(self, skip: usize) -> Fault {
        Fault { skip, ..self }
    }

    /// Hits this many requests and then no more.
    pub fn times(self, times: usize) -> Fault {
        Fault { times, ..self }
    }

    pub fn once(self) -> Fault {
        self.times(1)
    }
}

/// A fault that is in place. It stays until it is removed, also when this handle is dropped.
#[derive(Clone)]
pub struct Placed(Arc<Rule>);

struct Rule {
    fault: Fault,
    matched: AtomicUsize,
    hits: watch::Sender<usize>,
    removed: AtomicBool,
}

impl Placed {
    pub fn remove(&self) {
        self.0.removed.store(true, Ordering::SeqCst);
    }

    /// How many requests it hit.
    pub fn hits(&self) -> usize {
        *self.0.hits.borrow()
    }

    /// Waits until it has hit this many requests.
    pub async fn hit(&self, count: usize) {
        let _ = self.0.hits.subscribe().wait_for(|hits| *hits >= count).await;
    }
}

#[derive(Default)]
pub(super) struct Faults(Mutex<Vec<Placed>>);

impl Faults {
    pub(super) fn place(&self, fault: Fault) -> Placed {
        let rule =
            Rule { fault, matched: AtomicUsize::new(0), hits: watch::channel(0).0, removed: AtomicBool::new(false) };
        let placed = Placed(Arc::new(rule));
        self.0.lock().push(placed.clone());
        placed
    }

    pub(super) fn clear(&self) {
        for placed in self.0.lock().drain(..) {
            placed.remove();
        }
    }

    /// What the first fault that hits this request does. Counts it.
    pub(super) fn on_request(&self, request: &Request) -> Option<Action> {
        self.first(request, |action| !action.is_for_streams())
    }

    /// What the first fault that hits an event of this watch does. Counts each event.
    pub(super) fn on_event(&self, request: &Request) -> Option<Action> {
        self.first(request, Action::is_for_streams)
    }

    fn first(&self, request: &Request, wanted: impl Fn(&Action) -> bool) -> Option<Action> {
        let mut placed = self.0.lock();
        placed.retain(|placed| !placed.0.removed.load(Ordering::SeqCst));
        placed.iter().filter(|placed| wanted(&placed.0.fault.action)).find_map(|placed| placed.0.hit(request))
    }
}

impl Rule {
    fn hit(&self, request: &Request) -> Option<Action> {
        if !self.fault.on.matches(request) || *self.hits.borrow() >= self.fault.times {
            return None;
        }
        if self.matched.fetch_add(1, Ordering::SeqCst) < self.fault.skip {
            return None;
        }
        self.hits.send_modify(|hits| *hits += 1);
        Some(self.fault.action.clone())
    }
}
