//! When Secrets of one name were first seen by a watch of the harness.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A watch of the Secrets of one name in all namespaces.
pub struct Sightings {
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    news: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Sightings {
    /// Begins to watch, and returns when the list is there.
    pub async fn begin(client: Client, name: &str) -> Result<Sightings> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let (send, mut news) = watch::channel(false);
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher::watcher(Api::<PartialObjectMeta<Secret>>::all(client), config));
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Apply(object)) => {
                        noted.lock().entry(object.namespace().unwrap_or_default()).or_insert_with(Instant::now);
                        send.send_replace(true);
                    }
                    Ok(Event::InitDone) => drop(send.send_replace(true)),
                    _ => {}
                }
            }
        });
        news.wait_for(|begun| *begun).await?;
        Ok(Sightings { seen, news, task })
    }

    /// Waits until the Secret in a namespace has been seen; returns when that was.
    pub async fn of(&mut self, namespace: &str) -> Result<Instant> {
        let search = async {
            loop {
                self.news.mark_unchanged();
                if let Some(at) = self.seen.lock().get(namespace) {
                    return Ok(*at);
                }
                self.news.changed().await?;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), search).await.context("no Secret came into the new namespace")?
    }
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.task.abort();
    }
}
