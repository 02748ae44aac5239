//! The watches: what they see goes into the cluster state, and whom it concerns onto the queue.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::runtime::reflector::store::Writer as StoreWriter;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use wildmatch::WildMatch;

use super::Shared;
use super::follow::{Subject, follow};
use super::secret_list::SecretList;
use super::unreadable::UnreadableReports;
use crate::api::observed::{ObservedCredential, Unreadable};
use crate::api::{Auth, EcrCredential, EcrCredentialSpec, NamespaceSelection};
use crate::lenient::Observed;
use crate::plan::namespaces::NamespaceMatcher;
use crate::plan::outputs::{WantedSecret, wanted_secrets};
use crate::plan::scopes::{Reference, SecretKey, SecretScope};
use crate::plan::targets::{Activity, CredentialRef};
use crate::plan::{self, Limits};
use crate::secret::observed::SecretMetadata;

/// Follows the `EcrCredentials`; ends with the process.
pub async fn credentials(
    client: Client,
    selector: Option<String>,
    shared: Arc<Shared>,
    mut store: StoreWriter<EcrCredential>,
    mut reports: UnreadableReports,
) {
    let api: Api<ObservedCredential> = Api::all(client);
    let mut config = watcher::Config::default();
    if let Some(selector) = &selector {
        config = config.labels(selector);
    }
    let subject = Subject { what: "EcrCredentials", kind: "EcrCredential", scope: String::new() };
    let begin = move || watcher(api.clone(), config.clone());
    let mut listed = CredentialList::default();
    let mut events = std::pin::pin!(follow(subject, shared.clone(), begin, || {}));
    while let Some(event) = events.next().await {
        // The store comes first: whoever is put on the queue is looked up there.
        match event {
            Event::Init => {
                listed = CredentialList::default();
                store.apply_watcher_event(&Event::Init);
            }
            Event::InitApply(object) => match object.content.0 {
                Ok(object) => {
                    store.apply_watcher_event(&Event::InitApply((*object).clone()));
                    listed.good.push(*object);
                }
                Err(unreadable) => listed.unreadable.push(*unreadable),
            },
            Event::InitDone => {
                store.apply_watcher_event(&Event::InitDone);
                let listed = std::mem::take(&mut listed);
                reports.keep(&listed.unreadable);
                shared.credentials_listed(&listed);
                listed.unreadable.iter().for_each(|object| reports.report(object));
            }
            Event::Apply(object) => match object.content.0 {
                Ok(object) => {
                    reports.forget(object.metadata.uid.as_ref());
                    store.apply_watcher_event(&Event::Apply((*object).clone()));
                    shared.credential_seen(&object);
                }
                Err(unreadable) => {
                    shared.credential_unreadable(&unreadable);
                    reports.report(&unreadable);
                }
            },
            Event::Delete(object) => {
                reports.forget(object.meta().uid.as_ref());
                shared.credential_gone(object.meta());
                if let Ok(object) = object.content.0 {
                    store.apply_watcher_event(&Event::Delete(*object));
                }
            }
        }
    }
}

