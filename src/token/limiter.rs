//! The rate limit on calls to AWS: one rate for all, with fair queueing among `EcrCredentials`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::plan::Uid;

/// The priority of a fetch. No priority starves another: each has a share of the rate of its `EcrCredential`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// For a token that all namespaces share.
    Shared,
    /// For one namespace that has no valid token.
    First,
    /// For one namespace whose token is still valid.
    Renewal,
    /// The same, after a failure.
    RetriedRenewal,
    /// For one namespace without a valid token whose last fetch failed: often its identity is denied again.
    RetriedFirst,
}

/// The cost of one call for a flow of weight 1. Every weight divides it.
const CALL: u64 = 4;

/// A queue for calls to AWS, with a burst of one request.
pub(super) struct FairRateLimiter {
    /// Between two calls.
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    /// The waiters: each `EcrCredential` has the same share, and within it each priority has its own.
    waiting: Flows<Uid, Flows<Priority, Queue>>,
    /// The earliest time of the next call.
    next: Instant,
    /// Whether a task is serving.
    serving: bool,
}

impl FairRateLimiter {
    pub(super) fn new(rate: u16) -> Arc<Self> {
        let interval = Duration::from_secs(1) / u32::from(rate.max(1));
        Arc::new(Self {
            interval,
            state: Mutex::new(State { waiting: Flows::default(), next: Instant::now(), serving: false }),
        })
    }

    /// Waits until this number of calls may be made for an `EcrCredential`. A cancelled wait uses no part of the rate.
    pub(super) async fn acquire(self: &Arc<Self>, priority: Priority, who: &Uid, calls: u32) {
        let (ticket, served) = oneshot::channel();
        let begins = {
            let mut state = self.state.lock();
            let ticket = Ticket { calls: u64::from(calls.max(1)), ticket };
            state.waiting.enter(who.clone()).enter(priority).0.push_back(ticket);
            !std::mem::replace(&mut state.serving, true)
        };
        if begins {
            tokio::spawn(self.clone().serve());
        }
        // It ends early only at shutdown.
        let _ = served.await;
    }

    async fn serve(self: Arc<Self>) {
        loop {
            let at = self.state.lock().next;
            tokio::time::sleep_until(at).await;
            let mut state = self.state.lock();
            let Some(Ticket { calls, ticket }) = state.waiting.pop() else {
                state.serving = false;
                return;
            };
            if ticket.send(()).is_ok() {
                let time = self.interval.saturating_mul(u32::try_from(calls).unwrap_or(u32::MAX));
                state.next = state.next.max(Instant::now()) + time;
            }
        }
    }
}

struct Ticket {
    calls: u64,
    ticket: oneshot::Sender<()>,
}

/// A source of tickets.
trait Source: Default {
    /// The next ticket that was not cancelled.
    fn pop(&mut self) -> Option<Ticket>;
    /// Whether there is certainly none.
    fn is_empty(&self) -> bool;
}

/// Tickets in the order in which they came.
#[derive(Default)]
struct Queue(VecDeque<Ticket>);

