//! The writes that have been sent and not answered. They outlive the reconciliation that sent them, so that none waits for a write
//! that hangs and no write is given up halfway.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::Context;
use super::secret_key::{SecretKey, key_of};
use crate::api::status::Reason;
use crate::apply::{SLOW, SLOW_FACTOR, WriteError, Written};
use crate::plan::Uid;
use crate::secret::{Desired, SecretAction, SecretTarget};

/// A write that takes longer than this is reported in the status.
const HANGING: Duration = Duration::from_secs(5);

/// A write that has ended.
pub(super) struct Ended {
    pub(super) target: SecretTarget,
    pub(super) action: SecretAction,
    /// What was to be written.
    pub(super) desired: Option<Arc<Desired>>,
    pub(super) result: Result<Written, WriteError>,
}

/// The writes in flight for one `EcrCredential`, at most one of each Secret.
#[derive(Default)]
pub(super) struct InFlight {
    writes: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// When each was sent; empty while it waits for a slot of the writer.
    sent: HashMap<SecretKey, Arc<OnceLock<Instant>>>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(super) fn is_at(&self, key: &SecretKey) -> bool {
        self.sent.contains_key(key)
    }

    /// Whether one more may begin, of so many at a time. Slow ones count little.
    pub(super) fn has_room(&self, concurrency: usize) -> bool {
        let quick = || self.sent.values().filter(|sent| !is_older(sent, SLOW)).count();
        self.sent.len() < concurrency
            || (self.sent.len() < concurrency.saturating_mul(SLOW_FACTOR / 2) && quick() < concurrency)
    }

    /// Whether the write of a Secret was sent long ago.
    pub(super) fn is_hanging_at(&self, key: &SecretKey) -> bool {
        self.sent.get(key).is_some_and(|sent| is_older(sent, HANGING))
    }

    /// The Secrets whose write was sent long ago.
    pub(super) fn hanging(&self) -> impl Iterator<Item = &SecretKey> {
        self.sent.iter().filter(|(_, sent)| is_older(sent, HANGING)).map(|(key, _)| key)
    }

    /// Begins one, on a task of its own.
    pub(super) fn begin(
        &mut self,
        ctx: &Arc<Context>,
        me: &Uid,
        target: SecretTarget,
        action: SecretAction,
        desired: Option<Arc<Desired>>,
    ) {
        let sent = Arc::new(OnceLock::new());
        self.sent.insert(key_of(&target), sent.clone());
        let write = (ctx.clone(), me.clone(), target.clone(), action.clone(), desired.clone());
        let task = ctx.writes.spawn(async move {
            let (ctx, me, target, action, desired) = write;
            perform(&ctx, &me, &target, &action, desired.as_deref(), &sent).await
        });
        let ended = task.map(move |result| {
            let died = |_| Err(WriteError::Refused(Reason::ApiError, "the write was interrupted".to_owned()));
            Ended { target, action, desired, result: result.unwrap_or_else(died) }
        });
        self.writes.push(ended.boxed());
    }

    /// The next write that ends; none when none is in flight.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        let ended = self.writes.next().await?;
        self.sent.remove(&key_of(&ended.target));
        Some(ended)
    }

    /// Counts a write of a Secret as sent, or as answered, without sending one.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, key: &SecretKey, is_in_flight: bool) {
        if is_in_flight {
            self.sent.insert(key.clone(), Arc::default());
        } else {
            self.sent.remove(key);
        }
    }
}

async fn perform(
    ctx: &Context,
    me: &Uid,
    target: &SecretTarget,
    action: &SecretAction,
    desired: Option<&Desired>,
    sent: &OnceLock<Instant>,
) -> Result<Written, WriteError> {
    // A process that is ending begins nothing new, though it may have waited for a slot.
    let begin = || !ctx.stop.is_cancelled() && sent.set(Instant::now()).is_ok();
    let write = ctx.shared.write_begins(key_of(target));
    // The token of one namespace must not be written into another that has its name by now.
    let named = desired.is_some_and(|desired| desired.of_one_namespace) && *action == SecretAction::Create;
    let expected = if named { ctx.writer.expect_namespace(target).await } else { Ok(()) };
    let result = match expected {
        Ok(()) => ctx.writer.perform(target, action, desired, begin).await,
        Err(error) => Err(error),
    };
    // The answer often comes before the watch event.
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
            ctx.shared.secret_gone(&target.name, &target.namespace, uid);
        }
        Err(_) => {}
    }
    if result.is_ok() && matches!(action, SecretAction::Delete(_)) {
        tracing::info!(namespace = %target.namespace, secret = %target.name, "deleted a Secret that is no longer needed");
    }
    ctx.observer.wrote(action, &result);
    result
}

fn is_older(sent: &OnceLock<Instant>, age: Duration) -> bool {
    sent.get().is_some_and(|sent| sent.elapsed() >= age)
}
