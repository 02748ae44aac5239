//! What the chart's `outputs` and `include` grant, and what the policy lets the operator write in each format.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::api::OutputFormat;
use ecr_credential_operator::secret::formats::form;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::bed::Bed;

use super::helm::{Helm, apply, namespace, object, read, setting};
use super::mutation::MutatingPolicy;
use super::operator::{OWN, launch, under_the_chart};
use super::policy::{Cluster, EARLIER, MANAGER, OWN as NOT_OWN, TYPE, good, installed_with, refused, with};
use super::stolen_token::{KEY, Owners, additions, merged};

const KEYS: &str = "only the keys ";
const LABEL: &str = "only Secrets with the label ";

/// What a Secret of a format consists of.
#[derive(PartialEq, Eq)]
struct Format {
    name: &'static str,
    kind: &'static str,
    keys: &'static [&'static str],
    label: Option<(&'static str, &'static str)>,
}

const fn format(
    name: &'static str,
    kind: &'static str,
    keys: &'static [&'static str],
    label: Option<(&'static str, &'static str)>,
) -> Format {
    Format { name, kind, keys, label }
}

const ARGO_CD: Option<(&str, &str)> = Some(("argocd.argoproj.io/secret-type", "repo-creds"));

const FORMATS: [Format; 8] = [
    format("DockerConfigJson", "kubernetes.io/dockerconfigjson", &[".dockerconfigjson"], None),
    format("DockerConfigFile", "Opaque", &["config.json"], None),
    format("BasicAuth", "kubernetes.io/basic-auth", &["username", "password"], None),
    format("TektonBasicAuth", "kubernetes.io/basic-auth", &["username", "password"], None),
    format("ArgoCDHelm", "Opaque", &["url", "type", "enableOCI", "username", "password"], ARGO_CD),
    format("ArgoCDOCI", "Opaque", &["url", "type", "username", "password"], ARGO_CD),
    format("Jenkins", "Opaque", &["username", "password"], Some(("jenkins.io/credentials-type", "usernamePassword"))),
    format(
        "KargoImage",
        "Opaque",
        &["repoURL", "repoURLIsRegex", "username", "password"],
        Some(("kargo.akuity.io/cred-type", "image")),
    ),
];

impl Format {
    /// The name of the Secret that has this format.
    fn secret_name(&self) -> String {
        self.name.to_lowercase()
    }

    /// A Secret of this format as the operator writes it, with an expiry at this hour.
    fn secret(&self, hour: u32) -> Value {
        let mut secret = good(hour);
        secret["type"] = json!(self.kind);
        // The API server reads docker configs.
        secret["data"] = self.keys.iter().map(|key| ((*key).to_owned(), json!("e30="))).collect();
        if let Some((key, value)) = self.label {
            secret["metadata"]["labels"][key] = json!(value);
        }
        secret
    }

    /// Whether a Secret of the other format is one of this format, too.
    fn admits(&self, other: &Self) -> bool {
        let keys = |format: &Self| format.keys.iter().copied().collect::<BTreeSet<_>>();
        self.kind == other.kind && keys(self) == keys(other) && (self.label.is_none() || self.label == other.label)
    }

    /// What a refusal of wrong keys says.
    fn says_keys(&self) -> String {
        let several = if self.keys.len() > 1 { "s" } else { "" };
        format!("only the key{several} {}", self.keys.join(", "))
    }
}

fn of_name(name: &str) -> &'static Format {
    FORMATS.iter().find(|format| format.name == name).unwrap()
}

/// An output for each format in one namespace.
fn an_output_of_each_format(namespace: &str) -> Value {
    let output =
        |format: &Format| json!({ "name": format.secret_name(), "format": format.name, "namespaces": [namespace] });
    FORMATS.iter().map(output).collect()
}

