//! A Kubernetes operator that keeps Amazon ECR pull Secrets fresh.
//!
//! Data flows one way: [`api`] (what users write) → [`plan`] (what should be true) → [`token`] (where authorization tokens come from)
//! → [`secret`] (what each Secret should look like) → [`apply`] (the only writer) → [`outcome`] (status, Events, when to
//! come back). [`controller`] runs these for each `EcrCredential`, [`process`] is the machine room, [`run`] wires them up.
//! `ARCHITECTURE.md` says which room may use which; `tests/rooms.rs` checks it.

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
pub mod outcome;
pub mod plan;
pub mod process;
pub mod report;
pub mod run;
pub mod secret;
pub mod token;
