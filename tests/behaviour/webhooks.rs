//! Admission webhooks that hang, are slow, refuse with any status code, or change the Secret: with leader election and the default
//! lease, each write succeeds when any other client's would, the lease stays held, and no other namespace is delayed (I19, I20).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch, Tenant, poll};
use testbed::webhook::{Kind, Registered, Registration, Verdict, Webhook};

use super::demand::{login, page_until};
use super::look::{failure, quiet, spec, stored_in, writes_in};
use super::rights::from;
use super::{OWN, bed, launch};

/// The defaults of the lease: a write may take longer than the lease lasts after one renewal.
fn with_default_lease() -> Launch {
    launch().env("ECO_LEASE_DURATION", "15s")
}

/// A webhook for the creation, update and deletion of Secrets in these namespaces.
fn for_secrets(bed: &Bed, kind: Kind, namespaces: &[&str]) -> Registration {
    let operations = ["CREATE", "UPDATE", "DELETE"].map(str::to_owned).to_vec();
    Registration { operations, ..Registration::secrets(&bed.prefix, kind, namespaces) }
}

#[tokio::test]
async fn a_webhook_that_hangs_delays_its_own_namespace_alone_and_each_write_once() {
    let bed = bed("hanging").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let webhook = Webhook::start().unwrap();
    let registered = webhook.register(&bed.client, &for_secrets(&bed, Kind::Validating, &[&a])).await.unwrap();
    webhook.answer(Verdict::Hang);
    let operator = bed.operator(with_default_lease()).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a, bed.name("b*")] }))).await.unwrap();

    // A creation, and what another namespace gets meanwhile.
    bed.logins_until(&b, &[OWN]).await.unwrap();
    assert!(bed.secret(&a).await.unwrap().is_none(), "the webhook holds up the creation");
    let new = bed.namespace("b-new", &[]).await.unwrap();
    bed.logins_until(&new, &[OWN]).await.unwrap();
    assert!(bed.secret(&a).await.unwrap().is_none(), "a new namespace does not wait for it");
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 1, "it was sent once and answered");

    // An update.
    let before = (login(&bed, &a, OWN).await, login(&bed, &b, OWN).await);
    bed.request_refresh(&name, "1").await.unwrap();
    let newer = |before: &str, secret: Option<&Secret>| {
        secret.is_some_and(|secret| testbed::bed::logins(secret).is_ok_and(|logins| logins[OWN] != before))
    };
    bed.secret_until(&b, "refreshed", |secret| newer(&before.1, secret)).await.unwrap();
    assert_eq!(login(&bed, &a, OWN).await, before.0, "the webhook holds up the update");
    bed.secret_until(&a, "refreshed", |secret| newer(&before.0, secret)).await.unwrap();
    bed.ready(&name).await.unwrap();

    // A deletion.
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [bed.name("b*")] } } })).await.unwrap();
    bed.secret_until(&a, "gone", |secret| secret.is_none()).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(writes_in(&bed, Default::default(), &a).len(), 3, "{:?}", writes_in(&bed, Default::default(), &a));
    assert_eq!(stored_in(&bed, Default::default(), &a), 3);

    the_first_leader_leads(&bed).await;
    operator.stop().await.unwrap();
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

/// Since it was created, the Lease has been held by one process.
async fn the_first_leader_leads(bed: &Bed) {
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.home);
    let lease = leases.get("ecr-credential-operator").await.unwrap().spec.unwrap();
    assert_eq!(lease.lease_transitions.unwrap_or_default(), 0, "the lease has changed hands");
    assert!(lease.holder_identity.is_some_and(|holder| !holder.is_empty()));
}

