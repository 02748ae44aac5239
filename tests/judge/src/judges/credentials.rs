//! I13 and I14: what an EcrCredential says, and what it leaves.

use jiff::Timestamp;
use serde_json::Value;

use super::secrets::{accepted_until, is_valid};
use super::well_formed::{is_complete, shape};
use crate::evidence::Evidence;
use crate::history::{History, Key, Kind, Version, during};
use crate::marks::belongs_to;
use crate::selection::asked;
use crate::{Invariant, Violation};

/// A status must be under 64 KiB.
const STATUS_LIMIT: usize = 64 * 1024;

/// I13: an EcrCredential that is gone leaves none of its Secrets, or all of them under Retain.
pub(super) fn deletion(evidence: &Evidence) -> Vec<Violation> {
    let (retained, deleted): (Vec<_>, Vec<_>) = ends(&evidence.history).partition(|(_, end)| retains(end));
    let detail = "its EcrCredential is gone, and it is left";
    let due = deleted.into_iter().filter(|(_, end)| end.at + evidence.scope.collection <= evidence.now);
    let left = due.flat_map(|(_, end)| left(&evidence.history, end));
    let left = left.map(|key| Violation::new(Invariant::I13Deletion, key.about(), evidence.now, detail));
    left.chain(retained.into_iter().flat_map(|(versions, end)| lost(evidence, versions, end))).collect()
}

/// Whether the garbage collector has nothing left to do.
pub fn is_collected(history: &History) -> bool {
    ends(history).filter(|(_, end)| !retains(end)).all(|(_, end)| left(history, end).next().is_none())
}

/// I14: `Ready=True` means what it says at each write of the status, and at the end.
pub(super) fn true_status(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::Credential) {
        let pairs = versions.iter().zip(versions.iter().skip(1));
        for (previous, version) in
            pairs.filter(|(previous, version)| previous.object["status"] != version.object["status"])
        {
            let recent = previous.generation() != version.generation()
                || version.at.duration_since(spec_change(versions, version)) < staleness(evidence);
            let fault = untrue(evidence, version, recent).or_else(|| unfounded(evidence, versions, version));
            violations
                .extend(fault.map(|fault| Violation::new(Invariant::I14TrueStatus, key.about(), version.at, fault)));
        }
        if is_judged_at_last(evidence, versions) {
            let last = versions.last().into_iter();
            let faults = last.flat_map(|last| stale(last).into_iter().chain(without_token(evidence, last)));
            violations
                .extend(faults.map(|fault| Violation::new(Invariant::I14TrueStatus, key.about(), evidence.now, fault)));
        }
    }
    violations
}

/// I14: the status stays small.
pub(super) fn small_status(evidence: &Evidence) -> Vec<Violation> {
    let versions = evidence.history.versions_of_kind(Kind::Credential);
    let sized = versions.map(|(key, version)| (key, version, version.object["status"].to_string().len()));
    let big = sized.filter(|(_, _, size)| *size >= STATUS_LIMIT);
    big.map(|(key, version, size)| {
        Violation::new(Invariant::I14TrueStatus, key.about(), version.at, format!("the status has {size} bytes"))
    })
    .collect()
}

