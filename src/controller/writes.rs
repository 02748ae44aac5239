//! The writes of one round: what each place should hold, which come first, and when the round is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use super::diff::{Task, WorkQueue};
use super::retry_state::{RetryState, SyncCounts};
use crate::plan::SpecError;
use crate::plan::namespaces::NamespaceUid;
use crate::secret::{self, Bundle, Desired, SecretAction, SecretTarget};

/// How long a round waits for writes of which none ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the target namespaces should hold.
pub(super) enum DesiredSecrets {
    /// All of them the same.
    Alike(Bundle),
    /// Each its own.
    Each(HashMap<Arc<str>, NamespaceSecrets>),
}

/// What one namespace should hold.
pub(super) struct NamespaceSecrets {
    /// Which of the namespaces that had this name it is for.
    pub(super) namespace_uid: NamespaceUid,
    pub(super) desired: Bundle,
    /// Whether the identities behind it are those of now. While they are not, a Secret that is there stays, but none is made:
    /// the namespace may be another by now, and its end not heard of.
    pub(super) current: bool,
    /// Why it has no valid password for one of the registries.
    pub(super) lacks: Option<SpecError>,
    /// Why its passwords could not be renewed.
    pub(super) failure: Option<SpecError>,
}

impl DesiredSecrets {
    pub(super) fn share(&self, place: &SecretTarget) -> Option<&NamespaceSecrets> {
        match self {
            Self::Alike(_) => None,
            Self::Each(shares) => {
                shares.get(&place.namespace).filter(|share| share.namespace_uid == place.namespace_uid)
            }
        }
    }

    pub(super) fn at(&self, place: &SecretTarget) -> Option<&Arc<Desired>> {
        match self {
            Self::Alike(bundle) => bundle.get(&place.name),
            Self::Each(_) => self.share(place)?.desired.get(&place.name),
        }
    }

    /// Whether it is known what a place should hold.
    pub(super) fn covers(&self, place: &SecretTarget) -> bool {
        match self {
            Self::Alike(_) => true,
            Self::Each(_) => place.selection != secret::Selection::Selected || self.share(place).is_some(),
        }
    }
}

/// How a round of writes ended.
pub(super) enum WritesOutcome {
    /// Every place is as it should be or has failed.
    Done(SyncCounts),
    /// Nothing is left but writes that are slow. It is to be looked at again soon; there is a counts if some hang.
    Slow(Option<SyncCounts>),
    /// The `EcrCredential` is not what it was when the round began, and the next round is queued; or the process is ending.
    Superseded,
}

/// Writes until every place is as it should be, has failed, or is slow.
pub(super) async fn write(
    ctx: &Arc<Context>,
    task: &Task<'_>,
    content: &DesiredSecrets,
    history: &mut RetryState,
) -> WritesOutcome {
    history.expect(content);
    let mut jobs = WorkQueue::default();
    let mut looked_at = None;
    loop {
        // Before the look at the revision, so that no change falls in between.
        let mut woken = std::pin::pin!(ctx.shared.news());
        woken.as_mut().enable();
        begin_urgent(ctx, task, content, history).await;
        let Some(revision) = revision(ctx, task) else { return WritesOutcome::Superseded };
        let idle = jobs.is_empty() && history.in_flight.is_empty();
        let mut behind = idle || looked_at != Some(revision);
        // A process that is ending waits for no look.
        if behind && (history.pace.wait(idle).is_zero() || (idle && ctx.stop.is_cancelled())) {
            behind = false;
            let begun = Instant::now();
            let again = looked_at.replace(revision) == Some(revision);
            let Some(diff) = task.diff(ctx, content, history) else { return WritesOutcome::Superseded };
            if diff.jobs.is_empty() && history.in_flight.is_empty() {
                history.pace.looked(begun);
                return WritesOutcome::Done(diff.counts);
            }
            jobs = diff.jobs;
            history.pace.looked(begun);
            if again {
                // Everything planned was done and something is left: new since, or it failed in a way that lets it be
                // tried at once. Others get their turn first.
                tokio::task::yield_now().await;
            }
        }
        while !ctx.stop.is_cancelled() && history.in_flight.has_room(ctx.concurrency) {
            let Some(job) = jobs.pop() else { break };
            // It may have been done as urgent since it was planned, or the world has moved on: the next look tells what is to
            // be done instead, if anything.
            if let Some((place, action)) = task.still_due(ctx, job, content, history) {
                begin(ctx, task, content, history, place, action);
            }
        }
        let idle = history.in_flight.is_empty();
        if idle && ctx.stop.is_cancelled() {
            // A process that is ending leaves the rest, and the last word, to its successor.
            return WritesOutcome::Superseded;
        }
        tokio::select! {
            biased;
            Some(ended) = history.in_flight.next() => history.note(&ended, content, &ctx.retry, ctx.clock.now()),
            // A namespace that is new must not wait for writes that hang.
            () = woken => {}
            () = tokio::time::sleep(history.pace.wait(idle)), if behind || idle => {}
            () = tokio::time::sleep(PATIENCE), if !idle && !ctx.stop.is_cancelled() => {
                let diff = history.in_flight.hangs().then(|| task.diff(ctx, content, history)).flatten();
                return WritesOutcome::Slow(diff.map(|diff| diff.counts));
            }
        }
    }
}

/// Begins the Secrets that new namespaces lack, ahead of all others: so many beside those that are under way, so that thousands
/// of new namespaces are not thousands of requests in memory.
async fn begin_urgent(ctx: &Arc<Context>, task: &Task<'_>, content: &DesiredSecrets, history: &mut RetryState) {
    let mut begun = false;
    while !ctx.stop.is_cancelled() && history.in_flight.has_room(ctx.concurrency.saturating_mul(2)) {
        let Some(urgent) = task.next_urgent(ctx, content, history) else { break };
        for (place, action) in urgent {
            begin(ctx, task, content, history, place, action);
        }
        begun = true;
    }
    if begun {
        // They are sent before all the others are looked at.
        history.pace.put_off();
        tokio::task::yield_now().await;
    }
}

/// Changes with every change to the targets; none when the `EcrCredential` is not what it was when the round began.
fn revision(ctx: &Context, task: &Task<'_>) -> Option<u64> {
    let world = ctx.shared.state.lock();
    world.is_current(&task.owner.uid, task.generation).then(|| world.revision(&task.owner.uid))
}

fn begin(
    ctx: &Arc<Context>,
    task: &Task<'_>,
    content: &DesiredSecrets,
    history: &mut RetryState,
    place: SecretTarget,
    action: SecretAction,
) {
    let desired = content.at(&place).cloned();
    history.in_flight.begin(ctx, &task.owner.uid, place, action, desired);
}