impl Source for Queue {
    fn pop(&mut self) -> Option<Ticket> {
        while let Some(ticket) = self.0.pop_front() {
            if !ticket.ticket.is_closed() {
                return Some(ticket);
            }
        }
        None
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The share of calls while all flows have waiters.
trait Weight {
    fn weight(&self) -> u64;
}

impl Weight for Uid {
    fn weight(&self) -> u64 {
        1
    }
}

impl Weight for Priority {
    fn weight(&self) -> u64 {
        match self {
            Self::Shared | Self::First => 4,
            Self::Renewal | Self::RetriedRenewal => 2,
            Self::RetriedFirst => 1,
        }
    }
}

/// Flows that are served in proportion to their weights (start-time fair queueing): the one that was served least is next. A new
/// flow starts at the current virtual time, so that idle time is not saved up, and one that returns at once keeps what it was
/// served.
struct Flows<K, S> {
    /// The virtual time: the start tag of the flow that was served last.
    reached: u64,
    flows: BTreeMap<K, Flow<S>>,
}

struct Flow<S> {
    /// Its service so far, by weight.
    had: u64,
    source: S,
}

impl<K, S> Default for Flows<K, S> {
    fn default() -> Self {
        Self { reached: 0, flows: BTreeMap::new() }
    }
}

impl<K: Ord, S: Source> Flows<K, S> {
    /// The source of a flow that is to get a ticket.
    fn enter(&mut self, key: K) -> &mut S {
        let reached = self.reached;
        let flow = self.flows.entry(key).or_insert_with(|| Flow { had: reached, source: S::default() });
        if flow.source.is_empty() {
            flow.had = flow.had.max(reached);
        }
        &mut flow.source
    }
}

impl<K: Ord + Weight, S: Source> Source for Flows<K, S> {
    fn pop(&mut self) -> Option<Ticket> {
        let ticket = loop {
            let waiting = self.flows.iter_mut().filter(|(_, flow)| !flow.source.is_empty());
            let (key, flow) = waiting.min_by_key(|(_, flow)| flow.had)?;
            let had = flow.had;
            if let Some(ticket) = flow.source.pop() {
                flow.had = had.saturating_add(ticket.calls.saturating_mul(CALL) / key.weight());
                self.reached = had;
                break ticket;
            }
        };
        let reached = self.reached;
        self.flows.retain(|_, flow| !flow.source.is_empty() || flow.had > reached);
        Some(ticket)
    }

    fn is_empty(&self) -> bool {
        self.flows.values().all(|flow| flow.source.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::task::JoinHandle;

    const PRIORITIES: [Priority; 5] =
        [Priority::Shared, Priority::First, Priority::Renewal, Priority::RetriedRenewal, Priority::RetriedFirst];

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    /// Waits in the queue; tells after how many milliseconds it was served.
    fn wait(limiter: &Arc<FairRateLimiter>, priority: Priority, who: &str, calls: u32) -> JoinHandle<u128> {
        let (limiter, who, begun) = (limiter.clone(), uid(who), Instant::now());
        tokio::spawn(async move {
            // A waiter that is never served counts as having waited this long.
            let _ = tokio::time::timeout(Duration::from_secs(3600), limiter.acquire(priority, &who, calls)).await;
            begun.elapsed().as_millis()
        })
    }

    /// One whose fetches always fail: it waits again as soon as it was served.
    fn fails_always(limiter: &Arc<FairRateLimiter>, priority: Priority, who: &str) -> JoinHandle<()> {
        let (limiter, who) = (limiter.clone(), uid(who));
        tokio::spawn(async move {
            loop {
                limiter.acquire(priority, &who, 1).await;
            }
        })
    }

    /// Lets the spawned waiters start to wait.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_token_does_not_wait_for_thousands_of_renewals() {
        let limiter = FairRateLimiter::new(10);
        let renewals: Vec<_> = (0..5000).map(|_| wait(&limiter, Priority::Renewal, "a", 1)).collect();
        settle().await;
        let first = wait(&limiter, Priority::First, "b", 1).await.unwrap();
        assert!(first <= 200, "{first} ms");
        let mut last = 0;
        for renewal in renewals {
            last = last.max(renewal.await.unwrap());
        }
        assert!((499_000..=500_500).contains(&last), "{last} ms for all");
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_few_tokens_does_not_wait_for_one_of_thousands() {
        let limiter = FairRateLimiter::new(10);
        // Sorted before the other.
        let many: Vec<_> = (0..3000).map(|_| wait(&limiter, Priority::First, "all", 1)).collect();
        settle().await;
        for few in (0..5).map(|_| wait(&limiter, Priority::First, "few", 1)).collect::<Vec<_>>() {
            let waited = few.await.unwrap();
            assert!(waited <= 1200, "{waited} ms");
        }
        many.into_iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn the_failed_renewal_of_one_is_tried_again_beside_thousands_that_are_always_denied() {
        let limiter = FairRateLimiter::new(10);
        let denied: Vec<_> = (0..2000).map(|_| fails_always(&limiter, Priority::RetriedFirst, "x")).collect();
        settle().await;
        for priority in PRIORITIES.into_iter().filter(|priority| *priority != Priority::RetriedFirst) {
            // Whoever was served once is not last for ever.
            for _ in 0..3 {
                let served = tokio::time::timeout(Duration::from_secs(60), wait(&limiter, priority, "x", 1));
                let waited = served.await.expect("it is starved").unwrap();
                assert!(waited <= 300, "{priority:?} after {waited} ms");
            }
        }
        denied.into_iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_at_once_does_not_overtake_those_who_wait() {
        let limiter = FairRateLimiter::new(10);
        // Sorted before the others, and never more than one of them.
        let hasty = fails_always(&limiter, Priority::Shared, "a");
        settle().await;
        for who in ["b", "c"] {
            let waited = wait(&limiter, Priority::RetriedFirst, who, 1).await.unwrap();
            assert!(waited <= 300, "{who} after {waited} ms");
        }
        hasty.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_of_roles_takes_the_time_of_all_its_calls() {
        let limiter = FairRateLimiter::new(10);
        let mut last = 0;
        for chain in (0..100).map(|_| wait(&limiter, Priority::First, "a", 3)).collect::<Vec<_>>() {
            last = last.max(chain.await.unwrap());
        }
        assert!((28_500..=30_000).contains(&last), "{last} ms for 300 calls");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_takes_nobodys_time() {
        let limiter = FairRateLimiter::new(1);
        let gone: Vec<_> = (0..1000).map(|_| wait(&limiter, Priority::First, "gone", 5)).collect();
        settle().await;
        gone.into_iter().for_each(|task| task.abort());
        settle().await;
        let waited = wait(&limiter, Priority::First, "gone", 1).await.unwrap();
        assert!(waited <= 6000, "{waited} ms");
    }

    /// Who waits how often: the `EcrCredential`, what for, how many calls, how often it comes back, and after how many
    /// milliseconds.
    type Load = Vec<(u8, usize, u32, usize, u64)>;

    fn load() -> impl Strategy<Value = Load> {
        prop::collection::vec((0_u8..6, 0_usize..5, 1_u32..4, 1_usize..20, 0_u64..60_000), 1..40)
    }

    /// Plays a load at 10 calls a second; when each was served, and how many calls that was.
    async fn play(load: Load) -> Vec<(Duration, u32)> {
        let limiter = FairRateLimiter::new(10);
        let (begun, served) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let tasks = load.into_iter().map(|(who, priority, calls, times, pause)| {
            let (limiter, served) = (limiter.clone(), served.clone());
            tokio::spawn(async move {
                for _ in 0..times {
                    limiter.acquire(PRIORITIES[priority], &uid(&who.to_string()), calls).await;
                    served.lock().push((begun.elapsed(), calls));
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            })
        });
        futures::future::join_all(tasks.collect::<Vec<_>>()).await;
        Arc::into_inner(served).unwrap().into_inner()
    }

    fn paused<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(future)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn in_no_time_are_there_more_calls_than_the_rate_and_one_request(load in load()) {
            let served = paused(play(load));
            for (first, (from, _)) in served.iter().enumerate() {
                let mut calls = 0;
                for (until, more) in &served[first..] {
                    let allowed = until.saturating_sub(*from).as_secs_f64() * 10.0;
                    // What was begun before the last one.
                    prop_assert!(f64::from(calls) <= allowed + 0.01, "{calls} calls in {allowed} tenths of a second");
                    calls += more;
                }
            }
        }

        #[test]
        fn everyone_is_served_in_proportion_to_how_many_wait(load in load(), who in 0_u8..6, priority in 0_usize..5) {
            // All the others come back for ever.
            let waited = paused(async move {
                let limiter = FairRateLimiter::new(10);
                let others: Vec<_> = load.iter().map(|(who, priority, ..)| {
                    fails_always(&limiter, PRIORITIES[*priority], &who.to_string())
                }).collect();
                tokio::time::sleep(Duration::from_secs(100)).await;
                let waited = wait(&limiter, PRIORITIES[priority], &who.to_string(), 1).await.unwrap();
                others.into_iter().for_each(|task| task.abort());
                let same = load.iter().filter(|(w, p, ..)| *w == who && *p == priority).count() + 1;
                let credentials = load.iter().map(|(who, ..)| who).collect::<std::collections::BTreeSet<_>>().len() + 1;
                // One pass serves each EcrCredential once; of one with all priorities waiting, the least has one of 13 turns.
                let rounds = 13 * same + 13;
                (waited, rounds * credentials)
            });
            prop_assert!(waited.0 <= waited.1 as u128 * 100, "{} ms of {} turns", waited.0, waited.1);
        }
    }
}
