//! What is kept of writes: how often a Secret is tried, when it is contested, and how it counts.

use serde_json::json;

use super::super::desired_secrets::{NamespaceSecrets, TokenProblem};
use super::super::stage::{ACCOUNT, NOW, Stage, at, token, uid};
use super::super::sync_ledger::SyncCounts;
use super::*;
use crate::outcome::TargetCounts;
use crate::plan::Identity;
use crate::plan::namespaces::NamespaceUid;
use crate::secret::Bundle;
use crate::secret::ownership::{Ownership, SecretRecord};

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };

fn desired(password: &str) -> Arc<Desired> {
    let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    Arc::new(stage.desired(&[(token_spec, token(password, NOW + 3600, &Identity::operator()))].into()))
}

fn secret(version: &str, desired: &Desired) -> Arc<SecretRecord> {
    Arc::new(SecretRecord::fixture(Some(uid("x")), version, desired.digest))
}

fn target(ownership: Ownership) -> SecretTarget {
    let (namespace, name, namespace_uid) = ("a".into(), "pull".into(), NamespaceUid::default());
    SecretTarget { namespace, namespace_uid, name, ownership, selection: Selection::Selected }
}

/// The state of an `EcrCredential` that wants this everywhere.
fn state(desired: &Arc<Desired>) -> (RetryState, DesiredSecrets) {
    let content = DesiredSecrets::Alike([("pull".into(), desired.clone())].into());
    let mut state = RetryState::default();
    state.expect(&content);
    (state, content)
}

#[tokio::test]
async fn no_token_is_kept_to_compare() {
    let bundle = |desired| Bundle::from([("pull".into(), desired)]);
    let share = |desired| NamespaceSecrets {
        namespace_uid: NamespaceUid::default(),
        desired: bundle(desired),
        current: true,
        problems: BTreeMap::new(),
    };
    let alike = |desired| DesiredSecrets::Alike(bundle(desired));
    let each = |desired| DesiredSecrets::Each([("a".into(), share(desired))].into());
    for content in [&alike as &dyn Fn(Arc<Desired>) -> DesiredSecrets, &each] {
        let one = desired("one");
        let kept = Arc::downgrade(&one);
        let mut state = RetryState::default();
        state.expect(&content(one));
        assert!(kept.upgrade().is_none());
    }
}

fn ended(
    target: &SecretTarget,
    desired: &Arc<Desired>,
    action: SecretAction,
    result: Result<Written, WriteError>,
) -> Ended {
    Ended { target: target.clone(), action, desired: Some(desired.clone()), result }
}

/// Takes what is to be done about a Secret into a ledger of one Secret; returns its counts.
fn count(
    state: &RetryState,
    content: &DesiredSecrets,
    target: &SecretTarget,
    action: &SecretAction,
    now: i64,
) -> SyncCounts {
    let mut ledger = SyncLedger::default();
    record(&mut ledger, state, content, target, action, now);
    counts(&ledger, [(&target.name, usize::from(target.selection == Selection::Selected))])
}

fn record(
    ledger: &mut SyncLedger,
    state: &RetryState,
    content: &DesiredSecrets,
    target: &SecretTarget,
    action: &SecretAction,
    now: i64,
) {
    ledger.record(target.key(), state.sync_state(target, action, content, at(now)));
}

/// The counts of so many selected namespaces for each Secret.
fn counts<const N: usize>(ledger: &SyncLedger, selected: [(&Arc<str>, usize); N]) -> SyncCounts {
    ledger.counts(selected.into_iter())
}

/// How many namespaces are selected for the pull secret, synced, and failed.
fn numbers(counts: &SyncCounts) -> (usize, usize, usize) {
    let TargetCounts { selected, synced, failed, .. } = counts.of("pull");
    (selected, synced, failed)
}

fn refused() -> WriteError {
    WriteError::Refused(Reason::AdmissionRefused, "no".to_owned())
}

