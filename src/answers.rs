//! The API server's answers: which are a success, and which refusals are its own and not those of admission.

use http::{Response, StatusCode};
use kube::core::Status;

/// Turns a status code that is neither a success nor an error into an error. An admission webhook may refuse with codes up to 999, and
/// the API server passes them on. kube takes all from 600 on, and redirects, for a success.
pub fn without_odd_codes<B>(mut answer: Response<B>) -> Response<B> {
    let code = answer.status();
    if !code.is_success() && !code.is_client_error() && !code.is_server_error() {
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
    }
    answer
}

/// The Status of a refusal by the API server itself. An admission webhook may refuse with any status code, so its 404 does not mean that
/// the object is gone, and its 409 is no conflict.
pub fn own_refusal(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) if !is_denied_by_admission(&status.message) => Some(status),
        _ => None,
    }
}

/// Whether a message says that admission has refused the request (k8s.io/apiserver, pkg/admission/plugin/webhook/errors and
/// pkg/admission/plugin/policy/validating). The names are quoted, and the quotes are escaped where kube could not read the Status and
/// has its JSON as the message: a webhook may set fields of it to anything.
pub fn is_denied_by_admission(message: &str) -> bool {
    (message.contains("admission webhook ") && message.contains("denied the request"))
        || (message.contains("ValidatingAdmissionPolicy") && message.contains("denied request"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::Client;
    use kube::client::{Body, ClientBuilder};
    use serde_json::{Value, json};
    use tower::util::MapResponseLayer;

    use super::*;

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
            }
        }
        let own = answered(404, &status(404, "secrets \"x\" not found", "Failure").to_string()).await.unwrap_err();
        assert!(own_refusal(&own).is_some(), "{own:?}");
    }
}
