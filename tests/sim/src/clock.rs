//! Virtual time: a wall clock over tokio's paused clock, which can jump and be wrong, and goes on across restarts.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// When every run begins: 2030-01-01T00:00:00Z.
pub const START: i64 = 1_893_456_000;

thread_local! {
    static CLOCK: Cell<Clock> = const { Cell::new(Clock { base: 0, origin: None, skew: 0, uncounted: 0, api_server: 0 }) };
}

/// Nanoseconds; each thread has its own, for each runs one simulation at a time.
#[derive(Clone, Copy)]
struct Clock {
    base: i128,
    origin: Option<Instant>,
    skew: i128,
    /// How long the machine stood still without its own clocks going on.
    uncounted: i128,
    /// What the API server's clock is ahead.
    api_server: i128,
}

impl Clock {
    fn elapsed(&self) -> i128 {
        self.origin.map_or(0, |origin| as_nanos(Instant::now().saturating_duration_since(origin)))
    }
}

fn as_nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

/// Sets the clock of this thread to the beginning of a run.
pub fn reset() {
    CLOCK.set(Clock { base: i128::from(START) * 1_000_000_000, origin: None, skew: 0, uncounted: 0, api_server: 0 });
}

/// Binds the clock to the runtime that is entered: its paused time moves it from now on. Outside of a runtime tokio's clock
/// is the real one, so this holds for one `block_on`.
pub fn bind() {
    let clock = CLOCK.get();
    CLOCK.set(Clock { origin: Some(Instant::now()), ..clock });
}

/// Unbinds the clock from the runtime; it stands still until [`bind`].
pub fn unbind() {
    let clock = CLOCK.get();
    CLOCK.set(Clock { base: clock.base + clock.elapsed(), origin: None, ..clock });
}

/// The true time: the API server's and AWS's.
pub fn true_now() -> Timestamp {
    let clock = CLOCK.get();
    Timestamp::from_nanosecond(clock.base + clock.elapsed()).expect("a time within the run")
}

/// The time by the operator's clock.
pub fn operator_now() -> Timestamp {
    let clock = CLOCK.get();
    Timestamp::from_nanosecond(clock.base + clock.elapsed() + clock.skew).expect("a time within the run")
}

/// The same, as the fence reads it.
pub fn system_now() -> SystemTime {
    SystemTime::from(operator_now())
}

/// The time since the run began, asleep or not: what no setting of the clock changes.
pub fn uptime() -> Duration {
    let clock = CLOCK.get();
    let passed = clock.base + clock.elapsed() - clock.uncounted - i128::from(START) * 1_000_000_000;
    Duration::from_nanos(u64::try_from(passed).unwrap_or_default())
}

/// The machine sleeps: the time goes on, and no timer with it.
pub fn sleep_machine(duration: Duration) {
    let clock = CLOCK.get();
    CLOCK.set(Clock { base: clock.base + as_nanos(duration), ..clock });
}

/// From now on the operator's clock is ahead by this; negative is behind.
pub fn skew(by: SignedDuration) {
    let clock = CLOCK.get();
    CLOCK.set(Clock { skew: by.as_nanos(), ..clock });
}

/// The machine stands still as a virtual one does: neither a timer nor any clock of its own goes on.
pub fn pause_machine(duration: Duration) {
    let (clock, passed) = (CLOCK.get(), as_nanos(duration));
    let uncounted = clock.uncounted + passed;
    CLOCK.set(Clock { base: clock.base + passed, uncounted, skew: clock.skew - passed, ..clock });
}

/// From now on the API server's clock is ahead by this; negative is behind.
pub fn skew_api_server(by: SignedDuration) {
    let clock = CLOCK.get();
    CLOCK.set(Clock { api_server: by.as_nanos(), ..clock });
}

/// The time by the API server's clock, as the header of an answer.
pub fn api_server_date() -> String {
    let clock = CLOCK.get();
    date(clock.base + clock.elapsed() + clock.api_server)
}

/// AWS's time, as the header of an answer.
pub fn aws_date() -> String {
    let clock = CLOCK.get();
    date(clock.base + clock.elapsed())
}

fn date(nanos: i128) -> String {
    let time = Timestamp::from_nanosecond(nanos).expect("a time within the run");
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
