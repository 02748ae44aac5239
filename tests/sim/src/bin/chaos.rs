//! The long form: every plan, every named fault with several seeds, and many months; prints progress and writes the table.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::blow::Blow;
use sim::crash::Baselines;
use sim::tally::Tally;
use sim::{cases, month, parallel};

/// How many runs between two lines of progress.
const CHUNK: usize = 200;

#[derive(Parser)]
struct Args {
    /// Decides everything that is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many plans of two and three deaths, and as many of faults.
    #[arg(long, default_value_t = 5000)]
    sampled: usize,
    /// How often each named fault is tried.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// How many months.
    #[arg(long, default_value_t = 1000)]
    months: u64,
    /// The document with the table; it is left alone without this.
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let start = Instant::now();
    let mut tally = Tally::default();
    plans(&args, &mut tally);
    let cases = cases::all();
    for round in 0..args.rounds {
        let verdicts = parallel::map(&cases, |case| case.run(args.seed + round));
        verdicts.iter().for_each(|verdict| tally.case(verdict));
        progress("named faults, rounds", round as usize + 1, args.rounds as usize, start, &tally);
    }
    let seeds: Vec<u64> = (args.seed..args.seed + args.months).collect();
    for (index, chunk) in seeds.chunks(20).enumerate() {
        parallel::map(chunk, |seed| month::play(*seed, 30)).iter().for_each(|verdict| tally.month(verdict));
        progress("months", index * 20 + chunk.len(), seeds.len(), start, &tally);
    }
    println!("{}", tally.total());
    if let Some(path) = &args.write
        && let Err(error) = tally.write(path, args.seed)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if tally.violations() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn plans(args: &Args, tally: &mut Tally) {
    let start = Instant::now();
    let baselines = Baselines::default();
    let mut plans = baselines.singles(&Blow::DEATHS);
    plans.extend(baselines.singles(&Blow::FAULTS));
    plans.extend(baselines.sampled(&Blow::DEATHS, args.sampled, args.seed));
    plans.extend(baselines.sampled(&Blow::FAULTS, args.sampled, args.seed));
    for (index, chunk) in plans.chunks(CHUNK).enumerate() {
        let verdicts = parallel::map(chunk, |plan| baselines.try_plan(plan));
        verdicts.iter().for_each(|verdict| tally.plan(verdict));
        progress("plans", index * CHUNK + chunk.len(), plans.len(), start, tally);
    }
}

fn progress(what: &str, done: usize, of: usize, start: Instant, tally: &Tally) {
    println!("{what}: {done} of {of}, {} violations, {} s", tally.violations(), start.elapsed().as_secs());
}
