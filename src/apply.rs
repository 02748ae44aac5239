//! The only writer to the API server, except for the lease and Events: Secrets by guarded server-side apply, and the status.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, GetParams, Patch, PatchParams, Preconditions, ValidationDirective};
use kube::core::{Request, Status};
use kube::{Client, Resource, ResourceExt};
use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::answers::{Cause, is_gone, kind, message, own_refusal, shorten, within};
use crate::api::status::Reason;
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::attach::Operation;
use crate::lenient::{Extract, Observed};
use crate::plan::namespaces::{Labels, NamespaceUid};
use crate::secret::formats::Payload;
use crate::secret::metadata::Metadata;
use crate::secret::observed::SecretMetadata;
use crate::secret::ownership::{Ownership, SecretRecord, is_ours};
use crate::secret::{Desired, FIELD_MANAGER, REFRESHED_AT, SecretAction, SecretTarget};

/// A write that takes longer releases its slot: a namespace whose admission webhook hangs must not delay the
/// others.
pub const SLOW: Duration = Duration::from_secs(2);

/// How many writes may be under way for each that may be under way and not slow.
const SLOW_FACTOR: usize = 8;

/// The result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The Secret was written; this is its new record.
    Stored(Arc<SecretRecord>),
    /// The Secret was deleted, or did not exist.
    Deleted,
    /// The Secret is being deleted, and stays until its finalizers are removed.
    Deleting(Arc<SecretRecord>),
}

/// Why a write did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The Secret has changed since we saw it. A watch event brings its current state.
    Stale,
    /// The namespace is being deleted or does not exist.
    NamespaceGone,
    /// The Secret cannot be changed in place (its type is wrong, or it is immutable).
    Unchangeable(Reason, String),
    /// The API server refused or failed.
    Refused(Reason, String),
}

impl WriteError {
    /// Removes a message that quotes the payload: an admission policy may quote what it refuses.
    fn without(self, desired: Option<&Desired>) -> Self {
        match self {
            Self::Refused(reason, message) if desired.is_some_and(|d| d.payload.is_quoted_in(&message)) => {
                Self::Refused(reason, "the message is not shown because it quotes the Secret's data".to_owned())
            }
            other => other,
        }
    }
}

/// What is read of a Secret: one of ours, or one that is merged into ours.
pub struct Found {
    /// The Secret's type.
    pub type_: String,
    /// The data.
    pub data: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// When its newest token was issued, by its annotation.
    pub refreshed_at: Option<Timestamp>,
    /// Whether this operator writes it.
    pub is_ours: bool,
}

/// Writes Secrets and statuses, with limited concurrency.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    /// For every write, slow ones too.
    all: Arc<Semaphore>,
    /// For writes that are not slow.
    slots: Arc<Semaphore>,
    timeout: Duration,
}

impl Writer {
    /// A writer with at most `concurrency` writes under way, those that are [`SLOW`] apart, none of which may take longer
    /// than `timeout`.
    pub fn new(client: Client, concurrency: usize, timeout: Duration) -> Self {
        let slots = |number: usize| Arc::new(Semaphore::new(number.clamp(1, Semaphore::MAX_PERMITS)));
        let all = slots(concurrency.saturating_mul(SLOW_FACTOR));
        Self { client, all, slots: slots(concurrency), timeout }
    }

