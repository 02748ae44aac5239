//! The state that a run ends in, without what may differ between runs: times, versions, uids, and which of its tokens AWS gave.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Kind};
use crate::aws::nameless;

/// One text for each Secret, each `EcrCredential` and each ServiceAccount.
pub fn snapshot(api: &ApiServer) -> BTreeMap<String, String> {
    let uids: BTreeMap<String, String> = api
        .all(Kind::Credential)
        .into_iter()
        .map(|(key, object)| (object["metadata"]["uid"].as_str().unwrap_or_default().to_owned(), key.2))
        .collect();
    let named = |kind: Kind| api.all(kind).into_iter().map(move |(key, object)| (kind, key, object));
    let all = named(Kind::Secret).chain(named(Kind::Credential)).chain(named(Kind::ServiceAccount));
    all.map(|(kind, key, object)| {
        let shown = match kind {
            Kind::Secret => secret(&object, &uids),
            Kind::Credential => credential(&object),
            _ => json!([object["imagePullSecrets"], object["metadata"]["annotations"]]),
        };
        (format!("{} {}/{}", kind.name(), key.1, key.2), shown.to_string())
    })
    .collect()
}

fn secret(object: &Value, uids: &BTreeMap<String, String>) -> Value {
    let mut shown = object.clone();
    let metadata = &mut shown["metadata"];
    let whose =
        |uid: &Value| uid.as_str().and_then(|uid| uids.get(uid)).map_or("nobody that lives".to_owned(), Clone::clone);
    for owner in metadata["ownerReferences"].as_array_mut().into_iter().flatten() {
        owner["uid"] = whose(&owner["uid"]).into();
    }
    if !metadata["labels"]["pullsecrets.dev/credential-uid"].is_null() {
        metadata["labels"]["pullsecrets.dev/credential-uid"] =
            whose(&metadata["labels"]["pullsecrets.dev/credential-uid"]).into();
    }
    for annotation in ["expires-at", "refreshed-at", "content-hash"] {
        let slot = &mut metadata["annotations"][format!("pullsecrets.dev/{annotation}")];
        if !slot.is_null() {
            *slot = "*".into();
        }
    }
    let managers: Vec<Value> = metadata["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let fields = entry["fieldsV1"].to_string();
            let fields = uids.iter().fold(fields, |text, (uid, name)| text.replace(uid, name));
            json!([entry["manager"], entry["operation"], fields])
        })
        .collect();
    metadata["managedFields"] = managers.into();
    for field in ["resourceVersion", "uid", "creationTimestamp"] {
        metadata[field] = Value::Null;
    }
    for key in [".dockerconfigjson", "config.json"] {
        if let Some(config) = shown["data"][key].as_str() {
            shown["data"][key] = masked(config).into();
        }
    }
    if let Some(password) = shown["data"]["password"].as_str() {
        shown["data"]["password"] = nameless(password).into();
    }
    shown
}

/// The docker config, with each token named by what it is for.
fn masked(config: &str) -> String {
    let bytes = STANDARD.decode(config).unwrap_or_default();
    let Ok(mut config) = serde_json::from_slice::<Value>(&bytes) else { return "unreadable".to_owned() };
    for entry in config["auths"].as_object_mut().into_iter().flat_map(|auths| auths.values_mut()) {
        for value in entry.as_object_mut().into_iter().flat_map(|entry| entry.values_mut()) {
            *value = value.as_str().map(nameless).into();
        }
    }
    config.to_string()
}

fn credential(object: &Value) -> Value {
    let mut status = object["status"].clone();
    for field in ["expiresAt", "refreshedAt", "nextRefreshAt"] {
        if !status[field].is_null() {
            status[field] = "*".into();
        }
    }
    for registry in status["registries"].as_array_mut().into_iter().flatten() {
        for field in ["issuedAt", "expiresAt", "tokenHash", "authHash"] {
            if !registry[field].is_null() {
                registry[field] = "*".into();
            }
        }
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"] = Value::Null;
    }
    json!({ "spec": object["spec"], "generation": object["metadata"]["generation"], "status": status })
}
