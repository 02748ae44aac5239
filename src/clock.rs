//! The clock that decides about expiry: the node's clock, corrected by the `Date` header of responses.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Response;
use http::header::{AGE, DATE};
use k8s_openapi::jiff::fmt::rfc2822;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tower::util::MapFutureLayer;

/// The tolerated difference between a clock and a server's `Date`, which has whole seconds only.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// The longest round trip after which a `Date` is used. In a longer one, the process or its machine may have been suspended.
const LONGEST_TRIP: Duration = Duration::from_secs(60);

/// From this difference on, the node's clock is reported as wrong.
const WORTH_A_WARNING: SignedDuration = SignedDuration::from_secs(60);

/// The source of a `Date`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// AWS, which issues the tokens and decides when they expire.
    Aws,
    /// The API server.
    Kubernetes,
}

/// The clock of the process; clones share their state.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wall: fn() -> Timestamp,
    uptime: fn() -> Duration,
    heard: Mutex<Heard>,
}

impl Default for Clock {
    /// The clock of this machine.
    fn default() -> Self {
        Self::new(Timestamp::now, uptime)
    }
}

impl Clock {
    /// A clock over a wall clock, which may be wrong and may jump, and the time since some moment, which does neither.
    pub fn new(wall: fn() -> Timestamp, uptime: fn() -> Duration) -> Self {
        Self(Arc::new(Inner { wall, uptime, heard: Mutex::default() }))
    }

    /// The time. Once AWS has answered it is AWS's, carried on by the majority of three clocks. Before that it is the later one
    /// of the node's and the API server's: a refresh may come early, and never late.
    pub fn now(&self) -> Timestamp {
        self.0.heard.lock().now(self.read())
    }

    /// The earliest time of all clocks, and never later than the majority of AWS, the API server and the node says. A token is dropped
    /// only if it has expired by this time.
    pub fn earliest(&self) -> Timestamp {
        self.0.heard.lock().earliest(self.read())
    }

    /// The latest time of all clocks, and never earlier than the same majority says.
    pub fn latest(&self) -> Timestamp {
        self.0.heard.lock().latest(self.read())
    }

    /// The time by the servers: that of AWS, before it has answered that of the API server, and before any has that of the node.
    pub fn of_servers(&self) -> Timestamp {
        self.0.heard.lock().of_servers(self.read())
    }

    /// A layer of the API client that reads the `Date` of each answer.
    pub fn layer<F, B, E>(
        &self,
    ) -> MapFutureLayer<impl Fn(F) -> BoxFuture<'static, Result<Response<B>, E>> + Clone + use<F, B, E>>
    where
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    {
        let clock = self.clone();
        MapFutureLayer::new(move |answer: F| {
            let (clock, sent) = (clock.clone(), clock.uptime());
            async move {
                let answer = answer.await?;
                let headers = answer.headers();
                // A response with an age comes from a cache.
                let date = headers.get(DATE).filter(|_| !headers.contains_key(AGE));
                if let Some(date) = date.and_then(|date| date.to_str().ok()) {
                    clock.hear(Server::Kubernetes, date, sent);
                }
                Ok(answer)
            }
            .boxed()
        })
    }

    /// The time since some moment, whether or not the machine slept. It never jumps.
    pub fn uptime(&self) -> Duration {
        (self.0.uptime)()
    }

    /// Takes the `Date` of an answer to a request that was sent at this [`Self::uptime`].
    pub fn hear(&self, server: Server, date: &str, sent: Duration) {
        let Ok(date) = rfc2822::DateTimeParser::new().parse_timestamp(date) else { return };
        let at = self.read();
        let trip = at.uptime.saturating_sub(sent);
        if trip > LONGEST_TRIP {
            return;
        }
        let changed = self.0.heard.lock().hear(server, date, trip, at);
        match changed {
            Some(false) => tracing::info!("the clock of this node agrees with that of AWS again"),
            Some(true) => {
                let ahead = at.wall.duration_since(date).as_secs();
                tracing::warn!(
                    seconds_ahead = ahead,
                    "the clock of this node differs from that of AWS: the operator uses the time of AWS, other programs on this node do not"
                );
            }
            None => {}
        }
    }

