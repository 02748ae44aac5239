//! The desired Secrets, and the action that each namespace needs.

pub mod docker_config;
pub mod formats;
pub mod host_parts;
pub mod include;
pub mod metadata;
pub mod observed;
pub mod ownership;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

use crate::api::registry::{AccountId, Host};
use crate::api::status::Reason;
use crate::api::{ConflictPolicy, DeletionPolicy};
use crate::encoding::Fields;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::outputs::SecretPlan;
use crate::plan::schedule::{Life, until};
use crate::plan::scopes::SecretKey;
use crate::plan::{Hosts, HostsError, Plan, RegistryPlan, SpecError, TokenSpec, Uid, host_taken};
use crate::token::{AuthorizationToken, DockerAuth, Token};
use docker_config::{DockerConfig, Entries};
use formats::{Content, Payload, form};
use host_parts::HostParts;
use include::Included;
use metadata::Metadata;
use ownership::{ManagedFieldsDigest, Ownership, SecretRecord, Trust};

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
/// The annotation with the time at which the newest token in the Secret was issued, RFC 3339.
pub const REFRESHED_AT: &str = "pullsecrets.dev/refreshed-at";
/// The annotation with a SHA-256 over the data.
pub const CONTENT_HASH: &str = "pullsecrets.dev/content-hash";

/// The annotation with 16 hexadecimal digits over the hosts: expiries are compared between Secrets with the same hosts only.
pub const HOSTS_HASH: &str = "pullsecrets.dev/hosts-hash";

/// The annotation with a hash over the identities that fetched the logins.
pub const IDENTITY_HASH: &str = "pullsecrets.dev/identity-hash";

/// The annotation with the format of an output; a pull secret has none.
pub const OUTPUT: &str = "pullsecrets.dev/output";

/// The largest data of a Secret in bytes (k8s.io/api/core/v1, MaxSecretSize).
const MAX_SECRET_BYTES: usize = 1024 * 1024;

/// The tokens published by one `EcrCredential`.
pub type Published = BTreeMap<TokenSpec, Arc<AuthorizationToken>>;

/// The `EcrCredential` as its Secrets name it.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
}

/// The Secrets that one namespace should hold, by name.
pub type Bundle = BTreeMap<Arc<str>, Arc<Desired>>;

/// One desired Secret, the same in every namespace.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Labels, annotations and owner reference; no name.
    pub metadata: ObjectMeta,
    /// The type and the data.
    pub payload: Payload,
    /// The digest of the fields that we own once it is applied.
    pub digest: ManagedFieldsDigest,
    /// The expiry recorded on it.
    pub expires_at: Timestamp,
    /// The hash over the identities that fetched its logins, recorded on it.
    pub identity: u64,
    /// Whether it contains a token that was found again while `auth` did not resolve, so that it is unknown what a Secret with the
    /// same tokens records of the identities.
    pub of_unknown_identity: bool,
    /// Whether entries are missing because a registry has no token in memory or its hosts are left out. An existing Secret may
    /// have valid ones.
    pub incomplete: bool,
    /// Whether that is so because of included docker configs alone: it has the entries of every registry.
    pub lacks_includes: bool,
    /// Its hosts, if it is incomplete.
    pub hosts: HostParts,
    /// Whether it contains a token that belongs to one namespace.
    pub of_one_namespace: bool,
    /// Whether it has any entry. One without entries replaces an existing Secret, but is never created.
    pub has_entries: bool,
}

impl Desired {
    /// The digest that an existing Secret with the same content has. A restart while `auth` does not resolve writes nothing: an
    /// identity that is unknown is the one that the Secret records.
    pub fn digest_of(&self, record: &SecretRecord) -> ManagedFieldsDigest {
        let Some(identity) = record.identity.filter(|_| self.of_unknown_identity) else { return self.digest };
        let mut metadata = self.metadata.clone();
        record_identity(&mut metadata, identity);
        ManagedFieldsDigest::desired(&metadata)
    }

