//! The operator's rights in a test: the least that it needs, by name, as the chart grants them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Bed, PATIENCE};

/// Grants the ServiceAccount `operator` in `home` what it needs to write Secrets of these names.
pub async fn grant(client: &Client, prefix: &str, home: &str, secret_names: &[String]) -> Result<()> {
    let rules = json!([
        { "apiGroups": [""], "resources": ["secrets"], "resourceNames": secret_names,
          "verbs": ["get", "list", "watch", "create", "patch", "delete"] },
        { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["pullsecrets.dev"], "resources": ["ecrcredentials"], "verbs": ["list", "watch"] },
        { "apiGroups": ["pullsecrets.dev"], "resources": ["ecrcredentials/status"], "verbs": ["patch"] },
    ]);
    everywhere(client, prefix, home, &rules).await?;
    // Events about cluster-scoped objects are in this namespace.
    let rules = json!([{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] }]);
    within(client, "default", &format!("{prefix}-events"), home, &rules).await?;
    let rules = json!([
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] },
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["ecr-credential-operator"],
          "verbs": ["get", "update"] },
    ]);
    within(client, home, "lease", home, &rules).await
}

/// What the operator may use besides its own identity, each as `NAMESPACE/NAME`, a ServiceAccount also as `*/NAME`.
#[derive(Clone, Debug, Default)]
pub struct AllowedIdentities {
    pub service_accounts: Vec<String>,
    pub secrets: Vec<String>,
    /// The names of ServiceAccounts to which Secrets may be attached.
    pub attach: Vec<String>,
}

impl Bed {
    /// Grants what the chart grants for `auth.serviceAccounts` and `auth.secrets`, and waits until it holds.
    pub async fn lend(&self, lent: &AllowedIdentities) -> Result<()> {
        let mut rules: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (namespace, names) in by_namespace(&lent.service_accounts)? {
            rules.entry(namespace).or_default().extend([
                json!({ "apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": names,
                        "verbs": ["list", "watch"] }),
                json!({ "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": names,
                        "verbs": ["create"] }),
            ]);
        }
        for (namespace, names) in by_namespace(&lent.secrets)? {
            ensure!(namespace != "*", "a Secret with keys is lent by its namespace");
            rules.entry(namespace).or_default().push(json!({
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get", "list", "watch"],
            }));
        }
        if !lent.attach.is_empty() {
            rules.entry("*").or_default().push(json!({
                "apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": lent.attach,
                "verbs": ["list", "watch", "patch"],
            }));
        }
        let name = format!("{}-auth", self.prefix);
        for (namespace, rules) in rules {
            match namespace {
                "*" => everywhere(&self.client, &name, &self.home, &json!(rules)).await?,
                namespace => within(&self.client, namespace, &name, &self.home, &json!(rules)).await?,
            }
        }
        self.until_lent(lent).await
    }

    async fn until_lent(&self, lent: &AllowedIdentities) -> Result<()> {
        for (namespace, names) in by_namespace(&lent.service_accounts)? {
            for name in names {
                let token =
                    json!({ "resource": "serviceaccounts", "subresource": "token", "verb": "create", "name": name });
                self.until_may(namespace, token).await?;
            }
        }
        for name in &lent.attach {
            self.until_may("*", json!({ "resource": "serviceaccounts", "verb": "patch", "name": name })).await?;
        }
        for (namespace, names) in by_namespace(&lent.secrets)? {
            for name in names {
                self.until_may(namespace, json!({ "resource": "secrets", "verb": "get", "name": name })).await?;
            }
        }
        Ok(())
    }

    /// Asks again and again, since no event tells when the API server's own caches have caught up.
    async fn until_may(&self, namespace: &str, mut what: Value) -> Result<()> {
        // The empty name is every namespace.
        what["namespace"] = json!(if namespace == "*" { "" } else { namespace });
        let user = format!("system:serviceaccount:{}:operator", self.home);
        let question: SubjectAccessReview =
            serde_json::from_value(json!({ "metadata": {}, "spec": { "user": user, "resourceAttributes": what } }))?;
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let until_yes = async {
            while !reviews.create(&PostParams::default(), &question).await?.status.is_some_and(|answer| answer.allowed)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, until_yes).await.with_context(|| format!("the operator may not {what}"))?
    }
}

fn by_namespace(lent: &[String]) -> Result<BTreeMap<&str, BTreeSet<&str>>> {
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for which in lent {
        let (namespace, name) = which.split_once('/').with_context(|| format!("{which} is not NAMESPACE/NAME"))?;
        names.entry(namespace).or_default().insert(name);
    }
    Ok(names)
}

async fn everywhere(client: &Client, name: &str, home: &str, rules: &Value) -> Result<()> {
    let (role, binding) = role_and_binding("ClusterRole", name, home, rules);
    apply::<ClusterRole>(&Api::all(client.clone()), name, role).await?;
    apply::<ClusterRoleBinding>(&Api::all(client.clone()), name, binding).await
}

async fn within(client: &Client, namespace: &str, name: &str, home: &str, rules: &Value) -> Result<()> {
    let (role, binding) = role_and_binding("Role", name, home, rules);
    apply::<Role>(&Api::namespaced(client.clone(), namespace), name, role).await?;
    apply::<RoleBinding>(&Api::namespaced(client.clone(), namespace), name, binding).await
}

fn role_and_binding(kind: &str, name: &str, home: &str, rules: &Value) -> (Value, Value) {
    let api = "rbac.authorization.k8s.io";
    let object =
        |kind: String| json!({ "apiVersion": format!("{api}/v1"), "kind": kind, "metadata": { "name": name } });
    let (mut role, mut binding) = (object(kind.to_owned()), object(format!("{kind}Binding")));
    role["rules"] = rules.clone();
    binding["roleRef"] = json!({ "apiGroup": api, "kind": kind, "name": name });
    binding["subjects"] = json!([{ "kind": "ServiceAccount", "name": "operator", "namespace": home }]);
    (role, binding)
}

/// By an apply, so that a second start of an operator with the same rights is no error.
async fn apply<K>(api: &Api<K>, name: &str, object: Value) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let params = PatchParams::apply("bed").force();
    api.patch(name, &params, &Patch::Apply(&object)).await.with_context(|| format!("grant {name}"))?;
    Ok(())
}
