//! Which pull secrets a ServiceAccount should name, and the JSON patch that brings it there.
//!
//! `imagePullSecrets` of a ServiceAccount is an atomic list without a merge key: a server-side apply or a strategic merge patch
//! replaces it and wipes the entries of others. A JSON patch adds and removes single entries, guarded by a test of the
//! resourceVersion.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use wildmatch::WildMatch;

use crate::api::status::Reason;
use crate::api::{AttachPods, AttachTo};

/// The annotation that names the pull secrets that the operator has added to a ServiceAccount, separated by commas. Only these are
/// ever removed.
pub const ATTACHED: &str = "pullsecrets.dev/attached";

/// What the installation allows.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// Whether the policy that attaches Secrets to pods is installed.
    pub pods: bool,
    /// The names of ServiceAccounts to which Secrets may be attached.
    pub service_accounts: &'a BTreeSet<Arc<str>>,
}

/// The condition `Attached` of an `EcrCredential`: whether its Secret is attached as it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Whether it is.
    pub holds: bool,
    /// The reason for the condition.
    pub reason: Reason,
    /// What is missing and what to do.
    pub message: String,
}

/// What is wrong with the pull secrets of one ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Why it does not name what it should; none if it does.
    pub failure: Option<(Reason, String)>,
    /// The Secrets that it was asked to name and that are not the operator's: a fault for those alone who attach them.
    pub foreign: BTreeSet<Arc<str>>,
}

impl Fault {
    /// The fault as it is for those who attach a Secret of this name.
    pub fn of(&self, secret: &str) -> Option<(Reason, String)> {
        if self.foreign.contains(secret) {
            let message = format!(
                "the Secret {secret} there is not the operator's, so the operator does not add the name, and leaves it where it is"
            );
            return Some((Reason::SecretNotOwned, message));
        }
        self.failure.clone()
    }
}

/// The ServiceAccounts to which a Secret is not attached as it should be, or that may not be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattached {
    /// How many there are; 0 if that is unknown, because they may not be watched.
    pub count: usize,
    /// The first, `NAMESPACE/NAME`.
    pub account: String,
    /// The reason of the first.
    pub reason: Reason,
    /// Why, and what to do.
    pub message: String,
}

/// Whether a Secret is attached as `attach_to` requests; none if it requests nothing. `unattached` are the ServiceAccounts of its target
/// namespaces to which it is not.
pub fn attachment(attach_to: &AttachTo, allowed: Allowed<'_>, unattached: Option<&Unattached>) -> Option<Attachment> {
    let pods = attach_to.pods == AttachPods::MatchingImages;
    if !pods && attach_to.service_accounts.is_empty() {
        return None;
    }
    let missing = |reason, message: String| Some(Attachment { holds: false, reason, message });
    if pods && !allowed.pods {
        return missing(
            Reason::AttachPolicyMissing,
            "the MutatingAdmissionPolicy that attaches the Secret to pods is not installed: set the chart's attach.pods.enabled, which needs Kubernetes 1.36 or later; on older clusters use attachTo.serviceAccounts".to_owned(),
        );
    }
    let is_allowed = |glob: &&String| {
        let glob = WildMatch::new(glob);
        allowed.service_accounts.iter().any(|name| glob.matches(name))
    };
    if let Some(glob) = attach_to.service_accounts.iter().find(|glob| !is_allowed(glob)) {
        return missing(
            Reason::AttachNotAllowed,
            format!(
                "the operator is not allowed to change ServiceAccounts named {glob:?}: add the name to the chart's attach.serviceAccounts (flag --attach-service-account)"
            ),
        );
    }
    if let Some(Unattached { count, account, reason, message }) = unattached {
        let reason = reason.as_str();
        let what = match count {
            0 => "it is unknown whether ServiceAccounts name the Secret".to_owned(),
            _ => format!("attaching the Secret fails for {count} ServiceAccounts; first failure"),
        };
        let message = format!("{what}: {account}: {reason}: {message}");
        return missing(Reason::AttachFailed, message);
    }
    let to = match (pods, attach_to.service_accounts.is_empty()) {
        (true, true) => "new pods with an image from one of the hosts",
        (true, false) => "new pods with an image from one of the hosts, and the ServiceAccounts",
        (false, _) => "the ServiceAccounts",
    };
    Some(Attachment { holds: true, reason: Reason::Attached, message: format!("the Secret is attached to {to}") })
}

