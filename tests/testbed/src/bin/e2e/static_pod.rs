//! A static pod: the node runs it without the API server, which gets to know its mirror pod only.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use serde_json::json;
use testbed::node::kubelet::static_pods;
use testbed::node::{NAME, until};

use crate::cluster::{Cluster, step};
use crate::story::{HOST, TEST_IMAGE, pull_secrets};

pub(crate) async fn run(cluster: &Cluster) -> Result<()> {
    step("a static pod in a target namespace: kubelet creates its mirror pod once, which names no Secret");
    cluster.release("static").await?;
    // The first container ends and is started again: each time, kubelet looks at the mirror pod.
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "edge", "namespace": "dock" },
        "spec": {
            "containers": [
                { "name": "local", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1"] },
                { "name": "private", "image": format!("{HOST}/app:static"), "imagePullPolicy": "Always" },
            ],
            "terminationGracePeriodSeconds": 0,
        },
    });
    let manifest = static_pods(&cluster.dir).join("edge.json");
    // kubelet must not read half of it.
    let partial = cluster.dir.join("edge.json");
    std::fs::write(&partial, pod.to_string())?;
    std::fs::rename(partial, &manifest)?;
    let (mirror, pods) = (format!("edge-{NAME}"), cluster.pods("dock")?);
    let created = until(pods.clone(), &mirror, "created", |_| true).await?;
    let tried = |pod: &Pod| {
        let waits = container(pod, "private").and_then(|status| status.state.as_ref()?.waiting.as_ref());
        container(pod, "local").is_some_and(|local| local.restart_count > 0)
            && waits.is_some_and(|waiting| waiting.reason.as_deref().is_some_and(|why| why.contains("Image")))
    };
    let pod = until(pods, &mirror, "with a container restarted, and one without its image", tried).await?;
    ensure!(pod.uid() == created.uid(), "the mirror pod was created again");
    ensure!(pull_secrets(&pod).is_empty(), "the mirror pod names {:?}", pull_secrets(&pod));
    let visits = cluster.registry.visits();
    let asked: Vec<u16> =
        visits.iter().filter(|visit| visit.request.ends_with("/manifests/static")).map(|visit| visit.status).collect();
    ensure!(!asked.is_empty() && asked.iter().all(|status| *status == 401), "the registry answered {asked:?}");
    let image = container(&pod, "private").context("a status")?.image.as_str();
    println!("   its container with an image of the node runs; {image} is refused, as no Secret reaches a static pod");
    Ok(std::fs::remove_file(manifest)?)
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|status| status.name == name)
}
