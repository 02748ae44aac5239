//! The watches: what they see goes into the world, and whom it concerns onto the queue.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer as StoreWriter;
use kube::runtime::watcher::{self, Event, ExponentialBackoff, watcher};
use kube::{Client, ResourceExt};

use super::Shared;
use crate::api::EcrCredential;
use crate::plan::Uid;
use crate::plan::targets::{Claimant, Selection};
use crate::secret::ownership::SecretRecord;

/// One watch of Secrets, as narrow as the rights allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretScope {
    /// Only Secrets of this name.
    pub name: Option<Arc<str>>,
    /// Only Secrets in this namespace.
    pub namespace: Option<Arc<str>>,
}

/// A failed watch is tried again within seconds: it is what new namespaces wait for.
fn backoff() -> ExponentialBackoff {
    backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .into()
}

/// Follows the `EcrCredentials`; ends with the process.
pub async fn credentials(
    client: Client,
    selector: Option<String>,
    shared: Arc<Shared>,
    mut store: StoreWriter<EcrCredential>,
) {
    let api: Api<DeserializeGuard<EcrCredential>> = Api::all(client);
    let mut config = watcher::Config::default();
    if let Some(selector) = &selector {
        config = config.labels(selector);
    }
    let mut seen: HashSet<Uid> = HashSet::new();
    let events = reported("EcrCredentials", watcher(api, config).backoff(backoff()));
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let Some(event) = readable(event) else { continue };
        store.apply_watcher_event(&event);
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.extend(object.uid().map(|uid| Uid(uid.into())));
                shared.credential_seen(&object);
            }
            Event::Apply(object) => shared.credential_seen(&object),
            Event::Delete(object) => shared.credential_gone(&object),
            Event::InitDone => shared.credentials_listed(&seen),
        }
    }
}

/// Passes on what can be read; an object that cannot is reported and treated as gone, and stops nobody else.
fn readable(event: Event<DeserializeGuard<EcrCredential>>) -> Option<Event<EcrCredential>> {
    let object = |guard: DeserializeGuard<EcrCredential>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::error!(name, error = %invalid.error, "an EcrCredential cannot be read: is the installed CRD of another version?");
            None
        }
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(guard) => object(guard).map(Event::InitApply),
        Event::Apply(guard) => object(guard).map(Event::Apply),
        Event::Delete(guard) => object(guard).map(Event::Delete),
    }
}

/// What targets depend on of an `EcrCredential`. One whose selection is unusable still lives, and wants nothing.
pub fn claimant(object: &EcrCredential) -> Claimant {
    Claimant {
        name: object.name_any().into(),
        created: object.creation_timestamp().map_or(Timestamp::MAX, |time| time.0),
        secret_name: object.spec.secret.name.as_str().into(),
        selection: Selection::parse(&object.spec.namespaces).ok(),
    }
}

/// Follows the namespaces' metadata; ends with the process.
pub async fn namespaces(client: Client, shared: Arc<Shared>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let events = reported("namespaces", watcher(api, watcher::Config::default()).backoff(backoff()));
    let mut events = std::pin::pin!(events);
    let mut seen: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert(object.name_any());
                shared.namespace_seen(object);
            }
            Event::Apply(object) => shared.namespace_seen(object),
            Event::Delete(object) => shared.namespace_gone(&object.name_any()),
            Event::InitDone => shared.namespaces_listed(&seen),
        }
    }
}

/// Follows the metadata of the Secrets in a scope; ends with the process.
pub async fn secrets(client: Client, scope: SecretScope, shared: Arc<Shared>) {
    let api: Api<PartialObjectMeta<Secret>> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let mut config = watcher::Config::default();
    if let Some(name) = &scope.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let events = reported("Secrets", watcher(api, config).backoff(backoff()));
    let mut events = std::pin::pin!(events);
    let mut seen: HashSet<(String, String)> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert((object.name_any(), object.namespace().unwrap_or_default()));
                secret_seen(&shared, &object);
            }
            Event::Apply(object) => secret_seen(&shared, &object),
            Event::Delete(object) => {
                shared.secret_gone(
                    &object.name_any(),
                    &object.namespace().unwrap_or_default(),
                    object.uid().as_deref(),
                );
            }
            Event::InitDone => shared.secrets_listed(&scope, &seen),
        }
    }
}

fn secret_seen(shared: &Shared, object: &PartialObjectMeta<Secret>) {
    if let Some(record) = SecretRecord::read(&object.metadata) {
        shared.secret_seen(&object.name_any(), &object.namespace().unwrap_or_default(), record);
    }
}

/// Passes events on and reports errors: each text once, until something else happens.
fn reported<K>(
    what: &'static str,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = Event<K>> {
    let mut last = String::new();
    stream.filter_map(move |item| {
        let event = match item {
            Ok(event) => {
                last.clear();
                Some(event)
            }
            Err(error) => {
                let text = error.to_string();
                if text != last {
                    tracing::warn!(what, error = %text, "{}", hint(what, &error));
                    last = text;
                }
                None
            }
        };
        std::future::ready(event)
    })
}

fn hint(what: &str, error: &watcher::Error) -> &'static str {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    match status {
        Some(status) if status.is_not_found() && what == "EcrCredentials" => {
            "the CRD ecrcredentials.pullsecrets.dev is not installed: waiting for it"
        }
        Some(status) if status.is_forbidden() => "the operator lacks the right to watch: check its ClusterRole",
        _ => "a watch was interrupted and is tried again",
    }
}
