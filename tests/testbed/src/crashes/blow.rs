//! A death around one mutating request: before it is sent, once it is committed, or once it is answered.

use std::time::Duration;

use crate::bed::{Bed, PATIENCE};
use crate::proxy::{Action, Fault, Gate, Mark, Match};

/// How long a process has to take an answer in. Nothing tells when it has, unless it sends something more.
const TAKEN_IN: Duration = Duration::from_millis(50);

/// When the process dies. What it has not sent by then never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The request does not reach the API server.
    Before,
    /// It is carried out, and nobody hears of it.
    Committed,
    /// The process has just been told.
    Answered,
}

impl Moment {
    pub const ALL: [Moment; 3] = [Moment::Before, Moment::Committed, Moment::Answered];
}

/// A death that is prepared: the proxy holds the request in question and every later one.
pub(super) struct Blow {
    number: usize,
    moment: Moment,
    answer: Gate,
    rest: Gate,
    mark: Mark,
}

impl Blow {
    /// For the request with this number, from 0, of those that come from now on.
    pub(super) fn prepare(bed: &Bed, number: usize, moment: Moment) -> Blow {
        let blow = Blow { number, moment, answer: Gate::new(), rest: Gate::new(), mark: bed.proxy.log().mark() };
        if moment == Moment::Committed {
            let answer = Action::HoldAnswer(blow.answer.clone());
            bed.proxy.place(Fault::new(Match::changes(), answer).skip(number).once());
        }
        let through = if moment == Moment::Answered { number + 1 } else { number };
        // The gate is never opened: what waits there when the process dies is not sent.
        bed.proxy.place(Fault::new(Match::changes(), Action::HoldRequest(blow.rest.clone())).skip(through));
        blow
    }

    /// Waits until the moment has come.
    pub(super) async fn comes(&self, bed: &Bed) {
        match self.moment {
            Moment::Before => self.rest.arrived(1).await,
            Moment::Committed => self.answer.arrived(1).await,
            Moment::Answered => {
                let changes = Match::changes();
                if bed.proxy.log().wait_for(self.mark, &changes, self.number + 1, PATIENCE).await.is_err() {
                    // So many never come.
                    std::future::pending::<()>().await;
                }
                let _ = tokio::time::timeout(TAKEN_IN, self.rest.arrived(1)).await;
            }
        }
    }
}
