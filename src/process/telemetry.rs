//! Logs and metrics: their formats, names and bounded labels.

use std::fmt::{self, Debug};
use std::hash::Hash;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether a line may be printed, whatever the filter: debug levels of libraries print requests and responses, including
/// tokens.
fn is_harmless(line: &Metadata<'_>) -> bool {
    let target = line.target();
    // kube logs a response that it cannot parse as a warning, with its whole body. It also repeats each failure of a watch, which the
    // controller logs once.
    if KUBE.iter().any(|library| is_within(target, library)) && !is_within(target, KUBE_TLS) {
        return *line.level() <= Level::ERROR;
    }
    // The AWS SDK warns of a refusal with the whole response, which may repeat the request. The controller logs each failure once,
    // with a limited message.
    if target.starts_with("aws_") && !AWS_SETTINGS.iter().any(|module| is_within(target, module)) {
        return *line.level() <= Level::ERROR;
    }
    *line.level() <= Level::INFO || is_within(target, "ecr_credential_operator")
}

/// The parts of kube.
const KUBE: [&str; 4] = ["kube", "kube_client", "kube_core", "kube_runtime"];

/// They warn about settings of the AWS SDK that cannot be read.
const AWS_SETTINGS: [&str; 2] = ["aws_config::default_provider", "aws_runtime::env_config"];

/// It warns about certificates that cannot be read, by their path.
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

/// Parses a filter. Filters on spans and fields would need a regex engine, a twentieth of the binary.
fn targets(filter: &str) -> Result<Targets, String> {
    if filter.contains(['[', ']', '{', '}']) {
        return Err("it is a list of LEVEL or TARGET=LEVEL, without spans and fields".to_owned());
    }
    filter.parse::<Targets>().map_err(|error| error.to_string())
}

/// The format in which metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Text,
}

impl Form {
    /// The format that a client prefers, by its `Accept` header: OpenMetrics only if it is named.
    pub fn preferred(accept: Option<&str>) -> Self {
        let quality = |types: &[&str]| {
            let ranges = accept.unwrap_or_default().split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let name = parts.next().unwrap_or_default();
                let given = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
                given.filter(|_| types.iter().any(|known| name.eq_ignore_ascii_case(known)))
            });
            ranges.fold(0.0, f32::max)
        };
        let open = quality(&["application/openmetrics-text"]);
        if open > 0.0 && open >= quality(&["text/plain"]) { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A function that updates gauges.
type Refresh = Box<dyn Fn() + Send>;

/// The content of `/metrics`.
#[derive(Default)]
pub struct Exposition {
    registry: Registry,
    refresh: Mutex<Vec<Refresh>>,
}

impl Exposition {
    /// Serves a registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, refresh: Mutex::default() }
    }

    /// Calls `refresh` before each response, one call at a time, so that its gauges are consistent.
    pub fn before_each(&self, refresh: impl Fn() + Send + 'static) {
        self.refresh.lock().push(Box::new(refresh));
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// A metric could not be encoded.
    pub fn render(&self, form: Form) -> Result<String, fmt::Error> {
        let refresh = self.refresh.lock();
        refresh.iter().for_each(|refresh| refresh());
        let mut open = String::new();
        text::encode(&mut open, &self.registry)?;
        drop(refresh);
        Ok(match form {
            Form::OpenMetrics => open,
            Form::Text => plain(&open),
        })
    }
}

/// Converts OpenMetrics to the text format of Prometheus, which names counters with their suffix and has neither infos nor units.
fn plain(open: &str) -> String {
    let (mut text, mut help) = (String::with_capacity(open.len()), "");
    let mut line = |parts: &[&str]| {
        parts.iter().for_each(|part| text.push_str(part));
        text.push('\n');
    };
    for read in open.lines() {
        if let Some((_, description)) = read.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = description;
        } else if let Some((name, kind)) = read.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            line(&["# HELP ", name, suffix, " ", help]);
            line(&["# TYPE ", name, suffix, " ", kind]);
        } else if !read.starts_with('#') {
            line(&[read]);
        }
    }
    text
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

