//! values.yaml, its schema and its table in the README agree, and a wrong value is an error that says where.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::helm::{Helm, chart, copy, documents, read};

const VALUES: &str = "charts/ecr-credential-operator/values.yaml";
const SCHEMA: &str = "charts/ecr-credential-operator/values.schema.json";

#[test]
fn a_wrong_value_is_refused_with_its_place() {
    let (three, four) = (Helm::offline("v3"), Helm::offline("v4"));
    for (values, says) in [
        (json!({ "replicaCounts": 3 }), vec!["replicaCounts"]),
        (json!({ "image": { "tags": "x" } }), vec!["image", "tags"]),
        (json!({ "serviceAccount": { "annotation": {} } }), vec!["serviceAccount", "annotation"]),
        (json!({ "secretNames": [] }), vec!["secretNames"]),
        (json!({ "secretNames": "ecr-pull-secret" }), vec!["secretNames"]),
        (json!({ "secretNames": ["Not_A_Name"] }), vec!["secretNames", "0"]),
        (json!({ "namespaces": ["team-*"] }), vec!["namespaces", "0"]),
        (json!({ "aws": { "region": "Ireland" } }), vec!["aws", "region"]),
        (json!({ "aws": { "endpoints": { "sts": "sts.example" } } }), vec!["aws", "endpoints", "sts"]),
        (json!({ "aws": { "caBundle": { "kind": "Pod", "name": "x" } } }), vec!["aws", "caBundle", "kind"]),
        (json!({ "auth": { "serviceAccounts": ["a/b"] } }), vec!["auth", "serviceAccounts", "0"]),
        (json!({ "auth": { "serviceAccounts": [{ "namespace": "*", "name": "b" }] } }), vec!["auth", "namespace"]),
        (json!({ "auth": { "secrets": [{ "name": "b" }] } }), vec!["auth", "secrets", "0", "namespace"]),
        (json!({ "outputs": [{ "name": "x" }] }), vec!["outputs", "0", "format"]),
        (json!({ "outputs": [{ "name": "x", "format": "Basic" }] }), vec!["outputs", "0", "format", "BasicAuth"]),
        (
            json!({ "outputs": [{ "name": "x", "format": "Jenkins", "namespace": "a" }] }),
            vec!["outputs", "0", "namespace"],
        ),
        (
            json!({ "outputs": [{ "name": "x", "format": "Jenkins", "namespaces": ["*"] }] }),
            vec!["outputs", "0", "namespaces", "0"],
        ),
        (json!({ "include": { "secrets": [{ "name": "b" }] } }), vec!["include", "secrets", "0", "namespace"]),
        (json!({ "include": [{ "namespace": "a", "name": "b" }] }), vec!["include"]),
        (json!({ "auth": { "audiences": [] } }), vec!["auth", "audiences"]),
        (json!({ "image": { "digest": "latest" } }), vec!["image", "digest"]),
        (json!({ "logging": { "format": "xml" } }), vec!["logging", "format"]),
        (json!({ "credentials": [{ "name": "x" }] }), vec!["credentials", "0", "spec"]),
        (
            json!({ "credentials": [{ "name": "x", "spec": {}, "namespace": "y" }] }),
            vec!["credentials", "0", "namespace"],
        ),
        (json!({ "nameOverride": "Eco" }), vec!["nameOverride"]),
        (json!({ "fullnameOverride": "x".repeat(54) }), vec!["fullnameOverride"]),
        (json!({ "fullnameOverride": "-eco" }), vec!["fullnameOverride"]),
        (json!({ "serviceAccount": { "name": "Eco" } }), vec!["serviceAccount", "name"]),
        (json!({ "crds": { "install": true } }), vec!["crds", "install"]),
        (json!({ "serviceMonitor": { "enable": true } }), vec!["serviceMonitor", "enable"]),
        (json!({ "extraEnv": { "A": "b" } }), vec!["extraEnv"]),
    ] {
        for helm in [&three, &four] {
            let error = helm.template("eco", "1.36.0", &values).expect_err(&format!("{values} is accepted"));
            assert!(says.iter().all(|word| error.contains(word)), "{values}: {error}");
        }
    }
}

#[test]
fn as_a_part_of_another_chart_it_can_be_switched_off() {
    let parent = tempfile::tempdir().unwrap();
    let name = "ecr-credential-operator";
    let about = json!({
        "apiVersion": "v2", "name": "umbrella", "version": "1.0.0",
        "dependencies": [{ "name": name, "version": env!("CARGO_PKG_VERSION"), "condition": format!("{name}.enabled") }],
    });
    std::fs::write(parent.path().join("Chart.yaml"), about.to_string()).unwrap();
    copy(&chart(), &parent.path().join("charts").join(name));
    for helm in ["v3", "v4"].map(Helm::offline) {
        for (own, deployments) in [
            (json!({}), Ok(1)),
            (json!({ "enabled": true, "replicaCount": 3, "aws": null, "podLabels": null }), Ok(1)),
            (json!({ "enabled": false }), Ok(0)),
            (json!({ "enable": true }), Err("enable")),
        ] {
            let file = helm.values(&json!({ "global": { "x": "y" }, name: own }));
            let (folder, file) = (parent.path().to_string_lossy(), file.to_string_lossy());
            let args = ["template", "umbrella", &folder, "--kube-version", "1.36.0", "--values", &file];
            match (helm.run(&args), deployments) {
                (Ok(text), Ok(count)) => {
                    assert_eq!(documents(&text).iter().filter(|o| o["kind"] == "Deployment").count(), count, "{own}");
                }
                (Err(why), Err(word)) => assert!(why.contains(word), "{why}"),
                (result, _) => panic!("{own}: {result:?}"),
            }
        }
    }
}

#[test]
fn every_value_is_in_the_schema_and_every_key_of_the_schema_has_a_default() {
    let values: Value = serde_saphyr::from_str(&read(VALUES)).unwrap();
    let schema: Value = serde_json::from_str(&read(SCHEMA)).unwrap();
    let (mut in_values, mut in_schema) = (BTreeSet::new(), BTreeSet::new());
    keys_of_schema(&schema, "", &mut in_schema);
    // What a chart that is a part of another is switched by.
    in_schema.remove("enabled");
    keys_of_values(&values, &schema, "", &mut in_values);
    assert_eq!(in_values, in_schema);
}

/// The keys of every object whose keys are known; maps that are the user's own are left alone.
fn keys_of_schema(schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = join(path, key);
        assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{path} has no description");
        keys_of_schema(schema, &path, keys);
        keys.insert(path);
    }
    if schema["properties"].is_object() {
        // Helm hands `global` to every chart of a parent, each of which has keys of its own there.
        assert!(schema["additionalProperties"] == false || path == "global", "{path} lets misspelt keys through");
    }
    if schema["items"]["properties"].is_object() {
        assert_eq!(schema["items"]["additionalProperties"], false, "{path}[] lets misspelt keys through");
    }
}

fn keys_of_values(values: &Value, schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in values.as_object().into_iter().flatten() {
        let path = join(path, key);
        let schema = &schema["properties"][key];
        if schema["properties"].is_object() {
            keys_of_values(value, schema, &path, keys);
        }
        keys.insert(path);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
