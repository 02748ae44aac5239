//! Which faults are set, on which calls, and how often they still strike.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::fault::Fault;
use super::gate::Gate;
use super::{Inner, Service};

/// A fault about to be set: say on which calls, then how often.
#[must_use = "a fault strikes only after times(n) or until_cleared()"]
pub struct FaultBuilder {
    pub(super) inner: Arc<Inner>,
    pub(super) plan: Plan,
}

impl FaultBuilder {
    /// Only on this API, `GetAuthorizationToken` or `AssumeRoleWithWebIdentity`.
    pub fn on_api(mut self, api: &str) -> Self {
        self.plan.api = Some(api.to_owned());
        self
    }

    /// Only on calls that are signed for this region.
    pub fn in_region(mut self, region: &str) -> Self {
        self.plan.region = Some(region.to_owned());
        self
    }

    /// Only on calls of this role's sessions, and on web identities that ask for it.
    pub fn for_role(mut self, arn: &str) -> Self {
        self.plan.role = Some(arn.to_owned());
        self
    }

    /// On the next `n` such calls.
    pub fn times(self, n: u32) -> FaultHandle {
        self.set(Some(n))
    }

    pub fn until_cleared(self) -> FaultHandle {
        self.set(None)
    }

    fn set(mut self, left: Option<u32>) -> FaultHandle {
        self.plan.left = left;
        let id = self.inner.faults.set(self.plan);
        FaultHandle { inner: self.inner, id }
    }
}

/// A fault that was set; it stays when the handle is dropped.
pub struct FaultHandle {
    inner: Arc<Inner>,
    id: u64,
}

impl FaultHandle {
    pub fn clear(&self) {
        self.inner.faults.clear(|plan| plan.id == self.id);
    }

    /// How many calls it has struck.
    pub fn hits(&self) -> u32 {
        self.inner.faults.hits(self.id)
    }
}

/// A fault with its filter and its count.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    id: u64,
    service: Service,
    fault: Fault,
    api: Option<String>,
    region: Option<String>,
    role: Option<String>,
    left: Option<u32>,
    hits: u32,
    cleared: bool,
}

impl Plan {
    pub(super) fn new(service: Service, fault: Fault) -> Self {
        Plan { id: 0, service, fault, api: None, region: None, role: None, left: None, hits: 0, cleared: false }
    }

    fn is_live(&self) -> bool {
        !self.cleared && self.left != Some(0)
    }

    fn matches(&self, call: &Target<'_>) -> bool {
        let fits = |filter: &Option<String>, value: Option<&str>| filter.is_none() || filter.as_deref() == value;
        let here = self.is_live() && self.service == call.service;
        here && fits(&self.api, Some(call.api)) && fits(&self.region, call.region) && fits(&self.role, call.role)
    }
}

/// The parts of a call that a fault's filter looks at.
pub(super) struct Target<'a> {
    pub(super) service: Service,
    pub(super) api: &'a str,
    pub(super) region: Option<&'a str>,
    pub(super) role: Option<&'a str>,
}

pub(super) struct Faults {
    plans: Mutex<Vec<Plan>>,
    changes: watch::Sender<u64>,
    gates: [Gate; 3],
}

impl Default for Faults {
    fn default() -> Self {
        Faults { plans: Mutex::default(), changes: watch::Sender::new(0), gates: Default::default() }
    }
}

impl Faults {
    fn set(&self, mut plan: Plan) -> u64 {
        let id = {
            let mut plans = self.plans.lock();
            plan.id = plans.len() as u64;
            plans.push(plan);
            plans.len() as u64 - 1
        };
        self.settle();
        id
    }

    pub(super) fn clear(&self, matching: impl Fn(&Plan) -> bool) {
        self.plans.lock().iter_mut().filter(|plan| matching(plan)).for_each(|plan| plan.cleared = true);
        self.settle();
    }

    fn hits(&self, id: u64) -> u32 {
        self.plans.lock().get(id as usize).map_or(0, |plan| plan.hits)
    }

    /// The first fault that fits the call, counted; with its id, to await its end.
    pub(super) fn strike(&self, call: &Target<'_>) -> Option<(u64, Fault)> {
        let mut plans = self.plans.lock();
        let plan = plans.iter_mut().find(|plan| plan.matches(call))?;
        plan.hits += 1;
        plan.left = plan.left.map(|left| left - 1);
        Some((plan.id, plan.fault.clone()))
    }

    /// Returns once the fault was cleared.
    pub(super) async fn cleared(&self, id: u64) {
        let mut changes = self.changes.subscribe();
        let is_cleared = || self.plans.lock().get(id as usize).is_none_or(|plan| plan.cleared);
        let _ = changes.wait_for(|_| is_cleared()).await;
    }

    pub(super) fn gate(&self, service: Service) -> &Gate {
        &self.gates[service as usize]
    }

    /// Opens and closes the ports as the live faults say, and wakes who waits for a fault's end.
    fn settle(&self) {
        for service in Service::ALL {
            let refuses = |plan: &Plan| plan.service == service && matches!(plan.fault, Fault::Refused);
            let closed = self.plans.lock().iter().any(|plan| plan.is_live() && refuses(plan));
            self.gate(service).set_closed(closed);
        }
        self.changes.send_modify(|change| *change += 1);
    }
}
