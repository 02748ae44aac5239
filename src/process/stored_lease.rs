//! The Lease as the API server sends it, parsed tolerantly: an invalid field is replaced by the next write, and additions by others
//! stay.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::lenient::{Extract, Items, Members, Object, Observed, read};

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
        let others: Members<'_> = object.metadata.and_then(read).unwrap_or_default();
        let metadata = ObjectMeta {
            owner_references: others.get("ownerReferences").map(|Items(owners)| owners),
            finalizers: others.get("finalizers").map(|Items(finalizers)| finalizers),
            ..object.head()
        };
        let spec = object.spec.and_then(read::<Members<'_>>).map(|spec| LeaseSpec {
            acquire_time: spec.get("acquireTime"),
            holder_identity: spec.get("holderIdentity"),
            lease_duration_seconds: spec.get("leaseDurationSeconds"),
            lease_transitions: spec.get("leaseTransitions"),
            preferred_holder: spec.get("preferredHolder"),
            renew_time: spec.get("renewTime"),
            strategy: spec.get("strategy"),
        });
        (metadata.clone(), Self(Lease { metadata, spec }))
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
