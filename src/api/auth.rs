//! `auth`: the AWS identity that requests a token.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema::{audiences, session_tags, tag_keys};

/// The AWS identity that requests tokens: the operator's own unless `serviceAccount` or `secretRef` is set. The roles of
/// `assumeRoles` are then assumed one after the other.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.serviceAccount) || !has(self.secretRef)").message("auth takes serviceAccount or secretRef, not both: assumeRoles can follow either"))]
pub struct Auth {
    /// The identity of a ServiceAccount (IRSA): the operator exchanges a token of the ServiceAccount for a session of its role. The
    /// operator must be allowed to use it (chart value `auth.serviceAccounts`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountAuth>,

    /// Static AWS keys in a Secret. The operator must be allowed to read it (chart value `auth.secrets`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<KeysRef>,

    /// Roles to assume, each with the identity before it. The last one requests the tokens. At most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub assume_roles: Vec<AssumeRole>,
}

/// The ServiceAccount whose identity is used: either one, with `namespace` and `name`, or one in each target namespace, with
/// `fromTargetNamespace`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.fromTargetNamespace) ? (!has(self.namespace) && !has(self.name)) : (has(self.namespace) && has(self.name))").message("serviceAccount takes either namespace and name, or fromTargetNamespace alone"))]
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

    /// The name of a ServiceAccount in each target namespace. Each namespace gets tokens of its own identity, so that IAM separates
    /// tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("fromTargetNamespace must be the name of a ServiceAccount"))]
    pub from_target_namespace: Option<String>,

    /// The ARN of the role. Default: the annotation `eks.amazonaws.com/role-arn` of the ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]*[A-Za-z0-9+=,.@_-]$')").message("roleArn must be the ARN of an IAM role such as arn:aws:iam::111122223333:role/pull"))]
    pub role_arn: Option<String>,

    /// The audiences of the ServiceAccount token. Default: the annotation `eks.amazonaws.com/audience` of the ServiceAccount, or
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
    /// The ARN of the role.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]*[A-Za-z0-9+=,.@_-]$')").message("roleArn must be the ARN of an IAM role such as arn:aws:iam::111122223333:role/pull"))]
    pub role_arn: String,

    /// The external ID that the role's trust policy requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1224))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@:/-]{2,}$')").message("externalId has 2 to 1224 letters, digits and characters of _+=,.@:/-"))]
    pub external_id: Option<String>,

    /// The session name, as CloudTrail shows it. Default: `ecr-credential-operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@-]{2,}$')").message("sessionName has 2 to 64 letters, digits and characters of _+=,.@-"))]
    pub session_name: Option<String>,

    /// The duration of the session in seconds, 900 to 43200. Default: that of STS, one hour. For a role that another role assumes
    /// (role chaining), STS allows one hour at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::session_seconds")]
    pub duration_seconds: Option<i32>,

    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "session_tags")]
    pub tags: BTreeMap<String, String>,

    /// The keys of `tags` that are passed on to the sessions of the roles that follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "tag_keys")]
    pub transitive_tag_keys: Vec<String>,

    /// The source identity. It persists for all roles that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+=,.@-]{2,}$')").message("sourceIdentity has 2 to 64 letters, digits and characters of _+=,.@-"))]
    pub source_identity: Option<String>,

    /// A session policy as JSON, which limits the permissions of the session.
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
