//! The operator's process: how it is started, and what it says of itself and the kernel of it.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testbed::control_plane::spawn_tied;
use testbed::port::Port;

use crate::cluster::{Cluster, HOME, ROLE};

/// The operator.
pub struct Process {
    child: Child,
    port: Port,
    started: Instant,
}

impl Process {
    /// Starts the binary as the chart would, but for the cluster's address.
    pub async fn launch(cluster: &Cluster, operator: &std::path::Path) -> Result<Process> {
        let plane = &cluster.plane;
        let token = plane.service_account_token(HOME, "operator", "", 6 * 3600).await?;
        let kubeconfig = plane.kubeconfig(&plane.url(), &token, Some(plane.ca_pem()))?;
        let identity = cluster.dir.path().join("identity");
        let token = plane.service_account_token(HOME, "operator", "sts.amazonaws.com", 6 * 3600).await?;
        std::fs::write(&identity, token)?;
        let port = Port::reserve()?;
        let log = std::fs::File::create(cluster.dir.path().join("operator.log"))?;
        let mut command = wrapped(operator);
        command
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAMESPACE", HOME)
            .env("AWS_ROLE_ARN", ROLE)
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &identity)
            .envs(cluster.aws.env())
            .args(["run", "--http-address", &port.address()])
            .stdout(log.try_clone()?)
            .stderr(log);
        let started = Instant::now();
        Ok(Process { child: spawn_tied(command)?, port, started })
    }

    /// Waits until so many `EcrCredentials` are ready; returns the time since the start.
    pub async fn until_ready(&mut self, credentials: usize) -> Result<Duration> {
        let line = format!("ecr_credential_operator_credentials{{state=\"ready\"}} {credentials}");
        loop {
            let text = self.metrics().await.unwrap_or_default();
            if text.lines().any(|l| l == line) {
                return Ok(self.started.elapsed());
            }
            ensure!(self.child.try_wait()?.is_none(), "the operator has ended");
            if self.started.elapsed() > Duration::from_secs(900) {
                bail!("the operator was not ready in time");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The writes of Secrets by its own count.
    pub async fn writes(&self) -> Result<f64> {
        let text = self.metrics().await?;
        let lines = text.lines().filter(|l| l.starts_with("ecr_credential_operator_secret_writes_total"));
        Ok(lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{}/metrics", self.port.address())).await?.text().await?)
    }

    /// The processor time that it has used, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        cpu(self.child.id())
    }

    /// The most memory that was ever resident, in KiB.
    pub fn peak_kib(&self) -> Result<u64> {
        procfs::process::Process::new(self.pid()?)?.status()?.vmhwm.context("VmHWM")
    }

    /// The memory that is resident, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        procfs::process::Process::new(self.pid()?)?.status()?.vmrss.context("VmRSS")
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.pid()?).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.child.id())?)
    }
}

/// The processor time that a process has used, in seconds.
pub fn cpu(pid: u32) -> Result<f64> {
    let stat = procfs::process::Process::new(i32::try_from(pid)?)?.stat()?;
    let ticks = stat.utime + stat.stime;
    Ok(std::time::Duration::from_millis(ticks * 1000 / procfs::ticks_per_second()).as_secs_f64())
}

/// The command, under what `BENCH_WRAPPER` names: a profiler, for instance.
fn wrapped(operator: &std::path::Path) -> Command {
    let wrapper = std::env::var("BENCH_WRAPPER").unwrap_or_default();
    let mut words = wrapper.split_whitespace();
    match words.next() {
        Some(program) => {
            let mut command = Command::new(program);
            command.args(words).arg(operator);
            command
        }
        None => Command::new(operator),
    }
}
