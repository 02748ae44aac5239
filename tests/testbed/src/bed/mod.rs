//! One test's surroundings: names of its own, an AWS stand-in, a proxy and a recorder, and the operator as a process.

pub mod operator;
pub mod rights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::aws::{AwsStandIn, Role, Trust};
use crate::control_plane::ControlPlane;
use crate::proxy::Proxy;
use crate::recorder::{Recorder, Scope};
pub use operator::{Launch, Operator};

/// How long a test waits for what should take moments, on a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The account of the operator's role, and so of its own registry.
pub const ACCOUNT: &str = "123456789012";

/// One test's surroundings.
pub struct Bed {
    /// The control plane, shared with other tests.
    pub plane: &'static ControlPlane,
    /// The administrator's client, past the proxy.
    pub client: Client,
    /// This test's AWS.
    pub aws: AwsStandIn,
    /// Between this test's operators and the API server.
    pub proxy: Proxy,
    /// The judge.
    pub recorder: Recorder,
    /// The beginning of every name of this test.
    pub prefix: String,
    /// The Secret name that this test's operators may write.
    pub secret: String,
    /// The operator's own namespace.
    pub home: String,
    /// The operator's role.
    pub role: String,
    /// Whether the control plane is this one's alone, so that the operator serves every EcrCredential.
    alone: bool,
    dir: tempfile::TempDir,
}

/// What the cluster's EcrCredentials are, as far as a client without the product's types needs to know.
pub fn credential_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("pullsecrets.dev", "v1alpha1", "EcrCredential"),
        "ecrcredentials",
    )
}

impl Bed {
    /// Surroundings for a test, with the CRD installed and the operator's rights granted.
    pub async fn new(test: &str, crd: &str) -> Result<Bed> {
        Self::with_secret_names(test, crd, &[]).await
    }

    /// The same with further Secret names that may be written, each preceded by the test's prefix.
    pub async fn with_secret_names(test: &str, crd: &str, more: &[&str]) -> Result<Bed> {
        let prefix = unique(test);
        let mut names = vec![format!("{prefix}-pull")];
        names.extend(more.iter().map(|name| format!("{prefix}-{name}")));
        let home = format!("{prefix}-home");
        Self::make(crate::control_plane::shared().await?, crd, prefix, home, names, false).await
    }

    /// Surroundings that nobody else shares, with the names that users have.
    pub async fn alone(prefix: &str, crd: &str) -> Result<Bed> {
        let home = "ecr-credential-operator".to_owned();
        let plane = crate::control_plane::shared().await?;
        Self::make(plane, crd, prefix.to_owned(), home, vec!["ecr-pull-secret".to_owned()], true).await
    }

    /// Surroundings on a control plane of the test's own, which is kept until the process ends.
    pub async fn on(plane: ControlPlane, test: &str, crd: &str) -> Result<Bed> {
        let prefix = unique(test);
        let (home, names) = (format!("{prefix}-home"), vec![format!("{prefix}-pull")]);
        Self::make(Box::leak(Box::new(plane)), crd, prefix, home, names, false).await
    }

    async fn make(
        plane: &'static ControlPlane,
        crd: &str,
        prefix: String,
        home: String,
        names: Vec<String>,
        alone: bool,
    ) -> Result<Bed> {
        let crd: CustomResourceDefinition = serde_yaml_ng::from_str(crd).context("read the CRD")?;
        plane.install(&[crd]).await?;
        let secret = names.first().cloned().context("a Secret name")?;
        let aws = AwsStandIn::start()?;
        let role = format!("arn:aws:iam::{ACCOUNT}:role/{prefix}");
        let issuer = plane.issuer();
        aws.set_jwks(&issuer, &plane.jwks().await?.to_string());
        let subject = format!("system:serviceaccount:{home}:operator");
        aws.add_role(Role::new(&role).trusting(Trust::web_identity(&issuer, &subject, "sts.amazonaws.com")));
        let proxy = Proxy::start(plane)?;
        let mut scope = Scope::new(names.clone(), format!("{prefix}-"));
        scope.lease = Some((home.clone(), "ecr-credential-operator".to_owned()));
        scope.defaults.account = Some(ACCOUNT.to_owned());
        scope.defaults.region = Some("eu-west-1".to_owned());
        let recorder = Recorder::start(plane, scope).await?;
        recorder.attach(proxy.log());
        let bed = Bed {
            client: plane.admin_client()?,
            plane,
            aws,
            proxy,
            recorder,
            prefix,
            secret,
            home,
            role,
            alone,
            dir: tempfile::tempdir()?,
        };
        bed.prepare(&names).await?;
        Ok(bed)
    }

