//! An EcrCredential is edited, suspended, deleted and made again, and its Secrets follow with one write each.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use serde_json::json;
use testbed::aws::Service;
use testbed::bed::{Bed, PATIENCE, condition};
use testbed::proxy::{Action, Fault, Gate, Match};

use super::look::{
    at_once, counts, failure_until, labelled_owner, nobody_renews, owner, quiet, spec, stored_in, uid, version,
    writes_in,
};
use super::rights::from;
use super::{CRD, OWN, bed, operator};

#[tokio::test]
async fn under_retain_the_secrets_stay_and_the_next_of_the_same_name_takes_them_over() {
    let bed = bed("retain").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let mut spec = spec(json!({ "names": [a, b] }));
    spec["secret"] = json!({ "deletionPolicy": "Retain" });
    let name = bed.credential("x", spec.clone()).await.unwrap();
    let first = bed.ready(&name).await.unwrap().uid().unwrap();
    let kept = [&a, &b].map(|namespace| (namespace, bed.logins_until(namespace, &[OWN])));
    let mut before = Vec::new();
    for (namespace, secret) in kept {
        let secret = secret.await.unwrap();
        assert_eq!(owner(&secret), None, "the garbage collector must not find an owner that is gone");
        assert_eq!(labelled_owner(&secret), Some(first.as_str()));
        before.push((namespace, secret));
    }
    let mark = bed.proxy.log().mark();
    delete(&bed, &name).await;
    quiet(&bed).await;
    for (namespace, secret) in &before {
        assert_eq!(version(&bed.secret(namespace).await.unwrap().unwrap()), version(secret));
    }
    bed.credential("x", spec).await.unwrap();
    let second = at_once(bed.ready(&name)).await.uid().unwrap();
    assert_ne!(second, first);
    for (namespace, secret) in &before {
        let after = bed.logins_until(namespace, &[OWN]).await.unwrap();
        assert_eq!(uid(&after), uid(secret), "taken over in place");
        assert_eq!(labelled_owner(&after), Some(second.as_str()));
        assert_eq!(writes_in(&bed, mark, namespace).len(), 1);
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_change_of_the_deletion_policy_changes_the_owner_reference_alone() {
    let bed = bed("policy").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    let me = bed.ready(&name).await.unwrap().uid();
    let first = bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(owner(&first), me);
    for (policy, expected) in [("Retain", None), ("Delete", me.clone()), ("Retain", None), ("Delete", me)] {
        let mark = bed.proxy.log().mark();
        bed.change(&name, json!({ "spec": { "secret": { "deletionPolicy": policy } } })).await.unwrap();
        bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        let secret = bed.logins_until(&a, &[OWN]).await.unwrap();
        assert_eq!((owner(&secret), uid(&secret)), (expected, uid(&first)), "{policy}");
        assert_eq!((&secret.data, secret.labels()), (&first.data, first.labels()), "{policy}");
        assert_eq!(writes_in(&bed, mark, &a).len(), 1, "{policy}");
    }
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    delete(&bed, &name).await;
    bed.secret_until(&a, "gone with its EcrCredential", |secret| secret.is_none()).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn labels_and_annotations_of_the_template_come_and_go_with_one_write() {
    let bed = bed("template").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let first = bed.logins_until(&a, &[OWN]).await.unwrap();
    let templates = [
        json!({ "labels": { "team": "a", "tier": "1" }, "annotations": { "example.com/x": "y" } }),
        json!({ "labels": { "team": "b", "tier": null } }),
        json!({ "labels": { "team": null }, "annotations": { "example.com/x": null } }),
    ];
    for template in templates {
        let mark = bed.proxy.log().mark();
        bed.change(&name, json!({ "spec": { "secret": template } })).await.unwrap();
        let status = bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        let secret = bed.logins_until(&a, &[OWN]).await.unwrap();
        let wanted = |what: &str, key: &str| {
            status.data.pointer(&format!("/spec/secret/{what}"))?.get(key)?.as_str().map(str::to_owned)
        };
        for key in ["team", "tier"] {
            assert_eq!(secret.labels().get(key), wanted("labels", key).as_ref(), "{key}");
        }
        assert_eq!(secret.annotations().get("example.com/x"), wanted("annotations", "example.com/x").as_ref());
        assert_eq!((uid(&secret), &secret.data), (uid(&first), &first.data));
        assert_eq!(writes_in(&bed, mark, &a).len(), 1);
    }
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_of_the_old_name_stays_until_its_tokens_expire_also_across_a_restart() {
    let bed = Bed::with_secret_names("rename", CRD, &["other"]).await.unwrap();
    bed.aws.set_token_life(k8s_openapi::jiff::SignedDuration::from_secs(20));
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let other = bed.name("other");
    let launch = || super::launch().args(&["--secret-name", &other]);
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.change(&name, json!({ "spec": { "secret": { "name": other } } })).await.unwrap();
    at_once(bed.ready(&name)).await;
    let mut olds = Vec::new();
    for namespace in [&a, &b] {
        let has_login = |secret: Option<&Secret>| {
            let logins = secret.and_then(|secret| testbed::bed::logins(secret).ok());
            logins.is_some_and(|logins| logins.keys().eq([OWN]) && logins.values().all(|auth| bed.aws.is_valid(auth)))
        };
        bed.named_secret_until(namespace, &other, "a login under the new name", has_login).await.unwrap();
        olds.push((namespace, bed.secret(namespace).await.unwrap().expect("pods name it")));
    }
    operator.stop().await.unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    let expires = |secret: &Secret| super::demand::expiry(secret);
    for (namespace, old) in &olds {
        let gone = |secret: Option<&Secret>| match secret {
            Some(secret) => {
                assert_eq!(version(secret), version(old), "it is left as it is");
                false
            }
            None => true,
        };
        bed.secret_until(namespace, "gone with its tokens", gone).await.unwrap();
        assert!(k8s_openapi::jiff::Timestamp::now() >= expires(old));
    }
    bed.ready(&name).await.unwrap();
    let writes = bed.proxy.log().writes_to_secrets_since(mark);
    let of_old = writes.iter().filter(|write| write.target.name == bed.secret);
    assert_eq!(of_old.map(|write| write.method.as_str()).collect::<Vec<_>>(), ["DELETE", "DELETE"]);
    operator.stop().await.unwrap();
    nobody_renews(&bed, &name, &[&a, &b], &other);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_of_the_old_name_stays_where_the_new_one_cannot_be_written() {
    let bed = Bed::with_secret_names("rename-blocked", CRD, &["other"]).await.unwrap();
    bed.aws.set_token_life(k8s_openapi::jiff::SignedDuration::from_secs(16));
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let other = bed.name("other");
    let foreign = json!({ "metadata": { "name": other }, "type": "Opaque" });
    bed.secrets(&a).create(&PostParams::default(), &from(foreign)).await.unwrap();
    let operator = bed.operator(super::launch().args(&["--secret-name", &other])).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "spec": { "secret": { "name": other } } })).await.unwrap();
    failure_until(&bed, &name, &a, "SecretNotOwned").await;
    let before = version(&bed.secret(&a).await.unwrap().unwrap());
    bed.secret_until(&b, "gone with its tokens", |secret| secret.is_none()).await.unwrap();
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), before);
    bed.secrets(&a).delete(&other, &DeleteParams::default()).await.unwrap();
    at_once(bed.ready(&name)).await;
    bed.secret_until(&a, "gone, as the new one is there", |secret| secret.is_none()).await.unwrap();
    operator.stop().await.unwrap();
    nobody_renews(&bed, &name, &[&a, &b], &other);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_name_that_is_not_allowed_stalls_and_touches_nothing() {
    let bed = bed("forbidden-name").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.logins_until(&a, &[OWN]).await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.change(&name, json!({ "spec": { "secret": { "name": bed.name("other") } } })).await.unwrap();
    let status = bed.condition_until(&name, "Stalled", "True", "SecretNameNotAllowed").await.unwrap();
    let ready = condition(&status, "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("SecretNameNotAllowed")));
    assert_eq!(status.data.pointer("/status/namespaces"), None, "the namespaces are not checked any more");
    assert!(ready["message"].as_str().unwrap().contains(&bed.secret), "the message names what is allowed: {ready}");
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&before));
    assert_eq!(bed.proxy.log().writes_to_secrets_since(mark).len(), 0);

    bed.change(&name, json!({ "spec": { "secret": { "name": bed.secret } } })).await.unwrap();
    let status = at_once(bed.ready(&name)).await;
    assert_eq!((&condition(&status, "Stalled").unwrap()["status"], counts(&status)), (&json!("False"), [1, 1, 0]));
    assert_eq!(bed.proxy.log().writes_to_secrets_since(mark).len(), 0);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn while_suspended_nothing_is_written_and_afterwards_all_is_mended() {
    let bed = bed("suspend").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let selection = json!({ "names": [a], "selector": { "matchLabels": { &bed.prefix: "yes" } } });
    let name = bed.credential("x", spec(selection)).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "spec": { "suspend": true } })).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "Suspended").await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    bed.label(&b, &[(&bed.prefix, Some("yes"))]).await.unwrap();
    // A second one shows when the news has come through.
    let witness = bed.namespace("witness", &[]).await.unwrap();
    let second = bed.credential("witness", spec(json!({ "names": [witness] }))).await.unwrap();
    bed.ready(&second).await.unwrap();
    quiet(&bed).await;
    assert_eq!(writes_in(&bed, mark, &a).len() + writes_in(&bed, mark, &b).len(), 0);
    assert!(bed.secret(&a).await.unwrap().is_none() && bed.secret(&b).await.unwrap().is_none());

    bed.change(&name, json!({ "spec": { "suspend": false } })).await.unwrap();
    let status = at_once(bed.ready(&name)).await;
    assert_eq!(counts(&status), [2, 2, 0]);
    for namespace in [&a, &b] {
        bed.logins_until(namespace, &[OWN]).await.unwrap();
        assert_eq!(stored_in(&bed, mark, namespace), 1);
    }
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_suspended_one_that_is_new_fetches_and_writes_nothing() {
    let bed = bed("suspended").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let mut spec = spec(json!({ "names": [a] }));
    spec["suspend"] = json!(true);
    let name = bed.credential("x", spec).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "Suspended").await.unwrap();
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().count(&Match::secret_writes()), 0);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// Deletes an EcrCredential and waits until it is gone: no finalizer holds it up.
async fn delete(bed: &Bed, name: &str) {
    let uid = bed.credentials().get(name).await.unwrap().uid().unwrap();
    bed.credentials().delete(name, &DeleteParams::default()).await.unwrap();
    gone(bed, name, &uid).await;
}

