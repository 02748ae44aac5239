//! What is said of results: counters, conditions, Events, sizes, and when to look again.

use super::*;
use crate::api::registry::Region;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) const NOW: i64 = 1_000_000;
pub(super) const HOUR: i64 = 3600;

pub(super) fn registry(expires: Option<i64>, failure: Option<Reason>) -> RegistryReport {
    RegistryReport {
        region: Some(Region::parse("eu-west-1").unwrap()),
        hosts: vec![Host::parse("111122223333.dkr.ecr.eu-west-1.amazonaws.com").unwrap()],
        life: expires.map(|expires| Life { issued_at: at(NOW - HOUR), expires_at: at(expires) }),
        hash: None,
        auth_hash: None,
        problem: None,
        failure: failure.map(|reason| SpecError { reason, message: "AWS said no".to_owned() }),
        each_targets: false,
    }
}

pub(super) fn failure(namespace: &str, message: &str) -> NamespaceFailure {
    let (namespace, message) = (namespace.to_owned(), message.to_owned());
    NamespaceFailure { namespace, secret: None, reason: "AdmissionRefused".to_owned(), message }
}

pub(super) fn namespaces(selected: usize, synced: usize, failures: Vec<NamespaceFailure>) -> NamespaceReport {
    let of_pull_secret = failures.iter().filter(|failure| failure.secret.is_none());
    let first_failure = of_pull_secret.min_by(|a, b| a.namespace.cmp(&b.namespace)).cloned();
    let (failed, unselected) = (failures.len(), Unselected::default());
    NamespaceReport {
        counts: TargetCounts { selected, synced, failed, fetching: 0, first_failure },
        failures,
        unselected,
    }
}

pub(super) fn ran(
    registries: Vec<RegistryReport>,
    namespaces: NamespaceReport,
    look_again: Option<i64>,
) -> Observation {
    let look_again = look_again.map(at);
    Observation::Ran(Box::new(Report { registries, namespaces, look_again, ..Report::default() }))
}

pub(super) fn told(observation: Observation, previous: &EcrCredentialStatus, now: i64) -> Outcome {
    conclude(observation, previous, Some(1), at(now))
}

fn condition(status: &EcrCredentialStatus, type_: &str) -> (String, String, i64) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone(), found.last_transition_time.0.as_second())
}

#[test]
fn ready_says_that_every_target_namespace_has_a_valid_token() {
    let good = || registry(Some(NOW + HOUR), None);
    let dead = || registry(Some(NOW - 1), Some(Reason::AwsUnavailable));
    let each = || RegistryReport { each_targets: true, ..good() };
    let counts = TargetCounts { selected: 2, synced: 1, fetching: 1, ..TargetCounts::default() };
    let waiting = NamespaceReport { counts, ..NamespaceReport::default() };
    let beside_failing = || NamespaceReport { failures: vec![failure("a", "its refresh fails")], ..waiting.clone() };
    for (what, observation, ready, reason) in [
        ("all is well", ran(vec![good()], namespaces(2, 2, vec![]), None), "True", "Synced"),
        ("none is selected", ran(vec![good()], namespaces(0, 0, vec![]), None), "True", "NoNamespaces"),
        ("one fails", ran(vec![good()], namespaces(2, 1, vec![failure("a", "no")]), None), "False", "NamespacesFailed"),
        ("one lacks it", ran(vec![good()], namespaces(2, 1, vec![]), None), "False", "NamespacesFailed"),
        ("a token has expired", ran(vec![good(), dead()], namespaces(2, 2, vec![]), None), "False", "AwsUnavailable"),
        (
            "there is none yet",
            ran(vec![registry(None, None)], namespaces(1, 0, vec![]), None),
            "False",
            "FetchingToken",
        ),
        ("one waits for its own token", ran(vec![each()], waiting.clone(), None), "False", "FetchingToken"),
        (
            "one waits beside one whose refresh fails",
            ran(vec![each()], beside_failing(), None),
            "False",
            "FetchingToken",
        ),
        ("one is to be written", ran(vec![each()], namespaces(2, 1, vec![]), None), "False", "NamespacesFailed"),
        ("it is suspended", Observation::Suspended, "False", "Suspended"),
        (
            "a refresh fails and the token is valid",
            ran(vec![registry(Some(NOW + HOUR), Some(Reason::Throttled))], namespaces(1, 1, vec![]), None),
            "True",
            "Synced",
        ),
    ] {
        let outcome = told(observation, &EcrCredentialStatus::default(), NOW);
        let (status, because, _) = condition(&outcome.status, condition::READY);
        assert_eq!((&*status, &*because), (ready, reason), "{what}");
    }
}

