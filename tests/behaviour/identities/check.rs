//! What `check` says of each kind of identity: who AWS takes it for, what it is given, and where it fails.

use super::super::check::{inside, outside};
use super::*;

#[tokio::test]
async fn keys_of_another_partition_are_asked_of_its_own_sts() {
    let bed = bed("check-keys").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let user = format!("arn:aws-cn:iam::{ONE}:user/{}", bed.prefix);
    bed.aws.create_user(&user, Permissions::pull());
    let key = bed.aws.create_access_key(&user).unwrap();
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let lent = format!("{ops}/keys");
    let operator = bed.operator(launch().credentials_secret(&lent)).await.unwrap();
    let registries =
        json!([{ "private": { "region": "cn-north-1", "accountIds": [ONE] }, "auth": as_keys(&ops, "keys") }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let who = format!("Identity: the keys in Secret {lent}");
    let caller = format!("caller      {user}");
    let words = [&*who, &caller, "ecr in cn-north-1: a token until", "No problem found."];
    inside(&bed, &["--credentials-secret", &lent]).await.says(0, &words);
    outside(&bed, &[]).await.says(0, &words);
    bed.aws.set_permissions(&user, Permissions::none());
    let words = [&*who, "PROBLEM", "AccessDenied", "deploy/iam/policy-private.json"];
    outside(&bed, &[]).await.says(1, &words);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_chain_of_roles_is_who_calls() {
    let bed = bed("check-chain").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = role_trusting(&bed, ONE, "first", Trust::principal(&bed.role));
    let second = role_trusting(&bed, TWO, "second", Trust::principal(&first).external_id("x-1"));
    let operator = bed.operator(launch()).await.unwrap();
    let chain = as_roles(json!([{ "roleArn": first }, { "roleArn": second, "externalId": "x-1" }]));
    let name = bed.credential("x", spec_as(chain, &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let caller = format!("arn:aws:sts::{TWO}:assumed-role/{}-second/ecr-credential-operator", bed.prefix);
    let words = [&*format!("{first} → {second}"), &caller, &host_of(TWO), "a token until", "No problem found."];
    inside(&bed, &[]).await.says(0, &words);
    bed.aws.add_role(Role::new(&second).trusting(Trust::principal(&first).external_id("other")));
    inside(&bed, &[]).await.says(1, &["PROBLEM", "AccessDenied", "sts:AssumeRole", "1 problem found"]);
    // It begins with the operator's own identity, which is not at hand elsewhere.
    outside(&bed, &[]).await.says(0, &["note", "NoCredentials", "No problem found."]);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_namespaces_own_identity_is_tried_and_fails_there() {
    let bed = bed("check-each").await;
    let (a, b) = (bed.tenant("a", ONE, "puller").await.unwrap(), bed.tenant("b", TWO, "puller").await.unwrap());
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("puller"), &[&a.namespace, &b.namespace])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let who = [&a, &b].map(|tenant| format!("ServiceAccount {}/puller → {}", tenant.namespace, tenant.role));
    let well = [&*who[0], &who[1], "each namespace's own", "2 of 2 have a valid Secret", "No problem found."];
    let args = ["--service-account", "*/puller"];
    inside(&bed, &args).await.says(0, &well);
    // The region of whoever asks is not the operator's.
    outside(&bed, &["--aws-region", "us-east-1"]).await.says(0, &[&well[..], &["ecr in eu-west-1"]].concat());
    bed.aws.set_permissions(&b.role, Permissions::none());
    let fails = format!("{}  NotRenewable: AccessDenied", b.namespace);
    let words = ["1 of 2 have a valid Secret", &*fails, "deploy/iam/policy-private.json", "1 problem found"];
    inside(&bed, &args).await.says(1, &words);
    outside(&bed, &[]).await.says(1, &words);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_namespace_whose_secret_lacks_its_own_login_is_told_also_when_aws_is_not_asked() {
    let bed = bed("check-lacks").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    account_with_role(&bed, ONE, &a, "puller").await;
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let registries = json!([{ "private": { "accountIds": [ACCOUNT] } }, { "private": {}, "auth": as_each("puller") }]);
    let name = bed.credential("x", spec(registries, &[&a, &b])).await.unwrap();
    bed.logins_until(&a, &[OWN, &host_of(ONE)]).await.unwrap();
    bed.logins_until(&b, &[OWN]).await.unwrap();
    namespace_fails(&bed, &name, &b, "IdentityNotFound", &["puller does not exist"]).await;
    let fails = format!("{b}  NotRenewable: IdentityNotFound");
    let words = ["1 of 2 have a valid Secret", &*fails, "1 problem found"];
    inside(&bed, &["--offline", "--service-account", "*/puller"]).await.says(1, &words);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn rights_that_are_missing_are_named_with_the_charts_value() {
    let bed = bed("check-lent").await;
    let ops = bed.namespace("ops", &[]).await.unwrap();
    let lent = [format!("{ops}/puller"), format!("{ops}/keys")];
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the right is taken away");
    let operator = bed.operator(launch()).await.unwrap();
    operator.stop().await.unwrap();
    let args = ["--offline", "--service-account", &*lent[0], "--credentials-secret", &lent[1], "--lease-name", "mine"];
    let token = format!("create serviceaccounts/token named puller in namespace {ops}: check its RBAC");
    let keys = format!("list secrets named keys in namespace {ops}: check its RBAC");
    let lease = format!("update leases.coordination.k8s.io named mine in namespace {}", bed.home);
    let words = [&*token, "(the chart's auth.serviceAccounts)", &keys, "(the chart's auth.secrets)", &lease];
    inside(&bed, &args).await.says(1, &words);
    let without = [&args[..], &["--no-leader-election"]].concat();
    let shown = inside(&bed, &without).await;
    assert!(!shown.text.contains("leases"), "{}", shown.text);
    bed.finish().await.unwrap();
}
