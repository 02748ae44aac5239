//! The verdict by tables: what was read, and what is said of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::facts::{Answers, AttachPolicy, Facts, LeaseState};
use super::judge::judge;
use super::report::{Report, State};
use super::rights::LeaseScope;
use super::{chosen, gather, rights, text};
use crate::api::EcrCredential;
use crate::api::observed::{ObservedCredential, Unreadable};
use crate::controller::cluster_state::ClusterState;
use crate::controller::watches::credential_ref;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::references::{AccountRecord, AllowedIdentities, References};
use crate::plan::scopes::{AccountScope, SecretKey, SecretScope};
use crate::plan::targets::SelectorIndex;
use crate::plan::{Identity, Limits, Uid, plan};
use crate::secret::observed::Details;
use crate::secret::ownership::SecretRecord;
use crate::secret::{self, CONTENT_HASH, EXPIRES_AT, HOSTS_HASH, Owner, REFRESHED_AT, docker_config};
use crate::token::TokenError;

const HOST: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";
const NOW: i64 = 100_000;
const EXPIRY: i64 = NOW + 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn credential(change: impl FnOnce(&mut Value)) -> EcrCredential {
    let mut object = json!({
        "apiVersion": "pullsecrets.dev/v1alpha1",
        "kind": "EcrCredential",
        "metadata": { "name": "x", "uid": "ux", "generation": 1, "creationTimestamp": at(2).to_string() },
        "spec": {
            "registries": [{ "private": { "accountIds": ["111122223333"] } }],
            "namespaces": { "names": ["a"] },
            "secret": { "name": "pull", "labels": { "team": "t" } },
        },
        "status": {
            "observedGeneration": 1,
            "expiresAt": at(EXPIRY).to_string(),
            "nextRefreshAt": at(NOW + 60).to_string(),
            "conditions": [ready("True", "Synced")],
            "registries": [{
                "region": "eu-west-1", "hosts": [HOST], "reason": "Synced",
                "issuedAt": at(NOW - 60).to_string(), "expiresAt": at(EXPIRY).to_string(),
            }],
        },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn ready(status: &str, reason: &str) -> Value {
    let message = format!("the operator says {reason}");
    json!({ "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": at(1).to_string() })
}

fn limits() -> Limits {
    Limits {
        region: Some(crate::api::registry::Region::parse("eu-west-1").unwrap()),
        secret_names: Some(BTreeSet::from(["pull".into()])),
        ..Limits::default()
    }
}

/// The metadata of the Secret as the operator writes it.
fn written(object: &EcrCredential) -> ObjectMeta {
    let hosts = docker_config::hash_of([HOST]);
    let said = [
        (EXPIRES_AT, at(EXPIRY).to_string()),
        (REFRESHED_AT, at(NOW - 60).to_string()),
        (CONTENT_HASH, "sha256:00".to_owned()),
        (HOSTS_HASH, format!("{hosts:016x}")),
    ];
    let found = ObjectMeta {
        annotations: Some(said.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ObjectMeta::default()
    };
    let owner = Owner { name: object.name_any(), uid: Uid(object.uid().unwrap().into()) };
    let plan = plan(&object.spec, &limits()).unwrap();
    let mut metadata = secret::as_found(&plan, &owner, &plan.secret, &Details::from(&found).metadata());
    metadata.uid = Some("s".to_owned());
    metadata.resource_version = Some("7".to_owned());
    let names = |map: &Option<std::collections::BTreeMap<String, String>>| -> Value {
        map.iter().flatten().map(|(key, _)| (format!("f:{key}"), json!({}))).collect::<serde_json::Map<_, _>>().into()
    };
    let fields = json!({
        "f:data": { "f:.dockerconfigjson": {} },
        "f:metadata": {
            "f:annotations": names(&metadata.annotations),
            "f:labels": names(&metadata.labels),
            "f:ownerReferences": { format!("k:{{\"uid\":\"{}\"}}", owner.uid): {} },
        },
        "f:type": {},
    });
    metadata.managed_fields = Some(vec![ManagedFieldsEntry {
        manager: Some("ecr-credential-operator".to_owned()),
        operation: Some("Apply".to_owned()),
        fields_v1: Some(FieldsV1(fields)),
        ..ManagedFieldsEntry::default()
    }]);
    metadata
}

fn fields(metadata: &mut ObjectMeta) -> &mut Value {
    &mut metadata.managed_fields.as_mut().unwrap()[0].fields_v1.as_mut().unwrap().0
}

fn annotate(metadata: &mut ObjectMeta, key: &str, value: &str) {
    metadata.annotations.as_mut().unwrap().insert(key.to_owned(), value.to_owned());
}

/// What was read of these EcrCredentials, in the namespaces a and b, and of a Secret in each of some.
fn facts(credentials: Vec<EcrCredential>, secrets: &[(&str, ObjectMeta)]) -> Facts {
    let mut state = ClusterState::new(SelectorIndex::default(), References::new(AllowedIdentities::default()));
    for name in ["a", "b"] {
        state.index.set_namespace(name, NamespaceUid::of(name, None), &Default::default(), false);
    }
    for object in &credentials {
        state.index.set_credential(&Uid(object.uid().unwrap().into()), credential_ref(object, &limits()));
    }
    let mut metadata = HashMap::new();
    for (namespace, found) in secrets {
        state.set_secret("pull", namespace, Arc::new(SecretRecord::read(found).unwrap()));
        metadata.insert(SecretKey::new("pull", *namespace), Details::from(found));
    }
    Facts {
        inside: true,
        assumed: false,
        limits: limits(),
        state,
        credentials: credentials.into_iter().filter(|object| object.name_any() == "x").collect(),
        unreadable: Vec::new(),
        metadata,
        refused: Vec::new(),
        rights: None,
        leases: Vec::new(),
        attach_policy: None,
        aws: None,
    }
}

/// What is said of the one namespace in which something is wrong.
fn failing(report: &Report) -> Option<(&str, State, &str, &str)> {
    let all = &report.credentials[0].namespaces;
    assert!(all.failing.len() <= 1, "{:?}", all.failing);
    let found = all.failing.first()?;
    Some((&found.namespace, found.state, &found.reason, &found.message))
}

fn reasons(report: &Report) -> Vec<&str> {
    report.credentials[0].problems.iter().map(|problem| problem.reason.as_str()).collect()
}

#[test]
fn a_secret_is_judged_by_its_metadata() {
    type Edit = fn(&mut ObjectMeta);
    type Expected = Option<(State, &'static str, &'static str)>;
    let table: [(&str, Edit, Expected); 11] = [
        ("as written", |_| {}, None),
        (
            "a webhook adds a label to our apply",
            |m| {
                m.labels.as_mut().unwrap().insert("mesh".to_owned(), "on".to_owned());
                fields(m)["f:metadata"]["f:labels"]["f:mesh"] = json!({});
            },
            None,
        ),
        (
            "expired",
            |m| annotate(m, EXPIRES_AT, &at(NOW).to_string()),
            Some((State::Expired, "Expired", "expired at 1970-01-02T03:46:40Z")),
        ),
        (
            "older than what is published",
            |m| annotate(m, EXPIRES_AT, &at(EXPIRY - 1).to_string()),
            Some((State::Stale, "Stale", "the published ones at 1970-01-02T04:46:40Z")),
        ),
        ("newer than what is published", |m| annotate(m, EXPIRES_AT, &at(EXPIRY + 1).to_string()), None),
        (
            "other hosts",
            |m| annotate(m, HOSTS_HASH, "00000000000000aa"),
            Some((State::Stale, "Stale", "its hosts differ")),
        ),
        (
            "the data taken over",
            |m| {
                fields(m).as_object_mut().unwrap().remove("f:data");
            },
            Some((State::Changed, "Changed", "data: the operator repairs this at once")),
        ),
        (
            "a label changed",
            |m| {
                fields(m)["f:metadata"]["f:labels"].as_object_mut().unwrap().remove("f:team");
            },
            Some((State::Changed, "Changed", "label team:")),
        ),
        (
            "a key added",
            |m| {
                let mut other = m.managed_fields.as_ref().unwrap()[0].clone();
                other.manager = Some("kubectl-edit".to_owned());
                other.fields_v1 = Some(FieldsV1(json!({ "f:data": { "f:more": {} } })));
                m.managed_fields.as_mut().unwrap().push(other);
            },
            Some((State::Changed, "Changed", "added the key more")),
        ),
        (
            "somebody else's",
            |m| {
                m.owner_references = None;
                m.managed_fields = None;
            },
            Some((State::Foreign, "SecretNotOwned", "set conflictPolicy: Adopt")),
        ),
        (
            "of an EcrCredential that is gone",
            |m| m.owner_references.as_mut().unwrap()[0].uid = "gone".to_owned(),
            Some((State::Foreign, "Foreign", "not been adopted yet")),
        ),
    ];
    for (what, edit, expected) in table {
        let object = credential(|_| {});
        let mut found = written(&object);
        edit(&mut found);
        let report = judge(&facts(vec![object], &[("a", found)]), at(NOW));
        let all = &report.credentials[0].namespaces;
        assert_eq!((all.selected, all.good), (1, Some(usize::from(expected.is_none()))), "{what}");
        match (failing(&report), expected) {
            (None, None) => assert_eq!(report.problem_count, 0, "{what}: {report:#?}"),
            (Some((namespace, state, reason, message)), Some((wanted, why, words))) => {
                assert_eq!((namespace, state, reason, report.problem_count), ("a", wanted, why, 1), "{what}");
                assert!(message.contains(words), "{what}: {message}");
            }
            (found, expected) => panic!("{what}: {found:?}, not {expected:?}"),
        }
    }
}

#[test]
fn the_hosts_of_a_registry_that_has_no_token_are_not_compared_with_those_of_a_secret() {
    let second = "222233334444.dkr.ecr.eu-west-1.amazonaws.com";
    for hosts in [json!(["*.dkr.ecr.eu-west-1.amazonaws.com"]), json!([HOST, second])] {
        let object = credential(|object| {
            object["status"]["expiresAt"] = Value::Null;
            object["status"]["registries"] =
                json!([{ "region": "eu-west-1", "hosts": hosts, "reason": "AccessDenied" }]);
        });
        let found = written(&object);
        assert_eq!(failing(&judge(&facts(vec![object], &[("a", found)]), at(NOW))), None, "{hosts}");
    }
}

#[test]
fn a_namespace_without_its_secret_says_why_as_far_as_the_operator_knows() {
    let report = judge(&facts(vec![credential(|_| {})], &[]), at(NOW));
    let (_, state, reason, message) = failing(&report).unwrap();
    assert_eq!((state, reason), (State::Missing, "Missing"));
    assert!(message.contains("the Secret pull does not exist"), "{message}");
    let told = credential(|object| {
        let failure = json!({ "namespace": "a", "reason": "QuotaExceeded", "message": "raise the quota" });
        object["status"]["failures"] = json!([failure]);
    });
    let report = judge(&facts(vec![told], &[]), at(NOW));
    assert_eq!(failing(&report), Some(("a", State::Missing, "QuotaExceeded", "raise the quota")));
}

#[test]
fn who_else_wants_or_has_a_secret_is_named() {
    let other = |created: i64| {
        credential(|object| {
            object["metadata"]["name"] = json!("older");
            object["metadata"]["uid"] = json!("uo");
            object["metadata"]["creationTimestamp"] = json!(at(created).to_string());
        })
    };
    let report = judge(&facts(vec![credential(|_| {}), other(1)], &[("a", written(&other(1)))]), at(NOW));
    let (_, state, reason, message) = failing(&report).unwrap();
    assert_eq!((state, reason), (State::AnotherCredential, "Conflict"));
    assert!(message.contains("EcrCredential older, which takes precedence"), "{message}");
    // The other is younger, so that this one is to take its Secret over.
    let report = judge(&facts(vec![credential(|_| {}), other(3)], &[("a", written(&other(3)))]), at(NOW));
    assert_eq!(failing(&report).map(|found| found.1), Some(State::AnotherCredential));
    // A Secret where none is wanted any more.
    let object = credential(|_| {});
    let secrets = [("a", written(&object)), ("b", written(&object))];
    let report = judge(&facts(vec![object], &secrets), at(NOW));
    assert_eq!(failing(&report).map(|found| (found.0, found.1)), Some(("b", State::Leftover)));
    assert_eq!((report.credentials[0].namespaces.selected, report.credentials[0].namespaces.good), (1, Some(1)));
}

#[test]
fn a_secret_in_a_deselected_namespace_says_what_keeps_it() {
    let object = credential(|_| {});
    let left = |change: fn(&mut ObjectMeta)| {
        let mut found = written(&object);
        change(&mut found);
        let secrets = [("a", written(&object)), ("b", found)];
        let report = judge(&facts(vec![object.clone()], &secrets), at(NOW));
        failing(&report).map(|(namespace, state, _, message)| (namespace.to_owned(), state, message.to_owned()))
    };
    let (namespace, state, message) = left(|_| {}).unwrap();
    assert_eq!((namespace.as_str(), state), ("b", State::Leftover));
    assert!(message.contains("has not yet deleted"), "{message}");
    let (namespace, state, message) = left(|found| {
        found.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
        found.finalizers = Some(vec!["example.com/keep".to_owned()]);
    })
    .unwrap();
    assert_eq!((namespace.as_str(), state), ("b", State::Leftover));
    assert!(message.contains("example.com/keep") && message.contains("remove the finalizer"), "{message}");
    // A copy that names us as its owner belongs to whoever made it: the operator neither repairs nor deletes it.
    let copied = |found: &mut ObjectMeta| {
        found.managed_fields.as_mut().unwrap()[0].manager = Some("kubectl-create".to_owned());
    };
    assert_eq!(left(copied), None);
}

#[test]
fn where_secrets_may_not_be_listed_nothing_is_called_missing() {
    let mut facts = facts(vec![credential(|_| {})], &[]);
    facts.refused = vec![(SecretScope { name: Some("pull".into()), namespace: None }, "forbidden".to_owned())];
    let report = judge(&facts, at(NOW));
    assert_eq!(failing(&report).map(|found| (found.1, found.2)), Some((State::Unknown, "Forbidden")));
    assert_eq!(report.problems.len(), 1);
    facts.refused = vec![(SecretScope { name: Some("pull".into()), namespace: Some("b".into()) }, String::new())];
    assert_eq!(failing(&judge(&facts, at(NOW))).map(|found| found.1), Some(State::Missing));
}

#[test]
fn what_the_status_tells_is_judged_by_the_time() {
    type Edit = fn(&mut Value);
    let table: [(&str, Edit, i64, &[&str]); 10] = [
        ("all is well", |_| {}, NOW, &[]),
        (
            "another installation serves it as well",
            |o| {
                let mut contested = ready("True", "Contested");
                contested["type"] = json!("Contested");
                o["status"]["conditions"].as_array_mut().unwrap().push(contested);
            },
            NOW,
            &["Contested"],
        ),
        ("no status", |o| o["status"] = json!({}), NOW, &["NotObserved"]),
        ("an older generation", |o| o["metadata"]["generation"] = json!(2), NOW, &["NotObserved"]),
        (
            "not ready for no other reason",
            |o| o["status"]["conditions"] = json!([ready("False", "FetchingToken")]),
            NOW,
            &["FetchingToken"],
        ),
        (
            "the last fetch failed",
            |o| {
                o["status"]["registries"][0]["reason"] = json!("AccessDenied");
                o["status"]["conditions"] = json!([ready("False", "AccessDenied")]);
            },
            NOW,
            &["AccessDenied"],
        ),
        ("a refresh is late by less than ten minutes", |_| {}, NOW + 60 + 600, &[]),
        ("a refresh is overdue", |_| {}, NOW + 60 + 601, &["RefreshOverdue"]),
        ("suspended", |o| o["spec"]["suspend"] = json!(true), EXPIRY, &[]),
        (
            "a name that is not allowed",
            |o| o["spec"]["secret"]["name"] = json!("other"),
            NOW,
            &["SecretNameNotAllowed"],
        ),
    ];
    for (what, edit, now, expected) in table {
        let plain = credential(|_| {});
        let report = judge(&facts(vec![credential(edit)], &[("a", written(&plain))]), at(now));
        assert_eq!(reasons(&report), expected, "{what}");
    }
    let object = credential(|_| {});
    let found = written(&object);
    let report = judge(&facts(vec![object], &[("a", found)]), at(EXPIRY));
    assert_eq!(reasons(&report), ["TokenExpired"]);
    assert_eq!(failing(&report).map(|found| found.1), Some(State::Expired));
}

/// A report on an identity, of the operator or of a ServiceAccount, about which AWS gave this answer.
fn asked(inside: bool, account: bool, error: &TokenError) -> Report {
    let role = "arn:aws:iam::111122223333:role/pull";
    let object = credential(|object| {
        if account {
            object["spec"]["auth"] = json!({ "serviceAccount": { "namespace": "a", "name": "puller" } });
        }
    });
    let found = written(&credential(|_| {}));
    let mut facts = facts(vec![object], &[("a", found)]);
    let scope = AccountScope { namespace: Some("a".into()), name: "puller".into() };
    facts.limits.identities.accounts.insert(scope);
    facts.state.references = References::new(facts.limits.identities.clone());
    let record =
        AccountRecord { uid: "sa".into(), created: Timestamp::UNIX_EPOCH, role: Some(role.to_owned()), audience: None };
    facts.state.references.set_account("a", "puller", Some(record));
    facts.inside = inside;
    let tokens = facts.wanted().into_iter().map(|key| (key, Err(error.clone()))).collect();
    facts.aws = Some(Answers { tokens, ..Answers::default() });
    judge(&facts, at(NOW))
}

#[test]
fn an_error_of_aws_is_a_problem_where_the_operator_would_meet_it_too() {
    let denied = TokenError::Denied("AccessDenied from ECR: allow it".to_owned().into());
    let forbidden = TokenError::Forbidden("create serviceaccounts/token".to_owned());
    let unavailable = TokenError::Unavailable("no route to the VPC endpoint".to_owned());
    let unreachable = TokenError::Cluster("it timed out".to_owned());
    for (inside, account, error, is_problem) in [
        (true, false, &denied, true),
        (false, false, &denied, false),
        (false, true, &denied, true),
        (true, true, &forbidden, true),
        (false, true, &forbidden, false),
        (true, true, &unavailable, true),
        (false, true, &unavailable, false),
        (true, true, &unreachable, true),
        (false, true, &unreachable, false),
    ] {
        let report = asked(inside, account, error);
        let identity = &report.identities[0];
        let (problems, notes) = (usize::from(is_problem), usize::from(!is_problem));
        assert_eq!((identity.problems.len(), identity.notes.len()), (problems, notes), "{inside} {account} {error}");
        assert_eq!(report.problem_count, problems);
        assert_eq!(identity.service_account.is_some(), account);
        assert_eq!(identity.roles.len(), usize::from(account));
        assert_eq!(identity.used_by, ["x"]);
        assert!(identity.tokens[0].expires_at.is_none());
        assert_eq!(identity.tokens[0].reason, Some(error.reason().as_str()));
        // Nobody has denied a call that did not reach AWS.
        let shown = text::render(&report);
        let line = match error {
            TokenError::Denied(_) => "  denied      ecr in eu-west-1\n".to_owned(),
            _ => format!("  failed      ecr in eu-west-1: {}\n", error.reason().as_str()),
        };
        assert!(shown.contains(&line), "{shown}");
    }
}

#[test]
fn a_refresh_that_aws_denies_does_not_mean_that_the_operator_stands_still() {
    let object = credential(|object| object["status"]["registries"][0]["reason"] = json!("AccessDenied"));
    let mut facts = facts(vec![object], &[("a", written(&credential(|_| {})))]);
    let denied = TokenError::Denied("AccessDenied from ECR: allow it".to_owned().into());
    let tokens = facts.wanted().into_iter().map(|key| (key, Err(denied.clone()))).collect();
    facts.aws = Some(Answers { tokens, ..Answers::default() });
    let report = judge(&facts, at(NOW + 60 + 601));
    assert_eq!(reasons(&report), [""; 0]);
    assert_eq!(report.identities[0].problems.len(), 1, "it is told there");
}

#[test]
fn an_identity_of_each_namespace_fails_there_and_counts_once() {
    let object = credential(|object| {
        object["spec"]["auth"] = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    });
    let mut facts = facts(vec![object], &[]);
    facts.limits.identities.accounts.insert(AccountScope { namespace: None, name: "puller".into() });
    facts.state.references = References::new(facts.limits.identities.clone());
    let report = judge(&facts, at(NOW));
    let (namespace, state, reason, message) = failing(&report).unwrap();
    assert_eq!((namespace, state, reason), ("a", State::Missing, "IdentityNotFound"));
    assert!(message.contains("ServiceAccount a/puller does not exist"), "{message}");
    let role = Some("arn:aws:iam::111122223333:role/pull".to_owned());
    facts.state.references.set_account(
        "a",
        "puller",
        Some(AccountRecord { uid: "sa".into(), created: Timestamp::UNIX_EPOCH, role, audience: None }),
    );
    let denied = TokenError::Denied("correct the trust policy".to_owned().into());
    let tokens = facts.wanted().into_iter().map(|key| (key, Err(denied.clone()))).collect();
    facts.aws = Some(Answers { tokens, ..Answers::default() });
    let report = judge(&facts, at(NOW));
    assert_eq!(failing(&report).map(|found| (found.1, found.2)), Some((State::Missing, "AccessDenied")));
    assert_eq!(report.problem_count, 1, "{report:#?}");
}

#[test]
fn an_identity_of_each_namespace_does_not_fail_for_an_output_of_a_shared_host() {
    let object = credential(|object| {
        let auth = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
        let private = json!({ "private": { "accountIds": ["222222222222"] }, "auth": auth });
        object["spec"]["registries"].as_array_mut().unwrap().push(private);
        object["spec"]["outputs"] = json!([{ "name": "out", "format": "ArgoCDOCI", "host": HOST }]);
    });
    let mut facts = facts(vec![object], &[]);
    facts.limits.identities.accounts.insert(AccountScope { namespace: None, name: "puller".into() });
    facts.state.references = References::new(facts.limits.identities.clone());
    let report = judge(&facts, at(NOW));
    let failing = &report.credentials[0].namespaces.failing;
    let found: Vec<_> = failing.iter().map(|found| (&*found.secret, &*found.reason)).collect();
    assert_eq!(found, [("out", "Missing"), ("pull", "IdentityNotFound")]);
    let shown = text::render(&report);
    assert!(shown.contains("PROBLEM   a/out  Missing: "), "an output is named: {shown}");
    assert!(shown.contains("PROBLEM   a      Missing: IdentityNotFound: "), "{shown}");
}

#[test]
fn text_shows_twenty_namespaces_and_json_all() {
    let names: Vec<String> = (0..25).map(|n| format!("n{n:02}")).collect();
    let object = credential(|object| object["spec"]["namespaces"]["names"] = json!(names));
    let mut facts = facts(vec![object.clone()], &[]);
    for name in &names {
        facts.state.index.set_namespace(name, NamespaceUid::of(name, None), &Default::default(), false);
    }
    let report = judge(&facts, at(NOW));
    let shown = text::render(&report);
    assert_eq!(shown.matches("Missing:").count(), 20, "{shown}");
    assert!(shown.contains("and 5 more: see --output json") && shown.ends_with("25 problems found.\n"), "{shown}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["credentials"][0]["namespaces"]["failing"].as_array().unwrap().len(), 25);
    assert_eq!(json["problemCount"], 25);
}

#[test]
fn the_text_tells_who_what_and_until_when() {
    let object = credential(|_| {});
    let found = written(&object);
    let mut facts = facts(vec![object], &[("a", found)]);
    let key = facts.wanted().into_iter().next().unwrap();
    let caller = Ok("arn:aws:sts::111122223333:assumed-role/pull/x".to_owned());
    facts.aws = Some(Answers {
        origin: Some("web_identity"),
        callers: [(Identity::operator(), caller)].into(),
        tokens: [(key, Ok(at(NOW + 12 * 3600)))].into(),
    });
    facts.rights = Some(vec![]);
    let expected = "\
EcrCredential x
  ready       Synced
  registry    ecr in eu-west-1
    host      111122223333.dkr.ecr.eu-west-1.amazonaws.com
    identity  the operator's own identity
    token     issued 1970-01-02T03:45:40Z, expires 1970-01-02T04:46:40Z (in 1h 0m)
  namespaces  1 of 1 have a valid Secret pull, the first expires 1970-01-02T04:46:40Z (in 1h 0m)

Identity: the operator's own identity
  found in    web_identity
  caller      arn:aws:sts::111122223333:assumed-role/pull/x
  allowed     ecr in eu-west-1: a token until 1970-01-02T15:46:40Z (in 12h 0m)
  used by     x

Installation
  permissions 0 of 0 that the operator needs in the cluster

No problem found.
";
    assert_eq!(text::render(&judge(&facts, at(NOW))), expected);
}

#[test]
fn elsewhere_the_operators_region_is_that_of_its_statuses() {
    let stale = credential(|object| object["metadata"]["generation"] = json!(2));
    let named = credential(|object| object["spec"]["registries"][0]["private"]["region"] = json!("eu-west-2"));
    let public = credential(|object| object["spec"]["registries"] = json!([{ "public": {} }]));
    assert_eq!(gather::region_as_told(&[stale, named, public.clone()]), None);
    let region = gather::region_as_told(&[public, credential(|_| {})]);
    assert_eq!(region.map(|region| region.to_string()).as_deref(), Some("eu-west-1"));
    // Where nothing tells it, that is no problem of the operator's.
    for (inside, problems) in [(true, vec!["NoRegion"]), (false, vec![])] {
        let object = credential(|_| {});
        let found = written(&object);
        let mut facts = facts(vec![object], &[("a", found)]);
        facts.limits.region = None;
        facts.inside = inside;
        let report = judge(&facts, at(NOW));
        assert_eq!(reasons(&report), problems);
        assert_eq!(report.credentials[0].notes.len(), usize::from(!inside));
    }
}

/// A report on a namespace that has the operator's login, and should have one of its own too.
fn with_own_login(change: impl FnOnce(&mut Value), hosts: &[&str]) -> Report {
    let own = "222222222222.dkr.ecr.eu-west-1.amazonaws.com";
    let object = credential(|object| {
        let auth = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
        let private = json!({ "private": { "accountIds": ["222222222222"] }, "auth": auth });
        object["spec"]["registries"].as_array_mut().unwrap().push(private);
        let told = json!({ "region": "eu-west-1", "hosts": [own], "reason": "Synced" });
        object["status"]["registries"].as_array_mut().unwrap().push(told);
        change(object);
    });
    let mut found = written(&object);
    annotate(&mut found, HOSTS_HASH, &format!("{:016x}", docker_config::hash_of(hosts.iter().copied())));
    let mut facts = facts(vec![object], &[("a", found)]);
    facts.limits.identities.accounts.insert(AccountScope { namespace: None, name: "puller".into() });
    facts.state.references = References::new(facts.limits.identities.clone());
    let role = Some("arn:aws:iam::222222222222:role/pull".to_owned());
    let record = AccountRecord { uid: "sa".into(), created: Timestamp::UNIX_EPOCH, role, audience: None };
    facts.state.references.set_account("a", "puller", Some(record));
    judge(&facts, at(NOW))
}

#[test]
fn a_secret_that_lacks_its_namespaces_own_login_is_not_good() {
    let both = [HOST, "222222222222.dkr.ecr.eu-west-1.amazonaws.com"];
    assert_eq!(failing(&with_own_login(|_| {}, &both)), None);
    let report = with_own_login(|_| {}, &both[..1]);
    assert_eq!(failing(&report).map(|found| (found.1, found.2)), Some((State::Stale, "Stale")));
    // Hosts that the password alone tells of do not show, but the operator says it.
    let callers = |object: &mut Value| object["spec"]["registries"][1]["private"] = json!({});
    assert_eq!(failing(&with_own_login(callers, &both[..1])), None);
    let told = |object: &mut Value| {
        callers(object);
        let failure = json!({ "namespace": "a", "reason": "AccessDenied", "message": "correct the trust policy" });
        object["status"]["failures"] = json!([failure]);
    };
    let report = with_own_login(told, &both[..1]);
    assert_eq!(failing(&report), Some(("a", State::NotRenewable, "AccessDenied", "correct the trust policy")));
    assert_eq!(report.problem_count, 1);
}

#[test]
fn the_rights_follow_what_the_operator_may_do() {
    let scope = SecretScope { name: Some("pull".into()), namespace: None };
    let mut limits = limits();
    let texts = |limits: &Limits| -> Vec<String> {
        rights::needed(std::slice::from_ref(&scope), limits, None).iter().map(ToString::to_string).collect()
    };
    let few = texts(&limits);
    let lease = LeaseScope { name: "leader".into(), namespace: "ops".into() };
    let with_lease: Vec<String> =
        rights::needed(std::slice::from_ref(&scope), &limits, Some(&lease)).iter().map(ToString::to_string).collect();
    let added: Vec<&String> = with_lease.iter().filter(|right| !few.contains(right)).collect();
    let leases = "leases.coordination.k8s.io";
    let named = |verb: &str| format!("{verb} {leases} named leader in namespace ops");
    assert_eq!(added, [&format!("create {leases} in namespace ops"), &named("get"), &named("update")]);
    assert!(few.contains(&"patch secrets named pull in all namespaces".to_owned()), "{few:#?}");
    assert!(few.contains(&"patch ecrcredentials/status.pullsecrets.dev".to_owned()), "{few:#?}");
    limits.identities.accounts.insert(AccountScope { namespace: Some("a".into()), name: "puller".into() });
    let more = texts(&limits);
    assert_eq!(more.len(), few.len() + 4);
    assert!(!few.contains(&"get namespaces".to_owned()) && more.contains(&"get namespaces".to_owned()), "{more:#?}");
    assert!(more.contains(&"create serviceaccounts/token named puller in namespace a".to_owned()), "{more:#?}");
    limits.includes.insert(SecretKey { namespace: "ops".into(), name: "hub".into() });
    let all = rights::needed(&[SecretScope { name: Some("out".into()), namespace: Some("b".into()) }], &limits, None);
    let by = |text: &str| all.iter().find(|right| right.to_string() == text).map(|right| right.chart_value);
    assert_eq!(by("patch secrets named out in namespace b"), Some("outputs"));
    assert_eq!(by("get secrets named hub in namespace ops"), Some("include.secrets"));
}

#[test]
fn attaching_and_events_need_rights_where_the_operator_may_write() {
    let texts = |rights: Vec<rights::Right>| rights.iter().map(ToString::to_string).collect::<Vec<_>>();
    let attaching = |limits: &Limits| {
        let all = rights::needed(&[], limits, None).into_iter();
        texts(all.filter(|right| right.chart_value == "attach.serviceAccounts").collect())
    };
    let everywhere = Limits { attach_service_accounts: BTreeSet::from(["default".into()]), ..limits() };
    let expected =
        ["list", "watch", "patch"].map(|verb| format!("{verb} serviceaccounts named default in all namespaces"));
    assert_eq!(attaching(&everywhere), expected);
    let some = Limits { namespaces: Some(BTreeSet::from(["a".into(), "b".into()])), ..everywhere.clone() };
    assert_eq!(attaching(&some).len(), 6);
    assert!(attaching(&limits()).is_empty());
    assert_eq!(texts(rights::for_namespace_events(&everywhere))[0], "create events.events.k8s.io in all namespaces");
    assert_eq!(texts(rights::for_namespace_events(&some)).len(), 4);
}

#[test]
fn what_the_selection_does_not_reach_is_said() {
    let object = |names: Value| credential(|object| object["spec"]["namespaces"]["names"] = names);
    let stored = written(&credential(|_| {}));
    let report = judge(&facts(vec![object(json!(["a", "typo"]))], &[("a", stored.clone())]), at(NOW));
    assert_eq!(reasons(&report), [""; 0]);
    let note = &report.credentials[0].notes[0];
    assert_eq!((note.reason.as_str(), note.message.as_str()), ("NamespacesNotFound", "there is no namespace typo"));
    let mut facts = facts(vec![object(json!(["a", "b"]))], &[("a", stored)]);
    let mut state = ClusterState::new(SelectorIndex::new(Some(["a".into()].into())), References::default());
    for name in ["a", "b"] {
        state.index.set_namespace(name, NamespaceUid::of(name, None), &Default::default(), false);
    }
    state.index.set_credential(&Uid("ux".into()), credential_ref(&facts.credentials[0], &limits()));
    facts.state = state;
    let report = judge(&facts, at(NOW));
    assert!(reasons(&report).contains(&"NamespaceNotAllowed"), "{:?}", report.credentials[0].problems);
}

#[test]
fn whether_the_secret_is_attached_is_said() {
    let policy = |kind: &str, spec: Value| {
        let object = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": "p" }, "spec": spec });
        serde_json::from_value(object).unwrap()
    };
    let ours = || {
        policy(
            "MutatingAdmissionPolicy",
            json!({ "paramKind": { "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential" } }),
        )
    };
    let others =
        || policy("MutatingAdmissionPolicy", json!({ "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" } }));
    let binding = |name: &str| policy("MutatingAdmissionPolicyBinding", json!({ "policyName": name }));
    assert_eq!(gather::attach_policy(&[others()], &[binding("p")]), AttachPolicy::Absent);
    assert_eq!(gather::attach_policy(&[others(), ours()], &[binding("q")]), AttachPolicy::Unbound("p".to_owned()));
    assert_eq!(gather::attach_policy(&[ours(), others()], &[binding("p")]), AttachPolicy::Installed);

    let told = |reason: Option<&str>| {
        credential(|object| {
            object["spec"]["attachTo"] = json!({ "pods": "MatchingImages" });
            if let Some(reason) = reason {
                let mut condition = ready("False", reason);
                condition["type"] = json!("Attached");
                object["status"]["conditions"].as_array_mut().unwrap().push(condition);
            }
        })
    };
    let hidden = AttachPolicy::Hidden("forbidden".to_owned());
    let table: [(Option<&str>, AttachPolicy, &[&str], &str); 7] = [
        (None, AttachPolicy::Installed, &[], ""),
        (None, hidden.clone(), &[], ""),
        (None, AttachPolicy::Unserved, &["AttachPolicyMissing"], "Kubernetes 1.36"),
        (None, AttachPolicy::Absent, &["AttachPolicyMissing"], "attach.pods.enabled"),
        (Some("AttachPolicyMissing"), AttachPolicy::Unbound("p".to_owned()), &["AttachPolicyMissing"], "policy p"),
        (Some("AttachPolicyMissing"), AttachPolicy::Installed, &["AttachPolicyMissing"], "ECO_ATTACH_PODS"),
        (Some("AttachFailed"), hidden, &["AttachFailed"], "the operator says AttachFailed"),
    ];
    for (reason, policy, expected, words) in table {
        let object = told(reason);
        let found = written(&object);
        let is_hidden = matches!(policy, AttachPolicy::Hidden(_));
        let facts = Facts { attach_policy: Some(policy), ..facts(vec![object], &[("a", found)]) };
        let report = judge(&facts, at(NOW));
        assert_eq!(reasons(&report), expected, "{words}");
        let problems = &report.credentials[0].problems;
        assert!(
            problems.iter().all(|problem| problem.message.to_lowercase().contains(&words.to_lowercase())),
            "{problems:?}"
        );
        assert_eq!(report.credentials[0].notes.len(), usize::from(is_hidden), "{words}");
    }
}

#[test]
fn an_output_that_is_missing_or_refused_and_an_include_that_is_not_current_are_problems() {
    let with = |change: &dyn Fn(&mut Value)| {
        credential(|object| {
            object["spec"]["outputs"] = json!([{ "name": "out", "format": "BasicAuth", "host": HOST }]);
            change(object);
        })
    };
    let include = |object: &mut Value, condition: Option<(&str, &str)>| {
        object["spec"]["outputs"] = json!([]);
        object["spec"]["include"] = json!([{ "secretRef": { "namespace": "ops", "name": "hub" } }]);
        let reconciling = condition.map(|(status, reason)| {
            let mut condition = ready(status, reason);
            condition["type"] = json!("Reconciling");
            condition
        });
        object["status"]["conditions"].as_array_mut().unwrap().extend(reconciling);
    };
    let told = json!([{ "namespace": "a", "secret": "out", "reason": "QuotaExceeded", "message": "raise the quota" }]);
    let hub = SecretKey { namespace: "ops".into(), name: "hub".into() };
    let may_read = Limits { includes: BTreeSet::from([hub]), ..limits() };
    let no_outputs = Limits { outputs: Some(BTreeSet::new()), ..limits() };
    type Lacks<'a> = Option<(&'a str, State, &'a str, &'a str)>;
    let table: [(&str, EcrCredential, Limits, &[&str], Lacks); 8] = [
        (
            "it was not written",
            with(&|_| {}),
            limits(),
            &[],
            Some(("a", State::Missing, "Missing", "the Secret out does not exist yet")),
        ),
        (
            "the operator says why",
            with(&|object| object["status"]["failures"] = told.clone()),
            limits(),
            &[],
            Some(("a", State::Missing, "QuotaExceeded", "raise the quota")),
        ),
        ("it is not allowed", with(&|_| {}), no_outputs, &["OutputNotAllowed"], None),
        ("the include is not allowed", with(&|object| include(object, None)), limits(), &["IncludeNotAllowed"], None),
        (
            "the include is current",
            with(&|object| include(object, Some(("False", "Synced")))),
            may_read.clone(),
            &[],
            None,
        ),
        (
            "the include is not",
            with(&|object| include(object, Some(("True", "IncludeFailed")))),
            may_read.clone(),
            &["IncludeFailed"],
            None,
        ),
        (
            "the include may not be read",
            with(&|object| include(object, Some(("True", "Forbidden")))),
            may_read.clone(),
            &["Forbidden"],
            None,
        ),
        ("the include was not", with(&|object| include(object, Some(("False", "IncludeFailed")))), may_read, &[], None),
    ];
    for (what, object, limits, problems, lacks) in table {
        let found = written(&object);
        let mut facts = Facts { limits: limits.clone(), ..facts(vec![object], &[("a", found)]) };
        facts.state.index.set_credential(&Uid("ux".into()), credential_ref(&facts.credentials[0], &limits));
        let report = judge(&facts, at(NOW));
        assert_eq!(reasons(&report), problems, "{what}: {:?}", report.credentials[0].problems);
        match (failing(&report), lacks) {
            (Some((namespace, state, reason, message)), Some((a, b, c, words))) => {
                assert_eq!((namespace, state, reason), (a, b, c), "{what}");
                assert!(message.contains(words), "{what}: {message}");
            }
            (found, lacks) => assert_eq!(found, lacks, "{what}"),
        }
    }
}

#[test]
fn a_lease_that_nobody_holds_or_renews_is_told_with_what_to_do() {
    let held = |expired: i64| LeaseState::Held { holder: "eco-1".to_owned(), expires_at: Some(at(NOW - expired)) };
    let odd = LeaseState::Held { holder: "eco-1".to_owned(), expires_at: None };
    let table = [
        ("held", true, held(-10), "", ""),
        ("not renewed for a moment, or by a clock that is behind", true, held(299), "", ""),
        (
            "not renewed for long",
            true,
            held(301),
            "eco-1 holds the Lease eco in namespace ops but has let it expire at",
            "",
        ),
        ("held, and the time cannot be read", true, odd, "", ""),
        ("given back a moment ago, as for an update", true, LeaseState::Free(Some(at(NOW - 299))), "", ""),
        ("given back", true, LeaseState::Free(Some(at(NOW - 301))), "nobody has held the Lease eco", ""),
        ("never held", false, LeaseState::Free(None), "", "NoLease"),
        ("not there", true, LeaseState::Absent, "", "NoLease"),
        ("not there, seen from elsewhere", false, LeaseState::Absent, "", "NoLease"),
        ("hidden", false, LeaseState::Hidden("leases is forbidden".to_owned()), "", "LeaseNotRead"),
    ];
    for (what, inside, state, problem, note) in table {
        let object = credential(|_| {});
        let found = written(&object);
        let scope = LeaseScope { namespace: "ops".into(), name: "eco".into() };
        let facts = Facts { inside, leases: vec![(scope, state)], ..facts(vec![object], &[("a", found)]) };
        let report = judge(&facts, at(NOW));
        let problems: Vec<&str> = report.problems.iter().map(|found| found.message.as_str()).collect();
        assert_eq!(
            (problems.len(), report.problem_count),
            (usize::from(!problem.is_empty()), problems.len()),
            "{what}"
        );
        assert!(problems.iter().all(|message| message.starts_with(problem)), "{what}: {problems:?}");
        let advice = "check its pods and their log: `kubectl get pods --namespace ops`";
        assert!(problems.iter().all(|message| message.ends_with(advice)), "{what}: {problems:?}");
        let notes: Vec<&str> = report.notes.iter().map(|note| note.reason.as_str()).collect();
        assert_eq!(notes.contains(&note), !note.is_empty(), "{what}: {notes:?}");
    }
}

#[test]
fn a_lease_that_ended_long_before_the_last_refresh_is_no_problem() {
    let table = [
        ("ops/eco", NOW - 1000, LeaseState::Free(Some(at(NOW - 2000))), "", "NoLease"),
        ("ops/eco", NOW - 1701, LeaseState::Free(Some(at(NOW - 2000))), "NoLeader", ""),
        ("ops/other", NOW - 1000, LeaseState::Free(Some(at(NOW - 2000))), "NoLeader", ""),
    ];
    for (served_by, refreshed, state, problem, note) in table {
        let object = credential(|object| {
            object["status"]["servedBy"] = json!(served_by);
            object["status"]["refreshedAt"] = json!(at(refreshed).to_string());
        });
        let found = written(&object);
        let scope = LeaseScope { namespace: "ops".into(), name: "eco".into() };
        let facts = Facts { leases: vec![(scope, state)], ..facts(vec![object], &[("a", found)]) };
        let report = judge(&facts, at(NOW));
        let [problems, notes] = [&report.problems, &report.notes].map(|all| {
            let reasons = all.iter().map(|found| found.reason.as_str());
            reasons.filter(|reason| reason.starts_with("NoLea")).collect::<Vec<_>>().concat()
        });
        assert_eq!((&*problems, &*notes), (problem, note), "{served_by} {refreshed}");
    }
}

#[tokio::test]
async fn a_lease_that_cannot_be_read_ends_no_report() {
    let refusal =
        |code: u16| json!({ "kind": "Status", "status": "Failure", "reason": "x", "message": "no", "code": code });
    let hidden = LeaseState::Hidden("no".to_owned());
    let time = "1970-01-02T03:46:40.000000Z";
    let lease = |holder: &str| {
        let spec = json!({ "holderIdentity": holder, "renewTime": time, "leaseDurationSeconds": 15 });
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}, "spec": spec })
    };
    let held = LeaseState::Held { holder: "eco-1".to_owned(), expires_at: Some(at(NOW + 15)) };
    for (code, answer, state) in [
        (403, refusal(403), hidden.clone()),
        (500, refusal(500), hidden),
        (200, lease(""), LeaseState::Free(Some(at(NOW)))),
        (200, lease("eco-1"), held),
    ] {
        let body = answer.to_string().into_bytes();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let body = Body::from(body.clone());
            async move { Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap()) }
        });
        let cluster = gather::Cluster { client: Client::new(service, "default") };
        let scope = LeaseScope { namespace: "ops".into(), name: "eco".into() };
        assert_eq!(cluster.lease(&scope).await, state, "{answer}");
    }
}

