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
use crate::api::status::Reason;
use crate::apply::{SLOW, WriteError, Written};
use crate::plan::Uid;
use crate::plan::scopes::SecretKey;
use crate::secret::ownership::SecretRecord;
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

    /// Whether one more may begin, of so many at a time that are not slow, where the writer has `free` places: as many stay free
    /// as are taken here, so that writes that hang leave room for those of other `EcrCredentials`.
    pub(super) fn has_room(&self, concurrency: usize, free: usize) -> bool {
        let quick = || self.sent.values().filter(|sent| !is_older(sent, SLOW)).count();
        self.is_empty() || (self.sent.len() < free && quick() < concurrency)
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
        self.sent.insert(target.key(), sent.clone());
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
        self.sent.remove(&ended.target.key());
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
    // It may have waited for a slot. A process that is ending begins nothing new, and what was wanted then may not be wanted now.
    let is_wanted = || !ctx.stop.is_cancelled() && ctx.shared.state.lock().is_still(me, target);
    let begin = || is_wanted() && sent.set(Instant::now()).is_ok();
    let is_for_one = |desired: &&Desired| desired.of_one_namespace && !matches!(action, SecretAction::Delete(_));
    let content_of = desired.filter(is_for_one).map(|_| target.namespace_uid);
    let write = ctx.shared.write_begins(target.key(), content_of);
    let result = ctx.writer.perform(target, action, desired, begin).await;
    // The answer often comes before the watch event.
    match &result {
        // The data is what it was.
        Ok(Written::Stored(record)) if let SecretAction::Strip(before) = action => {
            write.stored(Arc::new(SecretRecord { trust: before.trust, ..(**record).clone() }), me);
        }
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
        // No answer, or one of a server in trouble.
        Err(WriteError::Refused(Reason::ApiError, _)) => write.unanswered(),
        Err(_) => write.refused(me),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::stage::{ACCOUNT, HOUR, NOW, Stage, at, token, uid};
    use super::super::watches::credential_ref;
    use super::*;
    use crate::api::EcrCredential;
    use crate::apply::Writer;
    use crate::plan::Identity;
    use crate::plan::namespaces::NamespaceUid;

    fn object(edit: serde_json::Value) -> EcrCredential {
        let mut spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": ["a", "b"] }, "secret": { "name": "pull" } });
        spec.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
            "metadata": { "name": "x", "uid": "x", "generation": 2 },
            "spec": spec,
        }))
        .unwrap()
    }

    fn change_spec(ctx: &Context, edit: serde_json::Value) {
        ctx.shared.state.lock().set_credential(&uid("x"), credential_ref(&object(edit), &ctx.limits));
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_hang_leave_room_for_those_of_other_ecrcredentials() {
        let mut free = 256;
        let mut taken = vec![];
        for _ in 0..9 {
            let mut in_flight = InFlight::default();
            while in_flight.has_room(32, free) {
                let key = SecretKey::new("pull", format!("n{}", in_flight.sent.len()));
                in_flight.sent.insert(key, Arc::new(OnceLock::from(Instant::now())));
                free -= 1;
                tokio::time::advance(SLOW).await;
            }
            taken.push(in_flight.sent.len());
        }
        assert_eq!(taken, [128, 64, 32, 16, 8, 4, 2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_that_are_not_slow_are_in_flight_at_a_time() {
        let mut in_flight = InFlight::default();
        while in_flight.has_room(32, 256 - in_flight.sent.len()) {
            in_flight.pretend(&SecretKey::new("pull", format!("n{}", in_flight.sent.len())), true);
        }
        assert_eq!(in_flight.sent.len(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_waited_for_a_slot_is_not_sent_when_it_is_not_wanted_any_more() {
        type Change = fn(&Context);
        let table: [(&str, Change, usize); 6] = [
            ("nothing has changed", |_| {}, 1),
            ("another field of the spec", |ctx| change_spec(ctx, json!({ "refresh": { "atPercent": 60 } })), 1),
            ("deleted", |ctx| drop(ctx.shared.state.lock().remove_credential(&uid("x"))), 0),
            ("suspended", |ctx| change_spec(ctx, json!({ "suspend": true })), 0),
            ("deselected", |ctx| change_spec(ctx, json!({ "namespaces": { "names": ["a"] } })), 0),
            (
                "its namespace was recreated",
                |ctx| {
                    let again = NamespaceUid::of("b again", Some(at(NOW)));
                    drop(ctx.shared.state.lock().set_namespace("b", again, &BTreeMap::new(), false));
                },
                0,
            ),
        ];
        for (name, change, expected) in table {
            let mut stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
            stage.ctx.writer = Writer::new(stage.server.client(), 1, Duration::from_secs(65));
            let token_spec = stage.plan.registries[0].token_specs[0].clone();
            let desired = stage.desired(&[(token_spec, token("p", NOW + HOUR, &Identity::operator()))].into());
            let Stage { ctx, server, .. } = stage;
            let ctx = Arc::new(ctx);
            let held = server.hold().await;
            let mut in_flight = InFlight::default();
            for namespace in ["a", "b"] {
                let target = ctx.shared.state.lock().target(&uid("x"), &SecretKey::new("pull", namespace)).unwrap();
                let desired = Some(Arc::new(desired.clone()));
                in_flight.begin(&ctx, &uid("x"), target, SecretAction::Create, desired);
            }
            while server.asked("/namespaces/a/secrets/pull") == 0 {
                tokio::task::yield_now().await;
            }
            change(&ctx);
            drop(held);
            while in_flight.next().await.is_some() {}
            assert_eq!(server.asked("/namespaces/b/secrets/pull"), expected, "{name}");
        }
    }
}
