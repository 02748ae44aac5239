//! The CustomResourceDefinition as YAML, from the types.

use std::io::Write;

use kube::CustomResourceExt;

use crate::api::EcrCredential;
use crate::run::RunError;

/// The definition as YAML.
///
/// # Errors
/// Only if serde fails.
pub fn yaml() -> Result<String, RunError> {
    // Keeps lines of text as lines, for small diffs.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 100_000 };
    serde_saphyr::to_string_with_options(&EcrCredential::crd(), options)
        .map_err(|error| RunError::Crd(error.to_string()))
}

/// Prints it to standard output.
///
/// # Errors
/// Standard output is closed.
pub fn print() -> Result<(), RunError> {
    let text = yaml()?;
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| RunError::Crd(error.to_string()))
}
