//! Who wrote which version of an object, and when, told from the requests that went through the proxies.

use std::collections::HashMap;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::history::{History, Key, Kind, Version};
use crate::marks::managed;
use crate::request::Request;

/// The requests that left versions of objects behind, by uid and resourceVersion.
type Stored<'a> = HashMap<(&'a str, &'a str), &'a Request>;

impl History {
    /// Says of every version of a Secret and of an EcrCredential whether the operator wrote it, and when.
    pub fn attribute(&mut self, requests: &[Request]) {
        let stored = stored(requests);
        for (key, versions) in &mut self.0 {
            let authors: Vec<Option<Timestamp>> = match key.kind {
                Kind::Secret => (0..versions.len()).map(|at| author(key, versions, at, &stored, requests)).collect(),
                Kind::Credential => versions.iter().map(|version| Some(request(&stored, version)?.started)).collect(),
                Kind::Namespace | Kind::ServiceAccount | Kind::Event => continue,
            };
            for (version, sent) in versions.iter_mut().zip(authors) {
                version.by_operator = sent.is_some();
                version.sent = sent.unwrap_or(version.at);
            }
        }
    }
}

fn stored(requests: &[Request]) -> Stored<'_> {
    let mut stored = HashMap::new();
    for request in requests.iter().filter(|request| request.method != Method::DELETE) {
        if let Some(object) = &request.stored {
            // A later apply that changes nothing answers with the same version.
            stored.entry((object.uid.as_str(), object.resource_version.as_str())).or_insert(request);
        }
    }
    stored
}

fn request<'a>(stored: &Stored<'a>, version: &Version) -> Option<&'a Request> {
    stored.get(&(version.uid(), version.resource_version())).copied()
}

/// When the operator sent a version of a Secret, if it did.
fn author(key: &Key, versions: &[Version], at: usize, stored: &Stored<'_>, requests: &[Request]) -> Option<Timestamp> {
    let version = &versions[at];
    if version.initial {
        return None;
    }
    if version.deleted {
        return Some(deletion(requests, key, version)?.started);
    }
    let previous = versions[..at].last().filter(|last| !last.deleted && last.uid() == version.uid());
    let request = request(stored, version).filter(|request| !changed_nothing(request, previous, version));
    request.map(|request| request.started).or_else(|| manager_wrote(previous, version).then_some(version.at))
}

/// The DELETE that ended this object, also one whose answer nobody saw.
fn deletion<'a>(requests: &'a [Request], key: &Key, version: &Version) -> Option<&'a Request> {
    let window = SignedDuration::from_secs(5);
    requests.iter().find(|request| {
        let same = request.method == Method::DELETE
            && request.is_secret_write()
            && (&*request.target.namespace, &*request.target.name) == (&*key.namespace, &*key.name);
        let unanswered = request.committed.is_none() && version.at.duration_since(request.started).abs() < window;
        let answered =
            request.is_committed() && request.stored.as_ref().is_some_and(|object| object.uid == version.uid());
        same && (answered || unanswered)
    })
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
    managed(&version.object).next()
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
    use crate::fixture::{Story, secret};

    fn authors(story: Story) -> Vec<bool> {
        story.evidence().secret_writes().map(|write| write.version.by_operator).collect()
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
