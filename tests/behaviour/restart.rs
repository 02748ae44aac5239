//! A restart finds the published tokens again in the Secrets: nothing is fetched or written anew, and nothing is lost that was good.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use testbed::aws::{Fault as AwsFault, Service};
use testbed::bed::{ACCOUNT, Bed, Operator, logins};
use testbed::proxy::{Action, Fault, Gate, Match};

use super::demand::*;
use super::look::quiet;
use super::{OWN, PUBLIC, bed, operator};

#[tokio::test]
async fn a_restart_with_fresh_secrets_writes_nothing_and_asks_aws_for_nothing() {
    let bed = bed("fresh").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let first = operator(&bed).await;
    let registries = json!([
        { "private": {} },
        { "private": { "region": "eu-central-1", "accountIds": ["111122223333"], "hostVariants": ["Standard", "Fips"] } },
        { "public": {} },
    ]);
    let name = bed.credential("x", spec(registries, &[&a, &b])).await.unwrap();
    bed.ready(&name).await.unwrap();
    first.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let secret = bed.secret(&a).await.unwrap();
    // Twice killed and once ended well: each time the next one takes over what is there.
    for round in 0..3 {
        let operator = operator(&bed).await;
        page_until(&operator, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
        // What it would write after its first look it has written by then.
        quiet(&bed).await;
        if round == 2 { operator.stop().await.unwrap() } else { die(&bed, operator).await }
    }
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    let changes: Vec<String> = bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(bed.secret(&a).await.unwrap(), secret);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_namespace_made_while_the_operator_was_away_gets_the_token_of_the_others() {
    let bed = bed("made-meanwhile").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let names = json!([a, bed.name("late-*")]);
    let spec = json!({ "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": names } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let token = login(&bed, &a, OWN).await;
    die(&bed, first).await;
    let late = bed.namespace("late-1", &[]).await.unwrap();
    let second = operator(&bed).await;
    bed.logins_until(&late, &[OWN, PUBLIC]).await.unwrap();
    bed.ready(&name).await.unwrap();
    second.stop().await.unwrap();
    assert_eq!(login(&bed, &late, OWN).await, token);
    assert_eq!(fetches(&bed), (1, 1));
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_batch_leaves_all_namespaces_alike_in_the_end() {
    for (title, action) in [("before", Action::HoldRequest as fn(Gate) -> Action), ("after", Action::HoldAnswer)] {
        let bed = bed(&format!("batch-{title}")).await;
        let mut namespaces = Vec::new();
        for n in 0..6 {
            namespaces.push(bed.namespace(&format!("n{n}"), &[]).await.unwrap());
        }
        let targets: Vec<&str> = namespaces.iter().map(String::as_str).collect();
        let first = operator(&bed).await;
        let name = bed.credential("x", spec(json!([{ "private": {} }]), &targets)).await.unwrap();
        bed.ready(&name).await.unwrap();
        let uids = each(&bed, &namespaces, |secret| secret.uid()).await;
        let gate = Gate::new();
        bed.proxy.place(Fault::new(Match::secret_writes(), action(gate.clone())).skip(2));
        demand(&bed, &name, "1").await;
        gate.arrived(4).await;
        die(&bed, first).await;
        bed.proxy.heal();
        let calls = bed.aws.mark();
        let second = operator(&bed).await;
        served(&bed, &name, "1").await;
        bed.ready(&name).await.unwrap();
        second.stop().await.unwrap();
        let data = each(&bed, &namespaces, |secret| secret.data).await;
        assert!(data.iter().all(|other| *other == data[0]), "every namespace has the same token");
        assert!(bed.aws.is_valid(&login(&bed, &namespaces[0], OWN).await));
        assert_eq!(each(&bed, &namespaces, |secret| secret.uid()).await, uids);
        let again = bed.aws.calls_since(calls).iter().filter(|call| call.service == Service::Ecr).count();
        assert!(again <= 1, "{again} calls after the restart");
        bed.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_refresh_that_a_restart_interrupts_is_served_by_one_fetch_however_slow_the_writes_are() {
    let bed = bed("slow-writes").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let unreported = Gate::new();
    bed.proxy.place(Fault::new(Match::status_writes(), Action::HoldRequest(unreported.clone())));
    demand(&bed, &name, "1").await;
    unreported.arrived(1).await;
    die(&bed, first).await;
    bed.proxy.heal();
    // The status vouches for no token, so that the next process fetches one. It is looked at again in a later second.
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::secret_writes(), Action::HoldRequest(gate.clone())).once());
    let calls = bed.aws.mark();
    let second = operator(&bed).await;
    gate.arrived(1).await;
    testbed::bed::next_second().await;
    gate.open();
    served(&bed, &name, "1").await;
    second.stop().await.unwrap();
    assert_eq!(bed.aws.calls_since(calls).iter().filter(|call| call.service == Service::Ecr).count(), 1);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_was_written_before_the_death_but_not_reported_is_kept_while_aws_fails() {
    let bed = bed("unreported").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let registries = json!([{ "private": {} }, { "private": { "region": "eu-central-1" } }]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let frankfurt = format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com");
    let old = login(&bed, &a, &frankfurt).await;
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::status_writes(), Action::HoldRequest(gate.clone())));
    demand(&bed, &name, "1").await;
    gate.arrived(1).await;
    die(&bed, first).await;
    bed.proxy.heal();
    let written = bed.secret(&a).await.unwrap().unwrap();
    assert_ne!(logins(&written).unwrap()[&frankfurt], old, "the Secret was refreshed, and the status does not know");
    // The status cannot vouch for either login. One region answers, the other does not.
    let fault = bed.aws.fault(Service::Ecr, AwsFault::Status(503)).in_region("eu-central-1").until_cleared();
    let second = operator(&bed).await;
    registry_until(&bed, &name, 1, "AwsUnavailable", &[]).await;
    registry_until(&bed, &name, 0, "Synced", &[]).await;
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().data, written.data, "a good login is not taken away");
    // What is new gets what there is.
    let b = bed.namespace("b", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    bed.logins_until(&b, &[OWN]).await.unwrap();
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().data, written.data);
    fault.clear();
    bed.ready(&name).await.unwrap();
    for namespace in [&a, &b] {
        bed.logins_until(namespace, &[OWN, &frankfurt]).await.unwrap();
    }
    assert_eq!(bed.secret(&a).await.unwrap().unwrap().data, bed.secret(&b).await.unwrap().unwrap().data);
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn while_aws_is_away_a_restart_changes_nothing() {
    let bed = bed("restart-away").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.secret(&a).await.unwrap();
    bed.recorder.aws_fails();
    for service in [Service::Sts, Service::Ecr, Service::EcrPublic] {
        let _ = bed.aws.fault(service, AwsFault::Refused).until_cleared();
    }
    die(&bed, first).await;
    demand(&bed, &name, "1").await;
    let second = operator(&bed).await;
    registry_until(&bed, &name, 0, "AwsUnavailable", &[]).await;
    bed.ready(&name).await.unwrap();
    assert_eq!(bed.secret(&a).await.unwrap(), before);
    bed.recorder.aws_recovers();
    bed.aws.clear_faults();
    served(&bed, &name, "1").await;
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    second.stop().await.unwrap();
    // The two registries are tried again each in its own time, and a login that has come waits for no other.
    assert!((2..=3).contains(&bed.proxy.log().writes_to_secrets().len()));
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn who_edits_a_secret_while_the_operator_is_away_cannot_spread_a_login() {
    let bed = bed("tenant").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let first = operator(&bed).await;
    let names = json!([a, b, bed.name("late")]);
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": names } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let token = login(&bed, &a, OWN).await;
    let untouched = bed.secret(&b).await.unwrap();
    first.stop().await.unwrap();
    forge(&bed, &a, "2099-01-01T00:00:00Z").await;
    let late = bed.namespace("late", &[]).await.unwrap();
    let second = operator(&bed).await;
    bed.logins_until(&late, &[OWN]).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    second.stop().await.unwrap();
    for namespace in [&a, &late] {
        assert_eq!(login(&bed, namespace, OWN).await, token, "found again where nobody meddled with it");
    }
    assert_eq!(bed.secret(&b).await.unwrap(), untouched);
    assert_eq!(fetches(&bed), (1, 0));
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn where_the_only_secret_was_edited_a_new_token_is_fetched() {
    let bed = bed("tenant-alone").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let names = json!([a, bed.name("late")]);
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": names } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    first.stop().await.unwrap();
    let forged = forge(&bed, &a, "2099-01-01T00:00:00Z").await;
    let late = bed.namespace("late", &[]).await.unwrap();
    let second = operator(&bed).await;
    for namespace in [&late, &a] {
        bed.logins_until(namespace, &[OWN]).await.unwrap();
        assert_ne!(login(&bed, namespace, OWN).await, forged);
    }
    bed.ready(&name).await.unwrap();
    second.stop().await.unwrap();
    assert_eq!(fetches(&bed), (2, 0));
    bed.finish().await.unwrap();
}

/// Kills an operator, and ends its lease as if its time had run out.
async fn die(bed: &Bed, operator: Operator) {
    bed.kill(operator).await.unwrap();
}

/// Puts a login of somebody else's into a Secret, with annotations that praise it; returns the login.
async fn forge(bed: &Bed, namespace: &str, expires_at: &str) -> String {
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode("AWS:a-login-of-a-tenant-who-wants-to-see-pulls");
    let config = json!({ "auths": { (OWN): { "auth": auth } } }).to_string();
    let data: std::collections::BTreeMap<_, _> = [(".dockerconfigjson", ByteString(config.into_bytes()))].into();
    let patch = json!({
        "metadata": { "annotations": { "pullsecrets.dev/expires-at": expires_at } },
        "data": data,
    });
    bed.secrets(namespace).patch(&bed.secret, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    auth
}

/// Something of the Secret in each namespace.
async fn each<T>(bed: &Bed, namespaces: &[String], part: impl Fn(Secret) -> T) -> Vec<T> {
    let mut parts = Vec::new();
    for namespace in namespaces {
        parts.push(part(bed.secret(namespace).await.unwrap().unwrap()));
    }
    parts
}
