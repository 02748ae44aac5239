//! The proxy records what a client sends and stores, and each fault does to a real client what its name says.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use testbed::control_plane::{ControlPlane, shared};
use testbed::proxy::{Action, Answer, Fault, Gate, Match, Proxy};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_apply_is_recorded_with_its_body_and_what_it_stored() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let stored = apply(&secrets, "recorded", "1").await?;
    secrets.list(&ListParams::default()).await?;
    let writes = proxy.log().writes_to_secrets();
    let [write] = writes.as_slice() else { panic!("{writes:?}") };
    assert_eq!(write.content_type, "application/apply-patch+yaml");
    assert_eq!(write.body.as_ref().context("body")?["stringData"]["value"], "1");
    assert_eq!((write.target.namespace.as_str(), write.target.name.as_str()), ("default", "recorded"));
    let object = write.stored.as_ref().context("stored")?;
    assert_eq!(
        (&object.uid, &object.resource_version),
        (&stored.uid().context("uid")?, &stored.resource_version().context("rv")?)
    );
    assert_eq!(proxy.log().all().len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_answer_in_its_place_keeps_a_request_from_the_server() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let refused =
        Fault::new(Match::secret_writes(), Action::Answer(Answer::refusal(403, "Forbidden", "no"))).skip(1).once();
    let placed = proxy.place(refused);
    apply(&secrets, "answered-a", "1").await?;
    let error = apply(&secrets, "answered-b", "1").await.err().context("the second write must fail")?;
    assert!(matches!(error, kube::Error::Api(status) if status.code == 403));
    assert_eq!(placed.hits(), 1);
    assert!(secrets.get_opt("answered-b").await?.is_none());
    apply(&secrets, "answered-b", "1").await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_request_is_not_committed_and_a_cut_answer_is() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    for (name, action, committed) in [
        ("dropped", Action::Drop, false),
        ("cut", Action::CutAfterCommit, true),
        ("truncated", Action::Truncate(20), true),
    ] {
        let mark = proxy.log().mark();
        proxy.place(Fault::new(Match::secret_writes().name(name), action));
        assert!(apply(&secrets, name, "1").await.is_err(), "{name} must fail");
        assert_eq!(secrets.get_opt(name).await?.is_some(), committed, "{name}");
        let writes = proxy.log().writes_to_secrets_since(mark);
        assert!(writes.iter().all(|write| write.is_committed() == committed), "{writes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn held_requests_and_answers_wait_for_their_gates() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let (before, after) = (Gate::new(), Gate::new());
    proxy.place(Fault::new(Match::secret_writes().name("held-before"), Action::HoldRequest(before.clone())));
    proxy.place(Fault::new(Match::secret_writes().name("held-after"), Action::HoldAnswer(after.clone())));
    for (name, gate, committed) in [("held-before", before, false), ("held-after", after.clone(), true)] {
        let mut write = pin!(apply(&secrets, name, "1"));
        tokio::select! {
            answer = &mut write => panic!("{name} was not held: {answer:?}"),
            () = gate.arrived(1) => {}
        }
        assert_eq!(secrets.get_opt(name).await?.is_some(), committed, "{name}");
        gate.open();
        write.await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_gives_up_at_the_gate_never_reaches_the_server() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let gate = Gate::new();
    proxy.place(Fault::new(Match::secret_writes(), Action::HoldRequest(gate.clone())));
    {
        let mut write = pin!(apply(&secrets, "given-up", "1"));
        tokio::select! {
            answer = &mut write => panic!("was not held: {answer:?}"),
            () = gate.arrived(1) => {}
        }
    }
    drop(secrets);
    // The client's connection closes when its last handle is gone; the proxy must notice before the gate opens.
    tokio::time::timeout(PATIENCE, gate.left()).await?;
    gate.open();
    let direct: Api<Secret> = Api::default_namespaced(shared().await?.admin_client()?);
    assert!(direct.get_opt("given-up").await?.is_none());
    assert_eq!(proxy.log().writes_to_secrets()[0].committed, None);
    Ok(())
}

#[tokio::test]
async fn watches_stream_and_can_be_stalled_filtered_fed_and_cut() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let list = secrets.list(&ListParams::default()).await?;
    let version = list.metadata.resource_version.context("version")?;
    let params = WatchParams::default().fields("metadata.name=watched").timeout(60);
    let mut events = secrets.watch(&params, &version).await?.boxed();

    apply(&secrets, "watched", "1").await?;
    assert_eq!(next(&mut events).await?, "ADDED watched");

    let gate = Gate::new();
    let stall = proxy.place(Fault::new(Match::watches("secrets"), Action::StallWatch(gate.clone())).once());
    apply(&secrets, "watched", "2").await?;
    tokio::select! {
        event = next(&mut events) => panic!("not stalled: {event:?}"),
        () = gate.arrived(1) => {}
    }
    assert_eq!(stall.hits(), 1);
    gate.open();
    assert_eq!(next(&mut events).await?, "MODIFIED watched");

    let lost = Action::LoseEvents(std::sync::Arc::new(|event| event["type"] == "MODIFIED"));
    let losing = proxy.place(Fault::new(Match::watches("secrets"), lost));
    apply(&secrets, "watched", "3").await?;
    losing.hit(1).await;
    proxy.heal();
    apply(&secrets, "watched", "4").await?;
    assert_eq!(next(&mut events).await?, "MODIFIED watched");

    let gone = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","message":"too old","code":410}}"#;
    assert_eq!(proxy.send_to_watches(&Match::watches("secrets"), format!("{gone}\n")), 1);
    assert_eq!(next(&mut events).await?, "ERROR 410");

    assert_eq!(proxy.open_watches(&Match::watches("secrets")), 1);
    assert_eq!(proxy.cut_watches(&Match::watches("secrets")), 1);
    assert!(next(&mut events).await.is_err());
    assert_eq!(proxy.open_watches(&Match::any()), 0);
    Ok(())
}

#[tokio::test]
async fn quiet_and_awaited_requests_are_told_from_the_log() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    let mark = proxy.log().mark();
    assert!(proxy.log().wait_for(mark, &Match::secret_writes(), 1, Duration::from_millis(50)).await.is_err());
    apply(&secrets, "awaited", "1").await?;
    assert_eq!(proxy.log().wait_for(mark, &Match::secret_writes(), 1, PATIENCE).await?.len(), 1);
    proxy.log().wait_quiet(Duration::from_millis(100), PATIENCE).await?;
    // Only the requests count: an API server that is slow to answer would make the pause between two of them.
    proxy.place(Fault::new(Match::secret_writes(), Action::Answer(Answer::refusal(403, "Forbidden", "no"))));
    let noise = async {
        while apply(&secrets, "awaited", "2").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = noise => anyhow::bail!("the write was not refused"),
        quiet = proxy.log().wait_quiet(Duration::from_secs(2), Duration::from_secs(3)) => assert!(quiet.is_err()),
    }
    Ok(())
}

#[tokio::test]
async fn a_view_shows_only_what_belongs_to_a_test() -> Result<()> {
    let (proxy, secrets) = proxied().await?;
    apply(&secrets, "view-mine", "1").await?;
    apply(&secrets, "view-theirs", "1").await?;
    proxy.show_only("secrets", "view-mine");
    let list = secrets.list(&ListParams::default()).await?;
    assert_eq!(list.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["view-mine"]);
    let version = list.metadata.resource_version.context("version")?;
    let mut events = secrets.watch(&WatchParams::default().timeout(60), &version).await?.boxed();
    apply(&secrets, "view-theirs", "2").await?;
    apply(&secrets, "view-mine", "2").await?;
    assert_eq!(next(&mut events).await?, "MODIFIED view-mine");
    Ok(())
}

#[tokio::test]
async fn the_callers_own_rights_count() -> Result<()> {
    let plane = shared().await?;
    let proxy = Proxy::start(plane)?;
    let token = plane.service_account_token("default", "default", "", 600).await?;
    let secrets: Api<Secret> = Api::default_namespaced(client(&proxy, &token)?);
    assert!(matches!(secrets.list(&ListParams::default()).await, Err(kube::Error::Api(status)) if status.code == 403));
    assert!(proxy.log().all()[0].refusal.as_ref().context("refusal")?.contains("cannot list resource"));
    Ok(())
}

async fn proxied() -> Result<(Proxy, Api<Secret>)> {
    let plane: &ControlPlane = shared().await?;
    let proxy = Proxy::start(plane)?;
    let secrets = Api::default_namespaced(client(&proxy, plane.admin_token())?);
    Ok((proxy, secrets))
}

fn client(proxy: &Proxy, token: &str) -> Result<Client> {
    let mut config = Config::new(proxy.url().parse()?);
    config.auth_info.token = Some(token.to_owned().into());
    Ok(Client::try_from(config)?)
}

async fn apply(secrets: &Api<Secret>, name: &str, value: &str) -> kube::Result<Secret> {
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"value": value}});
    secrets.patch(name, &PatchParams::apply("proxy-test").force(), &Patch::Apply(secret)).await
}

async fn next(events: &mut (impl Stream<Item = kube::Result<WatchEvent<Secret>>> + Unpin)) -> Result<String> {
    let event = tokio::time::timeout(PATIENCE, events.next()).await?.context("the watch ended")??;
    Ok(match event {
        WatchEvent::Added(secret) => format!("ADDED {}", secret.name_any()),
        WatchEvent::Modified(secret) => format!("MODIFIED {}", secret.name_any()),
        WatchEvent::Deleted(secret) => format!("DELETED {}", secret.name_any()),
        WatchEvent::Bookmark(_) => "BOOKMARK".into(),
        WatchEvent::Error(error) => format!("ERROR {}", error.code),
    })
}
