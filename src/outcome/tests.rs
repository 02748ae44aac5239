//! What is said of results: counters, conditions, Events, sizes, and when to look again.

use super::*;
use crate::api::registry::Region;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const NOW: i64 = 1_000_000;
const HOUR: i64 = 3600;

fn registry(expires: Option<i64>, failure: Option<Reason>) -> RegistryReport {
    RegistryReport {
        region: Some(Region::parse("eu-west-1").unwrap()),
        hosts: vec![Host::parse("111122223333.dkr.ecr.eu-west-1.amazonaws.com").unwrap()],
        life: expires.map(|expires| Life { issued_at: at(NOW - HOUR), expires_at: at(expires) }),
        hash: None,
        auth_hash: None,
        problem: None,
        failure: failure.map(|reason| Halt { reason, message: "AWS said no".to_owned() }),
        each_targets: false,
    }
}

fn failure(namespace: &str, message: &str) -> NamespaceFailure {
    let (namespace, message) = (namespace.to_owned(), message.to_owned());
    NamespaceFailure { namespace, reason: "AdmissionRefused".to_owned(), message }
}

fn namespaces(selected: usize, synced: usize, failures: Vec<NamespaceFailure>) -> NamespaceReport {
    let failed = failures.len();
    NamespaceReport { selected, synced, failed, failures, unselected: Box::default() }
}

fn ran(registries: Vec<RegistryReport>, namespaces: NamespaceReport, look_again: Option<i64>) -> Course {
    Course::Ran {
        registries,
        namespaces,
        next_refresh_at: None,
        look_again: look_again.map(at),
        handled_refresh_request: None,
        attached: None,
    }
}

fn told(course: Course, previous: &EcrCredentialStatus, now: i64) -> Outcome {
    conclude(course, previous, Some(1), at(now))
}

fn condition(status: &EcrCredentialStatus, type_: &str) -> (String, String, i64) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone(), found.last_transition_time.0.as_second())
}

#[test]
fn ready_says_that_every_selected_namespace_has_a_valid_password() {
    let good = || registry(Some(NOW + HOUR), None);
    let dead = || registry(Some(NOW - 1), Some(Reason::AwsUnavailable));
    for (what, course, ready, reason) in [
        ("all is well", ran(vec![good()], namespaces(2, 2, vec![]), None), "True", "Synced"),
        ("none is selected", ran(vec![good()], namespaces(0, 0, vec![]), None), "True", "NoNamespaces"),
        ("one fails", ran(vec![good()], namespaces(2, 1, vec![failure("a", "no")]), None), "False", "NamespacesFailed"),
        ("one lacks it", ran(vec![good()], namespaces(2, 1, vec![]), None), "False", "NamespacesFailed"),
        (
            "a password has expired",
            ran(vec![good(), dead()], namespaces(2, 2, vec![]), None),
            "False",
            "AwsUnavailable",
        ),
        (
            "there is none yet",
            ran(vec![registry(None, None)], namespaces(1, 0, vec![]), None),
            "False",
            "FetchingToken",
        ),
        ("it is suspended", Course::Suspended, "False", "Suspended"),
        (
            "a refresh fails and the password is good",
            ran(vec![registry(Some(NOW + HOUR), Some(Reason::Throttled))], namespaces(1, 1, vec![]), None),
            "True",
            "Synced",
        ),
    ] {
        let outcome = told(course, &EcrCredentialStatus::default(), NOW);
        let (status, because, _) = condition(&outcome.status, condition::READY);
        assert_eq!((&*status, &*because), (ready, reason), "{what}");
    }
}

#[test]
fn the_time_of_a_transition_moves_with_the_status_alone() {
    let course = |synced, why: &str| {
        let failures = if synced == 2 { vec![] } else { vec![failure("a", why)] };
        ran(vec![registry(Some(NOW + HOUR), None)], namespaces(2, synced, failures), None)
    };
    let first = told(course(2, ""), &EcrCredentialStatus::default(), NOW).status;
    let second = told(course(1, "no"), &first, NOW + 10).status;
    let third = told(course(1, "still no"), &second, NOW + 20).status;
    let times = [&first, &second, &third].map(|status| condition(status, condition::READY).2);
    assert_eq!(times, [NOW, NOW + 10, NOW + 10]);
    assert_eq!(condition(&third, condition::STALLED).2, NOW);
}

#[test]
fn an_event_tells_a_change_and_no_state() {
    let failing = || ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 0, vec![failure("a", "no")]), None);
    let first = told(failing(), &EcrCredentialStatus::default(), NOW);
    let reasons = |outcome: &Outcome| outcome.notes.iter().map(|note| note.reason.clone()).collect::<Vec<_>>();
    assert_eq!(reasons(&first), ["Refreshed", "NamespacesFailed", "AdmissionRefused"]);
    assert!(reasons(&told(failing(), &first.status, NOW + 1)).is_empty());
    let well = ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 1, vec![]), None);
    assert_eq!(reasons(&told(well, &first.status, NOW + 2)), ["Synced", "Synced"]);
}

#[test]
fn a_status_stays_small_whatever_others_say() {
    let failures = (0..200).map(|n| failure(&format!("n{n:03}"), &"x".repeat(5000))).collect();
    let outcome = told(
        ran(vec![registry(Some(NOW + HOUR), None)], namespaces(200, 0, failures), None),
        &EcrCredentialStatus::default(),
        NOW,
    );
    assert!(serde_json::to_vec(&outcome.status).unwrap().len() <= LARGEST_STATUS);
    assert!(outcome.status.failures.len() <= MAX_FAILURES && outcome.status.namespaces.unwrap().failed == 200);
    assert!(outcome.notes.iter().all(|note| note.message.len() <= 1024));
}

#[test]
fn the_next_look_is_when_something_is_due_and_within_a_minute() {
    for (due, seconds) in [(None, 60.0), (Some(NOW + 5), 5.0), (Some(NOW + HOUR), 60.0), (Some(NOW - 5), 0.1)] {
        let course = ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 1, vec![]), due);
        let outcome = told(course, &EcrCredentialStatus::default(), NOW);
        assert!((outcome.requeue_after.as_secs_f64() - seconds).abs() < 0.001, "{due:?}: {:?}", outcome.requeue_after);
    }
}
