//! Create, apply, patch, replace, delete, get and list, with the checks of the real API server that the operator can meet.

use http::Method;
use serde_json::{Value, json};

use super::accounts;
use super::answer::{Answer, list, metadata_of};
use super::fields;
use super::kept::Stored;
use super::page::Page;
use super::request::{Kind, Request, Target};
use super::selector::Selector;
use super::store::{Actor, Key, Store, is_terminating, key, now_text};

impl Store {
    /// Does what a request asks; a watch is not its business.
    pub fn serve(&mut self, request: &Request, by: Actor) -> Answer {
        self.tick();
        let target = &request.target;
        if target.kind == Kind::Event {
            self.events.push((crate::clock::true_now(), request.body.clone()));
            return Answer::created(request.body.clone());
        }
        let answer = match request.method {
            Method::GET if target.name.is_empty() => return self.list(request, self.version),
            Method::GET => self.get(&key(target)).map(|stored| Answer::ok((*stored.shown).clone())),
            Method::POST if request.is_token_request() => self.token(request),
            Method::POST => Some(self.create(request, by)),
            Method::PUT => self.replace(request, by),
            Method::PATCH if request.is_json_patch() && target.kind == Kind::ServiceAccount => {
                self.patch_account(request, by)
            }
            Method::PATCH if request.is_json_patch() => self.patch_status(request, by),
            Method::PATCH if request.is_apply() => Some(self.apply(request, by)),
            Method::PATCH => self.merge(request, by),
            Method::DELETE => self.delete(request, by),
            _ => Some(Answer::refusal(405, "MethodNotAllowed", "the server does not allow this method")),
        };
        let mut answer = answer.unwrap_or_else(|| Answer::not_found(target));
        if request.metadata_only && !answer.is_refusal() {
            answer.body = metadata_of(answer.body["metadata"].take());
        }
        answer
    }

    /// A list as it was at a version.
    pub fn list(&self, request: &Request, version: u64) -> Answer {
        let kind = request.target.kind;
        let (selector, page) = (Selector::of(request), Page::of(request, version));
        if page.after.is_some() && page.version < self.oldest {
            return Answer::gone(page.version, self.oldest);
        }
        let objects = self.found_at(page.version, kind, &selector, page.after.as_ref());
        let mut found = objects.filter(|(_, object)| selector.matches(object));
        let shown = |object: &Value| match request.metadata_only {
            true => metadata_of(object["metadata"].clone()),
            false => object.clone(),
        };
        let (keys, items): (Vec<Key>, Vec<Value>) =
            found.by_ref().take(page.limit).map(|(key, object)| (key, shown(&object))).unzip();
        let more = keys.last().filter(|_| found.next().is_some()).map(|last| page.token(last));
        Answer::ok(list(kind, request.metadata_only, page.version, more, items))
    }

    fn create(&mut self, request: &Request, by: Actor) -> Answer {
        let name = request.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let target = Target { name, ..request.target.clone() };
        if self.get(&key(&target)).is_some() {
            let message = format!("{} {:?} already exists", target.kind.qualified(), target.name);
            return Answer::refusal(409, "AlreadyExists", message).causes(&target, vec![]);
        }
        match self.admit(&target, None, &request.body) {
            Some(refusal) => refusal,
            None => Answer::created(self.insert(&target, request, by)),
        }
    }

    fn insert(&mut self, target: &Target, request: &Request, by: Actor) -> Value {
        let mut object = request.body.clone();
        let mut managers = Vec::new();
        if target.kind == Kind::Secret {
            if object["type"].is_null() {
                object["type"] = "Opaque".into();
            }
            if request.is_apply() {
                let applied = request.body.clone();
                // Onto nothing there is nothing to dispute.
                let _ = fields::apply(
                    &mut json!({"metadata": {}}),
                    &mut managers,
                    &applied,
                    &request.manager(),
                    true,
                    &now_text(),
                );
            } else {
                fields::updated(&mut managers, &request.manager(), None, &object, &now_text());
            }
        }
        mutate(&mut object, request);
        object["apiVersion"] = target.kind.api_version().into();
        object["kind"] = target.kind.name().into();
        let metadata = &mut object["metadata"];
        metadata["name"] = target.name.as_str().into();
        if !target.namespace.is_empty() {
            metadata["namespace"] = target.namespace.as_str().into();
        }
        metadata["creationTimestamp"] = now_text().into();
        metadata["uid"] = self.fresh_uid(target.kind).into();
        if matches!(target.kind, Kind::Credential) {
            metadata["generation"] = 1.into();
        }
        (*self.put(&key(target), None, object, managers, by)).clone()
    }

