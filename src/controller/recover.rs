//! Finding the published tokens again after a restart: our Secrets are where they are kept.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::tenant::{Tenant, TenantContext, TenantRecovery, own_token_specs};
use super::tokens::{Keys, keys, resolved};
use super::{Context, CredentialState};
use crate::api::EcrCredentialStatus;
use crate::api::registry::{AccountId, Host, Region};
use crate::api::status::RegistryStatus;
use crate::apply::Found;
use crate::plan::outputs::SecretPlan;
use crate::plan::schedule::{Life, RetryPolicy};
use crate::plan::scopes::SecretKey;
use crate::plan::{Hosts, Identity, Plan, RegistryPlan, Service, TokenSpec, Uid};
use crate::secret::docker_config::Entries;
use crate::secret::formats;
use crate::secret::ownership::SecretRecord;
use crate::secret::{self, Published, registry_entries};
use crate::token::{AuthorizationToken, DockerAuth, Token, TokenHash};

/// How many Secrets are read at most. All of them should be alike, and the first should do.
const MOST_READS: usize = 6;

/// How many Secrets of the same content are read at most.
const MOST_OF_A_KIND: usize = 3;

/// How long to wait before Secrets that could not be read are read again.
const AGAIN: RetryPolicy = RetryPolicy { initial: Duration::from_secs(5), max: Duration::from_secs(60) };

/// How long one pass may take in all: tokens, writes and status wait for it.
pub(super) const PASS: Duration = Duration::from_secs(10);

/// How far the tokens of the process before were found again.
#[derive(Default)]
pub(super) enum Recovery {
    /// Nothing was read yet.
    #[default]
    Due,
    /// Secrets could not be read, and tokens that the status vouched for are missing.
    Again {
        /// What is missing, and which Secrets were tried.
        search: Search,
        /// When to read Secrets again.
        next: NextPass,
    },
    /// There is no more to find.
    Done,
}

/// The time of the next pass, after some in which Secrets could not be read.
#[derive(Clone, Copy)]
pub(super) struct NextPass {
    /// How many have failed so.
    failures: u32,
    /// When the next one begins.
    pub(super) at: Instant,
}

impl NextPass {
    /// The pass that follows one which has failed.
    pub(super) fn after(failed: Option<Self>, policy: RetryPolicy, seed: &str) -> Self {
        let failures = failed.map_or(0, |failed| failed.failures).saturating_add(1);
        Self { failures, at: Instant::now() + policy.delay(failures, 1, seed) }
    }

    /// Whether it is time for it.
    pub(super) fn is_due(&self) -> bool {
        self.at <= Instant::now()
    }
}

/// A search for tokens in our Secrets.
#[derive(Default)]
pub(super) struct Search {
    /// What the status vouched for when the search began, as far as it is missing. The status vouches for it no more.
    vouched: Vec<RegistryStatus>,
    /// The Secrets that were read.
    read: HashSet<SecretKey>,
    /// What was in them. Several outputs, of one host each, may together have all hosts of a registry.
    entries: Entries,
    /// The Secrets that could not be read. The first was tried the longest time ago.
    unread: Vec<SecretKey>,
}

impl Search {
    /// The Secrets of one pass: first those that were not tried yet.
    fn candidates(&mut self, mut owned: Vec<(SecretKey, Arc<SecretRecord>)>) -> Vec<SecretKey> {
        let tried: HashSet<_> = self.read.iter().chain(&self.unread).collect();
        owned.retain(|(key, _)| !tried.contains(key));
        let mut candidates: Vec<SecretKey> = candidates(owned).collect();
        let rest = self.unread.len().min(MOST_READS - candidates.len());
        candidates.extend(self.unread.drain(..rest));
        candidates
    }
}