#[test]
fn the_leases_are_those_that_statuses_name_and_no_other_words() {
    let served_by = |name: &str| credential(|object| object["status"]["servedBy"] = json!(name));
    let names = ["ops/eco", "ops/eco.two", "ops/eco", "", "ops", "../eco", "ops/../../secrets", "OPS/eco", "a/b/c"];
    let told: Vec<String> =
        gather::leases_as_told(&names.map(served_by)).iter().map(|s| format!("{}/{}", s.namespace, s.name)).collect();
    assert_eq!(told, ["ops/eco", "ops/eco.two"]);
    let many: Vec<EcrCredential> = (0..100).map(|number| served_by(&format!("ops/eco-{number}"))).collect();
    assert_eq!(gather::leases_as_told(&many).len(), 10);
}

#[test]
fn an_include_that_is_not_current_is_told_with_the_time_after_which_it_is_left_out() {
    let object = credential(|object| {
        object["spec"]["include"] = json!([{ "secretRef": { "namespace": "ops", "name": "hub" } }]);
        let mut reconciling = ready("True", "IncludeFailed");
        reconciling["type"] = json!("Reconciling");
        object["status"]["conditions"].as_array_mut().unwrap().push(reconciling);
    });
    let includes = BTreeSet::from([SecretKey { namespace: "ops".into(), name: "hub".into() }]);
    let found = written(&object);
    let report =
        judge(&Facts { limits: Limits { includes, ..limits() }, ..facts(vec![object], &[("a", found)]) }, at(NOW));
    let [problem] = &report.credentials[0].problems[..] else { panic!("{report:#?}") };
    assert!(problem.message.contains("until 10 minutes before their first token expires"), "{}", problem.message);
}

