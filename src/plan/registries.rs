//! The entries of `spec.registries` as validated values. An invalid entry does not affect the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::auth::AuthPlan;
use super::references::{account_not_allowed, keys_not_allowed};
use super::scopes::{AccountScope, Reference};
use super::{Hosts, Limits, RegistryPlan, Service, SpecError, TokenSpec, placeholder_account};
use crate::api::registry::{AccountId, Host, NameError, Region};
use crate::api::status::Reason;
use crate::api::{self, EcrCredentialSpec, HostVariant, PrivateRegistry, Registry};

/// The most ids in one `registryIds` (ECR API Reference, GetAuthorizationToken: 1 to 10).
const REGISTRY_IDS_PER_CALL: usize = 10;

/// The most that the hosts of all registries may take in a status, in bytes.
const MOST_HOST_BYTES: usize = 32 * 1024;

/// Validates all entries.
///
/// # Errors
/// There is none, or nothing can be done for any of them.
pub(super) fn plan(spec: &EcrCredentialSpec, limits: &Limits) -> Result<Vec<RegistryPlan>, SpecError> {
    let entries = spec.registries.iter().enumerate();
    let mut registries: Vec<RegistryPlan> =
        entries.map(|(number, entry)| registry_plan(number, entry, spec.auth.as_ref(), limits)).collect();
    give_each_host_to_the_first(&mut registries);
    leave_out_what_does_not_fit(&mut registries);
    let refused: Option<Vec<&SpecError>> = registries.iter().map(RegistryPlan::refusal).collect();
    match refused.map(|refused| refused.first().map(|why| (*why).clone())) {
        None => Ok(registries),
        Some(Some(why)) => Err(why),
        Some(None) => Err(SpecError::invalid("spec.registries is empty: name at least one registry")),
    }
}

impl RegistryPlan {
    /// An entry that is not refreshed at all.
    fn impossible(region: Option<Region>, problem: SpecError) -> Self {
        Self {
            region,
            token_specs: Vec::new(),
            hosts: Hosts::Named(Vec::new()),
            anonymous_works: false,
            problem: Some(problem),
            lacks_hosts: true,
        }
    }

    fn drop_all(&mut self, problem: SpecError) {
        *self = Self::impossible(self.region.take(), problem);
    }
}

/// Names the entry in the message of an error.
fn wrong(number: usize, problem: impl fmt::Display) -> SpecError {
    SpecError::invalid(format!("spec.registries[{number}]: {problem}"))
}

fn registry_plan(number: usize, registry: &Registry, auth: Option<&api::Auth>, limits: &Limits) -> RegistryPlan {
    let auth = registry.auth.as_ref().or(auth);
    match (&registry.private, &registry.public) {
        (Some(private), None) => private_plan(number, private, auth, limits),
        (None, Some(public)) => {
            let mut parsed = Parsed::default();
            let hosts = public.host_variants.iter().filter_map(|variant| parsed.take(Host::public(*variant)));
            let hosts = Hosts::Named(hosts.map(|host| (host, None)).collect());
            RegistryPlan {
                region: Some(Region::public()),
                token_specs: vec![TokenSpec {
                    auth: checked_auth(auth, &Region::public(), limits),
                    service: Service::Public,
                }],
                hosts,
                anonymous_works: true,
                problem: parsed.problem(number),
                lacks_hosts: parsed.lacks_hosts,
            }
        }
        _ => RegistryPlan::impossible(None, wrong(number, "it needs exactly one of private and public")),
    }
}

/// Validates an `auth`, also against the identities that the installation allows.
fn checked_auth(auth: Option<&api::Auth>, region: &Region, limits: &Limits) -> Arc<AuthPlan> {
    let auth = match AuthPlan::parse(auth, region, limits.region.as_ref()) {
        Ok(auth) => auth,
        Err(why) => return Arc::new(AuthPlan::invalid(why)),
    };
    Arc::new(match not_allowed(&auth, limits) {
        Some(why) => auth.refused(why),
        None => auth,
    })
}