#[tokio::test]
async fn a_namespace_waits_for_its_token_only_where_it_lacks_one() {
    let (state, there) = (RetryState::default(), target(Ownership::Absent));
    let denied = |reason| Some(SpecError { reason, message: "no".to_owned() });
    for (lacks, action, expected) in [
        (denied(Reason::FetchingToken), SecretAction::Wait, (1, 0)),
        (denied(Reason::AccessDenied), SecretAction::Wait, (0, 1)),
        (None, SecretAction::Create, (0, 0)),
    ] {
        let (namespace_uid, desired) = (there.namespace_uid, Bundle::new());
        let problems = [(there.name.clone(), TokenProblem { lacks, failure: None })].into();
        let share = NamespaceSecrets { namespace_uid, desired, current: true, problems };
        let content = DesiredSecrets::Each([(there.namespace.clone(), share)].into());
        let TargetCounts { fetching, failed, .. } = count(&state, &content, &there, &action, NOW).of("pull");
        assert_eq!((fetching, failed), expected, "{action:?}");
    }
}

#[tokio::test]
async fn a_refused_write_is_tried_again_after_longer_and_longer_waits_or_when_the_secret_changes() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let there = target(Ownership::Absent);
    let mut now = NOW;
    let mut waits = Vec::new();
    for _ in 0..12 {
        state.record(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(now));
        assert!(!state.may_write(&there, at(now)));
        let next = state.retry_at().unwrap().as_second();
        waits.push(next - now);
        now = next + 1;
        assert!(state.may_write(&there, at(now)));
    }
    assert!(waits[0] <= 1 && waits[11] >= 150 && waits.iter().all(|wait| *wait <= 300), "{waits:?}");
    state.record(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(now));
    let counts = count(&state, &content, &there, &SecretAction::Create, now);
    assert_eq!(numbers(&counts), (1, 0, 1));
    assert_eq!(counts.failures[0].reason, "AdmissionRefused");
    let changed = target(Ownership::Unmanaged(secret("9", &desired)));
    assert!(state.may_write(&changed, at(now)), "somebody has done something about it");
    assert!(!state.follow_clock(at(now)) && state.follow_clock(at(now - 9000)), "the clock was set back");
    assert!(state.may_write(&there, at(now - 9000)));
}

#[tokio::test]
async fn a_stale_answer_is_no_failure_unless_it_comes_again_and_again() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let there = target(Ownership::Absent);
    for number in 1..=5 {
        let stale = ended(&there, &desired, SecretAction::Create, Err(WriteError::Stale));
        state.record(&stale, &content, &RETRY, at(NOW));
        let told = !count(&state, &content, &there, &SecretAction::Create, NOW).failures.is_empty();
        assert_eq!(told, number >= 5, "{number}");
    }
}

/// Somebody changes a Secret every second for two minutes, and each time it may be written, it is, which leads to this version; returns how
/// often it was written after each second, and whether it counted as synced then.
fn changed_every_second(state: &mut RetryState, version: &str) -> Vec<(u32, bool)> {
    let desired = desired("p");
    let content = self::state(&desired).1;
    let mine = secret("7", &desired);
    let there = target(Ownership::Owned(mine.clone()));
    let (mut writes, mut seen) = (0, vec![]);
    for now in NOW..NOW + 120 {
        if state.may_write(&there, at(now)) {
            let stored = Ok(Written::Stored(secret(version, &desired)));
            let update = ended(&there, &desired, SecretAction::Update(mine.clone()), stored);
            state.record(&update, &content, &RETRY, at(now));
            writes += 1;
        }
        seen.push((writes, count(state, &content, &there, &SecretAction::Keep, now).of("pull").synced == 1));
    }
    assert!((8..=20).contains(&writes), "{writes} writes in two minutes");
    seen
}

#[tokio::test]
async fn who_keeps_changing_a_secret_is_not_fought_and_the_status_does_not_flap() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    for (second, (writes, synced)) in changed_every_second(&mut state, "8").into_iter().enumerate() {
        assert_eq!(synced, writes <= QUICK_REPAIRS, "{writes} repairs after {second} s");
    }
    // Left alone, it is as ever after a while.
    let there = target(Ownership::Owned(secret("8", &desired)));
    let later = NOW + 120 + 90;
    assert_eq!(count(&state, &content, &there, &SecretAction::Keep, later).of("pull").synced, 1);
    assert!(state.may_write(&there, at(later)));
}

