//! What each Secret should look like, and what has to change in each namespace for that.

pub mod docker_config;
pub mod metadata;
pub mod ownership;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

use crate::api::registry::{AccountId, Host};
use crate::api::status::Reason;
use crate::api::{ConflictPolicy, DeletionPolicy};
use crate::encoding::Fields;
use crate::plan::schedule::{Life, until};
use crate::plan::targets::Incarnation;
use crate::plan::{Halt, Hosts, HostsError, Need, Plan, RegistryPlan, Uid, host_taken};
use crate::token::{Auth, Grant, Token};
use docker_config::{DockerConfig, Entries};
use ownership::{Footprint, SecretRecord, Standing};

/// The name under which the API server records what we write, and the value of `app.kubernetes.io/managed-by`.
pub const FIELD_MANAGER: &str = "ecr-credential-operator";
/// The label that says who manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label with the name of the `EcrCredential`.
pub const CREDENTIAL: &str = "pullsecrets.dev/credential";
/// The label with the uid of the `EcrCredential`.
pub const CREDENTIAL_UID: &str = "pullsecrets.dev/credential-uid";
/// The annotation with the earliest expiry in the Secret, RFC 3339.
pub const EXPIRES_AT: &str = "pullsecrets.dev/expires-at";
/// The annotation with the time of the youngest password in the Secret, RFC 3339.
pub const REFRESHED_AT: &str = "pullsecrets.dev/refreshed-at";
/// The annotation with a SHA-256 over the data.
pub const CONTENT_HASH: &str = "pullsecrets.dev/content-hash";

/// The annotation with 16 hexadecimal digits over the hosts: expiries are compared between Secrets with the same hosts only.
pub const HOSTS_HASH: &str = "pullsecrets.dev/hosts-hash";

/// The annotation with a hash over the identities that fetched the logins.
pub const IDENTITY_HASH: &str = "pullsecrets.dev/identity-hash";

/// The greatest data of a Secret in bytes (k8s.io/api/core/v1, MaxSecretSize).
const MAX_SECRET_BYTES: usize = 1024 * 1024;

/// The tokens published by one `EcrCredential`.
pub type Published = BTreeMap<Need, Arc<Grant>>;

/// The `EcrCredential` as its Secrets name it.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
}

/// One Secret as it should be, alike in every namespace.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Labels, annotations and owner reference; no name.
    pub metadata: ObjectMeta,
    /// The data.
    pub config: DockerConfig,
    /// How a Secret written so looks in its metadata.
    pub footprint: Footprint,
    /// The expiry recorded on it.
    pub expires_at: Timestamp,
    /// The hash over the identities that fetched its logins, recorded on it.
    pub identity: u64,
    /// Whether a registry of the spec has no token in memory, or hosts that are left out, so that its login is missing here
    /// though an existing Secret may have a good one.
    pub incomplete: bool,
    /// Whether it holds a login that is meant for one namespace alone.
    pub of_one_namespace: bool,
    /// Whether it has any login: one without is written over an old one, but never created.
    pub has_entries: bool,
}

/// Why there is no desired Secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// More than Kubernetes takes.
    #[error(
        "the Secret would have {0} bytes, and Kubernetes allows 1048576: split the accounts and host variants over several EcrCredentials with Secrets of their own"
    )]
    TooLarge(usize),
    /// It cannot be written as JSON.
    #[error("the Secret cannot be rendered")]
    Render,
}

/// The logins of one registry, from the tokens published for it.
///
/// # Errors
/// The hosts cannot be told.
pub fn registry_entries<'a>(
    registry: &RegistryPlan,
    published: &'a Published,
) -> Result<Vec<(Host, &'a Auth)>, HostsError> {
    let grants: Vec<&Arc<Grant>> = registry.needs.iter().filter_map(|need| published.get(need)).collect();
    if grants.len() != registry.needs.len() {
        return Ok(Vec::new());
    }
    let hosts = registry.hosts.resolve(grants.first().and_then(|g| g.caller()))?;
    Ok(hosts.into_iter().filter_map(|(host, account)| Some((host, &login(&grants, account.as_ref())?.auth))).collect())
}

/// A host that two registries would fill with different passwords. The earlier one has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenHost {
    /// The host.
    pub host: Host,
    /// The number of the registry that has it.
    pub earlier: usize,
    /// The number of the registry that cannot have it.
    pub later: usize,
}

