//! Crash plans: each workload with SIGKILLs around its mutating requests, on a real API server, compared with the run without.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::bed::Launch;
pub use blow::Moment;
use run::Run;
use snapshot::{Snapshot, differences};
pub use table::Table;
pub use workloads::Workload;

mod blow;
mod run;
mod snapshot;
mod table;
mod tenants;
mod workloads;

/// How many runs go on at a time. Most of each is waiting.
pub const AT_A_TIME: usize = 4;

/// A workload and the deaths in it, each around the mutating request with this number, from 0; what follows a death is counted
/// from then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub workload: Workload,
    pub deaths: Vec<(usize, Moment)>,
}

/// What a plan came to.
#[derive(Debug)]
pub struct Verdict {
    pub plan: Plan,
    /// How many of its deaths it died: a run may come to its end with fewer requests than the one without.
    pub deaths: usize,
    /// What was wrong.
    pub wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:", self.plan)?;
        self.wrong.iter().try_for_each(|wrong| write!(f, "\n  {wrong}"))
    }
}

/// The operator, and what each workload comes to without a death.
pub struct Trials {
    launch: Launch,
    crd: String,
    undisturbed: BTreeMap<Workload, Undisturbed>,
}

struct Undisturbed {
    end: Snapshot,
    requests: usize,
}

impl Trials {
    /// Plays each workload without a death.
    ///
    /// # Errors
    /// One of them breaks an invariant or does not come to its end.
    pub async fn prepare(launch: Launch, crd: &str) -> Result<Trials> {
        let one = |workload| {
            let launch = &launch;
            async move {
                let plan = Plan { workload, deaths: vec![] };
                let what = || format!("without a death: {}", workload.title());
                let ended = Run::play(launch, crd, &plan, None).await.with_context(what)?;
                ensure!(ended.violations.is_empty(), "{}: {:#?}", what(), ended.violations);
                ensure!(ended.requests > 0, "{}: nothing is written", what());
                anyhow::Ok((workload, Undisturbed { end: ended.end, requests: ended.requests }))
            }
        };
        let undisturbed = stream::iter(Workload::ALL).map(one).buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(Trials { launch, crd: crd.to_owned(), undisturbed })
    }

    /// How many mutating requests a workload takes.
    pub fn requests(&self, workload: Workload) -> usize {
        self.undisturbed[&workload].requests
    }

    /// Every moment of every request of every workload.
    pub fn singles(&self) -> Vec<Plan> {
        let all = self.undisturbed.iter().flat_map(|(workload, undisturbed)| {
            let deaths = (0..undisturbed.requests).flat_map(|number| Moment::ALL.map(|moment| (number, moment)));
            deaths.map(|death| Plan { workload: *workload, deaths: vec![death] })
        });
        all.collect()
    }

    /// One of these for each workload, by chance; the moments go round.
    pub fn sampled(&self, seed: u64) -> Vec<Plan> {
        let mut random = StdRng::seed_from_u64(seed);
        let moments = Moment::ALL.into_iter().cycle().skip(random.random_range(0..Moment::ALL.len()));
        let plan = |((workload, undisturbed), moment): ((&Workload, &Undisturbed), Moment)| Plan {
            workload: *workload,
            deaths: vec![(random.random_range(0..undisturbed.requests), moment)],
        };
        self.undisturbed.iter().zip(moments).map(plan).collect()
    }

    /// Two deaths, one after the other, by chance.
    pub fn doubles(&self, count: usize, seed: u64) -> Vec<Plan> {
        let mut random = StdRng::seed_from_u64(seed);
        let workloads: Vec<_> = self.undisturbed.iter().collect();
        let plan = |_| {
            let (workload, undisturbed) = workloads.choose(&mut random).copied()?;
            let mut death = || Some((random.random_range(0..undisturbed.requests), *Moment::ALL.choose(&mut random)?));
            Some(Plan { workload: *workload, deaths: vec![death()?, death()?] })
        };
        (0..count).filter_map(plan).collect()
    }

    /// Plays plans, several at a time; what each came to as it ends.
    pub fn play<'a>(&'a self, plans: &'a [Plan]) -> impl futures::Stream<Item = Verdict> + 'a {
        stream::iter(plans).map(|plan| self.verdict(plan)).buffer_unordered(AT_A_TIME)
    }

    async fn verdict(&self, plan: &Plan) -> Verdict {
        let expected = &self.undisturbed[&plan.workload].end;
        let (deaths, wrong) = match Run::play(&self.launch, &self.crd, plan, Some(expected)).await {
            Ok(ended) => {
                let violations = ended.violations.iter().map(ToString::to_string);
                (ended.deaths, violations.chain(differences(&ended.end, expected)).collect())
            }
            Err(error) => {
                let why = error.to_string();
                // What was last seen may be long.
                (0, vec![format!("it does not come to its end: {}", why.lines().next().unwrap_or_default())])
            }
        };
        Verdict { plan: plan.clone(), deaths, wrong }
    }
}
