//! What an operator of a run may do, and how much late a judge must let it be.

use std::time::Duration;

use crate::hosts::Defaults;

/// What one process was told by its flags and by its surroundings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The names of the Secrets that it may write.
    pub secret_names: Vec<String>,
    /// The only namespaces that it may write to; `None` is all.
    pub namespaces: Option<Vec<String>>,
    /// What the EcrCredentials leave out.
    pub defaults: Defaults,
}

impl Settings {
    pub fn allows(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|all| all.iter().any(|allowed| allowed == namespace))
    }
}

/// What belongs to one test, of a control plane that others may use at the same time.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The settings of each process of the run, or the one that all had.
    pub settings: Vec<Settings>,
    /// The EcrCredentials of the test have names that begin with this.
    pub credential_prefix: String,
    /// Namespace and name of the operator's Lease; without it every write to a Lease is out of scope.
    pub lease: Option<(String, String)>,
    /// The audiences of tokens that the API server itself accepts.
    pub api_audiences: Vec<String>,
    /// How old the state may be that the operator acts on.
    pub staleness: Duration,
    /// How much later than the operator the judge's own watches may see a change.
    pub lag: Duration,
    /// How long what an EcrCredential leaves may take to be collected.
    pub collection: Duration,
    /// What a status says at the end is judged only if nothing has changed for this long.
    pub calm: Duration,
}

impl Scope {
    /// That of a test on a real API server, which settles before it is judged.
    pub fn new<S: Into<String>>(
        secret_names: impl IntoIterator<Item = S>,
        credential_prefix: impl Into<String>,
    ) -> Scope {
        let secret_names = secret_names.into_iter().map(Into::into).collect();
        Scope {
            settings: vec![Settings { secret_names, ..Settings::default() }],
            credential_prefix: credential_prefix.into(),
            lease: None,
            api_audiences: vec![],
            staleness: Duration::from_secs(10),
            lag: Duration::from_secs(2),
            collection: Duration::ZERO,
            calm: Duration::ZERO,
        }
    }

    /// Whether some process was allowed to write a Secret of this name in this namespace.
    pub fn may_write(&self, namespace: &str, name: &str) -> bool {
        let may = |settings: &Settings| settings.secret_names.iter().any(|n| n == name) && settings.allows(namespace);
        self.settings.iter().any(may)
    }
}
