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

/// Which ECR registries to log in to, and in which namespaces the pull Secret is kept fresh.
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
    doc = "Keeps a kubernetes.io/dockerconfigjson Secret with Amazon ECR passwords fresh in each selected namespace.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must have at most 63 characters: it becomes a label value on each Secret"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether every selected namespace holds a valid password for every registry."),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why the EcrCredential is ready or not."),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.namespaces.summary", description = "Namespaces whose Secret is as desired, of those selected."),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt", description = "When the earliest password in the Secret expires."),
    printcolumn(name = "Refresh", type_ = "string", json_path = ".status.nextRefreshAt", description = "When the passwords are next replaced."),
    printcolumn(name = "Secret", type_ = "string", json_path = ".spec.secret.name", priority = 1, description = "The name of the Secret in each target namespace."),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1, description = "Why the EcrCredential is ready or not, and what to do."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.outputs) || self.outputs.all(o, o.name != (has(self.secret) && has(self.secret.name) ? self.secret.name : 'ecr-pull-secret'))").message("the name of an output must differ from secret.name"))]
pub struct EcrCredentialSpec {
    /// The registries to log in to, 1 to 32; all of them go into the one Secret. At most one entry may be `public`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.filter(r, has(r.public)).size() <= 1").message("only one entry may be public: public.ecr.aws needs one password"))]
    pub registries: Vec<Registry>,

    /// Whose AWS identity fetches the passwords. Default: the operator's own (IRSA, EKS Pod Identity, or what else the AWS
    /// SDK finds). An entry of `registries` may have its own `auth` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,

    /// The Secret to write into each target namespace.
    #[serde(default)]
    pub secret: SecretTemplate,

    /// The namespaces that get the Secret: those that `names` or `selector` matches and `exclude` does not.
    pub namespaces: NamespaceSelection,

    /// The same authorization tokens in other forms, for Argo CD, Flux, helm, builders and others: at most 16 Secrets besides
    /// `secret`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub outputs: Vec<Output>,

    /// Docker configs of others, such as those of Docker Hub or GHCR, whose entries are merged into `secret` and into the outputs
    /// that are docker configs: for consumers that take exactly one Secret. The hosts of `registries` win, then the earlier entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub include: Vec<Include>,

    /// Attaches the Secret to new pods, so that neither pods nor ServiceAccounts have to be edited. Default: nothing is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_to: Option<AttachTo>,

    /// When passwords are replaced.
    #[serde(default)]
    pub refresh: Refresh,

    /// Stops everything for this EcrCredential while true: no password is fetched, no Secret written or deleted.
    /// Secrets that exist stay until their passwords expire.
    #[serde(default)]
    pub suspend: bool,
}

/// One registry to log in to: exactly one of `private` and `public`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[schemars(transform = without_defaults)]
#[x_kube(validation = Rule::new("has(self.private) != has(self.public)").message("each entry needs exactly one of private and public, e.g. {private: {region: eu-west-1}} or {public: {}}"))]
pub struct Registry {
    /// A private Amazon ECR registry. `private: {}` is the registry of the operator's own account and region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<PrivateRegistry>,

    /// Amazon ECR Public, always through us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<PublicRegistry>,

    /// Whose AWS identity fetches the password of this entry. Default: that of `spec.auth`.
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

    /// The accounts whose registries are pulled from, as 12 digits each. Default: the caller's own account, as ECR names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), schema_with = "account_ids")]
    pub account_ids: Vec<String>,

    /// Which host names are written for each account: `Standard` (`ID.dkr.ecr.REGION.amazonaws.com`), `Fips`, `DualStack`
    /// (`ID.dkr-ecr.REGION.on.aws`), `DualStackFips`. Image names must use one of the hosts written. Default: `Standard`.
    #[serde(default = "standard_only")]
    #[schemars(schema_with = "host_variants")]
    pub host_variants: Vec<HostVariant>,

    /// Which host of the ECR API is asked for the password: `Standard` (`api.ecr.REGION.amazonaws.com`), `Fips`, `DualStack`
    /// (`ecr.REGION.api.aws`), `DualStackFips`. Default: `Standard`.
    #[serde(default)]
    pub api_endpoint: HostVariant,

    /// Further host names that serve the same registries, e.g. of a VPC endpoint; written as given, without a scheme.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "extra_hosts")]
    pub extra_hosts: Vec<String>,

