//! The tables of Events in the reference: the reasons of Normal Events are those that a status leads to.

use std::collections::BTreeSet;

use ecr_credential_operator::api::status::{EcrCredentialStatus, NamespaceFailure, Reason, condition};
use ecr_credential_operator::attach::Attachment;
use ecr_credential_operator::outcome::{
    NamespaceReport, Observation, Outcome, RegistryReport, Report, TargetCounts, conclude,
};
use ecr_credential_operator::plan::SpecError;
use ecr_credential_operator::plan::schedule::Life;
use k8s_openapi::jiff::Timestamp;

use super::helm::read;
use super::pages::Page;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A reconciliation of some target namespaces, after which attaching works or not.
fn ran(selected: usize, synced: usize, attached: Option<bool>) -> Observation {
    let failure = NamespaceFailure {
        namespace: "team-a".to_owned(),
        secret: None,
        reason: Reason::SecretNotOwned.as_str().to_owned(),
        message: "it exists".to_owned(),
    };
    let failures: Vec<NamespaceFailure> = (synced < selected).then_some(failure).into_iter().collect();
    let registry = RegistryReport {
        region: None,
        hosts: vec![],
        life: Some(Life { issued_at: at(1000), expires_at: at(50_000) }),
        hash: None,
        auth_hash: None,
        problem: None,
        failure: None,
        each_targets: false,
    };
    let reason = |holds| if holds { Reason::Attached } else { Reason::AttachFailed };
    Observation::Ran(Box::new(Report {
        registries: vec![registry],
        namespaces: NamespaceReport {
            counts: TargetCounts { selected, synced, failed: failures.len(), ..TargetCounts::default() },
            failures,
            ..NamespaceReport::default()
        },
        attached: attached.map(|holds| Attachment { holds, reason: reason(holds), message: "as it is".to_owned() }),
        ..Report::default()
    }))
}

/// The reasons in the rows of one type, where the page has them as code.
fn listed(tables: &str, type_: &str) -> BTreeSet<String> {
    let rows = tables.lines().filter(|line| line.starts_with(&format!("| {type_} |")));
    let reasons = rows.map(|row| row.split('|').nth(2).unwrap().to_owned());
    reasons.flat_map(|text| Page { path: String::new(), text }.code_spans()).collect()
}

#[test]
fn the_page_lists_the_reasons_of_normal_events_and_no_other() {
    let (mut normal, mut warning) = (BTreeSet::new(), BTreeSet::new());
    let mut status = EcrCredentialStatus::default();
    let refused = SpecError { reason: Reason::NoRegion, message: "set region".to_owned() };
    let course = [
        ran(1, 0, Some(false)),
        ran(1, 1, Some(true)),
        ran(0, 0, Some(true)),
        Observation::Suspended,
        Observation::Stalled(refused),
    ];
    for observation in course {
        let Outcome { status: next, events, .. } = conclude(observation, &status, Some(1), at(2000));
        for event in events {
            if event.warning { &mut warning } else { &mut normal }.insert(event.reason);
        }
        status = next;
    }
    assert!(warning.contains("NamespacesFailed") && warning.contains("NoRegion"), "{warning:?}");
    assert!(status.conditions.iter().any(|found| found.type_ == condition::STALLED && found.status == "True"));
    let page = read("docs/reference/labels.md");
    let (_, tables) = page.split_once("## Events").unwrap();
    assert_eq!(listed(tables, "Normal"), normal);
}
