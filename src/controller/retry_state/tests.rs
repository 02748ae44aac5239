//! What is remembered of writes: how often a place is tried, when it is fought over, and how it is counted.

use serde_json::json;

use super::super::stage::{ACCOUNT, NOW, Stage, at, grant, uid};
use super::*;
use crate::plan::Identity;
use crate::plan::namespaces::NamespaceUid;
use crate::secret::ownership::{Ownership, SecretRecord};

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };

fn desired(password: &str) -> Arc<Desired> {
    let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let need = stage.plan.registries[0].token_specs[0].clone();
    Arc::new(stage.desired(&[(need, grant(password, NOW + 3600, &Identity::operator()))].into()))
}

fn record(version: &str, desired: &Desired) -> Arc<SecretRecord> {
    Arc::new(SecretRecord::fixture(Some(uid("x")), version, desired.digest))
}

fn place(ownership: Ownership) -> SecretTarget {
    let (namespace, name, namespace_uid) = ("a".into(), "pull".into(), NamespaceUid::default());
    SecretTarget { namespace, namespace_uid, name, ownership, selection: secret::Selection::Selected }
}

/// A history whose content is this.
fn history(desired: &Arc<Desired>) -> (RetryState, DesiredSecrets) {
    let content = DesiredSecrets::Alike([("pull".into(), desired.clone())].into());
    let mut history = RetryState::default();
    history.expect(&content);
    (history, content)
}

fn ended(
    place: &SecretTarget,
    desired: &Arc<Desired>,
    action: SecretAction,
    result: Result<Written, WriteError>,
) -> Ended {
    Ended { place: place.clone(), action, desired: Some(desired.clone()), result }
}

fn count(history: &RetryState, content: &DesiredSecrets, place: &SecretTarget, action: &SecretAction) -> SyncCounts {
    let mut counts = SyncCounts::default();
    history.count(&mut counts, place, action, content);
    counts
}

/// How many namespaces are selected for the pull secret, synced, and failed.
fn numbers(counts: &SyncCounts) -> (usize, usize, usize) {
    let Counts { selected, synced, failed } = counts.of("pull");
    (selected, synced, failed)
}

fn refused() -> WriteError {
    WriteError::Refused(Reason::AdmissionRefused, "no".to_owned())
}

#[tokio::test]
async fn a_refused_write_is_tried_again_after_longer_and_longer_waits_or_when_the_secret_changes() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Ownership::Absent);
    let mut now = NOW;
    let mut waits = Vec::new();
    for _ in 0..12 {
        history.note(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(now));
        assert!(!history.may_write(&there, at(now)));
        let next = history.retry_at(at(now)).unwrap().as_second();
        waits.push(next - now);
        now = next + 1;
        assert!(history.may_write(&there, at(now)));
    }
    assert!(waits[0] <= 1 && waits[11] >= 150 && waits.iter().all(|wait| *wait <= 300), "{waits:?}");
    history.note(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(now));
    let counts = count(&history, &content, &there, &SecretAction::Create);
    assert_eq!(numbers(&counts), (1, 0, 1));
    assert_eq!(counts.failures[0].reason, "AdmissionRefused");
    let changed = place(Ownership::Unmanaged(record("9", &desired)));
    assert!(history.may_write(&changed, at(now)), "somebody has done something about it");
    assert!(history.may_write(&there, at(now - 9000)), "the clock was set back");
}

#[tokio::test]
async fn a_stale_answer_is_no_failure_unless_it_comes_again_and_again() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Ownership::Absent);
    for number in 1..=5 {
        let stale = ended(&there, &desired, SecretAction::Create, Err(WriteError::Stale));
        history.note(&stale, &content, &RETRY, at(NOW));
        let told = !count(&history, &content, &there, &SecretAction::Create).failures.is_empty();
        assert_eq!(told, number >= 5, "{number}");
    }
}

#[tokio::test]
async fn who_keeps_changing_a_secret_is_not_fought_and_the_status_does_not_flap() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let mine = record("7", &desired);
    let there = place(Ownership::Owned(mine.clone()));
    let mut now = NOW;
    let mut writes = 0;
    // Somebody changes it every second for two minutes; each time it may be written, it is.
    while now < NOW + 120 {
        history.forgive(at(now));
        if history.may_write(&there, at(now)) {
            let stored = Ok(Written::Stored(mine.clone()));
            history.note(
                &ended(&there, &desired, SecretAction::Update(mine.clone()), stored),
                &content,
                &RETRY,
                at(now),
            );
            writes += 1;
        }
        let synced = count(&history, &content, &there, &SecretAction::Keep).of("pull").synced;
        assert_eq!(synced == 1, writes <= QUICK_REPAIRS, "{writes} repairs after {} s", now - NOW);
        now += 1;
    }
    assert!((8..=20).contains(&writes), "{writes} writes in two minutes");
    // Left alone, it is as ever after a while.
    history.forgive(at(now + 90));
    assert_eq!(count(&history, &content, &there, &SecretAction::Keep).of("pull").synced, 1);
    assert!(history.may_write(&there, at(now + 90)));
}

