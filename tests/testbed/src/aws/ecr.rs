//! GetAuthorizationToken of ECR and of ECR Public, both over JSON 1.1.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::Caller;
use super::error::ApiError;
use super::fault::{BodyForm, Effect};
use super::tokens::{IssuedToken, Request};
use super::{Inner, Service};

/// Another account, for the second entry of an answer that has one too many.
const OTHER_ACCOUNT: &str = "999999999999";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Input {
    registry_ids: Option<Vec<String>>,
}

pub(super) fn get_authorization_token(
    inner: &Inner,
    service: Service,
    caller: &Caller,
    body: &[u8],
    effect: &Effect,
) -> Result<Value, ApiError> {
    let input: Input = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad("SerializationException", format!("cannot read the request: {error}")))?;
    match service {
        Service::EcrPublic => public_token(inner, caller, &input, effect),
        _ => private_tokens(inner, caller, input, effect),
    }
}

fn private_tokens(inner: &Inner, caller: &Caller, input: Input, effect: &Effect) -> Result<Value, ApiError> {
    caller.require(inner, Service::Ecr, "ecr:GetAuthorizationToken", "*")?;
    let mut registries = match input.registry_ids {
        Some(ids) => checked_registries(ids)?,
        None => vec![caller.credential.principal.account.clone()],
    };
    if effect.body == BodyForm::TwoEntries {
        registries.push(OTHER_ACCOUNT.to_owned());
    }
    let suffix = super::region::partition(&caller.region).suffix;
    let entry = |registry: String| {
        let endpoint = format!("https://{registry}.dkr.ecr.{}.{suffix}", caller.region);
        let token = issue(inner, Service::Ecr, caller, Some(registry), effect);
        json!({ "authorizationToken": token.auth, "expiresAt": epoch(token.expires), "proxyEndpoint": endpoint })
    };
    Ok(json!({ "authorizationData": registries.into_iter().map(entry).collect::<Vec<_>>() }))
}

/// One to ten account ids: the limits of `registryIds` in ECR's API reference.
fn checked_registries(ids: Vec<String>) -> Result<Vec<String>, ApiError> {
    let is_account = |id: &String| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_digit());
    let problem = match ids.len() {
        1..=10 => ids.iter().find(|id| !is_account(id)).map(|id| {
            format!("Invalid parameter at 'registryIds' failed to satisfy constraint: '{id}' must satisfy regular expression '[0-9]{{12}}'")
        }),
        n => Some(format!("Invalid parameter at 'registryIds' failed to satisfy constraint: 1 to 10 members, not {n}")),
    };
    match problem {
        Some(message) => Err(ApiError::bad("InvalidParameterException", message)),
        None => Ok(ids),
    }
}

fn public_token(inner: &Inner, caller: &Caller, input: &Input, effect: &Effect) -> Result<Value, ApiError> {
    if caller.region != "us-east-1" {
        let message =
            format!("GetAuthorizationToken command is only supported in us-east-1, not in {}.", caller.region);
        return Err(ApiError::bad("UnsupportedCommandException", message));
    }
    if input.registry_ids.is_some() {
        return Err(ApiError::bad("InvalidParameterException", "registryIds is not a parameter of ECR Public"));
    }
    for action in ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"] {
        caller.require(inner, Service::EcrPublic, action, "*")?;
    }
    let entry = || {
        let token = issue(inner, Service::EcrPublic, caller, None, effect);
        json!({ "authorizationToken": token.auth, "expiresAt": epoch(token.expires) })
    };
    Ok(match effect.body {
        BodyForm::TwoEntries => json!({ "authorizationData": [entry(), entry()] }),
        _ => json!({ "authorizationData": entry() }),
    })
}

fn issue(inner: &Inner, service: Service, caller: &Caller, registry: Option<String>, effect: &Effect) -> IssuedToken {
    let settings = inner.settings.lock().clone();
    inner.tokens.issue(Request {
        service,
        caller: &caller.credential,
        region: &caller.region,
        registry,
        form: effect.token,
        size: settings.token_size,
        now: inner.clock.now(),
        life: settings.token_life,
        claimed_life: effect.claimed_life.unwrap_or(settings.token_life),
    })
}

/// Seconds since 1970 with milliseconds, as JSON 1.1 writes times.
fn epoch(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
