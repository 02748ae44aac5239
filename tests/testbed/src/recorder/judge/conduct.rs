//! I6, I7, I9, I10, I12 and I14, judged over the whole run by what others know: which tokens AWS issued and until when it accepts them,
//! how often it was called, who held the Lease when a change was sent, and whether a write changed anything.

use std::collections::BTreeMap;

use ::judge::selection::asked;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};

use super::super::evidence::Evidence;
use super::super::history::{Key, Kind, Version};
use super::super::{Invariant, Violation};
use super::credentials::{is_ready, is_settled};
use super::crowd;
use super::well_formed::auths;
use crate::proxy::Request;

/// So many writes of one object in a row that change nothing are not those of a process that starts, or is unsure of an answer.
const MOST_IDLE: usize = 4;

/// So many calls for one identity in one region within [`WINDOW`] are a storm: with waits of 200 ms that double up to 2 s, as the
/// tests set them, a fetch that fails is tried about ten times.
const MOST_CALLS: usize = 40;
const WINDOW: SignedDuration = SignedDuration::from_secs(10);

/// The API server may be this much behind the proxies in what it has stored of a Lease.
const LEASE_LAG: SignedDuration = SignedDuration::from_millis(500);

/// I6 and I14: an EcrCredential that says it is ready at the end has no login that AWS does not accept any more, by AWS's clock.
pub(super) fn true_time(evidence: &Evidence) -> Vec<Violation> {
    let Some(now) = evidence.aws_now else { return vec![] };
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::Credential) {
        let Some(last) =
            versions.last().filter(|last| !last.deleted && is_ready(last) && is_settled(evidence, versions))
        else {
            continue;
        };
        let namespaces: Vec<_> = evidence.history.live(Kind::Namespace).collect();
        let places = asked(&last.object).into_iter().flat_map(|one| {
            let selected = namespaces.iter().filter(move |(_, namespace)| one.selects(&namespace.object));
            selected.map(move |(namespace, _)| (namespace.name.clone(), one.name.to_owned()))
        });
        for (namespace, name) in places {
            let place = Key { kind: Kind::Secret, namespace, name };
            let Some(secret) = evidence.history.versions(&place).last().filter(|secret| !secret.deleted) else {
                continue;
            };
            for (host, auth) in auths(secret).unwrap_or_default() {
                let issued = evidence.issued.get(&BASE64_STANDARD.encode(&auth));
                if let Some(holder) = issued.filter(|holder| holder.accepted_until <= now) {
                    let invariant =
                        if last_write_is_old(evidence, secret) { Invariant::I6NoGap } else { Invariant::I14TrueStatus };
                    let detail =
                        format!("{} is Ready, and the login for {host} ended at {}", key.name, holder.accepted_until);
                    violations.push(Violation::new(invariant, place.about(), evidence.now, detail));
                }
            }
        }
    }
    violations
}

/// Whether a Secret was left as it is for so long that it should have been refreshed.
fn last_write_is_old(evidence: &Evidence, secret: &Version) -> bool {
    evidence.now.duration_since(secret.at) > SignedDuration::from_secs(10)
}

/// I7: the operator does not write again and again what is there already.
pub(super) fn no_idle_writes(evidence: &Evidence) -> Vec<Violation> {
    let mut last: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let mut violations = vec![];
    for request in evidence.requests.iter().filter(|request| request.is_change() && request.is_committed()) {
        let Some(stored) = &request.stored else { continue };
        let (version, idle) = last.entry(&request.path).or_insert(("", 0));
        *idle = if *version == stored.resource_version { *idle + 1 } else { 0 };
        *version = &stored.resource_version;
        if *idle == MOST_IDLE {
            let detail = format!("{} writes in a row changed nothing", *idle);
            violations.push(Violation::new(Invariant::I7Quiet, about(request), request.started, detail));
        }
    }
    violations
}

