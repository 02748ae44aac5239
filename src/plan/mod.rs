//! What should be true: the spec as checked values, without a client, a clock or a token.

pub mod auth;
pub mod namespaces;
pub mod outputs;
pub mod references;
pub mod refresh;
mod registries;
pub mod schedule;
pub mod scopes;
pub mod targets;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::registry::{AccountId, Host, NameError, Region};
use crate::api::status::Reason;
use crate::api::{self, ConflictPolicy, DeletionPolicy, EcrCredentialSpec, HostVariant};
use auth::AuthPlan;
use namespaces::{NamespaceMatcher, SelectionError};
use outputs::SecretPlan;
use references::AllowedIdentities;
use scopes::{IncludeScope, OutputScope};
use targets::SelectorIndex;

pub use auth::Identity;
pub use registries::host_taken;

/// The bounds of `refresh.maxAge` as the CRD says them.
const SHORTEST_MAX_AGE: Duration = Duration::from_secs(60);
const LONGEST_MAX_AGE: Duration = Duration::from_secs(12 * 3600);

/// The uid of an object, shared between everything that names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub Arc<str>);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which API issues a token, and for what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Private ECR in a region. `registry_ids` is empty unless the spec asks to send them.
    Private {
        /// The region whose API is called.
        region: Region,
        /// Which host of the API is called.
        endpoint: HostVariant,
        /// What is sent as `registryIds`: at most 10.
        registry_ids: Vec<AccountId>,
    },
    /// ECR Public.
    Public,
}

/// What a registry needs: a token, by what the spec says of it. It stays the same when the identity behind it changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenSpec {
    /// Whose identity fetches it.
    pub auth: Arc<AuthPlan>,
    /// Which API issues it.
    pub service: Service,
}

/// Everything that distinguishes one token from another; the key of the token cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    /// Whose identity fetches it.
    pub identity: Identity,
    /// Which API issues it.
    pub service: Service,
}

impl Service {
    /// The name of the API, in metrics, log lines and reports.
    pub const fn api(&self) -> &'static str {
        match self {
            Self::Private { .. } => "ecr",
            Self::Public => "ecr-public",
        }
    }

    /// The region whose API issues the token.
    pub fn region(&self) -> Region {
        match self {
            Self::Private { region, .. } => region.clone(),
            Self::Public => Region::public(),
        }
    }
}

/// The hosts that one registry entry writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Known beforehand: each host with the account that it belongs to, if it is an account's own.
    Named(Vec<(Host, Option<AccountId>)>),
    /// The caller's own account, known only from the API's answer.
    Callers {
        /// The region of the hosts.
        region: Region,
        /// The families of hosts.
        variants: Vec<HostVariant>,
        /// Further hosts.
        extra: Vec<Host>,
    },
}

impl Hosts {
    /// The hosts, given the account that the API's answer names.
    ///
    /// # Errors
    /// The partition lacks a variant; the account is needed and unknown.
    pub fn resolve(&self, caller: Option<&AccountId>) -> Result<Vec<(Host, Option<AccountId>)>, HostsError> {
        match self {
            Self::Named(hosts) => Ok(hosts.clone()),
            Self::Callers { region, variants, extra } => {
                let account = caller.ok_or(HostsError::UnknownCaller)?;
                let mut hosts = Vec::with_capacity(variants.len() + extra.len());
                for variant in variants {
                    hosts.push((region.registry_host(account, *variant)?, Some(account.clone())));
                }
                hosts.extend(extra.iter().map(|h| (h.clone(), None)));
                Ok(hosts)
            }
        }
    }
}

/// Why the hosts of a registry cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// The answer had no `proxyEndpoint` of an ECR registry.
    #[error("the response of ECR names no account: set accountIds")]
    UnknownCaller,
    /// The partition has no such hosts.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// One registry entry of the spec, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPlan {
    /// The region whose API issues its tokens, if it is known.
    pub region: Option<Region>,
    /// The tokens it needs: one, or one for each ten account ids when these are sent; none where nothing can be done for it.
    pub needs: Vec<TokenSpec>,
    /// The hosts it writes.
    pub hosts: Hosts,
    /// Whether its entries are removed once expired: an expired entry breaks pulls that work anonymously.
    pub anonymous_works: bool,
    /// What is wrong with the entry. Whatever else it asks for is done.
    pub problem: Option<SpecError>,
    /// Whether it may have hosts that are not in `hosts`, because of the problem: an existing Secret may have their logins.
    pub lacks_hosts: bool,
}

impl RegistryPlan {
    /// Whether each target namespace has a token of its own for it.
    pub fn is_each_targets(&self) -> bool {
        self.needs.iter().any(|need| need.auth.is_each_targets())
    }

    /// Why no token is fetched for it, if that is plain from the spec and the installation.
    pub fn refusal(&self) -> Option<&SpecError> {
        let problem = self.problem.as_ref().filter(|_| self.needs.is_empty());
        problem.or_else(|| self.needs.iter().find_map(|need| need.auth.refusal()))
    }
}

/// The spec as checked values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One for each of `spec.registries`, in the same order.
    pub registries: Vec<RegistryPlan>,
    /// The pull secret.
    pub secret: SecretPlan,
    /// One for each of `spec.outputs`, in the same order.
    pub outputs: Vec<SecretPlan>,
    /// The docker configs of others that are merged into ours, in order.
    pub includes: Vec<IncludeScope>,
    /// What happens to Secrets that are not ours.
    pub conflict_policy: ConflictPolicy,
    /// Whether the garbage collector removes the Secrets with the `EcrCredential`.
    pub deletion_policy: DeletionPolicy,
    /// When passwords are replaced.
    pub refresh: schedule::RefreshPolicy,
}

