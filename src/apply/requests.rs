//! The requests that the writer sends: how each write is guarded, how long it may take, and what is shown of a refusal.

use std::convert::Infallible;

use http::Method;
use kube::client::Body;
use parking_lot::Mutex;

use super::*;
use crate::api::EcrCredentialSpec;
use crate::plan::schedule::Life;
use crate::plan::{Identity, Limits, Uid, plan};
use crate::secret::Published;
use crate::secret::ownership::Ownership;
use crate::token::{AuthorizationToken, DockerAuth, Token};

/// One request: its method, its path with the query, and its body.
type Sent = (Method, String, Value);

/// What the API server answers to the requests, in turn, and after how long; after the last one it says nothing at all.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<Vec<(u64, u16, Value)>>>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Server {
    fn answering(answers: &[(u64, u16, Value)]) -> Self {
        let answers = answers.iter().rev().cloned().collect();
        Self { answers: Arc::new(Mutex::new(answers)), sent: Arc::default() }
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
                server.sent.lock().push((parts.method, parts.uri.to_string(), body));
                let next = server.answers.lock().pop();
                let Some((seconds, code, answer)) = next else { return std::future::pending().await };
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::builder().status(code).body(answer).unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn writer(&self) -> Writer {
        Writer::new(self.client(), 1, Duration::from_secs(65))
    }

    fn sent(&self) -> Vec<Sent> {
        self.sent.lock().clone()
    }
}

const PASSWORD: &str = "a-password-of-aws-that-is-long-enough";

fn desired() -> Desired {
    let spec: EcrCredentialSpec = serde_json::from_value(json!({
        "registries": [{ "private": { "region": "eu-west-1", "accountIds": ["111122223333"] } }],
        "namespaces": { "names": ["a"] },
    }))
    .unwrap();
    let plan = plan(&spec, &Limits::default()).unwrap();
    let auth = DockerAuth::parse(STANDARD.encode(format!("AWS:{PASSWORD}"))).unwrap();
    let life = Life { issued_at: Timestamp::UNIX_EPOCH, expires_at: Timestamp::MAX };
    let token =
        AuthorizationToken { tokens: vec![Token { auth, account: None }], life, identity: Identity::operator() };
    let published: Published = [(plan.registries[0].token_specs[0].clone(), Arc::new(token))].into();
    let owner = crate::secret::Owner { name: "platform".to_owned(), uid: Uid("me".into()) };
    let now = Timestamp::UNIX_EPOCH;
    let mut bundle = crate::secret::bundle(&plan, &owner, &published, &Default::default(), now).unwrap();
    Arc::unwrap_or_clone(bundle.remove(&plan.secret.name).unwrap())
}

/// The answer to a write.
fn secret(version: &str, more: Value) -> Value {
    let mut metadata = json!({ "name": "pull", "namespace": "a", "uid": "s", "resourceVersion": version });
    metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata })
}

fn refusal(code: u16, message: &str, causes: Value) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code,
        "details": { "kind": "secrets", "causes": causes },
    })
}

fn immutable() -> Value {
    let causes = json!([{ "field": "data", "message": "Forbidden: field is immutable when `immutable` is set" }]);
    refusal(422, "Secret \"pull\" is invalid: data: Forbidden", causes)
}

fn record(more: Value) -> Arc<SecretRecord> {
    let found: SecretMetadata = serde_json::from_str(&secret("7", more).to_string()).unwrap();
    Arc::new(SecretRecord { owner: Some(Uid("me".into())), ..(**found.record().unwrap()).clone() })
}

fn target(ownership: Ownership) -> SecretTarget {
    let (namespace, name, namespace_uid) = ("a".into(), "pull".into(), NamespaceUid::default());
    SecretTarget { namespace, namespace_uid, name, ownership, selection: crate::secret::Selection::Selected }
}

async fn perform(server: &Server, ownership: Ownership, action: SecretAction) -> Result<Written, WriteError> {
    server.writer().perform(&target(ownership), &action, Some(&desired()), || true).await
}

