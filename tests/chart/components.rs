//! The kustomize components for outputs and includes: what the chart renders for the same names, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::current::{files, rendered, same};
use super::helm::{documents, get, object, root, setting};

/// A component of `deploy/components`, with the values of the chart that grant the same.
struct Component {
    name: &'static str,
    about: &'static str,
    values: fn() -> Value,
    variable: &'static str,
}

const COMPONENTS: [Component; 2] = [
    Component {
        name: "outputs",
        about: "# The Secrets of spec.outputs that the operator may write, by name, format and namespace. Copy this folder and put your own names\n\
            # everywhere where argocd-ecr (in the namespace argocd alone) and ecr-docker-config (in every namespace) are.\n",
        values: || {
            json!({ "outputs": [
                { "name": "argocd-ecr", "format": "ArgoCDHelm", "namespaces": ["argocd"] },
                { "name": "ecr-docker-config", "format": "DockerConfigFile" },
            ] })
        },
        variable: "ECO_OUTPUT_SECRETS",
    },
    Component {
        name: "include",
        about: "# The Secrets of spec.include that the operator may read, by name and namespace. Copy this folder and put your own namespace and\n\
            # name everywhere where argocd and docker-hub are.\n",
        values: || json!({ "include": { "secrets": [{ "namespace": "argocd", "name": "docker-hub" }] } }),
        variable: "ECO_INCLUDE_SECRETS",
    },
];

/// What all components say of their use.
const USE: &str = "# Then add it to an overlay of the base:\n#   components:\n#     - ../../components/";
const MOVED: &str = "# A `namespace` in a Kustomization moves the Roles here as well. If your operator is in another namespace, set that in an overlay of the\n\
    # base, add this component in an overlay of that overlay, and change the namespace of the `subjects` here.\n\
    # Made from the chart by `UPDATE=1 cargo test --test chart current`.\n";

/// The values of the chart that `deploy/base` is made from, with others.
fn values(more: &[Value]) -> Value {
    let mut values = json!({ "crds": { "keep": false }, "attach": { "pods": { "enabled": false } } });
    for more in more {
        values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    values
}

/// Kind, namespace and name.
fn identity(object: &Value) -> [String; 3] {
    [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]].map(Value::to_string)
}

#[test]
fn the_current_components_grant_what_the_chart_grants() {
    let base = files(&rendered(&values(&[])));
    for component in &COMPONENTS {
        let with = files(&rendered(&values(&[(component.values)()])));
        let folder = format!("deploy/components/{}", component.name);
        std::fs::create_dir_all(root().join(&folder)).unwrap();
        let known: BTreeSet<[String; 3]> = documents(&base["rbac.yaml"]).iter().map(identity).collect();
        let is_new = |text: &&str| !known.contains(&identity(&documents(text)[0]));
        let roles: Vec<&str> = with["rbac.yaml"].split("---\n").filter(is_new).collect();
        assert!(!roles.is_empty(), "{}", component.name);
        same(&format!("{folder}/rbac.yaml"), &roles.join("---\n"));
        let patches = patches(&base, &with, component.variable);
        let kustomization = format!(
            "{}{USE}{}\n{MOVED}apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources:\n  - rbac.yaml\npatches:\n{patches}",
            component.about, component.name
        );
        same(&format!("{folder}/kustomization.yaml"), &kustomization);
    }
}

