//! The command line, and the only reader of the environment (the AWS SDK and kube read their own variables).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::api::DEFAULT_SECRET_NAME;
use crate::process::telemetry::LogFormat;

/// Keeps Amazon ECR pull Secrets fresh in every namespace that needs them.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the controller.
    Run(Box<RunArgs>),
    /// Prints the CustomResourceDefinition as YAML.
    Crd,
}

/// The flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A Secret name that may be written; repeatable. The operator needs RBAC rights on each.
    #[arg(long = "secret-name", env = "ECO_SECRET_NAMES", value_delimiter = ',', default_value = DEFAULT_SECRET_NAME, value_parser = secret_name, help_heading = "Scope")]
    pub secret_names: Vec<String>,

    /// Lets Secrets of any name be written. The operator needs RBAC rights on all Secrets.
    #[arg(long, env = "ECO_ALL_SECRET_NAMES", help_heading = "Scope")]
    pub all_secret_names: bool,

    /// A namespace that may be written; repeatable. Default: all of them.
    #[arg(long = "namespace", env = "ECO_NAMESPACES", value_delimiter = ',', value_parser = namespace_name, help_heading = "Scope")]
    pub namespaces: Vec<String>,

    /// Serves only the EcrCredentials with these labels, e.g. `shard=a`. Two operators must not share a Secret.
    #[arg(long, env = "ECO_CREDENTIAL_SELECTOR", help_heading = "Scope")]
    pub credential_selector: Option<String>,

    /// The AWS region for registries that name none, and for STS.
    #[arg(long, env = "AWS_REGION", help_heading = "AWS")]
    pub aws_region: Option<String>,

    /// The longest that one call to AWS may take.
    #[arg(long, env = "ECO_AWS_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "AWS")]
    pub aws_timeout: Duration,

    /// A password that AWS issues with less life than this is refused.
    #[arg(long, env = "ECO_MINIMUM_TOKEN_LIFE", default_value = "5m", value_parser = duration, help_heading = "AWS")]
    pub minimum_token_life: Duration,

    /// The wait after a first failure; it doubles with each further one.
    #[arg(long, env = "ECO_RETRY_INITIAL", default_value = "1s", value_parser = duration, help_heading = "Work")]
    pub retry_initial: Duration,

    /// The longest wait between tries.
    #[arg(long, env = "ECO_RETRY_MAX", default_value = "5m", value_parser = duration, help_heading = "Work")]
    pub retry_max: Duration,

    /// How many writes to the API server may be under way at a time.
    #[arg(long, env = "ECO_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Work")]
    pub concurrency: u16,

    /// Runs without a lease. Only for a single replica, or outside a cluster.
    #[arg(long, env = "ECO_NO_LEADER_ELECTION", help_heading = "Leader election")]
    pub no_leader_election: bool,

    /// The name of the Lease.
    #[arg(long, env = "ECO_LEASE_NAME", default_value = "ecr-credential-operator", help_heading = "Leader election")]
    pub lease_name: String,

    /// The namespace of the Lease. Default: the operator's own.
    #[arg(long, env = "POD_NAMESPACE", help_heading = "Leader election")]
    pub lease_namespace: Option<String>,

    /// How long the other replicas wait for a sign of life before one takes over: whole seconds, 5 or more.
    #[arg(long, env = "ECO_LEASE_DURATION", default_value = "15s", value_parser = lease_duration, help_heading = "Leader election")]
    pub lease_duration: Duration,

    /// The name of this replica.
    #[arg(long, env = "POD_NAME", help_heading = "Leader election")]
    pub replica_name: Option<String>,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "ECO_HTTP_ADDRESS", default_value = "0.0.0.0:8080", help_heading = "Process")]
    pub http_address: SocketAddr,

    /// How long to finish what is under way on SIGTERM.
    #[arg(long, env = "ECO_GRACE_PERIOD", default_value = "20s", value_parser = duration, help_heading = "Process")]
    pub grace_period: Duration,

    /// Which log lines to print, e.g. `info` or `info,ecr_credential_operator=debug`. Libraries that would print passwords
    /// at finer levels are capped at `info`.
    #[arg(long, env = "ECO_LOG", default_value = "info", help_heading = "Process")]
    pub log: String,

    /// The form of log lines.
    #[arg(long, env = "ECO_LOG_FORMAT", default_value = "text", value_enum, help_heading = "Process")]
    pub log_format: LogFormat,
}

impl RunArgs {
    /// The Secret names that may be written; `None` for any.
    pub fn allowed_names(&self) -> Option<BTreeSet<std::sync::Arc<str>>> {
        (!self.all_secret_names).then(|| self.secret_names.iter().map(|name| name.as_str().into()).collect())
    }

    /// The namespaces that may be written; `None` for all.
    pub fn allowed_namespaces(&self) -> Option<BTreeSet<std::sync::Arc<str>>> {
        (!self.namespaces.is_empty()).then(|| self.namespaces.iter().map(|name| name.as_str().into()).collect())
    }
}

/// The variables by which the AWS SDK's chain chooses an identity: when they change, tokens of before are another's.
pub fn identity_hints() -> Vec<String> {
    const VARIABLES: [&str; 5] = [
        "AWS_ROLE_ARN",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ];
    VARIABLES.iter().map(|name| format!("{name}={}", std::env::var(name).unwrap_or_default())).collect()
}

/// This replica's name where neither flag nor variable gives one.
pub fn host_name() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "local".to_owned())
}

/// Reads a Secret's name: an RFC 1123 subdomain.
fn secret_name(text: &str) -> Result<String, String> {
    let valid = text.len() <= 253 && text.split('.').all(is_label);
    let error = || format!("{text:?} is not a Secret's name: lower case letters, digits, '-' and '.'");
    valid.then(|| text.to_owned()).ok_or_else(error)
}

/// Reads a namespace's name: an RFC 1123 label.
fn namespace_name(text: &str) -> Result<String, String> {
    let error = || format!("{text:?} is not a namespace's name: up to 63 lower case letters, digits and '-'");
    is_label(text).then(|| text.to_owned()).ok_or_else(error)
}

fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

/// Reads a duration in Go's form, as everywhere in Kubernetes: `90s`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration =
        text.parse().map_err(|_| format!("{text:?} is not a duration such as 90s or 1h30m"))?;
    let duration = Duration::from(parsed);
    if duration.is_zero() || parsed.is_negative() {
        Err("the duration must be longer than zero".to_owned())
    } else {
        Ok(duration)
    }
}

/// Reads the length of a lease, which Kubernetes keeps in whole seconds.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_secs(5) || duration.subsec_nanos() != 0 {
        return Err("a lease lasts whole seconds, 5 or more".to_owned());
    }
    Ok(duration)
}
