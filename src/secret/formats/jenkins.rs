//! `Jenkins`: a credential of the kubernetes-credentials-provider plugin, whose id is the Secret's name.

use super::{Content, Form, OPAQUE, PASSWORD, USERNAME, no_annotations, plain};

pub(super) const FORM: Form = Form {
    type_: OPAQUE,
    labels: &[("jenkins.io/credentials-type", "usernamePassword")],
    annotations: no_annotations,
    keys: &[USERNAME, PASSWORD],
    content: Content::Login(plain),
};
