//! Whose Secret it is, told from the marks that the operator leaves on it.

use std::collections::BTreeSet;

use super::history::Version;

pub(super) const EXPIRES_AT: &str = "pullsecrets.dev/expires-at";
pub(super) const IDENTITY_HASH: &str = "pullsecrets.dev/identity-hash";
pub(super) const MANAGER: &str = "ecr-credential-operator";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const CREDENTIAL_UID: &str = "pullsecrets.dev/credential-uid";
const CREDENTIAL: &str = "pullsecrets.dev/credential";

/// It bears our manager's label and belongs to one of these EcrCredentials.
pub(super) fn is_ours(secret: &Version, credential_uids: &BTreeSet<&str>) -> bool {
    secret.label(MANAGED_BY) == Some(MANAGER) && uids(secret).iter().any(|uid| credential_uids.contains(uid))
}

/// It belongs to the EcrCredential with this uid.
pub(super) fn belongs_to(secret: &Version, credential_uid: &str) -> bool {
    uids(secret).contains(&credential_uid)
}

/// It bears no mark of ours at all. A Secret that lost only some of its marks is neither ours nor foreign.
pub(super) fn is_foreign(secret: &Version) -> bool {
    secret.label(MANAGED_BY) != Some(MANAGER)
        && uids(secret).is_empty()
        && secret.label(CREDENTIAL).is_none()
        && secret.annotation(EXPIRES_AT).is_none()
}

/// The uids of the EcrCredentials that the owner references and the label name.
pub(super) fn uids(secret: &Version) -> Vec<&str> {
    let owners = secret.object["metadata"]["ownerReferences"].as_array();
    let owners = owners.into_iter().flatten().filter(|owner| owner["kind"] == "EcrCredential");
    owners.filter_map(|owner| owner["uid"].as_str()).chain(secret.label(CREDENTIAL_UID)).collect()
}
