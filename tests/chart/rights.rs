//! Each verb of each rule that the chart grants is needed: without it the operator is refused something on a tour through all
//! that it does.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::bed::{AllowedIdentities, Bed, Launch, PATIENCE, poll};
use testbed::proxy::{Match, Request};

/// How many tours are under way at a time.
const AT_A_TIME: usize = 4;

/// A verb of a rule, by the place of its role among the roles of a bed.
#[derive(Clone, Debug)]
struct Right {
    role: usize,
    rule: usize,
    group: String,
    resource: String,
    verb: String,
}

/// A role of the operator's.
enum Granted {
    Everywhere(String),
    Within(String, String),
}

impl Granted {
    async fn rules(&self, bed: &Bed) -> Vec<PolicyRule> {
        match self {
            Self::Everywhere(name) => Api::<ClusterRole>::all(bed.client.clone()).get(name).await.unwrap().rules,
            Self::Within(namespace, name) => {
                Api::<Role>::namespaced(bed.client.clone(), namespace).get(name).await.unwrap().rules
            }
        }
        .unwrap()
    }

    async fn set(&self, bed: &Bed, rules: &[PolicyRule]) {
        let (params, patch) = (PatchParams::default(), Patch::Merge(json!({ "rules": rules })));
        match self {
            Self::Everywhere(name) => {
                Api::<ClusterRole>::all(bed.client.clone()).patch(name, &params, &patch).await.map(drop)
            }
            Self::Within(namespace, name) => {
                Api::<Role>::namespaced(bed.client.clone(), namespace).patch(name, &params, &patch).await.map(drop)
            }
        }
        .unwrap();
    }
}

/// Everything that the chart can grant, which is what the suite grants (`operator.rs` compares them).
fn granted(bed: &Bed) -> Vec<Granted> {
    let lent = format!("{}-auth", bed.prefix);
    vec![
        Granted::Everywhere(bed.prefix.clone()),
        Granted::Within(bed.home.clone(), "lease".to_owned()),
        Granted::Within("default".to_owned(), format!("{}-events", bed.prefix)),
        Granted::Everywhere(lent.clone()),
        Granted::Within(bed.home.clone(), lent),
    ]
}

async fn prepared(test: &str) -> Bed {
    let bed = Bed::new(test, super::CRD).await.unwrap();
    let key = bed.aws.start_session(&bed.role, "keys", Duration::from_secs(3600)).unwrap();
    bed.keys_secret(&bed.home, "keys", &key).await.unwrap();
    let lent = AllowedIdentities {
        service_accounts: vec!["*/puller".to_owned()],
        secrets: vec![format!("{}/keys", bed.home)],
        ..AllowedIdentities::default()
    };
    bed.lend(&lent).await.unwrap();
    bed
}

fn launch(bed: &Bed) -> Launch {
    let launch = Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator")).service_account("*/puller");
    launch.credentials_secret(&format!("{}/keys", bed.home)).without_rights()
}

/// All that the operator does, by two processes one after the other.
async fn tour(bed: &Bed) {
    let operator = bed.operator(launch(bed).without_waiting()).await.unwrap();
    let tenant = bed.tenant("tenant", "210987654321", "puller").await.unwrap();
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let keys = json!({ "secretRef": {
        "namespace": bed.home, "name": "keys", "sessionTokenKey": "AWS_SESSION_TOKEN",
    }});
    let registries = json!([
        { "private": {} },
        { "private": { "region": "us-east-1" }, "auth": keys },
    ]);
    let spec = json!({ "registries": registries, "namespaces": { "names": [a, b] } });
    let shared = bed.credential("shared", spec).await.unwrap();
    bed.ready(&shared).await.unwrap();
    let each = json!({
        "registries": [{ "private": {} }], "namespaces": { "names": [tenant.namespace] },
        "auth": { "serviceAccount": { "fromTargetNamespace": "puller" } },
    });
    let each = bed.credential("each", each).await.unwrap();
    bed.ready(&each).await.unwrap();
    // Events are made, and told of again.
    for request in ["1", "2"] {
        bed.request_refresh(&shared, request).await.unwrap();
        bed.refreshed(&shared, request).await.unwrap();
    }
    let edit = Patch::Merge(json!({ "metadata": { "labels": { "pullsecrets.dev/credential": "x" } } }));
    bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &edit).await.unwrap();
    bed.ready(&shared).await.unwrap();
    bed.change(&shared, json!({ "spec": { "namespaces": { "names": [a] } } })).await.unwrap();
    bed.secret_until(&b, "gone", |secret| secret.is_none()).await.unwrap();
    operator.stop().await.unwrap();
    let operator = bed.operator(launch(bed)).await.unwrap();
    bed.change(&shared, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    bed.secret_until(&b, "there again", |secret| secret.is_some()).await.unwrap();
    bed.ready(&shared).await.unwrap();
    operator.stop().await.unwrap();
}

