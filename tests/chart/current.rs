//! Files that are made from others are current. `UPDATE=1 cargo test --test chart current` makes them anew.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::helm::{Helm, chart, read, root};

const CURE: &str = "is not current; run: UPDATE=1 cargo test --test chart current";

const CHARTS: [&str; 2] = ["charts/ecr-credential-operator", "charts/ecr-credential-operator-crds"];

/// Writes or compares a file.
pub(super) fn same(path: &str, wanted: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(path), wanted).unwrap();
    }
    let found = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    assert!(found == wanted, "{path} {CURE}");
}

#[test]
fn the_charts_have_the_bytes_of_the_crd() {
    for chart in CHARTS {
        same(&format!("{chart}/files/ecrcredentials.pullsecrets.dev.yaml"), super::CRD);
    }
}

#[test]
fn the_version_of_the_charts_is_that_of_the_crate() {
    for chart in CHARTS {
        let about: Value = serde_saphyr::from_str(&read(&format!("{chart}/Chart.yaml"))).unwrap();
        assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"), "{chart}");
        assert_eq!(about["version"], env!("CARGO_PKG_VERSION"), "{chart}");
        let main: Value = serde_saphyr::from_str(&read(&format!("{}/Chart.yaml", CHARTS[0]))).unwrap();
        assert_eq!(about["kubeVersion"], main["kubeVersion"], "{chart}");
    }
    let about: Value = serde_saphyr::from_str(&read(&format!("{}/Chart.yaml", CHARTS[0]))).unwrap();
    let images = about["annotations"]["artifacthub.io/images"].as_str().unwrap();
    assert!(images.contains(&format!("ecr-credential-operator:{}\n", env!("CARGO_PKG_VERSION"))), "{images}");
    let examples = about["annotations"]["artifacthub.io/crdsExamples"].as_str().unwrap();
    assert!(serde_saphyr::from_str::<Value>(examples).unwrap().is_array());
}

#[test]
fn the_table_of_values_is_in_the_readme() {
    const BEGIN: &str = "<!-- The table is made from values.yaml: UPDATE=1 cargo test --test chart current -->\n";
    const END: &str = "<!-- The end of the table. -->";
    for (chart, least) in CHARTS.iter().zip([100, 3]) {
        let path = format!("{chart}/README.md");
        let readme = read(&path);
        let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for the table");
        let (_, after) = rest.split_once(END).expect("the README has an end of the table");
        let schema: Value = serde_json::from_str(&read(&format!("{chart}/values.schema.json"))).unwrap();
        let text = read(&format!("{chart}/values.yaml"));
        let values: Value = serde_saphyr::from_str(&text).unwrap();
        let mut rows = vec!["| value | default | description |".to_owned(), "|---|---|---|".to_owned()];
        for (path, text) in descriptions(&text) {
            // A group is described in the schema.
            if schema.pointer(&path.replace('/', "/properties/")).unwrap()["properties"].is_object() {
                continue;
            }
            let default = serde_json::to_string(values.pointer(&path).unwrap()).unwrap();
            let name = path.trim_start_matches('/').replace('/', ".");
            rows.push(format!("| `{name}` | `{}` | {} |", default.replace('|', "\\|"), text.replace('|', "\\|")));
        }
        assert!(rows.len() >= least, "only {} rows", rows.len());
        same(&path, &format!("{before}{BEGIN}\n{}\n\n{END}{after}", rows.join("\n")));
    }
}

/// The schemas are written by hand but for the descriptions, which are those of values.yaml, and the spec of an EcrCredential.
#[test]
fn the_schema_of_the_values_has_their_descriptions_and_the_spec_of_an_ecrcredential() {
    let crd: Value = serde_saphyr::from_str(super::CRD).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for chart in CHARTS {
        let path = format!("{chart}/values.schema.json");
        let mut schema: Value = serde_json::from_str(&read(&path)).unwrap();
        for (value, text) in descriptions(&read(&format!("{chart}/values.yaml"))) {
            let place = schema.pointer_mut(&value.replace('/', "/properties/"));
            place.unwrap_or_else(|| panic!("{path} has no {value}"))["description"] = text.into();
        }
        if let Some(credentials) = schema["properties"].get_mut("credentials") {
            credentials["items"]["properties"]["spec"] = json_schema(spec);
        }
        same(&path, &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
    }
}

/// A schema of the CRD as JSON Schema: what is not in the CRD is an error, not pruned, and null is allowed where the CRD allows it.
fn json_schema(schema: &Value) -> Value {
    let Value::Object(fields) = schema else { return schema.clone() };
    let or_null = |value: &Value| match value {
        _ if schema["nullable"] != true => value.clone(),
        Value::Array(all) => Value::Array([&all[..], &[Value::Null]].concat()),
        one => Value::Array(vec![one.clone(), "null".into()]),
    };
    let mut to = Map::new();
    for (key, value) in fields {
        let value = match key.as_str() {
            "properties" => value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), json_schema(v))).collect(),
            "items" | "additionalProperties" => json_schema(value),
            "type" | "enum" => or_null(value),
            "description" | "required" | "maxItems" | "minItems" | "maxLength" | "maxProperties" | "minimum"
            | "maximum" => value.clone(),
            // Defaults and CEL rules are the API server's.
            "default" | "nullable" => continue,
            _ if key.starts_with("x-kubernetes-") => continue,
            other => panic!("{other} has no translation"),
        };
        to.insert(key.clone(), value);
    }
    if to.contains_key("properties") {
        to.insert("additionalProperties".to_owned(), false.into());
    }
    Value::Object(to)
}

