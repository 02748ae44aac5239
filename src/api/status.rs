//! The status of an `EcrCredential`: conditions after kstatus, and every reason that can stand in one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most entries of `status.failures`; the counters are exact.
pub const MAX_FAILURES: usize = 20;

/// What the operator last saw and did.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EcrCredentialStatus {
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling` and `Stalled`, as kstatus reads them, and `Attached` where `spec.attachTo` asks for something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the earliest of the passwords in the Secret expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub expires_at: Option<Timestamp>,
    /// When the youngest of the passwords in the Secret was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub refreshed_at: Option<Timestamp>,
    /// When the passwords are next replaced; absent while nothing is refreshed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub next_refresh_at: Option<Timestamp>,
    /// The last value of the annotation `pullsecrets.dev/refresh-requested-at` that was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_refresh_request: Option<String>,
    /// One entry for each of `spec.registries`, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryStatus>,
    /// How many namespaces are selected, and how many of them hold the Secret as desired; absent while `spec.suspend` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespaceCounts>,
    /// One entry for each of `spec.outputs`, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputStatus>,
    /// Namespaces in which a Secret is not as desired: the first 20 by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<NamespaceFailure>,
}

/// What is known of one registry of the spec.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// The hosts written into the Secret; where each namespace has its own identity, those of the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The region whose API issued the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// When the password was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub issued_at: Option<Timestamp>,
    /// When the password expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub expires_at: Option<Timestamp>,
    /// A SHA-256 over the password and the identity that fetched it, by which a restarted operator knows it again in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_hash: Option<String>,
    /// A SHA-256 over the password and what `auth` says, by which it is known again while `auth` comes to no identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_hash: Option<String>,
    /// Whether the last fetch succeeded, as a constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same as a sentence, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Exact counts of the selected namespaces.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceCounts {
    /// Namespaces that the spec selects and that are not terminating.
    #[schemars(extend("format" = "int64"))]
    pub selected: u32,
    /// Selected namespaces whose Secret is as desired.
    #[schemars(extend("format" = "int64"))]
    pub synced: u32,
    /// Selected namespaces whose Secret is not as desired.
    #[schemars(extend("format" = "int64"))]
    pub failed: u32,
    /// `synced/selected`, for `kubectl get`.
    pub summary: String,
}

/// What is known of one output of the spec.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputStatus {
    /// The Secret's name.
    pub name: String,
    /// The format, as in the spec.
    pub format: String,
    /// Namespaces that the output selects and that are not terminating.
    #[schemars(extend("format" = "int64"))]
    pub selected: u32,
    /// Selected namespaces whose Secret is as desired.
    #[schemars(extend("format" = "int64"))]
    pub synced: u32,
    /// Selected namespaces whose Secret is not as desired.
    #[schemars(extend("format" = "int64"))]
    pub failed: u32,
    /// Why the output is written nowhere, as a constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same as a sentence, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Why one namespace's Secret is not as desired.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFailure {
    /// The namespace.
    pub namespace: String,
    /// The Secret's name, where it is not `spec.secret.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A constant.
    pub reason: String,
    /// A sentence with what to do.
    pub message: String,
}

fn date_time(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "format": "date-time", "nullable": true })
}

/// The condition types, after kstatus (sigs.k8s.io/cli-utils, pkg/kstatus).
pub mod condition {
    /// Every selected namespace holds a valid password for every registry.
    pub const READY: &str = "Ready";
    /// Work is under way or being retried.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will change until somebody edits the `EcrCredential` or the installation.
    pub const STALLED: &str = "Stalled";
    /// The Secret is attached to pods and ServiceAccounts as `spec.attachTo` asks; absent when it asks for nothing.
    pub const ATTACHED: &str = "Attached";
}

