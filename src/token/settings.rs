//! What the command line and the environment say about AWS.

use std::path::PathBuf;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_types::service_config::ServiceConfigKey;

use crate::named::named;

/// What the command line says about AWS.
#[derive(Clone, Debug)]
pub struct AwsSettings {
    /// The operator's own region, if given.
    pub region: Option<String>,
    /// The longest that one call may take. The SDK has no limit of its own.
    pub timeout: Duration,
    /// The variables that select the identity in the SDK's chain (role, profile, key id, container endpoint); they are only hashed.
    pub identity_hints: Vec<String>,
    /// The profile that is used of the shared configuration files, if one is named.
    pub profile: Option<String>,
    /// The operator's web identity, if it has one.
    pub web_identity: Option<WebIdentityFile>,
    /// Whether the operator only uses the identity of its workload: a web identity, or that of its container.
    pub workload_identity_only: bool,
    /// Endpoints that are called instead of AWS's own.
    pub endpoints: Endpoints,
    /// Certificates in PEM that are trusted besides those of public authorities.
    pub ca_bundle: Option<Vec<u8>>,
}

/// Endpoint URLs that are called instead of AWS's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For ECR.
    pub ecr: Option<String>,
    /// For ECR Public.
    pub ecr_public: Option<String>,
    /// For STS.
    pub sts: Option<String>,
}

impl Endpoints {
    /// Fills in AWS_ENDPOINT_URL and the endpoints of the profile where no endpoint is set.
    pub(super) fn or_configured(self, config: &SdkConfig) -> Self {
        // The service ids of the SDK's clients.
        let or = |given: Option<String>, service| given.or_else(|| configured(config, service));
        Self { ecr: or(self.ecr, "ECR"), ecr_public: or(self.ecr_public, "ECR PUBLIC"), sts: or(self.sts, "STS") }
    }
}

/// The endpoint that is configured for a service, if any.
fn configured(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url");
    let own = key.build().ok().and_then(|key| config.service_config()?.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

named! {
    /// Where the operator's own identity was found.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Origin {
        /// Keys in the environment.
        Environment = "environment",
        /// A profile of the shared configuration files.
        Profile = "profile",
        /// IRSA.
        WebIdentity = "web_identity",
        /// EKS Pod Identity, or another endpoint for containers.
        Container = "container",
        /// The node's role, by the instance metadata service.
        Node = "node",
    }
}

impl Origin {
    /// Whether it is an identity of this workload alone, with short-lived credentials that nobody has to distribute.
    pub const fn is_workloads(self) -> bool {
        matches!(self, Self::WebIdentity | Self::Container)
    }
}

/// The operator's own web identity (IRSA), from the variables that the EKS webhook sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebIdentityFile {
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`. The file is rotated, and read for each session.
    pub token_file: PathBuf,
    /// `AWS_ROLE_ARN`.
    pub role_arn: String,
    /// `AWS_ROLE_SESSION_NAME`.
    pub session_name: Option<String>,
}
