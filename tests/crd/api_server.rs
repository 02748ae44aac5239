//! Ways to ask the API server what it thinks of an EcrCredential.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Client, Error};
use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, shared};

/// The shared control plane with the CRD of this build.
pub(crate) async fn plane() -> &'static ControlPlane {
    let plane = shared().await.unwrap();
    plane.install(&[definition()]).await.unwrap();
    plane
}

pub(crate) fn definition() -> CustomResourceDefinition {
    serde_saphyr::from_str(&ecr_credential_operator::crd::yaml().unwrap()).unwrap()
}

/// The schema of one version, as JSON.
pub(crate) fn schema() -> Value {
    let crd = serde_json::to_value(definition()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

pub(crate) fn credential(spec: Value) -> Value {
    json!({ "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": "x" }, "spec": spec })
}

/// The least that is accepted.
pub(crate) fn least() -> Value {
    json!({ "registries": [{ "private": {} }], "namespaces": { "names": ["a"] } })
}

/// Why the API server refuses an object: its message, and each cause as a person reads it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) causes: Vec<String>,
}

/// Creates the object as kubectl would with `--dry-run=server`: unknown fields are errors.
pub(crate) async fn try_create(client: &Client, object: &Value) -> Result<Value, Refusal> {
    create(client, object, "?dryRun=All&fieldValidation=Strict").await
}

/// Creates the object for good.
pub(crate) async fn create_for_good(client: &Client, object: &Value) -> Result<Value, Refusal> {
    create(client, object, "?fieldValidation=Strict").await
}

async fn create(client: &Client, object: &Value, query: &str) -> Result<Value, Refusal> {
    let uri = format!("/apis/pullsecrets.dev/v1alpha1/ecrcredentials{query}");
    let body = serde_json::to_vec(object).unwrap();
    let request = http::Request::post(uri).header("Content-Type", "application/json").body(body).unwrap();
    match client.request::<Value>(request).await {
        Ok(created) => Ok(created),
        Err(Error::Api(status)) => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            // Those of no field only say that there may be more to say, unless they are of the object as a whole.
            let noise = ["some validation rules were not checked", "Checked value must be"];
            let real = causes.filter(|cause| !noise.iter().any(|noise| cause.message.contains(noise)));
            Err(Refusal {
                message: status.message.clone(),
                causes: real.map(|cause| format!("{}: {}", cause.field, cause.message)).collect(),
            })
        }
        Err(error) => panic!("the API server could not be asked: {error}"),
    }
}

/// Sets a value deep in an object, making objects on the way.
pub(crate) fn set(object: &mut Value, path: &str, value: Value) {
    let mut here = object;
    for step in path.split('/') {
        here = match step.parse::<usize>() {
            Ok(index) => &mut here[index],
            Err(_) => &mut here[step],
        };
    }
    *here = value;
}
