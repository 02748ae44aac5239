//! Only the holder of the lease writes, it knows when it no longer may, and another takes over.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use testbed::bed::{Bed, Launch, Operator};
use testbed::proxy::{Action, Answer, Fault, Gate, Log, Match, Proxy, Request};

use super::demand::*;
use super::{OWN, bed, launch};

/// The name of the Lease.
const LEASE: &str = "ecr-credential-operator";

/// Long enough for a busy machine, short enough to wait for its end.
const LEASE_DURATION: Duration = Duration::from_secs(10);

#[tokio::test]
async fn on_sigterm_the_lease_is_handed_over_at_once_and_on_sigkill_it_is_waited_for() {
    let bed = bed("handover").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = bed.operator(replica()).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let (second, proxy) = standby(&bed).await;
    page_until(&first, "/metrics", |_, text| text.contains("_leader 1\n")).await;
    page_until(&second, "/metrics", |_, text| text.contains("_leader 0\n")).await;
    assert_eq!(mutations(proxy.log(), Match::any()), 0, "a standby changes nothing, the lease included");

    first.stop().await.unwrap();
    let began = Instant::now();
    taken_by(&proxy).await;
    assert!(began.elapsed() < LEASE_DURATION - Duration::from_secs(2), "it need not wait: {:?}", began.elapsed());
    let mark = bed.proxy.log().mark();
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    assert_eq!(proxy.log().writes_to_secrets().len(), 1);
    assert_eq!(bed.proxy.log().mutations_since(mark).len(), 0);

    let (idle, silent) = standby(&bed).await;
    idle.stop().await.unwrap();
    assert_eq!(mutations(silent.log(), Match::any()), 0, "a standby that ends leaves the lease alone");

    let (third, last) = standby(&bed).await;
    // The lease is known to the third from now on, and renewed at least once.
    proxy.log().wait_for(proxy.log().mark(), &renewals(), 2, LEASE_DURATION).await.unwrap();
    second.kill().unwrap();
    let began = Instant::now();
    taken_by(&last).await;
    let waited = began.elapsed();
    // The last renewal was up to a period before the end.
    assert!(waited > LEASE_DURATION - Duration::from_secs(2), "{waited:?}");
    demand(&bed, &name, "2").await;
    served(&bed, &name, "2").await;
    bed.logins_until(&a, &[OWN]).await.unwrap();
    assert_eq!(last.log().writes_to_secrets().len(), 1);
    third.stop().await.unwrap();
    assert_eq!(fetches(&bed), (3, 0), "a new leader goes on with the token that is there");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_leader_that_was_stopped_past_its_lease_in_the_middle_of_a_batch_writes_nothing_more() {
    let bed = bed("stopped").await;
    let mut namespaces = Vec::new();
    for n in 0..20 {
        namespaces.push(bed.namespace(&format!("n{n}"), &[]).await.unwrap());
    }
    let targets: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let mut first = bed.operator(replica().args(&["--concurrency", "4"])).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &targets)).await.unwrap();
    bed.ready(&name).await.unwrap();
    let (second, proxy) = standby(&bed).await;
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::secret_writes(), Action::HoldAnswer(gate.clone())).skip(4));
    demand(&bed, &name, "1").await;
    gate.arrived(4).await;
    first.signal("STOP").unwrap();
    // The answers are there when it wakes: nothing but the lease keeps it from going on.
    bed.proxy.heal();
    gate.open();
    taken_by(&proxy).await;
    served(&bed, &name, "1").await;
    bed.ready(&name).await.unwrap();
    let mark = bed.proxy.log().mark();
    first.signal("CONT").unwrap();
    let status = first.ended().await.unwrap();
    assert_eq!(status.code(), Some(1));
    let late = bed.proxy.log().matching_since(mark, &Match::any().when(Request::is_mutation));
    assert!(late.is_empty(), "{:?}", late.iter().map(Request::summary).collect::<Vec<_>>());
    assert!(first.tail().contains("no longer the leader"), "{}", first.tail());
    let token = login(&bed, &namespaces[0], OWN).await;
    for namespace in &namespaces {
        assert_eq!(login(&bed, namespace, OWN).await, token);
    }
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn without_its_lease_a_leader_ends_and_says_why() {
    let cases: [(&str, &str); 5] = [
        ("deleted", "the lease was deleted"),
        ("taken", "the lease was taken by \"somebody\""),
        ("refused", "could not be renewed in time"),
        ("hanging", "could not be renewed in time"),
        ("cut-off", "could not be renewed in time"),
    ];
    for (case, words) in cases {
        let bed = bed(&format!("lease-{case}")).await;
        let a = bed.namespace("a", &[]).await.unwrap();
        let mut first = bed.operator(replica()).await.unwrap();
        let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
        bed.ready(&name).await.unwrap();
        match case {
            "deleted" => drop(leases(&bed).delete(LEASE, &DeleteParams::default()).await.unwrap()),
            "taken" => {
                let patch = json!({ "spec": { "holderIdentity": "somebody" } });
                leases(&bed).patch(LEASE, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
            }
            "hanging" => drop(bed.proxy.place(Fault::new(renewals(), Action::HoldRequest(Gate::new())))),
            "cut-off" => drop(bed.proxy.place(Fault::new(Match::any(), Action::Drop))),
            _ => {
                let answer = Answer::refusal(500, "InternalError", "etcd is away");
                bed.proxy.place(Fault::new(renewals(), Action::Answer(answer)));
            }
        }
        let status = first.ended().await.unwrap();
        assert_eq!(status.code(), Some(1), "{case}");
        assert!(first.tail().contains(words), "{case}: {}", first.tail());
        bed.proxy.heal();
        // Its successor goes on, as kubelet would start it.
        let second = bed.operator(replica()).await.unwrap();
        demand(&bed, &name, "1").await;
        served(&bed, &name, "1").await;
        second.stop().await.unwrap();
        bed.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_that_was_only_annotated_is_still_held() {
    let bed = bed("annotated").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(replica()).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let patch = json!({ "metadata": { "annotations": { "example.com/note": "seen" } } });
    leases(&bed).patch(LEASE, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let mark = bed.proxy.log().mark();
    bed.proxy.log().wait_for(mark, &renewals().when(Request::is_committed), 3, LEASE_DURATION * 2).await.unwrap();
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    operator.stop().await.unwrap();
    let lease = leases(&bed).get(LEASE).await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.unwrap_or_default(), "", "given back at the end");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn without_leader_election_there_is_no_lease() {
    let bed = bed("no-lease").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(replica().args(&["--no-leader-election"])).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    page_until(&operator, "/metrics", |_, text| text.contains("_leader 1\n")).await;
    operator.stop().await.unwrap();
    assert_eq!(bed.proxy.log().count(&Match::any().resource("leases")), 0);
    assert!(leases(&bed).get_opt(LEASE).await.unwrap().is_none());
    bed.finish().await.unwrap();
}

/// A second operator with a proxy of its own, which waits for the lease.
async fn standby(bed: &Bed) -> (Operator, Proxy) {
    let proxy = Proxy::start(bed.plane).unwrap();
    bed.recorder.attach(proxy.log());
    let operator = bed.operator_through(&proxy, replica()).await.unwrap();
    (operator, proxy)
}

/// Waits until the operator behind a proxy has taken the lease.
async fn taken_by(proxy: &Proxy) {
    let taken = renewals().when(Request::is_committed);
    proxy.log().wait_for(Default::default(), &taken, 1, LEASE_DURATION * 5).await.unwrap();
}

fn replica() -> Launch {
    launch().env("ECO_LEASE_DURATION", "10s")
}

fn renewals() -> Match {
    Match::any().resource("leases").method("PUT")
}

fn mutations(log: &Log, wanted: Match) -> usize {
    log.count(&wanted.when(Request::is_mutation))
}

fn leases(bed: &Bed) -> Api<Lease> {
    Api::namespaced(bed.client.clone(), &bed.home)
}
