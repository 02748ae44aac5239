//! I1 and I12: what the operator may ask of the API server, and when.

use super::{Evidence, Invariant, Violation};
use crate::api_server::{Kind, Sent};

pub(super) fn judge(evidence: &Evidence<'_>, sent: &[Sent]) -> Vec<Violation> {
    let about = |sent: &Sent| format!("{}/{}", sent.target.namespace, sent.target.name);
    let mut violations = Vec::new();
    for request in sent.iter().filter(|sent| sent.is_mutation) {
        if let Some(why) = out_of_scope(evidence, request) {
            let detail = format!("{}: {why}", request.summary);
            violations.push(Violation::new(Invariant::I1Scope, about(request), request.at, detail));
        }
        let needs = evidence.settings.iter().all(|settings| settings.lease.is_some());
        if let Some((at, _)) =
            request.committed.filter(|_| needs && !request.leads && request.target.kind != Kind::Lease)
        {
            let detail = format!("{} of process {}, whose lease was over", request.summary, request.process);
            violations.push(Violation::new(Invariant::I12SingleWriter, about(request), at, detail));
        }
    }
    violations
}

fn out_of_scope(evidence: &Evidence<'_>, request: &Sent) -> Option<&'static str> {
    let target = &request.target;
    match target.kind {
        Kind::Event => None,
        Kind::Lease => (target.namespace != "operator").then_some("another Lease"),
        Kind::Namespace => Some("a namespace is nobody's to change"),
        Kind::Credential => {
            (target.subresource != "status" || request.method != http::Method::PATCH).then_some("more than the status")
        }
        Kind::Secret => secret(evidence, request),
    }
}

fn secret(evidence: &Evidence<'_>, request: &Sent) -> Option<&'static str> {
    let (namespace, name) = (&request.target.namespace, &request.target.name);
    let allowed = evidence.settings.iter().any(|settings| {
        settings.secret_names.contains(name)
            && settings.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(namespace))
    });
    if !allowed {
        return Some("a Secret or a namespace that is not allowed");
    }
    if request.method == http::Method::DELETE {
        return None;
    }
    if request.method != http::Method::PATCH {
        return Some("neither an apply nor a deletion");
    }
    let until = request.committed.map_or(request.at, |(at, _)| at);
    let from = request.at.checked_sub(evidence.staleness).unwrap_or(request.at);
    evidence.history.claimants(namespace, name, from, until).is_empty().then_some("nobody selects the namespace")
}
