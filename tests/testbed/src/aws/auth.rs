//! Who signed a request: the whole of the signature, the session behind it, and what it may do.

use std::sync::Arc;

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};

use super::credentials::Credential;
use super::error::ApiError;
use super::iam::Refusal;
use super::server::Door;
use super::sigv4::{Authorization, SignedRequest, amz_date, parse_amz_date};
use super::{Inner, Service};

/// How far a request's time may be from the service's, either way.
const LARGEST_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// A caller whose signature was found good.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) credential: Arc<Credential>,
    pub(super) region: String,
}

/// Checks the signature and the session; the order of the checks is that of the services, as far as their answers show it.
pub(super) fn authenticate(inner: &Inner, door: &Door, request: &SignedRequest<'_>) -> Result<Caller, ApiError> {
    let service = door.service;
    let words = Words(service);
    let authorization = Authorization::parse(request.headers).map_err(|why| words.incomplete(why))?;
    let authorization = authorization.ok_or_else(|| words.missing())?;
    let sent =
        header(request.headers, "x-amz-date").ok_or_else(|| words.incomplete("'X-Amz-Date' is required".into()))?;
    check_scope(door, &authorization, sent)?;
    let unsigned = authorization.unsigned_headers(request.headers);
    if !unsigned.is_empty() {
        return Err(words.mismatch(&format!("must be signed but are not: {}", unsigned.join(", "))));
    }
    check_time(service, sent, inner.clock.now())?;
    let credential = inner.credentials.find(&authorization.access_key).ok_or_else(|| words.unknown())?;
    if header(request.headers, "x-amz-security-token") != credential.session_token.as_deref() {
        return Err(words.unknown());
    }
    if authorization.expected_signature(&credential.secret_key, request, sent) != authorization.signature {
        return Err(words.mismatch("Check your AWS Secret Access Key and signing method."));
    }
    if credential.expires.is_some_and(|expires| expires <= inner.clock.now()) {
        return Err(words.expired());
    }
    if credential.principal.partition != super::region::partition(&authorization.region).name {
        return Err(words.unknown());
    }
    Ok(Caller { credential, region: authorization.region })
}

/// The region of the signature's scope, believed without a check: for the log and for faults.
pub(super) fn claimed_region(headers: &HeaderMap) -> Option<String> {
    Authorization::parse(headers).ok().flatten().map(|authorization| authorization.region)
}

impl Caller {
    /// Whether the caller may do `action`, by its role as it is now and by its session's policy.
    pub(super) fn require(
        &self,
        inner: &Inner,
        service: Service,
        action: &str,
        resource: &str,
    ) -> Result<(), ApiError> {
        let principal = &self.credential.principal;
        let verdict = match &principal.role {
            None => inner.users.check(&principal.arn, action),
            Some(arn) => {
                inner.roles.lock().get(arn).map_or(Err(Refusal::NotAllowed), |role| role.permissions.check(action))
            }
        };
        let because = match (verdict, &self.credential.policy) {
            (Err(Refusal::Denied), _) => "with an explicit deny in an identity-based policy".to_owned(),
            (Err(Refusal::NotAllowed), _) => format!("because no identity-based policy allows the {action} action"),
            (Ok(()), Some(policy)) if !policy.allows(action) => {
                format!("because no session policy allows the {action} action")
            }
            (Ok(()), _) => return Ok(()),
        };
        let message =
            format!("User: {} is not authorized to perform: {action} on resource: {resource} {because}", principal.arn);
        Err(ApiError::denied(service, message))
    }
}

fn check_scope(door: &Door, authorization: &Authorization, sent: &str) -> Result<(), ApiError> {
    let service = door.service;
    let words = Words(service);
    if authorization.service != service.signing_name() {
        return Err(
            words.scope(&format!("Credential should be scoped to correct service: '{}'.", service.signing_name()))
        );
    }
    if !super::region::is_region(&authorization.region) {
        return Err(words.scope("Credential should be scoped to a valid region."));
    }
    if let Some(host) = door.host.as_ref().filter(|host| host.region != authorization.region) {
        let (right, wrong) = (&host.region, &authorization.region);
        return Err(
            words.scope(&format!("Credential should be scoped to a valid region, not '{wrong}' but '{right}'."))
        );
    }
    if !sent.starts_with(&authorization.date) {
        return Err(
            words.scope("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")
        );
    }
    Ok(())
}

fn check_time(service: Service, sent: &str, now: Timestamp) -> Result<(), ApiError> {
    let words = Words(service);
    let at = parse_amz_date(sent).ok_or_else(|| {
        words.incomplete(format!(
            "Date must be in ISO-8601 'basic format'. Got '{sent}'. See http://en.wikipedia.org/wiki/ISO_8601"
        ))
    })?;
    let (oldest, newest, now) = (now - LARGEST_SKEW, now + LARGEST_SKEW, amz_date(now));
    if at < oldest {
        return Err(words
            .scope(&format!("Signature expired: {sent} is now earlier than {} ({now} - 5 min.)", amz_date(oldest))));
    }
    if at > newest {
        return Err(words.scope(&format!(
            "Signature not yet current: {sent} is still later than {} ({now} + 5 min.)",
            amz_date(newest)
        )));
    }
    Ok(())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The same refusals have other codes and statuses in the Query protocol than in the JSON one.
struct Words(Service);

impl Words {
    fn error(&self, query_code: &str, json_code: &str, message: &str) -> ApiError {
        match self.0 {
            Service::Sts => ApiError::new(403, query_code, message),
            _ => ApiError::bad(json_code, message),
        }
    }

    fn missing(&self) -> ApiError {
        self.error("MissingAuthenticationToken", "MissingAuthenticationTokenException", "Missing Authentication Token")
    }

    fn incomplete(&self, why: String) -> ApiError {
        self.error("IncompleteSignature", "IncompleteSignatureException", &why)
    }

    fn scope(&self, why: &str) -> ApiError {
        self.error("SignatureDoesNotMatch", "InvalidSignatureException", why)
    }

    fn mismatch(&self, why: &str) -> ApiError {
        let message = format!("The request signature we calculated does not match the signature you provided. {why}");
        self.error("SignatureDoesNotMatch", "InvalidSignatureException", &message)
    }

    fn unknown(&self) -> ApiError {
        let message = "The security token included in the request is invalid.";
        self.error("InvalidClientTokenId", "UnrecognizedClientException", message)
    }

    fn expired(&self) -> ApiError {
        self.error("ExpiredToken", "ExpiredTokenException", "The security token included in the request is expired")
    }
}
