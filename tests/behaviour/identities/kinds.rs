//! Each kind of identity: a ServiceAccount, static keys, the operator's own, and one for each registry.

use std::time::Duration;

use testbed::aws::{AccessKey, Role};
use testbed::bed::identities::{AUDIENCE, ROLE_ARN, STS};

use super::*;

#[tokio::test]
async fn role_and_audiences_come_from_the_spec_before_the_annotations() {
    let bed = bed("audiences").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let annotated = account_with_role(&bed, ONE, &ops, "puller").await;
    let subject = format!("system:serviceaccount:{ops}:puller");
    let role = |name: &str, audience: &str| {
        role_trusting(&bed, TWO, name, Trust::web_identity(&bed.plane.issuer(), &subject, audience))
    };
    let (other, by_annotation, by_spec) =
        (role("other", STS), role("annotated", "annotated.example.com"), role("spec", "spec.example.com"));
    let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
    let name = bed.credential("x", spec_as(as_account(&ops, "puller"), &[&a])).await.unwrap();
    token_of(&bed, &a, &annotated).await;

    let change = async |account: Value| {
        bed.change(&name, json!({ "spec": { "auth": { "serviceAccount": account } } })).await.unwrap();
    };
    change(json!({ "roleArn": other })).await;
    token_of(&bed, &a, &other).await;
    bed.logins_until(&a, &[&host_of(TWO)]).await.unwrap();
    bed.annotate(&ops, "puller", &[(AUDIENCE, Some("annotated.example.com")), (ROLE_ARN, Some(&by_annotation))])
        .await
        .unwrap();
    change(json!({ "roleArn": null })).await;
    token_of(&bed, &a, &by_annotation).await;
    change(json!({ "roleArn": by_spec, "audiences": ["spec.example.com", "and.more.example.com"] })).await;
    token_of(&bed, &a, &by_spec).await;
    bed.ready(&name).await.unwrap();
    let granted = bed.proxy.log().granted_tokens();
    let audiences: Vec<&[String]> = granted.iter().map(|token| token.audiences.as_slice()).collect();
    assert!(audiences.contains(&["annotated.example.com".to_owned()].as_slice()), "{audiences:?}");
    assert_eq!(*audiences.last().unwrap(), ["spec.example.com", "and.more.example.com"]);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn static_keys_serve_with_white_space_around_them_and_under_other_names() {
    let bed = bed("static").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let (user, key) = user_with_key(&bed, ONE, "puller");
    let padded =
        [("AWS_ACCESS_KEY_ID", format!("{}\n", key.id)), ("AWS_SECRET_ACCESS_KEY", format!(" {}\r\n", key.secret))];
    let padded: Vec<(&str, &str)> = padded.iter().map(|(name, value)| (*name, value.as_str())).collect();
    bed.keys_secret_of(&ops, "keys", &padded).await.unwrap();
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let name = bed.credential("x", spec_as(as_keys(&ops, "keys"), &[&a])).await.unwrap();
    token_of(&bed, &a, &user).await;
    bed.logins_until(&a, &[&host_of(ONE)]).await.unwrap();
    bed.ready(&name).await.unwrap();

    // Under other names, and beside them keys under the usual names that are no good.
    let (other, key) = user_with_key(&bed, TWO, "other");
    let renamed = [("AWS_ACCESS_KEY_ID", "AKIANOGOODNOGOODNOGO"), ("id", key.id.as_str()), ("secret.key", &key.secret)];
    bed.keys_secret_of(&ops, "keys", &renamed).await.unwrap();
    let keys = json!({ "accessKeyIdKey": "id", "secretAccessKeyKey": "secret.key" });
    bed.change(&name, json!({ "spec": { "auth": { "secretRef": keys } } })).await.unwrap();
    token_of(&bed, &a, &other).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.aws.calls(Service::Sts).len(), 0, "no session is made of keys");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn keys_with_a_session_token_serve_alone_and_before_a_role() {
    let bed = bed("session").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = format!("arn:aws:iam::{ONE}:role/{}-elsewhere", bed.prefix);
    bed.aws.add_role(Role::new(&role));
    let key: AccessKey = bed.aws.start_session(&role, "elsewhere", Duration::from_secs(3600)).unwrap();
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let last = role_trusting(&bed, TWO, "last", Trust::principal(&role));
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let mut auth = as_keys(&ops, "keys");
    auth["secretRef"]["sessionTokenKey"] = json!("AWS_SESSION_TOKEN");
    let name = bed.credential("x", spec_as(auth, &[&a])).await.unwrap();
    let token = token_of(&bed, &a, &role).await;
    assert_eq!(token.session_name.as_deref(), Some("elsewhere"));
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "spec": { "auth": as_roles(json!([{ "roleArn": last }])) } })).await.unwrap();
    token_of(&bed, &a, &last).await;
    bed.logins_until(&a, &[&host_of(TWO)]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_registry_may_have_an_identity_of_its_own() {
    let bed = bed("override").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let (user, key) = user_with_key(&bed, TWO, "puller");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let public = role_trusting(&bed, ONE, "public", Trust::principal(&bed.role));
    let launch = launch().service_account(&format!("{ops}/puller")).credentials_secret(&format!("{ops}/keys"));
    let operator = bed.operator(launch).await.unwrap();
    let registries = json!([
        { "private": {} },
        { "private": { "accountIds": [TWO] }, "auth": as_keys(&ops, "keys") },
        { "private": { "accountIds": [ACCOUNT] }, "auth": {} },
        { "public": {}, "auth": as_roles(json!([{ "roleArn": public, "sessionName": "public" }])) },
    ]);
    let mut spec = spec(registries, &[&a]);
    spec["auth"] = as_account(&ops, "puller");
    let name = bed.credential("x", spec).await.unwrap();
    let (one, two) = (host_of(ONE), host_of(TWO));
    let secret = bed.logins_until(&a, &[&one, &two, OWN, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    let logins = logins(&secret).unwrap();
    for (host, who) in [(one.as_str(), &role), (&two, &user), (OWN, &bed.role), (PUBLIC, &public)] {
        let token = bed.aws.token_of(&logins[host]).unwrap();
        assert!(token.is_of(who), "{host}: {}", token.principal);
    }
    assert_eq!(super::super::demand::fetches(&bed), (3, 1));
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