    /// Checks what belongs to a change; none lets it pass.
    fn admit(&self, target: &Target, before: Option<&Value>, after: &Value) -> Option<Answer> {
        if before.is_none()
            && let Some(refusal) = self.homeless(target).or_else(|| self.exceeded(target))
        {
            return Some(refusal);
        }
        if target.kind != Kind::Secret {
            return None;
        }
        let before = before?;
        if before["type"] != after["type"] {
            let message = format!("Invalid value: {}: field is immutable", after["type"]);
            return Some(Answer::invalid(target, "type", &message));
        }
        let sealed = before["immutable"] == true;
        let message = "Forbidden: field is immutable when `immutable` is set";
        if sealed && after["immutable"] != true {
            return Some(Answer::invalid(target, "immutable", message));
        }
        (sealed && before["data"] != after["data"]).then(|| Answer::invalid(target, "data", message))
    }

    /// What is said to a creation in a namespace that is not there, or ends.
    pub(super) fn homeless(&self, target: &Target) -> Option<Answer> {
        if target.namespace.is_empty() {
            return None;
        }
        let home = super::target(Kind::Namespace, "", &target.namespace);
        match self.get(&key(&home)) {
            None => Some(Answer::not_found(&home)),
            Some(namespace) => is_terminating(&namespace.object).then(|| terminating(target)),
        }
    }

    /// What the quota of a namespace says to one Secret more.
    fn exceeded(&self, target: &Target) -> Option<Answer> {
        let limit = self.quotas.get(&target.namespace).filter(|_| target.kind == Kind::Secret)?;
        let used = self.keys_in(target.kind, &target.namespace).len();
        let why =
            format!("exceeded quota: quota, requested: secrets=1, used: secrets={used}, limited: secrets={limit}");
        (used >= *limit).then(|| Answer::forbidden(target, &why))
    }

    fn apply(&mut self, request: &Request, by: Actor) -> Answer {
        let (target, body) = (&request.target, &request.body);
        let (uid, version) = (body["metadata"]["uid"].as_str(), body["metadata"]["resourceVersion"].as_str());
        let Some(stored) = self.get(&key(target)) else {
            if let Some(uid) = uid {
                let why =
                    format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
                return Answer::conflict(target, &why);
            }
            if version.is_some() {
                return Answer::modified(target);
            }
            return match self.admit(target, None, body) {
                Some(refusal) => refusal,
                None => Answer::created(self.insert(target, request, by)),
            };
        };
        if version.is_some_and(|version| stored.object["metadata"]["resourceVersion"] != version) {
            return Answer::modified(target);
        }
        let (mut object, mut managers) = (stored.object.clone(), stored.managers.clone());
        let force = request.parameter("force") == "true";
        if let Err(disputes) = fields::apply(&mut object, &mut managers, body, &request.manager(), force, &now_text()) {
            return disputed(target, &disputes);
        }
        mutate(&mut object, request);
        if let Some(refusal) = uid.and_then(|uid| other_uid(target, &stored.object, uid)) {
            return refusal;
        }
        if let Some(refusal) = self.admit(target, Some(&stored.object), &object) {
            return refusal;
        }
        if object == stored.object && managers == stored.managers {
            return Answer::ok((*stored.shown).clone());
        }
        Answer::ok((*self.put(&key(target), Some(&stored), object, managers, by)).clone())
    }

    /// The one JSON patch that is known here: it tests the uid and sets the status.
    fn patch_status(&mut self, request: &Request, by: Actor) -> Option<Answer> {
        let (target, patch) = (&request.target, &request.body);
        let stored = self.get(&key(target))?;
        let is = |index: usize, op: &str, path: &str| patch[index]["op"] == op && patch[index]["path"] == path;
        let known = target.kind == Kind::Credential
            && target.subresource == "status"
            && is(0, "test", "/metadata/uid")
            && is(1, "add", "/status");
        if !known {
            return Some(Answer::refusal(501, "NotImplemented", "the stand-in does not know this JSON patch"));
        }
        if patch[0]["value"] != stored.object["metadata"]["uid"] {
            return Some(Answer::unpatched());
        }
        let mut object = stored.object.clone();
        object["status"] = patch[1]["value"].clone();
        if object == stored.object {
            return Some(Answer::ok((*stored.shown).clone()));
        }
        Some(Answer::ok((*self.put(&key(target), Some(&stored), object, vec![], by)).clone()))
    }

