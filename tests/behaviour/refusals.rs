//! What the API server refuses in one namespace is told of, holds up nobody else, and is mended once it is allowed.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use testbed::aws::Service;
use testbed::bed::{Bed, PATIENCE, condition, poll};
use testbed::recorder::Invariant;
use testbed::webhook::{Registration, Verdict, Webhook};

use super::look::{at_once, counts, failure, failure_until, quiet, spec, stored_in, uid, version, writes_in};
use super::rights::{from, give_verb, take_verb};
use super::{OWN, bed, operator};

#[tokio::test]
async fn a_used_up_quota_is_told_of_and_retried_until_it_is_lifted() {
    let bed = bed("quota").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let quotas: Api<ResourceQuota> = Api::namespaced(bed.client.clone(), &a);
    let none = json!({ "metadata": { "name": "none" }, "spec": { "hard": { "secrets": "0" } } });
    quotas.create(&PostParams::default(), &from(none)).await.unwrap();
    let counted =
        |quota: Option<&ResourceQuota>| quota.and_then(|q| q.status.as_ref()).is_some_and(|s| s.hard.is_some());
    tokio::time::timeout(PATIENCE, await_condition(quotas.clone(), "none", counted)).await.unwrap().unwrap();
    let exceeded =
        |answer: &kube::Result<Secret>| answer.as_ref().is_err_and(|why| why.to_string().contains("exceeded quota"));
    until_admission(&bed, &a, exceeded).await;
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    failure_until(&bed, &name, &a, "QuotaExceeded").await;
    bed.logins_until(&b, &[OWN]).await.unwrap();
    quotas.delete("none", &DeleteParams::default()).await.unwrap();
    at_once(bed.ready(&name)).await;
    bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!((stored_in(&bed, Default::default(), &a), stored_in(&bed, Default::default(), &b)), (1, 1));
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_right_to_write_can_be_taken_away_and_given_back() {
    let bed = bed("no-patch").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let kept = version(&bed.secret(&b).await.unwrap().unwrap());
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the right is taken away");
    take_verb(&bed, "patch").await;
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    let status = failure_until(&bed, &name, &a, "Forbidden").await;
    assert_eq!(counts(&status), [2, 1, 1]);
    assert_eq!(version(&bed.secret(&b).await.unwrap().unwrap()), kept);
    give_verb(&bed, "patch").await;
    at_once(bed.ready(&name)).await;
    bed.recorder.end_excuse(Invariant::I16Rbac, "*");
    bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_that_may_not_be_deleted_is_told_of_until_it_may() {
    let bed = bed("no-delete").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the right is taken away");
    take_verb(&bed, "delete").await;
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [b] } } })).await.unwrap();
    let told = |object: &_| failure(object, &a) == Some("Forbidden") && counts(object) == [1, 1, 0];
    bed.credential_until(&name, "the Secret that is left over", told).await.unwrap();
    give_verb(&bed, "delete").await;
    at_once(bed.secret_until(&a, "gone at last", |secret| secret.is_none())).await;
    bed.credential_until(&name, "nothing is left over", |object| failure(object, &a).is_none()).await.unwrap();
    bed.recorder.end_excuse(Invariant::I16Rbac, "*");
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_admission_policy_that_refuses_is_told_of_and_retried_until_it_is_gone() {
    let bed = bed("refusing").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(bed.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(bed.client.clone());
    let policy = json!({
        "metadata": { "name": bed.prefix },
        "spec": {
            "matchConstraints": secrets_of_namespace(&a),
            "matchConditions": matching(&bed),
            "validations": [{ "expression": "false", "message": "no Secrets of that kind here" }],
        },
    });
    let binding = json!({
        "metadata": { "name": bed.prefix },
        "spec": { "policyName": bed.prefix, "validationActions": ["Deny"] },
    });
    policies.create(&PostParams::default(), &from(policy)).await.unwrap();
    bindings.create(&PostParams::default(), &from(binding)).await.unwrap();
    until_admission(&bed, &a, |answer| answer.is_err()).await;
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    let status = failure_until(&bed, &name, &a, "AdmissionRefused").await;
    let message = condition(&status, "Ready").unwrap()["message"].clone();
    assert!(message.as_str().unwrap().contains("no Secrets of that kind here"), "{message}");
    bed.logins_until(&b, &[OWN]).await.unwrap();
    bindings.delete(&bed.prefix, &DeleteParams::default()).await.unwrap();
    policies.delete(&bed.prefix, &DeleteParams::default()).await.unwrap();
    at_once(bed.ready(&name)).await;
    bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!((stored_in(&bed, Default::default(), &a), stored_in(&bed, Default::default(), &b)), (1, 1));
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_admission_policy_that_changes_the_secret_makes_no_write_loop() {
    let bed = bed("changing").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    // Stable since 1.36, and before that not there: only webhooks change objects then, in the same way.
    let policies = admission(&bed, "MutatingAdmissionPolicy").await;
    let webhook = Webhook::start().unwrap();
    let (with_theirs, mine) = (a.clone(), bed.secret.clone());
    webhook.decide(move |request| {
        let labelled = request["name"] == *mine && request["object"]["metadata"]["labels"].is_object();
        let (key, value) =
            if request["namespace"] == *with_theirs { ("cost-center", "42") } else { ("team", "overruled") };
        let patch = json!([{ "op": "add", "path": format!("/metadata/labels/{key}"), "value": value }]);
        if labelled { Verdict::Mutate(Arc::new(move |_| patch.clone())) } else { Verdict::Allow }
    });
    let registration = Registration::secrets(&bed.prefix, testbed::webhook::Kind::Mutating, &[&a, &b]);
    let registered = match &policies {
        Some(_) => None,
        None => Some(webhook.register(&bed.client, &registration).await.unwrap()),
    };
    let label =
        |key: &str, value: &str| format!("JSONPatch{{op: 'add', path: '/metadata/labels/{key}', value: '{value}'}}");
    // In one namespace it adds a label, in the other it changes one that the EcrCredential asks for.
    let (theirs, ours) = (label("cost-center", "42"), label("team", "overruled"));
    for (namespace, patch) in [(&a, theirs), (&b, ours)] {
        let Some(policies) = &policies else { continue };
        let bindings = admission(&bed, "MutatingAdmissionPolicyBinding").await.unwrap();
        let first = "[JSONPatch{op: 'add', path: '/metadata/labels', value: {}}]";
        let expression = format!("(has(object.metadata.labels) ? [] : {first}) + [{patch}]");
        let policy = json!({
            "metadata": { "name": namespace },
            "spec": {
                "matchConstraints": secrets_of_namespace(namespace),
                "matchConditions": matching(&bed),
                "reinvocationPolicy": "Never",
                "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } }],
            },
        });
        let binding = json!({ "metadata": { "name": namespace }, "spec": { "policyName": namespace } });
        policies.create(&PostParams::default(), &from(policy)).await.unwrap();
        bindings.create(&PostParams::default(), &from(binding)).await.unwrap();
        until_admission(&bed, namespace, |answer| answer.as_ref().is_ok_and(|s| !s.labels().is_empty())).await;
    }
    let first = operator(&bed).await;
    let mut spec = spec(json!({ "names": [a, b] }));
    spec["secret"] = json!({ "labels": { "team": "payments" } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    for (namespace, label, value) in [(&a, "cost-center", "42"), (&b, "team", "overruled")] {
        let secret = bed.logins_until(namespace, &[OWN]).await.unwrap();
        assert_eq!(secret.labels().get(label).map(String::as_str), Some(value));
        assert_eq!(writes_in(&bed, Default::default(), namespace).len(), 1);
        // An edit is still seen and undone, with one write.
        let edit = Patch::Merge(json!({ "metadata": { "annotations": { "pullsecrets.dev/content-hash": "x" } } }));
        bed.secrets(namespace).patch(&bed.secret, &PatchParams::default(), &edit).await.unwrap();
        let hash = |secret: &Secret| secret.annotations()["pullsecrets.dev/content-hash"].clone();
        let mended = |found: Option<&Secret>| found.is_some_and(|found| hash(found) == hash(&secret));
        at_once(bed.secret_until(namespace, "mended", mended)).await;
        quiet(&bed).await;
        assert_eq!(writes_in(&bed, Default::default(), namespace).len(), 2);
    }
    // The next process learns what becomes of its writes by one write at most, which changes nothing.
    let before = (bed.secret(&a).await.unwrap().unwrap(), bed.secret(&b).await.unwrap().unwrap());
    first.stop().await.unwrap();
    let mark = bed.proxy.log().mark();
    let second = operator(&bed).await;
    let extra = bed.namespace("witness", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b, extra] } } })).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    assert_eq!(writes_in(&bed, mark, &a).len(), 0);
    assert!(writes_in(&bed, mark, &b).len() <= 1);
    let after = (bed.secret(&a).await.unwrap().unwrap(), bed.secret(&b).await.unwrap().unwrap());
    assert_eq!((version(&after.0), version(&after.1)), (version(&before.0), version(&before.1)));
    assert_eq!(uid(&after.0), uid(&before.0));
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    if let Some(policies) = policies {
        let bindings = admission(&bed, "MutatingAdmissionPolicyBinding").await.unwrap();
        for namespace in [&a, &b] {
            bindings.delete(namespace, &DeleteParams::default()).await.unwrap();
            policies.delete(namespace, &DeleteParams::default()).await.unwrap();
        }
    }
    if let Some(registered) = registered {
        registered.remove().await.unwrap();
    }
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// The objects of a kind of admission; none where the API server does not know it.
async fn admission(bed: &Bed, kind: &str) -> Option<Api<DynamicObject>> {
    let group = kube::discovery::group(&bed.client, "admissionregistration.k8s.io").await.unwrap();
    let all = group.versions().flat_map(|version| group.versioned_resources(version));
    let (resource, _) = all.into_iter().find(|(resource, _)| resource.kind == kind)?;
    Some(Api::all_with(bed.client.clone(), &resource))
}

/// Waits until an admission policy holds: it is asked by dry runs, as no event tells when the API server has read it.
async fn until_admission(bed: &Bed, namespace: &str, holds: impl Fn(&kube::Result<Secret>) -> bool) {
    let probe: Secret = from(json!({ "metadata": { "name": bed.secret } }));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    poll("the policy holds", async || holds(&bed.secrets(namespace).create(&dry, &probe).await)).await;
}

fn secrets_of_namespace(namespace: &str) -> Value {
    json!({
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
        "resourceRules": [
            { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"] },
        ],
    })
}

fn matching(bed: &Bed) -> Value {
    json!([{ "name": "own-name", "expression": format!("object.metadata.name == '{}'", bed.secret) }])
}
