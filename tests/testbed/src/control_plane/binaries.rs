//! Where the servers' programs come from: envtest's, or one that is built once from the Go module `tests/controlplane`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::child::spawn_tied;

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
    let name = std::env::var("CONTROLPLANE_MODULE").unwrap_or_else(|_| "controlplane".to_owned());
    build_go_module(&name)
}

/// The program that a Go module below `tests/` makes of Kubernetes, built when it is not in the cache yet.
pub fn build_go_module(name: &str) -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let module = manifest
        .join("..")
        .join(name)
        .canonicalize()
        .with_context(|| format!("tests/{name} is missing: restore it from git, or unset CONTROLPLANE_MODULE"))?;
    let cache = manifest.join("../../.cache");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let version = kubernetes_version(&module)?;
    let program = cache.join(format!("{name}-{version}-{}", digest(&module)?));
    if program.is_file() {
        return Ok(program);
    }
    let lock_path = beside(&program, "lock");
    let lock = File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("wait for another build, which holds {}", lock_path.display()))?;
    if !program.is_file() {
        build(&module, &version, &program)?;
    }
    Ok(program)
}

/// `<program>.<suffix>`; the version's dots would confuse `Path::with_extension`.
fn beside(program: &Path, suffix: &str) -> PathBuf {
    let mut name = program.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}

fn kubernetes_version(module: &Path) -> Result<String> {
    let go_mod = fs::read_to_string(module.join("go.mod"))?;
    let version = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    version.map(str::to_owned).context("tests/controlplane/go.mod does not require k8s.io/kubernetes")
}

/// Twelve hexadecimal digits that change with anything that goes into the program.
fn digest(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["main.go", "go.mod", "go.sum"] {
        hash.update(fs::read(module.join(name)).with_context(|| format!("read tests/controlplane/{name}"))?);
    }
    Ok(hex::encode(&hash.finalize()[..6]))
}

fn build(module: &Path, version: &str, program: &Path) -> Result<()> {
    // Built under another name and renamed, so that an interrupted build leaves nothing that looks finished.
    let partial = beside(program, "partial");
    let log_path = beside(program, "log");
    let log = File::create(&log_path)?;
    let mut command = Command::new("go");
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", &link_flags(version), "-o"])
        .arg(&partial)
        .arg(".")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // Tied, so that a build does not go on when its lock is gone with this process.
    let mut go = spawn_tied(command).context(
        "the tests need a Kubernetes control plane: install Go 1.26 (https://go.dev/dl) so that it can be built, or set \
         KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kube-controller-manager",
    )?;
    let status = wait_with_progress(&mut go, module)?;
    if !status.success() {
        bail!(
            "building {} ended with {status}:\n{}",
            module.display(),
            fs::read_to_string(&log_path).unwrap_or_default()
        );
    }
    fs::rename(&partial, program)?;
    Ok(())
}

/// Without these kubectl and helm cannot parse the server's version.
fn link_flags(version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    let package = "k8s.io/component-base/version";
    format!("-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}")
}

fn wait_with_progress(go: &mut std::process::Child, module: &Path) -> Result<std::process::ExitStatus> {
    let started = Instant::now();
    let mut next = Duration::ZERO;
    loop {
        if let Some(status) = go.try_wait()? {
            return Ok(status);
        }
        let elapsed = started.elapsed();
        if elapsed >= next {
            let (minutes, seconds) = (elapsed.as_secs() / 60, elapsed.as_secs() % 60);
            let name = module.file_name().unwrap_or_default().display();
            eprintln!(
                "building Kubernetes' programs of tests/{name}, the first time takes about 7 minutes, \
                 {minutes}m{seconds:02}s so far"
            );
            next = elapsed + Duration::from_secs(15);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
