//! The targets under libFuzzer: `FUZZ_TARGET` names the one, the arguments are libFuzzer's own.
#![no_main]

use std::sync::LazyLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known = || fuzz::TARGETS.map(|target| target.name).join(", ");
    fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}, not one of {}", known()))
});

fuzz_target!(|bytes: &[u8]| (CHOSEN.run)(bytes));
