//! `plan()`: any spec is refused with a message, or becomes values of which each holds what it promises.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::registry::{AccountId, Host, Region};
use ecr_credential_operator::api::{EcrCredentialSpec, PrivateRegistry, Registry};
use ecr_credential_operator::plan::scopes::{AccountScope, Reference};
use ecr_credential_operator::plan::{Hosts, Limits, Plan, RegistryPlan, Service, TokenSpec, plan};

use crate::material::{self, ACCOUNTS, account};

/// The longest message (in bytes), so that the status stays under 64 KiB.
const LONGEST: usize = 2048;

/// A spec as JSON, or else anything, of which a spec is made.
pub fn run(bytes: &[u8]) {
    if bytes.first() == Some(&b'{') {
        let Ok(spec) = serde_json::from_slice::<EcrCredentialSpec>(bytes) else { return };
        let again = serde_json::to_value(&spec).and_then(serde_json::from_value);
        assert_eq!(again.ok().as_ref(), Some(&spec), "a spec survives being written and read");
        for region in [None, Region::parse("us-east-1").ok()] {
            judge(&spec, &Limits { region, ..Limits::default() });
        }
    } else {
        let _ = parts(&mut Unstructured::new(bytes));
    }
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let (limits, spec) = (material::limits(u)?, material::spec(u)?);
    judge(&spec, &limits);
    Ok(())
}

fn judge(spec: &EcrCredentialSpec, limits: &Limits) {
    let planned = match plan(spec, limits) {
        Ok(planned) => planned,
        Err(halt) => {
            assert!(!halt.message.is_empty());
            // Names are as long as the CRD allows at most.
            assert!(is_long(spec) || halt.message.len() <= LONGEST, "{} bytes", halt.message.len());
            return;
        }
    };
    assert_eq!(planned.registries.len(), spec.registries.len());
    for (number, (registry, written)) in planned.registries.iter().zip(&spec.registries).enumerate() {
        judge_registry(registry, written, limits);
        if let Some(problem) = &registry.problem {
            assert!(problem.message.contains(&format!("spec.registries[{number}]")), "{}", problem.message);
            assert!(is_long(spec) || problem.message.len() <= LONGEST, "{} bytes", problem.message.len());
        }
    }
    hosts_have_one_password(&planned);
    let names = limits.secret_names.as_ref();
    assert!(
        names.is_none_or(|names| names.contains(&planned.secret.name)) && *planned.secret.name == *spec.secret.name
    );
    assert!(!planned.refresh.max_age.is_zero() && (10..=70).contains(&planned.refresh.at_percent));
    order_of_ids_does_not_matter(spec, &planned, limits);
}

fn is_long(spec: &EcrCredentialSpec) -> bool {
    serde_json::to_string(spec).is_ok_and(|text| text.len() > LONGEST / 4)
}

fn judge_registry(registry: &RegistryPlan, written: &Registry, limits: &Limits) {
    for need in registry.token_specs.iter().filter(|need| need.auth.refusal().is_none()) {
        match need.auth.reference() {
            Some(Reference::Account(AccountScope { namespace, name })) => {
                assert!(limits.identities.has_account(namespace.as_deref(), &name), "{name} was not lent");
            }
            Some(Reference::Keys(scope)) => assert!(limits.identities.keys.contains(&scope), "{scope} was not lent"),
            Some(Reference::Include(scope)) => panic!("no identity begins with {scope}"),
            None => {}
        }
    }
    if registry.token_specs.is_empty() {
        assert!(registry.problem.is_some(), "nothing is done for it, and nobody is told why");
        assert_eq!(registry.hosts, Hosts::Named(Vec::new()));
        return;
    }
    match (&written.private, &written.public) {
        (Some(private), None) => judge_private(registry, private, limits),
        (None, Some(public)) => {
            assert!(registry.anonymous_works && registry.token_specs.len() == 1);
            assert_eq!(registry.token_specs[0].service, Service::Public);
            let hosts = public.host_variants.iter().filter_map(|variant| Some((Host::public(*variant).ok()?, None)));
            let mut hosts: Vec<_> = hosts.collect();
            let Hosts::Named(mut found) = registry.hosts.clone() else { panic!("hosts of a caller") };
            hosts.sort();
            hosts.dedup();
            found.sort();
            found.dedup();
            // A registry before it may have some of them, which its problem then says.
            assert!(found.iter().all(|host| hosts.contains(host)), "{found:?} of {hosts:?}");
            assert!(found == hosts || registry.problem.is_some(), "{found:?} of {hosts:?}");
        }
        _ => panic!("a registry that is private and public, or neither"),
    }
}