/// I9: a status that counts failed namespaces names them, each with a reason and a message.
pub(super) fn named_failures(evidence: &Evidence) -> Vec<Violation> {
    let statuses = evidence.history.of_kind(Kind::Credential);
    let statuses = statuses.flat_map(|(key, versions)| versions.iter().map(move |version| (key, version)));
    let wrong = statuses.filter_map(|(key, version)| {
        let status = &version.object["status"];
        let failed = status["namespaces"]["failed"].as_u64()?;
        let named = status["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_told = |failure: &serde_json::Value| {
            ["namespace", "reason", "message"]
                .iter()
                .all(|field| failure[field].as_str().is_some_and(|text| !text.is_empty()))
        };
        let fault = if failed > 0 && named.is_empty() {
            format!("{failed} namespaces failed, and none is named")
        } else {
            format!("a failure lacks its reason: {}", named.iter().find(|failure| !is_told(failure))?)
        };
        Some(Violation::new(Invariant::I9Isolation, key.about(), version.at, fault))
    });
    wrong.collect()
}

/// I10: AWS is not called more often for one identity in one region than waits that double allow.
pub(super) fn no_storm(evidence: &Evidence) -> Vec<Violation> {
    let mut times: BTreeMap<&(String, String), Vec<Timestamp>> = BTreeMap::new();
    for (whom, at) in &evidence.aws_calls {
        times.entry(whom).or_default().push(*at);
    }
    let storms = times.into_iter().filter_map(|(whom, times)| Some((whom, crowd(times, MOST_CALLS, WINDOW)?)));
    storms
        .map(|((identity, what), at)| {
            let detail = format!("more than {MOST_CALLS} calls within {WINDOW:#}");
            Violation::new(Invariant::I10AwsBound, format!("{identity}: {what}"), at, detail)
        })
        .collect()
}

/// I12: no change reaches the API server from a process after another one has taken the Lease. Each proxy has one process at a time.
pub(super) fn single_writer(evidence: &Evidence) -> Vec<Violation> {
    let is_lease = |request: &Request| request.target.resource == "leases";
    let holder = |request: &Request| {
        let holder = request.body.as_ref()?["spec"]["holderIdentity"].as_str()?;
        Some(holder.to_owned()).filter(|holder| !holder.is_empty())
    };
    // When whom the API server knew for the holder.
    let mut terms: Vec<(Timestamp, String)> = evidence
        .requests
        .iter()
        .filter(|request| is_lease(request) && request.is_mutation() && request.is_committed())
        .filter_map(|request| Some((request.finished?, holder(request)?)))
        .collect();
    terms.sort();
    let mut violations = vec![];
    for log in &evidence.logs {
        let mut mine = None;
        for request in evidence.requests.iter().skip(log.start).take(log.len()) {
            if is_lease(request) && request.is_mutation() {
                mine = holder(request).or(mine);
                continue;
            }
            let Some(mine) = mine.as_ref().filter(|_| request.is_change() && request.is_committed()) else { continue };
            let begun = terms.iter().rfind(|(since, holder)| holder == mine && *since <= request.started);
            let later = |(since, other): &&(Timestamp, String)| {
                let begun = begun.is_none_or(|(begun, _)| begun < since);
                other != mine && begun && *since + LEASE_LAG < request.started
            };
            if let Some((since, other)) = terms.iter().rfind(later) {
                let detail =
                    format!("{}: sent by {mine}, though {other} holds the Lease since {since}", request.summary());
                violations.push(Violation::new(Invariant::I12SingleWriter, about(request), request.started, detail));
            }
        }
    }
    violations
}

