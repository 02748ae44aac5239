//! Virtual time: a wall clock over tokio's paused clock, which can jump and be wrong, and goes on across restarts.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// When every run begins: 2030-01-01T00:00:00Z.
pub const START: i64 = 1_893_456_000;

thread_local! {
    static CLOCK: Cell<Clock> = const { Cell::new(Clock { base: 0, origin: None, skew: 0 }) };
}

/// Nanoseconds; each thread has its own, for each runs one simulation at a time.
#[derive(Clone, Copy)]
struct Clock {
    base: i128,
    origin: Option<Instant>,
    skew: i128,
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
    CLOCK.set(Clock { base: i128::from(START) * 1_000_000_000, origin: None, skew: 0 });
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

/// What the operator's clock is ahead.
pub fn skew_now() -> SignedDuration {
    SignedDuration::from_nanos(i64::try_from(CLOCK.get().skew).unwrap_or(i64::MAX))
}
