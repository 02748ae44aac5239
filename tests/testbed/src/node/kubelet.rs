//! The command lines and the configuration of kubelet and the scheduler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::tools::Tools;
use super::{ADDRESS, NAME, names, runtime};
use crate::control_plane::{ControlPlane, Server};

pub(super) fn start_scheduler(dir: &Path, tools: &Tools, plane: &ControlPlane) -> Result<Server> {
    let mut command = Command::new(&tools.node);
    command
        .arg("kube-scheduler")
        .arg(format!("--kubeconfig={}", plane.admin_kubeconfig().display()))
        .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
    Server::start("kube-scheduler", command, dir)
}

/// Where kubelet looks for the manifests of static pods.
pub fn static_pods(dir: &Path) -> PathBuf {
    dir.join("static-pods")
}

pub(super) fn start(dir: &Path, cgroup: &str, tools: &Tools, plane: &ControlPlane) -> Result<Server> {
    let config = dir.join("kubelet.yaml");
    fs::create_dir(static_pods(dir))?;
    fs::write(&config, configuration(dir, cgroup)?)?;
    let mut command = Command::new(&tools.node);
    command
        .arg("kubelet")
        .arg(format!("--config={}", config.display()))
        .arg(format!("--kubeconfig={}", kubeconfig(dir, plane)?.display()))
        .arg(format!("--hostname-override={NAME}"))
        .arg(format!("--node-ip={ADDRESS}"))
        .args(["--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki"])
        .env("PATH", tools.path()?);
    Server::start("kubelet", command, dir)
}

/// JSON is YAML too.
fn configuration(dir: &Path, cgroup: &str) -> Result<String> {
    let resolv_conf = dir.join("resolv.conf");
    // Names of the world have no service here, and need none: all endpoints outside of the cluster are addresses.
    fs::write(&resolv_conf, "options timeout:1 attempts:1\n")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS.to_string(),
        // Nobody but this run reaches the namespace's addresses.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", runtime::SOCKET),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "staticPodPath": static_pods(dir),
        "failCgroupV1": false,
        "failSwapOn": false,
        "resolvConf": resolv_conf,
        "clusterDNS": [names::ADDRESS],
        "clusterDomain": names::DOMAIN,
        // No pod is to be driven away, nor an image taken, because the machine is full.
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "oomScoreAdj": 0,
        "serializeImagePulls": false,
    });
    Ok(config.to_string())
}

/// kubelet acts as a node and no more: the API server's Node authorizer shows it the Secrets of its own pods only.
fn kubeconfig(dir: &Path, plane: &ControlPlane) -> Result<PathBuf> {
    let text = fs::read_to_string(plane.admin_kubeconfig())?;
    let mut config: serde_json::Value = serde_saphyr::from_str(&text)?;
    config["users"][0]["user"]["as"] = json!(format!("system:node:{NAME}"));
    config["users"][0]["user"]["as-groups"] = json!(["system:nodes"]);
    let path = dir.join("kubelet.kubeconfig");
    fs::write(&path, config.to_string())?;
    Ok(path)
}
