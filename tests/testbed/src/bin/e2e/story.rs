//! What is shown, in order: the install, a pull, a refusal, a pull by a pod that names no Secret, a static pod, a build, a refresh, the loss of the leader, and what it all costs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::aws::{Role, Service, Trust};
use testbed::bed::{condition, credential_resource};
use testbed::node::measure::Container;
use testbed::node::tools::Tools;
use testbed::node::{PATIENCE, pod_logs, until};

use crate::cluster::{Cluster, container_id, restarts, step};
use crate::{builder, static_pod};

pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const HOME: &str = "ecr-credential-operator";
pub(crate) const SECRET: &str = "ecr-pull-secret";

const ROLE: &str = "arn:aws:iam::123456789012:role/ecr-pull";
const AUDIENCE: &str = "sts.amazonaws.com";
pub(crate) const CREDENTIAL: &str = "platform";
pub(crate) const TEST_IMAGE: &str = "public.ecr.aws/docker/library/busybox:1.37";

/// How long the operators are watched at rest.
const REST: Duration = Duration::from_secs(30);

pub(crate) async fn tell(cluster: &Cluster, chart: &Path) -> Result<()> {
    install(cluster, chart).await?;
    test_of_the_chart(cluster).await?;
    pull(cluster).await?;
    refuse(cluster).await?;
    attach(cluster).await?;
    static_pod::run(cluster).await?;
    builder::build(cluster).await?;
    refresh(cluster).await?;
    crash_of_the_leader(cluster).await?;
    end_of_the_leader(cluster).await?;
    rest(cluster).await?;
    secrecy(cluster)?;
    Ok(())
}

async fn install(cluster: &Cluster, chart: &Path) -> Result<()> {
    step(
        "installing the chart with helm: two replicas of the operator's own image, with a projected token as outside EKS",
    );
    let issuer = cluster.plane.issuer();
    cluster.aws.set_jwks(&issuer, &cluster.plane.jwks().await?.to_string());
    let subject = format!("system:serviceaccount:{HOME}:ecr-credential-operator");
    cluster.aws.add_role(Role::new(ROLE).trusting(Trust::web_identity(&issuer, &subject, AUDIENCE)));
    let values = cluster.dir.join("values.yaml");
    std::fs::write(&values, chart_values(cluster).to_string())?;
    let mut helm = Command::new(&cluster.tools.helm);
    helm.args(["install", "ecr-credential-operator"]).arg(chart).arg("--values").arg(values);
    helm.args(["--namespace", HOME, "--create-namespace", "--wait", "--timeout", "3m"]);
    let start = Instant::now();
    cluster.run(&mut helm)?;
    println!("   ready after {:.1} s", start.elapsed().as_secs_f64());
    cluster.kubectl(&["get", "pods", "--all-namespaces"]);
    let leader = cluster.leader(None).await?;
    println!("   the leader is {leader}");
    let warnings = cluster.failed_probes().await?;
    ensure!(warnings.is_empty(), "the start alone made warnings: {warnings:?}");
    Ok(())
}

/// The image that the chart's test names, made here of busybox as the real one is: the cluster reaches no other registry.
pub(crate) fn test_image(tools: &Tools, dir: &Path) -> Result<PathBuf> {
    tools.busybox_image(TEST_IMAGE, &["sh"], &["chroot", "grep", "sh", "sleep", "wget"], dir)
}

async fn test_of_the_chart(cluster: &Cluster) -> Result<()> {
    step("helm test: one pod runs the operator's own check, one asks the operators' Service by its name");
    cluster.gateway.open(HOME, "ecr-credential-operator").await?;
    let mut helm = Command::new(&cluster.tools.helm);
    helm.args(["test", "ecr-credential-operator", "--namespace", HOME, "--timeout", "2m"]);
    let said = cluster.run(&mut helm)?;
    let lines = said.lines().skip_while(|line| !line.starts_with("TEST SUITE")).take(8);
    lines.for_each(|line| println!("   {line}"));
    Ok(())
}

/// The role that the chart's projected token is for, as outside EKS, and where the AWS stand-in is.
fn chart_values(cluster: &Cluster) -> Value {
    let [ecr, ecr_public, sts] = [Service::Ecr, Service::EcrPublic, Service::Sts].map(|one| cluster.aws.endpoint(one));
    json!({
        "aws": {
            "region": REGION,
            "endpoints": { "ecr": ecr, "ecrPublic": ecr_public, "sts": sts },
            "webIdentity": { "roleArn": ROLE },
        },
        "outputs": [{ "name": builder::CONFIG, "format": "DockerConfigFile" }],
    })
}