    /// How many more writes may be under way, slow ones included.
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }

    /// Performs an action once there is a free slot and `begin` allows it. An action without a write returns [`WriteError::Stale`], so
    /// that the Secret is compared again.
    pub async fn perform(
        &self,
        target: &SecretTarget,
        action: &SecretAction,
        desired: Option<&Desired>,
        begin: impl FnOnce() -> bool,
    ) -> Result<Written, WriteError> {
        let work = async {
            match (action, desired) {
                (SecretAction::Create, Some(desired)) => {
                    self.expect_namespace_of(target, desired, None).await?;
                    self.apply(target, desired, None).await
                }
                (SecretAction::Update(record), Some(desired)) => {
                    self.expect_namespace_of(target, desired, Some(record)).await?;
                    self.update(target, desired, record).await
                }
                (SecretAction::Strip(record), desired) => {
                    self.strip(target, record, desired.map(|desired| &desired.payload)).await
                }
                (SecretAction::Delete(record), _) => self.delete(target, record).await,
                _ => Err(WriteError::Stale),
            }
        };
        self.in_slot(work, begin).await.map_err(|error| error.without(desired))
    }

    /// Does a write once there is a free slot and `begin` allows it.
    async fn in_slot<T>(
        &self,
        work: impl Future<Output = Result<T, WriteError>>,
        begin: impl FnOnce() -> bool,
    ) -> Result<T, WriteError> {
        // The semaphores are never closed.
        let _place = self.all.acquire().await.ok();
        let slot = self.slots.acquire().await.ok();
        if !begin() {
            return Err(WriteError::Stale);
        }
        let mut work = std::pin::pin!(tokio::time::timeout(self.timeout, work));
        let ended = match tokio::time::timeout(SLOW, &mut work).await {
            Ok(ended) => ended,
            Err(_) => {
                drop(slot);
                work.await
            }
        };
        let late = |_| Err(WriteError::Refused(Reason::ApiError, "the API server did not answer in time".to_owned()));
        ended.unwrap_or_else(late)
    }

    /// Checks that a token of one namespace is not written into another that has its name by now, which no precondition of an apply can
    /// express. If the namespace is recreated after that, the Secret is deleted again ([`SecretTarget::holds_anothers_token`]). One that this
    /// process has written for that very namespace before needs no check.
    ///
    /// # Errors
    /// It was recreated or deleted, or the API server refused or failed.
    async fn expect_namespace_of(
        &self,
        target: &SecretTarget,
        desired: &Desired,
        over: Option<&SecretRecord>,
    ) -> Result<(), WriteError> {
        let is_of_it = |record: &SecretRecord| record.content_of.as_deref() == Some(&target.namespace_uid);
        if !desired.of_one_namespace || over.is_some_and(is_of_it) {
            return Ok(());
        }
        let api: Api<Observed<Namespace>> = Api::all(self.client.clone());
        let found = within(self.timeout, api.get(&target.namespace)).await.map_err(classify)?;
        let now = NamespaceUid::of_namespace(found.meta());
        if now == target.namespace_uid { Ok(()) } else { Err(WriteError::NamespaceGone) }
    }

    /// A Secret with its data, to find tokens again after a restart, or to merge it into ours; none when it is gone.
    ///
    /// # Errors
    /// The API server refused, failed, or did not answer in time.
    pub async fn read(&self, namespace: &str, name: &str) -> Result<Option<Found>, kube::Error> {
        // As text: when an answer cannot be read as an object, kube logs all of it.
        let request = Request::new(Secret::url_path(&(), Some(namespace)))
            .get(name, &GetParams::default())
            .map_err(kube::Error::BuildRequest)?;
        let text = match within(self.timeout, self.client.request_text(request)).await {
            Ok(text) => Zeroizing::new(text),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let secret: Option<Stored<'_>> = serde_json::from_str(&text).ok();
        Ok(secret.map(|secret| {
            let refreshed_at = secret.metadata.annotations.get(REFRESHED_AT).and_then(|text| text.parse().ok());
            let decoded =
                |(key, value): (String, String)| Some((key, STANDARD.decode(Zeroizing::new(value)).ok()?.into()));
            let is_ours = is_ours(&secret.metadata);
            Found {
                type_: secret.type_,
                data: secret.data.into_iter().filter_map(decoded).collect(),
                refreshed_at,
                is_ours,
            }
        }))
    }

    /// Replaces the status of that very `EcrCredential`: one that was deleted and made again has another uid, and is owed no
    /// status of its predecessor. The API server looks at no uid in the body of a custom resource's status; a JSON patch can
    /// test it. Returns the resourceVersion with it.
    ///
    /// # Errors
    /// The API server refused or failed, or the uid is another by now (422).
    pub async fn status(
        &self,
        object: &EcrCredential,
        status: &EcrCredentialStatus,
    ) -> Result<Option<String>, kube::Error> {
        let api: Api<Observed<EcrCredential>> = Api::all(self.client.clone());
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": object.uid() },
            { "op": "add", "path": "/status", "value": status },
        ]);
        let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).map_err(kube::Error::SerdeError)?);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = within(self.timeout, api.patch_status(&object.name_any(), &params, &patch)).await?;
        Ok(written.resource_version())
    }

    /// Changes what the status of an `EcrCredential` says of its state, and leaves the rest as it is: the object cannot be read, so the
    /// status may have fields that would be lost. The resourceVersion makes sure that the object is as it was seen.
    ///
    /// # Errors
    /// The object has changed (409), or the API server refused or failed.
    pub async fn conditions(&self, metadata: &ObjectMeta, status: &EcrCredentialStatus) -> Result<(), kube::Error> {
        let api: Api<Observed<EcrCredential>> = Api::all(self.client.clone());
        let EcrCredentialStatus { conditions, observed_generation, next_refresh_at, .. } = status;
        let patch = json!({
            "metadata": { "resourceVersion": metadata.resource_version },
            "status": {
                "conditions": conditions, "observedGeneration": observed_generation, "nextRefreshAt": next_refresh_at,
            },
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let name = metadata.name.as_deref().unwrap_or_default();
        within(self.timeout, api.patch_status(name, &params, &Patch::Merge(patch))).await.map(|_| ())
    }

    /// Changes the pull secrets of a ServiceAccount by a JSON patch that tests its resourceVersion, once there is a free slot. Returns the
    /// ServiceAccount as it is stored: admission may have changed it.
    ///
    /// # Errors
    /// It is not as it was seen any more ([`WriteError::Stale`]), or the API server refused or failed.
    pub async fn patch_service_account<T: Extract + Clone + fmt::Debug>(
        &self,
        namespace: &str,
        name: &str,
        operations: &[Operation],
    ) -> Result<Observed<ServiceAccount, T>, WriteError> {
        let api: Api<Observed<ServiceAccount, T>> = Api::namespaced(self.client.clone(), namespace);
        let unreadable = |_| WriteError::Refused(Reason::ApiError, "the patch could not be made".to_owned());
        let patch = serde_json::to_value(operations).and_then(serde_json::from_value).map_err(unreadable)?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        // The answer to a test that fails names no kind, unlike that to a ServiceAccount that is invalid.
        let is_stale = |status: &Status| status.code == 422 && kind(status).is_empty();
        let patch = Patch::<()>::Json(patch);
        let work = async {
            api.patch(name, &params, &patch).await.map_err(|error| match own_refusal(&error) {
                Some(status) if is_stale(status) => WriteError::Stale,
                _ => classify(error),
            })
        };
        self.in_slot(work, || true).await
    }

    fn secrets(&self, namespace: &str) -> Api<SecretMetadata> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Applies over an existing Secret, and removes additions by others.
    async fn update(
        &self,
        target: &SecretTarget,
        desired: &Desired,
        record: &SecretRecord,
    ) -> Result<Written, WriteError> {
        let payload = Some(&desired.payload);
        match self.apply(target, desired, Some(record)).await {
            Ok(Written::Stored(stored)) if stored.has_additions(payload) => self.strip(target, &stored, payload).await,
            applied => self.or_deleted(target, record, applied).await,
        }
    }

    /// The result of a write over a Secret, whose last state is given. If it cannot be changed and is ours, it is deleted: such a Secret
    /// never worked, or cannot be refreshed. Once it is gone, the watch brings us back to create it.
    async fn or_deleted(
        &self,
        target: &SecretTarget,
        last: &SecretRecord,
        written: Result<Written, WriteError>,
    ) -> Result<Written, WriteError> {
        match written {
            // It was deleted before, and is still there: to delete it again would change nothing.
            // The same of one that is not ours: somebody has deleted it already.
            Err(WriteError::Unchangeable(reason, _)) if last.held_by.is_some() => Err(held(reason, last)),
            Err(WriteError::Unchangeable(reason, _)) if matches!(target.ownership, Ownership::Owned(_)) => {
                match self.delete(target, last).await {
                    Ok(Written::Deleting(record)) => Err(held(reason, &record)),
                    deleted => deleted,
                }
            }
            written => written,
        }
    }

    /// Server-side apply by name. What we believe absent is applied without force, so that a Secret which has appeared
    /// since is a conflict; what we believe present is applied with force on that very uid and resourceVersion.
    async fn apply(
        &self,
        target: &SecretTarget,
        desired: &Desired,
        over: Option<&SecretRecord>,
    ) -> Result<Written, WriteError> {
        let manifest = Manifest::new(target, desired, over);
        let params = PatchParams {
            force: over.is_some(),
            // docs/decisions/2026-11-22-no-field-validation.md says what this spares the API server.
            field_validation: Some(ValidationDirective::Ignore),
            ..PatchParams::apply(FIELD_MANAGER)
        };
        stored(self.secrets(&target.namespace).patch(&target.name, &params, &Patch::Apply(&manifest)).await)
    }

    /// Takes keys out of the data that are not ours, and `immutable`: an apply leaves other people's fields as they are.
    async fn strip(
        &self,
        target: &SecretTarget,
        record: &SecretRecord,
        desired: Option<&Payload>,
    ) -> Result<Written, WriteError> {
        let keys: serde_json::Map<String, Value> =
            record.added_keys(desired).map(|key| (key.clone(), Value::Null)).collect();
        let version = &record.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "data": keys, "immutable": null });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = stored(self.secrets(&target.namespace).patch(&target.name, &params, &Patch::Merge(&patch)).await);
        self.or_deleted(target, record, written).await
    }

    async fn delete(&self, target: &SecretTarget, record: &SecretRecord) -> Result<Written, WriteError> {
        let guard = Preconditions {
            uid: Some(record.uid.to_string()),
            resource_version: Some(record.resource_version.to_string()),
        };
        let params = DeleteParams::default().preconditions(guard);
        // As text: the answer is the whole Secret where a finalizer keeps it, and may contain anything.
        let request = Request::new(Secret::url_path(&(), Some(&target.namespace))).delete(&target.name, &params);
        let answer = match request {
            Ok(request) => self.client.request_text(request).await.map(Zeroizing::new),
            Err(error) => Err(kube::Error::BuildRequest(error)),
        };
        match answer {
            Ok(answer) => {
                // The object itself is the answer where finalizers hold it, else a Status without uid.
                let object: Option<SecretMetadata> = serde_json::from_str(&answer).ok();
                let held = object.as_ref().and_then(SecretMetadata::record).filter(|record| record.held_by.is_some());
                Ok(held.map_or(Written::Deleted, |record| Written::Deleting(record.clone())))
            }
            Err(error) if is_gone(&error) => Ok(Written::Deleted),
            Err(error) => Err(classify(error)),
        }
    }
}

