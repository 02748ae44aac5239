//! The programs and images that a node needs, fetched and made while the machine's own network is still there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::Unsupported;
use crate::{control_plane, tools};

/// They are unpacked into the cache, not installed: the machine may run a containerd of its own.
const PACKAGES: [&str; 10] = [
    "buildah",
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "docker-registry",
    // For buildah, by the names of Debian 12.
    "libassuan0",
    "libdevmapper1.02.1",
    "libgpgme11",
    "libseccomp2",
    "runc",
];

/// The pause image's name, in the container runtime's configuration too.
pub const PAUSE: &str = "localhost/pause:1";

/// What was prepared, by path.
pub struct Tools {
    debian: PathBuf,
    /// The program that is kubelet and the scheduler.
    pub node: PathBuf,
    /// helm.
    pub helm: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// The archive of the image that holds a pod's namespaces open.
    pub pause: PathBuf,
}

impl Tools {
    /// Fetches Debian's programs, where that has not been done.
    pub fn fetch(say: impl Fn(&str)) -> Result<()> {
        debian_packages(&cache()?, say).map(drop)
    }

    /// Fetches and builds what is not in the cache yet, the control plane's programs included.
    pub fn prepare(say: impl Fn(&str)) -> Result<Tools> {
        let cache = cache()?;
        control_plane::prepare()?;
        let node = tools::get("node")?;
        let debian = debian_packages(&cache, &say)?;
        // The one that the chart's tests use too.
        let helm = tools::get("helm-v3")?;
        let kubectl = tools::get("kubectl")?;
        let mut tools = Tools { debian, node, helm, kubectl, pause: cache.join("pause.tar") };
        tools.pause = tools.busybox_image(PAUSE, &["sleep", "2147483647"], &[], &cache)?;
        Ok(tools)
    }

    /// A program of Debian's packages.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.bin_dirs().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.with_context(|| format!("Debian's packages {} hold no program {name}", PACKAGES.join(", ")))
    }

    /// Where programs look for each other.
    pub fn path(&self) -> Result<std::ffi::OsString> {
        let machine = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(self.bin_dirs().into_iter().chain(std::env::split_paths(&machine)))?)
    }

    /// Where the shared objects are that runc and buildah need and this machine may lack.
    pub fn library_path(&self) -> Result<PathBuf> {
        let libraries = fs::read_dir(self.debian.join("usr/lib"))?.flatten().map(|entry| entry.path());
        let triplet = |path: &PathBuf| path.to_string_lossy().contains("-linux-gnu");
        libraries.into_iter().find(triplet).context("Debian's libseccomp2 holds no library")
    }

    /// Where the network plugins are.
    pub fn cni_dir(&self) -> PathBuf {
        self.debian.join("usr/lib/cni")
    }

    /// Makes an image of busybox that runs one of its commands, and has `names` for others of them.
    pub fn busybox_image(&self, name: &str, command: &[&str], names: &[&str], dir: &Path) -> Result<PathBuf> {
        let output = dir.join(format!("{}.tar", name.replace(['/', ':'], "-")));
        let mut python = Command::new("python3");
        python.arg(repository().join("hack/image.py")).args(["--static", "--name", name, "--program"]);
        python.arg(self.program("busybox")?).arg("--output").arg(&output);
        // Images of different names share no layer: each has to be pulled whole.
        python.env(
            "SOURCE_DATE_EPOCH",
            name.bytes().fold(1, |sum, byte| sum * 31 % 1_000_000_007 + u64::from(byte)).to_string(),
        );
        for argument in command {
            python.args(["--argument", argument]);
        }
        for name in names {
            python.args(["--link", name]);
        }
        let made = python.output().context("images are made by hack/image.py: install python3")?;
        ensure!(made.status.success(), "hack/image.py: {}", String::from_utf8_lossy(&made.stderr));
        Ok(output)
    }

    fn bin_dirs(&self) -> Vec<PathBuf> {
        ["usr/sbin", "usr/bin", "sbin", "bin"].map(|dir| self.debian.join(dir)).to_vec()
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn cache() -> Result<PathBuf> {
    let cache = repository().join(".cache");
    fs::create_dir_all(&cache)?;
    Ok(cache)
}

fn debian_packages(cache: &Path, say: impl Fn(&str)) -> Result<PathBuf> {
    let digest = hex::encode(&Sha256::digest(PACKAGES.join(" "))[..6]);
    let done = cache.join(format!("debian-{digest}"));
    if done.is_dir() {
        return Ok(done);
    }
    say(&format!("fetching Debian's packages {}", PACKAGES.join(", ")));
    let archives = tempfile::tempdir_in(cache)?;
    if download(archives.path()).is_err() {
        // The lists of a new machine are empty or old.
        let _ = Command::new("apt-get").args(["update", "-q"]).output();
        download(archives.path()).map_err(|why| {
            Unsupported(format!(
                "a node needs Debian's packages {}, which are not to be had here: {why:#}",
                PACKAGES.join(", ")
            ))
        })?;
    }
    let partial = tempfile::tempdir_in(cache)?;
    for archive in
        fs::read_dir(archives.path())?.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "deb"))
    {
        let unpacked = Command::new("dpkg-deb").arg("-x").arg(archive.path()).arg(partial.path()).output()?;
        ensure!(unpacked.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&unpacked.stderr));
    }
    fs::rename(partial.keep(), &done)?;
    Ok(done)
}

fn download(into: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["download", "-q", "-o", "APT::Sandbox::User=root"]).args(PACKAGES).current_dir(into);
    let output = apt.output().context("there is no apt-get")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}", said.lines().last().unwrap_or("apt-get download failed"));
    Ok(())
}
