//! Identities beside the operator's own: ServiceAccounts with roles, tenants, and Secrets with static keys.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{ACCOUNT, Bed};
use crate::aws::{AccessKey, Role, Trust};

/// The annotation of a ServiceAccount that names its role.
pub const ROLE_ARN: &str = "eks.amazonaws.com/role-arn";

/// The annotation of a ServiceAccount that names the audience of its tokens.
pub const AUDIENCE: &str = "eks.amazonaws.com/audience";

/// The audience that roles expect unless they say otherwise.
pub const STS: &str = "sts.amazonaws.com";

/// A namespace with an identity of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub namespace: String,
    pub service_account: String,
    /// The ARN of its role.
    pub role: String,
    pub account: String,
    /// The host of its account's registry in eu-west-1.
    pub host: String,
}

impl Bed {
    /// Creates a ServiceAccount in a namespace, which is given by its whole name.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> Result<ServiceAccount> {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        let account = json!({ "metadata": { "name": name, "annotations": annotations } });
        let account = serde_json::from_value(account)?;
        let created = self.service_accounts(namespace).create(&PostParams::default(), &account).await;
        created.with_context(|| format!("create the ServiceAccount {namespace}/{name}"))
    }

    /// Sets annotations of a ServiceAccount; `None` takes one away.
    pub async fn annotate(&self, namespace: &str, name: &str, annotations: &[(&str, Option<&str>)]) -> Result<()> {
        let annotations: BTreeMap<&str, Option<&str>> = annotations.iter().copied().collect();
        let patch = json!({ "metadata": { "annotations": annotations } });
        self.service_accounts(namespace).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    pub async fn delete_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        self.service_accounts(namespace).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The ServiceAccounts of a namespace.
    pub fn service_accounts(&self, namespace: &str) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A statement that lets a ServiceAccount of this cluster in, by tokens for the usual audience.
    pub fn trust_of(&self, namespace: &str, service_account: &str) -> Trust {
        let subject = format!("system:serviceaccount:{namespace}:{service_account}");
        Trust::web_identity(&self.plane.issuer(), &subject, STS)
    }

    /// Adds a role of the operator's account that trusts this ServiceAccount alone; returns its ARN.
    pub fn tenant_role(&self, namespace: &str, service_account: &str) -> String {
        self.tenant_role_in(ACCOUNT, namespace, service_account)
    }

    /// The same in another account.
    pub fn tenant_role_in(&self, account: &str, namespace: &str, service_account: &str) -> String {
        let arn = format!("arn:aws:iam::{account}:role/{namespace}-{service_account}");
        self.aws.add_role(Role::new(&arn).trusting(self.trust_of(namespace, service_account)));
        arn
    }

    /// A namespace whose ServiceAccount has a role of its own in this account by its annotation. From then on no login of
    /// anybody else may stand in the namespace's Secrets.
    pub async fn tenant(&self, name: &str, account: &str, service_account: &str) -> Result<Tenant> {
        let namespace = self.namespace(name, &[]).await?;
        let role = self.tenant_role_in(account, &namespace, service_account);
        self.recorder.tenant(&namespace, &role);
        self.service_account(&namespace, service_account, &[(ROLE_ARN, &role)]).await?;
        Ok(Tenant {
            namespace,
            service_account: service_account.to_owned(),
            role,
            account: account.to_owned(),
            host: format!("{account}.dkr.ecr.eu-west-1.amazonaws.com"),
        })
    }

    /// Writes a Secret with static keys under the names that the AWS SDKs have for them, in place of what stands there.
    pub async fn keys_secret(&self, namespace: &str, name: &str, key: &AccessKey) -> Result<()> {
        let token = key.session_token.as_deref().map(|token| ("AWS_SESSION_TOKEN", token));
        let pairs = [("AWS_ACCESS_KEY_ID", key.id.as_str()), ("AWS_SECRET_ACCESS_KEY", &key.secret)];
        self.keys_secret_of(namespace, name, &pairs.into_iter().chain(token).collect::<Vec<_>>()).await
    }

    /// The same with any names and values. None of the values may appear anywhere else.
    pub async fn keys_secret_of(&self, namespace: &str, name: &str, data: &[(&str, &str)]) -> Result<()> {
        for (key, value) in data.iter().filter(|(_, value)| value.trim().len() >= 8) {
            self.recorder.canary(&format!("{key} of the Secret {namespace}/{name}"), value.trim())?;
        }
        let data: BTreeMap<&str, &str> = data.iter().copied().collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": "Opaque", "stringData": data,
        });
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        // What is not in the new one must not be left of the old one, and its uid stays.
        match secrets.get_opt(name).await? {
            Some(_) => {
                let secret = serde_json::from_value(secret)?;
                secrets.replace(name, &PostParams::default(), &secret).await
            }
            None => secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await,
        }
        .with_context(|| format!("write the Secret {namespace}/{name}"))?;
        Ok(())
    }
}
