//! Odd objects of every kind in whole pages of lists and lines of watches: nothing fails, and the others are read as ever.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use hostile::{Kind, OddObject, line, page};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::core::{ObjectList, ObjectMeta, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cluster_state::ClusterState;
use super::references::account_record;
use super::service_accounts::PullSecretsOf;
use super::shared::{Shared, WatchObserver};
use super::stage::cpu_time;
use super::watches::{credential_ref, unreadable};
use crate::api::observed::{ObservedCredential, Reading};
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::lenient::Observed;
use crate::plan::references::{AllowedIdentities, References};
use crate::plan::targets::SelectorIndex;
use crate::plan::{Limits, Uid};
use crate::secret::docker_config::Quotes;
use crate::secret::observed::{SecretDetails, SecretMetadata};
use crate::secret::ownership::SecretRecord;

/// Nobody who is told of what the watches see.
struct Nobody;

impl WatchObserver for Nobody {
    fn gone(&self, _: &Uid) {}
    fn unreadable(&self, _: &Uid, _: &str, _: Option<&EcrCredentialStatus>) {}
    fn skipped(&self, _: &'static str, _: usize) {}
}

/// An empty cluster state, whose queue nobody works off.
pub(super) fn shared(allowed: AllowedIdentities) -> Arc<Shared> {
    let (queue, _) = tokio::sync::mpsc::unbounded_channel();
    let cluster = ClusterState::new(SelectorIndex::default(), References::new(allowed));
    Arc::new(Shared::new(cluster, Limits::default(), queue, Nobody))
}

/// Reads every odd object in the middle of a page and as the object of an event; `each` is given it.
fn read_all<K: Resource + Clone + Debug + DeserializeOwned>(kind: Kind, each: impl Fn(&OddObject, &K)) {
    let [first, last] = ["first", "last"].map(|name| kind.ordinary("a", name).to_string());
    let expected = [&first, &last].map(|text| format!("{:?}", serde_json::from_str::<K>(text).unwrap()));
    for odd in kind.odd("a", "odd") {
        let text = page(kind, &[&first, &odd.json, &last]);
        let list: ObjectList<K> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", odd.what));
        let [one, object, two] = list.items.as_slice() else { panic!("{}: {:?}", odd.what, list.items) };
        assert_eq!([format!("{one:?}"), format!("{two:?}")], expected, "{}", odd.what);
        each(&odd, object);
        for event in ["ADDED", "MODIFIED", "DELETED"] {
            let event: Result<WatchEvent<K>, _> = serde_json::from_str(&line(event, &odd.json));
            let event = event.unwrap_or_else(|e| panic!("{}: {e}", odd.what));
            let (WatchEvent::Added(again) | WatchEvent::Modified(again) | WatchEvent::Deleted(again)) = event else {
                panic!("{}: {event:?}", odd.what);
            };
            assert_eq!(format!("{again:?}"), format!("{object:?}"), "{}", odd.what);
        }
    }
}

/// Whether the odd value is where the operator does not look.
fn is_elsewhere(odd: &OddObject) -> bool {
    let places = ["managedFields/0/time", "managedFields/0/fieldsType", "managedFields/0/apiVersion", "finalizers"];
    places.iter().any(|place| odd.what.contains(place))
}

#[test]
fn odd_secrets_are_read_as_far_as_possible() {
    let ordinary: SecretMetadata = serde_json::from_str(&Kind::Secret.ordinary("a", "odd").to_string()).unwrap();
    let record = ordinary.record().unwrap();
    assert!(record.owner.is_some() && record.expires_at.is_some());
    read_all(Kind::Secret, |odd, object: &SecretMetadata| {
        if is_elsewhere(odd) {
            let (applied_at, managed_fields) = (record.applied_at, record.managed_fields);
            let read = object.record().map(|read| SecretRecord { applied_at, managed_fields, ..(**read).clone() });
            assert_eq!(read.as_ref(), Some(&**record), "{}", odd.what);
        }
        if odd.what.contains("metadata/managedFields") || odd.what.contains("metadata/ownerReferences") {
            assert_eq!(object.meta().name.as_deref(), Some("odd"), "{}", odd.what);
            let read = object.record().unwrap_or_else(|| panic!("{}", odd.what));
            assert_eq!((&read.uid, &read.resource_version), (&record.uid, &record.resource_version), "{}", odd.what);
        }
    });
    read_all(Kind::Secret, |_, object: &SecretDetails| {
        crate::secret::ownership::SecretRecord::of(&object.content.metadata());
    });
    read_all(Kind::Secret, |_, object: &Observed<Secret>| drop(object.meta().resource_version.clone()));
}

/// A Secret with so many of everything that a Secret can have many of.
fn masses(many: usize) -> serde_json::Value {
    let mut object = Kind::Secret.ordinary("a", "odd");
    let number = |prefix: &str| (0..many).map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
    let empty = |keys: Vec<String>| serde_json::Value::Object(keys.into_iter().map(|key| (key, json!({}))).collect());
    let fields = &mut object["metadata"]["managedFields"][0]["fieldsV1"];
    fields["f:metadata"]["f:labels"] = empty(number("f:l"));
    fields["f:metadata"]["f:ownerReferences"] =
        empty(number("k:{\"uid\":\"o").iter().map(|k| format!("{k}\"}}")).collect());
    fields["f:data"] = empty(number("f:d"));
    object["metadata"]["labels"] = number("l").into_iter().map(|key| (key, json!("x"))).collect();
    let owner = |uid: String| json!({ "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": uid });
    object["metadata"]["ownerReferences"] = number("o").into_iter().map(owner).collect();
    object
}

/// The least of three costs: whatever else the machine does only adds to one.
fn least(cost: impl Fn() -> Duration) -> Duration {
    (0..3).map(|_| cost()).min().unwrap_or_default()
}

#[test]
fn what_a_secret_has_in_masses_is_neither_kept_nor_slow() {
    let cost = |many: usize| {
        let text = masses(many).to_string();
        let before = cpu_time();
        let read: SecretMetadata = serde_json::from_str(&text).unwrap();
        let cost = cpu_time() - before;
        assert!(read.record().unwrap().extra_keys.len() <= 16);
        cost
    };
    // A look at each for each other would cost 64 times as much.
    let (few, many) = (least(|| cost(5_000)), least(|| cost(40_000)));
    assert!(many < few * 24, "{few:?} for 5,000, {many:?} for 40,000");
    let mut object = masses(1);
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "x", "uid": "u".repeat(1000), "controller": true,
    }]);
    object["metadata"]["labels"] = json!({});
    let read: SecretMetadata = serde_json::from_str(&object.to_string()).unwrap();
    assert_eq!(read.record().unwrap().owner, None);
}

