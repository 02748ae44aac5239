//! The writes of one reconciliation: begins what is due, a bounded number at a time, until every Secret is as it should be, has
//! failed, or is slow.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use super::diff::{Diff, Superseded};
use super::retry_state::RetryState;
use super::work_queue::WritePriority;

/// How long a reconciliation waits for writes of which none ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the writes of one reconciliation ended.
pub(super) enum WritesOutcome {
    /// Every Secret is as it should be or has failed.
    Done,
    /// Only slow writes are in flight, of which some may hang. Another reconciliation follows soon.
    Slow { hangs: bool },
    /// The `EcrCredential` has changed, and another reconciliation is queued; or the process is ending.
    Superseded,
}

/// Writes until every Secret is as it should be, has failed, or is slow.
pub(super) async fn write(ctx: &Arc<Context>, diff: &Diff<'_>, retries: &mut RetryState) -> WritesOutcome {
    let changed = retries.expect(diff.desired);
    // It is put back only by an end at which every event has been taken up. After any other, the next one examines all Secrets.
    let mut resynced = retries.resynced.take().filter(|_| !changed);
    let mut patience = Instant::now() + PATIENCE;
    loop {
        // Before the Secrets are examined, so that no event falls in between.
        let mut woken = std::pin::pin!(ctx.shared.targets_changed());
        woken.as_mut().enable();
        if diff.sync(retries, &mut resynced).is_err() {
            return WritesOutcome::Superseded;
        }
        if diff.is_settled(retries) {
            retries.resynced = resynced;
            return WritesOutcome::Done;
        }
        if begin_due(ctx, diff, retries).is_err() {
            return WritesOutcome::Superseded;
        }
        if retries.in_flight.is_empty() {
            if ctx.stop.is_cancelled() {
                // A process that is ending leaves the rest, and the status, to its successor.
                return WritesOutcome::Superseded;
            }
            // What was queued needs no write any more.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            biased;
            Some(ended) = retries.in_flight.next() => {
                retries.record(&ended, diff.desired, &ctx.retry, ctx.clock.now());
                patience = Instant::now() + PATIENCE;
            }
            // A new namespace does not wait for writes that hang.
            () = woken => {}
            () = tokio::time::sleep_until(patience), if !ctx.stop.is_cancelled() => {
                let hangs = retries.note_hanging();
                if diff.sync(retries, &mut resynced).is_err() {
                    return WritesOutcome::Superseded;
                }
                retries.resynced = resynced;
                return WritesOutcome::Slow { hangs };
            }
        }
    }
}

/// Begins what is due, as far as there is room.
fn begin_due(ctx: &Arc<Context>, diff: &Diff<'_>, retries: &mut RetryState) -> Result<(), Superseded> {
    let has_room = |retries: &RetryState, priority: WritePriority| {
        // A new namespace does not wait until one of the writes in flight has ended.
        let factor = if priority == WritePriority::Urgent { 2 } else { 1 };
        !ctx.stop.is_cancelled() && retries.in_flight.has_room(ctx.concurrency.saturating_mul(factor))
    };
    while let Some((target, action)) = diff.next_write(retries, has_room)? {
        let desired = diff.desired.at(&target).cloned();
        retries.in_flight.begin(ctx, &diff.owner.uid, target, action, desired);
    }
    Ok(())
}
