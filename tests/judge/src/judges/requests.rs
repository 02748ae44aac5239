//! I1 and I16: what the operator asks the API server for.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::evidence::{Account, Evidence};
use crate::history::Key;
use crate::{Invariant, Request, Violation};

/// Longer than any run.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// I1: every mutating request is for an allowed Secret in a selected namespace, the own status, the own Lease, or an Event, and
/// every token that is asked for is one of an allowed ServiceAccount.
pub(super) fn scope(evidence: &Evidence) -> Vec<Violation> {
    let is_judged = |request: &&Request| request.is_mutation() || request.is_token_request();
    let mutations = evidence.requests.iter().filter(is_judged);
    let outside = mutations.filter_map(|request| Some((request, out_of_scope(evidence, request)?)));
    outside.map(|(request, why)| violation(Invariant::I1Scope, request, &why)).collect()
}

/// I16: no request is refused because a right is missing. Refusals by quota, admission or a namespace that ends are also 403.
pub(super) fn rbac(evidence: &Evidence) -> Vec<Violation> {
    let lacks_a_right = |message: &&str| message.contains("User \"") && message.contains(" cannot ");
    let refused = evidence.requests.iter().filter(|request| request.committed == Some(403));
    let refused = refused.filter_map(|request| Some((request, request.refusal.as_deref().filter(lacks_a_right)?)));
    refused.map(|(request, message)| violation(Invariant::I16Rbac, request, message)).collect()
}

fn out_of_scope(evidence: &Evidence, request: &Request) -> Option<String> {
    let target = &request.target;
    match (&*target.group, &*target.resource, &*target.subresource) {
        ("", "secrets", "") => secret_out_of_scope(evidence, request),
        ("", "serviceaccounts", "token") if request.is_token_request() => token_out_of_scope(evidence, request),
        ("", "serviceaccounts", "") => attachment_out_of_scope(evidence, request),
        ("pullsecrets.dev", "ecrcredentials", "status")
            if target.name.starts_with(&evidence.scope.credential_prefix) =>
        {
            None
        }
        ("coordination.k8s.io", "leases", "") if is_own_lease(evidence, request) => None,
        ("" | "events.k8s.io", "events", "") if [Method::POST, Method::PATCH].contains(&request.method) => None,
        _ => Some("nothing that the operator may change".into()),
    }
}

fn secret_out_of_scope(evidence: &Evidence, request: &Request) -> Option<String> {
    let target = &request.target;
    if !evidence.scope.may_write(&target.namespace, &target.name) {
        return Some("a Secret of a name or in a namespace that is not allowed".into());
    }
    let key = Key::secret(&target.namespace, &target.name);
    // Deleting is right also where the Secret is no longer wanted, if it ever was.
    let staleness = if request.method == Method::DELETE { FOREVER } else { evidence.scope.staleness };
    if !evidence.is_wanted(&key, request.started, staleness) {
        return Some("a namespace that no EcrCredential selects".into());
    }
    let applies = request.method == Method::PATCH && request.content_type.starts_with("application/apply-patch");
    (!applies && request.method != Method::DELETE && !strips(request))
        .then(|| format!("neither an apply nor a deletion, but {}", request.content_type))
}

/// What others have added is taken out of the very state that was seen, by a merge patch that does nothing else.
fn strips(request: &Request) -> bool {
    let is_merge = request.method == Method::PATCH && request.content_type == "application/merge-patch+json";
    let fields = request.body.as_ref().and_then(|body| body.as_object()).filter(|_| is_merge);
    let only_removes = |(field, value): (&String, &Value)| match (field.as_str(), value.as_object()) {
        ("metadata", Some(metadata)) => metadata.len() == 1 && value["resourceVersion"].is_string(),
        ("data", Some(data)) => data.values().all(Value::is_null),
        ("immutable", None) => value.is_null(),
        _ => false,
    };
    fields.is_some_and(|fields| fields.contains_key("metadata") && fields.iter().all(only_removes))
}

