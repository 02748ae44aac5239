//! The status: whatever happened, it is true, small, and the same when nothing has changed.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::status::{EcrCredentialStatus, MAX_FAILURES, NamespaceFailure, Reason, condition};
use ecr_credential_operator::api::{EcrCredential, EcrCredentialSpec, REFRESH_REQUESTED_AT, refresh_request};
use ecr_credential_operator::outcome::{NamespaceReport, Observation, RegistryReport, Report, TargetCounts, conclude};
use ecr_credential_operator::plan::{Limits, RegistryPlan, SpecError, plan};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::material::{self, ACCOUNTS, account};

/// The most that a status may have as JSON (in bytes).
const LARGEST: usize = 64 * 1024;

/// The most that an Event's note may have (k8s.io/kubernetes, NoteLengthLimit, in bytes).
const LONGEST_EVENT: usize = 1024;

/// How long the message of a failed write is at most (`apply`, in characters).
const LONGEST: usize = 301;

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let now = material::moment(u)?;
    let first = observation(u)?;
    let second = observation(u)?;
    let generation = Some(u.int_in_range(1..=3)?);
    let before = conclude(first, &EcrCredentialStatus::default(), generation, now).status;
    let outcome = conclude(second.clone(), &before, generation, now);
    judge(&outcome.status, &second, generation, now);
    assert!(
        outcome.events.iter().all(|event| event.message.len() <= LONGEST_EVENT),
        "the API server refuses such an Event"
    );
    assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&outcome.requeue_after));
    let again = conclude(second, &outcome.status, generation, now);
    assert_eq!(again.status, outcome.status, "nothing has changed");
    assert!(again.events.is_empty(), "an Event tells a change: {:?}", again.events);
    Ok(())
}

fn observation(u: &mut Unstructured<'_>) -> Result<Observation> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Observation::Stalled(halt(u)?),
        1 => Observation::Suspended,
        _ => {
            let failures = failures(u)?;
            let synced = u.int_in_range(0..=20_000)?;
            let failed = failures.len();
            // Some are neither written nor failed yet.
            let selected = synced + failed + u.choose(&[0, 0, 1, 5000])?;
            Observation::Ran(Box::new(Report {
                registries: registries(u)?,
                namespaces: NamespaceReport {
                    counts: TargetCounts { selected, synced, failed, ..TargetCounts::default() },
                    failures,
                    ..NamespaceReport::default()
                },
                outputs: Vec::new(),
                include_failure: u.ratio(1, 4)?.then(|| halt(u)).transpose()?,
                next_refresh_at: u.arbitrary::<bool>()?.then(|| material::moment(u)).transpose()?,
                look_again: u.arbitrary::<bool>()?.then(|| material::moment(u)).transpose()?,
                handled_refresh_request: request(u)?,
                attached: None,
                kept_until: u.ratio(1, 4)?.then(|| material::moment(u)).transpose()?,
            }))
        }
    })
}

/// A text of one character, as long as it can be.
fn text(u: &mut Unstructured<'_>, longest: usize) -> Result<String> {
    let character = *u.choose(&['a', '"', '\u{1}', 'é', '€', '🦀'])?;
    let length = *u.choose(&[0, 7, longest / 2, longest])?;
    Ok(std::iter::repeat_n(character, length).collect())
}

fn halt(u: &mut Unstructured<'_>) -> Result<SpecError> {
    let reason = *u.choose(&[Reason::InvalidSpec, Reason::Throttled, Reason::FetchingToken])?;
    Ok(SpecError { reason, message: text(u, 1000)? })
}

fn failures(u: &mut Unstructured<'_>) -> Result<Vec<NamespaceFailure>> {
    let number = u.int_in_range(0..=60_u8)?;
    let message = text(u, LONGEST)?;
    let start = u.int_in_range(0..=9_u8)?;
    let failure = |n: u8| NamespaceFailure {
        namespace: format!("{:0>63}", n.wrapping_mul(7).wrapping_add(start)),
        secret: None,
        reason: Reason::AdmissionRefused.as_str().to_owned(),
        message: message.clone(),
    };
    Ok((0..number).map(failure).collect())
}

