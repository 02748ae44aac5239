//! The migrations of `docs/migration.md`, played with the operator on the real API server: the commands and the EcrCredential are
//! those of the page.

use std::collections::BTreeMap;
use std::process::Command;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch, PATIENCE, logins};
use testbed::recorder::Invariant;

use super::helm::{documents, get, read};
use super::pages::{Block, Page};

/// The host of the EcrCredential of the page, whose region is `eu-west-1`.
const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// What the old tool has written.
const OLD: &str = r#"{"auths":{"123456789012.dkr.ecr.eu-west-1.amazonaws.com":{"auth":"QVdTOm9sZA=="}}}"#;

/// How external-secrets marks a Secret that it manages (`apis/externalsecrets/v1/externalsecret_types.go`).
const MANAGED: (&str, &str) = ("reconcile.external-secrets.io/managed", "true");
const CREATED_BY: &str = "reconcile.external-secrets.io/created-by";

/// The blocks under a heading of the page.
fn section(heading: &str) -> Vec<Block> {
    let page = read("docs/migration.md");
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let text = rest.split("\n## ").next().unwrap().to_owned();
    Page { path: format!("docs/migration.md, {heading}"), text }.blocks()
}

/// The command of a section that contains some words, with the names of this test.
fn command(heading: &str, words: &str, names: &[(&str, &str)]) -> String {
    let blocks = section(heading).into_iter().filter(|block| block.info == "console");
    let text: String = blocks.map(|block| block.text.replace("\\\n", " ")).collect();
    let line = text.lines().find(|line| line.contains(words));
    let line = line.unwrap_or_else(|| panic!("{heading} has no command with {words}:\n{text}")).trim();
    names.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to))
}

/// Runs a command of the page with the tests' kubectl, and returns what it prints.
fn run(bed: &Bed, command: &str) -> String {
    let script = format!("kubectl() {{ \"$KUBECTL\" \"$@\"; }}\n{command}");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).env("KUBECTL", get("kubectl")).env("KUBECONFIG", bed.plane.admin_kubeconfig());
    let output = bash.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}\n{out}{err}");
    out.into_owned()
}

/// The EcrCredential of the page, for this test's Secret and namespaces.
fn adopting(bed: &Bed, namespaces: &[&String]) -> Value {
    let blocks = section("Adopt").into_iter().filter(|block| block.info == "yaml");
    let mut documents = blocks.flat_map(|block| documents(&block.text));
    let mut spec = documents.find(|document| document["kind"] == "EcrCredential").unwrap()["spec"].take();
    assert_eq!(spec["secret"], json!({ "name": "regcred", "conflictPolicy": "Adopt" }));
    spec["secret"]["name"] = json!(bed.secret);
    spec["namespaces"] = json!({ "names": namespaces });
    spec
}

async fn bed(test: &str) -> Bed {
    Bed::new(test, &read("crds/ecrcredentials.pullsecrets.dev.yaml")).await.unwrap()
}

fn launch() -> Launch {
    Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator"))
}

/// A Secret as tools other than the operator write it.
async fn old_secret(bed: &Bed, namespace: &str) -> Secret {
    let secret = json!({
        "metadata": { "name": bed.secret }, "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": OLD },
    });
    let secret = serde_json::from_value(secret).unwrap();
    bed.secrets(namespace).create(&PostParams::default(), &secret).await.unwrap()
}

/// Whether a namespace's Secret is still the old tool's.
fn is_old(bed: &Bed, secret: &Secret) -> bool {
    logins(secret).is_ok_and(|logins| logins.values().eq(["QVdTOm9sZA=="])) && secret.name_any() == bed.secret
}

fn owners(secret: &Secret) -> Vec<&str> {
    secret.owner_references().iter().map(|owner| owner.kind.as_str()).collect()
}

/// The namespace's failure in the status, with its message.
fn failure(object: &DynamicObject, namespace: &str) -> Option<(String, String)> {
    let failures = object.data.pointer("/status/failures")?.as_array()?;
    let failure = failures.iter().find(|failure| failure["namespace"] == namespace)?;
    Some((failure["reason"].as_str()?.to_owned(), failure["message"].as_str()?.to_owned()))
}

/// external-secrets with the CustomResourceDefinitions of its release. In the place of its controller, the test does what this does to
/// a target (`mutationFunc` and `shouldRefresh` in `pkg/controllers/externalsecret/externalsecret_controller.go`).
struct ExternalSecrets<'a> {
    bed: &'a Bed,
    resource: ApiResource,
}

