//! The report, as values that are also the fields of `--output json`. Fields may be added; none changes its meaning.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::rights::Right;

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// When the check was made.
    pub(super) checked_at: Timestamp,
    /// Whether it ran in the operator's own pod, with its permissions and its AWS identity. Elsewhere permissions are not reviewed,
    /// and "the operator's own identity" is that of this process.
    pub(super) in_operator_pod: bool,
    /// How many problems there are in all; the exit status is 0 for none and 1 for any.
    pub(super) problem_count: usize,
    /// Problems of the installation.
    pub(super) problems: Vec<Finding>,
    /// Findings that are no problems.
    pub(super) notes: Vec<Finding>,
    /// Each `EcrCredential`, by name.
    pub(super) credentials: Vec<CredentialReport>,
    /// Each AWS identity that is used.
    pub(super) identities: Vec<IdentityReport>,
    /// The permissions that the operator lacks; none if they were not reviewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rights: Option<Rights>,
}

/// A finding: a reason, and a message that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The reason, the same as in the status of an `EcrCredential` if it has one.
    pub(super) reason: String,
    /// A sentence.
    pub(super) message: String,
}

impl Finding {
    pub(super) fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// One `EcrCredential`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CredentialReport {
    /// Its name.
    pub(super) name: String,
    /// The condition `Ready` of the status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operator_says: Option<Condition>,
    /// What is wrong with it as a whole.
    pub(super) problems: Vec<Finding>,
    /// What is worth knowing and no problem.
    pub(super) notes: Vec<Finding>,
    /// Its registries, in the order of the spec.
    pub(super) registries: Vec<RegistryReport>,
    /// The Secret's name.
    pub(super) secret: String,
    /// The namespaces that it selects.
    pub(super) namespaces: Namespaces,
}

/// A condition of a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Condition {
    /// `True` or `False`.
    pub(super) status: String,
    /// A constant.
    pub(super) reason: String,
    /// A sentence.
    pub(super) message: String,
}

/// One registry of a spec.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RegistryReport {
    /// `ecr` or `ecr-public`.
    pub(super) service: &'static str,
    /// The region whose API issues the token; none if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) region: Option<String>,
    /// The identity that fetches it; none if it is unknown, or if each namespace has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// Whether each target namespace has its own identity and token.
    pub(super) own_for_each_namespace: bool,
    /// The hosts that were written, by the status.
    pub(super) hosts: Vec<String>,
    /// When the token was issued, by the status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issued_at: Option<Timestamp>,
    /// When it expires, by the status; of several the one that expires first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<Timestamp>,
}

/// The namespaces of an `EcrCredential`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Namespaces {
    /// How many it selects.
    pub(super) selected: usize,
    /// How many of them hold the Secret as it should be; none if they were not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) good: Option<usize>,
    /// The earliest expiry in the Secrets that are as they should be, by their annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) earliest_expiry: Option<Timestamp>,
    /// Those that do not, and those that hold a Secret that should not be there any more.
    pub(super) failing: Vec<NamespaceReport>,
}

/// One namespace in which something is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamespaceReport {
    /// The namespace.
    pub(super) namespace: String,
    /// The Secret's name.
    pub(super) secret: String,
    /// What is there.
    pub(super) state: State,
    /// A constant.
    pub(super) reason: String,
    /// A sentence with what to do.
    pub(super) message: String,
    /// When the newest token in the Secret was issued, by its annotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issued_at: Option<Timestamp>,
    /// When the first token in the Secret expires, by its annotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<Timestamp>,
}

impl NamespaceReport {
    /// A report without times.
    pub(super) fn new(
        namespace: &str,
        secret: &str,
        state: State,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let (namespace, secret) = (namespace.to_owned(), secret.to_owned());
        Self {
            namespace,
            secret,
            state,
            reason: reason.into(),
            message: message.into(),
            issued_at: None,
            expires_at: None,
        }
    }
}

/// The problem of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum State {
    /// There is no Secret.
    Missing,
    /// The tokens in the Secret have expired.
    Expired,
    /// The Secret has older tokens, or other hosts, than the operator has published.
    Stale,
    /// Somebody has changed the Secret since the operator wrote it.
    Changed,
    /// The Secret is not the operator's.
    Foreign,
    /// The Secret belongs to another EcrCredential.
    AnotherCredential,
    /// The namespace is not selected any more, and the Secret is still there.
    Leftover,
    /// The metadata of the Secret is as desired, but it cannot be refreshed: the namespace's own identity fails, or the operator
    /// reports another failure.
    NotRenewable,
    /// Secrets may not be listed there.
    Unknown,
}

/// One AWS identity.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityReport {
    /// For people, with its chain of roles; registries name it by this.
    pub(super) identity: String,
    /// `operator`, `service_account` or `secret`, with `_role` when roles are assumed from it; as in the metrics.
    pub(super) kind: &'static str,
    /// The ServiceAccount as `namespace/name`, where it begins with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service_account: Option<String>,
    /// The Secret with static keys as `namespace/name`, where it begins with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<String>,
    /// Where the operator's own identity was found: `environment`, `profile`, `web_identity`, `container` or `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<&'static str>,
    /// The ARNs of the roles, in the order in which they are assumed.
    pub(super) roles: Vec<String>,
    /// The ARN by GetCallerIdentity; none if AWS was not called or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caller: Option<String>,
    /// The `EcrCredentials` that use it.
    pub(super) used_by: Vec<String>,
    /// The results of the token calls, whose tokens are discarded; empty if AWS was not called.
    pub(super) tokens: Vec<TokenReport>,
    /// What is wrong with it.
    pub(super) problems: Vec<Finding>,
    /// What is worth knowing and no problem.
    pub(super) notes: Vec<Finding>,
}

/// One call of GetAuthorizationToken.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenReport {
    /// `ecr` or `ecr-public`.
    pub(super) service: &'static str,
    /// The region whose API was called.
    pub(super) region: String,
    /// When the issued token would expire; none if no token was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<Timestamp>,
    /// Why no token was issued, as in the status of an `EcrCredential`; none if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

/// The operator's permissions in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rights {
    /// How many were reviewed.
    pub(super) asked: usize,
    /// Those that it lacks.
    pub(super) missing: Vec<Right>,
}

impl Report {
    /// How many problems there are in all.
    pub(super) fn count(&self) -> usize {
        let credentials = self.credentials.iter().map(|c| c.problems.len() + c.namespaces.failing.len());
        let identities = self.identities.iter().map(|identity| identity.problems.len());
        let rights = self.rights.as_ref().map_or(0, |rights| rights.missing.len());
        self.problems.len() + credentials.sum::<usize>() + identities.sum::<usize>() + rights
    }
}
