//! The `EcrCredential` custom resource: what users write, as types whose schema and CEL rules are the CRD.
#![allow(unreachable_pub, reason = "the KubeSchema derive repeats each type inside a private scope")]

pub mod arn;
pub mod auth;
pub mod observed;
pub mod output;
pub mod registry;
mod schema;
pub mod status;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use auth::{AssumeRole, Auth, KeysRef, ServiceAccountAuth};
pub use output::{Include, IncludedSecret, LoginFields, Output, OutputFormat};
use schema::{
    account_ids, annotation_map, extra_hosts, globs, host_variants, label_map, label_values, match_labels, percent,
    public_host_variants, service_account_globs, without_defaults,
};
pub use status::EcrCredentialStatus;

/// The API group, which is also the prefix of every label and annotation of ours.
pub const GROUP: &str = "pullsecrets.dev";

/// An annotation on an `EcrCredential`: each new value asks for one refresh now, whatever the value is.
pub const REFRESH_REQUESTED_AT: &str = "pullsecrets.dev/refresh-requested-at";

/// The longest refresh request that is told apart from others, in characters: it stands in the status, whose size is bounded.
const LONGEST_REQUEST: usize = 128;

/// The refresh that is asked for by [`REFRESH_REQUESTED_AT`], if any.
pub fn refresh_request(object: &EcrCredential) -> Option<String> {
    let value = object.metadata.annotations.as_ref()?.get(REFRESH_REQUESTED_AT)?;
    Some(value.chars().take(LONGEST_REQUEST).collect())
}

/// The Secret name used when `spec.secret.name` is not given.
pub const DEFAULT_SECRET_NAME: &str = "ecr-pull-secret";

/// The ECR registries that images are pulled from, and the namespaces in which the pull secret is kept up to date.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "pullsecrets.dev",
    version = "v1alpha1",
    kind = "EcrCredential",
    plural = "ecrcredentials",
    shortname = "ecrcred",
    category = "pullsecrets",
    status = "EcrCredentialStatus",
    derive = "PartialEq",
    doc = "Keeps a pull secret (kubernetes.io/dockerconfigjson) with Amazon ECR authorization tokens up to date in each target namespace.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must have at most 63 characters: it becomes a label value on each Secret"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether every target namespace has a pull secret with a valid token for every registry."),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why the EcrCredential is ready or not."),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.namespaces.summary", description = "Target namespaces whose Secret is up to date, of all target namespaces."),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt", description = "When the first token in the Secret expires."),
    printcolumn(name = "Refresh", type_ = "string", json_path = ".status.nextRefreshAt", description = "When the tokens are refreshed next."),
    printcolumn(name = "Secret", type_ = "string", json_path = ".spec.secret.name", priority = 1, description = "The name of the Secret in each target namespace."),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1, description = "Why the EcrCredential is ready or not, and what to do."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.outputs) || self.outputs.all(o, o.name != (has(self.secret) && has(self.secret.name) ? self.secret.name : 'ecr-pull-secret'))").message("the name of an output must differ from secret.name"))]
pub struct EcrCredentialSpec {
    /// The ECR registries to pull from, 1 to 32. The Secret has entries for all of them. At most one entry may be `public`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.filter(r, has(r.public)).size() <= 1").message("only one entry may be public: public.ecr.aws takes one token"))]
    pub registries: Vec<Registry>,

    /// The AWS identity that requests the tokens. Default: the operator's own identity, which the installation provides, for
    /// example by IRSA or EKS Pod Identity. An entry of `registries` can override it with its own `auth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,

    /// The Secret to write into each target namespace.
    #[serde(default)]
    pub secret: SecretTemplate,

    /// The target namespaces: those that `names` or `selector` matches and `exclude` does not.
    pub namespaces: NamespaceSelection,

    /// Further Secrets with the same authorization tokens in other formats, for Argo CD, Flux, Helm, image builders and others.
    /// At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub outputs: Vec<Output>,

    /// Existing docker configs, for example for Docker Hub or GHCR, whose entries are merged into `secret` and into the outputs
    /// that are docker configs. Use it for consumers that accept only one Secret. If a host occurs more than once, the hosts of
    /// `registries` take precedence, then the earlier entry. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub include: Vec<Include>,

    /// Adds the Secret to `imagePullSecrets` of new pods or of ServiceAccounts, so that you do not have to edit them. Default:
    /// nothing is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_to: Option<AttachTo>,

    /// When tokens are refreshed.
    #[serde(default)]
    pub refresh: Refresh,

    /// Pauses this EcrCredential while true: no token is requested, and no Secret is written or deleted. Existing Secrets stay, but
    /// their tokens expire within 12 hours.
    #[serde(default)]
    pub suspend: bool,
}

