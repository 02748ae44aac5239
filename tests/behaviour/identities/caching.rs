//! Who shares sessions and tokens, what an edit of `auth` brings, and what is forgotten with its last user.

use kube::api::DeleteParams;
use testbed::bed::identities::ROLE_ARN;

use super::super::demand::*;
use super::super::look::{quiet, version};
use super::*;

/// A bed whose operator may write further Secret names and use the ServiceAccount `puller` of any namespace.
async fn setting(test: &str, more: &[&str]) -> (Bed, testbed::bed::Operator) {
    let bed = Bed::with_secret_names(test, CRD, more).await.unwrap();
    let mut launch = launch().service_account("*/puller");
    for name in more {
        launch = launch.args(&["--secret-name", &bed.name(name)]);
    }
    let operator = bed.operator(launch).await.unwrap();
    (bed, operator)
}

/// The same spec for another Secret.
fn into(bed: &Bed, mut spec: Value, secret: &str) -> Value {
    spec["secret"] = json!({ "name": bed.name(secret) });
    spec
}

async fn login_in(bed: &Bed, namespace: &str, secret: &str) -> String {
    let secret = bed.secrets(namespace).get(&bed.name(secret)).await.unwrap();
    logins(&secret).unwrap().into_values().next().unwrap()
}

#[tokio::test]
async fn equal_identities_share_a_session_and_a_token_and_unequal_ones_do_not() {
    let (bed, operator) = setting("shared", &["second", "third"]).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let role = role_trusting(&bed, ONE, "role", Trust::principal(&bed.role));
    let step = json!([{ "roleArn": role, "externalId": "x-1" }]);
    // Said in other words, it is the same.
    let same = json!([{ "externalId": "x-1", "sessionName": "ecr-credential-operator", "roleArn": role, "tags": {} }]);
    let other = json!([{ "roleArn": role, "externalId": "x-2" }]);
    let first = bed.credential("x", spec_as(as_roles(step), &[&a])).await.unwrap();
    let second = bed.credential("y", into(&bed, spec_as(as_roles(same), &[&a]), "second")).await.unwrap();
    for name in [&first, &second] {
        bed.ready(name).await.unwrap();
    }
    assert_eq!(fetches(&bed), (1, 0));
    assert_eq!(sessions_asked(&bed).len(), 1);
    assert_eq!(login_in(&bed, &a, "pull").await, login_in(&bed, &a, "second").await);
    let third = bed.credential("z", into(&bed, spec_as(as_roles(other), &[&a]), "third")).await.unwrap();
    bed.ready(&third).await.unwrap();
    assert_eq!(fetches(&bed), (2, 0));
    assert_eq!(sessions_asked(&bed).len(), 2);
    assert_ne!(login_in(&bed, &a, "pull").await, login_in(&bed, &a, "third").await);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_edit_of_auth_puts_the_new_identitys_token_into_every_secret_and_back() {
    let (bed, operator) = setting("edited", &["second", "third"]).await;
    let (a, b, ops) = (
        bed.namespace("a", &[]).await.unwrap(),
        bed.namespace("b", &[]).await.unwrap(),
        bed.namespace("ops", &[]).await.unwrap(),
    );
    let role = account_with_role(&bed, ACCOUNT, &ops, "puller").await;
    let account = || as_account(&ops, "puller");
    let name = bed.credential("x", spec_as(json!({}), &[&a, &b])).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(own_token(&bed, &a).await.is_of(&bed.role));
    let uid = bed.secret(&a).await.unwrap().unwrap().metadata.uid;

    let to_account = json!({ "spec": { "auth": account() } });
    let back = json!({ "spec": { "auth": null } });
    for (namespaces, patch, who) in [(2, &to_account, &role), (2, &back, &bed.role)] {
        let writes = bed.proxy.log().mark();
        bed.change(&name, patch.clone()).await.unwrap();
        for namespace in [&a, &b] {
            token_of(&bed, namespace, who).await;
        }
        bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        assert_eq!(login(&bed, &a, OWN).await, login(&bed, &b, OWN).await);
        assert_eq!(bed.proxy.log().writes_to_secrets_since(writes).len(), namespaces);
    }
    assert_eq!(fetches(&bed), (3, 0), "nobody else wanted what was given up");

    // Now each of the two is held for another EcrCredential, too.
    let y = bed.credential("y", into(&bed, spec_as(account(), &[&a]), "second")).await.unwrap();
    let z = bed.credential("z", into(&bed, spec_as(json!({}), &[&a]), "third")).await.unwrap();
    bed.ready(&y).await.unwrap();
    bed.ready(&z).await.unwrap();
    let calls = bed.aws.mark();
    for (patch, who, secret) in [(&to_account, &role, "second"), (&back, &bed.role, "third")] {
        bed.change(&name, patch.clone()).await.unwrap();
        for namespace in [&a, &b] {
            token_of(&bed, namespace, who).await;
        }
        bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        assert_eq!(login(&bed, &a, OWN).await, login_in(&bed, &a, secret).await);
    }
    assert_eq!(bed.aws.calls_since(calls).len(), 0, "both were in memory");
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().metadata.uid, uid, "updated in place");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn from_one_identity_for_all_to_one_for_each_and_back() {
    let (bed, operator) = setting("to-each", &[]).await;
    let mut roles = Vec::new();
    let mut namespaces = Vec::new();
    for name in ["a", "b", "c"] {
        let namespace = bed.namespace(name, &[]).await.unwrap();
        roles.push(account_with_role(&bed, ACCOUNT, &namespace, "puller").await);
        namespaces.push(namespace);
    }
    let targets: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let name = bed.credential("x", spec_as(json!({}), &targets)).await.unwrap();
    bed.ready(&name).await.unwrap();
    let shared = own_token(&bed, &namespaces[0]).await;
    for round in 0..2 {
        bed.change(&name, json!({ "spec": { "auth": as_each("puller") } })).await.unwrap();
        for (namespace, role) in namespaces.iter().zip(&roles) {
            token_of(&bed, namespace, role).await;
        }
        bed.ready(&name).await.unwrap();
        bed.change(&name, json!({ "spec": { "auth": null } })).await.unwrap();
        for namespace in &namespaces {
            token_of(&bed, namespace, &bed.role).await;
        }
        bed.ready(&name).await.unwrap();
        let again = own_token(&bed, &namespaces[0]).await;
        assert_ne!(again.auth, shared.auth);
        assert_eq!(again.auth, own_token(&bed, &namespaces[2]).await.auth);
        // The second time the tokens of the namespaces are still kept.
        assert_eq!(fetches(&bed).0, 1 + 3 + (round + 1));
    }
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 3 * 5);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn with_its_last_user_a_session_and_its_token_are_forgotten() {
    let (bed, operator) = setting("forgotten", &["second"]).await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let auth = || as_account(&ops, "puller");
    let x = bed.credential("x", spec_as(auth(), &[&a])).await.unwrap();
    let y = bed.credential("y", into(&bed, spec_as(auth(), &[&a]), "second")).await.unwrap();
    bed.ready(&x).await.unwrap();
    bed.ready(&y).await.unwrap();
    let before = login(&bed, &a, &host_of(ONE)).await;
    assert_eq!((fetches(&bed).0, sessions_asked(&bed).len()), (1, 1));
    // One of two users gone, nothing is forgotten.
    bed.credentials().delete(&x, &DeleteParams::default()).await.unwrap();
    bed.secret_until(&a, "gone", |secret| secret.is_none()).await.unwrap();
    let x = bed.credential("x2", spec_as(auth(), &[&a])).await.unwrap();
    bed.ready(&x).await.unwrap();
    assert_eq!(login(&bed, &a, &host_of(ONE)).await, before);
    assert_eq!((fetches(&bed).0, sessions_asked(&bed).len()), (1, 1));
    for name in [&x, &y] {
        bed.credentials().delete(name, &DeleteParams::default()).await.unwrap();
    }
    bed.secret_until(&a, "gone", |secret| secret.is_none()).await.unwrap();
    let z = bed.credential("z", spec_as(auth(), &[&a])).await.unwrap();
    bed.ready(&z).await.unwrap();
    assert_ne!(login(&bed, &a, &host_of(ONE)).await, before);
    assert_eq!((fetches(&bed).0, sessions_asked(&bed).len()), (2, 2));
    token_of(&bed, &a, &role).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_edit_to_an_identity_that_is_denied_leaves_the_old_token_until_the_new_one_is_there() {
    let (bed, operator) = setting("denied-edit", &[]).await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = role_trusting(&bed, ACCOUNT, "role", bed.trust_of(&ops, "nobody"));
    bed.service_account(&ops, "puller", &[(ROLE_ARN, &role)]).await.unwrap();
    let name = bed.credential("x", spec_as(json!({}), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.secret(&a).await.unwrap().unwrap();
    bed.change(&name, json!({ "spec": { "auth": as_account(&ops, "puller") } })).await.unwrap();
    registry_until(&bed, &name, 0, "AccessDenied", &["sts:AssumeRoleWithWebIdentity"]).await;
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&before));
    bed.aws.add_role(Role::new(&role).trusting(bed.trust_of(&ops, "puller")));
    token_of(&bed, &a, &role).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().metadata.uid, before.metadata.uid);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
