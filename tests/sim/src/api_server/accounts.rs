//! ServiceAccounts: their tokens, which AWS takes, and the JSON patches of their pull secrets.

use serde_json::{Value, json};

use super::answer::Answer;
use super::request::Request;
use super::store::{Actor, Store, key, now_text};
use crate::clock;

impl Store {
    /// A token of a ServiceAccount. It is not signed: nobody here forges any.
    pub(super) fn token(&self, request: &Request) -> Option<Answer> {
        let (target, body) = (&request.target, &request.body);
        if let Some(refusal) = self.homeless(target) {
            return Some(refusal);
        }
        let account = self.get(&key(target))?;
        let uid = account.object["metadata"]["uid"].as_str().unwrap_or_default();
        if let Some(wanted) = body["metadata"]["uid"].as_str().filter(|wanted| *wanted != uid) {
            let why = format!(
                "the UID in the token request ({wanted}) does not match the UID of the service account ({uid})"
            );
            return Some(Answer::conflict(target, &why));
        }
        let seconds = body["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        let claims = json!({
            "sub": format!("system:serviceaccount:{}:{}", target.namespace, target.name),
            "aud": body["spec"]["audiences"], "exp": clock::true_now().as_second() + seconds,
        });
        let mut answer = body.clone();
        answer["spec"]["boundObjectRef"] = body["spec"]["boundObjectRef"].clone();
        answer["kind"] = "TokenRequest".into();
        answer["apiVersion"] = "authentication.k8s.io/v1".into();
        answer["metadata"]["name"] = target.name.as_str().into();
        answer["metadata"]["namespace"] = target.namespace.as_str().into();
        answer["metadata"]["creationTimestamp"] = now_text().into();
        answer["status"] = json!({ "token": claims.to_string() });
        Some(Answer::created(answer))
    }

    /// A JSON patch (RFC 6902), as a whole or not at all.
    pub(super) fn patch_account(&mut self, request: &Request, by: Actor) -> Option<Answer> {
        let target = &request.target;
        let stored = self.get(&key(target))?;
        let mut object = stored.object.clone();
        let patched = serde_json::from_value(request.body.clone())
            .is_ok_and(|patch: json_patch::Patch| json_patch::patch(&mut object, &patch).is_ok());
        if !patched {
            return Some(Answer::unpatched());
        }
        Some(self.write_over(target, request, &stored, object, by))
    }
}

/// What is empty is not stored.
pub(super) fn tidy(account: &mut Value) {
    let is_empty = |value: &Value| {
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    for (path, field) in [("", "imagePullSecrets"), ("/metadata", "annotations"), ("/metadata", "labels")] {
        if let Some(fields) = account.pointer_mut(path).and_then(Value::as_object_mut)
            && fields.get(field).is_some_and(is_empty)
        {
            fields.remove(field);
        }
    }
}