    /// Whether an existing Secret has tokens of the same identities, as far as they are known.
    fn is_of_identities(&self, record: &SecretRecord) -> bool {
        self.of_unknown_identity || record.identity == Some(self.identity)
    }
}

/// Why there is no desired Secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// Larger than Kubernetes allows.
    #[error(
        "the Secret would have {0} bytes, and Kubernetes allows 1048576: split the accounts and host variants over several EcrCredentials with Secrets of their own"
    )]
    TooLarge(usize),
    /// It cannot be written as JSON.
    #[error("the Secret cannot be rendered")]
    Render,
}

/// The docker config entries of one registry, from its published tokens.
///
/// # Errors
/// The hosts are unknown.
pub fn registry_entries<'a>(
    registry: &RegistryPlan,
    published: &'a Published,
) -> Result<Vec<(Host, &'a DockerAuth)>, HostsError> {
    let tokens: Vec<&Arc<AuthorizationToken>> =
        registry.token_specs.iter().filter_map(|spec| published.get(spec)).collect();
    if tokens.len() != registry.token_specs.len() {
        return Ok(Vec::new());
    }
    let hosts = registry.hosts.resolve(tokens.first().and_then(|g| g.caller()))?;
    Ok(hosts.into_iter().filter_map(|(host, account)| Some((host, &login(&tokens, account.as_ref())?.auth))).collect())
}

/// A host that two registries would write with different tokens. The earlier one has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenHost {
    /// The host.
    pub host: Host,
    /// The number of the registry that has it.
    pub earlier: usize,
    /// The number of the registry that cannot have it.
    pub later: usize,
}

/// All hosts that two registries would write with different tokens. Hosts named in the spec are compared by the plan;
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
            if plan.registries.get(earlier).is_some_and(|other| other.token_specs != registry.token_specs) {
                taken.push(TakenHost { host, earlier, later });
            }
        }
    }
    taken
}

impl From<&TakenHost> for SpecError {
    fn from(TakenHost { host, earlier, later }: &TakenHost) -> Self {
        host_taken(host, *earlier, *later)
    }
}

/// A registry whose entries do not fit into a Secret after those of the registries before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The number of the registry.
    pub number: usize,
    /// The name of the output, if it is not the pull secret.
    pub output: Option<Arc<str>>,
    /// The size of the Secret with the entries of all registries, in bytes.
    pub bytes: usize,
}

impl From<&LeftOut> for SpecError {
    fn from(LeftOut { number, output, bytes }: &LeftOut) -> Self {
        let output = output.as_ref().map_or_else(String::new, |name| format!("spec.outputs: {name}: "));
        let message = format!("{output}spec.registries[{number}]: {}", DesiredError::TooLarge(*bytes));
        Self { reason: Reason::InvalidSpec, message }
    }
}

/// All registries whose entries do not fit into a Secret. `taken` is the result of [`taken_hosts`].
pub fn left_out(
    plan: &Plan,
    secret: &SecretPlan,
    published: &Published,
    taken: &[TakenHost],
    now: Timestamp,
) -> Vec<LeftOut> {
    let logins = Logins::of(plan, published, taken, secret, now);
    let (output, bytes) = ((secret.name != plan.secret.name).then(|| secret.name.clone()), logins.bytes);
    logins.left_out.into_iter().map(|number| LeftOut { number, output: output.clone(), bytes }).collect()
}

/// The token for a host of an account. With several tokens, each is valid for the accounts of its own chunk of registry ids.
fn login<'a>(tokens: &[&'a Arc<AuthorizationToken>], account: Option<&AccountId>) -> Option<&'a Token> {
    let several = tokens.len() > 1;
    tokens.iter().find_map(|issued| {
        let token = issued.token_for(account)?;
        (!several || account.is_none() || token.account.as_ref() == account).then_some(token)
    })
}

