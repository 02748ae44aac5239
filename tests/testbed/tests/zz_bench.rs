use anyhow::Result;
use base64::Engine;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::*;
use kube::{Api, Client, Config};
use serde_json::json;
use std::time::{Duration, Instant};
use testbed::{
    control_plane::shared,
    proxy::Proxy,
    recorder::{Recorder, Scope},
};
#[tokio::test(flavor = "multi_thread")]
async fn bench() -> Result<()> {
    let n = 5000;
    let plane = shared().await?;
    let crd = serde_json::from_value(json!({"metadata": {"name": "ecrcredentials.pullsecrets.dev"},
        "spec": {"group": "pullsecrets.dev","scope": "Cluster","names": {"plural": "ecrcredentials", "singular": "ecrcredential", "kind": "EcrCredential"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},"schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}))?;
    plane.install(&[crd]).await?;
    let admin = plane.admin_client()?;
    let nss: Api<Namespace> = Api::all(admin.clone());
    let t = Instant::now();
    futures::stream::iter(0..n)
        .map(|i| {
            let nss = nss.clone();
            async move {
                let ns: Namespace = serde_json::from_value(json!({"metadata": {"name": format!("n{i}")}})).unwrap();
                nss.create(&PostParams::default(), &ns).await.unwrap();
            }
        })
        .buffer_unordered(32)
        .collect::<Vec<_>>()
        .await;
    eprintln!("{n} namespaces {:?}", t.elapsed());
    let rec = Recorder::start(plane, Scope::new(["pull"], "bench")).await?;
    let proxy = Proxy::start(plane)?;
    rec.attach(proxy.log());
    let res = ApiResource::from_gvk_with_plural(
        &kube::core::GroupVersionKind::gvk("pullsecrets.dev", "v1alpha1", "EcrCredential"),
        "ecrcredentials",
    );
    let creds: Api<DynamicObject> = Api::all_with(admin.clone(), &res);
    let c = creds.create(&PostParams::default(), &DynamicObject::new("bench", &res).data(json!({"spec": {"secret": {"name": "pull"}, "namespaces": {"names": ["n*"]}, "registries": [{"private": {"region": "eu-west-1", "accountIds": ["111122223333"]}}]}}))).await?;
    let uid = c.metadata.uid.clone().unwrap();
    let mut config = Config::new(proxy.url().parse()?);
    config.auth_info.token = Some(plane.admin_token().to_owned().into());
    let client = Client::try_from(config)?;
    for (label, cl) in [("proxied", client), ("direct", admin)] {
        let t = Instant::now();
        futures::stream::iter(0..n).map(|i| { let api: Api<Secret> = Api::namespaced(cl.clone(), &format!("n{i}")); let uid = uid.clone(); async move {
        let b = base64::prelude::BASE64_STANDARD; let auth = b.encode(format!("AWS:{label}{}", "x".repeat(2000)));
        let o = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull", "labels": {"app.kubernetes.io/managed-by": "ecr-credential-operator", "pullsecrets.dev/credential-uid": uid}, "annotations": {"pullsecrets.dev/expires-at": "2030-01-01T00:00:00Z"}}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": b.encode(json!({"auths": {"111122223333.dkr.ecr.eu-west-1.amazonaws.com": {"auth": auth}}}).to_string())}});
        api.patch_metadata("pull", &PatchParams::apply("ecr-credential-operator").force(), &Patch::Apply(o)).await.unwrap(); } }).buffer_unordered(32).collect::<Vec<_>>().await;
        eprintln!("{label}: {n} secrets {:?} {:.0}/s", t.elapsed(), n as f64 / t.elapsed().as_secs_f64());
    }
    rec.canary("tok", "abcdefghijklmnopqrst")?;
    let t = Instant::now();
    eprintln!("violations {} in {:?}", rec.judge().await?.len(), t.elapsed());
    creds.delete("bench", &DeleteParams::default()).await?;
    let _ = Duration::ZERO;
    Ok(())
}
