//! The report on the facts: a pure function, with the time as an argument.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::facts::{AttachPolicy, Facts, LeaseState, Resolved, Subject};
use super::identities;
use super::report::{
    Condition, CredentialReport, Finding, NamespaceReport, Namespaces, RegistryReport, Report, Rights, State,
};
use super::rights::LeaseScope;
use super::targets::TargetCheck;
use crate::api::registry::{Host, Region};
use crate::api::status::{Reason, RegistryStatus, condition};
use crate::api::{AttachPods, EcrCredentialStatus};
use crate::cli::LeaseArgs;
use crate::plan::outputs::{SecretPlan, include_not_allowed, output_not_allowed};
use crate::plan::schedule::later;
use crate::plan::scopes::SecretScope;
use crate::plan::{Plan, RegistryPlan, SpecError, TokenSpec};
use crate::secret::observed::Details;
use crate::secret::{LAST_CALL, Owner, SecretTarget, Selection};
use crate::token::TokenError;

/// How long after its time a refresh is overdue.
const OVERDUE: Duration = Duration::from_secs(600);

/// How long after its end a Lease shows that no operator runs: the clock of the node that renews it may be wrong, and while one pod
/// replaces another nobody holds it for a moment.
const LONG_EXPIRED: Duration = Duration::from_secs(300);

/// Makes the report.
pub(super) fn judge(facts: &Facts, now: Timestamp) -> Report {
    let rights = facts.rights.as_ref().map(|rights| Rights {
        asked: rights.len(),
        missing: rights.iter().filter(|(_, granted)| !granted).map(|(right, _)| right.clone()).collect(),
    });
    let mut problems: Vec<Finding> = facts.unreadable.iter().map(unreadable).collect();
    // A missing permission is reported as such.
    if facts.rights.is_none() {
        problems.extend(facts.refused.iter().map(refused));
    }
    problems.extend(facts.leases.iter().filter_map(|(scope, state)| no_leader(facts, scope, state, now)));
    let mut report = Report {
        checked_at: crate::plan::schedule::whole_seconds(now),
        in_operator_pod: facts.inside,
        problem_count: 0,
        problems,
        notes: notes(facts, now),
        credentials: facts.subjects().map(|subject| credential(facts, &subject, now)).collect(),
        identities: identities::report(facts),
        rights,
    };
    report.problem_count = report.count();
    report
}

fn unreadable((name, error): &(String, String)) -> Finding {
    let message = format!("EcrCredential {name} cannot be read: is the installed CRD of another version? {error}");
    Finding::new(Reason::InvalidSpec.as_str(), message)
}

fn refused((scope, message): &(SecretScope, String)) -> Finding {
    let name = scope.name.as_deref().map(|name| format!(" named {name}")).unwrap_or_default();
    let place = scope.namespace.as_deref().map_or("all namespaces".to_owned(), |n| format!("namespace {n}"));
    Finding::new(Reason::Forbidden.as_str(), format!("Secrets{name} in {place} cannot be listed: {message}"))
}

/// When a Lease has ended, if that is long ago.
fn long_ended(state: &LeaseState, now: Timestamp) -> Option<Timestamp> {
    let (LeaseState::Free(at) | LeaseState::Held { expires_at: at, .. }) = state else { return None };
    at.filter(|at| later(*at, LONG_EXPIRED) < now)
}

/// Whether the installation of a Lease has refreshed tokens long after that ended: it runs without leader election by now.
fn needs_none(facts: &Facts, scope: &LeaseScope, ended: Timestamp) -> bool {
    let mine = Some((&*scope.namespace, &*scope.name));
    let statuses = facts.credentials.iter().filter_map(|object| object.status.as_ref());
    let served = statuses.filter(|status| status.served_by.as_deref().and_then(LeaseArgs::of_installation) == mine);
    served.filter_map(|status| status.refreshed_at).any(|at| at > later(ended, LONG_EXPIRED))
}

