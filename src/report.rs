//! Results as metrics with bounded labels, and as log lines.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::api::status::{Reason, condition};
use crate::api::{EcrCredentialStatus, OutputFormat};
use crate::apply::{WriteError, Written};
use crate::controller::Observer;
use crate::controller::error::Error;
use crate::plan::Uid;
use crate::plan::references::AllowedIdentities;
use crate::plan::schedule::{LONGEST_LIFE, Life};
use crate::process::telemetry::{
    CallLabels, CredentialLabels, KindLabels, MOST_NAMES, Metrics, OutputLabels, ReadyLabels, RequestLabels,
    ResultLabels, SourceLabels, StateLabels, TokenLabels, WriteLabels,
};
use crate::secret::SecretAction;
use crate::token::TokenError;
use crate::token::cache::{Fetched, TokenCache};
use crate::token::identity::HttpRequest;
use crate::token::settings::Origin;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

/// The reasons for which a write may fail, besides `stale` and `namespace_gone`.
const WRITE_FAILURES: [Reason; 8] = [
    Reason::AdmissionRefused,
    Reason::QuotaExceeded,
    Reason::Forbidden,
    Reason::WrongType,
    Reason::Immutable,
    Reason::SecretNotOwned,
    Reason::Throttled,
    Reason::ApiError,
];

const SUCCESS: &str = "success";

/// Creates all counters whose labels are known in advance, with the value 0, so that the first failure is an increase. `allowed` limits the kinds of identities.
pub fn start_counters(metrics: &Metrics, allowed: &AllowedIdentities) {
    let mut identities = vec!["operator", "operator_role"];
    if !allowed.accounts.is_empty() {
        identities.extend(["service_account", "service_account_role"]);
    }
    if !allowed.keys.is_empty() {
        identities.extend(["secret", "secret_role"]);
    }
    for identity in identities {
        for api in ["ecr", "ecr-public"] {
            for result in TokenError::REASONS.map(Reason::as_str).into_iter().chain([SUCCESS]) {
                let _ = metrics.aws_requests.get_or_create(&CallLabels { api, identity, result });
            }
        }
    }
    const TOKEN: &str = "GetAuthorizationToken";
    let sts = ["AssumeRole", "AssumeRoleWithWebIdentity"].map(|action| ("sts", action));
    for (api, action) in [("ecr", TOKEN), ("ecr-public", TOKEN)].into_iter().chain(sts) {
        let _ = metrics.aws_http_requests.get_or_create(&RequestLabels { api, action, result: SUCCESS });
    }
    for operation in ["create", "update", "delete"] {
        let others = [SUCCESS, "stale", "namespace_gone"];
        for result in WRITE_FAILURES.map(Reason::as_str).into_iter().chain(others) {
            let _ = metrics.secret_writes.get_or_create(&WriteLabels { operation, result });
        }
    }
    for result in Error::CATEGORIES.into_iter().chain([SUCCESS]) {
        let _ = metrics.reconciles.get_or_create(&ResultLabels { result });
    }
}

/// A single HTTP request to AWS has ended.
pub fn requested(metrics: &Metrics, request: &HttpRequest) {
    let HttpRequest { api, action, result, took } = *request;
    let labels = RequestLabels { api, action, result };
    metrics.aws_http_requests.get_or_create(&labels).observe(took.as_secs_f64());
}

/// Sets the gauges of the tokens in use, and removes the others.
pub fn tokens_now(metrics: &Metrics, tokens: &TokenCache) {
    let mut newest: BTreeMap<(&'static str, String, &'static str), (Timestamp, Timestamp)> = BTreeMap::new();
    tokens.each_life(|key, Life { issued_at, expires_at }| {
        let labels = (key.service.api(), key.service.region().to_string(), key.identity.kind());
        let (issued, expires) = newest.entry(labels).or_insert((issued_at, expires_at));
        *issued = issued_at.max(*issued);
        *expires = expires_at.max(*expires);
    });
    metrics.token_expiry.clear();
    metrics.token_refresh.clear();
    for ((api, region, identity), (issued_at, expires_at)) in newest {
        let labels = TokenLabels { api, region, identity };
        metrics.token_expiry.get_or_create(&labels).set(expires_at.as_second());
        metrics.token_refresh.get_or_create(&labels).set(issued_at.as_second());
    }
}

