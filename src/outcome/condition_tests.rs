//! What the conditions say, and what namespaces are told.

use super::tests::{HOUR, NOW, at, told};
use super::*;

fn failure(namespace: &str, reason: &str) -> NamespaceFailure {
    NamespaceFailure { reason: reason.to_owned(), ..tests::failure(namespace, "what to do") }
}

/// With one registry that has a good token.
fn ran(namespaces: NamespaceReport, failure: Option<SpecError>) -> Observation {
    let registry = RegistryReport { failure, ..tests::registry(Some(NOW + HOUR), None) };
    let mut observation = tests::ran(vec![registry], namespaces, None);
    if let Observation::Ran(report) = &mut observation {
        report.next_refresh_at = Some(at(NOW + 1800));
    }
    observation
}

/// Of `selected` namespaces all are synced but those that fail.
fn namespaces(selected: usize, failures: Vec<NamespaceFailure>) -> NamespaceReport {
    tests::namespaces(selected, selected - failures.len(), failures)
}

fn concluded(observation: Observation, previous: &EcrCredentialStatus) -> Outcome {
    told(observation, previous, NOW)
}

/// Each condition as `Type=Status Reason`.
fn conditions_of(outcome: &Outcome) -> Vec<String> {
    let conditions = outcome.status.conditions.iter();
    conditions.map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

#[test]
fn no_condition_says_that_all_is_well_while_it_is_not_ready() {
    let error = |reason| SpecError { reason, message: String::new() };
    let invalid = Observation::Stalled(error(Reason::InvalidSpec));
    let failing = ran(namespaces(2, vec![failure("a", "QuotaExceeded")]), None);
    let table = [
        (ran(namespaces(1, vec![]), None), ["Ready=True Synced", "Reconciling=False Synced", "Stalled=False Synced"]),
        (
            ran(namespaces(0, vec![]), None),
            ["Ready=True NoNamespaces", "Reconciling=False NoNamespaces", "Stalled=False NoNamespaces"],
        ),
        (Observation::Suspended, ["Ready=False Suspended", "Reconciling=False Suspended", "Stalled=False Suspended"]),
        (invalid, ["Ready=False InvalidSpec", "Reconciling=False InvalidSpec", "Stalled=True InvalidSpec"]),
        (
            failing,
            ["Ready=False NamespacesFailed", "Reconciling=True NamespacesFailed", "Stalled=False NamespacesFailed"],
        ),
        (
            ran(namespaces(1, vec![]), Some(error(Reason::AccessDenied))),
            ["Ready=True Synced", "Reconciling=True AccessDenied", "Stalled=False Synced"],
        ),
    ];
    for (observation, expected) in table {
        assert_eq!(conditions_of(&concluded(observation, &EcrCredentialStatus::default())), expected);
    }
}

#[test]
fn whoever_is_suspended_or_stalled_tells_of_no_next_refresh_and_of_no_namespaces() {
    let failing = concluded(ran(namespaces(2, vec![failure("a", "QuotaExceeded")]), None), &Default::default()).status;
    assert!(failing.next_refresh_at.is_some() && failing.namespaces.is_some() && failing.failures.len() == 1);
    let suspended = concluded(Observation::Suspended, &failing).status;
    assert_eq!((suspended.next_refresh_at, suspended.namespaces, suspended.failures.len()), (None, None, 0));
    // By the hashes there the tokens are known again, and they do expire.
    assert_eq!((suspended.registries, suspended.expires_at), (failing.registries.clone(), failing.expires_at));
    let error = SpecError { reason: Reason::InvalidSpec, message: String::new() };
    let stalled = concluded(Observation::Stalled(error), &failing).status;
    assert_eq!((stalled.next_refresh_at, stalled.namespaces, stalled.failures.len()), (None, None, 0));
    assert_eq!((stalled.registries, stalled.expires_at), (failing.registries.clone(), failing.expires_at));
    // All that is selected is out of reach.
    let unselected = Unselected { not_allowed: vec!["x".to_owned()], ..Unselected::default() };
    let beyond = ran(NamespaceReport { unselected, ..NamespaceReport::default() }, None);
    assert_eq!(concluded(beyond, &failing).status.namespaces, None);
}

#[test]
fn what_the_selection_does_not_reach_is_told() {
    let unselected = |not_allowed: &[&str], missing: &[&str], selector| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Unselected { not_allowed: owned(not_allowed), missing: owned(missing), unmatched: Vec::new(), selector }
    };
    let table = [
        (1, unselected(&[], &[], false), "Ready=True Synced", "False", "for every registry"),
        (1, unselected(&[], &["b"], false), "Ready=True Synced", "False", "there is no namespace b"),
        (0, unselected(&[], &["b"], false), "Ready=True NoNamespaces", "False", "there is no namespace b"),
        (0, unselected(&[], &[], true), "Ready=True NoNamespaces", "False", "spec.namespaces.selector"),
        // Nothing happens there before somebody changes something.
        (
            0,
            unselected(&["b"], &[], false),
            "Ready=False NamespaceNotAllowed",
            "True",
            "not allowed to write in namespace b",
        ),
        (
            1,
            unselected(&["b"], &["c"], false),
            "Ready=False NamespaceNotAllowed",
            "False",
            "not allowed to write in namespace b",
        ),
    ];
    for (selected, unselected, ready, stalled, words) in table {
        let report = NamespaceReport { unselected, ..namespaces(selected, vec![]) };
        let outcome = concluded(ran(report, None), &Default::default());
        assert_eq!(conditions_of(&outcome)[0], ready, "{words}");
        let message = &outcome.status.conditions[0].message;
        assert!(message.ends_with(words) || message.contains(words), "{message}");
        assert_eq!(outcome.status.conditions[2].status, stalled, "{words}");
    }
}