/// Whether the operator may apply a Secret, asked without storing it.
async fn asks(cluster: &Cluster, namespace: &str, name: &str, secret: &Value) -> Result<Secret, String> {
    let identity = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name } });
    let secret = merged(secret.clone(), &identity);
    let params = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER).force() };
    let secrets: Api<Secret> = Api::namespaced(cluster.operator.clone(), namespace);
    secrets.patch(name, &params, &Patch::Apply(&secret)).await.map_err(|error| error.to_string())
}

fn render(values: &Value) -> Vec<Value> {
    Helm::offline("v3").template("eco", "1.36.0", values).unwrap()
}

/// The rules on Secrets, as `NAMESPACE VERBS NAMES`.
fn rights(objects: &[Value]) -> Vec<String> {
    let list = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap_or_default().join(",");
    let mut all = vec![];
    for role in objects.iter().filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role") {
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or("*");
        for rule in role["rules"].as_array().unwrap().iter().filter(|rule| rule["resources"] == json!(["secrets"])) {
            all.push(format!("{namespace} {} {}", list(&rule["verbs"]), list(&rule["resourceNames"])));
        }
    }
    all.sort();
    all
}

#[test]
fn rights_are_by_name_and_in_listed_namespaces_alone() {
    const WRITE: &str = "get,list,watch,create,patch,delete";
    const READ: &str = "get,list,watch";
    let argocd = json!({ "name": "argocd-ecr", "format": "ArgoCDHelm", "namespaces": ["argocd", "argocd-2"] });
    let any = json!({ "name": "ci", "format": "BasicAuth" });
    let included =
        json!({ "secrets": [{ "namespace": "ops", "name": "hub" }, { "namespace": "ops", "name": "ghcr" }] });
    for (what, values, expected, outputs) in [
        ("nothing", json!({}), vec![format!("* {WRITE} ecr-pull-secret")], None),
        (
            "listed",
            json!({ "outputs": [argocd] }),
            vec![
                format!("* {WRITE} ecr-pull-secret"),
                format!("argocd {WRITE} argocd-ecr"),
                format!("argocd-2 {WRITE} argocd-ecr"),
            ],
            Some("argocd/argocd-ecr=ArgoCDHelm,argocd-2/argocd-ecr=ArgoCDHelm"),
        ),
        (
            "everywhere",
            json!({ "outputs": [any], "include": included }),
            vec![format!("* {WRITE} ecr-pull-secret,ci"), format!("ops {READ} hub,ghcr")],
            Some("*/ci=BasicAuth"),
        ),
        (
            "in the namespaces of the operator",
            json!({ "outputs": [argocd, any], "namespaces": ["argocd", "argocd-2", "z"] }),
            vec![
                format!("argocd {WRITE} ecr-pull-secret,argocd-ecr,ci"),
                format!("argocd-2 {WRITE} ecr-pull-secret,argocd-ecr,ci"),
                format!("z {WRITE} ecr-pull-secret,ci"),
            ],
            Some(
                "argocd/argocd-ecr=ArgoCDHelm,argocd-2/argocd-ecr=ArgoCDHelm,argocd/ci=BasicAuth,argocd-2/ci=BasicAuth,z/ci=BasicAuth",
            ),
        ),
        (
            "all names",
            json!({ "outputs": [argocd, any], "allSecretNames": true }),
            vec![format!("* {WRITE} ")],
            Some("argocd/argocd-ecr=ArgoCDHelm,argocd-2/argocd-ecr=ArgoCDHelm,*/ci=BasicAuth"),
        ),
        (
            "one name, two formats, two namespaces",
            json!({ "outputs": [
                { "name": "x", "format": "BasicAuth", "namespaces": ["a"] }, { "name": "x", "format": "Jenkins", "namespaces": ["b"] },
            ] }),
            vec![format!("* {WRITE} ecr-pull-secret"), format!("a {WRITE} x"), format!("b {WRITE} x")],
            Some("a/x=BasicAuth,b/x=Jenkins"),
        ),
    ] {
        let objects = render(&values);
        assert_eq!(rights(&objects), expected, "{what}");
        assert_eq!(setting(&objects, "ECO_OUTPUT_SECRETS").as_deref(), outputs, "{what}");
        let included = values.get("include").map(|_| "ops/hub,ops/ghcr");
        assert_eq!(setting(&objects, "ECO_INCLUDE_SECRETS").as_deref(), included, "{what}");
    }
}