/// Whether a Lease shows that no operator runs.
fn no_leader(facts: &Facts, scope: &LeaseScope, state: &LeaseState, now: Timestamp) -> Option<Finding> {
    let ended = long_ended(state, now).filter(|ended| !needs_none(facts, scope, *ended))?;
    let found = match state {
        LeaseState::Held { holder, .. } => format!("{holder} holds {scope} but has let it expire at {ended}"),
        _ => format!("nobody has held {scope} since {ended}"),
    };
    let text = format!(
        "{found}: no operator is running or reaches the API server, and nothing is refreshed: check its pods and their log: `kubectl get pods --namespace {}`",
        scope.namespace
    );
    Some(Finding::new("NoLeader", text))
}

/// What a Lease does not show.
fn unknown_leader(facts: &Facts, scope: &LeaseScope, state: &LeaseState, now: Timestamp) -> Option<Finding> {
    let found = match state {
        LeaseState::Hidden(why) => {
            let text = format!("cannot read {scope}, which shows whether an operator is running: {why}");
            return Some(Finding::new("LeaseNotRead", text));
        }
        LeaseState::Absent => format!("{scope} does not exist"),
        LeaseState::Free(None) => format!("nobody has held {scope} yet"),
        LeaseState::Free(Some(_)) | LeaseState::Held { .. } => {
            let ended = long_ended(state, now).filter(|ended| needs_none(facts, scope, *ended))?;
            format!("{scope} has ended at {ended}, and tokens have been refreshed since")
        }
    };
    let text =
        format!("{found}: its operator runs without leader election, has only just been installed, or does not run");
    Some(Finding::new("NoLease", text))
}

fn notes(facts: &Facts, now: Timestamp) -> Vec<Finding> {
    let leases = facts.leases.iter();
    let mut notes: Vec<Finding> =
        leases.filter_map(|(scope, state)| unknown_leader(facts, scope, state, now)).collect();
    if !facts.inside {
        let text = "this is not the operator's pod: the operator's permissions are not checked, and \"the operator's own identity\" is that of this process";
        notes.push(Finding::new("NotInOperatorPod", text));
    }
    if facts.assumed {
        let text = "all Secret names and identities of the EcrCredentials are assumed to be allowed: to be sure, pass the operator's flags, or run check in its pod";
        notes.push(Finding::new("AssumedScope", text));
    }
    if facts.aws.is_none() {
        notes.push(Finding::new("Offline", "AWS was not called"));
    }
    notes
}

/// The part of a report on one `EcrCredential`.
fn credential(facts: &Facts, subject: &Subject<'_>, now: Timestamp) -> CredentialReport {
    let object = subject.object;
    let status = object.status.clone().unwrap_or_default();
    let mut report = CredentialReport {
        name: object.name_any(),
        operator_says: ready(&status),
        problems: Vec::new(),
        notes: Vec::new(),
        registries: Vec::new(),
        secret: object.spec.secret.name.clone(),
        namespaces: Namespaces { selected: selected(facts, subject), ..Namespaces::default() },
    };
    if object.spec.suspend {
        let text = "spec.suspend is true: nothing is refreshed, and its namespaces are not checked";
        report.notes.push(Finding::new(Reason::Suspended.as_str(), text));
        match &subject.plan {
            Err(error) => report.notes.push(stalled(finding(error))),
            Ok(plan) => report.registries = registries(plan, &facts.resolve(&subject.uid, plan), &status),
        }
        report.problems.extend(several_installations(&status));
        return report;
    }
    match &subject.plan {
        Err(error) if is_mine(facts, error) => report.problems.push(stalled(finding(error))),
        Err(error) => report.notes.push(finding(error)),
        Ok(plan) => {
            let resolved = facts.resolve(&subject.uid, plan);
            report.registries = registries(plan, &resolved, &status);
            let problems = plan.registries.iter().filter_map(|registry| registry.problem.as_ref());
            let shared = resolved.iter().filter(|r| r.namespace.is_none());
            for error in problems.chain(shared.filter_map(|r| r.key.as_ref().err())) {
                let list = if is_mine(facts, error) { &mut report.problems } else { &mut report.notes };
                list.extend((!list.contains(&finding(error))).then(|| finding(error)));
            }
            report.problems.extend(plan.outputs.iter().filter_map(|output| output.refusal.as_ref()).map(finding));
            let included = plan.includes.iter().filter(|scope| !facts.limits.includes.contains(scope));
            report.problems.extend(included.map(|scope| finding(&include_not_allowed(scope))));
            report.problems.extend(tokens(facts, plan, &resolved, &status, now));
            let unselected = facts.state.index.unselected(&subject.uid);
            let reach = unselected.out_of_reach();
            report.problems.extend(reach.map(|text| Finding::new(Reason::NamespaceNotAllowed.as_str(), text)));
            let found = unselected.not_found();
            report.notes.extend(found.map(|text| Finding::new("NamespacesNotFound", text)));
            attached(facts, object, &status, &mut report);
            report.namespaces = namespaces(facts, subject, plan, &resolved, now);
        }
    }
    observed(object, &status, &mut report);
    report.problems.extend(several_installations(&status));
    report
}

