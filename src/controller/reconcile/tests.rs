//! When the status is written, and that nothing else waits for it.

use std::cell::Cell;

use kube::runtime::reflector::{self, store::Writer as StoreWriter};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::super::stage::{ACCOUNT, HOUR, NOW, Server, Stage, at, refusal, token};
use super::super::{queue, run};
use super::*;
use crate::clock::Clock;
use crate::plan::Identity;

const PATH: &str = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/x/status";

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn passed() -> Duration {
    BEGUN.get().unwrap().elapsed()
}

/// A controller that has its tokens, and its EcrCredential as the watch shows it.
struct Running {
    ctx: Arc<Context>,
    server: Server,
    object: EcrCredential,
    store: StoreWriter<EcrCredential>,
}

impl Running {
    fn start() -> Self {
        BEGUN.set(Some(Instant::now()));
        let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
        stage.ctx.clock = Clock::new(|| at(NOW).checked_add(passed()).unwrap(), passed);
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let published = [(token_spec, token("p", NOW + 11 * HOUR, &Identity::operator()))].into();
        let remembered = CredentialState { published, ..CredentialState::default() };
        let state = Arc::new(tokio::sync::Mutex::new(remembered));
        stage.ctx.states.0.lock().insert(stage.uid.clone(), state);
        let Stage { ctx, server, object, queue: queued, .. } = stage;
        let ctx = Arc::new(ctx);
        let (reader, store) = reflector::store();
        let mut running = Self { ctx: ctx.clone(), server, object, store };
        running.store.apply_watcher_event(&Event::Init);
        running.store.apply_watcher_event(&Event::InitDone);
        running.sees("1", Value::Null);
        tokio::spawn(run(ctx, reader, queue(queued, std::future::pending())));
        running
    }

    /// The watch shows this status.
    fn sees(&mut self, version: &str, status: Value) {
        self.object.metadata.resource_version = Some(version.to_owned());
        self.object.status = serde_json::from_value(status).unwrap();
        self.store.apply_watcher_event(&Event::Apply(self.object.clone()));
        self.ctx.shared.credential_seen(&self.object);
    }
}

async fn seconds(number: u64) {
    tokio::time::sleep(Duration::from_secs(number)).await;
}

#[tokio::test(start_paused = true)]
async fn no_secret_waits_until_a_status_that_could_not_be_written_is_tried_again() {
    let mut asked = Vec::new();
    for (code, answer) in [(200, json!({ "metadata": { "resourceVersion": "2" } })), (500, refusal(500, "no"))] {
        let running = Running::start();
        running.server.answers(PATH, code, answer);
        running.server.is_silent_about("/secrets/pull");
        seconds(600).await;
        let [secrets, statuses] = ["/secrets/pull", "/status"].map(|end| running.server.asked(end));
        asked.push((secrets, statuses));
    }
    let [(with_status, _), (without, tried)] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(without, with_status, "writes of Secrets: {asked:?}");
    assert!((5..20).contains(&tried), "{tried} tries of the status");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_could_not_be_written_is_tried_at_once_when_it_says_something_new() {
    let mut running = Running::start();
    running.server.answers(PATH, 500, refusal(500, "no"));
    seconds(200).await;
    let tries = running.server.asked("/status");
    seconds(30).await;
    assert_eq!(running.server.asked("/status"), tries, "it waits by now");
    running.object.metadata.generation = Some(2);
    running.sees("2", Value::Null);
    seconds(1).await;
    assert_eq!(running.server.asked("/status"), tries + 1);
    running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": "3" } }));
    seconds(300).await;
    assert_eq!(running.server.asked("/status"), tries + 2);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_an_older_one_has_overwritten_is_written_again_within_a_minute() {
    let mut running = Running::start();
    running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": "2" } }));
    seconds(300).await;
    let writes = running.server.asked("/status");
    // A write that was given up arrives, and its status is older than the one that has been written since.
    let conditions = json!([{
        "type": "Ready", "status": "False", "reason": "FetchingToken", "message": "its first token is being requested",
        "observedGeneration": 1, "lastTransitionTime": "2027-01-15T08:00:00Z",
    }]);
    running.sees("3", json!({ "observedGeneration": 1, "conditions": conditions }));
    seconds(60).await;
    let again = running.server.asked("/status") - writes;
    assert!((1..=2).contains(&again), "{again} writes");
}
