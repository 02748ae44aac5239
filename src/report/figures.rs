//! The figures that alerts look at.

use std::sync::Arc;

use base64::Engine;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;

use super::*;
use crate::api::HostVariant;
use crate::api::registry::{AccountId, Region};
use crate::api::status::{NamespaceCounts, RegistryStatus};
use crate::clock::Clock;
use crate::plan::schedule::RetryPolicy;
use crate::plan::{Identity, Service, TokenKey};
use crate::token::cache::CacheSettings;
use crate::token::{RawToken, TokenError, TokenSource, check};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The lines of the metrics whose names begin so, without that beginning.
fn lines(registry: &Registry, reporter: &Reporter, name: &str) -> Vec<String> {
    reporter.publish();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let prefix = format!("ecr_credential_operator_{name}");
    text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn status(type_: &str, holds: bool, reason: Reason, counts: [u32; 3], expires: i64) -> EcrCredentialStatus {
    let [selected, synced, failed] = counts;
    let condition = Condition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.as_str().to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(at(0)),
    };
    EcrCredentialStatus {
        conditions: vec![condition],
        namespaces: Some(NamespaceCounts { selected, synced, failed, summary: String::new() }),
        registries: vec![RegistryStatus {
            issued_at: Some(at(expires - 100)),
            expires_at: Some(at(expires)),
            ..RegistryStatus::default()
        }],
        ..EcrCredentialStatus::default()
    }
}

#[test]
fn each_state_is_counted_once_and_what_is_suspended_does_not_expire() {
    let mut registry = Registry::default();
    let reporter = Reporter::new(Metrics::register(&mut registry));
    let all = [
        ("well", status(condition::READY, true, Reason::Synced, [3, 3, 0], 900)),
        ("failing", status(condition::READY, false, Reason::NamespacesFailed, [4, 2, 1], 700)),
        ("suspended", status(condition::READY, false, Reason::Suspended, [2, 2, 0], 500)),
        ("stalled", status(condition::STALLED, true, Reason::InvalidSpec, [0, 0, 0], 800)),
    ];
    for (uid, status) in &all {
        reporter.concluded(&Uid((*uid).into()), uid, status);
    }
    let credentials = lines(&registry, &reporter, "credentials");
    for (state, count) in [("ready", 1), ("not_ready", 1), ("suspended", 1), ("stalled", 1), ("unreadable", 0)] {
        assert!(credentials.contains(&format!("{{state=\"{state}\"}} {count}")), "{state}: {credentials:?}");
    }
    let namespaces = lines(&registry, &reporter, "namespaces");
    for (state, count) in [("synced", 5), ("failed", 1), ("pending", 1)] {
        assert!(namespaces.contains(&format!("{{state=\"{state}\"}} {count}")), "{state}: {namespaces:?}");
    }
    assert_eq!(lines(&registry, &reporter, "earliest_secret_expiry_timestamp_seconds"), [" 700"]);
    reporter.forget(&Uid("failing".into()));
    assert_eq!(lines(&registry, &reporter, "earliest_secret_expiry_timestamp_seconds"), [" 800"]);
    for (uid, _) in &all {
        reporter.forget(&Uid((*uid).into()));
    }
    assert_eq!(lines(&registry, &reporter, "earliest_secret_expiry_timestamp_seconds"), [" 0"]);
    assert!(lines(&registry, &reporter, "namespaces").iter().all(|line| line.ends_with(" 0")));
}

#[test]
fn calls_and_writes_are_counted_by_what_became_of_them() {
    let mut registry = Registry::default();
    let reporter = Reporter::new(Metrics::register(&mut registry));
    let (region, endpoint) = (Region::parse("eu-west-1").unwrap(), HostVariant::Standard);
    let service = Service::Private { region, endpoint, registry_ids: Vec::new() };
    let key = TokenKey { identity: Identity::operator(), service };
    let life = Life { issued_at: at(100), expires_at: at(200) };
    reporter.fetched(&Fetched { key: key.clone(), result: Ok(life) });
    reporter.fetched(&Fetched { key, result: Err(TokenError::Throttled("slowly".to_owned())) });
    let calls = lines(&registry, &reporter, "aws_requests_total");
    for result in ["success", "Throttled"] {
        let line = format!("{{api=\"ecr\",identity=\"operator\",result=\"{result}\"}} 1");
        assert!(calls.contains(&line), "{line}: {calls:?}");
    }
    let refused = WriteError::Refused(Reason::QuotaExceeded, "no".to_owned());
    for error in [WriteError::Stale, WriteError::NamespaceGone, refused] {
        reporter.wrote(&SecretAction::Create, &Err(error));
    }
    reporter.wrote(&SecretAction::Create, &Ok(Written::Deleted));
    reporter.wrote(&SecretAction::Keep, &Ok(Written::Deleted));
    let writes = lines(&registry, &reporter, "secret_writes_total");
    for result in ["success", "stale", "namespace_gone", "QuotaExceeded"] {
        let line = format!("{{operation=\"create\",result=\"{result}\"}} 1");
        assert!(writes.contains(&line), "{line}: {writes:?}");
    }
    assert_eq!(writes.len(), 4, "{writes:?}");
}

/// AWS, which is not asked.
struct Silent;

impl TokenSource for Silent {
    fn fetch<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        Box::pin(std::future::pending())
    }
    fn fingerprint(&self, _: &Identity) -> String {
        String::new()
    }
    fn forget(&self, _: &Identity) {}
}

#[test]
fn the_gauges_of_tokens_are_those_of_the_tokens_in_use() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let settings = CacheSettings {
        retry: RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(1) },
        min_life: Duration::from_secs(1),
        rate: 10,
        clock: Clock::new(|| at(1_000), Duration::default),
    };
    let tokens = TokenCache::new(Arc::new(Silent), settings, tokio::sync::mpsc::unbounded_channel().0, |_| ());
    let key = |region: &str| {
        let (region, endpoint) = (Region::parse(region).unwrap(), HostVariant::Standard);
        let service = Service::Private { region, endpoint, registry_ids: Vec::new() };
        TokenKey { identity: Identity::operator(), service }
    };
    let (one, other) = (key("eu-west-1"), key("eu-west-2"));
    let me = Uid("me".into());
    tokens.want(&me, [one.clone(), other.clone()].into());
    for (key, expires) in [(&one, 5_000), (&other, 6_000)] {
        let text = base64::engine::general_purpose::STANDARD.encode("AWS:x");
        let raw = RawToken {
            token: Some(text.into()),
            expires_at: Some(at(expires)),
            account: AccountId::parse("111122223333").ok(),
        };
        tokens.seed(key, &Arc::new(check(vec![raw], key, at(1_000), Duration::ZERO).unwrap()));
    }
    let gauges = || {
        tokens_now(&metrics, &tokens);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let prefix = "ecr_credential_operator_token_expiry_timestamp_seconds{api=\"ecr\",region=\"";
        let mut found: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect();
        found.sort();
        found
    };
    let line = |region: &str, expires: i64| format!("{region}\",identity=\"operator\"}} {expires}");
    assert_eq!(gauges(), [line("eu-west-1", 5_000), line("eu-west-2", 6_000)]);
    tokens.want(&me, [other].into());
    assert_eq!(gauges(), [line("eu-west-2", 6_000)]);
    tokens.want(&me, [].into());
    assert_eq!(gauges(), [""; 0]);
}