/// The desired Secrets of all target namespaces, as far as there are valid tokens. An output that is refused, or for which one registry
/// alone is too large ([`left_out`]), has no desired Secret.
///
/// # Errors
/// [`DesiredError`] of the pull secret.
pub fn bundle(
    plan: &Plan,
    owner: &Owner,
    published: &Published,
    included: &Included,
    now: Timestamp,
) -> Result<Bundle, DesiredError> {
    let taken = taken_hosts(plan, published);
    let source = Source { plan, owner, published, included, taken: &taken };
    let mut bundle = Bundle::new();
    for secret in plan.secrets().filter(|secret| secret.refusal.is_none()) {
        match source.desired(secret, now) {
            Ok(Some(desired)) => drop(bundle.insert(secret.name.clone(), Arc::new(desired))),
            Err(error) if secret.name == plan.secret.name => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(bundle)
}

/// The token specs of the registries whose tokens a Secret holds.
pub fn token_specs_of<'a>(plan: &'a Plan, secret: &SecretPlan, published: &Published) -> BTreeSet<&'a TokenSpec> {
    let of_number = |number: usize| plan.registries.get(number);
    let has = |number, host: &Host| of_number(number).is_some_and(|r| hosts_of(r, published).contains(host));
    plan.registries_of(secret, has).into_iter().flat_map(|registry| &registry.token_specs).collect()
}

/// Why the host of an output is not written, if that is known only with the tokens: the spec does not name the account.
pub fn lacks_host(plan: &Plan, secret: &SecretPlan, published: &Published) -> Option<SpecError> {
    let host = secret.host.as_ref().filter(|_| secret.refusal.is_none())?;
    let complete = plan.registries.iter().all(|r| r.token_specs.iter().all(|spec| published.contains_key(spec)));
    let writes = |registry: &RegistryPlan| hosts_of(registry, published).contains(host);
    (complete && !plan.registries.iter().any(writes)).then(|| SpecError {
        reason: Reason::InvalidSpec,
        message: format!(
            "spec.outputs: {}: {host} is not a host of spec.registries, nor of the account that requests the token: correct host, or set accountIds",
            secret.name
        ),
    })
}

/// The hosts of a registry, as far as they are known.
fn hosts_of(registry: &RegistryPlan, published: &Published) -> Vec<Host> {
    let caller = registry.token_specs.first().and_then(|spec| published.get(spec)).and_then(|token| token.caller());
    let hosts = registry.hosts.resolve(caller).unwrap_or_default();
    hosts.into_iter().map(|(host, _)| host).collect()
}

/// The inputs of the desired Secrets.
struct Source<'a> {
    plan: &'a Plan,
    owner: &'a Owner,
    published: &'a Published,
    included: &'a Included,
    taken: &'a [TakenHost],
}

/// The entries of a Secret.
#[derive(Default)]
struct Logins<'a> {
    entries: Entries,
    /// The hosts of the entries, by registry.
    hosts: Vec<Vec<String>>,
    /// The lives of the registries of the entries.
    alive: Vec<Life>,
    /// The lives of all registries that fit, including those with expired tokens.
    all: Vec<Life>,
    /// The tokens of the Secret.
    token_specs: Vec<&'a TokenSpec>,
    /// Whether hosts of the spec are unknown.
    lacks_hosts: bool,
    /// The registries whose entries do not fit.
    left_out: Vec<usize>,
    /// The size with the entries of all registries.
    bytes: usize,
}

