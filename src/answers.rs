//! The API server's answers: which are a success, and who or what refuses a request, which the status code alone does not say.

use std::borrow::Cow;
use std::time::Duration;

use http::{Response, StatusCode};
use kube::Error;
use kube::core::Status;
use serde::Deserialize;

/// The longest message of the API server in a status, in characters: the size of a status is bounded.
const LONGEST: usize = 300;

/// The answer to a request, which may take so long.
///
/// # Errors
/// The request failed, or it took longer.
pub async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

/// The error of a request that took too long.
pub fn late() -> Error {
    Error::Service("the API server did not answer in time".into())
}

/// Turns a status code that is neither a success nor an error into an error. An admission webhook may refuse with codes up to 999, and
/// the API server passes them on. kube takes all from 600 on, and redirects, for a success.
pub fn without_odd_codes<B>(mut answer: Response<B>) -> Response<B> {
    let code = answer.status();
    if !code.is_success() && !code.is_client_error() && !code.is_server_error() {
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
    }
    answer
}

/// Who or what refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Admission: a webhook, a policy or a plugin of the API server. Its message is meant for people.
    Admission,
    /// The quota of the namespace.
    Quota,
    /// The namespace is being deleted.
    Terminating,
    /// A permission is missing.
    Rbac,
    /// The object that the details name does not exist.
    NotFound,
    /// The object is not the one, or not in the state, that the request names.
    Conflict,
    /// The content of the request is invalid.
    Invalid,
    /// The API server is busy.
    Throttled,
    /// Anything else; the message says what.
    Other,
}

impl Cause {
    /// The cause of a refusal.
    pub fn of(status: &Status) -> Self {
        let message = message(status);
        match status.code {
            // A webhook may use any status code.
            _ if is_denied_by_admission(&message) => Self::Admission,
            403 if is_terminating(status) => Self::Terminating,
            403 if message.contains("exceeded quota") => Self::Quota,
            403 if message.contains("cannot ") && message.contains("User \"") => Self::Rbac,
            403 => Self::Admission,
            404 => Self::NotFound,
            409 => Self::Conflict,
            422 => Self::Invalid,
            429 => Self::Throttled,
            _ => Self::Other,
        }
    }
}

/// The kind of the object that a refusal is about, in the plural; empty if it does not say.
pub fn kind(status: &Status) -> &str {
    status.details.as_ref().map(|details| details.kind.as_str()).unwrap_or_default()
}

/// The Status of a refusal by the API server itself. An admission webhook may refuse with any status code, so its 404 does not mean that
/// the object is gone, and its 409 is no conflict.
pub fn own_refusal(error: &Error) -> Option<&Status> {
    match error {
        Error::Api(status) if !is_denied_by_admission(&message(status)) => Some(status),
        _ => None,
    }
}

/// Whether the API server itself says that the object does not exist. A gateway may answer 404 as well, and so does an API server that
/// does not serve the kind yet.
pub fn is_gone(error: &Error) -> bool {
    own_refusal(error).is_some_and(|status| status.code == 404 && !kind(status).is_empty())
}

/// The message of a refusal. Where kube cannot read the Status, it has its JSON as the message: a webhook may set fields of it to anything.
pub fn message(status: &Status) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Unread {
        message: String,
    }
    match serde_json::from_str::<Unread>(&status.message) {
        Ok(unread) => Cow::Owned(unread.message),
        Err(_) => Cow::Borrowed(&status.message),
    }
}

/// Whether a message says that admission has refused the request (k8s.io/apiserver, pkg/admission/plugin/webhook/errors and
/// pkg/admission/plugin/policy/validating).
fn is_denied_by_admission(message: &str) -> bool {
    (message.contains("admission webhook \"") && message.contains("denied the request"))
        || (message.contains("ValidatingAdmissionPolicy") && message.contains("denied request"))
}

