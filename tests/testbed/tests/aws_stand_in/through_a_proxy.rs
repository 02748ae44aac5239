//! The SDKs by nothing but a proxy and a CA bundle: they make up the host names themselves, and the stand-in sees which.

use std::path::Path;
use std::process::ExitStatus;

use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_smithy_http_client::pool::{self, ConnectionPool};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use serde_json::json;
use testbed::aws::{AwsProxy, AwsStandIn, Service, Variant};

use crate::clients::*;

/// A region of each partition, with the partition's name and its two domains.
const PARTITIONS: [(&str, &str, &str, &str); 8] = [
    ("eu-west-1", "aws", "amazonaws.com", "api.aws"),
    ("us-gov-west-1", "aws-us-gov", "amazonaws.com", "api.aws"),
    ("cn-north-1", "aws-cn", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("eusc-de-east-1", "aws-eusc", "amazonaws.eu", "api.amazonwebservices.eu"),
    ("us-iso-east-1", "aws-iso", "c2s.ic.gov", "api.aws.ic.gov"),
    ("us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov", "api.aws.scloud"),
    ("eu-isoe-west-1", "aws-iso-e", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("us-isof-south-1", "aws-iso-f", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
];

#[test]
fn every_variant_in_every_partition_has_its_host() {
    let (aws, proxy, ca) = proxied();
    let (mut calls, mut expected) = (vec![], vec![]);
    for (number, (region, partition, plain, dual)) in PARTITIONS.into_iter().enumerate() {
        let (key, secret) = (format!("AKIA{number:016}"), "a-secret-of-some-length");
        let arn = format!("arn:{partition}:iam::123456789012:user/puller");
        aws.add_user_with(&key, secret, &arn, testbed::aws::Permissions::pull());
        for variant in Variant::ALL {
            let (fips, dual_stack) = (variant.is_fips(), variant.is_dual_stack());
            calls.push(json!([region, fips, dual_stack, key, secret]));
            let dash = if fips { "-fips" } else { "" };
            let (sts, ecr) = match dual_stack {
                // GovCloud's plain host of STS is its FIPS host.
                false if partition == "aws-us-gov" => {
                    (format!("sts.{region}.{plain}"), format!("api.ecr{dash}.{region}.{plain}"))
                }
                false => (format!("sts{dash}.{region}.{plain}"), format!("api.ecr{dash}.{region}.{plain}")),
                true => (format!("sts{dash}.{region}.{dual}"), format!("ecr{dash}.{region}.{dual}")),
            };
            expected.extend([(sts, region.to_owned()), (ecr, region.to_owned())]);
        }
    }
    assert!(child("both", &proxy, &ca, &[("CALLS", &json!(calls).to_string())]).success());
    let all = aws.calls_since(Default::default());
    let seen: Vec<_> = all.iter().map(|call| (call.host.clone().unwrap().name, call.region.clone().unwrap())).collect();
    assert_eq!(seen, expected);
    assert!(all.iter().all(|call| call.code == "OK"), "{all:#?}");
    let fips = all.iter().filter(|call| call.service == Service::Ecr && call.host.as_ref().unwrap().variant.is_fips());
    assert_eq!(fips.count(), 2 * PARTITIONS.len());
}

#[test]
fn ecr_public_and_a_web_identity_go_the_same_way() {
    let (aws, proxy, ca) = proxied();
    let issuer = trusted_issuer(&aws);
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, good_token(&issuer)).unwrap();
    let identity = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.to_str().unwrap())];
    assert!(child("irsa", &proxy, &ca, &identity).success());
    let hosts: Vec<_> = aws.calls_since(Default::default()).into_iter().map(|call| call.host.unwrap().name).collect();
    let expected =
        ["sts.eu-west-1.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com", "api.ecr-public.us-east-1.amazonaws.com"];
    assert_eq!(hosts, expected);
    assert!(proxy.closed_tunnels().iter().all(|tunnel| tunnel.status == 200 && tunnel.failure.is_none()));
}

#[test]
fn the_sdks_own_client_takes_the_proxy_but_no_ca_bundle() {
    let (aws, proxy, ca) = proxied();
    assert!(child("default", &proxy, &ca, &[]).success());
    let tunnels = proxy.closed_tunnels();
    assert_eq!(tunnels[0].authority, "api.ecr.eu-west-1.amazonaws.com:443");
    assert!(tunnels[0].failure.as_deref().is_some_and(|why| why.contains("UnknownCA")), "{tunnels:?}");
    assert_eq!(aws.calls_since(Default::default()).len(), 0);
}

