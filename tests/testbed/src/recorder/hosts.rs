//! Which registry hosts an EcrCredential configures, from AWS' endpoint patterns.

use std::collections::BTreeSet;

use serde_json::Value;

use super::history::Version;

/// What an EcrCredential leaves to the operator.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The operator's own region.
    pub region: Option<String>,
    /// The account of the operator's own AWS identity.
    pub account: Option<String>,
}

/// The hosts that the Secret may hold; `None` when that depends on a default that is not known here.
pub(super) fn configured_hosts(credential: &Version, defaults: &Defaults) -> Option<BTreeSet<String>> {
    let mut hosts = BTreeSet::new();
    for registry in credential.object["spec"]["registries"].as_array().into_iter().flatten() {
        if registry["public"].is_object() {
            hosts.insert("public.ecr.aws".to_owned());
        } else {
            private_hosts(&registry["private"], defaults, &mut hosts)?;
        }
    }
    Some(hosts)
}

fn private_hosts(private: &Value, defaults: &Defaults, hosts: &mut BTreeSet<String>) -> Option<()> {
    let region = private["region"].as_str().or(defaults.region.as_deref())?;
    let own = defaults.account.as_deref();
    let accounts = match strings(&private["accountIds"]) {
        listed if listed.is_empty() => vec![own?],
        listed => listed,
    };
    let variants = match strings(&private["hostVariants"]) {
        listed if listed.is_empty() => vec!["Standard"],
        listed => listed,
    };
    for account in accounts {
        hosts.extend(variants.iter().map(|variant| host(account, region, variant)));
    }
    hosts.extend(strings(&private["extraHosts"]).into_iter().map(str::to_owned));
    Some(())
}

fn host(account: &str, region: &str, variant: &str) -> String {
    let china = region.starts_with("cn-");
    let (standard, dual_stack) =
        if china { ("amazonaws.com.cn", "on.amazonwebservices.com.cn") } else { ("amazonaws.com", "on.aws") };
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

    use super::super::fixture::version;
    use super::*;

    #[test]
    fn hosts_follow_account_region_and_variant() {
        let defaults = Defaults { region: Some("eu-west-1".into()), account: Some("999999999999".into()) };
        let cases = [
            (json!({"public": {}}), vec!["public.ecr.aws"]),
            (json!({"private": {}}), vec!["999999999999.dkr.ecr.eu-west-1.amazonaws.com"]),
            (
                json!({"private": {"region": "cn-north-1", "accountIds": ["1"]}}),
                vec!["1.dkr.ecr.cn-north-1.amazonaws.com.cn"],
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
            let hosts = configured_hosts(&version(json!({"spec": {"registries": [registry]}})), &defaults).unwrap();
            assert_eq!(hosts.into_iter().collect::<Vec<_>>(), expected, "{registry}");
        }
        let unknown = version(json!({"spec": {"registries": [{"private": {}}]}}));
        assert_eq!(configured_hosts(&unknown, &Defaults::default()), None);
    }
}
