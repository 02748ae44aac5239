//! Finding the published tokens again after a restart: our Secrets are where they are kept.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::error::Error;
use super::world::Spot;
use super::{Context, Memory};
use crate::api::EcrCredentialStatus;
use crate::api::registry::{AccountId, Host};
use crate::api::status::RegistryStatus;
use crate::plan::schedule::Life;
use crate::plan::{Hosts, Plan, RegistryPlan, Service, TokenKey, Uid};
use crate::secret::docker_config::{self, Entries};
use crate::secret::ownership::SecretRecord;
use crate::token::{Grant, Token, TokenHash};

/// How many Secrets are read at most. All of them should be alike, and the first should do.
const MOST_READS: usize = 6;

/// How many Secrets of the same content are read at most.
const MOST_OF_A_KIND: usize = 3;

/// Reads one of our Secrets and takes from it every token whose hash the status vouches for. A Secret alone is not
/// believed: whoever can edit Secrets in one namespace must not be able to spread a login of theirs to all others.
pub(super) async fn recover(
    ctx: &Context,
    uid: &Uid,
    plan: &Plan,
    status: &EcrCredentialStatus,
    memory: &mut Memory,
    now: Timestamp,
) -> Result<(), Error> {
    if memory.recovered {
        return Ok(());
    }
    let wanted = |r: &&RegistryStatus| r.token_hash.is_some() && life(r).is_some_and(|life| life.is_valid(now));
    if status.registries.iter().any(|r| wanted(&r)) {
        let owned = ctx.shared.world.lock().owned_by(uid);
        for (name, namespace) in candidates(owned) {
            let json = match ctx.writer.read(&namespace, &name).await {
                Ok(Some(json)) => json,
                Ok(None) => continue,
                // One namespace that cannot be read must not hold up all others; there are more to ask.
                Err(kube::Error::Api(status)) => {
                    tracing::warn!(%namespace, secret = %name, error = status.message, "a Secret could not be read");
                    continue;
                }
                Err(error) => return Err(Error::Recover(error)),
            };
            let entries = docker_config::parse(&json);
            for vouched in status.registries.iter().filter(wanted) {
                take(ctx, plan, vouched, &entries, memory);
            }
            if plan.keys().into_iter().all(|key| memory.published.contains_key(key)) {
                break;
            }
        }
    }
    memory.recovered = true;
    Ok(())
}

/// Our Secrets, those of the most frequent content first.
fn candidates(owned: Vec<(Spot, Arc<SecretRecord>)>) -> impl Iterator<Item = Spot> {
    let mut kinds: HashMap<_, Vec<Spot>> = HashMap::new();
    for (spot, record) in owned {
        kinds.entry(record.footprint).or_default().push(spot);
    }
    let mut kinds: Vec<Vec<Spot>> = kinds.into_values().collect();
    kinds.sort_by(|a, b| (b.len(), b).cmp(&(a.len(), a)));
    kinds.into_iter().flat_map(|kind| kind.into_iter().take(MOST_OF_A_KIND)).take(MOST_READS)
}

fn life(status: &RegistryStatus) -> Option<Life> {
    Some(Life { issued_at: status.issued_at?, expires_at: status.expires_at? })
}

/// Takes the tokens of one registry for every registry of the plan that they serve.
fn take(ctx: &Context, plan: &Plan, vouched: &RegistryStatus, entries: &Entries, memory: &mut Memory) -> Option<()> {
    let life = life(vouched)?;
    let hosts: Vec<Host> = vouched.hosts.iter().filter_map(|host| Host::parse(host).ok()).collect();
    for registry in plan.registries.iter().filter(|r| Some(r.region().as_str()) == vouched.region.as_deref()) {
        let same = match &registry.hosts {
            Hosts::Named(named) => named.iter().map(|(host, _)| host).eq(&hosts),
            Hosts::Callers { .. } => !matches!(registry.keys.first()?.service, Service::Public),
        };
        let first = registry.keys.first()?;
        let logins: Vec<_> = hosts.iter().filter_map(|host| Some((host.as_str(), entries.get(host)?))).collect();
        let hash = TokenHash::of(&ctx.tokens.fingerprint(first), logins.into_iter());
        if !same || Some(hash.as_str()) != vouched.token_hash.as_deref() {
            continue;
        }
        for key in &registry.keys {
            if let Some(tokens) = tokens(registry, key, &hosts, entries) {
                let grant = Arc::new(Grant { tokens, life });
                // Without the caller's account it would not serve an EcrCredential that needs it for its hosts.
                if grant.caller().is_some() || key.service == Service::Public {
                    ctx.tokens.seed(key, &grant);
                }
                memory.published.entry(key.clone()).or_insert(grant);
            }
        }
    }
    Some(())
}

/// The tokens that one call gave: one, or one for each of its registry ids.
fn tokens(registry: &RegistryPlan, key: &TokenKey, hosts: &[Host], entries: &Entries) -> Option<Vec<Token>> {
    let host_of = |id: &AccountId| hosts.iter().find(|host| host.account().as_ref() == Some(id));
    match &key.service {
        Service::Private { registry_ids, .. } if !registry_ids.is_empty() => registry_ids
            .iter()
            .map(|id| Some(Token { auth: entries.get(host_of(id)?)?.clone(), account: Some(id.clone()) }))
            .collect(),
        _ => {
            let host = hosts.first()?;
            // Of named accounts it is not known which one is the caller's own.
            let account = matches!(registry.hosts, Hosts::Callers { .. }).then(|| host.account()).flatten();
            Some(vec![Token { auth: entries.get(host)?.clone(), account }])
        }
    }
}