/// `api` is `ecr`, `ecr-public` or `sts`, `result` how a single request of HTTP has ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// Which API.
    pub api: &'static str,
    /// Which of its actions.
    pub action: &'static str,
    /// How it ended.
    pub result: &'static str,
}

/// `name` is that of an `EcrCredential`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CredentialLabels {
    /// Its name.
    pub name: String,
}

/// `name` is that of an `EcrCredential`, `reason` that of its condition `Ready`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReadyLabels {
    /// Its name.
    pub name: String,
    /// Why it is ready or not.
    pub reason: String,
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

/// `format` is a format of `spec.outputs`, `state` as for namespaces.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OutputLabels {
    /// The format.
    pub format: &'static str,
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

/// All metrics. Two have the name of an object as a label, for at most [`MOST_NAMES`] `EcrCredentials`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// When the newest token expires, in seconds since 1970.
    pub token_expiry: Family<TokenLabels, Gauge>,
    /// When the newest token was fetched, in seconds since 1970.
    pub token_refresh: Family<TokenLabels, Gauge>,
    /// Calls to GetAuthorizationToken.
    pub aws_requests: Family<CallLabels, Counter>,
    /// How long single HTTP requests to AWS took, those for credentials of roles as well.
    pub aws_http_requests: Family<RequestLabels, Histogram>,
    /// Writes of Secrets.
    pub secret_writes: Family<WriteLabels, Counter>,
    /// Selected namespaces of all `EcrCredentials`: `synced`, `failed`, `pending`.
    pub namespaces: Family<StateLabels, Gauge>,
    /// The same of the outputs, by their format.
    pub outputs: Family<OutputLabels, Gauge>,
    /// `EcrCredentials`: `ready`, `not_ready`, `stalled`, `suspended`, `unreadable`.
    pub credentials: Family<StateLabels, Gauge>,
    /// 1 where an `EcrCredential` is ready, 0 where it is not.
    pub credential_ready: Family<ReadyLabels, Gauge>,
    /// When the first token of an `EcrCredential` expires, in seconds since 1970.
    pub credential_expiry: Family<CredentialLabels, Gauge>,
    /// `EcrCredentials` with `spec.attachTo`: `attached`, `not_attached`.
    pub attachments: Family<StateLabels, Gauge>,
    /// ServiceAccounts that `spec.attachTo` selects and that do not reference the Secret.
    pub unattached: Gauge,
    /// Objects that cannot be read and are skipped, by kind.
    pub unreadable: Family<KindLabels, Gauge>,
    /// The earliest expiry in any Secret, in seconds since 1970; 0 when there is none.
    pub earliest_expiry: Gauge,
    /// When the token that expires first was issued, in seconds since 1970; 0 if there is none.
    pub earliest_issue: Gauge,
    /// How long reconciliations took.
    pub reconciles: Family<ResultLabels, Histogram>,
    /// 1 for the source in which the operator's own AWS identity was found last, 0 for the others.
    pub identity: Family<SourceLabels, Gauge>,
    /// 1 while this process is the leader and its watches have completed their first lists: without them nothing is reconciled.
    pub leader: Gauge,
    /// The metrics of the process.
    pub process: ProcessMetrics,
}

/// The metrics of the process, with the standard names of Prometheus clients.
#[derive(Clone, Debug, Default)]
pub struct ProcessMetrics {
    /// The time that the process started, in seconds since 1970.
    pub started: Gauge<f64, AtomicU64>,
    /// The CPU time used.
    pub cpu: Counter<f64, AtomicU64>,
    /// The memory that is in RAM.
    pub resident: Gauge,
    /// The address space.
    pub virtual_memory: Gauge,
    /// Open file descriptors.
    pub open_fds: Gauge,
    /// Maximum number of open file descriptors.
    pub max_fds: Gauge,
}

