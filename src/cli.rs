//! The command line, and the only reader of the environment (the AWS SDK and kube read their own variables).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::Config;
use kube::config::InferConfigError;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::api::{DEFAULT_SECRET_NAME, OutputFormat};
use crate::plan::Limits;
use crate::plan::references::AllowedIdentities;
use crate::plan::schedule::{self, LONGEST_LIFE};
use crate::plan::scopes::{AccountScope, OutputScope, SecretKey};
use crate::process::telemetry::LogFormat;
use crate::token::settings::{AwsSettings, Endpoints, WebIdentityFile};

/// Keeps Kubernetes pull secrets for Amazon ECR up to date in every namespace that needs them.
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
    /// Reports what is wrong: the AWS identities, the tokens and when they expire, the namespaces without a valid Secret and why,
    /// and missing permissions. It calls AWS, discards the tokens, and changes nothing. Exits 0 if everything is healthy, 1 if there
    /// are problems, 2 if it cannot check.
    Check(Box<CheckArgs>),
    /// Prints the CustomResourceDefinition as YAML.
    Crd,
}

/// What the operator may touch and whose identities it may use.
#[derive(Args, Clone, Debug)]
pub struct ScopeArgs {
    /// A Secret name that the operator is allowed to write; repeatable. The operator needs RBAC permissions on each.
    #[arg(long = "secret-name", env = "ECO_SECRET_NAMES", value_delimiter = ',', default_value = DEFAULT_SECRET_NAME, value_parser = secret_name, help_heading = "Scope")]
    pub secret_names: Vec<String>,

    /// Allows Secrets of any name. The operator needs RBAC permissions on all Secrets.
    #[arg(long, env = "ECO_ALL_SECRET_NAMES", help_heading = "Scope")]
    pub all_secret_names: bool,

    /// A namespace that the operator is allowed to write to; repeatable. Default: all namespaces.
    #[arg(long = "namespace", env = "ECO_NAMESPACES", value_delimiter = ',', value_parser = namespace_name, help_heading = "Scope")]
    pub namespaces: Vec<String>,

    /// A ServiceAccount whose AWS identity EcrCredentials are allowed to use, as NAMESPACE/NAME, or */NAME for one of that name in
    /// every target namespace; repeatable. The operator needs RBAC permissions on each: list, watch, and create on its token.
    #[arg(long = "service-account", env = "ECO_SERVICE_ACCOUNTS", value_delimiter = ',', value_parser = account_scope, value_name = "NAMESPACE/NAME", help_heading = "Scope")]
    pub service_accounts: Vec<AccountScope>,

    /// A ServiceAccount name to which EcrCredentials are allowed to attach their Secret (`spec.attachTo.serviceAccounts`);
    /// repeatable. The operator needs RBAC permissions on each: list, watch and patch.
    #[arg(long = "attach-service-account", env = "ECO_ATTACH_SERVICE_ACCOUNTS", value_delimiter = ',', value_parser = secret_name, value_name = "NAME", help_heading = "Scope")]
    pub attach_service_accounts: Vec<String>,

    /// Tells the operator that the MutatingAdmissionPolicy that attaches Secrets to pods (`spec.attachTo.pods`) is installed.
    #[arg(long, env = "ECO_ATTACH_PODS", help_heading = "Scope")]
    pub attach_pods: bool,

    /// Also sends Events to target namespaces: when a Secret there starts to fail, and when it is up to date again. The
    /// operator needs RBAC permissions there: create and patch on events.k8s.io.
    #[arg(long, env = "ECO_NAMESPACE_EVENTS", help_heading = "Scope")]
    pub namespace_events: bool,

    /// A Secret in another format that EcrCredentials are allowed to have (`spec.outputs`), as NAMESPACE/NAME=FORMAT, or
    /// */NAME=FORMAT for one in every target namespace; repeatable. The operator needs RBAC permissions on each.
    #[arg(long = "output-secret", env = "ECO_OUTPUT_SECRETS", value_delimiter = ',', value_parser = output_scope, value_name = "NAMESPACE/NAME=FORMAT", help_heading = "Scope")]
    pub output_secrets: Vec<OutputScope>,

    /// A Secret with a docker config that EcrCredentials are allowed to merge (`spec.include`), as NAMESPACE/NAME; repeatable. The
    /// operator needs RBAC permissions on each: get, list, watch.
    #[arg(long = "include-secret", env = "ECO_INCLUDE_SECRETS", value_delimiter = ',', value_parser = secret_key, value_name = "NAMESPACE/NAME", help_heading = "Scope")]
    pub include_secrets: Vec<SecretKey>,

