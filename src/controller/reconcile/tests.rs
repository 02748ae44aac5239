//! When the status is written, that nothing else waits for it, and what is reported and kept if the object changes meanwhile.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::runtime::reflector::{self, store::Writer as StoreWriter};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::super::stage::{ACCOUNT, HOUR, NOW, Server, Stage, at, identity_of, pass, refusal, token};
use super::super::{Observer, queue, run};
use super::*;
use crate::api::REFRESH_REQUESTED_AT;
use crate::apply::{WriteError, Written};
use crate::clock::{Clock, Server as DateOf};
use crate::plan::namespaces::NamespaceUid;
use crate::plan::references::AccountRecord;
use crate::plan::scopes::SecretKey;
use crate::plan::{Identity, TokenKey};
use crate::secret::SecretAction;
use crate::secret::ownership::{ManagedFieldsDigest, SecretRecord};
use crate::token::TokenError;

const PATH: &str = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/x/status";
const SECRET: &str = "/namespaces/a/secrets/pull";

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn passed() -> Duration {
    BEGUN.get().unwrap().elapsed()
}

/// A controller that has its tokens, and its EcrCredential as the watch shows it.
struct Running {
    ctx: Arc<Context>,
    server: Server,
    object: EcrCredential,
    store: StoreWriter<EcrCredential>,
}

impl Running {
    fn start() -> Self {
        BEGUN.set(Some(Instant::now()));
        let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
        stage.ctx.clock = Clock::new(|| at(NOW).checked_add(passed()).unwrap(), passed);
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let published = [(token_spec, token("p", NOW + 11 * HOUR, &Identity::operator()))].into();
        let remembered = CredentialState { published, ..CredentialState::default() };
        let state = Arc::new(tokio::sync::Mutex::new(remembered));
        stage.ctx.states.0.lock().insert(stage.uid.clone(), state);
        let Stage { ctx, server, object, queue: queued, .. } = stage;
        let ctx = Arc::new(ctx);
        let (reader, store) = reflector::store();
        let mut running = Self { ctx: ctx.clone(), server, object, store };
        running.store.apply_watcher_event(&Event::Init);
        running.store.apply_watcher_event(&Event::InitDone);
        running.sees("1", Value::Null);
        tokio::spawn(run(ctx, reader, queue(queued, std::future::pending())));
        running
    }

    /// The watch shows this status.
    fn sees(&mut self, version: &str, status: Value) {
        self.object.metadata.resource_version = Some(version.to_owned());
        self.object.status = serde_json::from_value(status).unwrap();
        self.store.apply_watcher_event(&Event::Apply(self.object.clone()));
        self.ctx.shared.credential_seen(&self.object);
    }
}

async fn seconds(number: u64) {
    tokio::time::sleep(Duration::from_secs(number)).await;
}