/// The most `EcrCredentials` that have metrics with their name.
pub const MOST_NAMES: usize = 500;

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        // From 1 ms to about 1 min: a reconciliation without writes takes 1 ms, one over 10,000 namespaces some 20 s.
        let buckets = || Histogram::new(exponential_buckets(0.001, 3.0, 11));
        // From 10 ms to about 20 s: a request takes at most 10 s, unless --aws-timeout is set.
        let seconds = || Histogram::new(exponential_buckets(0.01, 2.0, 12));
        let process = ProcessMetrics::register(registry);
        let ours = registry.sub_registry_with_prefix("ecr_credential_operator");
        let metrics = Self {
            token_expiry: timestamp(ours, "token_expiry", "When the newest token expires"),
            token_refresh: timestamp(ours, "token_refresh", "When the newest token was fetched"),
            aws_requests: metric(ours, "aws_requests", "Calls to GetAuthorizationToken"),
            aws_http_requests: duration(
                ours,
                "aws_http_request",
                "Duration of single HTTP requests to ECR, ECR Public and STS",
                seconds,
            ),
            secret_writes: metric(ours, "secret_writes", "Writes of Secrets"),
            namespaces: metric(ours, "namespaces", "Target namespaces by state"),
            outputs: metric(ours, "outputs", "Target namespaces of outputs by format and state"),
            credentials: metric(ours, "credentials", "EcrCredentials by state"),
            credential_ready: metric(
                ours,
                "credential_ready",
                "1 if an EcrCredential is ready, 0 if not; for the first 500 by name",
            ),
            credential_expiry: timestamp(
                ours,
                "credential_expiry",
                "When the first token of an EcrCredential expires; for the first 500 by name",
            ),
            attachments: metric(ours, "attachments", "EcrCredentials with spec.attachTo by state"),
            unattached: metric(
                ours,
                "unattached_service_accounts",
                "ServiceAccounts that do not reference the pull secret although spec.attachTo selects them",
            ),
            unreadable: metric(ours, "unreadable_objects", "Objects that cannot be read and are skipped"),
            earliest_expiry: timestamp(ours, "earliest_secret_expiry", "The earliest expiry in any Secret, 0 for none"),
            earliest_issue: timestamp(
                ours,
                "earliest_secret_issue",
                "When the token that expires first was issued, 0 for none",
            ),
            reconciles: duration(ours, "reconcile", "Duration of reconciliations", buckets),
            identity: metric(
                ours,
                "aws_identity",
                "1 for the source in which the operator's own AWS identity was found",
            ),
            leader: metric(ours, "leader", "1 while this process is the leader and has listed what it watches"),
            process,
        };
        ours.register("build", "The version", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        metrics
    }
}

/// Registers a new metric.
fn metric<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers new gauges of times, in seconds since 1970.
fn timestamp<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(format!("{name}_timestamp"), help, Unit::Seconds, metric.clone());
    metric
}

/// Registers new histograms of durations, in seconds.
fn duration<L>(registry: &mut Registry, name: &str, help: &str, histogram: fn() -> Histogram) -> Family<L, Histogram>
where
    L: EncodeLabelSet + Clone + Eq + Hash + Debug + Send + Sync + 'static,
{
    let family = Family::new_with_constructor(histogram);
    registry.register_with_unit(format!("{name}_duration"), help, Unit::Seconds, family.clone());
    family
}

impl ProcessMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            started: metric(registry, "process_start_time_seconds", "When the process started, in seconds since 1970"),
            cpu: metric(registry, "process_cpu_seconds", "CPU time used, of user and system, in seconds"),
            resident: metric(registry, "process_resident_memory_bytes", "Resident memory size in bytes"),
            virtual_memory: metric(registry, "process_virtual_memory_bytes", "Virtual memory size in bytes"),
            open_fds: metric(registry, "process_open_fds", "Open file descriptors"),
            max_fds: metric(registry, "process_max_fds", "Maximum number of open file descriptors"),
        }
    }

    /// Updates the metrics; those that the system does not provide stay unchanged.
    pub fn refresh(&self) {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        #[allow(clippy::cast_precision_loss, reason = "after 2^53 seconds")]
        let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        self.cpu.inner().store(seconds.to_bits(), Ordering::Relaxed);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |name: &str| status.lines().find_map(|line| number(line.strip_prefix(name)?));
        for (gauge, name) in [(&self.resident, "VmRSS:"), (&self.virtual_memory, "VmSize:")] {
            if let Some(kilobytes) = kilobytes(name) {
                gauge.set(kilobytes.saturating_mul(1024));
            }
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.open_fds.set(i64::try_from(open.count()).unwrap_or(i64::MAX).saturating_sub(1));
        }
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = limits.lines().find_map(|line| number(line.strip_prefix("Max open files")?)) {
            self.max_fds.set(most);
        }
    }
}

