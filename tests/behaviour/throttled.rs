//! An API server that is busy: when it says to come back is kept, it is not asked by ever more at a time, and once it is not
//! busy any more all goes at full speed.

use std::collections::BTreeMap;

use serde_json::json;
use testbed::bed::PATIENCE;
use testbed::proxy::{Action, Answer, Fault, Mark, Match};

use super::look::{at_once, spec};
use super::{bed, launch};

/// How many writes at a time the operator is allowed.
const CONCURRENCY: usize = 8;

/// What the API server says, in seconds.
const RETRY_AFTER: u64 = 2;

#[tokio::test]
async fn a_busy_api_server_is_asked_again_when_it_says_so_and_by_no_crowd() {
    let bed = bed("throttled").await;
    for n in 0..5 * CONCURRENCY {
        bed.namespace(&format!("n{n}"), &[]).await.unwrap();
    }
    let busy = Action::Answer(Answer::too_many_requests(RETRY_AFTER));
    let fault = bed.proxy.place(Fault::new(Match::secret_writes(), busy));
    let operator = bed.operator(launch().args(&["--concurrency", &CONCURRENCY.to_string()])).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [bed.name("n*")] }))).await.unwrap();
    // Everyone has been asked three times, or would have been in a storm.
    bed.proxy.log().wait_for(Mark::default(), &Match::secret_writes(), 8 * CONCURRENCY, PATIENCE).await.unwrap();
    fault.remove();
    let cleared = bed.proxy.log().mark();
    at_once(bed.ready(&name)).await;

    let mut asked: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for write in bed.proxy.log().writes_to_secrets() {
        asked.entry(write.target.namespace).or_default().push((write.started, write.finished.unwrap()));
    }
    for (namespace, tries) in &asked {
        for pair in tries.windows(2) {
            let waited = pair[1].0.duration_since(pair[0].1).as_millis();
            assert!(waited >= i128::from(RETRY_AFTER) * 1000 - 50, "{namespace} was tried again after {waited} ms");
        }
    }
    let first = asked.values().map(|tries| tries[0].0).min().unwrap();
    let at_first = asked.values().filter(|tries| tries[0].0.duration_since(first).as_millis() < 1500).count();
    assert!(at_first <= CONCURRENCY, "{at_first} began while the first {CONCURRENCY} waited");
    let after = bed.proxy.log().writes_to_secrets_since(cleared);
    assert!(after.len() <= 5 * CONCURRENCY, "{} writes of {} Secrets", after.len(), 5 * CONCURRENCY);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
