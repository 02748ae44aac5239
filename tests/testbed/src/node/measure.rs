//! What a container uses, as the kernel counts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// A container's cgroups.
pub struct Container {
    memory: PathBuf,
    cpu: PathBuf,
    pid: u32,
}

/// What a container uses at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The resident memory of its process, in KiB.
    pub resident: u64,
    /// The part of it that is no file's, such as the heap, in KiB.
    pub anonymous: u64,
    /// The most that was ever resident, in KiB.
    pub peak: u64,
    /// What its cgroup is charged, in KiB: caches and the kernel's share included.
    pub charged: u64,
    /// The processor time that it has used since its start.
    pub cpu: Duration,
    /// The threads of its process.
    pub threads: u64,
    /// The user that its process runs as.
    pub user: u64,
}

impl Container {
    /// Finds a container by its id, as in the status of a pod (`containerd://ID`), below a cgroup.
    pub fn find(cgroup: &str, id: &str) -> Result<Container> {
        let id = id.rsplit('/').next().unwrap_or(id);
        let root = Path::new("/sys/fs/cgroup");
        let in_hierarchy = |name: &str| -> Result<PathBuf> {
            // With cgroup v2 there is one hierarchy for all.
            let dir = if root.join(name).is_dir() { root.join(name) } else { root.to_owned() };
            let dir = dir.join(cgroup.trim_start_matches('/'));
            below(&dir, id).with_context(|| format!("no cgroup {id} below {}", dir.display()))
        };
        let (memory, cpu) = (in_hierarchy("memory")?, in_hierarchy("cpuacct")?);
        let processes = fs::read_to_string(memory.join("cgroup.procs"))?;
        let pid = processes.lines().next().context("the container has no process")?.parse()?;
        Ok(Container { memory, cpu, pid })
    }

    /// Kills its process, without a warning.
    pub fn kill(&self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw).context("a process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    /// Reads all counters.
    pub fn usage(&self) -> Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {name}"))?.parse()?)
        };
        let charged = first_of(&self.memory, &["memory.usage_in_bytes", "memory.current"])?;
        let cpu = match first_of(&self.cpu, &["cpuacct.usage"]) {
            Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
            Err(_) => unified_cpu(&self.cpu)?,
        };
        let (resident, anonymous, peak) = (field("VmRSS:")?, field("RssAnon:")?, field("VmHWM:")?);
        Ok(Usage {
            resident,
            anonymous,
            peak,
            charged: charged / 1024,
            cpu,
            threads: field("Threads:")?,
            user: field("Uid:")?,
        })
    }
}

fn unified_cpu(cgroup: &Path) -> Result<Duration> {
    let text = fs::read_to_string(cgroup.join("cpu.stat"))?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec in cpu.stat")?;
    Ok(Duration::from_micros(micros.parse()?))
}

fn first_of(dir: &Path, files: &[&str]) -> Result<u64> {
    let text = files.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok());
    Ok(text.with_context(|| format!("none of {files:?} in {}", dir.display()))?.trim().parse()?)
}

fn below(dir: &Path, name: &str) -> Option<PathBuf> {
    let children = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let children: Vec<PathBuf> = children.collect();
    let found = children.iter().find(|path| path.ends_with(name)).cloned();
    found.or_else(|| children.iter().find_map(|child| below(child, name)))
}