#[tokio::test]
async fn webhooks_that_hang_on_the_status_and_are_slow_on_the_lease_and_on_service_accounts_cost_nothing_but_time() {
    let bed = bed("slow-hooks").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let puller = bed.name("puller");
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.client.clone(), &a);
    accounts.create(&PostParams::default(), &from(json!({ "metadata": { "name": puller } }))).await.unwrap();
    let webhook = Webhook::start().unwrap();
    webhook.decide(|request| match request["resource"]["resource"].as_str() {
        Some("ecrcredentials") => Verdict::Hang,
        // What client-go's leader election survives with its defaults.
        Some("leases") => Verdict::Slow(Duration::from_secs(3)),
        _ => Verdict::Slow(Duration::from_secs(4)),
    });
    let update = vec!["UPDATE".to_owned()];
    let all = Registration::secrets(&bed.prefix, Kind::Validating, &[]);
    let registrations = [
        Registration {
            name: format!("{}-status", bed.prefix),
            group: "pullsecrets.dev".to_owned(),
            resources: vec!["ecrcredentials/status".to_owned()],
            operations: update.clone(),
            object_labels: vec![("bed".to_owned(), bed.prefix.clone())],
            ..all.clone()
        },
        Registration {
            name: format!("{}-lease", bed.prefix),
            group: "coordination.k8s.io".to_owned(),
            resources: vec!["leases".to_owned()],
            operations: update.clone(),
            namespaces: vec![bed.home.clone()],
            ..all.clone()
        },
        Registration {
            name: format!("{}-accounts", bed.prefix),
            resources: vec!["serviceaccounts".to_owned()],
            operations: update,
            namespaces: vec![a.clone()],
            ..all
        },
    ];
    let mut registered = Vec::new();
    for registration in &registrations {
        registered.push(webhook.register(&bed.client, registration).await.unwrap());
    }
    until_in_force(&bed, &webhook, &accounts, &puller).await;
    let operator = bed.operator(with_default_lease().attaching(&puller)).await.unwrap();
    let spec = json!({
        "registries": [{ "private": {} }], "namespaces": { "names": [a] }, "attachTo": { "serviceAccounts": [puller] },
    });
    let name = bed.credential("x", spec).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    poll("the Secret is attached", async || {
        let account = accounts.get(&puller).await.unwrap();
        account.image_pull_secrets.into_iter().flatten().any(|reference| reference.name == bed.secret)
    })
    .await;
    // Two more statuses that take ten seconds each, and as many renewals of the lease as fit.
    bed.request_refresh(&name, "1").await.unwrap();
    bed.refreshed(&name, "1").await.unwrap();
    let calls = webhook.calls();
    let of = |resource: &str| calls.iter().filter(|call| call.resource == resource).count();
    assert!(of("leases") >= 4 && of("ecrcredentials") >= 2 && of("serviceaccounts") >= 1, "{calls:?}");
    the_first_leader_leads(&bed).await;
    for registered in registered {
        registered.remove().await.unwrap();
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// A webhook for the Lease of the operator, which is in force.
async fn on_the_lease(bed: &Bed, webhook: &Webhook) -> Registered {
    let registration = Registration {
        name: format!("{}-lease", bed.prefix),
        group: "coordination.k8s.io".to_owned(),
        resources: vec!["leases".to_owned()],
        fail_open: false,
        ..Registration::secrets(&bed.prefix, Kind::Validating, &[&bed.home])
    };
    let registered = webhook.register(&bed.client, &registration).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.home);
    let (dry, probe) =
        (PostParams { dry_run: true, ..PostParams::default() }, json!({ "metadata": { "name": "probe" } }));
    webhook.until_in_force(async || drop(leases.create(&dry, &from(probe.clone())).await)).await.unwrap();
    registered
}

