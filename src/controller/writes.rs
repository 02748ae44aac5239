//! The writes of one reconciliation: begins what is due, a bounded number at a time, until every Secret is as it should be, has
//! failed, or is slow.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use super::diff::{Diff, Superseded};
use super::retry_state::{Resync, RetryState};
use super::work_queue::WritePriority;

/// How long a reconciliation waits for writes of which none ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long it writes at most, though writes end and others begin all the time: tokens and the status wait for it.
const LONGEST: Duration = Duration::from_secs(30);

/// How the writes of one reconciliation ended.
pub(super) enum WritesOutcome {
    /// Every Secret is as it should be or has failed.
    Done,
    /// Only slow writes are in flight, or it has lasted long. Another reconciliation follows soon; if some hang, or it has lasted
    /// long, there is something to report.
    Slow { reports: bool },
    /// The `EcrCredential` has changed, and another reconciliation is queued; or the process is ending.
    Superseded,
}

/// Writes until every Secret is as it should be, has failed, or is slow.
pub(super) async fn write(ctx: &Arc<Context>, diff: &Diff<'_>, retries: &mut RetryState) -> WritesOutcome {
    let changed = retries.expect(diff.desired);
    // After a panic, all Secrets are examined.
    let mut resynced = retries.resynced.take().filter(|_| !changed);
    let outcome = write_all(ctx, diff, retries, &mut resynced).await.unwrap_or(WritesOutcome::Superseded);
    retries.resynced = resynced;
    outcome
}

async fn write_all(
    ctx: &Arc<Context>,
    diff: &Diff<'_>,
    retries: &mut RetryState,
    resynced: &mut Option<Resync>,
) -> Result<WritesOutcome, Superseded> {
    let end = Instant::now() + LONGEST;
    let mut patience = None;
    loop {
        // Before the Secrets are examined, so that no event falls in between.
        let mut woken = std::pin::pin!(ctx.shared.targets_changed());
        woken.as_mut().enable();
        diff.sync(retries, resynced)?;
        if diff.is_settled(retries) {
            return Ok(WritesOutcome::Done);
        }
        begin_due(ctx, diff, retries)?;
        let stops = ctx.stop.is_cancelled();
        if retries.in_flight.is_empty() {
            if stops {
                // A process that is ending leaves the rest, and the status, to its successor.
                return Ok(WritesOutcome::Superseded);
            }
            // What was queued needs no write any more.
            tokio::task::yield_now().await;
            continue;
        }
        let until = end.min(*patience.get_or_insert_with(|| Instant::now() + PATIENCE));
        // Checked here as well, for events may come all the time.
        if !stops && until <= Instant::now() {
            let reports = retries.note_hanging() || end <= Instant::now();
            diff.sync(retries, resynced)?;
            return Ok(WritesOutcome::Slow { reports });
        }
        tokio::select! {
            biased;
            Some(ended) = retries.in_flight.next() => {
                retries.record(&ended, diff.desired, &ctx.retry, ctx.clock.now());
                patience = None;
            }
            // A new namespace does not wait for writes that hang.
            () = woken => {}
            () = tokio::time::sleep_until(until), if !stops => {}
        }
    }
}

/// Begins what is due, as far as there is room.
fn begin_due(ctx: &Arc<Context>, diff: &Diff<'_>, retries: &mut RetryState) -> Result<(), Superseded> {
    let has_room = |retries: &RetryState, priority: WritePriority| {
        // A new namespace does not wait until one of the writes in flight has ended.
        let factor = if priority == WritePriority::Urgent { 2 } else { 1 };
        let times = |number: usize| number.saturating_mul(factor);
        !ctx.stop.is_cancelled() && retries.in_flight.has_room(times(ctx.concurrency), times(ctx.writer.free()))
    };
    while let Some((target, action)) = diff.next_write(retries, has_room)? {
        let desired = diff.desired.at(&target).cloned();
        retries.in_flight.begin(ctx, &diff.owner.uid, target, action, desired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::super::desired_secrets::DesiredSecrets;
    use super::super::stage::{ACCOUNT, HOUR, NOW, Stage, at, refusal, token, uid};
    use super::*;
    use crate::clock::Clock;
    use crate::plan::Identity;
    use crate::plan::schedule::RetryPolicy;

    thread_local! {
        static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    fn passed() -> Duration {
        BEGUN.get().unwrap().elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_that_keep_failing_hold_up_no_status_and_no_token() {
        let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
        BEGUN.set(Some(Instant::now()));
        stage.ctx.clock = Clock::new(|| at(NOW).checked_add(passed()).unwrap(), passed);
        stage.ctx.retry = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_millis(100) };
        stage.server.takes(Duration::from_millis(900));
        for namespace in super::super::stage::NAMESPACES {
            let path = format!("/api/v1/namespaces/{namespace}/secrets/pull");
            stage.server.answers(&path, 403, refusal(403, "no"));
        }
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let published = [(token_spec, token("p", NOW + HOUR, &Identity::operator()))].into();
        let bundle = crate::secret::bundle(&stage.plan, &stage.owner, &published, &Default::default(), at(NOW));
        let desired = DesiredSecrets::Alike(bundle.unwrap());
        let Stage { ctx, plan, owner, .. } = stage;
        let ctx = Arc::new(ctx);
        let diff = Diff {
            state: &ctx.shared.state,
            clock: &ctx.clock,
            plan: &plan,
            owner: &owner,
            generation: Some(1),
            desired: &desired,
        };
        let mut retries = RetryState::default();
        let outcome = tokio::time::timeout(Duration::from_secs(120), write(&ctx, &diff, &mut retries)).await;
        assert!(outcome.is_ok(), "it never ends");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_ecrcredential_ends_its_reconciliation_though_a_write_hangs() {
        let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let published = [(token_spec, token("p", NOW + HOUR, &Identity::operator()))].into();
        let bundle = crate::secret::bundle(&stage.plan, &stage.owner, &published, &Default::default(), at(NOW));
        let desired = DesiredSecrets::Alike(bundle.unwrap());
        let _held = stage.server.hold().await;
        let Stage { ctx, server, plan, owner, .. } = stage;
        let ctx = Arc::new(ctx);
        let diff = Diff {
            state: &ctx.shared.state,
            clock: &ctx.clock,
            plan: &plan,
            owner: &owner,
            generation: Some(1),
            desired: &desired,
        };
        let mut retries = RetryState::default();
        let begun = Instant::now();
        let end = async {
            while server.asked("/secrets/pull") == 0 {
                tokio::task::yield_now().await;
            }
            let metadata = json!({ "name": "x", "uid": uid("x").0 });
            ctx.shared.credential_gone(&serde_json::from_value(metadata).unwrap());
        };
        let (outcome, ()) = tokio::join!(write(&ctx, &diff, &mut retries), end);
        assert!(matches!(outcome, WritesOutcome::Superseded));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
