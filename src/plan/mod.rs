//! The spec as validated values, without a client, a clock or a token.

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
use scopes::{AccountScope, OutputScope, SecretKey, SecretScope};
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

/// A token as the spec describes it. It stays the same when the identity to which `auth` resolves changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenSpec {
    /// Whose identity fetches it.
    pub auth: Arc<AuthPlan>,
    /// Which API issues it.
    pub service: Service,
}

/// A token by the resolved identity: the key of the token cache.
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
    /// Known from the spec: each host, with its account if it belongs to one.
    Named(Vec<(Host, Option<AccountId>)>),
    /// Those of the caller's own account, which only the response of ECR names.
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
    /// The hosts, given the account that the response of ECR names.
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

/// Why the hosts of a registry are unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// The answer had no `proxyEndpoint` of an ECR registry.
    #[error("the response of ECR names no account: set accountIds")]
    UnknownCaller,
    /// The partition has no such hosts.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// One registry entry of the spec, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPlan {
    /// The region whose API issues its tokens, if it is known.
    pub region: Option<Region>,
    /// Its tokens: one, or one for each ten account ids if these are sent; none if the entry is invalid as a whole.
    pub token_specs: Vec<TokenSpec>,
    /// The hosts it writes.
    pub hosts: Hosts,
    /// Whether its entries are removed once expired: an expired entry breaks pulls that work anonymously.
    pub anonymous_works: bool,
    /// What is wrong with the entry. The valid rest of it is refreshed.
    pub problem: Option<SpecError>,
    /// Whether hosts may be missing from `hosts` because of the problem. An existing Secret may have their entries.
    pub lacks_hosts: bool,
}

impl RegistryPlan {
    /// Whether each target namespace has a token of its own for it.
    pub fn is_each_targets(&self) -> bool {
        self.token_specs.iter().any(|spec| spec.auth.is_each_targets())
    }

    /// Its hosts, with `*` for an account that only the response of ECR names.
    pub fn hosts_of_any_account(&self) -> Vec<Host> {
        let hosts = self.hosts.resolve(Some(&AccountId::any())).unwrap_or_default();
        hosts.into_iter().map(|(host, _)| host).collect()
    }

    /// Whether it may have a host: which account's hosts it has may be known only with its token.
    fn may_have(&self, host: &Host) -> bool {
        match &self.hosts {
            Hosts::Named(hosts) => hosts.iter().any(|(named, _)| named == host),
            Hosts::Callers { .. } => host
                .account()
                .and_then(|account| self.hosts.resolve(Some(&account)).ok())
                .or_else(|| self.hosts.resolve(Some(&placeholder_account()?)).ok())
                .is_some_and(|hosts| hosts.iter().any(|(written, _)| written == host)),
        }
    }

    /// Why no token is fetched for it, if the spec or the installation forbids it.
    pub fn refusal(&self) -> Option<&SpecError> {
        let problem = self.problem.as_ref().filter(|_| self.token_specs.is_empty());
        problem.or_else(|| self.token_specs.iter().find_map(|spec| spec.auth.refusal()))
    }
}

/// The spec as validated values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One for each of `spec.registries`, in the same order.
    pub registries: Vec<RegistryPlan>,
    /// The pull secret.
    pub secret: SecretPlan,
    /// One for each of `spec.outputs`, in the same order.
    pub outputs: Vec<SecretPlan>,
    /// The docker configs that are included, in order.
    pub includes: Vec<SecretKey>,
    /// What happens to Secrets that are not ours.
    pub conflict_policy: ConflictPolicy,
    /// Whether the garbage collector removes the Secrets with the `EcrCredential`.
    pub deletion_policy: DeletionPolicy,
    /// When tokens are refreshed.
    pub refresh: schedule::RefreshPolicy,
}

impl Plan {
    /// The tokens of all registries, each once.
    pub fn token_specs(&self) -> BTreeSet<&TokenSpec> {
        self.registries.iter().flat_map(|r| &r.token_specs).collect()
    }

