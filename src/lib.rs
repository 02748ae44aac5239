//! A Kubernetes operator that keeps Amazon ECR pull Secrets fresh.
//!
//! Data flows one way: [`api`] (the custom resource) → [`plan`] (the validated spec) → [`token`] (authorization tokens) → [`secret`]
//! (the desired Secrets) → [`apply`] (the only writer) → [`outcome`] (status, Events, requeue time). [`controller`] runs these for each
//! `EcrCredential`, [`process`] has the lease, logs and metrics, [`operator`] wires them up, and [`run`] starts it. `ARCHITECTURE.md`
//! says which module may use which; `tests/rooms.rs` checks it.

pub mod answers;
pub mod api;
pub mod apply;
pub mod attach;
pub mod check;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod controller;
pub mod crd;
pub mod encoding;
pub mod lenient;
mod named;
pub mod operator;
pub mod outcome;
pub mod plan;
pub mod process;
pub mod report;
pub mod run;
pub mod secret;
pub mod token;