/// Pull secrets are attached to the ServiceAccounts of a test by a JSON patch that tests the resourceVersion and changes single
/// entries and the operator's own annotation, nothing else.
fn attachment_out_of_scope(evidence: &Evidence, request: &Request) -> Option<String> {
    if request.method != Method::PATCH || !request.target.name.starts_with(&evidence.scope.credential_prefix) {
        return Some("a ServiceAccount that the operator may not change".into());
    }
    let operations = request.body.as_ref().and_then(|body| body.as_array()).map(Vec::as_slice).unwrap_or_default();
    let guarded =
        operations.first().is_some_and(|first| first["op"] == "test" && first["path"] == "/metadata/resourceVersion");
    if request.content_type != "application/json-patch+json" || !guarded {
        return Some(format!("no JSON patch that tests the resourceVersion, but {}", request.content_type));
    }
    let is_ours = |operation: &serde_json::Value| {
        let (op, path) = (&operation["op"], operation["path"].as_str().unwrap_or_default());
        let entry = path.strip_prefix("/imagePullSecrets");
        entry.is_some_and(|rest| *op == "add" || (*op == "remove" && rest.len() > 1))
            || path == "/metadata/annotations/pullsecrets.dev~1attached"
            || (path == "/metadata/annotations" && operation["value"].as_object().is_some_and(|all| all.len() == 1))
    };
    let other = operations.iter().skip(1).find(|operation| !is_ours(operation))?;
    Some(format!("a change of something else: {other}"))
}

fn token_out_of_scope(evidence: &Evidence, request: &Request) -> Option<String> {
    let (namespace, name) = (&*request.target.namespace, &*request.target.name);
    let is_declared = |account: &Account| {
        account.name == name && account.namespace.as_deref().is_none_or(|declared| declared == namespace)
    };
    if !evidence.service_accounts.iter().any(is_declared) {
        return Some("a ServiceAccount that is not allowed".into());
    }
    if !evidence.names_account(namespace, name, request.started) {
        return Some("a ServiceAccount that no EcrCredential names".into());
    }
    let audiences = request.body.as_ref().and_then(|body| body["spec"]["audiences"].as_array());
    let audiences: Vec<&str> = audiences.into_iter().flatten().filter_map(|audience| audience.as_str()).collect();
    // Without an audience the token is for the API server.
    let is_its_own = |audience: &&str| evidence.scope.api_audiences.iter().any(|own| own == audience);
    (audiences.is_empty() || audiences.iter().any(is_its_own))
        .then(|| format!("a token that the API server itself accepts, with the audiences {audiences:?}"))
}

fn is_own_lease(evidence: &Evidence, request: &Request) -> bool {
    // A creation names the Lease in its body.
    let in_body = request.body.as_ref().and_then(|body| body["metadata"]["name"].as_str());
    let name = if request.target.name.is_empty() { in_body.unwrap_or_default() } else { &request.target.name };
    evidence
        .scope
        .lease
        .as_ref()
        .is_some_and(|(namespace, lease)| (&*request.target.namespace, name) == (namespace.as_str(), lease.as_str()))
}

