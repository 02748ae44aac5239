//! The ServiceAccounts and Secrets with static keys that identities refer to, as the watches have seen them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::SpecError;
use super::namespaces::NamespaceUid;
use super::scopes::{AccountScope, Reference, SecretKey};
use crate::api::status::Reason;
use crate::encoding::{Digest, Fields};

/// The annotation of a ServiceAccount that names its role (EKS user guide, "IAM roles for service accounts").
pub const ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// The annotation of a ServiceAccount that names the audience of its tokens.
pub const AUDIENCE_ANNOTATION: &str = "eks.amazonaws.com/audience";

/// What is known of a ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// Its uid.
    pub uid: Arc<str>,
    /// When it was created.
    pub created: Timestamp,
    /// The value of [`ROLE_ANNOTATION`].
    pub role: Option<String>,
    /// The value of [`AUDIENCE_ANNOTATION`].
    pub audience: Option<String>,
}

/// What is known of a Secret with static keys. Equal digests are the same keys, whatever else changes in the Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysRecord {
    /// A digest of each value in its data, by key. The values themselves are not kept.
    pub texts: BTreeMap<String, Digest>,
}

impl KeysRecord {
    /// The record of values by key.
    pub fn of<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let digest = |text: &str| Fields::new("key/v1").text(text).finish();
        Self { texts: texts.into_iter().map(|(key, text)| (key.to_owned(), digest(text))).collect() }
    }
}

/// The identities that the operator may use besides its own, from its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedIdentities {
    /// ServiceAccounts.
    pub accounts: BTreeSet<AccountScope>,
    /// Secrets with static keys.
    pub keys: BTreeSet<SecretKey>,
}

/// All objects that identities refer to.
#[derive(Clone, Debug, Default)]
pub struct References {
    allowed: AllowedIdentities,
    /// By namespace, then by name: adding or removing a namespace must not scan those of all others.
    accounts: HashMap<Arc<str>, BTreeMap<Arc<str>, AccountRecord>>,
    keys: BTreeMap<SecretKey, KeysRecord>,
    refused_accounts: BTreeSet<AccountScope>,
    /// Why Secrets with static keys are not known.
    unread_keys: BTreeMap<SecretKey, SpecError>,
    /// The references whose changes are held back because there were too many.
    limited: BTreeSet<Reference>,
}

impl AllowedIdentities {
    /// Whether a ServiceAccount may be used; with no namespace, whether one of that name may be in some namespace.
    pub fn has_account(&self, namespace: Option<&str>, name: &str) -> bool {
        let fits = |scope: &AccountScope| {
            *scope.name == *name
                && (scope.namespace.is_none() || namespace.is_none() || scope.namespace.as_deref() == namespace)
        };
        self.accounts.iter().any(fits)
    }
}

impl References {
    /// Nothing seen yet.
    pub fn new(allowed: AllowedIdentities) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// Stores a ServiceAccount, or removes it; returns whether that is a change.
    pub fn set_account(&mut self, namespace: &str, name: &str, record: Option<AccountRecord>) -> bool {
        let Some(record) = record else { return self.remove_account(namespace, name) };
        if !self.accounts.contains_key(namespace) {
            self.accounts.insert(namespace.into(), BTreeMap::new());
        }
        let Some(accounts) = self.accounts.get_mut(namespace) else { return false };
        if accounts.get(name) == Some(&record) {
            return false;
        }
        accounts.insert(name.into(), record);
        true
    }

    fn remove_account(&mut self, namespace: &str, name: &str) -> bool {
        let Some(accounts) = self.accounts.get_mut(namespace) else { return false };
        let removed = accounts.remove(name).is_some();
        if accounts.is_empty() {
            self.accounts.remove(namespace);
        }
        removed
    }

    /// Stores a Secret with static keys, or removes it; returns whether that is a change.
    pub fn set_keys(&mut self, scope: &SecretKey, record: Option<KeysRecord>) -> bool {
        let was_unread = self.unread_keys.remove(scope).is_some();
        was_unread
            | match record {
                Some(record) if self.keys.get(scope) == Some(&record) => false,
                Some(record) => {
                    self.keys.insert(scope.clone(), record);
                    true
                }
                None => self.keys.remove(scope).is_some(),
            }
    }

    /// Records why a Secret with static keys could not be read; returns whether that is a change. A record from before is
    /// kept.
    pub fn set_keys_unread(&mut self, scope: &SecretKey, why: SpecError) -> bool {
        let is_news = !self.keys.contains_key(scope) && self.unread_keys.get(scope) != Some(&why);
        if is_news {
            self.unread_keys.insert(scope.clone(), why);
        }
        is_news
    }

    /// The namespaces in which ServiceAccounts of a scope are known.
    pub fn accounts_in(&self, scope: &AccountScope) -> Vec<Arc<str>> {
        let has = |namespace: &Arc<str>| self.accounts.get(namespace).is_some_and(|all| all.contains_key(&scope.name));
        match &scope.namespace {
            Some(namespace) => Some(namespace.clone()).filter(has).into_iter().collect(),
            None => self.accounts.keys().filter(|namespace| has(namespace)).cloned().collect(),
        }
    }

