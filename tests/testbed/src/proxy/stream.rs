//! Watch streams: event by event, never held back, until a test stalls, filters, feeds or cuts them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Request;
use super::fault::{Action, Faults, Match};
use super::view::Views;

/// The watches that are open now.
#[derive(Default)]
pub(super) struct OpenWatches(Mutex<HashMap<usize, (Request, UnboundedSender<Command>)>>);

enum Command {
    Send(Bytes),
    Cut,
}

impl OpenWatches {
    /// Closes matching watches without an end; the number of them.
    pub(super) fn cut(&self, on: &Match) -> usize {
        self.command(on, || Command::Cut)
    }

    /// Puts bytes into matching watches, after the event that is under way; the number of them.
    pub(super) fn send(&self, on: &Match, bytes: &Bytes) -> usize {
        self.command(on, || Command::Send(bytes.clone()))
    }

    pub(super) fn count(&self, on: &Match) -> usize {
        self.0.lock().values().filter(|(request, _)| on.matches(request)).count()
    }

    fn command(&self, on: &Match, make: impl Fn() -> Command) -> usize {
        let open = self.0.lock();
        open.values().filter(|(request, commands)| on.matches(request) && commands.send(make()).is_ok()).count()
    }
}

type Upstream = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

struct Watch {
    request: Request,
    upstream: Upstream,
    partial: BytesMut,
    lines: VecDeque<Bytes>,
    commands: UnboundedReceiver<Command>,
    faults: Arc<Faults>,
    views: Arc<Views>,
    open: Arc<OpenWatches>,
    ended: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.open.0.lock().remove(&self.request.number);
    }
}

/// The body that the caller sees of a watch whose answer is `upstream`.
pub(super) fn watch_body(
    request: Request,
    upstream: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    faults: Arc<Faults>,
    views: Arc<Views>,
    open: Arc<OpenWatches>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (sender, commands) = unbounded_channel();
    open.0.lock().insert(request.number, (request.clone(), sender));
    let (partial, lines) = Default::default();
    let watch =
        Watch { request, upstream: Box::pin(upstream), partial, lines, commands, faults, views, open, ended: false };
    stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        watch.ended = item.is_err();
        Some((item, watch))
    })
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.ended {
            if let Some(line) = self.lines.pop_front() {
                match self.admit(line).await {
                    Some(line) => return Some(Ok(line)),
                    None => continue,
                }
            }
            tokio::select! {
                Some(command) = self.commands.recv() => match command {
                    Command::Send(bytes) => return Some(Ok(bytes)),
                    Command::Cut => return Some(Err(io::ErrorKind::ConnectionReset.into())),
                },
                chunk = self.upstream.next() => match chunk {
                    Some(Ok(chunk)) => self.split(&chunk),
                    Some(Err(error)) => return Some(Err(io::Error::other(error))),
                    None => {
                        self.ended = true;
                        let rest = self.partial.split().freeze();
                        return (!rest.is_empty()).then_some(Ok(rest));
                    }
                },
            }
        }
        None
    }

    fn split(&mut self, chunk: &[u8]) {
        self.partial.extend_from_slice(chunk);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            self.lines.push_back(self.partial.split_to(end + 1).freeze());
        }
    }

    /// The event, once it may be seen; `None` if it never may.
    async fn admit(&mut self, line: Bytes) -> Option<Bytes> {
        if !self.views.shows_event(&self.request, &line) {
            return None;
        }
        match self.faults.on_event(&self.request) {
            Some(Action::StallWatch(gate)) => {
                tokio::select! {
                    () = gate.pass() => {}
                    // A cut ends the wait; bytes to send are for later than the event that waits.
                    Some(Command::Cut) = self.commands.recv() => {
                        self.lines.clear();
                        self.upstream = Box::pin(stream::empty());
                        return None;
                    }
                }
                Some(line)
            }
            Some(Action::LoseEvents(lost)) => {
                let event = serde_json::from_slice(&line).unwrap_or_default();
                (!lost(&event)).then_some(line)
            }
            _ => Some(line),
        }
    }
}
