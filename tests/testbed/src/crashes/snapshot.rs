//! The state that a run ends in, without what may differ between runs: names, times, versions, uids, and the tokens themselves.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bed::Bed;

/// Each Secret and each EcrCredential, by kind and name.
pub type Snapshot = BTreeMap<String, Value>;

/// What stands for this run's names.
const PREFIX: &str = "run";

/// What the recorder has seen last. Tokens are named by what they are for, and by whether they were issued after `since`.
pub fn snapshot(bed: &Bed, since: Option<Timestamp>) -> Snapshot {
    let credentials = bed.recorder.live_credentials();
    let field = |object: &Value, name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let names = credentials.iter().map(|object| (field(object, "uid"), field(object, "name")));
    // Owners stand in references, in labels and within managedFields.
    let names: Vec<(String, String)> = names.chain([(bed.prefix.clone(), PREFIX.to_owned())]).collect();
    let alike = |text: String| names.iter().fold(text, |text, (this, name)| text.replace(this, name));
    let mut tokens = Tokens { bed, since, seen: Vec::new() };
    let secrets = bed.recorder.live_secrets().into_iter().map(|object| {
        let key = format!("Secret {}/{}", field(&object, "namespace"), field(&object, "name"));
        (key, secret(object, &mut tokens))
    });
    let credentials = credentials.iter().map(|object| {
        let key = format!("EcrCredential {}", field(object, "name"));
        (key, credential(object))
    });
    let shown = secrets.chain(credentials);
    shown.map(|(key, value)| (alike(key), serde_json::from_str(&alike(value.to_string())).unwrap_or(value))).collect()
}

/// Where an end is not as it should be.
pub fn differences(end: &Snapshot, expected: &Snapshot) -> Vec<String> {
    let keys: BTreeSet<&String> = end.keys().chain(expected.keys()).collect();
    let null = Value::Null;
    let mut found = Vec::new();
    for key in keys {
        compare(key, end.get(key).unwrap_or(&null), expected.get(key).unwrap_or(&null), &mut found);
    }
    found
}

fn compare(place: &str, end: &Value, expected: &Value, found: &mut Vec<String>) {
    match (end, expected) {
        (Value::Object(these), Value::Object(those)) => {
            for key in these.keys().chain(those.keys().filter(|key| !these.contains_key(*key))) {
                compare(&format!("{place} {key}"), &end[key], &expected[key], found);
            }
        }
        _ if end == expected => {}
        _ => found.push(format!("{place}: ends as {end}, without a death as {expected}")),
    }
}

fn secret(mut shown: Value, tokens: &mut Tokens<'_>) -> Value {
    let metadata = &mut shown["metadata"];
    // The identity's hash is over uids where it is a ServiceAccount's; whose a token is stands beside it.
    for annotation in ["expires-at", "refreshed-at", "content-hash", "identity-hash"] {
        mask(&mut metadata["annotations"], &format!("pullsecrets.dev/{annotation}"));
    }
    let managers = metadata["managedFields"].as_array().into_iter().flatten();
    let managers = managers.map(|entry| json!([entry["manager"], entry["operation"], entry["fieldsV1"]]));
    metadata["managedFields"] = managers.collect();
    for field in ["resourceVersion", "uid", "creationTimestamp"] {
        metadata[field] = Value::Null;
    }
    if let Some(config) = shown["data"][".dockerconfigjson"].as_str() {
        shown["data"][".dockerconfigjson"] = tokens.named(config);
    }
    shown
}

fn credential(object: &Value) -> Value {
    let mut status = object["status"].clone();
    for field in ["expiresAt", "refreshedAt", "nextRefreshAt"] {
        mask(&mut status, field);
    }
    for registry in status["registries"].as_array_mut().into_iter().flatten() {
        for field in ["issuedAt", "expiresAt", "tokenHash", "authHash"] {
            mask(registry, field);
        }
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        mask(condition, "lastTransitionTime");
    }
    json!({ "spec": object["spec"], "generation": object["metadata"]["generation"], "status": status })
}

/// That there is a value counts, not which.
fn mask(object: &mut Value, field: &str) {
    if let Some(value) = object.get_mut(field).filter(|value| !value.is_null()) {
        *value = "*".into();
    }
}

/// The tokens of a run, in the order in which they are met.
struct Tokens<'a> {
    bed: &'a Bed,
    since: Option<Timestamp>,
    seen: Vec<String>,
}

impl Tokens<'_> {
    /// The docker config with a name for each token, so that two Secrets with one token still look alike.
    fn named(&mut self, config: &str) -> Value {
        let bytes = BASE64_STANDARD.decode(config).unwrap_or_default();
        let Ok(mut config) = serde_json::from_slice::<Value>(&bytes) else { return "no JSON".into() };
        for entry in config["auths"].as_object_mut().into_iter().flat_map(|auths| auths.values_mut()) {
            if let Some(auth) = entry["auth"].as_str() {
                entry["auth"] = self.name(auth).into();
            }
        }
        config
    }

    fn name(&mut self, auth: &str) -> String {
        let Some(token) = self.bed.aws.token_of(auth) else { return "a login that AWS did not issue".to_owned() };
        let number = self.seen.iter().position(|seen| seen == auth).unwrap_or_else(|| {
            self.seen.push(auth.to_owned());
            self.seen.len() - 1
        });
        let role = token.role.as_deref().unwrap_or(&token.principal);
        let valid = if self.bed.aws.is_valid(auth) { "valid" } else { "invalid" };
        let age = match self.since {
            Some(since) if token.issued < since => "old",
            Some(_) => "new",
            None => "old or new",
        };
        let registry = token.registry.as_deref().unwrap_or_default();
        format!("token {number}, {valid}, {age}: {:?} {} {registry} {role}", token.service, token.region)
    }
}
