//! What the MutatingAdmissionPolicy does to new pods, asked of the real API server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ecr_credential_operator::api::HostVariant;
use ecr_credential_operator::api::NamespaceSelection;
use ecr_credential_operator::api::registry::{AccountId, Region};
use ecr_credential_operator::plan::namespaces::NamespaceMatcher;
use futures::TryStreamExt;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{PATIENCE, poll, unreadable_managed_field};
use testbed::control_plane::{ControlPlane, Options, shared};

use super::helm::{Helm, apply, chart};
use super::mutation::MutatingPolicy;

const OWN: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";
const VPCE: &str = "vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com:8443";

/// A cluster with the chart, whose policy looks at the EcrCredentials of one test alone.
struct Cluster {
    client: Client,
    test: String,
}

impl Cluster {
    /// None where Kubernetes has no such policies.
    async fn new(test: &str, values: Value) -> Option<Self> {
        Self::on(shared().await.unwrap(), test, values).await
    }

    /// The same on a control plane of the test's own.
    async fn on(plane: &ControlPlane, test: &str, values: Value) -> Option<Self> {
        plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
        let cluster = Self { client: plane.admin_client().unwrap(), test: format!("attach-{test}") };
        cluster.namespace(&cluster.test, json!({})).await;
        let helm = Helm::on(plane, "v3");
        let mut pods = json!({ "credentialSelector": { "matchLabels": { "test": cluster.test } } });
        pods.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
        let values = json!({ "crds": { "enabled": false }, "attach": { "pods": pods }, "allSecretNames": true });
        let (chart, file) = (chart().to_string_lossy().into_owned(), helm.values(&values));
        let file = file.to_string_lossy().into_owned();
        helm.run(&["install", "eco", &chart, "--namespace", &cluster.test, "--values", &file]).unwrap();
        let served = MutatingPolicy::is_served(&cluster.client).await;
        let manifest = helm.run(&["get", "manifest", "eco", "--namespace", &cluster.test]).unwrap();
        assert_eq!(manifest.contains("kind: MutatingAdmissionPolicy\n"), served, "auto");
        if !served {
            return None;
        }
        cluster.until_in_force().await;
        Some(cluster)
    }

    /// The API server does not say when it has taken note of a policy and of its parameters.
    async fn until_in_force(&self) {
        self.credential("probe", json!({ "names": [self.test] }), &[OWN]).await;
        let pod = pod("probe", &format!("{OWN}/x"));
        let probe = format!("{}-probe", self.test);
        poll("the policy is in force", async || {
            self.created(&self.test, &pod).await.is_ok_and(|names| names.contains(&probe))
        })
        .await;
    }

    async fn namespace(&self, name: &str, labels: Value) {
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap();
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let there = |account: Option<&ServiceAccount>| account.is_some();
        let waiting = kube::runtime::wait::await_condition(accounts, "default", there);
        tokio::time::timeout(PATIENCE, waiting).await.expect("a ServiceAccount default").unwrap();
    }

    /// An EcrCredential whose Secret has its name, with the hosts in its status.
    async fn credential(&self, name: &str, namespaces: Value, hosts: &[&str]) -> String {
        self.credential_with(name, namespaces, hosts, json!({ "attachTo": { "pods": "MatchingImages" } })).await
    }

