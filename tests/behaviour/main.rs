//! What the operator does, seen on a real API server: each test runs the real binary and is judged by the recorder.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with the first thing that goes wrong"
)]

mod agents;
mod attach;
mod away;
mod check;
mod crashes;
mod create;
mod defaults;
mod demand;
mod drift;
mod faults;
mod hostile;
mod identities;
mod identity;
mod includes;
mod installations;
mod leader;
mod lifecycle;
mod look;
mod modes;
mod moto;
mod neighbours;
mod outputs;
mod ownership;
mod places;
mod process;

mod refresh;
mod refusals;
mod registries;
mod restart;
mod rights;
mod secrecy;
mod startup;
mod throttled;
mod told;
mod upgrade;
mod weather;
mod webhooks;

use testbed::bed::{Bed, Launch, Operator};

/// The CRD as it is shipped.
const CRD: &str = include_str!("../../crds/ecrcredentials.pullsecrets.dev.yaml");

/// The host of the operator's own registry.
const OWN: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

const PUBLIC: &str = "public.ecr.aws";

async fn bed(test: &str) -> Bed {
    Bed::new(test, CRD).await.unwrap()
}

fn launch() -> Launch {
    Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator"))
}

async fn operator(bed: &Bed) -> Operator {
    bed.operator(launch()).await.unwrap()
}
