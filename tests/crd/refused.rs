//! What is refused, and the sentence that a person sees for it; every rule and bound of the schema has its case.

use std::collections::BTreeSet;

use serde_json::json;

use super::api_server::{credential, least, plane, schema, set, try_create};
use super::auth_cases::ROLE;
use super::bounds::{Bound, bounds_of};
use super::cases::{Case, cases};

#[tokio::test]
async fn each_wrong_object_is_refused_with_one_sentence_that_says_what_to_write() {
    let client = plane().await.admin_client().unwrap();
    let mut wrong = vec![];
    for Case { path, value, says } in cases() {
        let mut object = credential(least());
        set(&mut object, path, value.clone());
        let short: String = value.to_string().chars().take(120).collect();
        match try_create(&client, &object).await {
            Ok(_) => wrong.push(format!("{path} = {short}\n    is accepted, and should say: {says}")),
            Err(refusal) if sentences(&refusal.causes) != [says.clone()] => {
                wrong.push(format!("{path} = {short}\n    says {:#?}\n    and should say {says}", refusal.causes));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_rule_and_bound_of_the_spec_has_a_case() {
    let mut bounds = BTreeSet::new();
    bounds_of(&schema(), "", &mut bounds);
    // The operator alone writes the status.
    bounds.retain(|bound| !bound.path.starts_with("status"));
    assert!(bounds.len() > 60, "the walk has found only {}", bounds.len());
    let covered: BTreeSet<Bound> = cases().iter().filter_map(|case| Bound::named_by(&case.says)).collect();
    let missing: Vec<&Bound> = bounds.difference(&covered).collect();
    assert!(missing.is_empty(), "no case of cases() breaks {missing:#?}");
}

#[tokio::test]
async fn a_misspelt_field_is_an_error_at_every_level() {
    let client = plane().await.admin_client().unwrap();
    let auth = |base: &str| json!({ base: { "namespace": "a", "name": "b" }, "assumeRoles": [{ "roleArn": ROLE }] });
    let full = json!({
        "registries": [
            { "private": { "region": "eu-west-1" }, "auth": auth("serviceAccount") },
            { "public": {}, "auth": auth("secretRef") },
        ],
        "auth": auth("serviceAccount"),
        "secret": { "name": "x" },
        "namespaces": { "selector": { "matchExpressions": [{ "key": "k", "operator": "Exists" }] } },
        "outputs": [{ "name": "out", "format": "DockerConfigFile", "namespaces": { "names": ["a"] } }],
        "include": [{ "secretRef": { "namespace": "a", "name": "b" } }],
        "refresh": {},
    });
    for parent in [
        "spec",
        "spec/registries/0",
        "spec/registries/0/private",
        "spec/registries/1/public",
        "spec/auth",
        "spec/auth/serviceAccount",
        "spec/auth/assumeRoles/0",
        "spec/registries/0/auth",
        "spec/registries/0/auth/serviceAccount",
        "spec/registries/0/auth/assumeRoles/0",
        "spec/registries/1/auth/secretRef",
        "spec/secret",
        "spec/namespaces",
        "spec/namespaces/selector",
        "spec/namespaces/selector/matchExpressions/0",
        "spec/outputs/0",
        "spec/outputs/0/namespaces",
        "spec/include/0",
        "spec/include/0/secretRef",
        "spec/refresh",
    ] {
        let mut object = credential(full.clone());
        set(&mut object, &format!("{parent}/misspelt"), json!(1));
        let refusal = try_create(&client, &object).await.expect_err(parent);
        let field = parent.replace("/0", "[0]").replace("/1", "[1]").replace('/', ".");
        let says = format!("unknown field \"{field}.misspelt\"");
        assert!(refusal.message.contains(&says), "{says} is not in {}", refusal.message);
    }
}

/// The causes without the wrong value, which the API server repeats where it is a scalar.
fn sentences(causes: &[String]) -> Vec<String> {
    let shorten = |cause: &String| {
        let (field, text) = cause.split_once(": Invalid value: ")?;
        let value_ends =
            if text.starts_with('"') { text.find("\": ")? + 3 } else { text.find(|c: char| !c.is_ascii_digit())? + 2 };
        let starts_with_value = text.starts_with(|c: char| c == '"' || c.is_ascii_digit());
        starts_with_value.then(|| format!("{field}: Invalid value: {}", &text[value_ends..]))
    };
    // Older versions show an object as Go writes it.
    let as_json = |cause: &String| cause.replace("map[string]interface {}", "");
    causes.iter().map(|cause| shorten(cause).unwrap_or_else(|| as_json(cause))).collect()
}
