//! I2 to I6: what may stand in a Secret, and what may follow on what.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::history::{History, Version, hosts, logins, owner, selects};
use super::{Evidence, Invariant, Violation};
use crate::api_server::{Change, Kind};
use crate::aws::{Aws, nameless};
use crate::workloads::recorded_expiry;

pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut last: BTreeMap<String, &Change> = BTreeMap::new();
    let ours = evidence.history.changes.iter().filter(|change| change.key.0 == Kind::Secret && change.by.is_some());
    for change in ours {
        let about = format!("{}/{}", change.key.1, change.key.2);
        let mut found = |invariant, detail: String| {
            violations.push(Violation::new(invariant, about.clone(), change.at, detail));
        };
        if let Some(why) = foreign(evidence, change) {
            found(Invariant::I2Foreign, why);
        }
        if change.deleted {
            if let Some(why) = deleted_too_much(evidence, change) {
                found(Invariant::I5FailStatic, why);
            }
            continue;
        }
        if let Err(why) = well_formed(evidence, change) {
            found(Invariant::I3WellFormed, why);
        }
        let uid = super::history::uid(&change.after).to_owned();
        if let Some(why) = last.insert(uid, change).and_then(|before| gone_back(before, change)) {
            found(Invariant::I4Monotone, why);
        }
        if let Some(why) = lost_login(evidence, change) {
            found(Invariant::I5FailStatic, why);
        }
    }
    violations
}

/// I2: a Secret without our mark is left alone, unless somebody who wants it there says `Adopt`.
fn foreign(evidence: &Evidence<'_>, change: &Change) -> Option<String> {
    let before = change.before.as_ref().filter(|before| owner(before).is_none())?;
    let from = change.at.checked_sub(evidence.staleness).unwrap_or(change.at);
    let claimants = evidence.history.claimants(&change.key.1, &change.key.2, from, change.at);
    let adopts = claimants.iter().any(|claimant| claimant.object["spec"]["secret"]["conflictPolicy"] == "Adopt");
    let what = if change.deleted { "deleted" } else { "changed" };
    (!adopts || change.deleted).then(|| format!("{what} a foreign Secret at {}", before["metadata"]["resourceVersion"]))
}

/// I3: type, key, JSON, logins of AWS for the hosts that an owner asks for.
fn well_formed(evidence: &Evidence<'_>, change: &Change) -> Result<(), String> {
    let secret = &change.after;
    if secret["type"] != "kubernetes.io/dockerconfigjson" {
        return Err(format!("its type is {}", secret["type"]));
    }
    let keys: BTreeSet<&String> = secret["data"].as_object().into_iter().flat_map(|data| data.keys()).collect();
    let theirs = |key: &str| {
        let entries = secret["metadata"]["managedFields"].as_array();
        entries.into_iter().flatten().any(|entry| {
            entry["manager"] != "ecr-credential-operator" && !entry["fieldsV1"]["f:data"][format!("f:{key}")].is_null()
        })
    };
    if let Some(key) = keys.iter().find(|key| **key != ".dockerconfigjson" && !theirs(key)) {
        return Err(format!("it has the key {key}"));
    }
    let mine = owner(secret).ok_or("it bears no mark of ours")?;
    let from = change.at.checked_sub(evidence.staleness).unwrap_or(change.at);
    let owners: Vec<&Version> =
        evidence.history.credentials(from, change.at).filter(|v| super::history::uid(&v.object) == mine).collect();
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for owner in owners {
        evidence.settings.iter().for_each(|settings| wanted.extend(hosts(&owner.object, &settings.region)));
    }
    // A Secret that somebody took the data of is only stripped: it is not ours what stands in it.
    if !theirs(".dockerconfigjson") {
        for (host, auth) in logins(secret)? {
            let decoded = STANDARD.decode(&auth).map_err(|_| format!("{host}: not base64"))?;
            if !decoded.starts_with(b"AWS:") || decoded.len() < 5 || evidence.aws.expiry(&auth).is_none() {
                return Err(format!("{host}: not a login that AWS gave"));
            }
            let purpose = nameless(&auth).replace("AWS:password/", "");
            if wanted.get(&host).is_none_or(|wanted| !purpose.starts_with(wanted.as_str())) {
                return Err(format!("{host}: nobody asked for it, or not with the login for {purpose}"));
            }
        }
    }
    Ok(())
}