fn about(request: &Request) -> String {
    let target = &request.target;
    if target.namespace.is_empty() { target.name.clone() } else { format!("{}/{}", target.namespace, target.name) }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use http::Method;
    use serde_json::json;

    use super::super::super::declared::Holder;
    use super::super::super::fixture::{Story, ready_credential, secret, start};
    use super::*;

    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/operator/leases/operator";

    fn holds(story: Story, who: &str) -> Story {
        story.operator_sends(Method::PUT, LEASE, json!({ "spec": { "holderIdentity": who } }))
    }

    fn judged(mut evidence: Evidence, logs: Vec<Range<usize>>) -> usize {
        evidence.logs = logs;
        single_writer(&evidence).len()
    }

    #[test]
    fn a_write_after_another_has_taken_the_lease_is_found() {
        // The first process is behind one proxy, the second behind another; the log of the first comes first.
        let old = |late: bool| {
            let story = holds(Story::new(), "old").operator_writes(secret());
            if late { story.passes(60).operator_writes(secret().value("late")) } else { story }
        };
        let both = |late| {
            let story = old(late);
            let first = story.requests.len();
            let story = holds(story, "new").operator_writes(secret().value("2"));
            let mut evidence = story.evidence();
            // It took the Lease before the late write.
            for (number, request) in evidence.requests.iter_mut().enumerate().skip(first) {
                let at = start() + SignedDuration::from_secs(40 + number as i64);
                (request.started, request.finished) = (at, Some(at));
            }
            let all = evidence.requests.len();
            judged(evidence, vec![0..first, first..all])
        };
        assert_eq!((both(false), both(true)), (0, 1));
        let restarted =
            holds(holds(Story::new(), "old").operator_writes(secret()), "new").operator_writes(secret().value("2"));
        let whole = 0..4;
        assert_eq!(judged(restarted.evidence(), vec![whole]), 0, "one after the other behind one proxy");
    }

    #[test]
    fn writes_that_change_nothing_are_found_when_they_do_not_end() {
        let confirm = |times: usize| {
            (0..times).fold(Story::new().operator_writes(secret()), |s, _| s.operator_confirms(secret()))
        };
        assert_eq!(no_idle_writes(&confirm(MOST_IDLE - 1).evidence()), []);
        assert_eq!(no_idle_writes(&confirm(50).evidence()).len(), 1);
        let refreshes = (0..50).fold(Story::new(), |story, n| story.operator_writes(secret().value(&n.to_string())));
        assert_eq!(no_idle_writes(&refreshes.evidence()), []);
    }

    #[test]
    fn failures_that_nobody_can_act_on_are_found() {
        let told = |failures| {
            let mut credential = ready_credential();
            credential["status"]["namespaces"] = json!({ "selected": 2, "synced": 1, "failed": 1 });
            credential["status"]["failures"] = failures;
            named_failures(&Story::new().credential(credential).evidence()).len()
        };
        assert_eq!(told(json!([])), 1);
        assert_eq!(told(json!([{ "namespace": "a", "reason": "Forbidden", "message": "" }])), 1);
        assert_eq!(told(json!([{ "namespace": "a", "reason": "Forbidden", "message": "cannot patch" }])), 0);
    }

    #[test]
    fn a_storm_of_calls_is_found_and_patience_is_not() {
        let calls = |apart: i64| {
            let whom = ("role/operator".to_owned(), "ecr in eu-west-1".to_owned());
            let mut evidence = Story::new().evidence();
            evidence.aws_calls =
                (0..100).map(|n| (whom.clone(), start() + SignedDuration::from_millis(apart * n))).collect();
            no_storm(&evidence).len()
        };
        assert_eq!((calls(66), calls(1000)), (1, 0));
    }

    #[test]
    fn ready_with_a_login_that_aws_does_not_accept_is_found_whatever_the_annotation_says() {
        let judged = |accepted_until: i64, waited: u64| {
            let story = Story::new().operator_writes(secret().value("p").expires("2030-01-01T00:00:00Z"));
            let mut evidence = story.credential(ready_credential()).passes(waited).evidence();
            let holder = Holder {
                role: None,
                principal: "x".to_owned(),
                accepted_until: start() + SignedDuration::from_secs(accepted_until),
            };
            evidence.issued = [(BASE64_STANDARD.encode("AWS:p"), holder)].into();
            evidence.aws_now = Some(evidence.now);
            true_time(&evidence).into_iter().map(|violation| violation.invariant).collect::<Vec<_>>()
        };
        assert_eq!(judged(40_000, 60), []);
        assert_eq!(judged(30, 60), [Invariant::I6NoGap]);
    }
}
