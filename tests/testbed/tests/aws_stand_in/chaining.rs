//! AssumeRole from a session: external ids, tags, source identities, durations, session policies.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use aws_sdk_sts::types::Tag;
use testbed::aws::{AwsStandIn, Permissions, PrincipalTrust, Role, Trust};

use crate::clients::*;

const TARGET: &str = "arn:aws:iam::999988887777:role/images";
const FURTHER: &str = "arn:aws:iam::555566667777:role/further";

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

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().unwrap()
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
async fn tags_need_leave_and_transitive_ones_go_on() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()));
    let tagged =
        async || ask(&aws, &from).await.tags(tag("team", "a")).tags(tag("env", "test")).transitive_tag_keys("team");
    assert_eq!(send(tagged().await).await.unwrap_err(), "AccessDenied");
    aws.add_role(Role::new(TARGET).trusting(trust().allow_tags()));
    let first = send(tagged().await).await.unwrap();
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET).require_tag("team", "a")));
    let further = || async { ask(&aws, &first).await.role_arn(FURTHER) };
    let second = send(further().await).await.unwrap();
    let sessions = aws.sessions();
    let session = sessions.iter().find(|session| session.access_key == second.access_key_id()).unwrap();
    assert_eq!(session.tags.iter().collect::<Vec<_>>(), [(&"team".to_owned(), &"a".to_owned())]);
    assert_eq!(send(further().await.tags(tag("team", "b"))).await.unwrap_err(), "InvalidParameterValue");
    let unknown_key = ask(&aws, &from).await.transitive_tag_keys("nothing");
    assert_eq!(send(unknown_key).await.unwrap_err(), "InvalidParameterValue");
}

#[tokio::test]
async fn a_source_identity_needs_leave_and_sticks() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()));
    assert_eq!(send(ask(&aws, &from).await.source_identity("alice")).await.unwrap_err(), "AccessDenied");
    aws.add_role(Role::new(TARGET).trusting(trust().require_source_identity("alice")));
    assert_eq!(send(ask(&aws, &from).await).await.unwrap_err(), "AccessDenied");
    let alice = send(ask(&aws, &from).await.source_identity("alice")).await.unwrap();
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET).allow_source_identity()));
    assert_eq!(
        send(ask(&aws, &alice).await.role_arn(FURTHER).source_identity("bob")).await.unwrap_err(),
        "AccessDenied"
    );
    assert!(send(ask(&aws, &alice).await.role_arn(FURTHER)).await.is_ok());
}

#[tokio::test]
async fn durations_and_names_are_bounded() {
    let (aws, issuer, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()).with_max_session(Duration::from_secs(43200)));
    for (seconds, expected) in [(899, "ValidationError"), (900, "OK"), (3600, "OK"), (3601, "ValidationError")] {
        let answer = send(ask(&aws, &from).await.duration_seconds(seconds)).await;
        assert_eq!(answer.map_or_else(|code| code, |_| "OK".to_owned()), expected, "{seconds} s by chaining");
    }
    for (name, expected) in [("a", "ValidationError"), ("a:b", "ValidationError"), ("a_+=,.@-9", "OK")] {
        let answer = send(ask(&aws, &from).await.role_session_name(name)).await;
        assert_eq!(answer.map_or_else(|code| code, |_| "OK".to_owned()), expected, "{name}");
    }
    let long = sts(&aws, None).await.assume_role_with_web_identity().role_arn(ROLE).role_session_name("long");
    let answer = long.web_identity_token(good_token(&issuer)).duration_seconds(7200).send().await;
    assert_eq!(code(&answer.unwrap_err()), "ValidationError", "longer than the role's own limit");
}

#[tokio::test]
async fn a_session_policy_must_parse_and_narrows() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(trust()));
    for broken in ["{", r#"{"Version":"2012-10-17"}"#, r#"{"Version":"now","Statement":[]}"#] {
        assert_eq!(
            send(ask(&aws, &from).await.policy(broken)).await.unwrap_err(),
            "MalformedPolicyDocument",
            "{broken}"
        );
    }
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:Get*","Resource":"*"}]}"#;
    let narrow = send(ask(&aws, &from).await.policy(policy)).await.unwrap();
    assert_eq!(ecr_code(&aws, "eu-west-1", &narrow).await, "OK");
    assert_eq!(public_code(&aws, "us-east-1", &narrow).await, "AccessDeniedException");
}
