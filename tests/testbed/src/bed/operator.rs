//! The operator as a process of its own, with IRSA's variables and a real ServiceAccount token.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams};

use super::rights::AllowedIdentities;
use super::{Bed, PATIENCE};
use crate::aws::{AwsProxy, Service};
use crate::control_plane::spawn_tied;
use crate::port::Port;
use crate::proxy::Proxy;

/// How an operator is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary.
    pub binary: PathBuf,
    /// Further flags.
    pub args: Vec<String>,
    /// Further variables; an empty value takes one away.
    pub env: Vec<(String, String)>,
    /// Whether to wait until it is ready.
    pub wait: bool,
    /// Whose identities it may use besides its own.
    pub lent: AllowedIdentities,
    /// Whether it gets the rights for these.
    pub grant: bool,
}

impl Launch {
    /// A start of this binary with the flags that suit tests: no long waits.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let args =
            ["--retry-initial", "200ms", "--retry-max", "2s", "--minimum-token-life", "2s", "--aws-timeout", "3s"];
        let args = args.map(str::to_owned).to_vec();
        Self {
            binary: binary.into(),
            args,
            env: Vec::new(),
            wait: true,
            lent: AllowedIdentities::default(),
            grant: true,
        }
    }

    /// Adds flags.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Waits a minute for AWS in place of the 3 s of tests, so that nothing ends because that time is over.
    pub fn patient_with_aws(mut self) -> Self {
        let timeout = self.args.iter_mut().skip_while(|arg| *arg != "--aws-timeout").nth(1);
        "60s".clone_into(timeout.expect("every start has this flag"));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets EcrCredentials attach their Secret to the ServiceAccounts of a name.
    pub fn attaching(mut self, service_account: &str) -> Self {
        self.lent.attach.push(service_account.to_owned());
        self.args(&["--attach-service-account", service_account])
    }

    /// Lets EcrCredentials use a ServiceAccount, `NAMESPACE/NAME`, or `*/NAME` for that of each namespace.
    pub fn service_account(mut self, which: &str) -> Self {
        self.lent.service_accounts.push(which.to_owned());
        self.args(&["--service-account", which])
    }

    /// Lets EcrCredentials ask for an output, as `NAMESPACE/NAME=FORMAT` or `*/NAME=FORMAT`. Its name is one of the bed's.
    pub fn output(self, which: &str) -> Self {
        self.args(&["--output-secret", which])
    }

    /// Lets EcrCredentials merge the docker config in a Secret, `NAMESPACE/NAME`, into theirs.
    pub fn include_secret(mut self, which: &str) -> Self {
        self.lent.secrets.push(which.to_owned());
        self.args(&["--include-secret", which])
    }

    /// Lets EcrCredentials use static keys in a Secret, `NAMESPACE/NAME`.
    pub fn credentials_secret(mut self, which: &str) -> Self {
        self.lent.secrets.push(which.to_owned());
        self.args(&["--credentials-secret", which])
    }

    /// Gives no rights for the identities that may be used, as an installation that has forgotten them.
    pub fn without_rights(mut self) -> Self {
        self.grant = false;
        self
    }

    /// How many calls for the tokens of single namespaces there may be in a second.
    pub fn aws_rate(self, per_second: u32) -> Self {
        self.args(&["--aws-rate", &per_second.to_string()])
    }

    /// Has no identity of the node to fall back to.
    pub fn require_workload_identity(self) -> Self {
        self.args(&["--require-workload-identity"])
    }

    /// Reaches AWS by its own host names, through this proxy, whose certificate was written to `ca_file`.
    pub fn through(mut self, proxy: &AwsProxy, ca_file: &Path) -> Self {
        let direct = Service::ALL.map(|service| (service.endpoint_variable().to_owned(), String::new()));
        self.env.extend(direct.into_iter().chain(proxy.env(ca_file)));
        self
    }

    /// Does not wait until it is ready.
    pub fn without_waiting(mut self) -> Self {
        self.wait = false;
        self
    }
}

/// A running operator; it is killed when dropped.
pub struct Operator {
    child: Child,
    port: Port,
    /// Its log.
    pub log: PathBuf,
    /// Its last metrics, for the judge.
    metrics: PathBuf,
    /// Its web identity token.
    pub token_file: PathBuf,
}

impl Bed {
    /// Starts an operator that talks to the API server through this test's proxy and to this test's AWS.
    pub async fn operator(&self, launch: Launch) -> Result<Operator> {
        self.operator_through(&self.proxy, launch).await
    }

