//! One `EcrCredential` and N namespaces: labelled at once, refreshed, joined by new ones, started anew, at rest.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::json;

use crate::Args;
use crate::bare::{self, Bare, Verb};
use crate::cluster::{Cluster, SECRET};
use crate::figures::{Labelled, Refresh, Rest, Size, Start};
use crate::latency::{self, aws_calls};
use crate::process::{self, Process};
use crate::requests::Requests;
use crate::sightings::Sightings;

/// The `EcrCredential` and the value of the label.
const NAME: &str = "bench";

/// Measures everything at one size.
pub async fn measure(args: &Args, namespaces: usize) -> Result<Size> {
    eprintln!("{namespaces} namespaces: making them");
    let cluster = Cluster::start(&args.crd).await?;
    cluster.make_namespaces(namespaces, |_| Default::default()).await?;
    let mut operator = Process::launch(&cluster, &args.operator).await?;
    cluster.make_credential(NAME, NAME).await?;
    operator.until_ready(1).await?;
    let run = Run { args, cluster, namespaces };
    let mut size = Size { namespaces, labelled: run.labelled(&operator).await?, ..Size::default() };
    size.refresh = run.refreshes(&operator).await?;
    size.idle = run.idle("idle", latency::PAUSE).await?;
    size.rush = run.idle("rush", Duration::ZERO).await?;
    size.busy = run.busy(median_s(&size.refresh.operator_s)).await?;
    run.cluster.settle().await?;
    size.rest = run.rest(&operator).await?;
    size.peak_kib = operator.peak_kib()?;
    operator.stop()?;
    size.start = start(&run.cluster, args, 1).await?;
    Ok(size)
}

struct Run<'a> {
    args: &'a Args,
    cluster: Cluster,
    namespaces: usize,
}

impl Run<'_> {
    async fn labelled(&self, operator: &Process) -> Result<Labelled> {
        eprintln!("{} namespaces: labelling all of them", self.namespaces);
        let (cpu, requests) = (operator.cpu()?, Requests::read(&self.cluster.admin).await?);
        let start = Instant::now();
        self.cluster.label_namespaces(self.namespaces, NAME).await?;
        let labels_s = start.elapsed().as_secs_f64();
        self.cluster.until_synced(NAME, self.namespaces).await?;
        let synced_s = start.elapsed().as_secs_f64();
        let cpu_s = operator.cpu()? - cpu;
        let requests = Requests::read(&self.cluster.admin).await?.since(&requests);
        let (status_writes, secret_writes) = (requests.about("ecrcredentials/status"), requests.about("secrets"));
        eprintln!("  labels {labels_s:.1} s, all Secrets {synced_s:.1} s, CPU {cpu_s:.2} s");
        Ok(Labelled { labels_s, synced_s, cpu_s, status_writes, secret_writes })
    }

    /// In turn, so that whatever else the machine does falls on all alike.
    async fn refreshes(&self, operator: &Process) -> Result<Refresh> {
        let mut refresh = Refresh::default();
        let mut bare = Bare::new(self.cluster.peer.clone());
        let model = self.model().await?;
        for verb in Verb::ALL {
            bare.create(verb, self.namespaces, &model, &self.cluster.admin).await?;
        }
        self.cluster.settle().await?;
        for round in 0..self.rounds() {
            self.refresh_once(operator, round, &mut refresh).await?;
            // What was written last, and so a write of the same bytes changes something each time.
            let model = self.model().await?;
            // Not always the same comes first after the operator, or before it.
            for verb in Verb::ALL.iter().cycle().skip(round).take(Verb::ALL.len()) {
                self.write_once(&mut bare, *verb, &model, &mut refresh).await?;
            }
            self.tell(round, &refresh);
        }
        Ok(refresh)
    }

    /// A refresh of few takes a second, in which whatever else the machine does weighs more: it is done more often.
    fn rounds(&self) -> usize {
        if self.namespaces < 5000 { self.args.runs * 3 } else { self.args.runs }
    }

    async fn refresh_once(&self, operator: &Process, round: usize, refresh: &mut Refresh) -> Result<()> {
        let (cpu, calls) = (operator.cpu()?, aws_calls(&self.cluster));
        let requests = Requests::read(&self.cluster.admin).await?;
        pause().await;
        let plane = self.cluster.plane_cpu()?;
        refresh.operator_s.push(self.refresh(&format!("round {round}")).await?.as_secs_f64());
        *refresh.plane_cpu_s.entry("operator".to_owned()).or_default() += self.cluster.plane_cpu()? - plane;
        let requests = Requests::read(&self.cluster.admin).await?.since(&requests);
        refresh.cpu_s += operator.cpu()? - cpu;
        refresh.aws_calls += aws_calls(&self.cluster) - calls;
        for (name, count) in requests.0 {
            *refresh.requests.0.entry(name).or_default() += count;
        }
        Ok(())
    }

    /// The bare client writes everything once, after the same pause as the operator.
    async fn write_once(&self, bare: &mut Bare, verb: Verb, model: &Secret, refresh: &mut Refresh) -> Result<()> {
        let watch = match verb {
            Verb::Watched => Some(Sightings::begin(self.cluster.peer.clone(), verb.secret()).await?),
            _ => None,
        };
        pause().await;
        let (cpu, plane) = (process::cpu(std::process::id())?, self.cluster.plane_cpu()?);
        let took = bare.write(verb, self.namespaces, model).await?.as_secs_f64();
        drop(watch);
        if verb == Verb::Apply {
            refresh.bare_cpu_s += process::cpu(std::process::id())? - cpu;
        }
        *refresh.plane_cpu_s.entry(verb.name().to_owned()).or_default() += self.cluster.plane_cpu()? - plane;
        refresh.bare_s.entry(verb.name().to_owned()).or_default().push(took);
        Ok(())
    }

    fn tell(&self, round: usize, refresh: &Refresh) {
        let rate = |seconds: f64| self.namespaces as f64 / seconds;
        let bare: Vec<String> =
            refresh.bare_s.iter().map(|(verb, list)| format!("{verb} {:.0}/s", rate(list[round]))).collect();
        eprintln!("  round {round}: operator {:.0}/s; bare {}", rate(refresh.operator_s[round]), bare.join(", "));
    }

    /// A refresh on demand: from the request to the status that says that it is done.
    async fn refresh(&self, request: &str) -> Result<Duration> {
        let patch = json!({ "metadata": { "annotations": { "pullsecrets.dev/refresh-requested-at": request } } });
        let start = Instant::now();
        self.cluster.credentials().patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let request = json!(request);
        let handled = |data: &serde_json::Value| data.pointer("/status/handledRefreshRequest") == Some(&request);
        self.cluster.until(NAME, "the end of the refresh", handled).await?;
        Ok(start.elapsed())
    }

    async fn idle(&self, prefix: &str, pause: Duration) -> Result<latency::Latency> {
        eprintln!("{} namespaces: {} new ones, {pause:?} between them", self.namespaces, self.args.samples);
        let model = self.model().await?;
        latency::sample(&self.cluster, prefix, NAME, &model, pause, |count| count < self.args.samples).await
    }

    /// New namespaces while everything is being refreshed.
    async fn busy(&self, takes: Duration) -> Result<latency::Latency> {
        let model = self.model().await?;
        pause().await;
        let (begun, samples) = (Instant::now(), self.args.samples);
        // Until shortly before its end.
        let last = takes.mul_f64(0.9);
        let sampling = async {
            tokio::time::sleep(takes.mul_f64(0.1)).await;
            latency::sample(&self.cluster, "busy", NAME, &model, Duration::ZERO, |count| {
                count < samples && begun.elapsed() < last
            })
            .await
        };
        let (_, latency) = tokio::try_join!(self.refresh("busy"), sampling)?;
        Ok(latency)
    }

    async fn rest(&self, operator: &Process) -> Result<Rest> {
        eprintln!("{} namespaces: at rest for {} s", self.namespaces, self.args.rest);
        let (cpu, requests, start) = (operator.cpu()?, Requests::read(&self.cluster.admin).await?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.args.rest)).await;
        Ok(Rest {
            seconds: start.elapsed().as_secs_f64(),
            requests: Requests::read(&self.cluster.admin).await?.since(&requests),
            cpu_s: operator.cpu()? - cpu,
            resident_kib: operator.resident_kib()?,
        })
    }

    async fn model(&self) -> Result<Secret> {
        bare::model(&self.cluster.admin, "n0", SECRET).await
    }
}

