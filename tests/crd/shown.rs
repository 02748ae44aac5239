//! How the CRD and its objects are shown to people: descriptions, kubectl's tables, no warnings.

use std::process::Command;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::bed::credential_resource;
use testbed::control_plane::ControlPlane;

use super::api_server::{create_for_good, credential, definition, least, plane, schema};

#[test]
fn every_field_has_a_description() {
    let mut without = vec![];
    walk(&schema(), "", &mut |path, schema| {
        if schema["description"].as_str().is_none_or(str::is_empty) {
            without.push(path.to_owned());
        }
    });
    assert!(without.is_empty(), "no description: {without:?}");
}

#[tokio::test]
async fn the_api_server_takes_the_definition_without_a_warning() {
    let client = plane().await.admin_client().unwrap();
    let uri = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ecrcredentials.pullsecrets.dev?fieldManager=testbed&force=true&dryRun=All&fieldValidation=Strict";
    let body = serde_json::to_vec(&definition()).unwrap();
    let request = http::Request::patch(uri).header("Content-Type", "application/apply-patch+yaml").body(body).unwrap();
    let answer = client.send(request.map(Into::into)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let warnings: Vec<_> = answer.headers().get_all("warning").iter().collect();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[tokio::test]
async fn kubectl_shows_one_sensible_line_for_each() {
    let plane = plane().await;
    let client = plane.admin_client().unwrap();
    let mut object = credential(least());
    object["metadata"]["name"] = json!("shown");
    create_for_good(&client, &object).await.unwrap();
    let before = kubectl(plane, &["get", "ecrcred", "shown"]);
    assert_eq!(columns(&before, 0), ["NAME", "READY", "REASON", "SYNCED", "EXPIRES", "REFRESH", "AGE"]);
    let status = json!({ "status": {
        "expiresAt": "2026-01-01T12:00:00Z",
        "nextRefreshAt": "2026-01-01T06:00:00Z",
        "namespaces": { "selected": 120, "synced": 119, "failed": 1, "summary": "119/120" },
        "conditions": [
            { "type": "Reconciling", "status": "True", "reason": "Other", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "Ready", "status": "False", "reason": "NamespacesFailed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ],
    }});
    let api: Api<DynamicObject> = Api::all_with(client, &credential_resource());
    api.patch_status("shown", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    for name in ["ecrcred", "ecrcredential", "ecrcredentials.pullsecrets.dev", "pullsecrets"] {
        let shown = kubectl(plane, &["get", name, "--field-selector", "metadata.name=shown"]);
        let line = columns(&shown, 1);
        assert_eq!(
            line[1..6],
            ["False", "NamespacesFailed", "119/120", "2026-01-01T12:00:00Z", "2026-01-01T06:00:00Z"],
            "{name}:\n{shown}"
        );
        assert!(line[0].ends_with("shown"), "{shown}");
    }
}

#[tokio::test]
async fn kubectl_explains_every_field() {
    let plane = plane().await;
    let all = kubectl(plane, &["explain", "ecrcredential", "--recursive"]);
    let mut fields = vec![];
    walk(&schema(), "", &mut |path, _| fields.push(path.rsplit('.').next().unwrap_or_default().to_owned()));
    for field in fields.iter().filter(|field| !field.is_empty()) {
        assert!(all.contains(&format!("{field}\t<")), "{field} is not in:\n{all}");
    }
    let one = kubectl(plane, &["explain", "ecrcred.spec.refresh.maxAge"]);
    assert!(one.contains("from `1m` to `12h`"), "{one}");
}

/// Visits every field of a schema; entries of lists and maps have the path of their field.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        visit(&path, schema);
        walk(schema, &path, visit);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get(below) {
            walk(schema, path, visit);
        }
    }
}

fn kubectl(plane: &ControlPlane, args: &[&str]) -> String {
    let program = testbed::tools::get("kubectl").unwrap();
    let output = Command::new(program).env("KUBECONFIG", plane.admin_kubeconfig()).args(args).output().unwrap();
    assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn columns(table: &str, line: usize) -> Vec<&str> {
    table.lines().nth(line).unwrap_or_default().split_whitespace().collect()
}