/// An annotation may have 256 KiB.
fn request(u: &mut Unstructured<'_>) -> Result<Option<String>> {
    if u.ratio(1, 2)? {
        return Ok(None);
    }
    let value = text(u, 60_000)?;
    let spec = json!({ "registries": [], "namespaces": {} });
    let mut object = EcrCredential::new("x", serde_json::from_value(spec).expect("a spec"));
    object.metadata.annotations = Some([(REFRESH_REQUESTED_AT.to_owned(), value)].into());
    Ok(refresh_request(&object))
}

/// As many registries, accounts and families as the CRD allows, if they can be planned.
fn registries(u: &mut Unstructured<'_>) -> Result<Vec<RegistryReport>> {
    // Mostly few, which are quick to try.
    let (most, accounts, extra) = if u.ratio(1, 5)? { (32, 100, 32) } else { (3, 2, 1) };
    let number = u.int_in_range(1..=most)?;
    let (accounts, extra) = (u.int_in_range(0..=accounts)?, u.int_in_range(0..=extra)?);
    let spec = |number: u8, accounts: u8, extra: u8| -> EcrCredentialSpec {
        let private = |n: u8| {
            let ids: Vec<String> = (0..accounts).map(|account| format!("{n:06}{account:06}")).collect();
            let extra: Vec<String> =
                (0..extra).map(|host| format!("{host}-{n}.{}.example", "a.".repeat(110) + "a")).collect();
            json!({ "private": {
                "region": "eu-west-1", "accountIds": ids, "extraHosts": extra,
                "hostVariants": ["Standard", "Fips", "DualStack", "DualStackFips"],
            } })
        };
        let all: Vec<_> = (0..number).map(private).collect();
        serde_json::from_value(json!({ "registries": all, "namespaces": { "names": ["*"] } })).expect("a spec")
    };
    let planned = plan(&spec(number, accounts, extra), &Limits::default());
    let planned = planned.or_else(|_| plan(&spec(number, 1, 0), &Limits::default())).expect("few hosts");
    let (life, failure) = (u.ratio(5, 6)?.then(|| material::life(u)).transpose()?, u.ratio(1, 3)?);
    let failure = failure.then(|| halt(u)).transpose()?;
    let problem = u.ratio(1, 8)?.then(|| halt(u)).transpose()?;
    let each_targets = u.ratio(1, 4)?;
    let report = |registry: &RegistryPlan| RegistryReport {
        region: registry.region.clone(),
        hosts: registry
            .hosts
            .resolve(Some(&account(ACCOUNTS[0])))
            .expect("hosts")
            .into_iter()
            .map(|(h, _)| h)
            .collect(),
        life,
        hash: None,
        auth_hash: None,
        problem: problem.clone(),
        failure: failure.clone(),
        each_targets,
    };
    Ok(planned.registries.iter().map(report).collect())
}

fn judge(status: &EcrCredentialStatus, observation: &Observation, generation: Option<i64>, now: Timestamp) {
    let size = serde_json::to_vec(status).expect("a status").len();
    assert!(size <= LARGEST, "{size} bytes");
    assert_eq!(status.observed_generation, generation);
    assert!(status.failures.len() <= MAX_FAILURES);
    assert!(status.failures.is_sorted_by(|a, b| a.namespace <= b.namespace));
    let holds = |type_: &str| status.conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    assert_eq!(status.conditions.len(), 3);
    assert_eq!(holds(condition::STALLED), matches!(observation, Observation::Stalled(_)));
    match observation {
        Observation::Ran(report) => {
            let Report { registries, namespaces, .. } = &**report;
            let counts = status.namespaces.as_ref().expect("counts");
            assert_eq!(
                (counts.selected as usize, counts.synced as usize),
                (namespaces.counts.selected, namespaces.counts.synced)
            );
            let alive = |r: &RegistryReport| r.each_targets || r.life.is_some_and(|life| life.is_valid(now));
            let valid = |r: &RegistryReport| r.problem.is_none() && alive(r);
            let true_ready = namespaces.counts.selected == namespaces.counts.synced && registries.iter().all(valid);
            assert_eq!(holds(condition::READY), true_ready);
            let hosts = status.registries.iter().map(|registry| registry.hosts.len());
            assert!(hosts.eq(registries.iter().map(|registry| registry.hosts.len())), "hosts are told whole");
        }
        Observation::Stalled(_) | Observation::Suspended => assert!(!holds(condition::READY)),
    }
}