/// A finding because of which the `EcrCredential` is not served at all.
fn stalled(Finding { reason, message }: Finding) -> Finding {
    Finding { reason, message: format!("{message}; it is stalled: nothing is refreshed until this is changed") }
}

/// Whether another installation of the operator serves it as well.
fn several_installations(status: &EcrCredentialStatus) -> Option<Finding> {
    let told = status.holding(condition::CONTESTED)?;
    Some(Finding::new(told.reason.clone(), told.message.clone()))
}

/// Whether its Secret is attached to pods and ServiceAccounts as the spec asks.
fn attached(
    facts: &Facts,
    object: &crate::api::EcrCredential,
    status: &EcrCredentialStatus,
    report: &mut CredentialReport,
) {
    let Some(attach_to) = &object.spec.attach_to else { return };
    let missing = Reason::AttachPolicyMissing.as_str();
    let by_policy = facts.attach_policy.as_ref().filter(|_| attach_to.pods == AttachPods::MatchingImages);
    let found = by_policy.and_then(|policy| match policy {
        AttachPolicy::Unserved => Some(
            "this cluster does not serve MutatingAdmissionPolicy in admissionregistration.k8s.io/v1, which attachTo.pods needs: use Kubernetes 1.36 or later, or attachTo.serviceAccounts".to_owned(),
        ),
        AttachPolicy::Absent => Some(
            "there is no MutatingAdmissionPolicy with EcrCredentials as parameters, which attachTo.pods needs: set the chart's attach.pods.enabled".to_owned(),
        ),
        AttachPolicy::Unbound(name) => Some(format!(
            "the MutatingAdmissionPolicy {name} has no MutatingAdmissionPolicyBinding, so it has no effect: install that of the chart, which has the same name"
        )),
        AttachPolicy::Installed | AttachPolicy::Hidden(_) => None,
    });
    if let Some(text) = found {
        report.problems.push(Finding::new(missing, text));
    }
    if let Some(AttachPolicy::Hidden(why)) = by_policy {
        let text = format!(
            "cannot read whether the MutatingAdmissionPolicy that attaches Secrets to pods is installed: {why}"
        );
        report.notes.push(Finding::new("AttachPolicyNotRead", text));
    }
    let told = status.condition(condition::ATTACHED).filter(|told| told.status == "False");
    if let Some(told) = told.filter(|told| !report.problems.iter().any(|problem| problem.reason == told.reason)) {
        let text = match by_policy {
            Some(AttachPolicy::Installed) if told.reason == missing => {
                "the MutatingAdmissionPolicy is installed, but the operator does not know it: set ECO_ATTACH_PODS=true (flag --attach-pods), as the chart does".to_owned()
            }
            _ => told.message.clone(),
        };
        report.problems.push(Finding::new(told.reason.clone(), text));
    }
}

