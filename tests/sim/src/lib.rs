//! The operator's own controller in one process, with an API server stand-in, a scripted AWS and a virtual clock.

pub mod api_server;
pub mod aws;
pub mod blow;
pub mod cases;
pub mod clock;
pub mod crash;
pub mod judge;
pub mod month;
pub mod operator;
pub mod parallel;
pub mod sim;
pub mod snapshot;
pub mod tally;
pub mod workloads;