/// Why a Secret that cannot be changed is still there.
fn held(reason: Reason, record: &SecretRecord) -> WriteError {
    let finalizer = record.held_by.as_deref().unwrap_or_default();
    let message = format!(
        "the existing Secret cannot be changed ({}) and is being deleted, but its finalizer {finalizer:?} blocks the deletion: remove the finalizer, then the Secret is recreated",
        reason.as_str()
    );
    WriteError::Unchangeable(reason, message)
}

fn stored(answer: Result<SecretMetadata, kube::Error>) -> Result<Written, WriteError> {
    let lacks = || WriteError::Refused(Reason::ApiError, "the API server's answer lacks metadata".to_owned());
    answer.map_err(classify)?.record().cloned().map(Written::Stored).ok_or_else(lacks)
}

/// The body of an apply. Only its first three fields differ between namespaces.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    metadata: ManifestMeta<'a>,
    api_version: &'static str,
    kind: &'static str,
    #[serde(rename = "type")]
    type_: &'static str,
    data: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestMeta<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
    labels: Option<&'a Labels>,
    annotations: Option<&'a Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_references: Option<&'a Vec<OwnerReference>>,
}

/// A Secret as far as it is read.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(default, rename = "type")]
    type_: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// kube asks for `Debug` on every body; this one has the tokens.