#[test]
fn a_refusal_is_searched_for_passwords_in_a_time_that_grows_with_its_length_alone() {
    let cost = |many: usize| {
        let message: String = (0..many).map(|number| format!("{number:05}x")).collect();
        let data: String = (0..many).map(|number| format!("{number:05}y")).collect();
        let before = cpu_time();
        assert!(!Quotes::of(&message).hold(data.as_bytes()));
        cpu_time() - before
    };
    // Comparing each part of the message with each part of the data would cost 64 times as much.
    let (few, many) = (least(|| cost(500)), least(|| cost(4_000)));
    assert!(many < few * 24, "{few:?} for 500, {many:?} for 4,000");
}

#[test]
fn odd_namespaces_are_read_as_far_as_possible() {
    read_all(Kind::Namespace, |odd, object: &Observed<Namespace>| {
        let absent = odd.what.starts_with("Namespace: null at \"/metadata/deletionTimestamp");
        if odd.what.contains("/deletionTimestamp") {
            assert_eq!(object.meta().deletion_timestamp.is_none(), absent, "{}", odd.what);
        }
    });
}

#[test]
fn odd_service_accounts_are_read_as_far_as_possible() {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    read_all(Kind::ServiceAccount, |odd, object: &Observed<ServiceAccount>| {
        let record = account_record(object.meta());
        if is_elsewhere(odd) {
            assert!(record.as_ref().is_some_and(|record| record.role.is_some()), "{}", odd.what);
        }
        assert!(record.is_none_or(|record| text(&record.role) <= 8192), "{}", odd.what);
    });
    read_all(Kind::ServiceAccount, |odd, object: &PullSecretsOf| {
        let single = ["imagePullSecrets/0", "imagePullSecrets/1"].iter().any(|part| odd.what.contains(part));
        if single || is_elsewhere(odd) {
            // A patch names entries by their number.
            assert_eq!(object.content.record.pull_secrets.as_ref().map(Vec::len), Some(2), "{}", odd.what);
        }
    });
}