/// Every host that two registries would fill with different passwords. Hosts named in the spec are compared by the plan;
/// those of the caller's own account are known only with its token.
pub fn taken_hosts(plan: &Plan, published: &Published) -> Vec<TakenHost> {
    let mut taken = Vec::new();
    if plan.registries.len() < 2 || !plan.registries.iter().any(|r| matches!(r.hosts, Hosts::Callers { .. })) {
        return taken;
    }
    let mut owners: BTreeMap<Host, usize> = BTreeMap::new();
    for (later, registry) in plan.registries.iter().enumerate() {
        for (host, _) in registry_entries(registry, published).unwrap_or_default() {
            let earlier = *owners.entry(host.clone()).or_insert(later);
            if plan.registries.get(earlier).is_some_and(|other| other.needs != registry.needs) {
                taken.push(TakenHost { host, earlier, later });
            }
        }
    }
    taken
}

impl From<&TakenHost> for Halt {
    fn from(TakenHost { host, earlier, later }: &TakenHost) -> Self {
        host_taken(host, *earlier, *later)
    }
}

/// The logins that stand in a Secret.
#[derive(Default)]
struct Logins {
    entries: Entries,
    /// The lives of their tokens.
    alive: Vec<Life>,
    /// The lives of all tokens that there is room for, also of those that have expired.
    all: Vec<Life>,
    /// The registries whose logins there is no room for.
    left_out: Vec<usize>,
    /// How large the Secret would be with those of all.
    bytes: usize,
}

/// A registry whose logins do not fit into the Secret beside those of the registries before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The number of the registry.
    pub number: usize,
    /// How large the Secret would be with the logins of all, in bytes.
    pub bytes: usize,
}

impl From<&LeftOut> for Halt {
    fn from(LeftOut { number, bytes }: &LeftOut) -> Self {
        let message = format!("spec.registries[{number}]: {}", DesiredError::TooLarge(*bytes));
        Self { reason: Reason::InvalidSpec, message }
    }
}

/// Every registry whose logins do not fit.
pub fn left_out(plan: &Plan, published: &Published, now: Timestamp) -> Vec<LeftOut> {
    let logins = logins(plan, published, now);
    let bytes = logins.bytes;
    logins.left_out.into_iter().map(|number| LeftOut { number, bytes }).collect()
}

/// Takes the logins of the registries in their order, as long as there is room.
fn logins(plan: &Plan, published: &Published, now: Timestamp) -> Logins {
    let mut logins = Logins { bytes: docker_config::EMPTY_BYTES, ..Logins::default() };
    let mut room = MAX_SECRET_BYTES.saturating_sub(logins.bytes);
    let taken = taken_hosts(plan, published);
    for (number, registry) in plan.registries.iter().enumerate() {
        let lives: Vec<Life> = registry.needs.iter().filter_map(|need| published.get(need)).map(|g| g.life).collect();
        if lives.iter().any(|life| !life.is_valid(now)) {
            logins.all.extend(lives);
            continue;
        }
        // Hosts that cannot be told are reported with the registry; the others go on.
        let mut entries: BTreeMap<Host, &Auth> =
            registry_entries(registry, published).unwrap_or_default().into_iter().collect();
        entries.retain(|host, _| !taken.iter().any(|taken| taken.later == number && taken.host == *host));
        // Of a registry before it that has the same token.
        entries.retain(|host, _| !logins.entries.contains_key(host));
        let bytes = entries.iter().map(|(host, auth)| docker_config::entry_bytes(host, auth)).sum();
        logins.bytes = logins.bytes.saturating_add(bytes);
        match room.checked_sub(bytes) {
            Some(rest) => room = rest,
            None => {
                logins.left_out.push(number);
                continue;
            }
        }
        logins.all.extend(lives.iter().copied());
        if !entries.is_empty() {
            logins.alive.extend(lives);
            logins.entries.extend(entries.into_iter().map(|(host, auth)| (host, auth.clone())));
        }
    }
    logins
}

/// The token for a host: among several answers the one for the host's account, which each chunk of ids has for its own.
fn login<'a>(grants: &[&'a Arc<Grant>], account: Option<&AccountId>) -> Option<&'a Token> {
    let several = grants.len() > 1;
    grants.iter().find_map(|grant| {
        let token = grant.token_for(account)?;
        (!several || account.is_none() || token.account.as_ref() == account).then_some(token)
    })
}

