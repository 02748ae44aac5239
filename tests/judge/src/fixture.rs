//! Invented histories for the tests of the judge: a default story in which all is well, and ways to spoil it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::evidence::{Account, Aws, Evidence, Holder};
use crate::history::{History, Kind, Version};
use crate::{Request, Scope, Stored, Target};

pub const HOST: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

pub fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// A Secret named `a/pull` as the operator would write it.
#[derive(Clone)]
pub struct SecretState(pub(super) Value);

pub fn secret() -> SecretState {
    SecretState(json!({
        "metadata": {
            "namespace": "a",
            "name": "pull",
            "labels": {
                "app.kubernetes.io/managed-by": "ecr-credential-operator",
                "pullsecrets.dev/credential": "platform",
                "pullsecrets.dev/credential-uid": "credential-1",
            },
            "annotations": {"pullsecrets.dev/expires-at": "2026-01-01T12:00:00Z"},
            "ownerReferences": [{
                "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "uid": "credential-1", "name": "platform",
                "controller": true,
            }],
        },
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": docker_config(HOST, "AWS:password")},
    }))
}

/// A Secret of the same name that somebody else made.
pub fn foreign_secret() -> SecretState {
    SecretState(json!({"metadata": {"namespace": "a", "name": "pull"}, "type": "Opaque", "data": {}}))
}

pub fn docker_config(host: &str, auth: &str) -> String {
    BASE64_STANDARD.encode(json!({"auths": {host: {"auth": BASE64_STANDARD.encode(auth)}}}).to_string())
}

impl SecretState {
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[field.replace("~1", "/")] = value;
        self
    }

    pub fn value(self, password: &str) -> Self {
        self.set("/data/.dockerconfigjson", docker_config(HOST, &format!("AWS:{password}")).into())
    }

    pub fn label(self, name: &str, value: &str) -> Self {
        self.set(&format!("/metadata/labels/{}", name.replace('/', "~1")), value.into())
    }

    pub fn expires(self, time: &str) -> Self {
        self.set("/metadata/annotations/pullsecrets.dev~1expires-at", time.into())
    }
}

/// A history that is told event by event, one second each.
pub struct Story {
    pub scope: Scope,
    pub history: History,
    pub requests: Vec<Request>,
    pub aws: Aws,
    pub now: Timestamp,
    pub service_accounts: Vec<Account>,
    pub tenants: BTreeMap<String, BTreeSet<String>>,
    versions: u64,
    secret_uid: u64,
}

impl Default for Story {
    fn default() -> Self {
        Self::new()
    }
}

impl Story {
    /// The EcrCredential `platform` selects `a` and `b`, which exist; `c` exists too.
    pub fn new() -> Story {
        let scope = Scope { lease: Some(("operator".into(), "operator".into())), ..Scope::new(["pull"], "platform") };
        let (history, requests, aws, service_accounts, tenants) = Default::default();
        let mut story = Story {
            scope,
            history,
            requests,
            aws,
            now: start(),
            service_accounts,
            tenants,
            versions: 0,
            secret_uid: 1,
        };
        for name in ["a", "b", "c"] {
            story = story.sees(Kind::Namespace, json!({"metadata": {"name": name, "uid": name}}));
        }
        story.credential(credential())
    }

    pub fn credential(self, object: Value) -> Self {
        self.sees(Kind::Credential, object)
    }

    pub fn credential_ends(mut self) -> Self {
        let last = self.history.live(Kind::Credential).next().unwrap().1.object.clone();
        self.tick();
        self.history.add(Kind::Credential, Version { deleted: true, ..Version::seen(self.now, last) });
        self
    }

    pub fn operator_writes(mut self, secret: SecretState) -> Self {
        self.tick();
        let path = format!("/api/v1/namespaces/{}/secrets/pull", secret.0["metadata"]["namespace"].as_str().unwrap());
        let object = self.stamp(secret.0.clone(), true);
        let stored = Stored { uid: uid(&object), resource_version: self.versions.to_string() };
        self.request(Method::PATCH, &path, Some(secret.0), Some(stored));
        self.history.add(Kind::Secret, Version::seen(self.now, Arc::new(object)));
        self
    }

    pub fn operator_writes_unseen(self, secret: SecretState) -> Self {
        self.seen(secret, true)
    }

    /// An apply that the API server answers with the version that is there.
    pub fn operator_confirms(mut self, secret: SecretState) -> Self {
        self.tick();
        let stored = Stored { uid: format!("secret-{}", self.secret_uid), resource_version: self.versions.to_string() };
        self.request(Method::PATCH, "/api/v1/namespaces/a/secrets/pull", Some(secret.0), Some(stored));
        self
    }

    pub fn other_writes(self, secret: SecretState) -> Self {
        self.seen(secret, false)
    }

