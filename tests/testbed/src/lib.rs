//! The real parts that the operator is tested against: a control plane, a strict AWS stand-in, and a recorder that judges every run.

pub mod aws;
pub mod bed;
pub mod control_plane;
pub mod crashes;
pub mod moto;
pub mod mutations;
pub mod node;
pub mod port;
pub mod proxy;
pub mod recorder;
pub mod tools;
pub mod webhook;
