//! Everything that a judgement rests on, and who wrote which version of a Secret.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use ::judge::hosts::account_of;
use ::judge::selection::{Asked, asked};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Scope;
use super::Violation;
use super::declared::{Account, AwsCalls, Holder};
use super::history::{History, Key, Kind, Version, visible_at};
use super::marks::{MANAGER, uids};
use crate::proxy::Request;

pub(super) struct Evidence {
    pub(super) scope: Scope,
    pub(super) history: History,
    /// Of all operator processes.
    pub(super) requests: Vec<Request>,
    /// Which of the requests went through which proxy.
    pub(super) logs: Vec<Range<usize>>,
    /// The time by AWS's clock.
    pub(super) aws_now: Option<Timestamp>,
    /// The calls for tokens.
    pub(super) aws_calls: AwsCalls,
    /// From when until when AWS failed, as the test said.
    pub(super) aws_failures: Vec<(Timestamp, Timestamp)>,
    pub(super) now: Timestamp,
    /// What was seen to be wrong before the end.
    pub(super) found: Vec<Violation>,
    /// Those whose tokens may be asked for.
    pub(super) service_accounts: Vec<Account>,
    /// The roles and users of each tenant's namespace.
    pub(super) tenants: BTreeMap<String, BTreeSet<String>>,
    /// Whom each login was issued to.
    pub(super) issued: HashMap<String, Holder>,
    /// Entries of others that may stand in docker configs, by host.
    pub(super) included: Vec<(String, Value)>,
}

/// One change of a Secret: its creation, a new version, or its end.
pub(super) struct Write<'a> {
    pub(super) key: &'a Key,
    pub(super) version: &'a Version,
    /// The version before it, of the same object.
    pub(super) previous: Option<&'a Version>,
    pub(super) by_operator: bool,
    /// When it was sent, as far as a proxy saw it, else when it was seen.
    pub(super) at: Timestamp,
}

/// The requests that left versions of objects behind.
pub(super) struct Stored<'a>(HashMap<(&'a str, &'a str), &'a Request>);

impl Stored<'_> {
    fn request(&self, version: &Version) -> Option<&Request> {
        self.0.get(&(version.uid(), version.resource_version())).copied()
    }

    /// When a version was sent, as far as a proxy saw it, else when it was seen. What was true then may have expired by the time that
    /// the API server has stored it.
    pub(super) fn sent(&self, version: &Version) -> Timestamp {
        self.request(version).map_or(version.at, |request| request.started)
    }
}

