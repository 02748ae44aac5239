//! The credentials of identities in the cluster: web identity tokens of ServiceAccounts, and static keys in Secrets.

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

use crate::plan::auth::{Account, KeyMaterial, Keys};
use crate::plan::references::KeysRecord;
use crate::plan::scopes::KeysScope;
use crate::token::{Cluster, StaticKeys, TokenError};

/// The life of a web identity token in seconds: the shortest that the API server issues. It is used once, immediately.
const TOKEN_SECONDS: i64 = 600;

/// Reads from the API server.
pub struct ApiServer {
    client: Client,
    timeout: Duration,
}

impl ApiServer {
    /// No request may take longer than `timeout`.
    pub fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout }
    }

    /// As text: kube logs the whole body of a response that it cannot parse.
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
        // If the ServiceAccount was recreated, the API server rejects the uid with 409, and the watch brings the new one.
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

    async fn read_secret(&self, namespace: &str, name: &str) -> Result<Stored, TokenError> {
        let what = format!("Secret {namespace}/{name}");
        let request = Request::new(Secret::url_path(&(), Some(namespace)))
            .get(name, &GetParams::default())
            .map_err(|_| unreadable(&what))?;
        let text = self.text(request).await.map_err(|error| {
            refused(&error, &what, &format!("get the Secret {name} in namespace {namespace}"), "auth.secrets")
        })?;
        serde_json::from_str(&text).map_err(|_| unreadable(&what))
    }

    async fn record_keys(&self, scope: &KeysScope) -> Result<Option<KeysRecord>, TokenError> {
        match self.read_secret(&scope.namespace, &scope.name).await {
            Ok(secret) => Ok(Some(secret.record())),
            Err(TokenError::IdentityNotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_keys(&self, keys: &Keys, material: &KeyMaterial) -> Result<StaticKeys, TokenError> {
        let Keys { namespace, name, .. } = keys;
        let secret = self.read_secret(namespace, name).await?;
        let changed = || TokenError::IdentityChanged(just_changed(&format!("Secret {namespace}/{name}")));
        if keys.material(&secret.record()).ok().as_ref() != Some(material) {
            return Err(changed());
        }
        let value = |key: &str| secret.value(key).ok_or_else(changed);
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

    fn keys_record<'a>(&'a self, scope: &'a KeysScope) -> BoxFuture<'a, Result<Option<KeysRecord>, TokenError>> {
        self.record_keys(scope).boxed()
    }

    fn static_keys<'a>(
        &'a self,
        keys: &'a Keys,
        material: &'a KeyMaterial,
    ) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
        self.read_keys(keys, material).boxed()
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

/// A Secret, as far as keys are read from it.
#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    data: std::collections::BTreeMap<String, SecretString>,
}

impl Stored {
    /// Its record, without the values.
    fn record(&self) -> KeysRecord {
        let values: Vec<_> = self.data.keys().filter_map(|key| Some((key, self.value(key)?))).collect();
        KeysRecord::of(values.iter().map(|(key, value)| (key.as_str(), value.expose_secret())))
    }

    /// A value without surrounding white space, as editors and pipes leave it; none if it is empty.
    fn value(&self, key: &str) -> Option<SecretString> {
        let bytes = Zeroizing::new(STANDARD.decode(self.data.get(key)?.expose_secret()).ok()?);
        let text = std::str::from_utf8(&bytes).ok()?.trim();
        (!text.is_empty()).then(|| SecretString::from(text))
    }
}

/// Maps an error of the API server. `right` is the permission that is needed, `value` the chart value that grants it.
fn refused(error: &kube::Error, what: &str, right: &str, value: &str) -> TokenError {
    match error {
        // By RBAC. The message of an admission policy is meant for people.
        kube::Error::Api(status) if status.is_forbidden() && status.message.contains("cannot ") => {
            TokenError::Forbidden(format!(
                "the operator lacks permission to {right}: the chart grants it for the entries of {value}"
            ))
        }
        kube::Error::Api(status) if status.is_forbidden() || status.code == 422 => {
            let message: String = status.message.chars().take(300).collect();
            TokenError::Forbidden(format!("the API server refused {what}: {message}"))
        }
        kube::Error::Api(status) if status.is_not_found() => {
            TokenError::IdentityNotFound(format!("{what} does not exist"))
        }
        kube::Error::Api(status) if status.is_conflict() => TokenError::IdentityChanged(just_changed(what)),
        kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
            TokenError::Forbidden(format!("the API server refused {what}: HTTP status {}", status.code))
        }
        _ => TokenError::Cluster(format!("the API server did not answer about {what}: retrying")),
    }
}

fn just_changed(what: &str) -> String {
    format!("{what} has just changed: retrying with its new content")
}

fn unreadable(what: &str) -> TokenError {
    TokenError::Cluster(format!("the API server's answer about {what} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Reason;
    use kube::client::Body;
    use kube::core::Status;
    use serde_json::{Value, json};

    /// An API server that gives the same answer to everything.
    fn answering(code: u16, answer: &Value) -> ApiServer {
        saying(code, answer.to_string())
    }

    fn saying(code: u16, body: String) -> ApiServer {
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let answer = http::Response::builder().status(code).body(Body::from(body.clone().into_bytes()));
            std::future::ready(answer)
        });
        ApiServer::new(Client::new(service, "default"), Duration::from_secs(1))
    }

    fn keys_secret(id: &str, note: &str) -> Value {
        let data = json!({
            "AWS_ACCESS_KEY_ID": STANDARD.encode(id),
            "AWS_SECRET_ACCESS_KEY": STANDARD.encode("the secret key\n"),
            "binary": STANDARD.encode([0xff, 0xfe]),
            "empty": STANDARD.encode(" \n"),
        });
        json!({ "metadata": { "name": "keys", "uid": note, "resourceVersion": note }, "data": data })
    }

    #[tokio::test]
    async fn keys_are_given_while_they_are_those_that_were_seen_and_else_told_as_changed() {
        let scope = KeysScope { namespace: "ops".into(), name: "keys".into() };
        let keys = Keys {
            namespace: "ops".into(),
            name: "keys".into(),
            access_key_id: "AWS_ACCESS_KEY_ID".to_owned(),
            secret_access_key: "AWS_SECRET_ACCESS_KEY".to_owned(),
            session_token: None,
        };
        let seen = answering(200, &keys_secret("AKIA1", "1")).keys_record(&scope).await.unwrap().unwrap();
        assert_eq!(seen.texts.keys().collect::<Vec<_>>(), ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
        let material = keys.material(&seen).unwrap();
        let table = [
            ("as it was", keys_secret("AKIA1", "1"), None),
            ("created again with white space around the id", keys_secret(" AKIA1\n", "2"), None),
            ("another key", keys_secret("AKIA2", "1"), Some(Reason::IdentityChanged)),
            ("emptied", json!({ "metadata": {} }), Some(Reason::IdentityChanged)),
        ];
        for (name, secret, expected) in table {
            let given = answering(200, &secret).static_keys(&keys, &material).await;
            assert_eq!(given.as_ref().err().map(TokenError::reason), expected, "{name}");
            if let Ok(given) = given {
                assert_eq!(given.access_key_id.expose_secret(), "AKIA1", "{name}");
                assert_eq!(given.secret_access_key.expose_secret(), "the secret key", "{name}");
            }
        }
        let gone = serde_json::to_value(Status::failure("keys not found", "NotFound").with_code(404)).unwrap();
        assert_eq!(answering(404, &gone).keys_record(&scope).await.unwrap(), None);
        let missing = answering(404, &gone).static_keys(&keys, &material).await.unwrap_err();
        assert_eq!(missing.reason(), Reason::IdentityNotFound);
    }

    #[tokio::test]
    async fn keys_are_read_from_a_secret_whatever_else_is_odd_about_it() {
        let scope = KeysScope { namespace: "ops".into(), name: "keys".into() };
        let odd = hostile::Kind::Secret.odd("ops", "keys").into_iter().filter(|odd| odd.what.contains("metadata"));
        let mut count = 0;
        for odd in odd {
            let found = saying(200, odd.json).keys_record(&scope).await;
            assert!(found.is_ok_and(|record| record.is_some()), "{}", odd.what);
            count += 1;
        }
        assert!(count > 50, "{count}");
    }

    #[test]
    fn what_was_created_again_is_told_as_changed_and_not_as_missing() {
        let conflict = kube::Error::Api(Status::failure("the UID does not match", "Conflict").with_code(409).boxed());
        let error = refused(&conflict, "ServiceAccount ops/puller", "create tokens", "auth.serviceAccounts");
        assert_eq!(error.reason(), Reason::IdentityChanged);
        assert_eq!(error.retry_scale(), 1, "it is tried again soon");
        assert!(error.to_string().contains("ServiceAccount ops/puller has just changed"), "{error}");
    }

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
