//! `auth`: whose AWS identity fetches a token.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema::{audiences, session_tags, tag_keys};

/// Whose AWS identity fetches tokens: the operator's own unless `serviceAccount` or `secretRef` is given, then through each of
/// `assumeRoles` in turn.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.serviceAccount) || !has(self.secretRef)").message("auth takes serviceAccount or secretRef, not both: assumeRoles can follow either"))]
pub struct Auth {
    /// The identity of a ServiceAccount (IRSA): its token is exchanged at STS for its role. The operator must be allowed to
    /// (chart value `auth.serviceAccounts`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountAuth>,

    /// Static AWS keys in a Secret. The operator must be allowed to read it (chart value `auth.secrets`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<KeysRef>,

    /// Roles to assume, each with the identity before it; the last one fetches the tokens. At most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub assume_roles: Vec<AssumeRole>,
}

/// A ServiceAccount whose identity is used: one by `namespace` and `name`, or by `fromTargetNamespace` one in each target
/// namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.fromTargetNamespace) ? (!has(self.namespace) && !has(self.name)) : (has(self.namespace) && has(self.name))").message("serviceAccount needs namespace and name of one ServiceAccount, or fromTargetNamespace alone"))]
pub struct ServiceAccountAuth {
    /// The ServiceAccount's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace must be the name of a namespace"))]
    pub namespace: Option<String>,

    /// The ServiceAccount's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be the name of a ServiceAccount"))]
    pub name: Option<String>,

    /// The name of a ServiceAccount in each target namespace. It fetches that namespace's own token, so that tenants are kept
    /// apart by IAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("fromTargetNamespace must be the name of a ServiceAccount"))]
    pub from_target_namespace: Option<String>,

    /// The role. Default: the ServiceAccount's annotation `eks.amazonaws.com/role-arn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]*[A-Za-z0-9+=,.@_-]$')").message("roleArn must be the ARN of an IAM role such as arn:aws:iam::111122223333:role/pull"))]
    pub role_arn: Option<String>,

    /// The audiences of the token. Default: the ServiceAccount's annotation `eks.amazonaws.com/audience`, else
    /// `sts.amazonaws.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "audiences")]
    pub audiences: Vec<String>,
}

/// Static AWS keys in a Secret. White space around the values is ignored.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeysRef {
    /// The Secret's namespace.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace must be the name of a namespace"))]
    pub namespace: String,

    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be the name of a Secret"))]
    pub name: String,

    /// The key in the Secret's data that holds the access key id. Default: `AWS_ACCESS_KEY_ID`.
    #[serde(default = "access_key_id")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("accessKeyIdKey must be a key of a Secret's data"))]
    pub access_key_id_key: String,

    /// The key in the Secret's data that holds the secret access key. Default: `AWS_SECRET_ACCESS_KEY`.
    #[serde(default = "secret_access_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("secretAccessKeyKey must be a key of a Secret's data"))]
    pub secret_access_key_key: String,

    /// The key in the Secret's data that holds the session token, for temporary keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("sessionTokenKey must be a key of a Secret's data"))]
    pub session_token_key: Option<String>,
}

/// One call of STS AssumeRole. Bounds are those of the STS API Reference.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.transitiveTagKeys) || (has(self.tags) && self.transitiveTagKeys.all(k, k in self.tags))").message("transitiveTagKeys names a tag that is not in tags"))]
pub struct AssumeRole {
    /// The role.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]*[A-Za-z0-9+=,.@_-]$')").message("roleArn must be the ARN of an IAM role such as arn:aws:iam::111122223333:role/pull"))]
    pub role_arn: String,

    /// The external id that the role's trust policy asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1224))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@:/-]{2,}$')").message("externalId has 2 to 1224 letters, digits and characters of _+=,.@:/-"))]
    pub external_id: Option<String>,

    /// The session's name, as CloudTrail shows it. Default: `ecr-credential-operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@-]{2,}$')").message("sessionName has 2 to 64 letters, digits and characters of _+=,.@-"))]
    pub session_name: Option<String>,

    /// The session's length in seconds, 900 to 43200. Default: what STS gives, one hour. A role that is assumed by a role's
    /// session gets one hour at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::session_seconds")]
    pub duration_seconds: Option<i32>,

    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "session_tags")]
    pub tags: BTreeMap<String, String>,

    /// Which of `tags` are handed on to the sessions of the roles that follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "tag_keys")]
    pub transitive_tag_keys: Vec<String>,

    /// The source identity, which stays for all roles that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@-]{2,}$')").message("sourceIdentity has 2 to 64 letters, digits and characters of _+=,.@-"))]
    pub source_identity: Option<String>,

    /// A session policy as JSON, which narrows what the session may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.trim().startsWith('{') && self.trim().endsWith('}')").message("sessionPolicy must be an IAM policy as a JSON object"))]
    pub session_policy: Option<String>,
}

impl Auth {
    /// Whether it leads to the operator's own identity alone.
    pub fn is_operators_own(&self) -> bool {
        *self == Self::default()
    }
}

// As in the environment of the AWS SDKs, so that Secrets made for it fit.
fn access_key_id() -> String {
    "AWS_ACCESS_KEY_ID".to_owned()
}

fn secret_access_key() -> String {
    "AWS_SECRET_ACCESS_KEY".to_owned()
}
