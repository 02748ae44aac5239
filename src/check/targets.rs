//! The problem of one target, by the metadata of its Secret: the operator's own action, and what it would find with the tokens in
//! memory.

use k8s_openapi::jiff::Timestamp;

use super::report::{NamespaceReport, State};
use crate::api::EcrCredentialStatus;
use crate::api::registry::Host;
use crate::api::status::{NamespaceFailure, RegistryStatus};
use crate::plan::outputs::SecretPlan;
use crate::plan::{Hosts, Plan};
use crate::secret::metadata::Metadata;
use crate::secret::ownership::{Ownership, SecretRecord, lost_fields};
use crate::secret::{self, Owner, REFRESHED_AT, SecretAction, SecretTarget, Selection, docker_config};

/// The inputs of the decision.
pub(super) struct TargetCheck<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    pub(super) status: &'a EcrCredentialStatus,
    pub(super) now: Timestamp,
}

/// When a changed Secret is repaired.
const REPAIRED: &str = "the operator repairs this at once: if this persists, check that it is running";

/// Why a Secret is left over.
const NOT_SELECTED: &str = "the namespace is no longer selected";

impl TargetCheck<'_> {
    /// The problem of a target, if it has one. `found` is the metadata of its Secret.
    pub(super) fn judge(&self, target: &SecretTarget, found: Option<&Metadata<'_>>) -> Option<NamespaceReport> {
        let name = |failure: &NamespaceFailure| match &failure.secret {
            Some(output) => **output == *target.name,
            None => target.name == self.plan.secret.name,
        };
        let here = |failure: &&NamespaceFailure| *failure.namespace == *target.namespace && name(failure);
        let told = self.status.failures.iter().find(here);
        let (state, reason, message) = match (self.state(target, found), told) {
            // The operator's own failure explains it.
            (Some((state, ..)), Some(told)) => (state, told.reason.clone(), told.message.clone()),
            (Some(seen), None) => seen,
            // Missing entries do not show in the metadata.
            (None, Some(told)) if matches!(target.selection, Selection::Selected) => {
                (State::NotRenewable, told.reason.clone(), told.message.clone())
            }
            (None, _) => return None,
        };
        let time = |key: &str| found?.annotations.get(key)?.parse().ok();
        Some(NamespaceReport {
            issued_at: time(REFRESHED_AT),
            expires_at: time(secret::EXPIRES_AT),
            ..NamespaceReport::new(&target.namespace, &target.name, state, reason, message)
        })
    }

    fn state(&self, target: &SecretTarget, found: Option<&Metadata<'_>>) -> Option<(State, String, String)> {
        let name = &target.name;
        // The same decision as of an operator that has no token yet.
        let action = secret::action(target, None, self.plan.conflict_policy, None, self.now.into());
        let plain = |state: State, message: String| Some((state, format!("{state:?}"), message));
        match (action, &target.ownership) {
            (SecretAction::Refuse(reason, message), _) => {
                let state =
                    if target.selection == Selection::Selected { State::Foreign } else { State::AnotherCredential };
                Some((state, reason.as_str().to_owned(), message))
            }
            (SecretAction::Delete(_), _) => {
                let why = match target.selection {
                    Selection::Renamed => {
                        "the spec has another secret name, and the tokens of this Secret have expired"
                    }
                    _ => NOT_SELECTED,
                };
                plain(State::Leftover, format!("{why}, and the operator has not yet deleted the Secret {name}"))
            }
            // What is good until it expires stays, as does a copy that somebody else has made.
            (_, _) if matches!(target.selection, Selection::Superseded | Selection::Renamed) => None,
            (_, ownership) if target.selection == Selection::Deselected => {
                let finalizer = ownership.record()?.held_by.as_deref()?;
                plain(
                    State::Leftover,
                    format!(
                        "{NOT_SELECTED}, and the Secret {name} is being deleted, but its finalizer {finalizer:?} blocks the deletion: remove the finalizer"
                    ),
                )
            }
            (_, Ownership::Absent) => plain(
                State::Missing,
                format!("the Secret {name} does not exist yet: if this persists, check the operator's log"),
            ),
            (_, Ownership::OwnedByOther(_)) => plain(
                State::AnotherCredential,
                format!("the Secret {name} still belongs to another EcrCredential and has not been taken over yet"),
            ),
            (_, Ownership::Orphaned(_) | Ownership::Unmanaged(_)) => plain(
                State::Foreign,
                format!("the Secret {name} does not belong to this EcrCredential and has not been adopted yet"),
            ),
            (_, Ownership::Owned(record)) => self.own(self.plan.secret_named(name)?, record, found?),
        }
    }

    /// The problem of a Secret of ours.
    fn own(&self, secret: &SecretPlan, record: &SecretRecord, found: &Metadata<'_>) -> Option<(State, String, String)> {
        let expected = secret::as_found(self.plan, self.owner, secret, found);
        let lost = lost_fields(&expected, found);
        let plain = |state: State, message: String| Some((state, format!("{state:?}"), message));
        if !lost.is_empty() {
            let message = format!("changed by another client: {}: {REPAIRED}", lost.join(", "));
            return plain(State::Changed, message);
        }
        if record.has_additions(None) {
            let mut what: Vec<String> = record.extra_keys.iter().map(|key| format!("the key {key}")).collect();
            what.extend(record.sets_immutable.then(|| "the field immutable".to_owned()));
            return plain(State::Changed, format!("another client added {}: {REPAIRED}", what.join(", ")));
        }
        let Some(expires_at) = record.valid_until(self.now) else {
            let message = "its expiry annotation is missing, cannot be read, or is later than AWS issues tokens for";
            return plain(State::Changed, message.to_owned());
        };
        if expires_at <= self.now {
            return plain(State::Expired, format!("its tokens expired at {expires_at}"));
        }
        match &secret.host {
            Some(host) => self.stale_login(host, record, expires_at),
            None => self.stale(record, expires_at),
        }
    }

    /// The problem of an output that holds the token of one host.
    fn stale_login(
        &self,
        host: &Host,
        record: &SecretRecord,
        expires_at: Timestamp,
    ) -> Option<(State, String, String)> {
        let writes = |registry: &&RegistryStatus| registry.hosts.iter().any(|written| written == host.as_str());
        let registry = self.status.registries.iter().find(writes).filter(|_| !self.plan.has_tenants());
        let published = registry.and_then(|registry| registry.expires_at).filter(|published| expires_at < *published);
        let message = match published {
            _ if record.hosts != Some(docker_config::hash_of([host.as_str()])) => {
                format!("it does not have the token for the host {host}")
            }
            Some(published) => {
                format!("its token expires at {expires_at}, the published one at {published}")
            }
            None => return None,
        };
        Some((State::Stale, "Stale".to_owned(), message))
    }

    /// Whether the operator has published newer tokens, by the status. If each namespace has its own token, the status has no times,
    /// and only the hosts are compared.
    fn stale(&self, record: &SecretRecord, expires_at: Timestamp) -> Option<(State, String, String)> {
        let plain = |message: String| Some((State::Stale, "Stale".to_owned(), message));
        // The included hosts are known only to the operator.
        let included = !self.plan.includes.is_empty();
        if self.plan.has_tenants() {
            let hosts = self.named_hosts().filter(|_| !included).filter(|hosts| record.hosts != Some(*hosts));
            return hosts.and_then(|_| plain("its hosts differ from those of the spec".to_owned()));
        }
        if let Some(published) = self.status.expires_at.filter(|published| expires_at < *published) {
            return plain(format!("its tokens expire at {expires_at}, the published ones at {published}"));
        }
        let hosts: Vec<&str> = self.status.registries.iter().flat_map(|r| &r.hosts).map(String::as_str).collect();
        // Without a token, the status has the hosts that the Secret will have.
        let complete = self.status.registries.iter().all(|registry| registry.expires_at.is_some());
        if complete && !included && !hosts.is_empty() && record.hosts != Some(docker_config::hash_of(hosts)) {
            return plain("its hosts differ from those that the operator has published".to_owned());
        }
        None
    }

    /// A hash over the hosts of a complete Secret; none if some are known only with their tokens, or have no token in any
    /// namespace, which is reported with the registry.
    fn named_hosts(&self) -> Option<u64> {
        let registries = &self.plan.registries;
        let shared = registries.iter().zip(&self.status.registries).filter(|(plan, _)| !plan.is_each_targets());
        let alive = |told: &RegistryStatus| told.expires_at.is_some_and(|at| at > self.now);
        if registries.len() != self.status.registries.len() || !shared.into_iter().all(|(_, told)| alive(told)) {
            return None;
        }
        let mut hosts = Vec::new();
        for registry in registries {
            let Hosts::Named(named) = &registry.hosts else { return None };
            hosts.extend(named.iter().map(|(host, _)| host.as_str()));
        }
        Some(docker_config::hash_of(hosts))
    }
}
