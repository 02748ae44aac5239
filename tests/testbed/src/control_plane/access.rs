//! Ways to talk to the control plane: clients, kubeconfigs, tokens, and the keys that verify them.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client, Config};

use super::{ControlPlane, install_crypto_provider};

impl ControlPlane {
    /// A client with all rights. It belongs to the calling runtime: each test asks for its own.
    pub fn admin_client(&self) -> Result<Client> {
        self.client(&self.admin_token)
    }

    /// A client that shows `token`, of a ServiceAccount for instance.
    pub fn client(&self, token: &str) -> Result<Client> {
        install_crypto_provider();
        let mut config = Config::new(self.url().parse()?);
        config.root_cert = Some(vec![pem_to_der(self.ca_pem())?]);
        config.auth_info.token = Some(token.to_owned().into());
        Ok(Client::try_from(config)?)
    }

    /// The kubeconfig of the admin, for kubectl and helm.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.layout.dir.join("admin.kubeconfig")
    }

    /// Writes a kubeconfig into the control plane's directory. kubectl sends a token only to an https address.
    pub fn kubeconfig(&self, server_url: &str, token: &str, ca_pem: Option<&str>) -> Result<PathBuf> {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        self.write_kubeconfig(&format!("user-{number}"), server_url, token, ca_pem)
    }

    /// A token for a ServiceAccount by the TokenRequest API, at least 600 s valid; an empty audience is the API server itself.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        audience: &str,
        seconds: i64,
    ) -> Result<String> {
        let audiences = (!audience.is_empty()).then(|| vec![audience.to_owned()]);
        let spec = TokenRequestSpec { audiences, expiration_seconds: Some(seconds), bound_object_ref: None };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin_client()?, namespace);
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let answer = answer.with_context(|| format!("request a token for the ServiceAccount {namespace}/{name}"))?;
        answer.status.and_then(|status| status.token).context("the TokenRequest was answered without a token")
    }

    /// The `iss` of every service account token.
    pub fn issuer(&self) -> String {
        self.layout.issuer()
    }

    /// The keys that verify service account tokens, as `/openid/v1/jwks` serves them.
    pub async fn jwks(&self) -> Result<serde_json::Value> {
        let request = http::Request::get("/openid/v1/jwks").body(vec![])?;
        Ok(serde_json::from_str(&self.admin_client()?.request_text(request).await?)?)
    }

    pub(super) fn write_kubeconfig(
        &self,
        name: &str,
        server_url: &str,
        token: &str,
        ca_pem: Option<&str>,
    ) -> Result<PathBuf> {
        use base64::Engine;
        let mut cluster = serde_json::json!({ "server": server_url });
        if let Some(pem) = ca_pem {
            cluster["certificate-authority-data"] = base64::prelude::BASE64_STANDARD.encode(pem).into();
        }
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": cluster }],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
            "current-context": "testbed",
        });
        let path = self.layout.dir.join(format!("{name}.kubeconfig"));
        fs::write(&path, serde_saphyr::to_string(&config)?).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn pem_to_der(pem: &str) -> Result<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    Ok(CertificateDer::from_pem_slice(pem.as_bytes()).context("read the control plane's certificate")?.to_vec())
}
