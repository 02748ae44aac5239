//! AWS's time: an HTTP client that reads it from each answer, and the time by which the SDK signs.

use std::time::SystemTime;

use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use crate::clock::{Clock, Server};

/// The headers in which AWS names a request. Whoever answers with one of them is AWS, and not a proxy with a clock of its own.
pub(super) const REQUEST_ID: [&str; 2] = ["x-amzn-requestid", "x-amz-request-id"];

/// The time by which the SDK signs and judges sessions. It is that of the process: with a skew learned by each client for itself,
/// the first call of every new client would be refused.
#[derive(Debug)]
pub(super) struct AwsTime(pub(super) Clock);

impl TimeSource for AwsTime {
    fn now(&self) -> SystemTime {
        SystemTime::from(self.0.of_servers())
    }
}

/// Another HTTP client, whose answers tell the clock the time of AWS.
#[derive(Debug)]
pub(super) struct Listening<C> {
    pub(super) inner: C,
    pub(super) clock: Clock,
}

impl<C: HttpClient> HttpClient for Listening<C> {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(Listening { inner, clock: self.clock.clone() })
    }
}

impl HttpConnector for Listening<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (clock, sent) = (self.clock.clone(), self.clock.uptime());
        let answer = self.inner.call(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            let headers = answer.headers();
            // An answer with an age comes of a cache.
            let fresh = REQUEST_ID.iter().any(|name| headers.contains_key(*name)) && !headers.contains_key("age");
            if let Some(date) = headers.get("date").filter(|_| fresh) {
                clock.hear(Server::Aws, date, sent);
            }
            Ok(answer)
        })
    }
}