/// Why the installation does not allow an `auth`.
fn not_allowed(auth: &AuthPlan, limits: &Limits) -> Option<SpecError> {
    match auth.reference()? {
        Reference::Account(AccountScope { namespace, name }) => {
            let allowed = limits.identities.has_account(namespace.as_deref(), &name);
            (!allowed).then(|| account_not_allowed(namespace.as_deref(), &name))
        }
        Reference::Keys(scope) => (!limits.identities.keys.contains(&scope)).then(|| keys_not_allowed(&scope)),
        // No `auth` has an include.
        Reference::Include(_) => None,
    }
}

fn private_plan(number: usize, private: &PrivateRegistry, auth: Option<&api::Auth>, limits: &Limits) -> RegistryPlan {
    let region = match private.region.as_deref().map(Region::parse) {
        Some(Ok(region)) => region,
        Some(Err(error)) => return RegistryPlan::impossible(None, wrong(number, error)),
        None => match &limits.region {
            Some(own) => own.clone(),
            None => {
                let message = format!(
                    "spec.registries[{number}]: it has no region and the operator has no default: set region, or the chart's aws.region"
                );
                return RegistryPlan::impossible(None, SpecError { reason: Reason::NoRegion, message });
            }
        },
    };
    let mut parsed = Parsed::default();
    let accounts: Vec<AccountId> =
        private.account_ids.iter().filter_map(|id| parsed.take(AccountId::parse(id))).collect();
    let extra: Vec<Host> = private.extra_hosts.iter().filter_map(|host| parsed.take(Host::parse(host))).collect();
    let hosts = if private.account_ids.is_empty() {
        let variants = private.host_variants.iter().copied();
        let variants = variants.filter(|variant| parsed.take(region.has_variant(*variant)).is_some()).collect();
        Hosts::Callers { region: region.clone(), variants, extra }
    } else {
        let mut hosts = Vec::new();
        for account in &accounts {
            for variant in &private.host_variants {
                let host = parsed.take(region.registry_host(account, *variant));
                hosts.extend(host.map(|host| (host, Some(account.clone()))));
            }
        }
        // A host named once more, or that of another region, is still its account's.
        let owner = |host: &Host| host.account().filter(|id| accounts.contains(id));
        hosts.extend(extra.into_iter().map(|host| (host.clone(), owner(&host))));
        Hosts::Named(hosts)
    };
    let mut registry = RegistryPlan {
        token_specs: token_specs(private, &region, &accounts, auth, limits),
        region: Some(region),
        hosts,
        anonymous_works: false,
        problem: parsed.problem(number),
        lacks_hosts: parsed.lacks_hosts,
    };
    if let Some(problem) = registry.problem.clone().filter(|_| registry.hosts.is_empty()) {
        registry.drop_all(problem);
        registry.lacks_hosts = parsed.lacks_hosts;
    }
    registry
}

/// The tokens that a private registry needs.
fn token_specs(
    private: &PrivateRegistry,
    region: &Region,
    accounts: &[AccountId],
    auth: Option<&api::Auth>,
    limits: &Limits,
) -> Vec<TokenSpec> {
    let endpoint = private.api_endpoint;
    let mut auth = checked_auth(auth, region, limits);
    if limits.fixed_api && endpoint != HostVariant::Standard {
        let why = SpecError::invalid(format!(
            "apiEndpoint: {endpoint:?} has no effect while the operator has one endpoint for all ECR calls: remove the chart's aws.endpoints.ecr (flag --aws-endpoint-url-ecr) or AWS_ENDPOINT_URL, or apiEndpoint"
        ));
        auth = Arc::new((*auth).clone().refused(why));
    }
    // In order, so that an edit which only moves ids asks for the same tokens.
    let ids: Vec<AccountId> = accounts.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let chunks: Vec<Vec<AccountId>> = if private.request_registry_ids && !ids.is_empty() {
        ids.chunks(REGISTRY_IDS_PER_CALL).map(<[AccountId]>::to_vec).collect()
    } else {
        vec![Vec::new()]
    };
    let service = |registry_ids| Service::Private { region: region.clone(), endpoint, registry_ids };
    chunks.into_iter().map(|ids| TokenSpec { auth: auth.clone(), service: service(ids) }).collect()
}