/// Whether a request is of that kind, as RBAC calls it.
fn is_of(right: &Right, request: &Request) -> bool {
    let target = &request.target;
    let resource = match &*target.subresource {
        "" => target.resource.clone(),
        subresource => format!("{}/{subresource}", target.resource),
    };
    let single = !target.name.is_empty();
    let verb = match request.method.as_str() {
        "GET" if request.is_watch() => "watch",
        "GET" if single => "get",
        "GET" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        other => other,
    };
    // A server-side apply of what is not there is a patch, and is refused for want of either.
    let creates = right.verb == "create" && verb == "patch" && right.resource == "secrets";
    let same = right.verb.eq_ignore_ascii_case(verb) || creates;
    target.group == right.group && resource == right.resource && same
}

/// Takes one right away and waits until the operator is refused for want of it.
async fn without(number: usize, right: Right) -> Result<(), String> {
    let bed = prepared(&format!("without-{number}")).await;
    let role = &granted(&bed)[right.role];
    let mut rules = role.rules(&bed).await;
    let name = rules[right.rule].resource_names.clone().unwrap_or_default().first().cloned().unwrap_or_default();
    rules[right.rule].verbs.retain(|verb| *verb != right.verb);
    // A rule without verbs is none.
    rules.retain(|rule| !rule.verbs.is_empty());
    role.set(&bed, &rules).await;
    let namespace = match role {
        Granted::Everywhere(_) => String::new(),
        Granted::Within(namespace, _) => namespace.clone(),
    };
    until_may_not(&bed, &right, &namespace, &name).await;
    let wanted = right.clone();
    let refused = Match::any().when(move |request| request.committed == Some(403) && is_of(&wanted, request));
    let mark = bed.proxy.log().mark();
    let log = bed.proxy.log().clone();
    let outcome = tokio::select! {
        seen = log.wait_for(mark, &refused, 1, PATIENCE * 2) => seen.map(drop).map_err(|error| error.to_string()),
        () = tour(&bed) => Err("the tour ended well".to_owned()),
    };
    // What went wrong is what was wanted, so the judge is not asked.
    bed.clear().await.unwrap();
    outcome.map_err(|error| format!("{} {} in {right:?} is not needed: {error}", right.verb, right.resource))
}

/// Waits until the API server has taken note that a right is gone.
async fn until_may_not(bed: &Bed, right: &Right, namespace: &str, name: &str) {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((&right.resource, ""));
    let question = SubjectAccessReview {
        metadata: ObjectMeta::default(),
        spec: serde_json::from_value(json!({
            "user": format!("system:serviceaccount:{}:operator", bed.home),
            "resourceAttributes": {
                "group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb,
                "name": name, "namespace": namespace,
            },
        }))
        .unwrap(),
        status: None,
    };
    let reviews: Api<SubjectAccessReview> = Api::all(bed.client.clone());
    poll(&format!("{right:?} is granted no more"), async || {
        !reviews.create(&PostParams::default(), &question).await.unwrap().status.unwrap().allowed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_right_can_be_spared() {
    let bed = prepared("all-rights").await;
    let mut rights = Vec::new();
    for (role, granted) in granted(&bed).iter().enumerate() {
        for (number, rule) in granted.rules(&bed).await.into_iter().enumerate() {
            let value: Value = serde_json::to_value(&rule).unwrap();
            assert_eq!(value["resources"].as_array().unwrap().len(), 1, "{rule:?}");
            rights.extend(rule.verbs.into_iter().map(|verb| Right {
                role,
                rule: number,
                group: value["apiGroups"][0].as_str().unwrap().to_owned(),
                resource: value["resources"][0].as_str().unwrap().to_owned(),
                verb,
            }));
        }
    }
    tour(&bed).await;
    bed.finish().await.unwrap();
    assert!(rights.len() > 15, "{rights:?}");
    let spared = futures::stream::iter(rights.into_iter().enumerate())
        .map(|(number, right)| without(number, right))
        .buffer_unordered(AT_A_TIME)
        .filter_map(|outcome| std::future::ready(outcome.err()));
    let spared: Vec<String> = spared.collect().await;
    assert!(spared.is_empty(), "{}", spared.join("\n\n"));
}
