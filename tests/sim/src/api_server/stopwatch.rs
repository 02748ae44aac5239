//! How much real time the stand-in itself takes, so that what is left is the operator's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;

/// The time that was spent. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Stopwatch(Arc<AtomicU64>);

impl Stopwatch {
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn time<T>(&self, work: T) -> Timed<T> {
        Timed { work, stopwatch: self.clone() }
    }

    fn note<R>(&self, work: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = work();
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
        result
    }
}

/// A future or a stream that is timed while it is polled.
pub(super) struct Timed<T> {
    work: T,
    stopwatch: Stopwatch,
}

impl<T: Future + Unpin> Future for Timed<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T::Output> {
        let Self { work, stopwatch } = &mut *self;
        stopwatch.note(|| Pin::new(work).poll(context))
    }
}

impl<T: Stream + Unpin> Stream for Timed<T> {
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let Self { work, stopwatch } = &mut *self;
        stopwatch.note(|| Pin::new(work).poll_next(context))
    }
}
