//! What should be true: the spec as checked values, without a client, a clock or a token.

pub mod auth;
pub mod references;
pub mod refresh;
pub mod schedule;
pub mod targets;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::registry::{AccountId, Host, NameError, Region};
use crate::api::status::Reason;
use crate::api::{self, ConflictPolicy, DeletionPolicy, EcrCredentialSpec, HostVariant, PrivateRegistry, Registry};
use auth::{Auth, Reference};
use references::{AccountScope, Lent, account_not_allowed, keys_not_allowed};
use targets::{Selection, SelectionError};

pub use auth::Identity;

/// The most ids in one `registryIds` (ECR API Reference, GetAuthorizationToken: 1 to 10).
const REGISTRY_IDS_PER_CALL: usize = 10;

/// The bounds of `refresh.maxAge` as the CRD says them.
const SHORTEST_MAX_AGE: Duration = Duration::from_secs(60);
const LONGEST_MAX_AGE: Duration = Duration::from_secs(12 * 3600);

/// The most that the hosts of all registries may take in a status, in bytes.
const MOST_HOST_BYTES: usize = 32 * 1024;

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
pub struct Need {
    /// Whose identity fetches it.
    pub auth: Arc<Auth>,
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
    #[error("the answer of ECR names no account: set accountIds")]
    UnknownCaller,
    /// The partition has no such hosts.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// One registry entry of the spec, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPlan {
    /// The tokens it needs: one, or one for each ten account ids when these are sent.
    pub needs: Vec<Need>,
    /// The hosts it writes.
    pub hosts: Hosts,
    /// Whether its entries are removed once expired: an expired entry breaks pulls that work anonymously.
    pub anonymous_works: bool,
}

impl RegistryPlan {
    /// The region whose API issues its tokens.
    pub fn region(&self) -> Region {
        self.needs.first().map_or_else(Region::public, |need| need.service.region())
    }

    /// Whether each target namespace has a token of its own for it.
    pub fn is_each_targets(&self) -> bool {
        self.needs.iter().any(|need| need.auth.is_each_targets())
    }

    /// Why it cannot be renewed, if that is plain from the spec and the installation.
    pub fn refusal(&self) -> Option<&Halt> {
        self.needs.iter().find_map(|need| need.auth.refusal())
    }
}

/// The spec as checked values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One for each of `spec.registries`, in the same order.
    pub registries: Vec<RegistryPlan>,
    /// The Secret's name in each namespace.
    pub secret_name: Arc<str>,
    /// What happens to Secrets that are not ours.
    pub conflict_policy: ConflictPolicy,
    /// Whether the garbage collector removes the Secrets with the `EcrCredential`.
    pub deletion_policy: DeletionPolicy,
    /// When passwords are replaced.
    pub refresh: schedule::RefreshPolicy,
}

impl Plan {
    /// The tokens that all registries need, each once.
    pub fn needs(&self) -> BTreeSet<&Need> {
        self.registries.iter().flat_map(|r| &r.needs).collect()
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
    /// The namespaces that may be written; `None` for any.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// Whose identities may be used besides the operator's own.
    pub lent: Lent,
    /// Whether the policy that attaches Secrets to pods is installed.
    pub attach_pods: bool,
    /// The names of ServiceAccounts to which Secrets may be attached.
    pub attach_service_accounts: BTreeSet<Arc<str>>,
    /// Whether a host of the ECR API is set for all calls, so that no entry can choose another.
    pub fixed_api: bool,
}

/// Why nothing is done for an `EcrCredential`, or for one of its registries, until somebody changes it or the installation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Halt {
    /// The reason for the conditions.
    pub reason: Reason,
    /// What is wrong and what to change.
    pub message: String,
}

impl Halt {
    fn invalid(message: impl fmt::Display) -> Self {
        Self { reason: Reason::InvalidSpec, message: message.to_string() }
    }
}

impl From<NameError> for Halt {
    fn from(error: NameError) -> Self {
        Self::invalid(error)
    }
}

impl From<SelectionError> for Halt {
    fn from(error: SelectionError) -> Self {
        Self::invalid(error)
    }
}

