//! What is remembered of writes: how often a place is tried, when it is fought over, and how it is counted.

use serde_json::json;

use super::super::stage::{self, ACCOUNT, NOW, Stage, at, grant, uid};
use super::*;
use crate::plan::Identity;
use crate::plan::targets::Incarnation;
use crate::secret::ownership::{SecretRecord, Standing};

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };

fn desired(password: &str) -> Arc<Desired> {
    let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let need = stage.plan.registries[0].needs[0].clone();
    Arc::new(stage.desired(&[(need, grant(password, NOW + 3600, &Identity::operator()))].into()))
}

fn record(version: &str, desired: &Desired) -> Arc<SecretRecord> {
    Arc::new(stage::record(Some(uid("x")), version, desired.footprint))
}

fn place(standing: Standing) -> Place {
    let (namespace, name, incarnation) = ("a".into(), "pull".into(), Incarnation::default());
    Place { namespace, incarnation, name, standing, claim: secret::Claim::Wanted }
}

/// A history whose content is this.
fn history(desired: &Arc<Desired>) -> (History, Content) {
    let content = Content::Alike([("pull".into(), desired.clone())].into());
    let mut history = History::default();
    history.expect(&content);
    (history, content)
}

fn ended(place: &Place, desired: &Arc<Desired>, verdict: Verdict, result: Result<Written, WriteError>) -> Ended {
    Ended { place: place.clone(), verdict, desired: Some(desired.clone()), result }
}

fn count(history: &History, content: &Content, place: &Place, verdict: &Verdict) -> Tally {
    let mut tally = Tally::default();
    history.count(&mut tally, place, verdict, content);
    tally
}

/// How many namespaces are selected for the pull secret, synced, and failed.
fn counts(tally: &Tally) -> (usize, usize, usize) {
    let Counts { selected, synced, failed } = tally.of("pull");
    (selected, synced, failed)
}

fn refused() -> WriteError {
    WriteError::Refused(Reason::AdmissionRefused, "no".to_owned())
}

#[tokio::test]
async fn a_refused_write_is_tried_again_after_longer_and_longer_waits_or_when_the_secret_changes() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Standing::Absent);
    let mut now = NOW;
    let mut waits = Vec::new();
    for _ in 0..12 {
        history.note(&ended(&there, &desired, Verdict::Create, Err(refused())), &content, &RETRY, at(now));
        assert!(!history.may_write(&there, at(now)));
        let next = history.retry_at(at(now)).unwrap().as_second();
        waits.push(next - now);
        now = next + 1;
        assert!(history.may_write(&there, at(now)));
    }
    assert!(waits[0] <= 1 && waits[11] >= 150 && waits.iter().all(|wait| *wait <= 300), "{waits:?}");
    history.note(&ended(&there, &desired, Verdict::Create, Err(refused())), &content, &RETRY, at(now));
    let tally = count(&history, &content, &there, &Verdict::Create);
    assert_eq!(counts(&tally), (1, 0, 1));
    assert_eq!(tally.failures[0].reason, "AdmissionRefused");
    let changed = place(Standing::Foreign(record("9", &desired)));
    assert!(history.may_write(&changed, at(now)), "somebody has done something about it");
    assert!(history.may_write(&there, at(now - 9000)), "the clock was set back");
}

#[tokio::test]
async fn a_stale_answer_is_no_failure_unless_it_comes_again_and_again() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Standing::Absent);
    for number in 1..=5 {
        let stale = ended(&there, &desired, Verdict::Create, Err(WriteError::Stale));
        history.note(&stale, &content, &RETRY, at(NOW));
        let told = !count(&history, &content, &there, &Verdict::Create).failures.is_empty();
        assert_eq!(told, number >= 5, "{number}");
    }
}

#[tokio::test]
async fn who_keeps_changing_a_secret_is_not_fought_and_the_status_does_not_flap() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let mine = record("7", &desired);
    let there = place(Standing::Mine(mine.clone()));
    let mut now = NOW;
    let mut writes = 0;
    // Somebody changes it every second for two minutes; each time it may be written, it is.
    while now < NOW + 120 {
        history.forgive(at(now));
        if history.may_write(&there, at(now)) {
            let stored = Ok(Written::Stored(mine.clone()));
            history.note(&ended(&there, &desired, Verdict::Update(mine.clone()), stored), &content, &RETRY, at(now));
            writes += 1;
        }
        let synced = count(&history, &content, &there, &Verdict::Keep).of("pull").synced;
        assert_eq!(synced == 1, writes <= QUICK_REPAIRS, "{writes} repairs after {} s", now - NOW);
        now += 1;
    }
    assert!((8..=20).contains(&writes), "{writes} writes in two minutes");
    // Left alone, it is as ever after a while.
    history.forgive(at(now + 90));
    assert_eq!(count(&history, &content, &there, &Verdict::Keep).of("pull").synced, 1);
    assert!(history.may_write(&there, at(now + 90)));
}

