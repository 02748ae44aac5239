//! What others do to our Secrets is undone at once, in place where Kubernetes allows it, and with no write more than that takes.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::Service;
use testbed::bed::{Bed, next_second, unreadable_managed_field};
use testbed::proxy::{Action, Fault, Gate, Match};
use testbed::recorder::Invariant;

use super::look::{at_once, quiet, shown, spec, stored_in, uid, writes_in};
use super::{OWN, bed, operator};

/// The name of the operator's field manager.
const MANAGER: &str = "ecr-credential-operator";

/// What somebody does to a Secret.
enum Edit {
    /// `kubectl patch --type merge`.
    Merge(Value),
    /// `kubectl edit`.
    Replace(fn(&mut Secret)),
    /// `kubectl apply --server-side --force-conflicts`.
    Apply(Value),
    /// The same under the name of the operator's field manager, with all that it wrote except for this.
    Forge(fn(&mut Secret)),
    /// The same in a later second: the API server records times in whole seconds.
    ForgeLater(fn(&mut Secret)),
    /// Other data, with an entry of `managedFields` that the API server cannot read.
    Hide,
    /// `kubectl delete`.
    Delete,
}

/// One case of a table.
struct Case {
    name: &'static str,
    edit: Edit,
    /// How many writes the API server carries out to undo it.
    writes: usize,
    /// Whether the Secret is still the same object afterwards.
    same: bool,
}

fn case(name: &'static str, edit: Edit, writes: usize) -> Case {
    Case { name, edit, writes, same: true }
}