#[test]
fn a_proxy_may_want_a_login_and_may_not_know_a_host() {
    let (aws, proxy, ca) = proxied();
    proxy.require_login("someone:pass word");
    assert!(child("denied", &proxy, &ca, &[]).success());
    let with_login = proxy.url().replace("http://", "http://someone:pass%20word@");
    assert!(child("both", &proxy, &ca, &[("HTTPS_PROXY", &with_login), ("CALLS", &one_call(&aws))]).success());
    proxy.hide("api.ecr.eu-west-1.amazonaws.com");
    assert!(child("denied", &proxy, &ca, &[("HTTPS_PROXY", &with_login)]).success());
    let statuses: Vec<u16> = proxy.closed_tunnels().iter().map(|tunnel| tunnel.status).collect();
    assert_eq!(statuses, [407, 200, 200, 502]);
    assert_eq!(aws.calls_since(Default::default()).len(), 2);
}

fn proxied() -> (AwsStandIn, AwsProxy, tempfile::TempPath) {
    let aws = AwsStandIn::start().unwrap();
    let proxy = aws.proxy().unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::write(&ca, proxy.ca_pem()).unwrap();
    (aws, proxy, ca)
}

fn one_call(aws: &AwsStandIn) -> String {
    aws.add_user("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "123456789012");
    json!([["eu-west-1", false, false, "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"]]).to_string()
}

/// Runs `in_a_process_of_its_own` below in a new process of this test binary.
fn child(what: &str, proxy: &AwsProxy, ca: &Path, env: &[(&str, &str)]) -> ExitStatus {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "through_a_proxy::in_a_process_of_its_own", "--ignored", "--nocapture"]);
    command.env_clear().envs(proxy.env(ca)).env("WHAT", what).envs(env.iter().copied()).status().unwrap()
}

#[tokio::test]
#[ignore = "run by the tests above, in a process of its own"]
async fn in_a_process_of_its_own() {
    let key = Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "testbed");
    let loader =
        aws_config::defaults(BehaviorVersion::latest()).retry_config(aws_config::retry::RetryConfig::disabled());
    match std::env::var("WHAT").unwrap().as_str() {
        "both" => make_calls(&with_proxy_and_bundle(loader).credentials_provider(key).load().await).await,
        "irsa" => use_web_identity(&with_proxy_and_bundle(loader).load().await).await,
        "default" => assert!(fails(&loader.credentials_provider(key).load().await).await),
        _ => assert!(fails(&with_proxy_and_bundle(loader).credentials_provider(key).load().await).await),
    }
}

/// Both the proxy variables and a CA bundle: the SDK's default client has no way to be given the latter.
fn with_proxy_and_bundle(loader: ConfigLoader) -> ConfigLoader {
    let pem = std::fs::read(std::env::var("AWS_CA_BUNDLE").unwrap()).unwrap();
    let trusted =
        TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem)).build().unwrap();
    let pool = ConnectionPool::builder().proxy_config(ProxyConfig::from_env());
    let pool = pool.tls_provider(Provider::rustls(CryptoMode::AwsLc)).tls_context(trusted).build_https().unwrap();
    loader.http_client(pool::Client::new(&pool).unwrap())
}

async fn make_calls(config: &SdkConfig) {
    let calls: Vec<(String, bool, bool, String, String)> =
        serde_json::from_str(&std::env::var("CALLS").unwrap()).unwrap();
    for (region, fips, dual_stack, key, secret) in calls {
        let config =
            config.clone().into_builder().region(Region::new(region)).use_fips(fips).use_dual_stack(dual_stack);
        let key = Credentials::new(key, secret, None, None, "testbed");
        let config =
            config.credentials_provider(aws_credential_types::provider::SharedCredentialsProvider::new(key)).build();
        aws_sdk_sts::Client::new(&config).get_caller_identity().send().await.unwrap();
        aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await.unwrap();
    }
}

async fn use_web_identity(config: &SdkConfig) {
    aws_sdk_ecr::Client::new(config).get_authorization_token().send().await.unwrap();
    let config = config.clone().into_builder().region(Region::from_static("us-east-1")).build();
    aws_sdk_ecrpublic::Client::new(&config).get_authorization_token().send().await.unwrap();
}

/// Whether no answer of AWS came.
async fn fails(config: &SdkConfig) -> bool {
    let answer = aws_sdk_ecr::Client::new(config).get_authorization_token().send().await;
    answer.is_err_and(|error| matches!(error, aws_sdk_ecr::error::SdkError::DispatchFailure(_)))
}
