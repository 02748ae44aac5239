//! A real node in namespaces of our own: containerd, runc, kubelet and the scheduler, and a private registry that it pulls from.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use kube::runtime::watcher;

use crate::control_plane::{ControlPlane, Server};

pub mod gateway;
pub mod isolation;
pub mod kubelet;
pub mod measure;
mod names;
pub mod registry;
pub mod runtime;
pub mod tools;

/// The node's name.
pub const NAME: &str = "node";

/// The node's address, which is the bridge that its pods hang on. It exists in the namespace of the run only.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// How long something on the node may take that takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Why a real node cannot run on this machine at all, in one sentence.
#[derive(Debug)]
pub struct Unsupported(pub String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsupported {}

/// A running node. Dropping it ends containerd, kubelet and the scheduler; its pods end with the run's namespaces.
pub struct Node {
    servers: Vec<Server>,
    /// The container runtime, to give it images.
    pub runtime: runtime::Runtime,
}

impl Node {
    /// Starts the node and waits until it is ready for pods.
    pub async fn start(dir: &Path, cgroup: &str, tools: &tools::Tools, plane: &ControlPlane) -> Result<Node> {
        let scheduler = kubelet::start_scheduler(dir, tools, plane)?;
        let (runtime, containerd) = runtime::start(dir, tools)?;
        let mut node = Node { servers: vec![scheduler, containerd], runtime };
        let started = node.finish(dir, cgroup, tools, plane).await;
        started.map_err(|error| error.context(node.log_tails()))?;
        Ok(node)
    }

    async fn finish(&mut self, dir: &Path, cgroup: &str, tools: &tools::Tools, plane: &ControlPlane) -> Result<()> {
        self.runtime.until_serving().await?;
        self.runtime.import(&tools.pause)?;
        self.servers.push(kubelet::start(dir, cgroup, tools, plane)?);
        let nodes: Api<NodeObject> = Api::all(plane.admin_client()?);
        until(nodes, NAME, "ready", is_ready).await?;
        Ok(())
    }

    /// The ends of the servers' logs, for when something went wrong.
    pub fn log_tails(&self) -> String {
        let tails = self
            .servers
            .iter()
            .map(|server| format!("the end of {}:\n{}", server.log().display(), tail(&server.log_tail(), 15)));
        tails.collect::<Vec<_>>().join("\n\n")
    }
}

/// Everything that the containers of a namespace's pods have written to standard output and standard error, also those
/// that are gone.
pub fn pod_logs(namespace: &str) -> Result<String> {
    let mut text = String::new();
    for pod in fs::read_dir("/var/log/pods")?.flatten() {
        if pod.file_name().to_string_lossy().starts_with(&format!("{namespace}_")) {
            collect(&pod.path(), &mut text)?;
        }
    }
    Ok(text)
}

/// The last lines of a text, the overlong ones cut.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(400).collect()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn collect(path: &Path, text: &mut String) -> io::Result<()> {
    let read = if path.is_file() {
        fs::read(path).map(|bytes| text.push_str(&String::from_utf8_lossy(&bytes)))
    } else {
        fs::read_dir(path).and_then(|entries| entries.flatten().try_for_each(|entry| collect(&entry.path(), text)))
    };
    match read {
        // The kubelet removes the logs of pods that are gone.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        read => read,
    }
}

/// Waits on a watch until an object is there and a test holds, and says what was last seen if it never does.
pub async fn until<K>(api: Api<K>, name: &str, what: &str, test: impl Fn(&K) -> bool) -> Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher::watch_object(api, name));
    let mut last = None;
    let search = async {
        while let Some(item) = stream.next().await {
            let Ok(Some(object)) = item else { continue };
            if test(&object) {
                return Some(object);
            }
            last = Some(object);
        }
        None
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(Some(found)) => Ok(found),
        _ => {
            let seen = last.and_then(|object| serde_json::to_value(object).ok());
            let status = seen.map(|object| object["status"].to_string());
            bail!("waited {PATIENCE:?} in vain for {name} to be {what}; its status is {}", status.unwrap_or_default())
        }
    }
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    ready && taints.is_none_or(Vec::is_empty)
}
