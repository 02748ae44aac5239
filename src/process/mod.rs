//! The process: lease, fence, HTTP, logs, panics and metrics. Nothing here is specific to ECR.

pub mod fence;
pub mod http;
pub mod lease;
pub mod panics;
pub mod retries;
mod stored_lease;
pub mod telemetry;
