//! Which registry hosts an EcrCredential configures, from AWS' endpoint patterns.

use std::collections::BTreeMap;

use serde_json::Value;

/// What an EcrCredential leaves to the operator.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The operator's own region.
    pub region: Option<String>,
    /// The account of the operator's own AWS identity.
    pub account: Option<String>,
}

/// The hosts that the Secret may hold in a namespace whose tenant has this account, each with what its token is for: `public`, or
/// `ecr/eu-west-1`. `None` when that depends on a default that is not known here.
pub fn configured_hosts(
    credential: &Value,
    defaults: &Defaults,
    tenant: Option<&str>,
) -> Option<BTreeMap<String, String>> {
    let spec = &credential["spec"];
    let mut hosts = BTreeMap::new();
    for registry in spec["registries"].as_array().into_iter().flatten() {
        if registry["public"].is_object() {
            let variants = match strings(&registry["public"]["hostVariants"]) {
                listed if listed.is_empty() => vec!["Standard"],
                listed => listed,
            };
            let host = |variant| if variant == "DualStack" { "ecr-public.aws.com" } else { "public.ecr.aws" };
            hosts.extend(variants.into_iter().map(|variant| (host(variant).to_owned(), "public".to_owned())));
        } else {
            let auth = if registry["auth"].is_object() { &registry["auth"] } else { &spec["auth"] };
            let own = own_account(auth, defaults, tenant);
            private_hosts(&registry["private"], defaults, own.as_deref(), &mut hosts)?;
        }
    }
    Some(hosts)
}

/// The account of the identity that fetches the token, which is that of its last role.
fn own_account(auth: &Value, defaults: &Defaults, tenant: Option<&str>) -> Option<String> {
    let last = auth["assumeRoles"].as_array().and_then(|roles| roles.last()).map(|role| &role["roleArn"]);
    let role = last.unwrap_or(&auth["serviceAccount"]["roleArn"]);
    let named = role.as_str().and_then(account_of);
    if named.is_some() || auth["serviceAccount"].is_object() || auth["secretRef"].is_object() {
        return named.or(tenant).map(str::to_owned);
    }
    defaults.account.clone()
}

/// The account in an ARN: `arn:aws:iam::123456789012:role/pull`.
pub fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|account| !account.is_empty())
}

fn private_hosts(
    private: &Value,
    defaults: &Defaults,
    own: Option<&str>,
    hosts: &mut BTreeMap<String, String>,
) -> Option<()> {
    let region = private["region"].as_str().or(defaults.region.as_deref())?;
    let accounts = match strings(&private["accountIds"]) {
        listed if listed.is_empty() => vec![own?],
        listed => listed,
    };
    let variants = match strings(&private["hostVariants"]) {
        listed if listed.is_empty() => vec!["Standard"],
        listed => listed,
    };
    let of_account = |account| variants.iter().map(move |variant| host(account, region, variant));
    let own = accounts.into_iter().flat_map(of_account);
    let all = own.chain(strings(&private["extraHosts"]).into_iter().map(str::to_owned));
    hosts.extend(all.map(|host| (host, format!("ecr/{region}"))));
    Some(())
}