#[tokio::test]
async fn a_lease_that_a_webhook_refuses_is_never_taken_for_held() {
    let bed = bed("lease-codes").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let webhook = Webhook::start().unwrap();
    let words = |code: u16| format!("every Lease here needs the label team-{code}");
    let refuse = |code: u16| webhook.answer(Verdict::refuse(code, &words(code)));
    refuse(409);
    let registered = on_the_lease(&bed, &webhook).await;
    let mut operator = bed.operator(with_default_lease().without_waiting()).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a] }))).await.unwrap();
    // 200 becomes 400, and kube takes codes from 600 on for a success.
    for code in [409, 404, 200, 700] {
        refuse(code);
        poll("the refusal is in the log", async || operator.tail().contains(&words(code))).await;
        assert!(!operator.tail().contains("became the leader"), "{code}: {}", operator.tail());
        let (status, _) = operator.get("/readyz").await.unwrap();
        assert_ne!(status, 200, "{code}: it neither leads nor stands by");
    }
    assert!(bed.secret(&a).await.unwrap().is_none(), "nothing is written without the lease");
    webhook.answer(Verdict::Allow);
    operator.until_ready().await.unwrap();
    bed.ready(&name).await.unwrap();
    refuse(422);
    let log = operator.log.clone();
    operator.stop().await.unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains(&words(422)), "why the lease was not released");

    // A renewal is refused as if the Lease had changed, so that it ends.
    webhook.answer(Verdict::Allow);
    let mut operator = bed.operator(with_default_lease()).await.unwrap();
    page_until(&operator, "/metrics", |_, text| text.contains("_leader 1\n")).await;
    refuse(409);
    assert_eq!(operator.ended().await.unwrap().code(), Some(1));
    let tail = operator.tail();
    assert!(tail.contains("could not be renewed in time") && tail.contains(&words(409)), "{tail}");
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

/// The API server reads all configurations at once: when it calls the webhook for one of them, it knows the others.
async fn until_in_force(bed: &Bed, webhook: &Webhook, accounts: &Api<ServiceAccount>, name: &str) {
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let probe = |value: u32| Patch::Merge(json!({ "metadata": { "labels": { "probe": value.to_string() } } }));
    webhook.until_in_force(async || drop(accounts.patch(name, &dry, &probe(1)).await)).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.home);
    let lease = json!({ "metadata": { "name": "probe" } });
    leases.create(&PostParams::default(), &from(lease)).await.unwrap();
    webhook.until_in_force(async || drop(leases.patch("probe", &dry, &probe(1)).await)).await.unwrap();
}

#[tokio::test]
async fn whatever_code_a_webhook_refuses_with_its_words_are_shown_and_nobody_else_waits() {
    let bed = bed("codes").await;
    const WORDS: &str = "every Secret here needs the label team";
    let mut statuses: Vec<Value> =
        [0, 200, 302, 400, 403, 404, 409, 422, 429, 600, 999].map(|code| json!({ "code": code })).into();
    statuses.push(json!({ "code": 429, "details": { "retryAfterSeconds": 3600 } }));
    statuses.push(json!({ "code": 503, "details": { "retryAfterSeconds": 30 } }));
    // What kube cannot read as a Status.
    statuses.push(json!({ "code": 404, "status": "Denied" }));
    statuses.push(json!({ "code": 409, "details": { "retryAfterSeconds": -1 } }));
    let mut refused = Vec::new();
    for (number, status) in statuses.iter_mut().enumerate() {
        status["message"] = json!(WORDS);
        refused.push(bed.namespace(&format!("c{number}"), &[]).await.unwrap());
    }
    let names: Vec<&str> = refused.iter().map(String::as_str).collect();
    let webhook = Webhook::start().unwrap();
    let mut registration = for_secrets(&bed, Kind::Validating, &names);
    registration.fail_open = false;
    let registered = webhook.register(&bed.client, &registration).await.unwrap();
    let statuses: Vec<(String, Value)> = refused.iter().cloned().zip(statuses).collect();
    let refuse = move |request: &Value| {
        let of = statuses.iter().find(|(namespace, _)| request["namespace"] == **namespace);
        of.map_or(Verdict::Allow, |(_, status)| Verdict::Refuse(status.clone()))
    };
    webhook.decide(refuse.clone());
    // Fewer writes at a time than namespaces whose webhook refuses.
    let operator = bed.operator(with_default_lease().args(&["--concurrency", "2"])).await.unwrap();
    let targets: Vec<String> = refused.iter().cloned().chain([bed.name("good*")]).collect();
    let name = bed.credential("x", spec(json!({ "names": targets }))).await.unwrap();
    let good = bed.namespace("good", &[]).await.unwrap();
    bed.logins_until(&good, &[OWN]).await.unwrap();
    let told =
        |object: &DynamicObject| names.iter().all(|namespace| failure(object, namespace) == Some("AdmissionRefused"));
    let status = bed.credential_until(&name, "each refusal is told", told).await.unwrap();
    for failure in status.data["status"]["failures"].as_array().unwrap() {
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("denied the request") && message.contains(WORDS), "{failure}");
    }
    let later = bed.namespace("good-later", &[]).await.unwrap();
    bed.logins_until(&later, &[OWN]).await.unwrap();
    webhook.answer(Verdict::Allow);
    bed.ready(&name).await.unwrap();

    // A deletion that is refused is not one that is done.
    webhook.decide(refuse);
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [bed.name("good*")] } } })).await.unwrap();
    bed.credential_until(&name, "each refused deletion is told", told).await.unwrap();
    webhook.answer(Verdict::Allow);
    for namespace in &refused {
        bed.secret_until(namespace, "deleted", |secret| secret.is_none()).await.unwrap();
    }
    the_first_leader_leads(&bed).await;
    operator.stop().await.unwrap();
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