/// The origin of the operator's own AWS identity was found, or has changed.
pub fn found_identity(metrics: &Metrics, origin: Origin) {
    tracing::info!(source = origin.as_str(), "found the operator's AWS identity");
    for each in Origin::ALL {
        let labels = SourceLabels { source: each.as_str() };
        metrics.identity.get_or_create(&labels).set(i64::from(each == origin));
    }
}

/// Updates the metrics.
pub struct Reporter {
    metrics: Metrics,
    statuses: Mutex<HashMap<Uid, Summary>>,
}

/// Namespaces that are selected, synced, and failed.
type Counts = [i64; 3];

/// What an `EcrCredential` counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    Ready,
    #[default]
    NotReady,
    Stalled,
    Suspended,
    Unreadable,
}

/// The part of a status that the metrics use.
#[derive(Clone, Debug, Default)]
struct Summary {
    name: String,
    /// The namespaces of its pull secret.
    namespaces: Counts,
    /// The namespaces of its outputs, by format.
    outputs: BTreeMap<OutputFormat, Counts>,
    state: State,
    /// The reason of the condition `Ready`.
    reason: String,
    /// Whether the Secret is attached, where that is asked for.
    attached: Option<bool>,
    /// When the token that expires first expires, and when it was issued.
    earliest: Option<(Timestamp, Timestamp)>,
}

impl Summary {
    fn of(name: &str, status: &EcrCredentialStatus) -> Self {
        let holds = |type_: &str| status.holding(type_).is_some();
        let reason = status.condition(condition::READY).map(|c| c.reason.clone()).unwrap_or_default();
        let suspended = reason == Reason::Suspended.as_str();
        let state = if suspended {
            State::Suspended
        } else if holds(condition::STALLED) {
            State::Stalled
        } else if holds(condition::READY) {
            State::Ready
        } else {
            State::NotReady
        };
        let mut summary = Self { name: name.to_owned(), state, reason, ..Self::default() };
        // A suspended EcrCredential is expected to expire.
        if !suspended {
            let counts = status.namespaces.clone().unwrap_or_default();
            summary.namespaces = [counts.selected, counts.synced, counts.failed].map(i64::from);
            summary.attached = status.condition(condition::ATTACHED).map(|c| c.status == "True");
            for output in &status.outputs {
                let Some(format) = OutputFormat::parse(&output.format) else { continue };
                let counts = [output.selected, output.synced, output.failed].map(i64::from);
                add(summary.outputs.entry(format).or_default(), counts);
            }
            let of_registries = status.registries.iter().filter_map(|r| Some((r.expires_at?, r.issued_at?))).min();
            // That of a Secret that stays as it is for now, though its token is not the current one: it says when it expires alone.
            let issued = |at: Timestamp| at.checked_sub(LONGEST_LIFE).unwrap_or(Timestamp::MIN);
            let of_kept = status.expires_at.map(|at| (at, issued(at)));
            summary.earliest = match (of_registries, of_kept) {
                (Some(one), Some(other)) if one.0 <= other.0 => Some(one),
                (one, other) => other.or(one),
            };
        }
        summary
    }
}

fn add(sum: &mut Counts, counts: Counts) {
    for (sum, count) in sum.iter_mut().zip(counts) {
        *sum = sum.saturating_add(count);
    }
}

