//! The command lines of etcd, the API server and the controller manager.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Options;
use super::binaries::Binaries;
use super::child::Server;
use super::keys::Keys;

/// Everything that a server needs to know to be started, and started again at the same address.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) keys: Keys,
    pub(super) etcd_port: u16,
    pub(super) etcd_peer_port: u16,
    pub(super) api_port: u16,
    pub(super) options: Options,
}

impl Layout {
    pub(super) fn start_etcd(&self) -> Result<Server> {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let peer = format!("http://127.0.0.1:{}", self.etcd_peer_port);
        let mut command = self.binaries.command("etcd");
        command
            .arg(format!("--data-dir={}", self.dir.join("etcd").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            // The data is thrown away after the run; waiting for the disk would only make the tests slow.
            .arg("--unsafe-no-fsync");
        Server::start("etcd", command, &self.dir)
    }

    pub(super) fn start_api_server(&self) -> Result<Server> {
        let issuer = self.issuer();
        let mut command = self.binaries.command("kube-apiserver");
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .arg(format!("--secure-port={}", self.api_port))
            .arg(format!("--bind-address={}", self.options.bind_address))
            // Publishing an endpoint for itself would need an address that is not loopback.
            .args(["--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--authorization-mode=RBAC")
            .arg(format!("--token-auth-file={}", self.dir.join("tokens.csv").display()))
            .arg(format!("--cert-dir={}", self.dir.join("certs").display()))
            .arg(format!("--tls-cert-file={}", self.keys.serving_cert.display()))
            .arg(format!("--tls-private-key-file={}", self.keys.serving_key.display()))
            .arg(format!("--service-account-issuer={issuer}"))
            .arg(format!("--service-account-jwks-uri={issuer}/openid/v1/jwks"))
            .arg(format!("--api-audiences={issuer},https://kubernetes.default.svc"))
            .arg(format!("--service-account-signing-key-file={}", self.keys.service_account_key.display()))
            .arg(format!("--service-account-key-file={}", self.keys.service_account_public_key.display()))
            .args(&self.options.api_server_args);
        Server::start("kube-apiserver", command, &self.dir)
    }

    pub(super) fn start_controller_manager(&self) -> Result<Server> {
        let mut command = self.binaries.command("kube-controller-manager");
        command
            .arg(format!("--kubeconfig={}", self.dir.join("admin.kubeconfig").display()))
            .arg(format!("--controllers={}", self.options.controllers.join(",")))
            .arg(format!("--root-ca-file={}", self.keys.ca_cert.display()))
            .arg(format!("--service-account-private-key-file={}", self.keys.service_account_key.display()))
            .args(["--leader-elect=false", "--secure-port=0", "--concurrent-namespace-syncs=50"])
            // The default of 20 requests a second would make the clean-up the slowest part of the tests.
            .args(["--kube-api-qps=1000", "--kube-api-burst=2000"])
            .args(&self.options.controller_manager_args);
        Server::start("kube-controller-manager", command, &self.dir)
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// The API server is its own OIDC issuer, so tokens can be verified for real by whoever trusts its certificate authority.
    pub(super) fn issuer(&self) -> String {
        self.url()
    }
}

/// A port below the range that the kernel gives to outgoing connections, so that it is still free when a server is started again.
pub(super) fn free_port() -> Result<u16> {
    (0..200)
        .map(|_| rand::random_range(20_000..30_000))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free TCP port between 20000 and 30000 on 127.0.0.1")
}