#[test]
fn odd_credentials_are_alive_and_keep_what_they_want() {
    let limits = Limits::default();
    read_all(Kind::EcrCredential, |odd, object: &ObservedCredential| {
        let Reading(reading) = &object.content;
        let credential = match reading {
            Ok(object) => credential_ref(object, &limits),
            Err(object) => unreadable(object),
        };
        if !odd.what.contains("at \"/spec") && !odd.what.ends_with("at \"\"") {
            assert!(reading.is_ok(), "{}", odd.what);
        }
        if odd.what.contains("at \"/spec/registries") {
            let secret = &credential.secrets[0];
            assert_eq!((&*secret.name, secret.selection.is_some()), ("pull", true), "{}", odd.what);
        }
    });
}

#[test]
fn nothing_is_told_of_one_that_is_gone_or_unreadable_and_its_end_waits_for_what_is_told() {
    let shared = shared(AllowedIdentities::default());
    let object = json!({
        "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": { "name": "x", "uid": "ux" },
        "spec": { "registries": [{ "public": {} }], "namespaces": { "names": ["a"] } },
    });
    let uid = Uid("ux".into());
    let read = |object: &serde_json::Value| serde_json::from_str::<ObservedCredential>(&object.to_string()).unwrap();
    let Reading(Ok(good)) = read(&object).content else { panic!("it can be read") };
    let deleted = EcrCredential {
        metadata: ObjectMeta { deletion_timestamp: Some(Time(Timestamp::UNIX_EPOCH)), ..good.metadata.clone() },
        ..*good.clone()
    };
    // Of one that is served, and of one that is being deleted.
    let told = || {
        [&*good, &deleted].map(|object| {
            let mut told = false;
            shared.while_there(&uid, object, || {
                told = true;
                let is_deleted = object.metadata.deletion_timestamp.is_some();
                assert!(is_deleted || shared.state.try_lock().is_none(), "its end would be told before this");
            });
            told
        })
    };
    assert_eq!(told(), [false, false]);
    shared.credential_seen(&good);
    assert_eq!(told(), [true, false]);
    let mut bad = object.clone();
    bad["spec"]["registries"] = json!("of a newer version");
    let Reading(Err(bad)) = read(&bad).content else { panic!("it cannot be read") };
    shared.credential_unreadable(&bad);
    assert_eq!(told(), [false, false]);
    shared.credential_seen(&good);
    shared.credential_seen(&deleted);
    assert_eq!(told(), [false, true]);
    shared.credential_gone(&deleted.metadata);
    assert_eq!(told(), [false, false]);
}

#[test]
fn an_ecrcredential_is_queued_when_another_installation_writes_its_status_and_not_for_the_first_one() {
    let (queue, mut queued) = tokio::sync::mpsc::unbounded_channel();
    let world = ClusterState::new(SelectorIndex::default(), References::new(AllowedIdentities::default()));
    let shared = Shared::new(world, Limits::default(), queue, Nobody);
    let table = [
        ("a new one", 1, None, true),
        ("its first status", 1, Some("a"), false),
        ("another status", 1, Some("a"), false),
        ("the status of another", 1, Some("b"), true),
        ("a status that was emptied", 1, None, true),
        ("another spec", 2, None, true),
    ];
    for (case, generation, served_by, expected) in table {
        let object = json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
            "metadata": { "name": "x", "uid": "ux", "generation": generation },
            "spec": { "registries": [{ "public": {} }], "namespaces": { "names": ["a"] } },
            "status": { "servedBy": served_by },
        });
        shared.credential_seen(&serde_json::from_value(object).unwrap());
        let mut was_queued = false;
        while let Ok(uid) = queued.try_recv() {
            was_queued |= uid == Uid("ux".into());
        }
        assert_eq!(was_queued, expected, "{case}");
    }
}