impl Reporter {
    /// Reports into these metrics.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, statuses: Mutex::default() }
    }

    /// A call of GetAuthorizationToken has ended.
    pub fn fetched(&self, fetched: &Fetched) {
        let (api, region) = (fetched.key.service.api(), fetched.key.service.region());
        let identity = fetched.key.identity.kind();
        let result = match &fetched.result {
            Ok(Life { expires_at, .. }) => {
                tracing::info!(api, %region, identity = %fetched.key.identity, %expires_at, "fetched a token");
                SUCCESS
            }
            Err(error) => {
                let reason = error.reason().as_str();
                tracing::warn!(api, %region, identity = %fetched.key.identity, reason, %error, "cannot get a token: retrying");
                reason
            }
        };
        self.metrics.aws_requests.get_or_create(&CallLabels { api, identity, result }).inc();
    }

    /// An `EcrCredential` is gone.
    pub fn forget(&self, uid: &Uid) {
        self.statuses.lock().remove(uid);
    }

    /// An `EcrCredential` cannot be read. Its Secrets still exist and expire, so the counts of its last status stay.
    pub fn unreadable(&self, uid: &Uid, name: &str, status: Option<&EcrCredentialStatus>) {
        let said = status.map(|status| Summary::of(name, status)).unwrap_or_default();
        let (name, reason) = (name.to_owned(), "Unreadable".to_owned());
        let summary = Summary { name, reason, state: State::Unreadable, ..said };
        self.statuses.lock().insert(uid.clone(), summary);
    }

    /// The number of objects of a kind that cannot be read and are skipped.
    pub fn skipped(&self, kind: &'static str, count: usize) {
        self.metrics.unreadable.get_or_create(&KindLabels { kind }).set(count_of(count));
    }

    /// Sets the gauges by the last statuses, under the lock, so that they are consistent.
    pub fn publish(&self) {
        let statuses = self.statuses.lock();
        let count = |is_so: &dyn Fn(&Summary) -> bool| count_of(statuses.values().filter(|s| is_so(s)).count());
        let mut namespaces = Counts::default();
        let mut outputs: BTreeMap<OutputFormat, Counts> = BTreeMap::new();
        for summary in statuses.values() {
            add(&mut namespaces, summary.namespaces);
            for (format, counts) in &summary.outputs {
                add(outputs.entry(*format).or_default(), *counts);
            }
        }
        for (state, value) in states(namespaces) {
            self.metrics.namespaces.get_or_create(&StateLabels { state }).set(value);
        }
        for (name, state) in [
            ("ready", State::Ready),
            ("not_ready", State::NotReady),
            ("stalled", State::Stalled),
            ("suspended", State::Suspended),
            ("unreadable", State::Unreadable),
        ] {
            self.metrics.credentials.get_or_create(&StateLabels { state: name }).set(count(&|s| s.state == state));
        }
        for (state, is_attached) in [("attached", true), ("not_attached", false)] {
            let value = count(&|s| s.attached == Some(is_attached));
            self.metrics.attachments.get_or_create(&StateLabels { state }).set(value);
        }
        self.metrics.outputs.clear();
        for (format, counts) in outputs {
            for (state, value) in states(counts) {
                let labels = OutputLabels { format: format.as_str(), state };
                self.metrics.outputs.get_or_create(&labels).set(value);
            }
        }
        let earliest = statuses.values().filter_map(|s| s.earliest).min();
        self.metrics.earliest_expiry.set(earliest.map_or(0, |(expires_at, _)| expires_at.as_second()));
        self.metrics.earliest_issue.set(earliest.map_or(0, |(_, issued_at)| issued_at.as_second()));
        self.metrics.credential_ready.clear();
        self.metrics.credential_expiry.clear();
        let mut named: Vec<&Summary> = statuses.values().collect();
        named.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for Summary { name, state, reason, earliest, .. } in named.into_iter().take(MOST_NAMES) {
            let labels = ReadyLabels { name: name.clone(), reason: reason.clone() };
            self.metrics.credential_ready.get_or_create(&labels).set(i64::from(*state == State::Ready));
            if let Some((expires_at, _)) = earliest {
                let labels = CredentialLabels { name: name.clone() };
                self.metrics.credential_expiry.get_or_create(&labels).set(expires_at.as_second());
            }
        }
    }

    /// The number of ServiceAccounts that do not name the Secret that they should.
    pub fn unattached(&self, count: usize) {
        self.metrics.unattached.set(count_of(count));
    }
}