    fn read(&self) -> Readings {
        Readings { wall: (self.0.wall)(), uptime: (self.0.uptime)() }
    }
}

/// What this machine's clocks show at one moment.
#[derive(Clone, Copy, Debug)]
struct Readings {
    wall: Timestamp,
    uptime: Duration,
}

/// What the servers have said.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    kubernetes: Option<Dated>,
    aws: Option<Anchor>,
    /// Whether the node's clock was reported as wrong.
    warned: bool,
}

/// The API server's time at one moment.
#[derive(Clone, Copy, Debug)]
struct Dated {
    time: Timestamp,
    uptime: Duration,
}

/// AWS's time at one moment, and what the other clocks showed then: how far each has come since tells the time.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    time: Timestamp,
    at: Readings,
    kubernetes: Option<Timestamp>,
}

impl Heard {
    /// Returns whether the node's clock is wrong, if that is new.
    fn hear(&mut self, server: Server, date: Timestamp, trip: Duration, at: Readings) -> Option<bool> {
        let difference = at.wall.duration_since(date);
        let tolerance = TOLERANCE.saturating_add(signed(trip));
        // The node's clock has fractions of a second.
        let time = if difference.abs() <= tolerance { at.wall } else { date };
        match server {
            Server::Kubernetes => {
                self.kubernetes = Some(Dated { time, uptime: at.uptime });
                None
            }
            Server::Aws => {
                self.aws = Some(Anchor { time, at, kubernetes: self.kubernetes_now(at) });
                let wrong = difference.abs() >= WORTH_A_WARNING.saturating_add(signed(trip));
                (std::mem::replace(&mut self.warned, wrong) != wrong).then_some(wrong)
            }
        }
    }

    fn kubernetes_now(&self, at: Readings) -> Option<Timestamp> {
        self.kubernetes.map(|dated| shift(dated.time, signed(at.uptime.saturating_sub(dated.uptime))))
    }

    fn now(&self, at: Readings) -> Timestamp {
        let [_, middle, latest] = self.estimates(at);
        if self.aws.is_some() { middle } else { latest }
    }

    fn of_servers(&self, at: Readings) -> Timestamp {
        match (self.aws, self.kubernetes_now(at)) {
            (None, Some(kubernetes)) => kubernetes,
            _ => self.now(at),
        }
    }

    fn earliest(&self, at: Readings) -> Timestamp {
        self.estimates(at)[0].min(self.majority(at))
    }

    fn latest(&self, at: Readings) -> Timestamp {
        self.estimates(at)[2].max(self.majority(at))
    }

    /// The middle one of the times of AWS, the API server and the node, each by itself: the [`Self::estimates`] are all wrong if AWS is.
    fn majority(&self, at: Readings) -> Timestamp {
        let now = self.now(at);
        let mut times = [now, at.wall, self.kubernetes_now(at).unwrap_or(now)];
        times.sort();
        times[1]
    }

