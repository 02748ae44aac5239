//! Logs and metrics: their formats, names and bounded labels.

use std::io::IsTerminal;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Whether a line may be printed, whatever the filter says: the finer levels of libraries print requests and answers,
/// tokens included.
fn is_harmless(line: &Metadata<'_>) -> bool {
    let target = line.target();
    // kube prints an answer that it cannot read as a warning, whole. It also repeats each failure of a watch, which the controller
    // logs once.
    if KUBE.iter().any(|library| is_within(target, library)) && !is_within(target, KUBE_TLS) {
        return *line.level() <= Level::ERROR;
    }
    *line.level() <= Level::INFO || is_within(target, "ecr_credential_operator")
}

/// The parts of kube.
const KUBE: [&str; 4] = ["kube", "kube_client", "kube_core", "kube_runtime"];

/// It warns of certificates that cannot be read, by their path.
const KUBE_TLS: &str = "kube_client::client::tls";

fn is_within(target: &str, module: &str) -> bool {
    target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Starts logging to standard error with a filter such as `info` or `info,ecr_credential_operator=debug`.
///
/// # Errors
/// The filter cannot be read; the text says why.
pub fn start_logs(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = targets(filter).map_err(|error| format!("--log {filter:?} is not a filter: {error}"))?;
    let lines = lines(filter, format, std::io::stderr().is_terminal(), std::io::stderr);
    lines.try_init().map_err(|error| error.to_string())
}

fn lines<W>(filter: Targets, format: LogFormat, colors: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    let harmless = filter_fn(is_harmless);
    match format {
        LogFormat::Text => Box::new(registry.with(lines.with_ansi(colors).with_filter(harmless))),
        LogFormat::Json => Box::new(registry.with(lines.json().flatten_event(true).with_filter(harmless))),
    }
}

/// Reads a filter. One for spans and fields would need an engine for regular expressions, a twentieth of the binary.
fn targets(filter: &str) -> Result<Targets, String> {
    if filter.contains(['[', ']', '{', '}']) {
        return Err("it is a list of LEVEL or TARGET=LEVEL, without spans and fields".to_owned());
    }
    filter.parse::<Targets>().map_err(|error| error.to_string())
}

/// `api` is `ecr` or `ecr-public`, `region` an AWS region, `identity` the kind of the identity that fetches.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TokenLabels {
    /// Which API.
    pub api: &'static str,
    /// Which region.
    pub region: String,
    /// What kind of identity.
    pub identity: &'static str,
}

/// `kind` is the kind of an object.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// The kind.
    pub kind: &'static str,
}

/// `result` is `success` or a reason of the status.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CallLabels {
    /// Which API.
    pub api: &'static str,
    /// What kind of identity.
    pub identity: &'static str,
    /// How the call ended.
    pub result: &'static str,
}

/// `operation` is `create`, `update` or `delete`; `result` is `success` or a reason of the status.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WriteLabels {
    /// What was tried.
    pub operation: &'static str,
    /// How it ended.
    pub result: &'static str,
}

/// One label from a fixed set of words.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabels {
    /// The word.
    pub state: &'static str,
}

/// One label from a fixed set of words.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SourceLabels {
    /// The word.
    pub source: &'static str,
}

/// One label from a fixed set of words.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabels {
    /// The word.
    pub result: &'static str,
}