/// I4: for the same hosts and the same owner the recorded expiry never goes back.
fn gone_back(before: &Change, after: &Change) -> Option<String> {
    let names = |change: &Change| logins(&change.after).map(|logins| logins.into_keys().collect::<Vec<_>>()).ok();
    let comparable = names(before) == names(after) && owner(&before.after) == owner(&after.after);
    let (from, to) = (recorded_expiry(&before.after), recorded_expiry(&after.after));
    (comparable && to < from).then(|| format!("the recorded expiry went back from {from:?} to {to:?}"))
}

/// I5, said more strictly: a write never takes a valid login away that is still asked for, nor gives a shorter one for it.
fn lost_login(evidence: &Evidence<'_>, change: &Change) -> Option<String> {
    let before = change.before.as_ref().filter(|before| owner(before) == owner(&change.after))?;
    let (old, new) = (logins(before).ok()?, logins(&change.after).ok()?);
    let wanted = wanted_hosts(evidence, change);
    // Expiries are kept in whole seconds. The operator's clock is no excuse: the time is that of AWS.
    let now = change.at.checked_add(SignedDuration::from_secs(1)).unwrap_or(change.at);
    old.iter().find_map(|(host, auth)| {
        let life = evidence.aws.expiry(auth).filter(|expiry| *expiry > now && wanted.contains(host))?;
        let kept = new.get(host).and_then(|auth| evidence.aws.expiry(auth)).is_some_and(|new| new >= life);
        (!kept).then(|| format!("{host} lost a login that was good until {life}"))
    })
}

/// The hosts that the owner asked for all the time lately.
fn wanted_hosts(evidence: &Evidence<'_>, change: &Change) -> BTreeSet<String> {
    let from = change.at.checked_sub(evidence.staleness).unwrap_or(change.at);
    let mine = owner(&change.after).unwrap_or_default();
    let versions = evidence.history.credentials(from, change.at).filter(|v| super::history::uid(&v.object) == mine);
    let sets = versions.flat_map(|version| {
        evidence.settings.iter().map(|settings| hosts(&version.object, &settings.region).into_keys().collect())
    });
    sets.reduce(|all: BTreeSet<String>, set| all.intersection(&set).cloned().collect()).unwrap_or_default()
}

/// I5: what is deleted is wanted no more, or was of no use to anyone.
fn deleted_too_much(evidence: &Evidence<'_>, change: &Change) -> Option<String> {
    let before = change.before.as_ref()?;
    let from = change.at.checked_sub(evidence.staleness).unwrap_or(change.at);
    let mine = owner(before)?;
    let lately: Vec<&Version> =
        evidence.history.credentials(from, change.at).filter(|v| super::history::uid(&v.object) == mine).collect();
    let wanted = !lately.is_empty()
        && lately.iter().all(|version| {
            version.object["spec"]["secret"]["name"] == change.key.2.as_str()
                && evidence.history.selected_throughout(&version.object, from, change.at).contains(&change.key.1)
        });
    let usable = before["type"] == "kubernetes.io/dockerconfigjson" && before["immutable"].is_null();
    let valid = logins(before).is_ok_and(|logins| {
        logins.values().any(|auth| evidence.aws.expiry(auth).is_some_and(|expiry| expiry > change.at))
    });
    (wanted && usable && valid).then(|| "a valid Secret that is wanted was deleted".to_owned())
}

/// I6: how much life the passwords of a selected namespace had left at the worst moment.
pub(super) fn least_life(history: &History, aws: &Aws) -> Option<SignedDuration> {
    let end = history.changes.last().map(|change| change.at)?;
    let secrets = history.of_kind(Kind::Secret);
    let lives = secrets.flat_map(|(key, versions)| {
        versions.iter().filter_map(move |version| {
            let until = version.until.min(end.max(crate::clock::true_now()));
            let wanted = history.credentials(version.from, until).any(|credential| {
                let homes = history.namespaces(&key.1, version.from, until);
                homes.into_iter().any(|home| selects(&credential.object, &home.object))
            });
            wanted.then(|| remaining(&version.object, aws, until)).flatten()
        })
    });
    lives.min()
}

fn remaining(secret: &Value, aws: &Aws, at: Timestamp) -> Option<SignedDuration> {
    let logins = logins(secret).ok()?;
    let expiry = logins.values().filter_map(|auth| aws.expiry(auth)).min()?;
    Some(expiry.duration_since(at))
}
