//! The process: its end on SIGTERM, its HTTP pages, its logs, and its patience with a missing CRD.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams};
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};
use testbed::aws::{Fault as AwsFault, Service};
use testbed::bed::{Bed, poll};
use testbed::control_plane::{ControlPlane, Options};
use testbed::proxy::{Action, Fault, Gate, Match};

use super::demand::*;
use super::{CRD, OWN, PUBLIC, bed, launch, operator};

#[tokio::test]
async fn sigterm_in_the_middle_of_300_writes_ends_well_and_the_next_process_completes_them() {
    let bed = bed("sigterm").await;
    let names: Vec<String> = (0..300).map(|n| format!("n{n}")).collect();
    let made = futures::stream::iter(&names).map(|name| bed.namespace(name, &[])).buffer_unordered(8);
    made.try_collect::<Vec<_>>().await.unwrap();
    let gate = Gate::new();
    bed.proxy.place(Fault::new(Match::secret_writes(), Action::HoldRequest(gate.clone())).skip(100));
    let mut first = operator(&bed).await;
    let all = spec(json!([{ "private": {} }]), &[&bed.name("n*")]);
    let name = bed.credential("x", all).await.unwrap();
    gate.arrived(1).await;
    first.signal("TERM").unwrap();
    let began = Instant::now();
    poll("it has heard the signal", async || first.tail().contains("stopping")).await;
    bed.proxy.heal();
    gate.open();
    let status = first.ended().await.unwrap();
    assert!(status.success(), "{status}: {}", first.tail());
    assert!(began.elapsed() < Duration::from_secs(20), "within the grace period: {:?}", began.elapsed());
    let written = bed.proxy.log().writes_to_secrets();
    assert!(written.iter().all(|write| write.is_committed()), "what was begun was ended");
    assert!((100..=140).contains(&written.len()), "nothing new was begun: {} writes", written.len());

    let second = operator(&bed).await;
    bed.ready(&name).await.unwrap();
    second.stop().await.unwrap();
    let secrets: Api<Secret> = Api::all(bed.client.clone());
    let secrets = secrets.list(&ListParams::default().fields(&format!("metadata.name={}", bed.secret))).await.unwrap();
    assert_eq!(secrets.items.len(), 300);
    assert!(secrets.items.iter().all(|secret| secret.data == secrets.items[0].data), "every namespace has the same");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn neither_aws_nor_the_api_server_can_hold_up_the_end() {
    let bed = bed("end").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let _ = bed.aws.fault(Service::Ecr, AwsFault::Hang).until_cleared();
    let first = bed.operator(launch().patient_with_aws()).await.unwrap();
    bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.aws.wait_for_calls(Service::Ecr, 1).await;
    let began = Instant::now();
    first.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it need not wait for AWS: {:?}", began.elapsed());

    // The lists never come.
    let gate = Gate::new();
    let lists = Match::any().method("GET").resource("secrets");
    bed.proxy.place(Fault::new(lists, Action::HoldRequest(gate.clone())));
    let second = bed.operator(launch().without_waiting()).await.unwrap();
    gate.arrived(1).await;
    let began = Instant::now();
    second.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it need not wait for a list: {:?}", began.elapsed());
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_keep_the_process_from_its_end() {
    let bed = bed("silent").await;
    let operator = operator(&bed).await;
    let mut silent = TcpStream::connect(operator.address()).unwrap();
    let mut slow = TcpStream::connect(operator.address()).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    let began = Instant::now();
    operator.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let _ = silent.write_all(b"x");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn it_is_alive_at_once_and_ready_once_every_watch_has_its_list() {
    let bed = bed("pages").await;
    let gate = Gate::new();
    let lists = Match::any().method("GET").resource("namespaces").when(|request| !request.is_watch());
    bed.proxy.place(Fault::new(lists, Action::HoldRequest(gate.clone())));
    let mut operator = bed.operator(launch().without_waiting()).await.unwrap();
    gate.arrived(1).await;
    page_until(&operator, "/livez", |status, _| status == 200).await;
    page_until(&operator, "/readyz", |status, text| status == 503 && text.contains("watches")).await;
    page_until(&operator, "/metrics", |_, text| text.contains("_leader 0\n")).await;
    gate.open();
    operator.until_ready().await.unwrap();
    page_until(&operator, "/metrics", |_, text| text.contains("_leader 1\n")).await;
    assert_eq!(operator.get("/nothing").await.unwrap().0, 404);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_metrics_tell_what_is_and_name_no_objects_but_ecrcredentials() {
    let bed = bed("metrics").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a, &b])).await.unwrap();
    let younger = bed.credential("y", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let object = bed.ready(&name).await.unwrap();
    let expires = time(&object, "/status/expiresAt").unwrap().as_second();
    let wanted = [
        "token_expiry_timestamp_seconds{api=\"ecr\",region=\"eu-west-1\",identity=\"operator\"} ".to_owned(),
        "token_expiry_timestamp_seconds{api=\"ecr-public\",region=\"us-east-1\",identity=\"operator\"} ".to_owned(),
        "token_refresh_timestamp_seconds{api=\"ecr\",region=\"eu-west-1\",identity=\"operator\"} ".to_owned(),
        "aws_requests_total{api=\"ecr\",identity=\"operator\",result=\"success\"} 1\n".to_owned(),
        "aws_requests_total{api=\"ecr-public\",identity=\"operator\",result=\"success\"} 1\n".to_owned(),
        "secret_writes_total{operation=\"create\",result=\"success\"} 2\n".to_owned(),
        // The younger EcrCredential wants the Secret that the older has.
        "namespaces{state=\"synced\"} 2\n".to_owned(),
        "namespaces{state=\"failed\"} 1\n".to_owned(),
        "namespaces{state=\"pending\"} 0\n".to_owned(),
        "credentials{state=\"ready\"} 1\n".to_owned(),
        "credentials{state=\"not_ready\"} 1\n".to_owned(),
        "credentials{state=\"stalled\"} 0\n".to_owned(),
        format!("earliest_secret_expiry_timestamp_seconds {expires}\n"),
        "reconcile_duration_seconds_count{result=\"success\"} ".to_owned(),
        "aws_identity{source=\"web_identity\"} 1\n".to_owned(),
        "aws_identity{source=\"node\"} 0\n".to_owned(),
        "leader 1\n".to_owned(),
        "build_info{version=\"".to_owned(),
        format!("credential_ready{{name=\"{name}\",reason=\"Synced\"}} 1\n"),
        format!("credential_ready{{name=\"{younger}\",reason=\"NamespacesFailed\"}} 0\n"),
        format!("credential_expiry_timestamp_seconds{{name=\"{name}\"}} {expires}\n"),
        "aws_requests_total{api=\"ecr\",identity=\"operator\",result=\"AccessDenied\"} 0\n".to_owned(),
        "aws_http_request_duration_seconds_count{api=\"ecr\",action=\"GetAuthorizationToken\",result=\"success\"} 1\n"
            .to_owned(),
        "aws_http_request_duration_seconds_count{api=\"sts\",action=\"AssumeRoleWithWebIdentity\",result=\"success\"} "
            .to_owned(),
    ];
    let all = |text: &str| wanted.iter().all(|line| text.contains(&format!("\necr_credential_operator_{line}")));
    let text = page_until(&operator, "/metrics", |status, text| status == 200 && all(text)).await;
    assert!(!text.contains("# EOF") && text.contains("\nprocess_start_time_seconds 1"), "{text}");
    let named = text.lines().filter(|line| line.contains(&bed.prefix) && !line.contains("_operator_credential_"));
    assert_eq!(named.collect::<Vec<_>>(), [""; 0], "the name of another object is a label");
    for line in text.lines().filter(|line| line.starts_with("# HELP ")) {
        assert!(line.split(' ').count() > 4, "{line}");
    }
    // The series of what nobody asks for any more go.
    bed.change(&name, json!({ "spec": { "registries": [{ "private": {} }] } })).await.unwrap();
    bed.change(&younger, json!({ "spec": { "suspend": true } })).await.unwrap();
    page_until(&operator, "/metrics", |_, text| {
        !text.contains("token_expiry_timestamp_seconds{api=\"ecr-public\"")
            && text.contains("token_expiry_timestamp_seconds{api=\"ecr\"")
            && text.contains("namespaces{state=\"failed\"} 0\n")
            && text.contains(&format!("credential_ready{{name=\"{younger}\",reason=\"Suspended\"}} 0\n"))
    })
    .await;
    // What is gone is told of no more, what others have is theirs, and no counter goes back.
    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    bed.change(&younger, json!({ "spec": { "suspend": false } })).await.unwrap();
    let ready = bed.ready(&younger).await.unwrap();
    let expires = time(&ready, "/status/expiresAt").unwrap().as_second() as f64;
    let wanted = [
        ("credentials{state=\"ready\"}", 1.0),
        ("credentials{state=\"not_ready\"}", 0.0),
        ("namespaces{state=\"synced\"}", 1.0),
        ("namespaces{state=\"failed\"}", 0.0),
        ("namespaces{state=\"pending\"}", 0.0),
        ("earliest_secret_expiry_timestamp_seconds", expires),
    ];
    let all = |text: &str| wanted.iter().all(|(name, value)| metric(text, name) == Some(*value));
    let later = page_until(&operator, "/metrics", |status, text| status == 200 && all(text)).await;
    for line in text.lines().filter(|line| line.contains("_total") || line.contains("_count")) {
        let Some((name, value)) = line.strip_prefix("ecr_credential_operator_").and_then(|line| line.rsplit_once(' '))
        else {
            continue;
        };
        assert!(metric(&later, name) >= value.parse().ok(), "{line} went back");
    }
    bed.credentials().delete(&younger, &DeleteParams::default()).await.unwrap();
    page_until(&operator, "/metrics", |_, text| !text.contains(&younger)).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn json_logs_are_one_object_a_line() {
    let bed = bed("json-logs").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(launch().args(&["--log-format", "json"])).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    let log = operator.log.clone();
    operator.stop().await.unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let mut messages = Vec::new();
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(["timestamp", "level", "target"].iter().all(|field| entry[field].is_string()), "{line}");
        messages.extend(entry["message"].as_str().map(str::to_owned));
    }
    for message in ["became the leader", "fetched a token", "the lease was released"] {
        assert!(messages.iter().any(|m| m == message), "{message}");
    }
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_missing_crd_is_waited_for() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let bed = Bed::on(plane, "no-crd", CRD).await.unwrap();
    let crd: CustomResourceDefinition = serde_saphyr::from_str(CRD).unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(bed.client.clone());
    let name = crd.metadata.name.clone().unwrap();
    let uid = crds.get(&name).await.unwrap().metadata.uid.unwrap();
    crds.delete(&name, &DeleteParams::default()).await.unwrap();
    await_condition(crds, &name, conditions::is_deleted(&uid)).await.unwrap();
    let mut operator = bed.operator(launch().without_waiting()).await.unwrap();
    let tried = Match::any().resource("ecrcredentials").when(|request| request.status == Some(404));
    bed.proxy.log().wait_for(Default::default(), &tried, 3, testbed::bed::PATIENCE).await.unwrap();
    assert_eq!(
        log_lines(&operator, "is not installed: waiting for it"),
        1,
        "said once: {}",
        std::fs::read_to_string(&operator.log).unwrap()
    );
    page_until(&operator, "/livez", |status, _| status == 200).await;
    page_until(&operator, "/readyz", |status, _| status == 503).await;
    bed.plane.install(&[crd]).await.unwrap();
    operator.until_ready().await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    let plane = bed.plane;
    bed.finish().await.unwrap();
    // It cannot be dropped, but it need not take part in what is left of the suite.
    plane.stop_controller_manager();
    plane.stop_api_server();
}
