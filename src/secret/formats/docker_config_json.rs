//! `DockerConfigJson`: what kubelet reads as an image pull secret, and with it most other consumers.

use super::super::docker_config::DATA_KEY;
use super::{Content, Form, no_annotations};

pub(super) const FORM: Form = Form {
    type_: "kubernetes.io/dockerconfigjson",
    labels: &[],
    annotations: no_annotations,
    keys: &[DATA_KEY],
    content: Content::DockerConfig,
};
