//! What AWS refuses: each refusal has its reason and names what to allow and the file that shows how; once mended it passes.

use kube::api::DeleteParams;
use testbed::aws::{Fault, Role};
use testbed::bed::Operator;
use testbed::bed::identities::{ROLE_ARN, STS};

use super::*;

/// A bed whose operator may use the ServiceAccount `puller` of a namespace.
struct Lender {
    bed: Bed,
    operator: Operator,
    ops: String,
}

impl Lender {
    async fn new(test: &str) -> Self {
        let bed = bed(test).await;
        let ops = bed.namespace("ops", &[]).await.unwrap();
        let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
        Self { bed, operator, ops }
    }

    /// An identity that AWS refuses, is told of, and is let in by `mend`.
    async fn refused(&self, case: &str, auth: Value, reason: &str, words: &[&str], mend: impl FnOnce()) -> String {
        let bed = &self.bed;
        let namespace = bed.namespace(case, &[]).await.unwrap();
        let name = bed.credential(case, spec_as(auth, &[&namespace])).await.unwrap();
        let message = not_ready_until(bed, &name, reason, words).await;
        assert!(bed.secret(&namespace).await.unwrap().is_none());
        mend();
        bed.ready(&name).await.unwrap();
        assert!(bed.secret(&namespace).await.unwrap().is_some());
        bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
        message
    }

