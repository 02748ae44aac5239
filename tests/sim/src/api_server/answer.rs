//! What the API server answers: an object, or a Status that says why not.

use serde_json::{Value, json};

use super::request::{Kind, Target};

/// A status code and a body.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: u16,
    pub body: Value,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
}

impl Answer {
    pub fn ok(body: Value) -> Self {
        Self { code: 200, body, retry_after: None }
    }

    pub fn created(body: Value) -> Self {
        Self { code: 201, ..Self::ok(body) }
    }

    pub fn refusal(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "reason": reason, "code": code,
        });
        Self { code, body, retry_after: None }
    }

    pub fn causes(mut self, target: &Target, causes: Vec<Value>) -> Self {
        self.body["details"] = json!({ "name": target.name, "kind": target.kind.resource() });
        if !causes.is_empty() {
            self.body["details"]["causes"] = causes.into();
        }
        self
    }

    pub fn not_found(target: &Target) -> Self {
        Self::refusal(404, "NotFound", format!("{} {:?} not found", target.kind.qualified(), target.name))
            .causes(target, vec![])
    }

    pub fn conflict(target: &Target, why: &str) -> Self {
        let what = format!("Operation cannot be fulfilled on {} {:?}: {why}", target.kind.qualified(), target.name);
        Self::refusal(409, "Conflict", what).causes(target, vec![])
    }

    pub fn modified(target: &Target) -> Self {
        Self::conflict(
            target,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn forbidden(target: &Target, why: &str) -> Self {
        let what = format!("{} {:?} is forbidden: {why}", target.kind.qualified(), target.name);
        Self::refusal(403, "Forbidden", what).causes(target, vec![])
    }

    /// What RBAC says to one without the right.
    pub fn no_right(target: &Target, verb: &str) -> Self {
        let group = target.kind.group();
        let place = match target.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let why = format!(
            "User \"system:serviceaccount:operator:operator\" cannot {verb} resource {:?} in API group {group:?} {place}",
            target.kind.resource()
        );
        Self::forbidden(target, &why)
    }

    pub fn invalid(target: &Target, field: &str, message: &str) -> Self {
        let what = format!("{} {:?} is invalid: {field}: {message}", target.kind.name(), target.name);
        let reason = if message.starts_with("Forbidden") { "FieldValueForbidden" } else { "FieldValueInvalid" };
        let cause = json!({ "reason": reason, "message": message, "field": field });
        Self::refusal(422, "Invalid", what).causes(target, vec![cause])
    }

    /// What is said to a JSON patch whose test fails, or that cannot be applied.
    pub fn unpatched() -> Self {
        Self::refusal(422, "Invalid", "the server rejected our request due to an error in our request")
    }

    /// What a webhook says that refuses with this status code.
    pub fn denied(code: u16) -> Self {
        let reason = if code == 404 { "NotFound" } else { "Refused" };
        Self::refusal(code, reason, "admission webhook \"chance.example.com\" denied the request: not today")
    }

    pub fn too_many_requests(seconds: u64) -> Self {
        let mut answer = Self::refusal(
            429,
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        );
        answer.body["details"] = json!({ "retryAfterSeconds": seconds });
        Self { retry_after: Some(seconds), ..answer }
    }

    pub fn gone(wanted: u64, oldest: u64) -> Self {
        Self::refusal(410, "Expired", format!("too old resource version: {wanted} ({oldest})"))
    }

    pub fn deleted(target: &Target, uid: &str) -> Self {
        Self::ok(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": { "name": target.name, "kind": target.kind.resource(), "uid": uid },
        }))
    }

    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }
}

/// An object of its metadata alone, as `application/json;as=PartialObjectMetadata` asks for it.
pub fn metadata_of(metadata: Value) -> Value {
    let mut object = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1" });
    object["metadata"] = metadata;
    object
}

/// A list, or one page of it, with what asks for the next.
pub fn list(kind: Kind, metadata_only: bool, version: u64, more: Option<String>, items: Vec<Value>) -> Value {
    let (name, api_version) = if metadata_only {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1")
    } else {
        (format!("{}List", kind.name()), kind.api_version())
    };
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(token) = more {
        metadata["continue"] = token.into();
    }
    let mut list = json!({ "kind": name, "apiVersion": api_version, "metadata": metadata });
    list["items"] = items.into();
    list
}