#[tokio::test(start_paused = true)]
async fn no_secret_waits_until_a_status_that_could_not_be_written_is_tried_again() {
    let mut asked = Vec::new();
    for (code, answer) in [(200, json!({ "metadata": { "resourceVersion": "2" } })), (500, refusal(500, "no"))] {
        let running = Running::start();
        running.server.answers(PATH, code, answer);
        running.server.is_silent_about("/secrets/pull");
        seconds(600).await;
        let [secrets, statuses] = ["/secrets/pull", "/status"].map(|end| running.server.asked(end));
        asked.push((secrets, statuses));
    }
    let [(with_status, _), (without, tried)] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(without, with_status, "writes of Secrets: {asked:?}");
    assert!((5..20).contains(&tried), "{tried} tries of the status");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_could_not_be_written_is_tried_at_once_when_it_says_something_new() {
    let mut running = Running::start();
    running.server.answers(PATH, 500, refusal(500, "no"));
    seconds(200).await;
    let tries = running.server.asked("/status");
    seconds(30).await;
    assert_eq!(running.server.asked("/status"), tries, "it waits by now");
    running.object.metadata.generation = Some(2);
    running.sees("2", Value::Null);
    seconds(1).await;
    assert_eq!(running.server.asked("/status"), tries + 1);
    running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": "3" } }));
    seconds(300).await;
    assert_eq!(running.server.asked("/status"), tries + 2);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_for_a_while_ends_no_refreshes() {
    let running = Running::start();
    let mut not_served = refusal(404, "the server could not find the requested resource");
    not_served["reason"] = "NotFound".into();
    running.server.answers(PATH, 404, not_served);
    seconds(200).await;
    let tries = running.server.asked("/status");
    assert!(tries > 1, "{tries}");
    running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": "2" } }));
    seconds(300).await;
    assert_eq!(running.server.asked("/status"), tries + 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_an_older_one_has_overwritten_is_written_again_within_a_minute() {
    let mut running = Running::start();
    running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": "2" } }));
    seconds(300).await;
    let writes = running.server.asked("/status");
    // A write that was given up arrives, and its status is older than the one that has been written since.
    let conditions = json!([{
        "type": "Ready", "status": "False", "reason": "FetchingToken", "message": "its first token is being requested",
        "observedGeneration": 1, "lastTransitionTime": "2027-01-15T08:00:00Z",
    }]);
    running.sees("3", json!({ "observedGeneration": 1, "conditions": conditions }));
    seconds(60).await;
    let again = running.server.asked("/status") - writes;
    assert!((1..=2).contains(&again), "{again} writes");
}

/// Counts the statuses that are reported.
#[derive(Default)]
struct Reported(AtomicUsize);

impl Observer for Reported {
    fn wrote(&self, _: &SecretAction, _: &Result<Written, WriteError>) {}
    fn reconciled(&self, _: Duration, _: Option<&Error>) {}

    fn concluded(&self, _: &Uid, _: &str, _: &EcrCredentialStatus) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Two registries, one of which has the identity of each namespace, and their EcrCredential's only Secret, in namespace a.
fn stage_with_a_secret() -> Stage {
    let stage = Stage::new(json!([
        { "private": {}, "auth": { "serviceAccount": { "fromTargetNamespace": "puller" } } },
        { "public": {} },
    ]));
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    let token = token("p", NOW + HOUR, &identity_of(&stage, &token_spec, "a"));
    let desired = stage.desired(&[(token_spec, token)].into());
    stage.server.has_secret("a", &desired);
    stage.sees("a", desired.digest, NOW + HOUR);
    stage
}

#[tokio::test(start_paused = true)]
async fn one_that_a_finalizer_keeps_says_so_once_and_is_not_served() {
    let mut running = Running::start();
    let answers = |running: &Running, version: &str| {
        running.server.answers(PATH, 200, json!({ "metadata": { "resourceVersion": version } }));
    };
    answers(&running, "2");
    seconds(10).await;
    let written = |running: &Running| running.server.sent(PATH)[1]["value"].clone();
    let served = written(&running);
    let asked = |running: &Running| ["/status", "/secrets/pull"].map(|end| running.server.asked(end));
    let [statuses, secrets] = asked(&running);
    answers(&running, "4");
    running.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
    running.object.metadata.generation = Some(2);
    running.sees("3", served.clone());
    seconds(1).await;
    let deleting = written(&running);
    assert_eq!(deleting["conditions"][0]["reason"], "Deleting");
    assert_eq!(asked(&running), [statuses + 1, secrets]);
    // Also before the watch shows what was written, and whatever time passes.
    seconds(600).await;
    running.sees("4", deleting.clone());
    seconds(600).await;
    assert_eq!(asked(&running), [statuses + 1, secrets]);
    // Somebody else's change of the status is no reason to be served again, and is undone as seldom as any.
    for (version, answer) in [("5", "6"), ("7", "8"), ("9", "10")] {
        answers(&running, answer);
        running.sees(version, served.clone());
        seconds(1).await;
    }
    assert!(asked(&running)[0] <= statuses + 2, "{:?}", asked(&running));
    seconds(600).await;
    assert!(asked(&running)[0] > statuses + 1 && asked(&running)[1] == secrets, "{:?}", asked(&running));
    assert_eq!(written(&running), deleting);
    // Once it is gone nothing is tried again, and nothing is remembered.
    running.ctx.shared.credential_gone(&running.object.metadata);
    assert_eq!(running.ctx.shared.credential_name(&Uid(running.object.uid().unwrap().into())), None);
    let before = asked(&running);
    seconds(600).await;
    assert_eq!(asked(&running), before);
}

/// Whether a status is reported of an EcrCredential that is deleted meanwhile if `gone`.
async fn is_reported(gone: bool) -> bool {
    let mut stage = stage_with_a_secret();
    let reported = Arc::new(Reported::default());
    stage.ctx.observer = reported.clone();
    stage.server.answers(PATH, 200, serde_json::to_value(&stage.object).unwrap());
    let held = stage.server.hold().await;
    let Stage { ctx, server, object, .. } = stage;
    let (ctx, object) = (Arc::new(ctx), Arc::new(object));
    let end = async {
        while server.asked(SECRET) == 0 {
            tokio::task::yield_now().await;
        }
        if gone {
            ctx.shared.credential_gone(object.meta());
        }
        drop(held);
    };
    let (result, ()) = tokio::join!(reconcile(object.clone(), ctx.clone()), end);
    assert!(result.is_ok());
    reported.0.load(Ordering::Relaxed) > 0
}

#[tokio::test]
async fn nothing_is_told_of_an_ecrcredential_that_ends_while_it_is_reconciled() {
    assert!(is_reported(false).await);
    assert!(!is_reported(true).await);
}

#[tokio::test(start_paused = true)]
async fn a_node_clock_that_is_ahead_takes_no_login_of_a_namespace_after_a_restart() {
    let mut stage = stage_with_a_secret();
    stage.ctx.clock = Clock::new(|| at(NOW + 13 * HOUR), Duration::default);
    stage.ctx.clock.hear(DateOf::Kubernetes, "Fri, 15 Jan 2027 08:00:00 GMT", Duration::ZERO);
    assert_eq!(stage.ctx.clock.earliest(), at(NOW));
    stage.server.answers(PATH, 200, serde_json::to_value(&stage.object).unwrap());
    let Stage { ctx, server, object, uid, .. } = stage;
    let ctx = Arc::new(ctx);
    reconcile(Arc::new(object), ctx.clone()).await.unwrap();
    let state = ctx.credential_state(&uid);
    assert!(state.lock().await.tenants.oldest().is_some(), "its token was found again");
    assert_eq!(server.asked(SECRET), 1, "it was read, and not changed");
}

#[tokio::test(start_paused = true)]
async fn a_requested_refresh_cuts_short_the_wait_for_a_first_token_once() {
    let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let Stage { ctx, aws, mut object, uid, mut queue, .. } = stage;
    let (ctx, mut state) = (Arc::new(ctx), CredentialState::default());
    let status = EcrCredentialStatus::default();
    aws.fails();
    for (what, request, asked) in [
        ("the first try", None, 1),
        ("it waits", None, 1),
        ("a refresh is requested", Some("1"), 2),
        ("it waits again", Some("1"), 2),
        ("another one is", Some("2"), 3),
    ] {
        object.metadata.annotations = request.map(|value| [(REFRESH_REQUESTED_AT.to_owned(), value.to_owned())].into());
        let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
        reconciliation.run(&mut state).await;
        if asked > aws.asked() {
            let _ = tokio::time::timeout(Duration::from_secs(10), queue.recv()).await;
        }
        assert_eq!(aws.asked(), asked, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_is_requested_between_two_first_tokens_fetches_neither_twice() {
    let of_each = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    for (what, registries, early, late) in [
        (
            "of two regions",
            json!([
                { "private": { "region": "eu-west-1", "accountIds": [ACCOUNT] } },
                { "private": { "region": "eu-central-1", "accountIds": [ACCOUNT] } },
            ]),
            "eu-west-1",
            "eu-central-1",
        ),
        ("of two namespaces", json!([{ "private": {}, "auth": of_each }]), "ServiceAccount a/", "ServiceAccount b/"),
    ] {
        let Stage { ctx, aws, server, mut object, uid, mut queue, .. } = Stage::of(registries, &["a", "b"]);
        // Writes of Secrets and their failures are no part of this.
        server.is_silent_about("/secrets/pull");
        let (ctx, mut state) = (Arc::new(ctx), CredentialState::default());
        let status = EcrCredentialStatus::default();
        let seconds = Duration::from_secs;
        aws.ends(early, seconds(1), Ok(()));
        aws.ends(late, seconds(5), Err(TokenError::Unavailable("no answer".to_owned())));
        for (request, awaits) in [(None, true), (Some("1"), true), (Some("1"), false), (Some("1"), false)] {
            let annotations = request.map(|value: &str| [(REFRESH_REQUESTED_AT.to_owned(), value.to_owned())].into());
            object.metadata.annotations = annotations;
            let reconciliation =
                Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
            reconciliation.run(&mut state).await;
            if awaits {
                queue.recv().await.unwrap();
            }
            pass(if request.is_none() { seconds(60) } else { Duration::ZERO });
        }
        assert_eq!((aws.asked_of(early), aws.asked_of(late)), (1, 1), "{what}");
        // The late one is tried again, and then the request is served.
        aws.ends(late, seconds(1), Ok(()));
        for _ in 0..3 {
            let reconciliation =
                Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
            reconciliation.run(&mut state).await;
            pass(seconds(300));
            tokio::time::sleep(seconds(300)).await;
        }
        assert_eq!((aws.asked_of(early), aws.asked_of(late)), (1, 2), "{what}");
        assert!(state.demand.as_ref().is_some_and(|demand| demand.served), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_requested_refresh_takes_a_first_token_that_is_in_memory() {
    let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    stage.object.metadata.annotations = Some([(REFRESH_REQUESTED_AT.to_owned(), "1".to_owned())].into());
    let Stage { ctx, aws, object, uid, plan, .. } = stage;
    let key = TokenKey { identity: Identity::operator(), service: plan.registries[0].token_specs[0].service.clone() };
    ctx.tokens.want(&Uid("other".into()), [key.clone()].into());
    ctx.tokens.seed(&key, &token("p", NOW + 11 * HOUR, &Identity::operator()));
    let (ctx, mut state) = (Arc::new(ctx), CredentialState::default());
    let status = EcrCredentialStatus::default();
    let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
    reconciliation.run(&mut state).await;
    assert_eq!((aws.asked(), state.published.len()), (0, 1));
    assert!(state.demand.is_some_and(|demand| demand.served));
}

#[tokio::test]
async fn an_event_about_a_secret_that_has_recovered_is_due_where_that_secret_is_selected() {
    let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let outputs = json!([{ "name": "out", "format": "DockerConfigFile", "namespaces": { "names": ["d", "argocd"] } }]);
    stage.object.spec.outputs = serde_json::from_value(outputs).unwrap();
    stage.object.metadata.generation = Some(2);
    let Stage { ctx, object, uid, .. } = stage;
    ctx.shared.state.lock().set_namespace("argocd", NamespaceUid::of("argocd", None), &BTreeMap::new(), false);
    ctx.shared.credential_seen(&object);
    let (ctx, status) = (Arc::new(ctx), EcrCredentialStatus::default());
    let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
    for (namespace, secret, warning, due) in [
        ("a", None, false, true),
        ("a", Some("out"), false, false),
        ("argocd", None, false, false),
        ("argocd", None, true, true),
        ("argocd", Some("out"), false, true),
        ("d", Some("out"), false, true),
    ] {
        let (reason, message) = ("Synced".to_owned(), String::new());
        let (namespace, secret) = (Some(namespace.to_owned()), secret.map(str::to_owned));
        let event = ReportedEvent { warning, reason, message, namespace, secret };
        assert_eq!(reconciliation.is_due(&event), due, "{event:?}");
    }
}

/// The policy that attaches Secrets to pods reads these hosts, for the pods of all namespaces.
#[tokio::test(start_paused = true)]
async fn no_namespaces_identity_decides_which_hosts_are_reported_for_all_of_them() {
    let each = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    let (standard, dual) = ("dkr.ecr.eu-west-1.amazonaws.com", "dkr-ecr.eu-west-1.on.aws");
    let hosts = |account: &str| vec![format!("{account}.{standard}"), format!("{account}.{dual}")];
    let registry = |accounts: &[&str], more: Value| {
        let mut private = json!({ "hostVariants": ["Standard", "DualStack"], "accountIds": accounts });
        private.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([{ "private": private, "auth": each.clone() }])
    };
    let ids = ["111122223333", "222233334444"];
    let both = [hosts(ids[0]), hosts(ids[1])].concat();
    for (what, registries, expected) in [
        ("of the callers", registry(&[], json!({})), hosts("*")),
        (
            "with another host",
            registry(&[], json!({ "extraHosts": ["mirror.example"] })),
            [hosts("*"), vec!["mirror.example".to_owned()]].concat(),
        ),
        ("of named accounts", registry(&ids, json!({})), both),
    ] {
        let Stage { ctx, aws, object, uid, mut queue, .. } = Stage::of(registries, &["a", "b"]);
        let role = Some("arn:aws:iam::222233334444:role/a".to_owned());
        let record = AccountRecord { uid: "a".into(), created: at(NOW), role, audience: None };
        ctx.shared.state.lock().references.set_account("a", "puller", Some(record));
        for (tenant, seconds) in [("ServiceAccount a/", 1), ("ServiceAccount b/", 2)] {
            aws.ends(tenant, Duration::from_secs(seconds), Ok(()));
        }
        let (ctx, mut state) = (Arc::new(ctx), CredentialState::default());
        let status = EcrCredentialStatus::default();
        let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
        let mut reported = async || {
            let Some(Observation::Ran(report)) = reconciliation.run(&mut state).await.observation else {
                panic!("{what}: no report");
            };
            report.registries[0].hosts.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for tokens in 0..=2 {
            assert_eq!(reported().await, expected, "{what}: with {tokens} tokens");
            if tokens < 2 {
                queue.recv().await.unwrap();
            }
        }
        assert_eq!(aws.asked(), 2, "{what}");
    }
}

/// A pod gets the Secret when it is created or never, and the Secret may come later.
#[tokio::test(start_paused = true)]
async fn hosts_are_reported_before_there_is_a_token() {
    for (what, private, before, after) in [
        ("of the caller", json!({}), "*", ACCOUNT),
        ("of a named account", json!({ "accountIds": [ACCOUNT] }), ACCOUNT, ACCOUNT),
    ] {
        let Stage { ctx, aws, object, uid, mut queue, .. } = Stage::of(json!([{ "private": private }]), &["a"]);
        let (ctx, mut state) = (Arc::new(ctx), CredentialState::default());
        let status = EcrCredentialStatus::default();
        let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
        let mut hosts = async || {
            let observation = reconciliation.run(&mut state).await.observation;
            let Some(Observation::Ran(report)) = observation else { return None };
            Some(report.registries[0].hosts.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let of = |account: &str| Some(vec![format!("{account}.dkr.ecr.eu-west-1.amazonaws.com")]);
        aws.fails();
        assert_eq!(hosts().await, None, "{what}: the first token may come at once");
        queue.recv().await.unwrap();
        assert_eq!(hosts().await, of(before), "{what}");
        aws.ends("", Duration::ZERO, Ok(()));
        // It is tried again within the time of its kind.
        pass(Duration::from_secs(60));
        hosts().await;
        queue.recv().await.unwrap();
        assert_eq!(hosts().await, of(after), "{what}");
    }
}

/// The hosts in the Secret that was written last into a namespace; none if none was written.
fn hosts_written(server: &Server, namespace: &str) -> Vec<String> {
    let sent = server.sent(&format!("/api/v1/namespaces/{namespace}/secrets/pull"));
    let Some(config) = sent["data"][".dockerconfigjson"].as_str() else { return Vec::new() };
    let config: Value = serde_json::from_slice(&STANDARD.decode(config).unwrap()).unwrap();
    config["auths"].as_object().unwrap().keys().cloned().collect()
}

/// A token belongs to the `auth` that requested it. Edited into one that does not resolve, `auth` has none yet.
#[tokio::test(start_paused = true)]
async fn no_token_of_a_former_auth_reaches_a_namespace_that_is_new() {
    let of = |namespace: &str| json!({ "serviceAccount": { "namespace": namespace, "name": "puller" } });
    let of_each = json!({ "serviceAccount": { "fromTargetNamespace": "other" } });
    let wrong = json!({ "assumeRoles": [{ "roleArn": format!("arn:aws-cn:iam::{ACCOUNT}:role/x") }] });
    let operators = Value::Null;
    for (former, edited) in [
        (&of("a"), of("gone")),
        (&operators, of("gone")),
        (&of("a"), of_each.clone()),
        (&operators, of_each),
        (&of("a"), wrong.clone()),
        (&operators, wrong),
    ] {
        let registries =
            |auth: &Value| json!([{ "private": { "accountIds": [ACCOUNT] }, "auth": auth }, { "public": {} }]);
        let stage = Stage::of(registries(former), &["a", "b"]);
        let specs = stage.plan.token_specs().into_iter().cloned();
        let keys = keys(&stage.ctx, &stage.plan.token_specs(), None);
        let published: secret::Published = specs
            .map(|spec| (spec.clone(), token("p", NOW + 11 * HOUR, &keys[&spec].as_ref().unwrap().identity)))
            .collect();
        let desired = stage.desired(&published);
        stage.server.has_secret("a", &desired);
        stage.sees("a", desired.digest, NOW + 11 * HOUR);
        let Stage { ctx, server, object: mut before, uid, .. } = stage;
        let ctx = Arc::new(ctx);
        before.spec.namespaces = serde_json::from_value(json!({ "names": ["a"] })).unwrap();
        before.metadata.generation = Some(2);
        let mut after = before.clone();
        after.spec.namespaces = serde_json::from_value(json!({ "names": ["a", "b"] })).unwrap();
        after.spec.registries = serde_json::from_value(registries(&edited)).unwrap();
        after.metadata.generation = Some(3);
        let run = async |object: &EcrCredential, status: &EcrCredentialStatus, state: &mut CredentialState| {
            ctx.shared.credential_seen(object);
            let reconciliation = Reconciliation { object, ctx: &ctx, uid: &uid, status, stored: status };
            let observation = reconciliation.run(state).await.observation.unwrap();
            conclude(observation, status, object.metadata.generation, at(NOW)).status
        };
        let mut state = CredentialState { published, ..CredentialState::default() };
        let at_first = run(&before, &EcrCredentialStatus::default(), &mut state).await;
        assert_eq!(at_first.namespaces.as_ref().unwrap().synced, 1, "{edited}");
        let edited_status = run(&after, &at_first, &mut state).await;
        for (what, status) in [
            ("edited", None),
            ("restarted after the edit", Some(&edited_status)),
            ("edited while no operator ran", Some(&at_first)),
        ] {
            if let Some(status) = status {
                run(&after, status, &mut CredentialState::default()).await;
            }
            let what = format!("{what}, from {former} to {edited}");
            assert_eq!(hosts_written(&server, "b"), ["public.ecr.aws"], "{what}");
            assert_eq!(hosts_written(&server, "a"), Vec::<String>::new(), "{what}: its Secret stays");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_expiry_of_a_secret_whose_token_is_no_longer_published_is_reported() {
    let stage = Stage::of(json!([{ "private": { "accountIds": [ACCOUNT] } }]), &["a"]);
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    let published: secret::Published = [(token_spec, token("p", NOW + 2 * HOUR, &Identity::operator()))].into();
    let desired = stage.desired(&published);
    stage.sees("a", desired.digest, NOW + 2 * HOUR);
    let Stage { ctx, object: mut edited, uid, .. } = stage;
    edited.spec.registries[0].auth =
        serde_json::from_value(json!({ "serviceAccount": { "namespace": "gone", "name": "puller" } })).unwrap();
    let ctx = Arc::new(ctx);
    ctx.shared.credential_seen(&edited);
    let (mut state, status) =
        (CredentialState { published, ..CredentialState::default() }, EcrCredentialStatus::default());
    let reconciliation = Reconciliation { object: &edited, ctx: &ctx, uid: &uid, status: &status, stored: &status };
    let observation = reconciliation.run(&mut state).await.observation.unwrap();
    let told = conclude(observation, &status, edited.metadata.generation, at(NOW)).status;
    assert_eq!((told.registries[0].expires_at, told.expires_at), (None, Some(at(NOW + 2 * HOUR))));
}

/// What the conditions `Ready` and `Reconciling` say after a restart, while an included docker config whose entries all Secrets have
/// is missing, and how many namespaces are synced. Before, the status of a generation said whether all was well.
async fn told_after_a_restart_without_an_include(ready: &str, generation: i64) -> (Vec<(String, String)>, u32) {
    let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
    let hub = SecretKey::new("hub", "ops");
    stage.ctx.limits.includes = [hub.clone()].into();
    let include = json!([{ "secretRef": { "namespace": "ops", "name": "hub" } }]);
    stage.object.spec.include = serde_json::from_value(include).unwrap();
    let missing = SpecError { reason: Reason::IncludeFailed, message: "ops/hub does not exist".to_owned() };
    stage.ctx.shared.state.lock().includes.set(&hub, Err(missing));
    for namespace in super::super::stage::NAMESPACES {
        let (uid, expires_at, hosts) = (namespace.into(), Some(at(NOW + HOUR)), Some(7));
        let digest = ManagedFieldsDigest::desired(&Default::default());
        let record = SecretRecord::fixture(Some(stage.uid.clone()), "1", digest);
        let record = SecretRecord { uid, expires_at, hosts, ..record };
        stage.ctx.shared.secret_listed("pull", namespace, Arc::new(record));
    }
    let status: EcrCredentialStatus = serde_json::from_value(json!({
        "observedGeneration": generation,
        "conditions": [{
            "type": "Ready", "status": ready, "reason": "Synced", "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }],
    }))
    .unwrap();
    let token_spec = stage.plan.registries[0].token_specs[0].clone();
    let published = [(token_spec, token("p", NOW + 11 * HOUR, &Identity::operator()))].into();
    let mut state = CredentialState { published, ..CredentialState::default() };
    let Stage { ctx, server, object, uid, .. } = stage;
    let ctx = Arc::new(ctx);
    let reconciliation = Reconciliation { object: &object, ctx: &ctx, uid: &uid, status: &status, stored: &status };
    let observation = reconciliation.run(&mut state).await.observation.unwrap();
    assert_eq!(server.asked(SECRET), 0, "the entries of the include stay");
    let after = conclude(observation, &status, Some(1), at(NOW)).status;
    let conditions = after.conditions.iter().take(2).map(|c| (c.status.clone(), c.reason.clone()));
    (conditions.collect(), after.namespaces.unwrap().synced)
}

#[tokio::test(start_paused = true)]
async fn an_include_that_is_missing_after_a_restart_makes_no_ready_ecrcredential_unready() {
    for (what, ready, generation, expected, synced) in [
        ("nothing has changed", "True", 1, [("True", "Synced"), ("True", "IncludeFailed")], 4),
        ("some Secret was not synced", "False", 1, [("False", "NamespacesFailed"), ("True", "IncludeFailed")], 0),
        ("the spec has changed", "True", 0, [("False", "NamespacesFailed"), ("True", "IncludeFailed")], 0),
    ] {
        let (conditions, number) = told_after_a_restart_without_an_include(ready, generation).await;
        let conditions: Vec<_> = conditions.iter().map(|(status, reason)| (&**status, &**reason)).collect();
        assert_eq!((&*conditions, number), (&expected[..], synced), "{what}");
    }
}