    /// A Secret with static AWS keys that EcrCredentials are allowed to use, as NAMESPACE/NAME; repeatable. The operator needs RBAC
    /// permissions on each: get, list, watch.
    #[arg(long = "credentials-secret", env = "ECO_CREDENTIALS_SECRETS", value_delimiter = ',', value_parser = secret_key, value_name = "NAMESPACE/NAME", help_heading = "Scope")]
    pub credentials_secrets: Vec<SecretKey>,
}

/// How AWS is reached, and as whom.
#[derive(Args, Clone, Debug)]
pub struct AwsArgs {
    /// The AWS region for STS, and for registries without a region.
    #[arg(long, env = "AWS_REGION", help_heading = "AWS")]
    pub aws_region: Option<String>,

    /// The timeout of one call to AWS.
    #[arg(long, env = "ECO_AWS_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "AWS")]
    pub aws_timeout: Duration,

    /// Accepts only IRSA, OIDC federation or EKS Pod Identity as the operator's own identity: no keys in the environment, no
    /// profile, and not the role of the node.
    #[arg(long, env = "ECO_REQUIRE_WORKLOAD_IDENTITY", help_heading = "AWS")]
    pub require_workload_identity: bool,

    /// The URL of the ECR API, such as a VPC endpoint. Default: the endpoint of the region. If you set it,
    /// AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT have no effect on this API.
    #[arg(long, env = "AWS_ENDPOINT_URL_ECR", value_parser = url, value_name = "URL", help_heading = "AWS")]
    pub aws_endpoint_url_ecr: Option<Url>,

    /// The URL of the ECR Public API. Default: that of us-east-1.
    #[arg(long, env = "AWS_ENDPOINT_URL_ECR_PUBLIC", value_parser = url, value_name = "URL", help_heading = "AWS")]
    pub aws_endpoint_url_ecr_public: Option<Url>,

    /// The URL of the STS API. Default: the endpoint of the region.
    #[arg(long, env = "AWS_ENDPOINT_URL_STS", value_parser = url, value_name = "URL", help_heading = "AWS")]
    pub aws_endpoint_url_sts: Option<Url>,

    /// A file with CA certificates in PEM, such as that of a proxy. They are trusted in addition to the public CAs.
    #[arg(long, env = "AWS_CA_BUNDLE", value_name = "FILE", help_heading = "AWS")]
    pub aws_ca_bundle: Option<PathBuf>,

    /// The profile of the shared configuration files, which the SDK selects by the same variable.
    #[arg(env = "AWS_PROFILE", long, hide = true)]
    pub aws_profile: Option<String>,

    /// The operator's web identity, as the EKS webhook sets it.
    #[arg(env = "AWS_WEB_IDENTITY_TOKEN_FILE", long, hide = true)]
    pub web_identity_token_file: Option<PathBuf>,

    /// See `web_identity_token_file`.
    #[arg(env = "AWS_ROLE_ARN", long, hide = true)]
    pub role_arn: Option<String>,

    /// See `web_identity_token_file`.
    #[arg(env = "AWS_ROLE_SESSION_NAME", long, hide = true)]
    pub role_session_name: Option<String>,
}

/// The Lease of the leader election.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// Runs without leader election. Use it only for a single replica, or outside a cluster.
    #[arg(long, env = "ECO_NO_LEADER_ELECTION", help_heading = "Leader election")]
    pub no_leader_election: bool,

    /// The name of the Lease. With its namespace, it names this installation in `status.servedBy`, also without leader election.
    #[arg(long, env = "ECO_LEASE_NAME", default_value = "ecr-credential-operator", help_heading = "Leader election")]
    pub lease_name: String,

    /// The namespace of the Lease. Default: the operator's own.
    #[arg(long, env = "POD_NAMESPACE", help_heading = "Leader election")]
    pub lease_namespace: Option<String>,
}

impl LeaseArgs {
    /// The name of the installation: that of its Lease, which all replicas have in common. Without leader election it is the name
    /// that the Lease would have.
    pub fn installation(&self, default_namespace: &str) -> String {
        format!("{}/{}", self.lease_namespace.as_deref().unwrap_or(default_namespace), self.lease_name)
    }

    /// The namespace and the name of the Lease of an installation by its name; none if it is no such name.
    pub fn of_installation(name: &str) -> Option<(&str, &str)> {
        let is_name = |text: &str| text.len() <= 253 && text.split('.').all(is_label);
        name.split_once('/').filter(|(namespace, name)| is_label(namespace) && is_name(name))
    }
}

