//! Every way to install the chart: all that is rendered is accepted by the API server, and says what it should.

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Error;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, shared};

use super::helm::{Helm, apply, documents, get, namespace, object, read, version_of, yaml};

const NEWEST: &str = "1.36.0";

pub(crate) async fn plane_with_all_kinds() -> &'static ControlPlane {
    let plane = shared().await.unwrap();
    let folder = get("prometheus-crds");
    let mut crds = vec![serde_saphyr::from_str(super::CRD).unwrap(), serde_json::from_value(cilium()).unwrap()];
    for kind in ["servicemonitors", "podmonitors", "prometheusrules"] {
        let text = std::fs::read_to_string(folder.join(format!("monitoring.coreos.com_{kind}.yaml"))).unwrap();
        crds.push(serde_saphyr::from_str(&text).unwrap());
    }
    plane.install(&crds).await.unwrap();
    let class = json!({ "metadata": { "name": "gvisor" }, "handler": "runsc" });
    let classes: Api<RuntimeClass> = Api::all(plane.admin_client().unwrap());
    let created = classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await;
    assert!(created.is_ok() || matches!(&created, Err(Error::Api(why)) if why.is_already_exists()), "{created:?}");
    plane
}

/// Each mode: its values, and what kinds it renders besides the usual ones.
pub(crate) fn modes() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({})),
        ("listed", json!({ "namespaces": ["chart-listed-a", "chart-listed-b"], "secretNames": ["one", "two.three"] })),
        ("all-names", json!({ "allSecretNames": true })),
        ("all-names-listed", json!({ "allSecretNames": true, "namespaces": ["chart-listed-a"] })),
        (
            "bare",
            json!({
                "crds": { "enabled": false }, "rbac": { "create": false }, "serviceAccount": { "create": false, "name": "mine" },
                "podDisruptionBudget": { "enabled": false }, "validatingAdmissionPolicy": { "enabled": false },
                "nodeSelector": null, "resources": null, "replicaCount": 1,
            }),
        ),
        ("everything", everything()),
    ]
}

pub(crate) fn everything() -> Value {
    yaml(&read("tests/chart/everything.yaml"))
}

/// The part of Cilium's CustomResourceDefinition that the chart uses; anything else is an error.
fn cilium() -> Value {
    let port = json!({ "type": "object", "properties": { "port": { "type": "string" }, "protocol": { "enum": ["TCP", "UDP", "SCTP", "ANY"], "type": "string" } } });
    let ports = json!({ "type": "object", "properties": { "ports": { "type": "array", "items": port } } });
    let egress = json!({ "type": "object", "properties": {
        "toEntities": { "type": "array", "items": { "enum": ["all", "world", "cluster", "host", "remote-node", "kube-apiserver"], "type": "string" } },
        "toPorts": { "type": "array", "items": ports },
    } });
    let selector = json!({ "type": "object", "properties": { "matchLabels": { "type": "object", "additionalProperties": { "type": "string" } } } });
    let spec = json!({ "type": "object", "properties": { "endpointSelector": selector, "egress": { "type": "array", "items": egress } } });
    let schema = json!({ "type": "object", "properties": { "spec": spec } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "ciliumnetworkpolicies.cilium.io" },
        "spec": {
            "group": "cilium.io", "scope": "Namespaced", "names": { "kind": "CiliumNetworkPolicy", "plural": "ciliumnetworkpolicies" },
            "versions": [{ "name": "v2", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    })
}

#[tokio::test]
async fn everything_that_is_rendered_in_each_mode_is_accepted_by_the_api_server() {
    let plane = plane_with_all_kinds().await;
    let client = plane.admin_client().unwrap();
    for name in ["chart-modes", "chart-listed-a", "chart-listed-b"] {
        namespace(&client, name).await;
    }
    let kubernetes = version_of(&client).await;
    let mut refused = vec![];
    for version in ["v3", "v4"] {
        let helm = Helm::offline(version);
        for (mode, values) in modes() {
            let objects = helm.template("chart-modes", &kubernetes, &values).unwrap();
            for object in &objects {
                if let Err(why) = apply(&client, object, true).await {
                    refused.push(format!("{version} {mode}: {why}"));
                }
            }
            let mut pod = object(&objects, "Deployment", "")["spec"]["template"].clone();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["namespace"] = json!("chart-modes");
            pod["metadata"]["name"] = json!("operator");
            if let Err(why) = apply(&client, &pod, true).await {
                refused.push(format!("{version} {mode}: the pod under the Restricted standard: {why}"));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn render(values: Value) -> Vec<Value> {
    Helm::offline("v3").template("eco", NEWEST, &values).unwrap()
}

#[test]
fn the_oldest_kubernetes_that_is_accepted_is_the_oldest_that_the_tests_run_on() {
    let (newest, oldest) = (tried("controlplane"), tried("controlplane-oldest"));
    for readme in ["README.md", "charts/ecr-credential-operator/README.md"] {
        let text = read(readme);
        assert!(text.contains(&newest) && text.contains(&oldest), "{readme} does not name {newest} and {oldest}");
    }
    let minor: u32 = oldest.split('.').nth(1).unwrap().parse().unwrap();
    for helm in ["v3", "v4"].map(Helm::offline) {
        for accepted in [format!("1.{minor}.0"), format!("1.{minor}.1-eks-abcdef"), newest.clone()] {
            helm.template("eco", &accepted, &json!({})).unwrap();
        }
        let error = helm.template("eco", &format!("1.{}.99", minor - 1), &json!({})).unwrap_err();
        assert!(error.contains("requires kubeVersion"), "{error}");
    }
}

/// The version of Kubernetes that a Go module of the tests builds.
fn tried(module: &str) -> String {
    let file = read(&format!("tests/{module}/go.mod"));
    let version = file.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    version.unwrap().to_owned()
}

#[test]
fn two_releases_in_two_namespaces_share_no_object() {
    let helm = Helm::offline("v3");
    let names = |namespace: &str, name: &str| {
        let values = json!({ "crds": { "enabled": false }, "fullnameOverride": name });
        let objects = helm.template(namespace, NEWEST, &values).unwrap();
        let cluster_wide = objects.into_iter().filter(|o| o["metadata"].get("namespace").is_none());
        cluster_wide
            .map(|o| format!("{} {}", o["kind"], o["metadata"]["name"]))
            .collect::<std::collections::BTreeSet<_>>()
    };
    // The last two would be the same, were the parts of a name joined by what may stand in them.
    for ((namespace, name), other) in [(("one", ""), ("other", "")), (("a-b", "c"), ("a", "b-c"))] {
        let (one, other) = (names(namespace, name), names(other.0, other.1));
        assert!(one.len() >= 6, "{one:?}");
        assert!(one.is_disjoint(&other), "{:?}", one.intersection(&other).collect::<Vec<_>>());
    }
}

#[test]
fn the_crd_is_the_one_at_the_root_and_is_kept_unless_told_otherwise() {
    let at_the_root = &documents(super::CRD)[0];
    for keep in [true, false] {
        let objects = render(json!({ "crds": { "keep": keep } }));
        let crd = object(&objects, "CustomResourceDefinition", "");
        assert_eq!(crd["spec"], at_the_root["spec"]);
        let policy = crd["metadata"]["annotations"]["helm.sh/resource-policy"].as_str();
        assert_eq!(policy, keep.then_some("keep"));
    }
    let without = render(json!({ "crds": { "enabled": false } }));
    assert!(!without.iter().any(|o| o["kind"] == "CustomResourceDefinition"));
}