impl<'a> ExternalSecrets<'a> {
    async fn install(bed: &'a Bed) -> Self {
        let folder = get("external-secrets-crds");
        let files =
            ["external-secrets.io_externalsecrets.yaml", "generators.external-secrets.io_ecrauthorizationtokens.yaml"];
        let crds = files.map(|file| {
            serde_saphyr::from_str(&std::fs::read_to_string(folder.join(file)).unwrap())
                .unwrap_or_else(|why| panic!("{file}: {why}"))
        });
        bed.plane.install(&crds).await.unwrap();
        let kind = GroupVersionKind::gvk("external-secrets.io", "v1", "ExternalSecret");
        Self { bed, resource: ApiResource::from_gvk_with_plural(&kind, "externalsecrets") }
    }

    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.bed.client.clone(), namespace, &self.resource)
    }

    /// An ExternalSecret of the name `ecr` that owns the Secret, as its documentation shows it for ECR.
    async fn create(&self, namespace: &str) {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "metadata": { "name": "ecr" },
            "spec": {
                "refreshInterval": "0",
                "target": { "name": self.bed.secret, "template": {
                    "type": "kubernetes.io/dockerconfigjson",
                    "data": { ".dockerconfigjson": "{{ .proxy_endpoint }}{{ .username }}{{ .password }}" },
                } },
                "dataFrom": [{ "sourceRef": { "generatorRef": {
                    "apiVersion": "generators.external-secrets.io/v1alpha1", "kind": "ECRAuthorizationToken", "name": "ecr",
                } } }],
            },
        })).unwrap();
        self.api(namespace).create(&PostParams::default(), &object).await.unwrap();
        self.reconcile(namespace).await;
    }

    async fn reconcile(&self, namespace: &str) {
        let object = self.api(namespace).get("ecr").await.unwrap();
        let existing = self.bed.secret(namespace).await.unwrap();
        let spec = &object.data["spec"];
        let policy = spec["target"]["creationPolicy"].as_str().unwrap();
        let never_again = spec["refreshPolicy"] == "CreatedOnce"
            || spec["refreshInterval"].as_str().is_some_and(|i| i.starts_with('0'));
        if existing.is_some() && never_again {
            return;
        }
        let mut secret = match existing {
            Some(secret) => secret,
            None => old_secret(self.bed, namespace).await,
        };
        let is_own = |owner: &OwnerReference| owner.kind == "ExternalSecret" && owner.name == "ecr";
        let references = secret.owner_references_mut();
        references.retain(|owner| !is_own(owner));
        if policy == "Owner" {
            references.push(OwnerReference {
                block_owner_deletion: Some(true),
                ..object.controller_owner_ref(&self.resource).unwrap()
            });
            secret.labels_mut().insert(CREATED_BY.to_owned(), "a-hash".to_owned());
        } else {
            secret.labels_mut().remove(CREATED_BY);
        }
        secret.labels_mut().insert(MANAGED.0.to_owned(), MANAGED.1.to_owned());
        secret.data =
            Some(BTreeMap::from([(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(OLD.as_bytes().to_vec()))]));
        let manager = Some("externalsecrets.external-secrets.io/ecr".to_owned());
        let params = PostParams { field_manager: manager, ..PostParams::default() };
        self.bed.secrets(namespace).replace(&self.bed.secret, &params, &secret).await.unwrap();
    }
}

