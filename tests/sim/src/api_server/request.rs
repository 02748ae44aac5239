//! A request as the API server understands it: verb, object, parameters.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

/// The kinds that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Secret,
    ServiceAccount,
    Credential,
    Lease,
    Event,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Namespace, Self::Secret, Self::ServiceAccount, Self::Credential, Self::Lease, Self::Event];

    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Secret | Self::ServiceAccount => "",
            Self::Credential => "pullsecrets.dev",
            Self::Lease => "coordination.k8s.io",
            Self::Event => "events.k8s.io",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Secret | Self::ServiceAccount => "v1",
            Self::Credential => "pullsecrets.dev/v1alpha1",
            Self::Lease => "coordination.k8s.io/v1",
            Self::Event => "events.k8s.io/v1",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Secret => "Secret",
            Self::ServiceAccount => "ServiceAccount",
            Self::Credential => "EcrCredential",
            Self::Lease => "Lease",
            Self::Event => "Event",
        }
    }

    pub const fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Secret => "secrets",
            Self::ServiceAccount => "serviceaccounts",
            Self::Credential => "ecrcredentials",
            Self::Lease => "leases",
            Self::Event => "events",
        }
    }

    /// The resource as it stands in messages: `secrets`, `ecrcredentials.pullsecrets.dev`.
    pub fn qualified(self) -> String {
        match self.group() {
            "" => self.resource().to_owned(),
            group => format!("{}.{group}", self.resource()),
        }
    }
}

/// What a request is about. The namespace is empty for cluster-scoped objects, the name for collections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

impl Target {
    /// Whether it is the token of a ServiceAccount.
    pub fn is_token(&self) -> bool {
        self.kind == Kind::ServiceAccount && self.subresource == "token"
    }
}

/// A request, read.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub target: Target,
    pub parameters: BTreeMap<String, String>,
    pub content_type: String,
    /// Whether only metadata is asked for.
    pub metadata_only: bool,
    pub user_agent: String,
    pub body: Value,
    /// What webhooks merge into the object; null for nothing.
    pub admitted: Value,
}

impl Request {
    /// Reads one; none for paths that are not served.
    pub fn read(head: &http::request::Parts, body: &Bytes) -> Option<Self> {
        let header = |name: http::header::HeaderName| {
            head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let query = head.uri.query().unwrap_or_default();
        Some(Self {
            method: head.method.clone(),
            target: target(head.uri.path())?,
            parameters: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            content_type: header(http::header::CONTENT_TYPE),
            metadata_only: header(http::header::ACCEPT).contains("as=PartialObjectMetadata"),
            user_agent: header(http::header::USER_AGENT),
            body: serde_json::from_slice(body).unwrap_or(Value::Null),
            admitted: Value::Null,
        })
    }

    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && matches!(self.parameter("watch"), "true" | "1")
    }

    pub fn is_list(&self) -> bool {
        self.method == Method::GET && self.target.name.is_empty() && !self.is_watch()
    }

    pub fn is_mutation(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether it asks for the token of a ServiceAccount, which changes nothing.
    pub fn is_token_request(&self) -> bool {
        self.target.is_token() && self.method == Method::POST
    }

    pub fn is_apply(&self) -> bool {
        self.method == Method::PATCH && self.content_type.starts_with("application/apply-patch")
    }

    /// The verb as RBAC names it.
    pub fn verb(&self) -> &'static str {
        match self.method {
            Method::GET if self.is_watch() => "watch",
            Method::GET if self.is_list() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::DELETE => "delete",
            _ => "patch",
        }
    }

    pub fn is_json_patch(&self) -> bool {
        self.method == Method::PATCH && self.content_type.starts_with("application/json-patch")
    }

    /// Who is recorded in `managedFields`.
    pub fn manager(&self) -> String {
        match self.parameter("fieldManager") {
            "" => self.user_agent.split('/').next().unwrap_or_default().to_owned(),
            manager => manager.to_owned(),
        }
    }

    pub fn summary(&self) -> String {
        let Target { kind, namespace, name, subresource } = &self.target;
        let what = if self.is_watch() { "WATCH" } else { self.method.as_str() };
        let place = [namespace, name, subresource].map(String::as_str);
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{what} {} {}", kind.resource(), place.join("/"))
    }
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, rest) = rest.split_first()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.group() == group && kind.resource() == *resource)?;
    let part = |index: usize| rest.get(index).map_or(String::new(), |part| (*part).to_owned());
    Some(Target { kind, namespace: namespace.to_owned(), name: part(0), subresource: part(1) })
}
