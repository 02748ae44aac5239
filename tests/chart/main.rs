//! The chart with the real helm on a real API server, and all that is made from it or belongs to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with the first thing that goes wrong"
)]

mod access;
mod alerts;
mod attach;
mod combinations;
mod components;
mod current;
mod dashboard;
mod deploy;
mod edges;
mod examples;
mod gitops;
mod helm;
mod identities;
mod image;
mod lifecycle;
mod lint;
mod modes;
mod mutation;
mod operator;
mod outputs;
mod policy;
mod rights;
mod stolen_token;
mod values;

/// The CRD as it is shipped.
const CRD: &str = include_str!("../../crds/ecrcredentials.pullsecrets.dev.yaml");