#[test]
fn one_that_is_suspended_or_stalled_is_called_so_and_nothing_is_overdue() {
    let bad = |object: &mut Value| object["spec"]["secret"]["name"] = json!("other");
    let report = |object: EcrCredential| judge(&facts(vec![object], &[]), at(NOW + 100_000));
    for invalid in [false, true] {
        let report = report(credential(|object| {
            object["spec"]["suspend"] = json!(true);
            if invalid {
                bad(object);
            }
        }));
        let [notes, problems] = [&report.credentials[0].notes, &report.credentials[0].problems];
        assert_eq!((notes[0].reason.as_str(), notes.len(), problems.len()), ("Suspended", 1 + usize::from(invalid), 0));
        assert_eq!(report.problem_count, 0, "{report:#?}");
    }
    for change in [&(|object: &mut Value| object["spec"]["suspend"] = json!(true)) as &dyn Fn(&mut Value), &bad] {
        let object = credential(change);
        let found = written(&credential(|_| {}));
        let report = judge(&facts(vec![object], &[("a", found)]), at(NOW));
        let shown = text::render(&report);
        assert!(shown.contains("namespaces  1 selected, not checked") && !shown.contains("valid Secret"), "{shown}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["credentials"][0]["namespaces"], json!({ "selected": 1, "failing": [] }));
    }
    let stalled = report(credential(bad));
    let [problem] = &stalled.credentials[0].problems[..] else { panic!("{stalled:#?}") };
    assert_eq!(problem.reason, "SecretNameNotAllowed");
    assert!(problem.message.ends_with("it is stalled: nothing is refreshed until this is changed"), "{problem:?}");
    // For a reason that shows nowhere else.
    let told = report(credential(|object| {
        let mut condition = ready("True", "InvalidSpec");
        condition["type"] = json!("Stalled");
        object["spec"]["namespaces"] = json!({ "names": [] });
        object["status"]["conditions"] = json!([ready("False", "InvalidSpec"), condition]);
        object["status"]["registries"] = json!([]);
        object["status"].as_object_mut().unwrap().remove("nextRefreshAt");
    }));
    let [problem] = &told.credentials[0].problems[..] else { panic!("{told:#?}") };
    assert!(problem.reason == "InvalidSpec" && problem.message.contains("it is stalled"), "{problem:?}");
}

/// Why the list of EcrCredentials of an API server at this address fails.
async fn unreachable(address: std::net::SocketAddr) -> String {
    let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
    config.read_timeout = Some(std::time::Duration::from_millis(200));
    config.proxy_url = None;
    let client = kube::client::ClientBuilder::try_from(config).unwrap().build();
    gather::Cluster { client }.credentials(None).await.unwrap_err().to_string()
}

#[tokio::test]
async fn an_api_server_that_hangs_is_told_from_one_that_refuses_the_connection() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It accepts the connection and says nothing.
    let hangs = unreachable(address).await;
    assert!(hangs.contains("does not answer in time") && hangs.contains("firewalls"), "{hangs}");
    drop(listener);
    let refuses = unreachable(address).await;
    assert!(refuses.contains("nothing listens") && refuses.contains("port in KUBECONFIG"), "{refuses}");
}

