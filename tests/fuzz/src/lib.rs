//! Properties that must hold for every input; each target takes bytes and panics when one does not.

pub mod material;
pub mod targets;

/// A property, or several, over arbitrary bytes.
pub struct Target {
    /// Its name, which is also that of its folder in `corpus`.
    pub name: &'static str,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 13] = [
    Target { name: "token", run: targets::token::run },
    Target { name: "grant", run: targets::grant::run },
    Target { name: "answer", run: targets::answer::run },
    Target { name: "config", run: targets::config::run },
    Target { name: "found", run: targets::found::run },
    Target { name: "names", run: targets::names::run },
    Target { name: "selection", run: targets::selection::run },
    Target { name: "plan", run: targets::plan::run },
    Target { name: "refresh", run: targets::refresh::run },
    Target { name: "lists", run: targets::lists::run },
    Target { name: "world", run: targets::world::run },
    Target { name: "verdict", run: targets::verdict::run },
    Target { name: "status", run: targets::status::run },
];

/// A target by its name.
pub fn target(name: &str) -> Option<&'static Target> {
    const { &TARGETS }.iter().find(|target| target.name == name)
}
