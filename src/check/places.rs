//! What is wrong in one namespace, told from the metadata of the Secret there: the operator's own verdict, and what it would
//! find if it had the passwords at hand.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::report::{NamespaceReport, State};
use crate::api::{EcrCredentialStatus, SecretTemplate};
use crate::plan::Plan;
use crate::secret::ownership::{SecretRecord, Standing, lost_fields};
use crate::secret::{self, Claim, Owner, Place, REFRESHED_AT, Verdict, docker_config};

/// What places are judged by.
pub(super) struct Bench<'a> {
    pub(super) plan: &'a Plan,
    pub(super) owner: &'a Owner,
    pub(super) template: &'a SecretTemplate,
    pub(super) status: &'a EcrCredentialStatus,
    pub(super) now: Timestamp,
}

impl Bench<'_> {
    /// What is wrong in a place, if anything is. `found` is the metadata of the Secret there.
    pub(super) fn judge(&self, place: &Place, found: Option<&ObjectMeta>) -> Option<NamespaceReport> {
        let (state, reason, message) = self.state(place, found)?;
        let told = self.status.failures.iter().find(|failure| *failure.namespace == *place.namespace);
        let (reason, message) = match told {
            // The operator knows why: it has tried.
            Some(failure) if *place.name == *self.plan.secret_name => (failure.reason.clone(), failure.message.clone()),
            _ => (reason, message),
        };
        let time = |key: &str| found?.annotations.as_ref()?.get(key)?.parse().ok();
        Some(NamespaceReport {
            namespace: place.namespace.to_string(),
            secret: place.name.to_string(),
            state,
            reason,
            message,
            issued_at: time(REFRESHED_AT),
            expires_at: time(secret::EXPIRES_AT),
        })
    }

    fn state(&self, place: &Place, found: Option<&ObjectMeta>) -> Option<(State, String, String)> {
        let name = &place.name;
        // The same judgement as in a round of the operator that has no token yet.
        let verdict = secret::verdict(place, None, self.plan.conflict_policy, None, self.now);
        let plain = |state: State, message: String| Some((state, format!("{state:?}"), message));
        match (verdict, &place.standing) {
            (Verdict::Refuse(reason, message), _) => {
                let state = if place.claim == Claim::Wanted { State::Foreign } else { State::AnotherCredential };
                Some((state, reason.as_str().to_owned(), message))
            }
            (Verdict::Delete(_), _) => plain(
                State::Leftover,
                format!(
                    "the namespace is not selected any more, and the operator has not yet deleted the Secret {name}"
                ),
            ),
            (_, _) if place.claim == Claim::LeftToAnother => None,
            (_, Standing::Absent) => plain(
                State::Missing,
                format!("there is no Secret {name}: the operator has not written it, see its log if this lasts"),
            ),
            (_, Standing::Others(_)) => plain(
                State::AnotherCredential,
                format!("the Secret {name} is still another EcrCredential's, and was not taken over yet"),
            ),
            (_, Standing::Orphan(_) | Standing::Foreign(_)) => plain(
                State::Foreign,
                format!("the Secret {name} is not this EcrCredential's, and was not taken over yet"),
            ),
            (_, Standing::Mine(record)) => self.own(record, found?),
        }
    }

    /// What is wrong with a Secret of ours.
    fn own(&self, record: &SecretRecord, found: &ObjectMeta) -> Option<(State, String, String)> {
        let expected = secret::as_found(self.plan, self.owner, self.template, found);
        let lost = lost_fields(&expected, found);
        let plain = |state: State, message: String| Some((state, format!("{state:?}"), message));
        if !lost.is_empty() {
            let message = format!("not as the operator writes it: {}: it is to be repaired at once", lost.join(", "));
            return plain(State::Changed, message);
        }
        if record.has_additions() {
            let mut what: Vec<String> = record.extra_keys.iter().map(|key| format!("the key {key}")).collect();
            what.extend(record.sets_immutable.then(|| "the field immutable".to_owned()));
            return plain(State::Changed, format!("somebody has added {}: it is to be taken out", what.join(", ")));
        }
        let Some(expires_at) = record.expires_at else {
            return plain(State::Changed, "it says no expiry that can be read".to_owned());
        };
        if expires_at <= self.now {
            return plain(State::Expired, format!("its passwords expired at {expires_at}"));
        }
        self.stale(record, expires_at)
    }

    /// Whether what the operator says it has published is newer. Where each namespace has its own password it says nothing
    /// of any one of them.
    fn stale(&self, record: &SecretRecord, expires_at: Timestamp) -> Option<(State, String, String)> {
        if self.plan.has_tenants() {
            return None;
        }
        let plain = |message: String| Some((State::Stale, "Stale".to_owned(), message));
        if let Some(published) = self.status.expires_at.filter(|published| expires_at < *published) {
            return plain(format!("its passwords expire at {expires_at}, those that were published at {published}"));
        }
        let hosts: Vec<&str> = self.status.registries.iter().flat_map(|r| &r.hosts).map(String::as_str).collect();
        let complete = self.status.registries.iter().all(|registry| !registry.hosts.is_empty());
        if complete && !hosts.is_empty() && record.hosts != Some(docker_config::hash_of(hosts)) {
            return plain("it has logins for other hosts than the operator has published".to_owned());
        }
        None
    }
}