#[test]
fn an_include_that_fails_explains_secrets_that_wait_for_it() {
    let good = || registry(Some(NOW + HOUR), None);
    let denied = || registry(Some(NOW + HOUR), Some(Reason::AccessDenied));
    for (what, registry, namespaces, reason) in [
        ("all are synced", good(), namespaces(2, 2, vec![]), "IncludeFailed"),
        ("all wait", good(), namespaces(2, 0, vec![]), "IncludeFailed"),
        ("a write has failed", good(), namespaces(2, 0, vec![failure("a", "no")]), "NamespacesFailed"),
        ("a registry fails as well", denied(), namespaces(2, 0, vec![]), "AccessDenied"),
    ] {
        let why = SpecError { reason: Reason::IncludeFailed, message: "ops/hub does not exist".to_owned() };
        let report = Report { registries: vec![registry], namespaces, ..Report::default() };
        let report = Report { include_failure: Some(why), ..report };
        let outcome = told(Observation::Ran(Box::new(report)), &EcrCredentialStatus::default(), NOW);
        let (status, because, _) = condition(&outcome.status, condition::RECONCILING);
        assert_eq!((&*status, &*because), ("True", reason), "{what}");
    }
}

#[test]
fn the_time_of_a_transition_moves_with_the_status_alone() {
    let observation = |synced, why: &str| {
        let failures = if synced == 2 { vec![] } else { vec![failure("a", why)] };
        ran(vec![registry(Some(NOW + HOUR), None)], namespaces(2, synced, failures), None)
    };
    let first = told(observation(2, ""), &EcrCredentialStatus::default(), NOW).status;
    let second = told(observation(1, "no"), &first, NOW + 10).status;
    let third = told(observation(1, "still no"), &second, NOW + 20).status;
    let times = [&first, &second, &third].map(|status| condition(status, condition::READY).2);
    assert_eq!(times, [NOW, NOW + 10, NOW + 10]);
    assert_eq!(condition(&third, condition::STALLED).2, NOW);
}

#[test]
fn an_outcome_repeats_a_status_whatever_the_time_unless_it_says_something_else() {
    let observation = |synced, why: &str| {
        let failures = if synced == 2 { vec![] } else { vec![failure("a", why)] };
        ran(vec![registry(Some(NOW + HOUR), None)], namespaces(2, synced, failures), None)
    };
    let written = told(observation(2, ""), &EcrCredentialStatus::default(), NOW).status;
    let tried = told(observation(1, "no"), &written, NOW + 10).status;
    let attached = |mut outcome: Outcome| {
        let condition = outcome.status.conditions[0].clone();
        outcome.status.conditions.push(Condition { type_: condition::ATTACHED.to_owned(), ..condition });
        outcome
    };
    for (what, outcome, repeats) in [
        ("the same later", told(observation(1, "no"), &written, NOW + 20), true),
        ("another message", told(observation(1, "still no"), &written, NOW + 20), false),
        ("it is well again", told(observation(2, ""), &written, NOW + 20), false),
        ("one condition more", attached(told(observation(1, "no"), &written, NOW + 20)), false),
    ] {
        assert_eq!(outcome.repeats(&tried), repeats, "{what}");
    }
}

#[test]
fn an_event_tells_a_change_and_no_state() {
    let failing = || ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 0, vec![failure("a", "no")]), None);
    let first = told(failing(), &EcrCredentialStatus::default(), NOW);
    let reasons = |outcome: &Outcome| outcome.events.iter().map(|event| event.reason.clone()).collect::<Vec<_>>();
    assert_eq!(reasons(&first), ["Refreshed", "NamespacesFailed", "AdmissionRefused"]);
    assert!(reasons(&told(failing(), &first.status, NOW + 1)).is_empty());
    let well = || ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 1, vec![]), None);
    let second = told(well(), &first.status, NOW + 2);
    assert_eq!(reasons(&second), ["Synced", "Synced"]);
    assert!(reasons(&told(well(), &second.status, NOW + 3)).is_empty());
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
    assert!(outcome.events.iter().all(|event| event.message.len() <= 1024));
}

