//! I2, I4, I5 and I6: what may happen to a Secret from one version to the next, and how long its logins are accepted.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::well_formed::{logins, shape};
use crate::evidence::{Evidence, Write};
use crate::history::{Kind, Version, during};
use crate::marks::{EXPIRES_AT, IDENTITY_HASH, is_foreign, owner};
use crate::selection::asked;
use crate::{Invariant, Violation};

/// I2: a Secret without our marks keeps its resourceVersion, as far as the operator is concerned, unless somebody who wants it there
/// says `Adopt`.
pub(super) fn foreign(evidence: &Evidence) -> Vec<Violation> {
    let writes = evidence.own_writes().filter(|write| write.previous.is_some_and(is_foreign));
    let wrong = writes.filter(|write| write.version.deleted || !is_adopted(evidence, write));
    let describe = |write: Write<'_>| {
        let what = if write.version.deleted { "deleted" } else { "changed" };
        violation(Invariant::I2Foreign, &write, format!("the operator {what} a Secret that bears no mark of it"))
    };
    wrong.map(describe).collect()
}

fn is_adopted(evidence: &Evidence, write: &Write<'_>) -> bool {
    let from = write.version.sent - evidence.scope.staleness;
    let mut claimants = evidence.claimants(write.key, from, write.version.at + evidence.scope.lag);
    claimants.any(|claimant| claimant.object["spec"]["secret"]["conflictPolicy"] == "Adopt")
}

