//! The requests of the operator's processes, as the network saw them.

use std::collections::BTreeMap;

use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::request::{Kind, Request, Target};
use crate::clock;

/// A request of an operator process, as the network saw it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: Timestamp,
    pub process: u32,
    pub summary: String,
    pub target: Target,
    pub method: Method,
    pub content_type: String,
    /// What was sent about a ServiceAccount, or to change a Secret otherwise than by an apply.
    pub body: Option<Value>,
    pub is_mutation: bool,
    /// When it was done, and the status code.
    pub committed: Option<(Timestamp, u16)>,
    /// The version of the store when it was done.
    pub version: u64,
    /// Whether the process held the Lease then.
    pub leads: bool,
}

impl Sent {
    fn new(request: &Request, process: u32) -> Self {
        let is_odd = match request.target.kind {
            Kind::Secret => !request.is_apply(),
            kind => kind == Kind::ServiceAccount,
        };
        let mut target = request.target.clone();
        if target.name.is_empty() {
            // A creation names the object in its body.
            target.name = request.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        Self {
            at: clock::true_now(),
            process,
            summary: request.summary(),
            target,
            method: request.method.clone(),
            content_type: request.content_type.clone(),
            body: is_odd.then(|| request.body.clone()),
            is_mutation: request.is_mutation(),
            committed: None,
            version: 0,
            leads: false,
        }
    }

    /// Whether it changes what others see: neither a Lease nor an Event, nor nothing at all, as a request for a token.
    pub fn is_change(&self) -> bool {
        self.is_mutation && !matches!(self.target.kind, Kind::Lease | Kind::Event) && !self.target.is_token()
    }
}

/// How many requests there were of each verb and kind.
pub type Counts = BTreeMap<(&'static str, Kind), usize>;

/// See the file's first line.
#[derive(Default)]
pub(super) struct Log {
    counts: Counts,
    thrifty: bool,
    sent: Vec<Sent>,
    changes: usize,
    last_change: Option<Timestamp>,
}

impl Log {
    /// From now on only counts.
    pub(super) fn be_thrifty(&mut self) {
        self.thrifty = true;
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Notes a request; lists and watches have no number.
    pub(super) fn begin(&mut self, request: &Request, process: u32) -> Option<usize> {
        *self.counts.entry((request.verb(), request.target.kind)).or_default() += 1;
        if request.is_watch() || request.is_list() {
            return None;
        }
        let sent = Sent::new(request, process);
        if sent.is_change() {
            self.changes += 1;
            self.last_change = Some(sent.at);
        }
        if self.thrifty {
            return None;
        }
        self.sent.push(sent);
        Some(self.sent.len() - 1)
    }

    /// Notes what became of it.
    pub(super) fn end(&mut self, number: Option<usize>, code: u16, version: u64, leads: bool) {
        if let Some(sent) = number.and_then(|number| self.sent.get_mut(number)) {
            sent.committed = Some((clock::true_now(), code));
            (sent.version, sent.leads) = (version, leads);
        }
    }

    pub(super) fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// How many requests change something, and when the last was sent.
    pub(super) fn activity(&self) -> (usize, Option<Timestamp>) {
        (self.changes, self.last_change)
    }
}