#[test]
fn the_schema_and_the_policy_know_the_same_formats() {
    let schema: Value = serde_json::from_str(&read("charts/ecr-credential-operator/values.schema.json")).unwrap();
    let formats = &schema["properties"]["outputs"]["items"]["properties"]["format"]["enum"];
    let known: BTreeSet<&str> = formats.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(known, FORMATS.iter().map(|format| format.name).collect());
    let objects = render(&json!({}));
    let policy = object(&objects, "ValidatingAdmissionPolicy", "eco.ecr-credential-operator");
    for part in ["type", "keys", "label"] {
        let variables = policy["spec"]["variables"].as_array().unwrap();
        let variable = variables.iter().find(|variable| variable["name"] == part).unwrap();
        let expression = variable["expression"].as_str().unwrap();
        let named = expression.lines().filter_map(|line| Some(line.trim().strip_prefix('\'')?.split_once("':")?.0));
        assert_eq!(known, named.collect(), "{part}");
    }
}

#[test]
fn the_operator_writes_what_the_policy_lets_it_write() {
    let schema: Value = serde_json::to_value(serde_saphyr::from_str::<Value>(super::CRD).unwrap()).unwrap();
    let spec = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let known = spec["properties"]["outputs"]["items"]["properties"]["format"]["enum"].as_array().unwrap();
    let known: BTreeSet<&str> = known.iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(known, FORMATS.iter().map(|format| format.name).collect());
    for format in OutputFormat::ALL {
        let (form, expected) = (form(format), of_name(format.as_str()));
        assert_eq!((form.type_, form.keys), (expected.kind, expected.keys), "{}", expected.name);
        assert_eq!(form.labels, expected.label.as_slice(), "{}", expected.name);
    }
}

/// The Secrets that the tests of the consumers use, by format. They are not in this language.
fn of_the_consumers(host: &str, password: &str) -> BTreeMap<String, Value> {
    let text = read("tests/consumers/secrets.json");
    let text = text.replace("REGEX", &host.replace('.', r"\\.")).replace("HOST", host);
    let text = text.replace("AUTH", &STANDARD.encode(format!("AWS:{password}"))).replace("PASSWORD", password);
    serde_json::from_str(&text).unwrap()
}

type Pairs = BTreeMap<String, String>;

fn pairs(secret: &Value, key: &str) -> Pairs {
    serde_json::from_value(secret[key].clone()).unwrap_or_default()
}

