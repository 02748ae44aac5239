//! Install, upgrade, rollback and uninstall with both helms: EcrCredentials, and so every pull Secret, live through all of it.

use std::path::{Path, PathBuf};

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{PATIENCE, credential_resource};
use testbed::control_plane::{ControlPlane, Options};

use super::helm::{Helm, chart, copy, root};

const NAMESPACE: &str = "ecr-credential-operator";
const CRD: &str = "ecrcredentials.pullsecrets.dev";
const OLD_SENTENCE: &str = "A sentence of an older version.";

#[tokio::test]
async fn with_helm_3() {
    live_through_all("v3").await;
}

#[tokio::test]
async fn with_helm_4() {
    live_through_all("v4").await;
}

async fn live_through_all(version: &str) {
    let plane = plane().await;
    let (client, helm) = (plane.admin_client().unwrap(), Helm::on(&plane, version));
    let old = older_chart(plane.dir());
    let old = old.to_string_lossy();
    let values = helm.values(&values(2));
    let values = values.to_string_lossy();

    // The first install brings the CRD, and says that the EcrCredential needs an upgrade, which brings it.
    let install = ["install", NAMESPACE, &old, "--namespace", NAMESPACE, "--create-namespace", "--values", &values];
    let said = helm.run(&install).unwrap();
    assert!(said.contains("not created yet") && said.contains("kubectl get ecrcredentials"), "{said}");
    assert!(credential(&client).await.is_none());
    let said = helm.run(&["upgrade", NAMESPACE, &old, "--namespace", NAMESPACE, "--reuse-values"]).unwrap();
    assert!(!said.contains("not created yet"), "{said}");
    let first = credential(&client).await.expect("the EcrCredential is there").uid();
    assert_eq!(description(&client).await.as_deref(), Some(OLD_SENTENCE));
    for policy in ["", "-records", "-attachments", "-tokens"] {
        no_warnings_on_the_policy(&client, &format!("{NAMESPACE}{policy}")).await;
    }

    // An upgrade brings the new CRD and the new values, and the same EcrCredential.
    let new = chart();
    let new = new.to_string_lossy();
    let three = helm.values(&self::values(3));
    let three = three.to_string_lossy();
    helm.run(&["upgrade", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three]).unwrap();
    assert_ne!(description(&client).await.as_deref(), Some(OLD_SENTENCE));
    assert_eq!(replicas(&client).await, Some(3));
    let upgraded = credential(&client).await.unwrap();
    assert_eq!(upgraded.uid(), first);
    assert_eq!(upgraded.data["spec"]["refresh"]["atPercent"], 30);
    helm.run(&["rollback", NAMESPACE, "1", "--namespace", NAMESPACE]).unwrap();
    assert_eq!(description(&client).await.as_deref(), Some(OLD_SENTENCE));
    assert_eq!(replicas(&client).await, Some(2));
    assert_eq!(credential(&client).await.unwrap().uid(), first);

    // An entry that is taken out of the values is kept too.
    helm.run(&["upgrade", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three]).unwrap();
    helm.run(&["upgrade", NAMESPACE, &new, "--namespace", NAMESPACE]).unwrap();
    assert_eq!(credential(&client).await.unwrap().uid(), first);

    // Uninstalling leaves the CRD and the EcrCredential, and nothing else.
    helm.run(&["uninstall", NAMESPACE, "--namespace", NAMESPACE]).unwrap();
    assert_eq!(credential(&client).await.unwrap().uid(), first);
    assert_eq!(leftovers(&client).await, Vec::<String>::new());

    // The same release takes them over again; another one is told why it cannot.
    helm.run(&["install", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three]).unwrap();
    assert_eq!(credential(&client).await.unwrap().uid(), first);
    let other = ["install", "other", &new, "--namespace", "other", "--create-namespace"];
    let error = helm.run(&other).unwrap_err();
    assert!(error.contains(CRD) && error.contains("ownership"), "{error}");
    helm.run(&[&other[..], &["--set", "crds.enabled=false"]].concat()).unwrap();
    helm.run(&["uninstall", "other", "--namespace", "other"]).unwrap();

    // Told not to keep them, it takes all away.
    let args = ["upgrade", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three, "--set", "crds.keep=false"];
    helm.run(&args).unwrap();
    helm.run(&["uninstall", NAMESPACE, "--namespace", NAMESPACE, "--wait"]).unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let gone = kube::runtime::wait::await_condition(crds, CRD, |crd: Option<&CustomResourceDefinition>| crd.is_none());
    tokio::time::timeout(PATIENCE, gone).await.expect("the CRD is gone").unwrap();

    // For what installs once and never upgrades: with the CRD from a chart of its own, one install brings the EcrCredential.
    let crds_chart = root().join("charts/ecr-credential-operator-crds");
    let crds_chart = crds_chart.to_string_lossy();
    helm.run(&["install", "crds", &crds_chart, "--namespace", "default", "--wait"]).unwrap();
    let args =
        ["install", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three, "--set", "crds.enabled=false"];
    let said = helm.run(&args).unwrap();
    assert!(!said.contains("not created yet"), "{said}");
    assert_eq!(credential(&client).await.expect("the EcrCredential is there").data["spec"]["refresh"]["atPercent"], 30);
    helm.run(&["uninstall", NAMESPACE, "--namespace", NAMESPACE]).unwrap();
    helm.run(&["uninstall", "crds", "--namespace", "default"]).unwrap();
    assert!(credential(&client).await.is_some(), "uninstalling keeps it");

    // A CRD that is kept is taken over by whoever says so, from one chart to the other and back, and so are EcrCredentials.
    let install = ["install", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three];
    let error = helm.run(&install).unwrap_err();
    assert!(error.contains(CRD) && error.contains("ownership"), "{error}");
    helm.run(&[&install[..], &["--take-ownership"]].concat()).unwrap();
    let upgrade = ["upgrade", NAMESPACE, &new, "--namespace", NAMESPACE, "--values", &three];
    helm.run(&[&upgrade[..], &["--set", "crds.enabled=false"]].concat()).unwrap();
    helm.run(&["install", "crds", &crds_chart, "--namespace", "default", "--take-ownership"]).unwrap();
    helm.run(&[&upgrade[..], &["--set", "crds.enabled=false"]].concat()).unwrap();
    assert!(credential(&client).await.is_some(), "taking over keeps it");

    // An entry goes if it is told so, and the CRD stays.
    let go = ["--set", "crds.enabled=false", "--set", "keepCredentials=false"];
    helm.run(&[&upgrade[..], &go].concat()).unwrap();
    helm.run(&["uninstall", NAMESPACE, "--namespace", NAMESPACE, "--wait"]).unwrap();
    assert!(credential(&client).await.is_none());
    assert!(description(&client).await.is_some());
}