    /// Records whether ServiceAccounts of a scope may be watched; returns whether that is a change.
    pub fn set_accounts_refused(&mut self, scope: &AccountScope, refused: bool) -> bool {
        if refused { self.refused_accounts.insert(scope.clone()) } else { self.refused_accounts.remove(scope) }
    }

    /// Records that a Secret with static keys may not be watched; returns whether that is a change.
    pub fn set_keys_refused(&mut self, secret: &SecretKey) -> bool {
        let refused = || refused_by_rbac("secrets", secret.to_string(), "auth.secrets");
        !self.unread_keys.contains_key(secret) && self.set_keys_unread(secret, refused())
    }

    /// Records whether changes of an object are held back because there were too many; returns whether that is a change.
    pub fn set_limited(&mut self, reference: &Reference, limited: bool) -> bool {
        if limited { self.limited.insert(reference.clone()) } else { self.limited.remove(reference) }
    }

    /// Whether changes of an object are held back.
    pub fn is_limited(&self, reference: &Reference) -> bool {
        self.limited.contains(reference)
    }

    /// Whether changes of any object are held back.
    pub fn has_limited(&self) -> bool {
        !self.limited.is_empty()
    }

    /// What is known of a ServiceAccount, whether or not it may be used.
    pub fn known_account(&self, namespace: &str, name: &str) -> Option<&AccountRecord> {
        self.accounts.get(namespace)?.get(name)
    }

    /// Removes ServiceAccounts of an earlier namespace of the same name, whose deletion was not observed yet.
    pub fn remove_predecessors_accounts(&mut self, namespace: &str, namespace_uid: NamespaceUid) {
        if let Some(accounts) = self.accounts.get_mut(namespace) {
            accounts.retain(|_, record| !namespace_uid.is_after(record.created));
            if accounts.is_empty() {
                self.accounts.remove(namespace);
            }
        }
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
            && self.keys.is_empty()
            && self.refused_accounts.is_empty()
            && self.unread_keys.is_empty()
            && self.limited.is_empty()
    }

    /// The record of a ServiceAccount that an identity starts from.
    ///
    /// # Errors
    /// It is missing, may not be used, or may not be watched.
    pub fn account(&self, namespace: &Arc<str>, name: &Arc<str>) -> Result<&AccountRecord, SpecError> {
        if !self.allowed.has_account(Some(namespace), name) {
            return Err(account_not_allowed(Some(namespace), name));
        }
        if let Some(found) = self.accounts.get(namespace).and_then(|accounts| accounts.get(name)) {
            return Ok(found);
        }
        let scope = AccountScope { namespace: Some(namespace.clone()), name: name.clone() };
        let any = AccountScope { namespace: None, name: name.clone() };
        if let Some(refused) = [scope, any].iter().find(|scope| self.refused_accounts.contains(scope)) {
            return Err(refused_by_rbac("serviceaccounts", refused.to_string(), "auth.serviceAccounts"));
        }
        Err(SpecError {
            reason: Reason::IdentityNotFound,
            message: format!(
                "ServiceAccount {namespace}/{name} does not exist: create it, or correct auth.serviceAccount"
            ),
        })
    }

    /// The record of a Secret with static keys that an identity starts from.
    ///
    /// # Errors
    /// It is missing, may not be used, or may not be watched.
    pub fn keys(&self, scope: &SecretKey) -> Result<&KeysRecord, SpecError> {
        if !self.allowed.keys.contains(scope) {
            return Err(keys_not_allowed(scope));
        }
        if let Some(found) = self.keys.get(scope) {
            return Ok(found);
        }
        if let Some(why) = self.unread_keys.get(scope) {
            return Err(why.clone());
        }
        Err(SpecError {
            reason: Reason::IdentityNotFound,
            message: format!("Secret {scope} does not exist: create it, or correct auth.secretRef"),
        })
    }
}

/// The installation does not let the operator use a ServiceAccount.
pub fn account_not_allowed(namespace: Option<&str>, name: &str) -> SpecError {
    let (which, entry) = match namespace {
        Some(namespace) => {
            (format!("ServiceAccount {namespace}/{name}"), format!("{{namespace: {namespace}, name: {name}}}"))
        }
        None => (format!("ServiceAccounts named {name}"), format!("{{name: {name}}}")),
    };
    let message = format!(
        "the operator is not allowed to use {which}: add {entry} to the chart's auth.serviceAccounts (flag --service-account)"
    );
    SpecError { reason: Reason::AuthNotAllowed, message }
}

/// The installation does not let the operator read a Secret with static keys.
pub fn keys_not_allowed(scope: &SecretKey) -> SpecError {
    let SecretKey { namespace, name } = scope;
    let message = format!(
        "the operator is not allowed to read Secret {scope}: add {{namespace: {namespace}, name: {name}}} to the chart's auth.secrets (flag --credentials-secret)"
    );
    SpecError { reason: Reason::AuthNotAllowed, message }
}

fn refused_by_rbac(resource: &str, which: String, value: &str) -> SpecError {
    let message = format!(
        "the operator lacks permission to get, list and watch {resource} {which}: the chart grants it for the entries of {value}"
    );
    SpecError { reason: Reason::Forbidden, message }
}
