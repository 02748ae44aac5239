//! Admission webhooks of others, which by chance refuse with any status code, add labels and annotations, or take their time.

use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::answer::Answer;
use super::request::{Kind, Request};

/// The status codes that webhooks refuse with. Some of them mean something else when the API server itself says them, and some are no
/// error in HTTP: the API server passes on whatever code a webhook gives.
const CODES: [u16; 16] = [302, 400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504, 600, 700, 999];

/// The longest that a webhook takes, in milliseconds: less than the 30 s that the API server allows for one.
const SLOWEST: u64 = 25_000;

/// See the file's first line. Nothing is reviewed at first.
#[derive(Default)]
pub(super) struct Admission(Mutex<Option<fastrand::Rng>>);

/// What webhooks make of a request.
pub(super) struct Review {
    /// How long they take.
    pub(super) time: Duration,
    pub(super) refusal: Option<Answer>,
    /// What they merge into the object; null for nothing.
    pub(super) patch: Value,
}

impl Review {
    /// Whether the request passes as if there were no webhook.
    pub(super) fn is_harmless(&self) -> bool {
        self.time.is_zero() && self.refusal.is_none() && self.patch.is_null()
    }
}

impl Admission {
    /// From now on every write of a Secret or a status is reviewed.
    pub(super) fn begin(&self, random: fastrand::Rng) {
        *self.0.lock() = Some(random);
    }

    pub(super) fn end(&self) {
        *self.0.lock() = None;
    }

    pub(super) fn review(&self, request: &Request) -> Option<Review> {
        let mut random = self.0.lock();
        let reviewed = request.is_mutation() && matches!(request.target.kind, Kind::Secret | Kind::Credential);
        let random = random.as_mut().filter(|_| reviewed)?;
        let mut one_of = |number: u8| random.u8(0..number) == 0;
        let (slow, refuses, changes) = (one_of(5), one_of(3), one_of(3));
        let time = if slow { Duration::from_millis(random.u64(0..SLOWEST)) } else { Duration::ZERO };
        let refusal = refuses.then(|| Answer::denied(CODES[random.usize(0..CODES.len())]));
        let patch = if changes && request.is_apply() { patch(random.u8(..)) } else { Value::Null };
        Some(Review { time, refusal, patch })
    }
}

fn patch(number: u8) -> Value {
    json!({ "metadata": {
        "labels": { "webhook.example.com/seen": "yes" },
        "annotations": { "webhook.example.com/number": number.to_string() },
    } })
}