    /// The same through a proxy of its own, to tell its requests from those of another operator; the recorder must know of it.
    pub async fn operator_through(&self, proxy: &Proxy, launch: Launch) -> Result<Operator> {
        self.make_known(&launch).await?;
        let token = self.plane.service_account_token(&self.home, "operator", "", 3600).await?;
        let kubeconfig = self.plane.kubeconfig(&proxy.url(), &token, None)?;
        self.recorder.canary("the operator's API token", &token)?;
        let token_file = self.file("web-identity-token");
        self.write_web_identity(&token_file).await?;
        let port = Port::reserve()?;
        let log = self.file(&format!("operator-{}.log", port.number()));
        let metrics = log.with_extension("metrics");
        let output = File::create(&log)?;
        File::create(&metrics)?;
        self.recorder.search_file(&log);
        self.recorder.search_file(&metrics);
        let mut command = Command::new(&launch.binary);
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAMESPACE", &self.home)
            .env("AWS_ROLE_ARN", &self.role)
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token_file)
            .envs(self.aws.env())
            // A machine that is busy with other tests must not cost a leader its lease.
            .env("ECO_LEASE_DURATION", "20s")
            .args(["run", "--http-address", &port.address(), "--log", "trace"])
            .args(["--secret-name", &self.secret])
            .args(&launch.args)
            .stdout(output.try_clone()?)
            .stderr(output);
        if !self.alone {
            command.args(["--credential-selector", &format!("bed={}", self.prefix)]);
        }
        for (name, value) in &launch.env {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, value)
            };
        }
        let child = spawn_tied(command).with_context(|| format!("start {}", launch.binary.display()))?;
        let mut operator = Operator { child, port, log, metrics, token_file };
        if launch.wait {
            operator.until_ready().await?;
        }
        Ok(operator)
    }

    /// Kills an operator, and ends its lease as if its time had run out.
    pub async fn kill(&self, operator: Operator) -> Result<()> {
        operator.keep_metrics().await?;
        operator.kill()?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.home);
        leases.delete("ecr-credential-operator", &DeleteParams::default()).await.context("end the lease")?;
        Ok(())
    }

    /// Tells the API server and the judge whose identities an operator may use.
    async fn make_known(&self, launch: &Launch) -> Result<()> {
        for which in &launch.lent.service_accounts {
            let (namespace, name) = which.split_once('/').with_context(|| format!("{which} is not NAMESPACE/NAME"))?;
            self.recorder.allow_tokens_of(Some(namespace).filter(|namespace| *namespace != "*"), name);
        }
        if launch.grant { self.lend(&launch.lent).await } else { Ok(()) }
    }

    /// Writes the certificate of a proxy where an operator can read it.
    pub fn write_ca(&self, proxy: &AwsProxy) -> Result<PathBuf> {
        let file = self.file("aws-ca.pem");
        std::fs::write(&file, proxy.ca_pem())?;
        Ok(file)
    }

    /// Writes a fresh web identity token as kubelet would for IRSA.
    pub async fn write_web_identity(&self, file: &Path) -> Result<()> {
        let token = self.plane.service_account_token(&self.home, "operator", "sts.amazonaws.com", 3600).await?;
        self.recorder.canary("a web identity token", &token)?;
        std::fs::write(file, token)?;
        Ok(())
    }
}

impl Operator {
    /// Waits until `/readyz` says so.
    pub async fn until_ready(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.get("/readyz").await.ok().is_none_or(|(status, _)| status != 200) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the operator ended with {status}: {}", self.tail());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the operator is not ready after {PATIENCE:?}: {}", self.tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A page of its HTTP side.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("http://{}{path}", self.port.address())).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Keeps the metrics of a process that is about to end.
    async fn keep_metrics(&self) -> Result<()> {
        // One that is held up, or has ended, shows none.
        if let Ok(Ok((_, text))) = tokio::time::timeout(Duration::from_secs(1), self.get("/metrics")).await {
            std::fs::write(&self.metrics, text)?;
        }
        Ok(())
    }

    /// Where its HTTP side listens.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) -> Result<()> {
        // The shell's own kill: not every machine has the program.
        let script = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &script]).status()?;
        if status.success() { Ok(()) } else { bail!("kill -{name} failed") }
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the operator has not ended after {PATIENCE:?}: {}", self.tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it as kubelet does, and checks that it ends well.
    pub async fn stop(mut self) -> Result<()> {
        self.keep_metrics().await?;
        self.signal("TERM")?;
        let status = self.ended().await?;
        if status.success() { Ok(()) } else { bail!("the operator ended with {status}: {}", self.tail()) }
    }

    /// Kills it at once.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|l| !l.contains("TRACE") && !l.contains("DEBUG")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the operator {}, {:?}; the end of its log:\n{}", self.pid(), self.child.try_wait(), self.tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
