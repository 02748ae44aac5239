//! What others depend on of an EcrCredential.

use serde_json::{Value, json};

use super::*;

fn object(spec: Value) -> EcrCredential {
    let mut whole =
        json!({ "registries": [{ "public": {} }], "namespaces": { "names": ["a"] }, "secret": { "name": "pull" } });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
        "metadata": { "name": "x", "uid": "x", "generation": 3 }, "spec": whole,
    }))
    .unwrap()
}

#[test]
fn one_that_refreshes_nothing_is_idle() {
    let region = crate::api::registry::Region::parse("eu-west-1").ok();
    let limits = Limits { region, secret_names: Some(["pull".into()].into()), ..Limits::default() };
    for (what, spec, activity) in [
        ("an ordinary one", json!({}), Activity::Active),
        ("suspended", json!({ "suspend": true }), Activity::Idle),
        ("a Secret name that is not allowed", json!({ "secret": { "name": "other" } }), Activity::Idle),
    ] {
        let credential = credential_ref(&object(spec), &limits);
        assert_eq!(credential.activity, activity, "{what}");
        assert_eq!((credential.generation, credential.created), (Some(3), Timestamp::MAX), "{what}");
    }
}
