//! What happened, as metrics and log lines: the one place that turns results into words with bounded labels.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::api::EcrCredentialStatus;
use crate::api::status::{Reason, condition};
use crate::apply::{WriteError, Written};
use crate::controller::Observer;
use crate::controller::error::Error;
use crate::plan::schedule::Life;
use crate::plan::{Service, TokenKey, Uid};
use crate::process::telemetry::{
    CallLabels, KindLabels, Metrics, ResultLabels, SourceLabels, StateLabels, TokenLabels, WriteLabels,
};
use crate::secret::Verdict;
use crate::token::cache::Fetched;
use crate::token::identity::Origin;

/// The operator's own AWS identity was found, or is found elsewhere now.
pub fn found_identity(metrics: &Metrics, origin: Origin) {
    tracing::info!(source = origin.as_str(), "found the operator's AWS identity");
    for each in Origin::ALL {
        let labels = SourceLabels { source: each.as_str() };
        metrics.identity.get_or_create(&labels).set(i64::from(each == origin));
    }
}

/// Keeps the metrics.
pub struct Reporter {
    metrics: Metrics,
    statuses: Mutex<HashMap<Uid, Summary>>,
}

/// What the metrics need of a status.
#[derive(Clone, Copy, Debug, Default)]
struct Summary {
    selected: i64,
    synced: i64,
    failed: i64,
    ready: bool,
    stalled: bool,
    suspended: bool,
    unreadable: bool,
    /// When the password that expires first does so, and when it was issued.
    earliest: Option<(Timestamp, Timestamp)>,
}

impl Summary {
    fn of(status: &EcrCredentialStatus) -> Self {
        let holds = |type_: &str| status.conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
        let counts = status.namespaces.clone().unwrap_or_default();
        Self {
            selected: i64::from(counts.selected),
            synced: i64::from(counts.synced),
            failed: i64::from(counts.failed),
            ready: holds(condition::READY),
            stalled: holds(condition::STALLED),
            suspended: status
                .conditions
                .iter()
                .any(|c| c.type_ == condition::READY && c.reason == Reason::Suspended.as_str()),
            unreadable: false,
            earliest: status.registries.iter().filter_map(|r| Some((r.expires_at?, r.issued_at?))).min(),
        }
    }
}

impl Reporter {
    /// Reports into these metrics.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, statuses: Mutex::default() }
    }

    /// A call of GetAuthorizationToken has ended.
    pub fn fetched(&self, fetched: &Fetched) {
        let (api, region) = (api(&fetched.key), fetched.key.service.region().to_string());
        let identity = fetched.key.identity.kind();
        match &fetched.result {
            Ok(Life { issued_at, expires_at }) => {
                tracing::info!(api, region, identity = %fetched.key.identity, %expires_at, "fetched a token");
                self.metrics.aws_requests.get_or_create(&CallLabels { api, identity, result: "success" }).inc();
                let labels = TokenLabels { api, region, identity };
                self.metrics.token_expiry.get_or_create(&labels).set(expires_at.as_second());
                self.metrics.token_refresh.get_or_create(&labels).set(issued_at.as_second());
            }
            Err(error) => {
                let result = error.reason().as_str();
                tracing::warn!(api, region, identity = %fetched.key.identity, reason = result, %error, "no token: trying again");
                self.metrics.aws_requests.get_or_create(&CallLabels { api, identity, result }).inc();
            }
        }
    }

    /// An `EcrCredential` is gone.
    pub fn forget(&self, uid: &Uid) {
        self.statuses.lock().remove(uid);
        self.publish();
    }

    /// An `EcrCredential` cannot be read. Its Secrets are there and expire: what was last said of them still counts.
    pub fn unreadable(&self, uid: &Uid, status: Option<&EcrCredentialStatus>) {
        let said = status.map(Summary::of).unwrap_or_default();
        let summary = Summary { ready: false, stalled: false, suspended: false, unreadable: true, ..said };
        self.statuses.lock().insert(uid.clone(), summary);
        self.publish();
    }

    /// So many objects of a kind cannot be read at all, and are skipped.
    pub fn skipped(&self, kind: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.unreadable.get_or_create(&KindLabels { kind }).set(count);
    }

    fn publish(&self) {
        let statuses = self.statuses.lock();
        let sum = |number: fn(&Summary) -> i64| statuses.values().map(number).sum::<i64>();
        let (selected, synced, failed) = (sum(|s| s.selected), sum(|s| s.synced), sum(|s| s.failed));
        let ready = sum(|s| i64::from(s.ready));
        let stalled = sum(|s| i64::from(s.stalled));
        let suspended = sum(|s| i64::from(s.suspended));
        let unreadable = sum(|s| i64::from(s.unreadable));
        let all = i64::try_from(statuses.len()).unwrap_or(i64::MAX);
        let others = ready.saturating_add(stalled).saturating_add(suspended).saturating_add(unreadable);
        let not_ready = all.saturating_sub(others);
        // What is suspended may expire: that is what suspending means.
        let earliest = statuses.values().filter(|s| !s.suspended).filter_map(|s| s.earliest).min();
        drop(statuses);
        let set = |family: &Family<StateLabels, Gauge>, state, value| {
            family.get_or_create(&StateLabels { state }).set(value);
        };
        let pending = selected.saturating_sub(synced).saturating_sub(failed);
        for (state, value) in [("synced", synced), ("failed", failed), ("pending", pending)] {
            set(&self.metrics.namespaces, state, value);
        }
        for (state, value) in [
            ("ready", ready),
            ("not_ready", not_ready),
            ("stalled", stalled),
            ("suspended", suspended),
            ("unreadable", unreadable),
        ] {
            set(&self.metrics.credentials, state, value);
        }
        self.metrics.earliest_expiry.set(earliest.map_or(0, |(expires_at, _)| expires_at.as_second()));
        self.metrics.earliest_issue.set(earliest.map_or(0, |(_, issued_at)| issued_at.as_second()));
    }
}

