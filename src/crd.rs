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
    serde_yaml_ng::to_string(&EcrCredential::crd()).map_err(|error| RunError::Crd(error.to_string()))
}

/// Prints it to standard output.
///
/// # Errors
/// Standard output is closed.
pub fn print() -> Result<(), RunError> {
    let text = yaml()?;
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| RunError::Crd(error.to_string()))
}