#[tokio::test]
async fn edits_of_the_data_are_undone() {
    let docker_config = |text: &str| json!({ ".dockerconfigjson": ByteString(text.as_bytes().to_vec()) });
    let empty = docker_config("{}");
    let cases = vec![
        case("merged", Edit::Merge(json!({ "data": empty })), 1),
        case("replaced", Edit::Replace(|secret| set_data(secret, &[(".dockerconfigjson", r#"{"auths":{}}"#)])), 1),
        case("applied", Edit::Apply(json!({ "data": empty })), 1),
        case("key-added", Edit::Merge(json!({ "stringData": { "extra": "x" } })), 1),
        case("keys-added", Edit::Merge(json!({ "stringData": { "extra": "x", "more": "y" } })), 1),
        case("key-applied", Edit::Apply(json!({ "data": { "extra": "eA==" } })), 1),
        case(
            "key-added-and-data-replaced",
            Edit::Replace(|secret| set_data(secret, &[(".dockerconfigjson", "{}"), ("extra", "x")])),
            2,
        ),
    ];
    edits_are_undone("edited-data", cases).await;
}

#[tokio::test]
async fn what_is_applied_under_our_name_is_undone() {
    let no_logins = |secret: &mut Secret| set_data(secret, &[(".dockerconfigjson", r#"{"auths":{}}"#)]);
    let put_off = |secret: &mut Secret| {
        set_data(secret, &[(".dockerconfigjson", r#"{"auths":{}}"#)]);
        let annotations = secret.metadata.annotations.as_mut().unwrap();
        annotations.insert("pullsecrets.dev/expires-at".to_owned(), "2099-01-01T00:00:00Z".to_owned());
    };
    let cases = vec![
        case("data", Edit::Forge(no_logins), 1),
        case("data-later", Edit::ForgeLater(no_logins), 1),
        case("data-and-expiry", Edit::Forge(put_off), 1),
        case("data-and-expiry-later", Edit::ForgeLater(put_off), 1),
        case("nothing-later", Edit::ForgeLater(|_| {}), 0),
    ];
    edits_are_undone("forged", cases).await;
}

/// The API server of Kubernetes 1.37 then keeps all `managedFields` as they are, and earlier ones reset them.
#[tokio::test]
async fn what_managed_fields_do_not_show_is_undone() {
    edits_are_undone("hidden", vec![case("data", Edit::Hide, 1)]).await;
}

#[tokio::test]
async fn edits_of_our_metadata_are_undone_and_those_of_others_stay() {
    let labels = |labels: Value| Edit::Merge(json!({ "metadata": { "labels": labels } }));
    let annotations = |annotations: Value| Edit::Merge(json!({ "metadata": { "annotations": annotations } }));
    let cases = vec![
        case("label-changed", labels(json!({ "app.kubernetes.io/managed-by": "helm" })), 1),
        case("label-removed", labels(json!({ "pullsecrets.dev/credential-uid": null })), 1),
        case("labels-removed", Edit::Replace(|secret| secret.metadata.labels = None), 1),
        case("own-label-removed", labels(json!({ "team": null })), 1),
        case("own-label-changed", labels(json!({ "team": "b" })), 1),
        case("expiry-put-off", annotations(json!({ "pullsecrets.dev/expires-at": "2099-01-01T00:00:00Z" })), 1),
        case("hash-removed", annotations(json!({ "pullsecrets.dev/content-hash": null })), 1),
        case("annotations-removed", Edit::Replace(|secret| secret.metadata.annotations = None), 1),
        case("owner-stripped", Edit::Merge(json!({ "metadata": { "ownerReferences": null } })), 1),
        case("owner-made-no-controller", Edit::Replace(no_controller), 1),
        case("managed-fields-cleared", Edit::Merge(json!({ "metadata": { "managedFields": [{}] } })), 1),
        case("label-of-theirs", labels(json!({ "theirs": "x" })), 0),
        case("annotation-of-theirs", annotations(json!({ "example.com/theirs": "x" })), 0),
        case("same-value-applied", Edit::Apply(json!({ "metadata": { "labels": { "team": "a" } } })), 0),
    ];
    edits_are_undone("edited-metadata", cases).await;
}

#[tokio::test]
async fn a_secret_that_cannot_be_mended_in_place_is_made_anew() {
    let anew = |name, edit, writes| Case { same: false, ..case(name, edit, writes) };
    let cases = vec![
        anew("deleted", Edit::Delete, 1),
        anew("made-immutable", Edit::Merge(json!({ "immutable": true })), 2),
        anew(
            "edited-and-made-immutable",
            Edit::Replace(|secret| {
                set_data(secret, &[(".dockerconfigjson", "{}")]);
                secret.immutable = Some(true);
            }),
            2,
        ),
        case("said-to-be-mutable", Edit::Merge(json!({ "immutable": false })), 1),
    ];
    edits_are_undone("made-anew", cases).await;
}

#[tokio::test]
async fn a_secret_with_our_marks_and_the_wrong_type_is_made_anew() {
    let bed = bed("wrong-type").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let good = bed.secret(&a).await.unwrap().unwrap();
    let mark = bed.proxy.log().mark();
    // The operator is held up while somebody puts another Secret in the place of the deleted one.
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::secret_writes().method("PATCH"), Action::HoldRequest(gate.clone())).once());
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    gate.arrived(1).await;
    let mut opaque = Secret { type_: Some("Opaque".to_owned()), ..good.clone() };
    (opaque.metadata.uid, opaque.metadata.resource_version, opaque.metadata.managed_fields) = (None, None, None);
    shown(&bed, bed.secrets(&a).create(&PostParams::default(), &opaque)).await.unwrap();
    gate.open();
    let repaired = at_once(bed.logins_until(&a, &[OWN])).await;
    quiet(&bed).await;
    assert_eq!(repaired.data, good.data);
    let answers: Vec<(String, Option<u16>)> =
        writes_in(&bed, mark, &a).iter().map(|write| (write.method.to_string(), write.status)).collect();
    let expected = [("PATCH", 409), ("PATCH", 422), ("DELETE", 200), ("PATCH", 201)];
    assert_eq!(answers, expected.map(|(method, status)| (method.to_owned(), Some(status))));
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// Does each edit in a namespace of its own, all at once, and compares what becomes of them.
async fn edits_are_undone(test: &str, cases: Vec<Case>) {
    let bed = bed(test).await;
    let mut places = BTreeMap::new();
    for case in cases {
        places.insert(bed.namespace(case.name, &[]).await.unwrap(), case);
    }
    let operator = operator(&bed).await;
    let mut spec = spec(json!({ "names": [bed.name("*")], "exclude": [bed.home] }));
    spec["secret"] = json!({ "labels": { "team": "a" }, "annotations": { "example.com/note": "ours" } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let mark = bed.proxy.log().mark();
    let mut before = BTreeMap::new();
    for (namespace, case) in &places {
        let good = bed.secret(namespace).await.unwrap().unwrap();
        perform(&bed, namespace, &good, &case.edit).await;
        before.insert(namespace, good);
    }
    for (namespace, good) in &before {
        at_once(bed.secret_until(namespace, "as it was", |secret| secret.is_some_and(|s| is_as_written(s, good))))
            .await;
    }
    quiet(&bed).await;
    for (namespace, case) in &places {
        let (good, after) = (&before[namespace], bed.logins_until(namespace, &[OWN]).await.unwrap());
        assert!(is_as_written(&after, good), "{}: {after:#?}", case.name);
        assert_eq!(uid(&after) == uid(good), case.same, "{}: the same Secret", case.name);
        let writes = writes_in(&bed, mark, namespace);
        let summary: Vec<String> = writes.iter().map(|write| write.summary()).collect();
        assert_eq!(stored_in(&bed, mark, namespace), case.writes, "{}: {summary:#?}", case.name);
    }
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1, "nothing is asked of AWS to mend a Secret");
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

async fn perform(bed: &Bed, namespace: &str, good: &Secret, edit: &Edit) {
    let (secrets, name) = (bed.secrets(namespace), &bed.secret);
    let by = |manager: &str| PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    match edit {
        Edit::Merge(patch) => drop(secrets.patch(name, &by("kubectl-patch"), &Patch::Merge(patch)).await.unwrap()),
        Edit::Replace(change) => {
            let mut secret = good.clone();
            change(&mut secret);
            let by = PostParams { field_manager: Some("kubectl-edit".to_owned()), ..PostParams::default() };
            secrets.replace(name, &by, &secret).await.unwrap();
        }
        Edit::Apply(fields) => {
            let mut object = fields.clone();
            (object["apiVersion"], object["kind"]) = (json!("v1"), json!("Secret"));
            secrets.patch(name, &by("theirs").force(), &Patch::Apply(object)).await.unwrap();
        }
        Edit::Forge(change) | Edit::ForgeLater(change) => {
            for invariant in [Invariant::I3WellFormed, Invariant::I5FailStatic] {
                let about = format!("{namespace}/{name}");
                bed.recorder.excuse(invariant, about, "a write under the operator's name counts as one of its own");
            }
            if matches!(edit, Edit::ForgeLater(_)) {
                next_second().await;
            }
            let mut secret = good.clone();
            change(&mut secret);
            let ObjectMeta { labels, annotations, owner_references, .. } = secret.metadata;
            let metadata = ObjectMeta { labels, annotations, owner_references, ..ObjectMeta::default() };
            let forged = Secret { metadata, ..secret };
            secrets.patch(name, &by(MANAGER).force(), &Patch::Apply(forged)).await.unwrap();
        }
        Edit::Hide => {
            let patch = json!([
                { "op": "add", "path": "/metadata/managedFields/-", "value": unreadable_managed_field() },
                { "op": "add", "path": "/data/.dockerconfigjson", "value": ByteString(b"{}".to_vec()) },
            ]);
            let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).unwrap());
            secrets.patch(name, &by("kubectl-patch"), &patch).await.unwrap();
        }
        Edit::Delete => drop(secrets.delete(name, &DeleteParams::default()).await.unwrap()),
    }
}

/// Whether everything that the operator wrote is as it was; labels and annotations of others do not matter.
fn is_as_written(secret: &Secret, good: &Secret) -> bool {
    type Map = Option<BTreeMap<String, String>>;
    let contains = |whole: &Map, part: &Map| {
        part.iter().flatten().all(|(key, value)| whole.as_ref().is_some_and(|whole| whole.get(key) == Some(value)))
    };
    (&secret.type_, &secret.data, &secret.metadata.owner_references, secret.immutable)
        == (&good.type_, &good.data, &good.metadata.owner_references, None)
        && contains(&secret.metadata.labels, &good.metadata.labels)
        && contains(&secret.metadata.annotations, &good.metadata.annotations)
}

fn set_data(secret: &mut Secret, data: &[(&str, &str)]) {
    secret.data = Some(data.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect());
}

fn no_controller(secret: &mut Secret) {
    for owner in secret.metadata.owner_references.iter_mut().flatten() {
        owner.controller = Some(false);
    }
}
