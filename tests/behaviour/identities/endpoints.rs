//! Which hosts of AWS are called and which hosts are written, in every partition; endpoint flags; certificates that are no good.

use std::collections::BTreeSet;

use testbed::aws::{AccessKey, ApiHost, Role};
use testbed::bed::Launch;

use super::super::demand::*;
use super::*;

/// A region of each partition, the partition, the domains of its plain and its dual-stack APIs, and of its plain and its
/// dual-stack registries: from AWS's lists of endpoints.
const PARTITIONS: [[&str; 5]; 8] = [
    ["eu-west-1", "aws", "amazonaws.com", "api.aws", "on.aws"],
    ["us-gov-west-1", "aws-us-gov", "amazonaws.com", "api.aws", "on.aws"],
    ["cn-north-1", "aws-cn", "amazonaws.com.cn", "api.amazonwebservices.com.cn", "on.amazonwebservices.com.cn"],
    ["eusc-de-east-1", "aws-eusc", "amazonaws.eu", "api.amazonwebservices.eu", "on.amazonwebservices.eu"],
    ["us-iso-east-1", "aws-iso", "c2s.ic.gov", "api.aws.ic.gov", ""],
    ["us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov", "api.aws.scloud", ""],
    ["eu-isoe-west-1", "aws-iso-e", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk", ""],
    ["us-isof-south-1", "aws-iso-f", "csp.hci.ic.gov", "api.aws.hci.ic.gov", ""],
];

/// An account for each variant, so that each entry of a region has hosts of its own.
const VARIANTS: [(&str, &str); 4] = [
    ("Standard", "100000000001"),
    ("Fips", "100000000002"),
    ("DualStack", "100000000003"),
    ("DualStackFips", "100000000004"),
];

fn api_host(variant: &str, [region, _, plain, dual, _]: [&str; 5]) -> String {
    match variant {
        "Fips" => format!("api.ecr-fips.{region}.{plain}"),
        "DualStack" => format!("ecr.{region}.{dual}"),
        "DualStackFips" => format!("ecr-fips.{region}.{dual}"),
        _ => format!("api.ecr.{region}.{plain}"),
    }
}

/// The hosts of an account's registry that exist in a partition, with the names of their families.
fn registry_hosts(account: &str, [region, _, plain, _, dual]: [&str; 5]) -> Vec<(&'static str, String)> {
    let mut hosts = vec![
        ("Standard", format!("{account}.dkr.ecr.{region}.{plain}")),
        ("Fips", format!("{account}.dkr.ecr-fips.{region}.{plain}")),
    ];
    if !dual.is_empty() {
        hosts.push(("DualStack", format!("{account}.dkr-ecr.{region}.{dual}")));
        hosts.push(("DualStackFips", format!("{account}.dkr-ecr-fips.{region}.{dual}")));
    }
    hosts
}

#[tokio::test]
async fn every_variant_in_every_partition_calls_its_host_and_writes_its_hosts() {
    let bed = bed("partitions").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let proxy = bed.aws.proxy().unwrap();
    let mut launch = launch().through(&proxy, &bed.write_ca(&proxy).unwrap());
    let (mut registries, mut written, mut called) = (Vec::new(), Vec::new(), BTreeSet::new());
    for partition in PARTITIONS {
        let [region, name, plain, ..] = partition;
        let user = format!("arn:{name}:iam::{ONE}:user/{}", bed.prefix);
        bed.aws.create_user(&user, Permissions::pull());
        let key: AccessKey = bed.aws.create_access_key(&user).unwrap();
        let secret = format!("keys-{name}");
        bed.keys_secret(&ops, &secret, &key).await.unwrap();
        launch = launch.credentials_secret(&format!("{ops}/{secret}"));
        let role = format!("arn:{name}:iam::{TWO}:role/{}", bed.prefix);
        bed.aws.add_role(Role::new(&role).trusting(Trust::principal(&user)));
        called.insert(format!("sts.{region}.{plain}"));
        for (variant, account) in VARIANTS {
            let hosts = registry_hosts(account, partition);
            let families: Vec<&str> = hosts.iter().map(|(family, _)| *family).collect();
            let private =
                json!({ "region": region, "accountIds": [account], "apiEndpoint": variant, "hostVariants": families });
            let mut auth = as_keys(&ops, &secret);
            auth["assumeRoles"] = json!([{ "roleArn": role }]);
            registries.push(json!({ "private": private, "auth": auth }));
            written.extend(hosts.into_iter().map(|(_, host)| host));
            called.insert(api_host(variant, partition));
        }
    }
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(Value::Array(registries), &[&a])).await.unwrap();
    let written: Vec<&str> = written.iter().map(String::as_str).collect();
    let secret = bed.logins_until(&a, &written).await.unwrap();
    bed.ready(&name).await.unwrap();
    let calls = bed.aws.calls_since(Default::default());
    assert!(calls.iter().all(|call| call.code == "OK"), "{calls:#?}");
    let hosts: BTreeSet<String> = calls.iter().map(|call| call.host.clone().unwrap().name).collect();
    assert_eq!(hosts, called);
    assert_eq!(fetches(&bed), (32, 0));
    for (host, auth) in logins(&secret).unwrap() {
        let token = bed.aws.token_of(&auth).unwrap();
        assert!(host.contains(&format!(".{}.", token.region)), "{host} has a login of {}", token.region);
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn ecr_public_is_never_called_by_a_fips_host() {
    let bed = bed("public-fips").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let proxy = bed.aws.proxy().unwrap();
    let ca = bed.write_ca(&proxy).unwrap();
    let registries =
        json!([{ "private": {} }, { "private": { "region": "us-east-1", "apiEndpoint": "Fips" } }, { "public": {} }]);
    let own = format!("{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com");
    let name = bed.name("x");
    for (number, (variable, expected)) in [
        (
            "AWS_REGION",
            [
                "api.ecr-fips.us-east-1.amazonaws.com",
                "api.ecr-public.us-east-1.amazonaws.com",
                "api.ecr.eu-west-1.amazonaws.com",
                "sts.eu-west-1.amazonaws.com",
            ],
        ),
        (
            "AWS_USE_FIPS_ENDPOINT",
            [
                "api.ecr-fips.eu-west-1.amazonaws.com",
                "api.ecr-fips.us-east-1.amazonaws.com",
                "api.ecr-public.us-east-1.amazonaws.com",
                "sts-fips.eu-west-1.amazonaws.com",
            ],
        ),
        (
            "AWS_USE_DUALSTACK_ENDPOINT",
            [
                "api.ecr-fips.us-east-1.amazonaws.com",
                "ecr-public.us-east-1.api.aws",
                "ecr.eu-west-1.api.aws",
                "sts.eu-west-1.api.aws",
            ],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let value = if variable == "AWS_REGION" { "eu-west-1" } else { "true" };
        let operator = bed.operator(launch().through(&proxy, &ca).env(variable, value)).await.unwrap();
        let mark = bed.aws.mark();
        match number {
            0 => drop(bed.credential("x", spec(registries.clone(), &[&a])).await.unwrap()),
            _ => {
                demand(&bed, &name, variable).await;
                served(&bed, &name, variable).await;
            }
        }
        bed.logins_until(&a, &[OWN, &own, PUBLIC]).await.unwrap();
        bed.ready(&name).await.unwrap();
        let calls = bed.aws.calls_since(mark);
        let hosts: BTreeSet<String> = calls.iter().filter_map(|call| Some(call.host.clone()?.name)).collect();
        assert_eq!(hosts.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{variable}");
        operator.stop().await.unwrap();
    }
    assert!(proxy.tunnels().iter().all(|tunnel| tunnel.status == 200), "{:?}", proxy.tunnels());
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_host_that_is_hidden_is_told_with_the_region() {
    let bed = bed("hidden").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let proxy = bed.aws.proxy().unwrap();
    proxy.hide("api.ecr-fips.eu-west-1.amazonaws.com");
    let operator = bed.operator(launch().through(&proxy, &bed.write_ca(&proxy).unwrap())).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": { "apiEndpoint": "Fips" } }]), &[&a])).await.unwrap();
    not_ready_until(&bed, &name, "AwsUnavailable", &["eu-west-1"]).await;
    bed.change(&name, json!({ "spec": { "registries": [{ "private": { "apiEndpoint": "Standard" } }] } }))
        .await
        .unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// The flags in place of the variables.
fn with_flags(bed: &Bed, mut launch: Launch) -> Launch {
    for service in Service::ALL {
        let flag = match service {
            Service::Ecr => "--aws-endpoint-url-ecr",
            Service::EcrPublic => "--aws-endpoint-url-ecr-public",
            Service::Sts => "--aws-endpoint-url-sts",
        };
        let variable = flag.trim_start_matches('-').replace('-', "_").to_uppercase();
        launch = launch.env(&variable, "").args(&[flag, &bed.aws.endpoint(service)]);
    }
    launch
}

#[tokio::test]
async fn endpoint_flags_hold_for_every_identity_and_leave_no_choice_of_a_host() {
    let bed = bed("flags").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let next = role_trusting(&bed, TWO, "next", Trust::principal(&role));
    let launch = with_flags(&bed, launch().service_account(&format!("{ops}/puller")));
    let operator = bed.operator(launch).await.unwrap();
    let registries =
        json!([{ "private": {} }, { "private": { "accountIds": [ACCOUNT] }, "auth": {} }, { "public": {} }]);
    let mut spec = spec(registries, &[&a]);
    spec["auth"] = as_account(&ops, "puller");
    spec["auth"]["assumeRoles"] = json!([{ "roleArn": next }]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.logins_until(&a, &[&host_of(TWO), OWN, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!((fetches(&bed), bed.aws.calls(Service::Sts).len()), ((2, 1), 3));
    let fips = json!([{ "private": { "apiEndpoint": "Fips" } }]);
    bed.change(&name, json!({ "spec": { "registries": fips } })).await.unwrap();
    let words = ["apiEndpoint", "--aws-endpoint-url-ecr", "aws.endpoints.ecr"];
    not_ready_until(&bed, &name, "InvalidSpec", &words).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_host_that_is_told_goes_before_a_kind_of_host_wherever_it_is_told() {
    let bed = bed("told-host").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let profile = bed.dir().join("aws-config");
    let role = role_trusting(&bed, TWO, "next", Trust::principal(&bed.role));
    let ecr = bed.aws.endpoint(Service::Ecr);
    std::fs::write(&profile, format!("[default]\nendpoint_url = {ecr}\n")).unwrap();
    let places = [
        ("AWS_ENDPOINT_URL_ECR", ecr.as_str()),
        ("AWS_ENDPOINT_URL", &ecr),
        ("AWS_CONFIG_FILE", profile.to_str().unwrap()),
    ];
    let registries = json!([{ "private": {} }, { "public": {} }, { "private": { "accountIds": [TWO] }, "auth": as_roles(json!([{ "roleArn": role }])) }]);
    let name = bed.credential("x", spec(registries.clone(), &[&a])).await.unwrap();
    for (variable, value) in places {
        let kinds = launch().env("AWS_USE_FIPS_ENDPOINT", "true").env("AWS_USE_DUALSTACK_ENDPOINT", "true");
        let operator = bed.operator(kinds.env("AWS_ENDPOINT_URL_ECR", "").env(variable, value)).await.unwrap();
        demand(&bed, &name, variable).await;
        served(&bed, &name, variable).await;
        bed.ready(&name).await.unwrap();
        let fips = json!([{ "private": { "apiEndpoint": "Fips" } }]);
        bed.change(&name, json!({ "spec": { "registries": fips } })).await.unwrap();
        not_ready_until(&bed, &name, "InvalidSpec", &["apiEndpoint", "AWS_ENDPOINT_URL"]).await;
        bed.change(&name, json!({ "spec": { "registries": registries } })).await.unwrap();
        bed.ready(&name).await.unwrap();
        operator.stop().await.unwrap();
    }
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn certificates_that_are_no_good_end_the_start_with_a_clear_error() {
    let bed = bed("bad-ca").await;
    let not_one = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for (number, content) in [None, Some(""), Some("no PEM at all"), Some(not_one)].into_iter().enumerate() {
        let file = bed.dir().join(format!("ca-{number}.pem"));
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let launch = launch().args(&["--aws-ca-bundle", file.to_str().unwrap()]).without_waiting();
        let mut operator = bed.operator(launch).await.unwrap();
        let status = operator.ended().await.unwrap();
        let log = std::fs::read_to_string(&operator.log).unwrap();
        assert!(!status.success() && !log.contains("panicked"), "{number}: {status}: {log}");
        assert!(log.contains("--aws-ca-bundle") && log.contains(file.to_str().unwrap()), "{number}: {log}");
    }
    bed.finish().await.unwrap();
}

#[test]
fn the_hosts_of_these_tests_are_aws_own() {
    for partition in PARTITIONS {
        for (variant, _) in VARIANTS {
            let host = ApiHost::parse(&api_host(variant, partition)).expect(variant);
            assert_eq!((format!("{:?}", host.variant), host.region.as_str()), (variant.to_owned(), partition[0]));
        }
    }
}
