//! What is found again in Secrets: a Secret as we wrote it is known as that from its metadata, any edit shows, and a restarted
//! operator takes from it the logins that were written.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::api::registry::{AccountId, Host};
use ecr_credential_operator::controller::recover::{own_hosts, tokens};
use ecr_credential_operator::plan::{Hosts, Plan, RegistryPlan, Uid, plan};
use ecr_credential_operator::secret::docker_config::{Entries, parse};
use ecr_credential_operator::secret::observed::{SecretDetails, SecretMetadata};
use ecr_credential_operator::secret::ownership::{Ownership, SecretRecord, lost_fields};
use ecr_credential_operator::secret::{
    Desired, FIELD_MANAGER, Owner, Published, SecretAction, SecretTarget, Selection, action, as_found, bundle,
    registry_entries,
};
use ecr_credential_operator::token::{AuthorizationToken, TokenHash};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::material::{self, ACCOUNTS, AROUND, HOUR, account, second};

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let (limits, spec) = (material::limits(u)?, material::spec(u)?);
    let Ok(plan) = plan(&spec, &limits) else { return Ok(()) };
    let now = second(AROUND);
    let published = published(u, &plan)?;
    let owner = Owner { name: "platform".to_owned(), uid: Uid("me".into()) };
    let Ok(bundle) = bundle(&plan, &owner, &published, &Default::default(), now) else { return Ok(()) };
    for output in plan.outputs.iter().filter_map(|output| bundle.get(&output.name)) {
        assert!(
            output.expires_at > now
                || output.payload.has_key("config.json")
                || output.payload.has_key(".dockerconfigjson")
        );
    }
    let Some(desired) = bundle.get(&plan.secret.name) else { return Ok(()) };
    let (_, config) = desired.payload.expose_data().next().expect("a docker config");
    let entries = parse(&STANDARD.decode(config).expect("base64"));
    content(&plan, &published, desired, &entries, now);
    for registry in &plan.registries {
        found_again(registry, &published, &entries);
    }
    let stored = stored(&desired.metadata);
    let record = read(&stored);
    assert_eq!(record.digest, desired.digest);
    assert_eq!((record.expires_at, record.hosts), (Some(desired.expires_at), Some(desired.payload.hosts)));
    assert_eq!((record.identity, record.owner.as_ref()), (Some(desired.identity), Some(&owner.uid)));
    let details: SecretDetails = answer(&stored);
    let found = details.content.metadata();
    assert!(lost_fields(&as_found(&plan, &owner, &plan.secret, &found), &found).is_empty());
    assert_eq!(judge(&stored, desired, now), SecretAction::Keep);
    let edited = edit(u, stored.clone())?;
    if edited != stored {
        shows(&edited, &stored, desired, now);
    }
    Ok(())
}

/// What is published for some needs of a plan; some of it may have expired.
fn published(u: &mut Unstructured<'_>, plan: &Plan) -> Result<Published> {
    let caller = account(ACCOUNTS[1]);
    let mut published = Published::new();
    for need in plan.token_specs() {
        if u.ratio(7, 8)? {
            let issued = AROUND - u.int_in_range(0..=8)? * HOUR;
            let life = material::good_life(u, issued)?;
            published.insert(need.clone(), material::grant(need, life, Some(&caller)));
        }
    }
    Ok(published)
}

