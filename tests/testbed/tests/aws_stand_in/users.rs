//! IAM users and their keys, which come and go while a caller holds them.

use aws_credential_types::Credentials;
use testbed::aws::{AccessKey, AwsStandIn, Permissions, Role, Trust};

use crate::clients::*;

const USER: &str = "arn:aws:iam::123456789012:user/teams/puller";

fn with_user() -> (AwsStandIn, AccessKey) {
    let (aws, _) = stand_in();
    aws.create_user(USER, Permissions::pull());
    let key = aws.create_access_key(USER).unwrap();
    (aws, key)
}

fn of(key: &AccessKey) -> Credentials {
    Credentials::new(&key.id, &key.secret, key.session_token.clone(), None, "testbed")
}

/// The codes of ECR and of STS.
async fn codes(aws: &AwsStandIn, key: &AccessKey) -> (String, String) {
    let identity = sts(aws, Some(of(key))).await.get_caller_identity().send().await;
    (ecr_code(aws, "eu-west-1", &of(key)).await, identity.map_or_else(|error| code(&error), |_| "OK".to_owned()))
}

fn ok() -> (String, String) {
    ("OK".to_owned(), "OK".to_owned())
}

fn unknown() -> (String, String) {
    ("UnrecognizedClientException".to_owned(), "InvalidClientTokenId".to_owned())
}

#[tokio::test]
async fn a_key_is_known_while_it_is_active() {
    let (aws, key) = with_user();
    assert_eq!(codes(&aws, &key).await, ok());
    aws.set_access_key_active(&key.id, false);
    assert_eq!(codes(&aws, &key).await, unknown());
    aws.set_access_key_active(&key.id, true);
    assert_eq!(codes(&aws, &key).await, ok());
    aws.delete_access_key(&key.id);
    assert_eq!(codes(&aws, &key).await, unknown());
    assert!(aws.tokens().iter().all(|token| token.is_of(USER) && token.session_name.is_none()));
}

#[tokio::test]
async fn a_key_is_replaced_by_a_second_one_and_there_is_no_third() {
    let (aws, old) = with_user();
    let new = aws.create_access_key(USER).unwrap();
    assert!(aws.create_access_key(USER).unwrap_err().to_string().contains("LimitExceeded"));
    assert_eq!((codes(&aws, &old).await, codes(&aws, &new).await), (ok(), ok()));
    aws.delete_access_key(&old.id);
    assert_eq!((codes(&aws, &old).await, codes(&aws, &new).await), (unknown(), ok()));
    let secrets = aws.secrets_issued();
    assert!(secrets.contains(&new.secret) && secrets.contains(&old.secret), "also what is no longer good");
}

#[tokio::test]
async fn what_a_user_may_do_changes_at_once_and_is_told_in_iams_words() {
    let (aws, key) = with_user();
    aws.set_permissions(USER, Permissions::none());
    let error = ecr(&aws, "eu-west-1", &of(&key)).await.get_authorization_token().send().await.unwrap_err();
    let words = format!(
        "User: {USER} is not authorized to perform: ecr:GetAuthorizationToken on resource: * because no \
         identity-based policy allows the ecr:GetAuthorizationToken action"
    );
    assert_eq!((code(&error), message(&error)), ("AccessDeniedException".to_owned(), words));
    aws.set_permissions(USER, Permissions::pull());
    assert_eq!(codes(&aws, &key).await, ok());
}

#[tokio::test]
async fn a_role_may_trust_a_user_whose_sessions_outlive_the_key() {
    const TARGET: &str = "arn:aws:iam::999988887777:role/images";
    let (aws, key) = with_user();
    let assume = async || {
        let call = sts(&aws, Some(of(&key))).await.assume_role().role_arn(TARGET).role_session_name("from-a-user");
        call.duration_seconds(3600).send().await.map(|answer| credentials(answer.credentials())).map_err(|e| code(&e))
    };
    aws.add_role(Role::new(TARGET).trusting(Trust::principal("arn:aws:iam::123456789012:user/puller")));
    assert_eq!(assume().await.unwrap_err(), "AccessDenied", "a user's path is part of its name");
    aws.add_role(Role::new(TARGET).trusting(Trust::principal(USER)));
    let session = assume().await.unwrap();
    aws.delete_access_key(&key.id);
    assert_eq!(ecr_code(&aws, "eu-west-1", &session).await, "OK");
}

#[tokio::test]
async fn a_session_that_was_handed_on_is_good_until_it_ends() {
    let (aws, _) = stand_in();
    let handed = aws.start_session(ROLE, "by-hand", std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(codes(&aws, &handed).await, ok());
    let without_token = AccessKey { session_token: None, ..handed.clone() };
    assert_eq!(codes(&aws, &without_token).await, unknown());
    aws.clock().advance(jiff::SignedDuration::from_secs(61));
    let expired = ("ExpiredTokenException".to_owned(), "ExpiredToken".to_owned());
    assert_eq!(codes(&aws, &handed).await, expired);
    assert!(aws.start_session("arn:aws:iam::123456789012:role/nobody", "x", Default::default()).is_err());
}
