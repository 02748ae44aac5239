//! A restart: what is fresh is found again whoever fetched it, and what changed meanwhile is another identity.

use testbed::bed::identities::ROLE_ARN;

use super::super::demand::*;
use super::super::look::quiet;
use super::*;

#[tokio::test]
async fn a_restart_with_fresh_secrets_of_other_identities_asks_nobody_and_writes_nothing() {
    let bed = Bed::with_secret_names("again", CRD, &["second", "third"]).await.unwrap();
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    account_with_role(&bed, ONE, &ops, "puller").await;
    let (_, key) = user_with_key(&bed, TWO, "puller");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let role = role_trusting(&bed, ONE, "role", Trust::principal(&bed.role).external_id("x-1"));
    let launch = || {
        let launch = launch().service_account(&format!("{ops}/puller")).credentials_secret(&format!("{ops}/keys"));
        launch.args(&["--secret-name", &bed.name("second"), "--secret-name", &bed.name("third")])
    };
    let first = bed.operator(launch()).await.unwrap();
    let chain = as_roles(json!([{ "roleArn": role, "externalId": "x-1" }]));
    let auths = [("pull", as_account(&ops, "puller")), ("second", as_keys(&ops, "keys")), ("third", chain)];
    for (secret, auth) in auths {
        let mut spec = spec_as(auth, &[&a]);
        spec["secret"] = json!({ "name": bed.name(secret) });
        let name = bed.credential(secret, spec).await.unwrap();
        bed.ready(&name).await.unwrap();
    }
    quiet(&bed).await;
    first.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let second = bed.operator(launch()).await.unwrap();
    page_until(&second, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 3\n")).await;
    quiet(&bed).await;
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    assert_eq!(bed.proxy.log().granted_tokens().len(), 1);
    let changes: Vec<String> = bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_identity_that_changed_while_the_operator_was_away_is_another_one() {
    let bed = bed("meanwhile").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let tenant = bed.tenant("tenant", ONE, "puller").await.unwrap();
    // All of one account, so that the hosts tell nothing.
    let role = account_with_role(&bed, ONE, &ops, "puller").await;
    let (user, key) = user_with_key(&bed, ONE, "puller");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let launch = || launch().service_account("*/puller").credentials_secret(&format!("{ops}/keys"));
    let first = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec_as(as_account(&ops, "puller"), &[&a])).await.unwrap();
    let each = bed.credential("each", spec_as(as_each("puller"), &[&tenant.namespace])).await.unwrap();
    let mut old = token_of(&bed, &a, &role).await.auth;
    let old_tenant = token_of(&bed, &tenant.namespace, &tenant.role).await.auth;
    bed.ready(&name).await.unwrap();
    bed.ready(&each).await.unwrap();
    first.stop().await.unwrap();

    let other = role_trusting(&bed, ONE, "other", bed.trust_of(&ops, "puller"));
    for step in ["account", "annotation", "auth", "keys"] {
        let who = match step {
            "account" => {
                bed.delete_service_account(&ops, "puller").await.unwrap();
                bed.service_account(&ops, "puller", &[(ROLE_ARN, &role)]).await.unwrap();
                // The tenant's own as well.
                bed.delete_service_account(&tenant.namespace, "puller").await.unwrap();
                bed.service_account(&tenant.namespace, "puller", &[(ROLE_ARN, &tenant.role)]).await.unwrap();
                &role
            }
            "annotation" => {
                bed.annotate(&ops, "puller", &[(ROLE_ARN, Some(&other))]).await.unwrap();
                &other
            }
            "auth" => {
                let auth = json!({ "serviceAccount": null, "secretRef": as_keys(&ops, "keys")["secretRef"] });
                bed.change(&name, json!({ "spec": { "auth": auth } })).await.unwrap();
                &user
            }
            _ => {
                let key = bed.aws.create_access_key(&user).unwrap();
                bed.keys_secret(&ops, "keys", &key).await.unwrap();
                &user
            }
        };
        let operator = bed.operator(launch()).await.unwrap();
        let new = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
            let logins = secret.and_then(|secret| logins(secret).ok()).unwrap_or_default();
            logins.get(&host_of(ONE)).is_some_and(|auth| *auth != old)
        };
        bed.secret_until(&a, &format!("{step}: a new login"), new).await.unwrap();
        old = token_of(&bed, &a, who).await.auth;
        bed.ready(&name).await.unwrap();
        bed.ready(&each).await.unwrap();
        operator.stop().await.unwrap();
    }
    assert_ne!(token_of(&bed, &tenant.namespace, &tenant.role).await.auth, old_tenant);
    bed.finish().await.unwrap();
}