/// A Secret has the hosts of those registries whose tokens are all there and good, and their passwords.
fn content(plan: &Plan, published: &Published, desired: &Desired, entries: &Entries, now: Timestamp) {
    let mut expected = Entries::new();
    // A host belongs to the first registry that names it; only one with the same tokens may name it again.
    let mut owners: BTreeMap<Host, &RegistryPlan> = BTreeMap::new();
    for registry in &plan.registries {
        let grants: Vec<&Arc<AuthorizationToken>> =
            registry.token_specs.iter().filter_map(|need| published.get(need)).collect();
        if grants.len() < registry.token_specs.len() {
            continue;
        }
        let caller = account(ACCOUNTS[1]);
        let mut hosts = registry.hosts.resolve(Some(&caller)).expect("hosts");
        hosts.retain(|(host, _)| owners.entry(host.clone()).or_insert(registry).token_specs == registry.token_specs);
        if grants.iter().all(|grant| grant.life.is_valid(now)) {
            let mut logins = registry_entries(registry, published).expect("hosts");
            logins.retain(|(host, _)| hosts.iter().any(|(one, _)| one == host));
            assert_eq!(logins.len(), hosts.len(), "every host has a login");
            expected.extend(logins.into_iter().map(|(host, auth)| (host, auth.clone())));
            let earliest = grants.iter().all(|grant| desired.expires_at <= grant.life.expires_at);
            assert!(earliest || hosts.is_empty(), "it says a later expiry");
            own_passwords(registry, &hosts, entries);
        }
    }
    assert!(expected.keys().eq(entries.keys()), "exactly the configured hosts: {entries:?}");
    assert!(entries.iter().all(|(host, auth)| expected[host].expose() == auth.expose()));
    assert_eq!(desired.has_entries, !entries.is_empty());
    assert!(!desired.has_entries || desired.expires_at > now, "an expired token is written");
    assert!(desired.has_entries || plan.registries.iter().any(|registry| registry.anonymous_works));
}

/// Where each account has a password of its own, an account's host has that one.
fn own_passwords(registry: &RegistryPlan, own: &[(Host, Option<AccountId>)], entries: &Entries) {
    let Hosts::Named(hosts) = &registry.hosts else { return };
    let asks = |need: &ecr_credential_operator::plan::TokenSpec| matches!(&need.service, ecr_credential_operator::plan::Service::Private { registry_ids, .. } if !registry_ids.is_empty());
    if !registry.token_specs.iter().all(asks) {
        return;
    }
    for (host, owner) in hosts.iter().filter(|named| own.contains(named)) {
        if let Some(id) =
            owner.clone().or(host.account()).filter(|id| hosts.iter().any(|(_, o)| o.as_ref() == Some(id)))
        {
            let login = STANDARD.decode(entries[host].expose()).expect("base64");
            let login = String::from_utf8(login).expect("text");
            assert!(login.starts_with(&format!("AWS:{id}/")), "{host} has the password {login}");
        }
    }
}

/// The tokens that a restarted operator takes from the Secret give the same logins for the registry.
fn found_again(registry: &RegistryPlan, published: &Published, entries: &Entries) {
    let before = registry_entries(registry, published).expect("hosts");
    let hash = |logins: &[(Host, &_)]| TokenHash::of("fingerprint", logins);
    let hosts: Vec<_> = before.iter().map(|(host, _)| host.clone()).collect();
    let there: Vec<_> = hosts.iter().filter_map(|host| Some((host.clone(), entries.get(host)?))).collect();
    // The status vouches for logins by their hash; what it does not vouch for is not taken.
    if before.is_empty() || hash(&there) != hash(&before) {
        return;
    }
    let mut again = Published::new();
    for need in &registry.token_specs {
        let Some(tokens) = tokens(registry, need, &hosts, entries) else { return };
        let old = &published[need];
        again.insert(
            need.clone(),
            Arc::new(AuthorizationToken { tokens, life: old.life, identity: old.identity.clone() }),
        );
    }
    if let Ok(after) = registry_entries(registry, &again) {
        assert_eq!(hash(&after), hash(&before), "{registry:?}: {before:?} before, {after:?} after");
    }
    let own = own_hosts(registry, entries);
    assert!(own.is_empty() || own == hosts || matches!(registry.hosts, Hosts::Callers { .. }));
}

/// A Secret's metadata as the API server shows it after our apply.
fn stored(applied: &ObjectMeta) -> ObjectMeta {
    let names = |map: &Option<std::collections::BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, _)| (format!("f:{key}"), json!({}))).collect::<Map<String, Value>>()
    };
    let owners = applied.owner_references.iter().flatten();
    let owners: Map<String, Value> = owners.map(|o| (format!("k:{{\"uid\":\"{}\"}}", o.uid), json!({}))).collect();
    let fields = json!({
        "f:data": { "f:.dockerconfigjson": {} },
        "f:type": {},
        "f:metadata": { "f:labels": names(&applied.labels), "f:annotations": names(&applied.annotations), "f:ownerReferences": owners },
    });
    let entry = ManagedFieldsEntry {
        manager: Some(FIELD_MANAGER.to_owned()),
        operation: Some("Apply".to_owned()),
        fields_v1: Some(FieldsV1(fields)),
        ..ManagedFieldsEntry::default()
    };
    let (uid, version) = (Some("s".to_owned()), Some("7".to_owned()));
    ObjectMeta { uid, resource_version: version, managed_fields: Some(vec![entry]), ..applied.clone() }
}

