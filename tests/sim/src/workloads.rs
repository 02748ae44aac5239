//! What users do, as steps: create, refresh, label, unlabel, edit, delete, upgrade.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api_server::{ApiServer, Kind};
use crate::operator::Settings;
use crate::sim::{Sim, Until};

/// The Secret's name where nothing else is said.
pub const SECRET: &str = "ecr-pull-secret";

/// One thing that somebody does, and when it is over.
pub struct Step {
    pub act: Box<dyn Fn(&mut Sim) + Send + Sync>,
    pub until: Until,
}

/// Steps that make the ground ready, and the steps that are tried.
pub struct Workload {
    pub name: &'static str,
    /// Whose identities may be used, and what else is allowed.
    pub settings: Settings,
    pub ground: Vec<Step>,
    pub steps: Vec<Step>,
}

fn step(until: Until, act: impl Fn(&mut Sim) + Send + Sync + 'static) -> Step {
    Step { act: Box::new(act), until }
}

/// A spec with every default, as the API server stores it, whose passwords are replaced every half an hour.
pub fn spec(changes: Value) -> Value {
    let mut spec = json!({
        "registries": [
            { "private": { "region": "eu-west-1", "hostVariants": ["Standard"], "requestRegistryIds": false } },
            { "public": {} },
        ],
        "secret": { "name": SECRET, "conflictPolicy": "Fail", "deletionPolicy": "Delete" },
        "namespaces": { "selector": { "matchLabels": { "pull": "ecr" } } },
        "refresh": { "atPercent": 50, "maxAge": "30m" },
        "suspend": false,
    });
    merge(&mut spec, &changes);
    spec
}

fn merge(target: &mut Value, changes: &Value) {
    match (target.as_object_mut(), changes.as_object()) {
        (Some(target), Some(changes)) => {
            changes.iter().for_each(|(key, value)| merge(target.entry(key.clone()).or_insert(Value::Null), value));
        }
        _ => *target = changes.clone(),
    }
}

/// Namespaces that are selected, and one that is not.
pub fn namespaces(api: &ApiServer, selected: &[&str]) {
    for name in selected {
        api.create_namespace(name, json!({ "pull": "ecr" }));
    }
    api.create_namespace("elsewhere", json!({}));
    api.create_namespace("operator", json!({}));
}

pub fn credential(api: &ApiServer, name: &str, changes: Value) {
    let object = json!({ "metadata": { "name": name }, "spec": spec(changes) });
    assert!(crate::operator::is_readable(&object), "a spec that the operator cannot read");
    api.create(Kind::Credential, "", object);
}

pub fn edit(api: &ApiServer, name: &str, changes: Value) {
    api.edit(Kind::Credential, "", name, json!({ "spec": changes }));
}

/// The names of the outputs: one with all logins, and one with that of ECR Public.
pub const FILE: &str = "registry-file";
pub const TOKEN: &str = "public-token";

/// What allows them.
pub const OUTPUTS: [&str; 2] = ["*/registry-file=DockerConfigFile", "*/public-token=BasicAuth"];

/// What asks for the outputs.
pub fn outputs() -> Value {
    json!({ "outputs": [
        { "name": FILE, "format": "DockerConfigFile" },
        { "name": TOKEN, "format": "BasicAuth", "host": "public.ecr.aws" },
    ] })
}

/// The ServiceAccounts that Secrets are attached to.
pub const BUILDER: &str = "builder";

/// What attaches the Secret to them.
pub fn attached() -> Value {
    json!({ "attachTo": { "pods": "Never", "serviceAccounts": ["build*"] } })
}

/// One of them, which names a Secret of somebody else.
pub fn builder(api: &ApiServer, namespace: &str) {
    let object = json!({ "metadata": { "name": BUILDER }, "imagePullSecrets": [{ "name": "theirs" }] });
    api.create(Kind::ServiceAccount, namespace, object);
}

/// The ServiceAccount of each tenant.
pub const PULLER: &str = "puller";

/// Namespaces with AWS accounts of their own.
pub const TENANTS: [(&str, &str); 3] = [("a", "111111111111"), ("b", "222222222222"), ("c", "333333333333")];

/// What makes each namespace have tokens of its own.
pub fn of_tenants() -> Value {
    json!({ "auth": { "serviceAccount": { "fromTargetNamespace": PULLER } } })
}

