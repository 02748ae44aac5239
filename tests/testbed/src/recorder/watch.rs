//! Follows one kind of object through every version, across closed watches and API server restarts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::judge::history::{History, Key, Kind, Version};
use anyhow::{Context, Result};
use futures::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use jiff::Timestamp;
use kube::Client;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use super::Scope;

/// Nothing tells when an API server that is away comes back.
const RETRY: Duration = Duration::from_millis(100);

/// A history that grows, and a signal for each addition.
pub(super) struct Shared {
    pub(super) history: Mutex<History>,
    pub(super) changed: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Shared { history: Mutex::default(), changed: watch::channel(0).0 }
    }
}

/// The objects of one path, such as `/api/v1/secrets` with a field selector, that are in scope.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) path: String,
    pub(super) field_selector: String,
    pub(super) in_scope: Arc<dyn Fn(&Key) -> bool + Send + Sync>,
}

impl Source {
    /// Follows until the task is dropped. `started` is told once everything that exists is known.
    pub(super) async fn follow(self, client: Client, shared: Arc<Shared>, started: tokio::sync::oneshot::Sender<()>) {
        let mut started = Some(started);
        loop {
            let version = match self.list(&client).await {
                Ok(list) => {
                    self.take_list(&shared, &list, started.is_some());
                    if let Some(started) = started.take() {
                        let _ = started.send(());
                    }
                    list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
                }
                Err(_) => {
                    // The API server is away, or does not know the kind yet.
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            self.watch_from(&client, &shared, version).await;
        }
    }

    /// Everything that exists now.
    pub(super) async fn list(&self, client: &Client) -> Result<Value> {
        let request = Request::get(format!("{}?fieldSelector={}", self.path, self.field_selector)).body(vec![])?;
        parse(&client.request_text(request).await?)
    }

    /// Takes over what the list has and the history has not.
    fn take_list(&self, shared: &Shared, list: &Value, initial: bool) {
        let at = Timestamp::now();
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let present: BTreeSet<Key> = items.iter().map(|object| Key::of(self.kind, object)).collect();
        for object in items {
            self.add(shared, Version { initial, ..Version::seen(at, Arc::new(object.clone())) });
        }
        let live = |history: &History| -> Vec<(Key, Arc<Value>)> {
            history.live(self.kind).map(|(key, version)| (key.clone(), version.object.clone())).collect()
        };
        // Other sources of the same kind have other names.
        let mine =
            |key: &Key| self.field_selector.is_empty() || self.field_selector == format!("metadata.name={}", key.name);
        let gone = live(&shared.history.lock());
        for (_, object) in gone.into_iter().filter(|(key, _)| mine(key) && !present.contains(key)) {
            self.add(shared, Version { deleted: true, ..Version::seen(at, object) });
        }
    }

    /// Watches, and watches again from the last version when the watch ends or breaks; returns when that version is too old.
    async fn watch_from(&self, client: &Client, shared: &Shared, mut version: String) {
        loop {
            match self.watch_once(client, shared, &mut version).await {
                Ok(()) => {}
                Err(error) if is_too_old(&error) => return,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn watch_once(&self, client: &Client, shared: &Shared, version: &mut String) -> Result<()> {
        let url = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds=240&resourceVersion={version}&fieldSelector={}",
            self.path, self.field_selector
        );
        let mut lines = client.request_stream(Request::get(url).body(vec![])?).await?.lines();
        while let Some(line) = lines.try_next().await? {
            let mut event = parse(&line).context("a watch event that is no JSON")?;
            let object = Arc::new(event["object"].take());
            match event["type"].as_str() {
                Some("ERROR") => {
                    return Err(kube::Error::Api(Box::new(serde_json::from_value((*object).clone())?)).into());
                }
                Some("BOOKMARK") => {}
                kind => {
                    let deleted = kind == Some("DELETED");
                    self.add(shared, Version { deleted, ..Version::seen(Timestamp::now(), object.clone()) });
                }
            }
            if let Some(seen) = object["metadata"]["resourceVersion"].as_str() {
                *version = seen.to_owned();
            }
        }
        Ok(())
    }

    fn add(&self, shared: &Shared, version: Version) {
        if (self.in_scope)(&Key::of(self.kind, &version.object)) && shared.history.lock().add(self.kind, version) {
            shared.changed.send_modify(|count| *count += 1);
        }
    }
}

/// Tests make objects that are nested deeper than most readers allow.
fn parse(text: &str) -> Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.disable_recursion_limit();
    Ok(Value::deserialize(&mut deserializer)?)
}

fn is_too_old(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 410)
}

/// All that a recorder of this scope follows.
pub(super) fn sources(scope: &Scope) -> Vec<Source> {
    let source = |kind, path: &str, field_selector: String, in_scope: Arc<dyn Fn(&Key) -> bool + Send + Sync>| Source {
        kind,
        path: path.to_owned(),
        field_selector,
        in_scope,
    };
    let prefix = scope.credential_prefix.clone();
    let all: Arc<dyn Fn(&Key) -> bool + Send + Sync> = Arc::new(|_: &Key| true);
    let mut sources = vec![
        source(Kind::Namespace, "/api/v1/namespaces", String::new(), all.clone()),
        source(Kind::Event, "/api/v1/events", String::new(), all.clone()),
        source(
            Kind::Credential,
            "/apis/pullsecrets.dev/v1alpha1/ecrcredentials",
            String::new(),
            Arc::new(move |key: &Key| key.name.starts_with(&prefix)),
        ),
    ];
    for name in scope.settings.iter().flat_map(|settings| &settings.secret_names) {
        sources.push(source(Kind::Secret, "/api/v1/secrets", format!("metadata.name={name}"), all.clone()));
    }
    sources
}
