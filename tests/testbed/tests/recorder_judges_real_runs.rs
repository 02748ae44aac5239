//! The recorder finds on a real API server what it must find, and nothing else, also across an outage.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, Options, shared};
use testbed::proxy::Proxy;
use testbed::recorder::{Invariant, Recorder, Scope};

#[tokio::test]
async fn a_good_run_is_clean() -> Result<()> {
    let run = Run::start(shared().await?, "good").await?;
    run.apply(run.secret("1")).await?;
    run.apply(run.secret("2")).await?;
    run.say_ready().await?;
    run.recorder.canary("password", "password-1")?;
    run.recorder.quiet_for(Duration::from_millis(100)).await;
    run.recorder.assert_clean().await;
    assert_eq!(run.recorder.secret_versions("good", "good").len(), 2);
    run.credentials.delete("good", &DeleteParams::default()).await?;
    run.recorder.assert_clean().await;
    assert!(run.by_hand.get_opt("good").await?.is_none(), "judging must wait for the garbage collector");
    Ok(())
}

#[tokio::test]
async fn what_the_operator_does_wrong_is_found() -> Result<()> {
    let run = Run::start(shared().await?, "bad").await?;
    let foreign = json!({"metadata": {"name": "bad"}, "data": {}});
    run.by_hand.create(&PostParams::default(), &serde_json::from_value(foreign)?).await?;
    run.apply(json!({"metadata": {"name": "bad"}, "data": {"note": ""}})).await?;
    run.by_hand.delete("bad", &DeleteParams::default()).await?;

    run.apply(run.secret("password-1")).await?;
    let mut older = run.secret("password-2");
    older["metadata"]["annotations"]["pullsecrets.dev/expires-at"] =
        (Timestamp::now() + Duration::from_secs(60)).to_string().into();
    older["metadata"]["annotations"]["note"] = "password-2".into();
    run.recorder.canary("password", "password-2")?;
    run.recorder.aws_fails();
    run.apply(older).await?;
    run.recorder.aws_recovers();
    run.recorder.aws_calls("operator", "eu-west-1", 3, 2);
    let mark = run.recorder.mark();
    let mut empty = run.secret("password-1");
    empty["data"][".dockerconfigjson"] = BASE64_STANDARD.encode("{}").into();
    run.apply(empty).await?;
    run.recorder.quiet_since(&mark);

    let violations = run.recorder.judge().await?;
    let found: BTreeSet<Invariant> = violations.into_iter().map(|violation| violation.invariant).collect();
    let expected = BTreeSet::from([
        Invariant::I2Foreign,
        Invariant::I3WellFormed,
        Invariant::I4Monotone,
        Invariant::I5FailStatic,
        Invariant::I7Quiet,
        Invariant::I10AwsBound,
        Invariant::I11Secrecy,
    ]);
    assert_eq!(found, expected);
    Ok(())
}