/// Every metric. None has the name of an object as a label.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// When the newest token expires, in seconds since 1970.
    pub token_expiry: Family<TokenLabels, Gauge>,
    /// When the newest token was fetched, in seconds since 1970.
    pub token_refresh: Family<TokenLabels, Gauge>,
    /// Calls of GetAuthorizationToken.
    pub aws_requests: Family<CallLabels, Counter>,
    /// Writes of Secrets.
    pub secret_writes: Family<WriteLabels, Counter>,
    /// Selected namespaces of all `EcrCredentials`: `synced`, `failed`, `pending`.
    pub namespaces: Family<StateLabels, Gauge>,
    /// `EcrCredentials`: `ready`, `not_ready`, `stalled`, `suspended`, `unreadable`.
    pub credentials: Family<StateLabels, Gauge>,
    /// Objects that cannot be read and are skipped, by kind.
    pub unreadable: Family<KindLabels, Gauge>,
    /// The earliest expiry in any Secret, in seconds since 1970; 0 when there is none.
    pub earliest_expiry: Gauge,
    /// When the password that expires first was issued, in seconds since 1970; 0 when there is none.
    pub earliest_issue: Gauge,
    /// How long reconciliations took.
    pub reconciles: Family<ResultLabels, Histogram>,
    /// 1 for where the operator's own AWS identity was found last, 0 for the others.
    pub identity: Family<SourceLabels, Gauge>,
    /// 1 while this process is the leader.
    pub leader: Gauge,
    /// The time that the process started, in seconds since 1970.
    pub started: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Makes and registers every metric.
    pub fn register(registry: &mut Registry) -> Self {
        // From 1 ms to about 1 min: a round without writes takes 1 ms, one over 10,000 namespaces some 20 s.
        let buckets = || Histogram::new(exponential_buckets(0.001, 3.0, 11));
        let metrics = Self {
            token_expiry: Family::default(),
            token_refresh: Family::default(),
            aws_requests: Family::default(),
            secret_writes: Family::default(),
            namespaces: Family::default(),
            credentials: Family::default(),
            unreadable: Family::default(),
            earliest_expiry: Gauge::default(),
            earliest_issue: Gauge::default(),
            reconciles: Family::new_with_constructor(buckets),
            identity: Family::default(),
            leader: Gauge::default(),
            started: Gauge::default(),
        };
        let ours = registry.sub_registry_with_prefix("ecr_credential_operator");
        let m = metrics.clone();
        ours.register_with_unit(
            "token_expiry_timestamp",
            "When the newest token expires",
            Unit::Seconds,
            m.token_expiry,
        );
        ours.register_with_unit(
            "token_refresh_timestamp",
            "When the newest token was fetched",
            Unit::Seconds,
            m.token_refresh,
        );
        ours.register("aws_requests", "Calls of GetAuthorizationToken", m.aws_requests);
        ours.register("secret_writes", "Writes of Secrets", m.secret_writes);
        ours.register("namespaces", "Selected namespaces by state", m.namespaces);
        ours.register("credentials", "EcrCredentials by state", m.credentials);
        ours.register("unreadable_objects", "Objects that cannot be read and are skipped", m.unreadable);
        ours.register_with_unit(
            "earliest_secret_expiry_timestamp",
            "The earliest expiry in any Secret, 0 for none",
            Unit::Seconds,
            m.earliest_expiry,
        );
        ours.register_with_unit(
            "earliest_secret_issue_timestamp",
            "When the password that expires first was issued, 0 for none",
            Unit::Seconds,
            m.earliest_issue,
        );
        ours.register_with_unit("reconcile_duration", "How long reconciliations took", Unit::Seconds, m.reconciles);
        ours.register("aws_identity", "1 for where the operator's own AWS identity was found", m.identity);
        ours.register("leader", "1 while this process is the leader", m.leader);
        ours.register_with_unit("start_timestamp", "When the process started", Unit::Seconds, m.started);
        ours.register("build", "The version", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;
    use std::sync::Arc;

    use http::{Request, Response};
    use kube::client::Body;
    use kube::core::ObjectList;
    use parking_lot::Mutex;
    use tracing::dispatcher::{Dispatch, with_default};

    use super::*;

    /// Where the lines of a test go.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is printed at the finest level.
    fn printed(format: LogFormat, log: impl FnOnce()) -> String {
        let written = Lines::default();
        let writer = written.clone();
        let dispatch = Dispatch::new(lines(targets("trace").unwrap(), format, false, move || writer.clone()));
        with_default(&dispatch, log);
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_answer_that_kube_cannot_read_is_printed() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = printed(format, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    // One request for each way in which kube reads an answer.
                    for (status, answer) in [
                        (200, r#"{"kind":"List","metadata":{},"items":[{"metadata":{"name":"canary"}},7]}"#),
                        (200, r#"{"kind":"Status","status":["canary"]}"#),
                        (502, "<html>canary</html>"),
                        (200, "canary"),
                    ] {
                        let respond = move |_: Request<Body>| async move {
                            let body = Body::from(answer.as_bytes().to_vec());
                            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                        };
                        let client = kube::Client::new(tower::service_fn(respond), "default");
                        let request = || Request::get("/api/v1/secrets").body(Vec::new()).unwrap();
                        type List = ObjectList<kube::core::PartialObjectMeta<k8s_openapi::api::core::v1::Secret>>;
                        client.request::<List>(request()).await.unwrap_err();
                        client.request_status::<List>(request()).await.unwrap_err();
                    }
                });
                tracing::warn!(target: "ecr_credential_operator::controller", "one of ours");
            });
            assert!(text.contains("one of ours"), "{text}");
            assert!(!text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn each_library_prints_so_much_and_no_more() {
        let text = printed(LogFormat::Text, || {
            tracing::error!(target: "kube_client::client", "error-1");
            tracing::warn!(target: "kube_client::client", "body-1");
            tracing::warn!(target: "kube_client", "body-2");
            tracing::info!(target: "kube_core::request", "body-3");
            tracing::debug!(target: "kube_runtime::watcher", "body-4");
            tracing::warn!(target: "kube_client::client::tls", "warning-1");
            tracing::info!(target: "hyper", "info-1");
            tracing::debug!(target: "hyper", "body-5");
            tracing::trace!(target: "ecr_credential_operator", "trace-1");
            tracing::info!(target: "kubernetes", "info-2");
        });
        for word in ["error-1", "warning-1", "info-1", "trace-1", "info-2"] {
            assert!(text.contains(word), "{word} is missing: {text}");
        }
        assert!(!text.contains("body"), "{text}");
    }
}