/// The role that the ServiceAccount of a tenant has.
pub fn role(account: &str) -> String {
    format!("arn:aws:iam::{account}:role/pull")
}

/// A selected namespace with a ServiceAccount whose role trusts it.
pub fn tenant(sim: &mut Sim, namespace: &str, account: &str) {
    sim.api.create_namespace(namespace, json!({ "pull": "ecr" }));
    puller(sim, namespace, account);
}

/// The ServiceAccount of a tenant, whose role trusts it.
pub fn puller(sim: &mut Sim, namespace: &str, account: &str) {
    let annotations = json!({ "eks.amazonaws.com/role-arn": role(account) });
    let object = json!({ "metadata": { "name": PULLER, "annotations": annotations } });
    sim.api.create(Kind::ServiceAccount, namespace, object);
    trusted(sim, namespace, &role(account));
}

/// The ServiceAccount of a tenant has this role from now on.
pub fn annotate(api: &ApiServer, namespace: &str, role: &str) {
    let annotations = json!({ "eks.amazonaws.com/role-arn": role });
    api.edit(Kind::ServiceAccount, namespace, PULLER, json!({ "metadata": { "annotations": annotations } }));
}

/// A role trusts the ServiceAccount of a tenant, whose Secrets may hold its logins.
pub fn trusted(sim: &mut Sim, namespace: &str, role: &str) {
    sim.aws.trust(role, namespace, PULLER);
    sim.tenants.entry(namespace.to_owned()).or_default().insert(role.to_owned());
}

fn ground(changes: Value) -> Vec<Step> {
    vec![step(Until::Ready, move |sim| {
        namespaces(&sim.api, &["a", "b", "c"]);
        credential(&sim.api, "platform", changes.clone());
    })]
}

/// The workloads of the crash plans.
pub fn all() -> Vec<Workload> {
    let workload = |name, ground, steps| Workload { name, settings: Settings::default(), ground, steps };
    let settled = || ground(json!({}));
    let mut all = vec![
        workload("create", vec![], settled()),
        workload("scheduled refresh", settled(), vec![step(Until::Passed(1900), |_| ()), step(Until::Ready, |_| ())]),
        workload(
            "a namespace gains the label",
            settled(),
            vec![step(Until::Ready, |sim| drop(sim.api.label_namespace("elsewhere", json!({ "pull": "ecr" }))))],
        ),
        workload(
            "a namespace loses the label",
            settled(),
            vec![step(Until::Ready, |sim| drop(sim.api.label_namespace("b", json!({ "pull": null }))))],
        ),
        workload("the spec changes", settled(), edits()),
        workload("created and deleted under Delete", vec![], then(settled(), step(Until::Quiet, delete))),
        workload(
            "created and deleted under Retain",
            vec![],
            then(ground(json!({ "secret": { "deletionPolicy": "Retain" } })), step(Until::Quiet, delete)),
        ),
        workload(
            "deleted in the middle of its creation",
            vec![],
            vec![step(Until::Quiet, |sim| {
                namespaces(&sim.api, &["a", "b", "c"]);
                credential(&sim.api, "platform", json!({}));
                sim.run_for(Duration::from_millis(59));
                delete(sim);
            })],
        ),
        workload("an upgrade", settled(), vec![step(Until::Ready, upgrade)]),
        workload(
            "Retain is set and taken back",
            settled(),
            vec![
                step(Until::Ready, |sim| {
                    edit(&sim.api, "platform", json!({ "secret": { "deletionPolicy": "Retain" } }))
                }),
                step(Until::Ready, |sim| {
                    edit(&sim.api, "platform", json!({ "secret": { "deletionPolicy": "Delete" } }))
                }),
            ],
        ),
        workload(
            "made again under the same name",
            settled(),
            vec![step(Until::Ready, |sim| {
                delete(sim);
                credential(&sim.api, "platform", json!({}));
            })],
        ),
        workload(
            "the younger inherits",
            two(),
            vec![step(Until::Ready, |sim| {
                sim.api.delete(Kind::Credential, "", "platform");
            })],
        ),
        workload(
            "edited by hand",
            settled(),
            vec![
                step(Until::Ready, |sim| {
                    sim.api.edit(
                        Kind::Secret,
                        "a",
                        SECRET,
                        json!({ "data": { ".dockerconfigjson": "e30=", "more": "eA==" } }),
                    );
                }),
                step(Until::Ready, |sim| drop(sim.api.delete(Kind::Secret, "b", SECRET))),
            ],
        ),
    ];
    let settings = Settings { service_accounts: vec![format!("*/{PULLER}")], ..Settings::default() };
    all.extend(tenants().into_iter().map(|workload| Workload { settings: settings.clone(), ..workload }));
    all.push(Workload {
        name: "attached to ServiceAccounts and taken back",
        settings: Settings { attachable: vec![BUILDER.to_owned()], ..Settings::default() },
        ground: then(
            ground(json!({})),
            step(Until::Ready, |sim| ["a", "b", "c"].iter().for_each(|namespace| builder(&sim.api, namespace))),
        ),
        steps: vec![
            step(Until::Ready, |sim| edit(&sim.api, "platform", attached())),
            step(Until::Ready, |sim| drop(sim.api.label_namespace("b", json!({ "pull": null })))),
        ],
    });
    all.push(Workload {
        name: "outputs come and go",
        settings: Settings { outputs: OUTPUTS.map(str::to_owned).to_vec(), ..Settings::default() },
        ground: ground(json!({})),
        steps: vec![
            step(Until::Ready, |sim| edit(&sim.api, "platform", outputs())),
            step(Until::Ready, |sim| edit(&sim.api, "platform", json!({ "outputs": [outputs()["outputs"][0]] }))),
        ],
    });
    all
}

