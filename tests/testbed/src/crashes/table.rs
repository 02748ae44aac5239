//! What many plans came to, as the table of the documentation.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Trials, Verdict, Workload};

/// Where the table stands in the documentation.
const BEGIN: &str = "<!-- real API server: begin, written by `make chaos-real` -->";
const END: &str = "<!-- real API server: end -->";

/// The plans so far, by workload.
#[derive(Default)]
pub struct Table(BTreeMap<Workload, Row>);

#[derive(Clone, Copy, Default)]
struct Row {
    plans: usize,
    deaths: usize,
    wrong: usize,
}

impl Table {
    pub fn add(&mut self, verdict: &Verdict) {
        let row = self.0.entry(verdict.plan.workload).or_default();
        row.plans += 1;
        row.deaths += verdict.deaths;
        row.wrong += usize::from(!verdict.wrong.is_empty());
    }

    /// How many plans went wrong.
    pub fn wrong(&self) -> usize {
        self.0.values().map(|row| row.wrong).sum()
    }

    fn text(&self, trials: &Trials, seed: u64) -> String {
        let line = |what: &str, requests: String, row: Row| {
            format!("| {what} | {requests} | {} | {} | {} |", row.plans, row.deaths, row.wrong)
        };
        let rows =
            self.0.iter().map(|(workload, row)| line(workload.title(), trials.requests(*workload).to_string(), *row));
        let sum = self.0.values().fold(Row::default(), |sum, row| Row {
            plans: sum.plans + row.plans,
            deaths: sum.deaths + row.deaths,
            wrong: sum.wrong + row.wrong,
        });
        let lines: Vec<String> = rows.chain([line("all", String::new(), sum)]).collect();
        let head = "| what is done | mutating requests | plans | SIGKILLs | ended otherwise |\n|---|---|---|---|---|";
        format!("{BEGIN}\nSeed {seed}.\n\n{head}\n{}\n{END}", lines.join("\n"))
    }

    /// Writes the table between its markers.
    ///
    /// # Errors
    /// The file has no markers, or cannot be read or written.
    pub fn write(&self, path: &Path, trials: &Trials, seed: u64) -> Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let (before, rest) = text.split_once(BEGIN).context("the file has no markers for the table")?;
        let (_, after) = rest.split_once(END).context("the file has no end of the table")?;
        let table = self.text(trials, seed);
        std::fs::write(path, format!("{before}{table}{after}")).with_context(|| format!("write {}", path.display()))
    }
}
