//! Child processes that cannot outlive the process that started them.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

/// Starts `command` so that the kernel kills it when this process ends, however it ends.
pub fn spawn_tied(command: Command) -> io::Result<Child> {
    let (reply, answer) = sync_channel(1);
    spawner().send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

type Request = (Command, SyncSender<io::Result<Child>>);

/// The parent death signal fires when the spawning *thread* ends, so one thread that lives as long as the process does all the spawning.
fn spawner() -> Sender<Request> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, requests) = channel::<Request>();
            std::thread::spawn(move || {
                for (mut command, reply) in requests {
                    // Nobody waits for the answer any more only when its caller is gone.
                    let _ = reply.send(tie(&mut command).spawn());
                }
            });
            sender
        })
        .clone()
}

fn tie(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the signal was asked for.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        })
    }
}

/// One server of the control plane and the file that it logs to.
pub(crate) struct Server {
    name: &'static str,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts `command`, its output appended to `<dir>/<name>.log`.
    pub(crate) fn start(name: &'static str, mut command: Command, dir: &Path) -> Result<Server> {
        let log = dir.join(format!("{name}.log"));
        let file =
            File::options().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = spawn_tied(command).with_context(|| format!("start {name}"))?;
        Ok(Server { name, log, child })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Fails, with the end of its log, when the server has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                anyhow::bail!("{} ended with {status}; the end of its log:\n{}", self.name, self.log_tail())
            }
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Removes a directory when this process is gone, also when it was killed: etcd leaves 128 MB behind.
pub(super) struct Reaper(Child);

impl Reaper {
    pub(super) fn watch(dir: &Path) -> Result<Reaper> {
        // The shell's input closes when this process dies; an interrupt from the terminal must not take the shell along.
        let script = r#"trap '' INT TERM HUP; read -r _; for _ in 1 2 3 4 5; do rm -rf -- "$1" && exit; sleep 1; done"#;
        let child = Command::new("sh")
            .args(["-c", script, "reaper"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sh to clean up after the control plane")?;
        Ok(Reaper(child))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