impl Evidence {
    /// Every change of every Secret in scope, in order for each name.
    pub(super) fn secret_writes(&self) -> Vec<Write<'_>> {
        let stored = self.stored();
        let mut writes = vec![];
        for (key, versions) in self.history.of_kind(Kind::Secret) {
            let mut previous: Option<&Version> = None;
            for version in versions {
                let before = previous.filter(|previous| previous.uid() == version.uid());
                writes.push(self.write(&stored, key, version, before));
                previous = (!version.deleted).then_some(version);
            }
        }
        writes
    }

    /// How the EcrCredential of a Secret asked for it in each version that could be seen at `time`.
    pub(super) fn asked_of<'a>(&'a self, secret: &Version, time: Timestamp) -> Vec<Asked<'a>> {
        let name = secret.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let credentials = visible_at(self.owner_of(secret), time, self.scope.staleness);
        credentials.flat_map(|credential| asked(&credential.object)).filter(|one| one.name == name).collect()
    }

    pub(super) fn credential_uids(&self) -> BTreeSet<&str> {
        self.history.of_kind(Kind::Credential).flat_map(|(_, versions)| versions.iter().map(Version::uid)).collect()
    }

    /// The history of the EcrCredential that this Secret belongs to.
    pub(super) fn owner_of(&self, secret: &Version) -> &[Version] {
        let uids = uids(secret);
        let mut credentials = self.history.of_kind(Kind::Credential).map(|(_, versions)| versions);
        credentials.find(|versions| versions.iter().any(|version| uids.contains(&version.uid()))).unwrap_or(&[])
    }

    /// Whether an EcrCredential that could be seen at `time` wants this Secret in this namespace.
    pub(super) fn is_wanted(&self, key: &Key, time: Timestamp, staleness: Duration) -> bool {
        let namespaces: Vec<&Version> = visible_at(self.history.namespace(&key.namespace), time, staleness).collect();
        self.history.of_kind(Kind::Credential).any(|(_, versions)| {
            let mut credentials = visible_at(versions, time, staleness);
            credentials.any(|credential| namespaces.iter().any(|namespace| wants(credential, key, namespace)))
        })
    }

    /// The account of the tenant in whose namespace this Secret is, if it has but one.
    pub(super) fn tenant_account(&self, secret: &Version) -> Option<&str> {
        let namespace = secret.object["metadata"]["namespace"].as_str()?;
        let accounts: BTreeSet<&str> = self.tenants.get(namespace)?.iter().filter_map(|arn| account_of(arn)).collect();
        accounts.first().copied().filter(|_| accounts.len() == 1)
    }

    /// Whether an EcrCredential that could be seen at `time` names this ServiceAccount.
    pub(super) fn names_account(&self, namespace: &str, name: &str, time: Timestamp) -> bool {
        let staleness = self.scope.staleness;
        let namespaces: Vec<&Version> = visible_at(self.history.namespace(namespace), time, staleness).collect();
        let is_target = |credential: &Version| {
            namespaces.iter().any(|namespace| {
                !namespace.deleted && asked(&credential.object).iter().any(|one| one.selects(&namespace.object))
            })
        };
        self.history.of_kind(Kind::Credential).any(|(_, versions)| {
            let mut credentials = visible_at(versions, time, staleness).filter(|credential| !credential.deleted);
            credentials.any(|credential| {
                auths(credential).any(|auth| match &auth["serviceAccount"] {
                    account if account["fromTargetNamespace"] == name => is_target(credential),
                    account => account["namespace"] == namespace && account["name"] == name,
                })
            })
        })
    }

    /// Whether at `time` the EcrCredential of this Secret had no more use for it.
    pub(super) fn is_unwanted_by_owner(&self, key: &Key, secret: &Version, time: Timestamp) -> bool {
        let namespaces: Vec<&Version> =
            visible_at(self.history.namespace(&key.namespace), time, Duration::ZERO).collect();
        let mut credentials = visible_at(self.owner_of(secret), time, Duration::ZERO);
        credentials.any(|credential| {
            namespaces.iter().any(|namespace| !namespace.is_active() || !wants(credential, key, namespace))
        })
    }

    /// By the clock of the operator, which the test may have set wrong.
    pub(super) fn operator_time(&self, time: Timestamp) -> Timestamp {
        time + self.scope.clock_offset
    }

    pub(super) fn aws_failed_at(&self, time: Timestamp) -> bool {
        self.aws_failures.iter().any(|(from, until)| (*from..*until).contains(&time))
    }

    /// The requests that left a version of an object behind, by its uid and resourceVersion.
    pub(super) fn stored(&self) -> Stored<'_> {
        let mut stored = HashMap::new();
        for request in self.requests.iter().filter(|request| request.method != Method::DELETE) {
            if let Some(object) = &request.stored {
                // A later apply that changes nothing answers with the same version.
                stored.entry((object.uid.as_str(), object.resource_version.as_str())).or_insert(request);
            }
        }
        Stored(stored)
    }

    fn write<'a>(
        &self,
        stored: &Stored<'_>,
        key: &'a Key,
        version: &'a Version,
        previous: Option<&'a Version>,
    ) -> Write<'a> {
        let request = if version.deleted {
            self.deletion(key, version)
        } else {
            stored.request(version).filter(|request| !changed_nothing(request, previous, version))
        };
        let by_operator =
            !version.initial && (request.is_some() || (!version.deleted && manager_wrote(previous, version)));
        Write { key, version, previous, by_operator, at: request.map_or(version.at, |request| request.started) }
    }

    /// The DELETE that ended this object, also one whose answer nobody saw.
    fn deletion(&self, key: &Key, version: &Version) -> Option<&Request> {
        let window = SignedDuration::from_secs(5);
        self.requests.iter().find(|request| {
            let same = request.method == Method::DELETE
                && request.is_secret_write()
                && (&*request.target.namespace, &*request.target.name) == (&*key.namespace, &*key.name);
            let unanswered = request.committed.is_none() && version.at.duration_since(request.started).abs() < window;
            let answered =
                request.is_committed() && request.stored.as_ref().is_some_and(|object| object.uid == version.uid());
            same && (answered || unanswered)
        })
    }
}