/// What a component changes in the objects of the base.
fn patches(base: &BTreeMap<String, String>, with: &BTreeMap<String, String>, variable: &str) -> String {
    const NAME: &str = "ecr-credential-operator";
    let patch = |kind: &str, operations: &[String]| {
        let operations: Vec<String> = operations.iter().map(|operation| format!("      {operation}\n")).collect();
        format!("  - target: {{kind: {kind}, name: {NAME}}}\n    patch: |\n{}", operations.concat())
    };
    let both = |file: &str, kind: &str| [base, with].map(|files| object(&documents(&files[file]), kind, NAME).clone());
    let mut patches = String::new();

    let [before, after] = both("rbac.yaml", "ClusterRole");
    let names =
        |role: &Value| -> Vec<String> { serde_json::from_value(role["rules"][0]["resourceNames"].clone()).unwrap() };
    let added: Vec<String> = names(&after).into_iter().filter(|name| !names(&before).contains(name)).collect();
    if !added.is_empty() {
        let add = |name: &String| format!("- {{op: add, path: /rules/0/resourceNames/-, value: {name}}}");
        let check = "- {op: test, path: /rules/0/resources/0, value: secrets}".to_owned();
        patches += &patch("ClusterRole", &[vec![check], added.iter().map(add).collect()].concat());
    }

    let [before, after] = both("validatingadmissionpolicy.yaml", "ValidatingAdmissionPolicy");
    let outputs = |policy: &Value| {
        let variables = policy["spec"]["variables"].as_array().unwrap();
        let at = variables.iter().position(|variable| variable["name"] == "outputs").unwrap();
        (at, variables[at]["expression"].as_str().unwrap().to_owned())
    };
    let (at, expression) = outputs(&after);
    if outputs(&before) != (at, expression.clone()) {
        let check = format!("- {{op: test, path: /spec/variables/{at}/name, value: outputs}}");
        let replace = format!("- {{op: replace, path: /spec/variables/{at}/expression, value: '{expression}'}}");
        patches += &patch("ValidatingAdmissionPolicy", &[check, replace]);
    }

    let value = setting(&documents(&with["deployment.yaml"]), variable).unwrap();
    let add = "- op: add\n        path: /spec/template/spec/containers/0/env/-".to_owned();
    let value = format!("  value: {{name: {variable}, value: \"{value}\"}}");
    patches + &patch("Deployment", &[add, value])
}

/// Old and new versions of kustomize make of base and components what helm makes of the chart.
#[test]
fn the_base_with_its_components_is_the_chart_with_their_values() {
    let all: Vec<&Component> = COMPONENTS.iter().collect();
    for components in [&all[..1], &all[1..], &all[..]] {
        let more: Vec<Value> = components.iter().map(|component| (component.values)()).collect();
        let expected: Vec<Value> = files(&rendered(&values(&more))).values().flat_map(|text| documents(text)).collect();
        let expected = by_identity(expected);
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let up = "../".repeat(folder.path().canonicalize().unwrap().components().count() - 1);
        let place = |path: &str| {
            let path = root().join(path).canonicalize().unwrap();
            format!("{up}{}", path.strip_prefix("/").unwrap().display())
        };
        let names: Vec<String> =
            components.iter().map(|component| place(&format!("deploy/components/{}", component.name))).collect();
        let kustomization = json!({ "resources": [place("deploy/base")], "components": names });
        std::fs::write(folder.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
        for (program, command) in [("kubectl", "kustomize"), ("kustomize", "build")] {
            let found = by_identity(built(program, command, folder.path()));
            let names = |objects: &BTreeMap<[String; 3], Value>| objects.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&found), names(&expected), "{program}");
            for (identity, expected) in &expected {
                assert_eq!(&found[identity], expected, "{program}: {identity:?}");
            }
        }
    }
}

fn built(program: &str, command: &str, folder: &Path) -> Vec<Value> {
    let output = Command::new(get(program)).arg(command).arg(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout).unwrap())
}

/// All objects but the namespace, which helm does not make, and the CustomResourceDefinition, in which kustomize writes numbers in
/// another way. The order of environment variables says nothing, and neither do the line breaks of expressions.
fn by_identity(objects: Vec<Value>) -> BTreeMap<[String; 3], Value> {
    let others = ["Namespace", "CustomResourceDefinition"].map(Value::from);
    let objects = objects.into_iter().filter(|object| !others.contains(&object["kind"]));
    objects
        .map(|mut object| {
            if object["kind"] == "Deployment" {
                let env = &mut object["spec"]["template"]["spec"]["containers"][0]["env"];
                env.as_array_mut().unwrap().sort_by_key(|variable| variable["name"].to_string());
            }
            (identity(&object), in_one_line(object))
        })
        .collect()
}

/// A value with each text in one line.
fn in_one_line(value: Value) -> Value {
    match value {
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        Value::Array(items) => items.into_iter().map(in_one_line).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, in_one_line(value))).collect(),
        other => other,
    }
}