    /// Every Secret: the pull secret, then the outputs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretPlan> {
        std::iter::once(&self.secret).chain(&self.outputs)
    }

    /// The Secret of a name.
    pub fn secret_named(&self, name: &str) -> Option<&SecretPlan> {
        self.secrets().find(|secret| *secret.name == *name)
    }

    /// The registries whose tokens a Secret holds. `has` says whether the registry of a number is known to have a host. While
    /// none is, all count that may have it.
    pub fn registries_of(&self, secret: &SecretPlan, has: impl Fn(usize, &Host) -> bool) -> Vec<&RegistryPlan> {
        let Some(host) = &secret.host else { return self.registries.iter().collect() };
        let known = self.registries.iter().enumerate().filter(|(number, _)| has(*number, host));
        let known: Vec<_> = known.map(|(_, registry)| registry).collect();
        if known.is_empty() {
            self.registries.iter().filter(|registry| registry.may_have(host)).collect()
        } else {
            known
        }
    }

    /// Whether some registry has a token of its own for each target namespace.
    pub fn has_tenants(&self) -> bool {
        self.registries.iter().any(RegistryPlan::is_each_targets)
    }
}

/// The settings of the operator that plans depend on.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The operator's own region, for entries without one.
    pub region: Option<Region>,
    /// The Secret names that may be written; `None` for any.
    pub secret_names: Option<BTreeSet<Arc<str>>>,
    /// The outputs that may be written; `None` for any.
    pub outputs: Option<BTreeSet<OutputScope>>,
    /// The docker configs that may be included.
    pub includes: BTreeSet<SecretKey>,
    /// The namespaces that may be written; `None` for any.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// The identities that may be used besides the operator's own.
    pub identities: AllowedIdentities,
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

    /// Each namespace that may be written; a single `None` for all of them.
    pub fn each_namespace(&self) -> Vec<Option<Arc<str>>> {
        each(self.namespaces.as_ref())
    }

    /// The watches that show every Secret that may be written.
    pub fn secret_scopes(&self) -> Vec<SecretScope> {
        let namespaces = self.each_namespace();
        let everywhere = |name: Option<Arc<str>>| {
            namespaces.iter().map(move |namespace| SecretScope { name: name.clone(), namespace: namespace.clone() })
        };
        let mut scopes: Vec<SecretScope> = each(self.secret_names.as_ref()).into_iter().flat_map(everywhere).collect();
        for OutputScope { namespace, name, .. } in self.outputs.iter().flatten() {
            let wanted: Vec<SecretScope> = match namespace {
                Some(namespace) => vec![SecretScope { name: Some(name.clone()), namespace: Some(namespace.clone()) }],
                None => everywhere(Some(name.clone())).collect(),
            };
            for scope in wanted {
                if !scopes.iter().any(|other| other.covers(&scope)) {
                    scopes.push(scope);
                }
            }
        }
        scopes
    }

    /// The ServiceAccounts to which Secrets may be attached: each name in each namespace that may be written.
    pub fn attach_scopes(&self) -> Vec<AccountScope> {
        let scopes = |name: &Arc<str>| {
            let name = name.clone();
            self.each_namespace().into_iter().map(move |namespace| AccountScope { namespace, name: name.clone() })
        };
        self.attach_service_accounts.iter().flat_map(scopes).collect()
    }
}

fn each(names: Option<&BTreeSet<Arc<str>>>) -> Vec<Option<Arc<str>>> {
    names.map_or_else(|| vec![None], |names| names.iter().cloned().map(Some).collect())
}

/// Why an `EcrCredential`, or one of its registries, is stalled until the spec or the installation changes.
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

/// Validates a spec against the settings of the operator.
///
/// A registry that is invalid or not allowed has its own error, and the others are refreshed.
///
/// # Errors
/// A [`SpecError`] whose message says what to change. The CRD's validation rejects nearly all of these earlier. It does not cover
/// objects that were stored under older rules, and limits of the installation.
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
    let outputs = spec.outputs.iter().map(|output| SecretPlan::output(output, spec, &registries, limits)).collect();
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

/// The docker configs that a spec includes, in order.
pub fn includes(spec: &EcrCredentialSpec) -> Vec<SecretKey> {
    let scope = |include: &api::Include| {
        let api::IncludedSecret { namespace, name } = &include.secret_ref;
        SecretKey::new(name.as_str(), namespace.as_str())
    };
    spec.include.iter().map(scope).collect()
}

/// A placeholder for an account that is not known yet.
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
