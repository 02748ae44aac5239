//! A scripted AWS: it knows each token's true life, counts calls, and fails or lies as told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::Value;

use crate::clock;

/// The account that `proxyEndpoint` names.
pub const ACCOUNT: &str = "111122223333";

/// The audience of the tokens that STS takes.
const AUDIENCE: &str = "sts.amazonaws.com";

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

    /// Whether STS fails in the same way as ECR.
    const fn is_of_sts(self) -> bool {
        !self.is_answered() || matches!(self, Self::Denied | Self::Throttled | Self::Unreadable)
    }

    /// Whether the answer is good all the same.
    pub const fn is_harmless(self) -> bool {
        matches!(self, Self::TwoTokens | Self::TenYears)
    }
}

/// Whoever calls, as AWS knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// A role or a user; none is the operator's own identity.
    pub arn: Option<String>,
    /// As whose session: two ServiceAccounts may have one role.
    pub session: String,
    /// The access key id of a user.
    pub access_key: Option<String>,
}

impl Caller {
    /// The operator's own identity.
    pub fn operator() -> Self {
        Self { arn: None, session: "the operator".to_owned(), access_key: None }
    }

    /// The account that `proxyEndpoint` names.
    pub fn account(&self) -> &str {
        self.arn.as_deref().and_then(|arn| arn.split(':').nth(4)).unwrap_or(ACCOUNT)
    }

    /// What the passwords of its tokens begin with.
    fn prefix(&self) -> String {
        self.arn.as_ref().map_or(String::new(), |arn| format!("{arn}/"))
    }
}

/// A call for a token: GetAuthorizationToken, or that for the session that it needs.
#[derive(Clone, Debug)]
pub struct Call {
    pub at: Timestamp,
    pub process: u32,
    /// As whose session.
    pub session: String,
    pub key: String,
    pub failure: Option<Failure>,
}

/// A token as AWS made it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Base64 of `AWS:<password>`.
    pub text: String,
    pub caller: Caller,
    pub key: String,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Whose calls fail.
#[derive(Clone, Debug)]
enum Whose {
    All,
    /// Those for one key.
    Key(String),
    /// Those of one role or user.
    Caller(String),
}

struct State {
    calls: Vec<Call>,
    life: Duration,
    failing: Option<(Failure, Whose)>,
    /// The subjects of web identity tokens that each role trusts.
    trusted: BTreeMap<String, BTreeSet<String>>,
    /// The secret access key and the user of each access key id.
    users: BTreeMap<String, (String, String)>,
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
            trusted: BTreeMap::new(),
            users: BTreeMap::new(),
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
        state.failing = Some((failure, key.map_or(Whose::All, |key| Whose::Key(key.to_owned()))));
        if key.is_none() && !failure.is_harmless() {
            state.failures.push((clock::true_now(), Timestamp::MAX));
        }
    }

    /// From now on every call of one role or user fails so.
    pub fn fail_for(&self, failure: Failure, arn: &str) {
        self.recover();
        self.0.lock().failing = Some((failure, Whose::Caller(arn.to_owned())));
    }

    /// From now on a role trusts the tokens of a ServiceAccount.
    pub fn trust(&self, role: &str, namespace: &str, account: &str) {
        let subject = format!("system:serviceaccount:{namespace}:{account}");
        self.0.lock().trusted.entry(role.to_owned()).or_default().insert(subject);
    }

    /// From now on a role trusts nobody.
    pub fn distrust(&self, role: &str) {
        self.0.lock().trusted.remove(role);
    }

    /// From now on these are keys of a user.
    pub fn add_key(&self, id: &str, secret: &str, user: &str) {
        self.0.lock().users.insert(id.to_owned(), (secret.to_owned(), user.to_owned()));
    }

    /// From now on these keys are nobody's.
    pub fn remove_key(&self, id: &str) {
        self.0.lock().users.remove(id);
    }

    /// AssumeRoleWithWebIdentity.
    ///
    /// # Errors
    /// It fails, or the role does not trust the token: there is no session, and the call for `key` has failed.
    pub fn assume(&self, process: u32, role: &str, token: &str, key: &str) -> Result<Caller, Failure> {
        let mut state = self.0.lock();
        let claims: Value = serde_json::from_str(token).unwrap_or_default();
        let subject = claims["sub"].as_str().unwrap_or_default();
        let session = format!("{role} of {subject}");
        let caller = Caller { arn: Some(role.to_owned()), session, access_key: None };
        let is_trusted = state.trusted.get(role).is_some_and(|subjects| subjects.contains(subject));
        let is_for_us = claims["aud"].as_array().is_some_and(|all| all.iter().any(|one| one == AUDIENCE));
        let is_in_time = claims["exp"].as_i64().is_some_and(|end| clock::true_now().as_second() < end);
        let refused = (!is_trusted || !is_for_us || !is_in_time).then_some(Failure::Denied);
        match state.failure(&caller, key).filter(|failure| failure.is_of_sts()).or(refused) {
            None => Ok(caller),
            Some(failure) => {
                state.note(process, &caller, key, Some(failure));
                Err(failure)
            }
        }
    }

    /// Whose keys these are.
    ///
    /// # Errors
    /// Nobody's: the call for `key` has failed.
    pub fn user(&self, process: u32, id: &str, secret: &str, key: &str) -> Result<Caller, Failure> {
        let mut state = self.0.lock();
        let user = state.users.get(id).filter(|(known, _)| known == secret).map(|(_, user)| user.clone());
        let session = format!("{} by {id}", user.as_deref().unwrap_or("nobody"));
        let caller = Caller { session, arn: user, access_key: Some(id.to_owned()) };
        if caller.arn.is_none() {
            state.note(process, &caller, key, Some(Failure::Denied));
            return Err(Failure::Denied);
        }
        Ok(caller)
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

    /// GetAuthorizationToken: notes the call; says what becomes of it.
    pub fn call(&self, process: u32, caller: &Caller, key: &str) -> (Issued, Option<Failure>) {
        let mut state = self.0.lock();
        let now = clock::true_now();
        let is_known = caller.access_key.as_ref().is_none_or(|id| state.users.contains_key(id));
        let failure = state.failure(caller, key).or((!is_known).then_some(Failure::Denied));
        state.note(process, caller, key, failure);
        let whose = format!("{}{key}", caller.prefix());
        let count = state.counts.entry(whose.clone()).or_default();
        *count += 1;
        let text = STANDARD.encode(format!("AWS:password/{whose}/{count}"));
        let life = SignedDuration::try_from(state.life).expect("a life");
        let expires_at = now.checked_add(life).expect("a time within the run");
        let (caller, key) = (caller.clone(), key.to_owned());
        let issued = Issued { text, caller, key, issued_at: now, expires_at };
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

impl State {
    fn failure(&self, caller: &Caller, key: &str) -> Option<Failure> {
        let (failure, whose) = self.failing.as_ref()?;
        let hits = match whose {
            Whose::All => true,
            Whose::Key(only) => only == key,
            Whose::Caller(only) => Some(only) == caller.arn.as_ref(),
        };
        hits.then_some(*failure)
    }

    fn note(&mut self, process: u32, caller: &Caller, key: &str, failure: Option<Failure>) {
        let (session, key) = (caller.session.clone(), key.to_owned());
        self.calls.push(Call { at: clock::true_now(), process, session, key, failure });
    }
}

/// A token's text without its number: whose it is.
pub fn nameless(text: &str) -> String {
    let decoded = STANDARD.decode(text).unwrap_or_default();
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    decoded.rsplit_once('/').map_or(decoded.clone(), |(kind, _)| kind.to_owned())
}
