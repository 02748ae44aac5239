//! `ArgoCDOCI`: a repository credential template of Argo CD for native OCI sources.
//!
//! Argo CD matches it by a prefix of the repository's URL: the slash at the end keeps it from longer host names.

use super::{Content, Form, Login, OPAQUE, PASSWORD, Text, USERNAME, no_annotations, plain, text};

/// The label by which Argo CD finds a template.
pub(super) const LABELS: &[(&str, &str)] = &[("argocd.argoproj.io/secret-type", "repo-creds")];

pub(super) const FORM: Form = Form {
    type_: OPAQUE,
    labels: LABELS,
    annotations: no_annotations,
    keys: &["url", "type", USERNAME, PASSWORD],
    content: Content::Login(texts),
};

fn texts(login: &Login<'_>) -> Vec<(&'static str, Text)> {
    let own = [("url", text(format!("oci://{}/", login.host))), ("type", text("oci"))];
    own.into_iter().chain(plain(login)).collect()
}
