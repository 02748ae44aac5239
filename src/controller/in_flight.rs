//! The writes that have been sent and not answered: they outlive the round that sent them, so that no round waits for one
//! that hangs and none is given up halfway.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::Context;
use super::cluster_state::SecretKey;
use crate::api::status::Reason;
use crate::apply::{SLOW, SLOW_FACTOR, WriteError, Written};
use crate::plan::Uid;
use crate::secret::{Desired, SecretAction, SecretTarget};

/// A write that takes longer than this is told of in the status.
const HANGING: Duration = Duration::from_secs(5);

/// A write that has ended.
pub(super) struct Ended {
    pub(super) place: SecretTarget,
    pub(super) action: SecretAction,
    /// What was to be written.
    pub(super) desired: Option<Arc<Desired>>,
    pub(super) result: Result<Written, WriteError>,
}

/// The writes under way for one `EcrCredential`, at most one in each place.
#[derive(Default)]
pub(super) struct InFlight {
    writes: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// When each was sent; empty while it waits for a slot.
    sent: HashMap<SecretKey, Arc<OnceLock<Instant>>>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(super) fn is_at(&self, spot: &SecretKey) -> bool {
        self.sent.contains_key(spot)
    }

    /// Whether one more may begin, of so many at a time. Those that are slow count little.
    pub(super) fn has_room(&self, concurrency: usize) -> bool {
        let quick = || self.sent.values().filter(|sent| !is_older(sent, SLOW)).count();
        self.sent.len() < concurrency
            || (self.sent.len() < concurrency.saturating_mul(SLOW_FACTOR / 2) && quick() < concurrency)
    }

    /// Whether the write in a place has been sent long ago.
    pub(super) fn is_hanging_at(&self, spot: &SecretKey) -> bool {
        self.sent.get(spot).is_some_and(|sent| is_older(sent, HANGING))
    }

    /// Whether any write has been sent long ago.
    pub(super) fn hangs(&self) -> bool {
        self.sent.values().any(|sent| is_older(sent, HANGING))
    }

    /// Begins one, on a task of its own.
    pub(super) fn begin(
        &mut self,
        ctx: &Arc<Context>,
        me: &Uid,
        place: SecretTarget,
        action: SecretAction,
        desired: Option<Arc<Desired>>,
    ) {
        let sent = Arc::new(OnceLock::new());
        self.sent.insert(spot(&place), sent.clone());
        let (ctx, me) = (ctx.clone(), me.clone());
        let (there, what, content) = (place.clone(), action.clone(), desired.clone());
        let tracker = ctx.writes.clone();
        let task = tracker.spawn(async move { perform(&ctx, &me, &there, &what, content.as_deref(), &sent).await });
        let ended = task.map(move |result| {
            let died = |_| Err(WriteError::Refused(Reason::ApiError, "the write was interrupted".to_owned()));
            Ended { place, action, desired, result: result.unwrap_or_else(died) }
        });
        self.writes.push(ended.boxed());
    }

    /// The next that ends; none when none is under way.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        let ended = self.writes.next().await?;
        self.sent.remove(&spot(&ended.place));
        Some(ended)
    }
}

async fn perform(
    ctx: &Context,
    me: &Uid,
    place: &SecretTarget,
    action: &SecretAction,
    desired: Option<&Desired>,
    sent: &OnceLock<Instant>,
) -> Result<Written, WriteError> {
    // A process that is ending begins nothing new, though it may have waited for a slot.
    let begin = || !ctx.stop.is_cancelled() && sent.set(Instant::now()).is_ok();
    let write = ctx.shared.write_begins(spot(place));
    // The token of one namespace must not be made known in another that has its name by now.
    let named = desired.is_some_and(|desired| desired.of_one_namespace) && *action == SecretAction::Create;
    let expected = if named { ctx.writer.expect_namespace(place).await } else { Ok(()) };
    let result = match expected {
        Ok(()) => ctx.writer.perform(place, action, desired, begin).await,
        Err(error) => Err(error),
    };
    // The world hears of it from us before the watch tells it.
    match &result {
        Ok(Written::Stored(record) | Written::Deleting(record)) => {
            write.stored(record.clone(), me);
        }
        Ok(Written::Deleted) => {
            let uid = match action {
                SecretAction::Update(record) | SecretAction::Strip(record) | SecretAction::Delete(record) => {
                    Some(&*record.uid)
                }
                _ => None,
            };
            ctx.shared.secret_gone(&place.name, &place.namespace, uid);
        }
        Err(_) => {}
    }
    if result.is_ok() && matches!(action, SecretAction::Delete(_)) {
        tracing::info!(namespace = %place.namespace, secret = %place.name, "deleted a Secret that is no longer needed");
    }
    ctx.observer.wrote(action, &result);
    result
}

fn is_older(sent: &OnceLock<Instant>, age: Duration) -> bool {
    sent.get().is_some_and(|sent| sent.elapsed() >= age)
}

/// Where a place is.
pub(super) fn spot(place: &SecretTarget) -> SecretKey {
    (place.name.clone(), place.namespace.clone())
}