fn is_ready(credential: &Version) -> bool {
    let conditions = credential.object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// It says that it is ready, its spec is old enough for everybody to have acted on it, and so is everything else.
pub(super) fn is_judged_at_last(evidence: &Evidence, versions: &[Version]) -> bool {
    let settled = |last: &Version| evidence.now.duration_since(spec_change(versions, last)) >= staleness(evidence);
    versions.last().is_some_and(|last| !last.deleted && is_ready(last) && settled(last)) && evidence.is_calm()
}

fn retains(credential: &Version) -> bool {
    credential.object["spec"]["secret"]["deletionPolicy"] == "Retain"
}

fn ends(history: &History) -> impl Iterator<Item = (&[Version], &Version)> {
    let all = history.of_kind(Kind::Credential);
    all.flat_map(|(_, versions)| versions.iter().filter(|version| version.deleted).map(move |end| (versions, end)))
}

fn left<'a>(history: &'a History, end: &'a Version) -> impl Iterator<Item = &'a Key> {
    history.live(Kind::Secret).filter(|(_, secret)| belongs_to(secret, end.uid())).map(|(key, _)| key)
}

/// Secrets that ended after their EcrCredential, in namespaces that did not. Nobody need have seen what was asked just before.
fn lost(evidence: &Evidence, versions: &[Version], end: &Version) -> Vec<Violation> {
    let mut lately = evidence.visible(versions, end.at).filter(|version| version.uid() == end.uid());
    if lately.any(|version| version.generation() != end.generation()) {
        return vec![];
    }
    let secrets = evidence.history.versions_of_kind(Kind::Secret);
    let ended =
        secrets.filter(|(_, version)| version.deleted && version.at >= end.at && belongs_to(version, end.uid()));
    let lost =
        ended.filter(|(key, _)| evidence.history.namespace(&key.namespace).last().is_some_and(Version::is_active));
    let detail = "it was deleted after its EcrCredential, in spite of deletionPolicy Retain";
    lost.map(|(key, version)| Violation::new(Invariant::I13Deletion, key.about(), version.at, detail)).collect()
}

/// What is wrong with a status that says Ready. Right after a change of the spec the status may still speak of the old one.
fn untrue(evidence: &Evidence, credential: &Version, spec_is_recent: bool) -> Option<String> {
    if credential.deleted || !is_ready(credential) {
        return None;
    }
    let status = &credential.object["status"];
    let (observed, generation) = (status["observedGeneration"].as_i64(), credential.generation());
    if observed != Some(generation) && !(spec_is_recent && observed < Some(generation)) {
        return Some(format!("Ready, with observedGeneration {observed:?} of generation {generation}"));
    }
    let count = |field: &str| status["namespaces"][field].as_i64();
    if count("selected").is_none() || count("selected") != count("synced") {
        return Some(format!("Ready, with {:?} of {:?} namespaces synced", count("synced"), count("selected")));
    }
    let outputs = status["outputs"].as_array().into_iter().flatten();
    let mut short = outputs.filter(|one| one["selected"].is_null() || one["selected"] != one["synced"]);
    if let Some(output) = short.next().filter(|_| !spec_is_recent) {
        return Some(format!("Ready, with the output {output}"));
    }
    let expires: Option<Timestamp> = status["expiresAt"].as_str().and_then(|time| time.parse().ok());
    // With no namespace selected there need be no token.
    let needed = count("selected") != Some(0) || !status["expiresAt"].is_null();
    (needed && expires <= Some(evidence.aws_time(credential.sent)))
        .then(|| format!("Ready, with expiresAt {}", status["expiresAt"]))
}

/// What a status that says Ready does not stand on, whatever it counts: a namespace that was selected all the time lately, and held no
/// complete and valid Secret at any time of it.
fn unfounded(evidence: &Evidence, versions: &[Version], credential: &Version) -> Option<String> {
    if credential.deleted || !is_ready(credential) || !credential.by_operator {
        return None;
    }
    let steady = evidence.visible_to(versions, credential).all(|version| {
        !version.deleted && version.uid() == credential.uid() && version.generation() == credential.generation()
    });
    let from = credential.sent - evidence.scope.staleness;
    let missing = if steady { missing(evidence, credential, from, credential.at + evidence.scope.lag) } else { None };
    missing.map(|place| format!("Ready, and {place} is no complete and valid Secret"))
}

/// Still Ready for an old spec, long after it has changed.
fn stale(last: &Version) -> Option<String> {
    let observed = last.object["status"]["observedGeneration"].as_i64();
    let detail =
        || format!("Ready at the end, with observedGeneration {observed:?} of generation {}", last.generation());
    (observed != Some(last.generation())).then(detail)
}

/// A selected namespace that has no valid Secret, whatever the counters say.
fn without_token(evidence: &Evidence, credential: &Version) -> Option<String> {
    if credential.object["spec"]["suspend"] == Value::Bool(true) {
        return None;
    }
    let from = evidence.now - evidence.scope.staleness;
    let missing = missing(evidence, credential, from, evidence.now)?;
    Some(format!("Ready at the end, yet this Secret of it is missing or not valid: {missing}"))
}

/// A Secret that was wanted all the time in between and was not good at any time of it; at the end what is there then counts alone.
fn missing(evidence: &Evidence, credential: &Version, from: Timestamp, until: Timestamp) -> Option<String> {
    let all = evidence.history.of_kind(Kind::Namespace);
    let may = |namespace: &str| evidence.scope.settings.iter().all(|settings| settings.allows(namespace));
    let homes: Vec<_> = all.filter(|(home, _)| may(&home.name)).collect();
    let since = if until == evidence.now { until } else { from };
    asked(&credential.object).into_iter().find_map(|one| {
        let mut wanted = homes.iter().filter(|(_, versions)| evidence.selects_throughout(&one, versions, from, until));
        let is_bare = |home: &Key| {
            let versions = evidence.history.versions(&Key::secret(&home.name, one.name));
            let mut lately = during(versions, since, until).filter(|secret| !secret.deleted);
            !lately.any(|secret| {
                belongs_to(secret, credential.uid())
                    && shape(&one).is_none_or(|shape| secret.object["type"] == shape.kind)
                    && is_valid(evidence, secret, since)
                    && is_complete(evidence, secret, credential, &one)
            })
        };
        wanted.find(|(home, _)| is_bare(home)).map(|(home, _)| format!("{}/{}", home.name, one.name))
    })
}

/// I6: an EcrCredential that says it is ready at the end has no login that AWS has not accepted for a while, by AWS's clock.
pub(super) fn no_gap(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::Credential) {
        let Some(last) = versions.last().filter(|_| is_judged_at_last(evidence, versions)) else { continue };
        let namespaces: Vec<_> = evidence.history.live(Kind::Namespace).collect();
        for one in asked(&last.object) {
            let selected = namespaces.iter().filter(|(_, namespace)| one.selects(&namespace.object));
            for place in selected.map(|(namespace, _)| Key::secret(&namespace.name, one.name)) {
                let secret = evidence.history.versions(&place).last();
                let is_left =
                    |secret: &&Version| !secret.deleted && secret.at + evidence.scope.staleness < evidence.now;
                let Some(ended) = secret.filter(is_left).and_then(|secret| accepted_until(evidence, secret)) else {
                    continue;
                };
                if ended <= evidence.aws_time(evidence.now) {
                    let detail = format!("{} is Ready, and a login of it ended at {ended}", key.name);
                    violations.push(Violation::new(Invariant::I6NoGap, place.about(), evidence.now, detail));
                }
            }
        }
    }
    violations
}

