//! `plan()`: any spec is refused with a message, or becomes values of which each holds what it promises.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::registry::{AccountId, Host, Region};
use ecr_credential_operator::api::{EcrCredentialSpec, PrivateRegistry, Registry};
use ecr_credential_operator::plan::auth::Reference;
use ecr_credential_operator::plan::references::AccountScope;
use ecr_credential_operator::plan::{Hosts, Limits, Need, Plan, RegistryPlan, Service, plan};

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
    for (registry, written) in planned.registries.iter().zip(&spec.registries) {
        judge_registry(registry, written, limits);
    }
    hosts_have_one_password(&planned);
    let names = limits.secret_names.as_ref();
    assert!(
        names.is_none_or(|names| names.contains(&planned.secret_name)) && *planned.secret_name == *spec.secret.name
    );
    assert!(!planned.refresh.max_age.is_zero() && (10..=70).contains(&planned.refresh.at_percent));
    order_of_ids_does_not_matter(spec, &planned, limits);
}

fn is_long(spec: &EcrCredentialSpec) -> bool {
    serde_json::to_string(spec).is_ok_and(|text| text.len() > LONGEST / 4)
}

fn judge_registry(registry: &RegistryPlan, written: &Registry, limits: &Limits) {
    for need in registry.needs.iter().filter(|need| need.auth.refusal().is_none()) {
        match need.auth.reference() {
            Some(Reference::Account(AccountScope { namespace, name })) => {
                assert!(limits.lent.has_account(namespace.as_deref(), &name), "{name} was not lent");
            }
            Some(Reference::Keys(scope)) => assert!(limits.lent.keys.contains(&scope), "{scope} was not lent"),
            None => {}
        }
    }
    match (&written.private, &written.public) {
        (Some(private), None) => judge_private(registry, private, limits),
        (None, Some(_)) => {
            assert!(registry.anonymous_works && registry.needs.len() == 1);
            assert_eq!(registry.needs[0].service, Service::Public);
            assert_eq!(registry.hosts, Hosts::Named(vec![(Host::public(), None)]));
        }
        _ => panic!("a registry that is private and public, or neither"),
    }
}

fn judge_private(registry: &RegistryPlan, private: &PrivateRegistry, limits: &Limits) {
    assert!(!registry.anonymous_works);
    let region = private.region.as_deref().or(limits.region.as_ref().map(Region::as_str)).expect("a region");
    let accounts: BTreeSet<AccountId> = private.account_ids.iter().map(|id| account(id)).collect();
    let mut asked = BTreeSet::new();
    for need in &registry.needs {
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
    let mut expected: BTreeSet<Host> = private.extra_hosts.iter().map(|h| Host::parse(h).expect("a host")).collect();
    for id in &accounts {
        let own = |variant: &_| region.registry_host(id, *variant).expect("a host of this family");
        expected.extend(private.host_variants.iter().map(own));
    }
    assert_eq!(hosts.iter().map(|(host, _)| host.clone()).collect::<BTreeSet<_>>(), expected, "exactly these hosts");
    for (host, owner) in &hosts {
        assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(host));
        assert!(owner.is_none() || host.account() == *owner, "{host} is not of {owner:?}");
    }
}

/// Of two registries with different tokens none writes a host of the other, as far as hosts are known beforehand.
fn hosts_have_one_password(plan: &Plan) {
    let mut writers: BTreeMap<&Host, BTreeSet<&[Need]>> = BTreeMap::new();
    for registry in &plan.registries {
        let hosts: Vec<&Host> = match &registry.hosts {
            Hosts::Named(hosts) => hosts.iter().map(|(host, _)| host).collect(),
            Hosts::Callers { extra, .. } => extra.iter().collect(),
        };
        for host in hosts {
            writers.entry(host).or_default().insert(&registry.needs);
        }
    }
    for (host, needs) in writers {
        assert_eq!(needs.len(), 1, "{host} has several passwords");
    }
}

/// An edit that only moves ids asks for the same tokens.
fn order_of_ids_does_not_matter(spec: &EcrCredentialSpec, planned: &Plan, limits: &Limits) {
    let mut turned = spec.clone();
    for private in turned.registries.iter_mut().filter_map(|registry| registry.private.as_mut()) {
        private.account_ids.reverse();
    }
    let turned = plan(&turned, limits).expect("a spec whose ids stand in another order");
    assert_eq!(turned.needs(), planned.needs());
}
