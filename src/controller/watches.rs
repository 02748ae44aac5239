//! The watches: what they see goes into the world, and whom it concerns onto the queue.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::{DeserializeGuard, ObjectMeta, Status, error_boundary::InvalidObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer as StoreWriter;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, ExponentialBackoff, watcher};
use kube::{Client, Resource, ResourceExt};
use tokio::time::Instant;
use wildmatch::WildMatch;

use super::Shared;
use crate::api::{Auth, EcrCredential, EcrCredentialSpec};
use crate::plan::auth::Reference;
use crate::plan::targets::{Claimant, Selection};
use crate::secret::metadata::{NamespaceMetadata, SecretMetadata};

/// One watch of Secrets, as narrow as the rights allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretScope {
    /// Only Secrets of this name.
    pub name: Option<Arc<str>>,
    /// Only Secrets in this namespace.
    pub namespace: Option<Arc<str>>,
}

/// How long a watch must have gone without a failure before the next one is taken for a first.
const WELL: Duration = Duration::from_secs(30);

/// How long a watch of Secrets is refused before the work begins without it. An API server that has just been started
/// refuses for a moment what it allows.
const REFUSED: Duration = Duration::from_secs(10);

/// The waits of a failing watch: it is tried again within seconds, for it is what new namespaces wait for. They grow
/// although the watch says each time that it begins, which would reset the waits of the library.
pub(super) struct Waits {
    growing: ExponentialBackoff,
    last: Option<Instant>,
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.is_some_and(|last| last.elapsed() > WELL) {
            self.growing.reset();
        }
        self.last = Some(Instant::now());
        self.growing.next()
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {}
}

pub(super) fn backoff() -> Waits {
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(3))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .into();
    Waits { growing, last: None }
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
    let mut listed: Vec<EcrCredential> = Vec::new();
    let mut unreadable: Vec<ObjectMeta> = Vec::new();
    let events = reported("EcrCredentials", watcher(api, config).backoff(backoff()));
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        // The store comes first: whoever is put on the queue is looked up there.
        match event {
            Event::Init => {
                listed.clear();
                unreadable.clear();
                store.apply_watcher_event(&Event::Init);
            }
            Event::InitApply(DeserializeGuard(Ok(object))) => {
                store.apply_watcher_event(&Event::InitApply(object.clone()));
                listed.push(object);
            }
            Event::InitApply(DeserializeGuard(Err(invalid))) => unreadable.push(report_unreadable(invalid)),
            Event::InitDone => {
                store.apply_watcher_event(&Event::InitDone);
                shared.credentials_listed(&std::mem::take(&mut listed), &unreadable);
            }
            Event::Apply(DeserializeGuard(Ok(object))) => {
                store.apply_watcher_event(&Event::Apply(object.clone()));
                shared.credential_seen(&object);
            }
            Event::Apply(DeserializeGuard(Err(invalid))) => shared.credential_unreadable(&report_unreadable(invalid)),
            Event::Delete(DeserializeGuard(Ok(object))) => {
                store.apply_watcher_event(&Event::Delete(object.clone()));
                shared.credential_gone(object.meta());
            }
            Event::Delete(DeserializeGuard(Err(invalid))) => shared.credential_gone(&invalid.metadata),
        }
    }
}

/// An object that cannot be read stops nobody else. It is alive, so that nobody takes its Secrets, and wants nothing new.
fn report_unreadable(invalid: InvalidObject) -> ObjectMeta {
    let name = invalid.metadata.name.as_deref().unwrap_or_default();
    tracing::error!(name, error = %invalid.error, "an EcrCredential cannot be read: is the installed CRD of another version?");
    invalid.metadata
}