/// The Secret that all target namespaces should hold, or `None` while there is no valid token to write.
///
/// # Errors
/// [`DesiredError`] when it cannot be.
pub fn desired(
    plan: &Plan,
    owner: &Owner,
    template: &crate::api::SecretTemplate,
    published: &Published,
    now: Timestamp,
) -> Result<Option<Desired>, DesiredError> {
    let Logins { entries, alive, all, left_out, bytes } = logins(plan, published, now);
    if entries.is_empty() && !left_out.is_empty() {
        return Err(DesiredError::TooLarge(bytes));
    }
    let may_be_empty = plan.registries.iter().any(|r| r.anonymous_works);
    if entries.is_empty() && !may_be_empty {
        return Ok(None);
    }
    let expires_at = alive.iter().map(|l| l.expires_at).min().or_else(|| all.iter().map(|l| l.expires_at).max());
    let refreshed_at = all.iter().map(|l| l.issued_at).max();
    let (Some(expires_at), Some(refreshed_at)) = (expires_at, refreshed_at) else { return Ok(None) };
    let config = DockerConfig::render(&entries).map_err(|_| DesiredError::Render)?;
    let unfetched = plan.needs().into_iter().any(|need| !published.contains_key(need));
    let incomplete = unfetched || !left_out.is_empty() || plan.registries.iter().any(|r| r.lacks_hosts);
    let mut metadata = metadata(plan, owner, template, &config, expires_at, refreshed_at);
    let identity = identity_hash(published);
    metadata.annotations.get_or_insert_default().insert(IDENTITY_HASH.to_owned(), format!("{identity:016x}"));
    let footprint = Footprint::desired(&metadata);
    let has_entries = !entries.is_empty();
    let of_one_namespace = published.keys().any(|need| need.auth.is_each_targets());
    Ok(Some(Desired { metadata, config, footprint, expires_at, identity, of_one_namespace, has_entries, incomplete }))
}

/// A hash over the identities that fetched the logins, so that those of another are not taken for them. Their order is that
/// of their digests: that of the needs may change with the next build.
fn identity_hash(published: &Published) -> u64 {
    let principals = published.values().map(|grant| grant.identity.principal()).collect();
    Fields::new("identities/v1").digests(&principals).finish().short()
}

fn metadata(
    plan: &Plan,
    owner: &Owner,
    template: &crate::api::SecretTemplate,
    config: &DockerConfig,
    expires_at: Timestamp,
    refreshed_at: Timestamp,
) -> ObjectMeta {
    let mut metadata = frame(plan, owner, template);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(EXPIRES_AT.to_owned(), expires_at.to_string());
    annotations.insert(REFRESHED_AT.to_owned(), refreshed_at.to_string());
    annotations.insert(CONTENT_HASH.to_owned(), config.hash().to_owned());
    annotations.insert(HOSTS_HASH.to_owned(), format!("{:016x}", config.hosts()));
    metadata
}

/// The metadata that a Secret should have, with what it says itself of its content: of a Secret as we wrote it, nothing but
/// the passwords can differ.
pub fn as_found(plan: &Plan, owner: &Owner, template: &crate::api::SecretTemplate, found: &ObjectMeta) -> ObjectMeta {
    let mut metadata = frame(plan, owner, template);
    let annotations = metadata.annotations.get_or_insert_default();
    for key in [EXPIRES_AT, REFRESHED_AT, CONTENT_HASH, HOSTS_HASH, IDENTITY_HASH] {
        let value = found.annotations.as_ref().and_then(|annotations| annotations.get(key));
        annotations.insert(key.to_owned(), value.cloned().unwrap_or_default());
    }
    metadata
}

/// The metadata without what it says of the content.
fn frame(plan: &Plan, owner: &Owner, template: &crate::api::SecretTemplate) -> ObjectMeta {
    let mut labels = template.labels.clone();
    labels.insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    labels.insert(CREDENTIAL.to_owned(), owner.name.clone());
    labels.insert(CREDENTIAL_UID.to_owned(), owner.uid.to_string());
    let reference = OwnerReference {
        api_version: format!("{}/v1alpha1", crate::api::GROUP),
        kind: "EcrCredential".to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.to_string(),
        controller: Some(true),
        // Blocking would let one bad namespace hold up the deletion of the EcrCredential.
        block_owner_deletion: None,
    };
    let owned = plan.deletion_policy == DeletionPolicy::Delete;
    ObjectMeta {
        labels: Some(labels),
        annotations: Some(template.annotations.clone()),
        owner_references: owned.then(|| vec![reference]),
        ..ObjectMeta::default()
    }
}

/// A place where a Secret of ours should be, or is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace.
    pub namespace: Arc<str>,
    /// Which of the namespaces that had this name.
    pub incarnation: Incarnation,
    /// The Secret's name.
    pub name: Arc<str>,
    /// Whose the Secret there is.
    pub standing: Standing,
    /// What this `EcrCredential` may do there.
    pub claim: Claim,
}

/// What an `EcrCredential` may do in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The place is a target and this `EcrCredential` is entitled to it.
    Wanted,
    /// The place is a target, but the older `EcrCredential` of this name is entitled to it.
    Lost(Arc<str>),
    /// The place is a target, but an `EcrCredential` that cannot be read has the Secret, and its wishes are unknown.
    Blocked(Arc<str>),
    /// The place is no target any more, and nobody else's.
    Left,
    /// The place is a target, but the spec names the Secret otherwise now.
    Renamed,
    /// The place is no target any more; another `EcrCredential` is entitled to it and will take the Secret over.
    LeftToAnother,
}

