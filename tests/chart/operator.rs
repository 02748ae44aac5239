//! The operator itself with the rights and flags of the chart, and under its policy.

use std::collections::BTreeSet;

use clap::{CommandFactory, Parser};
use ecr_credential_operator::cli::{Cli, Command};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch, PATIENCE, condition};
use testbed::recorder::Invariant;

use super::helm::{Helm, chart, object};

pub(crate) const OWN: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// A bed whose operator has no rights but those that the chart grants, with the policy in force.
pub(crate) async fn with_the_chart(test: &str, values: Value) -> Bed {
    under_the_chart(Bed::new(test, super::CRD).await.unwrap(), values).await
}

/// The same for a bed that has been made.
pub(crate) async fn under_the_chart(bed: Bed, values: Value) -> Bed {
    let cluster: Api<ClusterRoleBinding> = Api::all(bed.client.clone());
    cluster.delete(&bed.prefix, &DeleteParams::default()).await.unwrap();
    let own: Api<RoleBinding> = Api::namespaced(bed.client.clone(), &bed.home);
    own.delete("lease", &DeleteParams::default()).await.unwrap();
    let events: Api<RoleBinding> = Api::namespaced(bed.client.clone(), "default");
    events.delete(&format!("{}-events", bed.prefix), &DeleteParams::default()).await.unwrap();
    install(&bed, values);
    policy_in_force(&bed).await;
    bed
}

/// Values for the bed's own ServiceAccount and Secrets.
fn values_for(bed: &Bed, mut values: Value) -> Value {
    values["fullnameOverride"] = json!("ecr-credential-operator");
    values["serviceAccount"] = json!({ "create": false, "name": "operator" });
    values["crds"] = json!({ "enabled": false });
    values["secretNames"] = json!([bed.secret]);
    values
}

/// Installs or upgrades the chart in the bed's own namespace.
fn install(bed: &Bed, values: Value) {
    let helm = Helm::on(bed.plane, "v3");
    let (chart, file) = (chart(), helm.values(&values_for(bed, values)));
    let args = [
        "upgrade",
        "--install",
        "eco",
        &chart.to_string_lossy(),
        "--namespace",
        &bed.home,
        "--values",
        &file.to_string_lossy(),
    ];
    helm.run(&args).unwrap();
}

