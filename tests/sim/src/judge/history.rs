//! What was true when: every version of every object, whom each `EcrCredential` selected, and what it asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::judge::hosts::{Defaults, configured_hosts};
use ::judge::selection::asked;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::api_server::{Change, Key, Kind};
use crate::aws::ACCOUNT;

/// A version of an object and the time during which it was the current one.
#[derive(Clone, Debug)]
pub struct Version {
    pub from: Timestamp,
    pub until: Timestamp,
    pub object: Arc<Value>,
    pub by: Option<u32>,
}

impl Version {
    pub fn overlaps(&self, from: Timestamp, until: Timestamp) -> bool {
        self.from <= until && from <= self.until
    }
}

/// See the file's first line.
pub struct History {
    pub changes: Vec<Change>,
    pub versions: BTreeMap<Key, Vec<Version>>,
}

impl History {
    pub fn of(changes: Vec<Change>, now: Timestamp) -> Self {
        let mut versions: BTreeMap<Key, Vec<Version>> = BTreeMap::new();
        for change in &changes {
            let list = versions.entry(change.key.clone()).or_default();
            if let Some(last) = list.last_mut().filter(|last| last.until == Timestamp::MAX) {
                last.until = change.at;
            }
            if !change.deleted {
                let object = change.after.clone();
                list.push(Version { from: change.at, until: Timestamp::MAX, object, by: change.by });
            }
        }
        let _ = now;
        Self { changes, versions }
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Vec<Version>)> {
        self.versions.iter().filter(move |(key, _)| key.0 == kind)
    }

    /// Every version of an `EcrCredential` that was current at some time in between.
    pub fn credentials(&self, from: Timestamp, until: Timestamp) -> impl Iterator<Item = &Version> {
        let all = self.of_kind(Kind::Credential).flat_map(|(_, versions)| versions);
        all.filter(move |version| version.overlaps(from, until))
    }

    pub fn namespaces(&self, name: &str, from: Timestamp, until: Timestamp) -> impl Iterator<Item = &Version> {
        let all = self.versions.get(&(Kind::Namespace, String::new(), name.to_owned())).into_iter().flatten();
        all.filter(move |version| version.overlaps(from, until))
    }

    pub fn secrets(
        &self,
        namespace: &str,
        name: &str,
        from: Timestamp,
        until: Timestamp,
    ) -> impl Iterator<Item = &Version> {
        let all = self.versions.get(&(Kind::Secret, namespace.to_owned(), name.to_owned())).into_iter().flatten();
        all.filter(move |version| version.overlaps(from, until))
    }

    /// The `EcrCredentials` that wanted this Secret at some time in between.
    pub fn claimants(&self, namespace: &str, name: &str, from: Timestamp, until: Timestamp) -> Vec<&Version> {
        let wants = |credential: &&Version| {
            credential.object["spec"]["secret"]["name"] == name
                && self.namespaces(namespace, from, until).any(|home| selects(&credential.object, &home.object))
        };
        self.credentials(from, until).filter(wants).collect()
    }

    /// The namespaces that an `EcrCredential` selected all the time in between.
    pub fn selected_throughout(&self, credential: &Value, from: Timestamp, until: Timestamp) -> BTreeSet<String> {
        let homes = self.of_kind(Kind::Namespace).filter(|(_, versions)| {
            let during: Vec<&Version> = versions.iter().filter(|version| version.overlaps(from, until)).collect();
            let covers = during.first().is_some_and(|first| first.from <= from)
                && during.last().is_some_and(|last| last.until > until);
            covers && during.iter().all(|version| selects(credential, &version.object))
        });
        homes.map(|(key, _)| key.2.clone()).collect()
    }
}

pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether an `EcrCredential` selects a namespace for its pull secret.
pub fn selects(credential: &Value, namespace: &Value) -> bool {
    let is_active = namespace["metadata"]["deletionTimestamp"].is_null();
    is_active && asked(credential).first().is_some_and(|pull_secret| pull_secret.selects(namespace))
}

/// Each host that a spec asks for, with what its password is for: `ecr/eu-west-1` or `public`.
pub fn hosts(credential: &Value, own_region: &str) -> BTreeMap<String, String> {
    let defaults = Defaults { region: Some(own_region.to_owned()), account: Some(ACCOUNT.to_owned()) };
    configured_hosts(credential, &defaults, None).unwrap_or_default()
}

/// The logins in a Secret: host and the text of `auth`.
///
/// # Errors
/// What is wrong with it.
pub fn logins(secret: &Value) -> Result<BTreeMap<String, String>, String> {
    let text = secret["data"][".dockerconfigjson"].as_str().ok_or("it has no .dockerconfigjson")?;
    let bytes = STANDARD.decode(text).map_err(|_| "its data is not base64")?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|_| "its data is not JSON")?;
    let auths = config["auths"].as_object().ok_or("its config has no auths")?;
    let login = |(host, entry): (&String, &Value)| {
        let auth = entry["auth"].as_str().ok_or(format!("{host} has no auth"))?;
        Ok((host.clone(), auth.to_owned()))
    };
    auths.iter().map(login).collect()
}

/// The uid of the `EcrCredential` that a Secret is marked with: by its owner reference, or by labels that our apply wrote.
pub fn owner(secret: &Value) -> Option<String> {
    let metadata = &secret["metadata"];
    let ours = |owner: &&Value| {
        owner["kind"] == "EcrCredential"
            && owner["controller"] == true
            && owner["apiVersion"].as_str().is_some_and(|version| version.starts_with("pullsecrets.dev/"))
    };
    let reference = metadata["ownerReferences"].as_array().into_iter().flatten().find(ours);
    let applied = |label: &str| {
        let entries = metadata["managedFields"].as_array().into_iter().flatten();
        let ours = |entry: &&Value| entry["manager"] == "ecr-credential-operator" && entry["operation"] == "Apply";
        entries.filter(ours).any(|entry| !entry["fieldsV1"]["f:metadata"]["f:labels"][format!("f:{label}")].is_null())
    };
    let label = |label: &str| metadata["labels"][label].as_str().filter(|_| applied(label));
    let by_reference = reference.and_then(|owner| owner["uid"].as_str());
    // Of one whose label with the owner somebody has overwritten it is known only that it is ours.
    let managed = || label("app.kubernetes.io/managed-by").filter(|by| *by == "ecr-credential-operator").map(|_| "");
    by_reference.or_else(|| label("pullsecrets.dev/credential-uid")).or_else(managed).map(str::to_owned)
}