/// The valid parts of an entry, and the problems of the others.
#[derive(Default)]
struct Parsed {
    problems: Vec<NameError>,
    lacks_hosts: bool,
}

impl Parsed {
    fn take<T>(&mut self, result: Result<T, NameError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                // A family that the partition lacks has no hosts that a Secret could have.
                self.lacks_hosts |= !matches!(error, NameError::Variant { .. });
                if !self.problems.contains(&error) {
                    self.problems.push(error);
                }
                None
            }
        }
    }

    /// The first problem, and how many more there are.
    fn problem(&self, number: usize) -> Option<SpecError> {
        let first = self.problems.first()?;
        Some(match self.problems.len().saturating_sub(1) {
            0 => wrong(number, first),
            more => wrong(number, format_args!("{first}; and {more} more similar problems")),
        })
    }
}

impl Hosts {
    /// Whether there is none, whatever the caller's account is.
    fn is_empty(&self) -> bool {
        match self {
            Self::Named(hosts) => hosts.is_empty(),
            Self::Callers { variants, extra, .. } => variants.is_empty() && extra.is_empty(),
        }
    }

    /// The hosts that the spec names.
    fn named(&self) -> Vec<&Host> {
        match self {
            Self::Named(hosts) => hosts.iter().map(|(host, _)| host).collect(),
            Self::Callers { extra, .. } => extra.iter().collect(),
        }
    }

    fn retain(&mut self, keep: impl Fn(&Host) -> bool) {
        match self {
            Self::Named(hosts) => hosts.retain(|(host, _)| keep(host)),
            Self::Callers { extra, .. } => extra.retain(keep),
        }
    }

    /// Their size in a status, in bytes.
    fn bytes(&self) -> usize {
        // All accounts have ids of the same length.
        let hosts = self.resolve(placeholder_account().as_ref()).unwrap_or_default();
        hosts.iter().map(|(host, _)| host.as_str().len() + "\"\",".len()).sum()
    }
}

/// The error for a host that two entries would write with different tokens. The first entry has it.
pub fn host_taken(host: &Host, earlier: usize, later: usize) -> SpecError {
    SpecError::invalid(format!(
        "spec.registries[{earlier}] and spec.registries[{later}] both have the host {host} with different identities, so the first one gets it: use other accountIds or extraHosts in one of them, or remove it"
    ))
}

/// Gives a host that two entries would write with different tokens to the first. The later entry keeps its other hosts.
fn give_each_host_to_the_first(registries: &mut [RegistryPlan]) {
    let mut owners: BTreeMap<Host, (usize, Vec<TokenSpec>)> = BTreeMap::new();
    for (number, registry) in registries.iter_mut().enumerate() {
        let mut lost: Vec<(Host, usize)> = Vec::new();
        for host in registry.hosts.named() {
            match owners.get(host) {
                Some((earlier, token_specs)) if *token_specs != registry.token_specs => {
                    lost.push((host.clone(), *earlier))
                }
                Some(_) => {}
                None => {
                    owners.insert(host.clone(), (number, registry.token_specs.clone()));
                }
            }
        }
        let Some((host, earlier)) = lost.first() else { continue };
        let problem = host_taken(host, *earlier, number);
        registry.hosts.retain(|host| lost.iter().all(|(taken, _)| taken != host));
        if registry.hosts.is_empty() {
            registry.drop_all(problem);
            // The hosts are in the Secret, only not as this entry would have them.
            registry.lacks_hosts = false;
        } else {
            registry.problem.get_or_insert(problem);
        }
    }
}

