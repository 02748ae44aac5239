//! I8: wherever the process is killed, the next one brings everything to where it would have come without. `make chaos-real` tries
//! every place.

use futures::StreamExt;
use testbed::crashes::{Moment, Trials, Verdict};

use super::{CRD, launch};

#[tokio::test]
async fn a_process_that_is_killed_anywhere_ends_where_it_would_have_without() {
    let seed = std::env::var("CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let trials = Trials::prepare(launch(), CRD).await.unwrap();
    let plans = trials.sampled(seed);
    let verdicts: Vec<Verdict> = trials.play(&plans).collect().await;
    let wrong: Vec<String> =
        verdicts.iter().filter(|verdict| !verdict.wrong.is_empty()).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "seed {seed}, {} of {} plans:\n{}", wrong.len(), plans.len(), wrong.join("\n"));
    for moment in Moment::ALL {
        let at = verdicts.iter().filter(|verdict| verdict.plan.deaths[0].1 == moment);
        let deaths: usize = at.map(|verdict| verdict.deaths).sum();
        assert!(deaths >= 3, "{deaths} deaths {moment:?}");
    }
}
