//! The machine room: lease, HTTP, logs, panics and metrics. It knows nothing of ECR.

pub mod fence;
pub mod http;
pub mod lease;
pub mod panics;
pub mod retries;
mod stored_lease;
pub mod telemetry;