#[tokio::test]
async fn what_is_believed_absent_is_applied_without_force_so_that_a_foreign_secret_is_a_conflict() {
    let server = Server::answering(&[(0, 201, secret("8", json!({})))]);
    perform(&server, Ownership::Absent, SecretAction::Create).await.unwrap();
    let [(method, path, body)] = &server.sent()[..] else { panic!("{:?}", server.sent()) };
    assert_eq!(*method, Method::PATCH);
    assert!(path.starts_with("/api/v1/namespaces/a/secrets/pull?") && !path.contains("force=true"), "{path}");
    assert!(path.contains("fieldManager=ecr-credential-operator"), "{path}");
    assert_eq!((&body["metadata"]["uid"], &body["metadata"]["resourceVersion"]), (&Value::Null, &Value::Null));
    assert_eq!(body["type"], "kubernetes.io/dockerconfigjson");
}

#[tokio::test]
async fn what_is_believed_there_is_applied_on_that_very_state_of_it() {
    let server = Server::answering(&[(0, 200, secret("8", json!({})))]);
    let mine = record(json!({}));
    perform(&server, Ownership::Owned(mine.clone()), SecretAction::Update(mine)).await.unwrap();
    let [(_, path, body)] = &server.sent()[..] else { panic!("{:?}", server.sent()) };
    assert!(path.contains("force=true"), "{path}");
    assert_eq!((&body["metadata"]["uid"], &body["metadata"]["resourceVersion"]), (&json!("s"), &json!("7")));
}

#[tokio::test]
async fn the_token_of_one_namespace_is_written_only_where_it_is_known_that_the_secret_is_in_that_very_namespace() {
    let of = |uid: &str| NamespaceUid::of_namespace(&ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() });
    let written = |content_of: Option<&str>| {
        let content_of = content_of.map(|uid| Box::new(of(uid)));
        Arc::new(SecretRecord { content_of, ..(*record(json!({}))).clone() })
    };
    let (found, of_me, of_another) = (written(None), written(Some("me")), written(Some("another")));
    // What is done, the uid of the namespace, and which requests are sent.
    let update = |record: &Arc<SecretRecord>| SecretAction::Update(record.clone());
    let (asks, asks_in_vain) = (&[Method::GET, Method::PATCH][..], &[Method::GET][..]);
    for (action, now, expected) in [
        (SecretAction::Create, "me", asks),
        (SecretAction::Create, "another", asks_in_vain),
        (update(&found), "me", asks),
        (update(&found), "another", asks_in_vain),
        (update(&of_me), "another", &[Method::PATCH]),
        (update(&of_another), "another", asks_in_vain),
    ] {
        let namespace = json!({ "metadata": { "name": "a", "uid": now } });
        let asked = expected.contains(&Method::GET).then_some((0, 200, namespace));
        let answers: Vec<_> = asked.into_iter().chain([(0, 200, secret("8", json!({})))]).collect();
        let server = Server::answering(&answers);
        let target = SecretTarget { namespace_uid: of("me"), ..target(Ownership::Absent) };
        let desired = Desired { of_one_namespace: true, ..desired() };
        let result = server.writer().perform(&target, &action, Some(&desired), || true).await;
        let sent: Vec<_> = server.sent().into_iter().map(|(method, ..)| method).collect();
        assert_eq!(sent, expected, "{action:?}, {now}");
        assert_eq!(result.err(), (expected == asks_in_vain).then_some(WriteError::NamespaceGone), "{action:?}, {now}");
    }
}

#[tokio::test]
async fn a_deletion_names_the_state_that_is_deleted() {
    let server = Server::answering(&[(0, 200, json!({ "kind": "Status", "status": "Success" }))]);
    let mine = record(json!({}));
    let deleted = perform(&server, Ownership::Owned(mine.clone()), SecretAction::Delete(mine)).await;
    assert_eq!(deleted, Ok(Written::Deleted));
    let [(method, _, body)] = &server.sent()[..] else { panic!("{:?}", server.sent()) };
    assert_eq!(*method, Method::DELETE);
    assert_eq!(body["preconditions"], json!({ "uid": "s", "resourceVersion": "7" }));
}

