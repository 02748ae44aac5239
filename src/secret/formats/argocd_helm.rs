//! `ArgoCDHelm`: a repository credential template of Argo CD for helm charts.
//!
//! Argo CD matches it by a prefix of the repository's URL, which has no scheme for charts in OCI registries.

use super::{Content, Form, Login, OPAQUE, PASSWORD, Text, USERNAME, argocd_oci, no_annotations, plain, text};

pub(super) const FORM: Form = Form {
    type_: OPAQUE,
    labels: argocd_oci::LABELS,
    annotations: no_annotations,
    keys: &["url", "type", "enableOCI", USERNAME, PASSWORD],
    content: Content::Login(texts),
};

fn texts(login: &Login<'_>) -> Vec<(&'static str, Text)> {
    let own = [("url", text(login.host.as_str())), ("type", text("helm")), ("enableOCI", text("true"))];
    own.into_iter().chain(plain(login)).collect()
}
