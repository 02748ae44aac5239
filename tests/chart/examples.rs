//! The values in `deploy/values`: each is accepted, says what it is for, and is in the README.

use serde_json::{Value, json};
use testbed::bed::PATIENCE;

use super::helm::{Helm, apply, namespace, object, read, root, version_of};
use super::modes::plane_with_all_kinds;
use super::operator::{launch, with_the_chart};

const OWN: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fn examples() -> Vec<(String, Value)> {
    let entries = std::fs::read_dir(root().join("deploy/values")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let values = |name: &String| serde_saphyr::from_str(&read(&format!("deploy/values/{name}"))).unwrap();
    names.into_iter().map(|name| (name.clone(), values(&name))).collect()
}

#[tokio::test]
async fn every_example_of_values_is_accepted_by_the_api_server() {
    let client = plane_with_all_kinds().await.admin_client().unwrap();
    namespace(&client, "chart-examples").await;
    let version = version_of(&client).await;
    let readme = read("charts/ecr-credential-operator/README.md");
    let examples = examples();
    assert!(examples.len() >= 7);
    let mut refused = vec![];
    for (name, values) in examples {
        assert!(readme.contains(&format!("`deploy/values/{name}`")), "the chart's README does not name {name}");
        let objects = Helm::offline("v3").template("chart-examples", &version, &values).unwrap();
        for object in &objects {
            if let Err(why) = apply(&client, object, true).await {
                refused.push(format!("{name}: {why}"));
            }
        }
        let mut pod = object(&objects, "Deployment", "")["spec"]["template"].clone();
        for (field, value) in [("apiVersion", json!("v1")), ("kind", json!("Pod"))] {
            pod[field] = value;
        }
        pod["metadata"]["namespace"] = json!("chart-examples");
        pod["metadata"]["name"] = json!("operator");
        if name == "openshift.yaml" {
            // There, an admission plugin assigns the user.
            pod["spec"]["securityContext"]["runAsUser"] = json!(1_000_660_000);
        }
        if let Err(why) = apply(&client, &pod, true).await {
            refused.push(format!("{name}: the pod under the Restricted standard: {why}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// Two installations in one cluster, each with its namespace, permissions, policies, lease and share of the EcrCredentials.
#[tokio::test]
async fn two_installations_side_by_side_do_not_touch_each_others() {
    let (one, two) = (with_the_chart("chart-first", json!({})).await, with_the_chart("chart-second", json!({})).await);
    let mut operators = vec![];
    let mut credentials = vec![];
    for bed in [&one, &two] {
        let a = bed.namespace("a", &[]).await.unwrap();
        operators.push(bed.operator(launch()).await.unwrap());
        let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": [a] } });
        let name = bed.credential("x", spec).await.unwrap();
        bed.logins_until(&a, &[OWN]).await.unwrap();
        bed.ready(&name).await.unwrap();
        credentials.push(name);
    }
    // A refresh by one is none of the other, and neither waits for the other's lease.
    one.request_refresh(&credentials[0], "1").await.unwrap();
    tokio::time::timeout(PATIENCE, one.refreshed(&credentials[0], "1")).await.unwrap().unwrap();
    let other = two.ready(&credentials[1]).await.unwrap();
    assert!(other.data["status"]["handledRefreshRequest"].is_null(), "{}", other.data["status"]);
    for operator in operators {
        operator.stop().await.unwrap();
    }
    // Each judge has seen every request of its operator, and what became of its Secrets.
    one.finish().await.unwrap();
    two.finish().await.unwrap();
}
