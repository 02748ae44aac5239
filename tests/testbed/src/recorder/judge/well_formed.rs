//! I3: what is in a Secret of ours.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::super::evidence::Evidence;
use super::super::history::{Kind, Version, visible_at};
use super::super::hosts::configured_hosts;
use super::super::marks::is_ours;
use super::super::violation::{Invariant, Violation};
use super::credentials::{is_ready, is_settled};

const KEY: &str = ".dockerconfigjson";

/// I3: each version that the operator wrote is well formed, and so is what is left at the end whoever wrote it.
pub(super) fn well_formed(evidence: &Evidence) -> Vec<Violation> {
    let ours = evidence.credential_uids();
    let mut violations = vec![];
    let mut checked = BTreeSet::new();
    for write in evidence.secret_writes().iter().filter(|write| write.by_operator && !write.version.deleted) {
        let fault = check(evidence, write.version, write.at);
        violations
            .extend(fault.map(|fault| Violation::new(Invariant::I3WellFormed, write.key.about(), write.at, fault)));
        checked.insert((write.version.uid(), write.version.resource_version()));
    }
    for (key, version) in evidence.history.live(Kind::Secret).filter(|(_, version)| is_ours(version, &ours)) {
        let known = checked.contains(&(version.uid(), version.resource_version()));
        let fault = if known { None } else { check(evidence, version, version.at) };
        let fault = fault.or_else(|| incomplete(evidence, version)).map(|fault| format!("left at the end: {fault}"));
        violations.extend(fault.map(|fault| Violation::new(Invariant::I3WellFormed, key.about(), evidence.now, fault)));
    }
    violations
}

/// Each registry host with its decoded `auth`.
pub(super) fn auths(secret: &Version) -> Result<BTreeMap<String, String>, String> {
    let encoded = secret.object["data"][KEY].as_str().ok_or(format!("there is no {KEY}"))?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|error| format!("{KEY} is no JSON: {error}"))?;
    let auths = config["auths"].as_object().filter(|_| keys(&config) == ["auths"]);
    let auths = auths.ok_or(format!("{KEY} has the fields {:?} instead of auths alone", keys(&config)))?;
    auths.iter().map(|(host, entry)| Ok((host.clone(), decode_auth(host, entry)?))).collect()
}

fn decode_auth(host: &str, entry: &Value) -> Result<String, String> {
    if keys(entry) != ["auth"] {
        return Err(format!("the entry of {host} has the fields {:?} instead of auth alone", keys(entry)));
    }
    let bytes = BASE64_STANDARD
        .decode(entry["auth"].as_str().unwrap_or_default())
        .map_err(|error| format!("auth of {host}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("auth of {host} is not UTF-8"))
}

fn check(evidence: &Evidence, secret: &Version, at: Timestamp) -> Option<String> {
    let kind = secret.object["type"].as_str().unwrap_or_default();
    if kind != "kubernetes.io/dockerconfigjson" {
        return Some(format!("the type is {kind:?}"));
    }
    if keys(&secret.object["data"]) != [KEY] {
        return Some(format!("the keys are {:?}", keys(&secret.object["data"])));
    }
    let auths = match auths(secret) {
        Ok(auths) => auths,
        Err(fault) => return Some(fault),
    };
    if auths.is_empty() {
        return Some("there is no registry in it".into());
    }
    if let Some((host, _)) = auths.iter().find(|(_, auth)| auth.strip_prefix("AWS:").is_none_or(str::is_empty)) {
        // The value itself may be a secret.
        return Some(format!("auth of {host} does not decode to AWS:<password>"));
    }
    let expected = expected_hosts(evidence, secret, at)?;
    let strange: Vec<&String> = auths.keys().filter(|host| !expected.contains(*host)).collect();
    (!strange.is_empty()).then(|| format!("hosts that are not configured: {strange:?}"))
}

/// The hosts of every version of the EcrCredential that the operator could see; `None` when they depend on what is not known here.
fn expected_hosts(evidence: &Evidence, secret: &Version, at: Timestamp) -> Option<BTreeSet<String>> {
    let mut expected: BTreeSet<String> = evidence.scope.extra_hosts.iter().cloned().collect();
    let credentials = visible_at(evidence.owner_of(secret), at, evidence.scope.staleness);
    for credential in credentials.filter(|credential| !credential.deleted) {
        expected.extend(configured_hosts(credential, &evidence.scope.defaults, evidence.tenant_account(secret))?);
    }
    Some(expected)
}

/// An EcrCredential that says it is ready has each of its hosts in each of its Secrets.
fn incomplete(evidence: &Evidence, secret: &Version) -> Option<String> {
    let versions = evidence.owner_of(secret);
    let credential =
        versions.last().filter(|last| !last.deleted && is_ready(last) && is_settled(evidence, versions))?;
    let auths = auths(secret).ok()?;
    let expected = configured_hosts(credential, &evidence.scope.defaults, evidence.tenant_account(secret))?;
    let missing: Vec<&String> = expected.iter().filter(|host| !auths.contains_key(*host)).collect();
    (!missing.is_empty()).then(|| format!("the EcrCredential is Ready, yet these hosts are missing: {missing:?}"))
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixture::{HOST, SecretState, Story, docker_config, ready_credential, secret};
    use super::*;

    fn found(state: SecretState) -> String {
        let violations = well_formed(&Story::new().operator_writes(state).evidence());
        assert!(violations.len() < 2, "{violations:?}");
        violations.first().map(|violation| violation.detail.clone()).unwrap_or_default()
    }

    #[test]
    fn each_malformation_is_found() {
        let data = |text: &str| secret().set("/data/.dockerconfigjson", BASE64_STANDARD.encode(text).into());
        let cases = [
            (secret(), ""),
            (secret().set("/type", "Opaque".into()), "the type is"),
            (secret().set("/data/second", "".into()), "the keys are"),
            (secret().set("/data", json!({})), "the keys are"),
            (data("{"), "no JSON"),
            (data(r#"{"auths":{},"credHelpers":{}}"#), "instead of auths alone"),
            (data(r#"{"auths":{}}"#), "no registry"),
            (data(&format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOng=","email":"x"}}}}}}"#)), "instead of auth alone"),
            (data(&format!(r#"{{"auths":{{"{HOST}":{{"auth":"%"}}}}}}"#)), "auth of"),
            (secret().set("/data/.dockerconfigjson", docker_config(HOST, "AWS:").into()), "does not decode"),
            (secret().set("/data/.dockerconfigjson", docker_config(HOST, "aws:password").into()), "does not decode"),
            (secret().set("/data/.dockerconfigjson", docker_config("evil.example", "AWS:p").into()), "not configured"),
        ];
        for (state, expected) in cases {
            let detail = found(state);
            assert!(
                detail.contains(expected) && expected.is_empty() == detail.is_empty(),
                "{detail:?}, expected {expected:?}"
            );
        }
    }

    #[test]
    fn a_hand_edit_counts_only_if_it_is_left() {
        let edited = || Story::new().operator_writes(secret()).other_writes(secret().set("/data", json!({})));
        assert_eq!(well_formed(&edited().evidence()).len(), 1);
        assert_eq!(well_formed(&edited().operator_writes(secret()).evidence()), []);
    }

    #[test]
    fn a_ready_credential_has_all_of_its_hosts() {
        let mut two = ready_credential();
        two["spec"]["registries"] = json!([two["spec"]["registries"][0], {"public": {}}]);
        let violations = well_formed(&Story::new().credential(two).operator_writes(secret()).passes(60).evidence());
        assert!(violations.iter().any(|violation| violation.detail.contains("are missing")), "{violations:?}");
    }
}