impl fmt::Debug for Manifest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl<'a> Manifest<'a> {
    fn new(target: &'a SecretTarget, desired: &'a Desired, over: Option<&'a SecretRecord>) -> Self {
        Self {
            metadata: ManifestMeta {
                name: &target.name,
                uid: over.map(|record| &*record.uid),
                resource_version: over.map(|record| &*record.resource_version),
                labels: desired.metadata.labels.as_ref(),
                annotations: desired.metadata.annotations.as_ref(),
                owner_references: desired.metadata.owner_references.as_ref(),
            },
            api_version: "v1",
            kind: "Secret",
            type_: desired.payload.type_,
            data: desired.payload.expose_data().collect(),
        }
    }
}

/// Sorts an error of the API server. Its own messages never repeat a Secret's data; those of
/// admission may, and are looked through.
fn classify(error: kube::Error) -> WriteError {
    let status = match error {
        kube::Error::Api(status) => status,
        other => {
            return WriteError::Refused(Reason::ApiError, shorten(&format!("no answer from the API server: {other}")));
        }
    };
    let refused = |reason| WriteError::Refused(reason, shorten(&message(&status)));
    let about = kind(&status);
    match Cause::of(&status) {
        Cause::Admission => refused(Reason::AdmissionRefused),
        Cause::Conflict => WriteError::Stale,
        Cause::NotFound if about == "namespaces" => WriteError::NamespaceGone,
        Cause::NotFound if about == "secrets" || about == "serviceaccounts" => WriteError::Stale,
        Cause::Terminating => WriteError::NamespaceGone,
        Cause::Quota => refused(Reason::QuotaExceeded),
        Cause::Rbac => refused(Reason::Forbidden),
        Cause::Invalid if field_is_immutable(&status, "type") => WriteError::Unchangeable(
            Reason::WrongType,
            "the existing Secret has another type, which cannot be changed: delete the Secret".to_owned(),
        ),
        Cause::Invalid if field_is_immutable(&status, "data") || field_is_immutable(&status, "immutable") => {
            WriteError::Unchangeable(Reason::Immutable, "the existing Secret is immutable: delete it".to_owned())
        }
        Cause::Invalid if let Some((_, owners)) = status.message.split_once(TWO_CONTROLLERS) => WriteError::Refused(
            Reason::SecretNotOwned,
            shorten(&format!(
                "another controller owns the Secret ({}): remove it from metadata.ownerReferences (ExternalSecret: set creationPolicy: Orphan), then the Secret is adopted",
                owners.trim()
            )),
        ),
        Cause::Throttled => refused(Reason::Throttled),
        Cause::NotFound | Cause::Invalid | Cause::Other => refused(Reason::ApiError),
    }
}