#[tokio::test]
async fn a_secret_that_is_deleted_again_and_again_is_created_less_and_less_often() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let gone = place(Ownership::Absent);
    let mut creations = 0;
    // Somebody deletes it every second for two minutes; each time it may be created, it is.
    for now in NOW..NOW + 120 {
        history.forgive(at(now));
        if history.may_write(&gone, at(now)) {
            let stored = Ok(Written::Stored(record("7", &desired)));
            history.note(&ended(&gone, &desired, SecretAction::Create, stored), &content, &RETRY, at(now));
            creations += 1;
        }
    }
    assert!((8..=20).contains(&creations), "{creations} creations in two minutes");
    let counts = count(&history, &content, &gone, &SecretAction::Create);
    assert_eq!((numbers(&counts), counts.failures[0].reason.as_str()), ((1, 0, 1), "Contested"));
    // Left alone, it is as ever after a while.
    let later = at(NOW + 120 + 90);
    history.forgive(later);
    assert!(history.may_write(&gone, later));
    let there = place(Ownership::Owned(record("7", &desired)));
    assert_eq!(numbers(&count(&history, &content, &there, &SecretAction::Keep)), (1, 1, 0));
}

#[tokio::test]
async fn what_is_told_of_a_namespace_that_is_not_selected_counts_as_no_failure() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let mine = record("7", &desired);
    let left = SecretTarget { selection: secret::Selection::Deselected, ..place(Ownership::Owned(mine.clone())) };
    let action = SecretAction::Delete(mine);
    history.note(&ended(&left, &desired, action.clone(), Err(refused())), &content, &RETRY, at(NOW));
    let mut counts = count(&history, &content, &left, &action);
    assert_eq!((numbers(&counts), counts.failures.len()), ((0, 0, 0), 1));
    let good = SecretTarget { namespace: "b".into(), ..place(Ownership::Owned(record("1", &desired))) };
    history.count(&mut counts, &good, &SecretAction::Keep, &content);
    assert_eq!(numbers(&counts), (1, 1, 0));
}

#[tokio::test]
async fn a_new_content_is_written_at_once_whatever_became_of_the_old_one() {
    let (old, new) = (desired("p"), desired("q"));
    let (mut history, content) = history(&old);
    let there = place(Ownership::Absent);
    history.note(&ended(&there, &old, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    let next = DesiredSecrets::Alike([("pull".into(), new.clone())].into());
    history.expect(&next);
    assert!(history.may_write(&there, at(NOW)));
    // What ends late says nothing of the new one.
    history.note(&ended(&there, &old, SecretAction::Create, Err(refused())), &next, &RETRY, at(NOW));
    assert!(history.may_write(&there, at(NOW)) && !history.has_failed());
}

#[tokio::test]
async fn one_place_that_fails_holds_up_no_other() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Ownership::Absent);
    history.note(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    assert!(!history.may_write(&there, at(NOW)));
    let other = SecretTarget { namespace: "b".into(), ..there };
    assert!(history.may_write(&other, at(NOW)));
    history.retain_failures(&HashSet::new());
    assert!(!history.has_failed(), "what is not to be written any more has not failed");
}

#[tokio::test]
async fn what_is_new_of_one_secret_says_nothing_of_another_and_each_counts_for_itself() {
    let (old, new, kept) = (desired("p"), desired("q"), desired("r"));
    let with = |pull: &Arc<Desired>| {
        DesiredSecrets::Alike([("pull".into(), pull.clone()), ("out".into(), kept.clone())].into())
    };
    let mut history = RetryState::default();
    history.expect(&with(&old));
    let pull = place(Ownership::Absent);
    let out = SecretTarget { name: "out".into(), ..place(Ownership::Absent) };
    let content = with(&old);
    for (there, desired) in [(&pull, &old), (&out, &kept)] {
        history.note(&ended(there, desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    }
    // What admission made of the other Secret is still known, or it would be written once more.
    let mutated = record("8", &desired("mutated"));
    history.note(
        &ended(&out, &kept, SecretAction::Create, Ok(Written::Stored(mutated.clone()))),
        &content,
        &RETRY,
        at(NOW),
    );
    history.expect(&with(&new));
    assert!(history.may_write(&pull, at(NOW)), "it is another content");
    assert_eq!(history.accepted(&out), Some(mutated.digest));
    let mut counts = SyncCounts::default();
    history.count(&mut counts, &out, &SecretAction::Keep, &with(&new));
    counts.deny(&"out".into(), &"b".into(), &SpecError { reason: Reason::OutputNotAllowed, message: "no".to_owned() });
    let Counts { selected, synced, failed } = counts.of("out");
    assert_eq!((selected, synced, failed, numbers(&counts)), (2, 1, 1, (0, 0, 0)));
    let failure = &counts.failures[0];
    assert_eq!((failure.namespace.as_str(), failure.secret.as_deref()), ("b", Some("out")));
}