    /// Sends `accountIds` as the API's deprecated `registryIds`, 10 in a call, and uses each password with its own host only.
    /// Rarely needed: one password already covers every registry that the identity may access in the region.
    #[serde(default)]
    pub request_registry_ids: bool,
}

/// Amazon ECR Public. Mostly it needs no settings: `public: {}`.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicRegistry {
    /// Which host names are written: `Standard` (`public.ecr.aws`), `DualStack` (`ecr-public.aws.com`). Default: `Standard`.
    #[serde(default = "standard_only", skip_serializing_if = "is_standard_only")]
    #[schemars(schema_with = "public_host_variants")]
    pub host_variants: Vec<HostVariant>,
}

impl Default for PublicRegistry {
    fn default() -> Self {
        Self { host_variants: standard_only() }
    }
}

/// A family of host names of ECR: of its registries, or of its API.
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

/// What the Secret looks like, and what happens to Secrets around it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// The Secret's name in each namespace; what pods name in `imagePullSecrets`. The operator must be allowed to write it
    /// (chart value `secretNames`). If you change it, the Secrets of the old name stay until their tokens expire.
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

    /// What happens to a Secret of that name that is not the operator's: `Fail` leaves it alone and reports the namespace;
    /// `Adopt` takes it over, its content included.
    #[serde(default)]
    pub conflict_policy: ConflictPolicy,

    /// What happens to the Secrets when this EcrCredential is deleted: `Delete` lets the garbage collector remove them;
    /// `Retain` keeps them, with passwords that expire within 12 hours. A namespace that is no longer selected loses its
    /// Secret under either.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Which fields each entry of the docker config has. Default: `Auth`.
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

/// What happens to a Secret of the wanted name that is not ours.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// Leave it alone and report the namespace as failed.
    #[default]
    Fail,
    /// Take it over, its content included.
    Adopt,
}

/// What happens to the Secrets when the `EcrCredential` is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// The garbage collector removes them.
    #[default]
    Delete,
    /// They stay until someone deletes them.
    Retain,
}

/// What names the Secret without being edited by its owner.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachTo {
    /// Which new pods of the target namespaces get the Secret added to their `imagePullSecrets`: `Never`, or `MatchingImages` for
    /// pods with an image on one of this EcrCredential's hosts. Pods labelled `pullsecrets.dev/attach: "false"` are left alone.
    /// The chart installs the MutatingAdmissionPolicy that does it (chart value `attach.pods`, Kubernetes 1.36 or later).
    #[serde(default)]
    pub pods: AttachPods,

    /// Names or globs of ServiceAccounts in each target namespace whose `imagePullSecrets` get the Secret: for clusters older than
    /// Kubernetes 1.36, and for what reads the ServiceAccount. Pods that name pull secrets themselves do not inherit it. The operator
    /// must be allowed to patch them (chart value `attach.serviceAccounts`).
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
    /// Each new pod with an image on one of this EcrCredential's hosts.
    MatchingImages,
}

/// Which namespaces get the Secret. All of them is said aloud: `names: ["*"]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(has(self.names) && self.names.size() > 0) || has(self.selector)").message("namespaces needs names, a selector, or both; all namespaces is names: [\"*\"]"))]
pub struct NamespaceSelection {
    /// Namespace names or globs: `*` stands for any characters, `?` for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "globs")]
    pub names: Vec<String>,

    /// Selects namespaces by their labels. It must not be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,

    /// Namespace names or globs that never get the Secret, whatever `names` and `selector` say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "globs")]
    pub exclude: Vec<String>,
}

/// A label selector over namespaces: every label and every expression must match.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)").message("the selector is empty: give matchLabels or matchExpressions; all namespaces is names: [\"*\"]"))]
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

/// When passwords are replaced.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// At which part of a password's life it is replaced, 10 to 70 percent; up to 5 % of jitter is derived from the uid.
    /// Later than that would leave too little time for AWS to come back, and an alert that a password is about to expire no meaning.
    #[serde(default = "default_at_percent")]
    #[schemars(schema_with = "percent")]
    pub at_percent: u8,

    /// The longest a password is kept, whatever its expiry says: a duration such as `6h` or `90m`, from `1m` to `12h`.
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

// Half of the life, as Amazon's own credential helper does (amazon-ecr-credential-helper, ecr-login/cache/credentials.go).
const fn default_at_percent() -> u8 {
    50
}

fn default_max_age() -> String {
    "6h".to_owned()
}
