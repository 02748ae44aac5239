//! I23: what the operator may change of a ServiceAccount.

use serde_json::Value;

use crate::evidence::Evidence;
use crate::history::{Kind, Version};
use crate::{Invariant, Violation};

/// The annotation that names the entries of the operator.
const ATTACHED: &str = "pullsecrets.dev/attached";

/// I23: the entries of others in `imagePullSecrets` stay as they are and in their order, those of the operator are Secrets that it may
/// write, and nothing else is changed.
pub(super) fn entries_of_others(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = vec![];
    for (key, versions) in evidence.history.of_kind(Kind::ServiceAccount) {
        for (before, after) in versions.iter().zip(versions.iter().skip(1)) {
            if !after.by_operator || before.deleted || before.uid() != after.uid() {
                continue;
            }
            let fault = fault(evidence, before, after);
            violations.extend(fault.map(|fault| Violation::new(Invariant::I23Attach, key.about(), after.sent, fault)));
        }
    }
    violations
}

fn fault(evidence: &Evidence, before: &Version, after: &Version) -> Option<String> {
    if after.deleted {
        return Some("the operator deleted it".to_owned());
    }
    let (old, new, marked) = (entries(before), entries(after), marked(before));
    let theirs: Vec<&str> = old.iter().filter(|name| !marked.contains(name)).copied().collect();
    let kept: Vec<&str> = new.iter().filter(|name| theirs.contains(name)).copied().collect();
    if kept != theirs {
        return Some(format!("of the entries {theirs:?} of others {kept:?} are left"));
    }
    let namespace = after.object["metadata"]["namespace"].as_str().unwrap_or_default();
    let is_odd = |name: &&&str| !old.contains(name) && !evidence.scope.may_write(namespace, name);
    if let Some(name) = new.iter().find(is_odd) {
        return Some(format!("{name} was added, which the operator may not write"));
    }
    (rest(before) != rest(after)).then(|| "something else was changed".to_owned())
}

fn entries(account: &Version) -> Vec<&str> {
    let entries = account.object["imagePullSecrets"].as_array().into_iter().flatten();
    entries.map(|entry| entry["name"].as_str().unwrap_or_default()).collect()
}

/// The entries that the operator says are its own.
fn marked(account: &Version) -> Vec<&str> {
    account.annotation(ATTACHED).unwrap_or_default().split(',').map(str::trim).collect()
}

/// All that the operator has no business with.
fn rest(account: &Version) -> Value {
    let mut rest = (*account.object).clone();
    let fields = rest.as_object_mut().into_iter();
    fields.for_each(|fields| drop(fields.remove("imagePullSecrets")));
    if let Some(metadata) = rest["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
        let annotations = metadata.remove("annotations").unwrap_or_default();
        let of_others = annotations.as_object().into_iter().flatten().filter(|(key, _)| *key != ATTACHED);
        let of_others: serde_json::Map<String, Value> =
            of_others.map(|(key, value)| (key.clone(), value.clone())).collect();
        metadata.insert("annotations".to_owned(), of_others.into());
    }
    rest
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;
    use crate::fixture::{Story, start};

    fn account(names: &[&str], attached: &str) -> Value {
        let entries: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        let annotations = json!({ "note": "x", ATTACHED: attached });
        let metadata = json!({ "name": "builder", "namespace": "a", "uid": "account-1", "annotations": annotations });
        json!({ "metadata": metadata, "imagePullSecrets": entries })
    }

    fn found(before: Value, after: Value, by_operator: bool) -> String {
        let mut evidence = Story::new().evidence();
        for (number, mut object) in [before, after].into_iter().enumerate() {
            object["metadata"]["resourceVersion"] = number.to_string().into();
            let at = start() + SignedDuration::from_secs(number as i64);
            let by_operator = by_operator && number == 1;
            evidence.history.add(Kind::ServiceAccount, Version { by_operator, ..Version::seen(at, Arc::new(object)) });
        }
        entries_of_others(&evidence).into_iter().map(|violation| violation.detail).collect()
    }

    #[test]
    fn entries_of_others_stay_and_nothing_else_is_changed() {
        let mut noted = account(&["theirs", "pull"], "pull");
        noted["metadata"]["annotations"]["note"] = "y".into();
        let cases = [
            (account(&["theirs"], ""), account(&["theirs", "pull"], "pull"), ""),
            (account(&["theirs", "pull"], "pull"), account(&["theirs"], ""), ""),
            (account(&["theirs", "pull"], ""), account(&["theirs"], ""), "are left"),
            (account(&["x", "y"], ""), account(&["y", "x", "pull"], "pull"), "are left"),
            (account(&["x"], ""), account(&["pull"], "pull"), "are left"),
            (account(&["x"], ""), account(&["x", "elsewhere"], "elsewhere"), "may not write"),
            (account(&["theirs"], ""), noted, "something else"),
        ];
        for (before, after, expected) in cases {
            let detail = found(before.clone(), after.clone(), true);
            assert!(detail.contains(expected) && detail.is_empty() == expected.is_empty(), "{after}: {detail:?}");
            assert_eq!(found(before, after, false), "", "others may do what they like");
        }
    }
}