/// Checks a spec against what the operator may do.
///
/// An `auth` that is wrong or not allowed stays with its registries: the passwords of the others must not die of it.
///
/// # Errors
/// A [`Halt`] whose message says what to change. The CRD's rules refuse nearly all of these before they get here; an
/// object stored under older rules, or a limit of the installation, does not pass through them.
pub fn plan(spec: &EcrCredentialSpec, limits: &Limits) -> Result<Plan, Halt> {
    if let Some(allowed) = &limits.secret_names
        && !allowed.contains(spec.secret.name.as_str())
    {
        let names: Vec<&str> = allowed.iter().map(AsRef::as_ref).collect();
        let message = format!(
            "the operator may not write Secrets named {:?}, only {}: use an allowed name, or add this one to the chart's secretNames",
            spec.secret.name,
            names.join(", ")
        );
        return Err(Halt { reason: Reason::SecretNameNotAllowed, message });
    }
    Selection::parse(&spec.namespaces)?;
    let registries: Vec<RegistryPlan> =
        spec.registries.iter().map(|r| registry_plan(r, spec.auth.as_ref(), limits)).collect::<Result<_, _>>()?;
    if let (Some(why), true) =
        (registries.iter().find_map(RegistryPlan::refusal), registries.iter().all(|r| r.refusal().is_some()))
    {
        return Err(why.clone());
    }
    refuse_ambiguous_hosts(&registries)?;
    refuse_too_many_hosts(&registries)?;
    let refresh = schedule::RefreshPolicy {
        at_percent: spec.refresh.at_percent.clamp(10, 70),
        max_age: parse_max_age(&spec.refresh.max_age)?,
    };
    Ok(Plan {
        registries,
        secret_name: spec.secret.name.as_str().into(),
        conflict_policy: spec.secret.conflict_policy,
        deletion_policy: spec.secret.deletion_policy,
        refresh,
    })
}

fn registry_plan(registry: &Registry, auth: Option<&api::Auth>, limits: &Limits) -> Result<RegistryPlan, Halt> {
    let auth = registry.auth.as_ref().or(auth);
    match (&registry.private, &registry.public) {
        (Some(private), None) => private_plan(private, auth, limits),
        (None, Some(_)) => Ok(RegistryPlan {
            needs: vec![Need { auth: checked_auth(auth, &Region::public(), limits), service: Service::Public }],
            hosts: Hosts::Named(vec![(Host::public(), None)]),
            anonymous_works: true,
        }),
        _ => Err(Halt::invalid("each of spec.registries needs exactly one of private and public")),
    }
}

/// Checks an `auth`, also against what the installation lets the operator use.
fn checked_auth(auth: Option<&api::Auth>, region: &Region, limits: &Limits) -> Arc<Auth> {
    let auth = match Auth::parse(auth, region, limits.region.as_ref()) {
        Ok(auth) => auth,
        Err(why) => return Arc::new(Auth::operator().refused(why)),
    };
    Arc::new(match not_lent(&auth, limits) {
        Some(why) => auth.refused(why),
        None => auth,
    })
}

/// What the installation says against an `auth`.
fn not_lent(auth: &Auth, limits: &Limits) -> Option<Halt> {
    match auth.reference()? {
        Reference::Account(AccountScope { namespace, name }) => {
            let lent = limits.lent.has_account(namespace.as_deref(), &name);
            (!lent).then(|| account_not_allowed(namespace.as_deref(), &name))
        }
        Reference::Keys(scope) => (!limits.lent.keys.contains(&scope)).then(|| keys_not_allowed(&scope)),
    }
}

fn private_plan(private: &PrivateRegistry, auth: Option<&api::Auth>, limits: &Limits) -> Result<RegistryPlan, Halt> {
    let region = match (&private.region, &limits.region) {
        (Some(region), _) => Region::parse(region)?,
        (None, Some(own)) => own.clone(),
        (None, None) => {
            let message =
                "a private registry names no region and the operator has none: set region, or the chart's aws.region";
            return Err(Halt { reason: Reason::NoRegion, message: message.to_owned() });
        }
    };
    let endpoint = private.api_endpoint;
    if limits.fixed_api && endpoint != HostVariant::Standard {
        return Err(Halt::invalid(format!(
            "apiEndpoint: {endpoint:?} cannot be had while the operator is told one host for all calls of ECR: remove the chart's aws.endpoints.ecr (flag --aws-endpoint-url-ecr) or AWS_ENDPOINT_URL, or apiEndpoint"
        )));
    }
    let auth = checked_auth(auth, &region, limits);
    let accounts: Vec<AccountId> =
        private.account_ids.iter().map(|id| AccountId::parse(id)).collect::<Result<_, _>>()?;
    let extra: Vec<Host> = private.extra_hosts.iter().map(|h| Host::parse(h)).collect::<Result<_, _>>()?;
    // In order, so that an edit which only moves ids asks for the same tokens.
    let ids: Vec<AccountId> = accounts.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let chunks: Vec<Vec<AccountId>> = if private.request_registry_ids && !accounts.is_empty() {
        ids.chunks(REGISTRY_IDS_PER_CALL).map(<[AccountId]>::to_vec).collect()
    } else {
        vec![Vec::new()]
    };
    let needs = chunks
        .into_iter()
        .map(|registry_ids| Need {
            auth: auth.clone(),
            service: Service::Private { region: region.clone(), endpoint, registry_ids },
        })
        .collect();
    let hosts = if accounts.is_empty() {
        // A variant that the partition lacks is the user's mistake, and known before any token is.
        for variant in &private.host_variants {
            region.registry_host(&AccountId::parse("000000000000")?, *variant)?;
        }
        Hosts::Callers { region, variants: private.host_variants.clone(), extra }
    } else {
        let mut hosts = Vec::new();
        for account in &accounts {
            for variant in &private.host_variants {
                hosts.push((region.registry_host(account, *variant)?, Some(account.clone())));
            }
        }
        // A host named once more, or that of another region, is still its account's.
        let owner = |host: &Host| host.account().filter(|id| accounts.contains(id));
        hosts.extend(extra.into_iter().map(|host| (host.clone(), owner(&host))));
        Hosts::Named(hosts)
    };
    Ok(RegistryPlan { needs, hosts, anonymous_works: false })
}

