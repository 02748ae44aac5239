//! A real Kubernetes control plane: etcd, kube-apiserver and kube-controller-manager, up in seconds and gone with the test process.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Once, OnceLock};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;

pub use binaries::prepare;
pub(crate) use child::Server;
pub use child::spawn_tied;
pub use options::Options;

use crate::port::Port;
use binaries::Binaries;
use child::Reaper;
use keys::Keys;
use servers::Layout;

mod access;
mod binaries;
mod child;
mod install;
mod keys;
mod options;
mod ready;
mod servers;

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
    installing: tokio::sync::Mutex<()>,
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
    let plane = shared.await?.as_ref().map_err(|message| anyhow::anyhow!("{message}"))?;
    static KEPT: Once = Once::new();
    KEPT.call_once(|| drop(std::thread::spawn(|| plane.keep_api_server())));
    Ok(plane)
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
        let (etcd_port, etcd_peer_port, api_port) = (Port::reserve()?, Port::reserve()?, Port::reserve()?);
        let layout = Layout { dir, binaries, keys, etcd_port, etcd_peer_port, api_port, options };
        let plane = ControlPlane {
            etcd: layout.start_etcd()?,
            api_server: Mutex::new(Some(layout.start_api_server()?)),
            controller_manager: Mutex::new(None),
            layout,
            admin_token,
            kubeconfigs: AtomicU32::new(0),
            installing: tokio::sync::Mutex::new(()),
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

    /// Waits until the API server ends by itself, tells why, and starts it again, as a kubelet does. Returns when it was stopped.
    pub fn keep_api_server(&self) {
        while let Some(pid) = self.pids().api_server.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It stays to be waited for, so that whoever stops it meets no other process.
            if waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).is_err() {
                return;
            }
            let mut api_server = self.api_server.lock();
            let Some(Err(error)) = api_server.as_mut().map(Server::check_alive) else { continue };
            eprintln!("{error:#}");
            match self.layout.start_api_server() {
                Ok(again) => *api_server = Some(again),
                Err(error) => return eprintln!("{error:#}"),
            }
        }
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
}

/// kube and reqwest take rustls' process-wide provider; the first caller installs it.
pub fn install_crypto_provider() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
