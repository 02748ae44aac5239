//! Which namespaces hold the Secret: it follows labels, names and edits at once, and one that is going is left alone.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use serde_json::json;
use testbed::aws::Service;
use testbed::bed::{Bed, PATIENCE};
use testbed::proxy::{Action, Fault, Gate, Match, Request};

use super::look::{at_once, counts, make_lingering_namespace, quiet, shown, spec, stored_in, uid, version, writes_in};
use super::{OWN, bed, operator};

#[tokio::test]
async fn a_namespace_gains_and_loses_its_secret_with_the_label() {
    let bed = bed("label").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[(&bed.prefix, "yes")]).await.unwrap();
    let operator = operator(&bed).await;
    let name =
        bed.credential("x", spec(json!({ "selector": { "matchLabels": { &bed.prefix: "yes" } } }))).await.unwrap();
    let before = version(&bed.logins_until(&b, &[OWN]).await.unwrap());
    bed.ready(&name).await.unwrap();
    bed.label(&a, &[(&bed.prefix, Some("yes"))]).await.unwrap();
    at_once(bed.logins_until(&a, &[OWN])).await;
    bed.label(&a, &[(&bed.prefix, Some("no"))]).await.unwrap();
    at_once(bed.secret_until(&a, "gone with the label", |secret| secret.is_none())).await;
    bed.label(&a, &[(&bed.prefix, Some("yes"))]).await.unwrap();
    at_once(bed.logins_until(&a, &[OWN])).await;
    bed.label(&a, &[(&bed.prefix, None)]).await.unwrap();
    at_once(bed.secret_until(&a, "gone with the label", |secret| secret.is_none())).await;
    bed.credential_until(&name, "one namespace", |object| counts(object) == [1, 1, 0]).await.unwrap();
    let methods: Vec<String> =
        bed.proxy.log().matching(&Match::secret_writes().namespace(&a)).iter().map(|w| w.method.to_string()).collect();
    assert_eq!(methods, ["PATCH", "DELETE", "PATCH", "DELETE"]);
    assert_eq!(version(&bed.secret(&b).await.unwrap().unwrap()), before, "the other namespace is not concerned");
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_edit_of_the_selection_moves_the_secrets() {
    let bed = bed("selection").await;
    let [a, b, c] = ["a", "b", "c"].map(|name| bed.name(name));
    for name in ["a", "b", "c"] {
        bed.namespace(name, &[]).await.unwrap();
    }
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = version(&bed.secret(&b).await.unwrap().unwrap());
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [b, c] } } })).await.unwrap();
    at_once(bed.secret_until(&a, "gone, as it is no target", |secret| secret.is_none())).await;
    at_once(bed.logins_until(&c, &[OWN])).await;
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "exclude": [c] } } })).await.unwrap();
    at_once(bed.secret_until(&c, "gone, as it is excluded", |secret| secret.is_none())).await;
    bed.credential_until(&name, "one namespace", |object| counts(object) == [1, 1, 0]).await.unwrap();
    assert_eq!(version(&bed.secret(&b).await.unwrap().unwrap()), before, "what stays selected is not written");
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 5);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_that_is_edited_while_it_is_being_removed_is_removed_all_the_same() {
    let bed = bed("edited-removal").await;
    let a = bed.namespace("a", &[(&bed.prefix, "yes")]).await.unwrap();
    let operator = operator(&bed).await;
    let name =
        bed.credential("x", spec(json!({ "selector": { "matchLabels": { &bed.prefix: "yes" } } }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let gate = Gate::new();
    let removal = Match::secret_writes().method("DELETE");
    bed.proxy.place(Fault::new(removal.clone(), Action::HoldRequest(gate.clone())).once());
    bed.label(&a, &[(&bed.prefix, None)]).await.unwrap();
    gate.arrived(1).await;
    let edit = Patch::Merge(json!({ "metadata": { "labels": { "theirs": "x" } } }));
    shown(&bed, bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &edit)).await.unwrap();
    gate.open();
    at_once(bed.secret_until(&a, "gone with the label", |secret| secret.is_none())).await;
    let answered = bed.proxy.log().wait_for(Default::default(), &removal, 2, PATIENCE).await.unwrap();
    let answers: Vec<_> = answered.iter().map(|removal| removal.status).collect();
    assert_eq!(answers, [Some(409), Some(200)]);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn names_globs_and_expressions_select_and_exclude() {
    let bed = bed("globs").await;
    let labelled = [(&*bed.prefix, "web")];
    for (name, labels) in [
        ("payments", &[][..]),
        ("payments2", &[]),
        ("team-a", &[]),
        ("team-b", &labelled),
        ("team-secret", &labelled),
        ("x1", &[]),
        ("x12", &[]),
        ("shop", &labelled),
    ] {
        bed.namespace(name, labels).await.unwrap();
    }
    let operator = operator(&bed).await;
    let selection = json!({
        "names": [bed.name("payments"), bed.name("team-*"), bed.name("x?")],
        "selector": { "matchExpressions": [
            { "key": bed.prefix, "operator": "In", "values": ["web", "api"] },
            { "key": "never", "operator": "DoesNotExist" },
        ] },
        "exclude": [bed.name("*-secret")],
    });
    let name = bed.credential("x", spec(selection)).await.unwrap();
    let status = bed.ready(&name).await.unwrap();
    let expected = ["payments", "team-a", "team-b", "x1", "shop"].map(|name| bed.name(name));
    assert_eq!(counts(&status), [5, 5, 0]);
    assert_eq!(holders(&bed).await, BTreeSet::from(expected));
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 5);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_terminating_namespace_is_left_alone_and_gets_a_secret_when_it_is_made_again() {
    let bed = bed("terminating").await;
    let lingering = make_lingering_namespace(&bed, "lingering", &[]).await;
    let other = bed.namespace("other", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [bed.name("*")], "exclude": [bed.home] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let first = uid(&bed.secret(&lingering).await.unwrap().unwrap());
    let mark = bed.proxy.log().mark();
    bed.delete_namespace(&lingering).await.unwrap();
    bed.secret_until(&lingering, "gone with its namespace", |secret| secret.is_none()).await.unwrap();
    bed.credential_until(&name, "one namespace", |object| counts(object) == [1, 1, 0]).await.unwrap();
    let since = bed.proxy.log().mark();
    // Others go on while it hangs.
    let later = bed.namespace("later", &[]).await.unwrap();
    at_once(bed.logins_until(&later, &[OWN])).await;
    bed.secrets(&other).delete(&bed.secret, &Default::default()).await.unwrap();
    at_once(bed.logins_until(&other, &[OWN])).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(writes_in(&bed, since, &lingering).len(), 0);
    assert_eq!(stored_in(&bed, mark, &lingering), 0);

    let namespaces: Api<Namespace> = Api::all(bed.client.clone());
    let old = namespaces.get(&lingering).await.unwrap().uid().unwrap();
    let release = json!({ "metadata": { "finalizers": null } });
    namespaces.patch(&lingering, &PatchParams::default(), &Patch::Merge(&release)).await.unwrap();
    let gone = await_condition(namespaces, &lingering, is_deleted(&old));
    tokio::time::timeout(PATIENCE, gone).await.expect("the namespace ends").unwrap();
    bed.namespace("lingering", &[]).await.unwrap();
    let second = at_once(bed.logins_until(&lingering, &[OWN])).await;
    assert_ne!(uid(&second), first);
    bed.credential_until(&name, "three namespaces", |object| counts(object) == [3, 3, 0]).await.unwrap();
    assert_eq!(stored_in(&bed, mark, &lingering), 1);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn two_hundred_namespaces_labelled_at_once_take_one_write_each_and_one_aws_call() {
    const MANY: usize = 200;
    let bed = bed("many").await;
    let names: Vec<String> = (0..MANY).map(|n| format!("n{n}")).collect();
    let namespaces = try_join_all(names.iter().map(|name| bed.namespace(name, &[]))).await.unwrap();
    let operator = operator(&bed).await;
    let name =
        bed.credential("x", spec(json!({ "selector": { "matchLabels": { &bed.prefix: "yes" } } }))).await.unwrap();
    bed.condition_until(&name, "Ready", "True", "NoNamespaces").await.unwrap();
    let label = [(&*bed.prefix, Some("yes"))];
    try_join_all(namespaces.iter().map(|namespace| bed.label(namespace, &label))).await.unwrap();
    let all = |object: &_| counts(object) == [MANY as u64, MANY as u64, 0];
    bed.credential_until(&name, "all are synced", all).await.unwrap();
    quiet(&bed).await;
    assert_eq!(holders(&bed).await, namespaces.into_iter().collect());
    let mut written = BTreeSet::new();
    let mut again = bed.proxy.log().writes_to_secrets();
    again.retain(|write| !written.insert(write.target.namespace.clone()));
    let again: Vec<String> = again.iter().map(Request::summary).collect();
    assert!(again.is_empty() && written.len() == MANY, "{} namespaces, and again: {again:#?}", written.len());
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// The namespaces that hold a Secret of this test's name with working logins.
async fn holders(bed: &Bed) -> BTreeSet<String> {
    let secrets: Api<Secret> = Api::all(bed.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={}", bed.secret));
    let found = secrets.list(&named).await.unwrap().items;
    let holder = |secret: Secret| {
        let logins = testbed::bed::logins(&secret).unwrap();
        assert!(logins.keys().eq([OWN]) && logins.values().all(|auth| bed.aws.is_valid(auth)), "{logins:?}");
        secret.namespace().unwrap()
    };
    found.into_iter().map(holder).collect()
}
