//! What may be broken for a while, and why.

use jiff::Timestamp;

use crate::{Invariant, Violation};

/// A time in which an invariant may be broken about something.
#[derive(Clone, Debug)]
pub struct Excuse {
    pub invariant: Invariant,
    /// What a violation is about; `*` is everything.
    pub about: String,
    pub from: Timestamp,
    pub until: Timestamp,
    pub why: String,
}

impl Excuse {
    pub fn covers(&self, violation: &Violation) -> bool {
        self.invariant == violation.invariant
            && (self.about == "*" || self.about == violation.about)
            && (self.from..self.until).contains(&violation.at)
    }

    /// One line for the list of all that were granted.
    pub fn tell(&self, violations: &[Violation], now: Timestamp) -> String {
        let Excuse { invariant, about, from, until, why } = self;
        let seconds = (*until).min(now).duration_since(*from).as_secs();
        let covered = violations.iter().filter(|violation| self.covers(violation)).count();
        format!("{invariant:?} about {about} for {seconds} s, {covered} times: {why}")
    }
}