/// Every reason of a condition, a registry, a namespace failure or an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// All is as desired.
    Synced,
    /// All is as desired, and no namespace is selected.
    NoNamespaces,
    /// `spec.suspend` is true.
    Suspended,
    /// A first password is being fetched.
    FetchingToken,
    /// New passwords were written.
    Refreshed,
    /// At least one selected namespace is not as desired.
    NamespacesFailed,
    /// The spec asks for something that cannot be.
    InvalidSpec,
    /// The operator may not write Secrets of this name.
    SecretNameNotAllowed,
    /// The operator may not write in a namespace that `spec.namespaces.names` names.
    NamespaceNotAllowed,
    /// The operator may not write Secrets of this name in this format, or not there.
    OutputNotAllowed,
    /// The operator may not read the Secret that `include` names.
    IncludeNotAllowed,
    /// The Secret that `include` names is missing, too large, or no docker config.
    IncludeFailed,
    /// The operator may not use the ServiceAccount or Secret that `auth` names.
    AuthNotAllowed,
    /// The ServiceAccount or Secret that `auth` names is missing, or lacks what is needed of it.
    IdentityNotFound,
    /// The ServiceAccount or Secret that `auth` names changed while a token was fetched.
    IdentityChanged,
    /// The ServiceAccount or Secret that `auth` names changes too often, so that its changes take effect later.
    IdentityUnstable,
    /// The spec names no region and the operator has none.
    NoRegion,
    /// The operator has no AWS credentials.
    NoCredentials,
    /// AWS refused the identity or the call.
    AccessDenied,
    /// AWS, or the API server, asked to slow down.
    Throttled,
    /// AWS could not be reached or failed.
    AwsUnavailable,
    /// AWS answered with something that is not a usable password.
    InvalidToken,
    /// AWS answered with a password that has expired, or nearly.
    ExpiredToken,
    /// The password in the Secret has expired and could not be replaced.
    TokenExpired,
    /// A Secret of that name is there and not ours.
    SecretNotOwned,
    /// An older `EcrCredential` wants the same Secret.
    Conflict,
    /// Somebody else keeps writing the Secret.
    Contested,
    /// The Secret has another type, which Kubernetes does not let anyone change.
    WrongType,
    /// The Secret is immutable.
    Immutable,
    /// The operator lacks a right in the cluster.
    Forbidden,
    /// The namespace's quota is used up.
    QuotaExceeded,
    /// An admission webhook or policy refused the Secret.
    AdmissionRefused,
    /// The Secret is attached as asked.
    Attached,
    /// The policy that attaches Secrets to pods is not installed.
    AttachPolicyMissing,
    /// The operator may not change ServiceAccounts of that name.
    AttachNotAllowed,
    /// At least one ServiceAccount does not name the Secret.
    AttachFailed,
    /// The API server refused or failed for another reason.
    ApiError,
}

impl Reason {
    /// Whether it may pass without an edit of the spec or of the installation.
    pub const fn is_passing(self) -> bool {
        !matches!(
            self,
            Self::InvalidSpec
                | Self::SecretNameNotAllowed
                | Self::NamespaceNotAllowed
                | Self::OutputNotAllowed
                | Self::IncludeNotAllowed
                | Self::AuthNotAllowed
                | Self::NoRegion
        )
    }

    /// The reason as it stands in conditions, Events and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "Synced",
            Self::NoNamespaces => "NoNamespaces",
            Self::Suspended => "Suspended",
            Self::FetchingToken => "FetchingToken",
            Self::Refreshed => "Refreshed",
            Self::NamespacesFailed => "NamespacesFailed",
            Self::InvalidSpec => "InvalidSpec",
            Self::SecretNameNotAllowed => "SecretNameNotAllowed",
            Self::NamespaceNotAllowed => "NamespaceNotAllowed",
            Self::OutputNotAllowed => "OutputNotAllowed",
            Self::IncludeNotAllowed => "IncludeNotAllowed",
            Self::IncludeFailed => "IncludeFailed",
            Self::AuthNotAllowed => "AuthNotAllowed",
            Self::IdentityNotFound => "IdentityNotFound",
            Self::IdentityChanged => "IdentityChanged",
            Self::IdentityUnstable => "IdentityUnstable",
            Self::NoRegion => "NoRegion",
            Self::NoCredentials => "NoCredentials",
            Self::AccessDenied => "AccessDenied",
            Self::Throttled => "Throttled",
            Self::AwsUnavailable => "AwsUnavailable",
            Self::InvalidToken => "InvalidToken",
            Self::ExpiredToken => "ExpiredToken",
            Self::TokenExpired => "TokenExpired",
            Self::SecretNotOwned => "SecretNotOwned",
            Self::Conflict => "Conflict",
            Self::Contested => "Contested",
            Self::WrongType => "WrongType",
            Self::Immutable => "Immutable",
            Self::Forbidden => "Forbidden",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::AdmissionRefused => "AdmissionRefused",
            Self::Attached => "Attached",
            Self::AttachPolicyMissing => "AttachPolicyMissing",
            Self::AttachNotAllowed => "AttachNotAllowed",
            Self::AttachFailed => "AttachFailed",
            Self::ApiError => "ApiError",
        }
    }
}
