//! The watches of what identities refer to: named ServiceAccounts, and named Secrets with static keys, by their metadata; and of
//! the Secrets that are merged into ours.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Client, Resource, ResourceExt};

use super::Shared;
use super::accounts::Accounts;
use super::docker_configs::WatchedInclude;
use super::follow::Subject;
use super::keys::WatchedKeys;
use super::reader::{Reader, Watched};
use super::watches::follow_in;
use crate::apply::Writer;
use crate::lenient::Observed;
use crate::plan::references::{AUDIENCE_ANNOTATION, AccountRecord, ROLE_ANNOTATION};
use crate::plan::scopes::{AccountScope, Reference, SecretKey};
use crate::token::Cluster;

/// An annotation that is longer than any role or audience is cut: it is wrong, and there is one for each of thousands of namespaces.
const LONGEST_ANNOTATION: usize = 2048;

/// Follows the ServiceAccounts of a scope; ends with the process. One that changes too often takes effect once in each `interval`.
pub async fn accounts(client: Client, scope: AccountScope, shared: Arc<Shared>, interval: Duration) {
    let subject = Subject { what: "ServiceAccounts", kind: "ServiceAccount", scope: scope.to_string() };
    let place = (scope.namespace.as_deref(), Some(&*scope.name));
    let refused = || shared.reference_known(Reference::Account(scope.clone()), true);
    let mut events =
        std::pin::pin!(follow_in::<Observed<ServiceAccount>>(client, place, subject, shared.clone(), refused));
    let mut accounts = Accounts::new(scope.clone(), shared.clone(), interval);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::Init) => accounts.list_begins(),
                Some(Event::InitApply(object)) => {
                    accounts.listed(&object.namespace().unwrap_or_default(), account_record(object.meta()));
                }
                Some(Event::Apply(object)) => {
                    accounts.seen(&object.namespace().unwrap_or_default(), account_record(object.meta()));
                }
                Some(Event::Delete(object)) => accounts.seen(&object.namespace().unwrap_or_default(), None),
                Some(Event::InitDone) => accounts.list_ends(),
                None => return,
            },
            () = accounts.due() => accounts.take_effect(),
        }
    }
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

/// Follows a Secret with static keys, which `cluster` reads; ends with the process. Keys that change too often take effect once in
/// each `interval`.
pub async fn keys(
    client: Client,
    cluster: Arc<dyn Cluster>,
    secret: SecretKey,
    shared: Arc<Shared>,
    interval: Duration,
) {
    let subject = Subject { what: "Secrets with AWS keys", kind: "Secret", scope: format!("keys {secret}") };
    follow_secret(client, subject, shared, WatchedKeys { cluster, secret }, interval).await;
}

/// Follows a Secret whose docker config is merged into ours, which `writer` reads; ends with the process. One that changes too often
/// takes effect once in each `interval`.
pub async fn include(client: Client, writer: Writer, secret: SecretKey, shared: Arc<Shared>, interval: Duration) {
    let subject = Subject { what: "Secrets to include", kind: "Secret", scope: format!("include {secret}") };
    follow_secret(client, subject, shared, WatchedInclude { writer, secret }, interval).await;
}

async fn follow_secret<W: Watched>(
    client: Client,
    subject: Subject,
    shared: Arc<Shared>,
    watched: W,
    interval: Duration,
) {
    let reference = watched.reference();
    let refused = || shared.reference_known(reference.clone(), true);
    let SecretKey { namespace, name } = watched.secret().clone();
    let place = (Some(&*namespace), Some(&*name));
    let mut events = std::pin::pin!(follow_in::<Observed<Secret>>(client, place, subject, shared.clone(), refused));
    let mut reader = Reader::new(watched, shared.clone(), interval);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::Init) => reader.list_begins(),
                Some(Event::InitApply(object) | Event::Apply(object)) => reader.seen(object.resource_version()),
                Some(Event::Delete(_)) => reader.gone(),
                Some(Event::InitDone) => reader.list_ends(),
                None => return,
            },
            () = reader.due() => reader.take_turn().await,
        }
    }
}
