//! `BasicAuth`: what Rancher, Fleet, Crossplane provider-helm and Flux's `HelmRepository` read.

use super::{BASIC_AUTH, Content, Form, PASSWORD, USERNAME, no_annotations, plain};

pub(super) const FORM: Form = Form {
    type_: BASIC_AUTH,
    labels: &[],
    annotations: no_annotations,
    keys: &[USERNAME, PASSWORD],
    content: Content::Login(plain),
};