/// A Secret with this metadata as the API server sends it.
fn answer<T: DeserializeOwned>(metadata: &ObjectMeta) -> T {
    let text = serde_json::json!({ "metadata": metadata }).to_string();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What is kept of metadata.
fn read(metadata: &ObjectMeta) -> SecretRecord {
    let answer: SecretMetadata = answer(metadata);
    SecretRecord::clone(answer.record().expect("uid and resourceVersion"))
}

fn judge(found: &ObjectMeta, desired: &Desired, now: Timestamp) -> SecretAction {
    let record = Arc::new(read(found));
    let ownership = Ownership::of(Some(&record), &Uid("me".into()), |_| true);
    let (namespace, name) = ("a".into(), "pull".into());
    let place =
        SecretTarget { namespace, namespace_uid: Default::default(), name, ownership, selection: Selection::Selected };
    action(&place, Some(desired), Default::default(), None, now.into())
}

/// Somebody changes one of our fields: the API server takes it out of our entry. Or changes nothing.
fn edit(u: &mut Unstructured<'_>, mut found: ObjectMeta) -> Result<ObjectMeta> {
    let fields = found.managed_fields.as_mut().and_then(|entries| entries[0].fields_v1.as_mut()).expect("ours");
    let mut drop = |path: &str, key: &str| {
        let at = if path.is_empty() { Some(&mut fields.0) } else { fields.0.pointer_mut(path) };
        at.and_then(Value::as_object_mut).and_then(|map| map.remove(key)).is_some()
    };
    let pick = |u: &mut Unstructured<'_>, map: &Option<std::collections::BTreeMap<String, String>>| {
        let keys: Vec<String> = map.iter().flatten().map(|(key, _)| key.clone()).collect();
        Ok::<_, arbitrary::Error>(u.choose(&keys)?.clone())
    };
    match u.int_in_range(0..=5)? {
        0 => drop("", "f:data"),
        1 => drop("", "f:type"),
        2 => {
            let key = pick(u, &found.labels)?;
            let value = u.arbitrary::<bool>()?.then(|| u.arbitrary::<String>()).transpose()?;
            let labels = found.labels.get_or_insert_default();
            labels.remove(&key);
            labels.extend(value.map(|value| (key.clone(), value)));
            drop("/f:metadata/f:labels", &format!("f:{key}"))
        }
        3 => {
            let key = pick(u, &found.annotations)?;
            found.annotations.get_or_insert_default().insert(key.clone(), u.arbitrary()?);
            drop("/f:metadata/f:annotations", &format!("f:{key}"))
        }
        4 => {
            found.owner_references = None;
            drop("/f:metadata/f:ownerReferences", "k:{\"uid\":\"me\"}")
        }
        _ => false,
    };
    Ok(found)
}

/// An edit shows in the digest, and leads to a repair; a Secret that is not ours any more is left alone.
fn shows(edited: &ObjectMeta, before: &ObjectMeta, desired: &Desired, now: Timestamp) {
    let record = read(edited);
    let taken = edited.managed_fields != before.managed_fields;
    assert_eq!(record.digest != desired.digest, taken, "{edited:?}");
    match judge(edited, desired, now) {
        SecretAction::Update(_) => assert!(taken),
        SecretAction::Keep => assert!(!taken),
        // What cannot be read of it may be a login that the desired one lacks. One that has lost its mark is not taken over for
        // a content without logins.
        SecretAction::Wait => assert!(taken && (desired.incomplete || !desired.has_entries)),
        SecretAction::Refuse(..) => assert!(record.owner.is_none(), "{edited:?}"),
        other => panic!("{other:?} of {edited:?}"),
    }
}