#[tokio::test]
async fn a_secret_of_external_secrets_is_released_and_adopted_without_ever_being_gone() {
    let bed = bed("external-secrets").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let tool = ExternalSecrets::install(&bed).await;
    tool.create(&a).await;
    tool.create(&b).await;
    let before = bed.secret(&a).await.unwrap().unwrap();
    assert_eq!(owners(&before), ["ExternalSecret"]);
    // The page has the operator replace what others have written.
    for namespace in [&a, &b] {
        bed.recorder.excuse(Invariant::I2Foreign, format!("{namespace}/{}", bed.secret), "it is to be adopted");
    }

    // While the owner reference is there, the operator reports it and changes nothing.
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("platform", adopting(&bed, &[&b])).await.unwrap();
    let refused = |object: &DynamicObject| failure(object, &b).is_some();
    let status = bed.credential_until(&name, "the owner is reported", refused).await.unwrap();
    let (reason, message) = failure(&status, &b).unwrap();
    assert_eq!(reason, "SecretNotOwned");
    assert!(message.contains("creationPolicy: Orphan"), "{message}");
    let kept = bed.secret(&b).await.unwrap().unwrap();
    assert!(owners(&kept) == ["ExternalSecret"] && is_old(&bed, &kept));

    // Steps 1 to 3, with the controller's answer to the first.
    let names = [("payments", a.as_str()), ("regcred", bed.secret.as_str())];
    let step = |words: &str| run(&bed, &command("external-secrets", words, &names));
    assert_eq!(step(".metadata.ownerReferences").trim(), "ExternalSecret/ecr");
    step("kubectl patch externalsecret");
    tool.reconcile(&a).await;
    assert_eq!(step(".metadata.ownerReferences").trim(), "");
    step("kubectl delete externalsecret");

    // Without step 1 the garbage collector takes the Secret. This also shows that it had the time to take the other one.
    tool.api(&b).delete("ecr", &DeleteParams::default()).await.unwrap();
    let another = |secret: Option<&Secret>| secret.is_some_and(|secret| secret.uid() != kept.uid());
    bed.secret_until(&b, "it was collected, and is the operator's", another).await.unwrap();
    let released = bed.secret(&a).await.unwrap().unwrap();
    assert!(released.uid() == before.uid() && owners(&released).is_empty() && is_old(&bed, &released));

    // Step 4.
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a, b] } } })).await.unwrap();
    let adopted = bed.logins_until(&a, &[HOST]).await.unwrap();
    assert_eq!(adopted.uid(), before.uid(), "the Secret was replaced");
    assert_eq!(owners(&adopted), ["EcrCredential"]);
    bed.ready(&name).await.unwrap();

    // The last step of adopting.
    bed.change(&name, json!({ "spec": { "secret": { "conflictPolicy": "Fail" } } })).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_secret_of_a_script_is_adopted_in_place_and_can_be_given_back() {
    let bed = bed("scripts").await;
    // As registry-creds and the CronJobs write it: without an owner.
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let before = [old_secret(&bed, &a).await, old_secret(&bed, &b).await];
    let cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "k8s-ecr-login-renew-cron", "namespace": a },
        "spec": { "schedule": "0 */6 * * *", "jobTemplate": { "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "renew", "image": "nabsul/k8s-ecr-login-renew:v1.7.1" }],
        } } } } },
    });
    super::helm::apply(&bed.client, &cron_job, false).await.unwrap();
    let heading = "k8s-ecr-login-renew and CronJobs";
    run(&bed, &format!("{} --namespace {a}", command(heading, "kubectl patch cronjob", &[])));
    let suspended =
        run(&bed, &format!("kubectl get cronjobs --namespace {a} --output jsonpath={{.items[*].spec.suspend}}"));
    assert_eq!(suspended, "true");

    for namespace in [&a, &b] {
        bed.recorder.excuse(Invariant::I2Foreign, format!("{namespace}/{}", bed.secret), "it is to be adopted");
    }
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("platform", adopting(&bed, &[&a, &b])).await.unwrap();
    bed.ready(&name).await.unwrap();
    for (namespace, before) in [&a, &b].into_iter().zip(&before) {
        let after = bed.logins_until(namespace, &[HOST]).await.unwrap();
        assert_eq!(after.uid(), before.uid(), "the Secret was replaced");
        assert_eq!(owners(&after), ["EcrCredential"]);
    }

    // The way back: the Secrets stay, and belong to nobody.
    bed.change(&name, json!({ "spec": { "secret": { "conflictPolicy": "Fail", "deletionPolicy": "Retain" } } }))
        .await
        .unwrap();
    for namespace in [&a, &b] {
        bed.secret_until(namespace, "it has no owner", |secret| secret.is_some_and(|secret| owners(secret).is_empty()))
            .await
            .unwrap();
    }
    bed.ready(&name).await.unwrap();
    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    let gone = await_condition(bed.credentials(), &name, |object: Option<&DynamicObject>| object.is_none());
    tokio::time::timeout(PATIENCE, gone).await.expect("the EcrCredential to go").unwrap();
    operator.stop().await.unwrap();
    for (namespace, before) in [&a, &b].into_iter().zip(&before) {
        let after = bed.secret(namespace).await.unwrap().unwrap();
        assert_eq!(after.uid(), before.uid());
        assert!(logins(&after).unwrap().contains_key(HOST));
    }
    bed.finish().await.unwrap();
}
