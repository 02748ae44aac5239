//! The tokens of one group, those that all namespaces share or those of one namespace: what is due is asked for, what has
//! come is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::Context;
use crate::plan::refresh::{Demand, Held, Step, step};
use crate::plan::schedule::RefreshPolicy;
use crate::plan::targets::Incarnation;
use crate::plan::{Halt, Need, TokenKey, Uid};
use crate::secret::Published;
use crate::token::Grant;
use crate::token::cache::{Snapshot, Turn};

/// One group.
pub(super) struct Group<'a> {
    /// What its registries need.
    pub(super) needs: &'a BTreeSet<&'a Need>,
    /// The namespace that they are for, where each has its own.
    pub(super) target: Option<(&'a str, Incarnation)>,
    /// When its tokens are replaced.
    pub(super) policy: &'a RefreshPolicy,
    /// What the jitter of its refreshes is derived from.
    pub(super) seed: &'a str,
}

/// What each need comes to, or why to nothing.
pub(super) type Keys = BTreeMap<Need, Result<TokenKey, Halt>>;

/// What has become of a group.
pub(super) struct Progress {
    pub(super) step: Step,
    pub(super) keys: Keys,
    /// Whether anything was published.
    pub(super) changed: bool,
}

impl Progress {
    /// Why a need is not met, if the last try failed.
    pub(super) fn failure(&self, ctx: &Context, need: &Need) -> Option<Halt> {
        match self.keys.get(need)? {
            Err(halt) => Some(halt.clone()),
            Ok(key) => ctx
                .tokens
                .look(key)
                .failure
                .map(|failure| Halt { reason: failure.error.reason(), message: failure.error.to_string() }),
        }
    }
}

/// What each need comes to, in a namespace where each has its own.
pub(super) fn keys(ctx: &Context, needs: &BTreeSet<&Need>, target: Option<(&str, Incarnation)>) -> Keys {
    let world = ctx.shared.world.lock();
    let key = |need: &Need| {
        let identity = need.auth.resolve(target, &world.references)?;
        Ok(TokenKey { identity, service: need.service.clone() })
    };
    needs.iter().map(|need| ((*need).clone(), key(need))).collect()
}

impl Group<'_> {
    /// Asks for what is due, for `who`, and publishes what has come. That `who` wants these tokens is known already.
    pub(super) fn advance(
        &self,
        ctx: &Context,
        who: &Uid,
        keys: Keys,
        demand: Option<Demand>,
        published: &mut Published,
        now: Timestamp,
    ) -> Progress {
        published.retain(|need, _| self.needs.contains(need));
        // One look for the decision and for the act: in between, a token could be forgotten.
        let known: BTreeMap<&Need, Snapshot> = keys
            .iter()
            .map(|(need, key)| (need, key.as_ref().map(|key| ctx.tokens.look(key)).unwrap_or_default()))
            .collect();
        let held = keys
            .iter()
            .zip(known.values())
            .map(|((need, key), known)| (need.clone(), held(known, key.as_ref().ok(), published.get(need))))
            .collect();
        let step = step(self.policy, self.seed, now, demand, &held);
        let turn = if self.target.is_some() { Turn::InTurn } else { Turn::AtOnce };
        for key in step.fetch.iter().filter_map(|need| keys.get(need)?.as_ref().ok()) {
            ctx.tokens.request(key, who, turn);
        }
        for (need, _) in held.iter().filter(|(_, held)| held.in_flight) {
            if let Some(Ok(key)) = keys.get(need) {
                ctx.tokens.join(key, who);
            }
        }
        let mut changed = false;
        for need in &step.publish {
            if let Some(grant) = known.get(need).and_then(|known| known.grant.clone()) {
                published.insert(need.clone(), grant);
                changed = true;
            }
        }
        Progress { step, keys, changed }
    }
}

fn held(known: &Snapshot, key: Option<&TokenKey>, published: Option<&Arc<Grant>>) -> Held {
    Held {
        published: published.map(|grant| grant.life),
        outdated: published.zip(key).is_some_and(|(grant, key)| grant.identity != key.identity),
        cached: known.grant.as_ref().map(|grant| grant.life),
        in_flight: known.in_flight,
        retry_at: known.failure.as_ref().map(|failure| failure.retry_at),
        blocked: key.is_none(),
    }
}
