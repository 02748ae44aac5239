//! What an identity hangs on changes while the operator runs: keys, annotations, the ServiceAccount itself, sessions.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use testbed::bed::Operator;
use testbed::bed::identities::{AUDIENCE, ROLE_ARN};

use super::super::demand::*;
use super::super::look::{at_once, quiet, version};
use super::*;

/// A bed with an EcrCredential that uses a ServiceAccount, and is ready.
struct Setting {
    bed: Bed,
    operator: Operator,
    ops: String,
    a: String,
    name: String,
    role: String,
}

impl Setting {
    async fn with_account(test: &str) -> Self {
        let bed = bed(test).await;
        let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
        let role = account_with_role(&bed, ONE, &ops, "puller").await;
        let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
        let name = bed.credential("x", spec_as(as_account(&ops, "puller"), &[&a])).await.unwrap();
        token_of(&bed, &a, &role).await;
        bed.ready(&name).await.unwrap();
        Self { bed, operator, ops, a, name, role }
    }

    async fn secret(&self) -> Secret {
        self.bed.secret(&self.a).await.unwrap().unwrap()
    }

    /// Waits until the status says why the token cannot be renewed, while what is there serves on.
    async fn fails(&self, reason: &str, words: &[&str]) {
        registry_until(&self.bed, &self.name, 0, reason, words).await;
        self.bed.condition_until(&self.name, "Reconciling", "True", reason).await.unwrap();
        self.bed.ready(&self.name).await.unwrap();
    }

    /// Waits until nothing is left to be done.
    async fn settles(&self) {
        self.bed.condition_until(&self.name, "Reconciling", "False", "Synced").await.unwrap();
        self.bed.ready(&self.name).await.unwrap();
        quiet(&self.bed).await;
    }

    async fn finish(self) {
        self.operator.stop().await.unwrap();
        self.bed.finish().await.unwrap();
    }
}

#[tokio::test]
async fn an_annotation_that_is_removed_leaves_the_secret_alone_until_it_is_back() {
    let s = Setting::with_account("annotation").await;
    let (before, calls) = (s.secret().await, s.bed.aws.mark());
    s.bed.annotate(&s.ops, "puller", &[(ROLE_ARN, None)]).await.unwrap();
    s.fails("IdentityNotFound", &["eks.amazonaws.com/role-arn", "puller", "annotate it"]).await;
    quiet(&s.bed).await;
    assert_eq!(s.secret().await, before);
    // The same role again is the same identity, whose token is still good.
    s.bed.annotate(&s.ops, "puller", &[(ROLE_ARN, Some(&s.role))]).await.unwrap();
    at_once(s.bed.condition_until(&s.name, "Reconciling", "False", "Synced")).await;
    s.settles().await;
    assert_eq!(s.secret().await, before);
    assert_eq!(s.bed.aws.calls_since(calls).len(), 0);

    let other = role_trusting(&s.bed, ONE, "other", s.bed.trust_of(&s.ops, "puller"));
    s.bed.annotate(&s.ops, "puller", &[(ROLE_ARN, Some(&other))]).await.unwrap();
    token_of(&s.bed, &s.a, &other).await;
    s.settles().await;
    let uid = |secret: &Secret| secret.metadata.uid.clone();
    assert_eq!(uid(&s.secret().await), uid(&before), "updated in place");
    let audience = "other.example.com";
    let subject = format!("system:serviceaccount:{}:puller", s.ops);
    let third = role_trusting(&s.bed, ONE, "third", Trust::web_identity(&s.bed.plane.issuer(), &subject, audience));
    s.bed.annotate(&s.ops, "puller", &[(ROLE_ARN, Some(&third)), (AUDIENCE, Some(audience))]).await.unwrap();
    token_of(&s.bed, &s.a, &third).await;
    s.settles().await;
    s.finish().await;
}

#[tokio::test]
async fn what_else_changes_of_a_service_account_is_no_news() {
    let s = Setting::with_account("no-news").await;
    quiet(&s.bed).await;
    let (marks, calls) = (s.bed.recorder.mark(), s.bed.aws.mark());
    for value in ["1", "2"] {
        s.bed.annotate(&s.ops, "puller", &[("example.com/note", Some(value))]).await.unwrap();
    }
    quiet(&s.bed).await;
    assert_eq!(s.bed.aws.calls_since(calls).len(), 0);
    let changes: Vec<String> = s.bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    s.finish().await;
}

