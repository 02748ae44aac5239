//! I8: wherever the process dies, the end is that of the run without a crash.

use sim::blow::Blow;
use sim::crash::{Baselines, Verdict};
use sim::parallel;

/// With the single deaths, more than a thousand plans.
const SAMPLED: usize = 800;

#[test]
fn a_process_that_dies_anywhere_ends_where_it_would_have_without() {
    let baselines = Baselines::default();
    let mut plans = baselines.singles(&Blow::DEATHS);
    plans.extend(baselines.sampled(&Blow::DEATHS, SAMPLED, 1));
    let verdicts = parallel::map(&plans, |plan| baselines.try_plan(plan));
    let deaths: usize = verdicts.iter().map(|verdict| verdict.deaths).sum();
    println!("{} plans, {deaths} deaths", plans.len());
    let bad: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.violations.is_empty()).collect();
    let shown: Vec<String> = bad
        .iter()
        .take(10)
        .map(|bad| {
            let list: Vec<String> = bad.violations.iter().map(ToString::to_string).collect();
            format!("{} {:?}:\n  {}", bad.name, bad.plan, list.join("\n  "))
        })
        .collect();
    assert!(bad.is_empty(), "{} of {} plans:\n{}", bad.len(), plans.len(), shown.join("\n"));
    assert!(plans.len() >= 1000 && deaths >= plans.len(), "{} plans with {deaths} deaths", plans.len());
}