/// A host that two entries would fill with different passwords has no right content.
fn refuse_ambiguous_hosts(registries: &[RegistryPlan]) -> Result<(), Halt> {
    let mut seen: std::collections::BTreeMap<&Host, &RegistryPlan> = std::collections::BTreeMap::new();
    for registry in registries {
        let hosts: Vec<&Host> = match &registry.hosts {
            Hosts::Named(hosts) => hosts.iter().map(|(h, _)| h).collect(),
            Hosts::Callers { extra, .. } => extra.iter().collect(),
        };
        for host in hosts {
            if let Some(other) = seen.insert(host, registry)
                && other.needs != registry.needs
            {
                return Err(Halt::invalid(format!(
                    "two of spec.registries write the host {host} with different passwords: name it in one of them"
                )));
            }
        }
    }
    Ok(())
}

/// Every host stands in the status, whose size is bounded. A Secret has room for fewer: each password takes some 2.5 KB.
fn refuse_too_many_hosts(registries: &[RegistryPlan]) -> Result<(), Halt> {
    let anyone = AccountId::parse("000000000000")?;
    let hosts = registries.iter().flat_map(|registry| registry.hosts.resolve(Some(&anyone)).unwrap_or_default());
    let bytes: usize = hosts.map(|(host, _)| host.as_str().len() + "\"\",".len()).sum();
    if bytes <= MOST_HOST_BYTES {
        return Ok(());
    }
    Err(Halt::invalid(format!(
        "the hosts of spec.registries have {bytes} bytes together, and {MOST_HOST_BYTES} is the most: split the accounts and host variants over several EcrCredentials with Secrets of their own"
    )))
}

/// Reads a duration such as `6h` or `1h30m`; the CRD allows from 1m to 12h.
fn parse_max_age(text: &str) -> Result<Duration, Halt> {
    match schedule::duration(text) {
        Some(age) if !age.is_zero() => Ok(age.clamp(SHORTEST_MAX_AGE, LONGEST_MAX_AGE)),
        _ => Err(Halt::invalid(format!("refresh.maxAge {text:?} is not a duration such as 6h or 90m"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ACCOUNT: &str = "111122223333";

    fn planned(spec: Value) -> Result<Plan, Halt> {
        let limits = Limits { region: Some(Region::parse("eu-west-1").unwrap()), ..Limits::default() };
        plan(&serde_json::from_value(spec).unwrap(), &limits)
    }

    fn spec(registries: Value) -> Value {
        json!({ "registries": registries, "namespaces": { "names": ["a"] } })
    }

    #[test]
    fn an_auth_that_may_not_be_used_stays_with_its_registry() {
        let china = json!({ "assumeRoles": [{ "roleArn": format!("arn:aws-cn:iam::{ACCOUNT}:role/x") }] });
        let table = [
            ("account", json!({ "serviceAccount": { "namespace": "n", "name": "x" } }), Reason::AuthNotAllowed),
            ("each", json!({ "serviceAccount": { "fromTargetNamespace": "x" } }), Reason::AuthNotAllowed),
            ("keys", json!({ "secretRef": { "namespace": "n", "name": "x" } }), Reason::AuthNotAllowed),
            ("partition", china, Reason::InvalidSpec),
        ];
        for (what, auth, reason) in table {
            let mut spec = spec(json!([{ "public": {} }, { "private": { "accountIds": [ACCOUNT] }, "auth": auth }]));
            let plan = planned(spec.clone()).unwrap();
            let refusals: Vec<_> = plan.registries.iter().map(|r| r.refusal().map(|halt| halt.reason)).collect();
            assert_eq!(refusals, [None, Some(reason)], "{what}");
            assert!(!plan.has_tenants(), "{what}: refused for all namespaces alike");
            let registries = spec["registries"].as_array_mut().unwrap();
            registries.remove(0);
            assert_eq!(planned(spec).unwrap_err().reason, reason, "{what}: no registry is left");
        }
    }
}