fn judge_private(registry: &RegistryPlan, private: &PrivateRegistry, limits: &Limits) {
    assert!(!registry.anonymous_works);
    let region = private.region.as_deref().or(limits.region.as_ref().map(Region::as_str)).expect("a region");
    let valid = private.account_ids.iter().filter_map(|id| AccountId::parse(id).ok());
    let accounts: BTreeSet<AccountId> = valid.collect();
    let mut asked = BTreeSet::new();
    for need in &registry.token_specs {
        let Service::Private { region: own, endpoint, registry_ids } = &need.service else { panic!("not private") };
        assert_eq!((own.as_str(), *endpoint), (region, private.api_endpoint));
        assert!(registry_ids.len() <= 10, "ECR takes ten");
        for id in registry_ids {
            assert!(asked.insert(id.clone()), "{id} is asked for twice");
        }
    }
    let expected = if private.request_registry_ids { accounts.clone() } else { BTreeSet::new() };
    assert_eq!(asked, expected);
    let caller = account(ACCOUNTS[1]);
    let hosts = registry.hosts.resolve(Some(&caller)).expect("hosts, once the caller is known");
    let accounts = if accounts.is_empty() { BTreeSet::from([caller]) } else { accounts };
    let region = Region::parse(region).expect("a region");
    let mut expected: BTreeSet<Host> = private.extra_hosts.iter().filter_map(|h| Host::parse(h).ok()).collect();
    for id in &accounts {
        expected.extend(private.host_variants.iter().filter_map(|variant| region.registry_host(id, *variant).ok()));
    }
    let written: BTreeSet<Host> = hosts.iter().map(|(host, _)| host.clone()).collect();
    if registry.problem.is_some() {
        assert!(written.is_subset(&expected), "no other hosts than these");
    } else {
        assert_eq!(written, expected, "exactly these hosts");
        let asked = private.account_ids.len() + private.extra_hosts.len();
        let read = private.account_ids.iter().filter(|id| AccountId::parse(id).is_ok()).count()
            + private.extra_hosts.iter().filter(|host| Host::parse(host).is_ok()).count();
        assert_eq!(read, asked, "what cannot be read is told");
    }
    for (host, owner) in &hosts {
        assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(host));
        assert!(owner.is_none() || host.account() == *owner, "{host} is not of {owner:?}");
    }
}

/// Of two registries with different tokens none writes a host of the other, as far as hosts are known beforehand.
fn hosts_have_one_password(plan: &Plan) {
    let mut writers: BTreeMap<&Host, BTreeSet<&[TokenSpec]>> = BTreeMap::new();
    for registry in &plan.registries {
        let hosts: Vec<&Host> = match &registry.hosts {
            Hosts::Named(hosts) => hosts.iter().map(|(host, _)| host).collect(),
            Hosts::Callers { extra, .. } => extra.iter().collect(),
        };
        for host in hosts {
            writers.entry(host).or_default().insert(&registry.token_specs);
        }
    }
    for (host, token_specs) in writers {
        assert_eq!(token_specs.len(), 1, "{host} has several passwords");
    }
}

/// An edit that only moves ids asks for the same tokens.
fn order_of_ids_does_not_matter(spec: &EcrCredentialSpec, planned: &Plan, limits: &Limits) {
    let mut turned = spec.clone();
    for private in turned.registries.iter_mut().filter_map(|registry| registry.private.as_mut()) {
        private.account_ids.reverse();
    }
    let turned = plan(&turned, limits).expect("a spec whose ids stand in another order");
    assert_eq!(turned.token_specs(), planned.token_specs());
}