impl<'a> Logins<'a> {
    /// Collects the entries of the registries in order, as long as they fit; only those of one host if the Secret is for one.
    fn of(plan: &'a Plan, published: &Published, taken: &[TakenHost], secret: &SecretPlan, now: Timestamp) -> Self {
        let mut logins = Self { bytes: docker_config::EMPTY_BYTES, ..Self::default() };
        let mut room = MAX_SECRET_BYTES.saturating_sub(logins.bytes);
        for (number, registry) in plan.registries.iter().enumerate() {
            if secret.host.as_ref().is_some_and(|host| !hosts_of(registry, published).contains(host)) {
                continue;
            }
            logins.token_specs.extend(&registry.token_specs);
            logins.lacks_hosts |= registry.lacks_hosts;
            let tokens = registry.token_specs.iter().filter_map(|spec| published.get(spec));
            // The status has one life for each registry, and a restarted process must get the same Secret from it.
            let life = Life::earliest(tokens.map(|token| token.life));
            if life.is_some_and(|life| !life.is_valid(now)) {
                logins.all.extend(life);
                continue;
            }
            // Unknown hosts are reported with the registry and do not affect the others.
            let mut entries: BTreeMap<Host, &DockerAuth> =
                registry_entries(registry, published).unwrap_or_default().into_iter().collect();
            entries.retain(|host, _| !taken.iter().any(|taken| taken.later == number && taken.host == *host));
            entries.retain(|each, _| secret.host.as_ref().is_none_or(|host| each == host));
            // An earlier registry with the same token has written it.
            entries.retain(|host, _| !logins.entries.contains_key(host));
            let size =
                |(host, auth): (&Host, &&DockerAuth)| docker_config::entry_bytes(host, auth, secret.login_fields);
            let bytes = entries.iter().map(size).sum();
            logins.bytes = logins.bytes.saturating_add(bytes);
            match room.checked_sub(bytes) {
                Some(rest) => room = rest,
                None => {
                    logins.left_out.push(number);
                    continue;
                }
            }
            logins.all.extend(life);
            if !entries.is_empty() {
                logins.alive.extend(life);
                logins.hosts.push(entries.keys().map(ToString::to_string).collect());
                logins.entries.extend(entries.into_iter().map(|(host, auth)| (host, auth.clone())));
            }
        }
        logins
    }
}

impl Source<'_> {
    /// The desired Secret of all target namespaces, or `None` while there is no valid token.
    fn desired(&self, secret: &SecretPlan, now: Timestamp) -> Result<Option<Desired>, DesiredError> {
        let Logins { entries, mut hosts, alive, all, token_specs, lacks_hosts, left_out, bytes } =
            Logins::of(self.plan, self.published, self.taken, secret, now);
        if entries.is_empty() && !left_out.is_empty() {
            return Err(DesiredError::TooLarge(bytes));
        }
        let form = form(secret.format);
        let may_be_empty = !secret.format.is_of_one_host() && self.plan.registries.iter().any(|r| r.anonymous_works);
        if entries.is_empty() && !may_be_empty {
            return Ok(None);
        }
        let expires_at = alive.iter().map(|l| l.expires_at).min().or_else(|| all.iter().map(|l| l.expires_at).max());
        let refreshed_at = all.iter().map(|l| l.issued_at).max();
        let (Some(expires_at), Some(refreshed_at)) = (expires_at, refreshed_at) else { return Ok(None) };
        let unfetched = token_specs.iter().any(|spec| !self.published.contains_key(*spec));
        let lacks_registries = unfetched || !left_out.is_empty() || lacks_hosts;
        let (mut incomplete, mut lacks_includes) = (lacks_registries, false);
        let (payload, included) = match form.content {
            Content::DockerConfig => {
                let (config, included) = self.docker_config(secret, &entries)?;
                incomplete |= included.incomplete;
                lacks_includes = self.included.incomplete && !lacks_registries;
                (Some(Payload::docker_config(form, config)), included)
            }
            Content::Login(texts) => {
                let login = entries.first_key_value();
                (login.and_then(|(host, auth)| Payload::login(form, texts, host, auth)), Included::default())
            }
        };
        let Some(payload) = payload else { return Ok(None) };
        let hosts = if incomplete {
            hosts.push(included.beside(&entries).into_keys().map(str::to_owned).collect());
            HostParts::new(hosts)
        } else {
            HostParts::default()
        };
        let identity = identity_hash(self.published, &token_specs, &included);
        let mut metadata = frame(self.plan, self.owner, secret);
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(EXPIRES_AT.to_owned(), expires_at.to_string());
        annotations.insert(REFRESHED_AT.to_owned(), refreshed_at.to_string());
        annotations.insert(CONTENT_HASH.to_owned(), payload.hash.clone());
        annotations.insert(HOSTS_HASH.to_owned(), format!("{:016x}", payload.hosts));
        record_identity(&mut metadata, identity);
        let digest = ManagedFieldsDigest::desired(&metadata);
        let is_unknown =
            |spec: &&TokenSpec| self.published.get(*spec).is_some_and(|token| token.identity.is_unresolved());
        let of_unknown_identity = token_specs.iter().any(is_unknown);
        let has_entries = !entries.is_empty();
        let is_tenants = |spec: &&TokenSpec| spec.auth.is_each_targets() && self.published.contains_key(*spec);
        let of_one_namespace = token_specs.iter().any(is_tenants);
        Ok(Some(Desired {
            metadata,
            payload,
            digest,
            expires_at,
            identity,
            of_unknown_identity,
            of_one_namespace,
            has_entries,
            incomplete,
            lacks_includes,
            hosts,
        }))
    }

    /// The docker config, with the includes as far as they fit.
    fn docker_config(&self, secret: &SecretPlan, entries: &Entries) -> Result<(DockerConfig, Included), DesiredError> {
        let mut included = self.included.clone();
        loop {
            let config = DockerConfig::render_with(entries, secret.login_fields, &included);
            let config = config.map_err(|_| DesiredError::Render)?;
            // Our own entries come first, and fit.
            if config.bytes <= MAX_SECRET_BYTES || included.configs.pop().is_none() {
                return Ok((config, included));
            }
            included.incomplete = true;
        }
    }
}

