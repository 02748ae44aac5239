//! What goes wrong between the operator and the API server leaves no trace: requests, answers and watches that are refused,
//! lost, cut, garbled or late.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::{Value, json};
use testbed::bed::{Bed, PATIENCE};
use testbed::proxy::{Action, Answer, Fault, Match, Request};
use testbed::recorder::Recorder;

use super::look::{at_once, counts, quiet, spec, stored_in};
use super::{OWN, bed, launch, operator};

/// What can happen to a request and to its answer.
fn faults() -> Vec<(&'static str, Action)> {
    let refusal = |status, reason| Action::Answer(Answer::refusal(status, reason, "trouble"));
    vec![
        ("throttled", Action::Answer(Answer::too_many_requests(1))),
        ("broken", refusal(500, "InternalError")),
        ("unavailable", refusal(503, "ServiceUnavailable")),
        ("timeout", refusal(504, "Timeout")),
        ("stale", refusal(409, "Conflict")),
        ("html", Action::Answer(Answer::raw(200, "text/html", "<html>a captive portal</html>"))),
        ("dropped", Action::Drop),
        ("cut", Action::CutAfterCommit),
        ("truncated", Action::Truncate(20)),
        ("garbled", Action::Rewrite(Arc::new(|_| json!(["nothing", "of", "use"])))),
        ("slow", Action::Delay(Duration::from_millis(1500))),
    ]
}

#[tokio::test]
async fn whatever_happens_to_a_write_its_secret_comes_once_and_nobody_else_waits() {
    let bed = bed("writes").await;
    let operator = operator(&bed).await;
    for (what, action) in faults() {
        let hit = bed.namespace(&format!("{what}-hit"), &[]).await.unwrap();
        let spared = bed.namespace(&format!("{what}-spared"), &[]).await.unwrap();
        let mark = bed.proxy.log().mark();
        let fault = bed.proxy.place(Fault::new(Match::secret_writes().namespace(&hit), action).times(2));
        let name = bed.credential(what, spec(json!({ "names": [hit, spared] }))).await.unwrap();
        at_once(bed.logins_until(&spared, &[OWN])).await;
        bed.logins_until(&hit, &[OWN]).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        bed.ready(&name).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(fault.hits() > 0, "{what}");
        let seen = |recorder: &Recorder| !recorder.secret_versions(&hit, &bed.secret).is_empty();
        assert!(bed.recorder.until(PATIENCE, seen).await, "{what}: the recorder has not seen the Secret");
        assert_eq!(bed.recorder.secret_versions(&hit, &bed.secret).len(), 1, "{what}: versions of the Secret");
        assert!(stored_in(&bed, mark, &spared) == 1, "{what}: writes where nothing was wrong");
        fault.remove();
    }
    quiet(&bed).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn whatever_happens_to_a_status_write_the_status_becomes_true() {
    let bed = bed("status-writes").await;
    let operator = operator(&bed).await;
    for (what, action) in faults() {
        let b = bed.namespace(what, &[]).await.unwrap();
        let whole = bed.name(what);
        let fault = bed.proxy.place(Fault::new(Match::status_writes().name(&whole), action).times(2));
        let name = bed.credential(what, spec(json!({ "names": [b] }))).await.unwrap();
        at_once(bed.logins_until(&b, &[OWN])).await;
        bed.credential_until(&name, "one namespace", |object| counts(object) == [1, 1, 0])
            .await
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        bed.ready(&name).await.unwrap();
        assert!(fault.hits() > 0, "{what}");
        fault.remove();
    }
    quiet(&bed).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

const WATCHED: [&str; 3] = ["namespaces", "secrets", "ecrcredentials"];

type Ending = fn(&Bed, &str);

/// What can end a watch of a resource, and what can happen to the list that follows.
fn endings() -> Vec<(&'static str, Ending)> {
    vec![
        ("cut", |_, _| ()),
        ("expired", expire),
        ("error-event", |bed, resource| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            });
            let event = json!({ "type": "ERROR", "object": status });
            bed.proxy.send_to_watches(&Match::watches(resource), format!("{event}\n"));
        }),
        ("half-an-event", |bed, resource| {
            bed.proxy.send_to_watches(&Match::watches(resource), r#"{"type":"MODIFIED","object":{"kind"#);
        }),
        ("no-json", |bed, resource| {
            bed.proxy.send_to_watches(&Match::watches(resource), "<html>a proxy says hello</html>\n");
        }),
        ("list-fails", |bed, resource| {
            expire(bed, resource);
            let broken = Action::Answer(Answer::refusal(500, "InternalError", "trouble"));
            bed.proxy.place(Fault::new(lists(resource), broken).times(2));
        }),
        ("list-throttled", |bed, resource| {
            expire(bed, resource);
            bed.proxy.place(Fault::new(lists(resource), Action::Answer(Answer::too_many_requests(1))).once());
        }),
    ]
}

