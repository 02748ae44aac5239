//! The documentation: its links lead somewhere, its snippets are accepted, and its reference is that of the code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with the first thing that goes wrong"
)]

mod api;
mod cli;
mod commands;
mod current;
mod events;
#[allow(dead_code, reason = "the tests of the chart use all of it")]
#[path = "../chart/helm.rs"]
mod helm;
mod invariants;
mod links;
mod metrics;
mod migration;
mod pages;
mod snippets;
mod templates;
mod workflows;