#[tokio::test]
async fn an_immutable_secret_of_ours_is_deleted_once_and_not_again_while_a_finalizer_holds_it() {
    let held = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/pinned"] });
    let server = Server::answering(&[(0, 422, immutable()), (0, 200, secret("8", held.clone()))]);
    let mine = record(json!({}));
    let first = perform(&server, Ownership::Owned(mine.clone()), SecretAction::Update(mine)).await;
    let told = |result: &Result<Written, WriteError>| matches!(result, Err(WriteError::Unchangeable(Reason::Immutable, why)) if why.contains("example.com/pinned"));
    assert!(told(&first), "{first:?}");
    let methods = |server: &Server| server.sent().into_iter().map(|(method, ..)| method).collect::<Vec<_>>();
    assert_eq!(methods(&server), [Method::PATCH, Method::DELETE]);
    // As the watch shows it now.
    let server = Server::answering(&[(0, 422, immutable())]);
    let mine = record(held.clone());
    let second = perform(&server, Ownership::Owned(mine.clone()), SecretAction::Update(mine)).await;
    assert!(told(&second), "{second:?}");
    assert_eq!(methods(&server), [Method::PATCH], "to delete it again would change nothing");
    // What is not ours is never deleted.
    let server = Server::answering(&[(0, 422, immutable())]);
    let theirs = record(json!({}));
    let third = perform(&server, Ownership::Unmanaged(theirs.clone()), SecretAction::Update(theirs)).await;
    assert!(matches!(third, Err(WriteError::Unchangeable(Reason::Immutable, _))), "{third:?}");
    assert_eq!(methods(&server), [Method::PATCH]);
    // To be told to delete it helps nobody who has done so.
    let server = Server::answering(&[(0, 422, immutable())]);
    let theirs = record(held);
    let fourth = perform(&server, Ownership::Orphaned(theirs.clone()), SecretAction::Update(theirs)).await;
    assert!(told(&fourth), "{fourth:?}");
    assert_eq!(methods(&server), [Method::PATCH]);
}

#[tokio::test]
async fn whatever_code_admission_refuses_with_nothing_counts_as_done_or_as_out_of_date() {
    let messages = [
        "admission webhook \"w.example\" denied the request: no",
        "secrets \"pull\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
    ];
    for (code, message) in [404, 409, 422].into_iter().flat_map(|code| messages.map(|message| (code, message))) {
        let answers = [(0, code, refusal(code, message, json!([])))];
        let expected = WriteError::Refused(Reason::AdmissionRefused, message.to_owned());
        let mine = record(json!({}));
        let server = Server::answering(&answers);
        let deleted = perform(&server, Ownership::Owned(mine.clone()), SecretAction::Delete(mine)).await;
        assert_eq!(deleted, Err(expected.clone()), "{code}");
        let patched = Server::answering(&answers).writer().patch_service_account::<()>("a", "default", &[]).await;
        assert_eq!(patched.map(drop), Err(expected), "{code}");
    }
}

#[tokio::test]
async fn a_secret_is_gone_only_where_the_api_server_itself_says_so() {
    let gone = refusal(404, "secrets \"pull\" not found", json!([]));
    // The kind is not served, for example while another API server starts.
    let mut not_served = refusal(404, "the server could not find the requested resource", json!([]));
    not_served["details"] = json!({});
    for (answer, is_gone) in [(gone, true), (not_served, false), (json!("a gateway's page"), false)] {
        let answers = [(0, 404, answer)];
        let mine = record(json!({}));
        let server = Server::answering(&answers);
        let deleted = perform(&server, Ownership::Owned(mine.clone()), SecretAction::Delete(mine)).await;
        assert_eq!(deleted.is_ok(), is_gone, "{deleted:?}");
        let read = Server::answering(&answers).writer().read("a", "pull").await;
        assert_eq!(read.is_ok_and(|found| found.is_none()), is_gone);
    }
}