/// What is to be done in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The Secret is as desired, or better left as it is.
    Keep,
    /// There is nothing to write yet.
    Wait,
    /// Create it, unless one has appeared.
    Create,
    /// Write over this very state of it, and take out what others added to it.
    Update(Arc<SecretRecord>),
    /// Take out of this very state of it what others have added to the data; the rest is as it should be.
    Strip(Arc<SecretRecord>),
    /// Delete this very state of it.
    Delete(Arc<SecretRecord>),
    /// Leave it alone and report it.
    Refuse(Reason, String),
}

/// Judges one place. `accepted` is the footprint that the API server made of the desired one there (an admission webhook
/// that adds to our fields): it counts as written, since writing again would give the same.
pub fn verdict(
    place: &Place,
    desired: Option<&Desired>,
    policy: ConflictPolicy,
    accepted: Option<Footprint>,
    now: Timestamp,
) -> Verdict {
    match (&place.claim, &place.standing) {
        // Pods name it, so it stays as long as its tokens are valid. It says itself how long that is, also after a restart.
        (Claim::Renamed, Standing::Mine(record)) if record.expires_at.is_some_and(|at| at > now) => Verdict::Keep,
        // A Secret that is being deleted needs no second deletion, and a copy belongs to whoever made it.
        (Claim::Left | Claim::Renamed, Standing::Mine(record)) if record.held_by.is_none() && record.applied => {
            Verdict::Delete(record.clone())
        }
        (Claim::Left | Claim::Renamed | Claim::LeftToAnother, _) => Verdict::Keep,
        (Claim::Lost(name), _) => Verdict::Refuse(
            Reason::Conflict,
            format!(
                "the older EcrCredential {name} writes the Secret {} here: use another secret.name, or exclude the namespace",
                place.name
            ),
        ),
        (Claim::Blocked(name), _) => Verdict::Refuse(
            Reason::Conflict,
            format!(
                "the EcrCredential {name} has the Secret {} here and cannot be read by this version of the operator, so that nobody refreshes it: upgrade the operator, correct or delete {name}, or use another secret.name",
                place.name
            ),
        ),
        (Claim::Wanted, Standing::Foreign(_)) if policy == ConflictPolicy::Fail => Verdict::Refuse(
            Reason::SecretNotOwned,
            format!(
                "a Secret {} that is not the operator's is there: delete it, use another secret.name, or set conflictPolicy: Adopt",
                place.name
            ),
        ),
        (Claim::Wanted, standing) => wanted(standing, desired, accepted, now),
    }
}

fn wanted(standing: &Standing, desired: Option<&Desired>, accepted: Option<Footprint>, now: Timestamp) -> Verdict {
    match (standing, desired) {
        (Standing::Absent, Some(desired)) if desired.has_entries => Verdict::Create,
        (Standing::Absent, _) => Verdict::Wait,
        // Without a token nothing is changed: what is there may still be good.
        (Standing::Mine(record), None) if record.expires_at.is_some_and(|at| at > now) => Verdict::Keep,
        (_, None) => Verdict::Wait,
        (Standing::Mine(record), Some(desired)) => {
            let written = record.footprint == desired.footprint || accepted == Some(record.footprint);
            // A later expiry for the same hosts was written by a process that died before it could say so; it is good until
            // then. With other hosts it says nothing: a host that was added may have an older token. With another identity
            // it is not what is wanted.
            let newer = record.hosts == Some(desired.config.hosts())
                && record.identity == Some(desired.identity)
                && record.expires_at.is_some_and(|at| at > desired.expires_at && at > now);
            if written || newer {
                if record.has_additions() { Verdict::Strip(record.clone()) } else { Verdict::Keep }
            } else if desired.incomplete && has_more(record, desired, now) {
                Verdict::Wait
            } else {
                Verdict::Update(record.clone())
            }
        }
        (Standing::Orphan(record) | Standing::Others(record) | Standing::Foreign(record), Some(desired)) => {
            if desired.has_entries { Verdict::Update(record.clone()) } else { Verdict::Wait }
        }
    }
}

/// How long before the first token in a Secret expires it is written without those that are missing, at the latest: time enough
/// to write thousands of Secrets.
const LAST_CALL: Duration = Duration::from_secs(600);

/// Whether a Secret has other hosts than the incomplete desired one and is still good. It stays complete until its first token
/// is about to expire: what is missing may come until then.
fn has_more(record: &SecretRecord, desired: &Desired, now: Timestamp) -> bool {
    let gain = until(now, desired.expires_at);
    let left = record.expires_at.map_or(Duration::ZERO, |at| until(now, at));
    record.hosts != Some(desired.config.hosts()) && left > LAST_CALL.min(gain / 4)
}

/// All records of one Secret name, by namespace.
pub type Records = HashMap<Arc<str>, Arc<SecretRecord>>;

#[cfg(test)]
mod tests;
