//! The results of a reconciliation as a status, Events, and the time of the next one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::api::OutputFormat;
use crate::api::registry::{Host, Region};
use crate::api::status::{
    EcrCredentialStatus, MAX_FAILURES, NamespaceCounts, NamespaceFailure, OutputStatus, Reason, RegistryStatus,
    condition,
};
use crate::attach::Attachment;
use crate::plan::SpecError;
use crate::plan::namespaces::Unselected;
use crate::plan::schedule::{Life, until, whole_seconds};
use crate::token::TokenHash;

/// The longest time until the next reconciliation. Timers stop while a machine sleeps; tokens expire nevertheless.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The shortest wait, so that a stopped clock cannot cause a hot loop.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The largest status as JSON, in bytes. Its hosts are bounded by the plan.
const LARGEST_STATUS: usize = 60 * 1024;

/// The longest text of an Event in bytes: the API server rejects more than 1024.
const LONGEST_EVENT: usize = 1000;

/// The lengths in bytes to which messages of a larger status are truncated, step by step.
const CUTS: [usize; 3] = [400, 200, 60];

/// One registry after a reconciliation.
#[derive(Clone, Debug)]
pub struct RegistryReport {
    /// The region whose API issues the token, if it is known.
    pub region: Option<Region>,
    /// The hosts in the Secret, with `*` for an account that is not known yet or may differ from namespace to namespace.
    pub hosts: Vec<Host>,
    /// The life of the token in the Secret; of several the one that expires first.
    pub life: Option<Life>,
    /// The hash of the token and its identity, where all namespaces share it and the identity is known.
    pub hash: Option<TokenHash>,
    /// The hash of the token and what `auth` says, where all namespaces share it.
    pub auth_hash: Option<TokenHash>,
    /// What is wrong with the entry. The valid rest of it is refreshed.
    pub problem: Option<SpecError>,
    /// Why the last fetch failed, if it did.
    pub failure: Option<SpecError>,
    /// Whether each namespace has its own token, so that a missing one is reported with the namespace.
    pub each_targets: bool,
}

impl RegistryReport {
    /// The error to report, if there is one.
    fn error(&self) -> Option<&SpecError> {
        self.problem.as_ref().or(self.failure.as_ref())
    }

    /// The subject of messages about it.
    fn label(&self) -> String {
        self.region.as_ref().map_or_else(|| "a registry".to_owned(), |region| format!("registry in {region}"))
    }
}

/// The selected namespaces of one Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetCounts {
    /// How many are selected.
    pub selected: usize,
    /// How many hold the Secret as desired.
    pub synced: usize,
    /// How many others have a failure.
    pub failed: usize,
    /// How many others wait for their first token.
    pub fetching: usize,
    /// The failure of the first of those that do not hold it as desired, by name.
    pub first_failure: Option<NamespaceFailure>,
}

impl TargetCounts {
    /// How many do not hold the Secret as desired.
    const fn missing(&self) -> usize {
        self.selected.saturating_sub(self.synced)
    }

    /// The first failure in words; empty if there is none.
    fn detail(&self) -> String {
        let first = self.first_failure.as_ref();
        first.map(|f| format!("; first failure: {}: {}: {}", f.namespace, f.reason, f.message)).unwrap_or_default()
    }
}

/// The selected namespaces after a reconciliation.
#[derive(Clone, Debug, Default)]
pub struct NamespaceReport {
    /// Those of the pull secret.
    pub counts: TargetCounts,
    /// The failures of all Secrets, also in namespaces that hold theirs as desired for now.
    pub failures: Vec<NamespaceFailure>,
    /// The parts of the selection that select nothing.
    pub unselected: Unselected,
}

/// One output after a reconciliation.
#[derive(Clone, Debug)]
pub struct OutputReport {
    /// The Secret's name.
    pub name: Arc<str>,
    /// The format.
    pub format: OutputFormat,
    /// The selected namespaces.
    pub counts: TargetCounts,
    /// Why it is not written, or not all of it.
    pub refusal: Option<SpecError>,
}

/// The result of one reconciliation.
#[derive(Clone, Debug)]
pub enum Observation {
    /// Nothing is done until the spec or the installation changes.
    Stalled(SpecError),
    /// Nothing is done because `spec.suspend` is set.
    Suspended,
    /// The `EcrCredential` was reconciled.
    Ran(Box<Report>),
}