#[tokio::test]
async fn a_service_account_that_is_made_again_is_another_identity() {
    let s = Setting::with_account("made-again").await;
    let before = s.secret().await;
    s.bed.delete_service_account(&s.ops, "puller").await.unwrap();
    s.fails("IdentityNotFound", &["puller does not exist", "create it"]).await;
    assert_eq!(s.secret().await, before);
    let granted = s.bed.proxy.log().granted_tokens().len();
    s.bed.service_account(&s.ops, "puller", &[(ROLE_ARN, &s.role)]).await.unwrap();
    let new = |secret: Option<&Secret>| secret.is_some_and(|secret| version(secret) != version(&before));
    at_once(s.bed.secret_until(&s.a, "a new login", new)).await;
    token_of(&s.bed, &s.a, &s.role).await;
    s.settles().await;
    assert_ne!(logins(&s.secret().await).unwrap(), logins(&before).unwrap());
    assert_eq!(s.bed.proxy.log().granted_tokens().len(), granted + 1, "its own token was asked for");
    s.finish().await;
}

#[tokio::test]
async fn a_service_accounts_session_is_renewed_with_a_new_token_of_its_own() {
    let s = Setting::with_account("short").await;
    let first = s.bed.proxy.log().granted_tokens().len();
    demand(&s.bed, &s.name, "1").await;
    served(&s.bed, &s.name, "1").await;
    assert_eq!(s.bed.proxy.log().granted_tokens().len(), first, "the session is kept");
    s.operator.stop().await.unwrap();
    s.bed.aws.set_session_life(Some(SHORT_SESSION));
    let operator = s.bed.operator(launch().service_account(&format!("{}/puller", s.ops))).await.unwrap();
    let mark = s.bed.aws.mark();
    for (number, value) in ["2", "3"].into_iter().enumerate() {
        demand(&s.bed, &s.name, value).await;
        served(&s.bed, &s.name, value).await;
        let granted = s.bed.proxy.log().granted_tokens();
        assert_eq!(granted.len(), first + 1 + number);
    }
    assert!(s.bed.aws.calls_since(mark).iter().all(|call| call.code == "OK"), "no session has ended in use");
    operator.stop().await.unwrap();
    s.bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_revoked_costs_one_refusal_whoever_it_is_of() {
    let bed = bed("revoked").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let puller = account_with_role(&bed, ONE, &ops, "puller").await;
    let assumed = role_trusting(&bed, TWO, "assumed", Trust::principal(&bed.role));
    let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
    let name = bed.credential("x", spec_as(json!({}), &[&a])).await.unwrap();
    let kinds = [
        (json!({ "assumeRoles": null, "serviceAccount": null }), &bed.role),
        (as_roles(json!([{ "roleArn": assumed }])), &assumed),
        (json!({ "assumeRoles": null, "serviceAccount": { "namespace": ops, "name": "puller" } }), &puller),
    ];
    for (number, (auth, who)) in kinds.into_iter().enumerate() {
        bed.change(&name, json!({ "spec": { "auth": auth } })).await.unwrap();
        let before = token_of(&bed, &a, who).await.auth;
        bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        bed.aws.revoke_sessions();
        let (mark, value) = (bed.aws.mark(), number.to_string());
        demand(&bed, &name, &value).await;
        served(&bed, &name, &value).await;
        assert_ne!(token_of(&bed, &a, who).await.auth, before);
        bed.ready(&name).await.unwrap();
        let calls = bed.aws.calls_since(mark);
        let refused: Vec<_> = calls.iter().filter(|call| call.code != "OK").map(|call| call.service).collect();
        assert_eq!(refused, [Service::Ecr], "{who}: {:?}", calls.iter().map(|call| &call.code).collect::<Vec<_>>());
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn rotated_keys_are_used_at_once() {
    let bed = bed("rotated-keys").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let (user, old) = user_with_key(&bed, ONE, "puller");
    bed.keys_secret(&ops, "keys", &old).await.unwrap();
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let name = bed.credential("x", spec_as(as_keys(&ops, "keys"), &[&a])).await.unwrap();
    let first = token_of(&bed, &a, &user).await.auth;
    bed.ready(&name).await.unwrap();

    bed.aws.set_access_key_active(&old.id, false);
    demand(&bed, &name, "1").await;
    registry_until(&bed, &name, 0, "AccessDenied", &["AWS does not know these keys"]).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(login(&bed, &a, &host_of(ONE)).await, first);
    let new = bed.aws.create_access_key(&user).unwrap();
    bed.keys_secret(&ops, "keys", &new).await.unwrap();
    at_once(bed.condition_until(&name, "Reconciling", "False", "Synced")).await;
    served(&bed, &name, "1").await;
    let second = token_of(&bed, &a, &user).await.auth;
    assert_ne!(second, first);

    // While both are active, too: the new one is used, though the old one's token is fresh.
    let (other, newest) = user_with_key(&bed, ONE, "other");
    bed.keys_secret(&ops, "keys", &newest).await.unwrap();
    token_at_once(&bed, &a, &other).await;
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_else_changes_of_a_secret_with_keys_is_no_news() {
    let bed = bed("keys-no-news").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let ops = bed.namespace("ops", &[]).await.unwrap();
    let (_, key) = user_with_key(&bed, ONE, "puller");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let launch = || launch().credentials_secret(&format!("{ops}/keys"));
    let first = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec_as(as_keys(&ops, "keys"), &[&a, &b])).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let change = async |patch: Value| {
        bed.secrets(&ops).patch("keys", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    };
    for value in ["1", "2", "3"] {
        change(json!({ "metadata": { "annotations": { "example.com/note": value } } })).await;
    }
    change(json!({ "metadata": { "labels": { "example.com/team": "a" } } })).await;
    change(json!({ "stringData": { "another": "value", "AWS_ACCESS_KEY_ID": format!("{}\n", key.id) } })).await;
    // The same keys in a Secret that was deleted and created again are the same identity.
    bed.secrets(&ops).delete("keys", &DeleteParams::default()).await.unwrap();
    registry_until(&bed, &name, 0, "IdentityNotFound", &["does not exist"]).await;
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    at_once(bed.condition_until(&name, "Reconciling", "False", "Synced")).await;
    first.stop().await.unwrap();

    // While the operator is away as well.
    change(json!({ "metadata": { "annotations": { "example.com/note": "away" } } })).await;
    let second = bed.operator(launch()).await.unwrap();
    page_until(&second, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
    quiet(&bed).await;
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    let secrets_changed = || {
        let changes = bed.recorder.changes_since(&marks);
        changes.iter().map(|change| change.summary()).filter(|text| text.contains(&bed.secret)).collect::<Vec<_>>()
    };
    assert_eq!(secrets_changed(), Vec::<String>::new());

    // What is news is seen after all of this, and once.
    let (other, newest) = user_with_key(&bed, ONE, "other");
    bed.keys_secret(&ops, "keys", &newest).await.unwrap();
    for namespace in [&a, &b] {
        token_at_once(&bed, namespace, &other).await;
    }
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    assert_eq!(bed.aws.calls_since(calls).len(), 1);
    assert_eq!(secrets_changed().len(), 2);
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_secret_with_keys_lacks_is_named() {
    let bed = bed("lacking").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let (user, key) = user_with_key(&bed, ONE, "puller");
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let mut auth = as_keys(&ops, "keys");
    auth["secretRef"]["sessionTokenKey"] = json!("AWS_SESSION_TOKEN");
    let name = bed.credential("x", spec_as(auth, &[&a])).await.unwrap();
    let place = format!("{ops}/keys");
    not_ready_until(&bed, &name, "IdentityNotFound", &[&place, "does not exist", "create it"]).await;
    let id = ("AWS_ACCESS_KEY_ID", key.id.as_str());
    let secret = ("AWS_SECRET_ACCESS_KEY", key.secret.as_str());
    for (data, lacks) in [
        (vec![], "AWS_ACCESS_KEY_ID"),
        (vec![id], "AWS_SECRET_ACCESS_KEY"),
        (vec![id, ("AWS_SECRET_ACCESS_KEY", " \n")], "AWS_SECRET_ACCESS_KEY"),
        (vec![id, secret], "AWS_SESSION_TOKEN"),
    ] {
        bed.keys_secret_of(&ops, "keys", &data).await.unwrap();
        not_ready_until(&bed, &name, "IdentityNotFound", &[&place, lacks]).await;
    }
    bed.change(&name, json!({ "spec": { "auth": { "secretRef": { "sessionTokenKey": null } } } })).await.unwrap();
    token_of(&bed, &a, &user).await;
    bed.ready(&name).await.unwrap();
    let before = bed.secret(&a).await.unwrap();
    bed.secrets(&ops).delete("keys", &DeleteParams::default()).await.unwrap();
    registry_until(&bed, &name, 0, "IdentityNotFound", &[&place, "does not exist"]).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.secret(&a).await.unwrap(), before);
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    at_once(bed.condition_until(&name, "Reconciling", "False", "Synced")).await;
    token_of(&bed, &a, &user).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
