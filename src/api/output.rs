//! Secrets in other forms than a pull secret, and docker configs of others that are merged into ours.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NamespaceSelection;
use super::schema::{annotation_map, host, label_map, without_defaults};
use crate::named::named;

/// A Secret with the same authorization tokens in the format that a consumer reads.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = without_defaults)]
#[x_kube(validation = Rule::new("(self.format in ['DockerConfigJson', 'DockerConfigFile']) != has(self.host)").message("host is required, except for DockerConfigJson and DockerConfigFile, which have every host and take none"))]
pub struct Output {
    /// The Secret's name in each namespace. It must differ from `secret.name` and from the names of the other outputs. The
    /// operator must be allowed to write it in this format (chart value `outputs`).
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,

    /// The format of the Secret.
    pub format: OutputFormat,

    /// The registry host whose token the Secret holds: one of the hosts of `registries`. Required, except for `DockerConfigJson` and
    /// `DockerConfigFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "host")]
    pub host: Option<String>,

    /// The target namespaces of this Secret. Default: `spec.namespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespaceSelection>,

    /// Labels added to each Secret. Labels of the format and of the operator cannot be overridden.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,

    /// Annotations added to each Secret. Annotations of the format and of the operator cannot be overridden.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32), schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,

    /// The fields of each entry of a docker config. Default: `Auth`.
    #[serde(default, skip_serializing_if = "LoginFields::is_default")]
    pub login_fields: LoginFields,
}

named! {
    /// The format of a Secret.
    #[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub enum OutputFormat {
        /// A docker config, as in the pull secret: type `kubernetes.io/dockerconfigjson`, key `.dockerconfigjson`.
        #[default]
        DockerConfigJson,
        /// A docker config as a file: type `Opaque`, key `config.json`.
        DockerConfigFile,
        /// Type `kubernetes.io/basic-auth`, keys `username` and `password`.
        BasicAuth,
        /// A credential template (`repo-creds`) of Argo CD for Helm charts.
        ArgoCDHelm,
        /// A credential template (`repo-creds`) of Argo CD for OCI sources.
        ArgoCDOCI,
        /// A credential of type "username with password" for the Jenkins plugin kubernetes-credentials-provider.
        Jenkins,
        /// A Kargo credential for the images of one host.
        KargoImage,
        /// Type `kubernetes.io/basic-auth` with the annotation that Tekton looks for.
        TektonBasicAuth,
    }
}

impl OutputFormat {
    /// Whether a Secret of this format holds the token of one host. The others hold all hosts.
    pub const fn is_of_one_host(self) -> bool {
        !matches!(self, Self::DockerConfigJson | Self::DockerConfigFile)
    }

    /// The format of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }
}

/// The fields of each entry of a docker config.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginFields {
    /// Only `auth`, which the kubelet and most other consumers read.
    #[default]
    Auth,
    /// `auth`, `username` and `password`, for consumers that read only the last two.
    AuthUsernamePassword,
}

impl LoginFields {
    /// Whether it is the default, which need not be said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An existing docker config whose entries are merged.
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
