//! The log of every call that the stand-in answered, and a way to await the next one.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ApiHost, Service};

/// One call and what became of it.
#[derive(Clone, Debug)]
pub struct Call {
    pub service: Service,
    /// The host of AWS that was called; none where the call came to the stand-in's own port.
    pub host: Option<ApiHost>,
    /// `GetAuthorizationToken`, or `-` where the request named none.
    pub api: String,
    /// The region of the signature's scope; none where the call was not signed.
    pub region: Option<String>,
    /// The ARN of the caller's role, or of the role that a web identity asked for.
    pub role: Option<String>,
    /// The caller's ARN, `arn:aws:sts::123456789012:assumed-role/pull/session`; none where it is not known.
    pub principal: Option<String>,
    pub account: Option<String>,
    /// The role that AssumeRole or AssumeRoleWithWebIdentity asked for.
    pub assumes: Option<String>,
    /// By the stand-in's clock.
    pub at: Timestamp,
    /// When it came, in real time.
    pub received: Instant,
    /// `OK`, the error code of the answer, or `-` where none was sent.
    pub code: String,
    /// The fault that shaped the answer.
    pub fault: Option<String>,
}

/// A place in the log: how many calls are before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(pub usize);

/// Calls by (principal, region, API).
pub type CallCounts = BTreeMap<(String, String, String), usize>;

pub(super) struct Calls {
    log: Mutex<Vec<Call>>,
    length: watch::Sender<usize>,
}

impl Default for Calls {
    fn default() -> Self {
        Calls { log: Mutex::default(), length: watch::Sender::new(0) }
    }
}

impl Calls {
    pub(super) fn record(&self, call: Call) {
        let length = {
            let mut log = self.log.lock();
            log.push(call);
            log.len()
        };
        self.length.send_replace(length);
    }

    pub(super) fn since(&self, mark: Mark) -> Vec<Call> {
        self.log.lock().get(mark.0..).unwrap_or_default().to_vec()
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.log.lock().len())
    }

    /// Returns once `done` holds for the whole log; looks again after each call.
    pub(super) async fn wait_until(&self, done: impl Fn(&[Call]) -> bool) {
        let mut length = self.length.subscribe();
        // The sender lives as long as `self`, so this ends only by `done`.
        let _ = length.wait_for(|_| done(&self.log.lock())).await;
    }
}

/// How often each (principal, region, API) is in `calls`; unknown parts are `-`.
pub fn count_calls(calls: &[Call]) -> CallCounts {
    let mut counts = CallCounts::new();
    for call in calls {
        let known = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".to_owned());
        let api = format!("{}:{}", call.service.signing_name(), call.api);
        *counts.entry((known(&call.principal), known(&call.region), api)).or_default() += 1;
    }
    counts
}
