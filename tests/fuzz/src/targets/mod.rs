//! One file for each target.

pub mod answer;
pub mod config;
pub mod found;
pub mod grant;
pub mod lists;
pub mod names;
pub mod plan;
pub mod refresh;
pub mod selection;
pub mod status;
pub mod token;
pub mod verdict;
pub mod world;
