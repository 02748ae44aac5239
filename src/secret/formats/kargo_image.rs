//! `KargoImage`: credentials of Kargo for every image of one host, by a regular expression of Go.

use super::{Content, Form, Login, OPAQUE, PASSWORD, Text, USERNAME, no_annotations, plain, text};

pub(super) const FORM: Form = Form {
    type_: OPAQUE,
    labels: &[("kargo.akuity.io/cred-type", "image")],
    annotations: no_annotations,
    keys: &["repoURL", "repoURLIsRegex", USERNAME, PASSWORD],
    content: Content::Login(texts),
};

fn texts(login: &Login<'_>) -> Vec<(&'static str, Text)> {
    // Of the characters that a host may have, the dot alone means something else in a regular expression.
    let host = login.host.as_str().replace('.', r"\.");
    let own = [("repoURL", text(format!("^{host}/"))), ("repoURLIsRegex", text("true"))];
    own.into_iter().chain(plain(login)).collect()
}
