//! The main job on a real node: the operator as the chart installs it, and pods that pull a private image with its Secrets.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use testbed::aws::AwsStandIn;
use testbed::control_plane::ControlPlane;
use testbed::node::gateway::{self, Gateway};
use testbed::node::isolation::{self, Scratch};
use testbed::node::registry::Registry;
use testbed::node::tools::Tools;
use testbed::node::{self, Node, Unsupported};

mod builder;
mod cluster;
mod static_pod;
mod story;

/// The exit status that says: not here, as automake's test runners know it.
const SKIPPED: u8 = 77;

#[derive(Parser)]
struct Args {
    /// The archive of the operator's image, as `make image` makes it.
    #[arg(long, default_value = "target/image/ecr-credential-operator.tar")]
    image: PathBuf,
    /// The chart.
    #[arg(long, default_value = "charts/ecr-credential-operator")]
    chart: PathBuf,
    /// Only says whether a node can run here, and fetches the programs that it is made of.
    #[arg(long)]
    check: bool,
    /// Leaves everything running until Ctrl-C.
    #[arg(long, env = "KEEP", default_value = "")]
    keep: String,
    /// The directory and the cgroup of the run; given to the process inside the run's own namespaces.
    #[arg(long, num_args = 2, hide = true)]
    inside: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.inside {
        None => outside(&args),
        Some(place) => inside(&args, Path::new(&place[0]), &place[1]).map(|()| ExitCode::SUCCESS),
    };
    match ended {
        Ok(code) => code,
        Err(error) if error.is::<Unsupported>() => {
            eprintln!("not tested on a real node: {error}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prepares what needs the machine's network, and starts the rest where there is none.
fn outside(args: &Args) -> Result<ExitCode> {
    isolation::check()?;
    Tools::fetch(cluster::step)?;
    if args.check {
        Scratch::new()?;
        return Ok(ExitCode::SUCCESS);
    }
    Tools::prepare(cluster::step)?;
    let start = Instant::now();
    let scratch = Scratch::new()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--inside").arg(&scratch.dir).arg(&scratch.cgroup);
    let status = scratch.run(&command)?;
    let dir = scratch.dir.clone();
    drop(scratch);
    anyhow::ensure!(!dir.exists(), "{} could not be removed", dir.display());
    if status.success() {
        println!("\nDone after {:.0} s, and nothing is left of it.", start.elapsed().as_secs_f64());
    }
    // The process inside has said why.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn inside(args: &Args, dir: &Path, cgroup: &str) -> Result<()> {
    let tools = Tools::prepare(cluster::step)?;
    isolation::furnish(dir, &tools, story::HOST)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        cluster::step("starting a control plane with an address for pods, an AWS stand-in and a private registry");
        let plane = ControlPlane::start(gateway::options()).await?;
        let gateway = Gateway::start(&plane, &tools).await?;
        let aws = AwsStandIn::start_on(node::ADDRESS.into())?;
        let registry = Registry::start(dir, &tools, &aws, story::REGION).await?;
        cluster::step("starting the scheduler, containerd and kubelet");
        let node = Node::start(dir, cgroup, &tools, &plane).await?;
        node.runtime.import(&args.image).context("give the node the operator's image")?;
        node.runtime.import(&story::test_image(&tools, dir)?).context("give the node the image of the chart's test")?;
        node.runtime.alias(story::HOST, &registry.url())?;
        let (dir, cgroup) = (dir.to_owned(), cgroup.to_owned());
        let cluster = cluster::Cluster { plane, gateway, aws, registry, tools, dir, cgroup };
        let told = tokio::select! {
            told = story::tell(&cluster, &args.chart) => told,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        };
        if told.is_err() {
            eprintln!("\n{}", cluster.evidence(&node).await);
        }
        told?;
        if !args.keep.is_empty() {
            cluster.invite();
            tokio::signal::ctrl_c().await?;
        }
        Ok(())
    })
}