/// What targets depend on of an `EcrCredential`. One whose selection is unusable still lives, and wants nothing.
pub fn claimant(object: &EcrCredential) -> Claimant {
    Claimant {
        name: object.name_any().into(),
        created: object.creation_timestamp().map_or(Timestamp::MAX, |time| time.0),
        secret_name: object.spec.secret.name.as_str().into(),
        generation: object.metadata.generation,
        selection: Selection::parse(&object.spec.namespaces).ok(),
        references: auths(&object.spec).filter_map(Reference::of).collect(),
        attach: object
            .spec
            .attach_to
            .iter()
            .flat_map(|to| &to.service_accounts)
            .map(|glob| WildMatch::new(glob))
            .collect(),
    }
}

/// The same of one that cannot be read: it is alive, and wants nothing.
pub fn unreadable(metadata: &ObjectMeta) -> Claimant {
    Claimant {
        name: metadata.name.as_deref().unwrap_or_default().into(),
        created: metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0),
        secret_name: "".into(),
        generation: None,
        selection: None,
        references: BTreeSet::new(),
        attach: Vec::new(),
    }
}

/// Every `auth` of a spec.
fn auths(spec: &EcrCredentialSpec) -> impl Iterator<Item = &Auth> {
    spec.auth.iter().chain(spec.registries.iter().filter_map(|registry| registry.auth.as_ref()))
}

/// Follows the namespaces' metadata; ends with the process.
pub async fn namespaces(client: Client, shared: Arc<Shared>) {
    let api: Api<NamespaceMetadata> = Api::all(client);
    let events = reported("namespaces", watcher(api, watcher::Config::default()).backoff(backoff()));
    let mut events = std::pin::pin!(events);
    let mut seen: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert(object.name_any());
                shared.namespace_seen(&object);
            }
            Event::Apply(object) => shared.namespace_seen(&object),
            Event::Delete(object) => shared.namespace_gone(&object.name_any()),
            // The room as well is given back: the next list may never come.
            Event::InitDone => shared.namespaces_listed(&std::mem::take(&mut seen)),
        }
    }
}

/// Follows the metadata of the Secrets in a scope; ends with the process.
pub async fn secrets(client: Client, scope: SecretScope, shared: Arc<Shared>) {
    let api: Api<SecretMetadata> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let mut config = watcher::Config::default();
    if let Some(name) = &scope.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let (told, refused) = (shared.clone(), scope.clone());
    let noted = refusals(move || told.secrets_refused(&refused));
    let events = reported("Secrets", watcher(api, config).backoff(backoff()).inspect(noted));
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
                let uid = object.record().map(|record| &*record.uid);
                shared.secret_gone(&object.name_any(), &object.namespace().unwrap_or_default(), uid);
            }
            Event::InitDone => shared.secrets_listed(&scope, &std::mem::take(&mut seen)),
        }
    }
}

/// Notes that a scope is refused for good, so that nobody waits for it: one namespace without rights must not hold up the
/// others. What is written there will be refused, and told of.
pub(super) fn refusals<K>(refused: impl Fn()) -> impl FnMut(&watcher::Result<Event<K>>) {
    let mut since: Option<Instant> = None;
    move |item| match item {
        Ok(Event::Init) => {}
        Err(error) if status(error).is_some_and(Status::is_forbidden) => {
            if since.get_or_insert_with(Instant::now).elapsed() >= REFUSED {
                refused();
            }
        }
        _ => since = None,
    }
}

fn secret_seen(shared: &Shared, object: &SecretMetadata) {
    if let Some(record) = object.record() {
        shared.secret_seen(&object.name_any(), &object.namespace().unwrap_or_default(), record.clone());
    }
}

/// Passes events on and reports errors: each text once, until something else happens.
pub(super) fn reported<K>(
    what: &'static str,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = Event<K>> {
    let mut last = String::new();
    stream.filter_map(move |item| {
        let event = match item {
            // It begins again, which may come to nothing again.
            Ok(event @ Event::Init) => Some(event),
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
    match status(error) {
        Some(status) if status.code == 404 && what == "EcrCredentials" => {
            "the CRD ecrcredentials.pullsecrets.dev is not installed: waiting for it"
        }
        Some(status) if status.is_forbidden() => "the operator lacks the right to watch: check its ClusterRole",
        _ => "a watch was interrupted and is tried again",
    }
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}
