//! Who may call AWS next, of the tokens that serve one namespace each: so many calls a second, first tokens before renewals, and
//! the `EcrCredentials` in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::plan::Uid;

/// What a token is fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Nothing good is held: pods wait for it.
    First,
    /// What is held is still good for hours.
    Renewal,
}

/// One queue. Its turns come no faster than the rate, after as many at once as a second has.
pub(super) struct Turns {
    /// Between two calls.
    interval: Duration,
    /// How far ahead of its time a call may be.
    ahead: Duration,
    state: Mutex<State>,
}

struct State {
    first: Queue,
    renewals: Queue,
    /// When the next call would be if none came ahead of its time.
    next: Instant,
    /// Whether somebody hands out turns.
    serving: bool,
}

impl Turns {
    pub(super) fn new(rate: u16) -> Arc<Self> {
        let rate = u32::from(rate.max(1));
        let interval = Duration::from_secs(1) / rate;
        let (first, renewals) = Default::default();
        let state = State { first, renewals, next: Instant::now(), serving: false };
        Arc::new(Self { interval, ahead: interval * (rate - 1), state: Mutex::new(state) })
    }

    /// Waits for a turn, which takes the time of so many calls. Whoever does not wait any more loses its turn to nobody.
    pub(super) async fn turn(self: &Arc<Self>, lane: Lane, who: &Uid, calls: u32) {
        let (ticket, turn) = oneshot::channel();
        let serves = {
            let mut state = self.state.lock();
            let queue = match lane {
                Lane::First => &mut state.first,
                Lane::Renewal => &mut state.renewals,
            };
            queue.push(who, Ticket { calls, ticket });
            !std::mem::replace(&mut state.serving, true)
        };
        if serves {
            tokio::spawn(self.clone().serve());
        }
        // It ends early with the process alone.
        let _ = turn.await;
    }

    async fn serve(self: Arc<Self>) {
        loop {
            let at = self.state.lock().next.checked_sub(self.ahead);
            if let Some(at) = at {
                tokio::time::sleep_until(at).await;
            }
            let mut state = self.state.lock();
            let Some(Ticket { calls, ticket }) = state.first.pop().or_else(|| state.renewals.pop()) else {
                state.serving = false;
                return;
            };
            if ticket.send(()).is_ok() {
                state.next = state.next.max(Instant::now()) + self.interval * calls.max(1);
            }
        }
    }
}

struct Ticket {
    calls: u32,
    ticket: oneshot::Sender<()>,
}

/// Tickets of each, and whose turn it is.
#[derive(Default)]
struct Queue {
    order: VecDeque<Uid>,
    tickets: HashMap<Uid, VecDeque<Ticket>>,
}

impl Queue {
    fn push(&mut self, who: &Uid, ticket: Ticket) {
        let tickets = self.tickets.entry(who.clone()).or_default();
        if tickets.is_empty() {
            self.order.push_back(who.clone());
        }
        tickets.push_back(ticket);
    }

    /// The next ticket that somebody still waits with.
    fn pop(&mut self) -> Option<Ticket> {
        while let Some(who) = self.order.pop_front() {
            let Some(tickets) = self.tickets.get_mut(&who) else { continue };
            let ticket = tickets.pop_front();
            if tickets.is_empty() {
                self.tickets.remove(&who);
            } else {
                self.order.push_back(who);
            }
            if let Some(ticket) = ticket.filter(|ticket| !ticket.ticket.is_closed()) {
                return Some(ticket);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    /// Waits in the queue; tells after how many milliseconds it was served.
    fn wait(turns: &Arc<Turns>, lane: Lane, who: &str, calls: u32) -> JoinHandle<u128> {
        let (turns, who, begun) = (turns.clone(), uid(who), Instant::now());
        tokio::spawn(async move {
            turns.turn(lane, &who, calls).await;
            begun.elapsed().as_millis()
        })
    }

    /// Lets those who were told to wait begin to.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_token_does_not_wait_for_thousands_of_renewals() {
        let turns = Turns::new(10);
        let renewals: Vec<_> = (0..5000).map(|_| wait(&turns, Lane::Renewal, "a", 1)).collect();
        settle().await;
        let first = wait(&turns, Lane::First, "b", 1).await.unwrap();
        assert!(first <= 200, "{first} ms");
        let mut last = 0;
        for renewal in renewals {
            last = last.max(renewal.await.unwrap());
        }
        assert!((499_000..=500_500).contains(&last), "{last} ms for all");
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_few_tokens_does_not_wait_for_one_of_thousands() {
        let turns = Turns::new(10);
        let many: Vec<_> = (0..3000).map(|_| wait(&turns, Lane::First, "many", 1)).collect();
        settle().await;
        for few in (0..5).map(|_| wait(&turns, Lane::First, "few", 1)).collect::<Vec<_>>() {
            let waited = few.await.unwrap();
            assert!(waited <= 1200, "{waited} ms");
        }
        many.into_iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_of_roles_takes_the_time_of_all_its_calls() {
        let turns = Turns::new(10);
        let mut last = 0;
        for chain in (0..100).map(|_| wait(&turns, Lane::First, "a", 3)).collect::<Vec<_>>() {
            last = last.max(chain.await.unwrap());
        }
        // 300 calls, of which a second's are not waited for.
        assert!((28_500..=30_000).contains(&last), "{last} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_takes_nobodys_time() {
        let turns = Turns::new(1);
        let gone: Vec<_> = (0..1000).map(|_| wait(&turns, Lane::First, "gone", 5)).collect();
        settle().await;
        gone.into_iter().for_each(|task| task.abort());
        settle().await;
        let waited = wait(&turns, Lane::First, "here", 1).await.unwrap();
        assert!(waited <= 6000, "{waited} ms");
    }
}
