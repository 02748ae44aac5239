//! The status of an `EcrCredential`: conditions after kstatus, and every reason that can stand in one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::named::named;

/// The most entries of `status.failures`; the counters are exact.
pub const MAX_FAILURES: usize = 20;

/// The last observed state.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EcrCredentialStatus {
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling` and `Stalled` as defined by kstatus, `Attached` if `spec.attachTo` is set, and `Contested` while several
    /// installations of the operator serve this object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the first token in the Secret expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub expires_at: Option<Timestamp>,
    /// When the newest token in the Secret was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub refreshed_at: Option<Timestamp>,
    /// When the tokens are refreshed next; absent while nothing is refreshed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub next_refresh_at: Option<Timestamp>,
    /// The last value of the annotation `pullsecrets.dev/refresh-requested-at` for which a refresh was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_refresh_request: Option<String>,
    /// One entry for each of `spec.registries`, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryStatus>,
    /// The number of target namespaces, and in how many of them the Secret is up to date; absent while `spec.suspend` is true or the
    /// condition `Stalled` holds, because the namespaces are not checked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespaceCounts>,
    /// One entry for each of `spec.outputs`, in the same order; absent while `spec.suspend` is true or the spec cannot be served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputStatus>,
    /// Namespaces in which a Secret is not up to date: the first 20 by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<NamespaceFailure>,
    /// The installation of the operator that wrote this status, as `namespace/name` of its Lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub served_by: Option<String>,
}

impl EcrCredentialStatus {
    /// The condition of a type.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// The condition of a type, if it is true.
    pub fn holding(&self, type_: &str) -> Option<&Condition> {
        self.condition(type_).filter(|condition| condition.status == "True")
    }
}

/// The state of one registry of the spec.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// The hosts in the Secret. `*` stands for an account that the spec does not name, until there is a token, and always if each
    /// namespace has its own identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The region in which the token was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// When the token was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub issued_at: Option<Timestamp>,
    /// When the token expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub expires_at: Option<Timestamp>,
    /// A SHA-256 hash of the token and the identity that requested it. After a restart, the operator uses it to verify the token in
    /// a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_hash: Option<String>,
    /// A SHA-256 hash of the token and of `auth`. It verifies the token while `auth` cannot be resolved to an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_hash: Option<String>,
    /// The result of the last request for a token, as a CamelCase reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The details, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The numbers of target namespaces.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceCounts {
    /// Target namespaces: those that the spec selects and that are not terminating.
    #[schemars(extend("format" = "int64"))]
    pub selected: u32,
    /// Target namespaces whose Secret is up to date.
    #[schemars(extend("format" = "int64"))]
    pub synced: u32,
    /// Target namespaces whose Secret cannot be brought up to date at present: `failures` says why. The rest of those that are not
    /// synced are under way.
    #[schemars(extend("format" = "int64"))]
    pub failed: u32,
    /// `synced/selected`, for `kubectl get`.
    pub summary: String,
}

/// The state of one output of the spec.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputStatus {
    /// The Secret's name.
    pub name: String,
    /// The format, as in the spec.
    pub format: String,
    /// Target namespaces: those that the output selects and that are not terminating.
    #[schemars(extend("format" = "int64"))]
    pub selected: u32,
    /// Target namespaces whose Secret is up to date.
    #[schemars(extend("format" = "int64"))]
    pub synced: u32,
    /// Target namespaces whose Secret cannot be brought up to date at present: `failures` says why. The rest of those that are not
    /// synced are under way.
    #[schemars(extend("format" = "int64"))]
    pub failed: u32,
    /// Why the output is not written at all, as a CamelCase reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The details, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Why the Secret in one namespace is not up to date.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFailure {
    /// The namespace.
    pub namespace: String,
    /// The Secret's name, if it is not `spec.secret.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A CamelCase reason.
    pub reason: String,
    /// The details, and what to do.
    pub message: String,
}

