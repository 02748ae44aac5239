//! Kubernetes Events, best effort: a failure to send one is logged and hides nothing.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use crate::api::EcrCredential;
use crate::outcome::Note;

/// Sends Events from tasks of their own.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        Self(Recorder::new(client, Reporter { controller: controller.to_owned(), instance: Some(instance.to_owned()) }))
    }

    /// Sends one, without waiting.
    pub fn send(&self, object: &EcrCredential, note: Note) {
        let (recorder, reference) = (self.0.clone(), object.object_ref(&()));
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.as_str().to_owned(),
            note: Some(note.message),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::debug!(%error, reason = %event.reason, "an Event could not be sent");
            }
        });
    }
}
