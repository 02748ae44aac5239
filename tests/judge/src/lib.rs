//! What the judges of simulated and of real runs share: the invariants, and what an `EcrCredential` asks for. It is written apart from
//! the operator, to disagree with it when it is wrong.

pub mod hosts;
pub mod selection;
mod violation;

pub use violation::{Invariant, Violation};