#[tokio::test]
async fn a_cluster_without_the_crd_is_told_how_to_get_it() {
    use http::{Request, Response};
    use kube::client::Body;
    // As the API server answers for a group that it does not serve.
    let server = tower::service_fn(|_: Request<Body>| async {
        let answer = Response::builder().status(404).body(Body::from(b"404 page not found\n".to_vec())).unwrap();
        Ok::<_, std::convert::Infallible>(answer)
    });
    let cluster = gather::Cluster { client: kube::Client::new(server, "default") };
    let why = cluster.credentials(None).await.unwrap_err().to_string();
    assert!(why.contains("is not installed") && why.contains("crd | kubectl apply --server-side -f -"), "{why}");
}

/// An EcrCredential as the API server sends it, of a version that this one cannot read.
fn unreadable(name: &str, deleted: bool) -> Unreadable {
    let time = deleted.then(|| at(1).to_string());
    let object = json!({ "metadata": { "name": name, "deletionTimestamp": time }, "spec": { "registries": "all" } });
    let observed: ObservedCredential = serde_json::from_str(&object.to_string()).unwrap();
    *observed.content.0.unwrap_err()
}

#[test]
fn one_that_cannot_be_read_is_a_problem_with_its_name_and_hides_no_other() {
    let good = || credential(|_| {});
    let all = || (vec![good()], vec![unreadable("newer", false), unreadable("deleted", true)]);
    let names = |name: Option<&str>| {
        let (good, bad) = chosen(name, all()).unwrap();
        let good = good.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
        (good, bad.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    };
    assert_eq!(names(None), (vec!["x".to_owned()], vec!["newer".to_owned()]));
    assert_eq!(names(Some("newer")), (vec![], vec!["newer".to_owned()]));
    assert_eq!(names(Some("x")), (vec!["x".to_owned()], vec![]));
    let why = |name| chosen(Some(name), all()).unwrap_err().to_string();
    assert!(why("deleted").contains("is being deleted") && why("another").contains("there is no EcrCredential"));
    for name in [None, Some("newer")] {
        let (credentials, unreadable) = chosen(name, all()).unwrap();
        let count = credentials.len();
        let facts = Facts { unreadable, ..facts(credentials, &[("a", written(&good()))]) };
        let report = judge(&facts, at(NOW));
        assert_eq!((report.problem_count, report.credentials.len()), (1, count), "{report:#?}");
        let [problem] = report.problems.as_slice() else { panic!("{report:#?}") };
        assert_eq!(problem.reason, "InvalidSpec");
        let shown = text::render(&report);
        for text in [&problem.message, &shown] {
            assert!(
                text.contains("EcrCredential newer cannot be read") && text.contains("expected a sequence"),
                "{text}"
            );
        }
        assert!(shown.contains("1 problem found.") && !shown.contains("There is no EcrCredential"), "{shown}");
    }
    let nothing = text::render(&judge(&facts(Vec::new(), &[]), at(NOW)));
    assert!(nothing.contains("There is no EcrCredential"), "{nothing}");
}