/// What there is to report of one reconciliation.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One for each registry of the spec.
    pub registries: Vec<RegistryReport>,
    /// The namespaces of the pull secret, and the failures of all Secrets.
    pub namespaces: NamespaceReport,
    /// One for each output of the spec.
    pub outputs: Vec<OutputReport>,
    /// Why an include is missing, or not current.
    pub include_failure: Option<SpecError>,
    /// When the first token expires in a Secret that stays as it is for now: its token may not be the current one.
    pub kept_until: Option<Timestamp>,
    /// When the tokens are refreshed next.
    pub next_refresh_at: Option<Timestamp>,
    /// When the result changes by time alone.
    pub look_again: Option<Timestamp>,
    /// The refresh request that is now served.
    pub handled_refresh_request: Option<String>,
    /// Whether the Secret is attached as asked, if that is asked for.
    pub attached: Option<Attachment>,
}

/// A Kubernetes Event to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedEvent {
    /// Whether it is a warning.
    pub warning: bool,
    /// The reason.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// The target namespace in which it is created; none for one about the `EcrCredential`.
    pub namespace: Option<String>,
    /// The Secret there that it is about, if it is not the pull secret.
    pub secret: Option<String>,
}

impl ReportedEvent {
    /// One about the `EcrCredential`.
    fn of_credential(warning: bool, reason: Reason, message: String) -> Self {
        Self { warning, reason: reason.as_str().to_owned(), message, namespace: None, secret: None }
    }
}

/// The status, the Events, and the time of the next reconciliation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The new status.
    pub status: EcrCredentialStatus,
    /// The Events.
    pub events: Vec<ReportedEvent>,
    /// How long to wait if nothing else happens.
    pub requeue_after: Duration,
    /// Whether namespaces have their own tokens, whose times change all the time.
    each_targets: bool,
}

impl Outcome {
    /// Whether it differs from a status only in times that change all the time.
    pub fn is_progress_alone(&self, status: &EcrCredentialStatus) -> bool {
        let still = EcrCredentialStatus {
            expires_at: status.expires_at,
            refreshed_at: status.refreshed_at,
            next_refresh_at: status.next_refresh_at,
            registries: self
                .status
                .registries
                .iter()
                .zip(&status.registries)
                .map(|(new, old)| timeless(new, old))
                .collect(),
            ..self.status.clone()
        };
        self.each_targets && still == *status
    }

    /// Whether it says nothing that a status does not say. As long as that is not written, conditions that it changes have another
    /// transition time in each outcome.
    pub fn repeats(&self, status: &EcrCredentialStatus) -> bool {
        let mut status = status.clone();
        for (old, new) in status.conditions.iter_mut().zip(&self.status.conditions) {
            old.last_transition_time.clone_from(&new.last_transition_time);
        }
        self.status == status || self.is_progress_alone(&status)
    }
}

/// A registry's new status with the times of the old one.
fn timeless(new: &RegistryStatus, old: &RegistryStatus) -> RegistryStatus {
    RegistryStatus { issued_at: old.issued_at, expires_at: old.expires_at, ..new.clone() }
}

struct Judgement {
    ready: (bool, Reason, String),
    reconciling: Option<(Reason, String)>,
    stalled: Option<(Reason, String)>,
}

