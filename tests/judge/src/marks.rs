//! Whose Secret it is, told from the marks that the operator leaves on it.

use serde_json::Value;

use crate::history::Version;

pub(crate) const EXPIRES_AT: &str = "pullsecrets.dev/expires-at";
pub(crate) const IDENTITY_HASH: &str = "pullsecrets.dev/identity-hash";
pub(crate) const MANAGER: &str = "ecr-credential-operator";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const CREDENTIAL_UID: &str = "pullsecrets.dev/credential-uid";

/// The uid of the EcrCredential that a Secret is marked with: by its owner reference, or by labels that our apply wrote. It is empty where
/// somebody has overwritten the label with the owner, so that it is known only that the Secret is ours; a foreign Secret has none.
pub fn owner(secret: &Value) -> Option<&str> {
    let metadata = &secret["metadata"];
    let is_ours = |owner: &&Value| {
        owner["kind"] == "EcrCredential"
            && owner["controller"] == true
            && owner["apiVersion"].as_str().is_some_and(|version| version.starts_with("pullsecrets.dev/"))
    };
    let reference = metadata["ownerReferences"].as_array().into_iter().flatten().find(is_ours);
    let applied = |label: &str| {
        let mut fields = managed(secret).filter(|entry| entry["operation"] == "Apply");
        fields.any(|entry| !entry["fieldsV1"]["f:metadata"]["f:labels"][format!("f:{label}")].is_null())
    };
    let label = |label: &str| metadata["labels"][label].as_str().filter(|_| applied(label));
    let is_managed = || label(MANAGED_BY).filter(|by| *by == MANAGER).map(|_| "");
    reference.and_then(|owner| owner["uid"].as_str()).or_else(|| label(CREDENTIAL_UID)).or_else(is_managed)
}

/// The operator's entries in `managedFields`.
pub(crate) fn managed(object: &Value) -> impl Iterator<Item = &Value> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().filter(|entry| entry["manager"] == MANAGER)
}

/// Whether others manage a key of a Secret's data, and the operator does not.
pub(crate) fn is_others(secret: &Value, key: &str) -> bool {
    let field = format!("f:{key}");
    let has = |entry: &Value| !entry["fieldsV1"]["f:data"][&field].is_null();
    let entries = secret["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().any(has) && !managed(secret).any(has)
}

/// It belongs to the EcrCredential with this uid.
pub(crate) fn belongs_to(secret: &Version, uid: &str) -> bool {
    owner(&secret.object) == Some(uid)
}

/// It bears no mark of ours.
pub(crate) fn is_foreign(secret: &Version) -> bool {
    owner(&secret.object).is_none()
}
