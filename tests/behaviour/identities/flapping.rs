//! The owner of a ServiceAccount, or of a Secret with keys, changes it all the time: the cost is bounded, the status says so, and the
//! last change takes effect.

use std::time::Duration;

use testbed::bed::identities::ROLE_ARN;

use super::super::demand::*;
use super::super::look::quiet;
use super::*;

/// For so long it is changed at least.
const FLAPPING: Duration = Duration::from_secs(9);

/// How many changes take effect in a time: four at once, and then one in two seconds, the longest wait between tries of these operators.
fn most_changes(time: Duration) -> usize {
    4 + usize::try_from(time.as_secs().div_ceil(2)).unwrap()
}

/// Changes the role of a ServiceAccount about 16 times a second, and leaves it at the last of the two; returns how often. A slow
/// machine takes longer for enough of them.
async fn flap(bed: &Bed, namespace: &str, name: &str, roles: [&str; 2]) -> usize {
    let (begun, mut changes) = (std::time::Instant::now(), 0);
    while begun.elapsed() < FLAPPING || changes <= 3 * most_changes(FLAPPING) || changes % 2 == 1 {
        bed.annotate(namespace, name, &[(ROLE_ARN, Some(roles[changes % 2]))]).await.unwrap();
        changes += 1;
        // The rate of whoever does it, and nothing that is waited for.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    changes
}

#[tokio::test]
async fn a_role_that_is_changed_all_the_time_costs_a_few_calls_and_writes_and_the_last_one_wins() {
    let bed = bed("flapping").await;
    let ops = bed.namespace("ops", &[]).await.unwrap();
    let first = account_with_role(&bed, ONE, &ops, "puller").await;
    let [other, last] = ["other", "last"].map(|name| role_trusting(&bed, TWO, name, bed.trust_of(&ops, "puller")));
    let mut targets = Vec::new();
    for number in 0..10 {
        targets.push(bed.namespace(&format!("n{number}"), &[]).await.unwrap());
    }
    let operator = bed.operator(launch().service_account(&format!("{ops}/puller"))).await.unwrap();
    let names: Vec<&str> = targets.iter().map(String::as_str).collect();
    let name = bed.credential("x", spec_as(as_account(&ops, "puller"), &names)).await.unwrap();
    bed.ready(&name).await.unwrap();
    token_of(&bed, &targets[9], &first).await;
    quiet(&bed).await;

    let (calls, writes) = (fetches(&bed).0, bed.proxy.log().mark());
    let begun = std::time::Instant::now();
    let changes = flap(&bed, &ops, "puller", [&other, &last]).await;
    let most = most_changes(begun.elapsed());
    let calls = fetches(&bed).0 - calls;
    let writes = bed.proxy.log().writes_to_secrets_since(writes).len();
    assert!((2..=most).contains(&calls), "{calls} calls for {changes} changes");
    assert!(writes <= most * targets.len(), "{writes} writes for {changes} changes");
    registry_until(&bed, &name, 0, "IdentityUnstable", &["changes too often", &format!("{ops}/puller")]).await;
    for target in &targets {
        token_of(&bed, target, &last).await;
    }
    bed.condition_until(&name, "Reconciling", "False", "Synced").await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_tenant_whose_role_changes_all_the_time_slows_no_other_down() {
    let bed = bed("flapping-tenant").await;
    let hasty = bed.tenant("hasty", ONE, "pull").await.unwrap();
    let calm = bed.tenant("calm", TWO, "pull").await.unwrap();
    let other = format!("{}-other", hasty.role);
    bed.aws.add_role(testbed::aws::Role::new(&other).trusting(bed.trust_of(&hasty.namespace, "pull")));
    bed.recorder.tenant(&hasty.namespace, &other);
    let operator = bed.operator(launch().service_account("*/pull").aws_rate(5)).await.unwrap();
    let name = bed.credential("x", spec_as(as_each("pull"), &[&hasty.namespace, &calm.namespace])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = token_of(&bed, &calm.namespace, &calm.role).await;
    let (begun, calls) = (std::time::Instant::now(), fetches(&bed).0);
    let flapping = flap(&bed, &hasty.namespace, "pull", [&other, &hasty.role]);
    let served = async {
        // In the middle of it a renewal is asked for.
        namespace_fails(&bed, &name, &hasty.namespace, "IdentityUnstable", &["changes too often"]).await;
        demand(&bed, &name, "1").await;
        let renewed = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
            secret.is_some_and(|secret| logins(secret).unwrap()[&calm.host] != before.auth)
        };
        super::super::look::at_once(bed.secret_until(&calm.namespace, "a renewed login", renewed)).await;
    };
    let (changes, ()) = tokio::join!(flapping, served);
    let (most, calls) = (most_changes(begun.elapsed()), fetches(&bed).0 - calls);
    assert!(calls <= most + 2, "{calls} calls for {changes} changes and one refresh of two");
    token_of(&bed, &hasty.namespace, &hasty.role).await;
    bed.condition_until(&name, "Reconciling", "False", "Synced").await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn keys_that_are_rotated_all_the_time_cost_a_few_calls_and_writes_and_the_last_ones_win() {
    let bed = bed("flapping-keys").await;
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let users = [user_with_key(&bed, ONE, "one"), user_with_key(&bed, TWO, "two")];
    bed.keys_secret(&ops, "keys", &users[1].1).await.unwrap();
    let operator = bed.operator(launch().credentials_secret(&format!("{ops}/keys"))).await.unwrap();
    let name = bed.credential("x", spec_as(as_keys(&ops, "keys"), &[&a])).await.unwrap();
    token_of(&bed, &a, &users[1].0).await;
    bed.ready(&name).await.unwrap();
    let calls = fetches(&bed).0;
    let (begun, mut changes) = (std::time::Instant::now(), 0);
    while begun.elapsed() < 2 * FLAPPING || changes < 14 || changes % 2 == 1 {
        bed.keys_secret(&ops, "keys", &users[changes % 2].1).await.unwrap();
        changes += 1;
        // Each of them is read, which takes a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let (most, calls) = (most_changes(begun.elapsed()), fetches(&bed).0 - calls);
    // It would be one in a second without a limit.
    assert!(calls <= most, "{calls} calls for {changes} changes");
    token_of(&bed, &a, &users[1].0).await;
    bed.condition_until(&name, "Reconciling", "False", "Synced").await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
