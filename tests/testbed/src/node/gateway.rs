//! Services without kube-proxy: the address of each leads to what stands behind it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointSlice};
use kube::api::ListParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::tools::Tools;
use super::{isolation, names};
use crate::control_plane::{ControlPlane, Options};

/// The first address of the control plane's Service range, which every pod knows as the API server's.
const API_SERVER: &str = "10.96.0.1";

/// What a control plane needs besides to have a node.
pub fn options() -> Options {
    let mut options = Options::default();
    options.server_names.push(API_SERVER.to_owned());
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

/// Carries connections to Services on, and answers for their names, as long as it is kept.
pub struct Gateway {
    client: Client,
    busybox: PathBuf,
    serving: Mutex<JoinSet<()>>,
}

impl Gateway {
    /// Opens the Service `kubernetes`, and the name service.
    pub async fn start(plane: &ControlPlane, tools: &Tools) -> Result<Gateway> {
        let (client, busybox) = (plane.admin_client()?, tools.program("busybox")?);
        let gateway = Gateway { client: client.clone(), busybox, serving: Mutex::default() };
        isolation::add_address(&gateway.busybox, names::ADDRESS)?;
        let answering = names::serve(client).await?;
        gateway.serving.lock().spawn(answering);
        let api_server: SocketAddr = plane.url().trim_start_matches("https://").parse()?;
        gateway.carry(API_SERVER, 443, Target::Server(api_server)).await?;
        Ok(gateway)
    }

    /// Opens a Service of pods: each connection goes to one that is ready, or is closed when none is.
    pub async fn open(&self, namespace: &str, name: &str) -> Result<()> {
        let service = Api::<Service>::namespaced(self.client.clone(), namespace).get(name).await?;
        let spec = service.spec.context("the Service has a spec")?;
        let address = spec.cluster_ip.context("the Service has an address")?;
        let port = spec.ports.unwrap_or_default().first().context("the Service has a port")?.port;
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        self.carry(&address, port.try_into()?, Target::Pods(Box::new(slices), name.to_owned())).await
    }

    async fn carry(&self, address: &str, port: u16, target: Target) -> Result<()> {
        isolation::add_address(&self.busybox, address)?;
        let listener = TcpListener::bind((address, port)).await.context("listen on the Service's address")?;
        self.serving.lock().spawn(async move {
            while let Ok((mut inbound, _)) = listener.accept().await {
                let Some(target) = target.address().await else { continue };
                tokio::spawn(async move {
                    if let Ok(mut outbound) = TcpStream::connect(target).await {
                        // Either side may hang up as it likes.
                        let _ = copy_bidirectional(&mut inbound, &mut outbound).await;
                    }
                });
            }
        });
        Ok(())
    }
}

/// What stands behind a Service.
enum Target {
    Server(SocketAddr),
    /// Those of a Service of this name.
    Pods(Box<Api<EndpointSlice>>, String),
}

impl Target {
    async fn address(&self) -> Option<SocketAddr> {
        match self {
            Target::Server(address) => Some(*address),
            Target::Pods(slices, service) => {
                let own = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
                slices.list(&own).await.ok()?.items.iter().find_map(ready_endpoint)
            }
        }
    }
}

fn ready_endpoint(slice: &EndpointSlice) -> Option<SocketAddr> {
    let port = slice.ports.as_ref()?.first()?.port?.try_into().ok()?;
    let ready = |conditions: &EndpointConditions| conditions.ready == Some(true);
    let endpoint = slice.endpoints.iter().flatten().find(|endpoint| endpoint.conditions.as_ref().is_some_and(ready))?;
    Some(SocketAddr::new(endpoint.addresses.first()?.parse().ok()?, port))
}
