//! A real Kubernetes control plane: etcd, kube-apiserver and kube-controller-manager, up in seconds and gone with the test process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use parking_lot::Mutex;
use tempfile::TempDir;

pub use child::spawn_tied;

use binaries::Binaries;
use child::{Reaper, Server};
use keys::Keys;
use servers::{Layout, free_port};

mod binaries;
mod child;
mod keys;
mod servers;

/// How long a server may take to become ready; a busy machine with two cores needs about 4 s.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// What differs from the control plane that most tests want.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that the API server listens on; a node or a pod needs another than loopback.
    pub bind_address: String,
    /// Further names or addresses that the serving certificate is valid for.
    pub server_names: Vec<String>,
    /// Further flags of kube-apiserver.
    pub api_server_args: Vec<String>,
    /// The controllers that run; each one is a second or more of a small machine's time.
    pub controllers: Vec<String>,
    /// Further flags of kube-controller-manager.
    pub controller_manager_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let controllers = [
            "garbage-collector-controller",
            "namespace-controller",
            "resourcequota-controller",
            "root-ca-certificate-publisher-controller",
            "serviceaccount-controller",
            "serviceaccount-token-controller",
            "clusterrole-aggregation-controller",
        ];
        Options {
            bind_address: "127.0.0.1".into(),
            server_names: vec![],
            api_server_args: vec![],
            controllers: controllers.map(String::from).to_vec(),
            controller_manager_args: vec![],
        }
    }
}

/// The process ids of the servers, for measurements.
#[derive(Clone, Copy, Debug)]
pub struct Pids {
    pub etcd: u32,
    pub api_server: Option<u32>,
    pub controller_manager: Option<u32>,
}

/// A running control plane. Dropping it stops it and removes its files.
pub struct ControlPlane {
    // Fields are dropped in this order: without etcd the API server would hang on its way down.
    controller_manager: Mutex<Option<Server>>,
    api_server: Mutex<Option<Server>>,
    etcd: Server,
    layout: Layout,
    admin_token: String,
    kubeconfigs: AtomicU32,
    _reaper: Reaper,
    _dir: TempDir,
}

/// The one control plane of this process, started by the first caller. It belongs to no test's runtime.
pub async fn shared() -> Result<&'static ControlPlane> {
    static SHARED: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
    let shared = tokio::task::spawn_blocking(|| {
        SHARED.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map_err(|e| e.to_string())?
                .block_on(ControlPlane::start(Options::default()))
                .map_err(|e| format!("{e:#}"))
        })
    });
    shared.await?.as_ref().map_err(|message| anyhow::anyhow!("{message}"))
}

impl ControlPlane {
    /// Starts a control plane of its own; tests that only need *a* control plane use [`shared`].
    pub async fn start(options: Options) -> Result<ControlPlane> {
        install_crypto_provider();
        let binaries = tokio::task::spawn_blocking(Binaries::find).await??;
        let temp = tempfile::Builder::new().prefix("testbed-control-plane-").tempdir()?;
        let reaper = Reaper::watch(temp.path())?;
        let dir = temp.path().to_owned();
        let admin_token = hex::encode(rand::random::<[u8; 16]>());
        fs::write(dir.join("tokens.csv"), format!("{admin_token},admin,admin,\"system:masters\"\n"))?;

        let keys = Keys::generate(&dir, &options.server_names)?;
        let (etcd_port, etcd_peer_port, api_port) = (free_port()?, free_port()?, free_port()?);
        let layout = Layout { dir, binaries, keys, etcd_port, etcd_peer_port, api_port, options };
        let plane = ControlPlane {
            etcd: layout.start_etcd()?,
            api_server: Mutex::new(Some(layout.start_api_server()?)),
            controller_manager: Mutex::new(None),
            layout,
            admin_token,
            kubeconfigs: AtomicU32::new(0),
            _reaper: reaper,
            _dir: temp,
        };
        plane.api_server_ready().await?;
        plane.write_kubeconfig("admin", &plane.url(), &plane.admin_token, Some(plane.ca_pem()))?;
        plane.start_controller_manager().await?;
        Ok(plane)
    }

    /// Stops everything; the same as dropping it, by name.
    pub fn stop(self) {}