async fn gone(bed: &Bed, name: &str, uid: &str) {
    let gone = await_condition(bed.credentials(), name, is_deleted(uid));
    tokio::time::timeout(PATIENCE, gone).await.expect("it is to go at once").unwrap();
}

#[tokio::test]
async fn one_that_a_finalizer_keeps_says_that_it_is_not_served_any_more() {
    let bed = bed("finalizer").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.change(&name, json!({ "metadata": { "finalizers": ["example.com/hold"] } })).await.unwrap();
    let uid = bed.credentials().get(&name).await.unwrap().uid().unwrap();
    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "Deleting").await.unwrap();
    bed.change(&name, json!({ "metadata": { "finalizers": null } })).await.unwrap();
    gone(&bed, &name, &uid).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn deleting_an_ecrcredential_in_the_middle_of_its_writes_deletes_none_of_its_secrets_under_retain() {
    let bed = bed("mid-delete").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let other = bed.namespace("other", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let gate = Gate::new();
    let held = Match::secret_writes().namespace(&b);
    bed.proxy.place(Fault::new(held, Action::HoldRequest(gate.clone())).once());
    let mut retained = spec(json!({ "names": [a, b] }));
    retained["secret"]["deletionPolicy"] = json!("Retain");
    let name = bed.credential("x", retained).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    gate.arrived(1).await;
    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    // Events of one kind come in order: who has seen the second EcrCredential has seen the first one go.
    bed.credential("y", spec(json!({ "names": [other] }))).await.unwrap();
    bed.logins_until(&other, &[OWN]).await.unwrap();
    gate.open();
    bed.logins_until(&b, &[OWN]).await.unwrap();
    operator.stop().await.unwrap();
    assert!(bed.secret(&a).await.unwrap().is_some() && bed.secret(&b).await.unwrap().is_some());
    let deletions = Match::secret_writes().method("DELETE");
    assert_eq!(bed.proxy.log().count(&deletions), 0);
    bed.finish().await.unwrap();
}