/// The flags of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The EcrCredential to check. Default: all of them.
    pub name: Option<String>,

    /// The output format of the report.
    #[arg(long, short, default_value = "text", value_enum)]
    pub output: Output,

    /// Does not call AWS.
    #[arg(long)]
    pub offline: bool,

    /// See [`ScopeArgs`].
    #[command(flatten)]
    pub scope: ScopeArgs,

    /// See [`AwsArgs`].
    #[command(flatten)]
    pub aws: AwsArgs,

    /// See [`LeaseArgs`]: it needs rights as well.
    #[command(flatten)]
    pub lease: LeaseArgs,

    /// A label selector for EcrCredentials, the same as that of the operator. Only these are checked.
    #[arg(long, env = "ECO_CREDENTIAL_SELECTOR", help_heading = "Scope")]
    pub credential_selector: Option<String>,

    /// The operator's pod, in which this runs; none elsewhere.
    #[arg(env = "POD_NAME", long, hide = true)]
    pub replica_name: Option<String>,
}

/// The output format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Human-readable text.
    Text,
    /// JSON, for programs.
    Json,
}

impl CheckArgs {
    /// Whether this runs with the operator's rights and identity.
    pub fn is_in_operator_pod(&self) -> bool {
        self.replica_name.as_deref().is_some_and(|name| !name.is_empty())
    }
}

/// The flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// See [`ScopeArgs`].
    #[command(flatten)]
    pub scope: ScopeArgs,

    /// See [`AwsArgs`].
    #[command(flatten)]
    pub aws: AwsArgs,

    /// A label selector for EcrCredentials, such as `shard=a`. The operator ignores all others. Two operators must not write the
    /// same Secret.
    #[arg(long, env = "ECO_CREDENTIAL_SELECTOR", help_heading = "Scope")]
    pub credential_selector: Option<String>,

    /// The maximum rate of calls to ECR, and likewise of calls to STS, per second. A token that needs N roles to be assumed counts as 1 + N calls. The rate
    /// is shared fairly among EcrCredentials, and among the namespaces of each. AWS allows about 20.
    #[arg(long, env = "ECO_AWS_RATE", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "AWS")]
    pub aws_rate: u16,

    /// The minimum remaining lifetime of a new token. A token that expires earlier is rejected.
    #[arg(long, env = "ECO_MINIMUM_TOKEN_LIFE", default_value = "5m", value_parser = duration, help_heading = "AWS")]
    pub minimum_token_life: Duration,

    /// The backoff after the first failure. It doubles with each further failure.
    #[arg(long, env = "ECO_RETRY_INITIAL", default_value = "1s", value_parser = duration, help_heading = "Work")]
    pub retry_initial: Duration,

    /// The maximum backoff. Also the interval at which changes of one ServiceAccount, or of one Secret with keys or docker configs, take
    /// effect if there are many.
    #[arg(long, env = "ECO_RETRY_MAX", default_value = "5m", value_parser = duration, help_heading = "Work")]
    pub retry_max: Duration,

    /// The maximum number of concurrent writes of Secrets. Those that the API server has not answered after 2 seconds do not count, up to
    /// eight times as many.
    #[arg(long, env = "ECO_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Work")]
    pub concurrency: u16,

    /// See [`LeaseArgs`].
    #[command(flatten)]
    pub lease: LeaseArgs,

    /// The duration of the Lease: if the leader has not renewed it for this long, another replica takes over. Whole seconds, 5 or
    /// more.
    #[arg(long, env = "ECO_LEASE_DURATION", default_value = "15s", value_parser = lease_duration, help_heading = "Leader election")]
    pub lease_duration: Duration,

    /// The name of this replica in the Lease.
    #[arg(long, env = "POD_NAME", help_heading = "Leader election")]
    pub replica_name: Option<String>,

    /// The address of /livez, /readyz and /metrics. `[::]` includes IPv4, and works on nodes without IPv6.
    #[arg(long, env = "ECO_HTTP_ADDRESS", default_value = "[::]:8080", help_heading = "Process")]
    pub http_address: SocketAddr,

    /// The time to finish running work after SIGTERM.
    #[arg(long, env = "ECO_GRACE_PERIOD", default_value = "20s", value_parser = duration, help_heading = "Process")]
    pub grace_period: Duration,

    /// The log filter, such as `info` or `info,ecr_credential_operator=debug`. Libraries that could log tokens at finer levels are
    /// limited to `info`.
    #[arg(long, env = "ECO_LOG", default_value = "info", help_heading = "Process")]
    pub log: String,

    /// The format of log lines.
    #[arg(long, env = "ECO_LOG_FORMAT", default_value = "text", value_enum, help_heading = "Process")]
    pub log_format: LogFormat,
}

