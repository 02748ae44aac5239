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

use crate::answers::{Cause, kind, message, shorten, within};
use crate::plan::auth::{Account, KeyMaterial, Keys};
use crate::plan::references::KeysRecord;
use crate::plan::scopes::SecretKey;
use crate::token::{Cluster, StaticKeys, TokenError};

/// The life of a web identity token in seconds: the shortest that the API server issues. It is used once, immediately.
const TOKEN_SECONDS: i64 = 600;

/// The longest that one request to the API server may take. The API server itself ends a request after 60 seconds (its flag
/// `--request-timeout`), in which several admission webhooks may take up to 30 seconds each.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);

/// Reads from the API server.
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// No request takes longer than [`REQUEST_TIMEOUT`].
    pub const fn new(client: Client) -> Self {
        Self { client }
    }

    /// As text: kube logs the whole body of a response that it cannot parse.
    async fn text(&self, request: http::Request<Vec<u8>>) -> Result<Zeroizing<String>, kube::Error> {
        within(REQUEST_TIMEOUT, self.client.request_text(request)).await.map(Zeroizing::new)
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

    async fn read_secret(&self, secret: &SecretKey) -> Result<Stored, TokenError> {
        let SecretKey { namespace, name } = secret;
        let what = format!("Secret {secret}");
        let request = Request::new(Secret::url_path(&(), Some(namespace)))
            .get(name, &GetParams::default())
            .map_err(|_| unreadable(&what))?;
        let text = self.text(request).await.map_err(|error| {
            refused(&error, &what, &format!("get the Secret {name} in namespace {namespace}"), "auth.secrets")
        })?;
        serde_json::from_str(&text).map_err(|_| unreadable(&what))
    }

    async fn record_keys(&self, secret: &SecretKey) -> Result<Option<KeysRecord>, TokenError> {
        match self.read_secret(secret).await {
            Ok(secret) => Ok(Some(secret.record())),
            Err(TokenError::IdentityNotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_keys(&self, keys: &Keys, material: &KeyMaterial) -> Result<StaticKeys, TokenError> {
        let secret = self.read_secret(&keys.secret).await?;
        let changed = || TokenError::IdentityChanged(just_changed(&format!("Secret {}", keys.secret)));
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

    fn keys_record<'a>(&'a self, secret: &'a SecretKey) -> BoxFuture<'a, Result<Option<KeysRecord>, TokenError>> {
        self.record_keys(secret).boxed()
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
    let kube::Error::Api(status) = error else {
        return TokenError::Cluster(format!("the API server did not answer about {what}: retrying"));
    };
    let message = shorten(&message(status));
    match Cause::of(status) {
        Cause::Admission | Cause::Quota => {
            TokenError::AdmissionRefused(format!("the API server refused {what}: {message}"))
        }
        Cause::Rbac => TokenError::Forbidden(format!(
            "the operator lacks permission to {right}: the chart grants it for the entries of {value}"
        )),
        Cause::NotFound if matches!(kind(status), "serviceaccounts" | "secrets" | "namespaces") => {
            TokenError::IdentityNotFound(format!("{what} does not exist"))
        }
        Cause::Conflict => TokenError::IdentityChanged(just_changed(what)),
        Cause::Terminating | Cause::NotFound | Cause::Invalid | Cause::Throttled | Cause::Other => TokenError::Cluster(
            format!("the API server answered about {what} with HTTP status {}: {message}: retrying", status.code),
        ),
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
        ApiServer::new(Client::new(service, "default"))
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
        let scope = SecretKey { namespace: "ops".into(), name: "keys".into() };
        let keys = Keys {
            secret: scope.clone(),
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
        let gone = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "secrets \"keys\" not found", "code": 404,
            "reason": "NotFound", "details": { "name": "keys", "kind": "secrets" },
        });
        assert_eq!(answering(404, &gone).keys_record(&scope).await.unwrap(), None);
        let missing = answering(404, &gone).static_keys(&keys, &material).await.unwrap_err();
        assert_eq!(missing.reason(), Reason::IdentityNotFound);
    }

    #[tokio::test]
    async fn keys_are_read_from_a_secret_whatever_else_is_odd_about_it() {
        let scope = SecretKey { namespace: "ops".into(), name: "keys".into() };
        let odd = hostile::Kind::Secret.odd("ops", "keys").into_iter().filter(|odd| odd.what.contains("metadata"));
        let mut count = 0;
        for odd in odd {
            let found = saying(200, odd.json).keys_record(&scope).await;
            assert!(found.is_ok_and(|record| record.is_some()), "{}", odd.what);
            count += 1;
        }
        assert!(count > 50, "{count}");
    }

    fn told(code: u16, message: &str, kind: &str) -> TokenError {
        let details = serde_json::from_value(json!({ "kind": kind })).unwrap();
        let status = Status { details: Some(details), ..Status::failure(message, "") };
        let right = "create serviceaccounts/token for puller in namespace ops";
        let error = kube::Error::Api(status.with_code(code).boxed());
        refused(&error, "ServiceAccount ops/puller", right, "auth.serviceAccounts")
    }

    #[test]
    fn what_was_created_again_is_told_as_changed_and_not_as_missing() {
        let error = told(409, "the UID does not match", "serviceaccounts");
        assert_eq!(error.reason(), Reason::IdentityChanged);
        assert_eq!(error.retry_scale(), 1, "it is tried again soon");
        assert!(error.to_string().contains("ServiceAccount ops/puller has just changed"), "{error}");
    }

    #[test]
    fn whoever_refuses_a_token_speaks_for_itself() {
        const WEBHOOK: &str = "admission webhook \"w.example\" denied the request: a token cannot be requested here";
        const POLICY: &str = "serviceaccounts \"puller\" is forbidden: ValidatingAdmissionPolicy 'tokens' denied request: the operator cannot ask for this audience";
        for code in [400, 403, 404, 409, 418, 422, 429, 500, 503] {
            for message in [WEBHOOK, POLICY] {
                let error = told(code, message, "serviceaccounts");
                assert_eq!(error.reason(), Reason::AdmissionRefused, "{code} {error}");
                let text = error.to_string();
                assert!(text.contains("ServiceAccount ops/puller") && text.contains(message), "{code} {text}");
            }
        }
        let right = "create serviceaccounts/token for puller in namespace ops";
        let by_rbac = "serviceaccounts \"puller\" is forbidden: User \"operator\" cannot create resource \"serviceaccounts/token\"";
        let by_webhook = "Internal error occurred: failed calling webhook \"w.example\": context deadline exceeded";
        let table: [(u16, &str, &str, Reason, [&str; 2]); 10] = [
            (403, by_rbac, "serviceaccounts", Reason::Forbidden, [right, "auth.serviceAccounts"]),
            (403, "a plugin says no", "serviceaccounts", Reason::AdmissionRefused, ["ops/puller", "a plugin says no"]),
            (404, "not found", "serviceaccounts", Reason::IdentityNotFound, ["ops/puller", "does not exist"]),
            (404, "not found", "namespaces", Reason::IdentityNotFound, ["ops/puller", "does not exist"]),
            (404, "no such page", "", Reason::ApiError, ["ops/puller", "no such page"]),
            (
                422,
                "spec.audiences: Invalid value",
                "TokenRequest",
                Reason::ApiError,
                ["422", "spec.audiences: Invalid"],
            ),
            (429, "too many requests", "", Reason::ApiError, ["429", "too many requests"]),
            (500, by_webhook, "", Reason::ApiError, ["500", by_webhook]),
            (503, "the server is shutting down", "", Reason::ApiError, ["503", "the server is shutting down"]),
            (401, "Unauthorized", "", Reason::ApiError, ["401", "Unauthorized"]),
        ];
        for (code, message, kind, reason, words) in table {
            let error = told(code, message, kind);
            assert_eq!(error.reason(), reason, "{code} {error}");
            assert!(words.iter().all(|word| error.to_string().contains(word)), "{code} {error}");
        }
        let silent = kube::Error::Service("the connection was reset".into());
        let silent = refused(&silent, "ServiceAccount ops/puller", right, "auth.serviceAccounts");
        assert!(silent.reason() == Reason::ApiError && silent.to_string().contains("did not answer"), "{silent}");
        let long = told(500, &"x".repeat(5000), "");
        assert!(long.to_string().len() < 500, "{long}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_as_long_as_admission_may_and_not_for_ever() {
        let scope = SecretKey { namespace: "ops".into(), name: "keys".into() };
        for (seconds, lasts) in [(60, true), (66, false)] {
            let service = tower::service_fn(move |_: http::Request<Body>| async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                http::Response::builder().status(200).body(Body::from(b"{}".to_vec()))
            });
            let found = ApiServer::new(Client::new(service, "default")).keys_record(&scope).await;
            assert_eq!(found.is_ok(), lasts, "{seconds} s: {found:?}");
        }
    }
}
