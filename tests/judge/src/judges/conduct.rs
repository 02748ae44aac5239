//! I7, I9 and I12, judged over the whole run: whether a write changed anything, who is named, and who held the Lease when a change was
//! sent.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::evidence::Evidence;
use crate::history::Kind;
use crate::{Invariant, Request, Violation};

/// So many writes of one object in a row that change nothing are not those of a process that starts, or is unsure of an answer.
const MOST_IDLE: usize = 4;

/// The API server may be this much behind the proxies in what it has stored of a Lease.
const LEASE_LAG: SignedDuration = SignedDuration::from_millis(500);

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

/// I12: no change reaches the API server from a process after its lease was over, as far as that is known of a request, else after
/// another one has taken the Lease. Each proxy has one process at a time.
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
    let known = evidence.requests.iter().filter(|request| request.is_change() && request.led == Some(false));
    let late = known.filter(|request| request.is_committed());
    let detail = |request: &Request| format!("{}: carried out after its lease was over", request.summary());
    let late = late
        .map(|request| Violation::new(Invariant::I12SingleWriter, about(request), request.started, detail(request)));
    let mut violations: Vec<Violation> = late.collect();
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

    use super::*;
    use crate::fixture::{Story, ready_credential, secret, start};

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
        let mut known = Story::new().operator_writes(secret()).operator_writes(secret().value("2")).evidence();
        known.requests[0].led = Some(true);
        known.requests[1].led = Some(false);
        assert_eq!(judged(known, vec![]), 1);
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
}