    async fn credential_with(&self, name: &str, namespaces: Value, hosts: &[&str], more: Value) -> String {
        let name = format!("{}-{name}", self.test);
        let mut spec = json!({
            "registries": [{ "private": {} }], "secret": { "name": name }, "namespaces": namespaces,
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let object = json!({
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential",
            "metadata": { "name": name, "labels": { "test": self.test } }, "spec": spec,
        });
        apply(&self.client, &object, false).await.unwrap();
        let api: Api<ecr_credential_operator::api::EcrCredential> = Api::all(self.client.clone());
        // As the status has them: one entry for each registry, of which there are 32 at most.
        let of_each = hosts.len().div_ceil(32).max(1);
        let registries: Vec<Value> = hosts.chunks(of_each).map(|hosts| json!({ "hosts": hosts })).collect();
        let status = json!({ "status": { "registries": registries } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        name
    }

    /// Creates a pod without storing it; returns the pull secrets that it then has, in order.
    async fn created(&self, namespace: &str, pod: &Value) -> Result<Vec<String>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { dry_run: true, field_manager: None };
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        let created = pods.create(&params, &pod).await.map_err(|error| error.to_string())?;
        Ok(pull_secrets(&created))
    }

    /// Waits until a pod would have these pull secrets, or be refused with such words: the API server does not say when it has taken
    /// note of a policy.
    async fn until(&self, namespace: &str, pod: &Value, wanted: Result<Vec<String>, String>) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let created = self.created(namespace, pod).await;
            match (&wanted, &created) {
                (Ok(wanted), Ok(created)) if wanted == created => return,
                (Err(wanted), Err(created)) if created.contains(wanted.as_str()) => return,
                _ => assert!(tokio::time::Instant::now() < deadline, "{created:?}, and not {wanted:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn attached(&self, namespace: &str, pod: &Value) -> Vec<String> {
        self.created(namespace, pod).await.unwrap()
    }
}

/// The names of a pod's pull secrets, in order.
fn pull_secrets(pod: &Pod) -> Vec<String> {
    let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    secrets.map(|secret| secret.name.clone()).collect()
}

fn pod(name: &str, image: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": image }] } })
}

fn with(mut pod: Value, pointer: &str, key: &str, value: Value) -> Value {
    pod.pointer_mut(pointer).unwrap()[key] = value;
    pod
}

#[tokio::test]
async fn a_pod_gets_the_secret_of_its_images_and_no_other_pod_is_changed() {
    let Some(cluster) = Cluster::new("images", json!({})).await else { return };
    let namespace = cluster.test.clone();
    let all = json!({ "names": [namespace] });
    let never = json!({ "attachTo": { "pods": "Never" } });
    cluster.credential_with("never", all.clone(), &["never.example"], never).await;
    cluster.credential_with("silent", all.clone(), &["never.example"], json!({})).await;
    let own = cluster.credential("own", all.clone(), &[OWN, VPCE]).await;
    let public = cluster.credential("public", all, &[PUBLIC, "ecr-public.aws.com"]).await;
    // The policy sees them in the order in which they were made.
    cluster.until(&namespace, &pod("x", &format!("{PUBLIC}/x")), Ok(vec![public.clone()])).await;
    let probe = format!("{namespace}-probe");
    let plain = |image: &str| pod("x", image);
    let init = json!([{ "name": "i", "image": format!("{PUBLIC}/nginx/nginx:1") }]);
    let volume = json!([{ "name": "v", "image": { "reference": format!("{OWN}/data:1") } }]);
    let entries = json!([{ "name": "theirs" }, { "name": "more" }]);
    let named = json!([{ "name": own }]);
    let mirror = json!({ "kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x" });
    let table: Vec<(&str, Value, Vec<&str>)> = vec![
        ("a tag", plain(&format!("{OWN}/app:1")), vec![&own]),
        ("a digest", plain(&format!("{OWN}/a/b/c@sha256:{}", "a".repeat(64))), vec![&own]),
        ("a host with a port", plain(&format!("{VPCE}/app")), vec![&own]),
        ("another port", plain(&format!("{OWN}:444/app")), vec![]),
        ("the dual-stack host of ECR Public", plain("ecr-public.aws.com/x/y:1"), vec![&public]),
        ("a host that only begins alike", plain(&format!("{OWN}.evil.example/app")), vec![]),
        ("no host", plain("nginx"), vec![]),
        ("a path that looks like the host", plain(&format!("docker.io/{OWN}/app")), vec![]),
        ("hosts of those that do not ask for it", plain("never.example/app"), vec![]),
        ("an init container", with(plain("nginx"), "/spec", "initContainers", init.clone()), vec![&public]),
        ("a volume", with(plain("nginx"), "/spec", "volumes", volume), vec![&own]),
        ("both", with(plain(&format!("{OWN}/app")), "/spec", "initContainers", init), vec![&own, &public]),
        (
            "entries of its own",
            with(plain(&format!("{OWN}/app")), "/spec", "imagePullSecrets", entries),
            vec!["theirs", "more", &own],
        ),
        ("named already", with(plain(&format!("{OWN}/app")), "/spec", "imagePullSecrets", named), vec![&own]),
        (
            "the label that opts out",
            with(plain(&format!("{OWN}/app")), "/metadata", "labels", json!({ "pullsecrets.dev/attach": "false" })),
            vec![],
        ),
        (
            "another value of the label",
            with(plain(&format!("{OWN}/app")), "/metadata", "labels", json!({ "pullsecrets.dev/attach": "true" })),
            vec![&own],
        ),
    ];
    let mut wrong = vec![];
    for (what, pod, expected) in table {
        let mut seen = cluster.attached(&namespace, &pod).await;
        seen.retain(|secret| *secret != probe);
        let sorted = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
        let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        // What was there before stays in front, in its order.
        let theirs: Vec<String> = expected.iter().filter(|name| !name.starts_with("attach-")).cloned().collect();
        if !seen.starts_with(&theirs) || sorted(seen.clone()) != sorted(expected.clone()) {
            wrong.push(format!("{what}: {seen:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let generated = json!({ "metadata": { "generateName": "x-" }, "spec": plain(&format!("{OWN}/app"))["spec"] });
    assert!(cluster.attached(&namespace, &generated).await.contains(&own), "a pod without a name yet");
    let mirror = with(plain(&format!("{OWN}/app")), "/metadata", "annotations", mirror);
    let mirror = with(mirror, "/spec", "nodeName", json!("node"));
    assert!(!cluster.attached(&namespace, &mirror).await.contains(&own), "a mirror pod");
}

/// Where each namespace has its own identity, and so its own account.
#[tokio::test]
async fn a_pod_gets_the_secret_for_the_hosts_of_any_account_that_its_namespace_may_have() {
    let Some(cluster) = Cluster::new("any-account", json!({ "failurePolicy": "Fail" })).await else { return };
    let namespace = cluster.test.clone();
    let of = |account: &AccountId, region: &str| -> Vec<String> {
        let region = Region::parse(region).unwrap();
        HostVariant::ALL
            .iter()
            .filter_map(|variant| Some(region.registry_host(account, *variant).ok()?.to_string()))
            .collect()
    };
    let regions = ["eu-central-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1", "us-iso-east-1", "us-isob-east-1"];
    let any: Vec<String> = regions.iter().flat_map(|region| of(&AccountId::any(), region)).collect();
    let hosts: Vec<&str> = any.iter().map(String::as_str).chain([VPCE]).collect();
    let name = cluster.credential("any", json!({ "names": [namespace] }), &hosts).await;
    cluster.until(&namespace, &pod("x", &format!("{VPCE}/x")), Ok(vec![name.clone()])).await;
    let mut wrong = vec![];
    let mut compare = async |host: &str, expected: bool| {
        let seen = cluster.attached(&namespace, &pod("x", &format!("{host}/app:1"))).await;
        if seen.contains(&name) != expected {
            wrong.push(format!("{host}: {seen:?}"));
        }
    };
    for account in ["111122223333", "222233334444"] {
        let account = AccountId::parse(account).unwrap();
        for region in regions {
            for host in of(&account, region) {
                compare(&host, true).await;
            }
        }
        for host in of(&account, "eu-west-3") {
            compare(&host, false).await;
        }
    }
    for host in [
        "11112222333.dkr.ecr.eu-central-1.amazonaws.com",
        "1111222233334.dkr.ecr.eu-central-1.amazonaws.com",
        "aaaabbbbcccc.dkr.ecr.eu-central-1.amazonaws.com",
        "a.111122223333.dkr.ecr.eu-central-1.amazonaws.com",
        "111122223333.dkr.ecr.eu-central-1.amazonaws.com.evil.example",
        "111122223333.dkr.ecr.eu-central-1.amazonaws.com:444",
        "111122223333.vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com:8443",
        "dkr.ecr.eu-central-1.amazonaws.com",
        "111122223333",
        "docker.io",
    ] {
        compare(host, false).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn entries_of_a_service_account_stay_and_an_existing_pod_is_left_alone() {
    let Some(cluster) = Cluster::new("accounts-of-pods", json!({})).await else { return };
    let namespace = cluster.test.clone();
    let probe = format!("{namespace}-probe");
    let app = pod("x", &format!("{OWN}/app:1"));
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &namespace);
    let account = async |account: Value| {
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    };
    account(json!({ "metadata": { "name": "pulls" }, "imagePullSecrets": [{ "name": "theirs" }] })).await;
    let enforce = json!({ "kubernetes.io/enforce-mountable-secrets": "true" });
    account(json!({ "metadata": { "name": "strict", "annotations": enforce.clone() } })).await;
    let listed = json!([{ "name": probe }]);
    account(json!({ "metadata": { "name": "lists", "annotations": enforce }, "imagePullSecrets": listed })).await;
    let run_by = |account: &str| with(app.clone(), "/spec", "serviceAccountName", json!(account));
    assert_eq!(cluster.attached(&namespace, &run_by("pulls")).await, ["theirs", &probe]);
    assert_eq!(cluster.attached(&namespace, &run_by("lists")).await, [probe.as_str()]);
    let why = cluster.created(&namespace, &run_by("strict")).await.unwrap_err();
    assert!(why.contains("does not reference that imagePullSecret"), "{why}");

    // An image of a pod may change; its pull secrets may not, so the policy must not see the update.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let other = serde_json::from_value(pod("updated", "registry.example/app:1")).unwrap();
    pods.create(&PostParams::default(), &other).await.unwrap();
    let image = json!({ "spec": { "containers": [{ "name": "c", "image": format!("{OWN}/app:1") }] } });
    let updated = pods.patch("updated", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap().spec.unwrap();
    assert!(updated.containers[0].image.as_ref().unwrap().starts_with(OWN));
    assert!(updated.image_pull_secrets.unwrap_or_default().is_empty());
}

/// A source of numbers that is the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn some<T: Clone>(&mut self, all: &[T], most: usize) -> Vec<T> {
        let mut some: Vec<T> = Vec::new();
        for _ in 0..self.below(most + 1) {
            some.push(self.of(all));
        }
        some
    }

    fn selection(&mut self, test: &str) -> Value {
        let globs: Vec<String> =
            ["a", "b", "a?", "*a", "a*", "b-?", "*", "a-*-b", "??"].map(|glob| format!("{test}-{glob}")).into();
        let keys = ["team", "example.com/tier"].map(str::to_owned);
        let values = ["x", "y", ""].map(str::to_owned);
        let unique = |random: &mut Self, most| {
            random.some(&globs, most).into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        let (mut names, exclude) = (unique(self, 3), unique(self, 2));
        let mut selection = json!({ "exclude": exclude });
        if self.below(2) == 0 {
            let labels: BTreeMap<String, String> =
                self.some(&keys, 1).into_iter().map(|key| (key, self.of(&values))).collect();
            let mut expressions = Vec::new();
            for _ in 0..=self.below(2) {
                let operator = self.of(&["In", "NotIn", "Exists", "DoesNotExist"]);
                let mut listed = vec![self.of(&values)];
                listed.extend(self.some(&values, 1));
                let listed: BTreeSet<String> = listed.into_iter().collect();
                let listed = if operator.ends_with("In") { json!(listed) } else { json!([]) };
                expressions.push(json!({ "key": self.of(&keys), "operator": operator, "values": listed }));
            }
            selection["selector"] = json!({ "matchLabels": labels, "matchExpressions": expressions });
        } else if names.is_empty() {
            names.push(format!("{test}-a"));
        }
        selection["names"] = json!(names);
        selection
    }
}

/// Workloads of each kind that make pods, in a namespace.
fn workloads(namespace: &str, image: &str) -> Vec<Value> {
    let pod = |restart: &str| {
        json!({
            "metadata": { "labels": { "app": "x" } },
            // No kubelet says that the node is ready.
            "spec": {
                "restartPolicy": restart, "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "c", "image": image }],
            },
        })
    };
    let (always, once) = (pod("Always"), pod("Never"));
    let selector = json!({ "matchLabels": { "app": "x" } });
    let of = |version: &str, kind: &str, spec: Value| {
        json!({
            "apiVersion": version, "kind": kind,
            "metadata": { "name": kind.to_lowercase(), "namespace": namespace }, "spec": spec,
        })
    };
    let job = json!({ "template": once });
    vec![
        of("apps/v1", "Deployment", json!({ "selector": selector, "template": always })),
        of("apps/v1", "StatefulSet", json!({ "selector": selector, "template": always, "serviceName": "x" })),
        of("apps/v1", "DaemonSet", json!({ "selector": selector, "template": always })),
        of("batch/v1", "Job", job.clone()),
        of("batch/v1", "CronJob", json!({ "schedule": "* * * * *", "jobTemplate": { "spec": job } })),
    ]
}

#[tokio::test]
async fn pods_of_all_workloads_get_the_secret_also_after_a_restart_of_the_api_server_and_keep_it_after_an_uninstall() {
    let makers = ["deployment", "replicaset", "statefulset", "daemonset", "job", "cronjob"];
    let mut options = Options::default();
    options.controllers.extend(makers.map(|maker| format!("{maker}-controller")));
    let plane = ControlPlane::start(options).await.unwrap();
    let Some(cluster) = Cluster::on(&plane, "workloads", json!({})).await else { return };
    // Beside the operator's own Deployment.
    let namespace = format!("{}-team", cluster.test);
    cluster.namespace(&namespace, json!({})).await;
    let own = cluster.credential("own", json!({ "names": [namespace] }), &["own.example"]).await;
    cluster.until(&namespace, &pod("x", "own.example/app"), Ok(vec![own.clone()])).await;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
    apply(&cluster.client, &node, false).await.unwrap();
    for workload in workloads(&namespace, "own.example/app") {
        apply(&cluster.client, &workload, false).await.unwrap();
    }
    // A Job of a CronJob is named after it.
    let kinds = ["deployment-", "statefulset-", "daemonset-", "job-", "cronjob-"];
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let mut secrets = BTreeMap::new();
    let mut seen = Box::pin(watcher(pods.clone(), watcher::Config::default()).applied_objects());
    // The CronJob has its turn within a minute.
    let all = async {
        while secrets.len() < kinds.len() {
            let pod = seen.try_next().await.unwrap().unwrap();
            let kind = kinds.iter().find(|kind| pod.name_any().starts_with(**kind)).unwrap();
            secrets.insert(*kind, pull_secrets(&pod));
        }
    };
    let in_time = tokio::time::timeout(PATIENCE + Duration::from_secs(60), all).await;
    assert!(in_time.is_ok(), "{:?}", secrets.keys());
    assert_eq!(secrets, kinds.map(|kind| (kind, vec![own.clone()])).into());
    // No further pod comes of it while the policy is not in force.
    let cron_jobs: Api<CronJob> = Api::namespaced(cluster.client.clone(), &namespace);
    let suspend = Patch::Merge(json!({ "spec": { "suspend": true } }));
    cron_jobs.patch("cronjob", &PatchParams::default(), &suspend).await.unwrap();
    plane.stop_api_server();
    plane.start_api_server().await.unwrap();
    cluster.until(&namespace, &pod("x", "own.example/app"), Ok(vec![own.clone()])).await;
    let listed = async || {
        let list = pods.list(&ListParams::default()).await.unwrap().items;
        list.iter().map(|pod| (pod.name_any(), pull_secrets(pod))).collect::<BTreeMap<_, _>>()
    };
    let before = listed().await;
    let helm = Helm::on(&plane, "v3");
    helm.run(&["uninstall", "eco", "--namespace", &cluster.test, "--wait"]).unwrap();
    cluster.until(&namespace, &pod("x", "own.example/app"), Ok(vec![])).await;
    let after = listed().await;
    assert!(before.len() >= kinds.len() && before.values().all(|secrets| *secrets == [own.clone()]), "{before:?}");
    assert!(before.iter().all(|(name, secrets)| after.get(name) == Some(secrets)), "{before:?} {after:?}");
}

#[tokio::test]
async fn without_the_crd_pods_are_created_as_they_are() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let Some(cluster) = Cluster::on(&plane, "no-crd", json!({})).await else { return };
    let namespace = cluster.test.clone();
    let crd: CustomResourceDefinition = serde_saphyr::from_str(super::CRD).unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    crds.delete(&crd.name_any(), &DeleteParams::default()).await.unwrap();
    let own = pod("x", &format!("{OWN}/app"));
    cluster.until(&namespace, &own, Ok(vec![])).await;
    plane.stop_api_server();
    plane.start_api_server().await.unwrap();
    // It compiles the policy anew, and may have done so at any of these.
    for _ in 0..50 {
        assert_eq!(cluster.created(&namespace, &own).await, Ok(vec![]));
    }
}

/// The CEL expressions and the operator's own matcher must select the same namespaces, and the same images.
#[tokio::test]
async fn the_policy_selects_the_namespaces_and_images_that_the_operator_does() {
    let Some(cluster) = Cluster::new("same", json!({ "failurePolicy": "Fail" })).await else { return };
    let mut random = Random(1);
    let keys = ["team", "example.com/tier"].map(str::to_owned);
    let mut namespaces: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for name in ["a", "b", "aa", "ab", "a-x-b", "b-1", "b-12", "ba", "c", "a-b"] {
        let name = format!("{}-{name}", cluster.test);
        let labels = random.some(&keys, 2).into_iter().map(|key| (key, random.of(&["x", "y", ""]).to_owned()));
        let labels: BTreeMap<String, String> = labels.collect();
        cluster.namespace(&name, json!(labels)).await;
        namespaces.push((name, labels));
    }
    let hosts = [OWN, PUBLIC, VPCE, "a.example", "a.example:5000"];
    let mut credentials = Vec::new();
    for number in 0..40 {
        let (selection, some) = (random.selection(&cluster.test), random.some(&hosts, 3));
        let name = cluster.credential(&format!("r{number}"), selection.clone(), &some).await;
        let parsed: NamespaceSelection = serde_json::from_value(selection.clone()).unwrap();
        credentials.push((name, NamespaceMatcher::parse(&parsed).unwrap(), some, selection));
    }
    // Made last, so that what it does says that the others are known.
    let last = cluster.credential("last", json!({ "names": [cluster.test] }), &["last.example"]).await;
    poll("the last one is seen", async || {
        cluster.attached(&cluster.test, &pod("x", "last.example/x")).await.contains(&last)
    })
    .await;
    let (mut decisions, mut attached, mut wrong) = (0, 0, Vec::new());
    for (namespace, labels) in &namespaces {
        for number in 0..12 {
            let images: Vec<String> = (0..=random.below(2))
                .map(|_| {
                    format!("{}{}", random.of(&hosts), random.of(&["/x", "/x:1", "/a/b", "x/y", ".evil/x", ":1/x"]))
                })
                .collect();
            let containers: Vec<Value> = images
                .iter()
                .enumerate()
                .map(|(i, image)| json!({ "name": format!("c{i}"), "image": image }))
                .collect();
            let pod = with(pod(&format!("p{number}"), ""), "/spec", "containers", json!(containers));
            let seen: BTreeSet<String> = match cluster.created(namespace, &pod).await {
                Ok(seen) => seen.into_iter().collect(),
                Err(why) => panic!("{namespace} {images:?}: {why}"),
            };
            for (name, selection, hosts, text) in &credentials {
                let on = |image: &String| {
                    hosts.iter().any(|host| image.strip_prefix(host).is_some_and(|r| r.starts_with('/')))
                };
                let expected = selection.matches(namespace, labels) && images.iter().any(on);
                decisions += 1;
                attached += usize::from(expected);
                if seen.contains(name) != expected {
                    wrong.push(format!("{namespace} {labels:?} {images:?} {hosts:?} {text}: not {expected}"));
                }
            }
        }
    }
    println!("{decisions} decisions, {attached} times attached");
    assert!(wrong.is_empty(), "{} of {decisions}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(attached > 100 && attached < decisions / 2, "{attached} of {decisions}");
}

/// A ServiceAccount `puller` that the operator's own account may attach to, under the chart's policy.
struct Attachable {
    client: Client,
    home: String,
    operator: Api<ServiceAccount>,
}

impl Attachable {
    async fn new(test: &str) -> Self {
        let plane: &'static ControlPlane = shared().await.unwrap();
        plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
        let client = plane.admin_client().unwrap();
        let cluster = Cluster { client: client.clone(), test: format!("attach-{test}") };
        let home = cluster.test.clone();
        cluster.namespace(&home, json!({})).await;
        let helm = Helm::on(plane, "v3");
        let values = json!({ "crds": { "enabled": false }, "attach": { "pods": { "enabled": false }, "serviceAccounts": ["puller"] } });
        let (chart, file) = (chart().to_string_lossy().into_owned(), helm.values(&values));
        let file = file.to_string_lossy().into_owned();
        helm.run(&["install", "ecr-credential-operator", &chart, "--namespace", &home, "--values", &file]).unwrap();
        let token = plane.service_account_token(&home, "ecr-credential-operator", "", 3600).await.unwrap();
        let operator: Api<ServiceAccount> = Api::namespaced(plane.client(&token).unwrap(), &home);
        let attachable = Self { client, home, operator };
        // People who edit the annotation write it as they like.
        let account = json!({
            "metadata": { "name": "puller", "annotations": { "note": "x", "pullsecrets.dev/attached": "gone, old" } },
            "imagePullSecrets": named(&["theirs", "more", "old"]),
        });
        let account = serde_json::from_value(account).unwrap();
        // Under a name of their own: were it the operator's, a patch within the same second could leave the managed fields as they are,
        // and the policy would hold against the operator what admission adds.
        let people = PostParams { field_manager: Some("kubectl".to_owned()), ..PostParams::default() };
        attachable.accounts().create(&people, &account).await.unwrap();
        let role = add("/metadata/annotations/eks.amazonaws.com~1role-arn", json!("arn:aws:iam::111122223333:role/x"));
        poll("the policy is in force", async || {
            attachable.patched(role.clone()).await.is_err_and(|why| why.contains("only the imagePullSecrets"))
        })
        .await;
        attachable
    }

    /// The same as the administrator.
    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), &self.home)
    }

    /// Patches it as the operator, without storing it.
    async fn patched(&self, operations: Value) -> Result<ServiceAccount, String> {
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let patch: Patch<()> = Patch::Json(serde_json::from_value(operations).unwrap());
        self.operator.patch("puller", &params, &patch).await.map_err(|error| error.to_string())
    }

    /// What the operator does is accepted.
    async fn accepts_what_the_operator_does(&self) -> ServiceAccount {
        let own = json!([
            { "op": "remove", "path": "/imagePullSecrets/2" },
            { "op": "add", "path": "/imagePullSecrets/-", "value": { "name": "ecr-pull-secret" } },
            { "op": "add", "path": "/metadata/annotations/pullsecrets.dev~1attached", "value": "ecr-pull-secret" },
        ]);
        // Admission that takes the entry out again may leave the mark.
        let undone = add("/metadata/annotations/pullsecrets.dev~1attached", json!("old,ecr-pull-secret"));
        self.patched(undone).await.expect("what admission leaves of it");
        self.patched(own).await.expect("what the operator does")
    }

    /// Everything else is refused.
    async fn refuses_everything_else(&self) {
        const ONLY: &str = "only the imagePullSecrets";
        const REMOVE: &str = "remove only what it has added";
        let attached = |names: &str| add("/metadata/annotations/pullsecrets.dev~1attached", json!(names));
        for (what, operations, says) in [
            ("a label", add("/metadata/labels", json!({ "a": "b" })), ONLY),
            ("another annotation", remove("/metadata/annotations/note"), ONLY),
            ("a changed annotation", add("/metadata/annotations/note", json!("y")), ONLY),
            ("a mountable Secret", add("/secrets", json!([{ "name": "x" }])), ONLY),
            ("whether tokens are mounted", add("/automountServiceAccountToken", json!(true)), ONLY),
            ("a finalizer", add("/metadata/finalizers", json!(["example.com/x"])), "may not add finalizers"),
            ("somebody else's entry", remove("/imagePullSecrets/0"), REMOVE),
            ("a mark on somebody else's entry, to remove it next", attached("old,theirs"), REMOVE),
            ("a mark on an entry that may come", attached("old,later"), REMOVE),
            ("others in another order", add("/imagePullSecrets", named(&["more", "theirs", "old"])), REMOVE),
            ("others twice", add("/imagePullSecrets", named(&["theirs", "theirs", "more", "old"])), REMOVE),
            (
                "a Secret of another name",
                add("/imagePullSecrets/-", json!({ "name": "other" })),
                "only its own pull secrets",
            ),
        ] {
            let why = self.patched(operations.clone()).await.expect_err(what);
            assert!(why.contains(says), "{what}: {why}");
            // What the request writes cannot be hidden from the policy. What admission adds is refused with it.
            let hide = add("/metadata/managedFields/-", unreadable_managed_field());
            let hidden = [hide, operations].iter().flat_map(|list| list.as_array().unwrap().clone()).collect();
            let why = self.patched(hidden).await.map_err(|why| format!("{what}, hidden: {why}")).expect_err(what);
            assert!(why.contains("denied request: the operator may"), "{why}");
        }
    }
}

/// A list of `imagePullSecrets`.
fn named(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "name": name })).collect()
}

fn add(path: &str, value: Value) -> Value {
    json!([{ "op": "add", "path": path, "value": value }])
}

fn remove(path: &str) -> Value {
    json!([{ "op": "remove", "path": path }])
}

/// The operator's own account may do to a ServiceAccount what the operator does, and nothing else.
#[tokio::test]
async fn the_operators_account_may_only_attach_pull_secrets_to_service_accounts() {
    let attachable = Attachable::new("accounts").await;
    attachable.accepts_what_the_operator_does().await;
    attachable.refuses_everything_else().await;
    let patch = Patch::Merge(json!({ "imagePullSecrets": [] }));
    let default = attachable.operator.patch("default", &PatchParams::default(), &patch).await;
    assert!(default.is_err_and(|why| why.to_string().contains("cannot patch")), "no right on other names");
}

#[tokio::test]
async fn what_admission_adds_to_a_service_account_is_not_held_against_the_operator() {
    let attachable = Attachable::new("mutated").await;
    if !MutatingPolicy::is_served(&attachable.client).await {
        return;
    }
    let object = "Object{automountServiceAccountToken: false, \
        metadata: Object.metadata{labels: {'added': 'x'}, annotations: {'added': 'x'}, finalizers: ['example.com/added']}}";
    let mutations = json!([{ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": object } }]);
    let (accounts, dry) = (attachable.accounts(), PatchParams { dry_run: true, ..PatchParams::default() });
    let probe = Patch::Merge(json!({ "metadata": { "labels": { "probe": "x" } } }));
    let acts = async || accounts.patch("puller", &dry, &probe).await.unwrap().labels().contains_key("added");
    let (client, home) = (&attachable.client, &attachable.home);
    let policy = MutatingPolicy::on(client, home, "serviceaccounts", json!([]), mutations, acts).await;
    let stored = attachable.accepts_what_the_operator_does().await;
    assert!(stored.annotations().contains_key("added") && stored.automount_service_account_token == Some(false));
    attachable.refuses_everything_else().await;
    policy.delete(client).await;
}

/// With `Fail`, a pod that costs too much to look at would be refused.
#[tokio::test]
async fn many_hosts_and_many_containers_are_not_too_many_and_odd_lists_get_the_secret_once() {
    let Some(cluster) = Cluster::new("many", json!({ "failurePolicy": "Fail" })).await else { return };
    let (namespace, probe) = (cluster.test.clone(), format!("{}-probe", cluster.test));
    let all = json!({ "names": [namespace] });
    let hosts: Vec<String> = (0..1000).map(|number| format!("{number:012}.dkr.ecr.eu-west-1.amazonaws.com")).collect();
    let last = hosts.last().unwrap();
    let many = cluster.credential("many", all.clone(), &hosts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    cluster.until(&namespace, &pod("x", &format!("{last}/app")), Ok(vec![many.clone()])).await;
    // Those of ECR cost most: they are searched for as that of their account, and as that of any.
    let of_region = |region: &str| format!("{}.dkr.ecr.{region}.amazonaws.com/app", "9".repeat(12));
    let image = |number| if number == 99 { format!("{last}/app") } else { of_region("eu-central-1") };
    let containers = (0..100).map(|number| json!({ "name": format!("c{number}"), "image": image(number) }));
    let large = with(pod("x", ""), "/spec", "containers", containers.collect());
    assert_eq!(cluster.created(&namespace, &large).await, Ok(vec![many]));

    let app = pod("x", &format!("{OWN}/app"));
    for (entries, expected) in [
        (json!(null), vec![""; 0]),
        (json!([]), vec![]),
        (json!([{}]), vec![""]),
        (json!([{ "name": "a" }, { "name": "a" }]), vec!["a", "a"]),
    ] {
        let seen = cluster.attached(&namespace, &with(app.clone(), "/spec", "imagePullSecrets", entries)).await;
        assert_eq!(seen, [expected, vec![&probe]].concat());
    }
    // Two EcrCredentials with the same Secret.
    for name in ["one", "two"] {
        let more = json!({ "attachTo": { "pods": "MatchingImages" }, "secret": { "name": "same" } });
        cluster.credential_with(name, all.clone(), &["same.example", &format!("{name}.example")], more).await;
        cluster.until(&namespace, &pod("x", &format!("{name}.example/x")), Ok(vec!["same".to_owned()])).await;
    }
    assert_eq!(cluster.attached(&namespace, &pod("x", "same.example/x")).await, ["same"]);
}
