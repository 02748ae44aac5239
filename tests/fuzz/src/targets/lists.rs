//! Whole pages of lists and lines of watches with odd objects in them: whatever one object contains, the page and the line are read,
//! the other objects are what they are without it, and what is kept of it is small.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::observed::{ObservedCredential, Reading};
use ecr_credential_operator::controller::cluster_state::ClusterState;
use ecr_credential_operator::controller::references::account_record;
use ecr_credential_operator::controller::service_accounts::PullSecretsOf;
use ecr_credential_operator::controller::watches::{credential_ref, unreadable};
use ecr_credential_operator::lenient::Observed;
use ecr_credential_operator::plan::namespaces::NamespaceUid;
use ecr_credential_operator::plan::references::References;
use ecr_credential_operator::plan::targets::SelectorIndex;
use ecr_credential_operator::plan::{Limits, Uid};
use ecr_credential_operator::secret::observed::{SecretDetails, SecretMetadata};
use ecr_credential_operator::secret::ownership::SecretRecord;
use hostile::{Kind, Odd, line, page};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::Resource;
use kube::core::{ObjectList, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

const KINDS: [Kind; 4] = [Kind::Secret, Kind::Namespace, Kind::ServiceAccount, Kind::EcrCredential];

/// The values that are made once: some are large.
static VALUES: LazyLock<Vec<Odd>> = LazyLock::new(hostile::values);

static PARTS: LazyLock<HashMap<&str, Vec<String>>> =
    LazyLock::new(|| KINDS.iter().map(|kind| (kind.api_name(), kind.parts())).collect());

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let kind = *u.choose(&KINDS)?;
    let object = object(u, kind)?;
    match kind {
        Kind::Secret => {
            secret(&read::<SecretMetadata>(kind, &object), &read::<SecretDetails>(kind, &object));
            read::<Observed<Secret>>(kind, &object);
        }
        Kind::Namespace => {
            let namespace = read::<Observed<Namespace>>(kind, &object);
            let labels = namespace.meta().labels.clone().unwrap_or_default();
            let mut index = SelectorIndex::default();
            index.set_namespace("a", NamespaceUid::of_namespace(namespace.meta()), &labels, false);
        }
        Kind::ServiceAccount => {
            let record = account_record(read::<Observed<ServiceAccount>>(kind, &object).meta());
            assert!(record.and_then(|record| record.role).is_none_or(|role| role.len() <= 8192));
            read::<PullSecretsOf>(kind, &object);
        }
        _ => credential(&read::<ObservedCredential>(kind, &object)),
    }
    Ok(())
}

/// An odd object; it is always JSON.
fn object(u: &mut Unstructured<'_>, kind: Kind) -> Result<String> {
    if u.ratio(1, 8)? {
        let text = u.arbitrary::<&str>()?;
        // The API server sends nothing but JSON.
        let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
        return Ok(if is_json { text.to_owned() } else { "null".to_owned() });
    }
    let parts = &PARTS[kind.api_name()];
    let mut values = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let part = u.choose(parts)?.as_str();
        let json = if u.ratio(1, 2)? { u.choose(&VALUES)?.json.clone() } else { json(u, 0)? };
        values.push((part, json));
    }
    let values: Vec<(&str, &str)> = values.iter().map(|(part, json)| (*part, json.as_str())).collect();
    Ok(kind.with("a", "odd", &values))
}

/// Any JSON, often with keys that mean something.
fn json(u: &mut Unstructured<'_>, depth: usize) -> Result<String> {
    const KEYS: [&str; 12] = [
        "name",
        "uid",
        "manager",
        "operation",
        "fieldsV1",
        "f:metadata",
        "f:labels",
        "f:data",
        "names",
        "secret",
        "private",
        "time",
    ];
    let kinds = if depth < 5 { 6 } else { 3 };
    Ok(match u.int_in_range(0..=kinds)? {
        0 => u.choose(&["null", "true", "-1", "1e400", "0.5", "[]", "{}"])?.to_string(),
        1 => format!("{}", u.arbitrary::<i64>()?),
        2 | 3 => serde_json::to_string(u.arbitrary::<&str>()?).unwrap_or_default(),
        4 => {
            let items: Result<Vec<String>> = (0..u.int_in_range(0..=3)?).map(|_| json(u, depth + 1)).collect();
            format!("[{}]", items?.join(","))
        }
        _ => {
            let mut members = Vec::new();
            for _ in 0..u.int_in_range(0..=4)? {
                let key = if u.ratio(3, 4)? { *u.choose(&KEYS)? } else { u.arbitrary::<&str>()? };
                members.push(format!("{}:{}", serde_json::to_string(key).unwrap_or_default(), json(u, depth + 1)?));
            }
            format!("{{{}}}", members.join(","))
        }
    })
}

/// Reads it in a page between others, and in the lines of a watch.
fn read<K: Resource + Clone + Debug + DeserializeOwned>(kind: Kind, object: &str) -> K {
    let [first, last] = ["first", "last"].map(|name| kind.ordinary("a", name).to_string());
    let text = page(kind, &[&first, object, &last]);
    let list: ObjectList<K> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {object}"));
    let shown: Vec<String> = list.items.iter().map(|item| format!("{item:?}")).collect();
    for (text, shown) in [(&first, &shown[0]), (&last, &shown[2])] {
        assert_eq!(format!("{:?}", serde_json::from_str::<K>(text).expect("an ordinary object")), *shown, "{object}");
    }
    for event in ["ADDED", "MODIFIED", "DELETED"] {
        let event: WatchEvent<K> =
            serde_json::from_str(&line(event, object)).unwrap_or_else(|error| panic!("{error}: {object}"));
        let (WatchEvent::Added(again) | WatchEvent::Modified(again) | WatchEvent::Deleted(again)) = event else {
            panic!("another event: {object}");
        };
        assert_eq!(format!("{again:?}"), shown[1], "{object}");
    }
    list.items[1].clone()
}

/// What is kept of a Secret is little, and the same that `check` sees.
fn secret(kept: &SecretMetadata, details: &SecretDetails) {
    let record = kept.record().map(AsRef::as_ref);
    assert_eq!(record, SecretRecord::of(&details.content.metadata()).as_ref());
    let owner = record.and_then(|record| record.owner.as_ref()).map_or(0, |owner| owner.0.len());
    assert!(owner <= 64, "an owner of {owner} bytes");
    assert!(record.is_none_or(|record| record.extra_keys.len() <= 16));
}

/// Whatever an `EcrCredential` contains, it can be put beside the others, and taken away again.
fn credential(object: &ObservedCredential) {
    let Reading(reading) = &object.content;
    let credential = match reading {
        Ok(object) => credential_ref(object, &Limits::default()),
        Err(object) => {
            assert!(object.error.chars().count() <= 200, "{}", object.error);
            unreadable(object)
        }
    };
    let mut world = ClusterState::new(SelectorIndex::default(), References::default());
    let uid = Uid("u".into());
    world.set_namespace("a", NamespaceUid::default(), &Default::default(), false);
    world.set_credential(&uid, credential.clone());
    let generation = world.index.generation(&uid);
    let secrets = credential.secrets.len();
    assert!(world.targets(&uid, generation).is_some_and(|targets| targets.count() <= secrets));
    world.remove_credential(&uid);
    world.index.remove_namespace("a");
    assert!(world.index.is_empty(), "{:?}", world.index);
}
