//! The commands of the documentation that read the cluster, run by kubectl on the real API server.

use std::collections::BTreeMap;
use std::process::Command;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::bed::credential_resource;

use super::helm::{apply, get};
use super::pages::pages;
use super::snippets::{namespace, plane};

/// Every `kubectl` command with a template, and every annotation of an EcrCredential.
fn commands() -> Vec<(String, String)> {
    let mut commands = Vec::new();
    for block in pages().iter().flat_map(|page| page.blocks()).filter(|block| block.info == "console") {
        let text = block.text.replace("\\\n", " ");
        let lines = text.lines().map(|line| line.trim_start_matches("$ ").trim());
        let runs = |line: &&str| {
            line.starts_with("kubectl get ") && (line.contains("go-template") || line.contains("ecrcredential"))
                || line.starts_with("kubectl annotate ecrcredential ")
                || line.starts_with("kubectl describe ecrcredential ")
        };
        commands.extend(lines.filter(runs).map(|line| (block.place.clone(), line.to_owned())));
    }
    commands
}

#[tokio::test]
async fn what_reads_the_cluster_runs_and_shows_what_is_there() {
    let plane = plane().await;
    let client = plane.admin_client().unwrap();
    for name in ["ci", "payments"] {
        namespace(&client, name).await;
    }
    for (namespace, name) in [("ci", "ecr-pull-secret"), ("default", "ecr-pull-secret"), ("payments", "regcred")] {
        apply(&client, &secret(namespace, name), false).await.unwrap();
    }
    for name in ["platform", "NAME"].map(str::to_lowercase) {
        let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": ["none"] } });
        let object = json!({ "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": name }, "spec": spec });
        apply(&client, &object, false).await.unwrap();
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &credential_resource());
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status())).await.unwrap();
    }
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "templated", "namespace": "default" },
        "spec": { "imagePullSecrets": [{ "name": "ecr-pull-secret" }], "containers": [{ "name": "a", "image": "b" }] } });
    apply(&client, &pod, false).await.unwrap();

    let kubectl = get("kubectl");
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (place, command) in commands() {
        let command =
            command.replace(" NAME", " name").replace("pod/my-app", "pod/templated").replace(" >config.json", "");
        // The machine may have no kubectl of its own.
        let script = format!("kubectl() {{ \"$KUBECTL\" \"$@\"; }}\n{command}");
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("KUBECTL", &kubectl)
            .env("KUBECONFIG", plane.admin_kubeconfig())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{place}: {command}\n{out}{err}");
        assert!(!out.contains("<no value>"), "{place}: {command}\n{out}");
        shown.insert(command, out.into_owned());
    }
    assert!(shown.len() >= 6, "{shown:?}");
    // What a template is for is in what it shows.
    for (part, wanted) in [
        ("range .status.failures", "team-a SecretNotOwned: the sentence"),
        ("range .status.registries", "eu-west-1 2026-01-01T12:00:00Z AwsUnavailable: the sentence"),
        (".metadata.ownerReferences", "ExternalSecret/ecr"),
        ("base64decode", "{\"auths\":{}}"),
        ("$pod := .", "default/templated ecr-pull-secret"),
        ("condition", "InvalidSpec: the sentence"),
    ] {
        let found = shown.iter().find(|(command, _)| command.contains(part));
        let (command, out) = found.unwrap_or_else(|| panic!("no command has {part}"));
        assert!(out.contains(wanted), "{command}\n{out}");
    }
}

fn secret(namespace: &str, name: &str) -> Value {
    let owner = json!([{ "apiVersion": "not-installed.example/v1", "kind": "ExternalSecret", "name": "ecr", "uid": "1", "controller": true }]);
    let owner = if name == "regcred" { owner } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {
            "name": name, "namespace": namespace, "ownerReferences": owner,
            "annotations": { "pullsecrets.dev/expires-at": "2026-01-01T12:00:00Z" },
        },
        "data": { ".dockerconfigjson": "eyJhdXRocyI6e319" },
    })
}

fn status() -> Value {
    let condition = |type_: &str, status: &str| json!({ "type": type_, "status": status, "reason": "InvalidSpec", "message": "the sentence", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    json!({ "status": {
        "conditions": [condition("Ready", "False"), condition("Stalled", "True")],
        "registries": [{ "region": "eu-west-1", "expiresAt": "2026-01-01T12:00:00Z", "reason": "AwsUnavailable", "message": "the sentence" }],
        "failures": [{ "namespace": "team-a", "reason": "SecretNotOwned", "message": "the sentence" }],
    }})
}
