//! What linters say of the charts.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use super::helm::{Helm, chart, get, root};
use super::modes::modes;

const NEWEST: &str = "1.36.0";
const OLDEST: &str = "1.32.0";

/// What kube-score finds, and why it stays.
const EXPLAINED: [(&str, &str); 4] = [
    (
        "container-ephemeral-storage-request-and-limit",
        "the root filesystem is read-only, and the kubelet rotates the log",
    ),
    ("container-image-pull-policy", "a tag is never moved to another image, and a digest cannot be"),
    (
        "container-resources",
        "a CPU limit would throttle the refresh of many namespaces, and a request is enough to share a node",
    ),
    (
        "deployment-has-host-podantiaffinity",
        "topology spread constraints do the same without blocking on a single node",
    ),
];

#[test]
fn both_helms_find_nothing_to_complain_of() {
    let crds = root().join("charts/ecr-credential-operator-crds");
    for version in ["v3", "v4"] {
        let helm = Helm::offline(version);
        for (mode, values) in modes() {
            let (chart, file) = (chart(), helm.values(&values).to_string_lossy().into_owned());
            helm.run(&["lint", "--strict", "--kube-version", NEWEST, "--values", &file, &chart.to_string_lossy()])
                .unwrap_or_else(|why| panic!("{version} {mode}: {why}"));
        }
        helm.run(&["lint", "--strict", "--kube-version", NEWEST, &crds.to_string_lossy()]).unwrap();
    }
}

/// Each finding is fixed or explained, and each explanation is still needed.
#[test]
fn kube_score_finds_nothing_that_is_not_explained() {
    let helm = Helm::offline("v3");
    let values = json!({ "networkPolicy": { "enabled": true }, "test": { "enabled": false } });
    let objects = helm.template("eco", NEWEST, &values).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objects.yaml");
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    std::fs::write(&file, text.join("\n---\n")).unwrap();
    let mut score = Command::new(get("kube-score"));
    let output = score.args(["score", "--output-format", "json"]).arg(&file).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for object in report.as_array().unwrap() {
        for check in object["checks"].as_array().unwrap() {
            // 10 is without a finding.
            if check["grade"] != 10 && check["skipped"] != true {
                let summaries = check["comments"].as_array().into_iter().flatten().map(|c| c["summary"].to_string());
                let id = check["check"]["id"].as_str().unwrap().to_owned();
                found.entry(id).or_default().extend(summaries.map(|s| format!("{}: {s}", object["object_name"])));
            }
        }
    }
    let explained: Vec<&str> = EXPLAINED.iter().map(|(id, _)| *id).collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), explained, "{found:#?}");
    assert!(found["container-resources"].iter().all(|finding| finding.contains("CPU limit")), "{found:#?}");
}

/// Schemas of Kubernetes itself, of the newest and the oldest version, in which an unknown field is an error. The kinds of others are
/// applied to a real API server by other tests.
#[test]
fn kubernetes_validate_knows_each_field_of_each_mode() {
    let helm = Helm::offline("v3");
    let folder = tempfile::tempdir().unwrap();
    for (version, known) in [(NEWEST, "1.36"), (OLDEST, "1.32")] {
        let rendered = modes().into_iter().flat_map(|(_, values)| helm.template("eco", version, &values).unwrap());
        let group =
            |object: &Value| object["apiVersion"].as_str().unwrap().split_once('/').map(|(group, _)| group.to_owned());
        let is_of_kubernetes =
            |object: &Value| group(object).is_none_or(|group| !group.contains('.') || group.ends_with(".k8s.io"));
        let objects: Vec<String> = rendered.filter(is_of_kubernetes).map(|object| object.to_string()).collect();
        assert!(objects.len() > 100, "{} objects", objects.len());
        let file = folder.path().join(format!("{known}.yaml"));
        std::fs::write(&file, objects.join("\n---\n")).unwrap();
        let validate = |file: &std::path::Path| {
            Command::new(get("kubernetes-validate")).args(["--strict", "-k", known]).arg(file).output().unwrap()
        };
        let output = validate(&file);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        // Each object was looked at, and one with an unknown field would be found.
        assert_eq!(said.matches(" passed for resource ").count(), objects.len(), "{said}");
        let wrong =
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "x" }, "spec": { "prots": [] } });
        std::fs::write(&file, wrong.to_string()).unwrap();
        assert!(!validate(&file).status.success());
    }
}
