//! What identities borrow from the cluster: web identity tokens of ServiceAccounts, and static keys in Secrets.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::plan::auth::{Account, Keys};
use crate::token::{Cluster, StaticKeys, TokenError};

/// How long a web identity token lives, in seconds: the least that the API server gives. It is used once, at once.
const TOKEN_SECONDS: i64 = 600;

/// Asks the API server.
pub struct ApiServer {
    client: Client,
    timeout: Duration,
}

impl ApiServer {
    /// No request may take longer than `timeout`.
    pub fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout }
    }

    /// As text: when an answer cannot be read as an object, kube logs all of it.
    async fn text(&self, request: http::Request<Vec<u8>>) -> Result<Zeroizing<String>, kube::Error> {
        let late = || kube::Error::Service("the API server did not answer in time".into());
        let call = tokio::time::timeout(self.timeout, self.client.request_text(request));
        call.await.unwrap_or_else(|_| Err(late())).map(Zeroizing::new)
    }

    async fn request_token(&self, account: &Account) -> Result<SecretString, TokenError> {
        let Account { namespace, name, uid, audiences, .. } = account;
        let what = format!("ServiceAccount {namespace}/{name}");
        let spec = TokenRequestSpec {
            audiences: Some(audiences.clone()),
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: None,
        };
        let mut body = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        // Of one that was deleted and made again the API server says so, and the watch brings us its new identity.
        body.metadata.uid = Some(uid.to_string());
        let body = serde_json::to_vec(&body).map_err(|_| unreadable(&what))?;
        let request = Request::new(ServiceAccount::url_path(&(), Some(namespace)))
            .create_subresource("token", name, &PostParams::default(), body)
            .map_err(|_| unreadable(&what))?;
        let text = self.text(request).await.map_err(|error| {
            let right = format!("create serviceaccounts/token for {name} in namespace {namespace}");
            refused(&error, &what, &right, "auth.serviceAccounts")
        })?;
        let answer: Answer = serde_json::from_str(&text).map_err(|_| unreadable(&what))?;
        Ok(answer.status.token)
    }

    async fn read_keys(&self, keys: &Keys, uid: &str, version: &str) -> Result<StaticKeys, TokenError> {
        let Keys { namespace, name, .. } = keys;
        let what = format!("Secret {namespace}/{name}");
        let request = Request::new(Secret::url_path(&(), Some(namespace)))
            .get(name, &GetParams::default())
            .map_err(|_| unreadable(&what))?;
        let text = self.text(request).await.map_err(|error| {
            refused(&error, &what, &format!("get the Secret {name} in namespace {namespace}"), "auth.secrets")
        })?;
        let secret: Stored = serde_json::from_str(&text).map_err(|_| unreadable(&what))?;
        if secret.metadata.uid != uid || secret.metadata.resource_version != version {
            return Err(TokenError::IdentityNotFound(format!("{what} has just changed")));
        }
        let lacks = |key: &str| TokenError::IdentityNotFound(format!("{what} has no text under the key {key:?}"));
        let value = |key: &str| secret.value(key).ok_or_else(|| lacks(key));
        Ok(StaticKeys {
            access_key_id: value(&keys.access_key_id)?,
            secret_access_key: value(&keys.secret_access_key)?,
            session_token: keys.session_token.as_deref().map(value).transpose()?,
        })
    }
}

impl Cluster for ApiServer {
    fn web_identity<'a>(&'a self, account: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>> {
        self.request_token(account).boxed()
    }

    fn static_keys<'a>(
        &'a self,
        keys: &'a Keys,
        uid: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
        self.read_keys(keys, uid, version).boxed()
    }
}

#[derive(Deserialize)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize)]
struct AnswerStatus {
    token: SecretString,
}

#[derive(Deserialize)]
struct Stored {
    metadata: StoredMeta,
    #[serde(default)]
    data: std::collections::BTreeMap<String, SecretString>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredMeta {
    uid: String,
    resource_version: String,
}

impl Stored {
    /// A value without the white space around it, which editors and pipes leave there; none when nothing else is.
    fn value(&self, key: &str) -> Option<SecretString> {
        let bytes = Zeroizing::new(STANDARD.decode(self.data.get(key)?.expose_secret()).ok()?);
        let text = std::str::from_utf8(&bytes).ok()?.trim();
        (!text.is_empty()).then(|| SecretString::from(text))
    }
}

/// Sorts an error of the API server. `right` is what the operator needs, `value` where the chart grants it.
fn refused(error: &kube::Error, what: &str, right: &str, value: &str) -> TokenError {
    match error {
        // Of RBAC; what an admission policy says, it says for people.
        kube::Error::Api(status) if status.is_forbidden() && status.message.contains("cannot ") => {
            TokenError::Forbidden(format!(
                "the operator lacks the right to {right}: the chart grants it for the entries of {value}"
            ))
        }
        kube::Error::Api(status) if status.is_forbidden() || status.code == 422 => {
            let message: String = status.message.chars().take(300).collect();
            TokenError::Forbidden(format!("the API server refused {what}: {message}"))
        }
        kube::Error::Api(status) if status.is_not_found() => {
            TokenError::IdentityNotFound(format!("{what} does not exist"))
        }
        kube::Error::Api(status) if status.is_conflict() => {
            TokenError::IdentityNotFound(format!("{what} has just changed"))
        }
        kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
            TokenError::Forbidden(format!("the API server refused {what}: HTTP status {}", status.code))
        }
        _ => TokenError::Cluster(format!("the API server gave no answer about {what}: trying again")),
    }
}

fn unreadable(what: &str) -> TokenError {
    TokenError::Cluster(format!("the API server's answer about {what} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_missing_right_names_the_charts_value_and_an_admission_policy_speaks_for_itself() {
        let forbidden = |message: &str| kube::Error::Api(Status::failure(message, "Forbidden").with_code(403).boxed());
        let told = |message: &str| {
            let right = "create serviceaccounts/token for puller in namespace ops";
            refused(&forbidden(message), "ServiceAccount ops/puller", right, "auth.serviceAccounts")
        };
        let by_rbac = "serviceaccounts \"puller\" is forbidden: User \"operator\" cannot create resource \"serviceaccounts/token\"";
        let by_policy = "serviceaccounts \"puller\" is forbidden: ValidatingAdmissionPolicy 'tokens' denied request: the operator may ask only for tokens for the audiences of the chart's auth.audiences";
        let table = [
            (by_rbac, ["create serviceaccounts/token for puller in namespace ops", "auth.serviceAccounts"]),
            (by_policy, ["ServiceAccount ops/puller", "the audiences of the chart's auth.audiences"]),
        ];
        for (message, words) in table {
            let error = told(message);
            assert!(matches!(error, TokenError::Forbidden(_)), "{error:?}");
            assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
        }
    }
}