/// The data of a Secret as text.
fn data(secret: &Secret) -> Pairs {
    let text = |value: &ByteString| String::from_utf8(value.0.clone()).unwrap();
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// A Secret of each format, written by the operator, is the one that consumers are tested with.
#[tokio::test]
async fn with_the_charts_rights_and_under_its_policy_the_operator_writes_what_consumers_are_tested_with() {
    const HUB: &str = "https://index.docker.io/v1/";
    let names = FORMATS.map(|format| format.secret_name());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let bed = Bed::with_secret_names("chart-formats", super::CRD, &names).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let hub = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "hub", "namespace": bed.home },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": json!({ "auths": { HUB: { "auth": "aHViOng=" } } }).to_string() },
    });
    apply(&bed.client, &hub, false).await.unwrap();
    bed.recorder.include(HUB, json!({ "auth": "aHViOng=" }));
    let name = |format: &Format| bed.name(&format.secret_name());
    let allowed = |format: &Format| json!({ "name": name(format), "format": format.name, "namespaces": [a] });
    let outputs: Vec<Value> = FORMATS.iter().map(allowed).collect();
    let included = json!({ "secrets": [{ "namespace": bed.home, "name": "hub" }] });
    let launched =
        FORMATS.iter().fold(launch(), |launch, format| launch.output(&format!("{a}/{}={}", name(format), format.name)));
    let launched = launched.args(&["--include-secret", &format!("{}/hub", bed.home)]);
    let wanted = |format: &Format| {
        let host = (!format.keys[0].ends_with("json")).then_some(OWN);
        json!({ "name": name(format), "format": format.name, "host": host })
    };
    let wanted: Vec<Value> = FORMATS.iter().map(wanted).collect();
    let names = FORMATS.each_ref().map(name);
    let bed = under_the_chart(bed, json!({ "outputs": outputs, "include": included })).await;
    let operator = bed.operator(launched).await.unwrap();
    let spec = json!({
        "registries": [{ "private": {} }], "namespaces": { "names": [a] }, "outputs": wanted,
        "include": [{ "secretRef": { "namespace": bed.home, "name": "hub" } }],
    });
    let credential = bed.credential("x", spec).await.unwrap();
    bed.ready(&credential).await.unwrap();
    let has_hub =
        |secret: Option<&Secret>| secret.is_some_and(|secret| data(secret).values().any(|text| text.contains(HUB)));
    for name in [&names[0], &names[1]] {
        bed.named_secret_until(&a, name, "the included entry", has_hub).await.unwrap();
    }
    let check = async || {
        let basic = bed.secrets(&a).get(&names[2]).await.unwrap();
        let password = data(&basic)["password"].clone();
        let tested = of_the_consumers(OWN, &password);
        for (format, name) in FORMATS.iter().zip(&names) {
            let (secret, expected) = (bed.secrets(&a).get(name).await.unwrap(), &tested[format.name]);
            assert_eq!(json!(secret.type_), expected["type"], "{}", format.name);
            for (key, found) in [("labels", secret.labels()), ("annotations", secret.annotations())] {
                for (key, value) in pairs(expected, key) {
                    assert_eq!(found.get(&key), Some(&value), "{}: {key}", format.name);
                }
            }
            let (mut expected, mut found) = (pairs(expected, "data"), data(&secret));
            if let [key] = format.keys {
                let config = |data: &mut Pairs| serde_json::from_str::<Value>(&data.remove(*key).unwrap()).unwrap();
                let (mut config_expected, config_found) = (config(&mut expected), config(&mut found));
                config_expected["auths"][HUB] = json!({ "auth": "aHViOng=" });
                assert_eq!(config_found, config_expected, "{}", format.name);
            }
            assert_eq!(found, expected, "{}", format.name);
        }
        password
    };
    let first = check().await;
    bed.request_refresh(&credential, "1").await.unwrap();
    bed.refreshed(&credential, "1").await.unwrap();
    bed.ready(&credential).await.unwrap();
    assert_ne!(check().await, first);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_format_has_its_type_all_its_keys_and_its_label() {
    let home = "chart-policy-outputs";
    let mut outputs = an_output_of_each_format(home);
    outputs.as_array_mut().unwrap().push(json!({ "name": "everywhere", "format": "BasicAuth" }));
    let cluster = installed_with("outputs", json!({}), json!({ "outputs": outputs })).await;
    let other = "chart-policy-outputs-other";
    namespace(&cluster.admin, other).await;
    for format in &FORMATS {
        let name = &format.secret_name();
        for content in &FORMATS {
            let what = format!("{} as {}", content.name, format.name);
            let answer = asks(&cluster, home, name, &content.secret(1)).await;
            if format.admits(content) {
                answer.unwrap_or_else(|why| panic!("{what}: {why}"));
                continue;
            }
            let says = match (content.kind == format.kind, content.keys == format.keys) {
                (false, _) => format!("only Secrets of the type {}", format.kind),
                (_, false) => format.says_keys(),
                (true, true) => format!("{LABEL}{}", format.label.map(|(k, v)| format!("{k}={v}")).unwrap_or_default()),
            };
            refused(answer.map_err(|why| format!("{what}: {why}")), &says);
        }
        for key in format.keys {
            let mut less = format.secret(1);
            less["data"].as_object_mut().unwrap().remove(*key);
            // Some types have keys that the API server itself wants.
            asks(&cluster, home, name, &less).await.expect_err(key);
        }
        let more = merged(format.secret(1), &json!({ "data": { "more": "eA==" } }));
        refused(asks(&cluster, home, name, &more).await, &format.says_keys());
        if let Some((label, _)) = format.label {
            for value in [json!(null), json!("cluster"), json!("")] {
                let wrong = with(format.secret(1), "/metadata/labels", label, value);
                refused(asks(&cluster, home, name, &wrong).await, LABEL);
            }
        }
        // The name has this format nowhere else, where only pull secrets can have it.
        let elsewhere = asks(&cluster, other, name, &format.secret(1)).await;
        match format.name {
            "DockerConfigJson" => drop(elsewhere.unwrap()),
            _ => refused(elsewhere, TYPE),
        }
        // No other name has it.
        let pull_secret = asks(&cluster, home, "ecr-pull-secret", &format.secret(1)).await;
        assert_eq!(pull_secret.is_ok(), format.name == "DockerConfigJson", "{}", format.name);
    }
    for place in [home, other] {
        asks(&cluster, place, "everywhere", &of_name("BasicAuth").secret(1)).await.unwrap();
        refused(
            asks(&cluster, place, "everywhere", &good(1)).await,
            "only Secrets of the type kubernetes.io/basic-auth",
        );
    }
}

