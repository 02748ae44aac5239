//! The Service `kubernetes` without kube-proxy: the address that every pod is told leads to the API server.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::control_plane::{ControlPlane, Options};

/// The first address of the control plane's Service range.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";

/// What a control plane needs besides to have a node.
pub fn options() -> Options {
    let mut options = Options::default();
    options.server_names.push(SERVICE_ADDRESS.to_owned());
    for argument in [
        "--authorization-mode=Node",
        "--enable-admission-plugins=NodeRestriction",
        "--kubelet-preferred-address-types=InternalIP",
    ] {
        options.api_server_args.push(argument.to_owned());
    }
    for controller in [
        "deployment-controller",
        "replicaset-controller",
        "endpointslice-controller",
        "disruption-controller",
        "node-lifecycle-controller",
        "pod-garbage-collector-controller",
    ] {
        options.controllers.push(controller.to_owned());
    }
    options
}

/// Carries connections to the Service's address on to the API server, as long as it is kept.
pub struct Gateway(JoinHandle<()>);

impl Gateway {
    /// Listens on the Service's address, which the namespace's loopback device has.
    pub async fn start(plane: &ControlPlane) -> Result<Gateway> {
        let listener = TcpListener::bind((SERVICE_ADDRESS, 443)).await.context("listen on the Service's address")?;
        let target: Arc<str> = plane.url().trim_start_matches("https://").into();
        Ok(Gateway(tokio::spawn(async move {
            while let Ok((mut inbound, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    if let Ok(mut outbound) = TcpStream::connect(&*target).await {
                        // Either side may hang up as it likes.
                        let _ = copy_bidirectional(&mut inbound, &mut outbound).await;
                    }
                });
            }
        })))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.abort();
    }
}
