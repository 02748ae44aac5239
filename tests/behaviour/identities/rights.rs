//! What the installation does not let the operator use, what RBAC refuses, and what a spec cannot mean.

use k8s_openapi::jiff::Timestamp;

use super::super::demand::{demand, login, spec};
use super::super::look::at_once;
use super::*;

#[tokio::test]
async fn what_the_installation_does_not_lend_stalls_and_names_the_charts_value() {
    let bed = bed("not-lent").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    account_with_role(&bed, ONE, &ops, "other").await;
    let (_, key) = user_with_key(&bed, ONE, "other");
    bed.keys_secret(&ops, "other", &key).await.unwrap();
    let launch = launch().service_account(&format!("{ops}/puller")).credentials_secret(&format!("{ops}/keys"));
    let operator = bed.operator(launch).await.unwrap();
    let entry = format!("{{namespace: {ops}, name: other}}");
    let cases = [
        ("account", as_account(&ops, "other"), ["auth.serviceAccounts", "--service-account", &entry]),
        ("home", as_account(&bed.home, "puller"), ["auth.serviceAccounts", "--service-account", "name: puller"]),
        ("each", as_each("other"), ["auth.serviceAccounts", "--service-account", "{name: other}"]),
        ("keys", as_keys(&ops, "other"), ["auth.secrets", "--credentials-secret", &entry]),
    ];
    for (case, auth, words) in cases {
        let name = bed.credential(case, spec_as(auth.clone(), &[&a])).await.unwrap();
        not_ready_until(&bed, &name, "AuthNotAllowed", &words).await;
        bed.condition_until(&name, "Stalled", "True", "AuthNotAllowed").await.unwrap();
        // Where one registry alone asks for it, that one is named and the other is served.
        let registries = json!([{ "private": { "accountIds": [ACCOUNT] } }, { "public": {}, "auth": auth }]);
        bed.change(&name, json!({ "spec": { "auth": null, "registries": registries } })).await.unwrap();
        let message = not_ready_until(&bed, &name, "AuthNotAllowed", &words).await;
        assert!(message.starts_with("registry in us-east-1: "), "{message}");
        let object = bed.condition_until(&name, "Stalled", "False", "AuthNotAllowed").await.unwrap();
        assert_eq!(reasons(&object), ["Synced", "AuthNotAllowed"]);
        bed.logins_until(&a, &[OWN]).await.unwrap();
        bed.change(&name, json!({ "spec": { "namespaces": { "names": [ops] }, "registries": [{ "private": {} }] } }))
            .await
            .unwrap();
        bed.condition_until(&name, "Stalled", "False", "Synced").await.unwrap();
        bed.credentials().delete(&name, &Default::default()).await.unwrap();
        for namespace in [&ops, &a] {
            bed.secret_until(namespace, "gone with its owner", |secret| secret.is_none()).await.unwrap();
        }
    }
    assert_eq!(bed.proxy.log().granted_tokens().len(), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// What the status says of each registry.
fn reasons(object: &DynamicObject) -> Vec<String> {
    let registries = object.data["status"]["registries"].as_array().cloned().unwrap_or_default();
    registries.iter().map(|registry| registry["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The lifetime of tokens that must expire during a test, and not before.
const LIFE: SignedDuration = SignedDuration::from_secs(60);

#[tokio::test]
async fn an_identity_that_is_lent_no_more_costs_its_registry_alone_and_only_when_its_password_ends() {
    let bed = bed("lent-no-more").await;
    bed.aws.set_token_life(LIFE);
    let (a, late, ops) =
        (bed.namespace("a", &[]).await.unwrap(), bed.name("late"), bed.namespace("ops", &[]).await.unwrap());
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let lending = || launch().service_account(&format!("{ops}/puller"));
    let first = bed.operator(lending()).await.unwrap();
    let team = host_of(ONE);
    let registries = json!([
        { "private": { "accountIds": [ACCOUNT] } },
        { "private": {}, "auth": as_account(&ops, "puller") },
    ]);
    let name = bed.credential("x", spec(registries, &[&a, &late])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = (login(&bed, &a, OWN).await, login(&bed, &a, &team).await);
    assert!(bed.aws.token_of(&before.1).unwrap().is_of(&role));
    first.stop().await.unwrap();

    // An upgrade of the chart drops the entry.
    let second = bed.operator(launch()).await.unwrap();
    let words = ["registry in eu-west-1 needs a change", "auth.serviceAccounts"];
    let told = |object: &DynamicObject| {
        let found = testbed::bed::condition(object, "Reconciling");
        found.is_some_and(|found| words.iter().all(|word| found["message"].as_str().unwrap_or_default().contains(word)))
    };
    let object = bed.credential_until(&name, "told", told).await.unwrap();
    assert_eq!(reasons(&object), ["Synced", "AuthNotAllowed"]);
    bed.condition_until(&name, "Ready", "True", "Synced").await.unwrap();
    // What is good is kept, where the other is renewed and where a namespace is new.
    demand(&bed, &name, "1").await;
    let renewed = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
        secret.and_then(|s| logins(s).ok()).is_some_and(|l| l.get(OWN).is_some_and(|auth| *auth != before.0))
    };
    bed.secret_until(&a, "the other registry is renewed", renewed).await.unwrap();
    assert_eq!(login(&bed, &a, &team).await, before.1);
    let late = bed.namespace("late", &[]).await.unwrap();
    bed.logins_until(&late, &[OWN, &team]).await.unwrap();
    // It goes when it ends, and what is left is told.
    bed.logins_until(&a, &[OWN]).await.unwrap();
    // The expiry is recorded in whole seconds.
    let left = bed.aws.token_of(&before.1).unwrap().issued + LIFE - Timestamp::now();
    assert!(left.get_seconds() <= 1, "{left} too soon");
    not_ready_until(&bed, &name, "AuthNotAllowed", &["registry in eu-west-1", "auth.serviceAccounts"]).await;
    bed.condition_until(&name, "Stalled", "False", "AuthNotAllowed").await.unwrap();
    second.stop().await.unwrap();

    let third = bed.operator(lending()).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.logins_until(&a, &[OWN, &team]).await.unwrap();
    third.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_account_of_each_namespace_that_is_lent_for_one_serves_that_one_alone() {
    let bed = bed("lent-for-one").await;
    let (a, b) = (bed.tenant("a", ONE, "puller").await.unwrap(), bed.tenant("b", TWO, "puller").await.unwrap());
    let operator = bed.operator(launch().service_account(&format!("{}/puller", a.namespace))).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("puller"), &[&a.namespace, &b.namespace])).await.unwrap();
    let words = ["auth.serviceAccounts", "puller"];
    namespace_fails(&bed, &name, &b.namespace, "AuthNotAllowed", &words).await;
    token_of(&bed, &a.namespace, &a.role).await;
    assert!(bed.secret(&b.namespace).await.unwrap().is_none());
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_used_as_soon_as_it_is_there() {
    let bed = bed("no-rbac").await;
    let (a, b, ops) = (
        bed.namespace("a", &[]).await.unwrap(),
        bed.namespace("b", &[]).await.unwrap(),
        bed.namespace("ops", &[]).await.unwrap(),
    );
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let (user, key) = user_with_key(&bed, TWO, "puller");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the right is taken away");
    let launch = launch().service_account(&format!("{ops}/puller")).credentials_secret(&format!("{ops}/keys"));
    let lent = launch.lent.clone();
    let operator = bed.operator(launch.without_rights()).await.unwrap();
    let account = bed.credential("x", spec_as(as_account(&ops, "puller"), &[&a])).await.unwrap();
    let keys = bed.credential("y", spec_as(as_keys(&ops, "keys"), &[&b])).await.unwrap();
    not_ready_until(&bed, &account, "Forbidden", &["serviceaccounts", &ops, "auth.serviceAccounts"]).await;
    not_ready_until(&bed, &keys, "Forbidden", &["secrets", &ops, "auth.secrets"]).await;
    bed.lend(&lent).await.unwrap();
    token_of(&bed, &a, &role).await;
    token_of(&bed, &b, &user).await;
    bed.ready(&account).await.unwrap();
    bed.ready(&keys).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_role_of_another_partition_is_refused_before_anybody_is_asked() {
    let bed = bed("partition").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
    let china = format!("arn:aws-cn:iam::{ONE}:role/puller");
    let words = ["aws-cn", "partition", "eu-west-1"];
    let name = bed.credential("x", spec_as(as_roles(json!([{ "roleArn": china }])), &[&a])).await.unwrap();
    not_ready_until(&bed, &name, "InvalidSpec", &words).await;
    bed.condition_until(&name, "Stalled", "True", "InvalidSpec").await.unwrap();
    let mut auth = as_account(&ops, "puller");
    auth["serviceAccount"]["roleArn"] = json!(china);
    bed.change(&name, json!({ "spec": { "auth": { "assumeRoles": null, "serviceAccount": auth["serviceAccount"] } } }))
        .await
        .unwrap();
    not_ready_until(&bed, &name, "InvalidSpec", &words).await;
    // One registry of two does not take the other with it.
    let registries = json!([{ "private": {} }, { "public": {}, "auth": as_roles(json!([{ "roleArn": china }])) }]);
    let two = json!({ "spec": { "auth": null, "registries": registries } });
    bed.change(&name, two).await.unwrap();
    not_ready_until(&bed, &name, "InvalidSpec", &["registry in us-east-1", "aws-cn", "partition"]).await;
    bed.condition_until(&name, "Stalled", "False", "InvalidSpec").await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.change(&name, json!({ "spec": { "auth": auth, "registries": [{ "private": {} }] } })).await.unwrap();
    not_ready_until(&bed, &name, "InvalidSpec", &words).await;
    let sessions = bed.aws.calls(Service::Sts).len();
    // An annotation may be mended without the spec, so it does not stall.
    bed.annotate(&ops, "puller", &[(testbed::bed::identities::ROLE_ARN, Some(&china))]).await.unwrap();
    bed.change(&name, json!({ "spec": { "auth": { "serviceAccount": { "roleArn": null } } } })).await.unwrap();
    // The token of the identity before is good until it expires, and stays.
    retried_until(&bed, &name, "IdentityNotFound", &words).await;
    assert_eq!(bed.aws.calls(Service::Sts).len(), sessions);
    assert_eq!(bed.proxy.log().granted_tokens().len(), 0);
    bed.annotate(&ops, "puller", &[(testbed::bed::identities::ROLE_ARN, Some("arn:aws:iam::1:user/x"))]).await.unwrap();
    retried_until(&bed, &name, "IdentityNotFound", &["eks.amazonaws.com/role-arn", "puller"]).await;
    bed.annotate(&ops, "puller", &[(testbed::bed::identities::ROLE_ARN, Some(&role))]).await.unwrap();
    at_once(bed.ready(&name)).await;
    token_of(&bed, &a, &role).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
