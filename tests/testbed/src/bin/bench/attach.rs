//! What the policy that attaches Secrets costs each new pod: a dry-run create, with more and more `EcrCredentials`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Args;
use crate::cluster::Cluster;

const POLICY: &str = "deploy/components/attach-pods/mutatingadmissionpolicy.yaml";
const GROUP: &str = "admissionregistration.k8s.io";
const HOST: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

/// How often each create is timed.
const SAMPLES: usize = 100;

/// How many `EcrCredentials` there are, and how many of them ask for the policy.
const STEPS: [(usize, usize); 4] = [(1, 1), (10, 10), (100, 1), (100, 100)];

/// How long the API server may take to see a policy or an `EcrCredential`.
const PATIENCE: Duration = Duration::from_secs(60);

/// One row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Attach {
    /// How many `EcrCredentials`; none for no policy.
    pub credentials: usize,
    /// How many of them have `attachTo.pods: MatchingImages`.
    pub asking: usize,
    /// Times of a dry-run create of a pod with a matching image, in milliseconds.
    pub matching_ms: Vec<f64>,
    /// The same with another image.
    pub other_ms: Vec<f64>,
}

/// Measures all steps on one control plane.
pub async fn measure(args: &Args) -> Result<Vec<Attach>> {
    let cluster = Cluster::start(&args.crd).await?;
    let mut rows = vec![row(&cluster, 0, 0).await?];
    for mut object in serde_saphyr::from_multiple::<DynamicObject>(&std::fs::read_to_string(POLICY)?)? {
        // Each EcrCredential has a Secret of its own here, so that each costs a patch.
        if let Some(conditions) = object.data.pointer_mut("/spec/matchConditions").and_then(|list| list.as_array_mut())
        {
            conditions.retain(|condition| condition["name"] != "allowed-secret");
        }
        let kind = object.types.as_ref().context("a kind")?.kind.clone();
        let plural = if kind.ends_with('y') { "mutatingadmissionpolicies" } else { "mutatingadmissionpolicybindings" };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", &kind), plural);
        Api::<DynamicObject>::all_with(cluster.admin.clone(), &resource)
            .create(&PostParams::default(), &object)
            .await?;
    }
    let mut made = 0;
    for (credentials, asking) in STEPS {
        for number in made..credentials {
            credential(&cluster, number).await?;
        }
        made = credentials;
        for number in 0..credentials {
            ask(&cluster, number, number < asking).await?;
        }
        until(&cluster, asking).await?;
        rows.push(row(&cluster, credentials, asking).await?);
    }
    Ok(rows)
}

async fn credential(cluster: &Cluster, number: usize) -> Result<()> {
    let name = format!("c{number}");
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": name },
        "spec": { "registries": [{ "private": {} }], "secret": { "name": name }, "namespaces": { "names": ["*"], "exclude": ["kube-*"] } },
    }))?;
    cluster.credentials().create(&PostParams::default(), &object).await?;
    let status = json!({ "status": { "registries": [{ "hosts": [HOST] }] } });
    cluster.credentials().patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

async fn ask(cluster: &Cluster, number: usize, asks: bool) -> Result<()> {
    let pods = if asks { "MatchingImages" } else { "Never" };
    let patch = json!({ "spec": { "attachTo": { "pods": pods } } });
    cluster.credentials().patch(&format!("c{number}"), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Waits until a pod gets as many Secrets as it should.
async fn until(cluster: &Cluster, asking: usize) -> Result<()> {
    let begun = Instant::now();
    while create(cluster, HOST).await? != asking {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the policy does not attach {asking} Secrets");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn row(cluster: &Cluster, credentials: usize, asking: usize) -> Result<Attach> {
    eprintln!("{credentials} EcrCredentials, {asking} of which attach their Secret to pods");
    let mut row = Attach { credentials, asking, ..Attach::default() };
    for _ in 0..SAMPLES {
        for (host, times) in [(HOST, &mut row.matching_ms), ("docker.io", &mut row.other_ms)] {
            let begun = Instant::now();
            create(cluster, host).await?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok(row)
}

/// Creates a pod without storing it; returns how many pull secrets it has then.
async fn create(cluster: &Cluster, host: &str) -> Result<usize> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "default");
    let containers = json!([{ "name": "c", "image": format!("{host}/app:1") }]);
    let pod = serde_json::from_value(json!({ "metadata": { "name": "x" }, "spec": { "containers": containers } }))?;
    let created = pods.create(&PostParams { dry_run: true, field_manager: None }, &pod).await?;
    Ok(created.spec.and_then(|spec| spec.image_pull_secrets).unwrap_or_default().len())
}
