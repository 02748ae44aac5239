//! I2, I4 and I5: what may happen to a Secret from one version to the next.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::evidence::{Evidence, Write};
use super::super::history::Version;
use super::super::marks::{EXPIRES_AT, IDENTITY_HASH, is_foreign, is_ours, uids};
use super::super::{Invariant, Violation};
use super::well_formed::auths;

/// I2: a Secret without our marks keeps its resourceVersion, as far as the operator is concerned.
pub(super) fn foreign(evidence: &Evidence) -> Vec<Violation> {
    let writes = evidence
        .secret_writes()
        .into_iter()
        .filter(|write| write.by_operator && write.previous.is_some_and(is_foreign));
    let describe = |write: Write<'_>| {
        let what = if write.version.deleted { "deleted" } else { "changed" };
        violation(Invariant::I2Foreign, &write, format!("the operator {what} a Secret that bears no mark of it"))
    };
    writes.map(describe).collect()
}

/// I4: the recorded expiry never goes back from one version of the operator to its next, unless the Secret got other hosts,
/// logins of another identity, or another owner.
pub(super) fn monotone(evidence: &Evidence) -> Vec<Violation> {
    let mut last: BTreeMap<&str, &Version> = BTreeMap::new();
    let mut violations = vec![];
    for write in evidence.secret_writes() {
        if write.version.deleted || !(write.by_operator || write.version.initial) {
            continue;
        }
        let Some(before) = last.insert(write.version.uid(), write.version) else { continue };
        let hosts = |version| auths(version).map(|auths| auths.into_keys().collect::<Vec<_>>()).ok();
        let identity = |version: &Version| version.annotation(IDENTITY_HASH).map(str::to_owned);
        let comparable = hosts(before) == hosts(write.version)
            && identity(before) == identity(write.version)
            && uids(before) == uids(write.version);
        if comparable && expiry(write.version) < expiry(before) {
            let (from, to) = (before.annotation(EXPIRES_AT), write.version.annotation(EXPIRES_AT));
            violations.push(violation(
                Invariant::I4Monotone,
                &write,
                format!("the expiry went back from {from:?} to {to:?}"),
            ));
        }
    }
    violations
}

/// I5: while AWS fails, the operator leaves a Secret alone whose entries are still valid.
pub(super) fn fail_static(evidence: &Evidence) -> Vec<Violation> {
    let ours = evidence.credential_uids();
    let mut last_good: BTreeMap<&str, &Version> = BTreeMap::new();
    let mut violations = vec![];
    for write in evidence.secret_writes() {
        let good = last_good.get(write.version.uid()).copied();
        if write.by_operator || write.version.initial {
            last_good.insert(write.version.uid(), write.version);
        }
        let Some(previous) = write.previous.filter(|previous| is_ours(previous, &ours)) else { continue };
        let valid = expiry(previous) > Some(evidence.operator_time(write.at));
        if write.by_operator && valid && evidence.aws_failed_at(write.at) && !is_excused(evidence, &write, good) {
            let what = if write.version.deleted { "deleted" } else { "wrote" };
            violations.push(violation(
                Invariant::I5FailStatic,
                &write,
                format!("the operator {what} a valid Secret while AWS failed"),
            ));
        }
    }
    violations
}

/// Putting back what somebody else changed, and removing what is no longer wanted, need nothing from AWS.
fn is_excused(evidence: &Evidence, write: &Write<'_>, good: Option<&Version>) -> bool {
    if write.version.deleted {
        return evidence.is_unwanted_by_owner(write.key, write.version, write.at);
    }
    let edited =
        write.previous.zip(good).is_some_and(|(previous, good)| previous.resource_version() != good.resource_version());
    edited && good.is_some_and(|good| good.object["data"] == write.version.object["data"])
}

pub(super) fn expiry(secret: &Version) -> Option<Timestamp> {
    secret.annotation(EXPIRES_AT)?.parse().ok()
}