#[test]
fn namespaces_are_told_when_they_begin_to_fail_and_when_they_do_no_more() {
    let run = |failures: &[(&str, &str)], previous: &EcrCredentialStatus| {
        let failures: Vec<_> = failures.iter().map(|(namespace, reason)| failure(namespace, reason)).collect();
        let outcome = concluded(ran(namespaces(50, failures), None), previous);
        let events = outcome.events.iter().filter_map(|event| Some((event.namespace.clone()?, event.warning)));
        (events.collect::<Vec<_>>(), outcome.status)
    };
    let told = |namespace: &str, warning| vec![(namespace.to_owned(), warning)];
    let (events, status) = run(&[("a", "QuotaExceeded")], &Default::default());
    assert_eq!(events, told("a", true));
    let (events, status) = run(&[("a", "QuotaExceeded")], &status);
    assert_eq!(events, [], "an Event tells a change");
    let (events, status) = run(&[("a", "AdmissionRefused")], &status);
    assert_eq!(events, told("a", true), "it fails in another way");
    let (events, status) = run(&[], &status);
    assert_eq!(events, told("a", false));
    let (events, _) = run(&[], &status);
    assert_eq!(events, []);
    // Each is about the Secret that fails.
    let of_output = NamespaceFailure { secret: Some("argocd".to_owned()), ..failure("a", "QuotaExceeded") };
    let failing = concluded(ran(namespaces(50, vec![of_output]), None), &status);
    let over = concluded(ran(namespaces(50, vec![]), None), &failing.status);
    for (outcome, warning) in [(failing, true), (over, false)] {
        let about = outcome.events.iter().find(|event| event.namespace.is_some());
        assert_eq!(about.map(|event| (event.warning, event.secret.as_deref())), Some((warning, Some("argocd"))));
    }
    // No more than a status tells of; who is only not told of any more has not recovered.
    let names: Vec<String> = (0..40).map(|n| format!("n{n:02}")).collect();
    let late: Vec<_> = names[20..].iter().map(|name| (name.as_str(), "QuotaExceeded")).collect();
    let (events, status) = run(&late, &Default::default());
    assert_eq!(events.len(), MAX_FAILURES);
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), "QuotaExceeded")).collect();
    let (events, _) = run(&all, &status);
    assert_eq!(events.len(), MAX_FAILURES);
    assert!(events.iter().all(|(namespace, warning)| *warning && namespace.as_str() < "n20"), "{events:?}");
}
