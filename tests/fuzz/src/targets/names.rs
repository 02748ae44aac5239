//! Hosts, accounts, regions and ARNs: what the code takes is what the CRD's rules take, and what is made of names are names.

use std::sync::LazyLock;

use aws_sdk_ecr::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use ecr_credential_operator::api::arn::RoleArn;
use ecr_credential_operator::api::registry::{AccountId, Host, Region};
use ecr_credential_operator::api::{EcrCredential, HostVariant};
use ecr_credential_operator::token::ecr::account_of;
use futures::FutureExt;
use kube::CustomResourceExt;
use regex::Regex;
use serde_json::Value;

use crate::material::{ACCOUNTS, REGIONS, account};

/// Each line of the text is taken for everything.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for line in text.lines().take(8) {
        rules(line);
        host(line);
        for region in [Region::parse(line)].into_iter().flatten() {
            region_hosts(&region);
        }
        endpoint(line);
        role(line);
    }
}

/// The rules of the CRD that have the form of a regular expression.
struct Rules {
    host: Regex,
    account: Regex,
    region: Regex,
    role: Regex,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let crd = serde_json::to_value(EcrCredential::crd()).expect("the CRD");
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let private = &spec["registries"]["items"]["properties"]["private"]["properties"];
    let role = &spec["auth"]["properties"]["assumeRoles"]["items"]["properties"]["roleArn"];
    Rules {
        host: pattern(&private["extraHosts"]["items"]),
        account: pattern(&private["accountIds"]["items"]),
        region: pattern(&private["region"]),
        role: pattern(role),
    }
});

/// The expression in `self.matches('...')`. CEL's are RE2, whose `$` is the very end, as here.
fn pattern(schema: &Value) -> Regex {
    let rule = schema["x-kubernetes-validations"][0]["rule"].as_str().expect("a rule");
    let start = rule.find("matches('").expect("a match") + "matches('".len();
    let length = rule[start..].find("')").expect("its end");
    Regex::new(&rule[start..start + length]).expect("an expression")
}

fn rules(text: &str) {
    assert_eq!(AccountId::parse(text).is_ok(), RULES.account.is_match(text), "account {text:?}");
    let port = text.split_once(':').is_none_or(|(_, port)| port.parse().is_ok_and(|port: u32| port <= 65535));
    let host = RULES.host.is_match(text) && text.len() <= 260 && port;
    assert_eq!(Host::parse(text).is_ok(), host, "host {text:?}");
    let region = RULES.region.is_match(text) && text.len() <= 32;
    assert_eq!(Region::parse(text).is_ok(), region, "region {text:?}");
    // IAM's own bound on a path and a name, which no rule of the CRD says.
    let short = text.splitn(6, ':').nth(5).is_some_and(|rest| rest.len() <= "role/".len() + 576);
    let role = RULES.role.is_match(text) && short;
    assert_eq!(RoleArn::parse(text).is_ok(), role, "role {text:?}");
}

fn host(text: &str) {
    let Ok(host) = Host::parse(text) else { return };
    assert_eq!(host.as_str(), text);
    if let Some(account) = host.account() {
        let label = text.split('.').nth(1).unwrap_or_default();
        assert!(text.starts_with(account.as_str()) && label.starts_with("dkr"), "{text}");
        assert_eq!(text.matches(account.as_str()).count(), 1);
        assert!(!text.contains(':'), "kubelet takes a host with a port for another");
    }
}

/// What is made of a region is a host, names its account, and lies where the SDK looks for the API.
fn region_hosts(region: &Region) {
    for id in [ACCOUNTS[0], ACCOUNTS[1]].map(account) {
        for variant in HostVariant::ALL {
            let Ok(host) = region.registry_host(&id, variant) else { continue };
            assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host), "{host}");
            assert_eq!(host.account().as_ref(), Some(&id), "{host}");
            assert_eq!(account_of(&format!("https://{host}")), Some(id.clone()), "{host}");
        }
    }
    let standard = region.registry_host(&account(ACCOUNTS[0]), HostVariant::Standard).expect("every partition has it");
    if let Some(suffix) = sdk_suffix(region) {
        let own = standard.as_str().split_once(&format!(".{region}.")).map(|(_, suffix)| suffix);
        assert_eq!(own, Some(suffix.as_str()), "{region}");
    }
}

/// The DNS suffix of a region as the SDK has it, for regions of the usual form: others it takes for commercial ones.
fn sdk_suffix(region: &Region) -> Option<String> {
    static USUAL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("^(us-gov|us-iso[bf]?|eu-isoe|eusc-de|cn|us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]+$").expect("one")
    });
    static RESOLVER: LazyLock<DefaultResolver> = LazyLock::new(DefaultResolver::new);
    if !USUAL.is_match(region.as_str())
        || ["us-iso", "us-isob", "us-isof", "eu-isoe", "us-gov"].contains(&without_number(region))
    {
        return None;
    }
    let params = Params::builder().region(region.as_str()).build().ok()?;
    let endpoint = RESOLVER.resolve_endpoint(&params).now_or_never()?.ok()?;
    Some(endpoint.url().split_once(&format!(".{region}."))?.1.to_owned())
}

/// `us-iso-1` has the form of a commercial region, and there will be none.
fn without_number(region: &Region) -> &str {
    region.as_str().rsplit_once('-').map_or("", |(name, _)| name)
}

/// A `proxyEndpoint`.
fn endpoint(text: &str) {
    if let Some(account) = account_of(text) {
        assert!(text.starts_with(&format!("https://{account}.")), "{text}");
    }
    if let Ok(host) = Host::parse(text)
        && host.account().is_some()
    {
        assert_eq!(account_of(&format!("https://{text}")), host.account());
    }
}

fn role(text: &str) {
    match RoleArn::parse(text) {
        Ok(role) => {
            assert_eq!(role.as_str(), text);
            let there = REGIONS.into_iter().filter_map(|region| Region::parse(region).ok());
            for region in there {
                assert_eq!(
                    role.is_in_partition_of(&region),
                    text.starts_with(&format!("arn:{}:iam::", region.partition_name()))
                );
            }
        }
        // It stands in a status, whose size is bounded (in bytes).
        Err(error) => assert!(error.to_string().len() <= 4096, "{}", error.to_string().len()),
    }
}
