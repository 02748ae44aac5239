//! The YAML of the documentation: objects are accepted by the real API server, values by the chart.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, shared};

use super::helm::{Helm, apply, documents};
use super::pages::pages;

/// API groups of other projects. Their definitions are not here, so that their objects are only read.
const FOREIGN: [&str; 13] = [
    "addons.cluster.x-k8s.io",
    "argoproj.io",
    "catalog.cattle.io",
    "fleet.cattle.io",
    "helm.cattle.io",
    "helm.crossplane.io",
    "helm.toolkit.fluxcd.io",
    "image.toolkit.fluxcd.io",
    "kargo.akuity.io",
    "kustomize.config.k8s.io",
    "kyverno.io",
    "pkg.crossplane.io",
    "source.toolkit.fluxcd.io",
];

/// What stands for the variables of a shell.
const VARIABLES: [(&str, &str); 4] = [
    ("$ACCOUNT", "111122223333"),
    ("$REGION", "eu-west-1"),
    ("$APP_IMAGE", "111122223333.dkr.ecr.eu-west-1.amazonaws.com/my-app:1.0"),
    ("$APP", "my-app:1.0"),
];

/// A YAML document of a page.
struct Snippet {
    place: String,
    document: Value,
}

/// Blocks of YAML, and what commands read from their input.
fn snippets() -> Vec<Snippet> {
    let mut snippets = Vec::new();
    for block in pages().iter().flat_map(|page| page.blocks()) {
        let texts = match block.info.as_str() {
            "yaml" => vec![block.text.clone()],
            "console" => here_documents(&block.text),
            // Read by something else: it is only read here.
            "yaml other" => {
                documents(&block.text);
                vec![]
            }
            other => {
                assert!(!other.starts_with("yaml") && other != "yml", "{}: what is {other}?", block.place);
                vec![]
            }
        };
        for document in texts.iter().flat_map(|text| documents(text)) {
            snippets.push(Snippet { place: block.place.clone(), document });
        }
    }
    snippets
}

fn here_documents(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split("<<EOF\n").skip(1) {
        let (body, _) = part.split_once("\nEOF").expect("an end");
        found.push(VARIABLES.iter().fold(body.to_owned(), |body, (name, value)| body.replace(name, value)));
    }
    found
}

pub(crate) async fn plane() -> &'static ControlPlane {
    let plane = shared().await.unwrap();
    let crd = serde_saphyr::from_str(&ecr_credential_operator::crd::yaml().unwrap()).unwrap();
    plane.install(&[crd]).await.unwrap();
    plane
}

/// Creates a namespace, and waits until pods can be created in it.
pub(crate) async fn namespace(client: &Client, name: &str) {
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    let created = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
    assert!(created.is_ok() || matches!(&created, Err(kube::Error::Api(s)) if s.is_already_exists()), "{created:?}");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    let there = |account: Option<&ServiceAccount>| account.is_some();
    let waiting = kube::runtime::wait::await_condition(accounts, "default", there);
    tokio::time::timeout(testbed::bed::PATIENCE, waiting).await.expect("a ServiceAccount default").unwrap();
}

#[tokio::test]
async fn every_object_is_accepted_by_the_api_server() {
    let client = plane().await.admin_client().unwrap();
    let mut ready = BTreeSet::new();
    let (mut refused, mut accepted) = (vec![], 0);
    for Snippet { place, document } in snippets().iter().filter(|snippet| snippet.document["kind"].is_string()) {
        let version = document["apiVersion"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if FOREIGN.contains(&group) {
            assert!(document["metadata"]["name"].is_string() || group.starts_with("kustomize"), "{place} has no name");
            continue;
        }
        if let Some(name) = document["metadata"]["namespace"].as_str().filter(|name| !ready.contains(*name)) {
            namespace(&client, name).await;
            ready.insert(name.to_owned());
        }
        match apply(&client, document, true).await {
            Ok(_) => accepted += 1,
            Err(why) => refused.push(format!("{place}: {why}")),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(accepted > 15, "only {accepted} objects were found");
}

#[test]
fn every_set_of_values_is_accepted_by_the_chart() {
    let helm = Helm::offline("v3");
    let (mut refused, mut accepted) = (vec![], 0);
    for Snippet { place, document } in snippets().iter().filter(|snippet| !snippet.document["kind"].is_string()) {
        match helm.template("ecr-credential-operator", "1.36.0", document) {
            Ok(_) => accepted += 1,
            Err(why) => refused.push(format!("{place}: {why}")),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(accepted > 5, "only {accepted} sets of values were found");
}

#[test]
fn what_a_snippet_leaves_out_is_seen() {
    assert_eq!(here_documents("kubectl apply -f - <<EOF\na: $REGION\nEOF\nls\n"), ["a: eu-west-1"]);
}