/// A message, cut if it is long.
pub fn shorten(message: &str) -> String {
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::Client;
    use kube::client::{Body, ClientBuilder};
    use kube::core::response::StatusDetails;
    use serde_json::{Value, json};
    use tower::util::MapResponseLayer;

    use super::*;

    #[test]
    fn whoever_refuses_is_known_by_the_message_and_not_by_the_code() {
        const WEBHOOK: &str = "admission webhook \"w.example\" denied the request: User \"x\" cannot get a token";
        const POLICY: &str = "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: you cannot do this";
        for code in [400, 403, 404, 409, 418, 422, 429, 500, 503] {
            for message in [WEBHOOK, POLICY] {
                let status = Status::failure(message, "x").with_code(code);
                assert_eq!(Cause::of(&status), Cause::Admission, "{code} {message}");
            }
        }
        let by_rbac =
            "serviceaccounts \"x\" is forbidden: User \"operator\" cannot create resource \"serviceaccounts/token\"";
        let by_webhook = "Internal error occurred: failed calling webhook \"w.example\": context deadline exceeded";
        for (code, message, cause) in [
            (403, by_rbac, Cause::Rbac),
            (403, "pods \"x\" is forbidden: the plugin says that they cannot be here", Cause::Admission),
            (403, "secrets \"x\" is forbidden: exceeded quota: none, requested: secrets=1", Cause::Quota),
            (404, "secrets \"x\" not found", Cause::NotFound),
            (409, "Operation cannot be fulfilled on secrets \"x\": the object has been modified", Cause::Conflict),
            (422, "Secret \"x\" is invalid: data: Required value", Cause::Invalid),
            (429, "the server has received too many requests", Cause::Throttled),
            (500, by_webhook, Cause::Other),
            (401, "Unauthorized", Cause::Other),
        ] {
            assert_eq!(Cause::of(&Status::failure(message, "x").with_code(code)), cause, "{code} {message}");
        }
        let causes = json!({ "kind": "secrets", "causes": [{ "reason": "NamespaceTerminating" }] });
        let details: StatusDetails = serde_json::from_value(causes).unwrap();
        let status = Status { details: Some(details), ..Status::failure("it is being terminated", "x") };
        assert_eq!((kind(&status), Cause::of(&status.clone().with_code(403))), ("secrets", Cause::Terminating));
    }

    #[test]
    fn a_long_message_is_cut_where_a_character_ends() {
        let cut = shorten(&"é".repeat(1000));
        assert!(cut.chars().count() == 301 && cut.ends_with('…'));
        assert_eq!(shorten("short"), "short");
    }

    /// What a request to an API server with this answer returns.
    async fn answered(code: u16, body: &str) -> Result<String, kube::Error> {
        let body = body.to_owned();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let body = Body::from(body.clone().into_bytes());
            let answer = Response::builder().status(code).body(body).unwrap();
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let client: Client =
            ClientBuilder::new(service, "default").with_layer(&MapResponseLayer::new(without_odd_codes)).build();
        client.request_text(http::Request::get("/").body(Vec::new()).unwrap()).await
    }

    fn status(code: u16, message: &str, summary: &str) -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": summary, "message": message, "reason": "x", "code": code })
    }

    const WEBHOOK: &str = "admission webhook \"w.example\" denied the request: no";

    #[tokio::test]
    async fn only_a_success_is_one_whatever_code_a_webhook_or_a_gateway_chooses() {
        for code in [200, 201, 202] {
            assert!(answered(code, "{}").await.is_ok(), "{code}");
        }
        for code in [302, 404, 409, 502, 599, 600, 700, 999] {
            let refused = answered(code, &status(code, WEBHOOK, "Failure").to_string()).await.unwrap_err();
            let kube::Error::Api(refusal) = &refused else { panic!("{code}: {refused:?}") };
            assert_eq!((refusal.message.as_str(), own_refusal(&refused)), (WEBHOOK, None), "{code}");
        }
        let redirected = answered(302, "<html>Sign in</html>").await.unwrap_err();
        assert!(own_refusal(&redirected).is_some_and(|status| status.code == 502), "{redirected:?}");
    }

    #[tokio::test]
    async fn a_refusal_of_admission_is_known_even_where_kube_cannot_read_its_status() {
        let policy = "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no";
        for message in [WEBHOOK, policy] {
            for summary in ["Failure", "Denied"] {
                let refused = answered(404, &status(404, message, summary).to_string()).await.unwrap_err();
                assert_eq!(own_refusal(&refused), None, "{refused:?}");
                let kube::Error::Api(status) = &refused else { panic!("{refused:?}") };
                assert_eq!(super::message(status), message);
            }
        }
        let own = answered(404, &status(404, "secrets \"x\" not found", "Failure").to_string()).await.unwrap_err();
        assert!(own_refusal(&own).is_some(), "{own:?}");
    }
}
