//! Secrets in other forms than a pull secret, and docker configs of others that are merged into ours.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NamespaceSelection;
use super::schema::{annotation_map, host, label_map, without_defaults};

/// A Secret that holds the same authorization tokens in the form that a consumer reads.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = without_defaults)]
#[x_kube(validation = Rule::new("(self.format in ['DockerConfigJson', 'DockerConfigFile']) != has(self.host)").message("host is required for the formats of one host, and DockerConfigJson and DockerConfigFile take none: they hold every host"))]
pub struct Output {
    /// The Secret's name in each namespace. It must differ from `secret.name` and from the names of the other outputs. The
    /// operator must be allowed to write it in this format (chart value `outputs`).
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,

    /// The form of the Secret.
    pub format: OutputFormat,

    /// The registry host whose token the Secret holds: one of those that `registries` write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "host")]
    pub host: Option<String>,

    /// The namespaces that get the Secret. Default: `spec.namespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespaceSelection>,

    /// Labels added to each Secret. Those that the format needs, and the operator's own, cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,

    /// Annotations added to each Secret. Those that the format needs, and the operator's own, cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,

    /// Which fields each entry of a docker config has. Default: `Auth`.
    #[serde(default, skip_serializing_if = "LoginFields::is_default")]
    pub login_fields: LoginFields,
}

/// The form of a Secret.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutputFormat {
    /// As the pull secret: type `kubernetes.io/dockerconfigjson`, key `.dockerconfigjson`.
    #[default]
    DockerConfigJson,
    /// A docker config as a file: type `Opaque`, key `config.json`.
    DockerConfigFile,
    /// Type `kubernetes.io/basic-auth`, keys `username` and `password`.
    BasicAuth,
    /// A repository credential template of Argo CD for helm charts.
    ArgoCDHelm,
    /// A repository credential template of Argo CD for native OCI sources.
    ArgoCDOCI,
    /// A username and password of the Jenkins kubernetes-credentials-provider.
    Jenkins,
    /// Credentials of Kargo for the images of one host.
    KargoImage,
    /// Type `kubernetes.io/basic-auth` with the annotation by which Tekton finds it.
    TektonBasicAuth,
}

impl OutputFormat {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::DockerConfigJson,
        Self::DockerConfigFile,
        Self::BasicAuth,
        Self::ArgoCDHelm,
        Self::ArgoCDOCI,
        Self::Jenkins,
        Self::KargoImage,
        Self::TektonBasicAuth,
    ];

    /// The format as it stands in specs, flags, annotations and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DockerConfigJson => "DockerConfigJson",
            Self::DockerConfigFile => "DockerConfigFile",
            Self::BasicAuth => "BasicAuth",
            Self::ArgoCDHelm => "ArgoCDHelm",
            Self::ArgoCDOCI => "ArgoCDOCI",
            Self::Jenkins => "Jenkins",
            Self::KargoImage => "KargoImage",
            Self::TektonBasicAuth => "TektonBasicAuth",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }
}

/// Which fields each entry of a docker config has.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginFields {
    /// `auth` alone, which kubelet and most other consumers read.
    #[default]
    Auth,
    /// `username` and `password` beside `auth`, for consumers that read only these.
    AuthUsernamePassword,
}

impl LoginFields {
    /// Whether it is the default, which need not be said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A docker config of others whose entries are merged into ours.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Include {
    /// A Secret of type `kubernetes.io/dockerconfigjson`. The operator must be allowed to read it (chart value
    /// `include.secrets`).
    pub secret_ref: IncludedSecret,
}

/// The name of a Secret in one namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncludedSecret {
    /// The Secret's namespace.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace must be the name of a namespace: lower case letters, digits and inner '-'"))]
    pub namespace: String,
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,
}