/// How many namespaces it selects for its pull secret.
fn selected(facts: &Facts, subject: &Subject<'_>) -> usize {
    let pull_secret = &*subject.object.spec.secret.name;
    facts.state.index.targets(&subject.uid).filter(|(name, _)| ***name == *pull_secret).count()
}

/// Whether an error applies to the operator: outside its pod, a missing permission or region is that of this
/// process.
fn is_mine(facts: &Facts, error: &SpecError) -> bool {
    facts.inside || !matches!(error.reason, Reason::Forbidden | Reason::NoRegion)
}

fn finding(error: &SpecError) -> Finding {
    Finding::new(error.reason.as_str(), error.message.clone())
}

fn ready(status: &EcrCredentialStatus) -> Option<Condition> {
    let found = status.condition(condition::READY)?;
    Some(Condition { status: found.status.clone(), reason: found.reason.clone(), message: found.message.clone() })
}

/// What the operator reports itself, if no other finding explains it.
fn observed(object: &crate::api::EcrCredential, status: &EcrCredentialStatus, report: &mut CredentialReport) {
    if status.observed_generation != object.metadata.generation {
        let text = "the operator has not observed the current spec: check that it is running, and that its --credential-selector matches this EcrCredential";
        report.problems.push(Finding::new("NotObserved", text));
        return;
    }
    report.problems.extend(stale_include(object, status, report));
    if report.problems.is_empty()
        && report.namespaces.failing.is_empty()
        && let Some(ready) = report.operator_says.as_ref().filter(|ready| ready.status != "True")
    {
        let problem = Finding::new(ready.reason.clone(), ready.message.clone());
        report.problems.push(if status.holding(condition::STALLED).is_some() { stalled(problem) } else { problem });
    }
}

/// Whether an included Secret is good shows in its data, which only the operator reads. It says so under `Reconciling` unless
/// something else is wrong, which it says under `Ready` as well.
fn stale_include(
    object: &crate::api::EcrCredential,
    status: &EcrCredentialStatus,
    report: &CredentialReport,
) -> Option<Finding> {
    let of_ready = status.condition(condition::READY).map(|ready| &ready.reason);
    let told = status.holding(condition::RECONCILING).filter(|told| Some(&told.reason) != of_ready)?;
    let of_registry = status.registries.iter().any(|registry| registry.reason.as_ref() == Some(&told.reason));
    let is_told = report.problems.iter().any(|problem| problem.reason == told.reason);
    let of_include = !object.spec.include.is_empty() && !of_registry && !is_told;
    let minutes = LAST_CALL.as_secs() / 60;
    let message = format!(
        "{}; the last valid content stays in the docker configs; after a restart of the operator, those that may have its entries stay as they are until {minutes} minutes before their first token expires, and are then written without them",
        told.message
    );
    of_include.then(|| Finding::new(told.reason.clone(), message))
}

fn registries(plan: &Plan, resolved: &[Resolved<'_>], status: &EcrCredentialStatus) -> Vec<RegistryReport> {
    let describe = |(number, registry): (usize, &RegistryPlan)| {
        let told = told(status, number, registry);
        let identity = resolved
            .iter()
            .filter(|resolved| resolved.namespace.is_none() && registry.token_specs.contains(resolved.spec))
            .find_map(|resolved| Some(resolved.key.as_ref().ok()?.identity.to_string()));
        RegistryReport {
            service: registry.token_specs.first().map_or("ecr", |spec| spec.service.api()),
            region: registry.region.as_ref().map(ToString::to_string),
            identity,
            own_for_each_namespace: registry.is_each_targets(),
            hosts: told.map(|told| told.hosts.clone()).unwrap_or_default(),
            issued_at: told.and_then(|told| told.issued_at),
            expires_at: told.and_then(|told| told.expires_at),
        }
    };
    plan.registries.iter().enumerate().map(describe).collect()
}

/// The registries, by the status.
fn told<'a>(status: &'a EcrCredentialStatus, number: usize, registry: &RegistryPlan) -> Option<&'a RegistryStatus> {
    let region = registry.region.as_ref().map(Region::as_str);
    status.registries.get(number).filter(|told| told.region.as_deref() == region)
}

