//! The judges of simulated and of real runs, written apart from the operator, to disagree with it when it is wrong.
//!
//! A run is told as [`Evidence`]: every version of every object, every request, what AWS issued and when it was called. [`judge`] says
//! what was wrong in it. Whoever records runs has a thin adapter that makes the evidence: `tests/testbed/src/recorder` of real ones,
//! `tests/sim/src/judge.rs` of simulated ones.

mod authors;
pub mod evidence;
mod excuse;
pub mod fixture;
pub mod history;
pub mod hosts;
mod judges;
pub mod marks;
mod request;
mod scope;
pub mod selection;
mod violation;

pub use evidence::Evidence;
pub use excuse::Excuse;
pub use judges::{is_collected, judge, least_life, logins};
pub use request::{Request, Stored, Target};
pub use scope::{Scope, Settings};
pub use violation::{Invariant, Violation};