fn host(account: &str, region: &str, variant: &str) -> String {
    let (standard, dual_stack) = match region.rsplitn(3, '-').last().unwrap_or_default() {
        "cn" => ("amazonaws.com.cn", "on.amazonwebservices.com.cn"),
        "eusc-de" => ("amazonaws.eu", "on.amazonwebservices.eu"),
        "us-iso" => ("c2s.ic.gov", ""),
        "us-isob" => ("sc2s.sgov.gov", ""),
        "eu-isoe" => ("cloud.adc-e.uk", ""),
        "us-isof" => ("csp.hci.ic.gov", ""),
        _ => ("amazonaws.com", "on.aws"),
    };
    match variant {
        "Fips" => format!("{account}.dkr.ecr-fips.{region}.{standard}"),
        "DualStack" => format!("{account}.dkr-ecr.{region}.{dual_stack}"),
        "DualStackFips" => format!("{account}.dkr-ecr-fips.{region}.{dual_stack}"),
        _ => format!("{account}.dkr.ecr.{region}.{standard}"),
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_follow_account_region_and_variant() {
        let defaults = Defaults { region: Some("eu-west-1".into()), account: Some("999999999999".into()) };
        let cases = [
            (json!({"public": {}}), vec!["public.ecr.aws"]),
            (
                json!({"public": {"hostVariants": ["Standard", "DualStack"]}}),
                vec!["ecr-public.aws.com", "public.ecr.aws"],
            ),
            (json!({"private": {}}), vec!["999999999999.dkr.ecr.eu-west-1.amazonaws.com"]),
            (
                json!({"private": {"region": "cn-north-1", "accountIds": ["1"]}}),
                vec!["1.dkr.ecr.cn-north-1.amazonaws.com.cn"],
            ),
            (
                json!({"private": {"region": "us-iso-east-1", "accountIds": ["1"]}}),
                vec!["1.dkr.ecr.us-iso-east-1.c2s.ic.gov"],
            ),
            (
                json!({"private": {"region": "eusc-de-east-1", "accountIds": ["1"], "hostVariants": ["DualStack"]}}),
                vec!["1.dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu"],
            ),
            (
                json!({"private": {"region": "us-gov-west-1", "accountIds": ["1"], "hostVariants": ["Fips"]}}),
                vec!["1.dkr.ecr-fips.us-gov-west-1.amazonaws.com"],
            ),
            (
                json!({"private": {"accountIds": ["1"], "hostVariants": ["Fips", "DualStack", "DualStackFips"], "extraHosts": ["x.y"]}}),
                vec![
                    "1.dkr-ecr-fips.eu-west-1.on.aws",
                    "1.dkr-ecr.eu-west-1.on.aws",
                    "1.dkr.ecr-fips.eu-west-1.amazonaws.com",
                    "x.y",
                ],
            ),
        ];
        for (registry, expected) in cases {
            let hosts = configured_hosts(&json!({"spec": {"registries": [registry]}}), &defaults, None).unwrap();
            assert_eq!(hosts.into_keys().collect::<Vec<_>>(), expected, "{registry}");
        }
        let unknown = json!({"spec": {"registries": [{"private": {}}]}});
        assert_eq!(configured_hosts(&unknown, &Defaults::default(), None), None);
    }

    #[test]
    fn without_accounts_the_host_is_that_of_the_last_role() {
        let defaults = Defaults { region: Some("eu-west-1".into()), account: Some("999999999999".into()) };
        let role = |account: &str| format!("arn:aws:iam::{account}:role/pull");
        let cases = [
            (json!({}), None, Some("999999999999")),
            (json!({"assumeRoles": [{"roleArn": role("1")}, {"roleArn": role("2")}]}), None, Some("2")),
            (json!({"serviceAccount": {"name": "p", "roleArn": role("3")}}), None, Some("3")),
            (json!({"serviceAccount": {"name": "p"}}), Some("4"), Some("4")),
            (json!({"serviceAccount": {"name": "p"}}), None, None),
            (json!({"secretRef": {"name": "k"}}), None, None),
            (json!({"secretRef": {"name": "k"}, "assumeRoles": [{"roleArn": role("5")}]}), None, Some("5")),
        ];
        for (auth, tenant, expected) in cases {
            for (whole, own) in [(auth.clone(), json!(null)), (json!({"secretRef": {}}), auth.clone())] {
                let spec = json!({"auth": whole, "registries": [{"private": {}, "auth": own}]});
                let hosts = configured_hosts(&json!({"spec": spec}), &defaults, tenant);
                let hosts = hosts.map(|hosts| hosts.into_keys().collect::<Vec<_>>());
                let expected = expected.map(|account| vec![format!("{account}.dkr.ecr.eu-west-1.amazonaws.com")]);
                assert_eq!(hosts, expected, "{spec}");
            }
        }
    }
}