async fn pull(cluster: &Cluster) -> Result<()> {
    step("applying an EcrCredential, and a pod in a new namespace that pulls a private image with the Secret");
    credentials(cluster)?.create(&PostParams::default(), &credential()?).await?;
    cluster.namespace("shop").await?;
    let (_, login) = cluster.login("shop", None).await?;
    let image = cluster.release("1").await?;
    let start = Instant::now();
    cluster.start_pod("shop", "first", &image, true).await?;
    cluster.until_running("shop", "first").await?;
    println!("   the pod with imagePullSecrets runs {image} after {:.1} s", start.elapsed().as_secs_f64());
    pulled_with(cluster, "1", &login)?;
    let ready = |object: &DynamicObject| condition(object, "Ready").is_some_and(|c| c["status"] == "True");
    until(credentials(cluster)?, CREDENTIAL, "ready", ready).await?;
    cluster.kubectl(&["get", "ecrcredentials"]);
    Ok(())
}

async fn refuse(cluster: &Cluster) -> Result<()> {
    step("a pod without the Secret, for the same registry");
    let image = cluster.release("2").await?;
    cluster.start_pod("shop", "stranger", &image, false).await?;
    let refused = |pod: &Pod| waiting(pod).is_some_and(|(reason, _)| reason == "ErrImagePull");
    let pod = until(cluster.pods("shop")?, "stranger", "refused", refused).await?;
    let (reason, message) = waiting(&pod).context("the pod waits")?;
    println!("   {reason}: {message}");
    let visits = cluster.registry.visits();
    let manifest = visits.iter().filter(|visit| visit.request.ends_with("/manifests/2"));
    let statuses: Vec<u16> = manifest.map(|visit| visit.status).collect();
    ensure!(!statuses.is_empty() && statuses.iter().all(|status| *status == 401), "the registry answered {statuses:?}");
    cluster.pods("shop")?.delete("stranger", &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

async fn attach(cluster: &Cluster) -> Result<()> {
    step("with attachTo.pods: a namespace and a pod in it, made by one kubectl apply; the pod names no Secret");
    let patch = json!({ "spec": { "attachTo": { "pods": "MatchingImages" } } });
    credentials(cluster)?.patch(CREDENTIAL, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let attached = |object: &DynamicObject| condition(object, "Attached").is_some_and(|c| c["status"] == "True");
    until(credentials(cluster)?, CREDENTIAL, "attached", attached).await?;
    // The API server hears of a changed EcrCredential by a watch of its own.
    let image = cluster.release("attached").await?;
    cluster.namespace("harbour").await?;
    let probe = |number: u32| {
        let name = format!("probe-{number}");
        async move {
            let params = PostParams { dry_run: true, ..PostParams::default() };
            let pod = cluster.pod(&name, &format!("{HOST}/app:1"), &[])?;
            anyhow::Ok(pull_secrets(&cluster.pods("harbour")?.create(&params, &pod).await?))
        }
    };
    // An API server that looked for the policy's kind before the CRD was served looks again after 30 seconds.
    let (start, mut tries) = (Instant::now(), 0);
    while probe(tries).await?.is_empty() {
        tries += 1;
        ensure!(start.elapsed() < PATIENCE, "no pod gets the Secret");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let start = Instant::now();
    let mut first = serde_json::to_value(cluster.pod("first", &image, &[])?)?;
    first["metadata"]["namespace"] = json!("dock");
    cluster.apply(&[
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "dock", "labels": { "pull": "ecr" } } }),
        first,
    ])?;
    let pod = cluster.until_running("dock", "first").await?;
    println!("   the pod runs {image} after {:.1} s", start.elapsed().as_secs_f64());
    ensure!(pull_secrets(&pod) == [SECRET], "the pod names {:?}", pull_secrets(&pod));
    let (_, login) = cluster.login("dock", None).await?;
    pulled_with(cluster, "attached", &login)?;
    let other = cluster.pod("other", "registry.example/app:1", &[])?;
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let other = cluster.pods("dock")?.create(&params, &other).await?;
    ensure!(pull_secrets(&other).is_empty(), "a pod of another registry names {:?}", pull_secrets(&other));
    println!("   a pod with another registry's image is left alone");
    Ok(())
}

pub(crate) fn pull_secrets(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.image_pull_secrets.iter().flatten()).map(|secret| secret.name.clone()).collect()
}