    fn merge(&mut self, request: &Request, by: Actor) -> Option<Answer> {
        let (target, patch) = (&request.target, &request.body);
        let stored = self.get(&key(target))?;
        let mut object = stored.object.clone();
        merge_patch(&mut object, patch);
        Some(self.write_over(target, request, &stored, object, by))
    }

    fn replace(&mut self, request: &Request, by: Actor) -> Option<Answer> {
        let target = &request.target;
        let stored = self.get(&key(target))?;
        let mut object = request.body.clone();
        for field in ["uid", "creationTimestamp", "namespace", "generation"] {
            if !stored.object["metadata"][field].is_null() {
                object["metadata"][field] = stored.object["metadata"][field].clone();
            }
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        Some(self.write_over(target, request, &stored, object, by))
    }

    /// The end of every ordinary write to an object that exists.
    pub(super) fn write_over(
        &mut self,
        target: &Target,
        request: &Request,
        stored: &Stored,
        mut after: Value,
        by: Actor,
    ) -> Answer {
        let before = &stored.object;
        let wanted = request.body["metadata"]["resourceVersion"].as_str();
        if wanted.is_some_and(|version| before["metadata"]["resourceVersion"] != version) {
            return Answer::modified(target);
        }
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if let Some(refusal) = self.admit(target, Some(before), &after) {
            return refusal;
        }
        if target.kind == Kind::Credential && before["spec"] != after["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
            after["metadata"]["generation"] = (generation + 1).into();
        }
        let mut managers = stored.managers.clone();
        if target.kind == Kind::Secret {
            fields::updated(&mut managers, &request.manager(), Some(before), &after, &now_text());
        }
        if target.kind == Kind::ServiceAccount {
            accounts::tidy(&mut after);
        }
        if after == stored.object && managers == stored.managers {
            return Answer::ok((*stored.shown).clone());
        }
        Answer::ok((*self.put(&key(target), Some(stored), after, managers, by)).clone())
    }

    fn delete(&mut self, request: &Request, by: Actor) -> Option<Answer> {
        let target = &request.target;
        let key: Key = key(target);
        let metadata = self.get(&key)?.object["metadata"].clone();
        let wanted = &request.body["preconditions"];
        for (field, name) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            if wanted[field].as_str().is_some_and(|value| metadata[field] != value) {
                let why = format!(
                    "the {name} in the precondition ({}) does not match the {name} in record ({}). The object might have been deleted and then recreated",
                    plain(&wanted[field]),
                    plain(&metadata[field])
                );
                return Some(Answer::conflict(target, &why));
            }
        }
        if target.kind == Kind::Namespace {
            return self.terminate(target, by).map(|object| Answer::ok((*object).clone()));
        }
        self.remove(&key, by)?;
        Some(Answer::deleted(target, metadata["uid"].as_str().unwrap_or_default()))
    }
}

/// Merges what webhooks have changed. Nobody owns these fields.
fn mutate(object: &mut Value, request: &Request) {
    if !request.admitted.is_null() {
        merge_patch(object, &request.admitted);
    }
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A uid cannot be changed, and so it cannot be another's.
fn other_uid(target: &Target, object: &Value, uid: &str) -> Option<Answer> {
    let message = format!("Invalid value: {uid:?}: field is immutable");
    (object["metadata"]["uid"] != uid).then(|| Answer::invalid(target, "metadata.uid", &message))
}

fn terminating(target: &Target) -> Answer {
    let namespace = &target.namespace;
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = json!({
        "reason": "NamespaceTerminating", "field": "metadata.namespace",
        "message": format!("namespace {namespace} is being terminated"),
    });
    let mut answer = Answer::forbidden(target, &why);
    answer.body["details"]["causes"] = json!([cause]);
    answer
}

fn disputed(target: &Target, disputes: &[fields::Dispute]) -> Answer {
    let field = |dispute: &fields::Dispute| {
        dispute.path.split('\n').map(|part| format!(".{}", part.strip_prefix("f:").unwrap_or(part))).collect::<String>()
    };
    let cause = |dispute: &fields::Dispute| {
        let using = if dispute.applies { "" } else { " using v1" };
        json!({
            "reason": "FieldManagerConflict", "field": field(dispute),
            "message": format!("conflict with {:?}{using}", dispute.manager),
        })
    };
    let message = format!("Apply failed with {} conflicts", disputes.len());
    Answer::refusal(409, "Conflict", message).causes(target, disputes.iter().map(cause).collect())
}

/// RFC 7386.
fn merge_patch(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("an object");
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge_patch(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