fn violation(invariant: Invariant, write: &Write<'_>, detail: String) -> Violation {
    let version = write.version.resource_version();
    Violation::new(invariant, write.key.about(), write.at, format!("{detail} (resourceVersion {version})"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixture::{Story, credential, docker_config, foreign_secret, secret};
    use super::*;

    #[test]
    fn a_foreign_secret_must_not_be_changed_or_deleted_by_the_operator() {
        let adopted = Story::new().other_writes(foreign_secret()).operator_writes(secret());
        assert_eq!(foreign(&adopted.evidence()).len(), 1);
        let deleted = Story::new().other_writes(foreign_secret()).operator_deletes();
        assert_eq!(foreign(&deleted.evidence()).len(), 1);
        let unseen = Story::new().other_writes(foreign_secret()).operator_writes_unseen(secret());
        assert_eq!(foreign(&unseen.evidence()).len(), 1);
    }

    #[test]
    fn others_may_change_a_foreign_secret_and_the_operator_its_own() {
        let story =
            Story::new().other_writes(foreign_secret()).other_writes(foreign_secret().value("x")).other_deletes();
        assert_eq!(foreign(&story.operator_writes(secret()).operator_writes(secret().value("2")).evidence()), []);
    }

    #[test]
    fn an_expiry_that_goes_back_is_found() {
        let back =
            Story::new().operator_writes(secret()).operator_writes(secret().value("2").expires("2026-01-01T11:59:59Z"));
        assert_eq!(monotone(&back.evidence()).len(), 1);
        let lost = secret().value("2").set("/metadata/annotations", json!({}));
        assert_eq!(monotone(&Story::new().operator_writes(secret()).operator_writes(lost).evidence()).len(), 1);
    }

    #[test]
    fn an_expiry_may_go_forward_or_belong_to_other_hosts() {
        let later = secret().value("2").expires("2026-01-01T18:00:00Z");
        let moved = secret()
            .set("/data/.dockerconfigjson", docker_config("public.ecr.aws", "AWS:p").into())
            .expires("2026-01-01T01:00:00Z");
        assert_eq!(
            monotone(&Story::new().operator_writes(secret()).operator_writes(later).operator_writes(moved).evidence()),
            []
        );
    }

    #[test]
    fn a_hand_edit_is_no_step_back_of_the_operator() {
        let edited = secret().expires("2020-01-01T00:00:00Z");
        let story =
            Story::new().operator_writes(secret()).other_writes(edited).operator_writes(secret().label("x", "y"));
        assert_eq!(monotone(&story.evidence()), []);
    }

    #[test]
    fn a_valid_secret_must_not_be_touched_while_aws_fails() {
        let written = Story::new().operator_writes(secret()).aws_fails().operator_writes(secret().value("2"));
        assert_eq!(fail_static(&written.evidence()).len(), 1);
        let deleted = Story::new().operator_writes(secret()).aws_fails().operator_deletes();
        assert_eq!(fail_static(&deleted.evidence()).len(), 1);
        let broken = Story::new().operator_writes(secret()).aws_fails().other_writes(secret().value("edited"));
        assert_eq!(fail_static(&broken.operator_writes(secret().value("neither")).evidence()).len(), 1);
    }

    #[test]
    fn while_aws_fails_a_secret_may_be_created_repaired_and_replaced_once_expired() {
        let created = Story::new().aws_fails().operator_writes(secret());
        assert_eq!(fail_static(&created.evidence()), []);
        let repaired = Story::new()
            .operator_writes(secret())
            .aws_fails()
            .other_writes(secret().value("edited"))
            .operator_writes(secret());
        assert_eq!(fail_static(&repaired.evidence()), []);
        let expired =
            Story::new().operator_writes(secret()).aws_fails().passes(13 * 3600).operator_writes(secret().value("2"));
        assert_eq!(fail_static(&expired.evidence()), []);
        let mut narrowed = credential();
        narrowed["spec"]["namespaces"]["names"] = json!(["b"]);
        let unwanted =
            Story::new().operator_writes(secret()).aws_fails().credential(narrowed).passes(3).operator_deletes();
        assert_eq!(fail_static(&unwanted.evidence()), []);
    }
}
