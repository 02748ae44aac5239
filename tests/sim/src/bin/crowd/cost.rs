//! What this process has taken so far: time, requests, memory.

use std::time::Instant;

use sim::api_server::{Counts, Kind};
use sim::sim::Sim;

/// See the file's first line; or the difference of two.
pub(super) struct Cost {
    /// Seconds of CPU.
    cpu: f64,
    wall: f64,
    /// What of the wall's seconds the stand-in took.
    stand_in: f64,
    counts: Counts,
    calls: usize,
}

impl Cost {
    pub(super) fn so_far(sim: &Sim, start: Instant) -> Self {
        Self {
            cpu: cpu(),
            wall: start.elapsed().as_secs_f64(),
            stand_in: sim.api.spent().as_secs_f64(),
            counts: sim.api.counts(),
            calls: sim.aws.calls().len(),
        }
    }

    pub(super) fn since(mut self, before: &Self) -> Self {
        for (what, count) in &before.counts {
            *self.counts.entry(*what).or_default() -= count;
        }
        Self {
            cpu: self.cpu - before.cpu,
            wall: self.wall - before.wall,
            stand_in: self.stand_in - before.stand_in,
            counts: self.counts,
            calls: self.calls - before.calls,
        }
    }

    /// Seconds of CPU: the operator's and the stand-in's. One thread does both in turn.
    pub(super) fn seconds(&self) -> (f64, f64) {
        let stand_in = self.cpu * self.stand_in / self.wall;
        (self.cpu - stand_in, stand_in)
    }

    pub(super) fn secret_writes(&self) -> usize {
        let writes = ["create", "update", "patch", "delete"].map(|verb| self.count(verb, Kind::Secret));
        writes.iter().sum()
    }

    pub(super) fn status_writes(&self) -> usize {
        self.count("patch", Kind::Credential)
    }

    /// All that neither write a Secret nor a status.
    pub(super) fn other_requests(&self) -> usize {
        self.counts.values().sum::<usize>() - self.secret_writes() - self.status_writes()
    }

    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    fn count(&self, verb: &'static str, kind: Kind) -> usize {
        self.counts.get(&(verb, kind)).copied().unwrap_or_default()
    }
}

/// Seconds of CPU of this thread, which does all the work.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// Bytes of resident memory: now, and the most.
pub(super) fn resident() -> (usize, usize) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse::<usize>().ok()).unwrap_or_default()
    };
    (kilobytes("VmRSS:") * 1024, kilobytes("VmHWM:") * 1024)
}
