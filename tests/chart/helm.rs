//! The real helm, and the API server's opinion of what it renders.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::control_plane::ControlPlane;

/// The root of the project.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The chart's folder.
pub(crate) fn chart() -> PathBuf {
    root().join("charts/ecr-credential-operator")
}

/// Reads YAML of the version that helm reads, in which `y` and `n` are texts.
pub(crate) fn yaml<T: DeserializeOwned>(text: &str) -> T {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).unwrap()
}

/// The text of a file of the project.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What `tests/tools/get.sh` gives.
pub(crate) fn get(what: &str) -> PathBuf {
    testbed::tools::get(what).unwrap()
}

/// A helm of one major version, with or without a cluster.
#[derive(Clone)]
pub(crate) struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Helm {
    /// Helm without a cluster.
    pub(crate) fn offline(version: &str) -> Self {
        let home = std::env::temp_dir().join(format!("helm-{version}-{}", std::process::id()));
        Self { program: get(&format!("helm-{version}")), kubeconfig: PathBuf::from("/nonexistent"), home }
    }

    /// Helm as the administrator of a cluster.
    pub(crate) fn on(plane: &ControlPlane, version: &str) -> Self {
        Self {
            kubeconfig: plane.admin_kubeconfig(),
            home: plane.dir().join(format!("helm-{version}")),
            ..Self::offline(version)
        }
    }

    /// Runs it; the error is what it says.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            // Its caches too belong to one control plane: addresses are used again.
            .env("HOME", &self.home)
            .env("HELM_CACHE_HOME", &self.home)
            .env("HELM_CONFIG_HOME", &self.home)
            .env("HELM_DATA_HOME", &self.home)
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(out.into_owned()) } else { Err(format!("helm {args:?}: {out}{err}")) }
    }

    /// Renders the chart for a namespace and a Kubernetes version.
    pub(crate) fn template(&self, namespace: &str, kubernetes: &str, values: &Value) -> Result<Vec<Value>, String> {
        self.template_as("ecr-credential-operator", namespace, kubernetes, values)
    }

    /// The same, for a release of another name.
    pub(crate) fn template_as(
        &self,
        release: &str,
        namespace: &str,
        kubernetes: &str,
        values: &Value,
    ) -> Result<Vec<Value>, String> {
        let file = self.values(values);
        let chart = chart();
        let text = self.run(&[
            "template",
            release,
            &chart.to_string_lossy(),
            "--namespace",
            namespace,
            "--kube-version",
            kubernetes,
            "--values",
            &file.to_string_lossy(),
        ])?;
        Ok(documents(&text))
    }

    /// Writes values into a file of their own.
    pub(crate) fn values(&self, values: &Value) -> PathBuf {
        std::fs::create_dir_all(&self.home).unwrap();
        let file = tempfile_in(&self.home);
        std::fs::write(&file, serde_json::to_vec(values).unwrap()).unwrap();
        file
    }
}

fn tempfile_in(folder: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    folder.join(format!("values-{}.json", COUNTER.fetch_add(1, Ordering::Relaxed)))
}

/// The documents of a YAML text, without empty ones. A key that is there twice is an error.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|why| panic!("{why} in:\n{text}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The one object of a kind and, if given, a name.
pub(crate) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|o| o["kind"] == kind && (name.is_empty() || o["metadata"]["name"] == name));
    let first = found.next().unwrap_or_else(|| panic!("there is no {kind} {name}"));
    assert!(found.next().is_none(), "there is more than one {kind} {name}");
    first
}

/// Applies an object, for good or only to hear what the API server says; unknown fields are errors.
pub(crate) async fn apply(client: &Client, object: &Value, dry_run: bool) -> Result<Value, String> {
    let mut object = object.clone();
    if dry_run && object["kind"] == "Pod" {
        // The pod as such: its ServiceAccount is not there in a dry run.
        object["spec"]["serviceAccountName"] = json!("default");
    }
    let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let uri = format!("{}?fieldManager=chart-test&force=true&fieldValidation=Strict{dry_run}", path_of(&object));
    let request = http::Request::patch(uri).header("Content-Type", "application/apply-patch+yaml");
    let answer = client.request::<Value>(request.body(serde_json::to_vec(&object).unwrap()).unwrap()).await;
    answer.map_err(|error| match error {
        Error::Api(status) => format!("{kind} {name}: {}", status.message),
        other => format!("{kind} {name}: {other}"),
    })
}

/// The version of a control plane: what is rendered for it must be accepted by it.
pub(crate) async fn version_of(client: &Client) -> String {
    client.apiserver_version().await.unwrap().git_version.trim_start_matches('v').to_owned()
}

/// The path of an object.
pub(crate) fn path_of(object: &Value) -> String {
    let (kind, version) = (object["kind"].as_str().unwrap(), object["apiVersion"].as_str().unwrap());
    let group = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let kind = kind.to_lowercase();
    let plural = kind.strip_suffix('y').map_or(format!("{kind}s"), |stem| format!("{stem}ies"));
    let namespace = object["metadata"]["namespace"].as_str().map_or(String::new(), |n| format!("/namespaces/{n}"));
    format!("{group}{namespace}/{plural}/{}", object["metadata"]["name"].as_str().unwrap())
}

/// Creates a namespace with the Restricted Pod Security Standard, and waits until pods can be made in it.
pub(crate) async fn namespace(client: &Client, name: &str) {
    let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap();
    let created = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
    assert!(created.is_ok() || matches!(&created, Err(Error::Api(s)) if s.is_already_exists()), "{created:?}");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    let there = |account: Option<&ServiceAccount>| account.is_some();
    let waiting = kube::runtime::wait::await_condition(accounts, "default", there);
    tokio::time::timeout(testbed::bed::PATIENCE, waiting).await.expect("a ServiceAccount default").unwrap();
}

/// The value of an environment variable of the operator.
pub(crate) fn setting(objects: &[Value], name: &str) -> Option<String> {
    let env = &object(objects, "Deployment", "")["spec"]["template"]["spec"]["containers"][0]["env"];
    let found = env.as_array().unwrap().iter().find(|entry| entry["name"] == name)?;
    found["value"].as_str().map(str::to_owned)
}
