//! `TektonBasicAuth`: a login that Tekton finds by its annotation among the Secrets of a ServiceAccount.

use super::{BASIC_AUTH, Content, Form, PASSWORD, USERNAME, plain};

pub(super) const FORM: Form = Form {
    type_: BASIC_AUTH,
    labels: &[],
    annotations: |host| vec![("tekton.dev/docker-0", format!("https://{host}"))],
    keys: &[USERNAME, PASSWORD],
    content: Content::Login(plain),
};