/// One registry to pull from: exactly one of `private` and `public`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[schemars(transform = without_defaults)]
#[x_kube(validation = Rule::new("has(self.private) != has(self.public)").message("each entry needs exactly one of private and public, e.g. {private: {region: eu-west-1}} or {public: {}}"))]
pub struct Registry {
    /// A private Amazon ECR registry. `private: {}` is the registry of the operator's own account and region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<PrivateRegistry>,

    /// Amazon ECR Public. Its tokens are always requested in us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<PublicRegistry>,

    /// The AWS identity that requests the token of this entry. Default: `spec.auth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

/// Private ECR registries of one region.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.requestRegistryIds) || !self.requestRegistryIds || (has(self.accountIds) && self.accountIds.size() > 0)").message("requestRegistryIds needs accountIds: name the accounts whose ids are sent"))]
pub struct PrivateRegistry {
    /// The AWS region of the registries, e.g. `eu-west-1`. Default: the operator's own region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]{2,8}(-[a-z]{2,16})+-[0-9]{1,2}$')").message("region must be an AWS region code such as eu-west-1 or us-gov-west-1, not a zone"))]
    pub region: Option<String>,

    /// The ids of the AWS accounts whose registries are pulled from, 12 digits each. Default: the account of the identity that
    /// requests the token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), schema_with = "account_ids")]
    pub account_ids: Vec<String>,

    /// The host names that the Secret has for each account: `Standard` (`ID.dkr.ecr.REGION.amazonaws.com`), `Fips`, `DualStack`
    /// (`ID.dkr-ecr.REGION.on.aws`), `DualStackFips`. Images must be pulled from one of these hosts. Default: `Standard`.
    #[serde(default = "standard_only")]
    #[schemars(schema_with = "host_variants")]
    pub host_variants: Vec<HostVariant>,

    /// The endpoint of the ECR API that issues the token: `Standard` (`api.ecr.REGION.amazonaws.com`), `Fips`, `DualStack`
    /// (`ecr.REGION.api.aws`), `DualStackFips`. Default: `Standard`.
    #[serde(default)]
    pub api_endpoint: HostVariant,

    /// Further host names that serve the same registries, such as those of a VPC endpoint, without a scheme.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "extra_hosts")]
    pub extra_hosts: Vec<String>,

    /// Sends `accountIds` as the deprecated `registryIds` of the ECR API, 10 in a call, and uses each token for its own account
    /// only. Rarely needed: one token is valid for every registry in the region that the identity has access to.
    #[serde(default)]
    pub request_registry_ids: bool,
}

/// Amazon ECR Public. It usually needs no settings: `public: {}`.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicRegistry {
    /// The host names that the Secret has: `Standard` (`public.ecr.aws`), `DualStack` (`ecr-public.aws.com`). Default: `Standard`.
    #[serde(default = "standard_only", skip_serializing_if = "is_standard_only")]
    #[schemars(schema_with = "public_host_variants")]
    pub host_variants: Vec<HostVariant>,
}

impl Default for PublicRegistry {
    fn default() -> Self {
        Self { host_variants: standard_only() }
    }
}

/// A family of host names of ECR registries or of the ECR API.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostVariant {
    /// A plain host: `ID.dkr.ecr.REGION.amazonaws.com`.
    #[default]
    Standard,
    /// A FIPS 140 host: `ID.dkr.ecr-fips.REGION.amazonaws.com`.
    Fips,
    /// A host with IPv4 and IPv6: `ID.dkr-ecr.REGION.on.aws`.
    DualStack,
    /// A FIPS 140 host with IPv4 and IPv6: `ID.dkr-ecr-fips.REGION.on.aws`.
    DualStackFips,
}

/// The Secret that is written into each target namespace, and how it treats existing Secrets.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// The name of the Secret in each target namespace, which pods reference in `imagePullSecrets`. The operator must be allowed to
    /// write it (chart value `secretNames`). If you change it, the Secrets of the old name stay until their tokens expire.
    #[serde(default = "default_secret_name")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("secret.name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,

    /// Labels added to each Secret. Keys under `pullsecrets.dev/` and `app.kubernetes.io/managed-by` are the operator's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,

    /// Annotations added to each Secret. Keys under `pullsecrets.dev/` are the operator's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,

    /// How to treat an existing Secret of that name that the operator does not own: `Fail` leaves it unchanged and reports the
    /// namespace as failed; `Adopt` takes ownership and overwrites it.
    #[serde(default)]
    pub conflict_policy: ConflictPolicy,

    /// What happens to the Secrets when this EcrCredential is deleted: `Delete` lets the garbage collector delete them;
    /// `Retain` keeps them, but their tokens expire within 12 hours. Wait until it is Ready before you delete it: until then, Secrets
    /// may have owner references. If a namespace is no longer selected, its Secret is deleted in both cases.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// The fields of each entry of the docker config. Default: `Auth`.
    #[serde(default, skip_serializing_if = "LoginFields::is_default")]
    #[schemars(transform = without_defaults)]
    pub login_fields: LoginFields,
}

