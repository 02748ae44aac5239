//! The SDK's default chain in a process of its own, which knows the stand-in from its environment alone: as the operator does.

use aws_config::{BehaviorVersion, Region};
use testbed::aws::{AwsStandIn, Service};

use crate::clients::*;

#[test]
fn a_process_with_the_environment_of_irsa_gets_both_tokens() {
    let (aws, issuer) = stand_in();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), good_token(&issuer)).unwrap();
    let token_file = file.path().to_str().unwrap();
    run_child(&aws, &[("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file)]);
    assert_eq!(aws.calls(Service::Sts)[0].api, "AssumeRoleWithWebIdentity");
    assert_only_ok(&aws);
}

#[test]
fn a_process_with_a_static_key_gets_both_tokens() {
    let (aws, _) = stand_in();
    aws.add_user("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "123456789012");
    let key = ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
    run_child(&aws, &[key, ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")]);
    assert_only_ok(&aws);
}

fn assert_only_ok(aws: &AwsStandIn) {
    let codes = |service| aws.calls(service).into_iter().map(|call| call.code).collect::<Vec<_>>();
    assert_eq!((codes(Service::Ecr), codes(Service::EcrPublic)), (vec!["OK".to_owned()], vec!["OK".to_owned()]));
}

/// Runs `child` below in a new process of this test binary.
fn run_child(aws: &AwsStandIn, env: &[(&str, &str)]) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "default_chain::child", "--ignored", "--nocapture"]);
    let status = command.env_clear().envs(aws.env()).envs(env.iter().copied()).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
#[ignore = "run by the tests above, in a process of its own"]
async fn child() {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let ecr = aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await.unwrap();
    assert_eq!(ecr.authorization_data().len(), 1);
    let config = config.into_builder().region(Region::new("us-east-1")).build();
    let public = aws_sdk_ecrpublic::Client::new(&config).get_authorization_token().send().await.unwrap();
    assert!(public.authorization_data().is_some());
}