fn date_time(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "format": "date-time", "nullable": true })
}

/// The condition types, after kstatus (sigs.k8s.io/cli-utils, pkg/kstatus).
pub mod condition {
    /// Every target namespace has a pull secret with a valid token for every registry.
    pub const READY: &str = "Ready";
    /// The operator is working towards the desired state, or retries.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing changes until someone edits the `EcrCredential` or the installation.
    pub const STALLED: &str = "Stalled";
    /// The Secret is attached to pods and ServiceAccounts according to `spec.attachTo`; absent if that is not set.
    pub const ATTACHED: &str = "Attached";
    /// Several installations of the operator serve the `EcrCredential`; absent otherwise.
    pub const CONTESTED: &str = "Contested";
}

named! {
    /// Every reason of a condition, a registry, a namespace failure or an Event.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Reason {
        /// Everything is up to date.
        Synced,
        /// No namespace is selected, so there is nothing to do.
        NoNamespaces,
        /// `spec.suspend` is true.
        Suspended,
        /// It is being deleted, and a finalizer blocks the deletion.
        Deleting,
        /// The first token is being requested.
        FetchingToken,
        /// New tokens were written.
        Refreshed,
        /// At least one target namespace is not up to date.
        NamespacesFailed,
        /// The spec is invalid.
        InvalidSpec,
        /// The operator is not allowed to write Secrets of this name.
        SecretNameNotAllowed,
        /// The operator is not allowed to write in a namespace that `spec.namespaces.names` lists.
        NamespaceNotAllowed,
        /// The operator is not allowed to write Secrets of this name in this format, or not in this namespace.
        OutputNotAllowed,
        /// The operator is not allowed to read a Secret of `spec.include`.
        IncludeNotAllowed,
        /// A Secret of `spec.include` is missing, too large, or not a docker config.
        IncludeFailed,
        /// The operator is not allowed to use the ServiceAccount or Secret of `auth`.
        AuthNotAllowed,
        /// The ServiceAccount or Secret of `auth` is missing or incomplete.
        IdentityNotFound,
        /// The ServiceAccount or Secret of `auth` changed while a token was being requested.
        IdentityChanged,
        /// The ServiceAccount or Secret of `auth` changes too often, so changes take effect with a delay.
        IdentityUnstable,
        /// The spec names no region and the operator has none.
        NoRegion,
        /// The operator has no AWS credentials.
        NoCredentials,
        /// AWS denied the identity or the call.
        AccessDenied,
        /// AWS or the API server is throttling requests.
        Throttled,
        /// AWS cannot be reached, or answered with an error.
        AwsUnavailable,
        /// AWS returned a token that is not usable.
        InvalidToken,
        /// AWS returned a token that has expired or is about to expire.
        ExpiredToken,
        /// The token in the Secret has expired and could not be refreshed.
        TokenExpired,
        /// A Secret of that name exists and the operator does not own it.
        SecretNotOwned,
        /// Another `EcrCredential` with precedence has the same Secret.
        Conflict,
        /// Someone else keeps changing the Secret, or another installation of the operator serves the same `EcrCredential`.
        Contested,
        /// The Secret has another type, and Kubernetes does not allow changing it.
        WrongType,
        /// The Secret is immutable.
        Immutable,
        /// The operator lacks a permission in the cluster.
        Forbidden,
        /// The quota of the namespace is exhausted.
        QuotaExceeded,
        /// An admission webhook or policy rejected the Secret, or the request for a token of a ServiceAccount.
        AdmissionRefused,
        /// The Secret is attached according to `spec.attachTo`.
        Attached,
        /// The policy that attaches Secrets to pods is not installed.
        AttachPolicyMissing,
        /// The operator is not allowed to change ServiceAccounts of that name.
        AttachNotAllowed,
        /// At least one ServiceAccount does not reference the Secret.
        AttachFailed,
        /// The API server rejected the request or failed for another reason.
        ApiError,
    }
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
}