#[tokio::test]
async fn a_refusal_that_quotes_a_token_is_not_shown_and_any_other_is() {
    let quoting = [PASSWORD.to_owned(), STANDARD.encode(format!("AWS:{PASSWORD}"))];
    for (quote, shown) in [(&quoting[0], false), (&quoting[1], false), (&"the label team".to_owned(), true)] {
        let message = format!("admission webhook \"w.example\" denied the request: it has {quote}");
        let server = Server::answering(&[(0, 403, refusal(403, &message, json!([])))]);
        let refused = perform(&server, Ownership::Absent, SecretAction::Create).await;
        let Err(WriteError::Refused(Reason::AdmissionRefused, told)) = refused else { panic!("{refused:?}") };
        assert_eq!(told.contains(quote.as_str()), shown, "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_may_take_as_long_as_admission_may_and_not_for_ever() {
    for (seconds, lasts) in [(60, true), (66, false)] {
        let server = Server::answering(&[(seconds, 201, secret("8", json!({})))]);
        let written = perform(&server, Ownership::Absent, SecretAction::Create).await;
        assert_eq!(written.is_ok(), lasts, "{seconds} s: {written:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_gives_its_slot_to_the_next() {
    // The first is never answered.
    let slow = Server::default();
    let writer = slow.writer();
    let quick = Writer { client: Server::answering(&[(0, 201, secret("8", json!({})))]).client(), ..writer.clone() };
    let hangs = tokio::spawn(async move {
        let _ = writer.perform(&target(Ownership::Absent), &SecretAction::Create, Some(&desired()), || true).await;
    });
    tokio::task::yield_now().await;
    let begun = tokio::time::Instant::now();
    let written = quick.perform(&target(Ownership::Absent), &SecretAction::Create, Some(&desired()), || true).await;
    assert!(written.is_ok() && begun.elapsed() <= SLOW, "{written:?} after {:?}", begun.elapsed());
    hangs.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_patch_of_a_service_account_gives_its_slot_to_the_next() {
    // The first is never answered.
    let slow = Server::default();
    let writer = slow.writer();
    let account = json!({ "metadata": { "name": "default", "namespace": "b" } });
    let quick = Writer { client: Server::answering(&[(0, 200, account)]).client(), ..writer.clone() };
    let hangs = tokio::spawn(async move { drop(writer.patch_service_account::<()>("a", "default", &[]).await) });
    tokio::task::yield_now().await;
    let begun = tokio::time::Instant::now();
    let patched = quick.patch_service_account::<()>("b", "default", &[]).await;
    assert!(patched.is_ok() && begun.elapsed() <= SLOW, "{patched:?} after {:?}", begun.elapsed());
    hangs.abort();
}

#[tokio::test]
async fn a_patch_of_a_service_account_is_out_of_date_only_where_its_own_test_fails() {
    let changed = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422, "details": {},
        "message": "the server rejected our request due to an error in our request",
    });
    let mut invalid = refusal(422, "ServiceAccount \"default\" is invalid: metadata.annotations: Too long", json!([]));
    invalid["details"]["kind"] = json!("ServiceAccount");
    for (answer, expected) in [
        (changed, WriteError::Stale),
        (invalid.clone(), WriteError::Refused(Reason::ApiError, invalid["message"].as_str().unwrap().to_owned())),
    ] {
        let server = Server::answering(&[(0, 422, answer)]);
        let patched = server.writer().patch_service_account::<()>("a", "default", &[]).await;
        assert_eq!(patched.map(drop), Err(expected));
    }
}

#[tokio::test]
async fn a_process_that_is_ending_begins_no_write() {
    let server = Server::default();
    let written =
        server.writer().perform(&target(Ownership::Absent), &SecretAction::Create, Some(&desired()), || false).await;
    assert_eq!((written, server.sent().len()), (Err(WriteError::Stale), 0));
}