/// Problems of the tokens that the operator reports. What AWS just responded is reported with the identity.
fn tokens(
    facts: &Facts,
    plan: &Plan,
    resolved: &[Resolved<'_>],
    status: &EcrCredentialStatus,
    now: Timestamp,
) -> Vec<Finding> {
    let (mut problems, mut fails) = (Vec::new(), false);
    for (number, registry) in plan.registries.iter().enumerate() {
        let Some(told) = told(status, number, registry) else { continue };
        let region = registry.region.as_ref().map(|region| format!(" in {region}"));
        let registry_name = format!("registry{}", region.unwrap_or_default());
        if let Some(at) = told.expires_at.filter(|at| *at <= now) {
            problems.push(Finding::new(
                Reason::TokenExpired.as_str(),
                format!("{registry_name}: its token expired at {at}"),
            ));
        }
        let failed = [Reason::Synced, Reason::FetchingToken].map(Reason::as_str);
        let failing = told.reason.as_deref().filter(|reason| !failed.contains(reason));
        fails |= failing.is_some();
        if let Some(reason) = failing.filter(|reason| !is_told(facts, registry, resolved, reason)) {
            let message = told.message.clone().unwrap_or_default();
            problems
                .push(Finding::new(reason, format!("{registry_name}: the operator's last attempt failed: {message}")));
        }
    }
    let is_overdue = |at: &Timestamp| problems.is_empty() && !fails && later(*at, OVERDUE) < now;
    if let Some(at) = status.next_refresh_at.filter(is_overdue) {
        let text = format!("a refresh was due at {at} but has not happened: check that the operator is running");
        problems.push(Finding::new("RefreshOverdue", text));
    }
    problems
}

/// Whether the operator's report on a registry is covered: with the entry, or by what AWS just responded.
fn is_told(facts: &Facts, registry: &RegistryPlan, resolved: &[Resolved<'_>], reason: &str) -> bool {
    if registry.problem.as_ref().is_some_and(|problem| problem.reason.as_str() == reason) {
        return true;
    }
    let same_token = |resolved: &&Resolved<'_>| registry.token_specs.contains(resolved.spec);
    let same = |error: &TokenError| error.reason().as_str() == reason;
    resolved.iter().filter(same_token).any(|resolved| match &resolved.key {
        Err(error) => error.reason.as_str() == reason,
        Ok(key) => {
            let answer = facts.aws.as_ref().and_then(|aws| aws.tokens.get(key)?.as_ref().err());
            answer.is_some_and(|error| same(error) && identities::is_problem(facts, &key.identity, error))
        }
    })
}

fn namespaces(
    facts: &Facts,
    subject: &Subject<'_>,
    plan: &Plan,
    resolved: &[Resolved<'_>],
    now: Timestamp,
) -> Namespaces {
    let object = subject.object;
    let owner = Owner { name: object.name_any(), uid: subject.uid.clone() };
    let status = object.status.clone().unwrap_or_default();
    let check = TargetCheck { plan, owner: &owner, status: &status, now };
    let targets = facts.state.targets(&subject.uid, object.metadata.generation);
    let mut targets: Vec<SecretTarget> = targets.into_iter().flatten().collect();
    targets.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let (mut all, mut good) = (Namespaces::default(), 0);
    for target in &targets {
        let found = facts.metadata.get(&target.key()).map(Details::metadata);
        let report = if is_hidden(facts, target) { Some(hidden(target)) } else { check.judge(target, found.as_ref()) };
        let here = resolved.iter().filter(|resolved| resolved.namespace.as_deref() == Some(&*target.namespace));
        let of_secret = here.filter(|resolved| holds(plan, &status, target, resolved.spec));
        let report = with_identity(facts, target, of_secret, report);
        // The namespaces of outputs are reported only if they have a problem.
        let selected =
            matches!(target.selection, Selection::Selected | Selection::Conflict(_)) && target.name == plan.secret.name;
        all.selected += usize::from(selected);
        match report {
            Some(report) => all.failing.push(report),
            None if selected => {
                good += 1;
                let expires_at =
                    facts.state.record(&target.name, &target.namespace).and_then(|record| record.expires_at);
                all.earliest_expiry = all.earliest_expiry.into_iter().chain(expires_at).min();
            }
            None => {}
        }
    }
    for (name, namespace) in facts.state.index.denied(&subject.uid) {
        // An output that may not be written anywhere is reported as a whole.
        let denied = plan.secret_named(name).filter(|secret| secret.refusal.is_none());
        all.failing.extend(denied.map(|secret| not_allowed(secret, namespace)));
    }
    all.good = Some(good);
    all
}

/// An output that may not be written in a namespace.
fn not_allowed(secret: &SecretPlan, namespace: &str) -> NamespaceReport {
    let SpecError { reason, message } = output_not_allowed(&secret.name, secret.format, namespace);
    NamespaceReport::new(namespace, &secret.name, State::Missing, reason.as_str(), message)
}

/// Whether the Secret of a target could not be listed.
fn is_hidden(facts: &Facts, target: &SecretTarget) -> bool {
    facts.refused.iter().any(|(scope, _)| {
        scope.name.as_ref().is_none_or(|name| *name == target.name)
            && scope.namespace.as_ref().is_none_or(|namespace| *namespace == target.namespace)
    })
}

fn hidden(target: &SecretTarget) -> NamespaceReport {
    let SecretTarget { namespace, name, .. } = target;
    let message = format!("listing Secrets named {name} is not allowed here");
    NamespaceReport::new(namespace, name, State::Unknown, Reason::Forbidden.as_str(), message)
}

/// Whether the Secret of a target holds a token, by the hosts in the status.
fn holds(plan: &Plan, status: &EcrCredentialStatus, target: &SecretTarget, token_spec: &TokenSpec) -> bool {
    let has = |number: usize, host: &Host| {
        let told = plan.registries.get(number).and_then(|registry| told(status, number, registry));
        told.is_some_and(|told| told.hosts.iter().any(|written| written == host.as_str()))
    };
    let secret = plan.secret_named(&target.name);
    let registries = secret.map(|secret| plan.registries_of(secret, has)).unwrap_or_default();
    registries.iter().any(|registry| registry.token_specs.contains(token_spec))
}

/// Adds that a namespace's own identity fails: the Secret cannot be refreshed, or there is no valid one because of it.
fn with_identity<'a>(
    facts: &Facts,
    target: &SecretTarget,
    resolved: impl Iterator<Item = &'a Resolved<'a>>,
    report: Option<NamespaceReport>,
) -> Option<NamespaceReport> {
    let mut failures = resolved.filter_map(|resolved| identities::failure(facts, resolved));
    let failure = failures.find(|error| is_mine(facts, error)).filter(|_| target.selection == Selection::Selected);
    let Some(SpecError { reason, message }) = failure.filter(|_| report.as_ref().is_none_or(is_unexplained)) else {
        return report;
    };
    let SecretTarget { namespace, name, .. } = target;
    let state = report.as_ref().map_or(State::NotRenewable, |report| report.state);
    Some(NamespaceReport {
        issued_at: report.and_then(|report| report.issued_at),
        expires_at: facts.state.record(name, namespace).and_then(|record| record.expires_at),
        ..NamespaceReport::new(namespace, name, state, reason.as_str(), message)
    })
}

/// Whether a namespace lacks valid tokens for no known reason.
fn is_unexplained(report: &NamespaceReport) -> bool {
    matches!(report.state, State::Missing | State::Expired | State::Stale)
        && report.reason == format!("{:?}", report.state)
}
