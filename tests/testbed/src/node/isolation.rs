//! Namespaces, a directory and a cgroup that are the run's own, so that nothing of the machine is changed and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

use super::{ADDRESS, Unsupported, tools::Tools};
use crate::control_plane::spawn_tied;

/// The bridge between the node and its pods.
pub const BRIDGE: &str = "eco0";

const NAMESPACES: [&str; 5] = ["--net", "--mount", "--pid", "--fork", "--mount-proc"];

/// The values that kubelet wants (component-helpers, node/util/sysctl) and would otherwise set on the whole machine.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Says why a node cannot run here, if it cannot.
pub fn check() -> Result<()> {
    let no = |why: &str| Err(Unsupported(why.to_owned()).into());
    if !rustix::process::geteuid().is_root() {
        return no("a node needs root, for namespaces, mounts and cgroups: run it as root");
    }
    let probe = Command::new("unshare").args(NAMESPACES).args(["mount", "-t", "tmpfs", "probe", "/run"]).output();
    match probe {
        Err(error) => no(&format!("a node needs the program unshare (Debian's util-linux): {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => no(&format!(
            "a node needs namespaces of its own, which this machine refuses: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// A directory and a cgroup that are removed when this process is gone, however it ends.
pub struct Scratch {
    /// The directory.
    pub dir: PathBuf,
    /// The cgroup's name, below the root of each hierarchy.
    pub cgroup: String,
    cleaner: Child,
}

impl Scratch {
    /// Makes both. The cleaner waits for the end of this process and of the namespaces' processes.
    pub fn new() -> Result<Scratch> {
        let dir = tempfile::Builder::new().prefix("eco-e2e-").tempdir()?.keep();
        let cgroup = format!("/eco-e2e-{}", std::process::id());
        // The shell's input closes when this process dies; an interrupt from the terminal must not take the shell along.
        let script = r#"trap '' INT TERM HUP; read -r _
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                left=$(find /sys/fs/cgroup -maxdepth 2 -name "$2" -type d)
                test -z "$left" || find $left -depth -type d -exec rmdir {} + 2>/dev/null
                rm -rf --one-file-system -- "$1" && test -z "$left" && exit 0
                sleep 0.5
            done"#;
        let cleaner = Command::new("sh")
            .args(["-c", script, "cleaner"])
            .arg(&dir)
            .arg(cgroup.trim_start_matches('/'))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sh to clean up")?;
        let scratch = Scratch { dir, cgroup, cleaner };
        make_cgroups(&scratch.cgroup)?;
        fs::create_dir(scratch.dir.join("tmp"))?;
        Ok(scratch)
    }

    /// Runs a command as the first process of new namespaces: when it ends, every process that came of it is ended.
    pub fn run(&self, command: &Command) -> Result<ExitStatus> {
        let mut inside = Command::new("unshare");
        inside
            .args(NAMESPACES)
            .arg("--kill-child")
            .arg(command.get_program())
            .args(command.get_args())
            .env("TMPDIR", self.dir.join("tmp"));
        Ok(spawn_tied(inside)?.wait()?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}

/// The cgroup below which all the node's pods live: kubelet takes every cgroup below its root for its own.
fn make_cgroups(name: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let made = if root.join("cgroup.controllers").exists() { make_unified(root, name) } else { make_v1(root, name) };
    made.map_err(|error| {
        Unsupported(format!("a node needs a cgroup of its own, which this machine refuses: {error:#}")).into()
    })
}

fn make_unified(root: &Path, name: &str) -> Result<()> {
    let dir = root.join(name.trim_start_matches('/'));
    fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    let wanted = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];
    for controller in wanted.iter().filter(|wanted| available.split_whitespace().any(|one| one == **wanted)) {
        for dir in [root, &dir] {
            let file = dir.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .with_context(|| format!("+{controller} in {}", file.display()))?;
        }
    }
    Ok(())
}

fn make_v1(root: &Path, name: &str) -> Result<()> {
    let mut made = 0;
    for hierarchy in fs::read_dir(root).context("no cgroups are mounted")?.flatten() {
        if hierarchy.file_type()?.is_symlink() || hierarchy.path().join("cgroup.controllers").exists() {
            continue;
        }
        let dir = hierarchy.path().join(name.trim_start_matches('/'));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // A new cpuset is empty, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.path().join(file)) {
                fs::write(dir.join(file), all)?;
            }
        }
        made += 1;
    }
    ensure!(made > 0, "no cgroups are mounted in {}", root.display());
    Ok(())
}

/// Gives the namespaces that this process was started in what a node needs: its bridge, directories of its own where the
/// usual programs write, and the name of the registry.
pub fn furnish(dir: &Path, tools: &Tools, host: &str) -> Result<()> {
    run("mount", &["--make-rshared", "/"])?;
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
    for place in ["/var/lib", "/var/log"] {
        let own = dir.join(place.trim_start_matches('/'));
        fs::create_dir_all(&own)?;
        run("mount", &["--bind", &own.to_string_lossy(), place])?;
    }
    let hosts = dir.join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{ADDRESS} {host}\n"))?;
    run("mount", &["--bind", &hosts.to_string_lossy(), "/etc/hosts"])?;
    for (name, value) in KERNEL_SETTINGS {
        let own = dir.join(name.replace('/', "."));
        fs::write(&own, format!("{value}\n"))?;
        run("mount", &["--bind", &own.to_string_lossy(), &format!("/proc/sys/{name}")])?;
    }
    let busybox = tools.program("busybox")?.to_string_lossy().into_owned();
    let address = format!("{ADDRESS}/16");
    let commands: [&[&str]; 5] = [
        &["ip", "link", "set", "lo", "up"],
        &["brctl", "addbr", BRIDGE],
        // A bridge without a MAC address of its own has that of a pod, and loses it with the pod: whoever had learned it sends into nothing.
        &["ip", "link", "set", BRIDGE, "address", "02:00:00:00:00:01"],
        &["ip", "addr", "add", &address, "dev", BRIDGE],
        &["ip", "link", "set", BRIDGE, "up"],
    ];
    commands.into_iter().try_for_each(|arguments| run(&busybox, arguments))
}

/// Takes an address as the node's own, so that pods' connections to it end here.
pub(super) fn add_address(busybox: &Path, address: &str) -> Result<()> {
    run(&busybox.to_string_lossy(), &["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