impl Observer for Reporter {
    fn wrote(&self, verdict: &Verdict, result: &Result<Written, WriteError>) {
        let operation = match verdict {
            Verdict::Create => "create",
            Verdict::Update(_) | Verdict::Strip(_) => "update",
            Verdict::Delete(_) => "delete",
            Verdict::Keep | Verdict::Wait | Verdict::Refuse(..) => return,
        };
        let result = match result {
            Ok(_) => "success",
            Err(WriteError::Stale) => "stale",
            Err(WriteError::NamespaceGone) => "namespace_gone",
            Err(WriteError::Unchangeable(reason, _) | WriteError::Refused(reason, _)) => reason.as_str(),
        };
        self.metrics.secret_writes.get_or_create(&WriteLabels { operation, result }).inc();
    }

    fn reconciled(&self, took: Duration, error: Option<&Error>) {
        let result = error.map_or("success", Error::category);
        self.metrics.reconciles.get_or_create(&ResultLabels { result }).observe(took.as_secs_f64());
    }

    fn concluded(&self, uid: &Uid, status: &EcrCredentialStatus) {
        let summary = Summary::of(status);
        self.statuses.lock().insert(uid.clone(), summary);
        self.publish();
    }
}

/// The API that a token is of; `service` is what Prometheus itself calls a target.
fn api(key: &TokenKey) -> &'static str {
    match key.service {
        Service::Private { .. } => "ecr",
        Service::Public => "ecr-public",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::api::status::{NamespaceCounts, RegistryStatus};

    fn metrics(registry: &Registry, name: &str) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let prefix = format!("ecr_credential_operator_{name}");
        text.lines().filter(|line| line.starts_with(&prefix)).map(|line| line[prefix.len()..].to_owned()).collect()
    }

    #[test]
    fn one_that_cannot_be_read_is_counted_as_that_and_its_secrets_still_expire() {
        let mut registry = Registry::default();
        let reporter = Reporter::new(Metrics::register(&mut registry));
        let (me, other) = (Uid("me".into()), Uid("other".into()));
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let status = EcrCredentialStatus {
            namespaces: Some(NamespaceCounts { selected: 3, synced: 2, failed: 1, summary: "2/3".to_owned() }),
            registries: vec![RegistryStatus { issued_at: at(100), expires_at: at(200), ..RegistryStatus::default() }],
            ..EcrCredentialStatus::default()
        };
        let state = |state: &str, count: u32| format!("{{state=\"{state}\"}} {count}");
        // As after a restart: nothing else was said of it.
        reporter.unreadable(&me, Some(&status));
        reporter.unreadable(&other, None);
        let credentials = metrics(&registry, "credentials");
        for line in [state("unreadable", 2), state("ready", 0), state("not_ready", 0)] {
            assert!(credentials.contains(&line), "{line}: {credentials:?}");
        }
        assert!(metrics(&registry, "namespaces").contains(&state("failed", 1)));
        assert_eq!(metrics(&registry, "earliest_secret_expiry_timestamp_seconds"), [" 200"]);
        reporter.concluded(&me, &status);
        reporter.forget(&other);
        let credentials = metrics(&registry, "credentials");
        for line in [state("unreadable", 0), state("not_ready", 1)] {
            assert!(credentials.contains(&line), "{line}: {credentials:?}");
        }
        reporter.skipped("Secret", 3);
        assert_eq!(metrics(&registry, "unreadable_objects"), ["{kind=\"Secret\"} 3"]);
    }
}

#[cfg(test)]
mod figures;
