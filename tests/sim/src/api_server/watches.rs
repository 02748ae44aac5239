//! Watches: the changes since a version, as a stream of JSON lines that can be cut, stalled, or too late.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tower::BoxError;

use super::answer::{Answer, metadata_of};
use super::request::{Kind, Request};
use super::selector::Selector;
use super::{Key, Link, Weather};

/// The longest that an event is under way, in microseconds.
const LATENCY: u64 = 20_000;

struct Watch {
    link: Link,
    kind: Kind,
    selector: Selector,
    metadata_only: bool,
    bookmarks: bool,
    cursor: u64,
    until: Instant,
    epoch: u64,
    versions: channel::Receiver<u64>,
    weather: channel::Receiver<Weather>,
    over: bool,
}

impl Link {
    /// The stream that a watch request is answered with.
    pub(super) fn events(
        self,
        request: &Request,
    ) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static {
        let seconds = request.parameter("timeoutSeconds").parse().unwrap_or(290);
        let (versions, weather) = (self.server.0.version.subscribe(), self.server.0.weather.subscribe());
        let epoch = weather.borrow().epoch;
        let watch = Watch {
            kind: request.target.kind,
            selector: Selector::of(request),
            metadata_only: request.metadata_only,
            bookmarks: request.parameter("allowWatchBookmarks") == "true",
            cursor: request.parameter("resourceVersion").parse().unwrap_or_default(),
            until: Instant::now() + Duration::from_secs(seconds),
            epoch,
            versions,
            weather,
            over: false,
            link: self,
        };
        futures::stream::unfold(watch, |mut watch| async move {
            let chunk = watch.next().await?;
            Some((chunk.map(Frame::data), watch))
        })
    }
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            if self.over {
                return None;
            }
            if self.link.is_cut() {
                pending::<()>().await;
            }
            let weather = self.weather.borrow_and_update().clone();
            if weather.epoch != self.epoch {
                self.over = true;
                return Some(Err("the connection was reset".into()));
            }
            self.versions.mark_unchanged();
            let lines = if weather.stalled { String::new() } else { self.lines() };
            if !lines.is_empty() {
                tokio::time::sleep(self.link.server.latency(LATENCY)).await;
                if self.link.is_cut() {
                    pending::<()>().await;
                }
                return Some(Ok(lines.into()));
            }
            tokio::select! {
                biased;
                _ = self.versions.changed() => {}
                _ = self.weather.changed() => {}
                () = tokio::time::sleep_until(self.until) => {
                    self.over = true;
                    return (self.bookmarks && !weather.stalled).then(|| Ok(self.bookmark().into()));
                }
            }
        }
    }

    /// Everything since the cursor; a 410 if that is not known any more.
    fn lines(&mut self) -> String {
        let store = self.link.server.0.store.lock();
        if self.cursor < store.oldest {
            self.over = true;
            return line("ERROR", &Answer::gone(self.cursor, store.oldest).body);
        }
        let first = store.changes.partition_point(|change| change.version <= self.cursor);
        let mut lines = String::new();
        for change in store.changes.range(first..).filter(|change| self.is_about(&change.key)) {
            let was = change.before.as_ref().is_some_and(|object| self.selector.matches(object));
            let is = !change.deleted && self.selector.matches(&change.after);
            let type_ = match (was, is) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => continue,
            };
            lines.push_str(&line(type_, &self.shown(&change.after)));
        }
        self.cursor = store.version;
        lines
    }

    fn is_about(&self, key: &Key) -> bool {
        key.0 == self.kind && self.selector.names(&key.1, &key.2)
    }

    fn shown(&self, object: &Arc<Value>) -> Value {
        if self.metadata_only { metadata_of(object["metadata"].clone()) } else { (**object).clone() }
    }

    fn bookmark(&self) -> String {
        let (kind, api_version) = if self.metadata_only {
            ("PartialObjectMetadata", "meta.k8s.io/v1")
        } else {
            (self.kind.name(), self.kind.api_version())
        };
        let object = json!({
            "kind": kind, "apiVersion": api_version,
            "metadata": { "resourceVersion": self.cursor.to_string(), "creationTimestamp": null },
        });
        line("BOOKMARK", &object)
    }
}

fn line(type_: &str, object: &Value) -> String {
    // Not with `json!`, which would copy the object.
    format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n")
}
