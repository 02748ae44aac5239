//! The cluster that is measured on: a control plane, namespaces, an AWS stand-in, and the operator's rights.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::{AwsStandIn, Role, Trust};
use testbed::bed::{credential_resource, rights};
use testbed::control_plane::{ControlPlane, Options};

use crate::bare::Verb;
use crate::process;
use crate::requests::Requests;

/// The operator's own namespace.
pub const HOME: &str = "ecr-credential-operator";

/// The Secret that the operator writes.
pub const SECRET: &str = "ecr-pull-secret";

/// The label that the `EcrCredentials` select by.
pub const LABEL: &str = "pull";

/// The operator's role.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/bench";

/// The size of a password in bytes: AWS's have 2,000 to 5,000.
const TOKEN_BYTES: usize = 3000;

/// How many requests the harness has under way while it prepares something.
pub const HANDS: usize = 32;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The cluster.
pub struct Cluster {
    /// The control plane.
    pub plane: ControlPlane,
    /// The administrator's client.
    pub admin: Client,
    /// A client with the operator's own token, so that authentication and authorisation cost it the same.
    pub peer: Client,
    /// AWS.
    pub aws: AwsStandIn,
    /// Files of this run.
    pub dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts one with the CRD installed and the operator's rights granted.
    pub async fn start(crd: &Path) -> Result<Cluster> {
        // 10,000 Secrets written dozens of times would fill etcd's quota of 2 GiB before the first compaction.
        let args = vec!["--etcd-compaction-interval=1m".to_owned()];
        let plane = ControlPlane::start(Options { api_server_args: args, ..Options::default() }).await?;
        let crd: CustomResourceDefinition = serde_saphyr::from_str(&std::fs::read_to_string(crd)?)?;
        plane.install(&[crd]).await?;
        let admin = plane.admin_client()?;
        let aws = AwsStandIn::start()?;
        aws.set_jwks(&plane.issuer(), &plane.jwks().await?.to_string());
        let subject = format!("system:serviceaccount:{HOME}:operator");
        aws.add_role(Role::new(ROLE).trusting(Trust::web_identity(&plane.issuer(), &subject, "sts.amazonaws.com")));
        aws.set_token_size(TOKEN_BYTES);
        make_namespace(&admin, HOME, &BTreeMap::new()).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), HOME);
        let account = serde_json::from_value(json!({ "metadata": { "name": "operator" } }))?;
        accounts.create(&PostParams::default(), &account).await?;
        let mut names = vec![SECRET.to_owned()];
        names.extend(Verb::ALL.map(|verb| verb.secret().to_owned()));
        rights::grant(&admin, "bench", HOME, &names).await?;
        grant_put(&admin).await?;
        let token = plane.service_account_token(HOME, "operator", "", 6 * 3600).await?;
        let peer = plane.client(&token)?;
        Ok(Cluster { plane, admin, peer, aws, dir: tempfile::tempdir()? })
    }

    /// Makes the namespaces `n0` to `n{count - 1}`, with the labels that `labels` gives each.
    pub async fn make_namespaces(
        &self,
        count: usize,
        labels: impl Fn(usize) -> BTreeMap<String, String>,
    ) -> Result<()> {
        let made = futures::stream::iter(0..count).map(|i| {
            let labels = labels(i);
            async move { make_namespace(&self.admin, &format!("n{i}"), &labels).await }
        });
        made.buffer_unordered(HANDS).try_collect::<Vec<()>>().await?;
        self.settle().await
    }

    /// Gives all of `n0` to `n{count - 1}` the label, as fast as the API server takes it.
    pub async fn label_namespaces(&self, count: usize, value: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        let patch = json!({ "metadata": { "labels": { LABEL: value } } });
        let patched = futures::stream::iter(0..count).map(|i| {
            let (api, patch) = (&api, &patch);
            async move { api.patch_metadata(&format!("n{i}"), &PatchParams::default(), &Patch::Merge(patch)).await }
        });
        patched.buffer_unordered(HANDS).map_ok(drop).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    /// The processor time that etcd, the API server and the controller manager have used, in seconds.
    pub fn plane_cpu(&self) -> Result<f64> {
        let pids = self.plane.pids();
        let all = [Some(pids.etcd), pids.api_server, pids.controller_manager];
        all.into_iter().flatten().map(process::cpu).sum()
    }

    /// Waits until Kubernetes' own controllers have done with what was made: they would take the processor from both sides.
    pub async fn settle(&self) -> Result<()> {
        let mut before = Requests::read(&self.admin).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = Requests::read(&self.admin).await?;
            let changes = now.since(&before).changes();
            if changes <= 4.0 {
                return Ok(());
            }
            before = now;
        }
    }

    /// Makes an `EcrCredential` for the namespaces with this value of the label.
    pub async fn make_credential(&self, name: &str, value: &str) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": name },
            "spec": {
                "registries": [{ "private": {} }],
                "namespaces": { "selector": { "matchLabels": { LABEL: value } } },
            },
        }))?;
        self.credentials().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// The `EcrCredentials`.
    pub fn credentials(&self) -> Api<DynamicObject> {
        Api::all_with(self.admin.clone(), &credential_resource())
    }

    /// Waits for a state of an `EcrCredential`.
    pub async fn until(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Result<()> {
        let stream = kube::runtime::watcher::watch_object(self.credentials(), name);
        let mut stream = std::pin::pin!(stream);
        let search = async {
            while let Some(item) = stream.next().await {
                if let Ok(Some(object)) = item
                    && test(&object.data)
                {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(true) => Ok(()),
            _ => bail!("waited in vain for {what}"),
        }
    }

    /// Waits until an `EcrCredential` says that all of `count` namespaces hold its Secret.
    pub async fn until_synced(&self, name: &str, count: usize) -> Result<()> {
        let summary = json!(format!("{count}/{count}"));
        let synced = |data: &Value| data.pointer("/status/namespaces/summary") == Some(&summary);
        self.until(name, &format!("{count} Secrets"), synced).await
    }
}

/// Makes a namespace.
pub async fn make_namespace(client: &Client, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let object = serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?;
    api.create(&PostParams::default(), &object).await.with_context(|| format!("create the namespace {name}"))?;
    Ok(())
}

/// The labels of a namespace that wants the Secret.
pub fn labelled(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL.to_owned(), value.to_owned())])
}

/// The operator has no right to PUT Secrets and needs none; the bare client tries it.
async fn grant_put(client: &Client) -> Result<()> {
    let params = PostParams::default();
    let role = json!({ "metadata": { "name": "bench-put" }, "rules": [
        { "apiGroups": [""], "resources": ["secrets"], "resourceNames": [Verb::Put.secret()], "verbs": ["update"] },
    ]});
    let binding = json!({
        "metadata": { "name": "bench-put" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "bench-put" },
        "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": HOME }],
    });
    Api::<ClusterRole>::all(client.clone()).create(&params, &serde_json::from_value(role)?).await?;
    Api::<ClusterRoleBinding>::all(client.clone()).create(&params, &serde_json::from_value(binding)?).await?;
    Ok(())
}
