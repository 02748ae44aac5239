//! A table of value combinations: what each renders, and that all of it is sound.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::helm::{Helm, object, read, yaml};

const NEWEST: &str = "1.36.0";

/// One row of `combinations.yaml`.
#[derive(Deserialize)]
struct Combination {
    name: String,
    values: Value,
    /// Which object, where in it, and what is there.
    #[serde(default)]
    shows: Vec<(String, String, Value)>,
}

#[test]
fn every_combination_of_the_table_renders_what_it_should() {
    let helm = Helm::offline("v3");
    let table = read("tests/chart/combinations.yaml").replace(":VERSION", concat!(":", env!("CARGO_PKG_VERSION")));
    let combinations: Vec<Combination> = yaml(&table);
    assert!(combinations.len() >= 100, "{} combinations", combinations.len());
    let mut wrong = vec![];
    for Combination { name, values, shows } in &combinations {
        let objects = match helm.template_as("eco", "eco", NEWEST, values) {
            Ok(objects) => objects,
            Err(why) => {
                wrong.push(format!("{name}: {why}"));
                continue;
            }
        };
        for (kind, pointer, expected) in shows {
            let found = shown(&objects, kind, pointer);
            if found != *expected {
                wrong.push(format!("{name}: {kind} {pointer} is {found}, not {expected}"));
            }
        }
        wrong.extend(unsound(&objects, values).into_iter().map(|why| format!("{name}: {why}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What an object shows at a pointer; null if there is no such object, or nothing there.
fn shown(objects: &[Value], which: &str, pointer: &str) -> Value {
    let (kind, suffix) = which.split_once('/').unwrap_or((which, ""));
    let is_meant = |o: &&Value| o["kind"] == kind && o["metadata"]["name"].as_str().unwrap().ends_with(suffix);
    let Some(found) = objects.iter().find(is_meant) else { return json!(null) };
    if let Some(variable) = pointer.strip_prefix("env ") {
        let env = found["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let entry = env.iter().find(|entry| entry["name"] == variable);
        return entry.map_or(json!(null), |e| e.get("value").or(e.get("valueFrom")).cloned().unwrap_or_default());
    }
    let pod = "/spec/template/spec";
    let pointer = match pointer.split_at_checked(1) {
        Some(("~", rest)) => format!("{pod}{rest}"),
        Some(("%", rest)) => format!("{pod}/containers/0{rest}"),
        _ => pointer.to_owned(),
    };
    found.pointer(&pointer).cloned().unwrap_or_default()
}

/// What holds of all that is rendered.
fn unsound(objects: &[Value], values: &Value) -> Vec<String> {
    let mut wrong = vec![];
    let mut names = BTreeSet::new();
    let home = values["namespaceOverride"].as_str().unwrap_or("eco");
    for object in objects {
        let metadata = &object["metadata"];
        let (kind, namespace) = (object["kind"].as_str().unwrap(), metadata["namespace"].as_str());
        let name = format!("{kind} {} in {namespace:?}", metadata["name"]);
        if !names.insert(name.clone()) {
            wrong.push(format!("{name} is there twice"));
        }
        let cluster_scoped = kind.starts_with("Cluster")
            || kind.contains("AdmissionPolicy")
            || ["CustomResourceDefinition", "EcrCredential"].contains(&kind);
        // Roles are where their rights are, and what others look for is where they look.
        let elsewhere =
            ["Role", "RoleBinding", "ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap", "Secret"];
        if namespace.is_some() == cluster_scoped
            || !cluster_scoped && !elsewhere.contains(&kind) && namespace != Some(home)
        {
            wrong.push(format!("{name} is in the wrong namespace"));
        }
        let is_own = metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm";
        if !is_own && !["ConfigMap", "Secret"].contains(&kind) {
            wrong.push(format!("{name} lacks the labels"));
        }
        let everything = object.to_string();
        if everything.contains(":null") && kind != "EcrCredential" || everything.contains("<no value>") {
            wrong.push(format!("{name} has a field without a value"));
        }
    }
    let deployment = object(objects, "Deployment", "");
    let pod = &deployment["spec"]["template"];
    for (label, value) in deployment["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        if pod["metadata"]["labels"][label] != *value {
            wrong.push(format!("the selector of the Deployment does not match its pods by {label}"));
        }
    }
    let mounted = pod["spec"]["containers"][0]["volumeMounts"].as_array().into_iter().flatten().map(|m| &m["name"]);
    let volumes: BTreeSet<String> =
        pod["spec"]["volumes"].as_array().into_iter().flatten().map(|v| v["name"].to_string()).collect();
    wrong
        .extend(mounted.filter(|name| !volumes.contains(&name.to_string())).map(|name| format!("{name} is no volume")));
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")) {
        let role = objects.iter().find(|role| {
            role["kind"] == binding["roleRef"]["kind"]
                && role["metadata"]["name"] == binding["roleRef"]["name"]
                && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
        });
        if role.is_none() || binding["subjects"][0]["name"] != pod["spec"]["serviceAccountName"] {
            wrong.push(format!("{} binds nothing, or somebody else", binding["metadata"]["name"]));
        }
    }
    wrong
}

/// What contradicts itself, and what could not work, is an error that says what to do.
#[test]
fn combinations_that_cannot_work_are_errors() {
    let helm = Helm::offline("v3");
    let role = "arn:aws:iam::111122223333:role/x";
    for (values, says) in [
        (json!({ "serviceAccount": { "create": false } }), "serviceAccount.create=false needs serviceAccount.name"),
        (json!({ "aws": { "existingSecret": "keys", "webIdentity": { "roleArn": role } } }), "set one of them"),
        (json!({ "outputs": [{ "name": "ecr-pull-secret", "format": "BasicAuth" }] }), "is also in secretNames"),
        (
            json!({ "outputs": [
                { "name": "x", "format": "BasicAuth" }, { "name": "x", "format": "Jenkins", "namespaces": ["a"] },
            ] }),
            "x is there twice for the same namespace, as BasicAuth and as Jenkins",
        ),
        (
            json!({ "namespaces": ["a"], "outputs": [{ "name": "x", "format": "BasicAuth", "namespaces": ["a", "b"] }] }),
            "x is for the namespace b, and the operator may write only to those in namespaces",
        ),
        (json!({ "serviceMonitor": { "enabled": true }, "podMonitor": { "enabled": true } }), "enable one of them"),
        (json!({ "extraEnv": [{ "name": "X", "value": 1 }] }), "extraEnv/0/value"),
        (json!({ "extraEnv": [{ "name": "X", "value": true }] }), "extraEnv/0/value"),
        (json!({ "extraEnv": [{ "name": "X", "valeu": "x" }] }), "valeu"),
        (json!({ "aws": { "webIdentity": { "roleArn": "ecr-pull" } } }), "aws/webIdentity/roleArn"),
        (json!({ "aws": { "webIdentity": { "roleArn": role, "expirationSeconds": 60 } } }), "expirationSeconds"),
        (json!({ "openshift": "yes" }), "openshift"),
        (json!({ "networkPolicy": { "cilium": "maybe" } }), "networkPolicy/cilium"),
        (json!({ "prometheusRule": { "alerts": { "EcrTokenExpired": {} } } }), "EcrTokenExpired"),
        (json!({ "prometheusRule": { "alerts": { "EcrThrottled": { "severty": "x" } } } }), "severty"),
        (json!({ "rbac": { "aggregate": true } }), "rbac/aggregate"),
        (json!({ "containerPort": 80 }), "containerPort"),
        (json!({ "dnsPolicy": "Cluster" }), "dnsPolicy"),
        (json!({ "strategy": { "typ": "Recreate" } }), "typ"),
        (json!({ "image": { "registry": "https://r.example" } }), "image/registry"),
        (json!({ "credentials": [{ "name": "x", "spec": { "registries": [], "namespace": {} } }] }), "namespace"),
        (
            json!({ "credentials": [{ "name": "x", "spec": { "registries": [{ "privat": {} }], "namespaces": {} } }] }),
            "privat",
        ),
        (json!({ "credentials": [{ "name": "x", "spec": { "namespaces": { "names": ["*"] } } }] }), "registries"),
        (
            json!({ "credentials": [{ "name": "x", "spec": { "registries": [], "namespaces": {}, "refresh": { "atPercent": 90 } } }] }),
            "atPercent",
        ),
    ] {
        let error = helm.template("eco", NEWEST, &values).expect_err(&values.to_string());
        assert!(error.contains(says), "{values}: {error}");
    }
}

/// The names that `prometheusRule.alerts` takes are those of the alerts.
#[test]
fn each_alert_can_be_set_by_its_name() {
    let schema: Value = serde_json::from_str(&read("charts/ecr-credential-operator/values.schema.json")).unwrap();
    let names = &schema["properties"]["prometheusRule"]["properties"]["alerts"]["propertyNames"]["enum"];
    let rules: Value = serde_saphyr::from_str(&read("charts/ecr-credential-operator/files/alerts.yaml")).unwrap();
    let alerts: Vec<&Value> = rules["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["rules"].as_array().unwrap())
        .map(|r| &r["alert"])
        .collect();
    assert_eq!(json!(alerts), *names);
}
