//! What the flags of the group "Scope" allow: some namespaces only, or Secrets of any name; each with no more rights than that.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use testbed::aws::Service;
use testbed::bed::Bed;
use testbed::proxy::Match;
use testbed::recorder::Invariant;

use super::look::{at_once, counts, failure_until, quiet, spec, uid, version, writes_in};
use super::rights::{allow_all_names, allow_namespace, forbid_all_namespaces, forbid_namespace, from};
use super::{CRD, OWN, bed, launch};

#[tokio::test]
async fn with_namespace_flags_the_others_are_neither_written_nor_watched() {
    let bed = bed("some-namespaces").await;
    let [a, b] = ["a", "b"].map(|name| bed.namespace(name, &[]));
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    let outside = bed.namespace("outside", &[]).await.unwrap();
    forbid_all_namespaces(&bed).await;
    allow_namespace(&bed, &a).await;
    allow_namespace(&bed, &b).await;
    let operator = bed.operator(launch().args(&["--namespace", &a, "--namespace", &b])).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [bed.name("*")] }))).await.unwrap();
    // It selects the third namespace too, which this operator does not serve.
    bed.recorder.excuse(Invariant::I14TrueStatus, &name, "the flags and rights of this mode are changed");
    let status = bed.ready(&name).await.unwrap();
    assert_eq!(counts(&status), [2, 2, 0]);
    let first = bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.logins_until(&b, &[OWN]).await.unwrap();
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    let anew = |secret: Option<&Secret>| secret.is_some_and(|secret| uid(secret) != uid(&first));
    at_once(bed.secret_until(&a, "made anew", anew)).await;
    quiet(&bed).await;
    assert!(bed.secret(&outside).await.unwrap().is_none());
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 3);
    let wide = Match::any().resource("secrets").namespace("");
    assert_eq!(bed.proxy.log().count(&wide), 0, "no watch of all namespaces");
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_namespace_without_rights_holds_up_nobody() {
    let bed = bed("no-rights").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let missing = bed.name("missing");
    bed.recorder.excuse(Invariant::I16Rbac, "*", "the flags and rights of this mode are changed");
    forbid_all_namespaces(&bed).await;
    allow_namespace(&bed, &a).await;
    let allowed = ["--namespace", &a, "--namespace", &b, "--namespace", &missing];
    let operator = bed.operator(launch().args(&allowed)).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a, b, missing] }))).await.unwrap();
    failure_until(&bed, &name, &b, "Forbidden").await;
    let kept = bed.logins_until(&a, &[OWN]).await.unwrap();
    allow_namespace(&bed, &b).await;
    at_once(bed.ready(&name)).await;
    let first = bed.logins_until(&b, &[OWN]).await.unwrap();
    // Once it may watch, it sees what happens there.
    bed.proxy
        .log()
        .wait_for(Default::default(), &Match::watches("secrets").namespace(&b), 1, super::look::AT_ONCE)
        .await
        .unwrap();
    bed.secrets(&b).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    let anew = |secret: Option<&Secret>| secret.is_some_and(|secret| uid(secret) != uid(&first));
    at_once(bed.secret_until(&b, "made anew", anew)).await;

    forbid_namespace(&bed, &b).await;
    bed.secrets(&b).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    failure_until(&bed, &name, &b, "Forbidden").await;
    assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&kept));
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 1);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn with_all_secret_names_any_name_is_written_and_no_other_secret_touched() {
    let bed = Bed::with_secret_names("any-name", CRD, &["one", "two", "theirs"]).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    allow_all_names(&bed).await;
    let theirs = json!({ "metadata": { "name": bed.name("theirs") }, "type": "Opaque" });
    let theirs = version(&bed.secrets(&a).create(&PostParams::default(), &from(theirs)).await.unwrap());
    let operator = bed.operator(launch().args(&["--all-secret-names"])).await.unwrap();
    for name in ["one", "two"] {
        let mut spec = spec(json!({ "names": [a] }));
        spec["secret"] = json!({ "name": bed.name(name) });
        let credential = bed.credential(name, spec).await.unwrap();
        bed.ready(&credential).await.unwrap();
    }
    let has_login = |secret: Option<&Secret>| {
        let logins = secret.and_then(|secret| testbed::bed::logins(secret).ok());
        logins.is_some_and(|logins| logins.keys().eq([OWN]) && logins.values().all(|auth| bed.aws.is_valid(auth)))
    };
    for name in ["one", "two"].map(|name| bed.name(name)) {
        bed.secrets(&a).delete(&name, &DeleteParams::default()).await.unwrap();
        at_once(bed.named_secret_until(&a, &name, "made anew", has_login)).await;
    }
    quiet(&bed).await;
    assert_eq!(version(&bed.secrets(&a).get(&bed.name("theirs")).await.unwrap()), theirs);
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 4);
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