#[test]
fn the_next_look_is_when_something_is_due_and_within_a_minute() {
    for (due, seconds) in [(None, 60.0), (Some(NOW + 5), 5.0), (Some(NOW + HOUR), 60.0), (Some(NOW - 5), 0.1)] {
        let observation = ran(vec![registry(Some(NOW + HOUR), None)], namespaces(1, 1, vec![]), due);
        let outcome = told(observation, &EcrCredentialStatus::default(), NOW);
        assert!((outcome.requeue_after.as_secs_f64() - seconds).abs() < 0.001, "{due:?}: {:?}", outcome.requeue_after);
    }
}

#[test]
fn ready_says_that_every_output_is_there_as_well_and_what_one_lacks() {
    let of_output = NamespaceFailure { secret: Some("argocd".to_owned()), ..failure("b", "every Secret needs a team") };
    let output = |selected, synced, refusal: Option<Reason>| OutputReport {
        name: "argocd".into(),
        format: OutputFormat::ArgoCDHelm,
        counts: TargetCounts {
            selected,
            synced,
            failed: selected - synced,
            first_failure: (synced < selected).then(|| of_output.clone()),
            ..TargetCounts::default()
        },
        refusal: refusal.map(|reason| SpecError { reason, message: "add it to outputs".to_owned() }),
    };
    let table = [
        ("all there", namespaces(2, 2, vec![]), output(2, 2, None), ("True", "Synced"), "every target"),
        ("only the output is asked for", namespaces(0, 0, vec![]), output(1, 1, None), ("True", "Synced"), "every"),
        ("nothing is", namespaces(0, 0, vec![]), output(0, 0, None), ("True", "NoNamespaces"), "no namespace"),
        (
            "the output is missing",
            namespaces(2, 2, vec![of_output.clone()]),
            output(2, 1, None),
            ("False", "NamespacesFailed"),
            "1 of 2 namespaces lack the output argocd; first failure: b: AdmissionRefused: every Secret needs a team",
        ),
        (
            "both are: the pull secret comes first",
            namespaces(2, 1, vec![of_output.clone(), failure("c", "no")]),
            output(2, 1, None),
            ("False", "NamespacesFailed"),
            "1 of 2 namespaces lack an up-to-date Secret; first failure: c",
        ),
        (
            "the output is not allowed, wherever it is",
            namespaces(2, 2, vec![]),
            output(0, 0, Some(Reason::OutputNotAllowed)),
            ("False", "OutputNotAllowed"),
            "add it to outputs",
        ),
    ];
    for (what, namespaces, output, (status, reason), says) in table {
        let (registries, outputs) = (vec![registry(Some(NOW + HOUR), None)], vec![output.clone()]);
        let observation = Observation::Ran(Box::new(Report { registries, namespaces, outputs, ..Report::default() }));
        let told = told(observation, &EcrCredentialStatus::default(), NOW).status;
        let found = condition(&told, "Ready");
        assert_eq!((found.0.as_str(), found.1.as_str()), (status, reason), "{what}");
        let message = &told.conditions[0].message;
        assert!(message.contains(says), "{what}: {message}");
        assert_eq!(told.outputs[0].reason.as_deref(), output.refusal.map(|error| error.reason.as_str()), "{what}");
        assert_eq!(
            (told.outputs[0].format.as_str(), told.outputs[0].synced),
            ("ArgoCDHelm", output.counts.synced as u32)
        );
    }
}

#[test]
fn an_include_that_is_not_current_is_told_of_and_takes_no_readiness() {
    let observation = Observation::Ran(Box::new(Report {
        registries: vec![registry(Some(NOW + HOUR), None)],
        namespaces: namespaces(1, 1, vec![]),
        include_failure: Some(SpecError {
            reason: Reason::IncludeFailed,
            message: "ops/hub does not exist".to_owned(),
        }),
        ..Report::default()
    }));
    let outcome = told(observation, &EcrCredentialStatus::default(), NOW);
    let holds = |type_: &str| condition(&outcome.status, type_);
    assert_eq!((holds("Ready").0, holds("Reconciling").0), ("True".to_owned(), "True".to_owned()));
    assert_eq!(holds("Reconciling").1, "IncludeFailed");
    assert!(outcome.events.iter().any(|event| event.warning && event.message.contains("ops/hub")));
}