impl RunArgs {
    /// Checks that the flags can work together.
    ///
    /// # Errors
    /// They cannot; the text says which flags, why, and what to do.
    pub fn consistent(&self) -> Result<(), String> {
        if self.retry_initial > self.retry_max {
            return Err(format!(
                "--retry-initial ({:?}) is longer than --retry-max ({:?}), the maximum backoff: lower the first or raise the second",
                self.retry_initial, self.retry_max
            ));
        }
        let lease = Some(("--lease-duration", self.lease_duration, "when a leader fails, they would expire first"));
        let lease = lease.filter(|_| !self.lease.no_leader_election);
        let durations = [
            ("--minimum-token-life", self.minimum_token_life, "every new token would be rejected"),
            ("--retry-max", self.retry_max, "they would expire before the next attempt"),
            ("--aws-timeout", self.aws.aws_timeout, "they would expire while a call waits"),
        ];
        match durations.into_iter().chain(lease).find(|(_, duration, _)| *duration >= LONGEST_LIFE) {
            None => Ok(()),
            Some((flag, duration, why)) => Err(format!(
                "{flag} ({duration:?}) is too long: ECR authorization tokens expire after 12 hours, so {why}: choose less than 12h"
            )),
        }
    }
}

impl ScopeArgs {
    /// What the operator may do. What AWS decides of it is left open.
    pub fn limits(&self) -> Limits {
        let shared = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
        Limits {
            region: None,
            secret_names: (!self.all_secret_names).then(|| shared(&self.secret_names)),
            outputs: Some(self.output_secrets.iter().cloned().collect()),
            includes: self.include_secrets.iter().cloned().collect(),
            namespaces: (!self.namespaces.is_empty()).then(|| shared(&self.namespaces)),
            identities: AllowedIdentities {
                accounts: self.service_accounts.iter().cloned().collect(),
                keys: self.credentials_secrets.iter().cloned().collect(),
            },
            attach_pods: self.attach_pods,
            attach_service_accounts: shared(&self.attach_service_accounts),
            fixed_api: false,
        }
    }

    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        let names = !self.all_secret_names && self.secret_names == [DEFAULT_SECRET_NAME];
        let identities = self.service_accounts.is_empty() && self.credentials_secrets.is_empty();
        let outputs = self.output_secrets.is_empty() && self.include_secrets.is_empty();
        names && self.namespaces.is_empty() && identities && outputs
    }
}

impl AwsArgs {
    /// What the rooms that call AWS are told.
    ///
    /// # Errors
    /// The file of certificates cannot be read; the text says why.
    pub fn settings(&self) -> Result<AwsSettings, String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let ca_bundle = self.aws_ca_bundle.as_deref().filter(|path| !path.as_os_str().is_empty());
        let token_file = self.web_identity_token_file.clone().filter(|path| !path.as_os_str().is_empty());
        let web_identity = token_file.zip(given(&self.role_arn)).map(|(token_file, role_arn)| WebIdentityFile {
            token_file,
            role_arn,
            session_name: given(&self.role_session_name),
        });
        let endpoint = |url: &Option<Url>| url.as_ref().and_then(|url| url.0.clone());
        Ok(AwsSettings {
            region: given(&self.aws_region),
            timeout: self.aws_timeout,
            identity_hints: identity_hints(),
            profile: given(&self.aws_profile),
            web_identity,
            workload_identity_only: self.require_workload_identity,
            endpoints: Endpoints {
                ecr: endpoint(&self.aws_endpoint_url_ecr),
                ecr_public: endpoint(&self.aws_endpoint_url_ecr_public),
                sts: endpoint(&self.aws_endpoint_url_sts),
            },
            ca_bundle: ca_bundle.map(certificates).transpose()?,
        })
    }
}

/// An URL, or nothing where a variable is set to nothing.
#[derive(Clone, Debug)]
pub struct Url(Option<String>);

fn url(text: &str) -> Result<Url, String> {
    if text.is_empty() {
        return Ok(Url(None));
    }
    let parsed: http::Uri = text.parse().map_err(|_| format!("{text:?} is not a URL"))?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("http" | "https"), Some(_)) => Ok(Url(Some(text.to_owned()))),
        _ => Err(format!("{text:?} is not a URL such as https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com")),
    }
}

