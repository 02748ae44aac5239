//! I3: what is in a Secret of ours.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::SignedDuration;
use serde_json::Value;

use super::credentials::is_judged_at_last;
use super::secrets::is_valid;
use crate::evidence::Evidence;
use crate::history::{Key, Kind, Version};
use crate::marks::{is_others, owner};
use crate::selection::{Asked, asked};
use crate::{Invariant, Violation};

/// The only login of a Secret that does not always name its host.
const ONE_HOST: &str = "the one host";

/// I3: each version that the operator wrote is well formed, and so is what is left at the end whoever wrote it.
pub(super) fn well_formed(evidence: &Evidence) -> Vec<Violation> {
    let ours = evidence.credential_uids();
    let mut violations = vec![];
    let mut checked = BTreeSet::new();
    for write in evidence.own_writes().filter(|write| !write.version.deleted) {
        // What others keep in it is not the operator's; it is not to be left at the end.
        let own = own_part(write.version);
        if let Some(fault) = own.as_deref().and_then(|own| check(evidence, own)) {
            violations.push(Violation::new(Invariant::I3WellFormed, write.key.about(), write.version.sent, fault));
            checked.insert((write.version.uid(), write.version.resource_version()));
        }
    }
    let is_ours = |secret: &Version| owner(&secret.object).is_some_and(|uid| ours.contains(uid));
    for (key, version) in evidence.history.live(Kind::Secret).filter(|(_, version)| is_ours(version)) {
        let known = checked.contains(&(version.uid(), version.resource_version()));
        let fault = if known { None } else { check(evidence, version) };
        let fault = fault.or_else(|| incomplete(evidence, version)).map(|fault| format!("left at the end: {fault}"));
        violations.extend(fault.map(|fault| Violation::new(Invariant::I3WellFormed, key.about(), evidence.now, fault)));
    }
    violations
}

/// A Secret without the keys that others manage; `None` if all are theirs.
fn own_part(secret: &Version) -> Option<Cow<'_, Version>> {
    let keys = keys(&secret.object["data"]);
    let theirs: Vec<&str> = keys.iter().filter(|key| is_others(&secret.object, key)).copied().collect();
    if theirs.is_empty() {
        return Some(Cow::Borrowed(secret));
    }
    let mut object = (*secret.object).clone();
    object["data"].as_object_mut()?.retain(|key, _| !theirs.contains(&key.as_str()));
    (theirs.len() < keys.len()).then(|| Cow::Owned(Version { object: object.into(), ..secret.clone() }))
}