    /// The time by each clock, in order. A clock that is not there is replaced by the one that is trusted most.
    fn estimates(&self, at: Readings) -> [Timestamp; 3] {
        let kubernetes = self.kubernetes_now(at);
        let mut estimates = match self.aws {
            None => [at.wall, at.wall, kubernetes.unwrap_or(at.wall)],
            Some(anchor) => {
                let by_uptime = signed(at.uptime.saturating_sub(anchor.at.uptime));
                let by_wall = at.wall.duration_since(anchor.at.wall);
                let by_kubernetes = kubernetes.zip(anchor.kubernetes).map(|(now, then)| now.duration_since(then));
                [by_uptime, by_wall, by_kubernetes.unwrap_or(by_uptime)].map(|passed| shift(anchor.time, passed))
            }
        };
        estimates.sort();
        estimates
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn shift(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

/// The time since the machine was started, the time asleep included.
#[cfg(target_os = "linux")]
fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The time since this was first asked.
#[cfg(not(target_os = "linux"))]
fn uptime() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;
    use tower::Layer;

    const NOW: i64 = 1_900_000_000;
    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Readings so many seconds after the beginning, with a wall clock that is ahead.
    fn readings(second: i64, wall_ahead: i64) -> Readings {
        Readings { wall: at(NOW + second + wall_ahead), uptime: Duration::from_secs(u64::try_from(second).unwrap()) }
    }

    fn hear(heard: &mut Heard, server: Server, (second, server_ahead, wall_ahead): (i64, i64, i64)) {
        heard.hear(server, at(NOW + second + server_ahead), Duration::ZERO, readings(second, wall_ahead));
    }

    #[test]
    fn before_aws_has_answered_a_refresh_may_be_early_and_nothing_good_is_dropped() {
        for (wall, kubernetes, now, earliest) in [
            (0, None, 0, 0),
            (0, Some(0), 0, 0),
            (13 * HOUR, Some(0), 13 * HOUR, 0),
            (-13 * HOUR, Some(0), 0, -13 * HOUR),
            (0, Some(13 * HOUR), 13 * HOUR, 0),
            (0, Some(-13 * HOUR), 0, -13 * HOUR),
        ] {
            let mut heard = Heard::default();
            if let Some(ahead) = kubernetes {
                hear(&mut heard, Server::Kubernetes, (10, ahead, wall));
            }
            let then = readings(100, wall);
            assert_eq!(heard.of_servers(then), at(NOW + 100 + kubernetes.unwrap_or(wall)), "{wall} {kubernetes:?}");
            assert_eq!(heard.now(then), at(NOW + 100 + now), "{wall} {kubernetes:?}");
            assert_eq!(heard.earliest(then), at(NOW + 100 + earliest), "{wall} {kubernetes:?}");
        }
    }

    #[test]
    fn once_aws_has_answered_no_single_wrong_clock_changes_the_time() {
        // (the wall clock at AWS's answer and later, the API server's at AWS's answer and later)
        for (wall, wall_later, kubernetes, kubernetes_later) in [
            (0, 0, 0, 0),
            (13 * HOUR, 13 * HOUR, 0, 0),
            (-13 * HOUR, -13 * HOUR, 0, 0),
            (0, 13 * HOUR, 0, 0),
            (0, -13 * HOUR, 0, 0),
            (13 * HOUR, 0, 0, 0),
            (0, 0, 13 * HOUR, 13 * HOUR),
            (0, 0, 0, 13 * HOUR),
            (0, 0, 0, -13 * HOUR),
            (3 * HOUR, 3 * HOUR, -5 * HOUR, 0),
        ] {
            let mut heard = Heard::default();
            hear(&mut heard, Server::Kubernetes, (5, kubernetes, wall));
            hear(&mut heard, Server::Aws, (10, 0, wall));
            hear(&mut heard, Server::Kubernetes, (500, kubernetes_later, wall_later));
            let then = readings(1000, wall_later);
            let case = (wall, wall_later, kubernetes, kubernetes_later);
            assert_eq!(heard.now(then), at(NOW + 1000), "{case:?}");
            assert_eq!(heard.of_servers(then), heard.now(then), "{case:?}");
            assert!(heard.earliest(then) <= at(NOW + 1000), "{case:?}");
        }
    }

    #[test]
    fn a_wrong_date_of_aws_alone_drops_nothing_good_and_believes_nothing_old() {
        for (aws, wall, kubernetes) in [
            (13 * HOUR, 0, Some(0)),
            (-13 * HOUR, 0, Some(0)),
            (0, 13 * HOUR, Some(0)),
            (0, -13 * HOUR, Some(0)),
            (0, 0, Some(-13 * HOUR)),
            (0, -13 * HOUR, None),
        ] {
            let mut heard = Heard::default();
            if let Some(ahead) = kubernetes {
                hear(&mut heard, Server::Kubernetes, (5, ahead, wall));
            }
            hear(&mut heard, Server::Aws, (10, aws, wall));
            let (then, case) = (readings(1000, wall), (aws, wall, kubernetes));
            assert_eq!(heard.earliest(then), at(NOW + 1000 + aws.min(0)), "{case:?}");
            assert_eq!(heard.latest(then), at(NOW + 1000 + aws.max(0)), "{case:?}");
        }
    }

    #[test]
    fn a_machine_that_stood_still_without_counting_it_is_corrected_by_the_other_clocks() {
        let mut heard = Heard::default();
        hear(&mut heard, Server::Kubernetes, (5, 0, 0));
        hear(&mut heard, Server::Aws, (10, 0, 0));
        // Eight hours have passed that the uptime has not counted; the wall clock was set since, the API server has answered.
        hear(&mut heard, Server::Kubernetes, (20, 8 * HOUR, 8 * HOUR));
        assert_eq!(heard.now(readings(30, 8 * HOUR)), at(NOW + 30 + 8 * HOUR));
    }

    #[test]
    fn a_wrong_node_clock_is_reported_once_and_so_is_its_correction() {
        let mut heard = Heard::default();
        let mut told =
            |second, ahead| heard.hear(Server::Aws, at(NOW + second), Duration::ZERO, readings(second, ahead));
        let steps = [(10, 0), (20, HOUR), (30, HOUR), (40, 2), (50, -HOUR)].map(|(second, ahead)| told(second, ahead));
        assert_eq!(steps, [None, Some(true), None, Some(false), Some(true)]);
    }

    #[test]
    fn an_answer_that_took_too_long_or_has_no_date_tells_nothing() {
        let clock = Clock::new(|| at(NOW), || Duration::from_secs(1000));
        let date = "Wed, 20 Mar 2030 17:46:40 GMT";
        clock.hear(Server::Aws, date, Duration::from_secs(900));
        assert_eq!(clock.now(), at(NOW), "100 s later it is no news");
        for nonsense in ["", "yesterday", "Wed, 20 Mar 2030 17:46:40", "\u{0}"] {
            clock.hear(Server::Aws, nonsense, Duration::from_secs(1000));
            assert_eq!(clock.now(), at(NOW), "{nonsense:?}");
        }
        clock.hear(Server::Aws, date, Duration::from_secs(990));
        assert_eq!(clock.now(), date_of(date));
    }

    fn date_of(text: &str) -> Timestamp {
        rfc2822::DateTimeParser::new().parse_timestamp(text).unwrap()
    }

    #[tokio::test]
    async fn the_api_servers_answers_tell_the_time_unless_they_come_of_a_cache() {
        use tower::ServiceExt;
        let clock = Clock::new(|| at(NOW), || Duration::ZERO);
        let date = "Wed, 20 Mar 2030 17:46:40 GMT";
        for (age, heard) in [(Some("5"), false), (None, true)] {
            let inner = tower::service_fn(move |_: Request<()>| async move {
                let answer = Response::builder().header(DATE, date);
                age.map_or(answer, |age| Response::builder().header(DATE, date).header(AGE, age)).body(())
            });
            clock.layer().layer(inner).oneshot(Request::new(())).await.unwrap();
            assert_eq!(clock.now(), if heard { date_of(date) } else { at(NOW) }, "{age:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_one_clock_does_the_time_stays_that_of_aws(
            ahead in -100 * HOUR..100 * HOUR,
            later in -100 * HOUR..100 * HOUR,
            of_node in any::<bool>(),
            passed in 1..100 * HOUR,
        ) {
            let mut heard = Heard::default();
            let (wall, kubernetes) = if of_node { (ahead, 0) } else { (0, ahead) };
            hear(&mut heard, Server::Kubernetes, (1, kubernetes, wall));
            hear(&mut heard, Server::Aws, (1, 0, wall));
            let (wall, kubernetes) = if of_node { (later, 0) } else { (0, later) };
            hear(&mut heard, Server::Kubernetes, (1 + passed, kubernetes, wall));
            let then = readings(1 + passed, wall);
            prop_assert!((heard.now(then).duration_since(at(NOW + 1 + passed))).abs() <= TOLERANCE);
            prop_assert!(heard.earliest(then) <= heard.now(then));
        }
    }
}