/// A whole list of `EcrCredentials`.
#[derive(Default)]
pub(super) struct CredentialList {
    pub(super) good: Vec<EcrCredential>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// What targets depend on of an `EcrCredential`. One whose selection is unusable still lives, and wants nothing.
pub fn credential_ref(object: &EcrCredential, limits: &Limits) -> CredentialRef {
    let plan = plan::plan(&object.spec, limits);
    let idle = object.spec.suspend || plan.is_err();
    let mut secrets = wanted_secrets(&object.spec, limits);
    // What is refused stands in nobody's way.
    let is_refused =
        |name: &str| plan.as_ref().is_ok_and(|p| p.secret_named(name).is_some_and(|s| s.refusal.is_some()));
    for secret in secrets.iter_mut().filter(|secret| is_refused(&secret.name)) {
        secret.allowed = Some(BTreeSet::new());
    }
    CredentialRef {
        name: object.name_any().into(),
        created: created(&object.metadata),
        activity: if idle { Activity::Idle } else { Activity::Active },
        secrets,
        generation: object.metadata.generation,
        references: references(&object.spec),
        attach: object
            .spec
            .attach_to
            .iter()
            .flat_map(|to| &to.service_accounts)
            .map(|glob| WildMatch::new(glob))
            .collect(),
    }
}

/// The same of one that cannot be read: it is alive, and keeps the Secrets that it wants as far as that can be read.
pub fn unreadable(object: &Unreadable) -> CredentialRef {
    let Unreadable { metadata, wanted, .. } = object;
    let selection = |namespaces: &Option<NamespaceSelection>| NamespaceMatcher::parse(namespaces.as_ref()?).ok();
    let pull_secret = wanted.secret_name.as_deref().unwrap_or_default();
    let mut secrets = vec![WantedSecret::anywhere(pull_secret, selection(&wanted.namespaces))];
    for (name, namespaces) in &wanted.outputs {
        if !secrets.iter().any(|other| *other.name == **name) {
            secrets.push(WantedSecret::anywhere(name, selection(namespaces)));
        }
    }
    CredentialRef {
        name: metadata.name.as_deref().unwrap_or_default().into(),
        created: created(metadata),
        activity: Activity::Unreadable,
        secrets,
        generation: None,
        references: BTreeSet::new(),
        attach: Vec::new(),
    }
}

fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

/// What a spec refers to.
pub fn references(spec: &EcrCredentialSpec) -> BTreeSet<Reference> {
    let includes = plan::includes(spec).into_iter().map(Reference::Include);
    auths(spec).filter_map(Reference::of).chain(includes).collect()
}

/// Every `auth` of a spec.
fn auths(spec: &EcrCredentialSpec) -> impl Iterator<Item = &Auth> {
    spec.auth.iter().chain(spec.registries.iter().filter_map(|registry| registry.auth.as_ref()))
}

/// Follows the namespaces' metadata; ends with the process.
pub async fn namespaces(client: Client, shared: Arc<Shared>) {
    let api: Api<Observed<Namespace>> = Api::all(client);
    let subject = Subject { what: "namespaces", kind: "Namespace", scope: String::new() };
    let begin = move || watcher(api.clone(), watcher::Config::default());
    let mut events = std::pin::pin!(follow(subject, shared.clone(), begin, || {}));
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

/// The objects of one kind in a namespace, or in all of them.
pub fn api_in<K>(client: Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

/// Watches the objects of one kind, only in the namespace and of the name that are given. `refused` is called each time that the API
/// server has refused the watch for long.
pub(super) fn follow_in<K>(
    client: Client,
    (namespace, name): (Option<&str>, Option<&str>),
    subject: Subject,
    shared: Arc<Shared>,
    refused: impl Fn(),
) -> impl Stream<Item = Event<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<K> = api_in(client, namespace);
    let config = match name {
        Some(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
        None => watcher::Config::default(),
    };
    follow(subject, shared, move || watcher(api.clone(), config.clone()), refused)
}

/// Follows the metadata of the Secrets in a scope; ends with the process.
pub async fn secrets(client: Client, scope: SecretScope, shared: Arc<Shared>) {
    let subject = Subject { what: "Secrets", kind: "Secret", scope: scope.to_string() };
    let place = (scope.namespace.as_deref(), scope.name.as_deref());
    let refused = || shared.secrets_refused(&scope);
    let mut events = std::pin::pin!(follow_in(client, place, subject, shared.clone(), refused));
    let mut list = SecretList::new(scope.clone(), shared.clone());
    let key = |object: &SecretMetadata| SecretKey::new(object.name_any(), object.namespace().unwrap_or_default());
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = list.due() => {
                list.expire();
                continue;
            }
        };
        match event {
            Some(Event::Init) => list.begins(),
            Some(Event::InitApply(object)) => {
                let key = key(&object);
                if let Some(record) = object.record() {
                    shared.secret_listed(&key.name, &key.namespace, record.clone());
                }
                list.lists(key);
            }
            Some(Event::Apply(object)) => {
                let key = key(&object);
                list.shown(&key);
                if let Some(record) = object.record() {
                    shared.secret_changed(&key.name, &key.namespace, record.clone());
                }
            }
            Some(Event::Delete(object)) => {
                let key = key(&object);
                list.shown(&key);
                let uid = object.record().map(|record| &*record.uid);
                shared.secret_gone(&key.name, &key.namespace, uid);
            }
            Some(Event::InitDone) => list.ends(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests;
