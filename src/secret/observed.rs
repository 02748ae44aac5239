//! Secrets as watches and lists return them: their metadata, and what the operator keeps of it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::value::RawValue;

use super::metadata::Metadata;
use super::ownership::SecretRecord;
use crate::lenient::{Extract, Object, Observed, read};

/// What the operator keeps of a Secret.
#[derive(Clone, Debug)]
pub struct Kept(Option<Arc<SecretRecord>>);

impl Extract for Kept {
    const METADATA_ONLY: bool = true;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        let metadata = Metadata::of(object);
        (metadata.head(), Self(SecretRecord::of(&metadata).map(Arc::new)))
    }
}

/// A Secret as an [`Api`](kube::Api) of its metadata returns it: its name, its namespace, and what we keep of it.
pub type SecretMetadata = Observed<Secret, Kept>;

impl SecretMetadata {
    /// What we keep of it; none without uid and resourceVersion, which no stored object lacks.
    pub const fn record(&self) -> Option<&Arc<SecretRecord>> {
        self.content.0.as_ref()
    }
}

/// The same with all its metadata, for reports.
pub type SecretDetails = Observed<Secret, Details>;

/// The metadata of a Secret as the API server sent it.
#[derive(Clone, Debug)]
pub struct Details(Option<Box<RawValue>>);

impl Extract for Details {
    const METADATA_ONLY: bool = true;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        (Metadata::of(object).head(), Self(Object::of(object).metadata.map(ToOwned::to_owned)))
    }
}

impl Details {
    /// The metadata that is used.
    pub fn metadata(&self) -> Metadata<'_> {
        self.0.as_deref().and_then(read).unwrap_or_default()
    }
}

#[cfg(test)]
impl From<&ObjectMeta> for Details {
    fn from(metadata: &ObjectMeta) -> Self {
        Self(serde_json::value::to_raw_value(metadata).ok())
    }
}

#[cfg(test)]
impl SecretRecord {
    /// The record of this metadata as the API server sends it.
    pub(crate) fn read(metadata: &ObjectMeta) -> Option<Self> {
        Self::of(&Details::from(metadata).metadata())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Namespace;
    use kube::{Resource, ResourceExt};
    use serde_json::json;

    /// A Secret's metadata as the metadata API shows it (1.36).
    fn answer() -> serde_json::Value {
        json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {
                "annotations": { "pullsecrets.dev/expires-at": "2026-01-01T12:00:00Z" },
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator" },
                "managedFields": [{
                    "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "ecr-credential-operator", "operation": "Apply",
                    "time": "2026-01-01T00:00:00Z",
                    "fieldsV1": {
                        "f:data": { "f:.dockerconfigjson": {}, "f:extra": {} },
                        "f:metadata": {
                            "f:annotations": { "f:pullsecrets.dev/expires-at": {} },
                            "f:labels": { "f:app.kubernetes.io/managed-by": {} },
                            "f:ownerReferences": { "k:{\"uid\":\"u\"}": {} },
                        },
                        "f:type": {},
                    },
                }],
                "name": "pull", "namespace": "a",
                "ownerReferences": [
                    { "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "x", "uid": "u", "controller": true },
                ],
                "resourceVersion": "7", "uid": "s",
            },
        })
    }

    #[test]
    fn what_is_read_without_copies_is_what_is_read_with_them() {
        let text = answer().to_string();
        let lean: SecretMetadata = serde_json::from_str(&text).unwrap();
        let whole: kube::core::PartialObjectMeta<Secret> = serde_json::from_str(&text).unwrap();
        let record = SecretRecord::read(&whole.metadata).unwrap();
        assert_eq!(**lean.record().unwrap(), record);
        assert_eq!((lean.name_any(), lean.namespace()), (whole.name_any(), whole.namespace()));
        assert_eq!(lean.resource_version(), whole.resource_version());
        assert!(record.expires_at.is_some() && record.owner.is_some() && record.has_additions(None));
    }

    /// The API server writes the type first. In another order serde would keep the object aside, where no depth is tolerated.
    #[test]
    fn a_watch_event_is_read() {
        let text = format!(r#"{{"type":"ADDED","object":{}}}"#, answer());
        let event: kube::core::WatchEvent<SecretMetadata> = serde_json::from_str(&text).unwrap();
        let kube::core::WatchEvent::Added(object) = event else { panic!("{event:?}") };
        assert!(object.record().is_some());
    }

    #[test]
    fn a_text_with_escapes_is_read() {
        let mut answer = answer();
        answer["metadata"]["annotations"]["pullsecrets.dev/expires-at"] = "\"\n".into();
        let lean: SecretMetadata = serde_json::from_str(&answer.to_string()).unwrap();
        assert_eq!(lean.record().unwrap().expires_at, None);
    }

    #[test]
    fn what_is_no_object_has_no_fields() {
        for odd in [json!(null), json!(true), json!(-1), json!(1), json!(1.5), json!("x"), json!([{ "f:data": {} }])] {
            let mut answer = answer();
            answer["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"] = odd.clone();
            answer["metadata"]["labels"] = odd;
            let lean: SecretMetadata = serde_json::from_str(&answer.to_string()).unwrap();
            assert!(lean.record().unwrap().has_additions(None));
        }
    }

    #[test]
    fn both_are_read_through_the_metadata_api() {
        assert!(SecretMetadata::metadata_api() && Observed::<Namespace>::metadata_api());
        assert_eq!(SecretMetadata::url_path(&(), Some("a")), "/api/v1/namespaces/a/secrets");
        assert_eq!(Observed::<Namespace>::url_path(&(), None), "/api/v1/namespaces");
    }

    #[test]
    fn a_namespace_is_read_without_its_managed_fields() {
        let answer = json!({ "metadata": {
            "name": "a", "uid": "u", "resourceVersion": "7", "labels": { "pull": "ecr" }, "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-02T00:00:00Z", "managedFields": [{ "fieldsV1": { "f:metadata": {} } }],
        }});
        let lean: Observed<Namespace> = serde_json::from_str(&answer.to_string()).unwrap();
        let mut whole: kube::core::PartialObjectMeta<Namespace> = serde_json::from_value(answer).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(*lean.meta(), whole.metadata);
    }
}
