//! Before it judges, the recorder waits until it has seen all that exists, and until what must be collected is.

use std::collections::BTreeMap;
use std::time::Duration;

use ::judge::history::{History, Key, Kind};
use ::judge::is_collected;
use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::Instant;

use super::Recorder;

/// How long a watch may lag behind a list.
const WATCH_LAG: Duration = Duration::from_secs(60);

/// How long the garbage collector may take for what an EcrCredential leaves.
const COLLECTION: Duration = Duration::from_secs(60);

impl Recorder {
    pub(super) async fn settle(&self) -> Result<()> {
        for source in &self.sources {
            let list = source.list(&self.client).await.context("list what exists, to compare")?;
            let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
            let exists: BTreeMap<Key, &Value> =
                items.iter().map(|object| (Key::of(source.kind, object), object)).collect();
            let exists: BTreeMap<Key, &Value> = exists.into_iter().filter(|(key, _)| (source.in_scope)(key)).collect();
            let mine =
                |key: &Key| source.kind != Kind::Secret || source.field_selector.ends_with(&format!("={}", key.name));
            let caught_up = self.until(WATCH_LAG, |recorder| {
                let history = recorder.shared.history.lock();
                let all_seen = exists.iter().all(|(key, object)| has_seen(&history, key, object));
                all_seen
                    && history
                        .live(source.kind)
                        .filter(|(key, _)| mine(key))
                        .all(|(key, live)| exists.contains_key(key) || is_newer(&live.object, &list))
            });
            anyhow::ensure!(caught_up.await, "the watch of {} lags more than {WATCH_LAG:?} behind", source.path);
        }
        // What is still there afterwards is for the judge to say.
        self.until(COLLECTION, |recorder| is_collected(&recorder.shared.history.lock())).await;
        Ok(())
    }

    /// Whether this becomes true in time; looked at after changes of the history.
    pub async fn until(&self, timeout: Duration, reached: impl Fn(&Recorder) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            changed.borrow_and_update();
            if reached(self) {
                return true;
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return false;
            }
            // Thousands of changes in a second need not be looked at one by one.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn has_seen(history: &History, key: &Key, object: &Value) -> bool {
    history
        .versions(key)
        .iter()
        .rev()
        .any(|seen| seen.resource_version() == object["metadata"]["resourceVersion"] || is_newer(&seen.object, object))
}

fn is_newer(object: &Value, than: &Value) -> bool {
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse::<u64>().ok());
    version(object) > version(than)
}
