//! What the API server was asked, by its own count (`apiserver_request_total`).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use kube::Client;
use serde::{Deserialize, Serialize};

/// Requests by verb and resource, such as `APPLY secrets`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Requests(pub BTreeMap<String, f64>);

impl Requests {
    /// Reads the counters.
    pub async fn read(client: &Client) -> Result<Requests> {
        let text = client.request_text(http::Request::get("/metrics").body(vec![])?).await.context("read /metrics")?;
        let mut requests = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let (labels, value) = line.rsplit_once("} ").context("a line of /metrics")?;
            let label = |name: &str| {
                let value = labels.split("\",").find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                value.unwrap_or_default().trim_end_matches('"')
            };
            let name = [label("resource"), label("subresource")].join("/");
            let name = format!("{} {}", label("verb"), name.trim_end_matches('/'));
            *requests.entry(name).or_default() += value.parse::<f64>()?;
        }
        Ok(Requests(requests))
    }

    /// What came in since `before`.
    pub fn since(&self, before: &Requests) -> Requests {
        let grown = self.0.iter().map(|(name, value)| (name.clone(), value - before.0.get(name).unwrap_or(&0.0)));
        Requests(grown.filter(|(_, value)| *value > 0.0).collect())
    }

    /// Those about single objects of a resource; watches, which end whenever they do, are not counted.
    pub fn about(&self, resource: &str) -> f64 {
        let about = self.0.iter().filter(|(name, _)| {
            name.split_once(' ').is_some_and(|(verb, what)| what == resource && !matches!(verb, "LIST" | "WATCH"))
        });
        // The sum of nothing is -0.
        about.map(|(_, value)| value).sum::<f64>().abs()
    }

    /// Those that change something, the Leases apart: the API server itself keeps one.
    pub fn changes(&self) -> f64 {
        let reading = |name: &str| ["GET ", "LIST ", "WATCH ", "CONNECT "].iter().any(|verb| name.starts_with(verb));
        let changing = self.0.iter().filter(|(name, _)| !reading(name) && !name.ends_with(" leases"));
        changing.map(|(_, value)| value).sum::<f64>().abs()
    }
}
