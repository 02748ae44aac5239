//! I18 and I20, judged over the whole run and not at its end: no loop without progress, no status that flaps, no counter that cannot be.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::evidence::Evidence;
use crate::history::{Kind, Version};
use crate::{Invariant, Violation};

/// So many mutating requests for one object within [`WINDOW`] are a loop: with waits of 200 ms that double up to 2 s, as the tests
/// set them, a write that fails again and again is sent about ten times.
const MOST_REQUESTS: usize = 30;
const WINDOW: SignedDuration = SignedDuration::from_secs(10);

/// So many changes of `Ready` for one generation within [`FLAPPING`] are no states that anyone could act on.
const MOST_CHANGES: usize = 7;
const FLAPPING: SignedDuration = SignedDuration::from_secs(60);

/// I18: the operator does not send request after request for one object.
pub(super) fn no_loop(evidence: &Evidence) -> Vec<Violation> {
    let mut times: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for request in evidence.requests.iter().filter(|request| request.is_mutation() && !request.target.name.is_empty()) {
        times.entry(request.path.clone()).or_default().push(request.started);
    }
    let loops = times.into_iter().filter_map(|(path, times)| Some((path, crowd(times, MOST_REQUESTS, WINDOW)?)));
    loops
        .map(|(path, at)| {
            let detail = format!("more than {MOST_REQUESTS} changes of one object were sent within {WINDOW:#}");
            Violation::new(Invariant::I18Neighbours, path, at, detail)
        })
        .collect()
}

/// I20: `Ready` does not flap while nobody changes the spec.
pub(super) fn no_flapping(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::Credential) {
        let mut changes: BTreeMap<(String, i64), Vec<Timestamp>> = BTreeMap::new();
        for (previous, version) in versions.iter().zip(versions.iter().skip(1)) {
            let same = previous.uid() == version.uid() && previous.generation() == version.generation();
            if same && !version.deleted && ready(previous).is_some() && ready(previous) != ready(version) {
                changes.entry((version.uid().to_owned(), version.generation())).or_default().push(version.at);
            }
        }
        let flaps = changes.into_values().filter_map(|times| crowd(times, MOST_CHANGES, FLAPPING));
        let detail = format!("Ready changed more than {MOST_CHANGES} times within {FLAPPING:#}, and the spec did not");
        violations.extend(flaps.map(|at| Violation::new(Invariant::I20TrueWords, key.about(), at, detail.clone())));
    }
    violations
}

/// I20: the counters are of selected namespaces: none is more than all.
pub(super) fn counters(evidence: &Evidence) -> Vec<Violation> {
    let statuses = evidence.history.versions_of_kind(Kind::Credential);
    let wrong = statuses.filter_map(|(key, version)| {
        let status = &version.object["status"];
        let outputs = status["outputs"].as_array().into_iter().flatten();
        let detail = std::iter::once(&status["namespaces"]).chain(outputs).find_map(miscounted)?;
        Some(Violation::new(Invariant::I20TrueWords, key.about(), version.at, detail))
    });
    wrong.collect()
}

fn miscounted(counters: &Value) -> Option<String> {
    let count = |name: &str| counters[name].as_i64();
    let (selected, synced, failed) = (count("selected")?, count("synced")?, count("failed")?);
    let right = synced >= 0 && failed >= 0 && synced + failed <= selected;
    (!right).then(|| format!("{synced} namespaces synced and {failed} failed, of {selected} selected"))
}

fn ready(version: &Version) -> Option<&str> {
    let conditions = version.object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready")?["status"].as_str()
}

/// The first time at which more than `most` of the times lie within one window.
pub(super) fn crowd(mut times: Vec<Timestamp>, most: usize, window: SignedDuration) -> Option<Timestamp> {
    times.sort();
    let ends = times.iter().zip(times.iter().skip(most));
    ends.filter(|(first, last)| last.duration_since(**first) <= window).map(|(_, last)| *last).next()
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::fixture::{Story, ready_credential, secret, start};

    #[test]
    fn a_loop_without_progress_is_found_and_patience_is_not() {
        let send = |story: Story| story.operator_sends(Method::DELETE, "/api/v1/namespaces/a/secrets/pull", json!({}));
        let mut evidence = (0..=MOST_REQUESTS).fold(Story::new(), |story, _| send(story)).evidence();
        for (number, request) in (0_i64..).zip(&mut evidence.requests) {
            request.started = start() + SignedDuration::from_secs(number);
        }
        assert_eq!(no_loop(&evidence), [], "one a second");
        for request in &mut evidence.requests {
            request.started = start();
        }
        assert_eq!(no_loop(&evidence).len(), 1);
    }

    #[test]
    fn many_objects_are_no_loop() {
        let many = (0..100).fold(Story::new(), |story, n| {
            story.operator_sends(Method::PATCH, &format!("/api/v1/namespaces/n{n}/secrets/pull"), json!({}))
        });
        assert_eq!(no_loop(&many.evidence()), []);
    }

    #[test]
    fn a_condition_that_flaps_is_found() {
        let turn = |story: Story, n: usize| {
            let mut credential = ready_credential();
            credential["status"]["conditions"][0]["status"] = json!(if n.is_multiple_of(2) { "True" } else { "False" });
            story.credential(credential)
        };
        let fast = (0..12).fold(Story::new(), |story, n| turn(story, n).passes(3));
        assert_eq!(no_flapping(&fast.evidence()).len(), 1);
        // As a Secret was once told of that somebody else kept changing.
        let every = |story: Story, n| turn(story, n).passes(if n.is_multiple_of(3) { 6 } else { 7 });
        assert_eq!(no_flapping(&(0..=13).fold(Story::new(), every).evidence()).len(), 1, "13 times in 100 s");
        let slow = (0..12).fold(Story::new(), |story, n| turn(story, n).passes(30));
        assert_eq!(no_flapping(&slow.evidence()), []);
    }

    #[test]
    fn counters_that_cannot_be_are_found() {
        for (selected, synced, failed, right) in
            [(2, 2, 0, true), (2, 1, 1, true), (3, 1, 1, true), (0, 0, 1, false), (2, 2, 1, false)]
        {
            let mut credential = ready_credential();
            credential["status"]["namespaces"] = json!({ "selected": selected, "synced": synced, "failed": failed });
            let story = Story::new().operator_writes(secret()).credential(credential);
            assert_eq!(counters(&story.evidence()).is_empty(), right, "{selected} {synced} {failed}");
        }
    }
}