/// I4: the recorded expiry never goes back from one version of the operator to its next, unless the Secret got other hosts,
/// logins of another identity, or another owner.
pub(super) fn monotone(evidence: &Evidence) -> Vec<Violation> {
    let mut last: BTreeMap<&str, &Version> = BTreeMap::new();
    let mut violations = vec![];
    for write in evidence.secret_writes() {
        if write.version.deleted || !(write.version.by_operator || write.version.initial) {
            continue;
        }
        let Some(before) = last.insert(write.version.uid(), write.version) else { continue };
        if expiry(write.version) >= expiry(before) || owner(&before.object) != owner(&write.version.object) {
            continue;
        }
        let hosts = |version: &Version| logins(&version.object).map(|auths| auths.into_keys().collect::<Vec<_>>()).ok();
        if hosts(before) == hosts(write.version) && identities(evidence, before) == identities(evidence, write.version)
        {
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

/// Whom AWS issued the logins to; where that is not known, what the operator recorded of them.
fn identities(evidence: &Evidence, secret: &Version) -> Vec<String> {
    let auths = logins(&secret.object).unwrap_or_default();
    let issued = auths.values().map(|auth| Some(evidence.aws.issued.get(auth)?.identity().to_owned()));
    let recorded = || vec![secret.annotation(IDENTITY_HASH).unwrap_or_default().to_owned()];
    issued.collect::<Option<Vec<_>>>().filter(|issued| !issued.is_empty()).unwrap_or_else(recorded)
}

/// I5: while AWS fails, the operator leaves a Secret alone whose entries are still valid, unless it has better ones from before.
pub(super) fn fail_static(evidence: &Evidence) -> Vec<Violation> {
    if evidence.aws.failures.is_empty() {
        return vec![];
    }
    let ours = evidence.credential_uids();
    let mut last_good: BTreeMap<&str, &Version> = BTreeMap::new();
    let mut violations = vec![];
    for write in evidence.secret_writes() {
        let (version, at) = (write.version, write.version.sent);
        let good = last_good.get(version.uid()).copied();
        if version.by_operator || version.initial {
            last_good.insert(version.uid(), version);
        }
        let Some(since) = evidence.aws_failed_since(at).filter(|_| version.by_operator) else { continue };
        if is_excused(evidence, &write, good) || is_refreshed(evidence, &write, since) {
            continue;
        }
        let is_ours = |previous: &&Version| owner(&previous.object).is_some_and(|uid| ours.contains(uid));
        if write.previous.filter(is_ours).is_some_and(|previous| is_valid(evidence, previous, at)) {
            let what = if version.deleted { "deleted" } else { "wrote" };
            let detail = format!("the operator {what} a valid Secret while AWS failed");
            violations.push(violation(Invariant::I5FailStatic, &write, detail));
        }
    }
    violations
}

/// Putting back what somebody else changed, and removing what is no longer wanted, need nothing from AWS.
fn is_excused(evidence: &Evidence, write: &Write<'_>, good: Option<&Version>) -> bool {
    if write.version.deleted {
        return evidence.is_unwanted_by_owner(write.key, write.version, write.version.sent);
    }
    let edited =
        write.previous.zip(good).is_some_and(|(previous, good)| previous.resource_version() != good.resource_version());
    edited && good.is_some_and(|good| good.object["data"] == write.version.object["data"])
}

/// Tokens that AWS issued before it failed are as good as any: a process that fetched them because its clock was ahead keeps them until
/// those in the Secret are due. That no login is lost thereby, nor given for one that ends sooner, [`no_login_lost`] judges.
fn is_refreshed(evidence: &Evidence, write: &Write<'_>, since: Timestamp) -> bool {
    let (Some(before), version) = (write.previous, write.version) else { return false };
    let Ok(given) = logins(&version.object) else { return false };
    let since = evidence.aws_time(since);
    let is_from_before = |auth: &String| evidence.aws.issued.get(auth).is_some_and(|login| login.issued_at < since);
    !version.deleted && before.object["data"] != version.object["data"] && given.values().all(is_from_before)
}

/// I5, whether AWS fails or not: a write never takes a login away that AWS still accepts and that is still asked for, nor gives one for
/// it that ends sooner. The operator's clock is no excuse: the time is that of AWS.
pub(super) fn no_login_lost(evidence: &Evidence) -> Vec<Violation> {
    let kept = evidence.own_writes().filter(|write| !write.version.deleted);
    kept.filter_map(|write| Some(violation(Invariant::I5FailStatic, &write, lost_login(evidence, &write)?))).collect()
}

fn lost_login(evidence: &Evidence, write: &Write<'_>) -> Option<String> {
    let before = write.previous.filter(|before| owner(&before.object) == owner(&write.version.object))?;
    if before.object["data"] == write.version.object["data"] {
        return None;
    }
    let (old, new) = (logins(&before.object).ok()?, logins(&write.version.object).ok()?);
    let wanted = wanted_hosts(evidence, write);
    // Expiries are kept in whole seconds.
    let now = evidence.aws_time(write.version.at) + SignedDuration::from_secs(1);
    old.iter().find_map(|(host, auth)| {
        let held = evidence.aws.issued.get(auth).filter(|held| !held.revoked && held.accepted_until > now)?;
        let given = new.get(host).and_then(|auth| evidence.aws.issued.get(auth));
        let other = given.is_some_and(|given| given.identity() != held.identity());
        let kept = given.is_some_and(|given| given.accepted_until >= held.accepted_until);
        (wanted.contains(host) && !other && !kept && !is_of_former_auth(evidence, write, host, held.issued_at))
            .then(|| format!("{host} lost a login that was good until {}", held.accepted_until))
    })
}

/// Whether the owner has another `auth` for the registries of this host than when the login was issued: a login is asked for as long as
/// the `auth` that requested it.
fn is_of_former_auth(evidence: &Evidence, write: &Write<'_>, host: &str, issued_at: Timestamp) -> bool {
    let is_public = host.starts_with("public.") || host.starts_with("ecr-public.");
    let auths = |owner: &Version| -> Vec<Value> {
        let spec = &owner.object["spec"];
        let registries = spec["registries"].as_array().into_iter().flatten();
        let alike = registries.filter(|registry| registry["public"].is_object() == is_public);
        alike.map(|of| if of["auth"].is_object() { &of["auth"] } else { &spec["auth"] }).cloned().collect()
    };
    let issued_at = issued_at - evidence.aws.ahead;
    let then = during(evidence.owner_of(write.version), issued_at, issued_at).next();
    then.is_some_and(|then| evidence.owners(write.version).into_iter().all(|now| auths(now) != auths(then)))
}

/// The hosts that the owner asked for all the time lately.
fn wanted_hosts(evidence: &Evidence, write: &Write<'_>) -> BTreeSet<String> {
    let owners = evidence.owners(write.version);
    let sets = owners.into_iter().flat_map(|owner| {
        let settings = evidence.configured(owner, &write.key.namespace).unwrap_or_else(|| vec![BTreeMap::new()]);
        settings.into_iter().map(|hosts| hosts.into_keys().collect::<BTreeSet<_>>())
    });
    sets.reduce(|all, set| all.intersection(&set).cloned().collect()).unwrap_or_default()
}

/// I5: what the operator deletes is wanted no more, or was of no use to anyone.
pub(super) fn no_deletion_of_good(evidence: &Evidence) -> Vec<Violation> {
    let deletions = evidence.own_writes().filter(|write| write.version.deleted && is_of_use(evidence, write));
    deletions
        .map(|write| violation(Invariant::I5FailStatic, &write, "a valid Secret that is wanted was deleted".to_owned()))
        .collect()
}

fn is_of_use(evidence: &Evidence, write: &Write<'_>) -> bool {
    let Some(before) = write.previous else { return false };
    let (from, until) = (before_now(evidence, write.version), write.version.at + evidence.scope.lag);
    let is_wanted_by = |owner: &&Version| {
        owner.is_active()
            && asked(&owner.object).iter().any(|one| {
                one.name == write.key.name
                    && shape(one).is_some_and(|shape| before.object["type"] == shape.kind)
                    && evidence.selects_throughout(one, evidence.history.namespace(&write.key.namespace), from, until)
            })
    };
    let owners = evidence.owners(write.version);
    let now = evidence.aws_time(write.version.at);
    let is_accepted = |auth: &String| evidence.aws.issued.get(auth).is_some_and(|login| login.accepted_until > now);
    before.object["immutable"].is_null()
        && !owners.is_empty()
        && owners.iter().all(is_wanted_by)
        && logins(&before.object).is_ok_and(|auths| auths.values().any(is_accepted))
}

fn before_now(evidence: &Evidence, version: &Version) -> Timestamp {
    version.sent - evidence.scope.staleness
}

/// Until when all logins of a Secret are accepted, by AWS's clock; where that is not known, what the operator recorded.
pub(super) fn accepted_until(evidence: &Evidence, secret: &Version) -> Option<Timestamp> {
    let auths = logins(&secret.object).unwrap_or_default();
    let issued = auths.values().filter_map(|auth| evidence.aws.issued.get(auth)).map(|login| login.accepted_until);
    issued.min().or_else(|| expiry(secret))
}

pub(super) fn is_valid(evidence: &Evidence, secret: &Version, at: Timestamp) -> bool {
    accepted_until(evidence, secret) > Some(evidence.aws_time(at))
}

/// I6, as a number: how much life the logins of a selected namespace had left at the worst moment.
pub fn least_life(evidence: &Evidence) -> Option<SignedDuration> {
    let lives = evidence.history.of_kind(Kind::Secret).flat_map(|(key, versions)| {
        let ends = versions.iter().skip(1).map(|next| next.at).chain([evidence.now]);
        versions.iter().zip(ends).filter_map(move |(version, until)| {
            let is_accounted = !version.deleted && evidence.claimants(key, version.at, until).next().is_some();
            let auths = logins(&version.object).ok().filter(|_| is_accounted)?;
            let issued = auths.values().filter_map(|auth| evidence.aws.issued.get(auth));
            let end = issued.map(|login| login.accepted_until).min()?;
            Some(end.duration_since(evidence.aws_time(until)))
        })
    });
    lives.min()
}

fn expiry(secret: &Version) -> Option<Timestamp> {
    secret.annotation(EXPIRES_AT)?.parse().ok()
}

fn violation(invariant: Invariant, write: &Write<'_>, detail: String) -> Violation {
    let version = write.version.resource_version();
    Violation::new(invariant, write.key.about(), write.version.sent, format!("{detail} (resourceVersion {version})"))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;
    use crate::evidence::Holder;
    use crate::fixture::{SecretState, Story, credential, docker_config, foreign_secret, holder, secret, start};

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

    #[test]
    fn a_foreign_secret_may_be_changed_where_it_is_to_be_adopted_and_is_never_deleted() {
        let mut adopting = credential();
        adopting["spec"]["secret"]["conflictPolicy"] = "Adopt".into();
        let story = || Story::new().credential(adopting.clone()).other_writes(foreign_secret());
        assert_eq!(foreign(&story().operator_writes(secret()).evidence()), []);
        assert_eq!(foreign(&story().operator_deletes().evidence()).len(), 1);
    }

    #[test]
    fn copied_labels_make_no_secret_ours() {
        let copied = secret().set("/metadata/ownerReferences", json!([]));
        assert_eq!(foreign(&Story::new().other_writes(copied).operator_writes(secret()).evidence()).len(), 1);
    }

    #[test]
    fn while_aws_fails_a_token_from_before_may_be_written_and_none_that_came_with_a_failure() {
        let written = |state: SecretState, issued_after: i64| {
            let mut story = Story::new().operator_writes(secret().value("held")).aws_fails();
            let since = story.now.duration_since(start());
            let issued_at = start() + since + SignedDuration::from_secs(issued_after);
            story.aws.issued =
                [("AWS:held".to_owned(), holder("x")), ("AWS:next".to_owned(), Holder { issued_at, ..holder("x") })]
                    .into();
            fail_static(&story.passes(60).operator_writes(state).evidence()).len()
        };
        assert_eq!(written(secret().value("next"), -1), 0);
        assert_eq!(written(secret().value("next"), 1), 1);
        assert_eq!(written(secret().value("unknown"), -1), 1);
        assert_eq!(written(secret().value("held").label("x", "y"), -1), 1, "nothing is better");
    }

    /// Logins of which AWS accepts one for twelve hours, one for longer and one for less.
    fn issued(mut story: Story) -> Evidence {
        let login = |(password, hours): (&str, i64)| {
            let accepted_until = start() + SignedDuration::from_hours(hours);
            (format!("AWS:{password}"), Holder { accepted_until, ..holder("operator") })
        };
        story.aws.issued = [("held", 12), ("longer", 13), ("shorter", 11)].map(login).into();
        story.evidence()
    }

    #[test]
    fn a_login_that_aws_accepts_is_not_taken_away_nor_given_for_one_that_ends_sooner() {
        let empty = secret().set("/data/.dockerconfigjson", BASE64_STANDARD.encode(r#"{"auths":{}}"#).into());
        let cases = [
            (secret().value("longer"), 0, 0),
            (secret().value("shorter"), 0, 1),
            (secret().value("shorter"), 13, 0),
            (secret().value("unknown"), 0, 1),
            (empty, 0, 1),
        ];
        for (state, hours, expected) in cases {
            let story = Story::new().operator_writes(secret().value("held")).passes(hours * 3600);
            let found = no_login_lost(&issued(story.operator_writes(state)));
            assert_eq!(found.len(), expected, "{found:?}");
        }
    }

    #[test]
    fn a_good_secret_that_is_wanted_is_not_deleted() {
        let deleted = |state: SecretState| {
            let story = Story::new().passes(60).operator_writes(state).operator_deletes();
            no_deletion_of_good(&issued(story)).len()
        };
        assert_eq!(deleted(secret().value("held")), 1);
        assert_eq!(deleted(secret().value("unknown")), 0);
        assert_eq!(deleted(secret().value("held").set("/immutable", true.into())), 0);
        let mut narrowed = credential();
        narrowed["spec"]["namespaces"]["names"] = json!(["b"]);
        let story = Story::new().passes(60).operator_writes(secret().value("held")).credential(narrowed);
        assert_eq!(no_deletion_of_good(&issued(story.operator_deletes())), []);
    }

    #[test]
    fn the_least_life_is_that_of_the_worst_moment() {
        let story = Story::new().operator_writes(secret().value("held")).passes(11 * 3600);
        let story = story.operator_writes(secret().value("longer")).passes(600);
        let least = least_life(&issued(story)).unwrap();
        assert!((SignedDuration::from_mins(59)..SignedDuration::from_hours(1)).contains(&least), "{least:#}");
    }
}
