//! What can go wrong with a reconciliation as a whole; what goes wrong with a token or a namespace is in the outcome.

use std::time::Duration;

use crate::answers::{message, shorten};
use crate::secret::DesiredError;

/// A reconciliation that could not be brought to its end; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status could not be written.
    #[error("the status could not be written: {}", brief(.source))]
    Status {
        /// Why.
        source: kube::Error,
        /// How long to wait before the next try.
        wait: Duration,
    },
    /// The object lacks uid or name, which no stored object does.
    #[error("the object has no uid")]
    NoUid,
    /// It panicked, or the process is ending.
    #[error("the reconciliation was interrupted")]
    Died,
}

impl Error {
    /// Every word that [`Self::category`] gives.
    pub const CATEGORIES: [&str; 3] = ["status", "no_uid", "died"];

    /// A bounded word for metric labels.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::NoUid => "no_uid",
            Self::Died => "died",
        }
    }

    /// How long to wait before the next try, where the error says so.
    pub const fn wait(&self) -> Option<Duration> {
        match self {
            Self::Status { wait, .. } => Some(*wait),
            _ => None,
        }
    }
}

impl From<DesiredError> for crate::plan::SpecError {
    fn from(error: DesiredError) -> Self {
        Self { reason: crate::api::status::Reason::InvalidSpec, message: error.to_string() }
    }
}

/// The API server's message, cut if it is long, or the error itself.
fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => shorten(&message(status)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_long_a_refusal_of_the_status_is_the_log_line_is_short() {
        let status = kube::core::Status::failure(&"no ".repeat(10_000), "Forbidden").with_code(403);
        let error = Error::Status { source: kube::Error::Api(status.boxed()), wait: Duration::ZERO };
        let text = error.to_string();
        assert!(text.contains("no no") && text.len() < 400, "{} bytes", text.len());
    }
}