/// A hash over the identities that fetched the tokens, and over the includes, to detect Secrets with tokens of other identities. It is
/// sorted by digest: the order of the token specs may change between builds.
fn identity_hash(published: &Published, token_specs: &[&TokenSpec], included: &Included) -> u64 {
    let tokens = published.iter().filter(|(spec, _)| token_specs.contains(spec)).map(|(_, token)| token);
    let principals = tokens.map(|token| token.identity.principal()).collect();
    match included.digest() {
        None => Fields::new("identities/v1").digests(&principals).finish().short(),
        Some(digest) => Fields::new("identities+included/v1").digests(&principals).digest(digest).finish().short(),
    }
}

fn record_identity(metadata: &mut ObjectMeta, identity: u64) {
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(IDENTITY_HASH.to_owned(), format!("{identity:016x}"));
}

/// The desired metadata, including the annotations about the content: of two Secrets with equal metadata that we wrote, only the tokens
/// can differ.
pub fn as_found(plan: &Plan, owner: &Owner, secret: &SecretPlan, found: &Metadata<'_>) -> ObjectMeta {
    let mut metadata = frame(plan, owner, secret);
    let annotations = metadata.annotations.get_or_insert_default();
    for key in [EXPIRES_AT, REFRESHED_AT, CONTENT_HASH, HOSTS_HASH, IDENTITY_HASH] {
        let value = found.annotations.get(key).map(|value| (**value).to_owned());
        annotations.insert(key.to_owned(), value.unwrap_or_default());
    }
    metadata
}

/// The metadata without the annotations about the content.
fn frame(plan: &Plan, owner: &Owner, secret: &SecretPlan) -> ObjectMeta {
    let form = form(secret.format);
    let (mut labels, mut annotations) = (secret.labels.clone(), secret.annotations.clone());
    labels.extend(form.labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    labels.insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    labels.insert(CREDENTIAL.to_owned(), owner.name.clone());
    labels.insert(CREDENTIAL_UID.to_owned(), owner.uid.to_string());
    let of_host = secret.host.as_ref().map(form.annotations).unwrap_or_default();
    annotations.extend(of_host.into_iter().map(|(key, value)| (key.to_owned(), value)));
    if secret.is_output {
        annotations.insert(OUTPUT.to_owned(), secret.format.as_str().to_owned());
    }
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
        annotations: Some(annotations),
        owner_references: owned.then(|| vec![reference]),
        ..ObjectMeta::default()
    }
}

