//! Side by side in one run: the operator refreshing N namespaces, and a bare client writing the same Secrets.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::{AwsStandIn, Role, Service, Trust};
use testbed::bed::{credential_resource, rights};
use testbed::control_plane::{ControlPlane, Options, spawn_tied};

const HOME: &str = "ecr-credential-operator";
const SECRET: &str = "ecr-pull-secret";
/// As many writes under way as the operator has by default.
const CONCURRENCY: usize = 32;

#[derive(Parser)]
struct Args {
    /// The operator's release binary.
    #[arg(long)]
    operator: PathBuf,
    /// The CRD.
    #[arg(long)]
    crd: PathBuf,
    /// How many namespaces; repeatable.
    #[arg(long, default_values_t = [500])]
    namespaces: Vec<usize>,
    /// How often each side writes.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut results = Vec::new();
    for count in &args.namespaces {
        results.push(measure(&args, *count).await?);
    }
    println!(
        "\n| namespaces | operator, Secrets/s | bare client, Secrets/s | ratio | API writes per Secret | AWS calls per refresh | new namespace, ms (median, worst of 20) | bare write, ms | start with fresh Secrets, s | writes then | peak RSS, MiB | CPU per Secret, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for r in &results {
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.3} | {} | {:.0}, {:.0} | {:.1} | {:.2} | {} | {:.1} | {:.2} |",
            r["namespaces"],
            f(&r["operator_per_s"]),
            f(&r["bare_per_s"]),
            f(&r["ratio"]),
            f(&r["writes_per_secret"]),
            r["aws_calls"],
            f(&r["new_median_ms"]),
            f(&r["new_worst_ms"]),
            f(&r["bare_write_ms"]),
            f(&r["restart_s"]),
            r["restart_writes"],
            f(&r["rss_mib"]),
            f(&r["cpu_ms_per_secret"])
        );
    }
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn f(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

struct Bench {
    plane: ControlPlane,
    client: Client,
    aws: AwsStandIn,
    operator: PathBuf,
    dir: tempfile::TempDir,
}

async fn measure(args: &Args, count: usize) -> Result<Value> {
    eprintln!("{count} namespaces: starting the control plane");
    let bench = Bench::start(args).await?;
    eprintln!("{count} namespaces: creating them");
    bench.make_namespaces("n", count, "bench").await?;
    let mut operator = bench.launch().await?;
    bench.credential().await?;
    bench.until_synced(count).await?;
    eprintln!("{count} namespaces: measuring");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (cpu_before, writes_before, calls_before) =
        (operator.cpu()?, operator.writes().await?, bench.aws.calls(Service::Ecr).len());
    for run in 0..args.runs {
        ours.push(bench.refresh(count, run).await?);
        bare.push(bench.bare(count, run).await?);
        eprintln!(
            "  run {run}: operator {:.0}/s, bare client {:.0}/s",
            per_second(count, ours[run]),
            per_second(count, bare[run])
        );
    }
    let writes = operator.writes().await? - writes_before;
    let secrets = (count * args.runs) as f64;
    let cpu = (operator.cpu()? - cpu_before) * 1000.0 / secrets;
    let calls = bench.aws.calls(Service::Ecr).len() - calls_before;
    let (new_median, new_worst) = bench.new_namespaces().await?;
    let bare_write = bench.single_writes().await?;
    let rss = operator.peak_rss()?;
    operator.stop()?;
    let start = Instant::now();
    let mut again = bench.launch().await?;
    again.until_ready_credentials().await?;
    let restart = start.elapsed().as_secs_f64();
    let restart_writes = again.writes().await?;
    again.stop()?;
    let (ours, bare) = (median(&ours), median(&bare));
    Ok(json!({
        "namespaces": count, "operator_per_s": per_second(count, ours), "bare_per_s": per_second(count, bare),
        "ratio": bare.as_secs_f64() / ours.as_secs_f64(), "writes_per_secret": writes / secrets, "aws_calls": calls / args.runs,
        "new_median_ms": new_median, "new_worst_ms": new_worst, "bare_write_ms": bare_write,
        "restart_s": restart, "restart_writes": restart_writes, "rss_mib": rss, "cpu_ms_per_secret": cpu,
    }))
}

fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(list: &[Duration]) -> Duration {
    let mut list = list.to_vec();
    list.sort();
    list[list.len() / 2]
}

impl Bench {
    async fn start(args: &Args) -> Result<Bench> {
        let plane = ControlPlane::start(Options::default()).await?;
        let crd: CustomResourceDefinition = serde_yaml_ng::from_str(&std::fs::read_to_string(&args.crd)?)?;
        plane.install(&[crd]).await?;
        let client = plane.admin_client()?;
        let aws = AwsStandIn::start()?;
        aws.set_jwks(&plane.issuer(), &plane.jwks().await?.to_string());
        let subject = format!("system:serviceaccount:{HOME}:operator");
        aws.add_role(Role::new("arn:aws:iam::123456789012:role/bench").trusting(Trust::web_identity(
            &plane.issuer(),
            &subject,
            "sts.amazonaws.com",
        )));
        aws.set_token_size(3000);
        let bench = Bench { plane, client, aws, operator: args.operator.clone(), dir: tempfile::tempdir()? };
        bench.make_namespace(HOME, "").await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(bench.client.clone(), HOME);
        accounts
            .create(&PostParams::default(), &serde_json::from_value(json!({ "metadata": { "name": "operator" } }))?)
            .await?;
        rights::grant(&bench.client, "bench", HOME, &[SECRET.to_owned()]).await?;
        Ok(bench)
    }

    async fn make_namespace(&self, name: &str, label: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "bench": label } } }))?;
        api.create(&PostParams::default(), &object).await.with_context(|| format!("create the namespace {name}"))?;
        Ok(())
    }

    async fn make_namespaces(&self, prefix: &str, count: usize, label: &str) -> Result<()> {
        let made = futures::stream::iter(0..count)
            .map(|i| async move { self.make_namespace(&format!("{prefix}{i}"), label).await })
            .buffer_unordered(16)
            .collect::<Vec<_>>()
            .await;
        made.into_iter().collect()
    }

    async fn launch(&self) -> Result<Process> {
        let token = self.plane.service_account_token(HOME, "operator", "", 3600 * 6).await?;
        let kubeconfig = self.plane.kubeconfig(&self.plane.url(), &token, Some(self.plane.ca_pem()))?;
        let identity = self.dir.path().join("identity");
        std::fs::write(
            &identity,
            self.plane.service_account_token(HOME, "operator", "sts.amazonaws.com", 3600 * 6).await?,
        )?;
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = std::fs::File::create(self.dir.path().join("operator.log"))?;
        let mut command = Command::new(&self.operator);
        command
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAMESPACE", HOME)
            .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/bench")
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &identity)
            .envs(self.aws.env())
            .args(["run", "--http-address", &address])
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Process { child: spawn_tied(command)?, address })
    }

    async fn credential(&self) -> Result<()> {
        let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "selector": { "matchLabels": { "bench": "bench" } } } });
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": "bench" }, "spec": spec,
        }))?;
        self.credentials().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    fn credentials(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &credential_resource())
    }

    async fn until(&self, what: &str, test: impl Fn(&DynamicObject) -> bool) -> Result<DynamicObject> {
        let stream = kube::runtime::watcher::watch_object(self.credentials(), "bench");
        let mut stream = std::pin::pin!(stream);
        let search = async {
            while let Some(item) = stream.next().await {
                if let Ok(Some(object)) = item
                    && test(&object)
                {
                    return Some(object);
                }
            }
            None
        };
        match tokio::time::timeout(Duration::from_secs(600), search).await {
            Ok(Some(object)) => Ok(object),
            _ => bail!("waited in vain for {what}"),
        }
    }

    async fn until_synced(&self, count: usize) -> Result<()> {
        let summary = format!("{count}/{count}");
        self.until(&summary, |o| o.data.pointer("/status/namespaces/summary").is_some_and(|s| *s == json!(summary)))
            .await?;
        Ok(())
    }

    /// A refresh on demand: from the request to the status that says that it is done.
    async fn refresh(&self, count: usize, run: usize) -> Result<Duration> {
        let value = format!("run {run}");
        let patch = json!({ "metadata": { "annotations": { "pullsecrets.dev/refresh-requested-at": value } } });
        // Issue times are whole seconds: a refresh within the second of the last token would find it new enough.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let start = Instant::now();
        self.credentials().patch("bench", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.until(&format!("refresh {value} of {count}"), |o| {
            o.data.pointer("/status/handledRefreshRequest") == Some(&json!(value))
        })
        .await?;
        Ok(start.elapsed())
    }

    /// The same bytes under another name with the same verb and as many writes at a time, by kube's client and no more.
    async fn bare(&self, count: usize, run: usize) -> Result<Duration> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "n0");
        let model = secrets.get(SECRET).await?;
        let data = model.data.context("data")?;
        let metadata =
            json!({ "name": "bare", "labels": model.metadata.labels, "annotations": model.metadata.annotations });
        let mut body = json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "metadata": metadata, "data": data });
        body["metadata"]["annotations"]["run"] = json!(format!("{run}"));
        let body = Arc::new(body);
        let params = PatchParams::apply("bare").force();
        let start = Instant::now();
        let written = futures::stream::iter(0..count)
            .map(|i| {
                let (api, body, params): (Api<Secret>, _, _) =
                    (Api::namespaced(self.client.clone(), &format!("n{i}")), body.clone(), params.clone());
                async move { api.patch_metadata("bare", &params, &Patch::Apply(&*body)).await.map(drop) }
            })
            .buffer_unordered(CONCURRENCY)
            .collect::<Vec<_>>()
            .await;
        written.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(start.elapsed())
    }

    /// From the creation of a namespace to its Secret: median and worst of 20, in milliseconds.
    async fn new_namespaces(&self) -> Result<(f64, f64)> {
        let mut times = Vec::new();
        for i in 0..20 {
            let name = format!("new{i}");
            let api: Api<Secret> = Api::namespaced(self.client.clone(), &name);
            let stream = kube::runtime::watcher::watch_object(api, SECRET);
            let mut stream = std::pin::pin!(stream);
            stream.next().await;
            let start = Instant::now();
            self.make_namespace(&name, "bench").await?;
            while !matches!(stream.next().await, Some(Ok(Some(_)))) {}
            times.push(start.elapsed());
        }
        times.sort();
        Ok((times[10].as_secs_f64() * 1000.0, times[19].as_secs_f64() * 1000.0))
    }

    /// One bare write while nothing else happens: the median of 20, in milliseconds.
    async fn single_writes(&self) -> Result<f64> {
        let mut times = Vec::new();
        let params = PatchParams::apply("bare").force();
        for i in 0..20 {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), &format!("new{i}"));
            let model = api.get(SECRET).await?;
            let body = json!({ "apiVersion": "v1", "kind": "Secret", "type": model.type_, "metadata": { "name": "single" }, "data": model.data });
            let start = Instant::now();
            api.patch_metadata("single", &params, &Patch::Apply(&body)).await?;
            times.push(start.elapsed());
        }
        times.sort();
        Ok(times[10].as_secs_f64() * 1000.0)
    }
}

struct Process {
    child: Child,
    address: String,
}

impl Process {
    async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{}/metrics", self.address)).await?.text().await?)
    }

    async fn writes(&self) -> Result<f64> {
        let text = self.metrics().await?;
        Ok(text
            .lines()
            .filter(|l| l.starts_with("ecr_credential_operator_secret_writes_total"))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    async fn until_ready_credentials(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            if let Ok(text) = self.metrics().await
                && text.lines().any(|l| l == "ecr_credential_operator_credentials{state=\"ready\"} 1")
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready in time");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// User and system time so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = fields.get(11..13).context("stat")?.iter().filter_map(|t| t.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    fn peak_rss(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmHWM")).context("VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmHWM")?.parse()?;
        Ok(kib / 1024.0)
    }

    fn stop(&mut self) -> Result<()> {
        Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(())
    }
}
