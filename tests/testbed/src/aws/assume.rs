//! Whether a role's trust policy lets a caller in, and what it may bring along.

use std::collections::{BTreeMap, BTreeSet};

use super::auth::Caller;
use super::credentials::Credential;
use super::error::ApiError;
use super::form::Form;
use super::iam::{PrincipalTrust, Role, Trust, string_like};
use super::sts::Extras;
use super::web_identity::Claims;
use super::{Inner, Service};

/// The role, if one of its statements allows the token's issuer, subject and audience.
pub(super) fn by_web_identity(inner: &Inner, arn: &str, claims: &Claims) -> Result<Role, ApiError> {
    let roles = inner.roles.lock();
    let statements = |role: &Role| {
        let mine = role.trust.iter().filter_map(|trust| match trust {
            Trust::WebIdentity(trust) if trust.issuer == claims.iss => Some(trust.clone()),
            _ => None,
        });
        mine.collect::<Vec<_>>()
    };
    let audiences = claims.aud.all();
    // The provider's own client ids are those that any role expects: a token for none of them does not reach a trust policy.
    let mut known = roles.values().flat_map(statements);
    if !known.any(|trust| audiences.contains(&trust.audience)) {
        return Err(ApiError::bad("InvalidIdentityToken", "Incorrect token audience"));
    }
    let role = roles.get(arn).filter(|role| {
        statements(role)
            .iter()
            .any(|trust| string_like(&trust.subject, &claims.sub) && audiences.contains(&trust.audience))
    });
    // STS does not tell a role that does not exist from one that does not trust.
    role.cloned()
        .ok_or_else(|| ApiError::denied(Service::Sts, "Not authorized to perform sts:AssumeRoleWithWebIdentity"))
}

/// The parameters of AssumeRole that a trust policy judges.
pub(super) struct Asked {
    external_id: Option<String>,
    tags: BTreeMap<String, String>,
    transitive_tags: BTreeSet<String>,
    source_identity: Option<String>,
}

impl Asked {
    pub(super) fn read(form: &Form) -> Result<Self, ApiError> {
        let tags = read_tags(form)?;
        let transitive = form.list("TransitiveTagKeys");
        if transitive.iter().any(|key| !tags.contains_key(key)) {
            return Err(invalid_parameter("The specified transitive tag key must be included in the requested tags."));
        }
        let source_identity = form.get("SourceIdentity").map(|_| form.name("SourceIdentity")).transpose()?;
        let external_id = form.get("ExternalId").map(str::to_owned);
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        if external_id.as_ref().is_some_and(|id| !(2..=1224).contains(&id.len()) || !id.chars().all(fits)) {
            let constraint = "Member must satisfy regular expression pattern: [\\w+=,.@:\\/-]*, 2 to 1224 characters";
            return Err(form.invalid("ExternalId", constraint));
        }
        Ok(Asked { external_id, tags, transitive_tags: transitive.into_iter().collect(), source_identity })
    }
}

/// The limits are those in STS's API reference.
fn read_tags(form: &Form) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs = form.pairs("Tags");
    let fits = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c));
    let is_good = |(key, value): &(String, String)| {
        (1..=128).contains(&key.chars().count()) && value.chars().count() <= 256 && fits(key) && fits(value)
    };
    if pairs.len() > 50 || !pairs.iter().all(is_good) {
        let constraint =
            "at most 50 tags, keys of 1 to 128 and values of up to 256 characters: [\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]+";
        return Err(form.invalid("Tags", constraint));
    }
    let keys: BTreeSet<String> = pairs.iter().map(|(key, _)| key.to_lowercase()).collect();
    if keys.len() != pairs.len() {
        return Err(invalid_parameter("Duplicate tag keys found. Please note that Tag keys are case insensitive."));
    }
    Ok(pairs.into_iter().collect())
}

/// The role and what the new session carries, if the caller may do all that this takes and one of the role's statements lets it.
pub(super) fn by_principal(
    inner: &Inner,
    arn: &str,
    caller: &Caller,
    asked: Asked,
) -> Result<(Role, Extras), ApiError> {
    let from = &caller.credential;
    let role = inner.roles.lock().get(arn).cloned();
    let extras = inherit(from, &asked)?;
    // What is inherited needs the same leave as what is new: IAM's guide, on chaining roles with session tags and with a source identity.
    let tags = (!extras.tags.is_empty()).then_some("sts:TagSession");
    let source = extras.source_identity.as_ref().map(|_| "sts:SetSourceIdentity");
    let trust = role.as_ref().map_or(&[][..], |role| &role.trust);
    for action in ["sts:AssumeRole"].into_iter().chain(tags).chain(source) {
        caller.require(inner, Service::Sts, action, arn)?;
        if !trust.iter().any(|trust| lets(trust, action, from, &asked, &extras)) {
            let who = &from.principal.arn;
            let message = format!("User: {who} is not authorized to perform: {action} on resource: {arn}");
            return Err(ApiError::denied(Service::Sts, message));
        }
    }
    role.map(|role| (role, extras)).ok_or_else(|| ApiError::denied(Service::Sts, "Access denied"))
}

/// Whether a statement names the caller, its conditions hold, and this action is among its own.
fn lets(trust: &Trust, action: &str, from: &Credential, asked: &Asked, extras: &Extras) -> bool {
    let Trust::Principal(trust) = trust else { return false };
    let among = match action {
        "sts:TagSession" => trust.tag_session,
        "sts:SetSourceIdentity" => trust.set_source_identity,
        _ => true,
    };
    among
        && names(trust, from)
        && trust.external_id.as_ref().is_none_or(|id| asked.external_id.as_ref() == Some(id))
        && trust.required_tags.iter().all(|(key, value)| extras.tags.get(key) == Some(value))
        && trust.required_source_identity.as_ref().is_none_or(|id| extras.source_identity.as_ref() == Some(id))
}

/// A statement names a session's role, a user, the session itself, or its whole account.
fn names(trust: &PrincipalTrust, from: &Credential) -> bool {
    let principal = &from.principal;
    let account = format!("arn:{}:iam::{}:root", principal.partition, principal.account);
    trust.arn == principal.arn || trust.arn == account || principal.role.as_ref() == Some(&trust.arn)
}

/// Transitive tags and the source identity go on to the next session and cannot be changed there.
fn inherit(from: &Credential, asked: &Asked) -> Result<Extras, ApiError> {
    let is_set = |key: &String| from.transitive_tags.iter().any(|set| set.to_lowercase() == key.to_lowercase());
    if asked.tags.keys().any(is_set) {
        return Err(invalid_parameter(
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.",
        ));
    }
    let changes = |id: &String| from.source_identity.as_ref().is_some_and(|set| set != id);
    if asked.source_identity.as_ref().is_some_and(changes) {
        return Err(ApiError::denied(Service::Sts, "The source identity of a session cannot be changed"));
    }
    let inherited = from.tags.iter().filter(|(key, _)| from.transitive_tags.contains(*key));
    Ok(Extras {
        tags: inherited.chain(asked.tags.iter()).map(|(key, value)| (key.clone(), value.clone())).collect(),
        transitive_tags: from.transitive_tags.union(&asked.transitive_tags).cloned().collect(),
        source_identity: asked.source_identity.clone().or_else(|| from.source_identity.clone()),
        external_id: asked.external_id.clone(),
        chain: from.chain.iter().chain([&from.principal.arn]).cloned().collect(),
        is_chained: from.session_token.is_some(),
    })
}

fn invalid_parameter(message: &str) -> ApiError {
    ApiError::bad("InvalidParameterValue", message)
}
