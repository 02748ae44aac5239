//! `DockerConfigFile`: a docker config that is mounted as it is, such as by Skaffold and the Cluster API Helm add-on.

use super::{Content, Form, OPAQUE, no_annotations};

pub(super) const FORM: Form = Form {
    type_: OPAQUE,
    labels: &[],
    annotations: no_annotations,
    keys: &["config.json"],
    content: Content::DockerConfig,
};
