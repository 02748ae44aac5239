//! One test's surroundings: names of its own, an AWS stand-in, a proxy and a recorder, and the operator as a process.

pub mod identities;
pub mod objects;
pub mod operator;
pub mod rights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::aws::{AwsStandIn, Role, Trust};
use crate::control_plane::ControlPlane;
use crate::proxy::Proxy;
use crate::recorder::{Defaults, Recorder, Scope, Violation};
pub use identities::Tenant;
pub use objects::{
    REFRESH_REQUESTED, condition, credential_resource, logins, next_second, poll, unreadable_managed_field,
};
pub use operator::{Launch, Operator};
pub use rights::AllowedIdentities;

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
        let crd: CustomResourceDefinition = serde_saphyr::from_str(crd).context("read the CRD")?;
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
        scope.settings[0].defaults =
            Defaults { account: Some(ACCOUNT.to_owned()), region: Some("eu-west-1".to_owned()) };
        scope.api_audiences = vec![issuer.clone(), "https://kubernetes.default.svc".to_owned()];
        let recorder = Recorder::start(plane, scope).await?;
        recorder.attach(proxy.log());
        recorder.issued_by(&aws);
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

    /// Deletes a namespace without waiting.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Ends the test: the judge speaks, everything is deleted.
    pub async fn finish(self) -> Result<()> {
        self.declare_secrets()?;
        self.recorder.assert_clean().await;
        self.clear().await
    }

    /// Everything that was wrong so far.
    pub async fn judge(&self) -> Result<Vec<Violation>> {
        self.declare_secrets()?;
        self.recorder.judge().await
    }

    /// What AWS has given out or was shown may not be seen anywhere else.
    fn declare_secrets(&self) -> Result<()> {
        let secrets = self.aws.secrets_issued().into_iter().filter(|secret| secret.len() >= 16);
        secrets.into_iter().try_for_each(|secret| self.recorder.canary("a secret of AWS", secret))
    }

    /// Deletes everything of this test.
    pub async fn clear(self) -> Result<()> {
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

/// A name that no other test has, short enough for every use.
fn unique(test: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let short: String = test.replace('_', "-").chars().take(24).collect();
    format!("{}-{}{}", short.trim_end_matches('-'), std::process::id() % 10_000, number)
}
