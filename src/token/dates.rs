//! An HTTP client that reports each request to AWS and reads AWS's time from each response, and the time source of the SDK.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest as SentRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use crate::clock::{Clock, Server};

/// The headers with the request id of AWS. A response with one of them comes from AWS, and not from a proxy with another clock.
pub(super) const REQUEST_ID: [&str; 2] = ["x-amzn-requestid", "x-amz-request-id"];

/// The time source by which the SDK signs and checks sessions: the clock of the process. With a skew correction of its own, the first
/// call of every new client would be denied.
#[derive(Debug)]
pub(super) struct AwsTime(pub(super) Clock);

impl TimeSource for AwsTime {
    fn now(&self) -> SystemTime {
        SystemTime::from(self.0.of_servers())
    }
}

/// A single HTTP request to AWS that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// `ecr`, `ecr-public` or `sts`.
    pub api: &'static str,
    /// The action of the API.
    pub action: &'static str,
    /// `success`, `refused` (status 4xx), `failed` (5xx), or `unanswered`.
    pub result: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// Called for each request.
#[derive(Clone)]
pub(super) struct Requests(pub(super) Arc<dyn Fn(&HttpRequest) + Send + Sync>);

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}

/// A request in flight. It is reported even if it is dropped before its response.
struct InFlight {
    request: HttpRequest,
    clock: Clock,
    sent: Duration,
    requests: Requests,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.request.took = self.clock.uptime().saturating_sub(self.sent);
        (self.requests.0)(&self.request);
    }
}

/// An HTTP client whose requests are reported and whose responses correct the clock.
#[derive(Debug)]
pub(super) struct Listening<C> {
    pub(super) inner: C,
    pub(super) clock: Clock,
    pub(super) requests: Requests,
}

/// The API that a request is for, and the action.
fn action_of(request: &SentRequest) -> Option<(&'static str, &'static str)> {
    const TOKEN: &str = "GetAuthorizationToken";
    match request.headers().get("x-amz-target") {
        Some(target) if target.ends_with(TOKEN) && target.starts_with("SpencerFrontendService.") => {
            Some(("ecr-public", TOKEN))
        }
        Some(target) if target.ends_with(TOKEN) => Some(("ecr", TOKEN)),
        Some(_) => None,
        None => {
            let body = request.body().bytes()?;
            let known = ["AssumeRole", "AssumeRoleWithWebIdentity", "GetCallerIdentity"];
            let is = |action: &&str| body.starts_with(format!("Action={action}&").as_bytes());
            known.into_iter().find(is).map(|action| ("sts", action))
        }
    }
}

impl<C: HttpClient> HttpClient for Listening<C> {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(Listening { inner, clock: self.clock.clone(), requests: self.requests.clone() })
    }
}

impl HttpConnector for Listening<SharedHttpConnector> {
    fn call(&self, request: SentRequest) -> HttpConnectorFuture {
        let (clock, sent) = (self.clock.clone(), self.clock.uptime());
        let mut under_way = action_of(&request).map(|(api, action)| InFlight {
            request: HttpRequest { api, action, result: "unanswered", took: Duration::ZERO },
            clock: clock.clone(),
            sent,
            requests: self.requests.clone(),
        });
        let answer = self.inner.call(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            if let Some(InFlight { request, .. }) = &mut under_way {
                request.result = match answer.status().as_u16() {
                    ..400 => "success",
                    400..500 => "refused",
                    _ => "failed",
                };
            }
            let headers = answer.headers();
            // A response with an age comes from a cache.
            let fresh = REQUEST_ID.iter().any(|name| headers.contains_key(*name)) && !headers.contains_key("age");
            if let Some(date) = headers.get("date").filter(|_| fresh) {
                clock.hear(Server::Aws, date, sent);
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::http::SharedHttpConnector;
    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use aws_smithy_types::body::SdkBody;
    use parking_lot::Mutex;

    use super::*;

    /// Answers with a status, or never.
    #[derive(Debug)]
    struct Answer(Option<u16>);

    impl HttpConnector for Answer {
        fn call(&self, _: SentRequest) -> HttpConnectorFuture {
            let status = self.0;
            HttpConnectorFuture::new(async move {
                match status {
                    Some(status) => Ok(HttpResponse::new(status.try_into().unwrap(), SdkBody::empty())),
                    None => std::future::pending().await,
                }
            })
        }
    }

    fn request(target: Option<&'static str>, body: &'static str) -> SentRequest {
        let mut request = SentRequest::new(SdkBody::from(body));
        if let Some(target) = target {
            request.headers_mut().insert("x-amz-target", target);
        }
        request
    }

    #[tokio::test]
    async fn each_request_is_told_of_with_how_it_ended() {
        let ecr = Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
        let public = Some("SpencerFrontendService.GetAuthorizationToken");
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        let requests = Requests(Arc::new(move |request: &HttpRequest| {
            seen.lock().push((request.api, request.action, request.result));
        }));
        for (status, target, body) in [
            (Some(200), ecr, "{}"),
            (Some(400), public, "{}"),
            (Some(503), None, "Action=AssumeRole&Version=2011-06-15"),
            (Some(200), None, "Action=AssumeRoleWithWebIdentity&Version=2011-06-15"),
            (None, ecr, "{}"),
            // Not of the three.
            (Some(200), Some("SSOPortal.GetRoleCredentials"), "{}"),
            (Some(200), None, "{}"),
        ] {
            let inner = SharedHttpConnector::new(Answer(status));
            let listening = Listening { inner, clock: Clock::default(), requests: requests.clone() };
            let answer = listening.call(request(target, body));
            // One that is not answered is given up by whoever waits.
            let _ = tokio::time::timeout(Duration::from_millis(1), answer).await;
        }
        let told = told.lock().clone();
        assert_eq!(
            told,
            [
                ("ecr", "GetAuthorizationToken", "success"),
                ("ecr-public", "GetAuthorizationToken", "refused"),
                ("sts", "AssumeRole", "failed"),
                ("sts", "AssumeRoleWithWebIdentity", "success"),
                ("ecr", "GetAuthorizationToken", "unanswered"),
            ]
        );
    }
}