impl Plan {
    /// The tokens that all registries need, each once.
    pub fn needs(&self) -> BTreeSet<&TokenSpec> {
        self.registries.iter().flat_map(|r| &r.needs).collect()
    }

    /// Every Secret: the pull secret, then the outputs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretPlan> {
        std::iter::once(&self.secret).chain(&self.outputs)
    }

    /// The Secret of a name.
    pub fn secret_named(&self, name: &str) -> Option<&SecretPlan> {
        self.secrets().find(|secret| *secret.name == *name)
    }

    /// Whether some registry has a token of its own for each target namespace.
    pub fn has_tenants(&self) -> bool {
        self.registries.iter().any(RegistryPlan::is_each_targets)
    }
}

/// What the operator was started with, as far as plans depend on it.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The operator's own region, for entries without one.
    pub region: Option<Region>,
    /// The Secret names that may be written; `None` for any.
    pub secret_names: Option<BTreeSet<Arc<str>>>,
    /// The outputs that may be written; `None` for any.
    pub outputs: Option<BTreeSet<OutputScope>>,
    /// The docker configs of others that may be read.
    pub includes: BTreeSet<IncludeScope>,
    /// The namespaces that may be written; `None` for any.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// Whose identities may be used besides the operator's own.
    pub lent: AllowedIdentities,
    /// Whether the policy that attaches Secrets to pods is installed.
    pub attach_pods: bool,
    /// The names of ServiceAccounts to which Secrets may be attached.
    pub attach_service_accounts: BTreeSet<Arc<str>>,
    /// Whether a host of the ECR API is set for all calls, so that no entry can choose another.
    pub fixed_api: bool,
}

impl Limits {
    /// An index that selects only where Secrets may be written.
    pub fn index(&self) -> SelectorIndex {
        let outputs = self.outputs.iter().flatten();
        let placed = outputs.filter_map(|scope| Some((scope.name.clone(), scope.namespace.clone()?)));
        SelectorIndex::new(self.namespaces.clone()).with_outputs(placed.collect())
    }
}

/// Why nothing is done for an `EcrCredential`, or for one of its registries, until somebody changes it or the installation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecError {
    /// The reason for the conditions.
    pub reason: Reason,
    /// What is wrong and what to change.
    pub message: String,
}

impl SpecError {
    fn invalid(message: impl fmt::Display) -> Self {
        Self { reason: Reason::InvalidSpec, message: message.to_string() }
    }
}

impl From<NameError> for SpecError {
    fn from(error: NameError) -> Self {
        Self::invalid(error)
    }
}

impl From<SelectionError> for SpecError {
    fn from(error: SelectionError) -> Self {
        Self::invalid(error)
    }
}

/// Checks a spec against what the operator may do.
///
/// A registry that is wrong or not allowed is reported with that registry, and the others are refreshed.
///
/// # Errors
/// A [`SpecError`] whose message says what to change. The CRD's rules refuse nearly all of these before they get here; an
/// object stored under older rules, or a limit of the installation, does not pass through them.
pub fn plan(spec: &EcrCredentialSpec, limits: &Limits) -> Result<Plan, SpecError> {
    if let Some(allowed) = &limits.secret_names
        && !allowed.contains(spec.secret.name.as_str())
    {
        let names: Vec<&str> = allowed.iter().map(AsRef::as_ref).collect();
        let message = format!(
            "the operator is not allowed to write Secrets named {:?}, only {}: use an allowed name, or add this one to the chart's secretNames",
            spec.secret.name,
            names.join(", ")
        );
        return Err(SpecError { reason: Reason::SecretNameNotAllowed, message });
    }
    outputs::refuse_equal_names(spec)?;
    NamespaceMatcher::parse(&spec.namespaces)?;
    for namespaces in spec.outputs.iter().filter_map(|output| output.namespaces.as_ref()) {
        NamespaceMatcher::parse(namespaces)?;
    }
    let registries = registries::plan(spec, limits)?;
    let refresh = schedule::RefreshPolicy {
        at_percent: spec.refresh.at_percent.clamp(10, 70),
        max_age: parse_max_age(&spec.refresh.max_age)?,
    };
    let outputs = spec.outputs.iter().map(|output| SecretPlan::output(output, &registries, limits)).collect();
    Ok(Plan {
        registries,
        secret: SecretPlan::pull_secret(spec),
        outputs,
        includes: includes(spec),
        conflict_policy: spec.secret.conflict_policy,
        deletion_policy: spec.secret.deletion_policy,
        refresh,
    })
}

/// The docker configs of others that a spec names, in order.
pub fn includes(spec: &EcrCredentialSpec) -> Vec<IncludeScope> {
    let scope = |include: &api::Include| IncludeScope {
        namespace: include.secret_ref.namespace.as_str().into(),
        name: include.secret_ref.name.as_str().into(),
    };
    spec.include.iter().map(scope).collect()
}

/// An account that stands for one that is not known yet.
fn placeholder_account() -> Option<AccountId> {
    AccountId::parse("000000000000").ok()
}

/// Reads a duration such as `6h` or `1h30m`; the CRD allows from 1m to 12h.
fn parse_max_age(text: &str) -> Result<Duration, SpecError> {
    match schedule::duration(text) {
        Some(age) if !age.is_zero() => Ok(age.clamp(SHORTEST_MAX_AGE, LONGEST_MAX_AGE)),
        _ => Err(SpecError::invalid(format!("refresh.maxAge {text:?} is not a duration such as 6h or 90m"))),
    }
}
