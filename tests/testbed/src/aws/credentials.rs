//! Access keys: those of configured users, and those of the sessions that the stand-in's STS issued.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rand::RngExt;
use rand::distr::{Alphanumeric, SampleString};

use super::policy::SessionPolicy;

/// Who stands behind an access key.
#[derive(Clone, Debug)]
pub struct Principal {
    /// `arn:aws:sts::123456789012:assumed-role/pull/session` or `arn:aws:iam::123456789012:user/name`.
    pub arn: String,
    pub account: String,
    pub partition: String,
    pub user_id: String,
    /// The role behind a session.
    pub role: Option<String>,
    /// The session's own name.
    pub session_name: Option<String>,
}

/// An access key with everything that hangs on it.
#[derive(Clone, Debug)]
pub struct Credential {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
    pub issued: Timestamp,
    pub expires: Option<Timestamp>,
    pub principal: Principal,
    pub(super) policy: Option<SessionPolicy>,
    /// The ARNs of the callers from whom a session comes by role chaining, the first of them first.
    pub chain: Vec<String>,
    /// The external id that a session was asked for with.
    pub external_id: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// The keys of those tags that go on to further sessions.
    pub transitive_tags: BTreeSet<String>,
    pub source_identity: Option<String>,
}

#[derive(Default)]
pub(super) struct Credentials {
    by_access_key: Mutex<BTreeMap<String, Arc<Credential>>>,
    inactive: Mutex<BTreeSet<String>>,
    /// Those that are no longer known too: what they were must stay secret.
    ever: Mutex<Vec<Arc<Credential>>>,
}

impl Credential {
    /// The session policy as it was sent.
    pub fn session_policy(&self) -> Option<&str> {
        self.policy.as_ref().map(SessionPolicy::text)
    }
}

impl Credentials {
    pub(super) fn add(&self, credential: Credential) -> Arc<Credential> {
        let credential = Arc::new(credential);
        self.by_access_key.lock().insert(credential.access_key.clone(), credential.clone());
        self.ever.lock().push(credential.clone());
        credential
    }

    /// The key, unless it is inactive.
    pub(super) fn find(&self, access_key: &str) -> Option<Arc<Credential>> {
        if self.inactive.lock().contains(access_key) {
            return None;
        }
        self.by_access_key.lock().get(access_key).cloned()
    }

    pub(super) fn ever(&self) -> Vec<Arc<Credential>> {
        self.ever.lock().clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<Credential>> {
        self.by_access_key.lock().values().cloned().collect()
    }

    pub(super) fn set_active(&self, access_key: &str, active: bool) {
        let mut inactive = self.inactive.lock();
        match active {
            true => inactive.remove(access_key),
            false => inactive.insert(access_key.to_owned()),
        };
    }

    pub(super) fn remove(&self, access_key: &str) {
        self.by_access_key.lock().remove(access_key);
    }

    pub(super) fn revoke_sessions(&self) {
        self.by_access_key.lock().retain(|_, credential| credential.session_token.is_none());
    }
}

/// The access key id, secret key and session token of a new session, in the shapes that real ones have.
pub(super) fn new_session_keys() -> (String, String, String) {
    let random = |length| Alphanumeric.sample_string(&mut rand::rng(), length);
    let access_key = format!("ASIA{}", upper_id(16));
    let token = format!("IQoJb3JpZ2luX2VjE{}//////////wEaCXVzLWVhc3QtMSJ{}==", random(6), random(640));
    (access_key, random(40), token)
}

/// An id of upper-case letters and the digits 2 to 7, as in access keys and role ids.
pub(super) fn upper_id(length: usize) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut rng = rand::rng();
    (0..length).map(|_| LETTERS[rng.random_range(0..LETTERS.len())] as char).collect()
}

/// The partition and account in an ARN.
pub(super) fn partition_and_account(arn: &str) -> Option<(String, String)> {
    let mut parts = arn.split(':');
    let (prefix, partition, _, _, account) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    (prefix == "arn" && digits).then(|| (partition.to_owned(), account.to_owned()))
}