/// A Secret that should exist in a namespace, or does.
#[derive(Clone, Debug)]
pub struct SecretTarget {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The identity of the namespace.
    pub namespace_uid: NamespaceUid,
    /// The Secret's name.
    pub name: Arc<str>,
    /// The ownership of the existing Secret.
    pub ownership: Ownership,
    /// Whether this `EcrCredential` selects it and is entitled to it.
    pub selection: Selection,
}

impl SecretTarget {
    /// Which Secret it is.
    pub fn key(&self) -> SecretKey {
        SecretKey::new(self.name.clone(), self.namespace.clone())
    }

    /// Whether it has the token of an earlier namespace of the same name.
    pub fn holds_anothers_token(&self) -> bool {
        self.ownership.record().is_some_and(|record| record.is_of_another(self.namespace_uid))
    }
}

/// Whether an `EcrCredential` selects a Secret and is entitled to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// It is a target, and this `EcrCredential` is entitled to it.
    Selected,
    /// It is a target, but the older `EcrCredential` of this name is entitled to it.
    Conflict(Arc<str>),
    /// It is a target, but the Secret belongs to an `EcrCredential` that cannot be read, so its spec is unknown.
    Blocked(Arc<str>),
    /// It is no longer a target of any `EcrCredential`.
    Deselected,
    /// The namespace is still selected, but the spec now gives the Secret another name.
    Renamed,
    /// It is no longer a target; another `EcrCredential` is entitled to it and takes the Secret over.
    Superseded,
}

/// What to do about a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretAction {
    /// Keep it: it is as desired, or must not be replaced now.
    Keep,
    /// Wait: there is nothing to write yet.
    Wait,
    /// Create it, unless one exists by now.
    Create,
    /// Update exactly this version of it, and remove additions by others.
    Update(Arc<SecretRecord>),
    /// Remove additions by others from exactly this version of it; the rest is as desired.
    Strip(Arc<SecretRecord>),
    /// Delete exactly this version of it.
    Delete(Arc<SecretRecord>),
    /// Leave it unchanged and report it.
    Refuse(Reason, String),
}

/// The current time by the clocks of the process, which may differ.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The time that has passed by every clock. A valid token is dropped only when it has expired by that.
    pub earliest: Timestamp,
    /// The time.
    pub time: Timestamp,
    /// The time by the clock that is furthest ahead. An expiry is disbelieved only if AWS cannot have issued it by that.
    pub latest: Timestamp,
}

impl From<Timestamp> for Now {
    fn from(now: Timestamp) -> Self {
        Self { earliest: now, time: now, latest: now }
    }
}

impl Now {
    /// Until when the tokens of a Secret are valid by its metadata, if they still are.
    pub fn validity(&self, record: &SecretRecord) -> Option<Timestamp> {
        record.valid_until(self.latest).filter(|at| *at > self.earliest)
    }
}

