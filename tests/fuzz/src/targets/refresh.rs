//! When tokens are fetched and published: for any lives, at any time, never one that is expired, and never in a hot loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::HostVariant;
use ecr_credential_operator::api::registry::Region;
use ecr_credential_operator::plan::auth::AuthPlan;
use ecr_credential_operator::plan::refresh::{Demand, Held, Step, step};
use ecr_credential_operator::plan::schedule::{Life, RefreshPolicy, RetryPolicy, later, until, whole_seconds};
use ecr_credential_operator::plan::{Service, TokenSpec};
use k8s_openapi::jiff::Timestamp;

use crate::material::{self, HOUR, REGIONS};

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

/// A policy as `plan()` makes it.
pub fn policy(u: &mut Unstructured<'_>) -> Result<RefreshPolicy> {
    let max_age = Duration::from_secs(u.int_in_range(60..=12 * HOUR as u64)?);
    Ok(RefreshPolicy { at_percent: u.int_in_range(10..=70)?, max_age })
}

pub fn need(number: usize) -> TokenSpec {
    let region = Region::parse(REGIONS[number]).expect("a region");
    let service = Service::Private { region, endpoint: HostVariant::Standard, registry_ids: Vec::new() };
    TokenSpec { auth: Arc::new(AuthPlan::operator()), service }
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let (policy, now) = (policy(u)?, material::moment(u)?);
    let seed = *u.choose(&["", "a", "b", "c3a1"])?;
    times(&policy, material::life(u)?, seed, now);
    waits(u)?;
    let demand =
        u.ratio(1, 3)?.then(|| Ok(Demand { since: material::moment(u)?, first: u.arbitrary()? })).transpose()?;
    let number = u.int_in_range(0..=4)?;
    let held = (0..number).map(|n| Ok((need(n), held(u)?))).collect::<Result<BTreeMap<TokenSpec, Held>>>()?;
    let step = step(&policy, seed, now, demand, &held);
    judge(&step, &policy, seed, now, demand, &held);
    Ok(())
}

fn held(u: &mut Unstructured<'_>) -> Result<Held> {
    Ok(Held {
        published: u.ratio(3, 4)?.then(|| material::life(u)).transpose()?,
        outdated: u.ratio(1, 5)?,
        cached: u.ratio(1, 2)?.then(|| material::life(u)).transpose()?,
        in_flight: u.ratio(1, 5)?,
        retry_at: u.ratio(1, 5)?.then(|| material::moment(u)).transpose()?,
        blocked: u.ratio(1, 6)?,
    })
}

/// A token is due after it was issued and before it expires, whatever the clock says.
fn times(policy: &RefreshPolicy, life: Life, seed: &str, now: Timestamp) {
    let due = policy.due_at(life, seed);
    assert!(due >= life.issued_at, "{life:?}");
    assert!(due <= later(life.issued_at, policy.max_age));
    if life.issued_at < life.expires_at {
        assert!(due < life.expires_at, "{life:?} is due at {due}");
        let span = until(life.issued_at, life.expires_at).as_secs_f64();
        let latest = (span * f64::from(policy.at_percent) / 100.0).min(policy.max_age.as_secs_f64());
        let age = until(life.issued_at, due).as_secs_f64();
        let jitter = latest * 0.95 - 1e-3..=latest + 1e-3;
        assert!(jitter.contains(&age), "{life:?} is due at {due}, and not in the last twentieth before it must be");
    }
    assert_eq!(due, policy.due_at(life, seed), "a restart does not move it");
    assert!(!policy.due_together(life, seed, now) || now >= life.issued_at);
    assert!(now < due || policy.due_together(life, seed, now), "what is due is due together");
    let whole = whole_seconds(now);
    assert!(whole.subsec_nanosecond() == 0 && whole.duration_since(now).as_secs() == 0);
}

/// A wait is never longer than the longest, never a hot loop, and never shorter than the half of the one before.
fn waits(u: &mut Unstructured<'_>) -> Result<()> {
    let initial = Duration::from_secs(u.int_in_range(1..=60)?);
    let policy = RetryPolicy { initial, max: Duration::from_secs(u.int_in_range(60..=7200)?) };
    let (failures, scale) = (u.int_in_range(0..=u32::MAX)?, u.int_in_range(0..=20)?);
    let delay = policy.delay(failures, scale, "seed");
    assert!(delay <= policy.max && delay >= policy.initial / 2, "{policy:?} {failures} {scale}: {delay:?}");
    assert!(policy.delay(failures.saturating_add(1), scale, "seed") >= delay / 2);
    Ok(())
}

fn judge(
    step: &Step,
    policy: &RefreshPolicy,
    seed: &str,
    now: Timestamp,
    demand: Option<Demand>,
    held: &BTreeMap<TokenSpec, Held>,
) {
    let of = |need: &TokenSpec| held.get(need).expect("one of those that were given");
    for need in &step.fetch {
        let h = of(need);
        assert!(!h.blocked && !h.in_flight && !step.publish.contains(need));
        assert!(h.retry_at.is_none_or(|at| at <= now) || demand.is_some_and(|d| d.first), "a wait is not over");
    }
    for need in &step.publish {
        let (h, life) = (of(need), of(need).cached.expect("something to publish"));
        assert!(life.is_valid(now), "{life:?} has expired at {now}");
        assert!(now < policy.due_at(life, seed), "what is published is not due at once");
        assert!(h.outdated || h.published.is_none_or(|old| old.issued_at < life.issued_at), "an older token");
        assert!(demand.is_none_or(|d| life.issued_at >= d.since), "older than was asked for");
        no_shorter(now, need, life, held);
    }
    assert!(step.fetch.is_empty() || (!step.fresh && !step.settled));
    let first = step.fetch.iter().any(|need| of(need).retry_at.is_none());
    let dead = step.publish.iter().any(|need| of(need).published.is_some_and(|life| !life.is_valid(now)));
    assert!(step.publish.is_empty() || !first || dead, "two writes for tokens that are fetched together");
    // While a token is due and may be fetched, it is asked for, or something is published, or it is known when to look again.
    for (need, h) in held {
        let due = h.published.is_none_or(|life| !life.is_valid(now) || now >= policy.due_at(life, seed) || h.outdated);
        if due && !h.blocked {
            let coming = step.fetch.contains(need) || h.in_flight || step.look_again.is_some_and(|at| at > now);
            assert!(coming || step.publish.contains(need) || h.cached.is_some(), "{need:?} is forgotten");
            assert!(!step.fresh || step.publish.contains(need), "{need:?} is not as new as it should be");
        }
        assert!(!h.blocked || !step.fetch.contains(need));
    }
    assert!(step.look_again.is_none_or(|at| at > now), "to look again at once would be a hot loop");
    let next = held.iter().filter_map(|(need, h)| if step.publish.contains(need) { h.cached } else { h.published });
    if let Some(first) = next.map(|life| life.expires_at).filter(|at| *at > now).min() {
        assert!(step.look_again.is_some_and(|at| at <= first), "an expiry is slept through");
    }
}

/// A token from memory never shortens the expiry that a Secret records; only one that was just fetched may.
fn no_shorter(now: Timestamp, need: &TokenSpec, life: Life, held: &BTreeMap<TokenSpec, Held>) {
    let old = held.values().filter_map(|h| h.published).filter(|l| l.is_valid(now)).map(|l| l.expires_at).min();
    let new = now.duration_since(life.issued_at).as_secs() < 60;
    assert!(new || old.is_none_or(|at| life.expires_at >= at), "{need:?} is published with {life:?}, before {old:?}");
}