/// The record of a ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccountRecord {
    /// Its uid.
    pub uid: Box<str>,
    /// Its resourceVersion, by which patches are guarded.
    pub resource_version: Box<str>,
    /// The names in `imagePullSecrets`, in order; none where the field is absent.
    pub pull_secrets: Option<Vec<Box<str>>>,
    /// Whether it has any annotation.
    pub has_annotations: bool,
    /// The value of [`ATTACHED`].
    pub attached: Option<Box<str>>,
}

/// The pull secrets of a ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those that it should name.
    pub desired: BTreeSet<Arc<str>>,
    /// Those that stay where the operator has added them, and are not added: their `EcrCredential` is not served at present, and pods
    /// may still pull with them.
    pub kept: BTreeSet<Arc<str>>,
    /// Those that are not added because the Secret of that name is not the operator's.
    pub foreign: BTreeSet<Arc<str>>,
}

impl Wanted {
    /// Those that it was asked to name, whether or not their Secrets are the operator's.
    pub fn asked(&self) -> BTreeSet<Arc<str>> {
        self.desired.union(&self.foreign).cloned().collect()
    }
}

/// One operation of a JSON patch (RFC 6902).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operation {
    op: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
}

impl ServiceAccountRecord {
    /// The pull secrets that the operator has added, as the annotation says.
    pub fn marked(&self) -> BTreeSet<&str> {
        self.attached.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect()
    }

    fn names(&self) -> impl DoubleEndedIterator<Item = (usize, &str)> {
        self.pull_secrets.as_deref().unwrap_or_default().iter().map(AsRef::as_ref).enumerate()
    }
}

/// The patch that makes a ServiceAccount name the desired pull secrets and none that the operator has added before and that is neither
/// desired nor kept; none when nothing has to change.
///
/// Entries that somebody else has added are never removed and keep their order. An entry that was there before is not marked as
/// the operator's.
pub fn patch(account: &ServiceAccountRecord, Wanted { desired, kept, .. }: &Wanted) -> Option<Vec<Operation>> {
    let present: BTreeSet<&str> = account.names().map(|(_, name)| name).collect();
    let marked = account.marked();
    let wanted = |name: &str| desired.contains(name) || kept.contains(name);
    let added: Vec<&str> = desired.iter().map(AsRef::as_ref).filter(|name| !present.contains(name)).collect();
    let still = marked.iter().copied().filter(|name| wanted(name) && present.contains(name));
    let marks: BTreeSet<&str> = still.chain(added.iter().copied()).collect();

    let mut changes = Vec::new();
    // From the end, so that earlier indexes stay valid.
    for (index, _) in account.names().rev().filter(|(_, name)| marked.contains(name) && !wanted(name)) {
        changes.push(remove(format!("/imagePullSecrets/{index}")));
    }
    if account.pull_secrets.is_some() {
        changes.extend(added.iter().map(|name| add("/imagePullSecrets/-", json!({ "name": name }))));
    } else if !added.is_empty() {
        let entries: Vec<Value> = added.iter().map(|name| json!({ "name": name })).collect();
        changes.push(add("/imagePullSecrets", json!(entries)));
    }
    changes.extend(mark(account, &marks));
    if changes.is_empty() {
        return None;
    }
    // A recreated object has another resourceVersion as well.
    let guard = Operation {
        op: "test",
        path: "/metadata/resourceVersion".to_owned(),
        value: Some(json!(account.resource_version)),
    };
    changes.insert(0, guard);
    Some(changes)
}

