//! The status of an `EcrCredential` that cannot be read: it says so, and the rest of it stays as it is.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;

use crate::api::EcrCredentialStatus;
use crate::api::observed::Unreadable;
use crate::api::status::Reason;
use crate::apply::Writer;
use crate::clock::Clock;
use crate::outcome::{Observation, conclude};
use crate::plan::SpecError;

/// How often one error is written: somebody else, such as a newer version of the operator, may keep writing another status.
const MOST_WRITES: u8 = 3;

/// Reports each `EcrCredential` that cannot be read, in the log and in its status.
pub struct UnreadableReports {
    writer: Writer,
    clock: Clock,
    /// What was reported of each uid.
    reported: HashMap<Option<String>, Reported>,
}

/// What was reported of an `EcrCredential`.
#[derive(Default)]
struct Reported {
    error: String,
    writes: u8,
}

impl UnreadableReports {
    /// Writes with this writer, by this clock.
    pub fn new(writer: Writer, clock: Clock) -> Self {
        Self { writer, clock, reported: HashMap::new() }
    }

    /// One can be read, or is gone.
    pub(super) fn forget(&mut self, uid: Option<&String>) {
        self.reported.remove(&uid.cloned());
    }

    /// These are all that cannot be read.
    pub(super) fn keep(&mut self, all: &[Unreadable]) {
        self.reported.retain(|uid, _| all.iter().any(|object| object.metadata.uid == *uid));
    }

    /// One cannot be read. The log says why, once. The status is written on a task of its own, so that a slow API server delays no event;
    /// if that fails, the next event or the next list is another try.
    pub(super) fn report(&mut self, object: &Unreadable) {
        let Unreadable { metadata, error, .. } = object;
        let name = metadata.name.clone().unwrap_or_default();
        let reported = self.reported.entry(metadata.uid.clone()).or_default();
        if reported.error != *error {
            *reported = Reported { error: error.clone(), writes: 0 };
            tracing::error!(
                name,
                error,
                "cannot read an EcrCredential: check the version of the installed CRD; its Secrets are kept but not refreshed"
            );
        }
        let Some(status) = status(object, self.clock.now()).filter(|_| reported.writes < MOST_WRITES) else { return };
        reported.writes = reported.writes.saturating_add(1);
        let (writer, metadata) = (self.writer.clone(), metadata.clone());
        tokio::spawn(async move {
            if let Err(error) = writer.conditions(&metadata, &status).await {
                tracing::warn!(name, %error, "cannot write the status of an EcrCredential that cannot be read");
            }
        });
    }
}

/// The status with conditions that say that the spec cannot be read; none if it says so already.
fn status(object: &Unreadable, now: Timestamp) -> Option<EcrCredentialStatus> {
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let previous = object.status.clone().unwrap_or_default();
    let message = format!(
        "the EcrCredential cannot be read: is the installed CRD of another version? Its Secrets are kept but not refreshed: {}",
        object.error
    );
    let error = SpecError { reason: Reason::InvalidSpec, message };
    let EcrCredentialStatus { conditions, observed_generation, next_refresh_at, .. } =
        conclude(Observation::Stalled(error), &previous, object.metadata.generation, now).status;
    // What another version may have written besides stays.
    let status = EcrCredentialStatus { conditions, observed_generation, next_refresh_at, ..previous.clone() };
    (status != previous).then_some(status)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::reconcile::reconcile;
    use super::super::stage::Stage;
    use super::*;
    use crate::api::observed::ObservedCredential;
    use serde_json::{Value, json};

    fn unreadable(status: &Value, deleted: Option<&str>) -> Unreadable {
        let object = json!({
            "metadata": { "name": "x", "uid": "x", "generation": 3, "deletionTimestamp": deleted },
            "spec": { "registries": "all" },
            "status": status,
        });
        *serde_json::from_str::<ObservedCredential>(&object.to_string()).unwrap().content.0.unwrap_err()
    }

    #[test]
    fn its_status_says_that_it_cannot_be_read_and_nothing_else_changes() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ready = json!({ "type": "Ready", "status": "True", "reason": "Synced", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let before = json!({
            "observedGeneration": 2, "expiresAt": "2026-01-01T12:00:00Z", "nextRefreshAt": "2026-01-01T06:00:00Z",
            "conditions": [ready], "registries": [{ "hosts": ["x"], "tokenHash": "h" }],
            "namespaces": { "selected": 2, "synced": 1, "failed": 1, "summary": "1/2" },
            "failures": [{ "namespace": "a", "reason": "QuotaExceeded", "message": "no" }],
        });
        let written = status(&unreadable(&before, None), now).unwrap();
        let found: Vec<_> =
            written.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect();
        let no = "InvalidSpec";
        assert_eq!(found, [("Ready", "False", no), ("Reconciling", "False", no), ("Stalled", "True", no)]);
        for condition in [&written.conditions[0], &written.conditions[2]] {
            let message = &condition.message;
            assert!(message.contains("cannot be read") && message.contains("expected a sequence"), "{message}");
        }
        let mut rest = serde_json::to_value(&written).unwrap();
        let mut expected = before;
        expected["observedGeneration"] = json!(3);
        for object in [&mut rest, &mut expected] {
            object.as_object_mut().unwrap().retain(|field, _| field != "conditions" && field != "nextRefreshAt");
        }
        assert_eq!((rest, written.next_refresh_at), (expected, None));
        // What was written is not written again, and nobody waits for one that is being deleted.
        let again = serde_json::to_value(&written).unwrap();
        assert_eq!(status(&unreadable(&again, None), now), None);
        assert_eq!(status(&unreadable(&json!(null), Some("2026-01-01T00:00:00Z")), now), None);
        assert!(status(&unreadable(&json!("odd"), None), now).is_some());
    }

    #[tokio::test]
    async fn it_is_not_reconciled_as_it_was_before() {
        let mut stage = Stage::new(json!([{ "private": {} }]));
        stage.object.spec.suspend = true;
        let (object, ctx) = (Arc::new(stage.object), Arc::new(stage.ctx));
        ctx.shared.credential_unreadable(&unreadable(&json!(null), None));
        reconcile(object.clone(), ctx.clone()).await.unwrap();
        assert_eq!(stage.server.asked("/status"), 0);
        ctx.shared.credential_seen(&object);
        // The server knows no such object.
        reconcile(object, ctx).await.unwrap_err();
        assert_eq!(stage.server.asked("/status"), 1);
    }
}