/// Every `auth` of an EcrCredential: its own, and those of its registries.
fn auths(credential: &Version) -> impl Iterator<Item = &Value> {
    let spec = &credential.object["spec"];
    let registries = spec["registries"].as_array().into_iter().flatten();
    std::iter::once(&spec["auth"]).chain(registries.map(|registry| &registry["auth"]))
}

fn wants(credential: &Version, key: &Key, namespace: &Version) -> bool {
    let is_asked =
        || asked(&credential.object).iter().any(|one| one.name == key.name && one.selects(&namespace.object));
    !credential.deleted && !namespace.deleted && is_asked()
}

/// The apply was a no-op: somebody else wrote this version before, and all that it asks for was there already.
fn changed_nothing(request: &Request, previous: Option<&Version>, version: &Version) -> bool {
    let Some(previous) = previous else { return false };
    let asked = request.body.as_ref().is_some_and(|body| contains(&previous.object, body));
    asked
        && managed_entry(previous).map(|entry| &entry["fieldsV1"])
            == managed_entry(version).map(|entry| &entry["fieldsV1"])
}

/// Without a proxy's word: the operator's entry in managedFields is new or has another time.
fn manager_wrote(previous: Option<&Version>, version: &Version) -> bool {
    let time = |version| managed_entry(version).map(|entry| &entry["time"]);
    time(version).is_some() && previous.and_then(time) != time(version)
}

fn managed_entry(version: &Version) -> Option<&Value> {
    version.object["metadata"]["managedFields"].as_array()?.iter().find(|entry| entry["manager"] == MANAGER)
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).map_or(part.is_null(), |whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|part| whole.iter().any(|whole| contains(whole, part)))
        }
        _ => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Story, secret};

    fn authors(story: Story) -> Vec<bool> {
        story.evidence().secret_writes().iter().map(|write| write.by_operator).collect()
    }

    #[test]
    fn a_version_is_the_operators_when_its_request_stored_it() {
        let story = Story::new().operator_writes(secret().value("1")).other_writes(secret().value("2"));
        assert_eq!(authors(story), [true, false]);
    }

    #[test]
    fn an_apply_that_changes_nothing_is_not_the_author() {
        let labelled = secret().value("1").label("by", "hand");
        let story = Story::new()
            .operator_writes(secret().value("1"))
            .other_writes(labelled)
            .operator_confirms(secret().value("1"));
        assert_eq!(authors(story), [true, false]);
    }

    #[test]
    fn a_write_that_no_proxy_saw_is_told_from_managed_fields() {
        let story =
            Story::new().operator_writes_unseen(secret().value("1")).operator_writes_unseen(secret().value("2"));
        assert_eq!(authors(story), [true, true]);
    }

    #[test]
    fn a_deletion_is_the_operators_when_it_asked_for_it() {
        let story = Story::new().operator_writes(secret()).operator_deletes().operator_writes(secret()).other_deletes();
        assert_eq!(authors(story), [true, true, true, false]);
    }
}
