//! The EcrCredentials and Secrets of a test: made, changed, and waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use serde_json::{Value, json};

use super::{Bed, PATIENCE};

/// The annotation that asks for a refresh.
pub const REFRESH_REQUESTED: &str = "pullsecrets.dev/refresh-requested-at";

/// What the cluster's EcrCredentials are, as far as a client without the product's types needs to know.
pub fn credential_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("pullsecrets.dev", "v1alpha1", "EcrCredential"),
        "ecrcredentials",
    )
}

impl Bed {
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

    /// Asks for a refresh, in the next second: a token that was issued in the second of the request counts as new enough.
    pub async fn request_refresh(&self, name: &str, value: &str) -> Result<()> {
        next_second().await;
        self.change(name, json!({ "metadata": { "annotations": { (REFRESH_REQUESTED): value } } })).await
    }

    /// Waits until a refresh that was asked for has been served.
    pub async fn refreshed(&self, name: &str, value: &str) -> Result<DynamicObject> {
        let served =
            |object: &DynamicObject| object.data.pointer("/status/handledRefreshRequest") == Some(&json!(value));
        self.credential_until(name, &format!("the refresh {value} is served"), served).await
    }

    /// Waits until an EcrCredential is ready.
    pub async fn ready(&self, name: &str) -> Result<DynamicObject> {
        self.condition_until(name, "Ready", "True", "Synced").await
    }
}

/// Waits until the next second of the clock begins: AWS and Kubernetes write times in whole seconds.
pub async fn next_second() {
    let passed = Timestamp::now().subsec_nanosecond().unsigned_abs();
    tokio::time::sleep(Duration::from_secs(1).saturating_sub(Duration::from_nanos(passed.into()))).await;
}

/// Asks again and again, for what no event tells, such as when the API server has taken note of a right or of a policy.
///
/// # Panics
/// It is not so within [`PATIENCE`].
pub async fn poll(what: &str, ask: impl AsyncFn() -> bool) {
    let until_yes = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until_yes).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// An entry of `managedFields` that the API server cannot update: that of Kubernetes 1.37 then restores those of the stored object.
pub fn unreadable_managed_field() -> Value {
    json!({ "manager": "x", "operation": "Update", "apiVersion": "a/b/c", "fieldsType": "FieldsV1", "fieldsV1": {} })
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