/// How the API server begins its list of the owners of an object that two controllers want
/// (k8s.io/apimachinery, pkg/api/validation/objectmeta.go).
const TWO_CONTROLLERS: &str = "Only one reference can have Controller set to true. Found \"true\" in ";

fn field_is_immutable(status: &Status, field: &str) -> bool {
    let cause = |details: &kube::core::response::StatusDetails| {
        details.causes.iter().any(|cause| cause.field == field && cause.message.contains("immutable"))
    };
    status.details.as_ref().is_some_and(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::response::StatusDetails;

    fn status(code: u16, message: &str, kind: &str) -> kube::Error {
        let details: StatusDetails = serde_json::from_value(json!({ "kind": kind })).unwrap();
        let status = Status { details: Some(details), ..Status::failure(message, "") };
        kube::Error::Api(status.with_code(code).boxed())
    }

    #[test]
    fn whoever_refuses_speaks_for_itself() {
        const WEBHOOK: &str = "admission webhook \"w.example\" denied the request: every Secret needs the label team";
        const POLICY: &str =
            "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no";
        for code in [400, 403, 404, 409, 418, 422, 429, 500, 503] {
            for message in [WEBHOOK, POLICY] {
                let refused = WriteError::Refused(Reason::AdmissionRefused, message.to_owned());
                assert_eq!(classify(status(code, message, "secrets")), refused, "{code}");
            }
        }
    }

    #[test]
    fn the_api_servers_own_conflicts_are_stale_and_a_missing_namespace_is_gone() {
        let table = [
            (
                409,
                "Operation cannot be fulfilled on secrets \"x\": the object has been modified",
                "secrets",
                WriteError::Stale,
            ),
            (409, "Apply failed with 1 conflict: conflict with \"kubectl\": .data", "", WriteError::Stale),
            (404, "namespaces \"a\" not found", "namespaces", WriteError::NamespaceGone),
            (404, "secrets \"x\" not found", "secrets", WriteError::Stale),
        ];
        for (code, message, kind, expected) in table {
            assert_eq!(classify(status(code, message, kind)), expected, "{message}");
        }
        let gateway = classify(status(404, "no such page", ""));
        assert!(matches!(&gateway, WriteError::Refused(Reason::ApiError, why) if why == "no such page"), "{gateway:?}");
    }

    #[test]
    fn a_second_controller_is_named_with_what_to_do() {
        // As Kubernetes 1.37 says it, before the part that helps a whole list of references.
        let message = format!(
            "Secret \"x\" is invalid: metadata.ownerReferences: Invalid value: {}: Only one reference can have Controller set to true. Found \"true\" in references for ExternalSecret/team and EcrCredential/platform",
            "{...}".repeat(200)
        );
        let WriteError::Refused(reason, why) = classify(status(422, &message, "Secret")) else { panic!("{message}") };
        assert_eq!(reason, Reason::SecretNotOwned);
        assert!(why.contains("ExternalSecret/team") && why.contains("Orphan"), "{why}");
    }

    #[test]
    fn every_answer_of_the_api_server_has_its_meaning() {
        let refused = |reason: Reason| move |message: &str| WriteError::Refused(reason, message.to_owned());
        let cause =
            |reason: &str, field: &str, message: &str| json!({ "reason": reason, "field": field, "message": message });
        let wrong_type = WriteError::Unchangeable(
            Reason::WrongType,
            "the existing Secret has another type, which cannot be changed: delete the Secret".to_owned(),
        );
        let sealed =
            WriteError::Unchangeable(Reason::Immutable, "the existing Secret is immutable: delete it".to_owned());
        let immutable = "field is immutable when `immutable` is set";
        type Expected<'a> = Box<dyn Fn(&str) -> WriteError + 'a>;
        // (code, message, causes, what it means)
        let table: Vec<(u16, &str, Vec<Value>, Expected<'_>)> = vec![
            (
                403,
                "secrets \"x\" is forbidden: unable to create new content in namespace a because it is being terminated",
                vec![cause("NamespaceTerminating", "metadata.namespace", "namespace a is being terminated")],
                Box::new(|_| WriteError::NamespaceGone),
            ),
            (
                403,
                "secrets \"x\" is forbidden: exceeded quota: none, requested: secrets=1, used: secrets=0, limited: secrets=0",
                vec![],
                Box::new(refused(Reason::QuotaExceeded)),
            ),
            (
                403,
                "secrets \"x\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch resource \"secrets\" in API group \"\" in the namespace \"a\"",
                vec![],
                Box::new(refused(Reason::Forbidden)),
            ),
            (
                403,
                "secrets \"x\" is forbidden: some plugin says no",
                vec![],
                Box::new(refused(Reason::AdmissionRefused)),
            ),
            (
                422,
                "Secret \"x\" is invalid: type: Invalid value: field is immutable",
                vec![cause("FieldValueInvalid", "type", "Invalid value: field is immutable")],
                Box::new(move |_| wrong_type.clone()),
            ),
            (
                422,
                "Secret \"x\" is invalid: data: Forbidden",
                vec![cause("FieldValueForbidden", "data", immutable)],
                Box::new(|_| sealed.clone()),
            ),
            (
                422,
                "Secret \"x\" is invalid: immutable: Forbidden",
                vec![cause("FieldValueForbidden", "immutable", immutable)],
                Box::new(|_| sealed.clone()),
            ),
            (
                422,
                "Secret \"x\" is invalid: metadata.labels: Invalid value",
                vec![cause("FieldValueInvalid", "metadata.labels", "Invalid value")],
                Box::new(refused(Reason::ApiError)),
            ),
            (
                422,
                "Secret \"x\" is invalid: data: Required value",
                vec![cause("FieldValueRequired", "data", "Required value")],
                Box::new(refused(Reason::ApiError)),
            ),
            (429, "the server has received too many requests", vec![], Box::new(refused(Reason::Throttled))),
            (413, "Request entity too large: limit is 3145728", vec![], Box::new(refused(Reason::ApiError))),
            (500, "etcdserver: request timed out", vec![], Box::new(refused(Reason::ApiError))),
            (503, "the server is currently unable to handle the request", vec![], Box::new(refused(Reason::ApiError))),
        ];
        for (code, message, causes, expected) in table {
            let details = serde_json::from_value(json!({ "kind": "secrets", "causes": causes })).unwrap();
            let status = Status { details: Some(details), ..Status::failure(message, "") };
            let error = kube::Error::Api(status.with_code(code).boxed());
            assert_eq!(classify(error), expected(message), "{code} {message}");
        }
        let silent = classify(kube::Error::Service("the connection was reset".into()));
        let WriteError::Refused(Reason::ApiError, why) = silent else { panic!("{silent:?}") };
        assert!(why.starts_with("no answer from the API server: ") && why.contains("reset"), "{why}");
        let long = "x".repeat(5000);
        let WriteError::Refused(_, why) = classify(status(500, &long, "secrets")) else { panic!("not refused") };
        assert!(why.len() < 310 && why.ends_with('…'), "{} bytes", why.len());
    }
}

#[cfg(test)]
mod requests;
