//! One request of the operator as the proxy saw it, in Kubernetes' own terms.

use http::Method;
use jiff::Timestamp;
use serde_json::Value;

/// A request, its answer, and what became of both.
#[derive(Clone, Debug)]
pub struct Request {
    /// Position in the log, from 0.
    pub number: usize,
    pub started: Timestamp,
    /// When the caller had its answer, or the headers of a stream; `None` while pending, and for ever if the caller went away.
    pub finished: Option<Timestamp>,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub content_type: String,
    pub user_agent: String,
    /// The body as JSON, of any request that has one.
    pub body: Option<Value>,
    pub target: Target,
    /// The API server's status; `None` when the request never reached it or is still there.
    pub committed: Option<u16>,
    /// The status that the caller saw; `None` when its connection was cut.
    pub status: Option<u16>,
    /// The object that a mutating request left behind.
    pub stored: Option<Stored>,
    /// The message of a refusal by the API server.
    pub refusal: Option<String>,
    /// Whether its process held the Lease when it was carried out; `None` where the requests alone tell.
    pub led: Option<bool>,
}

/// What the API server answered about an object that it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub uid: String,
    pub resource_version: String,
}

/// What a path is about; the parts that it does not have are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub group: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

impl Request {
    /// Whether it would change something: not a read, a dry run, a question about rights or a request for a token.
    pub fn is_mutation(&self) -> bool {
        let asks = matches!(&*self.target.group, "authorization.k8s.io" | "authentication.k8s.io");
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(&self.method);
        writes && !asks && !self.is_token_request() && self.parameter("dryRun").is_none()
    }

    /// A request for a ServiceAccount's token. It leaves nothing behind in the cluster.
    pub fn is_token_request(&self) -> bool {
        let Target { group, resource, subresource, .. } = &self.target;
        (&**group, &**resource, &**subresource) == ("", "serviceaccounts", "token") && self.method == Method::POST
    }

    /// A mutation that is not the renewal of a Lease, which goes on for ever.
    pub fn is_change(&self) -> bool {
        self.is_mutation() && self.target.resource != "leases"
    }

    pub fn is_secret_write(&self) -> bool {
        self.is_mutation() && self.target.group.is_empty() && self.target.resource == "secrets"
    }

    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && self.parameter("watch").is_some_and(|value| value != "false" && value != "0")
    }

    /// Whether the API server carried it out.
    pub fn is_committed(&self) -> bool {
        self.committed.is_some_and(|status| (200..300).contains(&status))
    }

    pub fn parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// One line for a person, without the body: it may hold a token.
    pub fn summary(&self) -> String {
        let separator = if self.query.is_empty() { "" } else { "?" };
        let status = self.status.map_or("cut".to_owned(), |status| status.to_string());
        format!("#{} {} {}{separator}{} -> {status}", self.number, self.method, self.path, self.query)
    }
}

impl Target {
    /// Takes a path such as `/api/v1/namespaces/a/secrets/b` or `/apis/apps/v1/deployments` apart.
    pub fn parse(path: &str) -> Target {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", _version, rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => return Target::default(),
        };
        // `/namespaces/a` and its own subresources are about the namespace; anything else is in it.
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, inner @ ..] if !inner.is_empty() => (*namespace, inner),
            _ => ("", rest),
        };
        let part = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        Target {
            group: group.into(),
            namespace: namespace.into(),
            resource: part(0),
            name: part(1),
            subresource: part(2),
        }
    }
}

impl Stored {
    /// Reads the answer to a mutating request: the object, or the Status of a deletion.
    pub fn from_answer(answer: &Value) -> Option<Stored> {
        let metadata = &answer["metadata"];
        let uid = metadata["uid"].as_str().or(answer["details"]["uid"].as_str())?;
        let resource_version = metadata["resourceVersion"].as_str().unwrap_or_default();
        Some(Stored { uid: uid.into(), resource_version: resource_version.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart() {
        let target = |group: &str, namespace: &str, resource: &str, name: &str, subresource: &str| Target {
            group: group.into(),
            namespace: namespace.into(),
            resource: resource.into(),
            name: name.into(),
            subresource: subresource.into(),
        };
        let cases = [
            ("/api/v1/namespaces/a/secrets/b", target("", "a", "secrets", "b", "")),
            ("/api/v1/secrets", target("", "", "secrets", "", "")),
            ("/api/v1/namespaces/a", target("", "", "namespaces", "a", "")),
            ("/api/v1/namespaces/a/status", target("", "", "namespaces", "a", "status")),
            (
                "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/c/status",
                target("pullsecrets.dev", "", "ecrcredentials", "c", "status"),
            ),
            ("/api/v1/namespaces/a/serviceaccounts/b/token", target("", "a", "serviceaccounts", "b", "token")),
            (
                "/apis/coordination.k8s.io/v1/namespaces/o/leases/l",
                target("coordination.k8s.io", "o", "leases", "l", ""),
            ),
            ("/readyz", Target::default()),
        ];
        for (path, expected) in cases {
            assert_eq!(Target::parse(path), expected, "{path}");
        }
    }
}
