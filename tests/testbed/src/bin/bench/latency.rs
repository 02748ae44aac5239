//! How long a new namespace waits for its Secret, beside how long one bare write takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};
use testbed::aws::Service;

use crate::bare::{Bare, Verb};
use crate::cluster::{Cluster, SECRET, labelled, make_namespace};
use crate::sightings::Sightings;

/// The pause between new namespaces while nothing else is to happen: what the one before has set going has ended by then.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Times in milliseconds, one for each sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// From the answer to the creation of a namespace until a watch shows its Secret.
    pub new_ms: Vec<f64>,
    /// From sending one bare apply into another new namespace until its answer.
    pub bare_ms: Vec<f64>,
    /// The same until a watch shows it.
    pub bare_seen_ms: Vec<f64>,
}

/// Makes namespaces one after another, as long as `more` says so: one for the operator, one for the bare client.
pub async fn sample(
    cluster: &Cluster,
    prefix: &str,
    label: &str,
    model: &Secret,
    pause: Duration,
    mut more: impl FnMut(usize) -> bool,
) -> Result<Latency> {
    let bare = Bare::new(cluster.peer.clone());
    let mut ours = Sightings::begin(cluster.admin.clone(), SECRET).await?;
    let mut theirs = Sightings::begin(cluster.admin.clone(), Verb::Apply.secret()).await?;
    let mut latency = Latency::default();
    let mut count = 0;
    while more(count) {
        tokio::time::sleep(pause).await;
        let name = format!("{prefix}{count}");
        make_namespace(&cluster.admin, &name, &labelled(label)).await?;
        let made = Instant::now();
        let seen = ours.of(&name).await?;
        latency.new_ms.push(milliseconds(seen.saturating_duration_since(made)));

        tokio::time::sleep(pause).await;
        let name = format!("{prefix}{count}-bare");
        make_namespace(&cluster.admin, &name, &BTreeMap::new()).await?;
        let sent = Instant::now();
        bare.write_one(Verb::Apply, &name, model, None).await?;
        latency.bare_ms.push(milliseconds(sent.elapsed()));
        let seen = theirs.of(&name).await?;
        latency.bare_seen_ms.push(milliseconds(seen.saturating_duration_since(sent)));
        count += 1;
    }
    Ok(latency)
}

/// How many times AWS was asked for a password.
pub fn aws_calls(cluster: &Cluster) -> usize {
    cluster.aws.calls(Service::Ecr).len()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
