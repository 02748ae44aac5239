//! The watches of what identities refer to: named ServiceAccounts, and named Secrets with static keys, by their metadata.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::ObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};

use super::Shared;
use super::follow::{Subject, follow};
use crate::lenient::Observed;
use crate::plan::auth::Reference;
use crate::plan::references::{
    AUDIENCE_ANNOTATION, AccountRecord, AccountScope, KeysRecord, KeysScope, ROLE_ANNOTATION,
};

/// An annotation that is longer than any role or audience is cut: it is wrong, and there is one for each of thousands of namespaces.
const LONGEST_ANNOTATION: usize = 2048;

/// Follows the ServiceAccounts of a scope; ends with the process.
pub async fn accounts(client: Client, scope: AccountScope, shared: Arc<Shared>) {
    let api: Api<Observed<ServiceAccount>> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", scope.name));
    let subject = Subject { what: "ServiceAccounts", kind: "ServiceAccount", scope: scope.to_string() };
    let begin = move || watcher(api.clone(), config.clone());
    let refused = || shared.reference_known(Reference::Account(scope.clone()), true);
    let mut events = std::pin::pin!(follow(subject, shared.clone(), begin, refused));
    let mut seen: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(object) => {
                seen.insert(object.namespace().unwrap_or_default());
                account_seen(&shared, object.meta());
            }
            Event::Apply(object) => account_seen(&shared, object.meta()),
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
    let short = |text: &String| text.chars().take(LONGEST_ANNOTATION).collect();
    let text = |key: &str| metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).map(short);
    Some(AccountRecord {
        uid: metadata.uid.as_deref()?.into(),
        created: metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0),
        role: text(ROLE_ANNOTATION),
        audience: text(AUDIENCE_ANNOTATION),
    })
}

/// Follows a Secret with static keys; ends with the process.
pub async fn keys(client: Client, scope: KeysScope, shared: Arc<Shared>) {
    let api: Api<Observed<Secret>> = Api::namespaced(client, &scope.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", scope.name));
    let subject = Subject { what: "Secrets with AWS keys", kind: "Secret", scope: format!("keys {scope}") };
    let begin = move || watcher(api.clone(), config.clone());
    let refused = || shared.reference_known(Reference::Keys(scope.clone()), true);
    let mut events = std::pin::pin!(follow(subject, shared.clone(), begin, refused));
    let mut seen = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen = false,
            Event::InitApply(object) => {
                seen = true;
                shared.keys_seen(&scope, keys_record(object.meta()));
            }
            Event::Apply(object) => shared.keys_seen(&scope, keys_record(object.meta())),
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
