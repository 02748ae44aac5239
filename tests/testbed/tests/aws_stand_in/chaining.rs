//! AssumeRole from a session: external ids, durations, names, session policies.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use testbed::aws::{AwsStandIn, Permissions, PrincipalTrust, Role, Trust};

use crate::clients::*;

const TARGET: &str = "arn:aws:iam::999988887777:role/images";

fn trust() -> PrincipalTrust {
    Trust::principal(ROLE)
}

/// AssumeRole of `TARGET` from a session of the first role.
async fn ask(aws: &AwsStandIn, from: &Credentials) -> AssumeRoleFluentBuilder {
    sts(aws, Some(from.clone())).await.assume_role().role_arn(TARGET).role_session_name("chained")
}

async fn send(call: AssumeRoleFluentBuilder) -> Result<Credentials, String> {
    call.send().await.map(|answer| credentials(answer.credentials())).map_err(|error| code(&error))
}

#[tokio::test]
async fn a_role_lets_in_whom_it_trusts_and_its_session_pulls_in_its_own_account() {
    let (aws, _, from) = good_session().await;
    assert_eq!(send(ask(&aws, &from).await).await.unwrap_err(), "AccessDenied");
    aws.add_role(Role::new(TARGET).trusting(trust()));
    let chained = send(ask(&aws, &from).await).await.unwrap();
    let answer = ecr(&aws, "eu-west-1", &chained).await.get_authorization_token().send().await.unwrap();
    let host = "https://999988887777.dkr.ecr.eu-west-1.amazonaws.com";
    assert_eq!(answer.authorization_data()[0].proxy_endpoint(), Some(host));
    aws.set_permissions(ROLE, Permissions::pull().without("sts:AssumeRole"));
    assert_eq!(send(ask(&aws, &from).await).await.unwrap_err(), "AccessDenied");
}

#[tokio::test]
async fn an_external_id_must_be_the_one_that_is_asked_for() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust().external_id("tenant-7")));
    for (id, expected) in
        [(None, Err("AccessDenied")), (Some("tenant-8"), Err("AccessDenied")), (Some("tenant-7"), Ok(()))]
    {
        let answer = send(ask(&aws, &from).await.set_external_id(id.map(str::to_owned))).await.map(drop);
        assert_eq!(answer, expected.map_err(str::to_owned), "{id:?}");
    }
}

#[tokio::test]
async fn durations_and_names_are_bounded() {
    let (aws, issuer, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()).with_max_session(Duration::from_secs(43200)));
    for (seconds, expected) in [(899, "ValidationError"), (900, "OK"), (3600, "OK"), (3601, "ValidationError")] {
        let answer = send(ask(&aws, &from).await.duration_seconds(seconds)).await;
        assert_eq!(answer.map_or_else(|code| code, |_| "OK".to_owned()), expected, "{seconds} s by chaining");
    }
    let error = ask(&aws, &from).await.duration_seconds(7200).send().await.unwrap_err();
    let words = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining";
    assert_eq!(message(&error), words);
    for (name, expected) in [("a", "ValidationError"), ("a:b", "ValidationError"), ("a_+=,.@-9", "OK")] {
        let answer = send(ask(&aws, &from).await.role_session_name(name)).await;
        assert_eq!(answer.map_or_else(|code| code, |_| "OK".to_owned()), expected, "{name}");
    }
    for (longest, asked, expected) in [(3600, 7200, false), (43200, 43200, true), (43200, 43201, false)] {
        let trust = Trust::web_identity(ISSUER, SUBJECT, AUDIENCE);
        aws.add_role(Role::new(ROLE).trusting(trust).with_max_session(Duration::from_secs(longest)));
        let long = sts(&aws, None).await.assume_role_with_web_identity().role_arn(ROLE).role_session_name("long");
        let answer = long.web_identity_token(good_token(&issuer)).duration_seconds(asked).send().await;
        let code = answer.as_ref().map_or_else(code, |_| "OK".to_owned());
        assert_eq!(code, if expected { "OK" } else { "ValidationError" }, "{asked} s of {longest} s");
    }
}

#[tokio::test]
async fn only_the_arn_of_a_role_in_the_same_partition_will_do() {
    let (aws, _, from) = good_session().await;
    let cases = [
        ("arn:aws:iam::999988887777:user/images", "ValidationError"),
        ("arn:aws:iam::999988887777:role/", "ValidationError"),
        ("arn:aws:iam::99998888:role/images", "ValidationError"),
        ("arn:aws-cn:iam::999988887777:role/images", "ValidationError"),
        // STS does not tell a role that does not exist from one that does not trust.
        ("arn:aws:iam::999988887777:role/nobody", "AccessDenied"),
    ];
    for (arn, expected) in cases {
        assert_eq!(send(ask(&aws, &from).await.role_arn(arn)).await.unwrap_err(), expected, "{arn}");
    }
}

#[tokio::test]
async fn a_session_policy_must_parse_and_narrows_and_is_remembered() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()));
    for broken in ["{", r#"{"Version":"2012-10-17"}"#, r#"{"Version":"now","Statement":[]}"#] {
        assert_eq!(
            send(ask(&aws, &from).await.policy(broken)).await.unwrap_err(),
            "MalformedPolicyDocument",
            "{broken}"
        );
    }
    let padded = |length: usize| format!("{:length$}", policy("ecr:Get*"));
    assert_eq!(send(ask(&aws, &from).await.policy(padded(2049))).await.unwrap_err(), "ValidationError");
    assert_eq!(send(ask(&aws, &from).await.policy(padded(2048))).await.unwrap_err(), "PackedPolicyTooLarge");
    let narrow = send(ask(&aws, &from).await.policy(policy("ecr:Get*"))).await.unwrap();
    assert_eq!(ecr_code(&aws, "eu-west-1", &narrow).await, "OK");
    assert_eq!(public_code(&aws, "us-east-1", &narrow).await, "AccessDeniedException");
    let sessions = aws.sessions();
    let session = sessions.iter().find(|session| session.access_key == narrow.access_key_id()).unwrap();
    assert_eq!(session.session_policy(), Some(policy("ecr:Get*").as_str()));
    let answer = ask(&aws, &from).await.policy(policy("ecr:Get*")).send().await.unwrap();
    #[allow(deprecated, reason = "its successor measures something else, and AWS still sends this")]
    let size = answer.packed_policy_size();
    assert_eq!(size, Some(6), "AWS's own example, of about 100 characters, takes 6 %");
}

fn policy(action: &str) -> String {
    format!(r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"{action}","Resource":"*"}}]}}"#)
}