/// Decides about one Secret. `accepted` is the digest that the Secret had after it was last applied, if an admission webhook changed
/// our fields: it counts as desired, since applying again would give the same.
pub fn action(
    target: &SecretTarget,
    desired: Option<&Desired>,
    policy: ConflictPolicy,
    accepted: Option<ManagedFieldsDigest>,
    now: Now,
) -> SecretAction {
    match (&target.selection, &target.ownership) {
        // It was stored there because the namespace was recreated while it was written. Nobody else removes it.
        (_, Ownership::Owned(record)) if target.holds_anothers_token() && record.held_by.is_none() => {
            SecretAction::Delete(record.clone())
        }
        // Pods still use it, so it stays as long as its tokens are valid: until the expiry in its annotation, also after a restart.
        (Selection::Renamed, Ownership::Owned(record)) if now.validity(record).is_some() => SecretAction::Keep,
        // A Secret that is being deleted is not deleted again, and a copy belongs to whoever made it.
        (Selection::Deselected | Selection::Renamed, Ownership::Owned(record))
            if record.held_by.is_none() && record.applied =>
        {
            SecretAction::Delete(record.clone())
        }
        (Selection::Deselected | Selection::Renamed | Selection::Superseded, _) => SecretAction::Keep,
        (Selection::Conflict(name), _) => SecretAction::Refuse(
            Reason::Conflict,
            format!(
                "EcrCredential {name}, which takes precedence, writes the Secret {} here: use another secret name, or exclude the namespace",
                target.name
            ),
        ),
        (Selection::Blocked(name), _) => SecretAction::Refuse(
            Reason::Conflict,
            format!(
                "EcrCredential {name} owns the Secret {} here, but this version of the operator cannot read it, so the Secret is not refreshed: upgrade the operator, correct or delete {name}, or use another secret name",
                target.name
            ),
        ),
        (Selection::Selected, Ownership::Unmanaged(_)) if policy == ConflictPolicy::Fail => SecretAction::Refuse(
            Reason::SecretNotOwned,
            format!(
                "a Secret {} exists that the operator does not own: delete it, use another secret name, or set conflictPolicy: Adopt",
                target.name
            ),
        ),
        (Selection::Selected, ownership) => wanted(ownership, desired, accepted, now),
    }
}

fn wanted(
    ownership: &Ownership,
    desired: Option<&Desired>,
    accepted: Option<ManagedFieldsDigest>,
    now: Now,
) -> SecretAction {
    match (ownership, desired) {
        (Ownership::Absent, Some(desired)) if desired.has_entries => SecretAction::Create,
        (Ownership::Absent, _) => SecretAction::Wait,
        // Without a token nothing is changed: the existing Secret may still be valid.
        (Ownership::Owned(record), None) if now.validity(record).is_some() => SecretAction::Keep,
        (_, None) => SecretAction::Wait,
        (Ownership::Owned(record), Some(desired)) => {
            let written = (record.digest == desired.digest_of(record) || accepted == Some(record.digest))
                && record.trust != Trust::Forged;
            // A later expiry for the same hosts was written by a process that crashed before it updated the status, and is valid
            // until then. With other hosts this does not hold: an added host may have an older token. With another identity the
            // Secret is not the desired one.
            let newer = record.hosts == Some(desired.payload.hosts)
                && desired.is_of_identities(record)
                && now.validity(record).is_some_and(|at| at > desired.expires_at);
            if written || newer {
                if record.has_additions(Some(&desired.payload)) {
                    SecretAction::Strip(record.clone())
                } else {
                    SecretAction::Keep
                }
            } else if desired.incomplete && has_more(record, desired, now) {
                SecretAction::Wait
            } else {
                SecretAction::Update(record.clone())
            }
        }
        (
            Ownership::Orphaned(record) | Ownership::OwnedByOther(record) | Ownership::Unmanaged(record),
            Some(desired),
        ) => {
            if desired.has_entries {
                SecretAction::Update(record.clone())
            } else {
                SecretAction::Wait
            }
        }
    }
}

/// How long before the first token in a Secret expires it is replaced by an incomplete one, at the latest: enough time to write
/// thousands of Secrets.
pub const LAST_CALL: Duration = Duration::from_secs(600);

/// Whether a Secret may have hosts that the incomplete desired one lacks, and is still valid. It is kept until its first token is about
/// to expire: the missing token may be fetched until then.
fn has_more(record: &SecretRecord, desired: &Desired, now: Now) -> bool {
    let gain = until(now.earliest, desired.expires_at);
    let left = now.validity(record).map_or(Duration::ZERO, |at| until(now.earliest, at));
    let is_among = |hosts| hosts == desired.payload.hosts || desired.hosts.cover(hosts);
    left > LAST_CALL.min(gain / 4) && !record.hosts.is_some_and(is_among)
}

/// All records of one Secret name, by namespace.
pub type Records = HashMap<Arc<str>, Arc<SecretRecord>>;

#[cfg(test)]
mod tests;
