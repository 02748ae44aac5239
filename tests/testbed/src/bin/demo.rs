//! The main job from end to end: a real control plane, an AWS stand-in, the real operator, and Secrets that come, stay right and are renewed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use testbed::aws::Service;
use testbed::bed::{Bed, Launch, Operator, logins};

#[derive(Parser)]
struct Args {
    /// The operator's binary.
    #[arg(long)]
    operator: PathBuf,
    /// The CRD.
    #[arg(long)]
    crd: PathBuf,
    /// Leaves everything running until Ctrl-C.
    #[arg(long, env = "KEEP", default_value = "")]
    keep: String,
}

const HOSTS: [&str; 3] =
    ["111122223333.dkr.ecr.eu-west-1.amazonaws.com", "444455556666.dkr.ecr.eu-west-1.amazonaws.com", "public.ecr.aws"];

/// How long a token of the stand-in lives, so that a refresh can be watched.
const LIFE: i64 = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    println!(
        "This shows the operator at work on a real Kubernetes API server, with a stand-in for AWS: pull secrets are written, repaired,\nrefreshed and deleted, and a recorder checks each change against the project's invariants."
    );
    step("starting etcd, kube-apiserver and kube-controller-manager");
    let crd = std::fs::read_to_string(&args.crd).with_context(|| format!("read {}", args.crd.display()))?;
    let bed = Bed::alone("demo", &crd).await?;
    bed.aws.set_token_life(SignedDuration::from_secs(LIFE));
    step("starting the operator with the variables of IRSA and a ServiceAccount token");
    let launch = Launch::new(&args.operator);
    let mut operator = bed.operator(launch).await?;
    let credential = show(&bed, &operator).await?;
    if !args.keep.is_empty() {
        println!(
            "\nEverything keeps running, with the EcrCredential {credential}. In another terminal:\n\n  export KUBECONFIG={}\n  kubectl get ecrcredentials\n  kubectl get secrets -A\n  kubectl edit ecrcredential {credential}\n\nThe operator's log: {}\nPress Ctrl-C to stop.",
            bed.plane.admin_kubeconfig().display(),
            operator.log.display()
        );
        tokio::signal::ctrl_c().await?;
        // What somebody else has changed meanwhile is not judged.
        operator.signal("TERM")?;
        operator.ended().await?;
        return Ok(());
    }
    delete(&bed, &credential).await?;
    step("stopping the operator with SIGTERM");
    operator.signal("TERM")?;
    let status = operator.ended().await?;
    ensure!(status.success(), "the operator ended with {status}: {}", operator.tail());
    println!("   it released its Lease and exited with 0");
    bed.finish().await?;
    println!("\nThe demo finished after {:.0} s: no invariant was violated.", start.elapsed().as_secs_f64());
    Ok(())
}

