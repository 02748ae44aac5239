//! A scripted AWS: it knows each token's true life, counts calls, and fails or lies as told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::clock;

/// The account that `proxyEndpoint` names.
pub const ACCOUNT: &str = "111122223333";

/// How AWS fails or lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    NoCredentials,
    Denied,
    Throttled,
    Unavailable,
    Unreadable,
    /// Silence until the operator's own limit, and then unavailable.
    Hangs,
    /// The task that fetches dies.
    Panics,
    Empty,
    NoToken,
    NoExpiry,
    NoAccount,
    NotBase64,
    NotUtf8,
    NoColon,
    WrongUser,
    EmptyPassword,
    Huge,
    Expired,
    NearlyExpired,
    TwoTokens,
    TenYears,
}

impl Failure {
    pub const ALL: [Self; 21] = [
        Self::NoCredentials,
        Self::Denied,
        Self::Throttled,
        Self::Unavailable,
        Self::Unreadable,
        Self::Hangs,
        Self::Panics,
        Self::Empty,
        Self::NoToken,
        Self::NoExpiry,
        Self::NoAccount,
        Self::NotBase64,
        Self::NotUtf8,
        Self::NoColon,
        Self::WrongUser,
        Self::EmptyPassword,
        Self::Huge,
        Self::Expired,
        Self::NearlyExpired,
        Self::TwoTokens,
        Self::TenYears,
    ];

    /// Whether AWS answers, though with nothing good.
    pub const fn is_answered(self) -> bool {
        !matches!(self, Self::NoCredentials | Self::Unavailable | Self::Hangs | Self::Panics)
    }

    /// Whether the answer is good all the same.
    pub const fn is_harmless(self) -> bool {
        matches!(self, Self::TwoTokens | Self::TenYears)
    }
}

/// A call of GetAuthorizationToken.
#[derive(Clone, Debug)]
pub struct Call {
    pub at: Timestamp,
    pub process: u32,
    pub key: String,
    pub failure: Option<Failure>,
}

/// A token as AWS made it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Base64 of `AWS:<password>`.
    pub text: String,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

struct State {
    calls: Vec<Call>,
    life: Duration,
    failing: Option<(Failure, Option<String>)>,
    /// When it failed for all keys.
    failures: Vec<(Timestamp, Timestamp)>,
    issued: Vec<Issued>,
    counts: BTreeMap<String, u32>,
}

/// See the file's first line. Clones are the same.
#[derive(Clone)]
pub struct Aws(Arc<Mutex<State>>);

impl Default for Aws {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            calls: Vec::new(),
            life: Duration::from_secs(12 * 3600),
            failing: None,
            failures: Vec::new(),
            issued: Vec::new(),
            counts: BTreeMap::new(),
        })))
    }
}

impl Aws {
    /// From now on every call fails so, or those for one key.
    pub fn fail(&self, failure: Failure, key: Option<&str>) {
        self.recover();
        let mut state = self.0.lock();
        state.failing = Some((failure, key.map(str::to_owned)));
        if key.is_none() && !failure.is_harmless() {
            state.failures.push((clock::true_now(), Timestamp::MAX));
        }
    }

    pub fn recover(&self) {
        let mut state = self.0.lock();
        state.failing = None;
        let now = clock::true_now();
        if let Some(last) = state.failures.last_mut().filter(|(_, until)| *until == Timestamp::MAX) {
            last.1 = now;
        }
    }

    /// How long the tokens live that are issued from now on.
    pub fn set_life(&self, life: Duration) {
        self.0.lock().life = life;
    }

    /// Notes a call; says what becomes of it.
    pub fn call(&self, process: u32, key: &str) -> (Issued, Option<Failure>) {
        let mut state = self.0.lock();
        let now = clock::true_now();
        let failing = state.failing.clone().filter(|(_, only)| only.as_ref().is_none_or(|only| only == key));
        let failure = failing.map(|(failure, _)| failure);
        state.calls.push(Call { at: now, process, key: key.to_owned(), failure });
        let count = state.counts.entry(key.to_owned()).or_default();
        *count += 1;
        let text = STANDARD.encode(format!("AWS:password/{key}/{count}"));
        let life = SignedDuration::try_from(state.life).expect("a life");
        let expires_at = now.checked_add(life).expect("a time within the run");
        let issued = Issued { text, issued_at: now, expires_at };
        state.issued.push(issued.clone());
        (issued, failure)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().calls.clone()
    }

    /// Every token that it made.
    pub fn issued(&self) -> Vec<Issued> {
        self.0.lock().issued.clone()
    }

    /// From when until when it failed for every key.
    pub fn failures(&self) -> Vec<(Timestamp, Timestamp)> {
        self.0.lock().failures.clone()
    }
}

/// A token's text without its number: whose it is.
pub fn nameless(text: &str) -> String {
    let decoded = STANDARD.decode(text).unwrap_or_default();
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    decoded.rsplit_once('/').map_or(decoded.clone(), |(kind, _)| kind.to_owned())
}