#[tokio::test]
async fn who_changes_what_is_not_ours_causes_few_writes_and_is_no_rival() {
    let seen = changed_every_second(&mut state(&desired("p")).0, "7");
    assert!(seen.iter().all(|(_, synced)| *synced), "{seen:?}");
}

#[tokio::test]
async fn a_secret_that_is_deleted_again_and_again_is_created_less_and_less_often() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let gone = target(Ownership::Absent);
    let mut creations = 0;
    // Somebody deletes it every second for two minutes; each time it may be created, it is.
    for now in NOW..NOW + 120 {
        if state.may_write(&gone, at(now)) {
            let stored = Ok(Written::Stored(secret("7", &desired)));
            state.record(&ended(&gone, &desired, SecretAction::Create, stored), &content, &RETRY, at(now));
            creations += 1;
        }
    }
    assert!((8..=20).contains(&creations), "{creations} creations in two minutes");
    let counts = count(&state, &content, &gone, &SecretAction::Create, NOW + 119);
    assert_eq!((numbers(&counts), counts.failures[0].reason.as_str()), ((1, 0, 1), "Contested"));
    // Left alone, it is as ever after a while.
    let later = at(NOW + 120 + 90);
    assert!(state.may_write(&gone, later));
    let there = target(Ownership::Owned(secret("7", &desired)));
    assert_eq!(numbers(&count(&state, &content, &there, &SecretAction::Keep, later.as_second())), (1, 1, 0));
}

#[tokio::test]
async fn a_namespace_that_is_deselected_and_selected_again_and_again_is_not_contested() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let mine = secret("7", &desired);
    let gone = target(Ownership::Absent);
    let left = SecretTarget { selection: Selection::Deselected, ..target(Ownership::Owned(mine.clone())) };
    for second in 0..20 {
        let now = at(NOW + second);
        assert!(state.may_write(&gone, now), "after {second} s");
        let stored = Ok(Written::Stored(mine.clone()));
        state.record(&ended(&gone, &desired, SecretAction::Create, stored), &content, &RETRY, now);
        assert_eq!(
            numbers(&count(
                &state,
                &content,
                &target(Ownership::Owned(mine.clone())),
                &SecretAction::Keep,
                NOW + second
            )),
            (1, 1, 0)
        );
        let action = SecretAction::Delete(mine.clone());
        state.record(&ended(&left, &desired, action, Ok(Written::Deleted)), &content, &RETRY, now);
    }
    assert_eq!(state.timers(), (0, 0));
}

#[tokio::test]
async fn what_is_told_of_a_namespace_that_is_not_selected_counts_as_no_failure() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let mine = secret("7", &desired);
    let left = SecretTarget { selection: Selection::Deselected, ..target(Ownership::Owned(mine.clone())) };
    let action = SecretAction::Delete(mine);
    state.record(&ended(&left, &desired, action.clone(), Err(refused())), &content, &RETRY, at(NOW));
    let mut ledger = SyncLedger::default();
    record(&mut ledger, &state, &content, &left, &action, NOW);
    let of_none = counts(&ledger, [(&left.name, 0)]);
    assert_eq!((numbers(&of_none), of_none.failures.len()), ((0, 0, 0), 1));
    let good = SecretTarget { namespace: "b".into(), ..target(Ownership::Owned(secret("1", &desired))) };
    record(&mut ledger, &state, &content, &good, &SecretAction::Keep, NOW);
    assert_eq!(numbers(&counts(&ledger, [(&left.name, 1)])), (1, 1, 0));
}

