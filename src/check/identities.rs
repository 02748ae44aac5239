//! The report on AWS identities: what each is, which EcrCredentials use it, and how AWS responded.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::facts::{Answers, Facts, MOST_TENANTS, Resolved};
use super::report::{Finding, IdentityReport, TokenReport};
use crate::plan::auth::IdentitySource;
use crate::plan::{Identity, SpecError, TokenKey};
use crate::token::TokenError;

/// All identities in use, with the responses of AWS.
pub(super) fn report(facts: &Facts) -> Vec<IdentityReport> {
    let mut users: BTreeMap<Identity, Users> = BTreeMap::new();
    for subject in facts.subjects() {
        let Ok(plan) = &subject.plan else { continue };
        for resolved in facts.resolve(&subject.uid, plan) {
            let Ok(key) = resolved.key else { continue };
            let users = users.entry(key.identity.clone()).or_default();
            users.names.insert(subject.object.name_any());
            users.own_for_a_namespace |= resolved.namespace.is_some();
            users.keys.insert(key);
        }
    }
    users.into_iter().map(|(identity, users)| describe(facts, &identity, users)).collect()
}

#[derive(Default)]
struct Users {
    names: BTreeSet<String>,
    keys: BTreeSet<TokenKey>,
    own_for_a_namespace: bool,
}

fn describe(facts: &Facts, identity: &Identity, users: Users) -> IdentityReport {
    let (service_account, secret, first) = match identity.source() {
        IdentitySource::Operator | IdentitySource::Unresolved => (None, None, None),
        IdentitySource::Account(account) => {
            (Some(format!("{}/{}", account.namespace, account.name)), None, Some(account.role.to_string()))
        }
        IdentitySource::Keys { keys, .. } => (None, Some(keys.secret.to_string()), None),
    };
    let roles = first.into_iter().chain(identity.roles().iter().map(|step| step.role.to_string())).collect();
    let aws = facts.aws.as_ref();
    let origin = aws.and_then(|aws| aws.origin).filter(|_| *identity.source() == IdentitySource::Operator);
    let mut report = IdentityReport {
        identity: identity.to_string(),
        kind: identity.kind(),
        service_account,
        secret,
        source: origin,
        roles,
        caller: aws.and_then(|aws| aws.callers.get(identity)?.clone().ok()),
        used_by: users.names.into_iter().collect(),
        tokens: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    if let Some(aws) = aws {
        answers(facts, aws, identity, &users.keys, &mut report);
        if users.own_for_a_namespace {
            // Reported with the namespace, which fails alone.
            let problems = std::mem::take(&mut report.problems);
            report.notes.extend(problems);
        }
        if report.tokens.is_empty() && users.own_for_a_namespace {
            let text = format!("AWS is called for the first {MOST_TENANTS} namespaces only, and not for this one");
            report.notes.push(Finding::new("NotAsked", text));
        }
    }
    report
}

fn answers(facts: &Facts, aws: &Answers, identity: &Identity, keys: &BTreeSet<TokenKey>, report: &mut IdentityReport) {
    let mut told = BTreeSet::new();
    for key in keys {
        let Some(answer) = aws.tokens.get(key) else { continue };
        let region = key.service.region().to_string();
        if let Err(error) = answer {
            // If an identity cannot be assumed, all its tokens fail with the same error.
            if told.insert(error.to_string()) {
                tell(facts, identity, error, report);
            }
        }
        let (expires_at, error) = (answer.as_ref().ok().copied(), answer.as_ref().err());
        let reason = error.map(|error| error.reason().as_str());
        report.tokens.push(TokenReport { service: key.service.api(), region, expires_at, reason });
    }
    if let Some(Err(error)) = aws.callers.get(identity)
        && told.is_empty()
    {
        let text = format!("cannot get the caller identity from AWS: {error}");
        report.notes.push(Finding::new(error.reason().as_str(), text));
    }
}

fn tell(facts: &Facts, identity: &Identity, error: &TokenError, report: &mut IdentityReport) {
    let finding = Finding::new(error.reason().as_str(), error.to_string());
    if is_problem(facts, identity, error) {
        report.problems.push(finding);
    } else {
        report.notes.push(finding);
    }
}

/// Whether the operator would get the same response for an identity. Outside its pod, its own identity, its permissions and its
/// network are not available.
pub(super) fn is_problem(facts: &Facts, identity: &Identity, error: &TokenError) -> bool {
    let of_this_place = matches!(
        error,
        TokenError::Forbidden(_)
            | TokenError::AdmissionRefused(_)
            | TokenError::Unavailable(_)
            | TokenError::Cluster(_)
    );
    facts.inside || (*identity.source() != IdentitySource::Operator && !of_this_place)
}

/// Why a token cannot be fetched: a reference is missing, or AWS has denied it.
pub(super) fn failure(facts: &Facts, resolved: &Resolved<'_>) -> Option<SpecError> {
    match &resolved.key {
        Err(error) => Some(error.clone()),
        Ok(key) => {
            let error = facts.aws.as_ref()?.tokens.get(key)?.as_ref().err()?;
            is_problem(facts, &key.identity, error).then(|| error.clone().into())
        }
    }
}
