//! Measures the operator and a bare client in turn on a real control plane, and holds the figures against the goals.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use figures::Results;

mod attach;
mod bare;
mod cluster;
mod curves;
mod figures;
mod latency;
mod many;
mod process;
mod report;
mod requests;
mod sightings;
mod size;

#[derive(Parser)]
struct Args {
    /// The operator's release binary.
    #[arg(long, default_value = "target/release/ecr-credential-operator")]
    operator: PathBuf,
    /// The CRD.
    #[arg(long, default_value = "crds/ecrcredentials.pullsecrets.dev.yaml")]
    crd: PathBuf,
    /// The image archive, for its size.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How many namespaces; several make the curves, and none leaves this out.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "500,2000,10000")]
    namespaces: Vec<usize>,
    /// How often each side writes all Secrets; three times as often below 5,000 namespaces.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How many EcrCredentials with ten namespaces each; none leaves this out.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "100,1000")]
    credentials: Vec<usize>,
    /// Leaves out what attaching Secrets costs new pods.
    #[arg(long)]
    no_attach: bool,
    /// How many new namespaces are waited for.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// How long to look at it at rest, in seconds.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The folder in which the curves are drawn.
    #[arg(long)]
    curves: Option<PathBuf>,
    /// Measures nothing, and reports on the figures in this file.
    #[arg(long)]
    from: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let results = match &args.from {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text)?
        }
        None => measure(&args).await?,
    };
    println!("{}", report::report(&results));
    if let Some(folder) = &args.curves {
        curves::draw(&results, folder)?;
    }
    Ok(())
}

async fn measure(args: &Args) -> Result<Results> {
    let binary = std::fs::metadata(&args.operator).with_context(|| format!("find {}", args.operator.display()))?;
    let image = args.image.as_ref().and_then(|path| Some(std::fs::metadata(path).ok()?.len()));
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let mut results = Results { date, machine: machine()?, binary: binary.len(), image, ..Results::default() };
    for namespaces in &args.namespaces {
        results.sizes.push(size::measure(args, *namespaces).await?);
        keep(args, &results)?;
    }
    for credentials in &args.credentials {
        results.many.push(many::measure(args, *credentials).await?);
        keep(args, &results)?;
    }
    if !args.no_attach {
        results.attach = attach::measure(args).await?;
        keep(args, &results)?;
    }
    Ok(results)
}

/// Writes what there is so far: a long run that fails late has not been for nothing.
fn keep(args: &Args, results: &Results) -> Result<()> {
    let Some(path) = &args.json else { return Ok(()) };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(results)?).with_context(|| format!("write {}", path.display()))
}

fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    Ok(format!("{cores} cores of {}", model.unwrap_or("an unknown processor")))
}
