//! The control plane is a real one: it serves, issues verifiable tokens, collects garbage, survives its API server's restart, and leaves nothing behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use rustix::process::{Pid, Signal};
use serde_json::json;
use testbed::control_plane::{ControlPlane, Options, shared};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_namespace_gets_its_service_account_and_can_be_deleted() -> Result<()> {
    let plane = shared().await?;
    let namespaces: Api<Namespace> = Api::all(plane.admin_client()?);
    let created =
        namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": "comes-and-goes"}}))?).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin_client()?, "comes-and-goes");
    tokio::time::timeout(PATIENCE, await_condition(accounts, "default", |o: Option<&ServiceAccount>| o.is_some()))
        .await??;
    namespaces.delete("comes-and-goes", &DeleteParams::default()).await?;
    let uid = created.uid().context("uid")?;
    tokio::time::timeout(PATIENCE, await_condition(namespaces, "comes-and-goes", conditions::is_deleted(&uid)))
        .await??;
    Ok(())
}

#[tokio::test]
async fn a_service_account_token_verifies_against_the_served_keys() -> Result<()> {
    let plane = shared().await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin_client()?, "default");
    tokio::time::timeout(PATIENCE, await_condition(accounts, "default", |o: Option<&ServiceAccount>| o.is_some()))
        .await??;
    let token = plane.service_account_token("default", "default", "sts.amazonaws.com", 600).await?;
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(plane.jwks().await?)?;
    let header = jsonwebtoken::decode_header(&token)?;
    let key = keys.find(header.kid.as_deref().context("kid")?).context("the key of the token")?;
    let mut validation = jsonwebtoken::Validation::new(header.alg);
    validation.set_audience(&["sts.amazonaws.com"]);
    validation.set_issuer(&[plane.issuer()]);
    let claims =
        jsonwebtoken::decode::<serde_json::Value>(&token, &jsonwebtoken::DecodingKey::from_jwk(key)?, &validation)?
            .claims;
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    Ok(())
}

#[tokio::test]
async fn what_a_new_kind_owns_is_collected_at_once() -> Result<()> {
    let plane = shared().await?;
    // All that the tests of this program install: another kind would restart the garbage collector meanwhile.
    plane.install(&[widgets()?, super::recorder_judges_real_runs::definition()?]).await?;
    let resource =
        ApiResource::from_gvk_with_plural(&kube::core::GroupVersionKind::gvk("testbed.dev", "v1", "Widget"), "widgets");
    let widgets: Api<DynamicObject> = Api::all_with(plane.admin_client()?, &resource);
    let owner = widgets.create(&PostParams::default(), &DynamicObject::new("owner", &resource)).await?;
    let maps: Api<ConfigMap> = Api::namespaced(plane.admin_client()?, "default");
    let reference = json!({"apiVersion": "testbed.dev/v1", "kind": "Widget", "name": "owner", "uid": owner.uid()});
    let owned: ConfigMap = object(json!({"metadata": {"name": "owned", "ownerReferences": [reference]}}))?;
    let owned = maps.create(&PostParams::default(), &owned).await?;
    let started = Instant::now();
    widgets.delete("owner", &DeleteParams::default()).await?;
    let uid = owned.uid().context("uid")?;
    tokio::time::timeout(PATIENCE, await_condition(maps, "owned", conditions::is_deleted(&uid))).await??;
    assert!(started.elapsed() < Duration::from_secs(10), "collected after {:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_kubeconfig_serves_kubectl() -> Result<()> {
    let plane = shared().await?;
    let path = plane.kubeconfig(&plane.url(), plane.admin_token(), Some(plane.ca_pem()))?;
    let client = kube::Client::try_from(
        kube::Config::from_custom_kubeconfig(kube::config::Kubeconfig::read_from(&path)?, &Default::default()).await?,
    )?;
    let version = client.apiserver_version().await?;
    assert!(version.git_version.starts_with("v1."), "{}", version.git_version);
    // kubectl must be able to parse the server's version.
    let kubectl = std::process::Command::new(testbed::tools::get("kubectl")?)
        .arg("--kubeconfig")
        .arg(&path)
        .arg("version")
        .output()?;
    assert!(
        String::from_utf8_lossy(&kubectl.stdout).contains(&format!("Server Version: {}", version.git_version)),
        "{kubectl:?}"
    );
    Ok(())
}

#[tokio::test]
async fn objects_survive_the_api_servers_restart_and_nothing_is_left_after_the_end() -> Result<()> {
    let started = Instant::now();
    let plane = ControlPlane::start(Options::default()).await?;
    eprintln!("up after {:?}", started.elapsed());
    let namespaces: Api<Namespace> = Api::all(plane.admin_client()?);
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": "survivor"}}))?).await?;
    plane.stop_api_server();
    assert!(plane.admin_client()?.apiserver_version().await.is_err(), "a stopped API server must not answer");
    plane.start_api_server().await?;
    let namespaces: Api<Namespace> = Api::all(plane.admin_client()?);
    assert_eq!(namespaces.get("survivor").await?.name_any(), "survivor");

    let (dir, pids) = (plane.dir().to_owned(), plane.pids());
    plane.stop();
    assert!(!dir.exists(), "{} is left", dir.display());
    for pid in [Some(pids.etcd), pids.controller_manager].into_iter().flatten() {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_ends_by_itself_is_started_again() -> Result<()> {
    let plane = std::sync::Arc::new(ControlPlane::start(Options::default()).await?);
    let keeper = std::thread::spawn({
        let plane = plane.clone();
        move || plane.keep_api_server()
    });
    let before = plane.pids().api_server.context("it runs")?;
    let pid = Pid::from_raw(i32::try_from(before)?).context("a process has an id")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    let again = async {
        while plane.pids().api_server == Some(before) || plane.admin_client()?.apiserver_version().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), again).await??;
    plane.stop_api_server();
    tokio::task::spawn_blocking(move || keeper.join()).await?.expect("no panic");
    Ok(())
}

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

fn widgets() -> Result<CustomResourceDefinition> {
    object(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.testbed.dev"},
        "spec": {
            "group": "testbed.dev",
            "scope": "Cluster",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    }))
}