/// Waits until the API server has taken note of the policy: it tells no one when.
async fn policy_in_force(bed: &Bed) {
    let token = bed.plane.service_account_token(&bed.home, "operator", "", 3600).await.unwrap();
    let probe = bed.namespace("probe", &[]).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(bed.plane.client(&token).unwrap(), &probe);
    let wrong = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": bed.secret }, "type": "Opaque" });
    let params = PatchParams { dry_run: true, ..PatchParams::apply("probe") };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match secrets.patch(&bed.secret, &params, &Patch::Apply(&wrong)).await {
            Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => return,
            other => assert!(tokio::time::Instant::now() < deadline, "the policy is not in force: {other:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

pub(crate) fn launch() -> Launch {
    Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator"))
}

#[tokio::test]
async fn with_the_charts_rights_and_under_its_policy_it_does_all_that_it_should() {
    let bed = with_the_chart("chart-works", json!({})).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    let spec = json!({ "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": [a, b] } });
    let name = bed.credential("x", spec).await.unwrap();
    let first = bed.logins_until(&a, &[OWN, "public.ecr.aws"]).await.unwrap();
    bed.ready(&name).await.unwrap();

    // A key that somebody adds is taken out, although the policy lets the operator write but one.
    bed.recorder.excuse(Invariant::I1Scope, format!("{a}/{}", bed.secret), "the Secret is adopted and stripped");
    let extra = Patch::Merge(json!({ "stringData": { "extra": "x" } }));
    bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &extra).await.unwrap();
    let is_clean = |s: Option<&Secret>| s.is_some_and(|s| s.data.as_ref().is_some_and(|data| data.len() == 1));
    bed.secret_until(&a, "one key", is_clean).await.unwrap();

    // An expiry that somebody writes is put right, although it seems to go back.
    let far = Patch::Merge(
        json!({ "metadata": { "annotations": { "pullsecrets.dev/expires-at": "2999-01-01T00:00:00Z" } } }),
    );
    bed.secrets(&a).patch(&bed.secret, &PatchParams::default(), &far).await.unwrap();
    let expiry = |s: &Secret| s.annotations()["pullsecrets.dev/expires-at"].clone();
    bed.secret_until(&a, "its expiry", |s| s.is_some_and(|s| expiry(s) == expiry(&first))).await.unwrap();

    // So is what somebody applies under the operator's name.
    for invariant in [Invariant::I3WellFormed, Invariant::I5FailStatic] {
        let about = format!("{a}/{}", bed.secret);
        bed.recorder.excuse(invariant, about, "a write under the operator's name counts as one of its own");
    }
    for expires_at in ["2999-01-01T00:00:00Z", "never"] {
        let ObjectMeta { labels, annotations, owner_references, .. } = first.metadata.clone();
        let mut metadata = ObjectMeta { labels, annotations, owner_references, ..ObjectMeta::default() };
        metadata.annotations.get_or_insert_default().insert("pullsecrets.dev/expires-at".into(), expires_at.into());
        let data = [(".dockerconfigjson".to_owned(), ByteString(br#"{"auths":{}}"#.to_vec()))];
        let forged = Patch::Apply(Secret { metadata, data: Some(data.into()), ..first.clone() });
        let params = PatchParams::apply("ecr-credential-operator").force();
        bed.secrets(&a).patch(&bed.secret, &params, &forged).await.unwrap();
        let is_as_before = |s: &Secret| s.data == first.data && expiry(s) == expiry(&first);
        bed.secret_until(&a, "put right", |s| s.is_some_and(is_as_before)).await.unwrap();
    }

    // A host more, a refresh, a namespace less, and the end.
    let more = json!([{ "private": {} }, { "public": {} }, { "private": { "region": "us-east-1" } }]);
    bed.change(&name, json!({ "spec": { "registries": more } })).await.unwrap();
    let hosts = [OWN, "123456789012.dkr.ecr.us-east-1.amazonaws.com", "public.ecr.aws"];
    let second = bed.logins_until(&a, &hosts).await.unwrap();
    bed.logins_until(&b, &hosts).await.unwrap();
    bed.request_refresh(&name, "1").await.unwrap();
    bed.secret_until(&a, "new tokens", |s| s.is_some_and(|s| s.data != second.data)).await.unwrap();
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a] } } })).await.unwrap();
    bed.secret_until(&b, "gone", |s| s.is_none()).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn with_listed_namespaces_it_needs_no_right_on_secrets_elsewhere() {
    let bed = Bed::new("chart-listed", super::CRD).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let other = bed.namespace("other", &[]).await.unwrap();
    let cluster: Api<ClusterRoleBinding> = Api::all(bed.client.clone());
    cluster.delete(&bed.prefix, &DeleteParams::default()).await.unwrap();
    install(&bed, json!({ "namespaces": [a] }));
    let operator = bed.operator(launch().args(&["--namespace", &a])).await.unwrap();
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": [a] } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(bed.secret(&other).await.unwrap().is_none());
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// What the chart's second pod for `helm test` runs, with its settings and as its ServiceAccount.
#[tokio::test]
async fn the_test_of_the_chart_fails_where_nothing_is_written_and_where_rights_are_missing() {
    let bed = with_the_chart("chart-tested", json!({})).await;
    let values = values_for(&bed, json!({ "extraEnv": [{ "name": "MORE", "value": "1" }] }));
    let objects = Helm::offline("v3").template(&bed.home, "1.36.0", &values).unwrap();
    let pod = &object(&objects, "Pod", "ecr-credential-operator-check")["spec"];
    let operator = &object(&objects, "Deployment", "")["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], operator["serviceAccountName"]);
    let (pod, operator) = (&pod["containers"][0], &operator["containers"][0]);
    for field in ["env", "image", "securityContext"] {
        assert_eq!(pod[field], operator[field], "{field}");
    }
    let plain = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_str()?.to_owned()));
    let env: Vec<(String, String)> = pod["env"].as_array().unwrap().iter().filter_map(plain).collect();
    let args: Vec<String> = serde_json::from_value(pod["args"].clone()).unwrap();
    let token = bed.plane.service_account_token(&bed.home, "operator", "", 3600).await.unwrap();
    let kubeconfig = bed.plane.kubeconfig(&bed.plane.url(), &token, Some(bed.plane.ca_pem())).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ecr-credential-operator"));
    command.env_clear().args(args).envs(env).env("KUBECONFIG", kubeconfig);
    // Other tests have EcrCredentials too; and what a pod is, its environment tells.
    command.env("ECO_CREDENTIAL_SELECTOR", format!("bed={}", bed.prefix)).env("POD_NAME", "test");
    command.env("POD_NAMESPACE", &bed.home);
    command.env("AWS_REGION", "eu-west-1");
    let mut ends = |code, words: &str| {
        let output = command.output().unwrap();
        let says = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).contains(words);
        (output.status.code() == Some(code) && says).then_some(()).ok_or_else(|| format!("{output:?}"))
    };
    ends(0, "NoLease").unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    ends(0, "No problem found.").unwrap();
    operator.stop().await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": [a] } });
    let name = bed.credential("x", spec).await.unwrap();
    ends(1, "Missing").unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    bed.ready(&name).await.unwrap();
    ends(0, "No problem found.").unwrap();
    operator.stop().await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(bed.client.clone());
    let bound = format!("{}.ecr-credential-operator", bed.home);
    bindings.delete(&bound, &DeleteParams::default()).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // It cannot even list EcrCredentials, once the API server has taken note.
    while let Err(said) = ends(2, "cannot be listed") {
        assert!(tokio::time::Instant::now() < deadline, "it goes on without rights: {said}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn adopting_is_refused_by_the_policy_until_the_chart_allows_it() {
    let bed = with_the_chart("chart-adopt", json!({})).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let foreign = json!({
        "metadata": { "name": bed.secret }, "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": "{}" },
    });
    bed.secrets(&a).create(&PostParams::default(), &serde_json::from_value(foreign).unwrap()).await.unwrap();
    let operator = bed.operator(launch()).await.unwrap();
    let spec = json!({
        "registries": [{ "private": {} }], "namespaces": { "names": [a] }, "secret": { "name": bed.secret, "conflictPolicy": "Adopt" },
    });
    let name = bed.credential("x", spec).await.unwrap();
    let status = bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    let failure = &status.data["status"]["failures"][0];
    assert_eq!(failure["reason"], "AdmissionRefused", "{failure}");
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("validatingAdmissionPolicy.allowAdopt"), "{message}");
    assert!(condition(&status, "Stalled").is_some_and(|c| c["status"] == "False"));

    bed.recorder.excuse(Invariant::I2Foreign, format!("{a}/{}", bed.secret), "the Secret is adopted and stripped");
    install(&bed, json!({ "validatingAdmissionPolicy": { "allowAdopt": true } }));
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_charts_rights_are_those_that_the_suite_runs_under() {
    let bed = with_the_chart("chart-rights", json!({})).await;
    let roles: Api<ClusterRole> = Api::all(bed.client.clone());
    let suites = roles.get(&bed.prefix).await.unwrap();
    let charts = roles.get(&format!("{}.ecr-credential-operator", bed.home)).await.unwrap();
    assert_eq!(normal(&charts.rules), normal(&suites.rules));
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), &bed.home);
    let suites = roles.get("lease").await.unwrap();
    let charts = roles.get("ecr-credential-operator-lease").await.unwrap();
    assert_eq!(normal(&charts.rules), normal(&suites.rules));
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), "default");
    let suites = roles.get(&format!("{}-events", bed.prefix)).await.unwrap();
    let charts = roles.get(&format!("{}.ecr-credential-operator-events", bed.home)).await.unwrap();
    assert_eq!(normal(&charts.rules), normal(&suites.rules));
    bed.finish().await.unwrap();
}

