//! What a long run comes to: each violation when it is found, and the table of the documentation.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::SignedDuration;

use crate::judge::{Invariant, Violation};
use crate::{cases, crash, month};

/// Where the table stands in the documentation.
const BEGIN: &str = "<!-- simulated: begin, written by `make chaos` -->";
const END: &str = "<!-- simulated: end -->";

/// One kind of fault.
#[derive(Default)]
pub struct Row {
    pub runs: usize,
    pub faults: usize,
    pub tries: BTreeSet<Invariant>,
    pub violations: usize,
}

/// See the file's first line.
#[derive(Default)]
pub struct Tally {
    rows: BTreeMap<&'static str, Row>,
    least_life: Option<SignedDuration>,
    found: BTreeSet<Invariant>,
}

impl Tally {
    fn add(&mut self, class: &'static str, faults: usize, tries: &[Invariant], what: &str, violations: &[Violation]) {
        let row = self.rows.entry(class).or_default();
        row.runs += 1;
        row.faults += faults;
        row.tries.extend(tries);
        row.violations += violations.len();
        self.found.extend(violations.iter().map(|violation| violation.invariant));
        // At once: the rest may take an hour.
        for violation in violations.iter().take(5) {
            println!("{what}: {violation}");
        }
    }

    pub fn plan(&mut self, verdict: &crash::Verdict) {
        const EVERYWHERE: [Invariant; 8] = [
            Invariant::I1Scope,
            Invariant::I2Foreign,
            Invariant::I3WellFormed,
            Invariant::I4Monotone,
            Invariant::I5FailStatic,
            Invariant::I7Quiet,
            Invariant::I8CrashEquivalence,
            Invariant::I14TrueStatus,
        ];
        let dies = verdict.plan.blows.iter().all(|(_, blow)| matches!(blow, crate::blow::Blow::Die(_)));
        let class = match (dies, verdict.plan.blows.len()) {
            (true, 1) => "a death around each mutating request of each workload",
            (true, _) => "two and three deaths",
            (false, 1) => "a fault at each mutating request of each workload",
            (false, _) => "two and three faults",
        };
        let what = format!("{} {:?}", verdict.name, verdict.plan);
        self.add(class, verdict.hits.max(verdict.deaths), &EVERYWHERE, &what, &verdict.violations);
    }

    pub fn case(&mut self, verdict: &cases::Verdict) {
        let what = format!("{} (seed {})", verdict.name, verdict.seed);
        self.add(verdict.class, verdict.faults, verdict.tries, &what, &verdict.violations);
    }

    pub fn month(&mut self, verdict: &month::Verdict) {
        let tries = [
            Invariant::I4Monotone,
            Invariant::I5FailStatic,
            Invariant::I6NoGap,
            Invariant::I10AwsBound,
            Invariant::I12SingleWriter,
            Invariant::I14TrueStatus,
        ];
        let what = format!("month {}", verdict.seed);
        self.add("thirty days of outages", verdict.faults, &tries, &what, &verdict.violations);
        self.least_life = self.least_life.into_iter().chain([verdict.least_life]).min();
    }

    pub fn violations(&self) -> usize {
        self.rows.values().map(|row| row.violations).sum()
    }

    pub fn total(&self) -> String {
        let sum = |number: fn(&Row) -> usize| self.rows.values().map(number).sum::<usize>();
        let least = self.least_life.map(|life| format!(", least remaining life {life:#}")).unwrap_or_default();
        format!(
            "{} runs, {} faults injected, {} violations{least}",
            sum(|row| row.runs),
            sum(|row| row.faults),
            self.violations()
        )
    }

    fn table(&self, seed: u64) -> String {
        let row = |(class, row): (&&str, &Row)| {
            let tries: Vec<String> = row.tries.iter().map(|invariant| invariant.number()).collect();
            format!("| {class} | {} | {} | {} | {} |", row.runs, row.faults, tries.join(" "), row.violations)
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        let least = self.least_life.map_or(String::new(), |life| {
            format!("\n\nThe least remaining life that a token of a selected namespace ever had (I6): {life:#}.")
        });
        format!(
            "{BEGIN}\nSeed {seed}.\n\n| what goes wrong | runs | faults | tries above all | violations |\n|---|---|---|---|---|\n{}{least}\n{END}",
            rows.join("\n")
        )
    }

    /// Writes the table between its markers.
    ///
    /// # Errors
    /// The file has no markers, or cannot be read or written.
    pub fn write(&self, path: &std::path::Path, seed: u64) -> std::io::Result<()> {
        let text = std::fs::read_to_string(path)?;
        let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
            return Err(std::io::Error::other("the file has no markers for the table"));
        };
        let table = self.table(seed);
        std::fs::write(path, format!("{}{table}{}", &text[..begin], &text[end + END.len()..]))
    }
}
