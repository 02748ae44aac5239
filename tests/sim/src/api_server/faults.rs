//! What goes wrong on the way to the API server and back, by rule.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ApiServer;
use super::answer::Answer;
use super::request::Request;

/// Where a process dies, as seen from one of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before it is sent.
    Before,
    /// When it is committed, before the answer.
    Committed,
    /// When the answer has been worked on as far as it goes without waiting.
    Answered,
}

impl Point {
    pub const ALL: [Self; 3] = [Self::Before, Self::Committed, Self::Answered];
}

/// What happens to a request.
#[derive(Clone)]
pub enum Action {
    /// It is answered so and not done.
    Answer(Answer),
    /// It never arrives, and the connection breaks.
    Refuse,
    /// It is done, and the connection breaks before the answer.
    LoseAnswer,
    /// It never arrives, and nothing is said.
    Hang,
    /// It arrives so much later, if it is still waited for.
    Delay(Duration),
    /// It arrives so much later, whether or not it is still waited for, and the answer is lost.
    Late(Duration),
    /// This happens to the API server first.
    First(Arc<dyn Fn(&ApiServer) + Send + Sync>),
    /// This happens to the API server before the answer.
    Then(Arc<dyn Fn(&ApiServer) + Send + Sync>),
    /// This happens to the API server, and the answer takes so long that the watch overtakes it.
    Overtaken(Arc<dyn Fn(&ApiServer) + Send + Sync>),
    /// A list shows what was true so many versions ago.
    Stale(u64),
    /// The process dies.
    Die(Point),
}

type Predicate = dyn Fn(&Request) -> bool + Send + Sync;

/// A fault and the requests that it hits.
pub struct Rule {
    matches: Box<Predicate>,
    skip: usize,
    times: usize,
    action: Action,
}

impl Rule {
    /// Hits every request that matches.
    pub fn new(matches: impl Fn(&Request) -> bool + Send + Sync + 'static, action: Action) -> Self {
        Self { matches: Box::new(matches), skip: 0, times: usize::MAX, action }
    }

    /// Lets so many of them pass first.
    #[must_use]
    pub fn skip(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Hits so many and no more.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }
}

/// The rules in force, oldest first, and how often they hit.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    hits: Mutex<usize>,
}

impl Faults {
    pub fn place(&self, rule: Rule) {
        self.rules.lock().push(rule);
    }

    pub fn heal(&self) {
        self.rules.lock().clear();
    }

    pub fn hits(&self) -> usize {
        *self.hits.lock()
    }

    pub(super) fn count(&self) {
        *self.hits.lock() += 1;
    }

    /// What the oldest rule says that hits.
    pub(super) fn hit(&self, request: &Request) -> Option<Action> {
        for rule in self.rules.lock().iter_mut().filter(|rule| (rule.matches)(request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                rule.times -= 1;
                self.count();
                return Some(rule.action.clone());
            }
        }
        None
    }
}
