//! Pull secrets are attached to ServiceAccounts, and taken back, without touching what others have put there.

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use testbed::bed::{Bed, PATIENCE, condition};
use testbed::proxy::Match;
use testbed::recorder::Invariant;
use testbed::webhook::{Kind, Registration, Verdict, Webhook};

use super::look::{AT_ONCE, spec};
use super::rights::from;
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

/// A namespace with a ServiceAccount to attach to.
async fn with_builder(test: &str) -> (Bed, String, String) {
    let bed = bed(test).await;
    let (a, builder) = (bed.namespace("a", &[]).await.unwrap(), bed.name("builder"));
    bed.service_account(&a, &builder, &[]).await.unwrap();
    (bed, a, builder)
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
    let (bed, a, builder) = with_builder("attach-status").await;
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

/// Waits until `Attached` is false for ServiceAccounts, with these words.
async fn unattached(bed: &Bed, name: &str, words: &[&str]) {
    let says = |object: &DynamicObject| {
        let attached = condition(object, "Attached").filter(|attached| attached["reason"] == "AttachFailed");
        let message = attached.and_then(|attached| attached["message"].as_str());
        message.is_some_and(|message| words.iter().all(|word| message.contains(word)))
    };
    bed.credential_until(name, &format!("AttachFailed: {words:?}"), says).await.unwrap();
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_not_attached_until_it_is_gone() {
    let bed = bed("attach-foreign").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let builder = bed.name("builder");
    for namespace in [&a, &b] {
        bed.service_account(namespace, &builder, &[]).await.unwrap();
    }
    let theirs = json!({
        "metadata": { "name": bed.secret }, "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": "{\"auths\":{}}" },
    });
    bed.secrets(&a).create(&PostParams::default(), &from(theirs)).await.unwrap();
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let name = bed.credential("x", attaching(json!({ "names": [a, b] }), &builder)).await.unwrap();
    named(&bed, &b, &builder, &[&bed.secret]).await;
    unattached(&bed, &name, &["1 ServiceAccounts", &format!("{a}/{builder}"), "SecretNotOwned"]).await;
    named(&bed, &a, &builder, &[]).await;
    bed.secrets(&a).delete(&bed.secret, &Default::default()).await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.condition_until(&name, "Attached", "True", "Attached").await.unwrap();
    bed.finish().await.unwrap();
}

/// A webhook for updates of the ServiceAccounts in these namespaces.
fn for_accounts(bed: &Bed, kind: Kind, namespaces: &[&str]) -> Registration {
    let (resources, operations) = (vec!["serviceaccounts".to_owned()], vec!["UPDATE".to_owned()]);
    Registration { resources, operations, timeout_seconds: 30, ..Registration::secrets(&bed.prefix, kind, namespaces) }
}

/// Waits until the API server calls the webhook for a ServiceAccount.
async fn until_reviewed(bed: &Bed, webhook: &Webhook, namespace: &str, account: &str) {
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let probe = Patch::Merge(json!({ "metadata": { "labels": { "probe": "x" } } }));
    let accounts = bed.service_accounts(namespace);
    webhook.until_in_force(async || drop(accounts.patch(account, &dry, &probe).await)).await.unwrap();
}

#[tokio::test]
async fn a_webhook_that_undoes_each_patch_is_told_of_and_not_fought() {
    let (bed, a, builder) = with_builder("attach-undone").await;
    let webhook = Webhook::start().unwrap();
    let registered = webhook.register(&bed.client, &for_accounts(&bed, Kind::Mutating, &[&a])).await.unwrap();
    until_reviewed(&bed, &webhook, &a, &builder).await;
    // It restores what it knows, so that nothing changes.
    let undo = |object: &Value| {
        let fields = ["/imagePullSecrets", "/metadata/annotations"].into_iter();
        json!(
            fields
                .filter(|field| object.pointer(field).is_some())
                .map(|field| json!({ "op": "remove", "path": field }))
                .collect::<Vec<_>>()
        )
    };
    webhook.answer(Verdict::Mutate(std::sync::Arc::new(undo)));
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let name = bed.credential("x", attaching(json!({ "names": [a] }), &builder)).await.unwrap();
    unattached(&bed, &name, &[&format!("{a}/{builder}"), "Contested", "admission"]).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.proxy.log().count(&Match::any().resource("serviceaccounts").method("PATCH")), 1);
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn webhooks_that_hang_on_many_service_accounts_hold_up_no_other() {
    let bed = bed("attach-hanging").await;
    let builder = bed.name("builder");
    let mut hanging = Vec::new();
    for number in 0..12 {
        let namespace = bed.namespace(&format!("a{number}"), &[]).await.unwrap();
        bed.service_account(&namespace, &builder, &[]).await.unwrap();
        hanging.push(namespace);
    }
    let names: Vec<&str> = hanging.iter().map(String::as_str).collect();
    let webhook = Webhook::start().unwrap();
    let registered = webhook.register(&bed.client, &for_accounts(&bed, Kind::Validating, &names)).await.unwrap();
    until_reviewed(&bed, &webhook, &hanging[0], &builder).await;
    webhook.answer(Verdict::Hang);
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    bed.credential("x", attaching(json!({ "names": [bed.name("*")] }), &builder)).await.unwrap();
    webhook.called(8).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    bed.service_account(&b, &builder, &[]).await.unwrap();
    let at_once = tokio::time::timeout(AT_ONCE, named(&bed, &b, &builder, &[&bed.secret])).await;
    at_once.expect("the others hold it up");
    named(&bed, &hanging[0], &builder, &[]).await;
    // Each of them is attached once the API server has given the webhook up.
    for namespace in &hanging {
        named(&bed, namespace, &builder, &[&bed.secret]).await;
    }
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_service_account_that_cannot_take_the_annotation_is_told_of_in_the_words_of_the_api_server() {
    let (bed, a, builder) = with_builder("attach-full").await;
    // All annotations together may have 256 KiB.
    merge(&bed, &a, &builder, json!({ "metadata": { "annotations": { "x": "x".repeat((256 << 10) - 10) } } })).await;
    let _operator = bed.operator(launch().attaching(&builder)).await.unwrap();
    let name = bed.credential("x", attaching(json!({ "names": [a] }), &builder)).await.unwrap();
    unattached(&bed, &name, &[&format!("{a}/{builder}"), "ApiError", "metadata.annotations"]).await;
    // A test that fails is answered without a kind, by which the operator tells it from this.
    let test = json!([{ "op": "test", "path": "/metadata/resourceVersion", "value": "1" }]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(test).unwrap());
    let answer = bed.service_accounts(&a).patch(&builder, &PatchParams::default(), &patch).await;
    let Err(kube::Error::Api(status)) = answer else { panic!("{answer:?}") };
    assert_eq!(
        (status.code, status.details.as_ref().map(|details| details.kind.as_str())),
        (422, Some("")),
        "{status:?}"
    );
    merge(&bed, &a, &builder, json!({ "metadata": { "annotations": null } })).await;
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.condition_until(&name, "Attached", "True", "Attached").await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn service_accounts_that_may_not_be_watched_are_told_of_until_they_may() {
    let (bed, a, builder) = with_builder("attach-unwatched").await;
    let launch = launch().attaching(&builder).without_rights();
    let lent = launch.lent.clone();
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the right is given later");
    let _operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", attaching(json!({ "names": [a] }), &builder)).await.unwrap();
    unattached(&bed, &name, &[&format!("*/{builder}"), "Forbidden", "list and watch"]).await;
    bed.lend(&lent).await.unwrap();
    named(&bed, &a, &builder, &[&bed.secret]).await;
    bed.condition_until(&name, "Attached", "True", "Attached").await.unwrap();
    bed.finish().await.unwrap();
}
