//! Kubernetes Events, best effort: a failure to send one is logged and hides nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use crate::api::EcrCredential;
use crate::outcome::ReportedEvent;

/// Sends Events from tasks of their own.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    in_namespaces: bool,
}

impl Events {
    /// Events in the name of this process, about `EcrCredentials` alone.
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        let reporter = Reporter { controller: controller.to_owned(), instance: Some(instance.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), in_namespaces: false }
    }

    /// The same, also in target namespaces about the Secrets there if `told`, which needs rights there.
    pub fn in_namespaces(self, told: bool) -> Self {
        Self { in_namespaces: told, ..self }
    }

    /// Sends one, without waiting.
    pub fn send(&self, object: &EcrCredential, note: ReportedEvent) {
        let about = object.object_ref(&());
        let (reference, secondary) = match note.namespace {
            Some(_) if !self.in_namespaces => return,
            Some(namespace) => (secret(namespace, &object.spec.secret.name), Some(about)),
            None => (about, None),
        };
        let recorder = self.recorder.clone();
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason,
            note: Some(note.message),
            action: "Reconcile".to_owned(),
            secondary,
        };
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::debug!(%error, reason = %event.reason, "an Event could not be sent");
            }
        });
    }
}

/// The pull secret of a namespace, which need not be there.
fn secret(namespace: String, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(name.to_owned()),
        namespace: Some(namespace),
        ..ObjectReference::default()
    }
}