    async fn prepare(&self, secret_names: &[String]) -> Result<()> {
        self.make_namespace(&self.home, &[]).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.home);
        let account = serde_json::from_value(json!({ "metadata": { "name": "operator" } }))?;
        accounts.create(&PostParams::default(), &account).await.context("create the operator's ServiceAccount")?;
        rights::grant(&self.client, &self.prefix, &self.home, secret_names).await
    }

    /// Where this test's files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A namespace of this test; returns its whole name.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<String> {
        let name = self.name(name);
        self.make_namespace(&name, labels).await?;
        Ok(name)
    }

    async fn make_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?;
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &namespace).await.with_context(|| format!("create the namespace {name}"))?;
        Ok(())
    }

    /// Sets labels of a namespace; `None` takes one away.
    pub async fn label(&self, namespace: &str, labels: &[(&str, Option<&str>)]) -> Result<()> {
        let labels: BTreeMap<&str, Option<&str>> = labels.iter().copied().collect();
        let patch = json!({ "metadata": { "labels": labels } });
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.patch(namespace, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// The whole name of something of this test.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The EcrCredentials.
    pub fn credentials(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &credential_resource())
    }

    /// Creates an EcrCredential whose Secret has this test's name unless the spec says otherwise; returns its name.
    pub async fn credential(&self, name: &str, mut spec: Value) -> Result<String> {
        if spec.pointer("/secret/name").is_none() {
            spec["secret"]["name"] = json!(self.secret);
        }
        let name = self.name(name);
        let object = json!({
            "apiVersion": "pullsecrets.dev/v1alpha1",
            "kind": "EcrCredential",
            "metadata": { "name": name, "labels": { "bed": self.prefix } },
            "spec": spec,
        });
        let object: DynamicObject = serde_json::from_value(object)?;
        self.credentials()
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create the EcrCredential {name}"))?;
        Ok(name)
    }

    /// Changes an EcrCredential by a merge patch.
    pub async fn change(&self, name: &str, patch: Value) -> Result<()> {
        self.credentials().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// The Secrets of a namespace.
    pub fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The Secret of this test's name in a namespace, if it is there.
    pub async fn secret(&self, namespace: &str) -> Result<Option<Secret>> {
        Ok(self.secrets(namespace).get_opt(&self.secret).await?)
    }

    /// Waits until the Secret of this test's name in a namespace is as a test wants it.
    pub async fn secret_until(
        &self,
        namespace: &str,
        what: &str,
        test: impl Fn(Option<&Secret>) -> bool,
    ) -> Result<Option<Secret>> {
        self.named_secret_until(namespace, &self.secret.clone(), what, test).await
    }

    /// Waits until a Secret is as a test wants it.
    pub async fn named_secret_until(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        test: impl Fn(Option<&Secret>) -> bool,
    ) -> Result<Option<Secret>> {
        let stream = watcher::watch_object(self.secrets(namespace), name);
        until(stream, &format!("the Secret {namespace}/{name}: {what}"), test).await
    }

    /// Waits until the Secret of this test's name is in a namespace and holds working logins for these hosts.
    pub async fn logins_until(&self, namespace: &str, hosts: &[&str]) -> Result<Secret> {
        let wanted: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let test = |secret: Option<&Secret>| {
            secret.and_then(|s| logins(s).ok()).is_some_and(|l| {
                l.keys().cloned().collect::<Vec<_>>() == sorted(&wanted)
                    && l.values().all(|auth| self.aws.is_valid(auth))
            })
        };
        let secret = self.secret_until(namespace, &format!("valid logins for {hosts:?}"), test).await?;
        secret.context("the Secret is there")
    }

    /// Waits until an EcrCredential is as a test wants it.
    pub async fn credential_until(
        &self,
        name: &str,
        what: &str,
        test: impl Fn(&DynamicObject) -> bool,
    ) -> Result<DynamicObject> {
        let stream = watcher::watch_object(self.credentials(), name);
        let found = until(stream, &format!("the EcrCredential {name}: {what}"), |o| o.is_some_and(&test)).await?;
        found.context("the EcrCredential is there")
    }

    /// Waits until a condition of an EcrCredential has a status and a reason, for its current generation.
    pub async fn condition_until(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<DynamicObject> {
        let what = format!("{type_}={status} {reason}");
        self.credential_until(name, &what, |object| {
            let current =
                object.data.pointer("/status/observedGeneration").and_then(Value::as_i64) == object.metadata.generation;
            let found = condition(object, type_);
            current && found.is_some_and(|c| c["status"] == status && c["reason"] == reason)
        })
        .await
    }

    /// Waits until an EcrCredential is ready.
    pub async fn ready(&self, name: &str) -> Result<DynamicObject> {
        self.condition_until(name, "Ready", "True", "Synced").await
    }

    /// Deletes a namespace without waiting.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Ends the test: everything is deleted, the judge speaks.
    pub async fn finish(self) -> Result<()> {
        for secret in self.aws.secrets_issued() {
            if secret.len() >= 16 {
                self.recorder.canary("a secret of AWS", secret)?;
            }
        }
        self.recorder.assert_clean().await;
        let params = ListParams::default().labels(&format!("bed={}", self.prefix));
        self.credentials().delete_collection(&DeleteParams::default(), &params).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in namespaces.list_metadata(&ListParams::default()).await? {
            if namespace.name_any().starts_with(&format!("{}-", self.prefix)) {
                let _ = namespaces.delete(&namespace.name_any(), &DeleteParams::default()).await;
            }
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A condition of an object.
pub fn condition<'a>(object: &'a DynamicObject, type_: &str) -> Option<&'a Value> {
    object.data.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == type_)
}

/// The logins in a Secret, by host, as kubelet reads them: base64 of `user:password`.
pub fn logins(secret: &Secret) -> Result<BTreeMap<String, String>> {
    ensure!(
        secret.type_.as_deref() == Some("kubernetes.io/dockerconfigjson"),
        "the Secret's type is {:?}",
        secret.type_
    );
    let data = secret.data.as_ref().context("the Secret has no data")?;
    let config: Value =
        serde_json::from_slice(&data.get(".dockerconfigjson").context("the Secret has no .dockerconfigjson")?.0)?;
    let auths = config["auths"].as_object().context("there are no auths")?;
    let mut logins = BTreeMap::new();
    for (host, entry) in auths {
        let auth = entry["auth"].as_str().context("there is no auth")?;
        let decoded = String::from_utf8(STANDARD.decode(auth)?)?;
        ensure!(
            decoded.split_once(':').is_some_and(|(user, password)| user == "AWS" && !password.is_empty()),
            "not AWS:password"
        );
        logins.insert(host.clone(), auth.to_owned());
    }
    Ok(logins)
}

/// Waits on a watch until a test holds, and says what was last seen if it never does.
async fn until<K: std::fmt::Debug + Clone>(
    stream: impl futures::Stream<Item = watcher::Result<Option<K>>>,
    what: &str,
    test: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>> {
    let mut stream = std::pin::pin!(stream);
    let mut last = None;
    let search = async {
        while let Some(item) = stream.next().await {
            let Ok(item) = item else { continue };
            if test(item.as_ref()) {
                return Some(item);
            }
            last = Some(item);
        }
        None
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(Some(found)) => Ok(found),
        _ => anyhow::bail!("waited {PATIENCE:?} in vain for {what}; last seen: {last:#?}"),
    }
}

fn sorted(list: &[String]) -> Vec<String> {
    let mut list = list.to_vec();
    list.sort();
    list
}

/// A name that no other test has, short enough for every use.
fn unique(test: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let short: String = test.replace('_', "-").chars().take(24).collect();
    format!("{}-{}{}", short.trim_end_matches('-'), std::process::id() % 10_000, number)
}