/// Updates the annotation.
fn mark(account: &ServiceAccountRecord, marks: &BTreeSet<&str>) -> Option<Operation> {
    let path = format!("/metadata/annotations/{}", ATTACHED.replace('/', "~1"));
    if marks.is_empty() {
        return account.attached.as_ref().map(|_| remove(path));
    }
    if account.marked() == *marks {
        return None;
    }
    let text = marks.iter().copied().collect::<Vec<_>>().join(",");
    Some(if account.has_annotations {
        add(&path, json!(text))
    } else {
        add("/metadata/annotations", json!({ ATTACHED: text }))
    })
}

fn add(path: &str, value: Value) -> Operation {
    Operation { op: "add", path: path.to_owned(), value: Some(value) }
}

const fn remove(path: String) -> Operation {
    Operation { op: "remove", path, value: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ServiceAccount as JSON.
    fn object(pull_secrets: Option<&[&str]>, attached: Option<&str>, other_annotation: bool) -> Value {
        let mut object = json!({ "metadata": { "name": "default", "uid": "u", "resourceVersion": "7" } });
        if let Some(names) = pull_secrets {
            object["imagePullSecrets"] = names.iter().map(|name| json!({ "name": name })).collect();
        }
        if let Some(text) = attached {
            object["metadata"]["annotations"][ATTACHED] = json!(text);
        }
        if other_annotation {
            object["metadata"]["annotations"]["note"] = json!("x");
        }
        object
    }

    fn record(object: &Value) -> ServiceAccountRecord {
        let names = |list: &Vec<Value>| list.iter().map(|entry| entry["name"].as_str().unwrap().into()).collect();
        ServiceAccountRecord {
            uid: "u".into(),
            resource_version: "7".into(),
            pull_secrets: object["imagePullSecrets"].as_array().map(names),
            has_annotations: object["metadata"]["annotations"].is_object(),
            attached: object["metadata"]["annotations"][ATTACHED].as_str().map(Into::into),
        }
    }

    fn patch(account: &ServiceAccountRecord, desired: &BTreeSet<Arc<str>>) -> Option<Vec<Operation>> {
        super::patch(account, &Wanted { desired: desired.clone(), ..Wanted::default() })
    }

    fn desired(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    /// Applies a patch with the library that the API server's clients use.
    fn applied(object: &Value, operations: &[Operation]) -> Value {
        let mut object = object.clone();
        let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
        object
    }

    fn names(object: &Value) -> Vec<&str> {
        object["imagePullSecrets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| entry["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn entries_are_added_and_taken_back_and_those_of_others_stay() {
        /// The names and the annotation afterwards.
        type After = Option<(&'static [&'static str], Option<&'static str>)>;
        let table: [(&str, Value, &[&str], After); 11] = [
            ("nothing there, nothing wanted", object(None, None, false), &[], None),
            ("nothing there", object(None, None, false), &["a", "b"], Some((&["a", "b"], Some("a,b")))),
            ("an empty list", object(Some(&[]), None, true), &["a"], Some((&["a"], Some("a")))),
            ("entries of others", object(Some(&["x", "y"]), None, false), &["a"], Some((&["x", "y", "a"], Some("a")))),
            ("as it should be", object(Some(&["x", "a"]), Some("a"), false), &["a"], None),
            ("there before, and so not ours", object(Some(&["a", "x"]), None, false), &["a"], None),
            (
                "no longer wanted",
                object(Some(&["a", "x", "b"]), Some("a,b"), false),
                &["b"],
                Some((&["x", "b"], Some("b"))),
            ),
            ("nothing wanted any more", object(Some(&["x", "a"]), Some("a"), false), &[], Some((&["x"], None))),
            ("theirs is not taken back", object(Some(&["a", "x"]), Some("b"), false), &[], Some((&["a", "x"], None))),
            (
                "somebody has removed ours",
                object(Some(&["x"]), Some("a"), true),
                &["a"],
                Some((&["x", "a"], Some("a"))),
            ),
            ("named twice", object(Some(&["a", "x", "a"]), Some("a"), false), &[], Some((&["x"], None))),
        ];
        for (what, before, wanted, expected) in table {
            let patch = patch(&record(&before), &desired(wanted));
            let after = patch.as_ref().map(|operations| applied(&before, operations));
            let seen = after.as_ref().map(|after| (names(after), after["metadata"]["annotations"][ATTACHED].as_str()));
            assert_eq!(seen, expected.map(|(names, mark)| (names.to_vec(), mark)), "{what}: {patch:?}");
            if let Some(after) = &after {
                assert_eq!(
                    after["metadata"]["annotations"]["note"], before["metadata"]["annotations"]["note"],
                    "{what}"
                );
            }
        }
    }

    #[test]
    fn a_patch_is_refused_when_the_object_has_changed() {
        let operations = patch(&record(&object(None, None, false)), &desired(&["a"])).unwrap();
        let mut changed = object(None, None, false);
        changed["metadata"]["resourceVersion"] = json!("8");
        let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
        assert!(json_patch::patch(&mut changed, &patch).is_err());
    }

    #[test]
    fn the_condition_says_what_is_missing() {
        let to = |pods, names: &[&str]| AttachTo {
            pods,
            service_accounts: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let failing = Unattached {
            count: 25,
            account: "a/default".to_owned(),
            reason: Reason::Forbidden,
            message: "cannot patch".to_owned(),
        };
        let some = desired(&["default", "builder"]);
        let (none, failing) = (BTreeSet::new(), Some(&failing));
        use AttachPods::{MatchingImages, Never};
        let table = [
            ("nothing is asked for", to(Never, &[]), false, &none, None, None),
            ("pods", to(MatchingImages, &[]), true, &none, None, Some((true, Reason::Attached, "new pods"))),
            (
                "no policy",
                to(MatchingImages, &[]),
                false,
                &some,
                None,
                Some((false, Reason::AttachPolicyMissing, "1.36")),
            ),
            ("accounts", to(Never, &["def*"]), false, &some, None, Some((true, Reason::Attached, "ServiceAccounts"))),
            (
                "not allowed",
                to(Never, &["default", "x*"]),
                false,
                &some,
                None,
                Some((false, Reason::AttachNotAllowed, "x*")),
            ),
            (
                "failing",
                to(MatchingImages, &["default"]),
                true,
                &some,
                failing,
                Some((
                    false,
                    Reason::AttachFailed,
                    "attaching the Secret fails for 25 ServiceAccounts; first failure: a/default: ",
                )),
            ),
        ];
        for (what, attach_to, pods, service_accounts, unattached, expected) in table {
            let seen = attachment(&attach_to, Allowed { pods, service_accounts }, unattached);
            let told = seen.as_ref().map(|seen| (seen.holds, seen.reason));
            assert_eq!(told, expected.map(|(holds, reason, _)| (holds, reason)), "{what}");
            if let (Some(seen), Some((_, _, words))) = (seen, expected) {
                assert!(seen.message.contains(words), "{what}: {}", seen.message);
            }
        }
    }

    proptest! {
        #[test]
        fn one_patch_is_enough_and_others_lose_nothing(
            present in prop::option::of(prop::collection::vec("[a-d]", 0..5)),
            marks in prop::option::of("[a-d](,[a-d]){0,2}"),
            note in any::<bool>(),
            wanted in prop::collection::btree_set("[a-d]", 0..4),
        ) {
            let names_before: Option<Vec<&str>> = present.as_ref().map(|list| list.iter().map(String::as_str).collect());
            let before = object(names_before.as_deref(), marks.as_deref(), note);
            let wanted: BTreeSet<Arc<str>> = wanted.iter().map(|name| Arc::from(name.as_str())).collect();
            let record_before = record(&before);
            let after = patch(&record_before, &wanted).map_or_else(|| before.clone(), |operations| applied(&before, &operations));
            prop_assert!(wanted.iter().all(|name| names(&after).contains(&&**name)));
            let theirs = |name: &&str| !record_before.marked().contains(name);
            let kept: Vec<&str> = names(&after).into_iter().filter(theirs).collect();
            let there: Vec<&str> = names(&before).into_iter().filter(theirs).collect();
            prop_assert!(kept.starts_with(&there), "{:?} {:?}", there, kept);
            prop_assert_eq!(patch(&record(&after), &wanted), None);
        }
    }
}
