//! One run of a workload with the real operator, and the deaths that it is to die.

use anyhow::Result;
use jiff::Timestamp;

use super::blow::Blow;
use super::snapshot::{Snapshot, snapshot};
use super::tenants::SERVICE_ACCOUNT;
use super::workloads::OTHER;
use super::{Plan, Workload};
use crate::bed::{Bed, Launch, Operator, PATIENCE};
use crate::proxy::Mark;
use crate::recorder::Violation;

/// How long nothing must be written before a run is over.
const QUIET: std::time::Duration = std::time::Duration::from_millis(500);

/// What a run came to.
pub(super) struct Ended {
    pub(super) end: Snapshot,
    /// The mutating requests of the workload, those of its ground and of Leases left out.
    pub(super) requests: usize,
    pub(super) deaths: usize,
    pub(super) violations: Vec<Violation>,
}

/// A workload under way.
pub(super) struct Run<'a> {
    pub(super) bed: Bed,
    workload: Workload,
    launch: &'a Launch,
    upgraded: bool,
    operator: Option<Operator>,
}

impl Run<'_> {
    /// Plays a plan. It is over when the workload has come to what it should, and to `expected` if that is known.
    pub(super) async fn play(launch: &Launch, crd: &str, plan: &Plan, expected: Option<&Snapshot>) -> Result<Ended> {
        let bed = Bed::with_secret_names(&plan.workload.name(), crd, &[OTHER]).await?;
        let mut run = Run { bed, workload: plan.workload, launch, upgraded: false, operator: None };
        run.start().await?;
        plan.workload.ground(&run.bed).await?;
        run.bed.proxy.log().wait_quiet(QUIET, PATIENCE).await?;
        let since = (!plan.workload.forgets()).then(Timestamp::now);
        let mark = run.bed.proxy.log().mark();
        let deaths = run.tried(plan).await?;
        let bed = &run.bed;
        if let Some(expected) = expected {
            // Whether it has is for the caller to say.
            bed.recorder.until(PATIENCE, |_| snapshot(bed, since) == *expected).await;
        }
        bed.proxy.log().wait_quiet(QUIET, PATIENCE).await?;
        run.ended(deaths, since, mark).await
    }

    /// Does what the workload does, dies what is to be died; how many deaths it were.
    async fn tried(&mut self, plan: &Plan) -> Result<usize> {
        let mut planned = plan.deaths.iter();
        let mut next = planned.next().map(|(number, moment)| Blow::prepare(&self.bed, *number, *moment));
        plan.workload.act(self).await?;
        let mut deaths = 0;
        while let Some(blow) = next {
            if !self.is_struck(&blow, plan.workload, deaths > 0).await? {
                break;
            }
            self.die().await?;
            if deaths == 0 {
                plan.workload.then(&self.bed).await?;
            }
            deaths += 1;
            next = planned.next().map(|(number, moment)| Blow::prepare(&self.bed, *number, *moment));
            self.start().await?;
        }
        self.bed.proxy.heal();
        if deaths == 0 {
            plan.workload.comes_of_act(&self.bed).await?;
            plan.workload.then(&self.bed).await?;
        }
        plan.workload.end(&self.bed).await?;
        Ok(deaths)
    }

    /// Whether the moment comes before everything is over.
    async fn is_struck(&self, blow: &Blow, workload: Workload, again: bool) -> Result<bool> {
        let over = async {
            if again {
                workload.end(&self.bed).await?
            } else {
                workload.comes_of_act(&self.bed).await?
            };
            self.bed.proxy.log().wait_quiet(QUIET, PATIENCE).await
        };
        tokio::select! {
            biased;
            () = blow.comes(&self.bed) => Ok(true),
            over = over => over.map(|()| false),
        }
    }

    async fn ended(mut self, deaths: usize, since: Option<Timestamp>, mark: Mark) -> Result<Ended> {
        self.stop().await?;
        let violations = self.bed.judge().await?;
        let requests = self.bed.proxy.log().mutations_since(mark).len();
        let end = snapshot(&self.bed, since);
        self.bed.clear().await?;
        Ok(Ended { end, requests, deaths, violations })
    }

    async fn start(&mut self) -> Result<()> {
        let mut launch = self.launch.clone().args(&["--secret-name", &self.bed.name(OTHER)]);
        if self.upgraded {
            launch = launch.args(&["--concurrency", "1"]);
        }
        if self.workload.is_of_tenants() {
            launch = launch.service_account(&format!("*/{SERVICE_ACCOUNT}"));
        }
        self.operator = Some(self.bed.operator(launch).await?);
        Ok(())
    }

    /// Starts the next version, which has other settings.
    pub(super) async fn upgrade(&mut self) -> Result<()> {
        self.upgraded = true;
        self.start().await
    }

    pub(super) async fn stop(&mut self) -> Result<()> {
        if let Some(operator) = self.operator.take() { operator.stop().await } else { Ok(()) }
    }

    /// SIGKILL, in the middle of what it does.
    async fn die(&mut self) -> Result<()> {
        if let Some(operator) = self.operator.take() {
            self.bed.kill(operator).await?;
        }
        self.bed.proxy.heal();
        Ok(())
    }
}