async fn refresh(cluster: &Cluster) -> Result<()> {
    step("waiting for the scheduled refresh (maxAge is 1 minute now); the registry then refuses the old password");
    let (secret, old) = cluster.login("shop", None).await?;
    let max_age = async |age: &str| {
        let patch = json!({ "spec": { "refresh": { "maxAge": age } } });
        anyhow::Ok(credentials(cluster)?.patch(CREDENTIAL, &PatchParams::default(), &Patch::Merge(&patch)).await?)
    };
    max_age("1m").await?;
    let start = Instant::now();
    let (renewed, _) = cluster.login("shop", Some(&old)).await?;
    ensure!(renewed.uid() == secret.uid(), "the Secret is another, not a renewed one");
    println!("   it came after {:.0} s, in the same Secret", start.elapsed().as_secs_f64());
    // From here on nothing but what is shown is to happen.
    max_age("6h").await?;
    let issued = cluster.aws.token_of(&old).context("the old password was issued")?.issued;
    cluster.aws.revoke_tokens(|token| token.issued <= issued);
    let (_, login) = cluster.login("shop", Some(&old)).await?;
    let status = ask(cluster, &old).await?;
    ensure!(status == 403, "the registry answers {status} to the old password");
    println!("   the registry answers 403 to the old password");
    let image = cluster.release("3").await?;
    cluster.start_pod("shop", "second", &image, true).await?;
    cluster.until_running("shop", "second").await?;
    pulled_with(cluster, "3", &login)?;
    println!("   a new pod pulls {image} with the new password");
    Ok(())
}

async fn crash_of_the_leader(cluster: &Cluster) -> Result<()> {
    step("killing the leader's process and deleting its pod");
    // Its successor in the Deployment must wait, so that the replica that is there takes over.
    cluster.close_node(true).await?;
    let before = Quiet::look(cluster).await?;
    let leader = cluster.leader(None).await?;
    let pod = cluster.pods(HOME)?.get(&leader).await?;
    // The log goes with the pod.
    secrecy(cluster)?;
    let start = Instant::now();
    Container::find(&cluster.cgroup, &container_id(&pod)?)?.kill()?;
    cluster.pods(HOME)?.delete(&leader, &DeleteParams::default().grace_period(0)).await?;
    let image = cluster.release("4").await?;
    cluster.start_pod("shop", "meanwhile", &image, true).await?;
    cluster.until_running("shop", "meanwhile").await?;
    println!("   a pod still pulls, {:.1} s after", start.elapsed().as_secs_f64());
    let next = cluster.leader(Some(&leader)).await?;
    println!("   {next} leads, {:.1} s after", start.elapsed().as_secs_f64());
    ensure!(before.operators.contains(&next), "{next} was not there before");
    before.still(cluster).await?;
    cluster.close_node(false).await
}

async fn end_of_the_leader(cluster: &Cluster) -> Result<()> {
    cluster.operators_ready().await?;
    step("deleting the leader's pod, as in a rollout: it gives its lease back");
    let before = Quiet::look(cluster).await?;
    let leader = cluster.leader(None).await?;
    secrecy(cluster)?;
    let start = Instant::now();
    cluster.pods(HOME)?.delete(&leader, &DeleteParams::default()).await?;
    let next = cluster.leader(Some(&leader)).await?;
    println!("   {next} leads, {:.1} s after", start.elapsed().as_secs_f64());
    before.still(cluster).await?;
    step("a further namespace under the new leader");
    cluster.namespace("market").await?;
    let (_, login) = cluster.login("market", None).await?;
    let image = cluster.release("5").await?;
    cluster.start_pod("market", "first", &image, true).await?;
    cluster.until_running("market", "first").await?;
    pulled_with(cluster, "5", &login)?;
    before.without_aws(cluster)?;
    println!("   its pod pulls with the password that was there; AWS was not asked");
    cluster.operators_ready().await?;
    cluster.kubectl(&["get", "pods", "--all-namespaces"]);
    cluster.kubectl(&["get", "ecrcredentials"]);
    Ok(())
}

/// What must not change while a leader goes and another comes.
struct Quiet {
    version: Option<String>,
    calls: usize,
    operators: Vec<String>,
}

impl Quiet {
    async fn look(cluster: &Cluster) -> Result<Quiet> {
        let (secret, _) = cluster.login("shop", None).await?;
        let operators = cluster.operators().await?.iter().map(ResourceExt::name_any).collect();
        Ok(Quiet { version: secret.resource_version(), calls: cluster.aws.calls(Service::Ecr).len(), operators })
    }

