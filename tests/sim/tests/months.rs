//! I6: in days of outages no selected namespace is ever without a valid token.

use sim::{month, parallel};

/// The long form plays a thousand months.
const SEEDS: u64 = 10;
const DAYS: i64 = 3;

#[test]
fn no_namespace_is_without_a_password_for_days() {
    let from: u64 = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let seeds: Vec<u64> = (from..from + SEEDS).collect();
    let verdicts = parallel::map(&seeds, |seed| month::play(*seed, DAYS));
    for v in &verdicts {
        println!(
            "seed {}: {} faults, {} calls, {} writes, least life {:#}",
            v.seed, v.faults, v.calls, v.writes, v.least_life
        );
    }
    // A month in which nothing went wrong, or nothing was done, would prove nothing.
    let (days, refreshes) = (usize::try_from(DAYS).expect("a few"), 4 * usize::try_from(DAYS).expect("a few"));
    for v in &verdicts {
        assert!(v.faults > days, "seed {}: {} faults", v.seed, v.faults);
        // Two registries are refreshed every six hours, and tried at most every five minutes while AWS fails.
        assert!((refreshes..=days * 24 * 12 * 2).contains(&v.calls), "seed {}: {} calls", v.seed, v.calls);
        assert!(v.writes >= refreshes, "seed {}: {} writes", v.seed, v.writes);
    }
    let bad: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict.violations.is_empty())
        .map(|bad| {
            let list: Vec<String> = bad.violations.iter().take(8).map(ToString::to_string).collect();
            format!("seed {}:\n  {}", bad.seed, list.join("\n  "))
        })
        .collect();
    assert!(bad.is_empty(), "{} of {} months:\n{}", bad.len(), seeds.len(), bad.join("\n"));
}
