//! The watches of what identities refer to: named ServiceAccounts, and named Secrets with static keys, by their metadata.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};

use super::Shared;
use super::watches::{backoff, refusals, reported};
use crate::plan::auth::Reference;
use crate::plan::references::{
    AUDIENCE_ANNOTATION, AccountRecord, AccountScope, KeysRecord, KeysScope, ROLE_ANNOTATION,
};

/// Follows the ServiceAccounts of a scope; ends with the process.
pub async fn accounts(client: Client, scope: AccountScope, shared: Arc<Shared>) {
    let api: Api<PartialObjectMeta<ServiceAccount>> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", scope.name));
    let (told, reference) = (shared.clone(), Reference::Account(scope.clone()));
    let noted = refusals(move || told.reference_known(reference.clone(), true));
    let events = reported("ServiceAccounts", watcher(api, config).backoff(backoff()).inspect(noted));
    let mut events = std::pin::pin!(events);
    let mut seen: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert(object.namespace().unwrap_or_default());
                account_seen(&shared, &object.metadata);
            }
            Event::Apply(object) => account_seen(&shared, &object.metadata),
            Event::Delete(object) => {
                shared.account_seen(&object.namespace().unwrap_or_default(), &object.name_any(), None);
            }
            Event::InitDone => shared.accounts_listed(&scope, &seen),
        }
    }
}

fn account_seen(shared: &Shared, metadata: &ObjectMeta) {
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    shared.account_seen(namespace.unwrap_or_default(), name.unwrap_or_default(), account_record(metadata));
}

/// What is kept of a ServiceAccount.
pub fn account_record(metadata: &ObjectMeta) -> Option<AccountRecord> {
    let text = |key: &str| metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).cloned();
    Some(AccountRecord {
        uid: metadata.uid.as_deref()?.into(),
        created: metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0),
        role: text(ROLE_ANNOTATION),
        audience: text(AUDIENCE_ANNOTATION),
    })
}

/// Follows a Secret with static keys; ends with the process.
pub async fn keys(client: Client, scope: KeysScope, shared: Arc<Shared>) {
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &scope.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", scope.name));
    let (told, reference) = (shared.clone(), Reference::Keys(scope.clone()));
    let noted = refusals(move || told.reference_known(reference.clone(), true));
    let events = reported("Secrets with AWS keys", watcher(api, config).backoff(backoff()).inspect(noted));
    let mut events = std::pin::pin!(events);
    let mut seen = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen = false,
            Event::InitApply(object) => {
                seen = true;
                shared.keys_seen(&scope, keys_record(&object.metadata));
            }
            Event::Apply(object) => shared.keys_seen(&scope, keys_record(&object.metadata)),
            Event::Delete(_) => shared.keys_seen(&scope, None),
            Event::InitDone => {
                if !seen {
                    shared.keys_seen(&scope, None);
                }
                shared.reference_known(Reference::Keys(scope.clone()), false);
            }
        }
    }
}

/// What is kept of a Secret with static keys.
pub fn keys_record(metadata: &ObjectMeta) -> Option<KeysRecord> {
    let version = metadata.resource_version.as_deref()?.into();
    Some(KeysRecord { uid: metadata.uid.as_deref()?.into(), version })
}