/// The next watch of a resource is refused, so that a list comes first.
fn expire(bed: &Bed, resource: &str) {
    let expired = Action::Answer(Answer::refusal(410, "Expired", "too old resource version"));
    bed.proxy.place(Fault::new(Match::watches(resource), expired).once());
}

fn lists(resource: &str) -> Match {
    Match::any().method("GET").resource(resource).name("").when(|request| !request.is_watch())
}

#[tokio::test]
async fn however_a_watch_ends_nothing_that_it_did_not_show_is_missed() {
    let bed = bed("watches").await;
    let operator = operator(&bed).await;
    let label = [(&*bed.prefix, Some("yes"))];
    let old = bed.namespace("old", &[(&bed.prefix, "yes")]).await.unwrap();
    let selector = json!({ "selector": { "matchLabels": { &bed.prefix: "yes" } } });
    let name = bed.credential("x", spec(selector)).await.unwrap();
    bed.ready(&name).await.unwrap();
    for (what, ending) in endings() {
        let new = bed.namespace(what, &[]).await.unwrap();
        let lost = WATCHED.map(|resource| {
            let all = Action::LoseEvents(Arc::new(|_: &Value| true));
            bed.proxy.place(Fault::new(Match::watches(resource), all))
        });
        let gone = bed.secret(&old).await.unwrap().unwrap();
        bed.secrets(&old).delete(&bed.secret, &Default::default()).await.unwrap();
        bed.label(&new, &label).await.unwrap();
        bed.change(&name, json!({ "spec": { "secret": { "labels": { "round": what } } } })).await.unwrap();
        lost.iter().for_each(testbed::proxy::Placed::remove);
        for resource in WATCHED {
            ending(&bed, resource);
            bed.proxy.cut_watches(&Match::watches(resource));
        }
        let is_new = |secret: Option<&Secret>| {
            secret.is_some_and(|s| s.uid() != gone.uid() && s.labels().get("round").is_some_and(|round| round == what))
        };
        at_once(bed.secret_until(&old, what, is_new)).await;
        at_once(bed.secret_until(&new, what, is_new)).await;
        at_once(bed.ready(&name)).await;
    }
    quiet(&bed).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_and_all_that_happened_is_made_good() {
    let bed = bed("absent").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let operator = bed.operator(launch().args(&["--no-leader-election"])).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [bed.name("*")], "exclude": [bed.home] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    let away = bed.proxy.place(Fault::new(Match::any(), Action::Drop));
    bed.proxy.cut_watches(&Match::any());
    bed.secrets(&a).delete(&bed.secret, &Default::default()).await.unwrap();
    let c = bed.namespace("c", &[]).await.unwrap();
    // Every watch has been tried in vain, and more than once.
    tokio::time::timeout(PATIENCE, away.hit(9)).await.unwrap();
    let kept = bed.secret(&b).await.unwrap().unwrap();
    away.remove();
    at_once(bed.logins_until(&a, &[OWN])).await;
    at_once(bed.logins_until(&c, &[OWN])).await;
    bed.credential_until(&name, "three namespaces", |object| counts(object) == [3, 3, 0]).await.unwrap();
    assert_eq!(bed.secret(&b).await.unwrap().unwrap().resource_version(), kept.resource_version());
    let tries = bed.proxy.log().matching(&Match::any().when(|r: &Request| r.status.is_none() && r.method == "GET"));
    assert!(tries.len() < 60, "{} tries while the API server was away", tries.len());
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
