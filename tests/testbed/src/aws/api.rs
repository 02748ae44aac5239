//! One request in, one reply out: who calls, which fault strikes, what the service says, and the line in the log.

use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use serde_json::Value;

use super::auth::{Caller, authenticate, claimed_region};
use super::calls::Call;
use super::credentials::partition_and_account;
use super::error::ApiError;
use super::fault::{Delivery, Effect};
use super::fault_plan::Target;
use super::form::Form;
use super::server::Door;
use super::sigv4::SignedRequest;
use super::spoil::{json_body, xml_body};
use super::{Inner, Service, ecr, sts};

/// What goes back over the wire.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) request_id: String,
    pub(super) delivery: Delivery,
    /// The fault whose end a hanging reply awaits.
    pub(super) fault_id: Option<u64>,
}

/// A good answer before it is written out.
enum Answer {
    Json(Value),
    Xml(String),
}

pub(super) async fn handle(inner: &Inner, door: &Door, parts: &Parts, body: &Bytes) -> Reply {
    let request_id = request_id();
    let service = door.service;
    let mut request = Incoming::read(inner, door, parts, body);
    let struck = inner.faults.strike(&Target {
        service,
        api: &request.call.api,
        region: request.call.region.as_deref(),
        role: request.call.role.as_deref(),
    });
    let effect = struck.as_ref().map(|(_, fault)| fault.effect(service)).unwrap_or_default();
    request.call.fault = struck.as_ref().map(|(_, fault)| fault.name());
    let mut reply = request.answer(inner, body, &effect, request_id).await;
    reply.fault_id = struck.map(|(id, _)| id);
    inner.calls.record(request.call);
    reply
}

/// A request with what is known of it before it is answered.
struct Incoming {
    service: Service,
    call: Call,
    form: Form,
    /// None where the API takes no signature.
    caller: Result<Option<Caller>, ApiError>,
}

impl Incoming {
    fn read(inner: &Inner, door: &Door, parts: &Parts, body: &Bytes) -> Self {
        let service = door.service;
        let form = Form::parse(if service == Service::Sts { body } else { b"" });
        let api = check_host(door, parts).and_then(|()| operation(service, parts, &form));
        let unsigned = matches!(api.as_deref(), Ok("AssumeRoleWithWebIdentity"));
        let request = SignedRequest {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            headers: &parts.headers,
            body,
        };
        let caller = match &api {
            Err(error) => Err(error.clone()),
            Ok(_) if unsigned => Ok(None),
            Ok(_) => authenticate(inner, door, &request).map(Some),
        };
        let known = caller.as_ref().ok().and_then(Option::as_ref).map(|caller| &caller.credential.principal);
        let asked_role = || form.get("RoleArn").filter(|_| unsigned).map(str::to_owned);
        let call = Call {
            service,
            host: door.host.clone(),
            api: api.unwrap_or_else(|_| "-".to_owned()),
            region: claimed_region(&parts.headers).or_else(|| door.host.as_ref().map(|host| host.region.clone())),
            role: known.and_then(|principal| principal.role.clone()).or_else(asked_role),
            principal: known.map(|principal| principal.arn.clone()),
            account: known.map(|principal| principal.account.clone()),
            assumes: form.get("RoleArn").map(str::to_owned),
            at: inner.clock.now(),
            received: Instant::now(),
            code: "OK".to_owned(),
            fault: None,
        };
        Incoming { service, call, form, caller }
    }

