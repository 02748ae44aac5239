//! Which logins stand in a Secret: regions, accounts, host variants, extra hosts, registry ids, and one token for all who share it.

use std::collections::BTreeSet;

use serde_json::json;
use testbed::aws::{Role, Service, Trust};
use testbed::bed::{ACCOUNT, logins};

use super::demand::*;
use super::{OWN, PUBLIC, bed, operator};

#[tokio::test]
async fn regions_accounts_variants_and_extra_hosts_stand_in_one_secret() {
    let bed = bed("hosts").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let registries = json!([
        { "private": {
            "region": "eu-west-1",
            "accountIds": ["111122223333", "444455556666"],
            "hostVariants": ["Standard", "Fips", "DualStack", "DualStackFips"],
            "extraHosts": ["vpce-0a1b.dkr.ecr.example.internal", "mirror.example.com:8443"],
        } },
        { "private": { "region": "us-gov-west-1", "accountIds": ["777788889999"] } },
        { "private": { "region": "ap-southeast-2" } },
        { "public": {} },
    ]);
    let name = bed.credential("x", spec(registries, &[&a])).await.unwrap();
    let mut hosts: Vec<String> = ["111122223333", "444455556666"]
        .into_iter()
        .flat_map(|id| {
            [
                format!("{id}.dkr.ecr.eu-west-1.amazonaws.com"),
                format!("{id}.dkr.ecr-fips.eu-west-1.amazonaws.com"),
                format!("{id}.dkr-ecr.eu-west-1.on.aws"),
                format!("{id}.dkr-ecr-fips.eu-west-1.on.aws"),
            ]
        })
        .collect();
    hosts.extend(["vpce-0a1b.dkr.ecr.example.internal", "mirror.example.com:8443"].map(str::to_owned));
    let ireland: BTreeSet<String> = hosts.iter().cloned().collect();
    let sydney = format!("{ACCOUNT}.dkr.ecr.ap-southeast-2.amazonaws.com");
    hosts.extend([sydney.clone(), PUBLIC.to_owned()]);
    // A session of the commercial partition is unknown in GovCloud: that registry fails, and the others do not.
    let wanted: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let secret = bed.logins_until(&a, &wanted).await.unwrap();
    let logins = logins(&secret).unwrap();
    for (host, auth) in &logins {
        let token = bed.aws.token_of(auth).unwrap();
        let region = match host.as_str() {
            PUBLIC => "us-east-1",
            host if host == sydney => "ap-southeast-2",
            _ => "eu-west-1",
        };
        assert_eq!(token.region, region, "{host}");
    }
    let distinct: BTreeSet<&String> = ireland.iter().map(|host| &logins[host]).collect();
    assert_eq!(distinct.len(), 1, "one token serves all registries of a region");
    registry_until(&bed, &name, 1, "AccessDenied", &["us-gov-west-1"]).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_callers_account_names_the_hosts_of_every_variant() {
    let bed = bed("caller").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let private = json!({ "hostVariants": ["Standard", "DualStack"], "extraHosts": ["registry.example.com"] });
    let name = bed.credential("x", spec(json!([{ "private": private }]), &[&a])).await.unwrap();
    let dual = format!("{ACCOUNT}.dkr-ecr.eu-west-1.on.aws");
    let hosts = [OWN, dual.as_str(), "registry.example.com"];
    bed.logins_until(&a, &hosts).await.unwrap();
    let object = bed.ready(&name).await.unwrap();
    assert_eq!(object.data["status"]["registries"][0]["hosts"], json!([OWN, dual, "registry.example.com"]));
    operator.stop().await.unwrap();
    assert_eq!(fetches(&bed), (1, 0));
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_entry_that_is_wrong_is_reported_alone_and_the_others_are_refreshed() {
    let bed = bed("wrong-entry").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{}-other", bed.prefix);
    bed.aws.add_role(Role::new(&role).trusting(Trust::principal(&bed.role)));
    let own = json!({ "private": { "accountIds": [ACCOUNT] } });
    let name = bed.credential("x", spec(json!([own, { "public": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    let other = "444455556666";
    let registries = json!([
        own,
        { "private": { "accountIds": [ACCOUNT] }, "auth": { "assumeRoles": [{ "roleArn": role }] } },
        { "private": { "region": "us-iso-east-1", "hostVariants": ["DualStack"] } },
        { "public": {} },
        { "private": { "accountIds": [other] } },
    ]);
    bed.change(&name, json!({ "spec": { "registries": registries } })).await.unwrap();
    registry_until(&bed, &name, 1, "InvalidSpec", &["spec.registries[0]", "spec.registries[1]", OWN]).await;
    registry_until(&bed, &name, 2, "InvalidSpec", &["spec.registries[2]", "us-iso-east-1", "DualStack"]).await;
    for sound in [0, 3, 4] {
        registry_until(&bed, &name, sound, "Synced", &[]).await;
    }
    // A registry that is new beside the wrong ones has its login, and a refresh reaches all that are sound.
    let added = format!("{other}.dkr.ecr.eu-west-1.amazonaws.com");
    bed.logins_until(&a, &[OWN, PUBLIC, &added]).await.unwrap();
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    let after = bed.logins_until(&a, &[OWN, PUBLIC, &added]).await.unwrap();
    for host in [OWN, PUBLIC] {
        assert_ne!(logins(&after).unwrap()[host], logins(&before).unwrap()[host], "{host}");
    }
    bed.condition_until(&name, "Stalled", "False", "InvalidSpec").await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "InvalidSpec").await.unwrap();
    assert!(message(&object, "Ready").contains("spec.registries[1]"), "{}", message(&object, "Ready"));
    assert!(bed.aws.token_of(&logins(&after).unwrap()[OWN]).unwrap().is_of(&bed.role), "the first one has the host");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn twelve_registry_ids_take_two_calls_and_each_host_gets_its_own_token() {
    let bed = bed("ids").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let first = operator(&bed).await;
    let ids: Vec<String> = (0..12).map(|n| format!("{:012}", 500_000_000_000_u64 + n)).collect();
    let hosts: Vec<String> = ids.iter().map(|id| format!("{id}.dkr.ecr.eu-west-1.amazonaws.com")).collect();
    let wanted: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let private = json!({ "accountIds": ids, "requestRegistryIds": true });
    let name = bed.credential("x", spec(json!([{ "private": private }]), &[&a])).await.unwrap();
    let secret = bed.logins_until(&a, &wanted).await.unwrap();
    let logins = logins(&secret).unwrap();
    for (id, host) in ids.iter().zip(&hosts) {
        assert_eq!(bed.aws.token_of(&logins[host]).unwrap().registry.as_ref(), Some(id));
    }
    bed.ready(&name).await.unwrap();
    assert_eq!(fetches(&bed), (2, 0), "the API takes ten ids a call");
    first.stop().await.unwrap();
    // All twelve are found again in the Secret.
    let second = operator(&bed).await;
    let b = bed.namespace("b", &[]).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    let copy = bed.logins_until(&b, &wanted).await.unwrap();
    assert_eq!(copy.data, secret.data);
    bed.ready(&name).await.unwrap();
    assert_eq!(fetches(&bed), (2, 0));
    demand(&bed, &name, "all twelve").await;
    served(&bed, &name, "all twelve").await;
    assert_eq!(fetches(&bed), (4, 0));
    second.stop().await.unwrap();
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 4, "two Secrets, each created and refreshed once");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn two_ecrcredentials_share_one_token_and_its_refresh() {
    let bed = testbed::bed::Bed::with_secret_names("share", super::CRD, &["second"]).await.unwrap();
    bed.aws.set_token_life(k8s_openapi::jiff::SignedDuration::from_secs(16));
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator_for_both(&bed).await;
    let registries = json!([{ "private": {} }]);
    let mut other = spec(registries.clone(), &[&a]);
    other["secret"]["name"] = json!(bed.name("second"));
    let names =
        [bed.credential("x", spec(registries, &[&a])).await.unwrap(), bed.credential("y", other).await.unwrap()];
    let mut last: Option<String> = None;
    for round in 1..=3 {
        let renewed = |secret: Option<&_>| {
            secret.and_then(|s| logins(s).ok()).and_then(|mut l| l.remove(OWN)).is_some_and(|auth| Some(auth) != last)
        };
        let first = bed.secret_until(&a, "a new login", &renewed).await.unwrap().unwrap();
        let second = bed.named_secret_until(&a, &bed.name("second"), "a new login", &renewed).await.unwrap().unwrap();
        assert_eq!(first.data, second.data, "the same token in both");
        assert_eq!(fetches(&bed), (round, 0), "one call for both");
        last = logins(&first).unwrap().remove(OWN);
    }
    for name in &names {
        bed.ready(name).await.unwrap();
    }
    operator.stop().await.unwrap();
    assert_eq!(bed.aws.calls(Service::Sts).len(), 1, "one session for all calls");
    bed.finish().await.unwrap();
}

/// An operator that may write the second Secret name, too.
async fn operator_for_both(bed: &testbed::bed::Bed) -> testbed::bed::Operator {
    bed.operator(super::launch().args(&["--secret-name", &bed.name("second")])).await.unwrap()
}
