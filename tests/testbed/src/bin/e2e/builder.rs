//! An image is built and pushed by a pod, with the docker config that an output holds.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::node::{pod_logs, tail, until};

use crate::cluster::{Cluster, step};
use crate::story::{CREDENTIAL, HOST, TEST_IMAGE, credentials, pulled_with};

/// The name of the output.
pub(crate) const CONFIG: &str = "build-config";

pub(crate) async fn build(cluster: &Cluster) -> Result<()> {
    step("a pod with buildah builds on a private base image and pushes, with the Secret of an output DockerConfigFile");
    let output = json!({ "name": CONFIG, "format": "DockerConfigFile", "namespaces": { "names": ["shop"] } });
    let patch = Patch::Merge(json!({ "spec": { "outputs": [output] } }));
    credentials(cluster)?.patch(CREDENTIAL, &PatchParams::default(), &patch).await?;
    cluster.release("base").await?;
    let pods = cluster.pods("shop")?;
    // It may be created before its Secret: kubelet mounts it as soon as it is there.
    let start = Instant::now();
    pods.create(&PostParams::default(), &builder(cluster)?).await?;
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let ended = |pod: &Pod| ["Succeeded", "Failed"].contains(&phase(pod).as_str());
    let pod = until(pods, "build", "done", ended).await?;
    ensure!(phase(&pod) == "Succeeded", "buildah says:\n{}", tail(&pod_logs("shop")?, 20));
    println!("   built and pushed after {:.1} s", start.elapsed().as_secs_f64());
    let secret = Api::<Secret>::namespaced(cluster.client()?, "shop").get(CONFIG).await?;
    let config =
        secret.data.and_then(|mut data| data.remove("config.json")).context("the Secret has no config.json")?;
    let config: Value = serde_json::from_slice(&config.0)?;
    let login = config["auths"][HOST]["auth"].as_str().context("the docker config has no login")?;
    for (request, status) in [("GET /v2/app/manifests/base", 200), ("PUT /v2/app/manifests/built", 201)] {
        let visits = cluster.registry.visits();
        let served = visits.iter().find(|visit| visit.request == request && visit.status == status);
        let served = served.with_context(|| format!("the registry has not answered {status} to {request}"))?;
        ensure!(served.auth.as_deref() == Some(login), "{request} came with another login");
    }
    cluster.start_pod("dock", "built", &format!("{HOST}/app:built"), false).await?;
    cluster.until_running("dock", "built").await?;
    pulled_with(cluster, "built", &cluster.login("dock", None).await?.1)?;
    println!("   a pod runs {HOST}/app:built");
    Ok(())
}

/// A pod that runs buildah of Debian's packages. It sees the machine's files, as no registry has an image of buildah here.
fn builder(cluster: &Cluster) -> Result<Pod> {
    let dir = cluster.dir.join("build");
    let (config, storage) = (dir.join("docker"), dir.join("storage"));
    std::fs::create_dir_all(&config)?;
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text);
    write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    write("registries.conf", &format!("[[registry]]\nlocation = \"{HOST}\"\ninsecure = true\n"))?;
    write("Dockerfile", &format!("FROM {HOST}/app:base\nRUN [\"busybox\", \"true\"]\nCOPY Dockerfile /Dockerfile\n"))?;
    let buildah = cluster.tools.program("buildah")?.canonicalize()?;
    let common = format!("--root {storage} --runroot {storage}/run --storage-driver vfs", storage = storage.display(),);
    let files =
        format!("--authfile {}/config.json --signature-policy {}/policy.json", config.display(), dir.display(),);
    // buildah runs each RUN by itself in an empty environment, so no LD_LIBRARY_PATH helps: the pod sees the libraries that this
    // machine may lack beside its own.
    let libraries = cluster.tools.library_path()?.canonicalize()?;
    let triplet = libraries.file_name().context("a folder")?.display();
    let script = format!(
        "set -e; cd {dir}\n\
         mount -t overlay libraries -o ro,lowerdir=/usr/lib/{triplet}:{libraries} /usr/lib/{triplet}\n\
         {buildah} {common} build --isolation chroot --security-opt seccomp=unconfined {files} --tag {HOST}/app:built .\n\
         {buildah} {common} push {files} {HOST}/app:built\n",
        dir = dir.display(),
        buildah = buildah.display(),
        libraries = libraries.display(),
    );
    let env = [
        ("CONTAINERS_REGISTRIES_CONF", dir.join("registries.conf")),
        ("HOME", dir.clone()),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("TMPDIR", dir.clone()),
    ];
    let env: Vec<_> = env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    Ok(serde_json::from_value(json!({
        "metadata": { "name": "build" },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "buildah",
                "image": TEST_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                // The path by which the image has it: PATH is the machine's.
                "command": ["/usr/local/bin/chroot", "/machine", "/bin/sh", "-c", script],
                "env": env,
                "securityContext": { "privileged": true, "runAsUser": 0 },
                "volumeMounts": [
                    { "name": "machine", "mountPath": "/machine" },
                    { "name": "docker-config", "mountPath": format!("/machine{}", config.display()), "readOnly": true },
                ],
            }],
            "volumes": [
                { "name": "machine", "hostPath": { "path": "/" } },
                { "name": "docker-config", "secret": { "secretName": CONFIG } },
            ],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
        },
    }))?)
}