impl Recovery {
    /// Takes the search, if it is time for a pass, and which pass it is unless it is the first. If the pass panics, none follows.
    fn take(&mut self, status: &EcrCredentialStatus) -> Option<(Search, Option<NextPass>)> {
        match std::mem::replace(self, Self::Done) {
            Self::Due => Some((Search { vouched: status.registries.clone(), ..Search::default() }, None)),
            Self::Again { search, next } if next.is_due() => Some((search, Some(next))),
            waiting => {
                *self = waiting;
                None
            }
        }
    }

    /// The next pass, if Secrets could not be read and tokens are missing.
    pub(super) const fn next_pass(&self) -> Option<&NextPass> {
        match self {
            Self::Again { next, .. } => Some(next),
            Self::Due | Self::Done => None,
        }
    }
}

/// Reads some of our Secrets and takes from them every token whose hash the status vouches for. A Secret alone is not
/// believed: whoever can edit Secrets in one namespace must not be able to spread a login of theirs to all others.
///
/// A pass ends in time whatever the API server does, and fails nobody. What it has not found is requested from AWS like any other
/// missing token, and searched for in later passes as long as AWS has not issued it.
pub(super) async fn recover(
    ctx: &Context,
    uid: &Uid,
    plan: &Plan,
    token_specs: &BTreeSet<&TokenSpec>,
    status: &EcrCredentialStatus,
    state: &mut CredentialState,
    now: Timestamp,
) {
    let Some((mut search, pass)) = state.recovery.take(status) else { return };
    let deadline = Instant::now() + PASS;
    let shared = SharedTokens { ctx, plan, token_specs, keys: keys(ctx, token_specs, None) };
    let published = &mut state.published;
    let vouches = |r: &RegistryStatus| r.token_hash.is_some() || r.auth_hash.is_some();
    search.vouched.retain(|r| vouches(r) && life(r).is_some_and(|life| life.is_valid(now)));
    search.vouched.retain(|r| !shared.take_known(r, published) && shared.is_missing(r, published));
    let mut candidates = if search.vouched.is_empty() {
        Vec::new()
    } else {
        let owned = ctx.shared.state.lock().owned_by(uid);
        search.candidates(owned)
    }
    .into_iter();
    while let Some(key) = candidates.next() {
        let SecretKey { namespace, name } = &key;
        match read(ctx, namespace, name, deadline).await {
            Ok(found) => {
                search.entries.extend(found.iter().flat_map(|found| formats::parse(&found.data, host_of(plan, name))));
                search.read.insert(key);
            }
            // One Secret that cannot be read must not hold up all others; there are more to read.
            Err(Unread) if Instant::now() < deadline => {
                search.unread.push(key);
                continue;
            }
            Err(Unread) => {
                // The one that took so long is tried last.
                search.unread.splice(0..0, candidates.by_ref());
                search.unread.push(key);
                break;
            }
        }
        let Search { vouched, entries, .. } = &mut search;
        vouched.retain(|r| !shared.take(r, entries, published) && shared.is_missing(r, published));
        if search.vouched.is_empty() {
            break;
        }
    }
    if !search.unread.is_empty() && !search.vouched.is_empty() {
        state.recovery = Recovery::Again { search, next: NextPass::after(pass, AGAIN, &uid.0) };
    }
}

/// A Secret could not be read in time. The log says why.
struct Unread;

/// Reads one of our Secrets; none if it is gone.
async fn read(ctx: &Context, namespace: &str, name: &str, deadline: Instant) -> Result<Option<Found>, Unread> {
    match tokio::time::timeout_at(deadline, ctx.writer.read(namespace, name)).await {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(error)) => tracing::warn!(%namespace, secret = %name, %error, "a Secret could not be read"),
        Err(_) => tracing::warn!(%namespace, secret = %name, "a Secret could not be read in time"),
    }
    Err(Unread)
}

/// The tokens that all namespaces share, which are searched for.
struct SharedTokens<'a> {
    ctx: &'a Context,
    plan: &'a Plan,
    token_specs: &'a BTreeSet<&'a TokenSpec>,
    keys: Keys,
}