/// Every host is listed in the status, whose size is bounded. A Secret has room for fewer: each token takes some 2.5 KB.
fn leave_out_what_does_not_fit(registries: &mut [RegistryPlan]) {
    let mut left = MOST_HOST_BYTES;
    for (number, registry) in registries.iter_mut().enumerate() {
        let bytes = registry.hosts.bytes();
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => registry.drop_all(wrong(number, format_args!(
                "its host names have {bytes} bytes, and the registries before it leave {left} of {MOST_HOST_BYTES}: split the accounts and host variants over several EcrCredentials with Secrets of their own"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;
    use serde_json::{Value, json};

    const ACCOUNT: &str = "111122223333";
    const ROLE: &str = "arn:aws:iam::111122223333:role/x";

    fn planned_in(region: Option<&str>, registries: &Value) -> Result<Plan, SpecError> {
        let limits = Limits { region: region.map(|r| Region::parse(r).unwrap()), ..Limits::default() };
        let spec = json!({ "registries": registries, "namespaces": { "names": ["a"] } });
        super::super::plan(&serde_json::from_value(spec).unwrap(), &limits)
    }

    fn planned(registries: &Value) -> Result<Plan, SpecError> {
        planned_in(Some("eu-west-1"), registries)
    }

    fn hosts(registry: &RegistryPlan) -> Vec<String> {
        let account = AccountId::parse(ACCOUNT).unwrap();
        registry.hosts.resolve(Some(&account)).unwrap().into_iter().map(|(host, _)| host.to_string()).collect()
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
            let bad = json!({ "private": { "accountIds": [ACCOUNT] }, "auth": auth });
            let plan = planned(&json!([{ "public": {} }, bad])).unwrap();
            let refusals: Vec<_> = plan.registries.iter().map(|r| r.refusal().map(|error| error.reason)).collect();
            assert_eq!(refusals, [None, Some(reason)], "{what}");
            assert!(!plan.has_tenants(), "{what}: refused for all namespaces alike");
            assert_eq!(planned(&json!([bad])).unwrap_err().reason, reason, "{what}: no registry is left");
        }
    }

    /// What is left of the second of two entries, and what is said of it.
    struct Left {
        hosts: &'static [&'static str],
        says: &'static [&'static str],
        /// Whether an existing Secret may have logins for more.
        lacks_hosts: bool,
    }

    #[test]
    fn what_is_wrong_with_an_entry_is_its_own_problem_and_what_is_right_of_it_is_done() {
        const OWN: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";
        const OTHER: &str = "444455556666.dkr.ecr.eu-west-1.amazonaws.com";
        let role = json!({ "assumeRoles": [{ "roleArn": ROLE }] });
        let many: Vec<String> = (0..700).map(|n| format!("{n:012}")).collect();
        let table = [
            (
                "a host of the first by another identity",
                json!({ "private": { "accountIds": [ACCOUNT, "444455556666"] }, "auth": role }),
                Left { hosts: &[OTHER], says: &["spec.registries[0]", "spec.registries[1]", OWN], lacks_hosts: false },
            ),
            (
                "no other host than that",
                json!({ "private": { "accountIds": [ACCOUNT] }, "auth": role }),
                Left { hosts: &[], says: &[OWN, "the first one gets it"], lacks_hosts: false },
            ),
            (
                "an extra host of the first by another identity",
                json!({ "private": { "extraHosts": ["mirror.example.com"] }, "auth": role }),
                Left { hosts: &[OWN], says: &["mirror.example.com"], lacks_hosts: false },
            ),
            (
                "a variant that the partition lacks",
                json!({ "private": { "region": "us-iso-east-1", "accountIds": [ACCOUNT], "hostVariants": ["Standard", "DualStack"] } }),
                Left {
                    hosts: &["111122223333.dkr.ecr.us-iso-east-1.c2s.ic.gov"],
                    says: &["spec.registries[1]", "us-iso-east-1 has no DualStack"],
                    lacks_hosts: false,
                },
            ),
            (
                "the same for the caller's own account",
                json!({ "private": { "region": "us-iso-east-1", "hostVariants": ["DualStack", "Standard"] } }),
                Left {
                    hosts: &["111122223333.dkr.ecr.us-iso-east-1.c2s.ic.gov"],
                    says: &["spec.registries[1]", "us-iso-east-1 has no DualStack"],
                    lacks_hosts: false,
                },
            ),
            (
                "no variant that the partition has",
                json!({ "private": { "region": "us-iso-east-1", "hostVariants": ["DualStack", "DualStackFips"] } }),
                Left { hosts: &[], says: &["has no DualStack", "and 1 more"], lacks_hosts: false },
            ),
            (
                "too large",
                json!({ "private": { "accountIds": many } }),
                Left { hosts: &[], says: &["spec.registries[1]", "32768", "split"], lacks_hosts: true },
            ),
            (
                "a region that is none",
                json!({ "private": { "region": "europe" } }),
                Left { hosts: &[], says: &["spec.registries[1]", "europe"], lacks_hosts: true },
            ),
            (
                "an account id that is none beside one that is",
                json!({ "private": { "accountIds": ["1", "444455556666"] } }),
                Left { hosts: &[OTHER], says: &["spec.registries[1]", "\"1\""], lacks_hosts: true },
            ),
            (
                "no account id that is one: not the caller's own account instead",
                json!({ "private": { "accountIds": ["1"] } }),
                Left { hosts: &[], says: &["\"1\""], lacks_hosts: true },
            ),
            (
                "an extra host that is none",
                json!({ "private": { "accountIds": ["444455556666"], "extraHosts": ["https://x"] } }),
                Left { hosts: &[OTHER], says: &["https://x"], lacks_hosts: true },
            ),
            ("neither private nor public", json!({}), Left { hosts: &[], says: &["exactly one"], lacks_hosts: true }),
        ];
        let first = json!({ "private": { "accountIds": [ACCOUNT], "extraHosts": ["mirror.example.com"] } });
        for (what, second, left) in table {
            let plan = planned(&json!([first, second])).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let [one, two] = plan.registries.as_slice() else { panic!("{what}") };
            assert_eq!((hosts(one).len(), &one.problem, one.lacks_hosts), (2, &None, false), "{what}");
            assert_eq!(hosts(two), left.hosts, "{what}");
            assert_eq!(two.token_specs.is_empty(), left.hosts.is_empty(), "{what}: nothing is fetched for nothing");
            assert_eq!(two.lacks_hosts, left.lacks_hosts, "{what}");
            let problem = two.problem.as_ref().unwrap_or_else(|| panic!("{what}"));
            assert_eq!(problem.reason, Reason::InvalidSpec, "{what}");
            assert!(left.says.iter().all(|word| problem.message.contains(word)), "{what}: {}", problem.message);
            if left.hosts.is_empty() && !left.says.contains(&OWN) {
                assert!(planned(&json!([second])).is_err(), "{what}: no registry is left");
            }
        }
    }

    #[test]
    fn what_concerns_the_whole_spec_halts_it() {
        assert!(planned(&json!([])).unwrap_err().message.contains("at least one registry"));
        let error = planned_in(None, &json!([{ "private": {} }, { "private": {} }])).unwrap_err();
        assert_eq!(error.reason, Reason::NoRegion);
    }

    #[test]
    fn a_region_that_nobody_names_is_missing_in_one_entry_alone() {
        let plan =
            planned_in(None, &json!([{ "private": {} }, { "private": { "region": "eu-west-1" } }, { "public": {} }]));
        let plan = plan.unwrap();
        let reasons: Vec<_> = plan.registries.iter().map(|r| r.problem.as_ref().map(|error| error.reason)).collect();
        assert_eq!(reasons, [Some(Reason::NoRegion), None, None]);
        assert_eq!(plan.token_specs().len(), 2);
    }

    #[test]
    fn entries_that_share_a_token_may_name_the_same_host() {
        let same = json!({ "private": { "accountIds": [ACCOUNT] } });
        let plan = planned(&json!([same, same])).unwrap();
        assert!(plan.registries.iter().all(|r| r.problem.is_none() && hosts(r).len() == 1));
    }
}