impl Default for SecretTemplate {
    fn default() -> Self {
        Self {
            name: default_secret_name(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            conflict_policy: ConflictPolicy::default(),
            deletion_policy: DeletionPolicy::default(),
            login_fields: LoginFields::default(),
        }
    }
}

/// How to treat an existing Secret of that name that the operator does not own.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// Leave it unchanged and report the namespace as failed.
    #[default]
    Fail,
    /// Take ownership and overwrite it.
    Adopt,
}

/// What happens to the Secrets when the `EcrCredential` is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// The garbage collector deletes them.
    #[default]
    Delete,
    /// They stay until someone deletes them.
    Retain,
}

/// Where the Secret is added to `imagePullSecrets`.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachTo {
    /// Which new pods in the target namespaces get the Secret in their `imagePullSecrets`: `Never`, or `MatchingImages` for pods
    /// with an image from one of the hosts of this EcrCredential. Pods with the label `pullsecrets.dev/attach: "false"` are not
    /// changed. This needs the MutatingAdmissionPolicy of the chart (value `attach.pods`, Kubernetes 1.36 or later).
    #[serde(default)]
    pub pods: AttachPods,

    /// Names or globs of ServiceAccounts in each target namespace that get the Secret in their `imagePullSecrets`. Use it on
    /// clusters older than Kubernetes 1.36, and for tools that read the ServiceAccount. Pods with `imagePullSecrets` of their own
    /// do not inherit it. The operator must be allowed to patch the ServiceAccounts (chart value `attach.serviceAccounts`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "service_account_globs")]
    pub service_accounts: Vec<String>,
}

/// Which new pods get the Secret added to their `imagePullSecrets`.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachPods {
    /// No pod is changed.
    #[default]
    Never,
    /// New pods with an image from one of the hosts of this EcrCredential get the Secret.
    MatchingImages,
}

/// The namespaces that get the Secret. To select all of them, write `names: ["*"]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(has(self.names) && self.names.size() > 0) || has(self.selector)").message("namespaces needs names, a selector, or both; to select all namespaces, write names: [\"*\"]"))]
pub struct NamespaceSelection {
    /// Namespace names or globs: `*` stands for any characters, `?` for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "globs")]
    pub names: Vec<String>,

    /// Selects namespaces by their labels. It must not be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,

    /// Names or globs of namespaces that never get the Secret, even if `names` or `selector` matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "globs")]
    pub exclude: Vec<String>,
}

/// A label selector over namespaces: every label and every expression must match.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)").message("the selector is empty: give matchLabels or matchExpressions; to select all namespaces, write names: [\"*\"]"))]
pub struct NamespaceSelector {
    /// Labels that a namespace must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels")]
    pub match_labels: BTreeMap<String, String>,

    /// Requirements on labels, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement on a label.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? (has(self.values) && self.values.size() > 0) : (!has(self.values) || self.values.size() == 0)").message("In and NotIn need values; Exists and DoesNotExist take none"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("self.indexOf('/') <= 253 && self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')").message("key must be a label key such as team or example.com/team"))]
    pub key: String,
    /// How the label's value is compared: `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: SelectorOperator,
    /// The values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "label_values")]
    pub values: Vec<String>,
}

/// The comparison of a `LabelRequirement`, as in a Kubernetes label selector.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectorOperator {
    /// The label's value is one of `values`.
    In,
    /// The label is absent or its value is none of `values`.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// When tokens are refreshed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// The age at which a token is refreshed, as a percentage of its lifetime: 10 to 70. Up to 5 % of jitter is derived from the
    /// uid of the EcrCredential. A later refresh would leave too little time to react before the token expires.
    #[serde(default = "default_at_percent")]
    #[schemars(schema_with = "percent")]
    pub at_percent: u8,

    /// The age at which a token is refreshed at the latest, even if it is valid for longer: a duration from `1m` to `12h`, such as
    /// `6h` or `90m`.
    #[serde(default = "default_max_age")]
    #[schemars(length(max = 24))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}(h|m|s)){1,3}$') && duration(self) >= duration('1m') && duration(self) <= duration('12h')").message("maxAge must be a duration from 1m to 12h, such as 6h or 1h30m"))]
    pub max_age: String,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { at_percent: default_at_percent(), max_age: default_max_age() }
    }
}

fn standard_only() -> Vec<HostVariant> {
    vec![HostVariant::Standard]
}

fn is_standard_only(variants: &[HostVariant]) -> bool {
    variants == [HostVariant::Standard]
}

fn default_secret_name() -> String {
    DEFAULT_SECRET_NAME.to_owned()
}

// Half of the lifetime, as Amazon's own credential helper does (amazon-ecr-credential-helper, ecr-login/cache/credentials.go).
const fn default_at_percent() -> u8 {
    50
}

fn default_max_age() -> String {
    "6h".to_owned()
}