/// Rules without the order in which they are written.
fn normal(rules: &impl serde::Serialize) -> BTreeSet<String> {
    let rules = serde_json::to_value(rules).unwrap();
    let sort = |rule: &Value| {
        let mut rule = rule.clone();
        for list in rule.as_object_mut().unwrap().values_mut() {
            list.as_array_mut().unwrap().sort_by_key(Value::to_string);
        }
        rule.to_string()
    };
    rules.as_array().unwrap().iter().map(sort).collect()
}

#[test]
fn the_flags_and_variables_of_the_deployment_are_the_binarys() {
    let values = json!({
        "namespaces": ["a", "b"], "secretNames": ["one", "two"], "fullnameOverride": "mine", "credentialSelector": "shard!=b",
        "aws": { "region": "eu-west-1", "webIdentity": { "roleArn": "arn:aws:iam::111122223333:role/x" } }, "containerPort": 9000,
        "logging": { "level": "info,ecr_credential_operator=debug", "format": "text" }, "extraArgs": ["--concurrency=64"],
        "outputs": [{ "name": "ci", "format": "BasicAuth" }, { "name": "x", "format": "ArgoCDHelm", "namespaces": ["b"] }],
        "include": { "secrets": [{ "namespace": "ops", "name": "hub" }] },
    });
    let objects = Helm::offline("v3").template("eco", "1.36.0", &values).unwrap();
    let container = &object(&objects, "Deployment", "")["spec"]["template"]["spec"]["containers"][0];
    let mut args: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    args.extend(flags_of_variables(&container["env"]));
    let Command::Run(run) = Cli::try_parse_from(std::iter::once("x".to_owned()).chain(args)).unwrap().command else {
        panic!("it does not run")
    };
    assert_eq!(run.scope.namespaces, ["a", "b"]);
    assert_eq!(run.scope.secret_names, ["one", "two"]);
    let outputs = run
        .scope
        .output_secrets
        .iter()
        .map(|output| (output.namespace.as_deref().unwrap_or("*"), &*output.name, output.format.as_str()));
    assert_eq!(
        outputs.collect::<Vec<_>>(),
        [("a", "ci", "BasicAuth"), ("b", "ci", "BasicAuth"), ("b", "x", "ArgoCDHelm")]
    );
    assert_eq!(run.scope.include_secrets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ops/hub"]);
    assert_eq!(run.lease.lease_name, "mine");
    assert_eq!(run.log, "info,ecr_credential_operator=debug");
    assert_eq!(run.concurrency, 64);
    assert!(!run.scope.all_secret_names && !run.lease.no_leader_election);
    assert_eq!(run.http_address.to_string(), "[::]:9000");
    assert_eq!(run.credential_selector.as_deref(), Some("shard!=b"));
    // The projected token is mounted where the operator looks for it.
    assert_eq!(run.aws.role_arn.as_deref(), Some("arn:aws:iam::111122223333:role/x"));
    let mount = std::path::Path::new(container["volumeMounts"][0]["mountPath"].as_str().unwrap());
    assert_eq!(run.aws.web_identity_token_file.as_deref(), Some(&*mount.join("token")));

    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    let pod = &object(&objects, "Deployment", "")["spec"]["template"]["spec"];
    let grace = std::time::Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let default =
        run.get_arguments().find(|arg| arg.get_id() == "grace_period").unwrap().get_default_values()[0].clone();
    assert_eq!(default, "20s");
    assert!(grace > std::time::Duration::from_secs(20 + 5), "the process must end before it is killed");
}

/// Variables as the flags that they stand for: this process has an environment of its own.
fn flags_of_variables(env: &Value) -> Vec<String> {
    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    let flag = |variable: &Value| {
        let name = variable["name"].as_str().unwrap();
        let flag = run.get_arguments().find(|arg| arg.get_env().is_some_and(|env| env == name));
        let flag = flag.unwrap_or_else(|| panic!("{name} is no variable of the binary"));
        let (long, value) = (flag.get_long().unwrap(), variable["value"].as_str()?);
        Some(if flag.get_action().takes_values() { format!("--{long}={value}") } else { format!("--{long}") })
    };
    env.as_array().unwrap().iter().filter_map(flag).collect()
}
