//! The tokens of one group, those that all namespaces share or those of one namespace: what is due is asked for, what has
//! come is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::Context;
use crate::api::status::Reason;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::refresh::{Demand, Held, Step, step};
use crate::plan::schedule::RefreshPolicy;
use crate::plan::scopes::Reference;
use crate::plan::{SpecError, TokenKey, TokenSpec, Uid};
use crate::secret::Published;
use crate::token::AuthorizationToken;
use crate::token::cache::{Dispatch, Snapshot};

/// One group.
pub(super) struct TokenGroup<'a> {
    /// What its registries need.
    pub(super) token_specs: &'a BTreeSet<&'a TokenSpec>,
    /// The namespace that they are for, where each has its own.
    pub(super) target: Option<(&'a str, NamespaceUid)>,
    /// When its tokens are replaced.
    pub(super) policy: &'a RefreshPolicy,
    /// What the jitter of its refreshes is derived from.
    pub(super) seed: &'a str,
}

/// The token key to which each token spec resolves, or why it does not.
pub(super) type Keys = BTreeMap<TokenSpec, Result<TokenKey, SpecError>>;

/// The token key to which a token spec resolves, if it does.
pub(super) fn resolved<'a>(keys: &'a Keys, token_spec: &TokenSpec) -> Option<&'a TokenKey> {
    keys.get(token_spec)?.as_ref().ok()
}

/// What has become of a group.
pub(super) struct Progress {
    pub(super) step: Step,
    pub(super) keys: Keys,
    /// What those needs refer to whose identities change too often.
    pub(super) limited: BTreeMap<TokenSpec, Reference>,
}

impl Progress {
    /// The needs that are not met, and why.
    pub(super) fn failures(&self, ctx: &Context) -> BTreeMap<&TokenSpec, SpecError> {
        self.keys.keys().filter_map(|token_spec| Some((token_spec, self.failure(ctx, token_spec)?))).collect()
    }

    /// Why a need is not met, if it is due and the last try failed, or why it is perhaps not met as it should be now.
    pub(super) fn failure(&self, ctx: &Context, token_spec: &TokenSpec) -> Option<SpecError> {
        let failure = match self.keys.get(token_spec)? {
            Err(problem) => Some(problem.clone()),
            Ok(key) => ctx
                .tokens
                .look(key)
                .failure
                .filter(|failure| self.step.due.get(token_spec).is_some_and(|since| *since <= failure.at))
                .map(|failure| failure.error.into()),
        };
        let Some(reference) = self.limited.get(token_spec) else { return failure };
        let limited =
            format!("{reference} changes too often: only one change in {} s takes effect", ctx.retry.max.as_secs());
        Some(match failure {
            Some(problem) => SpecError { message: format!("{}; {limited}", problem.message), ..problem },
            None => SpecError { reason: Reason::IdentityUnstable, message: limited },
        })
    }
}

/// What each need comes to, in a namespace where each has its own.
pub(super) fn keys(ctx: &Context, token_specs: &BTreeSet<&TokenSpec>, target: Option<(&str, NamespaceUid)>) -> Keys {
    let cluster = ctx.shared.state.lock();
    let key = |token_spec: &TokenSpec| {
        let identity = token_spec.auth.resolve(target, &cluster.references)?;
        Ok(TokenKey { identity, service: token_spec.service.clone() })
    };
    token_specs.iter().map(|token_spec| ((*token_spec).clone(), key(token_spec))).collect()
}