/// When the generation of this version was first seen.
fn spec_change(versions: &[Version], of: &Version) -> Timestamp {
    let same = versions.iter().find(|version| version.uid() == of.uid() && version.generation() == of.generation());
    same.map_or(of.at, |version| version.at)
}

fn staleness(evidence: &Evidence) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(evidence.scope.staleness).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::evidence::Holder;
    use crate::fixture::{Story, credential, holder, ready_credential, secret, start};

    fn in_b() -> crate::fixture::SecretState {
        secret().set("/metadata/namespace", "b".into())
    }

    fn all_well() -> Story {
        Story::new().operator_writes(secret()).operator_writes(in_b()).credential(ready_credential())
    }

    #[test]
    fn a_secret_that_outlives_its_credential_is_found() {
        assert_eq!(deletion(&Story::new().operator_writes(secret()).credential_ends().evidence()).len(), 1);
        assert_eq!(deletion(&Story::new().operator_writes(secret()).credential_ends().other_deletes().evidence()), []);
    }

    #[test]
    fn under_retain_a_secret_that_is_lost_is_found() {
        let mut retaining = credential();
        retaining["spec"]["secret"]["deletionPolicy"] = "Retain".into();
        let gone = || Story::new().credential(retaining.clone()).operator_writes(secret()).credential_ends();
        assert_eq!(deletion(&gone().evidence()), []);
        assert_eq!(deletion(&gone().other_deletes().evidence()).len(), 1);
    }

    #[test]
    fn a_true_status_is_true() {
        assert_eq!(true_status(&all_well().passes(60).evidence()), []);
    }

    #[test]
    fn each_lie_of_a_ready_status_is_found() {
        let cases = [
            ("/status/observedGeneration", json!(2), "observedGeneration"),
            ("/status/observedGeneration", json!(null), "observedGeneration"),
            ("/status/namespaces/synced", json!(1), "synced"),
            ("/status/namespaces", json!(null), "synced"),
            ("/status/expiresAt", json!("2025-12-31T00:00:00Z"), "expiresAt"),
            ("/status/expiresAt", json!(null), "expiresAt"),
        ];
        for (field, value, expected) in cases {
            let mut lying = ready_credential();
            *lying.pointer_mut(field).unwrap() = value;
            let story = Story::new().operator_writes(secret()).operator_writes(in_b()).passes(60).credential(lying);
            let violations = true_status(&story.evidence());
            assert!(violations.iter().any(|violation| violation.detail.contains(expected)), "{field}: {violations:?}");
        }
    }

    #[test]
    fn a_status_is_judged_by_when_it_was_sent() {
        let mut ready = ready_credential();
        ready["status"]["expiresAt"] = (start() + Duration::from_secs(10)).to_string().into();
        let good = || Story::new().operator_writes(secret()).operator_writes(in_b());
        let stored_late = good().operator_reports(ready.clone(), 5).credential(credential());
        assert_eq!(true_status(&stored_late.evidence()), []);
        let sent_late = good().passes(5).operator_reports(ready, 0).credential(credential());
        assert_eq!(true_status(&sent_late.evidence()).len(), 1);
    }

    #[test]
    fn a_status_may_lag_behind_the_spec_only_for_a_moment() {
        let mut changed = ready_credential();
        changed["metadata"]["generation"] = 2.into();
        assert_eq!(true_status(&all_well().credential(changed.clone()).evidence()), []);
        assert_eq!(true_status(&all_well().credential(changed).passes(60).evidence()).len(), 1);
    }

    #[test]
    fn ready_with_a_namespace_that_has_no_valid_token_is_found() {
        let missing = Story::new().operator_writes(secret()).credential(ready_credential()).passes(60);
        assert_eq!(true_status(&missing.evidence()).len(), 1);
        assert_eq!(true_status(&all_well().passes(13 * 3600).evidence()).len(), 1);
    }

    #[test]
    fn a_status_of_64_kib_is_found() {
        let mut huge = credential();
        huge["status"] = json!({"failures": ["x".repeat(STATUS_LIMIT)]});
        assert_eq!(small_status(&Story::new().credential(huge).evidence()).len(), 1);
        assert_eq!(small_status(&all_well().evidence()), []);
    }

    #[test]
    fn ready_is_to_stand_on_a_good_secret_in_every_namespace_at_the_time() {
        let story = || Story::new().passes(60).operator_writes(secret());
        let judged = |story: Story| true_status(&story.operator_reports(ready_credential(), 0).evidence());
        assert_eq!(judged(story().operator_writes(in_b())), []);
        let found = judged(story());
        assert!(found.iter().any(|violation| violation.detail.contains("b/pull is no complete")), "{found:?}");
        let mut new = story();
        new = new.sees(Kind::Namespace, json!({"metadata": {"name": "b", "uid": "new"}}));
        assert_eq!(judged(new.operator_writes(in_b())), []);
    }

    #[test]
    fn ready_with_a_login_that_aws_does_not_accept_is_found_whatever_the_annotation_says() {
        let judged = |accepted_for: u64| {
            let story = Story::new().operator_writes(secret().value("p").expires("2030-01-01T00:00:00Z"));
            let mut evidence = story.credential(ready_credential()).passes(60).evidence();
            let login = Holder { accepted_until: start() + Duration::from_secs(accepted_for), ..holder("x") };
            evidence.aws.issued = [("AWS:p".to_owned(), login)].into();
            no_gap(&evidence).into_iter().map(|violation| violation.invariant).collect::<Vec<_>>()
        };
        assert_eq!(judged(40_000), []);
        assert_eq!(judged(30), [Invariant::I6NoGap]);
    }
}
