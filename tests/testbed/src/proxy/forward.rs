//! One request's way through the proxy: recorded, hurt if a fault says so, forwarded, answered.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::Timestamp;
use serde_json::Value;

use super::fault::{Action, Answer, Faults};
use super::log::Log;
use super::stream::{OpenWatches, watch_body};
use super::view::Views;
use super::{Request, Stored, Target};

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) struct Forwarder {
    pub(super) base: String,
    pub(super) upstream: reqwest::Client,
    pub(super) log: Arc<Log>,
    pub(super) faults: Arc<Faults>,
    pub(super) watches: Arc<OpenWatches>,
    pub(super) views: Arc<Views>,
}

/// What the API server answered; the body is whole for everything that is not a watch or a successful read.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: AnsweredBody,
}

enum AnsweredBody {
    Whole(Bytes),
    Stream(reqwest::Response),
}

impl Forwarder {
    /// An error closes the connection without an answer.
    pub(super) async fn serve(self: Arc<Self>, incoming: http::Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = incoming.into_parts();
        let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let request = self.log.push(|number| describe(number, &parts, &bytes));
        let action = self.faults.on_request(&request);
        let result = self.answer(&request, parts.headers, bytes, action).await;
        self.log.finish(request.number, result.as_ref().ok().map(|answer| answer.status().as_u16()));
        result
    }

    async fn answer(
        self: &Arc<Self>,
        request: &Request,
        headers: HeaderMap,
        bytes: Bytes,
        action: Option<Action>,
    ) -> io::Result<Response<Body>> {
        match &action {
            Some(Action::Answer(answer)) => return answer_ourselves(answer),
            Some(Action::Drop) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Action::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Action::HoldRequest(gate)) => gate.pass().await,
            _ => {}
        }
        // In a task of its own, so that a caller who dies meanwhile does not leave it unknown what was committed.
        let (this, sent) = (self.clone(), request.clone());
        let answered = tokio::spawn(async move { this.forward(&sent, headers, bytes).await })
            .await
            .map_err(io::Error::other)??;
        match action {
            Some(Action::CutAfterCommit) => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Action::Truncate(length)) => truncated(answered, length),
            Some(Action::Rewrite(change)) => rewritten(answered, &*change).await,
            Some(Action::HoldAnswer(gate)) => {
                gate.pass().await;
                self.pass_on(request, answered)
            }
            _ => self.pass_on(request, answered),
        }
    }

    async fn forward(&self, request: &Request, mut headers: HeaderMap, bytes: Bytes) -> io::Result<Answered> {
        // These belong to the connection of the caller. Compressed answers could be neither read nor cut at an event.
        for name in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, ACCEPT_ENCODING] {
            headers.remove(name);
        }
        let separator = if request.query.is_empty() { "" } else { "?" };
        let url = format!("{}{}{separator}{}", self.base, request.path, request.query);
        let sent = self.upstream.request(request.method.clone(), url).headers(headers).body(bytes).send().await;
        let response = sent.map_err(io::Error::other)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if !request.is_mutation() && !request.is_token_request() && status.is_success() {
            self.log.update(request.number, |logged| logged.committed = Some(status.as_u16()));
            if request.is_watch() || !self.views.concern(request) {
                return Ok(Answered { status, headers, body: AnsweredBody::Stream(response) });
            }
            let body = response.bytes().await.map_err(io::Error::other)?;
            return Ok(Answered { status, headers, body: AnsweredBody::Whole(self.views.filter_list(request, body)) });
        }
        let body = response.bytes().await;
        self.log.update(request.number, |logged| record_answer(logged, status, body.as_deref().unwrap_or_default()));
        if let Some(answer) = body.as_ref().ok().filter(|_| request.is_token_request()) {
            self.log.keep_token(request, &serde_json::from_slice(answer).unwrap_or_default());
        }
        Ok(Answered { status, headers, body: AnsweredBody::Whole(body.map_err(io::Error::other)?) })
    }

    fn pass_on(&self, request: &Request, answered: Answered) -> io::Result<Response<Body>> {
        let Answered { status, headers, body } = answered;
        let body = match body {
            AnsweredBody::Whole(bytes) => whole(bytes),
            AnsweredBody::Stream(response) if request.is_watch() => {
                let upstream = response.bytes_stream();
                streamed(watch_body(
                    request.clone(),
                    upstream,
                    self.faults.clone(),
                    self.views.clone(),
                    self.watches.clone(),
                ))
            }
            AnsweredBody::Stream(response) => streamed(response.bytes_stream().map_err(io::Error::other)),
        };
        respond(status, headers, body)
    }
}

fn describe(number: usize, parts: &http::request::Parts, bytes: &[u8]) -> Request {
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let content_type = header(CONTENT_TYPE);
    Request {
        number,
        started: Timestamp::now(),
        finished: None,
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        user_agent: header(USER_AGENT),
        body: parse(&content_type, bytes),
        content_type,
        target: Target::parse(parts.uri.path()),
        committed: None,
        status: None,
        stored: None,
        refusal: None,
        led: None,
    }
}

fn parse(content_type: &str, bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return None;
    }
    // An apply may be YAML by its type and JSON by its text.
    let json = serde_json::from_slice(bytes).ok();
    json.or_else(|| content_type.contains("yaml").then(|| serde_saphyr::from_slice(bytes).ok()).flatten())
}

fn record_answer(logged: &mut Request, status: StatusCode, body: &[u8]) {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    logged.committed = Some(status.as_u16());
    if status.is_success() {
        logged.stored = Stored::from_answer(&answer);
    } else {
        logged.refusal = answer["message"].as_str().map(str::to_owned);
    }
}

fn answer_ourselves(answer: &Answer) -> io::Result<Response<Body>> {
    let status = StatusCode::from_u16(answer.status).map_err(io::Error::other)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, answer.content_type.parse().map_err(io::Error::other)?);
    if let Some(seconds) = answer.retry_after_seconds {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    respond(status, headers, whole(answer.body.clone().into()))
}

fn truncated(answered: Answered, length: usize) -> io::Result<Response<Body>> {
    let Answered { status, headers, body } = answered;
    let body = match body {
        AnsweredBody::Whole(bytes) => stream::iter([Ok(bytes)]).boxed(),
        AnsweredBody::Stream(response) => response.bytes_stream().map_err(io::Error::other).boxed(),
    };
    let cut = stream::unfold((body, length), |(mut body, left)| async move {
        if left == 0 {
            return None;
        }
        let chunk = body.next().await?.map(|chunk| chunk.slice(..chunk.len().min(left)));
        let left = left - chunk.as_ref().map_or(left, Bytes::len);
        Some((chunk, (body, left)))
    });
    // An answer that is shorter than the limit ends in a cut as well.
    respond(status, headers, streamed(cut.chain(stream::iter([Err(io::ErrorKind::ConnectionAborted.into())]))))
}

async fn rewritten(answered: Answered, change: &(dyn Fn(Value) -> Value + Send + Sync)) -> io::Result<Response<Body>> {
    let Answered { status, headers, body } = answered;
    let bytes = match body {
        AnsweredBody::Whole(bytes) => bytes,
        AnsweredBody::Stream(response) => response.bytes().await.map_err(io::Error::other)?,
    };
    let value = serde_json::from_slice(&bytes).unwrap_or_default();
    respond(status, headers, whole(change(value).to_string().into()))
}

fn respond(status: StatusCode, mut headers: HeaderMap, body: Body) -> io::Result<Response<Body>> {
    for name in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        headers.remove(name);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}
