//! What a session carries on along a chain of roles: tags, a source identity, and who was before it.

use aws_credential_types::Credentials;
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use aws_sdk_sts::types::Tag;
use testbed::aws::{AwsStandIn, Permissions, Role, Trust};

use crate::clients::*;

const TARGET: &str = "arn:aws:iam::999988887777:role/images";
const FURTHER: &str = "arn:aws:iam::555566667777:role/further";

async fn ask(aws: &AwsStandIn, from: &Credentials, role: &str) -> AssumeRoleFluentBuilder {
    sts(aws, Some(from.clone())).await.assume_role().role_arn(role).role_session_name("chained")
}

/// The session, or the code and the message of the refusal.
async fn send(call: AssumeRoleFluentBuilder) -> Result<Credentials, (String, String)> {
    let answer = call.send().await;
    answer.map(|answer| credentials(answer.credentials())).map_err(|error| (code(&error), message(&error)))
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().unwrap()
}

fn not_authorized(who: &str, action: &str, role: &str) -> (String, String) {
    let who = format!("arn:aws:sts::{who}");
    ("AccessDenied".to_owned(), format!("User: {who} is not authorized to perform: {action} on resource: {role}"))
}

#[tokio::test]
async fn tags_need_leave_of_the_role_and_of_the_caller() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE)));
    let tagged = async || ask(&aws, &from, TARGET).await.tags(tag("team", "a"));
    let refusal = not_authorized("123456789012:assumed-role/pull/testbed", "sts:TagSession", TARGET);
    assert_eq!(send(tagged().await).await.unwrap_err(), refusal);
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE).allow_tags()));
    assert!(send(tagged().await).await.is_ok());
    aws.set_permissions(ROLE, Permissions::pull().without("sts:TagSession"));
    assert_eq!(send(tagged().await).await.unwrap_err().0, "AccessDenied");
}

#[tokio::test]
async fn a_tag_that_is_asked_for_must_be_there() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE).require_tag("team", "a")));
    for (value, expected) in [(None, false), (Some("b"), false), (Some("a"), true)] {
        let tags = value.map(|value| vec![tag("team", value)]);
        assert_eq!(send(ask(&aws, &from, TARGET).await.set_tags(tags)).await.is_ok(), expected, "{value:?}");
    }
}

#[tokio::test]
async fn transitive_tags_go_on_where_they_are_let_in_and_cannot_be_changed() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE).allow_tags()));
    let first = ask(&aws, &from, TARGET).await.tags(tag("team", "a")).tags(tag("env", "test"));
    let first = send(first.transitive_tag_keys("team")).await.unwrap();
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET)));
    let refusal = not_authorized("999988887777:assumed-role/images/chained", "sts:TagSession", FURTHER);
    assert_eq!(send(ask(&aws, &first, FURTHER).await).await.unwrap_err(), refusal, "inherited tags need leave too");
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET).require_tag("team", "a")));
    let second = send(ask(&aws, &first, FURTHER).await).await.unwrap();
    let sessions = aws.sessions();
    let session = sessions.iter().find(|session| session.access_key == second.access_key_id()).unwrap();
    assert_eq!(session.tags.iter().collect::<Vec<_>>(), [(&"team".to_owned(), &"a".to_owned())]);
    for key in ["team", "TEAM"] {
        let changed = send(ask(&aws, &first, FURTHER).await.tags(tag(key, "b"))).await.unwrap_err();
        assert_eq!(changed.0, "InvalidParameterValue");
        assert!(changed.1.contains("conflicts with a transitive tag key from the calling session"), "{}", changed.1);
    }
}

