//! Where the servers' programs come from: envtest's, or one that is built once from the Go module `tests/controlplane`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tools;

const PROGRAMS: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];

/// The programs of one control plane.
#[derive(Clone, Debug)]
pub(super) enum Binaries {
    /// A directory that holds each program under its own name.
    Separate(PathBuf),
    /// One program that takes the name as its first argument.
    MultiCall(PathBuf),
}

/// Builds what a control plane needs, where that has not been done: starting one then needs no network.
pub fn prepare() -> Result<()> {
    Binaries::find().map(drop)
}

impl Binaries {
    /// Those of `KUBEBUILDER_ASSETS` if it is set, else ours, built when they are not in the cache yet.
    pub(super) fn find() -> Result<Binaries> {
        match std::env::var_os("KUBEBUILDER_ASSETS") {
            Some(dir) if !dir.is_empty() => Self::from_assets(Path::new(&dir)),
            _ => Ok(Binaries::MultiCall(build_once()?)),
        }
    }

    pub(super) fn command(&self, program: &str) -> Command {
        match self {
            Binaries::Separate(dir) => Command::new(dir.join(program)),
            Binaries::MultiCall(path) => {
                let mut command = Command::new(path);
                command.arg(program);
                command
            }
        }
    }

    fn from_assets(dir: &Path) -> Result<Binaries> {
        let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !dir.join(program).is_file()).collect();
        if missing.is_empty() {
            return Ok(Binaries::Separate(dir.to_owned()));
        }
        // setup-envtest ships no controller manager, and without one nothing collects garbage or deletes namespaces.
        bail!(
            "KUBEBUILDER_ASSETS={} has no {}: put it there, or unset \
             KUBEBUILDER_ASSETS to have the control plane built by Go",
            dir.display(),
            missing.join(", ")
        )
    }
}

fn build_once() -> Result<PathBuf> {
    // Another Kubernetes version is another Go module beside the first.
    let module = std::env::var("CONTROLPLANE_MODULE").unwrap_or_else(|_| "controlplane".to_owned());
    tools::get(&module).context("the tests need a Kubernetes control plane")
}
