//! The texts in which I11 looks for secrets: output, events, statuses, metadata, and everything that was sent.

use std::path::Path;

use ::judge::Evidence;
use ::judge::history::Kind;
use anyhow::{Context, Result};
use jiff::Timestamp;

use super::Declared;
use super::{Invariant, Violation};
use crate::proxy::{GrantedToken, Request};

impl Declared {
    /// Looks for panics, for what was declared, and for the tokens of ServiceAccounts that the operator was handed.
    pub(super) fn search(&self, evidence: &Evidence, granted: &[GrantedToken]) -> Result<Vec<Violation>> {
        let mut canaries = self.canaries.clone();
        for GrantedToken { namespace, service_account, token, .. } in granted {
            canaries.add(&format!("a token of the ServiceAccount {namespace}/{service_account}"), token.as_bytes())?;
        }
        let (mut texts, mut violations): (Vec<(String, Vec<u8>)>, _) = (vec![], vec![]);
        for path in &self.files {
            let bytes =
                std::fs::read(path).with_context(|| format!("read the operator's output {}", path.display()))?;
            violations.extend(panicked(path, &bytes, evidence.now));
            violations.extend(negative(path, &bytes, evidence.now));
            texts.push((path.display().to_string(), bytes));
        }
        texts.extend(self.texts.iter().map(|(name, text)| (name.clone(), text.clone())));
        texts.extend(objects(evidence));
        texts.extend(evidence.requests.iter().map(|request| (request.summary(), sent(request))));
        violations.extend(canaries.search(texts.iter().map(|(place, text)| (&**place, &**text)), evidence.now)?);
        Ok(violations)
    }
}

/// I15: what an operator's output says of panics.
fn panicked(output: &Path, text: &[u8], at: Timestamp) -> Option<Violation> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find(|line| line.contains("panicked"))?;
    Some(Violation::new(Invariant::I15NoPanic, output.display().to_string(), at, line))
}

/// I20: a metric of ours that is less than nothing.
fn negative(output: &Path, text: &[u8], at: Timestamp) -> Option<Violation> {
    let text = String::from_utf8_lossy(text);
    let is_negative = |line: &&str| {
        let sample = line.starts_with("ecr_credential_operator_").then(|| line.rsplit(' ').next()).flatten();
        sample.and_then(|value| value.parse::<f64>().ok()).is_some_and(|value| value < 0.0)
    };
    let line = text.lines().find(is_negative)?;
    Some(Violation::new(Invariant::I20TrueWords, output.display().to_string(), at, line))
}

/// Whole objects, but of Secrets only the metadata: their data is where a token belongs.
fn objects(evidence: &Evidence) -> impl Iterator<Item = (String, Vec<u8>)> {
    [Kind::Credential, Kind::Event, Kind::Namespace, Kind::Secret].into_iter().flat_map(|kind| {
        evidence.history.of_kind(kind).flat_map(move |(key, versions)| {
            versions.iter().map(move |version| {
                let place = format!("{kind:?} {}", key.about());
                let visible = if kind == Kind::Secret { &version.object["metadata"] } else { &version.object };
                (place, visible.to_string().into_bytes())
            })
        })
    })
}

/// Also what the API server refused: a body that was sent is in an audit log.
fn sent(request: &Request) -> Vec<u8> {
    let body = request.body.clone().unwrap_or_default();
    let visible = if request.target.resource == "secrets" { body["metadata"].clone() } else { body };
    format!("{}?{}\n{visible}", request.path, request.query).into_bytes()
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use ::judge::fixture::{Story, credential, secret};

    const TOKEN: &str = "canary-token-of-the-test";

    fn leaks(story: Story) -> Vec<String> {
        let mut declared = Declared::default();
        declared.canaries.add("token", TOKEN.as_bytes()).unwrap();
        let mut places: Vec<String> =
            declared.search(&story.evidence(), &[]).unwrap().into_iter().map(|violation| violation.about).collect();
        places.dedup();
        places
    }

    #[test]
    fn the_data_of_a_secret_is_where_a_token_belongs() {
        assert_eq!(leaks(Story::new().operator_writes(secret().value(TOKEN))), Vec::<String>::new());
    }

    #[test]
    fn a_token_elsewhere_is_a_leak() {
        let annotated = secret().set("/metadata/annotations/note", TOKEN.into());
        assert_eq!(leaks(Story::new().other_writes(annotated)), ["Secret a/pull"]);
        let mut told = credential();
        told["status"] = json!({"failures": [{"message": TOKEN}]});
        assert_eq!(leaks(Story::new().credential(told)), ["Credential platform"]);
        let event = json!({"metadata": {"namespace": "a", "name": "e"}, "message": hex::encode(TOKEN)});
        assert_eq!(leaks(Story::new().sees(Kind::Event, event)), ["Event a/e"]);
        let sent = Story::new().operator_sends(Method::POST, "/api/v1/namespaces/a/events", json!({"message": TOKEN}));
        assert_eq!(leaks(sent).len(), 1);
    }

    #[test]
    fn files_and_named_texts_are_searched() {
        let mut declared = Declared::default();
        declared.canaries.add("token", TOKEN.as_bytes()).unwrap();
        declared.texts.insert("/metrics".into(), format!("up{{token=\"{TOKEN}\"}} 1").into_bytes());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TOKEN).unwrap();
        declared.files.push(file.path().to_owned());
        let found = declared.search(&Story::new().evidence(), &[]).unwrap();
        let places: std::collections::BTreeSet<_> = found.into_iter().map(|violation| violation.about).collect();
        assert_eq!(places, [file.path().display().to_string(), "/metrics".into()].into());
    }

    #[test]
    fn a_panic_in_an_operators_output_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "well\nERROR panicked place=src/x.rs:1:1").unwrap();
        let mut declared = Declared::default();
        declared.files.push(file.path().to_owned());
        let found = declared.search(&Story::new().evidence(), &[]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].invariant, Invariant::I15NoPanic);
    }

    #[test]
    fn a_negative_metric_is_told() {
        let negative = |text: &str| negative(Path::new("metrics"), text.as_bytes(), Timestamp::UNIX_EPOCH).is_some();
        assert!(negative(
            "ecr_credential_operator_leader 1\necr_credential_operator_namespaces{state=\"pending\"} -1\n"
        ));
        assert!(!negative("ecr_credential_operator_namespaces{state=\"pending\"} 1\nother -1\n"));
    }

    #[test]
    fn a_service_accounts_token_is_to_be_found_nowhere() {
        let granted = GrantedToken {
            namespace: "a".into(),
            service_account: "puller".into(),
            audiences: vec![],
            token: TOKEN.into(),
            expires: None,
        };
        let mut told = credential();
        told["status"] = json!({"message": TOKEN});
        let evidence = Story::new().credential(told).evidence();
        let found = Declared::default().search(&evidence, &[granted]).unwrap();
        assert!(!found.is_empty());
        for violation in found {
            assert_eq!(violation.about, "Credential platform");
            assert!(violation.detail.contains("a token of the ServiceAccount a/puller"), "{violation}");
        }
    }
}
