//! Pull secrets are attached to ServiceAccounts, and taken back, without touching what others have put there.

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use testbed::bed::{Bed, PATIENCE, condition};
use testbed::proxy::Match;

use super::look::spec;
use super::{bed, launch};

/// The names in a ServiceAccount's `imagePullSecrets`, in order.
fn names(account: Option<&ServiceAccount>) -> Vec<String> {
    let entries = account.and_then(|account| account.image_pull_secrets.as_ref());
    entries.into_iter().flatten().map(|entry| entry.name.clone()).collect()
}

/// Waits until a ServiceAccount names these pull secrets, in this order.
async fn named(bed: &Bed, namespace: &str, account: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    let same = |account: Option<&ServiceAccount>| names(account) == expected;
    let waiting = await_condition(bed.service_accounts(namespace), account, same);
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        let seen = bed.service_accounts(namespace).get(account).await.unwrap();
        panic!("{namespace}/{account} names {:?}, not {expected:?}", names(Some(&seen)));
    }
}

fn attaching(namespaces: Value, account: &str) -> Value {
    let mut spec = spec(namespaces);
    spec["attachTo"] = json!({ "serviceAccounts": [account] });
    spec
}

async fn merge(bed: &Bed, namespace: &str, account: &str, patch: Value) {
    bed.service_accounts(namespace).patch(account, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

#[tokio::test]
async fn a_service_account_names_the_secret_as_long_as_it_is_asked_for() {
    let bed = bed("attach").await;
    let (a, b) = (bed.namespace("a", &[("pull", "ecr")]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let (builder, other) = (bed.name("builder"), bed.name("other"));
    for (namespace, account) in [(&a, &builder), (&b, &builder), (&a, &other)] {
        bed.service_account(namespace, account, &[]).await.unwrap();
        merge(&bed, namespace, account, json!({ "imagePullSecrets": [{ "name": "theirs" }] })).await;
    }
    let operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let selected = json!({ "selector": { "matchLabels": { "pull": "ecr" } } });
    let name = bed.credential("x", attaching(selected, &bed.name("build*"))).await.unwrap();
    named(&bed, &a, &builder, &["theirs", &bed.secret]).await;
    named(&bed, &b, &builder, &["theirs"]).await;
    named(&bed, &a, &other, &["theirs"]).await;

    // A namespace that is selected later, and one that is no longer selected.
    bed.label(&b, &[("pull", Some("ecr"))]).await.unwrap();
    named(&bed, &b, &builder, &["theirs", &bed.secret]).await;
    bed.label(&b, &[("pull", None)]).await.unwrap();
    named(&bed, &b, &builder, &["theirs"]).await;

    // What was added is known after a restart, and taken back when nobody asks for it any more.
    operator.stop().await.unwrap();
    merge(
        &bed,
        &a,
        &builder,
        json!({ "imagePullSecrets": [{ "name": "first" }, { "name": bed.secret }, { "name": "last" }] }),
    )
    .await;
    bed.credentials().delete(&name, &Default::default()).await.unwrap();
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    named(&bed, &a, &builder, &["first", "last"]).await;
    let left = bed.service_accounts(&a).get(&builder).await.unwrap();
    assert_eq!(left.metadata.annotations.unwrap_or_default().get("pullsecrets.dev/attached"), None);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_service_account_that_something_else_manages_is_not_fought() {
    let bed = bed("attach-gitops").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let builder = bed.name("builder");
    let managed = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": builder }, "imagePullSecrets": [{ "name": "theirs" }] });
    let params = PatchParams::apply("gitops").force();
    let manage = async || {
        bed.service_accounts(&a).patch(&builder, &params, &Patch::Apply(&managed)).await.unwrap();
    };
    manage().await;
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.credential("x", attaching(json!({ "names": [a] }), &builder)).await.unwrap();
    // It takes the entry out as often as it comes.
    let mut reverted = 0;
    while reverted < 4 {
        named(&bed, &a, &builder, &["theirs", &bed.secret]).await;
        manage().await;
        reverted += 1;
    }
    let patches =
        || bed.proxy.log().matching_since(mark, &Match::any().resource("serviceaccounts").method("PATCH")).len();
    let before = patches();
    for _ in 0..10 {
        merge(&bed, &a, &builder, json!({ "metadata": { "labels": { "touched": format!("{before}") } } })).await;
        manage().await;
    }
    let told = bed.condition_until(&bed.name("x"), "Attached", "False", "AttachFailed").await.unwrap();
    let message = condition(&told, "Attached").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("Contested") && message.contains("\"gitops\""), "{message}");
    bed.ready(&bed.name("x")).await.unwrap();
    assert_eq!((before, patches()), (4, 4), "each change is answered by no further patch");
    named(&bed, &a, &builder, &["theirs"]).await;
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_is_attached_stays_while_the_credential_is_suspended() {
    let bed = bed("attach-suspended").await;
    let (a, b) = (bed.namespace("a", &[("pull", "ecr")]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let builder = bed.name("builder");
    for namespace in [&a, &b] {
        bed.service_account(namespace, &builder, &[]).await.unwrap();
    }
    let operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let selected = json!({ "selector": { "matchLabels": { "pull": "ecr" } } });
    let name = bed.credential("x", attaching(selected, &builder)).await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "spec": { "suspend": true } })).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "Suspended").await.unwrap();
    bed.label(&b, &[("pull", Some("ecr"))]).await.unwrap();
    // Another operator learns all anew, and a witness shows when it has come so far.
    operator.stop().await.unwrap();
    let witness = bed.namespace("witness", &[]).await.unwrap();
    bed.service_account(&witness, &builder, &[]).await.unwrap();
    let second = bed.credential("second", attaching(json!({ "names": [witness] }), &builder)).await.unwrap();
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    named(&bed, &witness, &builder, &[&bed.secret]).await;
    bed.ready(&second).await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    named(&bed, &b, &builder, &[]).await;
    // A spec that cannot be served, and in the end the Secret is gone.
    bed.change(&name, json!({ "spec": { "suspend": false, "secret": { "name": bed.name("other") } } })).await.unwrap();
    bed.condition_until(&name, "Stalled", "True", "SecretNameNotAllowed").await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.secrets(&a).delete(&bed.secret, &Default::default()).await.unwrap();
    named(&bed, &a, &builder, &[]).await;
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_status_says_whether_the_secret_is_attached_and_what_is_missing() {
    let bed = bed("attach-status").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let builder = bed.name("builder");
    bed.service_account(&a, &builder, &[]).await.unwrap();
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let mut of_pods = spec(json!({ "names": [a] }));
    of_pods["attachTo"] = json!({ "pods": "MatchingImages" });
    let pods = bed.credential("pods", of_pods).await.unwrap();
    bed.condition_until(&pods, "Attached", "False", "AttachPolicyMissing").await.unwrap();
    bed.change(&pods, json!({ "spec": { "attachTo": { "pods": "Never", "serviceAccounts": ["default"] } } }))
        .await
        .unwrap();
    let object = bed.condition_until(&pods, "Attached", "False", "AttachNotAllowed").await.unwrap();
    let message = condition(&object, "Attached").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("\"default\"") && message.contains("attach.serviceAccounts"), "{message}");
    bed.change(&pods, json!({ "spec": { "attachTo": { "serviceAccounts": [builder] } } })).await.unwrap();
    bed.condition_until(&pods, "Attached", "True", "Attached").await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.change(&pods, json!({ "spec": { "attachTo": null } })).await.unwrap();
    named(&bed, &a, &builder, &[]).await;
    let gone = |object: &DynamicObject| condition(object, "Attached").is_none();
    bed.credential_until(&pods, "no condition Attached", gone).await.unwrap();
    bed.finish().await.unwrap();
}