/// What a Secret of a format is, written apart from the operator: its type, the keys of its data and their values where these are
/// not secret, and what its metadata must have.
pub(super) struct Shape {
    pub(super) kind: &'static str,
    data: Vec<(&'static str, Option<String>)>,
    label: Option<(&'static str, &'static str)>,
    annotation: Option<(&'static str, String)>,
}

pub(super) fn shape(one: &Asked<'_>) -> Option<Shape> {
    let host = one.host.unwrap_or_default();
    let login = [("username", Some("AWS".to_owned())), ("password", None)];
    let with = |more: Vec<(&'static str, String)>| {
        more.into_iter().map(|(key, value)| (key, Some(value))).chain(login.clone()).collect::<Vec<_>>()
    };
    let argocd = Some(("argocd.argoproj.io/secret-type", "repo-creds"));
    let opaque = |data, label| Shape { kind: "Opaque", data, label, annotation: None };
    let basic = |annotation| Shape { kind: "kubernetes.io/basic-auth", data: with(vec![]), label: None, annotation };
    Some(match one.format {
        "DockerConfigJson" => Shape {
            kind: "kubernetes.io/dockerconfigjson",
            data: vec![(".dockerconfigjson", None)],
            label: None,
            annotation: None,
        },
        "DockerConfigFile" => opaque(vec![("config.json", None)], None),
        "BasicAuth" => basic(None),
        "TektonBasicAuth" => basic(Some(("tekton.dev/docker-0", format!("https://{host}")))),
        "ArgoCDHelm" => {
            let own = vec![("url", host.to_owned()), ("type", "helm".to_owned()), ("enableOCI", "true".to_owned())];
            opaque(with(own), argocd)
        }
        "ArgoCDOCI" => opaque(with(vec![("url", format!("oci://{host}/")), ("type", "oci".to_owned())]), argocd),
        "Jenkins" => opaque(with(vec![]), Some(("jenkins.io/credentials-type", "usernamePassword"))),
        "KargoImage" => {
            let pattern = format!("^{}/", host.replace('.', "\\."));
            let own = vec![("repoURL", pattern), ("repoURLIsRegex", "true".to_owned())];
            opaque(with(own), Some(("kargo.akuity.io/cred-type", "image")))
        }
        _ => return None,
    })
}

/// Each registry host of a Secret with its decoded `auth`. Of one that holds the login of one host, which it does not always name, it is
/// given under that name.
///
/// # Errors
/// What is wrong with it.
pub fn logins(secret: &Value) -> Result<BTreeMap<String, String>, String> {
    let data = &secret["data"];
    let Some(key) = [".dockerconfigjson", "config.json"].into_iter().find(|key| data[key].is_string()) else {
        let text = |key: &str| decode(data[key].as_str().ok_or(format!("there is no {key}"))?, key);
        return Ok([(ONE_HOST.to_owned(), format!("{}:{}", text("username")?, text("password")?))].into());
    };
    let config = docker_config(secret, key)?;
    let auths = config["auths"].as_object().filter(|_| keys(&config) == ["auths"]);
    let auths = auths.ok_or(format!("{key} has the fields {:?} instead of auths alone", keys(&config)))?;
    auths.iter().map(|(host, entry)| Ok((host.clone(), decode_auth(host, entry)?))).collect()
}

fn docker_config(secret: &Value, key: &str) -> Result<Value, String> {
    let encoded = secret["data"][key].as_str().ok_or(format!("there is no {key}"))?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{key} is no JSON: {error}"))
}

fn decode(base64: &str, what: &str) -> Result<String, String> {
    let bytes = BASE64_STANDARD.decode(base64).map_err(|error| format!("{what}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
}

fn decode_auth(host: &str, entry: &Value) -> Result<String, String> {
    let auth = decode(entry["auth"].as_str().unwrap_or_default(), &format!("auth of {host}"))?;
    let plain = format!(
        "{}:{}",
        entry["username"].as_str().unwrap_or_default(),
        entry["password"].as_str().unwrap_or_default()
    );
    match keys(entry).as_slice() {
        ["auth"] => Ok(auth),
        ["auth", "password", "username"] if plain == auth => Ok(auth),
        other => Err(format!("the entry of {host} has the fields {other:?} instead of auth alone")),
    }
}

fn check(evidence: &Evidence, secret: &Version) -> Option<String> {
    let owners = evidence.owners(secret);
    let name = secret.object["metadata"]["name"].as_str().unwrap_or_default();
    let asked: Vec<Asked<'_>> =
        owners.iter().flat_map(|owner| asked(&owner.object)).filter(|one| one.name == name).collect();
    // One that nobody asks for any more is a pull secret unless it says otherwise: I1 tells of it.
    if asked.is_empty() {
        let unasked = Asked::pull_secret();
        let is_output = secret.annotation("pullsecrets.dev/output").is_some();
        return if is_output { None } else { check_as(evidence, secret, &owners, &unasked) };
    }
    let mut faults: Vec<Option<String>> = asked.iter().map(|one| check_as(evidence, secret, &owners, one)).collect();
    if faults.contains(&None) { None } else { faults.pop().flatten() }
}

/// What is wrong with a Secret that is asked for like this.
fn check_as(evidence: &Evidence, secret: &Version, owners: &[&Version], one: &Asked<'_>) -> Option<String> {
    let Some(shape) = shape(one) else { return Some(format!("nobody knows the format {:?}", one.format)) };
    let kind = secret.object["type"].as_str().unwrap_or_default();
    if kind != shape.kind {
        return Some(format!("the type is {kind:?}"));
    }
    let data = &secret.object["data"];
    let mut expected: Vec<&str> = shape.data.iter().map(|(key, _)| *key).collect();
    expected.sort_unstable();
    if keys(data) != expected {
        return Some(format!("the keys are {:?}", keys(data)));
    }
    for (key, value) in shape.data.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        let found = decode(data[key].as_str().unwrap_or_default(), key);
        if found.as_ref() != Ok(value) {
            return Some(format!("{key} is {found:?} instead of {value:?}"));
        }
    }
    if let Some((key, value)) = shape.label.filter(|(key, value)| secret.label(key) != Some(value)) {
        return Some(format!("the label {key} is not {value}"));
    }
    if let Some((key, value)) = shape.annotation.filter(|(key, value)| secret.annotation(key) != Some(value)) {
        return Some(format!("the annotation {key} is not {value}"));
    }
    let auths = match ours(evidence, secret) {
        Ok(auths) => auths,
        Err(fault) => return Some(fault),
    };
    if auths.is_empty() {
        return (!held_nothing_good(evidence, secret)).then(|| "there is no registry in it".into());
    }
    if let Some((host, _)) = auths.iter().find(|(_, auth)| auth.strip_prefix("AWS:").is_none_or(str::is_empty)) {
        // The value itself may be a secret.
        return Some(format!("auth of {host} does not decode to AWS:<password>"));
    }
    let expected = expected_hosts(evidence, secret, owners)?;
    let named = |host: &str| if host == ONE_HOST { one.host.unwrap_or_default().to_owned() } else { host.to_owned() };
    let strange: Vec<String> =
        auths.keys().map(|host| named(host)).filter(|host| !expected.contains_key(host)).collect();
    if !strange.is_empty() {
        return Some(format!("hosts that are not configured: {strange:?}"));
    }
    let mut purposes =
        auths.iter().filter_map(|(host, auth)| Some((host, &expected[&named(host)], evidence.aws.issued.get(auth)?)));
    let wrong =
        |wanted: &BTreeSet<String>, given: &str| !wanted.iter().any(|wanted| given.starts_with(wanted.as_str()));
    if let Some((host, _, login)) = purposes.find(|(_, wanted, login)| wrong(wanted, &login.registry)) {
        return Some(format!("the login for {host} is one for {}", login.registry));
    }
    let unknown = auths.iter().find(|(_, auth)| secret.by_operator && !evidence.aws.issued.contains_key(*auth));
    if let Some((host, _)) = unknown.filter(|_| !evidence.aws.issued.is_empty()) {
        return Some(format!("the login for {host} is none that AWS issued"));
    }
    if one.host.is_some() {
        return None;
    }
    let key = shape.data.first().map(|(key, _)| *key).unwrap_or_default();
    let config = docker_config(&secret.object, key).unwrap_or_default();
    let fields = if one.has_password { 3 } else { 1 };
    let odd = auths.keys().find(|host| keys(&config["auths"][host]).len() != fields)?;
    Some(format!("the entry of {odd} has the fields {:?}", keys(&config["auths"][odd])))
}

/// Whether no login was left that AWS still accepted when this version was written. Expiries are kept in whole seconds.
fn held_nothing_good(evidence: &Evidence, secret: &Version) -> bool {
    let name = secret.object["metadata"]["name"].as_str().unwrap_or_default();
    let versions = evidence.history.versions(&Key::secret(namespace(secret), name));
    let mut earlier =
        versions.iter().rev().skip_while(|version| version.resource_version() != secret.resource_version());
    let at = secret.at + SignedDuration::from_secs(1);
    earlier.nth(1).is_some_and(|before| before.uid() == secret.uid() && !is_valid(evidence, before, at))
}

/// The logins without those that the test lets be merged from others, which must be as they are there.
fn ours(evidence: &Evidence, secret: &Version) -> Result<BTreeMap<String, String>, String> {
    if evidence.included.is_empty() {
        return logins(&secret.object);
    }
    let mut object = (*secret.object).clone();
    for key in [".dockerconfigjson", "config.json"] {
        let Ok(mut config) = docker_config(&object, key) else { continue };
        if let Some(auths) = config["auths"].as_object_mut() {
            let is_others = |host: &str, entry: &Value| evidence.included.iter().any(|(h, e)| h == host && e == entry);
            auths.retain(|host, entry| !is_others(host, entry));
        }
        object["data"][key] = BASE64_STANDARD.encode(config.to_string()).into();
    }
    logins(&object)
}

/// What each host is for, by every version of the EcrCredential that the operator could see; `None` when that depends on what is not
/// known here.
fn expected_hosts(
    evidence: &Evidence,
    secret: &Version,
    owners: &[&Version],
) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for owner in owners.iter().filter(|owner| !owner.deleted) {
        for (host, purpose) in evidence.configured(owner, namespace(secret))?.into_iter().flatten() {
            expected.entry(host).or_default().insert(purpose);
        }
    }
    Some(expected)
}

/// An EcrCredential that says it is ready has each of its hosts in each of its Secrets.
fn incomplete(evidence: &Evidence, secret: &Version) -> Option<String> {
    let versions = evidence.owner_of(secret);
    let credential = versions.last().filter(|_| is_judged_at_last(evidence, versions))?;
    let name = secret.object["metadata"]["name"].as_str().unwrap_or_default();
    let asked = asked(&credential.object).into_iter().find(|one| one.name == name)?;
    (!is_complete(evidence, secret, credential, &asked))
        .then(|| "the EcrCredential is Ready, yet hosts of it are missing".to_owned())
}

/// Whether it has each host that the EcrCredential asks for, by the settings of some process.
pub(super) fn is_complete(evidence: &Evidence, secret: &Version, credential: &Version, one: &Asked<'_>) -> bool {
    let Some(settings) = evidence.configured(credential, namespace(secret)) else { return true };
    let Ok(auths) = ours(evidence, secret) else { return false };
    one.host.is_some() || settings.iter().any(|hosts| hosts.keys().all(|host| auths.contains_key(host)))
}

fn namespace(secret: &Version) -> &str {
    secret.object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::Holder;
    use crate::fixture::{HOST, SecretState, Story, docker_config, holder, ready_credential, secret};

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

    /// A Secret of the output `out` in a format, with this data as texts.
    fn output(data: Value, kind: &str) -> SecretState {
        let data: serde_json::Map<String, Value> = data
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (key.clone(), BASE64_STANDARD.encode(value.as_str().unwrap()).into()))
            .collect();
        secret().set("/metadata/name", "out".into()).set("/type", kind.into()).set("/data", data.into())
    }

    #[test]
    fn an_output_is_as_its_format_says() {
        let found = |format: &str, state: SecretState| {
            let mut object = ready_credential();
            object["spec"]["outputs"] = json!([{"name": "out", "format": format, "host": HOST}]);
            let story = Story::new().credential(object).operator_writes(state);
            let violations = well_formed(&story.evidence());
            violations.first().map(|violation| violation.detail.clone()).unwrap_or_default()
        };
        let login = || json!({"username": "AWS", "password": "p"});
        let with = |key: &str, value: &str| {
            let mut data = login();
            data[key] = value.into();
            data
        };
        let argocd = |url: &str| {
            let mut data = login();
            (data["url"], data["type"]) = (url.into(), "oci".into());
            output(data, "Opaque").label("argocd.argoproj.io/secret-type", "repo-creds")
        };
        let url = format!("oci://{HOST}/");
        let cases = [
            ("BasicAuth", output(login(), "kubernetes.io/basic-auth"), ""),
            ("BasicAuth", output(login(), "Opaque"), "the type is"),
            ("BasicAuth", output(with("extra", "x"), "kubernetes.io/basic-auth"), "the keys are"),
            ("BasicAuth", output(with("username", "aws"), "kubernetes.io/basic-auth"), "username is"),
            ("BasicAuth", output(with("password", ""), "kubernetes.io/basic-auth"), "does not decode"),
            ("TektonBasicAuth", output(login(), "kubernetes.io/basic-auth"), "the annotation tekton.dev/docker-0"),
            ("Jenkins", output(login(), "Opaque"), "the label jenkins.io/credentials-type"),
            ("ArgoCDOCI", argocd(&url), ""),
            ("ArgoCDOCI", argocd(HOST), "url is"),
            ("Newer", output(login(), "Opaque"), "nobody knows"),
        ];
        for (format, state, expected) in cases {
            let detail = found(format, state);
            assert!(
                detail.contains(expected) && expected.is_empty() == detail.is_empty(),
                "{format}: {detail:?}, expected {expected:?}"
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
    fn a_secret_is_empty_only_once_all_that_it_held_has_expired() {
        let empty = || secret().set("/data/.dockerconfigjson", BASE64_STANDARD.encode(r#"{"auths":{}}"#).into());
        let emptied = |hours: u64| {
            let story = Story::new().operator_writes(secret()).passes(hours * 3600).operator_writes(empty());
            well_formed(&story.evidence()).len()
        };
        assert_eq!((emptied(1), emptied(13)), (1, 0));
        let left = |milliseconds: i64| {
            let story = Story::new().operator_writes(secret().value("held")).operator_writes(empty());
            let mut evidence = story.evidence();
            let at = evidence.own_writes().last().map(|write| write.version.at).unwrap();
            let accepted_until = at + SignedDuration::from_millis(milliseconds);
            evidence.aws.issued = [("AWS:held".to_owned(), Holder { accepted_until, ..holder("operator") })].into();
            well_formed(&evidence).len()
        };
        assert_eq!((left(900), left(1100)), (0, 1), "the operator keeps no fraction of a second");
    }

    #[test]
    fn a_ready_credential_has_all_of_its_hosts() {
        let mut two = ready_credential();
        two["spec"]["registries"] = json!([two["spec"]["registries"][0], {"public": {}}]);
        let violations = well_formed(&Story::new().credential(two).operator_writes(secret()).passes(60).evidence());
        assert!(violations.iter().any(|violation| violation.detail.contains("are missing")), "{violations:?}");
    }

    #[test]
    fn each_login_is_one_that_aws_issued_for_the_registry_of_its_host() {
        let found = |password: &str| {
            let mut story = Story::new().operator_writes(secret().value(password));
            let public = Holder { registry: "public".to_owned(), ..holder("operator") };
            story.aws.issued = [("AWS:own".to_owned(), holder("operator")), ("AWS:public".to_owned(), public)].into();
            well_formed(&story.evidence()).into_iter().map(|violation| violation.detail).collect::<String>()
        };
        assert_eq!(found("own"), "");
        assert!(found("public").ends_with("is one for public"));
        assert!(found("made-up").ends_with("is none that AWS issued"));
    }
}
