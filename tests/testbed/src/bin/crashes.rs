//! The long form of the crash plans: every moment of every mutating request of every workload, and two deaths in a row; writes the table.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use futures::StreamExt;
use testbed::bed::Launch;
use testbed::crashes::{Table, Trials};

/// How many plans between two lines of progress.
const CHUNK: usize = 20;

#[derive(Parser)]
struct Args {
    /// The operator's binary.
    #[arg(long)]
    operator: PathBuf,
    /// The CRD.
    #[arg(long)]
    crd: PathBuf,
    /// Decides what is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many plans of two deaths.
    #[arg(long, default_value_t = 100)]
    doubles: usize,
    /// The document with the table; it is left alone without this.
    #[arg(long)]
    write: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let start = Instant::now();
    let crd = std::fs::read_to_string(&args.crd).with_context(|| format!("read {}", args.crd.display()))?;
    let trials = Trials::prepare(Launch::new(&args.operator), &crd).await?;
    let mut plans = trials.singles();
    plans.extend(trials.doubles(args.doubles, args.seed));
    println!("{} plans; without a death all is well, {} s", plans.len(), start.elapsed().as_secs());
    let (mut table, mut done) = (Table::default(), 0);
    let mut verdicts = std::pin::pin!(trials.play(&plans));
    while let Some(verdict) = verdicts.next().await {
        table.add(&verdict);
        done += 1;
        if !verdict.wrong.is_empty() {
            println!("{verdict}");
        }
        if done % CHUNK == 0 || done == plans.len() {
            println!("{done} of {}, {} wrong, {} s", plans.len(), table.wrong(), start.elapsed().as_secs());
        }
    }
    if let Some(path) = &args.write {
        table.write(path, &trials, args.seed)?;
    }
    Ok(if table.wrong() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