#[tokio::test]
async fn tags_are_bounded() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE).allow_tags()));
    let many = |count: usize, length: usize| (0..count).map(|n| tag(&format!("T{n}"), &"a".repeat(length))).collect();
    let cases: [(Vec<Tag>, &str); 8] = [
        (many(50, 1), "OK"),
        (many(51, 1), "ValidationError"),
        (many(1, 256), "OK"),
        (many(1, 257), "ValidationError"),
        (many(9, 250), "PackedPolicyTooLarge"),
        (vec![tag("", "a")], "ValidationError"),
        (vec![tag("team", "a"), tag("Team", "b")], "InvalidParameterValue"),
        (vec![tag("team", "a#b")], "ValidationError"),
    ];
    for (number, (tags, expected)) in cases.into_iter().enumerate() {
        let answer = send(ask(&aws, &from, TARGET).await.set_tags(Some(tags))).await;
        assert_eq!(answer.map_or_else(|(code, _)| code, |_| "OK".to_owned()), expected, "case {number}");
    }
    let too_many = send(ask(&aws, &from, TARGET).await.set_tags(Some(many(9, 250)))).await.unwrap_err().1;
    assert_eq!(too_many, "Packed size of session tags consumes 498% of allotted space.", "as AWS answered to these");
    let unknown_key = ask(&aws, &from, TARGET).await.transitive_tag_keys("nothing");
    assert_eq!(send(unknown_key).await.unwrap_err().0, "InvalidParameterValue");
}

#[tokio::test]
async fn a_source_identity_needs_leave_at_each_role_and_sticks() {
    let (aws, _, from) = good_session().await;
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE)));
    let refusal = not_authorized("123456789012:assumed-role/pull/testbed", "sts:SetSourceIdentity", TARGET);
    assert_eq!(send(ask(&aws, &from, TARGET).await.source_identity("alice")).await.unwrap_err(), refusal);
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(ROLE).require_source_identity("alice")));
    assert_eq!(send(ask(&aws, &from, TARGET).await).await.unwrap_err().0, "AccessDenied");
    let alice = send(ask(&aws, &from, TARGET).await.source_identity("alice")).await.unwrap();
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET)));
    let refusal = not_authorized("999988887777:assumed-role/images/chained", "sts:SetSourceIdentity", FURTHER);
    assert_eq!(send(ask(&aws, &alice, FURTHER).await).await.unwrap_err(), refusal);
    aws.add_role(Role::new(FURTHER).trusting(Trust::principal(TARGET).allow_source_identity()));
    let bob = send(ask(&aws, &alice, FURTHER).await.source_identity("bob")).await;
    assert_eq!(bob.unwrap_err().0, "AccessDenied");
    assert!(send(ask(&aws, &alice, FURTHER).await).await.is_ok());
}

#[tokio::test]
async fn a_token_tells_the_whole_of_whom_it_was_issued_to() {
    let (aws, _, from) = good_session().await;
    let middle = Trust::principal(ROLE).external_id("tenant-7").allow_tags().allow_source_identity();
    aws.add_role(Role::new(TARGET).trusting(middle));
    let end = Trust::principal(TARGET).require_tag("team", "a").require_source_identity("ops");
    aws.add_role(Role::new(FURTHER).trusting(end));
    let first = ask(&aws, &from, TARGET).await.external_id("tenant-7").source_identity("ops");
    let first = send(first.tags(tag("team", "a")).transitive_tag_keys("team")).await.unwrap();
    let last = send(ask(&aws, &first, FURTHER).await.role_session_name("last").tags(tag("env", "x"))).await.unwrap();
    assert_eq!(ecr_code(&aws, "eu-west-1", &last).await, "OK");
    let token = aws.tokens().pop().unwrap();
    assert_eq!(token.principal, "arn:aws:sts::555566667777:assumed-role/further/last");
    assert!(token.is_of(FURTHER) && token.is_of(&token.principal) && !token.is_of(TARGET));
    assert_eq!((token.session_name.as_deref(), token.source_identity.as_deref()), (Some("last"), Some("ops")));
    assert_eq!(token.tags, [("env", "x"), ("team", "a")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let sessions = aws.sessions();
    let session = sessions.iter().find(|session| session.access_key == last.access_key_id()).unwrap();
    let chain = ["123456789012:assumed-role/pull/testbed", "999988887777:assumed-role/images/chained"];
    assert_eq!(session.chain, chain.map(|arn| format!("arn:aws:sts::{arn}")));
    let middle = sessions.iter().find(|session| session.access_key == first.access_key_id()).unwrap();
    assert_eq!(middle.external_id.as_deref(), Some("tenant-7"));
    let assumed: Vec<_> = aws.calls_since(Default::default()).into_iter().filter_map(|call| call.assumes).collect();
    assert_eq!(assumed, [ROLE, TARGET, FURTHER]);
}
