//! Every named fault, with the invariants that it tries.

use sim::{cases, parallel};

#[test]
fn no_fault_breaks_an_invariant() {
    let only = std::env::var("SIM_CASE").unwrap_or_default();
    let cases: Vec<_> =
        cases::all().into_iter().filter(|case| case.name.contains(&only) || case.class.contains(&only)).collect();
    let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let verdicts = parallel::map(&cases, |case| case.run(seed));
    let faults: usize = verdicts.iter().map(|verdict| verdict.faults).sum();
    println!("{} cases, {faults} faults", cases.len());
    let bad: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict.violations.is_empty())
        .map(|bad| {
            let list: Vec<String> = bad.violations.iter().take(8).map(ToString::to_string).collect();
            format!("{} (seed {}):\n  {}", bad.name, bad.seed, list.join("\n  "))
        })
        .collect();
    assert!(bad.is_empty(), "{} of {} cases:\n{}", bad.len(), cases.len(), bad.join("\n"));
}
