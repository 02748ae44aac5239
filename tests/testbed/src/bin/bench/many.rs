//! Many `EcrCredentials` with ten namespaces each.

use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};

use crate::Args;
use crate::bare;
use crate::cluster::{Cluster, HANDS, SECRET, labelled};
use crate::figures::Many;
use crate::latency::{self, aws_calls};
use crate::process::Process;
use crate::requests::Requests;
use crate::size;

/// How many namespaces each has.
const EACH: usize = 10;

/// At most so many new namespaces are waited for.
const MOST_SAMPLES: usize = 50;

/// Measures at one number of `EcrCredentials`.
pub async fn measure(args: &Args, credentials: usize) -> Result<Many> {
    eprintln!("{credentials} EcrCredentials: making {} namespaces", credentials * EACH);
    let cluster = Cluster::start(&args.crd).await?;
    cluster.make_namespaces(credentials * EACH, |i| labelled(&format!("c{}", i / EACH))).await?;
    let made = futures::stream::iter(0..credentials).map(|i| {
        let (cluster, name) = (&cluster, format!("c{i}"));
        async move { cluster.make_credential(&name, &name).await }
    });
    made.buffer_unordered(HANDS).try_collect::<Vec<()>>().await?;
    let requests = Requests::read(&cluster.admin).await?;
    let mut operator = Process::launch(&cluster, &args.operator).await?;
    let ready_s = operator.until_ready(credentials).await?.as_secs_f64();
    let cpu_s = operator.cpu()?;
    eprintln!("  all ready after {ready_s:.1} s, CPU {cpu_s:.2} s");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let requests = Requests::read(&cluster.admin).await?.since(&requests);
    let mut many = Many {
        credentials,
        ready_s,
        cpu_s,
        status_writes: requests.about("ecrcredentials/status"),
        secret_writes: requests.0.get("APPLY secrets").copied().unwrap_or_default(),
        aws_calls: aws_calls(&cluster),
        ..Many::default()
    };
    let model = bare::model(&cluster.admin, "n0", SECRET).await?;
    let samples = args.samples.min(MOST_SAMPLES);
    many.idle = latency::sample(&cluster, "idle", "c0", &model, latency::PAUSE, |count| count < samples).await?;
    // The last status may not be written yet, and would count as a write of the next start.
    cluster.settle().await?;
    many.peak_kib = operator.peak_kib()?;
    operator.stop()?;
    many.start = size::start(&cluster, args, credentials).await?;
    Ok(many)
}