impl SharedTokens<'_> {
    /// Whether a token is missing that may be the one which the status vouches for. Where no token was, none is searched for.
    fn is_missing(&self, vouched: &RegistryStatus, published: &Published) -> bool {
        let hosts = hosts(vouched);
        let registries = self.plan.registries.iter().filter(|registry| may_be_of(registry, vouched, &hosts));
        let mut needed = registries.flat_map(|registry| &registry.token_specs);
        needed.any(|token_spec| self.token_specs.contains(token_spec) && !published.contains_key(token_spec))
    }

    /// Takes tokens that another `EcrCredential` has found already, where they are the ones that the status vouches for: thousands
    /// that share a token must not read a Secret each. Returns whether it has taken any.
    fn take_known(&self, vouched: &RegistryStatus, published: &mut Published) -> bool {
        let known = |token_spec: &TokenSpec| {
            Some((token_spec.clone(), self.ctx.tokens.look(resolved(&self.keys, token_spec)?).token?))
        };
        let mut taken = false;
        for registry in self.plan.registries.iter().filter(|registry| is_in_region(registry, vouched)) {
            let tokens: Published = registry.token_specs.iter().filter_map(known).collect();
            let logins = registry_entries(registry, &tokens).unwrap_or_default();
            let Some(identity) = tokens.values().next().map(|token| &token.identity) else { continue };
            let hash = self.ctx.hash(identity, &logins);
            if !logins.is_empty() && Some(hash.as_str()) == vouched.token_hash.as_deref() {
                taken = true;
                for (token_spec, token) in tokens {
                    published.entry(token_spec).or_insert(token);
                }
            }
        }
        taken
    }

    /// Takes the tokens of one registry for every registry of the plan that they serve. Returns whether it has taken any.
    fn take(&self, vouched: &RegistryStatus, entries: &Entries, published: &mut Published) -> bool {
        let Some(life) = life(vouched) else { return false };
        let hosts = hosts(vouched);
        let logins: Vec<_> = hosts.iter().filter_map(|host| Some((host.clone(), entries.get(host)?))).collect();
        let mut taken = false;
        for registry in self.plan.registries.iter().filter(|registry| may_be_of(registry, vouched, &hosts)) {
            let Some(first) = registry.token_specs.first() else { continue };
            if !self.is_vouched(first, vouched, &logins) {
                continue;
            }
            for token_spec in &registry.token_specs {
                let key = resolved(&self.keys, token_spec);
                let identity = key.map_or_else(Identity::unresolved, |key| key.identity.clone());
                if let Some(tokens) = tokens(registry, token_spec, &hosts, entries) {
                    let token = Arc::new(AuthorizationToken { tokens, life, identity });
                    // Without the caller's account it would not serve an EcrCredential that needs it for its hosts.
                    if let Some(key) = key.filter(|key| token.caller().is_some() || key.service == Service::Public) {
                        self.ctx.tokens.seed(key, &token);
                    }
                    published.entry(token_spec.clone()).or_insert(token);
                    taken = true;
                }
            }
        }
        taken
    }

    /// Whether these are the tokens that the status vouches for, fetched with the current identity. While `auth` resolves to no identity,
    /// it must be the same `auth` as then: its tokens are valid until they expire.
    fn is_vouched(&self, token_spec: &TokenSpec, vouched: &RegistryStatus, logins: &[(Host, &DockerAuth)]) -> bool {
        let (hash, told) = match resolved(&self.keys, token_spec) {
            Some(key) => (self.ctx.hash(&key.identity, logins), &vouched.token_hash),
            None => (auth_hash(token_spec, logins), &vouched.auth_hash),
        };
        Some(hash.as_str()) == told.as_deref()
    }
}

/// The host of a Secret that holds the login of one.
fn host_of<'a>(plan: &'a Plan, secret_name: &str) -> Option<&'a Host> {
    plan.secret_named(secret_name).and_then(|secret| secret.host.as_ref())
}

