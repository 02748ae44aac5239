//! The cluster's name service: it knows the addresses of Services, by the names that pods give them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::net::UdpSocket;

/// Its address, which every pod's `resolv.conf` names.
pub(super) const ADDRESS: &str = "10.96.0.10";

/// The end of every name in the cluster.
pub(super) const DOMAIN: &str = "cluster.local";

/// Listens, and returns what answers.
pub(super) async fn serve(client: Client) -> Result<impl Future<Output = ()> + Send + 'static> {
    let socket = UdpSocket::bind((ADDRESS, 53)).await.context("listen for names to resolve")?;
    Ok(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if let Some(reply) = answer(&client, &buffer[..length]).await {
                // Who asked asks again.
                let _ = socket.send_to(&reply, from).await;
            }
        }
    })
}

async fn answer(client: &Client, query: &[u8]) -> Option<Vec<u8>> {
    let mut reply = Packet::parse(query).ok()?.into_reply();
    let question = reply.questions.first()?.clone();
    match address(client, &question.qname.to_string()).await {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(address) if question.qtype == QTYPE::TYPE(TYPE::A) => {
            reply.answers.push(ResourceRecord::new(question.qname, CLASS::IN, 5, RData::A(address.into())));
        }
        // There is such a name, and nothing of the kind that is asked for, such as an IPv6 address.
        Some(_) => {}
    }
    reply.build_bytes_vec().ok()
}

/// The address of a Service, by `NAME.NAMESPACE.svc.cluster.local`.
async fn address(client: &Client, name: &str) -> Option<Ipv4Addr> {
    let (name, namespace) = name.strip_suffix(DOMAIN)?.strip_suffix(".svc.")?.split_once('.')?;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    services.get_opt(name).await.ok()??.spec?.cluster_ip?.parse().ok()
}
