//! The AWS stand-in, tried with the real SDKs: what AWS grants it grants, and what AWS refuses it refuses.

mod chaining;
mod clients;
mod default_chain;
mod faults;
mod good_path;
mod limits;
mod moto;
mod raw;
mod refusals;
mod session_tags;
mod signatures;
mod through_a_proxy;
mod users;