/// Reads a file of certificates, and makes sure that there are some.
fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("--aws-ca-bundle {}: {error}", path.display()))?;
    // The SDK does not survive a certificate that it cannot read.
    let mut roots = RootCertStore::empty();
    let readable = CertificateDer::pem_slice_iter(&pem).all(|found| found.is_ok_and(|found| roots.add(found).is_ok()));
    match roots.is_empty() {
        false if readable => Ok(pem),
        _ => Err(format!("--aws-ca-bundle {} has no readable certificate in PEM", path.display())),
    }
}

/// Reads NAMESPACE/NAME of a ServiceAccount, or */NAME.
fn account_scope(text: &str) -> Result<AccountScope, String> {
    let (namespace, name) = text.split_once('/').ok_or_else(|| not_a_place(text))?;
    let name = secret_name(name).map_err(|_| not_a_place(text))?.as_str().into();
    if namespace == "*" {
        return Ok(AccountScope { namespace: None, name });
    }
    let namespace = namespace_name(namespace).map_err(|_| not_a_place(text))?;
    Ok(AccountScope { namespace: Some(namespace.as_str().into()), name })
}

/// Reads NAMESPACE/NAME of a Secret.
fn secret_key(text: &str) -> Result<SecretKey, String> {
    match account_scope(text)? {
        AccountScope { namespace: Some(namespace), name } => Ok(SecretKey { namespace, name }),
        AccountScope { namespace: None, .. } => Err(format!("{text:?} must name one namespace, as NAMESPACE/NAME")),
    }
}

/// Reads NAMESPACE/NAME=FORMAT, or */NAME=FORMAT.
fn output_scope(text: &str) -> Result<OutputScope, String> {
    let formats = || OutputFormat::ALL.map(OutputFormat::as_str).join(", ");
    let unreadable =
        || format!("{text:?} is not of the form NAMESPACE/NAME=FORMAT, with one of the formats {}", formats());
    let (place, format) = text.split_once('=').ok_or_else(unreadable)?;
    let AccountScope { namespace, name } = account_scope(place).map_err(|_| unreadable())?;
    Ok(OutputScope { namespace, name, format: OutputFormat::parse(format).ok_or_else(unreadable)? })
}

fn not_a_place(text: &str) -> String {
    format!("{text:?} is not of the form NAMESPACE/NAME")
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

/// How the API server is reached. A proxy in the environment is for AWS only: kube would use it for the API server as well, and ignores
/// NO_PROXY.
///
/// # Errors
/// There is neither a kubeconfig nor a cluster around the process.
pub async fn kube_config() -> Result<Config, InferConfigError> {
    let mut config = Config::infer().await?;
    if config.proxy_url.as_ref().is_some_and(|url| is_proxy_of_environment(&url.to_string())) {
        config.proxy_url = None;
    }
    Ok(config)
}

/// Whether a URL is that of a proxy that the environment names.
fn is_proxy_of_environment(url: &str) -> bool {
    const VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let plain = |text: &str| text.trim_end_matches('/').to_owned();
    VARIABLES.iter().filter_map(|name| std::env::var(name).ok()).any(|value| plain(&value) == plain(url))
}

/// This replica's name where neither flag nor variable gives one.
pub fn host_name() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "local".to_owned())
}

/// Reads a Secret's name: an RFC 1123 subdomain.
fn secret_name(text: &str) -> Result<String, String> {
    let valid = text.len() <= 253 && text.split('.').all(is_label);
    let error = || format!("{text:?} is not a Secret name: use lower case letters, digits, '-' and '.'");
    valid.then(|| text.to_owned()).ok_or_else(error)
}

/// Reads a namespace's name: an RFC 1123 label.
fn namespace_name(text: &str) -> Result<String, String> {
    let error = || format!("{text:?} is not a namespace name: use up to 63 lower case letters, digits and '-'");
    is_label(text).then(|| text.to_owned()).ok_or_else(error)
}

fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

/// Reads a duration in Go's form, as everywhere in Kubernetes: `90s`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    match schedule::duration(text) {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("{text:?} is not a duration longer than zero, such as 90s or 1h30m")),
    }
}

/// Reads the length of a lease, which Kubernetes keeps in whole seconds.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_secs(5) || duration.subsec_nanos() != 0 {
        return Err("the lease duration must be whole seconds, 5 or more".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests;
