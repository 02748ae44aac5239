//! What is gone is forgotten.

use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::clock::Clock;
use crate::controller;
use crate::plan::schedule::RetryPolicy;
use crate::plan::{Identity, Service, TokenKey};
use crate::process::telemetry::Metrics;
use crate::token::cache::CacheSettings;
use crate::token::{RawToken, TokenError, TokenSource};

/// Gives no token, and notes whose session it was to forget.
#[derive(Default)]
struct Source(Mutex<Vec<Identity>>);

impl TokenSource for Source {
    fn fetch<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        Box::pin(std::future::pending())
    }

    fn fingerprint(&self, _: &Identity) -> String {
        String::new()
    }

    fn forget(&self, identity: &Identity) {
        self.0.lock().push(identity.clone());
    }
}

#[tokio::test]
async fn what_is_gone_is_forgotten_by_everyone() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let clock = Clock::default();
    let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
    let cache = CacheSettings { retry, min_life: Duration::from_secs(300), rate: 10, clock };
    let (send, _queue) = unbounded_channel();
    let source = Arc::new(Source::default());
    let reporter = Arc::new(Reporter::new(metrics));
    let tokens = Arc::new(TokenCache::new(source.clone(), cache, send, |_| ()));
    let states = CredentialStates::default();
    let watched = Watched { reporter: reporter.clone(), states: states.clone(), tokens: tokens.clone() };
    let uid = Uid("x".into());
    let key = TokenKey { identity: Identity::operator(), service: Service::Public };
    let count = || {
        reporter.publish();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line =
            text.lines().find(|line| line.starts_with("ecr_credential_operator_credentials{state=\"not_ready\"}"));
        line.map(|line| line.ends_with(" 1"))
    };
    controller::Observer::concluded(&*reporter, &uid, "x", &EcrCredentialStatus::default());
    tokens.want(&uid, BTreeSet::from([key]));
    states.remember(&uid);
    assert_eq!((count(), states.count()), (Some(true), 1));
    watched.gone(&uid);
    assert_eq!((count(), states.count()), (Some(false), 0));
    assert_eq!(*source.0.lock(), [Identity::operator()], "nobody uses its session any more");
}
