//! Whose a Secret is: what is not ours is left alone or adopted, and of two EcrCredentials the older has it.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::aws::Service;
use testbed::bed::{Bed, Operator, condition};
use testbed::proxy::{Action, Fault, Gate, Match};

use super::look::{
    at_once, event_until, failure, failure_until, labelled_owner, looks, make_secret, owner, quiet, shown, spec,
    stored_in, uid, version, writes_in,
};
use super::{OWN, bed, operator};

const DOCKER_CONFIG: &str = "kubernetes.io/dockerconfigjson";

#[tokio::test]
async fn a_foreign_secret_is_left_alone_and_told_of_until_it_is_gone() {
    let bed = bed("foreign").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let foreign = make_secret(&bed, &a, DOCKER_CONFIG, &[(".dockerconfigjson", "{}")]).await;
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    let status = failure_until(&bed, &name, &a, "SecretNotOwned").await;
    assert_eq!(condition(&status, "Ready").unwrap()["reason"], "NamespacesFailed");
    event_until(&bed, &name, &["SecretNotOwned", &a]).await;
    bed.logins_until(&b, &[OWN]).await.unwrap();
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&foreign));

    // Whatever its owner does to it is no business of ours.
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "helm" } } }));
    let edited = bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &patch).await.unwrap();
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&edited));
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 0);

    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    at_once(bed.logins_until(&a, &[OWN])).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(stored_in(&bed, Default::default(), &a), 1);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_secret_that_appears_at_the_last_moment_is_left_alone() {
    let bed = bed("last-moment").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::secret_writes(), Action::HoldRequest(gate.clone())).once());
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    gate.arrived(1).await;
    let foreign = shown(&bed, make_secret(&bed, &a, DOCKER_CONFIG, &[(".dockerconfigjson", "{}")])).await;
    gate.open();
    failure_until(&bed, &name, &a, "SecretNotOwned").await;
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&foreign));
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 1);
    // A look changes nothing: not the first one after that, nor one that something else brings about.
    look_again(&bed, &operator, &name).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&foreign));
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 1, "nothing is to be tried again");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_that_lost_all_marks_is_not_ours_any_more() {
    let bed = bed("unmarked").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let stripped = json!({ "metadata": { "labels": null, "annotations": null, "ownerReferences": null } });
    let stripped = bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &Patch::Merge(stripped)).await.unwrap();
    failure_until(&bed, &name, &a, "SecretNotOwned").await;
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&stripped));
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_label_that_somebody_overwrites_makes_no_retained_secret_foreign() {
    let bed = bed("overwritten").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let mut spec = spec(json!({ "names": [a] }));
    spec["secret"] = json!({ "deletionPolicy": "Retain" });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.logins_until(&a, &[OWN]).await.unwrap();
    for label in ["app.kubernetes.io/managed-by", "pullsecrets.dev/credential-uid"] {
        let theirs = json!({ "metadata": { "labels": { label: "helm" } } });
        bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &Patch::Merge(theirs)).await.unwrap();
        let repaired = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
            secret.is_some_and(|secret| secret.labels()[label] == before.labels()[label])
        };
        let after = at_once(bed.secret_until(&a, "labelled as before", repaired)).await.unwrap();
        assert_eq!(uid(&after), uid(&before), "repaired in place");
    }
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_copy_of_one_of_ours_elsewhere_stays_and_ours_is_deleted_with_a_word_in_the_log() {
    let bed = bed("copied").await;
    let (a, b, other) = (
        bed.namespace("a", &[]).await.unwrap(),
        bed.namespace("b", &[]).await.unwrap(),
        bed.namespace("other", &[]).await.unwrap(),
    );
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let ours = bed.logins_until(&a, &[OWN]).await.unwrap();
    // As `kubectl get -o yaml` and `kubectl create` do it.
    let metadata = kube::core::ObjectMeta {
        name: ours.metadata.name.clone(),
        labels: ours.metadata.labels.clone(),
        annotations: ours.metadata.annotations.clone(),
        owner_references: ours.metadata.owner_references.clone(),
        ..Default::default()
    };
    let copy = k8s_openapi::api::core::v1::Secret { metadata, ..ours.clone() };
    let copy = bed.secrets(&other).create(&Default::default(), &copy).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [b] } } })).await.unwrap();
    at_once(bed.secret_until(&a, "gone, as it is not selected", |secret| secret.is_none())).await;
    quiet(&bed).await;
    assert_eq!(version(&bed.secret(&other).await.unwrap().unwrap()), version(&copy));
    assert_eq!(writes_in(&bed, Default::default(), &other).len(), 0);
    let log = std::fs::read_to_string(&operator.log).unwrap();
    let told = |namespace: &str| log.lines().any(|line| line.contains("deleted a Secret") && line.contains(namespace));
    assert!(told(&a) && !told(&other), "{log}");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_secret_is_adopted_in_place_where_that_is_asked_for() {
    let bed = bed("adopt").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let login = r#"{"auths":{"registry.example":{"auth":"dTpw"}}}"#;
    let plain = make_secret(&bed, &a, DOCKER_CONFIG, &[(".dockerconfigjson", login)]).await;
    let stuffed = make_secret(&bed, &b, DOCKER_CONFIG, &[(".dockerconfigjson", login), ("extra", "x")]).await;
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    let both = |object: &_| failure(object, &a).is_some() && failure(object, &b).is_some();
    bed.credential_until(&name, "both are not ours", both).await.unwrap();
    bed.change(&name, json!({ "spec": { "secret": { "conflictPolicy": "Adopt" } } })).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    for (namespace, before) in [(&a, &plain), (&b, &stuffed)] {
        let after = bed.logins_until(namespace, &[OWN]).await.unwrap();
        assert_eq!(uid(&after), uid(before), "taken over in place");
        assert_eq!(after.data.unwrap().keys().collect::<Vec<_>>(), [".dockerconfigjson"]);
    }
    assert_eq!(stored_in(&bed, Default::default(), &a), 1);
    assert_eq!(stored_in(&bed, Default::default(), &b), 2, "the login, then the key that is not ours");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_secret_that_cannot_be_adopted_in_place_stays_and_says_why() {
    let bed = bed("not-adoptable").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let opaque = make_secret(&bed, &a, "Opaque", &[("password", "x")]).await;
    make_secret(&bed, &b, DOCKER_CONFIG, &[(".dockerconfigjson", "{}")]).await;
    let immutable = Patch::Merge(json!({ "immutable": true }));
    let immutable = bed.secrets(&b).patch(&bed.secret, &PatchParams::default(), &immutable).await.unwrap();
    let operator = operator(&bed).await;
    let mut spec = spec(json!({ "names": [a, b] }));
    spec["secret"] = json!({ "conflictPolicy": "Adopt" });
    let name = bed.credential("x", spec).await.unwrap();
    let told = |object: &_| failure(object, &a) == Some("WrongType") && failure(object, &b) == Some("Immutable");
    bed.credential_until(&name, "both say why", told).await.unwrap();
    look_again(&bed, &operator, &name).await;
    bed.credential_until(&name, "both still say why", told).await.unwrap();
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&opaque));
    assert_eq!(version(&bed.secret(&b).await.unwrap().unwrap()), version(&immutable));
    for namespace in [&a, &b] {
        bed.secrets(namespace).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
        at_once(bed.logins_until(namespace, &[OWN])).await;
    }
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn of_two_that_want_one_secret_the_older_has_it_and_nobody_fights() {
    let bed = bed("conflict").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let (old, young) = old_and_young(&bed, json!({ "names": [a] }), json!({ "names": [a, b] })).await;
    failure_until(&bed, &young, &a, "Conflict").await;
    event_until(&bed, &young, &["Conflict", &a, &old]).await;
    bed.ready(&old).await.unwrap();
    bed.logins_until(&b, &[OWN]).await.unwrap();
    let first = bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(owner(&first), Some(credential_uid(&bed, &old).await));

    // News about the place wakes both of them.
    let mark = bed.proxy.log().mark();
    bed.label(&a, &[("news", Some("1"))]).await.unwrap();
    bed.change(&young, json!({ "spec": { "secret": { "annotations": { "example.com/x": "y" } } } })).await.unwrap();
    bed.change(&old, json!({ "metadata": { "labels": { "news": "1" } } })).await.unwrap();
    let wrong = Patch::Merge(json!({ "metadata": { "labels": { "pullsecrets.dev/credential": young } } }));
    bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &wrong).await.unwrap();
    let labelled = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
        secret.is_some_and(|s| s.labels().get("pullsecrets.dev/credential") == Some(&old))
    };
    at_once(bed.secret_until(&a, "the older's again", labelled)).await;
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    let second = at_once(bed.secret_until(&a, "made anew", |s| s.is_some_and(|s| uid(s) != uid(&first)))).await;
    assert_eq!(owner(&second.unwrap()), Some(credential_uid(&bed, &old).await));
    quiet(&bed).await;
    assert_eq!(writes_in(&bed, mark, &a).len(), 2);
    assert_eq!(stored_in(&bed, mark, &b), 1, "the younger's edit reaches its own place");
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_younger_takes_over_in_place_what_the_older_gives_up() {
    let bed = bed("give-up").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let (old, young) = old_and_young(&bed, json!({ "names": [a, b] }), json!({ "names": [a] })).await;
    failure_until(&bed, &young, &a, "Conflict").await;
    let first = bed.logins_until(&a, &[OWN]).await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.change(&old, json!({ "spec": { "namespaces": { "names": [b] } } })).await.unwrap();
    at_once(bed.ready(&young)).await;
    bed.ready(&old).await.unwrap();
    let second = bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(uid(&second), uid(&first));
    assert_eq!(owner(&second), Some(credential_uid(&bed, &young).await));

    // And the older takes it back when it wants it again.
    bed.change(&old, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    failure_until(&bed, &young, &a, "Conflict").await;
    bed.ready(&old).await.unwrap();
    quiet(&bed).await;
    let third = bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(uid(&third), uid(&first));
    assert_eq!(owner(&third), Some(credential_uid(&bed, &old).await));
    assert_eq!(writes_in(&bed, mark, &a).len(), 2);
    assert_eq!(writes_in(&bed, mark, &b).len(), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_younger_takes_over_when_the_older_is_deleted() {
    for policy in ["Retain", "Delete"] {
        let bed = bed(&format!("inherit-{}", policy.to_lowercase())).await;
        let a = bed.namespace("a", &[]).await.unwrap();
        let operator = operator(&bed).await;
        let (old, young) = old_and_young(&bed, json!({ "names": [a] }), json!({ "names": [a] })).await;
        bed.change(&old, json!({ "spec": { "secret": { "deletionPolicy": policy } } })).await.unwrap();
        bed.ready(&old).await.unwrap();
        failure_until(&bed, &young, &a, "Conflict").await;
        let first = bed.logins_until(&a, &[OWN]).await.unwrap();
        let heir = credential_uid(&bed, &young).await;
        bed.credentials().delete(&old, &DeleteParams::default()).await.unwrap();
        at_once(bed.ready(&young)).await;
        let owned = |secret: Option<&_>| secret.is_some_and(|secret| owner(secret).as_ref() == Some(&heir));
        let second = at_once(bed.secret_until(&a, "the younger's", owned)).await.unwrap();
        assert_eq!(labelled_owner(&second), Some(heir.as_str()));
        if policy == "Retain" {
            // Under Delete the garbage collector may come first.
            assert_eq!(uid(&second), uid(&first));
        }
        quiet(&bed).await;
        bed.logins_until(&a, &[OWN]).await.unwrap();
        operator.stop().await.unwrap();
        bed.finish().await.unwrap();
    }
}

/// Makes the operator look at an EcrCredential once more, and waits until it has nothing to write.
async fn look_again(bed: &Bed, operator: &Operator, name: &str) {
    quiet(bed).await;
    let before = looks(operator).await;
    bed.request_refresh(name, "look again").await.unwrap();
    testbed::bed::poll("it has looked again", async || looks(operator).await > before).await;
    quiet(bed).await;
}

/// Two EcrCredentials that want one Secret. Their ages differ, though Kubernetes counts them in seconds.
async fn old_and_young(bed: &Bed, old: Value, young: Value) -> (String, String) {
    let old = bed.credential("old", spec(old)).await.unwrap();
    let created = bed.ready(&old).await.unwrap().creation_timestamp().unwrap().0;
    let next_second = created.as_second() + 1;
    while Timestamp::now().as_second() < next_second {
        // No event tells that a clock has moved on.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (old, bed.credential("young", spec(young)).await.unwrap())
}

async fn credential_uid(bed: &Bed, name: &str) -> String {
    let credentials: Api<_> = bed.credentials();
    credentials.get(name).await.unwrap().uid().unwrap()
}