/// Those of namespaces with identities of their own.
fn tenants() -> Vec<Workload> {
    let workload = |name, ground, steps| Workload { name, settings: Settings::default(), ground, steps };
    let ground = || {
        vec![step(Until::Ready, |sim| {
            TENANTS.iter().for_each(|(namespace, account)| tenant(sim, namespace, account));
            sim.api.create_namespace("operator", json!({}));
            credential(&sim.api, "platform", of_tenants());
        })]
    };
    vec![
        workload("created for tenants", vec![], ground()),
        workload(
            "a tenant comes and one goes",
            ground(),
            vec![step(Until::Ready, |sim| {
                tenant(sim, "late", "444444444444");
                sim.api.label_namespace("b", json!({ "pull": null }));
            })],
        ),
        workload(
            "the role of a tenant changes",
            ground(),
            vec![step(Until::Ready, |sim| {
                let other = format!("arn:aws:iam::{}:role/other", TENANTS[1].1);
                trusted(sim, "b", &other);
                annotate(&sim.api, "b", &other);
            })],
        ),
    ]
}

fn then(mut steps: Vec<Step>, last: Step) -> Vec<Step> {
    steps.push(last);
    steps
}

fn delete(sim: &mut Sim) {
    sim.api.delete(Kind::Credential, "", "platform");
}

fn edits() -> Vec<Step> {
    vec![
        step(Until::Ready, |sim| {
            let registries = json!([{ "private": {
                "region": "eu-west-1", "accountIds": ["111122223333", "444455556666"],
                "hostVariants": ["Standard", "DualStack"], "requestRegistryIds": false,
            } }]);
            edit(&sim.api, "platform", json!({ "registries": registries }));
        }),
        step(Until::Ready, |sim| {
            edit(&sim.api, "platform", json!({ "secret": { "name": "other-secret", "labels": { "team": "x" } } }))
        }),
        step(Until::Ready, |sim| {
            edit(&sim.api, "platform", json!({ "namespaces": { "selector": null, "names": ["b", "else*"] } }));
        }),
    ]
}

fn upgrade(sim: &mut Sim) {
    let settings = Settings { region: "eu-central-1".to_owned(), concurrency: Some(1), ..sim.settings.clone() };
    sim.restart(settings);
    edit(
        &sim.api,
        "platform",
        json!({ "registries": [{ "private": { "hostVariants": ["Standard"], "requestRegistryIds": false } }] }),
    );
}

fn two() -> Vec<Step> {
    vec![
        step(Until::Ready, |sim| {
            namespaces(&sim.api, &["a", "b"]);
            credential(&sim.api, "platform", json!({}));
        }),
        step(Until::Quiet, |sim| {
            sim.run_for(Duration::from_secs(1));
            credential(&sim.api, "younger", json!({ "registries": [{ "public": {} }] }));
        }),
    ]
}

impl Sim {
    pub fn play(&mut self, steps: &[Step]) {
        for step in steps {
            (step.act)(self);
            self.wait(step.until);
        }
    }
}
