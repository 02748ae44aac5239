//! Whether a service's port is open, as wanted and as it is.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

/// Asks the listener to close or open its port and waits until it has, so that a test's next call meets what the test asked for.
pub(super) struct Gate {
    wanted_closed: watch::Sender<bool>,
    is_closed: Mutex<bool>,
    moved: Condvar,
}

/// The listener moves at once; the limit only keeps a test from hanging if the listener is gone.
const LONGEST_MOVE: Duration = Duration::from_secs(5);

impl Default for Gate {
    fn default() -> Self {
        Gate { wanted_closed: watch::Sender::new(false), is_closed: Mutex::new(false), moved: Condvar::new() }
    }
}

impl Gate {
    pub(super) fn set_closed(&self, closed: bool) {
        self.wanted_closed.send_replace(closed);
        let mut is_closed = self.is_closed.lock();
        self.moved.wait_while_for(&mut is_closed, |is_closed| *is_closed != closed, LONGEST_MOVE);
    }

    /// For the listener: what is wanted, now and later.
    pub(super) fn wanted_closed(&self) -> watch::Receiver<bool> {
        self.wanted_closed.subscribe()
    }

    /// Whether new connections are refused.
    pub(super) fn is_closed(&self) -> bool {
        *self.is_closed.lock()
    }

    /// For the listener: what it has done.
    pub(super) fn report_closed(&self, closed: bool) {
        *self.is_closed.lock() = closed;
        self.moved.notify_all();
    }
}