    /// A version of a Secret that the watch shows, without the request that wrote it.
    fn seen(mut self, secret: SecretState, by_operator: bool) -> Self {
        self.tick();
        let object = self.stamp(secret.0, by_operator);
        self.history.add(Kind::Secret, Version::seen(self.now, Arc::new(object)));
        self
    }

    pub fn operator_deletes(mut self) -> Self {
        let stored = Stored { uid: format!("secret-{}", self.secret_uid), resource_version: String::new() };
        self.tick();
        self.request(Method::DELETE, "/api/v1/namespaces/a/secrets/pull", None, Some(stored));
        self.other_deletes()
    }

    pub fn other_deletes(mut self) -> Self {
        let last = self.history.live(Kind::Secret).next().unwrap().1.object.clone();
        self.tick();
        self.history.add(Kind::Secret, Version { deleted: true, ..Version::seen(self.now, last) });
        self.secret_uid += 1;
        self
    }

    pub fn operator_sends(mut self, method: Method, path: &str, body: Value) -> Self {
        self.tick();
        self.request(method, path, Some(body), None);
        self
    }

    /// The operator sends a status, which is stored so many seconds later.
    pub fn operator_reports(mut self, object: Value, seconds: u64) -> Self {
        self.tick();
        let stored = Stored { uid: uid(&object), resource_version: (self.versions + 1).to_string() };
        let path = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/platform/status";
        self.request(Method::PATCH, path, None, Some(stored));
        self.passes(seconds).sees(Kind::Credential, object)
    }

    pub fn aws_fails(mut self) -> Self {
        self.tick();
        self.aws.failures.push((self.now, Timestamp::MAX));
        self
    }

    pub fn passes(mut self, seconds: u64) -> Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    pub fn sees(mut self, kind: Kind, mut object: Value) -> Self {
        self.tick();
        self.versions += 1;
        object["metadata"]["resourceVersion"] = self.versions.to_string().into();
        self.history.add(kind, Version::seen(self.now, Arc::new(object)));
        self
    }

    pub fn evidence(self) -> Evidence {
        let Story { scope, mut history, requests, aws, now, service_accounts, tenants, .. } = self;
        history.attribute(&requests);
        let (logs, found, included) = (std::iter::once(0..requests.len()).collect(), vec![], vec![]);
        Evidence { scope, history, requests, logs, aws, now, found, service_accounts, tenants, included }
    }

    fn tick(&mut self) {
        self.now += Duration::from_secs(1);
    }

    fn stamp(&mut self, mut object: Value, by_operator: bool) -> Value {
        self.versions += 1;
        let last =
            self.history.live(Kind::Secret).next().map(|(_, last)| last.object["metadata"]["managedFields"].clone());
        let metadata = &mut object["metadata"];
        metadata["uid"] = format!("secret-{}", self.secret_uid).into();
        metadata["resourceVersion"] = self.versions.to_string().into();
        metadata["managedFields"] = match by_operator {
            true => {
                let data = json!({"f:.dockerconfigjson": {}});
                let labels = json!({"f:app.kubernetes.io/managed-by": {}, "f:pullsecrets.dev/credential-uid": {}});
                let fields = json!({"f:data": data, "f:metadata": {"f:labels": labels}});
                let (manager, time) = ("ecr-credential-operator", self.now.to_string());
                json!([{"manager": manager, "operation": "Apply", "time": time, "fieldsV1": fields}])
            }
            false => last.unwrap_or_default(),
        };
        object
    }

    fn request(&mut self, method: Method, path: &str, body: Option<Value>, stored: Option<Stored>) {
        self.requests.push(Request {
            number: self.requests.len(),
            started: self.now,
            finished: Some(self.now),
            content_type: if method == Method::PATCH {
                "application/apply-patch+yaml".into()
            } else {
                "application/json".into()
            },
            method,
            path: path.into(),
            query: String::new(),
            user_agent: String::new(),
            body,
            target: Target::parse(path),
            committed: Some(200),
            status: Some(200),
            stored,
            refusal: None,
            led: None,
        });
    }
}

/// A login for the registry of the default story that AWS accepts for ever.
pub fn holder(principal: &str) -> Holder {
    let (principal, registry) = (principal.to_owned(), "ecr/eu-west-1".to_owned());
    Holder { role: None, principal, registry, issued_at: start(), accepted_until: Timestamp::MAX, revoked: false }
}

pub fn credential() -> Value {
    json!({
        "metadata": {"name": "platform", "uid": "credential-1", "generation": 1},
        "spec": {
            "registries": [{"private": {"region": "eu-west-1", "accountIds": ["111122223333"]}}],
            "secret": {"name": "pull"},
            "namespaces": {"names": ["a", "b"]},
        },
    })
}

/// The EcrCredential with a status that says that all is well.
pub fn ready_credential() -> Value {
    let mut object = credential();
    object["status"] = json!({
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": "True"}],
        "expiresAt": "2026-01-01T12:00:00Z",
        "namespaces": {"selected": 2, "synced": 2, "failed": 0},
    });
    object
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().into()
}