/// The text of each `# -- text` of values.yaml with the pointer to the key under it.
fn descriptions(text: &str) -> Vec<(String, String)> {
    let (mut found, mut parents, mut comment): (Vec<_>, Vec<String>, Option<String>) = (vec![], vec![], None);
    for line in text.lines() {
        let indent = (line.len() - line.trim_start().len()) / 2;
        let line = line.trim();
        if let Some(text) = line.strip_prefix("# -- ") {
            comment = Some(text.to_owned());
        } else if let (Some(so_far), Some(more)) = (&mut comment, line.strip_prefix("# ")) {
            so_far.push_str(&format!(" {more}"));
        } else if let Some((key, _)) = line.split_once(':').filter(|_| !line.starts_with(['#', '-'])) {
            parents.truncate(indent);
            parents.push(key.to_owned());
            found.extend(comment.take().map(|text| (format!("/{}", parents.join("/")), text)));
        }
    }
    found
}

/// Kustomize puts objects into another namespace and gives them a prefix, but what an expression says is text to it: a policy
/// that named the one account would then hold nobody. So this one holds every account of that name.
fn wherever_it_is_put(text: &str) -> String {
    const ONE: &str =
        "request.userInfo.username == 'system:serviceaccount:ecr-credential-operator:ecr-credential-operator'";
    const ANY: &str =
        "request.userInfo.username.matches('^system:serviceaccount:[^:]+:[^:]*ecr-credential-operator[^:]*$')";
    let mut text = text.to_owned();
    // Kustomize puts every object with a namespace into another, so the right on Events, which are in `default`, is cluster-wide here.
    if text.contains("-events") {
        text = text.replace("  namespace: \"default\"\n", "").replace("kind: Role", "kind: ClusterRole");
    }
    if text.contains("kind: ValidatingAdmissionPolicy\n") {
        assert!(text.contains(ONE), "{text}");
        text = text.replace(
            "    - name: by-the-operator\n",
            "    # Kustomize changes no text, so this holds in every namespace and with every prefix.\n    - name: by-the-operator\n",
        );
        text = text.replace(ONE, ANY);
    }
    assert!(!text.contains("serviceaccount:ecr-credential-operator"), "{text}");
    text
}

#[test]
fn the_kustomize_base_is_what_the_chart_renders() {
    // The marks that helm sets on what it manages would be untrue here. Not every cluster serves the kind of the policy that
    // attaches Secrets to pods, so that one is a component.
    let text = rendered(&serde_json::json!({ "crds": { "keep": false }, "attach": { "pods": { "enabled": false } } }));
    let files = files(&text);
    assert!(files.len() >= 6, "{:?}", files.keys());
    let mut kustomization =
        "# Made from the chart by `UPDATE=1 cargo test --test chart current`, the namespace excepted.\n\
        apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nconfigurations:\n  - kustomizeconfig.yaml\nresources:\n  - namespace.yaml\n"
            .to_owned();
    for (name, text) in &files {
        same(&format!("deploy/base/{name}"), text);
        kustomization.push_str(&format!("  - {name}\n"));
    }
    same("deploy/base/kustomization.yaml", &kustomization);
    let known = |name: &str| {
        files.contains_key(name) || ["kustomization.yaml", "kustomizeconfig.yaml", "namespace.yaml"].contains(&name)
    };
    for entry in std::fs::read_dir(root().join("deploy/base")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(known(&name), "deploy/base/{name} is made from nothing: delete it");
    }
}

#[test]
fn the_kustomize_component_is_the_policy_that_the_chart_renders() {
    const NAME: &str = "mutatingadmissionpolicy.yaml";
    let files = files(&rendered(&serde_json::json!({ "attach": { "pods": { "enabled": true } } })));
    same(&format!("deploy/components/attach-pods/{NAME}"), &files[NAME]);
}

pub(super) fn rendered(values: &Value) -> String {
    let helm = Helm::offline("v3");
    let values = helm.values(values);
    helm.run(&[
        "template",
        "ecr-credential-operator",
        &chart().to_string_lossy(),
        "--namespace",
        "ecr-credential-operator",
        "--skip-tests",
        "--kube-version",
        "1.36.0",
        "--values",
        &values.to_string_lossy(),
    ])
    .unwrap()
}

/// The rendered templates by file name, without the marks of helm.
pub(super) fn files(text: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for part in text.split("---\n# Source: ").skip(1) {
        let (source, body) = part.split_once('\n').unwrap();
        let name = Path::new(source).file_name().unwrap().to_string_lossy().into_owned();
        let foreign = |line: &str| {
            line.trim_start().starts_with("helm.sh/chart:") || line.trim() == "app.kubernetes.io/managed-by: Helm"
        };
        let kept: Vec<&str> = body.lines().filter(|line| !foreign(line) && *line != "---").collect();
        let file = files.entry(name).or_default();
        if !file.is_empty() {
            file.push_str("---\n");
        }
        file.push_str(wherever_it_is_put(kept.join("\n").trim()).as_str());
        file.push('\n');
    }
    files
}