/// Our Secrets: those that hold every host first, and of them those of the most frequent content.
fn candidates(owned: Vec<(SecretKey, Arc<SecretRecord>)>) -> impl Iterator<Item = SecretKey> {
    let mut kinds: HashMap<_, Vec<SecretKey>> = HashMap::new();
    for (key, record) in owned {
        kinds.entry((!record.format.is_of_one_host(), record.digest)).or_default().push(key);
    }
    let mut kinds: Vec<(bool, Vec<SecretKey>)> = kinds.into_iter().map(|((whole, _), spots)| (whole, spots)).collect();
    kinds.sort_by(|(a_whole, a), (b_whole, b)| (b_whole, b.len(), b).cmp(&(a_whole, a.len(), a)));
    kinds.into_iter().flat_map(|(_, kind)| kind.into_iter().take(MOST_OF_A_KIND)).take(MOST_READS)
}

fn life(status: &RegistryStatus) -> Option<Life> {
    Some(Life { issued_at: status.issued_at?, expires_at: status.expires_at? })
}

/// The hosts in the status of a registry.
fn hosts(vouched: &RegistryStatus) -> Vec<Host> {
    vouched.hosts.iter().filter_map(|host| Host::parse(host).ok()).collect()
}

fn is_in_region(registry: &RegistryPlan, vouched: &RegistryStatus) -> bool {
    registry.region.as_ref().map(Region::as_str) == vouched.region.as_deref()
}

/// Whether a status may be that of this registry, as far as its region and its hosts tell.
fn may_be_of(registry: &RegistryPlan, vouched: &RegistryStatus, hosts: &[Host]) -> bool {
    is_in_region(registry, vouched)
        && match &registry.hosts {
            // A status leaves out the hosts that another registry has.
            Hosts::Named(named) => {
                !hosts.is_empty() && hosts.iter().all(|host| named.iter().any(|(named, _)| named == host))
            }
            Hosts::Callers { .. } => {
                registry.token_specs.first().is_some_and(|first| !matches!(first.service, Service::Public))
            }
        }
}

/// By what a status vouches for the logins of a registry while nobody can tell who has fetched them.
pub(super) fn auth_hash(token_spec: &TokenSpec, logins: &[(Host, &DockerAuth)]) -> TokenHash {
    TokenHash::of(&format!("auth/{}", token_spec.auth.digest()), logins)
}

/// Whether a namespace that has an identity of its own has a Secret that may hold its tokens.
pub(super) fn may_recover(context: &TenantContext<'_>, namespace: &Arc<str>, now: Timestamp) -> bool {
    context.plan.secrets().any(|secret| own_record(context, secret, namespace, now).is_some())
}

/// The record of one Secret, if it is ours and not expired.
fn own_record(
    context: &TenantContext<'_>,
    secret: &SecretPlan,
    namespace: &Arc<str>,
    now: Timestamp,
) -> Option<Arc<SecretRecord>> {
    let TenantContext { ctx, owner, .. } = context;
    let record = ctx.shared.state.lock().record(&secret.name, namespace).cloned()?;
    let is_valid = record.valid_until(ctx.clock.latest()).is_some_and(|at| at > now);
    (record.owner.as_ref() == Some(&owner.uid) && is_valid).then_some(record)
}

/// Reads the Secrets of a namespace that has an identity of its own, and takes the tokens of each that is just as we would write
/// it with them. A login forged by a tenant would go nowhere but where it came from. `shared_known`: what all namespaces share, which
/// is in the Secret as well, is not searched for any more.
pub(super) async fn recover_tenant(
    context: &TenantContext<'_>,
    namespace: &Arc<str>,
    tenant: &mut Tenant,
    shared_known: bool,
    deadline: Instant,
    now: Timestamp,
) {
    tenant.recovery = TenantRecovery::Done;
    let begun = Instant::now();
    let token_specs = own_token_specs(context.plan);
    let mut unread = false;
    // A Secret of one host says of its token alone how old it is, one of several hosts of all of them together.
    let (single, several): (Vec<_>, Vec<_>) = context.plan.secrets().partition(|secret| secret.host.is_some());
    for secret in single.into_iter().chain(several) {
        if token_specs.iter().all(|token_spec| tenant.published.contains_key(*token_spec)) {
            return;
        }
        match recover_from(context, secret, namespace, tenant, deadline, now).await {
            Ok(as_expected) => unread |= !as_expected && !shared_known,
            Err(Unread) => unread = true,
        }
    }
    if unread && token_specs.iter().any(|token_spec| !tenant.published.contains_key(*token_spec)) {
        tenant.recovery = TenantRecovery::Unread(begun);
    }
}

