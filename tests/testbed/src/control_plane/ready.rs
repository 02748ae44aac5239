//! When a server is ready: asked of the server itself, with the end of its log in the error when it never is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;

use super::ControlPlane;
use super::child::Server;

/// How long a server may take to become ready; a busy machine with two cores needs about 4 s.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(300);

impl ControlPlane {
    pub(super) async fn api_server_ready(&self) -> Result<()> {
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(self.ca_pem().as_bytes())?])
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()?;
        let url = format!("{}/readyz", self.url());
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            self.check_alive(&self.api_server)?;
            let answer = http.get(&url).bearer_auth(&self.admin_token).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            self.check_deadline(deadline, &self.api_server)?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// A controller manager with no port is ready when its work is seen: the namespace `default` has its ServiceAccount and a new object's
    /// owner is looked up.
    pub(super) async fn controller_manager_ready(&self) -> Result<()> {
        let client = self.admin_client()?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let probe = format!("controller-manager-probe-{}", hex::encode(rand::random::<[u8; 4]>()));
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut placed = false;
        loop {
            self.check_alive(&self.controller_manager)?;
            if !placed {
                // A new API server makes the namespace only a moment after it says that it is ready.
                placed = accounts.create(&PostParams::default(), &orphan(&probe)).await.is_ok();
            } else if accounts.get_opt("default").await?.is_some() && accounts.get_opt(&probe).await?.is_none() {
                return Ok(());
            }
            self.check_deadline(deadline, &self.controller_manager)?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    fn check_alive(&self, server: &Mutex<Option<Server>>) -> Result<()> {
        server.lock().as_mut().context("the server was stopped while it was awaited")?.check_alive()
    }

    fn check_deadline(&self, deadline: Instant, server: &Mutex<Option<Server>>) -> Result<()> {
        if Instant::now() < deadline {
            return Ok(());
        }
        let server = server.lock();
        let (log, tail) = server.as_ref().map(|s| (s.log().display().to_string(), s.log_tail())).unwrap_or_default();
        bail!("not ready after {} s; the end of {log}:\n{tail}", READY_TIMEOUT.as_secs())
    }
}

/// An object whose owner never existed: a garbage collector that works deletes it.
fn orphan(name: &str) -> ServiceAccount {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "never-existed".into(),
        uid: "00000000-0000-0000-0000-000000000000".into(),
        ..Default::default()
    };
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(name.to_owned());
    account.metadata.owner_references = Some(vec![owner]);
    account
}