#[tokio::test]
async fn an_output_is_refreshed_repaired_and_deleted_and_guarded_as_a_pull_secret_is() {
    let cluster =
        installed_with("output", json!({}), json!({ "outputs": an_output_of_each_format("chart-policy-output") }))
            .await;
    let owners = Owners::create(&cluster).await;
    for format in FORMATS.iter().filter(|format| format.name != "DockerConfigJson") {
        let name = &*format.secret_name();
        let owned = |hour| merged(format.secret(hour), &owners.owned_by());
        for (what, part, says) in additions(&owners) {
            let says = if says == KEY { format.says_keys() } else { says.to_owned() };
            let answer = asks(&cluster, &cluster.home, name, &merged(owned(1), &part)).await;
            refused(answer.map_err(|why| format!("{what} to {name}: {why}")), &says);
        }
        cluster.write(name, owned(5)).await.unwrap();
        cluster.write(name, owned(6)).await.unwrap();
        refused(cluster.write(name, owned(5)).await, EARLIER);
        // What somebody else has changed is put right; their data has no expiry of ours.
        let edits = [
            (
                json!({ "metadata": { "labels": { "argocd.argoproj.io/secret-type": "cluster", "managed-by": "x" } } }),
                6,
            ),
            (json!({ "metadata": { "labels": null } }), 6),
            (json!({ "data": { format.keys[0]: "eyJhIjoxfQ==" } }), 4),
            (json!({ "data": { "more": "eA==" } }), 4),
        ];
        for (edit, hour) in edits {
            let what = format!("{name} after {edit}");
            cluster.edit(name, edit).await;
            let written = cluster.write(name, owned(hour)).await.unwrap_or_else(|why| panic!("{what}: {why}"));
            let strip =
                json!({ "metadata": { "resourceVersion": written.resource_version() }, "data": { "more": null } });
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let stripped = cluster.secrets(&cluster.operator).patch(name, &params, &Patch::Merge(&strip)).await;
            assert_eq!(stripped.unwrap().data.unwrap().len(), format.keys.len(), "{what}");
        }
        cluster.secrets(&cluster.operator).delete(name, &Default::default()).await.unwrap();
        // Somebody else's of the same form is theirs.
        let theirs = merged(
            format.secret(1),
            &json!({ "metadata": { "name": name, "labels": { "app.kubernetes.io/managed-by": "x" } } }),
        );
        let theirs = serde_json::from_value(theirs).unwrap();
        cluster.secrets(&cluster.admin).create(&Default::default(), &theirs).await.unwrap();
        refused(cluster.write(name, owned(1)).await, NOT_OWN);
        let deleted = cluster.secrets(&cluster.operator).delete(name, &Default::default()).await;
        refused(deleted.map(drop).map_err(|error| error.to_string()), NOT_OWN);
    }
}

