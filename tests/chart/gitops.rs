//! What a GitOps tool sees: applied once, nothing of it differs from what the API server stores.

use futures::StreamExt;
use kube::Client;
use serde_json::{Value, json};

use super::helm::{Helm, apply, namespace, path_of, version_of};
use super::modes::{everything, plane_with_all_kinds};

/// How many objects are applied at a time.
const AT_A_TIME: usize = 8;

#[tokio::test]
async fn what_is_applied_by_server_side_apply_shows_no_difference_afterwards() {
    let client = plane_with_all_kinds().await.admin_client().unwrap();
    for name in ["chart-gitops", "chart-listed-a", "chart-listed-b"] {
        namespace(&client, name).await;
    }
    let role = "arn:aws:iam::111122223333:role/x";
    let policy = json!({ "enabled": true, "cilium": true, "metricsFrom": [{ "podSelector": {} }] });
    let version = version_of(&client).await;
    let mut wrong = vec![];
    for (name, values) in [
        ("defaults", json!({})),
        ("everything", everything()),
        (
            "listed",
            json!({ "namespaces": ["chart-listed-a", "chart-listed-b"], "rbac": { "aggregate": { "edit": true } } }),
        ),
        (
            "web-identity",
            json!({ "aws": { "region": "eu-west-1", "webIdentity": { "roleArn": role } }, "auth": { "serviceAccounts": [{ "name": "x" }] } }),
        ),
        (
            "keys",
            json!({ "aws": { "region": "eu-west-1", "existingSecret": "keys" }, "hostNetwork": true, "containerPort": 18080 }),
        ),
        ("openshift", json!({ "openshift": true, "networkPolicy": policy })),
        (
            "monitored",
            json!({ "podMonitor": { "enabled": true }, "prometheusRule": { "enabled": true }, "grafanaDashboard": { "enabled": true } }),
        ),
    ] {
        // The CustomResourceDefinition belongs to all tests.
        let mut values = values;
        values["crds"] = json!({ "enabled": false });
        values["test"] = json!({ "enabled": false });
        values["fullnameOverride"] = json!(name);
        values["replicaCount"] = json!(0);
        let objects = Helm::offline("v3").template_as(name, "chart-gitops", &version, &values).unwrap();
        let found: Vec<Vec<String>> = futures::stream::iter(&objects)
            .map(|object| differences(&client, object))
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        wrong.extend(found.into_iter().flatten().map(|why| format!("{name}: {why}")));
        for object in &objects {
            let request = http::Request::delete(path_of(object)).body(vec![]).unwrap();
            client.request::<Value>(request).await.unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Applies an object, and compares it with what is stored; then applies it again, which must change nothing.
async fn differences(client: &Client, object: &Value) -> Vec<String> {
    let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let stored = match apply(client, object, false).await {
        Ok(stored) => stored,
        Err(why) => return vec![why],
    };
    let mut wrong = vec![];
    // Lists of these are merged by key, so that what the API server adds to an item is nobody's difference.
    let merged_by_key = ["Deployment", "Service"].contains(&object["kind"].as_str().unwrap());
    compare(object, &stored, "", !merged_by_key, &mut wrong);
    let again = apply(client, object, true).await.unwrap();
    if again["metadata"]["managedFields"].is_null() || without_times(&again) != without_times(&stored) {
        wrong.push("a second apply changes it".to_owned());
    }
    wrong.into_iter().map(|why| format!("{name}: {why}")).collect()
}

fn without_times(object: &Value) -> Value {
    let mut object = object.clone();
    for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
        entry["time"] = Value::Null;
    }
    object
}

/// Everything in `wanted` must be in `stored`; items of lists must be the same, with nothing added if `exact`.
fn compare(wanted: &Value, stored: &Value, path: &str, exact: bool, wrong: &mut Vec<String>) {
    match (wanted, stored) {
        (Value::Object(wanted), Value::Object(stored)) => {
            for (key, value) in wanted {
                compare(value, stored.get(key).unwrap_or(&Value::Null), &format!("{path}/{key}"), exact, wrong);
            }
        }
        (Value::Array(items), Value::Array(found)) if items.len() == found.len() => {
            for (number, (item, found)) in items.iter().zip(found).enumerate() {
                let path = format!("{path}/{number}");
                compare(item, found, &path, exact, wrong);
                if exact {
                    compare(found, item, &path, exact, wrong);
                }
            }
        }
        (Value::Number(wanted), Value::Number(stored)) if wanted.as_f64() == stored.as_f64() => {}
        _ if wanted == stored => {}
        _ => wrong.push(format!("{path} is {stored}, not {wanted}")),
    }
}
