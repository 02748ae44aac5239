//! Namespaces with an identity of their own each: nobody gets another's token, and each fails alone.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use testbed::aws::Role;
use testbed::bed::Tenant;
use testbed::bed::identities::ROLE_ARN;

use super::super::demand::*;
use super::super::look::{at_once, counts, quiet, version, writes_in};
use super::*;

async fn tenants<const N: usize>(bed: &Bed, names: [&str; N]) -> Vec<Tenant> {
    let mut tenants = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let account = format!("{}", 111_111_111_111_u64 * (number as u64 + 1));
        tenants.push(bed.tenant(name, &account, "puller").await.unwrap());
    }
    tenants
}

fn namespaces(tenants: &[Tenant]) -> Vec<&str> {
    tenants.iter().map(|tenant| tenant.namespace.as_str()).collect()
}

/// Lets the second pass in which a token was issued, so that it is too old for a refresh that is asked for from then on.
async fn second_after(token: &IssuedToken) {
    let passed = (token.issued + SignedDuration::from_secs(1)).duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(passed).unwrap_or_default()).await;
}

#[tokio::test]
async fn each_tenant_gets_its_own_token_and_never_anothers() {
    let bed = bed("tenants").await;
    let all = tenants(&bed, ["a", "b"]).await;
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let registries = json!([{ "private": { "hostVariants": ["Standard", "DualStack"] } }, { "public": {} }]);
    let mut spec = spec(registries, &namespaces(&all));
    spec["auth"] = as_each("puller");
    let name = bed.credential("x", spec).await.unwrap();
    for tenant in &all {
        let dual = format!("{}.dkr-ecr.eu-west-1.on.aws", tenant.account);
        bed.logins_until(&tenant.namespace, &[&tenant.host, &dual, PUBLIC]).await.unwrap();
        token_of(&bed, &tenant.namespace, &tenant.role).await;
    }
    assert_eq!(counts(&bed.ready(&name).await.unwrap()), [2, 2, 0]);
    assert_eq!(fetches(&bed), (2, 2));
    assert_eq!(bed.aws.calls(Service::Sts).len(), 2, "a session of each, and none of the operator's own");
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2);
    let before = (login(&bed, &all[0].namespace, PUBLIC).await, login(&bed, &all[1].namespace, PUBLIC).await);
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    let after = (login(&bed, &all[0].namespace, PUBLIC).await, login(&bed, &all[1].namespace, PUBLIC).await);
    assert!(before.0 != after.0 && before.1 != after.1);
    assert_eq!(fetches(&bed), (4, 4));
    // They trade places: what each holds of the other is of no use to it.
    bed.annotate(&all[0].namespace, "puller", &[(ROLE_ARN, Some(&all[1].role))]).await.unwrap();
    let words = ["sts:AssumeRoleWithWebIdentity"];
    namespace_fails(&bed, &name, &all[0].namespace, "AccessDenied", &words).await;
    assert_eq!(login(&bed, &all[0].namespace, PUBLIC).await, after.0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_is_denied_fails_alone_and_is_named() {
    let bed = bed("denied").await;
    let all = tenants(&bed, ["a", "b", "c"]).await;
    let denied = &all[1];
    bed.aws.add_role(Role::new(&denied.role).trusting(bed.trust_of("elsewhere", "puller")));
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("puller"), &namespaces(&all))).await.unwrap();
    for tenant in [&all[0], &all[2]] {
        token_of(&bed, &tenant.namespace, &tenant.role).await;
    }
    let words = ["sts:AssumeRoleWithWebIdentity", "subject", "deploy/iam/trust-tenant.json"];
    names_a_file(&namespace_fails(&bed, &name, &denied.namespace, "AccessDenied", &words).await);
    bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    // The failure may be reported before the last of the others is counted.
    bed.credential_until(&name, "two of three are synced", |object| counts(object) == [3, 2, 1]).await.unwrap();
    assert!(bed.secret(&denied.namespace).await.unwrap().is_none());
    bed.aws.add_role(Role::new(&denied.role).trusting(bed.trust_of(&denied.namespace, "puller")));
    token_of(&bed, &denied.namespace, &denied.role).await;
    assert_eq!(counts(&bed.ready(&name).await.unwrap()), [3, 3, 0]);

    // Denied later on, it keeps what it has, and the others are renewed.
    let before =
        [login(&bed, &all[0].namespace, &all[0].host).await, login(&bed, &denied.namespace, &denied.host).await];
    bed.aws.set_permissions(&denied.role, Permissions::none());
    second_after(&token_of(&bed, &denied.namespace, &denied.role).await).await;
    demand(&bed, &name, "1").await;
    let words = ["ecr:GetAuthorizationToken", "deploy/iam/policy-private.json"];
    namespace_fails(&bed, &name, &denied.namespace, "AccessDenied", &words).await;
    let renewed = |secret: Option<&_>| {
        let auth = secret.and_then(|s| logins(s).ok()).and_then(|mut l| l.remove(&all[0].host));
        auth.is_some_and(|auth| auth != before[0])
    };
    bed.secret_until(&all[0].namespace, "renewed", renewed).await.unwrap();
    assert_eq!(login(&bed, &denied.namespace, &denied.host).await, before[1]);
    // It must not keep the refresh alive for all.
    served(&bed, &name, "1").await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_whose_own_host_another_registry_names_too_is_told_and_gets_one_password() {
    let bed = bed("same-host").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let roles = [account_with_role(&bed, ONE, &a, "puller").await, account_with_role(&bed, TWO, &b, "puller").await];
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let registries = json!([{ "private": {}, "auth": as_each("puller") }, { "private": { "accountIds": [ONE] } }]);
    let name = bed.credential("x", spec(registries, &[&a, &b])).await.unwrap();
    let words = ["spec.registries[0] and spec.registries[1]", &host_of(ONE)];
    namespace_fails(&bed, &name, &a, "InvalidSpec", &words).await;
    token_of(&bed, &a, &roles[0]).await;
    let both = [host_of(ONE), host_of(TWO)];
    let secret = bed.logins_until(&b, &[&both[0], &both[1]]).await.unwrap();
    let issued = logins(&secret).unwrap();
    for (host, who) in both.iter().zip([&bed.role, &roles[1]]) {
        assert!(bed.aws.token_of(&issued[host]).unwrap().is_of(who), "{host}");
    }
    bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    // The failure may be reported before the other is counted.
    bed.credential_until(&name, "one of two is synced", |object| counts(object) == [2, 1, 1]).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_could_not_be_renewed_is_renewed_and_no_longer_named_once_it_is_mended() {
    let bed = bed("mended").await;
    let all = tenants(&bed, ["a", "b"]).await;
    let denied = &all[1];
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("puller"), &namespaces(&all))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = token_of(&bed, &denied.namespace, &denied.role).await;
    bed.aws.set_permissions(&denied.role, Permissions::none());
    second_after(&before).await;
    demand(&bed, &name, "1").await;
    namespace_fails(&bed, &name, &denied.namespace, "AccessDenied", &["ecr:GetAuthorizationToken"]).await;
    bed.aws.set_permissions(&denied.role, Permissions::pull());
    let mended = |object: &DynamicObject| failure_of(object, &denied.namespace).is_none();
    let object = bed.credential_until(&name, "nobody fails", mended).await.unwrap();
    assert_eq!(counts(&object), [2, 2, 0]);
    assert_ne!(login(&bed, &denied.namespace, &denied.host).await, before.auth);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_whose_service_account_is_missing_is_served_when_it_comes() {
    let bed = bed("late").await;
    let all = tenants(&bed, ["a"]).await;
    let late = bed.namespace("late", &[]).await.unwrap();
    let role = bed.tenant_role_in(TWO, &late, "puller");
    bed.recorder.tenant(&late, &role);
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("puller"), &[&all[0].namespace, &late])).await.unwrap();
    namespace_fails(&bed, &name, &late, "IdentityNotFound", &["puller does not exist", "create it"]).await;
    token_of(&bed, &all[0].namespace, &all[0].role).await;
    bed.service_account(&late, "puller", &[]).await.unwrap();
    namespace_fails(&bed, &name, &late, "IdentityNotFound", &["eks.amazonaws.com/role-arn"]).await;
    bed.annotate(&late, "puller", &[(ROLE_ARN, Some(&role))]).await.unwrap();
    at_once(bed.ready(&name)).await;
    token_of(&bed, &late, &role).await;
    assert_eq!(writes_in(&bed, Default::default(), &all[0].namespace).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_comes_while_the_operator_runs_costs_one_call_and_one_write() {
    let bed = bed("gained").await;
    let all = tenants(&bed, ["a", "b"]).await;
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let names = json!([all[0].namespace, all[1].namespace, bed.name("late*")]);
    let mut spec = spec_as(as_each("puller"), &[]);
    spec["namespaces"]["names"] = names;
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    let (writes, calls) = (bed.proxy.log().mark(), bed.aws.mark());
    let late = bed.tenant("late", "333333333333", "puller").await.unwrap();
    token_at_once(&bed, &late.namespace, &late.role).await;
    bed.credential_until(&name, "3 of 3", |object| counts(object) == [3, 3, 0]).await.unwrap();
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().writes_to_secrets_since(writes).len(), 1);
    let called: Vec<_> = bed.aws.calls_since(calls).into_iter().map(|call| call.service).collect();
    assert_eq!(called, [Service::Sts, Service::Ecr]);

    // Deselected, it loses its Secret; selected again within minutes, it gets the token that it had. The others are as they were.
    let others = json!({ "spec": { "namespaces": { "names": namespaces(&all) } } });
    let before = version(&bed.secret(&all[0].namespace).await.unwrap().unwrap());
    bed.change(&name, others).await.unwrap();
    bed.secret_until(&late.namespace, "gone", |secret| secret.is_none()).await.unwrap();
    assert_eq!(counts(&bed.ready(&name).await.unwrap()), [2, 2, 0]);
    let calls = bed.aws.mark();
    let again = json!([all[0].namespace, all[1].namespace, late.namespace]);
    bed.change(&name, json!({ "spec": { "namespaces": { "names": again } } })).await.unwrap();
    token_of(&bed, &late.namespace, &late.role).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    assert_eq!(version(&bed.secret(&all[0].namespace).await.unwrap().unwrap()), before);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_all_share_and_what_each_has_stand_in_one_secret() {
    let bed = bed("mixed").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let roles = [account_with_role(&bed, ONE, &a, "puller").await, account_with_role(&bed, TWO, &b, "puller").await];
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let registries = json!([
        { "private": { "accountIds": [ACCOUNT] } },
        { "private": { "accountIds": ["333333333333"] }, "auth": as_each("puller") },
        { "public": {} },
    ]);
    let third = host_of("333333333333");
    let name = bed.credential("x", spec(registries, &[&a, &b])).await.unwrap();
    for (namespace, role) in [(&a, &roles[0]), (&b, &roles[1])] {
        let secret = bed.logins_until(namespace, &[OWN, &third, PUBLIC]).await.unwrap();
        let logins = logins(&secret).unwrap();
        for (host, who) in [(OWN, &bed.role), (third.as_str(), role), (PUBLIC, &bed.role)] {
            assert!(bed.aws.token_of(&logins[host]).unwrap().is_of(who), "{host} in {namespace}");
        }
    }
    bed.ready(&name).await.unwrap();
    assert_eq!(fetches(&bed), (3, 1));
    assert_eq!(login(&bed, &a, OWN).await, login(&bed, &b, OWN).await);
    // No version of any Secret lacks what all share, and each is written once, or once more when its own token comes later.
    for namespace in [&a, &b] {
        let versions = bed.recorder.secret_versions(namespace, &bed.secret);
        assert!((1..=2).contains(&versions.len()), "{} versions", versions.len());
        for version in versions {
            let logins = logins(&serde_json::from_value(version).unwrap()).unwrap();
            assert!(logins.contains_key(OWN) && logins.contains_key(PUBLIC), "{:?}", logins.keys());
        }
    }
    let denied = bed.namespace("denied", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b, denied] } } })).await.unwrap();
    bed.logins_until(&denied, &[OWN, PUBLIC]).await.unwrap();
    namespace_fails(&bed, &name, &denied, "IdentityNotFound", &["puller does not exist"]).await;
    bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    bed.credential_until(&name, "two of three are synced", |object| counts(object) == [3, 2, 1]).await.unwrap();
    assert_eq!(login(&bed, &denied, OWN).await, login(&bed, &b, OWN).await);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
