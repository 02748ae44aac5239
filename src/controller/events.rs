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
            Some(namespace) => {
                let name = note.secret.unwrap_or_else(|| object.spec.secret.name.clone());
                (secret(namespace, name), Some(about))
            }
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

/// A Secret in a target namespace, which need not be there.
fn secret(namespace: String, name: String) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(name),
        namespace: Some(namespace),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[tokio::test]
    async fn an_event_in_a_namespace_is_about_the_secret_that_fails_there() {
        let (send, mut sent) = unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let send = send.clone();
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                send.send(serde_json::from_slice::<Value>(&body).unwrap()).unwrap();
                Ok::<_, Infallible>(http::Response::new(Body::from(body)))
            }
        });
        let events = Events::new(Client::new(service, "default"), "test", "test").in_namespaces(true);
        let object: EcrCredential = serde_json::from_value(json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": "x", "uid": "x" },
            "spec": { "registries": [{ "public": {} }], "namespaces": { "names": ["a"] }, "secret": { "name": "pull" } },
        }))
        .unwrap();
        for (namespace, secret, kind, name) in [
            (None, None, "EcrCredential", "x"),
            (Some("a"), None, "Secret", "pull"),
            (Some("a"), Some("argocd"), "Secret", "argocd"),
        ] {
            let [namespace, secret] = [namespace, secret].map(|text| text.map(str::to_owned));
            let (reason, message) = ("QuotaExceeded".to_owned(), "no".to_owned());
            events
                .send(&object, ReportedEvent { warning: true, reason, message, namespace: namespace.clone(), secret });
            let event = sent.recv().await.unwrap();
            let regarding = ["kind", "name"].map(|field| event["regarding"][field].as_str().unwrap());
            assert_eq!(regarding, [kind, name]);
            assert_eq!(event["regarding"]["namespace"].as_str(), namespace.as_deref());
        }
    }
}
