//! What can happen to a run around one of its mutating requests.

use std::sync::Arc;
use std::time::Duration;

use crate::api_server::{Action, Answer, ApiServer, Kind, Point, Request, Rule};

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
    pub const FAULTS: [Self; 17] = [
        Self::Status(500),
        Self::Status(503),
        Self::Status(504),
        Self::Status(409),
        Self::Throttled,
        Self::Refused,
        Self::AnswerLost,
        Self::Silence,
        Self::Late,
        Self::Slow,
        Self::WatchesCut,
        Self::WatchesTooOld,
        Self::WatchesAway,
        Self::WatchesStalled,
        Self::ListsStale,
        Self::DeletedByHand,
        Self::DeletedBeforeTheAnswer,
    ];

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
            Self::ListsStale => first(|api| {
                api.faults().place(Rule::new(Request::is_list, Action::Stale(3)).times(4));
                api.compact();
                api.cut_watches();
            }),
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
