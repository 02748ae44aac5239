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
        let pairs = form.pairs("Tags");
        let transitive = form.list("TransitiveTagKeys");
        let tags: BTreeMap<String, String> = pairs.iter().cloned().collect();
        // 50 tags, keys of up to 128 and values of up to 256 characters: the limits in STS's API reference.
        let fits = |(key, value): &(String, String)| (1..=128).contains(&key.len()) && value.len() <= 256;
        if pairs.len() > 50 || !pairs.iter().all(fits) {
            return Err(
                form.invalid("tags", "at most 50 tags with keys of 1 to 128 and values of up to 256 characters")
            );
        }
        if tags.len() != pairs.len() {
            return Err(invalid_parameter("Duplicate tag keys found. Please note that Tag keys are case insensitive."));
        }
        if transitive.iter().any(|key| !tags.contains_key(key)) {
            return Err(invalid_parameter("The specified transitive tag key must be included in the requested tags."));
        }
        let source_identity = form.get("SourceIdentity").map(|_| form.name("SourceIdentity")).transpose()?;
        let external_id = form.get("ExternalId").map(str::to_owned);
        Ok(Asked { external_id, tags, transitive_tags: transitive.into_iter().collect(), source_identity })
    }
}

/// The role and what the new session carries, if one of the role's statements allows the caller and all that it brings.
pub(super) fn by_principal(
    inner: &Inner,
    arn: &str,
    caller: &Caller,
    asked: Asked,
) -> Result<(Role, Extras), ApiError> {
    let from = &caller.credential;
    let role = inner.roles.lock().get(arn).cloned();
    let extras = inherit(from, &asked)?;
    let allows = |trust: &Trust| match trust {
        Trust::Principal(trust) => {
            names(trust, from)
                && trust.external_id.as_ref().is_none_or(|id| asked.external_id.as_ref() == Some(id))
                && (asked.tags.is_empty() || trust.tag_session)
                && (asked.source_identity.is_none() || trust.set_source_identity)
                && trust.required_tags.iter().all(|(key, value)| extras.tags.get(key) == Some(value))
                && trust.required_source_identity.as_ref().is_none_or(|id| extras.source_identity.as_ref() == Some(id))
        }
        Trust::WebIdentity(_) => false,
    };
    match role.filter(|role| role.trust.iter().any(allows)) {
        Some(role) => Ok((role, extras)),
        None => Err(ApiError::denied(
            Service::Sts,
            format!("User: {} is not authorized to perform: sts:AssumeRole on resource: {arn}", from.principal.arn),
        )),
    }
}

/// A statement names a session's role, a user, the session itself, or its whole account.
fn names(trust: &PrincipalTrust, from: &Credential) -> bool {
    let principal = &from.principal;
    let account = format!("arn:{}:iam::{}:root", principal.partition, principal.account);
    trust.arn == principal.arn || trust.arn == account || principal.role.as_ref() == Some(&trust.arn)
}

/// Transitive tags and the source identity go on to the next session and cannot be changed there.
fn inherit(from: &Credential, asked: &Asked) -> Result<Extras, ApiError> {
    if asked.tags.keys().any(|key| from.transitive_tags.contains(key)) {
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
    })
}

fn invalid_parameter(message: &str) -> ApiError {
    ApiError::bad("InvalidParameterValue", message)
}
