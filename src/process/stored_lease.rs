//! The Lease as the API server sends it, parsed tolerantly: an invalid field is replaced by the next write, and additions by others
//! stay.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::lenient::{Extract, Items, Object, Observed, lenient, read};

/// A Lease as an [`Api`](kube::Api) returns and takes it.
pub(super) type StoredLease = Observed<Lease, Whole>;

/// All of it but `managedFields`, which the API server keeps where a write has none.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Whole(Lease);

impl StoredLease {
    /// A Lease that is to be written.
    pub(super) fn of(lease: Lease) -> Self {
        Self::new(lease.metadata.clone(), Whole(lease))
    }

    /// The Lease as it was read.
    pub(super) fn into_lease(self) -> Lease {
        self.content.0
    }
}

impl Extract for Whole {
    const METADATA_ONLY: bool = false;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        let object = Object::of(object);
        let Others { owner_references, finalizers } = object.metadata.and_then(read).unwrap_or_default();
        let metadata = ObjectMeta {
            owner_references: owner_references.map(|Items(owners)| owners),
            finalizers: finalizers.map(|Items(finalizers)| finalizers),
            ..object.head()
        };
        let spec = object.spec.and_then(read::<Spec>).map(LeaseSpec::from);
        (metadata.clone(), Self(Lease { metadata, spec }))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Others {
    #[serde(deserialize_with = "lenient")]
    owner_references: Option<Items<OwnerReference>>,
    #[serde(deserialize_with = "lenient")]
    finalizers: Option<Items<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "lenient")]
    acquire_time: Option<MicroTime>,
    #[serde(deserialize_with = "lenient")]
    holder_identity: Option<String>,
    #[serde(deserialize_with = "lenient")]
    lease_duration_seconds: Option<i32>,
    #[serde(deserialize_with = "lenient")]
    lease_transitions: Option<i32>,
    #[serde(deserialize_with = "lenient")]
    preferred_holder: Option<String>,
    #[serde(deserialize_with = "lenient")]
    renew_time: Option<MicroTime>,
    #[serde(deserialize_with = "lenient")]
    strategy: Option<String>,
}

impl From<Spec> for LeaseSpec {
    fn from(spec: Spec) -> Self {
        Self {
            acquire_time: spec.acquire_time,
            holder_identity: spec.holder_identity,
            lease_duration_seconds: spec.lease_duration_seconds,
            lease_transitions: spec.lease_transitions,
            preferred_holder: spec.preferred_holder,
            renew_time: spec.renew_time,
            strategy: spec.strategy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostile::Kind;
    use kube::Resource;

    #[test]
    fn an_ordinary_lease_is_read_and_written_as_it_is() {
        let mut object = Kind::Lease.ordinary("a", "operator");
        let whole: Lease = serde_json::from_value(object.clone()).unwrap();
        let lenient: StoredLease = serde_json::from_str(&object.to_string()).unwrap();
        assert_eq!(lenient.meta().resource_version.as_deref(), Some("7"));
        object["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(serde_json::to_value(&lenient).unwrap(), object);
        assert_eq!(lenient.into_lease().spec, whole.spec);
    }

    #[test]
    fn an_odd_lease_is_read_as_far_as_possible() {
        let ordinary: StoredLease = serde_json::from_str(&Kind::Lease.ordinary("a", "operator").to_string()).unwrap();
        let ordinary = ordinary.into_lease().spec.unwrap();
        for odd in Kind::Lease.odd("a", "operator") {
            let lease: StoredLease = serde_json::from_str(&odd.json).unwrap_or_else(|e| panic!("{}: {e}", odd.what));
            let lease = lease.into_lease();
            if !odd.what.ends_with("at \"\"")
                && !odd.what.ends_with("at \"/metadata\"")
                && !odd.what.contains("resourceVersion")
            {
                assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"), "{}", odd.what);
            }
            if odd.what.contains("Time\"") || odd.what.contains("at \"/metadata") {
                let holder = lease.spec.unwrap().holder_identity;
                assert_eq!(holder, ordinary.holder_identity, "{}", odd.what);
            }
        }
    }
}
