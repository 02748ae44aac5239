//! What goes wrong with one request or with the watches leaves no trace in the end.

use sim::blow::Blow;
use sim::crash::{Baselines, Verdict};
use sim::parallel;

#[test]
fn a_run_with_faults_ends_as_the_run_without() {
    let baselines = Baselines::default();
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<usize>().ok());
    let (every, seed) = (number("SIM_EVERY").unwrap_or(5), number("SIM_SEED").unwrap_or(2));
    let singles = baselines.singles(&Blow::FAULTS).into_iter().step_by(every);
    let plans: Vec<_> = singles.chain(baselines.sampled(&Blow::FAULTS, 150, seed as u64)).collect();
    let verdicts = parallel::map(&plans, |plan| baselines.try_plan(plan));
    let hits: usize = verdicts.iter().map(|verdict| verdict.hits).sum();
    println!("{} plans, {hits} faults", plans.len());
    let bad: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.violations.is_empty()).collect();
    let shown: Vec<String> = bad
        .iter()
        .take(12)
        .map(|bad| {
            let list: Vec<String> = bad.violations.iter().map(ToString::to_string).collect();
            format!("{} {:?}:\n  {}", bad.name, bad.plan, list.join("\n  "))
        })
        .collect();
    assert!(bad.is_empty(), "{} of {} plans:\n{}", bad.len(), plans.len(), shown.join("\n"));
}
