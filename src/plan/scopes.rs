//! The ServiceAccounts and Secrets that a spec or the command line names.

use std::fmt;
use std::sync::Arc;

use crate::api::{self, OutputFormat};

/// ServiceAccounts of one name, in one namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountScope {
    /// The namespace; none for any.
    pub namespace: Option<Arc<str>>,
    /// The name.
    pub name: Arc<str>,
}

/// A Secret. In an ordered set those of one namespace stand together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl SecretKey {
    /// The key of a Secret with that name.
    pub fn new(name: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One watch of Secrets, as narrow as the rights allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretScope {
    /// Only Secrets of this name.
    pub name: Option<Arc<str>>,
    /// Only Secrets in this namespace.
    pub namespace: Option<Arc<str>>,
}

impl SecretScope {
    /// Whether a Secret is in this scope.
    pub fn contains(&self, key: &SecretKey) -> bool {
        self.has(Some(&key.name), Some(&key.namespace))
    }

    /// Whether each Secret in another scope is in this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.has(other.name.as_ref(), other.namespace.as_ref())
    }

    fn has(&self, name: Option<&Arc<str>>, namespace: Option<&Arc<str>>) -> bool {
        let within = |outer: Option<&Arc<str>>, inner| outer.is_none() || outer == inner;
        within(self.name.as_ref(), name) && within(self.namespace.as_ref(), namespace)
    }
}

/// An output that `EcrCredentials` may ask for, from the command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputScope {
    /// The namespace; none for every target namespace.
    pub namespace: Option<Arc<str>>,
    /// The Secret's name.
    pub name: Arc<str>,
    /// The format.
    pub format: OutputFormat,
}

impl fmt::Display for AccountScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.as_deref().unwrap_or("*"), self.name)
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for SecretScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |part: &Option<Arc<str>>| part.clone().unwrap_or_else(|| "*".into());
        write!(f, "{}/{}", any(&self.namespace), any(&self.name))
    }
}

/// A reference from a spec to objects in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// ServiceAccounts.
    Account(AccountScope),
    /// A Secret with static keys.
    Keys(SecretKey),
    /// An included docker config.
    Include(SecretKey),
}

impl Reference {
    /// The reference in an `auth` of a spec, whether or not the rest of it is valid.
    pub fn of(auth: &api::Auth) -> Option<Self> {
        let account = auth.service_account.as_ref().and_then(|account| match &account.from_target_namespace {
            Some(name) => Some(AccountScope { namespace: None, name: name.as_str().into() }),
            None => Some(AccountScope {
                namespace: Some(account.namespace.as_deref()?.into()),
                name: account.name.as_deref()?.into(),
            }),
        });
        let keys = auth.secret_ref.as_ref().map(|keys| SecretKey::new(keys.name.as_str(), keys.namespace.as_str()));
        account.map(Self::Account).or(keys.map(Self::Keys))
    }
}

/// The kind and the name, for people.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(scope) => write!(f, "ServiceAccount {scope}"),
            Self::Keys(secret) | Self::Include(secret) => write!(f, "Secret {secret}"),
        }
    }
}