/// The first number of a line.
fn number(line: &str) -> Option<i64> {
    line.split_whitespace().next()?.parse().ok()
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
    fn the_form_is_the_one_that_the_client_prefers() {
        use Form::{OpenMetrics, Text};
        // Prometheus 2 and 3, then what others send.
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, form) in [
            (None, Text),
            (Some("*/*"), Text),
            (Some("text/plain"), Text),
            (Some("text/plain;version=0.0.4;q=0.9, application/openmetrics-text; q=0.3"), Text),
            (Some("application/openmetrics-text;q=0"), Text),
            (Some("application/openmetrics-text;q=nonsense"), Text),
            (Some("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=1"), Text),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=1.0.0"), OpenMetrics),
            (Some(prometheus_2), OpenMetrics),
            (Some(prometheus_3), OpenMetrics),
        ] {
            assert_eq!(Form::preferred(accept), form, "{accept:?}");
        }
    }

    #[test]
    fn each_form_is_of_its_format() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let labels = CredentialLabels { name: "a\"b\\c".to_owned() };
        metrics.credential_expiry.get_or_create(&labels).set(7);
        metrics.reconciles.get_or_create(&ResultLabels { result: "success" }).observe(0.5);
        let call = CallLabels { api: "ecr", identity: "operator", result: "success" };
        metrics.aws_requests.get_or_create(&call).inc();
        let exposition = Exposition::new(registry);
        let process = metrics.process.clone();
        exposition.before_each(move || process.refresh());
        let open = exposition.render(Form::OpenMetrics).unwrap();
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE ecr_credential_operator_aws_requests counter\n"));
        let text = exposition.render(Form::Text).unwrap();
        for line in [
            "# HELP ecr_credential_operator_aws_requests_total Calls to GetAuthorizationToken.",
            "# TYPE ecr_credential_operator_aws_requests_total counter",
            "ecr_credential_operator_aws_requests_total{api=\"ecr\",identity=\"operator\",result=\"success\"} 1",
            "# TYPE ecr_credential_operator_reconcile_duration_seconds histogram",
            "ecr_credential_operator_reconcile_duration_seconds_bucket{le=\"+Inf\",result=\"success\"} 1",
            "# TYPE ecr_credential_operator_build_info gauge",
            "ecr_credential_operator_credential_expiry_timestamp_seconds{name=\"a\\\"b\\\\c\"} 7",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        let comments = text.lines().filter(|line| line.starts_with('#'));
        assert!(comments.clone().all(|line| line.starts_with("# HELP ") || line.starts_with("# TYPE ")), "{text}");
        // Whoever reads the format takes samples for untyped whose name was not announced.
        let announced: Vec<&str> =
            comments.filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(announced.contains(&family), "{sample}");
        }
        let process = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
            line.unwrap().parse::<f64>().unwrap()
        };
        assert!(process("resident_memory_bytes") > 1e6 && process("virtual_memory_bytes") > 1e6, "{text}");
        assert!(process("open_fds") >= 3.0 && process("max_fds") >= process("open_fds"), "{text}");
        assert!(process("cpu_seconds_total") > 0.0, "{text}");
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
            tracing::error!(target: "aws_smithy_runtime::client", "error-2");
            tracing::warn!(target: "aws_config::sts::assume_role", "body-6");
            tracing::warn!(target: "aws_config::web_identity_token", "body-7");
            tracing::info!(target: "aws_config::profile::credentials", "body-8");
            tracing::warn!(target: "aws_config::default_provider::use_fips", "warning-2");
            tracing::info!(target: "hyper", "info-1");
            tracing::debug!(target: "hyper", "body-5");
            tracing::trace!(target: "ecr_credential_operator", "trace-1");
            tracing::info!(target: "kubernetes", "info-2");
        });
        for word in ["error-1", "error-2", "warning-1", "warning-2", "info-1", "trace-1", "info-2"] {
            assert!(text.contains(word), "{word} is missing: {text}");
        }
        assert!(!text.contains("body"), "{text}");
    }
}