/// Makes the outcome of an observation.
pub fn conclude(
    observation: Observation,
    previous: &EcrCredentialStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> Outcome {
    let judgement = judge(&observation, now);
    let mut status = EcrCredentialStatus { observed_generation: generation, ..previous.clone() };
    let mut look_again = None;
    let mut each_targets = false;
    let mut attached = None;
    let mut namespace_events = Vec::new();
    if let Observation::Suspended | Observation::Stalled(_) = observation {
        // The namespaces are not checked, and earlier counts may be wrong by now. The tokens stay in the status, since they still expire.
        status.namespaces = None;
        status.outputs.clear();
        status.failures.clear();
    }
    // Nothing is refreshed unless it was reconciled.
    status.next_refresh_at = None;
    if let Observation::Ran(report) = observation {
        let report = *report;
        let lives = || report.registries.iter().filter_map(|r| r.life);
        status.expires_at = lives().map(|l| l.expires_at).chain(report.kept_until).min();
        status.refreshed_at = lives().map(|l| l.issued_at).max();
        status.next_refresh_at = report.next_refresh_at.map(whole_seconds);
        status.handled_refresh_request = report.handled_refresh_request;
        each_targets = report.registries.iter().any(|r| r.each_targets);
        look_again = report.look_again;
        attached = report.attached;
        status.registries = report.registries.into_iter().map(registry_status).collect();
        // While nothing that is selected may be written, 0 of 0 would look like a success.
        status.namespaces = judgement.stalled.is_none().then(|| namespace_counts(&report.namespaces.counts));
        status.failures = report.namespaces.failures;
        status.outputs = report.outputs.into_iter().map(output_status).collect();
        status.failures.sort_by(|a, b| (&a.namespace, &a.secret).cmp(&(&b.namespace, &b.secret)));
        namespace_events = events_of_namespaces(&previous.failures, &status.failures);
        status.failures.truncate(MAX_FAILURES);
    }
    status.conditions = conditions(&judgement, &previous.conditions, generation, now);
    if let Some(Attachment { holds, reason, message }) = &attached {
        let condition = (condition::ATTACHED, *holds, *reason, message.clone());
        status.conditions.push(with_transition(condition, &previous.conditions, generation, now));
    }
    fit(&mut status);
    let mut events = events(&judgement, previous, &status, each_targets);
    events.extend(attached.and_then(|attached| attachment_event(attached, previous)));
    events.extend(namespace_events);
    events.iter_mut().for_each(|event| cut(&mut event.message, LONGEST_EVENT));
    let wait = look_again.map_or(LONGEST_WAIT, |at| until(now, at));
    Outcome { status, events, requeue_after: wait.clamp(SHORTEST_WAIT, LONGEST_WAIT), each_targets }
}

/// Truncates messages until the status is small enough: they quote errors of any length.
fn fit(status: &mut EcrCredentialStatus) {
    for longest in CUTS {
        if serde_json::to_vec(status).is_ok_and(|json| json.len() <= LARGEST_STATUS) {
            return;
        }
        let conditions = status.conditions.iter_mut().map(|condition| &mut condition.message);
        let failures = status.failures.iter_mut().map(|failure| &mut failure.message);
        let registries = status.registries.iter_mut().filter_map(|registry| registry.message.as_mut());
        let outputs = status.outputs.iter_mut().filter_map(|output| output.message.as_mut());
        conditions.chain(failures).chain(registries).chain(outputs).for_each(|message| cut(message, longest));
    }
}

fn cut(message: &mut String, longest: usize) {
    if message.len() > longest {
        message.truncate(message.floor_char_boundary(longest));
        message.push('…');
    }
}

fn judge(observation: &Observation, now: Timestamp) -> Judgement {
    match observation {
        Observation::Stalled(error) => Judgement {
            ready: (false, error.reason, error.message.clone()),
            reconciling: None,
            stalled: Some((error.reason, error.message.clone())),
        },
        Observation::Suspended => Judgement {
            ready: (false, Reason::Suspended, "spec.suspend is true: nothing is refreshed".to_owned()),
            reconciling: None,
            stalled: None,
        },
        Observation::Ran(report) => {
            let mut judgement = ran(report, now);
            // Secrets that wait without a failure wait for the include: nothing says of them which hosts they have.
            let waits = |reason| reason == Reason::NamespacesFailed && report.namespaces.failures.is_empty();
            let unexplained = judgement.reconciling.as_ref().is_none_or(|(reason, _)| waits(*reason));
            if let Some(error) = report.include_failure.as_ref().filter(|_| unexplained) {
                let message = format!("an included docker config is out of date: {}", error.message);
                judgement.reconciling = Some((error.reason, message));
            }
            judgement
        }
    }
}

fn ran(Report { registries, namespaces, outputs, .. }: &Report, now: Timestamp) -> Judgement {
    let shared = || registries.iter().filter(|r| !r.each_targets);
    let dead = shared().find(|r| r.problem.is_none() && !r.life.is_some_and(|life| life.is_valid(now)));
    let broken = registries.iter().find_map(|r| r.problem.as_ref());
    let failing = registries.iter().find_map(|r| r.error().map(|error| (r, error)));
    let TargetCounts { selected, fetching, ref first_failure, .. } = namespaces.counts;
    let missing = namespaces.counts.missing();
    let not_found = namespaces.unselected.not_found();
    let out_of_reach = namespaces.unselected.out_of_reach();
    let refused = outputs.iter().find_map(|output| output.refusal.as_ref());
    let lacking = outputs.iter().find(|output| output.counts.missing() > 0);
    let ready = if let Some(registry) = dead {
        let (reason, why) = match (&registry.failure, registry.life) {
            (Some(error), _) => (error.reason, error.message.clone()),
            // True whichever clock is right.
            (None, Some(life)) => (Reason::TokenExpired, format!("its token was valid until {}", life.expires_at)),
            (None, None) => (Reason::FetchingToken, "its first token is being requested".to_owned()),
        };
        (false, reason, format!("{}: {why}", registry.label()))
    } else if let Some(error) = broken {
        (false, error.reason, error.message.clone())
    } else if let (0, Some(error)) = (missing, refused) {
        (false, error.reason, error.message.clone())
    } else if missing > 0 && first_failure.is_none() && fetching > 0 {
        (false, Reason::FetchingToken, format!("{fetching} of {selected} namespaces wait for their first token"))
    } else if missing > 0 {
        let detail = namespaces.counts.detail();
        let message = format!("{missing} of {selected} namespaces lack an up-to-date Secret{detail}");
        (false, Reason::NamespacesFailed, message)
    } else if let Some(why) = &out_of_reach {
        (false, Reason::NamespaceNotAllowed, why.clone())
    } else if let Some(OutputReport { name, counts, .. }) = lacking {
        let (missing, selected, detail) = (counts.missing(), counts.selected, counts.detail());
        (false, Reason::NamespacesFailed, format!("{missing} of {selected} namespaces lack the output {name}{detail}"))
    } else {
        let (reason, what) = match outputs.iter().map(|output| output.counts.selected).chain([selected]).max() {
            None | Some(0) => (Reason::NoNamespaces, "no namespace is selected"),
            _ => (Reason::Synced, "every target namespace has a valid token for every registry"),
        };
        (true, reason, not_found.map_or_else(|| what.to_owned(), |not_found| format!("{what}: {not_found}")))
    };
    let stalled = out_of_reach.filter(|_| selected == 0).map(|why| (Reason::NamespaceNotAllowed, why));
    let reconciling = match failing {
        Some((_, error)) if error.reason == Reason::IdentityUnstable => Some((error.reason, error.message.clone())),
        Some((_, error)) if error.reason.is_passing() => Some((error.reason, format!("retrying: {}", error.message))),
        Some((registry, error)) => {
            Some((error.reason, format!("{} needs a change: {}", registry.label(), error.message)))
        }
        None if !ready.0 && stalled.is_none() => Some((ready.1, ready.2.clone())),
        None => None,
    };
    Judgement { ready, reconciling, stalled }
}

fn output_status(report: OutputReport) -> OutputStatus {
    OutputStatus {
        name: report.name.to_string(),
        format: report.format.as_str().to_owned(),
        selected: number(report.counts.selected),
        synced: number(report.counts.synced),
        failed: number(report.counts.failed),
        reason: report.refusal.as_ref().map(|error| error.reason.as_str().to_owned()),
        message: report.refusal.map(|error| error.message),
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn registry_status(report: RegistryReport) -> RegistryStatus {
    let life = report.life;
    let text = |hash: Option<TokenHash>| hash.map(|hash| hash.as_str().to_owned());
    let (reason, message) = match (report.error(), &life) {
        (Some(error), _) => (error.reason, Some(error.message.clone())),
        (None, Some(_)) => (Reason::Synced, None),
        (None, None) => (Reason::FetchingToken, None),
    };
    RegistryStatus {
        hosts: report.hosts.iter().map(ToString::to_string).collect(),
        region: report.region.as_ref().map(ToString::to_string),
        issued_at: life.map(|l| l.issued_at),
        expires_at: life.map(|l| l.expires_at),
        token_hash: text(report.hash),
        auth_hash: text(report.auth_hash),
        reason: Some(reason.as_str().to_owned()),
        message,
    }
}

fn namespace_counts(counts: &TargetCounts) -> NamespaceCounts {
    NamespaceCounts {
        selected: number(counts.selected),
        synced: number(counts.synced),
        failed: number(counts.failed),
        summary: format!("{}/{}", counts.synced, counts.selected),
    }
}

fn conditions(
    judgement: &Judgement,
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let (ready, reason, message) = &judgement.ready;
    // A condition that is false has the reason of `Ready`.
    let optional = |type_: &'static str, state: &Option<(Reason, String)>| {
        let (reason, message) = state.clone().unwrap_or((*reason, String::new()));
        (type_, state.is_some(), reason, message)
    };
    let wanted = [
        (condition::READY, *ready, *reason, message.clone()),
        optional(condition::RECONCILING, &judgement.reconciling),
        optional(condition::STALLED, &judgement.stalled),
    ];
    wanted.into_iter().map(|c| with_transition(c, previous, generation, now)).collect()
}

/// The transition time changes only with the status, by the API conventions.
fn with_transition(
    (type_, holds, reason, message): (&str, bool, Reason, String),
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let since =
        previous.iter().find(|c| c.type_ == type_ && c.status == status).map(|c| c.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
    }
}

/// An Event when attaching begins to fail, or works again.
fn attachment_event(attached: Attachment, previous: &EcrCredentialStatus) -> Option<ReportedEvent> {
    let Attachment { holds, reason, message } = attached;
    let before = previous.condition(condition::ATTACHED).map(|c| c.reason.as_str());
    let is_news = before.map_or(!holds, |before| before != reason.as_str());
    is_news.then(|| ReportedEvent::of_credential(!holds, reason, message))
}

/// Events in target namespaces, whose owners may not see the `EcrCredential`: when its Secret there begins to fail or fails for another
/// reason, and when it no longer fails. They are limited like the failures in a status.
fn events_of_namespaces(before: &[NamespaceFailure], now: &[NamespaceFailure]) -> Vec<ReportedEvent> {
    let key = |failure: &NamespaceFailure| (failure.namespace.clone(), failure.secret.clone());
    let told =
        |failure: &&NamespaceFailure| before.iter().any(|old| key(old) == key(failure) && old.reason == failure.reason);
    let begun = now.iter().take(MAX_FAILURES).filter(|failure| !told(failure)).map(|failure| ReportedEvent {
        warning: true,
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        namespace: Some(failure.namespace.clone()),
        secret: failure.secret.clone(),
    });
    let failing: BTreeSet<_> = now.iter().map(key).collect();
    let over = before.iter().filter(|failure| !failing.contains(&key(failure))).map(|failure| ReportedEvent {
        warning: false,
        reason: Reason::Synced.as_str().to_owned(),
        message: match &failure.secret {
            Some(output) => format!("the Secret {output} is up to date again"),
            None => "the pull secret is up to date again".to_owned(),
        },
        namespace: Some(failure.namespace.clone()),
        secret: failure.secret.clone(),
    });
    begun.chain(over).collect()
}

/// Events report changes: one when tokens were refreshed, one when the readiness or its reason changes. If each namespace has its own
/// token, refreshes are too frequent for Events.
fn events(
    judgement: &Judgement,
    previous: &EcrCredentialStatus,
    status: &EcrCredentialStatus,
    each_targets: bool,
) -> Vec<ReportedEvent> {
    let mut events = Vec::new();
    if !each_targets && status.refreshed_at.is_some() && status.refreshed_at > previous.refreshed_at {
        let expiry = status.expires_at.map(|at| format!(", valid until {at}")).unwrap_or_default();
        events.push(ReportedEvent::of_credential(false, Reason::Refreshed, format!("new tokens{expiry}")));
    }
    let before = |type_: &str| previous.condition(type_).map(|c| (c.status.as_str(), c.reason.as_str()));
    let (ready, reason, message) = &judgement.ready;
    let holds = if *ready { "True" } else { "False" };
    if before(condition::READY) != Some((holds, reason.as_str())) && *reason != Reason::FetchingToken {
        let warning = !ready && *reason != Reason::Suspended;
        events.push(ReportedEvent::of_credential(warning, *reason, message.clone()));
    }
    if let (true, Some((reason, message))) = (*ready, &judgement.reconciling)
        && before(condition::RECONCILING) != Some(("True", reason.as_str()))
    {
        events.push(ReportedEvent::of_credential(true, *reason, message.clone()));
    }
    events
}

pub mod served_by;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod condition_tests;