    async fn still(&self, cluster: &Cluster) -> Result<()> {
        let (secret, _) = cluster.login("shop", None).await?;
        ensure!(secret.resource_version() == self.version, "the Secret was written");
        self.without_aws(cluster)?;
        for pod in ["first", "second"] {
            let pod = cluster.until_running("shop", pod).await?;
            ensure!(restarts(&pod) == 0, "{} was restarted", pod.name_any());
        }
        println!("   no Secret was written, AWS was not asked, every pod runs on");
        Ok(())
    }

    fn without_aws(&self, cluster: &Cluster) -> Result<()> {
        let calls = cluster.aws.calls(Service::Ecr).len();
        ensure!(calls == self.calls, "ECR was called {} times", calls - self.calls);
        Ok(())
    }
}

async fn rest(cluster: &Cluster) -> Result<()> {
    step(&format!("watching the operators at rest for {} s", REST.as_secs()));
    let leader = cluster.leader(None).await?;
    let mut watched = vec![];
    for pod in cluster.operators().await? {
        ensure!(restarts(&pod) == 0, "{} was restarted", pod.name_any());
        let container = Container::find(&cluster.cgroup, &container_id(&pod)?)?;
        let usage = container.usage()?;
        watched.push((pod.name_any(), container, usage));
    }
    tokio::time::sleep(REST).await;
    for (name, container, before) in watched {
        let now = container.usage()?;
        let cpu = (now.cpu - before.cpu).as_secs_f64() * 1000.0 / REST.as_secs_f64();
        let mib = |kib: u64| kib as f64 / 1024.0;
        println!(
            "   {name}{}: {:.1} MiB resident (peak {:.1}), {:.1} MiB of it anonymous; {:.1} MiB charged to its cgroup; {cpu:.2} ms of CPU a second; {} threads; user {}",
            if name == leader { ", the leader" } else { "" },
            mib(now.resident),
            mib(now.peak),
            mib(now.anonymous),
            mib(now.charged),
            now.threads,
            now.user,
        );
        ensure!(now.user != 0, "{name} runs as root");
    }
    Ok(())
}

/// That no password, key or token that AWS has given or taken is in the operators' logs.
fn secrecy(cluster: &Cluster) -> Result<()> {
    let logs = pod_logs(HOME)?;
    ensure!(!logs.is_empty(), "the operators have logged nothing");
    let secrets = cluster.aws.secrets_issued();
    ensure!(!secrets.is_empty(), "AWS has given out nothing");
    ensure!(!secrets.iter().any(|secret| logs.contains(secret)), "the operators' logs hold a secret");
    println!("   none of {} secrets is in the operators' {} log lines", secrets.len(), logs.lines().count());
    Ok(())
}

pub(crate) fn credentials(cluster: &Cluster) -> Result<Api<DynamicObject>> {
    Ok(Api::all_with(cluster.client()?, &credential_resource()))
}

fn credential() -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "pullsecrets.dev/v1alpha1",
        "kind": "EcrCredential",
        "metadata": { "name": CREDENTIAL },
        "spec": {
            "registries": [{ "private": {} }],
            "namespaces": { "selector": { "matchLabels": { "pull": "ecr" } } },
            // Until the refresh is looked at, no other may come between a pull and the look at its login.
            "refresh": { "maxAge": "6h" },
        },
    }))?)
}

/// That the last manifest of a tag was given for this login, and none of it without one.
pub(crate) fn pulled_with(cluster: &Cluster, tag: &str, login: &str) -> Result<()> {
    let visits = cluster.registry.visits();
    let served: Vec<_> =
        visits.iter().filter(|v| v.request.ends_with(&format!("/manifests/{tag}")) && v.status == 200).collect();
    match served.last() {
        None => bail!("the registry has not served app:{tag}"),
        Some(last) if last.auth.as_deref() == Some(login) => Ok(()),
        Some(_) => bail!("app:{tag} was not pulled with the login of the Secret"),
    }
}

async fn ask(cluster: &Cluster, login: &str) -> Result<u16> {
    let url = format!("{}/v2/app/manifests/1", cluster.registry.url());
    let http = reqwest::Client::builder().no_proxy().build()?;
    Ok(http.get(url).header("authorization", format!("Basic {login}")).send().await?.status().as_u16())
}

pub(crate) fn waiting(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
}
