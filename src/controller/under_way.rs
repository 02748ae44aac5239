//! The writes that have been sent and not answered: they outlive the round that sent them, so that no round waits for one
//! that hangs and none is given up halfway.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::Context;
use super::world::Spot;
use crate::api::status::Reason;
use crate::apply::{SLOW, SLOW_FACTOR, WriteError, Written};
use crate::plan::Uid;
use crate::secret::{Desired, Place, Verdict};

/// A write that has ended.
pub(super) struct Ended {
    pub(super) place: Place,
    pub(super) verdict: Verdict,
    /// What was to be written.
    pub(super) desired: Option<Arc<Desired>>,
    pub(super) result: Result<Written, WriteError>,
}

/// The writes under way for one `EcrCredential`, at most one in each place.
#[derive(Default)]
pub(super) struct UnderWay {
    writes: FuturesUnordered<BoxFuture<'static, Ended>>,
    since: HashMap<Spot, Instant>,
}

impl UnderWay {
    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub(super) fn is_at(&self, spot: &Spot) -> bool {
        self.since.contains_key(spot)
    }

    /// Whether one more may begin, of so many at a time. Those that are slow count little.
    pub(super) fn has_room(&self, concurrency: usize) -> bool {
        if self.since.len() < concurrency {
            return true;
        }
        let quick = self.since.values().filter(|since| since.elapsed() < SLOW).count();
        quick < concurrency && self.since.len() < concurrency.saturating_mul(SLOW_FACTOR)
    }

    /// Begins one, on a task of its own.
    pub(super) fn begin(
        &mut self,
        ctx: &Arc<Context>,
        me: &Uid,
        place: Place,
        verdict: Verdict,
        desired: Option<Arc<Desired>>,
    ) {
        self.since.insert(spot(&place), Instant::now());
        let (ctx, me) = (ctx.clone(), me.clone());
        let (there, what, content) = (place.clone(), verdict.clone(), desired.clone());
        let tracker = ctx.writes.clone();
        let task = tracker.spawn(async move { perform(&ctx, &me, &there, &what, content.as_deref()).await });
        let ended = task.map(move |result| {
            let died = |_| Err(WriteError::Refused(Reason::ApiError, "the write was interrupted".to_owned()));
            Ended { place, verdict, desired, result: result.unwrap_or_else(died) }
        });
        self.writes.push(ended.boxed());
    }

    /// The next that ends; none when none is under way.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        let ended = self.writes.next().await?;
        self.since.remove(&spot(&ended.place));
        Some(ended)
    }
}

async fn perform(
    ctx: &Context,
    me: &Uid,
    place: &Place,
    verdict: &Verdict,
    desired: Option<&Desired>,
) -> Result<Written, WriteError> {
    let result = ctx.writer.perform(place, verdict, desired).await;
    // The world hears of it from us before the watch tells it.
    match &result {
        Ok(Written::Stored(record)) => {
            ctx.shared.secret_written(&place.name, &place.namespace, record.clone(), me);
        }
        Ok(Written::Deleted) => {
            let uid = match verdict {
                Verdict::Update(record) | Verdict::Strip(record) | Verdict::Delete(record) => Some(&*record.uid),
                _ => None,
            };
            ctx.shared.secret_gone(&place.name, &place.namespace, uid);
        }
        Err(_) => {}
    }
    ctx.observer.wrote(verdict, &result);
    result
}

/// Where a place is.
pub(super) fn spot(place: &Place) -> Spot {
    (place.name.clone(), place.namespace.clone())
}
