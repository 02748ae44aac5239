//! containerd with runc and a network of bridged pods, configured to find the ECR host at our registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::isolation::BRIDGE;
use super::tools::{PAUSE, Tools};
use super::{ADDRESS, PATIENCE};
use crate::control_plane::Server;

/// containerd's socket; `/run` is the namespace's own.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// Linux' number for the right to lower a process' out-of-memory score.
const CAP_SYS_RESOURCE: u32 = 24;

/// A running containerd.
pub struct Runtime {
    ctr: PathBuf,
    certs_d: PathBuf,
}

/// Starts containerd; it serves a moment later.
pub(super) fn start(dir: &Path, tools: &Tools) -> Result<(Runtime, Server)> {
    let (cni, certs_d, config) = (dir.join("cni"), dir.join("certs.d"), dir.join("containerd.toml"));
    fs::create_dir_all(&cni)?;
    fs::create_dir_all(&certs_d)?;
    fs::write(cni.join("10-bridge.conflist"), network())?;
    fs::write(&config, configuration(&cni, &certs_d, tools)?)?;
    let mut command = Command::new(tools.program("containerd")?);
    command.arg("--config").arg(&config).env("PATH", tools.path()?).env("LD_LIBRARY_PATH", tools.library_path()?);
    let server = Server::start("containerd", command, dir)?;
    Ok((Runtime { ctr: tools.program("ctr")?, certs_d }, server))
}

impl Runtime {
    /// Waits until it answers.
    pub async fn until_serving(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.ctr(&["version"]) {
            ensure!(Instant::now() < deadline, "containerd does not serve: {error:#}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Gives it the images of an archive, as if they were pulled.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["--namespace", "k8s.io", "images", "import", &archive.to_string_lossy()])
    }

    /// From now on `host` is served by `url`, for pulls alone; the name of an image, and so of its login, stays.
    pub fn alias(&self, host: &str, url: &str) -> Result<()> {
        let dir = self.certs_d.join(host);
        fs::create_dir_all(&dir)?;
        // Without `server` a pull that is refused here would go on to the real host.
        let alias = format!("server = \"{url}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        Ok(fs::write(dir.join("hosts.toml"), alias)?)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let output =
            Command::new(&self.ctr).args(["--address", SOCKET]).args(arguments).output().context("start ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {}: {}", arguments.join(" "), said.trim());
        Ok(())
    }
}

fn configuration(cni: &Path, certs_d: &Path, tools: &Tools) -> Result<String> {
    let (cni, certs_d, bin_dir) = (cni.display(), certs_d.display(), tools.cni_dir().canonicalize()?);
    let (bin_dir, runc) = (bin_dir.display(), tools.program("runc")?.canonicalize()?);
    let (runc, restrict) = (runc.display(), !has_capability(CAP_SYS_RESOURCE)?);
    Ok(format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = {restrict}
# A profile would be loaded into the machine's kernel.
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs_d}"
"#
    ))
}

fn network() -> String {
    let ranges =
        serde_json::json!([[{ "subnet": "10.88.0.0/16", "rangeStart": "10.88.1.0", "gateway": ADDRESS.to_string() }]]);
    let bridge = serde_json::json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": true,
        "ipam": { "type": "host-local", "ranges": ranges, "dataDir": "/run/cni-addresses" },
    });
    serde_json::json!({ "cniVersion": "0.4.0", "name": "bridge", "plugins": [bridge] }).to_string()
}

fn has_capability(number: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in /proc/self/status")?;
    Ok(u64::from_str_radix(mask.trim(), 16)? & (1 << number) != 0)
}
