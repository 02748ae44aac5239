//! What can happen to a run around one of its mutating requests.

use std::sync::Arc;
use std::time::Duration;

use crate::api_server::{Action, Answer, ApiServer, Kind, Point, Request, Rule};

/// Longer than a write is waited for.
const LATE: Duration = Duration::from_secs(70);

/// See the file's first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The process dies.
    Die(Point),
    /// The request is answered with this status code and not done.
    Status(u16),
    /// 429 with `Retry-After: 2`.
    Throttled,
    /// The connection breaks before it.
    Refused,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It never arrives, and nothing is said.
    Silence,
    /// It arrives after 40 s, and is still waited for.
    Late,
    /// It arrives after 70 s, when it has been given up, and is done.
    GivenUp,
    /// It arrives after 10 s, when much else may have happened.
    Slow,
    /// Every watch is cut.
    WatchesCut,
    /// Every watch is cut and must begin with a new list.
    WatchesTooOld,
    /// Every watch is cut, and none gets through for 20 s.
    WatchesAway,
    /// Every watch stays open and says nothing for 20 s.
    WatchesStalled,
    /// The next lists show what was true three versions before.
    ListsStale,
    /// The watches begin with new lists, of which four are answered with this status code.
    ListsFail(u16),
    /// The watches begin with new lists, of which two say nothing.
    ListsSilent,
    /// The watches begin with new lists, of which four take 10 s.
    ListsSlow,
    /// An edit by hand takes the data away.
    EditedByHand,
    /// Somebody deletes a Secret.
    DeletedByHand,
    /// Somebody deletes a Secret after the request was done, and the watch tells of it before the answer comes.
    DeletedBeforeTheAnswer,
}

impl Blow {
    pub const DEATHS: [Self; 3] = [Self::Die(Point::Before), Self::Die(Point::Committed), Self::Die(Point::Answered)];

    /// Everything that a run must survive besides a death.
    pub const FAULTS: [Self; 22] = [
        Self::Status(500),
        Self::Status(503),
        Self::Status(504),
        Self::Status(409),
        Self::Throttled,
        Self::Refused,
        Self::AnswerLost,
        Self::Silence,
        Self::Late,
        Self::GivenUp,
        Self::Slow,
        Self::WatchesCut,
        Self::WatchesTooOld,
        Self::WatchesAway,
        Self::WatchesStalled,
        Self::ListsStale,
        Self::ListsFail(500),
        Self::ListsFail(403),
        Self::ListsSilent,
        Self::ListsSlow,
        Self::DeletedByHand,
        Self::DeletedBeforeTheAnswer,
    ];

    /// How much longer than usual the operator may act on old state.
    pub fn delays(self) -> Duration {
        match self {
            // A read is given up after a minute.
            Self::ListsSilent => Duration::from_secs(2 * 65),
            Self::ListsFail(_) | Self::ListsSlow => Duration::from_secs(40),
            _ => Duration::ZERO,
        }
    }

    /// Places it at the request with this number, from now on.
    pub fn place(self, api: &ApiServer, number: usize) {
        let counted = |request: &Request| request.is_mutation() && request.target.kind != Kind::Lease;
        api.faults().place(Rule::new(counted, self.action()).skip(number).times(1));
    }

    fn action(self) -> Action {
        match self {
            Self::Die(point) => Action::Die(point),
            Self::Status(code) => Action::Answer(Answer::refusal(code, "Trouble", "a fault of the simulation")),
            Self::Throttled => Action::Answer(Answer::too_many_requests(2)),
            Self::Refused => Action::Refuse,
            Self::AnswerLost => Action::LoseAnswer,
            Self::Silence => Action::Hang,
            Self::Late => Action::Delay(Duration::from_secs(40)),
            Self::GivenUp => Action::Late(LATE),
            Self::Slow => Action::Delay(Duration::from_secs(10)),
            Self::WatchesCut => first(ApiServer::cut_watches),
            Self::WatchesTooOld => first(|api| {
                api.compact();
                api.cut_watches();
            }),
            Self::WatchesAway => first(|api| {
                api.take_watches_away(true);
                later(api, |api| api.take_watches_away(false));
            }),
            Self::WatchesStalled => first(|api| {
                api.stall_watches(true);
                later(api, |api| api.stall_watches(false));
            }),
            Self::ListsStale => lists(Action::Stale(3), 4),
            Self::ListsFail(code) => {
                lists(Action::Answer(Answer::refusal(code, "Trouble", "a fault of the simulation")), 4)
            }
            Self::ListsSilent => lists(Action::Hang, 2),
            Self::ListsSlow => lists(Action::Delay(Duration::from_secs(10)), 4),
            Self::EditedByHand => first(|api| {
                let patch = serde_json::json!({ "data": { ".dockerconfigjson": "e30=" } });
                api.edit(Kind::Secret, "a", crate::workloads::SECRET, patch);
            }),
            Self::DeletedByHand => first(delete_by_hand),
            Self::DeletedBeforeTheAnswer => Action::Overtaken(Arc::new(delete_by_hand)),
        }
    }
}

fn delete_by_hand(api: &ApiServer) {
    api.delete(Kind::Secret, "a", crate::workloads::SECRET);
}

/// Every watch is cut and begins with a new list, and this happens to so many of them.
fn lists(action: Action, times: usize) -> Action {
    first(move |api| {
        api.faults().place(Rule::new(Request::is_list, action.clone()).times(times));
        api.compact();
        api.cut_watches();
    })
}

fn first(act: impl Fn(&ApiServer) + Send + Sync + 'static) -> Action {
    Action::First(Arc::new(act))
}

/// Twenty seconds on, unless the runtime ends before.
fn later(api: &ApiServer, act: impl Fn(&ApiServer) + Send + Sync + 'static) {
    let api = api.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(20)).await;
        act(&api);
    });
}
