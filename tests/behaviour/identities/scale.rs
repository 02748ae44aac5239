//! Many namespaces with an identity of their own each: AWS is asked in turn, everyone is served, and a restart asks nobody.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use testbed::aws::Rate;
use testbed::bed::Tenant;
use testbed::proxy::Match;

use super::super::demand::*;
use super::super::look::{counts, quiet};
use super::*;

/// How many tenants there are.
const MANY: usize = 200;

/// What AWS takes.
const LIMIT: Rate = Rate { per_second: 20, burst: 20 };

/// How long all of them may take at ten a second, on a machine that others use too.
const LONG: Duration = Duration::from_secs(240);

async fn many_tenants(bed: &Bed) -> Vec<Tenant> {
    let each =
        (0..MANY).map(|number| async move { bed.tenant(&format!("t{number:03}"), ONE, "puller").await.unwrap() });
    stream::iter(each).buffer_unordered(16).collect().await
}

#[tokio::test]
async fn two_hundred_tenants_are_served_within_what_aws_takes_and_a_restart_asks_nobody() {
    let bed = bed("many").await;
    let tenants = many_tenants(&bed).await;
    bed.aws.limit_calls(Service::Ecr, Some(LIMIT));
    bed.aws.limit_calls(Service::Sts, Some(LIMIT));
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    let mut spec = spec_as(as_each("puller"), &[]);
    spec["namespaces"]["names"] = json!([bed.name("t*")]);
    let begun = Instant::now();
    let name = bed.credential("x", spec).await.unwrap();
    let all_asked = bed.aws.wait_for_calls(Service::Ecr, MANY);
    tokio::time::timeout(LONG, all_asked).await.expect("all tokens are fetched");
    let object = bed.ready(&name).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(counts(&object), [MANY as u64, MANY as u64, 0]);
    quiet(&bed).await;

    let calls = bed.aws.calls_since(Default::default());
    assert!(calls.iter().all(|call| call.code == "OK"), "{:?}", calls.iter().find(|call| call.code != "OK"));
    let tokens: Vec<Call> = bed.aws.calls(Service::Ecr);
    assert_eq!((tokens.len(), bed.aws.calls(Service::Sts).len()), (MANY, MANY));
    // Ten a second and as many at the start.
    let [first, last] = [tokens.iter().map(|call| call.received).min(), tokens.iter().map(|call| call.received).max()];
    let asked_for = last.unwrap() - first.unwrap();
    assert!(asked_for >= Duration::from_secs(MANY as u64 / 10 - 3), "{MANY} calls in {asked_for:?}");
    assert_eq!(bed.proxy.log().granted_tokens().len(), MANY);
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), MANY);
    let statuses = bed.proxy.log().count(&Match::status_writes());
    let most = 4 + 2 * usize::try_from(took.as_secs()).unwrap();
    assert!(statuses <= most, "{statuses} writes of the status in {took:?}");
    let held = each_holds_its_own(&bed, &tenants).await;

    operator.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let granted = bed.proxy.log().granted_tokens().len();
    let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
    page_until(&operator, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
    quiet(&bed).await;
    let changes: Vec<String> = bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    let late = bed.tenant("t-late", TWO, "puller").await.unwrap();
    token_of(&bed, &late.namespace, &late.role).await;
    let all = MANY as u64 + 1;
    bed.credential_until(&name, "one more", |object| counts(object) == [all, all, 0]).await.unwrap();
    quiet(&bed).await;
    operator.stop().await.unwrap();
    assert!(bed.aws.calls_since(calls).iter().all(|call| call.assumes.as_ref().is_none_or(|role| *role == late.role)));
    assert_eq!(bed.proxy.log().granted_tokens().len(), granted + 1, "nobody else was asked for");
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), MANY + 1);
    assert_eq!(each_holds_its_own(&bed, &tenants).await, held);
    bed.finish().await.unwrap();
}

/// Checks each tenant's Secret; returns the logins.
async fn each_holds_its_own(bed: &Bed, tenants: &[Tenant]) -> Vec<String> {
    let mut held = Vec::new();
    for tenant in tenants {
        let auth = login(bed, &tenant.namespace, &tenant.host).await;
        assert!(bed.aws.token_of(&auth).is_some_and(|token| token.is_of(&tenant.role)), "{}", tenant.namespace);
        held.push(auth);
    }
    held
}