/// A webhook for the requests for tokens of the ServiceAccounts in these namespaces.
fn for_tokens(bed: &Bed, namespaces: &[&str]) -> Registration {
    let (resources, operations) = (vec!["serviceaccounts/token".to_owned()], vec!["CREATE".to_owned()]);
    Registration { resources, operations, ..Registration::secrets(&bed.prefix, Kind::Validating, namespaces) }
}

/// Waits until the API server calls the webhook when a token of this tenant is requested.
async fn until_tokens_are_reviewed(bed: &Bed, webhook: &Webhook, tenant: &Tenant) {
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.client.clone(), &tenant.namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let request = from(json!({ "spec": { "audiences": ["probe"] } }));
    let name = &tenant.service_account;
    webhook.until_in_force(async || drop(accounts.create_token_request(name, &dry, &request).await)).await.unwrap();
}

/// A spec for the registry of each tenant's own account.
fn of_tenants(tenants: &[&Tenant]) -> Value {
    let names: Vec<&str> = tenants.iter().map(|tenant| tenant.namespace.as_str()).collect();
    let auth = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    json!({ "registries": [{ "private": {} }], "namespaces": { "names": names }, "auth": auth })
}

#[tokio::test]
async fn a_webhook_that_hangs_on_the_tokens_of_service_accounts_delays_its_own_tenant_alone_and_once() {
    let bed = bed("hanging-tokens").await;
    let a = bed.tenant("a", "111111111111", "puller").await.unwrap();
    let b = bed.tenant("b", "222222222222", "puller").await.unwrap();
    let webhook = Webhook::start().unwrap();
    let registered = webhook.register(&bed.client, &for_tokens(&bed, &[&a.namespace])).await.unwrap();
    until_tokens_are_reviewed(&bed, &webhook, &a).await;
    webhook.answer(Verdict::Hang);
    // The timeout of a call to AWS is much shorter than what the webhook takes.
    let operator = bed.operator(with_default_lease().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", of_tenants(&[&a, &b])).await.unwrap();
    bed.logins_until(&b.namespace, &[&b.host]).await.unwrap();
    assert!(bed.secret(&a.namespace).await.unwrap().is_none(), "the webhook holds up the token");
    bed.logins_until(&a.namespace, &[&a.host]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(webhook.calls().len(), 1, "it was requested once and issued: {:?}", webhook.calls());
    the_first_leader_leads(&bed).await;
    operator.stop().await.unwrap();
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn whatever_code_a_webhook_refuses_a_token_with_its_words_are_shown_in_the_status() {
    let bed = bed("token-codes").await;
    let a = bed.tenant("a", "111111111111", "puller").await.unwrap();
    let webhook = Webhook::start().unwrap();
    let mut registration = for_tokens(&bed, &[&a.namespace]);
    registration.fail_open = false;
    let registered = webhook.register(&bed.client, &registration).await.unwrap();
    until_tokens_are_reviewed(&bed, &webhook, &a).await;
    let refusals = [400, 403, 404, 409, 422, 429, 503].map(|code| {
        let words = format!("no token {code}: the ServiceAccount cannot be used here");
        (Verdict::refuse(code, &words), "AdmissionRefused", words)
    });
    let failure_of_its_own = (Verdict::Fail(500), "ApiError", "failed calling webhook".to_owned());
    webhook.answer(refusals[0].0.clone());
    let operator = bed.operator(with_default_lease().service_account("*/puller")).await.unwrap();
    let name = bed.credential("x", of_tenants(&[&a])).await.unwrap();
    for (verdict, reason, words) in refusals.into_iter().chain([failure_of_its_own]) {
        webhook.answer(verdict);
        let shows = |object: &DynamicObject| {
            let failures = object.data["status"]["failures"].as_array().into_iter().flatten();
            let mut messages = failures.filter_map(|failure| failure["message"].as_str());
            failure(object, &a.namespace) == Some(reason) && messages.any(|message| message.contains(&words))
        };
        bed.credential_until(&name, &format!("{reason}: {words}"), shows).await.unwrap();
    }
    webhook.answer(Verdict::Allow);
    bed.logins_until(&a.namespace, &[&a.host]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    registered.remove().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_webhook_that_adds_a_label_and_a_data_key_makes_no_write_loop() {
    let bed = bed("adding").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let webhook = Webhook::start().unwrap();
    let registered = webhook.register(&bed.client, &for_secrets(&bed, Kind::Mutating, &[&a, &b])).await.unwrap();
    let with_key = a.clone();
    webhook.decide(move |request| {
        let (in_a, deleted) = (request["namespace"] == *with_key, request["operation"] == "DELETE");
        if deleted { Verdict::Allow } else { Verdict::Mutate(Arc::new(move |object| additions(object, in_a))) }
    });
    // What the webhook adds to the data is not ours to keep, and every write of ours brings it back.
    for namespace in [&a, &b] {
        bed.recorder.excuse(
            testbed::recorder::Invariant::I3WellFormed,
            format!("{namespace}/{}", bed.secret),
            "the webhook adds a key to the data",
        );
    }
    let operator = bed.operator(with_default_lease()).await.unwrap();
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    let writes = |namespace: &str| writes_in(&bed, Default::default(), namespace).len();
    let first = (writes(&a), writes(&b));
    assert!(first.0 <= 2 && first.1 == 1, "{first:?}");
    for (namespace, keys) in [(&a, 2), (&b, 1)] {
        let secret = bed.secret(namespace).await.unwrap().unwrap();
        assert_eq!(secret.labels().get("cost-center").map(String::as_str), Some("42"));
        assert_eq!(secret.data.unwrap().len(), keys);
    }
    bed.request_refresh(&name, "1").await.unwrap();
    bed.refreshed(&name, "1").await.unwrap();
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    let second = (writes(&a), writes(&b));
    assert!(second.0 <= first.0 + 2 && second.1 == first.1 + 1, "{second:?} after {first:?}");
    the_first_leader_leads(&bed).await;
    operator.stop().await.unwrap();
    registered.remove().await.unwrap();
    let invariant = testbed::recorder::Invariant::I14TrueStatus;
    bed.recorder.excuse(invariant, &name, "nobody is left to create the Secret again");
    bed.secrets(&a).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    bed.finish().await.unwrap();
}

/// A JSON patch that adds a label and, in one namespace, a key to the data.
fn additions(object: &Value, with_key: bool) -> Value {
    let mut patch = Vec::new();
    if object.pointer("/metadata/labels").is_none() {
        patch.push(json!({ "op": "add", "path": "/metadata/labels", "value": {} }));
    }
    patch.push(json!({ "op": "add", "path": "/metadata/labels/cost-center", "value": "42" }));
    if with_key && object["data"][".dockerconfigjson"].is_string() {
        patch.push(json!({ "op": "add", "path": "/data/config.json", "value": object["data"][".dockerconfigjson"] }));
    }
    json!(patch)
}
