//! I13 and I14: what an `EcrCredential` leaves behind, and whether what it says is true.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::history::{History, hosts, logins, owner, uid};
use super::{Evidence, Invariant, Violation};
use crate::api_server::{Change, Kind};

/// A status must be under 64 KiB.
const STATUS_LIMIT: usize = 64 * 1024;

pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Violation> {
    let of_credentials = || evidence.history.changes.iter().filter(|change| change.key.0 == Kind::Credential);
    let ends = of_credentials().filter(|change| change.deleted).flat_map(|end| left_behind(evidence, end));
    let said = of_credentials().filter(|change| !change.deleted && change.by.is_some()).flat_map(|change| {
        let faults = untrue(evidence, &change.after, change.at).into_iter().chain(too_long(&change.after));
        faults
            .map(|fault| Violation::new(Invariant::I14TrueStatus, change.key.2.clone(), change.at, fault))
            .collect::<Vec<_>>()
    });
    let last = evidence.history.of_kind(Kind::Credential).filter_map(|(key, versions)| {
        let last = versions.last().filter(|last| last.until == Timestamp::MAX)?;
        // At the end nothing is excused by what has just changed.
        let fault = untrue_at_last(evidence, &last.object)?;
        Some(Violation::new(Invariant::I14TrueStatus, key.2.clone(), evidence.now, fault))
    });
    ends.chain(said).chain(last).collect()
}

fn condition<'a>(credential: &'a Value, type_: &str) -> Option<&'a Value> {
    credential["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

fn too_long(credential: &Value) -> Option<String> {
    let length = credential["status"].to_string().len();
    (length >= STATUS_LIMIT).then(|| format!("the status has {length} bytes"))
}

/// I14 at a write of the status, with what changed lately excused.
fn untrue(evidence: &Evidence<'_>, credential: &Value, at: Timestamp) -> Option<String> {
    let ready = condition(credential, "Ready").filter(|ready| ready["status"] == "True")?;
    let from = at.checked_sub(evidence.staleness).unwrap_or(at);
    let generations: Vec<&Value> = evidence
        .history
        .credentials(from, at)
        .filter(|version| uid(&version.object) == uid(credential))
        .map(|version| &version.object["metadata"]["generation"])
        .collect();
    if !generations.contains(&&ready["observedGeneration"]) {
        return Some(format!("it is ready for generation {} long after it changed", ready["observedGeneration"]));
    }
    let steady = generations.iter().all(|generation| *generation == &credential["metadata"]["generation"]);
    let homes = if steady { evidence.history.selected_throughout(credential, from, at) } else { Default::default() };
    let mut homes = homes.into_iter().filter(|home| evidence.allows(home));
    homes.find_map(|home| without(evidence, credential, &home, from, at))
}

fn untrue_at_last(evidence: &Evidence<'_>, credential: &Value) -> Option<String> {
    let ready = condition(credential, "Ready").filter(|ready| ready["status"] == "True")?;
    let now = evidence.now;
    let recently = now.checked_sub(SignedDuration::from_secs(70)).unwrap_or(now);
    let settled = evidence.history.changes.iter().rev().take_while(|change| change.at > recently).count() == 0;
    if !settled {
        return None;
    }
    if ready["observedGeneration"] != credential["metadata"]["generation"] {
        return Some("it is ready for another generation".to_owned());
    }
    let homes = evidence.history.selected_throughout(credential, now, now);
    let mut homes = homes.into_iter().filter(|home| evidence.allows(home));
    homes.find_map(|home| without(evidence, credential, &home, now, now))
}

/// A namespace in which an `EcrCredential` had no complete and valid Secret at any time in between.
fn without(
    evidence: &Evidence<'_>,
    credential: &Value,
    home: &str,
    from: Timestamp,
    until: Timestamp,
) -> Option<String> {
    let name = credential["spec"]["secret"]["name"].as_str().unwrap_or_default();
    let wanted: Vec<_> = evidence.settings.iter().map(|settings| hosts(credential, &settings.region)).collect();
    let good = |secret: &Value| {
        owner(secret).as_deref() == Some(uid(credential))
            && logins(secret).is_ok_and(|logins| {
                let complete = wanted.iter().any(|hosts| hosts.keys().eq(logins.keys()));
                let alive = |auth: &String| evidence.aws.expiry(auth).is_some_and(|expiry| expiry > from);
                complete && logins.values().all(alive)
            })
    };
    let holds = evidence.history.secrets(home, name, from, until).any(|version| good(&version.object));
    (!holds).then(|| format!("it is ready, and {home} has no complete and valid Secret"))
}

/// I13: an `EcrCredential` that is gone leaves none of its Secrets, or all of them under Retain.
fn left_behind(evidence: &Evidence<'_>, end: &Change) -> Vec<Violation> {
    let gone = uid(&end.after);
    let violation = |about: String, detail: &str| Violation::new(Invariant::I13Deletion, about, evidence.now, detail);
    let spec = &end.after["spec"]["secret"];
    if spec["deletionPolicy"] != "Retain" {
        let grace = SignedDuration::from_secs(60);
        if evidence.now.duration_since(end.at) < grace {
            return vec![];
        }
        let left = current(&evidence.history).filter(|(_, secret)| owner(secret).as_deref() == Some(gone));
        return left.map(|(about, _)| violation(about, "its EcrCredential is gone, and it is left")).collect();
    }
    let changed = evidence.history.credentials(end.at.checked_sub(evidence.staleness).unwrap_or(end.at), end.at);
    if changed.filter(|version| uid(&version.object) == gone && version.by.is_none()).count() > 1 {
        return vec![];
    }
    let had = evidence.history.of_kind(Kind::Secret).filter(|(key, versions)| {
        let at_end = versions.iter().find(|version| version.overlaps(end.at, end.at));
        key.2 == spec["name"].as_str().unwrap_or_default()
            && at_end.is_some_and(|version| owner(&version.object).as_deref() == Some(gone))
    });
    let lost = had.filter(|(_, versions)| versions.last().is_none_or(|last| last.until != Timestamp::MAX));
    lost.map(|(key, _)| violation(format!("{}/{}", key.1, key.2), "it is gone in spite of Retain")).collect()
}

fn current(history: &History) -> impl Iterator<Item = (String, &Value)> {
    history.of_kind(Kind::Secret).filter_map(|(key, versions)| {
        let last = versions.last().filter(|last| last.until == Timestamp::MAX)?;
        Some((format!("{}/{}", key.1, key.2), &*last.object))
    })
}