#[tokio::test]
async fn what_others_do_is_not_held_against_the_operator() -> Result<()> {
    let run = Run::start(shared().await?, "others").await?;
    run.apply(run.secret("1")).await?;
    let edit = json!({"data": {".dockerconfigjson": BASE64_STANDARD.encode("{}")}});
    run.recorder.aws_fails();
    run.by_hand.patch("others", &PatchParams::default(), &Patch::Merge(&edit)).await?;
    assert_eq!(run.recorder.judge().await?.len(), 1, "a broken Secret must not be left");
    run.apply(run.secret("1")).await?;
    run.recorder.assert_clean().await;
    run.by_hand.delete("others", &DeleteParams::default()).await?;
    run.recorder.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_declared_exception_holds_for_its_secret_and_its_time() -> Result<()> {
    let run = Run::start(shared().await?, "excepted").await?;
    let foreign: Secret =
        serde_json::from_value(json!({"metadata": {"name": "excepted"}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode("{}")}}))?;
    run.by_hand.create(&PostParams::default(), &foreign).await?;
    run.recorder.excuse(Invariant::I2Foreign, "excepted/excepted", "the test says so");
    run.apply(run.secret("1")).await?;
    run.recorder.assert_clean().await;
    run.recorder.end_excuse(Invariant::I2Foreign, "excepted/excepted");
    run.by_hand.delete("excepted", &DeleteParams::default()).await?;
    run.by_hand.create(&PostParams::default(), &foreign).await?;
    run.apply(run.secret("1")).await?;
    assert_eq!(run.recorder.judge().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn recording_goes_on_after_an_outage_of_the_api_server() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let run = Run::start(&plane, "outage").await?;
    run.apply(run.secret("1")).await?;
    plane.stop_api_server();
    plane.start_api_server().await?;
    for value in 2..=20 {
        run.apply(run.secret(&value.to_string())).await?;
    }
    run.recorder.assert_clean().await;
    let last = run.recorder.secret_versions("outage", "outage").pop().expect("a version");
    assert_eq!(
        last["metadata"]["resourceVersion"].as_str(),
        run.by_hand.get("outage").await?.resource_version().as_deref()
    );
    Ok(())
}

/// A namespace, an EcrCredential and a Secret of one name, and a client that writes as the operator would.
struct Run {
    name: &'static str,
    uid: String,
    recorder: Recorder,
    _proxy: Proxy,
    operator: Api<Secret>,
    by_hand: Api<Secret>,
    credentials: Api<DynamicObject>,
}

impl Run {
    async fn start(plane: &ControlPlane, name: &'static str) -> Result<Run> {
        plane.install(&[definition()?]).await?;
        let client = plane.admin_client()?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": name}}))?)
            .await?;
        let recorder =
            Recorder::start(plane, Scope { staleness: Duration::from_secs(1), ..Scope::new([name], name) }).await?;

        let proxy = Proxy::start(plane)?;
        recorder.attach(proxy.log());
        let mut config = Config::new(proxy.url().parse()?);
        config.auth_info.token = Some(plane.admin_token().to_owned().into());
        let credentials: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
        let spec = json!({
            "registries": [{"private": {"region": "eu-west-1", "accountIds": ["111122223333"]}}],
            "secret": {"name": name},
            "namespaces": {"names": [name]},
        });
        let credential = DynamicObject::new(name, &resource()).data(json!({"spec": spec}));
        let uid = credentials.create(&PostParams::default(), &credential).await?.uid().unwrap_or_default();
        let operator = Api::namespaced(Client::try_from(config)?, name);
        Ok(Run { name, uid, recorder, _proxy: proxy, operator, by_hand: Api::namespaced(client, name), credentials })
    }

    async fn apply(&self, mut secret: Value) -> Result<()> {
        secret["apiVersion"] = "v1".into();
        secret["kind"] = "Secret".into();
        self.operator
            .patch(self.name, &PatchParams::apply("ecr-credential-operator").force(), &Patch::Apply(secret))
            .await?;
        Ok(())
    }

    fn secret(&self, password: &str) -> Value {
        let auth = BASE64_STANDARD.encode(format!("AWS:{password}"));
        let config = json!({"auths": {"111122223333.dkr.ecr.eu-west-1.amazonaws.com": {"auth": auth}}});
        let expires = Timestamp::now() + Duration::from_secs(12 * 3600);
        json!({
            "metadata": {
                "name": self.name,
                "labels": {
                    "app.kubernetes.io/managed-by": "ecr-credential-operator",
                    "pullsecrets.dev/credential": self.name,
                    "pullsecrets.dev/credential-uid": self.uid,
                },
                "annotations": {"pullsecrets.dev/expires-at": expires.to_string()},
                "ownerReferences": [{
                    "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": self.name, "uid": self.uid, "controller": true,
                }],
            },
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": BASE64_STANDARD.encode(config.to_string())},
        })
    }

    async fn say_ready(&self) -> Result<()> {
        let status = json!({"status": {
            "observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": "True"}],
            "expiresAt": (Timestamp::now() + Duration::from_secs(12 * 3600)).to_string(),
            "namespaces": {"selected": 1, "synced": 1, "failed": 0},
        }});
        self.credentials.patch_status(self.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &kube::core::GroupVersionKind::gvk("pullsecrets.dev", "v1alpha1", "EcrCredential"),
        "ecrcredentials",
    )
}

pub(super) fn definition() -> Result<CustomResourceDefinition> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": "ecrcredentials.pullsecrets.dev"},
        "spec": {
            "group": "pullsecrets.dev",
            "scope": "Cluster",
            "names": {"plural": "ecrcredentials", "singular": "ecrcredential", "kind": "EcrCredential"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    }))?)
}
