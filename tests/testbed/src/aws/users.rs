//! IAM users with their long-lived keys, and sessions that somebody else started: what static keys in a Secret are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rand::distr::{Alphanumeric, SampleString};

use super::credentials::{self, Credential, Principal};
use super::iam::{Permissions, Refusal};
use super::sts::{Extras, NewSession, start_session};
use super::{AwsStandIn, Inner};

/// IAM lets a user have two keys, so that one can be replaced by the other.
const KEYS_PER_USER: usize = 2;

/// Keys as they stand in a Secret: a user's, or with a session token those of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKey {
    /// `AKIA...` of a user, `ASIA...` of a session.
    pub id: String,
    pub secret: String,
    pub session_token: Option<String>,
}

/// What each user may do, by ARN.
#[derive(Default)]
pub(super) struct Users(Mutex<BTreeMap<String, Permissions>>);

impl Users {
    pub(super) fn check(&self, arn: &str, action: &str) -> Result<(), Refusal> {
        self.0.lock().get(arn).map_or(Err(Refusal::NotAllowed), |permissions| permissions.check(action))
    }

    /// Whether there is such a user.
    pub(super) fn set_permissions(&self, arn: &str, permissions: &Permissions) -> bool {
        self.0.lock().get_mut(arn).map(|user| *user = permissions.clone()).is_some()
    }

    fn add(&self, arn: &str, permissions: Permissions) {
        self.0.lock().insert(arn.to_owned(), permissions);
    }
}

impl AwsStandIn {
    /// Adds `arn:aws:iam::ACCOUNT:user/testbed` with a long-lived key and the rights to pull and to assume roles.
    pub fn add_user(&self, access_key: &str, secret_key: &str, account: &str) {
        let arn = format!("arn:aws:iam::{account}:user/testbed");
        self.add_user_with(access_key, secret_key, &arn, Permissions::pull());
    }

    pub fn add_user_with(&self, access_key: &str, secret_key: &str, arn: &str, permissions: Permissions) {
        self.inner.users.add(arn, permissions);
        add_key(&self.inner, arn, access_key, secret_key);
    }

    /// Adds a user, `arn:aws:iam::123456789012:user/puller`, that has no key yet.
    pub fn create_user(&self, arn: &str, permissions: Permissions) {
        self.inner.users.add(arn, permissions);
    }

    /// A new key of a user, who may have two at a time.
    pub fn create_access_key(&self, user_arn: &str) -> Result<AccessKey> {
        let keys = self.inner.credentials.all();
        let own = keys.iter().filter(|key| key.principal.arn == user_arn);
        ensure!(
            own.count() < KEYS_PER_USER,
            "LimitExceeded: Cannot exceed quota for AccessKeysPerUser: {KEYS_PER_USER}"
        );
        let id = format!("AKIA{}", credentials::upper_id(16));
        let secret = Alphanumeric.sample_string(&mut rand::rng(), 40);
        add_key(&self.inner, user_arn, &id, &secret);
        Ok(AccessKey { id, secret, session_token: None })
    }

    /// Deactivates a key, or activates it again: AWS does not know an inactive one.
    pub fn set_access_key_active(&self, id: &str, active: bool) {
        self.inner.credentials.set_active(id, active);
    }

    pub fn delete_access_key(&self, id: &str) {
        self.inner.credentials.remove(id);
    }

    /// A session of a role that somebody started elsewhere and handed on.
    pub fn start_session(&self, role_arn: &str, name: &str, life: Duration) -> Result<AccessKey> {
        let role = self.inner.roles.lock().get(role_arn).cloned().with_context(|| format!("there is no {role_arn}"))?;
        let life = jiff::SignedDuration::try_from(life)?;
        let new = NewSession { role: &role, name, life, policy: None, extras: Extras::default() };
        let session = start_session(&self.inner, new).map_err(|error| anyhow::anyhow!("{}", error.message))?;
        let (id, secret) = (session.access_key.clone(), session.secret_key.clone());
        Ok(AccessKey { id, secret, session_token: session.session_token.clone() })
    }
}

fn add_key(inner: &Inner, user_arn: &str, access_key: &str, secret_key: &str) {
    let (partition, account) = credentials::partition_and_account(user_arn).unwrap_or_default();
    let user_id = format!("AIDA{}", credentials::upper_id(17));
    inner.credentials.add(Credential {
        access_key: access_key.to_owned(),
        secret_key: secret_key.to_owned(),
        session_token: None,
        issued: inner.clock.now(),
        expires: None,
        principal: Principal { arn: user_arn.to_owned(), account, partition, user_id, role: None, session_name: None },
        policy: None,
        chain: Vec::new(),
        external_id: None,
        tags: BTreeMap::new(),
        transitive_tags: BTreeSet::new(),
        source_identity: None,
    });
}