/// Issue times are whole seconds: a refresh within the second of the last token would find it new enough. And what was done
/// before has come to rest.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

/// Starts the operator on what is there, and ends it.
pub async fn start(cluster: &Cluster, args: &Args, credentials: usize) -> Result<Start> {
    let downloads = [download(&cluster.peer).await?, download(&cluster.peer).await?, download(&cluster.peer).await?];
    let download_s = median_s(&downloads.map(|time| time.as_secs_f64())).as_secs_f64();
    let requests = Requests::read(&cluster.admin).await?;
    let mut operator = Process::launch(cluster, &args.operator).await?;
    let ready_s = operator.until_ready(credentials).await?.as_secs_f64();
    let cpu_s = operator.cpu()?;
    // What it wrote a moment later would count as well.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let requests = Requests::read(&cluster.admin).await?.since(&requests);
    let changes = |name: &str| name.ends_with(" ecrcredentials/status") || name == "APPLY secrets";
    let status = requests.0.iter().filter(|(name, _)| changes(name)).map(|(_, count)| count).sum::<f64>().abs();
    let writes = status.max(operator.writes().await?);
    let reads = requests.0.get("GET secrets").copied().unwrap_or_default();
    let peak_kib = operator.peak_kib()?;
    operator.stop()?;
    Ok(Start { ready_s, download_s, writes, reads, cpu_s, peak_kib })
}

/// Downloads the lists that the operator starts with, in pages like its own, and does nothing with them.
async fn download(client: &Client) -> Result<Duration> {
    let start = Instant::now();
    let secrets = ListParams::default().fields(&format!("metadata.name={SECRET}"));
    let credentials = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials";
    tokio::try_join!(
        pages(client, Request::new(Secret::url_path(&(), None)), secrets, true),
        pages(client, Request::new(Namespace::url_path(&(), None)), ListParams::default(), true),
        pages(client, Request::new(credentials), ListParams::default(), false),
    )?;
    Ok(start.elapsed())
}

async fn pages(client: &Client, request: Request, params: ListParams, metadata: bool) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Page {
        metadata: Next,
    }
    #[derive(serde::Deserialize)]
    struct Next {
        r#continue: Option<String>,
    }
    let mut params = params.limit(500);
    loop {
        let http = if metadata { request.list_metadata(&params) } else { request.list(&params) }?;
        let page: Page = serde_json::from_str(&client.request_text(http).await?)?;
        match page.metadata.r#continue.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

fn median_s(list: &[f64]) -> Duration {
    Duration::from_secs_f64(crate::figures::median(list))
}