#[tokio::test]
async fn what_admission_adds_to_an_output_is_not_held_against_the_operator() {
    let home = "chart-policy-output-mutated";
    let output = json!({ "name": "argocd-ecr", "format": "ArgoCDHelm", "namespaces": [home] });
    let cluster = installed_with("output-mutated", json!({}), json!({ "outputs": [output] })).await;
    if !MutatingPolicy::is_served(&cluster.admin).await {
        return;
    }
    let object = "Object{data: {'added': object.data['password']}, metadata: Object.metadata{labels: {'added': 'x'}}}";
    let mutations = json!([{ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": object } }]);
    let policy = MutatingPolicy::of_type(&cluster.admin, home, "Opaque", "password", mutations).await;
    let format = of_name("ArgoCDHelm");
    for hour in [1, 2] {
        let stored = cluster.write("argocd-ecr", format.secret(hour)).await.unwrap();
        assert_eq!(stored.data.unwrap().len(), format.keys.len() + 1, "{hour}");
    }
    // What comes with the write itself is refused all the same.
    let more = merged(format.secret(2), &json!({ "data": { "more": "eA==" } }));
    refused(cluster.write("argocd-ecr", more).await, KEYS);
    policy.delete(&cluster.admin).await;
}

/// What RBAC allows, with the chart's rights by name.
#[tokio::test]
async fn rights_on_outputs_end_at_their_namespaces_and_included_secrets_can_be_read_only() {
    let (home, other) = ("chart-policy-output-rights", "chart-policy-output-rights-other");
    let values = json!({
        "allSecretNames": false,
        "outputs": [{ "name": "argocd-ecr", "format": "ArgoCDHelm", "namespaces": [home] }, { "name": "ci", "format": "BasicAuth" }],
        "include": { "secrets": [{ "namespace": home, "name": "hub" }] },
    });
    let cluster = installed_with("output-rights", json!({ "allowAdopt": true }), values).await;
    namespace(&cluster.admin, other).await;
    let (argocd, basic) = (of_name("ArgoCDHelm").secret(1), of_name("BasicAuth").secret(1));
    let forbidden = |answer: Result<Secret, String>, what: &str| {
        let why = answer.expect_err(what);
        assert!(why.contains("cannot ") && !why.contains("ValidatingAdmissionPolicy"), "{what}: {why}");
    };
    asks(&cluster, home, "argocd-ecr", &argocd).await.unwrap();
    forbidden(asks(&cluster, other, "argocd-ecr", &argocd).await, "an output elsewhere");
    for place in [home, other] {
        asks(&cluster, place, "ci", &basic).await.unwrap();
        asks(&cluster, place, "ecr-pull-secret", &good(1)).await.unwrap();
    }
    cluster.foreign("hub").await;
    let read = async |client: &Client, namespace: &str, name: &str| {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        secrets.get(name).await.map_err(|error| error.to_string())
    };
    read(&cluster.operator, home, "hub").await.unwrap();
    forbidden(asks(&cluster, home, "hub", &good(1)).await, "write what is included");
    forbidden(read(&cluster.operator, other, "hub").await, "read what is included, elsewhere");
    forbidden(read(&cluster.operator, other, "argocd-ecr").await, "read an output elsewhere");
}
