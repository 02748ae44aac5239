//! The way of one process to the API server: a tower service under kube's client, where requests take time, break, and are recorded.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use tower::{BoxError, Service};

use super::under_way::Passage;
use super::{Action, Answer, ApiServer, Point, Request};

/// How late an answer is that the watch overtakes.
const OVERTAKEN: Duration = Duration::from_millis(900);

/// The longest that a request takes to arrive, or an answer, in microseconds.
const LATENCY: u64 = 4_000;

pub(super) type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// See the file's first line. When it is cut, nothing of its process gets through any more.
#[derive(Clone)]
pub struct Link {
    pub(super) server: ApiServer,
    process: u32,
    cut: Arc<AtomicBool>,
}

impl Link {
    pub fn new(server: &ApiServer, process: u32) -> Self {
        Self { server: server.clone(), process, cut: Arc::default() }
    }

    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// A cut link says nothing for ever.
    async fn travel(&self) {
        self.wait(self.server.latency(LATENCY)).await;
    }

    async fn wait(&self, time: Duration) {
        tokio::time::sleep(time).await;
        if self.is_cut() {
            pending::<()>().await;
        }
    }

    /// The request is done so much later, even if nobody waits for the answer any more, and the answer is lost.
    async fn arrive_late(
        self,
        request: Request,
        number: Option<usize>,
        passage: Option<Passage>,
        time: Duration,
    ) -> Result<Response<ResponseBody>, BoxError> {
        tokio::spawn(async move {
            let _passage = passage;
            self.wait(time).await;
            let (answer, version, leads) = self.server.serve(&request, Some(self.process));
            self.server.0.log.lock().end(number, answer.code, version, leads);
        });
        pending().await
    }

    async fn carry(self, head: http::request::Parts, body: Body) -> Result<Response<ResponseBody>, BoxError> {
        let body = body.collect_bytes().await?;
        let Some(mut request) = Request::read(&head, &body) else {
            return Ok(response(Answer::refusal(404, "NotFound", "the server could not find the requested resource")));
        };
        let passage = self.server.0.under_way.enter(&request, &self.cut);
        self.travel().await;
        let number = self.server.0.log.lock().begin(&request, self.process);
        let fault = self.server.faults().hit(&request);
        let mut stale = 0;
        match &fault {
            Some(Action::Answer(answer)) => return Ok(response(answer.clone())),
            Some(Action::Refuse) => return Err("the connection was refused".into()),
            Some(Action::Hang) => pending::<()>().await,
            Some(Action::Delay(time)) => self.wait(*time).await,
            Some(Action::Late(time)) => return self.arrive_late(request, number, passage, *time).await,
            Some(Action::First(act)) => act(&self.server),
            Some(Action::Stale(versions)) => stale = *versions,
            Some(Action::Die(Point::Before)) => self.die(Point::Before).await,
            _ => {}
        }
        if (request.is_watch() || request.is_list()) && self.server.0.weather.borrow().away {
            return Err("the connection was refused".into());
        }
        if request.is_watch() {
            return Ok(self.watch(&request));
        }
        if let Some(review) = self.server.0.admission.review(&request) {
            if !review.is_harmless() {
                self.server.faults().count();
            }
            self.wait(review.time).await;
            if let Some(refusal) = review.refusal {
                return Ok(response(refusal));
            }
            request.admitted = review.patch;
        }
        let (answer, version, leads) = if stale > 0 && request.is_list() {
            let store = self.server.0.store.lock();
            let version = store.version.saturating_sub(stale).max(store.oldest);
            (store.list(&request, version), version, false)
        } else {
            self.server.serve(&request, Some(self.process))
        };
        self.server.0.log.lock().end(number, answer.code, version, leads);
        match &fault {
            Some(Action::LoseAnswer) => return Err("the connection was reset".into()),
            Some(Action::Then(act)) => act(&self.server),
            Some(Action::Overtaken(act)) => {
                act(&self.server);
                tokio::time::sleep(OVERTAKEN).await;
            }
            Some(Action::Die(Point::Committed)) => self.die(Point::Committed).await,
            Some(Action::Die(Point::Answered)) => {
                self.travel().await;
                self.server.0.deaths.send_replace(Some(Point::Answered));
                return Ok(response(answer));
            }
            _ => {}
        }
        // As text while it is under way: a hundred pages of lists may be.
        let answer = response(answer);
        self.travel().await;
        Ok(answer)
    }

    async fn die(&self, point: Point) {
        self.server.0.deaths.send_replace(Some(point));
        pending::<()>().await;
    }

    fn watch(&self, request: &Request) -> Response<ResponseBody> {
        let events = Box::pin(self.clone().events(request));
        let body = StreamBody::new(self.server.0.stopwatch.time(events)).boxed_unsync();
        let builder = Response::builder().status(200).header("content-type", "application/json");
        builder.header("date", crate::clock::api_server_date()).body(body).expect("a response")
    }
}

fn response(answer: Answer) -> Response<ResponseBody> {
    let text = Bytes::from(answer.body.to_string());
    let body = Full::new(text).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut builder = Response::builder()
        .status(StatusCode::from_u16(answer.code).expect("a status code"))
        .header("content-type", "application/json")
        .header("date", crate::clock::api_server_date());
    if let Some(seconds) = answer.retry_after {
        builder = builder.header("retry-after", seconds);
    }
    builder.body(body).expect("a response")
}

impl Service<http::Request<Body>> for Link {
    type Response = Response<ResponseBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        if self.is_cut() {
            return Box::pin(async {
                pending::<()>().await;
                ready(Err("never".into())).await
            });
        }
        let carried = Box::pin(self.clone().carry(head, body));
        Box::pin(self.server.0.stopwatch.time(carried))
    }
}
