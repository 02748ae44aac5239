//! The report as text for people: problems first.

use std::fmt::Write;

use k8s_openapi::jiff::Timestamp;

use super::report::{CredentialReport, Finding, IdentityReport, NamespaceReport, RegistryReport, Report};
use crate::api::status::Reason;

/// How many namespaces are shown for each `EcrCredential`; `--output json` has all.
pub(super) const MOST_NAMESPACES: usize = 20;

/// How many identities are shown.
const MOST_IDENTITIES: usize = 20;

/// The width of the first column.
const LABEL: usize = 12;

/// Renders a report.
pub(super) fn render(report: &Report) -> String {
    let mut out = Page::default();
    for credential in &report.credentials {
        out.credential(credential, report.checked_at);
    }
    // Those that cannot be read are among the problems.
    if report.credentials.is_empty() && !report.problems.iter().any(|p| p.reason == Reason::InvalidSpec.as_str()) {
        out.title("There is no EcrCredential");
    }
    for identity in report.identities.iter().take(MOST_IDENTITIES) {
        out.identity(identity, report.checked_at);
    }
    if let Some(more) = report.identities.len().checked_sub(MOST_IDENTITIES).filter(|more| *more > 0) {
        out.title(&format!("and {more} more identities: see --output json"));
    }
    out.installation(report);
    let end = match report.problem_count {
        0 => "No problem found.".to_owned(),
        1 => "1 problem found.".to_owned(),
        count => format!("{count} problems found."),
    };
    out.title(&end);
    out.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn title(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn line(&mut self, label: &str, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "  {label:<LABEL$}{text}");
    }

    fn findings(&mut self, label: &str, findings: &[Finding]) {
        for finding in findings {
            self.line(label, &format!("{}: {}", finding.reason, finding.message));
        }
    }

    fn credential(&mut self, credential: &CredentialReport, now: Timestamp) {
        self.title(&format!("EcrCredential {}", credential.name));
        self.findings("PROBLEM", &credential.problems);
        self.findings("note", &credential.notes);
        match &credential.operator_says {
            Some(ready) if ready.status == "True" => self.line("ready", &ready.reason),
            Some(ready) => self.line("not ready", &format!("{}: {}", ready.reason, ready.message)),
            None => self.line("not ready", "there is no status yet"),
        }
        for registry in &credential.registries {
            self.registry(registry, now);
        }
        self.namespaces(credential, now);
    }

    fn registry(&mut self, registry: &RegistryReport, now: Timestamp) {
        let region = registry.region.as_ref().map(|region| format!(" in {region}"));
        self.line("registry", &format!("{}{}", registry.service, region.unwrap_or_default()));
        for host in &registry.hosts {
            self.line("  host", host);
        }
        let whose = match (&registry.identity, registry.own_for_each_namespace) {
            (Some(identity), _) => identity,
            (None, true) => "each namespace's own",
            (None, false) => "unknown",
        };
        self.line("  identity", whose);
        match (registry.issued_at, registry.expires_at) {
            (Some(issued), Some(expires)) => {
                self.line("  token", &format!("issued {issued}, expires {expires} ({})", distance(now, expires)));
            }
            _ => self.line("  token", "none yet"),
        }
    }

    fn namespaces(&mut self, credential: &CredentialReport, now: Timestamp) {
        let all = &credential.namespaces;
        let until = all.earliest_expiry.map(|at| format!(", the first expires {at} ({})", distance(now, at)));
        let text = match all.good {
            Some(good) => format!("{good} of {} have a valid Secret {}", all.selected, credential.secret),
            None => format!("{} selected, not checked", all.selected),
        };
        self.line("namespaces", &(text + &until.unwrap_or_default()));
        let shown: Vec<&NamespaceReport> = all.failing.iter().take(MOST_NAMESPACES).collect();
        // The line above names the pull secret; an output is named with its namespace.
        let place = |found: &NamespaceReport| {
            if found.secret == credential.secret {
                found.namespace.clone()
            } else {
                format!("{}/{}", found.namespace, found.secret)
            }
        };
        let width = shown.iter().map(|found| place(found).chars().count()).max().unwrap_or_default();
        for found in shown {
            let (place, NamespaceReport { state, reason, message, .. }) = (place(found), found);
            let why = if *reason == format!("{state:?}") { message.clone() } else { format!("{reason}: {message}") };
            self.line("  PROBLEM", &format!("{place:<width$}  {state:?}: {why}"));
        }
        if let Some(more) = all.failing.len().checked_sub(MOST_NAMESPACES).filter(|more| *more > 0) {
            self.line("", &format!("and {more} more: see --output json"));
        }
    }

    fn identity(&mut self, identity: &IdentityReport, now: Timestamp) {
        self.title(&format!("Identity: {}", identity.identity));
        self.findings("PROBLEM", &identity.problems);
        self.findings("note", &identity.notes);
        if let Some(source) = identity.source {
            self.line("found in", source);
        }
        if let Some(caller) = &identity.caller {
            self.line("caller", caller);
        }
        for token in &identity.tokens {
            let api = format!("{} in {}", token.service, token.region);
            match (token.expires_at, token.reason) {
                (Some(at), _) => self.line("allowed", &format!("{api}: a token until {at} ({})", distance(now, at))),
                (None, Some(reason)) if reason == Reason::AccessDenied.as_str() => self.line("denied", &api),
                (None, reason) => self.line("failed", &format!("{api}: {}", reason.unwrap_or("unknown"))),
            }
        }
        self.line("used by", &identity.used_by.join(", "));
    }

    fn installation(&mut self, report: &Report) {
        self.title("Installation");
        self.findings("PROBLEM", &report.problems);
        self.findings("note", &report.notes);
        if let Some(rights) = &report.rights {
            for right in &rights.missing {
                let value = right.chart_value;
                let text = format!("the operator lacks permission to {right}: check its RBAC (the chart's {value})");
                self.line("PROBLEM", &format!("Forbidden: {text}"));
            }
            let had = rights.asked.saturating_sub(rights.missing.len());
            self.line("permissions", &format!("{had} of {} that the operator needs in the cluster", rights.asked));
        }
    }
}

/// `in 11h 58m`, `2m ago`.
fn distance(now: Timestamp, at: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs();
    let span = seconds.unsigned_abs();
    let (hours, minutes) = (span / 3600, span % 3600 / 60);
    let text = match (hours, minutes) {
        (0, 0) => format!("{span}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h {minutes}m"),
    };
    if seconds < 0 { format!("{text} ago") } else { format!("in {text}") }
}