#[tokio::test]
async fn what_is_told_of_a_namespace_that_is_not_selected_counts_as_no_failure() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let mine = record("7", &desired);
    let left = Place { claim: secret::Claim::Left, ..place(Standing::Mine(mine.clone())) };
    let verdict = Verdict::Delete(mine);
    history.note(&ended(&left, &desired, verdict.clone(), Err(refused())), &content, &RETRY, at(NOW));
    let mut tally = count(&history, &content, &left, &verdict);
    assert_eq!((counts(&tally), tally.failures.len()), ((0, 0, 0), 1));
    let good = Place { namespace: "b".into(), ..place(Standing::Mine(record("1", &desired))) };
    history.count(&mut tally, &good, &Verdict::Keep, &content);
    assert_eq!(counts(&tally), (1, 1, 0));
}

#[tokio::test]
async fn a_new_content_is_written_at_once_whatever_became_of_the_old_one() {
    let (old, new) = (desired("p"), desired("q"));
    let (mut history, content) = history(&old);
    let there = place(Standing::Absent);
    history.note(&ended(&there, &old, Verdict::Create, Err(refused())), &content, &RETRY, at(NOW));
    let next = Content::Alike([("pull".into(), new.clone())].into());
    history.expect(&next);
    assert!(history.may_write(&there, at(NOW)));
    // What ends late says nothing of the new one.
    history.note(&ended(&there, &old, Verdict::Create, Err(refused())), &next, &RETRY, at(NOW));
    assert!(history.may_write(&there, at(NOW)) && !history.has_failed());
}

#[tokio::test]
async fn one_place_that_fails_holds_up_no_other() {
    let desired = desired("p");
    let (mut history, content) = history(&desired);
    let there = place(Standing::Absent);
    history.note(&ended(&there, &desired, Verdict::Create, Err(refused())), &content, &RETRY, at(NOW));
    assert!(!history.may_write(&there, at(NOW)));
    let other = Place { namespace: "b".into(), ..there };
    assert!(history.may_write(&other, at(NOW)));
    history.retain_failures(&HashSet::new());
    assert!(!history.has_failed(), "what is not to be written any more has not failed");
}

#[tokio::test]
async fn what_is_new_of_one_secret_says_nothing_of_another_and_each_counts_for_itself() {
    let (old, new, kept) = (desired("p"), desired("q"), desired("r"));
    let with =
        |pull: &Arc<Desired>| Content::Alike([("pull".into(), pull.clone()), ("out".into(), kept.clone())].into());
    let mut history = History::default();
    history.expect(&with(&old));
    let pull = place(Standing::Absent);
    let out = Place { name: "out".into(), ..place(Standing::Absent) };
    let content = with(&old);
    for (there, desired) in [(&pull, &old), (&out, &kept)] {
        history.note(&ended(there, desired, Verdict::Create, Err(refused())), &content, &RETRY, at(NOW));
    }
    // What admission made of the other Secret is still known, or it would be written once more.
    let mutated = record("8", &desired("mutated"));
    history.note(&ended(&out, &kept, Verdict::Create, Ok(Written::Stored(mutated.clone()))), &content, &RETRY, at(NOW));
    history.expect(&with(&new));
    assert!(history.may_write(&pull, at(NOW)), "it is another content");
    assert_eq!(history.accepted(&out), Some(mutated.footprint));
    let mut tally = Tally::default();
    history.count(&mut tally, &out, &Verdict::Keep, &with(&new));
    tally.deny(&"out".into(), &"b".into(), &Halt { reason: Reason::OutputNotAllowed, message: "no".to_owned() });
    let Counts { selected, synced, failed } = tally.of("out");
    assert_eq!((selected, synced, failed, counts(&tally)), (2, 1, 1, (0, 0, 0)));
    let failure = &tally.failures[0];
    assert_eq!((failure.namespace.as_str(), failure.secret.as_deref()), ("b", Some("out")));
}
