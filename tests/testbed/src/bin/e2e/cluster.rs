//! The run's parts, and the few things that the story does with them again and again.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::aws::AwsStandIn;
use testbed::bed::logins;
use testbed::control_plane::ControlPlane;
use testbed::node::gateway::Gateway;
use testbed::node::registry::Registry;
use testbed::node::tools::Tools;
use testbed::node::{Node, pod_logs, tail, until};

use crate::story::{HOME, HOST, SECRET};

pub(crate) struct Cluster {
    pub(crate) plane: ControlPlane,
    pub(crate) gateway: Gateway,
    pub(crate) aws: AwsStandIn,
    pub(crate) registry: Registry,
    pub(crate) tools: Tools,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: String,
}

impl Cluster {
    pub(crate) fn client(&self) -> Result<Client> {
        self.plane.admin_client()
    }

    pub(crate) fn pods(&self, namespace: &str) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.client()?, namespace))
    }

    /// A namespace that pods can be made in.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        self.new_namespace(name).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client()?, name);
        until(accounts, "default", "made", |_| true).await?;
        Ok(())
    }

    /// A namespace that was made a moment ago.
    pub(crate) async fn new_namespace(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client()?);
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "pull": "ecr" } } }))?;
        api.create(&PostParams::default(), &namespace).await.with_context(|| format!("create the namespace {name}"))?;
        Ok(())
    }

    /// Puts a new image of the application into the registry, and returns the name by which pods know it.
    pub(crate) async fn release(&self, tag: &str) -> Result<String> {
        let image = format!("{HOST}/app:{tag}");
        let archive = self.tools.busybox_image(&image, &["sleep", "2147483647"], &[], &self.dir)?;
        self.registry.push(&archive, "app", tag).await?;
        Ok(image)
    }

    /// Makes a pod of the application, with or without the operator's Secret.
    pub(crate) async fn start_pod(&self, namespace: &str, name: &str, image: &str, with_secret: bool) -> Result<()> {
        let pod = self.pod(name, image, if with_secret { &[SECRET] } else { &[] })?;
        self.pods(namespace)?.create(&PostParams::default(), &pod).await?;
        Ok(())
    }

    /// A pod of the application that names Secrets.
    pub(crate) fn pod(&self, name: &str, image: &str, secrets: &[&str]) -> Result<Pod> {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({ "name": name })).collect();
        Ok(serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "containers": [{ "name": "app", "image": image, "imagePullPolicy": "Always" }],
                "imagePullSecrets": secrets,
                "automountServiceAccountToken": false,
                // Also while the node is closed to others.
                "tolerations": [{ "operator": "Exists" }],
                "terminationGracePeriodSeconds": 0,
            },
        }))?)
    }

    pub(crate) async fn until_running(&self, namespace: &str, name: &str) -> Result<Pod> {
        until(self.pods(namespace)?, name, "running", is_ready).await
    }

    /// The login for the registry in the Secret of a namespace, once it is there and another than `before`.
    pub(crate) async fn login(&self, namespace: &str, before: Option<&str>) -> Result<(Secret, String)> {
        let api: Api<Secret> = Api::namespaced(self.client()?, namespace);
        let login = |secret: &Secret| logins(secret).ok().and_then(|mut logins| logins.remove(HOST));
        let test = |secret: &Secret| login(secret).is_some_and(|login| before != Some(login.as_str()));
        let secret = until(api, SECRET, "written", test).await?;
        let login = login(&secret).context("no login")?;
        Ok((secret, login))
    }

    /// Closes the node to new pods, or opens it again.
    pub(crate) async fn close_node(&self, closed: bool) -> Result<()> {
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client()?);
        let patch = Patch::Merge(json!({ "spec": { "unschedulable": closed } }));
        nodes.patch(testbed::node::NAME, &PatchParams::default(), &patch).await?;
        until(nodes, testbed::node::NAME, "closed or open", |node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints.is_some_and(|taints| !taints.is_empty()) == closed
        })
        .await?;
        Ok(())
    }

    /// The operator's pods.
    pub(crate) async fn operators(&self) -> Result<Vec<Pod>> {
        let params = ListParams::default().labels("app.kubernetes.io/name=ecr-credential-operator");
        let pods = self.pods(HOME)?.list(&params).await?.items.into_iter();
        Ok(pods.filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Waits until as many of the operator's pods are ready as should be.
    pub(crate) async fn operators_ready(&self) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client()?, HOME);
        let all_ready = |deployment: &Deployment| {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            deployment.status.as_ref().is_some_and(|s| s.ready_replicas == wanted && s.replicas == wanted)
        };
        until(api, "ecr-credential-operator", "ready", all_ready).await?;
        Ok(())
    }

    /// What kubelet has warned of the operators' health.
    pub(crate) async fn failed_probes(&self) -> Result<Vec<String>> {
        let events: Api<Event> = Api::namespaced(self.client()?, HOME);
        let events = events.list(&ListParams::default().fields("reason=Unhealthy")).await?;
        let line = |event: Event| {
            format!("{}: {}", event.involved_object.name.unwrap_or_default(), event.message.unwrap_or_default())
        };
        Ok(events.into_iter().map(line).collect())
    }

    /// The pod that holds the lease, once it is another than `before`.
    pub(crate) async fn leader(&self, before: Option<&str>) -> Result<String> {
        let api: Api<Lease> = Api::namespaced(self.client()?, HOME);
        let pod = |lease: &Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.as_ref()?;
            Some(holder.split('_').next().unwrap_or_default().to_owned()).filter(|pod| !pod.is_empty())
        };
        let test = |lease: &Lease| pod(lease).is_some_and(|pod| before != Some(pod.as_str()));
        let lease = until(api, "ecr-credential-operator", "held", test).await?;
        pod(&lease).context("no holder")
    }

    /// Runs a program against the cluster, and returns what it says.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String> {
        let home = self.dir.join("home");
        std::fs::create_dir_all(&home)?;
        command.env("KUBECONFIG", self.plane.admin_kubeconfig()).env("HOME", home);
        let output = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{:?}: {}", command.get_program(), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies objects with one `kubectl apply`.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let file = self.dir.join("apply.json");
        std::fs::write(&file, json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string())?;
        self.run(Command::new(&self.tools.kubectl).args(["apply", "--filename"]).arg(file))?;
        Ok(())
    }

    /// Shows what kubectl says.
    pub(crate) fn kubectl(&self, arguments: &[&str]) {
        println!("   $ kubectl {}", arguments.join(" "));
        let said =
            self.run(Command::new(&self.tools.kubectl).args(arguments)).unwrap_or_else(|error| format!("{error:#}"));
        said.lines().for_each(|line| println!("   {line}"));
    }

    /// What helps to see why something failed.
    pub(crate) async fn evidence(&self, node: &Node) -> String {
        let logs = pod_logs(HOME).unwrap_or_default();
        let operator = tail(&logs, 30);
        let visits: Vec<String> =
            self.registry.visits().iter().map(|visit| format!("{} {}", visit.status, visit.request)).collect();
        self.kubectl(&["get", "pods", "-A", "-o", "wide"]);
        self.kubectl(&["get", "events", "-A"]);
        format!(
            "{}\n\nthe registry answered:\n{}\n\nthe end of the operators' logs:\n{operator}",
            node.log_tails(),
            visits.join("\n")
        )
    }

    /// How to look around in a cluster that is left running.
    pub(crate) fn invite(&self) {
        let kubeconfig = self.plane.admin_kubeconfig();
        println!(
            "\nEverything is left running, in namespaces of its own. In another terminal, as root:\n\n  \
             nsenter -t $(pgrep -f -- '--inside {dir}' | tail -1) -n -m -p env KUBECONFIG={} kubectl get pods -A\n\n\
             Logs are in {dir}. Ctrl-C ends it all.",
            kubeconfig.display(),
            dir = self.dir.display(),
        );
    }
}

pub(crate) fn step(text: &str) {
    println!("\n== {text}");
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

pub(crate) fn container_id(pod: &Pod) -> Result<String> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let id = statuses.and_then(|all| all.first()?.container_id.clone());
    id.with_context(|| format!("{} has no container", pod.name_any()))
}

fn is_ready(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.is_some_and(|all| !all.is_empty() && all.iter().all(|status| status.ready))
}
