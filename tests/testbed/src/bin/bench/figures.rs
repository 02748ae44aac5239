//! What is measured, as it is kept in JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::attach::Attach;
use crate::latency::Latency;
use crate::requests::Requests;

/// One run of the bench.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// When, UTC.
    pub date: String,
    /// The processor and its cores.
    pub machine: String,
    /// One for each number of namespaces.
    pub sizes: Vec<Size>,
    /// One for each number of `EcrCredentials`.
    pub many: Vec<Many>,
    /// What attaching Secrets costs new pods.
    #[serde(default)]
    pub attach: Vec<Attach>,
    /// The binary's size in bytes.
    pub binary: u64,
    /// The image archive's size in bytes, if there is one.
    pub image: Option<u64>,
}

/// One `EcrCredential` for N namespaces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Size {
    /// N.
    pub namespaces: usize,
    /// All of them labelled at once.
    pub labelled: Labelled,
    /// Refreshes of all.
    pub refresh: Refresh,
    /// New namespaces while nothing else happens.
    pub idle: Latency,
    /// The same without a pause between them: what one has set going meets the next.
    #[serde(default)]
    pub rush: Latency,
    /// New namespaces during a refresh of all.
    pub busy: Latency,
    /// A start with fresh Secrets.
    pub start: Start,
    /// Nothing happens.
    pub rest: Rest,
    /// The most memory ever resident, in KiB, of the process that did all of the above but the start.
    pub peak_kib: u64,
}

/// All namespaces are labelled as fast as the API server takes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Labelled {
    /// Until the last label was answered, in seconds.
    pub labels_s: f64,
    /// Until the status says that all hold the Secret, in seconds.
    pub synced_s: f64,
    /// The operator's processor time, in seconds.
    pub cpu_s: f64,
    /// Writes of the status.
    pub status_writes: f64,
    /// Writes of Secrets.
    pub secret_writes: f64,
}

/// Refreshes on demand, in turn with the bare client.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Refresh {
    /// From the request until the status says that it is served, in seconds, for each run.
    pub operator_s: Vec<f64>,
    /// The bare client's times for the same Secrets, by verb.
    pub bare_s: BTreeMap<String, Vec<f64>>,
    /// The processor time of the control plane, in seconds, over all runs, by who wrote: `operator` or the
    /// verb.
    #[serde(default)]
    pub plane_cpu_s: BTreeMap<String, f64>,
    /// The API server's requests during the operator's runs, those of the harness included (one PATCH of the
    /// `EcrCredential` for each run).
    pub requests: Requests,
    /// Calls to AWS during the operator's runs.
    pub aws_calls: usize,
    /// The operator's processor time, in seconds.
    pub cpu_s: f64,
    /// The processor time of the bare client by apply, in seconds, that of the harness around it included.
    pub bare_cpu_s: f64,
}

/// A start with fresh Secrets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Start {
    /// Until Ready, in seconds.
    pub ready_s: f64,
    /// What downloading the same lists takes a bare client, in seconds.
    pub download_s: f64,
    /// Writes of Secrets and statuses.
    pub writes: f64,
    /// Reads of single Secrets, to find tokens again.
    #[serde(default)]
    pub reads: f64,
    /// The operator's processor time, in seconds.
    pub cpu_s: f64,
    /// The most memory ever resident, in KiB.
    pub peak_kib: u64,
}

/// Nothing happens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rest {
    /// For so long, in seconds.
    pub seconds: f64,
    /// The API server's requests, those of the harness and of Kubernetes' own controllers included.
    pub requests: Requests,
    /// The operator's processor time, in seconds.
    pub cpu_s: f64,
    /// The memory resident at the end, in KiB.
    pub resident_kib: u64,
}

/// Many `EcrCredentials` with ten namespaces each.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Many {
    /// How many.
    pub credentials: usize,
    /// Until all are Ready, in seconds.
    pub ready_s: f64,
    /// The operator's processor time until then, in seconds.
    pub cpu_s: f64,
    /// Writes of statuses until then.
    pub status_writes: f64,
    /// Writes of Secrets until then.
    pub secret_writes: f64,
    /// Calls to AWS until then.
    pub aws_calls: usize,
    /// New namespaces for one of them.
    pub idle: Latency,
    /// A start with fresh Secrets.
    pub start: Start,
    /// The most memory ever resident, in KiB.
    pub peak_kib: u64,
}

/// The value below which a share of the list lies.
pub fn quantile(list: &[f64], share: f64) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    let place = (share * list.len() as f64).ceil() as usize;
    list.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The median.
pub fn median(list: &[f64]) -> f64 {
    quantile(list, 0.5)
}