/// Namespaces by their state.
const fn states([selected, synced, failed]: Counts) -> [(&'static str, i64); 3] {
    [("synced", synced), ("failed", failed), ("pending", selected.saturating_sub(synced).saturating_sub(failed))]
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Observer for Reporter {
    fn wrote(&self, action: &SecretAction, result: &Result<Written, WriteError>) {
        let operation = match action {
            SecretAction::Create => "create",
            SecretAction::Update(_) | SecretAction::Strip(_) => "update",
            SecretAction::Delete(_) => "delete",
            SecretAction::Keep | SecretAction::Wait | SecretAction::Refuse(..) => return,
        };
        let result = match result {
            Ok(_) => SUCCESS,
            Err(WriteError::Stale) => "stale",
            Err(WriteError::NamespaceGone) => "namespace_gone",
            Err(WriteError::Unchangeable(reason, _) | WriteError::Refused(reason, _)) => reason.as_str(),
        };
        self.metrics.secret_writes.get_or_create(&WriteLabels { operation, result }).inc();
    }

    fn reconciled(&self, took: Duration, error: Option<&Error>) {
        let result = error.map_or(SUCCESS, Error::category);
        self.metrics.reconciles.get_or_create(&ResultLabels { result }).observe(took.as_secs_f64());
    }

    fn concluded(&self, uid: &Uid, name: &str, status: &EcrCredentialStatus) {
        self.statuses.lock().insert(uid.clone(), Summary::of(name, status));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::api::status::{NamespaceCounts, OutputStatus, RegistryStatus};

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
        reporter.unreadable(&me, "me", Some(&status));
        reporter.unreadable(&other, "other", None);
        reporter.publish();
        let credentials = metrics(&registry, "credentials");
        for line in [state("unreadable", 2), state("ready", 0), state("not_ready", 0)] {
            assert!(credentials.contains(&line), "{line}: {credentials:?}");
        }
        assert!(metrics(&registry, "namespaces").contains(&state("failed", 1)));
        assert_eq!(metrics(&registry, "earliest_secret_expiry_timestamp_seconds"), [" 200"]);
        reporter.concluded(&me, "me", &status);
        reporter.forget(&other);
        reporter.publish();
        let credentials = metrics(&registry, "credentials");
        for line in [state("unreadable", 0), state("not_ready", 1)] {
            assert!(credentials.contains(&line), "{line}: {credentials:?}");
        }
        let output = |format: &str, selected, synced, failed| OutputStatus {
            format: format.to_owned(),
            selected,
            synced,
            failed,
            ..OutputStatus::default()
        };
        let outputs = vec![output("Jenkins", 3, 1, 1), output("Jenkins", 2, 2, 0), output("Newer", 1, 0, 0)];
        reporter.concluded(&me, "me", &EcrCredentialStatus { outputs, ..status.clone() });
        reporter.publish();
        let line = |state: &str, count: u32| format!("{{format=\"Jenkins\",state=\"{state}\"}} {count}");
        let mut seen = metrics(&registry, "outputs");
        seen.sort();
        assert_eq!(seen, [line("failed", 1), line("pending", 1), line("synced", 3)]);
        reporter.forget(&me);
        reporter.publish();
        let left = metrics(&registry, "outputs");
        assert!(!left.iter().any(|line| line.starts_with('{')), "no ghost is left: {left:?}");
        reporter.skipped("Secret", 3);
        assert_eq!(metrics(&registry, "unreadable_objects"), ["{kind=\"Secret\"} 3"]);
    }

    /// A status with this condition `Ready`, two of three namespaces synced, and a token.
    fn status(ready: &str, reason: &str, stalled: &str) -> EcrCredentialStatus {
        let condition = |type_: &str, status: &str, reason: &str| {
            let moment = Timestamp::UNIX_EPOCH.to_string();
            serde_json::from_value(serde_json::json!({
                "type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": moment,
            }))
            .unwrap()
        };
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        EcrCredentialStatus {
            conditions: vec![
                condition(condition::READY, ready, reason),
                condition(condition::STALLED, stalled, reason),
                condition(condition::ATTACHED, "False", "AttachFailed"),
            ],
            namespaces: Some(NamespaceCounts { selected: 3, synced: 2, failed: 1, summary: "2/3".to_owned() }),
            registries: vec![RegistryStatus { issued_at: at(100), expires_at: at(200), ..RegistryStatus::default() }],
            ..EcrCredentialStatus::default()
        }
    }

    fn reporter() -> (Registry, Reporter) {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        (registry, Reporter::new(metrics))
    }

    /// By which the alerts are raised.
    const ALARMING: [&str; 5] = [
        "namespaces{state=\"failed\"}",
        "namespaces{state=\"pending\"}",
        "credentials{state=\"stalled\"}",
        "earliest_secret_expiry_timestamp_seconds",
        "attachments{state=\"not_attached\"}",
    ];

    #[test]
    fn one_that_is_suspended_or_gone_raises_no_alert() {
        let (registry, reporter) = reporter();
        let me = Uid("me".into());
        let values = || ALARMING.map(|name| metrics(&registry, name).concat().trim().parse::<i64>().unwrap());
        let failing = status("False", "NamespacesFailed", "True");
        reporter.concluded(&me, "me", &failing);
        reporter.publish();
        assert_eq!(values(), [1, 0, 1, 200, 1]);
        // What was said of its namespaces before stands in the status for a while.
        reporter.concluded(&me, "me", &status("False", "Suspended", "False"));
        reporter.publish();
        assert_eq!(values(), [0; 5]);
        assert_eq!(metrics(&registry, "credential_ready"), ["{name=\"me\",reason=\"Suspended\"} 0"]);
        assert!(metrics(&registry, "credential_expiry").is_empty());
        reporter.concluded(&me, "me", &failing);
        reporter.forget(&me);
        reporter.publish();
        assert_eq!(values(), [0; 5]);
        assert!(metrics(&registry, "credential_ready").is_empty());
    }

    #[test]
    fn each_credential_has_one_series_with_its_reason_and_their_number_is_bounded() {
        let (registry, reporter) = reporter();
        let many = MOST_NAMES + 20;
        for number in (0..many).rev() {
            let name = format!("c{number:04}");
            reporter.concluded(&Uid(name.as_str().into()), &name, &status("True", "Synced", "False"));
        }
        reporter.concluded(&Uid("c0000".into()), "c0000", &status("False", "AccessDenied", "False"));
        for _ in 0..2 {
            reporter.publish();
            let ready = metrics(&registry, "credential_ready");
            assert_eq!(ready.len(), MOST_NAMES);
            assert!(ready.contains(&"{name=\"c0000\",reason=\"AccessDenied\"} 0".to_owned()));
            assert!(ready.contains(&format!("{{name=\"c{:04}\",reason=\"Synced\"}} 1", MOST_NAMES - 1)));
            assert_eq!(metrics(&registry, "credential_expiry_timestamp_seconds").len(), MOST_NAMES);
            // All of them are counted.
            let sum: i64 = metrics(&registry, "credentials")
                .iter()
                .map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap())
                .sum();
            assert_eq!(sum, i64::try_from(many).unwrap());
        }
    }

    #[test]
    fn counters_are_there_before_the_first_failure() {
        let mut registry = Registry::default();
        let all = Metrics::register(&mut registry);
        let mut allowed = AllowedIdentities::default();
        start_counters(&all, &allowed);
        let known = |name: &str, labels: &str| metrics(&registry, name).contains(&format!("{labels} 0"));
        assert!(known("aws_requests_total", "{api=\"ecr\",identity=\"operator\",result=\"AccessDenied\"}"));
        assert!(known("aws_requests_total", "{api=\"ecr\",identity=\"operator\",result=\"AdmissionRefused\"}"));
        assert!(known("secret_writes_total", "{operation=\"create\",result=\"QuotaExceeded\"}"));
        assert!(known("reconcile_duration_seconds_count", "{result=\"status\"}"));
        let tenants = "{api=\"ecr\",identity=\"service_account\",result=\"success\"}";
        assert!(!known("aws_requests_total", tenants), "no ServiceAccount may be used");
        allowed.accounts.insert(crate::plan::scopes::AccountScope { namespace: None, name: "puller".into() });
        start_counters(&all, &allowed);
        assert!(known("aws_requests_total", tenants));
        let count = metrics(&registry, "aws_requests_total").len();
        assert!(count < 100, "{count} series");
    }
}

#[cfg(test)]
mod figures;