/// A control plane of its own, with the controller that checks the types of policies.
async fn plane() -> ControlPlane {
    let mut options = Options::default();
    options.controllers.push("validatingadmissionpolicy-status-controller".to_owned());
    ControlPlane::start(options).await.unwrap()
}

fn values(replicas: u32) -> Value {
    let auth = json!({ "serviceAccounts": [{ "name": "puller" }] });
    let attach = json!({ "serviceAccounts": ["default"] });
    json!({ "replicaCount": replicas, "auth": auth, "attach": attach, "credentials": [{
        "name": "platform", "spec": {
            "registries": [{ "private": { "region": "eu-west-1" } }], "namespaces": { "names": ["*"] },
            "refresh": { "atPercent": replicas * 10 },
        },
    }] })
}

/// The chart with a CRD that differs in one sentence.
fn older_chart(folder: &Path) -> PathBuf {
    let to = folder.join("older-chart");
    copy(&chart(), &to);
    let crd = to.join("files").join(format!("{CRD}.yaml"));
    let text = std::fs::read_to_string(&crd).unwrap();
    let changed = text.replace("description: When tokens are refreshed.", &format!("description: {OLD_SENTENCE}"));
    assert_ne!(changed, text);
    std::fs::write(crd, changed).unwrap();
    to
}

async fn credential(client: &Client) -> Option<DynamicObject> {
    Api::<DynamicObject>::all_with(client.clone(), &credential_resource()).get_opt("platform").await.unwrap()
}

async fn description(client: &Client) -> Option<String> {
    let crd = Api::<CustomResourceDefinition>::all(client.clone()).get(CRD).await.unwrap();
    let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
    let refresh = schema.pointer("/openAPIV3Schema/properties/spec/properties/refresh/description")?;
    refresh.as_str().map(str::to_owned)
}

async fn replicas(client: &Client) -> Option<i32> {
    Api::<Deployment>::namespaced(client.clone(), NAMESPACE).get(NAMESPACE).await.unwrap().spec?.replicas
}

/// What bears the mark of the release after it is gone.
async fn leftovers(client: &Client) -> Vec<String> {
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/instance={NAMESPACE}"));
    let roles = Api::<ClusterRole>::all(client.clone()).list(&ours).await.unwrap();
    let deployments = Api::<Deployment>::all(client.clone()).list(&ours).await.unwrap();
    let policies = Api::<ValidatingAdmissionPolicy>::all(client.clone()).list(&ours).await.unwrap();
    let names = roles.into_iter().map(|o| o.name_any()).chain(deployments.into_iter().map(|o| o.name_any()));
    names.chain(policies.into_iter().map(|o| o.name_any())).collect()
}

/// The API server's own check of the policy's expressions against the types that they speak of.
async fn no_warnings_on_the_policy(client: &Client, name: &str) {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let checked = |policy: Option<&ValidatingAdmissionPolicy>| {
        policy.is_some_and(|p| p.status.as_ref().is_some_and(|s| s.observed_generation == p.metadata.generation))
    };
    let waiting = kube::runtime::wait::await_condition(policies, name, checked);
    let policy = tokio::time::timeout(PATIENCE, waiting).await.expect("the policy is checked").unwrap().unwrap();
    let warnings = policy.status.and_then(|s| s.type_checking).and_then(|t| t.expression_warnings).unwrap_or_default();
    assert!(warnings.is_empty(), "{warnings:#?}");
}
