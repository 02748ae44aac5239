//! The webhook of a test is called by the real API server, and does to a request what the test says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::control_plane::shared;
use testbed::webhook::{Kind, Registration, Verdict, Webhook};

#[tokio::test]
async fn a_request_is_allowed_refused_mutated_delayed_or_left_without_an_answer() -> Result<()> {
    let client = shared().await?.admin_client()?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "webhooks" } }))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "webhooks");
    let create = async |name: &str| {
        let secret: Secret = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        let began = Instant::now();
        let answer = secrets.create(&PostParams::default(), &secret).await;
        anyhow::Ok((answer, began.elapsed()))
    };
    let webhook = Webhook::start()?;
    let registration = Registration {
        timeout_seconds: 5,
        ..Registration::secrets("decides-about-requests", Kind::Mutating, &["webhooks"])
    };
    let registered = webhook.register(&client, &registration).await?;

    create("allowed").await?.0?;
    let call = webhook.calls().pop().context("a call")?;
    assert_eq!((&*call.operation, &*call.resource, &*call.namespace), ("CREATE", "secrets", "webhooks"));
    assert_eq!((&*call.name, &*call.user), ("allowed", "admin"));

    // A client of kube would try again for minutes after 429, 503 and 504.
    for code in [400, 404, 409, 422, 500] {
        webhook.answer(Verdict::refuse(code, "not in my house"));
        match create("refused").await?.0 {
            Err(kube::Error::Api(status)) => {
                assert_eq!(status.code, code);
                assert!(status.message.contains("not in my house"), "{}", status.message);
            }
            other => panic!("{code}: {other:?}"),
        }
    }

    let patch = json!([{ "op": "add", "path": "/metadata/labels", "value": { "touched": "yes" } }]);
    webhook.answer(Verdict::Mutate(Arc::new(move |_| patch.clone())));
    assert_eq!(create("mutated").await?.0?.labels().get("touched").map(String::as_str), Some("yes"));

    webhook.answer(Verdict::Slow(Duration::from_secs(1)));
    let (answer, took) = create("slow").await?;
    answer?;
    assert!(took >= Duration::from_secs(1), "{took:?}");

    webhook.answer(Verdict::Hang);
    let (answer, took) = create("hanging").await?;
    answer.context("the webhook fails open")?;
    assert!(took >= Duration::from_secs(5), "{took:?}");

    registered.remove().await?;
    // Another server and another name: the API server may not have taken note of the removal yet.
    let webhook = Webhook::start()?;
    let closed = Registration { fail_open: false, name: "decides-again".to_owned(), ..registration };
    let registered = webhook.register(&client, &closed).await?;
    webhook.answer(Verdict::Fail(500));
    assert!(create("failing").await?.0.is_err());
    registered.remove().await?;
    Ok(())
}

/// The API server passes on the status code of a webhook that refuses, also one that no error has, and a Status that kube cannot read.
#[tokio::test]
async fn a_refusal_keeps_its_code_from_400_to_999_and_has_400_instead_of_a_success() -> Result<()> {
    let client = shared().await?.admin_client()?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "webhook-codes" } }))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let webhook = Webhook::start()?;
    let registration = Registration::secrets("odd-codes", Kind::Validating, &["webhook-codes"]);
    let registered = webhook.register(&client, &registration).await?;
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "x" } }).to_string();
    for (status, code) in [
        (json!({}), 400),
        (json!({ "code": -5 }), 400),
        (json!({ "code": 200, "status": "Success" }), 400),
        (json!({ "code": 302 }), 400),
        (json!({ "code": 404, "status": "Denied" }), 404),
        (json!({ "code": 409, "details": { "retryAfterSeconds": -1 } }), 409),
        (json!({ "code": 599 }), 599),
        (json!({ "code": 600 }), 600),
        (json!({ "code": 999 }), 999),
    ] {
        webhook.answer(Verdict::Refuse(status.clone()));
        let request = http::Request::post("/api/v1/namespaces/webhook-codes/secrets")
            .header("content-type", "application/json")
            .body(Body::from(secret.clone().into_bytes()))?;
        let answer = client.send(request).await?;
        assert_eq!(answer.status().as_u16(), code, "{status}");
        let body = answer.into_body().collect_bytes().await?;
        let message = String::from_utf8_lossy(&body);
        assert!(message.contains("admission webhook") && message.contains("denied the request"), "{status}: {message}");
    }
    registered.remove().await?;
    Ok(())
}