/// The life of an EcrCredential, whose name is returned.
async fn show(bed: &Bed, operator: &Operator) -> Result<String> {
    step("creating two namespaces and an EcrCredential for two accounts and ECR Public");
    let payments = bed.namespace("payments", &[]).await?;
    let web = bed.namespace("web", &[("pull", "ecr")]).await?;
    let spec = json!({
        "registries": [
            { "private": { "region": "eu-west-1", "accountIds": ["111122223333", "444455556666"] } },
            { "public": {} },
        ],
        "namespaces": { "names": [payments], "selector": { "matchLabels": { "pull": "ecr" } } },
    });
    let name = bed.credential("platform", spec).await?;
    for namespace in [&payments, &web] {
        describe(namespace, &bed.logins_until(namespace, &HOSTS).await?)?;
    }
    bed.ready(&name).await?;
    kubectl(bed, &["get", "ecrcredentials"]);

    step("labeling a namespace: it gets its pull secret from the token in memory");
    let shop = bed.namespace("shop", &[]).await?;
    let calls = bed.aws.calls(Service::Ecr).len();
    let before = Instant::now();
    bed.label(&shop, &[("pull", Some("ecr"))]).await?;
    let secret = bed.logins_until(&shop, &HOSTS).await?;
    println!(
        "   after {} ms, with {} further calls to AWS",
        before.elapsed().as_millis(),
        bed.aws.calls(Service::Ecr).len() - calls
    );
    describe(&shop, &secret)?;

    step("editing a pull secret: the operator repairs it in place");
    let uid = secret.uid();
    let patch = json!({ "data": { ".dockerconfigjson": "e30=" } });
    let edited = bed.secrets(&shop).patch(&bed.secret, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    ensure!(logins(&edited).is_err(), "the edit took");
    let repaired = bed.logins_until(&shop, &HOSTS).await?;
    ensure!(repaired.uid() == uid, "the uid has changed");
    println!("   the tokens are back, the uid is the same");

    step("deleting a pull secret: the operator recreates it");
    bed.secrets(&shop).delete(&bed.secret, &DeleteParams::default()).await?;
    let again = bed.secret_until(&shop, "made again", |s| s.is_some_and(|s| s.uid() != uid)).await?;
    describe(&shop, &again.context("the Secret is there")?)?;

    step(&format!(
        "waiting for a refresh: tokens are valid for {LIFE} s here, so they are refreshed about every {} s",
        LIFE / 2
    ));
    let old = bed.logins_until(&payments, &HOSTS).await?;
    let new = bed
        .secret_until(&payments, "refreshed", |s| s.is_some_and(|s| s.resource_version() != old.resource_version()))
        .await?;
    let new = new.context("the Secret is there")?;
    ensure!(new.uid() == old.uid(), "the uid has changed");
    let (old, new_logins) = (logins(&old)?, logins(&new)?);
    let changed: BTreeSet<&String> = old.keys().filter(|host| old[*host] != new_logins[*host]).collect();
    println!("   {} of {} tokens are new, in the same Secret (the uid has not changed)", changed.len(), old.len());
    describe(&payments, &new)?;

    step("status, Events and metrics");
    kubectl(bed, &["get", "ecrcredentials"]);
    kubectl(bed, &["get", "events", "-n", "default", "--field-selector", "involvedObject.kind=EcrCredential"]);
    let (_, metrics) = operator.get("/metrics").await?;
    for line in metrics
        .lines()
        .filter(|l| l.contains("aws_requests_total") || l.contains("secret_writes_total") || l.contains("namespaces{"))
        .filter(|l| !l.starts_with('#') && !l.ends_with(" 0"))
    {
        println!("   {line}");
    }
    Ok(name)
}

async fn delete(bed: &Bed, credential: &str) -> Result<()> {
    step("deleting the EcrCredential: the garbage collector deletes its pull secrets");
    bed.credentials().delete(credential, &DeleteParams::default()).await?;
    let namespaces = ["payments", "web", "shop"].map(|name| bed.name(name));
    futures::stream::iter(&namespaces)
        .for_each_concurrent(None, |namespace| async move {
            let _ = bed.secret_until(namespace, "gone", |s| s.is_none()).await;
        })
        .await;
    for namespace in &namespaces {
        ensure!(bed.secret(namespace).await?.is_none(), "the Secret in {namespace} is still there");
    }
    println!("   none is left");
    Ok(())
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn describe(namespace: &str, secret: &Secret) -> Result<()> {
    let hosts: Vec<String> = logins(secret)?.into_keys().collect();
    let expires = secret.annotations().get("pullsecrets.dev/expires-at").map_or("?", String::as_str);
    println!("   {namespace}/{}: {} (valid until {expires})", secret.name_any(), hosts.join(", "));
    Ok(())
}

/// Shows what kubectl says; where there is none, the demo goes on without.
fn kubectl(bed: &Bed, args: &[&str]) {
    let output = Command::new("kubectl").env("KUBECONFIG", bed.plane.admin_kubeconfig()).args(args).output();
    if let Ok(output) = output {
        println!("   $ kubectl {}", args.join(" "));
        for line in
            String::from_utf8_lossy(&output.stdout).lines().chain(String::from_utf8_lossy(&output.stderr).lines())
        {
            println!("   {line}");
        }
    }
}
