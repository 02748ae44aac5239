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

/// A Secret with static keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeysScope {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
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

/// A Secret whose docker config may be included, from the command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncludeScope {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for IncludeScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for AccountScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.as_deref().unwrap_or("*"), self.name)
    }
}

impl fmt::Display for KeysScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A reference from a spec to objects in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// ServiceAccounts.
    Account(AccountScope),
    /// A Secret with static keys.
    Keys(KeysScope),
    /// An included docker config.
    Include(IncludeScope),
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
        let keys = auth.secret_ref.as_ref();
        let keys =
            keys.map(|keys| KeysScope { namespace: keys.namespace.as_str().into(), name: keys.name.as_str().into() });
        account.map(Self::Account).or(keys.map(Self::Keys))
    }
}

/// The kind and the name, for people.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(scope) => write!(f, "ServiceAccount {scope}"),
            Self::Keys(scope) => write!(f, "Secret {scope}"),
            Self::Include(scope) => write!(f, "Secret {scope}"),
        }
    }
}