impl TokenGroup<'_> {
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
        // A token is for the `auth` that requested it: an edit of `auth` may select other namespaces as well.
        published.retain(|token_spec, _| keys.contains_key(token_spec));
        // One look for the decision and for the act: in between, a token could be forgotten.
        let known: BTreeMap<&TokenSpec, Snapshot> = keys
            .iter()
            .map(|(token_spec, key)| (token_spec, key.as_ref().map(|key| ctx.tokens.look(key)).unwrap_or_default()))
            .collect();
        let held = keys
            .iter()
            .zip(known.values())
            .map(|((token_spec, key), known)| {
                (token_spec.clone(), held(known, key.as_ref().ok(), published.get(token_spec)))
            })
            .collect();
        let step = step(self.policy, self.seed, now, demand, &held);
        let turn = if self.target.is_some() { Dispatch::Queued } else { Dispatch::Immediate };
        for key in step.fetch.iter().filter_map(|token_spec| resolved(&keys, token_spec)) {
            ctx.tokens.request(key, who, turn);
        }
        for (token_spec, _) in held.iter().filter(|(_, held)| held.in_flight) {
            if let Some(key) = resolved(&keys, token_spec) {
                ctx.tokens.join(key, who);
            }
        }
        for token_spec in &step.publish {
            if let Some(token) = known.get(token_spec).and_then(|known| known.token.clone()) {
                published.insert(token_spec.clone(), token);
            }
        }
        Progress { step, keys, limited: self.limited(ctx) }
    }

    /// What those needs refer to whose identities change too often.
    fn limited(&self, ctx: &Context) -> BTreeMap<TokenSpec, Reference> {
        let references = &ctx.shared.state.lock().references;
        // Almost always there is none, and thousands of namespaces are asked for.
        if !references.has_limited() {
            return BTreeMap::new();
        }
        let namespace = self.target.map(|(namespace, _)| namespace);
        let reference =
            |token_spec: &TokenSpec| token_spec.auth.reference_in(namespace).filter(|of| references.is_limited(of));
        self.token_specs.iter().filter_map(|token_spec| Some(((*token_spec).clone(), reference(token_spec)?))).collect()
    }
}

fn held(known: &Snapshot, key: Option<&TokenKey>, published: Option<&Arc<AuthorizationToken>>) -> Held {
    Held {
        published: published.map(|token| token.life),
        outdated: published.zip(key).is_some_and(|(token, key)| token.identity != key.identity),
        cached: known.token.as_ref().map(|token| token.life),
        in_flight: known.in_flight,
        retry_at: known.failure.as_ref().map(|failure| failure.retry_at),
        blocked: key.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::stage::{ACCOUNT, HOUR, NOW, Stage, at, pass, token};
    use super::*;
    use crate::plan::Identity;
    use crate::plan::schedule::Life;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_of_a_token_that_is_due_and_of_none_that_is_fetched_early() {
        let mut stage = Stage::new(json!([
            { "private": { "region": "eu-west-1", "accountIds": [ACCOUNT] } },
            { "private": { "region": "eu-central-1", "accountIds": [ACCOUNT] } },
        ]));
        let [due, early] = [0, 1].map(|number| stage.plan.registries[number].token_specs[0].clone());
        let issued = |hours| {
            let life = Life { issued_at: at(NOW - hours * HOUR), expires_at: at(NOW + (12 - hours) * HOUR) };
            Arc::new(AuthorizationToken { life, ..(*token("p", NOW, &Identity::operator())).clone() })
        };
        let mut published: Published = [(due.clone(), issued(6)), (early.clone(), issued(5))].into();
        let token_specs = BTreeSet::from([&due, &early]);
        let group = TokenGroup { token_specs: &token_specs, target: None, policy: &stage.plan.refresh, seed: "x" };
        let advance = |stage: &Stage, published: &mut Published| {
            let keys = keys(&stage.ctx, &token_specs, None);
            stage.ctx.tokens.want(&stage.uid, keys.values().flatten().cloned().collect());
            group.advance(&stage.ctx, &stage.uid, keys, None, published, stage.ctx.clock.now())
        };
        let fails = |stage: &Stage, published: &mut Published| {
            let progress = advance(stage, published);
            [&due, &early].map(|token_spec| progress.failure(&stage.ctx, token_spec).is_some())
        };
        stage.aws.fails();
        assert_eq!(advance(&stage, &mut published).step.fetch.len(), 2, "they are refreshed together");
        for _ in 0..2 {
            stage.queue.recv().await;
        }
        assert_eq!(fails(&stage, &mut published), [true, false]);
        published.insert(due.clone(), issued(0));
        assert_eq!(fails(&stage, &mut published), [false, false]);
        pass(Duration::from_secs(3600));
        assert_eq!(fails(&stage, &mut published), [false, false], "it has become due, and has not failed since");
        stage.queue.recv().await;
        assert_eq!(fails(&stage, &mut published), [false, true]);
    }
}