/// Returns whether the Secret is as we would write it, or nothing is to be taken from it.
async fn recover_from(
    context: &TenantContext<'_>,
    secret: &SecretPlan,
    namespace: &Arc<str>,
    tenant: &mut Tenant,
    deadline: Instant,
    now: Timestamp,
) -> Result<bool, Unread> {
    let TenantContext { ctx, plan, .. } = context;
    let Some(record) = own_record(context, secret, namespace, now) else { return Ok(true) };
    let Some(expires_at) = record.expires_at else { return Ok(true) };
    let Some(found) = read(ctx, namespace, &secret.name, deadline).await? else { return Ok(true) };
    let Some(issued_at) = found.refreshed_at else { return Ok(true) };
    let entries = formats::parse(&found.data, secret.host.as_ref());
    let keys = keys(ctx, &own_token_specs(plan), Some((&**namespace, tenant.namespace_uid)));
    let before = tenant.published.clone();
    for registry in plan.registries.iter().filter(|registry| registry.is_each_targets()) {
        let hosts = own_hosts(registry, &entries);
        for token_spec in registry.token_specs.iter().filter(|token_spec| !before.contains_key(*token_spec)) {
            let tokens = tokens(registry, token_spec, &hosts, &entries);
            if let Some((tokens, key)) = tokens.zip(resolved(&keys, token_spec)) {
                let (life, identity) = (Life { issued_at, expires_at }, key.identity.clone());
                let token = Arc::new(AuthorizationToken { tokens, life, identity });
                tenant.published.insert(token_spec.clone(), token);
            }
        }
    }
    let as_found = secret::bundle(plan, context.owner, &tenant.with(context.shared), context.included, now);
    // Of a token that all share, the identity may be unknown: then it is the one that the Secret records. So a restart calls nothing.
    let expected = as_found.ok().and_then(|bundle| bundle.get(&secret.name).map(|desired| desired.digest_of(&record)));
    let as_expected = expected == Some(record.digest);
    if !as_expected {
        tenant.published = before;
    }
    Ok(as_expected)
}

/// The hosts of a registry in a Secret: as the spec names them, or those of the one account that has them all.
pub fn own_hosts(registry: &RegistryPlan, entries: &Entries) -> Vec<Host> {
    match &registry.hosts {
        Hosts::Named(named) => named.iter().map(|(host, _)| host.clone()).collect(),
        Hosts::Callers { .. } => {
            let accounts: BTreeSet<AccountId> = entries.keys().filter_map(Host::account).collect();
            let all = |account: &AccountId| registry.hosts.resolve(Some(account)).ok();
            let complete = accounts.iter().filter_map(all).filter(|h| h.iter().all(|(h, _)| entries.contains_key(h)));
            let mut complete = complete.map(|hosts| hosts.into_iter().map(|(host, _)| host).collect());
            // Of several it cannot be told which is the caller's own.
            complete.next().filter(|_| complete.next().is_none()).unwrap_or_default()
        }
    }
}

/// The tokens that one call gave: one, or one for each of its registry ids.
pub fn tokens(
    registry: &RegistryPlan,
    token_spec: &TokenSpec,
    hosts: &[Host],
    entries: &Entries,
) -> Option<Vec<Token>> {
    let host_of = |id: &AccountId| hosts.iter().find(|host| host.account().as_ref() == Some(id));
    match &token_spec.service {
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

#[cfg(test)]
mod tests;
