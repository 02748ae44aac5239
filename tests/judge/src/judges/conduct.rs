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
    let statuses = evidence.history.versions_of_kind(Kind::Credential);
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

/// I20: where admission or a quota has refused the writes to a namespace, the status quotes what was said there, as far as all of it is
/// known.
pub(super) fn quoted_refusals(evidence: &Evidence) -> Vec<Violation> {
    let mut refusals: BTreeMap<&str, Vec<&Request>> = BTreeMap::new();
    let is_refused = |request: &Request| request.status.or(request.committed).is_some_and(|status| status >= 400);
    for request in evidence.requests.iter().filter(|request| request.is_secret_write() && is_refused(request)) {
        refusals.entry(&request.target.namespace).or_default().push(request);
    }
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::Credential) {
        for version in versions.iter().filter(|version| version.by_operator) {
            let failures = version.object["status"]["failures"].as_array().into_iter().flatten();
            for failure in failures.filter(|failure| QUOTING.iter().any(|reason| failure["reason"] == *reason)) {
                let [namespace, message] = ["namespace", "message"].map(|field| failure[field].as_str().unwrap_or(""));
                let told = refusals.get(namespace).into_iter().flatten().filter(|told| told.started <= version.at);
                let words: Option<Vec<&str>> = told.map(|request| request.refusal.as_deref()).collect();
                let known = words.filter(|words| !words.is_empty());
                if known.is_some_and(|words| !words.iter().any(|words| quotes(message, words))) {
                    let fault = format!("a failure does not quote who has refused: {failure}");
                    violations.push(Violation::new(Invariant::I20TrueWords, key.about(), version.at, fault));
                }
            }
        }
    }
    violations
}

/// The reasons whose message is that of whoever has refused.
const QUOTING: [&str; 2] = ["AdmissionRefused", "QuotaExceeded"];

/// A shorter quotation says nothing.
const SHORTEST_QUOTE: usize = 40;

/// Whether a message quotes these words, or their beginning, or says why it does not.
fn quotes(message: &str, words: &str) -> bool {
    let beginning = message.trim_end_matches('…');
    let is_long = beginning.len() >= SHORTEST_QUOTE.min(words.len());
    message.contains(words)
        || (is_long && words.starts_with(beginning))
        || message.contains("not shown because it quotes")
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
    fn a_failure_that_does_not_quote_who_has_refused_is_found() {
        let words = "admission webhook \"labels.example.com\" denied the request: every Secret needs the label team";
        let told = |reason: &str, message: &str, refusals: &[Option<&str>]| {
            let mut credential = ready_credential();
            credential["status"]["failures"] = json!([{ "namespace": "a", "reason": reason, "message": message }]);
            let path = "/api/v1/namespaces/a/secrets/pull";
            let send = |story: Story, _: &Option<&str>| story.operator_sends(Method::PATCH, path, json!({}));
            let story = refusals.iter().fold(Story::new(), send);
            let mut evidence = story.operator_reports(credential, 1).evidence();
            for (request, refusal) in evidence.requests.iter_mut().zip(refusals) {
                (request.committed, request.status) = (Some(403), Some(403));
                request.refusal = refusal.map(str::to_owned);
            }
            quoted_refusals(&evidence).len()
        };
        let cases = [
            ("AdmissionRefused", words.to_owned(), vec![Some(words)], 0),
            ("AdmissionRefused", format!("{}…", &words[..60]), vec![Some(words)], 0),
            ("AdmissionRefused", words.to_owned(), vec![Some("another one"), Some(words)], 0),
            ("AdmissionRefused", "the Secret was changed meanwhile".to_owned(), vec![Some(words)], 1),
            ("AdmissionRefused", "admission".to_owned(), vec![Some(words)], 1),
            (
                "AdmissionRefused",
                "the message is not shown because it quotes the data".to_owned(),
                vec![Some(words)],
                0,
            ),
            ("QuotaExceeded", "no".to_owned(), vec![Some("exceeded quota: none, requested: secrets=1")], 1),
            ("AdmissionRefused", "somebody".to_owned(), vec![Some(words), None], 0),
            ("AdmissionRefused", "somebody".to_owned(), vec![], 0),
            ("ApiError", "no answer".to_owned(), vec![Some(words)], 0),
        ];
        for (reason, message, refusals, expected) in cases {
            assert_eq!(told(reason, &message, &refusals), expected, "{reason} {message} {refusals:?}");
        }
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