#[tokio::test]
async fn a_new_content_is_written_at_once_whatever_became_of_the_old_one() {
    let (old, new) = (desired("p"), desired("q"));
    let (mut state, content) = state(&old);
    let there = target(Ownership::Absent);
    state.record(&ended(&there, &old, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    let next = DesiredSecrets::Alike([("pull".into(), new.clone())].into());
    state.expect(&next);
    assert!(state.may_write(&there, at(NOW)));
    // What ends late says nothing of the new one.
    state.record(&ended(&there, &old, SecretAction::Create, Err(refused())), &next, &RETRY, at(NOW));
    assert!(state.may_write(&there, at(NOW)) && state.failing.is_empty());
}

#[tokio::test]
async fn one_place_that_fails_holds_up_no_other() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let there = target(Ownership::Absent);
    state.record(&ended(&there, &desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    assert!(!state.may_write(&there, at(NOW)));
    let other = SecretTarget { namespace: "b".into(), ..there };
    assert!(state.may_write(&other, at(NOW)));
    state.begin_resync(at(NOW), |_| false);
    assert!(state.failing.is_empty(), "what is not to be written any more has not failed");
    let mutated = Ok(Written::Stored(secret("8", &self::desired("mutated"))));
    state.record(&ended(&other, &desired, SecretAction::Create, mutated), &content, &RETRY, at(NOW));
    state.begin_resync(at(NOW), |key| key.namespace == other.namespace);
    assert!(state.accepted(&other).is_some());
    state.begin_resync(at(NOW), |_| false);
    assert!(state.accepted.is_empty(), "nor is anything kept of what admission made of it");
}

#[tokio::test]
async fn what_is_new_of_one_secret_says_nothing_of_another_and_each_counts_for_itself() {
    let (old, new, kept) = (desired("p"), desired("q"), desired("r"));
    let with = |pull: &Arc<Desired>| {
        DesiredSecrets::Alike([("pull".into(), pull.clone()), ("out".into(), kept.clone())].into())
    };
    let mut state = RetryState::default();
    state.expect(&with(&old));
    let pull = target(Ownership::Absent);
    let out = SecretTarget { name: "out".into(), ..target(Ownership::Absent) };
    let content = with(&old);
    for (there, desired) in [(&pull, &old), (&out, &kept)] {
        state.record(&ended(there, desired, SecretAction::Create, Err(refused())), &content, &RETRY, at(NOW));
    }
    // What admission made of the other Secret is still known, or it would be written once more.
    let mutated = secret("8", &desired("mutated"));
    state.record(
        &ended(&out, &kept, SecretAction::Create, Ok(Written::Stored(mutated.clone()))),
        &content,
        &RETRY,
        at(NOW),
    );
    state.expect(&with(&new));
    assert!(state.may_write(&pull, at(NOW)), "it is another content");
    assert_eq!(state.accepted(&out), Some(mutated.digest));
    let mut ledger = SyncLedger::default();
    record(&mut ledger, &state, &with(&new), &out, &SecretAction::Keep, NOW);
    let problem = Some((Reason::OutputNotAllowed, "no".to_owned()));
    ledger.record(SecretKey::new("out", "b"), SyncState { selected: true, problem, ..SyncState::default() });
    let counts = counts(&ledger, [(&"out".into(), 2)]);
    let TargetCounts { selected, synced, failed, .. } = counts.of("out");
    assert_eq!((selected, synced, failed, numbers(&counts)), (2, 1, 1, (0, 0, 0)));
    let failure = &counts.failures[0];
    assert_eq!((failure.namespace.as_str(), failure.secret.as_deref()), ("b", Some("out")));
}

fn sealed() -> WriteError {
    WriteError::Unchangeable(Reason::Immutable, "it is immutable, and a finalizer holds it".to_owned())
}

/// Plays a tenant that changes a Secret again and again, whose every write is refused. Between two changes nothing is to be written if
/// it `pretends` that the Secret is as desired. Returns how many writes there were in two minutes.
fn refusals_while_it_changes(wait: Duration, pretends: bool, refusal: &WriteError) -> usize {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let mut writes = 0;
    let mut now = at(NOW);
    for version in 0.. {
        if now >= at(NOW + 120) {
            break;
        }
        let mine = secret(&version.to_string(), &desired);
        let there = target(Ownership::Owned(mine.clone()));
        if state.may_write(&there, now) {
            let refused = ended(&there, &desired, SecretAction::Update(mine), Err(refusal.clone()));
            state.record(&refused, &content, &RETRY, now);
            writes += 1;
        }
        if pretends {
            state.forget_failure(&there.key(), true, now);
        }
        now = later(now, wait);
    }
    writes
}

#[tokio::test]
async fn who_keeps_changing_a_secret_that_cannot_be_written_does_not_cause_a_write_each_time() {
    let table = [
        ("each second", Duration::from_secs(1), false, sealed()),
        ("50 times a second", Duration::from_millis(20), false, sealed()),
        ("50 times a second, and back in between", Duration::from_millis(20), true, sealed()),
        ("before each write", Duration::from_millis(20), false, WriteError::Stale),
    ];
    for (what, wait, pretends, refusal) in table {
        let writes = refusals_while_it_changes(wait, pretends, &refusal);
        assert!((5..=20).contains(&writes), "{what}: {writes} writes in two minutes");
    }
}

#[tokio::test]
async fn what_a_user_does_about_a_refusal_takes_effect_at_once() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let there = target(Ownership::Owned(secret("1", &desired)));
    let action = SecretAction::Update(secret("1", &desired));
    // Refused for an hour, with longer and longer waits.
    let mut now = NOW;
    while now < NOW + 3600 {
        state.record(&ended(&there, &desired, action.clone(), Err(sealed())), &content, &RETRY, at(now));
        now = state.retry_at().unwrap().as_second() + 1;
        state.unexamined(at(now));
    }
    state.record(&ended(&there, &desired, action.clone(), Err(sealed())), &content, &RETRY, at(now));
    assert!(!state.may_write(&there, at(now + 1)), "it is as it was");
    let repaired = target(Ownership::Owned(secret("2", &desired)));
    assert!(state.may_write(&repaired, at(now + 1)), "the finalizer was removed");
    // Others may have changed the Secret a few times before.
    for version in 3..6 {
        let there = target(Ownership::Owned(secret(&version.to_string(), &desired)));
        assert!(state.may_write(&there, at(now + 1)));
        state.record(&ended(&there, &desired, action.clone(), Err(sealed())), &content, &RETRY, at(now + 1));
    }
    let repaired = target(Ownership::Owned(secret("6", &desired)));
    assert!(state.may_write(&repaired, at(now + 2)));
    // Once it has been written, it is as desired, and nobody has to wait for peace.
    assert_eq!(numbers(&count(&state, &content, &repaired, &SecretAction::Keep, now + 2)), (1, 1, 0));
}

#[tokio::test]
async fn a_secret_that_is_changed_all_the_time_is_written_soon_after_it_can_be() {
    let desired = desired("p");
    let (mut state, content) = state(&desired);
    let mut now = NOW;
    for version in 0..600 {
        let mine = secret(&version.to_string(), &desired);
        let there = target(Ownership::Owned(mine.clone()));
        if state.may_write(&there, at(now)) {
            let refused = ended(&there, &desired, SecretAction::Update(mine), Err(sealed()));
            state.record(&refused, &content, &RETRY, at(now));
        }
        state.schedule(&there.key(), false, at(now));
        state.unexamined(at(now));
        now += 1;
    }
    // The last change: a timer brings it back, and none that is over goes off again and again.
    let there = target(Ownership::Owned(secret("last", &desired)));
    let mut looks = 0;
    while !state.may_write(&there, at(now)) {
        state.schedule(&there.key(), false, at(now));
        let next = state.retry_at().unwrap();
        assert!(next > at(now), "a timer that is over");
        now = next.as_second() + 1;
        state.unexamined(at(now));
        looks += 1;
    }
    assert!(now <= NOW + 600 + 32 && looks <= 40, "{looks} looks in {} s", now - NOW - 600);
    // It is refused once more, and left alone: the repairs wait no longer, and the failure does.
    let action = SecretAction::Update(secret("last", &desired));
    state.record(&ended(&there, &desired, action, Err(sealed())), &content, &RETRY, at(now));
    now += 40;
    state.unexamined(at(now));
    assert!(!state.may_write(&there, at(now)));
    state.schedule(&there.key(), false, at(now));
    assert!(state.retry_at().unwrap() > at(now), "a timer that is over");
}