    async fn finish(self) {
        self.operator.stop().await.unwrap();
        self.bed.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_role_that_does_not_trust_the_service_account_is_told_with_what_to_allow() {
    let lender = Lender::new("untrusted").await;
    let (bed, ops) = (&lender.bed, &lender.ops);
    let role = |name: &str| format!("arn:aws:iam::{ONE}:role/{}-{name}", bed.prefix);
    bed.service_account(ops, "puller", &[(ROLE_ARN, &role("wrong-subject"))]).await.unwrap();
    let good = bed.trust_of(ops, "puller");
    let with = |name: &str, trust: Trust| bed.aws.add_role(Role::new(&role(name)).trusting(trust));
    let auth = |name: &str| {
        let mut auth = as_account(ops, "puller");
        auth["serviceAccount"]["roleArn"] = json!(role(name));
        auth
    };

    with("wrong-subject", bed.trust_of(ops, "other"));
    let words = ["sts:AssumeRoleWithWebIdentity", "subject", "deploy/iam/"];
    let mend = || with("wrong-subject", good.clone());
    let message = lender.refused("subject", as_account(ops, "puller"), "AccessDenied", &words, mend).await;
    names_a_file(&message);

    // The provider knows the audience, since the operator's own role expects it; this role does not.
    let subject = format!("system:serviceaccount:{ops}:puller");
    with("wrong-audience", Trust::web_identity(&bed.plane.issuer(), &subject, "other.example.com"));
    let words = ["sts:AssumeRoleWithWebIdentity", "audience", "deploy/iam/"];
    let mend = || with("wrong-audience", good.clone());
    names_a_file(&lender.refused("audience", auth("wrong-audience"), "AccessDenied", &words, mend).await);

    let mut unknown = auth("no-audience");
    unknown["serviceAccount"]["audiences"] = json!(["unknown.example.com"]);
    let mend = || with("no-audience", Trust::web_identity(&bed.plane.issuer(), &subject, "unknown.example.com"));
    lender.refused("unknown", unknown, "AccessDenied", &["InvalidIdentityToken", "audience"], mend).await;

    let words = ["sts:AssumeRoleWithWebIdentity", "deploy/iam/"];
    let mend = || with("no-role", good.clone());
    names_a_file(&lender.refused("no-role", auth("no-role"), "AccessDenied", &words, mend).await);
    lender.finish().await;
}

#[tokio::test]
async fn a_role_whose_conditions_are_not_met_is_told_with_what_to_allow() {
    let lender = Lender::new("conditions").await;
    let bed = &lender.bed;
    let role = |name: &str| format!("arn:aws:iam::{ONE}:role/{}-{name}", bed.prefix);
    let from_operator = || Trust::principal(&bed.role);
    let with =
        |name: &str, trust: testbed::aws::PrincipalTrust| bed.aws.add_role(Role::new(&role(name)).trusting(trust));

    with("external-id", from_operator().external_id("expected"));
    let auth = as_roles(json!([{ "roleArn": role("external-id"), "externalId": "other" }]));
    let words = ["sts:AssumeRole", "externalId", "deploy/iam/policy-assume-role.json", "deploy/iam/trust-"];
    let mend = || with("external-id", from_operator().external_id("other"));
    names_a_file(&lender.refused("external-id", auth, "AccessDenied", &words, mend).await);

    with("tag-missing", from_operator().require_tag("team", "a"));
    let auth = as_roles(json!([{ "roleArn": role("tag-missing") }]));
    let mend = || with("tag-missing", from_operator());
    lender.refused("tag-missing", auth, "AccessDenied", &["sts:AssumeRole", "deploy/iam/"], mend).await;

    with("tags", from_operator());
    let auth = as_roles(json!([{ "roleArn": role("tags"), "tags": { "team": "a" } }]));
    let words = ["sts:TagSession", "deploy/iam/trust-"];
    let mend = || with("tags", from_operator().allow_tags());
    names_a_file(&lender.refused("tags", auth, "AccessDenied", &words, mend).await);

    with("source", from_operator());
    let auth = as_roles(json!([{ "roleArn": role("source"), "sourceIdentity": "ops" }]));
    let words = ["sts:SetSourceIdentity", "deploy/iam/trust-"];
    let mend = || with("source", from_operator().allow_source_identity());
    names_a_file(&lender.refused("source", auth, "AccessDenied", &words, mend).await);

    with("too-long", from_operator());
    let auth = as_roles(json!([{ "roleArn": role("too-long"), "durationSeconds": 7200 }]));
    let name = bed.name("too-long");
    let shorter =
        json!({ "spec": { "auth": as_roles(json!([{ "roleArn": role("too-long"), "durationSeconds": 3600 }])) } });
    let namespace = bed.namespace("too-long", &[]).await.unwrap();
    bed.credential("too-long", spec_as(auth, &[&namespace])).await.unwrap();
    not_ready_until(bed, &name, "AccessDenied", &["durationSeconds", "3600"]).await;
    bed.change(&name, shorter).await.unwrap();
    bed.ready(&name).await.unwrap();
    lender.finish().await;
}

#[tokio::test]
async fn what_a_role_may_not_do_is_told_with_the_policy_that_lets_it() {
    let lender = Lender::new("policies").await;
    let (bed, ops) = (&lender.bed, &lender.ops);
    let role = account_with_role(bed, ONE, ops, "puller").await;
    let auth = || as_account(ops, "puller");
    let without = |action: &str| bed.aws.set_permissions(&role, Permissions::pull().without(action));
    let mend = || bed.aws.set_permissions(&role, Permissions::pull());

    without("ecr:GetAuthorizationToken");
    let words = ["ecr:GetAuthorizationToken", "deploy/iam/policy-private.json"];
    names_a_file(&lender.refused("private", auth(), "AccessDenied", &words, mend).await);

    for action in ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"] {
        without(action);
        let case = action.replace(':', "-").to_lowercase();
        let namespace = bed.namespace(&case, &[]).await.unwrap();
        let mut spec = spec(json!([{ "public": {} }]), &[&namespace]);
        spec["auth"] = auth();
        let name = bed.credential(&case, spec).await.unwrap();
        let words = [action, "deploy/iam/policy-public.json"];
        names_a_file(&not_ready_until(bed, &name, "AccessDenied", &words).await);
        mend();
        bed.ready(&name).await.unwrap();
        bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    }

    let next = role_trusting(bed, TWO, "next", Trust::principal(&role));
    without("sts:AssumeRole");
    let mut chain = auth();
    chain["assumeRoles"] = json!([{ "roleArn": next }]);
    let words = ["sts:AssumeRole", "deploy/iam/policy-assume-role.json", &next];
    names_a_file(&lender.refused("assume-role", chain, "AccessDenied", &words, mend).await);
    lender.finish().await;
}

#[tokio::test]
async fn a_role_that_was_just_made_is_tried_until_aws_knows_it() {
    let lender = Lender::new("transient").await;
    let (bed, ops) = (&lender.bed, &lender.ops);
    let a = bed.namespace("a", &[]).await.unwrap();
    let role = bed.tenant_role_in(ONE, ops, "puller");
    let fault = bed.aws.fault(Service::Sts, Fault::InvalidIdentityToken).times(2);
    bed.service_account(ops, "puller", &[(ROLE_ARN, &role)]).await.unwrap();
    let name = bed.credential("x", spec_as(as_account(ops, "puller"), &[&a])).await.unwrap();
    token_of(bed, &a, &role).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(fault.hits(), 2);
    // Each try has a web identity token of its own, since the first one may be what was wrong.
    let granted = bed.proxy.log().granted_tokens();
    assert!(granted.iter().all(|token| token.audiences == [STS]) && granted.len() == 3, "{}", granted.len());
    lender.finish().await;
}

#[tokio::test]
async fn keys_of_another_partition_are_told_that_ecr_public_does_not_take_them() {
    let bed = bed("public-china").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let user = format!("arn:aws-cn:iam::{ONE}:user/{}", bed.prefix);
    bed.aws.create_user(&user, Permissions::pull());
    bed.keys_secret(&ops, "keys", &bed.aws.create_access_key(&user).unwrap()).await.unwrap();
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let registries = json!([{ "public": {}, "auth": as_keys(&ops, "keys") }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    let words = ["ECR Public accepts only identities of the partition aws", "its own auth"];
    names_a_file(&not_ready_until(&bed, &name, "AccessDenied", &words).await);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