    /// The API server's address, `https://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        self.layout.url()
    }

    /// The certificate authority of the API server, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.layout.keys.ca_pem
    }

    /// The bearer token of a user in `system:masters`.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

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

    /// Applies CustomResourceDefinitions and waits until each is served.
    ///
    /// The garbage collector looks for new kinds only every 30 s, so the controller manager starts again when one was new or changed.
    pub async fn install(&self, crds: &[CustomResourceDefinition]) -> Result<()> {
        let mut changed = false;
        for crd in crds {
            changed |= self.install_one(crd).await?;
        }
        if changed && self.controller_manager.lock().is_some() {
            self.stop_controller_manager();
            self.start_controller_manager().await?;
        }
        Ok(())
    }

    /// Kills the API server: every connection breaks, and new ones are refused until it is started again.
    pub fn stop_api_server(&self) {
        self.api_server.lock().take();
    }

    /// Starts the API server again at the same address and waits until it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        {
            let mut api_server = self.api_server.lock();
            if api_server.is_none() {
                *api_server = Some(self.layout.start_api_server()?);
            }
        }
        self.api_server_ready().await
    }

    /// Kills the controller manager: nothing is garbage collected and no namespace ends until it is started again.
    pub fn stop_controller_manager(&self) {
        self.controller_manager.lock().take();
    }

    /// Starts the controller manager and waits until it gives a new namespace its ServiceAccount.
    pub async fn start_controller_manager(&self) -> Result<()> {
        {
            let mut manager = self.controller_manager.lock();
            if manager.is_none() {
                *manager = Some(self.layout.start_controller_manager()?);
            }
        }
        self.controller_manager_ready().await
    }

    /// Freezes the API server: connections stay open and nothing answers, as on a stalled machine.
    pub fn pause_api_server(&self) -> Result<()> {
        self.signal_api_server(rustix::process::Signal::STOP)
    }

    /// Ends [`pause_api_server`](Self::pause_api_server).
    pub fn resume_api_server(&self) -> Result<()> {
        self.signal_api_server(rustix::process::Signal::CONT)
    }

    pub fn pids(&self) -> Pids {
        Pids {
            etcd: self.etcd.pid(),
            api_server: self.api_server.lock().as_ref().map(Server::pid),
            controller_manager: self.controller_manager.lock().as_ref().map(Server::pid),
        }
    }

    /// Where the servers' logs and keys are, until the control plane is dropped.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    fn signal_api_server(&self, signal: rustix::process::Signal) -> Result<()> {
        self.api_server.lock().as_ref().context("the API server is stopped")?.signal(signal)
    }

    fn write_kubeconfig(&self, name: &str, server_url: &str, token: &str, ca_pem: Option<&str>) -> Result<PathBuf> {
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
        fs::write(&path, serde_yaml_ng::to_string(&config)?).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    async fn api_server_ready(&self) -> Result<()> {
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
    async fn controller_manager_ready(&self) -> Result<()> {
        let client = self.admin_client()?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let probe = format!("controller-manager-probe-{}", hex::encode(rand::random::<[u8; 4]>()));
        accounts
            .create(&PostParams::default(), &orphan(&probe))
            .await
            .context("create the probe of the garbage collector")?;
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            self.check_alive(&self.controller_manager)?;
            if accounts.get_opt("default").await?.is_some() && accounts.get_opt(&probe).await?.is_none() {
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

    /// Whether the definition was new or different.
    async fn install_one(&self, crd: &CustomResourceDefinition) -> Result<bool> {
        let name = crd.metadata.name.as_deref().context("the CustomResourceDefinition has no name")?;
        let crds: Api<CustomResourceDefinition> = Api::all(self.admin_client()?);
        let before = crds.get_opt(name).await?.and_then(|old| old.metadata.generation);
        let params = PatchParams::apply("testbed").force();
        let applied = crds.patch(name, &params, &Patch::Apply(crd)).await.with_context(|| format!("apply {name}"))?;
        let established =
            kube::runtime::wait::await_condition(crds, name, kube::runtime::conditions::is_crd_established());
        tokio::time::timeout(READY_TIMEOUT, established)
            .await
            .with_context(|| format!("{name} was not established"))??;
        Ok(before != applied.metadata.generation)
    }
}

/// kube and reqwest take rustls' process-wide provider; the first caller installs it.
pub fn install_crypto_provider() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
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

fn pem_to_der(pem: &str) -> Result<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    Ok(CertificateDer::from_pem_slice(pem.as_bytes()).context("read the control plane's certificate")?.to_vec())
}
