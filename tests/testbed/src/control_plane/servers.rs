//! The command lines of etcd, the API server and the controller manager.

use std::path::PathBuf;

use anyhow::Result;

use super::Options;
use super::binaries::Binaries;
use super::child::Server;
use super::keys::Keys;
use crate::port::Port;

/// Everything that a server needs to know to be started, and started again at the same address.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) keys: Keys,
    pub(super) etcd_port: Port,
    pub(super) etcd_peer_port: Port,
    pub(super) api_port: Port,
    pub(super) options: Options,
}

impl Layout {
    pub(super) fn start_etcd(&self) -> Result<Server> {
        let client = format!("http://{}", self.etcd_port.address());
        let peer = format!("http://{}", self.etcd_peer_port.address());
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
            .arg(format!("--etcd-servers=http://{}", self.etcd_port.address()))
            .arg(format!("--secure-port={}", self.api_port.number()))
            .arg(format!("--bind-address={}", self.options.bind_address))
            // As kubeadm starts it: build pods are privileged.
            .arg("--allow-privileged=true")
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
        format!("https://{}", self.api_port.address())
    }

    /// The API server is its own OIDC issuer, so tokens can be verified for real by whoever trusts its certificate authority.
    pub(super) fn issuer(&self) -> String {
        self.url()
    }
}