    async fn answer(&mut self, inner: &Inner, body: &Bytes, effect: &Effect, request_id: String) -> Reply {
        let mut reply = Reply {
            status: 200,
            content_type: "text/plain",
            body: Vec::new(),
            request_id,
            delivery: effect.delivery,
            fault_id: None,
        };
        if matches!(effect.delivery, Delivery::Reset | Delivery::Hang) {
            self.call.code = "-".to_owned();
            return reply;
        }
        if let Some(status) = effect.bare_status {
            self.call.code = status.to_string();
            reply.status = status;
            return reply;
        }
        let request_id = reply.request_id.clone();
        (reply.content_type, reply.body) = match self.execute(inner, body, effect, &request_id).await {
            Ok(Answer::Json(value)) => json_body(effect.body, value),
            Ok(Answer::Xml(xml)) => xml_body(effect.body, xml),
            Err(error) => {
                self.call.code = error.code.clone();
                reply.status = error.status.as_u16();
                let (content_type, text) = error.render(self.service, &request_id);
                (content_type, text.into_bytes())
            }
        };
        reply
    }

    async fn execute(&mut self, inner: &Inner, body: &Bytes, effect: &Effect, id: &str) -> Result<Answer, ApiError> {
        let caller = self.caller.clone()?;
        self.check_rate(inner)?;
        if let Some(error) = &effect.error {
            return Err(error.clone());
        }
        let answer = match (self.call.api.as_str(), caller) {
            ("GetAuthorizationToken", Some(caller)) => {
                return ecr::get_authorization_token(inner, self.service, &caller, body, effect).map(Answer::Json);
            }
            ("AssumeRole", Some(caller)) => sts::assume_role(inner, &self.form, &caller, effect, id)?,
            ("GetCallerIdentity", Some(caller)) => sts::get_caller_identity(&caller, id),
            _ => sts::assume_role_with_web_identity(inner, &self.form, self.call.region.as_deref(), effect, id).await?,
        };
        if let (None, Some(session)) = (&self.call.principal, &answer.session) {
            self.call.principal = Some(session.principal.arn.clone());
            self.call.account = Some(session.principal.account.clone());
        }
        Ok(Answer::Xml(answer.xml))
    }

    /// Whoever calls without a signature is counted with the account of the role that is asked for.
    fn check_rate(&self, inner: &Inner) -> Result<(), ApiError> {
        let asked = self.call.assumes.as_deref().and_then(partition_and_account).map(|(_, account)| account);
        let account = self.call.account.clone().or(asked).unwrap_or_default();
        let region = self.call.region.as_deref().unwrap_or_default();
        inner.rates.take(self.service, &account, region, self.call.received)
    }
}

/// A call through a host's own tunnel names that host.
fn check_host(door: &Door, parts: &Parts) -> Result<(), ApiError> {
    let sent = parts.headers.get("host").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match &door.host {
        Some(host) if host.name != sent => {
            Err(ApiError::new(421, "MisdirectedRequest", format!("{} is not {sent}", host.name)))
        }
        _ => Ok(()),
    }
}

/// The API that a request asks for, if this service has it.
fn operation(service: Service, parts: &Parts, form: &Form) -> Result<String, ApiError> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let unknown = |what: &str| match service {
        Service::Sts => {
            ApiError::bad("InvalidAction", format!("Could not find operation {what} for version 2011-06-15"))
        }
        _ => ApiError::new(404, "UnknownOperationException", ""),
    };
    if parts.method != http::Method::POST || parts.uri.path() != "/" {
        return Err(unknown(parts.uri.path()));
    }
    let (content_type, api) = match service {
        Service::Sts => {
            let version = form.get("Version") == Some("2011-06-15");
            ("application/x-www-form-urlencoded", form.get("Action").filter(|_| version))
        }
        Service::Ecr => (JSON, header("x-amz-target").strip_prefix("AmazonEC2ContainerRegistry_V20150921.")),
        Service::EcrPublic => (JSON, header("x-amz-target").strip_prefix("SpencerFrontendService.")),
    };
    let api = api.filter(|api| service.apis().contains(api) && header("content-type") == content_type);
    api.map(str::to_owned).ok_or_else(|| unknown(form.get("Action").unwrap_or_default()))
}

const JSON: &str = "application/x-amz-json-1.1";

/// A request id in the form of a UUID.
fn request_id() -> String {
    let hex = hex::encode(rand::random::<[u8; 16]>());
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