fn violation(invariant: Invariant, request: &Request, why: &str) -> Violation {
    let target = &request.target;
    let parts = [&*target.namespace, &*target.name].into_iter().filter(|part| !part.is_empty());
    let about = parts.collect::<Vec<_>>().join("/");
    Violation::new(invariant, about, request.started, format!("{}: {why}", request.summary()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Story, credential, secret};

    #[test]
    fn what_the_operator_needs_is_in_scope() {
        let story = Story::new()
            .operator_writes(secret())
            .operator_sends(Method::PATCH, "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/platform/status", json!({}))
            .operator_sends(
                Method::PATCH,
                "/apis/coordination.k8s.io/v1/namespaces/operator/leases/operator",
                json!({}),
            )
            .operator_sends(
                Method::POST,
                "/apis/coordination.k8s.io/v1/namespaces/operator/leases",
                json!({"metadata": {"name": "operator"}}),
            )
            .operator_sends(Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events", json!({}))
            .operator_sends(Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json!({}));
        assert_eq!(scope(&story.evidence()), []);
    }

    #[test]
    fn anything_else_is_out_of_scope() {
        let secrets = "/api/v1/namespaces/a/secrets";
        let cases = [
            (Method::PATCH, format!("{secrets}/other")),
            (Method::DELETE, secrets.into()),
            (Method::POST, secrets.into()),
            (Method::PUT, format!("{secrets}/pull")),
            (Method::PATCH, "/api/v1/namespaces/c/secrets/pull".into()),
            (Method::DELETE, "/api/v1/namespaces/c/secrets/pull".into()),
            (Method::PATCH, "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/platform".into()),
            (Method::PATCH, "/apis/pullsecrets.dev/v1alpha1/ecrcredentials/other/status".into()),
            (Method::PATCH, "/apis/coordination.k8s.io/v1/namespaces/operator/leases/other".into()),
            (Method::DELETE, "/apis/events.k8s.io/v1/namespaces/default/events/e".into()),
            (Method::PATCH, "/api/v1/namespaces/a".into()),
            (Method::POST, "/api/v1/namespaces/a/serviceaccounts/puller/token".into()),
            (Method::PATCH, "/api/v1/namespaces/a/serviceaccounts/puller".into()),
        ];
        for (method, path) in cases {
            let story = Story::new().operator_sends(method.clone(), &path, json!({}));
            assert_eq!(scope(&story.evidence()).len(), 1, "{method} {path}");
        }
    }

    #[test]
    fn a_namespace_is_in_scope_only_shortly_after_it_was_selected() {
        let mut narrowed = credential();
        narrowed["spec"]["namespaces"]["names"] = json!(["b"]);
        let late = |seconds| Story::new().operator_writes(secret()).credential(narrowed.clone()).passes(seconds);
        assert_eq!(scope(&late(1).operator_writes(secret().value("2")).evidence()), []);
        assert_eq!(scope(&late(60).operator_writes(secret().value("2")).evidence()).len(), 1);
        assert_eq!(scope(&late(60).operator_deletes().evidence()), []);
    }

    #[test]
    fn what_others_have_added_may_be_taken_out_of_the_state_that_was_seen_and_nothing_else() {
        let seen = json!({"resourceVersion": "7"});
        let cases = [
            (json!({"metadata": seen, "data": {"more": null}, "immutable": null}), 0),
            (json!({"data": {"more": null}}), 1),
            (json!({"metadata": seen, "data": {"more": "eA=="}}), 1),
            (json!({"metadata": {"resourceVersion": "7", "labels": {}}}), 1),
            (json!({"metadata": seen, "type": "Opaque"}), 1),
        ];
        for (body, expected) in cases {
            let path = "/api/v1/namespaces/a/secrets/pull";
            let mut evidence = Story::new().operator_sends(Method::PATCH, path, body.clone()).evidence();
            evidence.requests[0].content_type = "application/merge-patch+json".into();
            assert_eq!(scope(&evidence).len(), expected, "{body}");
        }
    }

    fn token_request(path: &str, audiences: serde_json::Value) -> Story {
        let mut story = Story::new();
        story.scope.api_audiences = vec!["https://kubernetes.default.svc".into()];
        story.service_accounts = vec![
            Account { namespace: Some("ops".into()), name: "puller".into() },
            Account { namespace: None, name: "tenant".into() },
        ];
        let mut named = credential();
        named["spec"]["auth"] = json!({"serviceAccount": {"namespace": "ops", "name": "puller"}});
        named["spec"]["registries"][0]["auth"] = json!({"serviceAccount": {"fromTargetNamespace": "tenant"}});
        let body = json!({"spec": {"audiences": audiences}});
        story.credential(named).operator_sends(Method::POST, path, body)
    }

    #[test]
    fn a_token_is_asked_for_only_where_it_is_allowed_and_named_and_not_for_the_api_server() {
        let aws = || json!(["sts.amazonaws.com"]);
        let path = |namespace: &str, name: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let cases = [
            (path("ops", "puller"), aws(), ""),
            (path("a", "tenant"), aws(), ""),
            (path("ops", "other"), aws(), "not allowed"),
            (path("elsewhere", "puller"), aws(), "not allowed"),
            (path("c", "tenant"), aws(), "no EcrCredential names"),
            (path("ops", "tenant"), aws(), "no EcrCredential names"),
            (path("ops", "puller"), json!([]), "the API server itself accepts"),
            (path("ops", "puller"), json!(["sts.amazonaws.com", "https://kubernetes.default.svc"]), "itself accepts"),
        ];
        for (path, audiences, expected) in cases {
            let violations = scope(&token_request(&path, audiences.clone()).evidence());
            let detail = violations.first().map(|violation| &*violation.detail).unwrap_or_default();
            assert_eq!(violations.is_empty(), expected.is_empty(), "{path} {audiences}: {detail}");
            assert!(detail.contains(expected), "{path} {audiences}: {detail}");
        }
    }

    #[test]
    fn only_a_missing_right_is_an_rbac_violation() {
        let cases = [
            (r#"secrets "pull" is forbidden: User "o" cannot patch resource "secrets""#, 1),
            (r#"secrets "pull" is forbidden: exceeded quota: q"#, 0),
            (r#"admission webhook "w" denied the request: this cannot be written here"#, 0),
        ];
        for (message, expected) in cases {
            let mut evidence = Story::new().operator_writes(secret()).evidence();
            evidence.requests[0].committed = Some(403);
            evidence.requests[0].refusal = Some(message.into());
            assert_eq!(rbac(&evidence).len(), expected, "{message}");
        }
    }
}
