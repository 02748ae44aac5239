//! The same tokens in other forms: each output keeps every promise of the pull secret.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::{Fault, Service};
use testbed::bed::{Bed, Launch, condition};

use super::demand::{demand, page_until, served};
use super::look::{at_once, owner, quiet, spec, uid, version};
use super::rights::allow_events;
use super::told::event_in;
use super::{CRD, OWN, PUBLIC, launch};

/// Every format, with the host where it is of one.
const FORMATS: [(&str, Option<&str>); 8] = [
    ("DockerConfigJson", None),
    ("DockerConfigFile", None),
    ("BasicAuth", Some(OWN)),
    ("ArgoCDHelm", Some(OWN)),
    ("ArgoCDOCI", Some(PUBLIC)),
    ("Jenkins", Some(PUBLIC)),
    ("KargoImage", Some(OWN)),
    ("TektonBasicAuth", Some(OWN)),
];

/// The bed's name for the output of a format.
fn name_of(bed: &Bed, format: &str) -> String {
    bed.name(&format.to_lowercase())
}

async fn bed(test: &str, formats: &[&str]) -> Bed {
    let names: Vec<String> = formats.iter().map(|format| format.to_lowercase()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Bed::with_secret_names(test, CRD, &names).await.unwrap()
}

/// Lets all these be asked for in every namespace.
fn allowing(bed: &Bed, formats: &[&str]) -> Launch {
    formats.iter().fold(launch(), |launch, format| launch.output(&format!("*/{}={format}", name_of(bed, format))))
}

fn output(bed: &Bed, format: &str) -> Value {
    let (_, host) = FORMATS.iter().find(|(known, _)| *known == format).unwrap();
    json!({ "name": name_of(bed, format), "format": format, "host": host })
}

/// The password that a Secret of one host holds, as kubelet would present it.
fn auth(secret: &Secret) -> Option<String> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(BASE64_STANDARD.encode(format!("{}:{}", text("username")?, text("password")?)))
}

/// Waits until an output is there and its login works.
async fn output_until(bed: &Bed, namespace: &str, format: &str) -> Secret {
    let works = |secret: Option<&Secret>| secret.and_then(auth).is_some_and(|auth| bed.aws.is_valid(&auth));
    let name = name_of(bed, format);
    bed.named_secret_until(namespace, &name, "a login that works", works).await.unwrap().unwrap()
}

/// The counts of an output in the status: selected, synced and failed.
fn counts(object: &kube::api::DynamicObject, format: &str) -> [u64; 3] {
    let outputs = object.data.pointer("/status/outputs").and_then(Value::as_array).unwrap();
    let found = outputs.iter().find(|output| output["format"] == format).unwrap();
    ["selected", "synced", "failed"].map(|count| found[count].as_u64().unwrap())
}

#[tokio::test]
async fn each_format_is_written_refreshed_in_one_write_found_again_and_taken_away() {
    let formats = FORMATS.map(|(format, _)| format);
    let bed = bed("outputs", &formats).await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let first = bed.operator(allowing(&bed, &formats)).await.unwrap();
    let mut spec = json!({ "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": [a, b] } });
    spec["outputs"] = formats.map(|format| output(&bed, format)).to_vec().into();
    // One is in a namespace alone.
    spec["outputs"][3]["namespaces"] = json!({ "names": [a] });
    let name = bed.credential("x", spec).await.unwrap();
    let status = bed.ready(&name).await.unwrap();
    for format in formats {
        let expected = if format == "ArgoCDHelm" { [1, 1, 0] } else { [2, 2, 0] };
        assert_eq!(counts(&status, format), expected, "{format}");
    }
    let each = async || {
        let mut all = BTreeMap::new();
        for namespace in [&a, &b] {
            for format in formats {
                let found = bed.secrets(namespace).get_opt(&name_of(&bed, format)).await.unwrap();
                all.insert((namespace.clone(), format), found);
            }
        }
        all
    };
    let before = each().await;
    for ((namespace, format), secret) in &before {
        assert_eq!(secret.is_none(), *format == "ArgoCDHelm" && *namespace == b, "{format} in {namespace}");
        let Some(secret) = secret else { continue };
        assert!(owner(secret).is_some(), "{format}");
        if FORMATS.iter().any(|(known, host)| known == format && host.is_some()) {
            assert!(bed.aws.is_valid(&auth(secret).unwrap()), "{format}");
        }
    }
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2 + 15, "one write for each Secret");
    assert_eq!(bed.aws.calls(Service::Ecr).len() + bed.aws.calls(Service::EcrPublic).len(), 2);

    let mark = bed.proxy.log().mark();
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    bed.ready(&name).await.unwrap();
    quiet(&bed).await;
    assert_eq!(bed.proxy.log().writes_to_secrets_since(mark).len(), 2 + 15, "one write for each Secret and refresh");
    let refreshed = each().await;
    for (place, secret) in refreshed.iter().filter_map(|(place, secret)| Some((place, secret.as_ref()?))) {
        let old = before[place].as_ref().unwrap();
        assert_eq!(uid(secret), uid(old), "{place:?} is refreshed in place");
        assert_ne!(secret.data, old.data, "{place:?}");
    }

    first.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let second = bed.operator(allowing(&bed, &formats)).await.unwrap();
    page_until(&second, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
    quiet(&bed).await;
    let changes: Vec<String> = bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "a restart writes nothing: {changes:?}");
    assert_eq!(bed.aws.calls_since(calls).len(), 0);

    let mark = bed.proxy.log().mark();
    let kept = [output(&bed, "BasicAuth"), output(&bed, "DockerConfigFile")];
    bed.change(&name, json!({ "spec": { "outputs": kept } })).await.unwrap();
    at_once(bed.named_secret_until(&b, &name_of(&bed, "Jenkins"), "gone", |secret| secret.is_none())).await;
    at_once(bed.ready(&name)).await;
    quiet(&bed).await;
    let writes = bed.proxy.log().writes_to_secrets_since(mark);
    assert!(
        writes.iter().all(|write| write.method == "DELETE"),
        "{:?}",
        writes.iter().map(|w| w.summary()).collect::<Vec<_>>()
    );
    // Those that pods may name stay as long as their tokens are valid.
    assert_eq!(writes.len(), 15 - 4 - 2, "what is asked for no more, and nothing else");
    for namespace in [&a, &b] {
        assert!(bed.secrets(namespace).get_opt(&name_of(&bed, "DockerConfigJson")).await.unwrap().is_some());
    }
    // Whoever wants one gone at once deletes it.
    bed.secrets(&a).delete(&name_of(&bed, "DockerConfigJson"), &DeleteParams::default()).await.unwrap();
    quiet(&bed).await;
    assert!(bed.secrets(&a).get_opt(&name_of(&bed, "DockerConfigJson")).await.unwrap().is_none());

    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    bed.named_secret_until(&a, &name_of(&bed, "BasicAuth"), "collected", |secret| secret.is_none()).await.unwrap();
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn edits_of_an_output_are_undone_and_what_others_add_beside_it_stays() {
    let bed = bed("output-drift", &["ArgoCDHelm"]).await;
    let operator = bed.operator(allowing(&bed, &["ArgoCDHelm"])).await.unwrap();
    let data = |key: &str, value: &str| json!({ "data": { key: ByteString(value.as_bytes().to_vec()) } });
    let metadata = |what: &str, key: &str, value: Value| json!({ "metadata": { what: { key: value } } });
    let url = "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example";
    let cases = [
        ("password", data("password", "theirs"), 1, true),
        ("url", data("url", url), 1, true),
        ("key-removed", json!({ "data": { "enableOCI": null } }), 1, true),
        ("key-added", data("extra", "x"), 1, true),
        ("key-added-and-changed", json!({ "data": { "extra": "eA==", "type": "Z2l0" } }), 2, true),
        ("label-removed", metadata("labels", "argocd.argoproj.io/secret-type", Value::Null), 1, true),
        ("label-changed", metadata("labels", "argocd.argoproj.io/secret-type", json!("cluster")), 1, true),
        ("format-removed", metadata("annotations", "pullsecrets.dev/output", Value::Null), 1, true),
        ("format-changed", metadata("annotations", "pullsecrets.dev/output", json!("Jenkins")), 1, true),
        ("owner-stripped", json!({ "metadata": { "ownerReferences": null } }), 1, true),
        ("immutable", json!({ "immutable": true }), 2, false),
        ("theirs", metadata("annotations", "example.com/note", json!("theirs")), 0, true),
    ];
    let mut places = Vec::new();
    for (title, ..) in &cases {
        places.push(bed.namespace(title, &[]).await.unwrap());
    }
    let mut spec = spec(json!({ "names": [bed.name("*")], "exclude": [bed.home] }));
    spec["outputs"] = json!([output(&bed, "ArgoCDHelm")]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let output = name_of(&bed, "ArgoCDHelm");
    let mut before = Vec::new();
    let mark = bed.proxy.log().mark();
    for ((_, edit, ..), place) in cases.iter().zip(&places) {
        before.push(bed.secrets(place).get(&output).await.unwrap());
        let by = PatchParams { field_manager: Some("argocd-ui".to_owned()), ..PatchParams::default() };
        bed.secrets(place).patch(&output, &by, &Patch::Merge(edit)).await.unwrap();
    }
    for (good, place) in before.iter().zip(&places) {
        let is_as_before = |secret: Option<&Secret>| {
            secret.is_some_and(|secret| {
                let ours = |key: &&String| key.contains("pullsecrets.dev");
                let own = |secret: &Secret| {
                    secret
                        .annotations()
                        .iter()
                        .filter(|(key, _)| ours(key))
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect::<Vec<_>>()
                };
                (&secret.data, secret.labels(), &secret.metadata.owner_references, secret.immutable)
                    == (&good.data, good.labels(), &good.metadata.owner_references, None)
                    && own(secret) == own(good)
            })
        };
        at_once(bed.named_secret_until(place, &output, "as it was", is_as_before)).await;
    }
    quiet(&bed).await;
    for (((title, _, writes, same), good), place) in cases.iter().zip(&before).zip(&places) {
        let stored = super::look::writes_in(&bed, mark, place).iter().filter(|write| write.is_committed()).count();
        assert_eq!(stored, *writes, "{title}");
        let after = bed.secrets(place).get(&output).await.unwrap();
        assert_eq!(uid(&after) == uid(good), *same, "{title}");
    }
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    at_once(bed.ready(&name)).await;
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_output_that_is_not_allowed_is_told_of_and_holds_up_no_other() {
    let formats = ["Jenkins", "BasicAuth"];
    let bed = bed("output-denied", &formats).await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let (jenkins, basic) = (name_of(&bed, "Jenkins"), name_of(&bed, "BasicAuth"));
    let only_here = launch().output(&format!("{a}/{jenkins}=Jenkins"));
    let operator = bed.operator(only_here).await.unwrap();
    let mut spec = json!({ "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": [a, b] } });
    spec["outputs"] = json!([output(&bed, "Jenkins")]);
    let name = bed.credential("x", spec).await.unwrap();
    let status = bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    assert_eq!(counts(&status, "Jenkins"), [2, 1, 1]);
    let failures = status.data.pointer("/status/failures").cloned().unwrap();
    let told = &failures[0];
    assert_eq!(
        (&told["namespace"], &told["secret"], &told["reason"]),
        (&json!(b), &json!(jenkins), &json!("OutputNotAllowed"))
    );
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains(&format!("format: Jenkins, namespaces: [{b}]}} to the chart's outputs")),
        "{told}"
    );
    output_until(&bed, &a, "Jenkins").await;
    bed.logins_until(&b, &[OWN, PUBLIC]).await.unwrap();

    // Only where it is allowed, and then another one that is allowed nowhere.
    let placed = json!({ "name": jenkins, "format": "Jenkins", "host": PUBLIC, "namespaces": { "names": [a] } });
    bed.change(&name, json!({ "spec": { "outputs": [placed] } })).await.unwrap();
    at_once(bed.ready(&name)).await;
    bed.change(&name, json!({ "spec": { "outputs": [placed, output(&bed, "BasicAuth")] } })).await.unwrap();
    let status = bed.condition_until(&name, "Ready", "False", "OutputNotAllowed").await.unwrap();
    let message = condition(&status, "Ready").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains(&format!(
            "add {{name: {basic}, format: BasicAuth, namespaces: [{a}, {b}]}} to the chart's outputs"
        )),
        "{message}"
    );
    assert_eq!((counts(&status, "Jenkins"), counts(&status, "BasicAuth")), ([1, 1, 0], [2, 0, 2]));
    assert!(bed.secrets(&a).get_opt(&basic).await.unwrap().is_none());

    // A host that is not written: what is there is left, and not taken for something to be cleaned up.
    let before = version(&bed.secrets(&a).get(&jenkins).await.unwrap());
    let wrong =
        json!({ "name": jenkins, "format": "Jenkins", "host": "ecr-public.aws.com", "namespaces": { "names": [a] } });
    bed.change(&name, json!({ "spec": { "outputs": [wrong] } })).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "InvalidSpec").await.unwrap();
    quiet(&bed).await;
    assert_eq!(version(&bed.secrets(&a).get(&jenkins).await.unwrap()), before);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_secret_in_the_place_of_an_output_is_left_alone_until_it_is_adopted() {
    let bed = bed("output-foreign", &["BasicAuth"]).await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let basic = name_of(&bed, "BasicAuth");
    let foreign = json!({
        "metadata": { "name": basic, "labels": { "theirs": "x" } }, "type": "kubernetes.io/basic-auth",
        "stringData": { "username": "me", "password": "mine" },
    });
    let foreign: Secret = serde_json::from_value(foreign).unwrap();
    let foreign = bed.secrets(&a).create(&PostParams::default(), &foreign).await.unwrap();
    allow_events(&bed, &a).await;
    let operator = bed.operator(allowing(&bed, &["BasicAuth"]).args(&["--namespace-events"])).await.unwrap();
    let mut spec = spec(json!({ "names": [a, b] }));
    spec["outputs"] = json!([output(&bed, "BasicAuth")]);
    let name = bed.credential("x", spec).await.unwrap();
    let status = bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    assert_eq!(counts(&status, "BasicAuth"), [2, 1, 1]);
    assert_eq!(status.data.pointer("/status/failures/0/secret"), Some(&json!(basic)));
    assert_eq!(status.data.pointer("/status/failures/0/reason"), Some(&json!("SecretNotOwned")));
    event_in(&bed, &a, &basic, "Warning", "SecretNotOwned").await;
    bed.logins_until(&a, &[OWN]).await.unwrap();
    output_until(&bed, &b, "BasicAuth").await;
    assert_eq!(version(&bed.secrets(&a).get(&basic).await.unwrap()), version(&foreign));
    bed.change(&name, json!({ "spec": { "secret": { "conflictPolicy": "Adopt", "deletionPolicy": "Retain" } } }))
        .await
        .unwrap();
    at_once(bed.ready(&name)).await;
    event_in(&bed, &a, &basic, "Normal", "up to date again").await;
    let adopted = output_until(&bed, &a, "BasicAuth").await;
    assert_eq!((uid(&adopted), adopted.labels().get("theirs").map(String::as_str)), (uid(&foreign), Some("x")));
    assert_eq!(owner(&adopted), None, "it is retained");

    // Retained when the EcrCredential goes, and taken over again by the next.
    bed.credentials().delete(&name, &DeleteParams::default()).await.unwrap();
    quiet(&bed).await;
    assert_eq!(version(&bed.secrets(&a).get(&basic).await.unwrap()), version(&adopted));
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_new_namespace_gets_every_output_at_once_while_aws_fails_and_nothing_good_is_touched() {
    let formats = ["KargoImage", "DockerConfigFile"];
    let bed = bed("output-static", &formats).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(allowing(&bed, &formats)).await.unwrap();
    let mut spec = spec(json!({ "names": [a, bed.name("late-*")] }));
    spec["outputs"] = formats.map(|format| output(&bed, format)).to_vec().into();
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let before = version(&output_until(&bed, &a, "KargoImage").await);
    let fault = bed.aws.fault(Service::Ecr, Fault::Status(503)).until_cleared();
    bed.recorder.aws_fails();
    demand(&bed, &name, "1").await;
    bed.condition_until(&name, "Reconciling", "True", "AwsUnavailable").await.unwrap();
    let late = bed.namespace("late-1", &[]).await.unwrap();
    at_once(async { Ok::<_, kube::Error>(output_until(&bed, &late, "KargoImage").await) }).await;
    let has_file = |secret: Option<&Secret>| {
        secret.is_some_and(|s| s.data.as_ref().is_some_and(|d| d.contains_key("config.json")))
    };
    let file = name_of(&bed, "DockerConfigFile");
    at_once(bed.named_secret_until(&late, &file, "a docker config", has_file)).await;
    // What somebody deletes is there again, also now.
    bed.secrets(&a).delete(&file, &DeleteParams::default()).await.unwrap();
    at_once(bed.named_secret_until(&a, &file, "made anew", has_file)).await;
    quiet(&bed).await;
    assert_eq!(version(&bed.secrets(&a).get(&name_of(&bed, "KargoImage")).await.unwrap()), before);
    drop(fault);
    bed.aws.clear_faults();
    bed.recorder.aws_recovers();
    served(&bed, &name, "1").await;
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_output_whose_format_is_edited_is_made_anew_in_the_other_form() {
    let bed = bed("output-edited", &["BasicAuth"]).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let basic = name_of(&bed, "BasicAuth");
    let both = launch().output(&format!("*/{basic}=BasicAuth")).output(&format!("*/{basic}=Jenkins"));
    let operator = bed.operator(both.output(&format!("*/{basic}=ArgoCDHelm"))).await.unwrap();
    let mut spec = spec(json!({ "names": [a] }));
    spec["outputs"] = json!([output(&bed, "BasicAuth")]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let first = output_until(&bed, &a, "BasicAuth").await;
    for (format, type_, keys, same) in [
        ("Jenkins", "Opaque", vec!["password", "username"], false),
        ("ArgoCDHelm", "Opaque", vec!["enableOCI", "password", "type", "url", "username"], true),
    ] {
        let before = bed.secrets(&a).get(&basic).await.unwrap();
        bed.change(&name, json!({ "spec": { "outputs": [{ "name": basic, "format": format, "host": OWN }] } }))
            .await
            .unwrap();
        let is_so = |secret: Option<&Secret>| {
            secret.is_some_and(|s| {
                let found: Vec<&str> = s.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
                s.type_.as_deref() == Some(type_) && found == keys
            })
        };
        let after = at_once(bed.named_secret_until(&a, &basic, format, is_so)).await.unwrap();
        at_once(bed.ready(&name)).await;
        assert_eq!(uid(&after) == uid(&before), same, "{format}");
        assert_eq!(auth(&after), auth(&first), "{format}: the same token");
    }
    let left = bed.secrets(&a).get(&basic).await.unwrap();
    assert!(!left.labels().contains_key("jenkins.io/credentials-type"), "what the other format had is gone");
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_tenants_outputs_hold_its_own_token_and_are_found_again() {
    let formats = ["BasicAuth", "DockerConfigFile"];
    let bed = bed("output-tenants", &formats).await;
    let one = bed.tenant("a", "111111111111", "puller").await.unwrap();
    let two = bed.tenant("b", "222222222222", "puller").await.unwrap();
    // This one gets an output alone.
    let three = bed.tenant("c", "333333333333", "puller").await.unwrap();
    let launch = || allowing(&bed, &formats).service_account("*/puller");
    let first = bed.operator(launch()).await.unwrap();
    let (basic, file) = (name_of(&bed, "BasicAuth"), name_of(&bed, "DockerConfigFile"));
    let spec = json!({
        "registries": [{ "private": {} }, { "public": {} }],
        "auth": { "serviceAccount": { "fromTargetNamespace": "puller" } },
        "namespaces": { "names": [one.namespace, two.namespace] },
        "outputs": [
            { "name": basic, "format": "BasicAuth", "host": PUBLIC },
            { "name": file, "format": "DockerConfigFile", "namespaces": { "names": [three.namespace] } },
        ],
    });
    let name = bed.credential("x", spec).await.unwrap();
    let status = bed.ready(&name).await.unwrap();
    assert_eq!((counts(&status, "BasicAuth"), counts(&status, "DockerConfigFile")), ([2, 2, 0], [1, 1, 0]));
    for tenant in [&one, &two] {
        bed.logins_until(&tenant.namespace, &[&tenant.host, PUBLIC]).await.unwrap();
        let auth = auth(&output_until(&bed, &tenant.namespace, "BasicAuth").await).unwrap();
        assert_eq!(bed.aws.token_of(&auth).unwrap().role.as_deref(), Some(&*tenant.role));
    }
    assert!(bed.secret(&three.namespace).await.unwrap().is_none());
    let config = bed.secrets(&three.namespace).get(&file).await.unwrap().data.unwrap();
    let config: Value = serde_json::from_slice(&config["config.json"].0).unwrap();
    let auth = config["auths"][&three.host]["auth"].as_str().unwrap();
    assert_eq!(bed.aws.token_of(auth).unwrap().role.as_deref(), Some(&*three.role));
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 5);

    quiet(&bed).await;
    first.stop().await.unwrap();
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    let second = bed.operator(launch()).await.unwrap();
    page_until(&second, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
    quiet(&bed).await;
    let changes: Vec<String> = bed.recorder.changes_since(&marks).iter().map(|change| change.summary()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(bed.aws.calls_since(calls).len(), 0);
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn ecr_public_has_two_hosts_and_a_login_the_fields_that_are_asked_for() {
    const DUAL_STACK: &str = "ecr-public.aws.com";
    let bed = bed("output-fields", &["Jenkins"]).await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(allowing(&bed, &["Jenkins"])).await.unwrap();
    let mut spec = json!({
        "registries": [{ "public": { "hostVariants": ["Standard", "DualStack"] } }],
        "namespaces": { "names": [a] },
    });
    spec["outputs"] = json!([{ "name": name_of(&bed, "Jenkins"), "format": "Jenkins", "host": DUAL_STACK }]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.logins_until(&a, &[DUAL_STACK, PUBLIC]).await.unwrap();
    output_until(&bed, &a, "Jenkins").await;
    let fields = json!({ "spec": { "secret": { "loginFields": "AuthUsernamePassword" } } });
    bed.change(&name, fields).await.unwrap();
    let has_password = |secret: Option<&Secret>| {
        let data = secret.and_then(|secret| secret.data.as_ref()).and_then(|data| data.get(".dockerconfigjson"));
        data.is_some_and(|data| {
            let config: Value = serde_json::from_slice(&data.0).unwrap();
            [DUAL_STACK, PUBLIC].iter().all(|host| {
                let entry = &config["auths"][host];
                let text = |key: &str| entry[key].as_str().unwrap_or_default();
                let auth = BASE64_STANDARD.encode(format!("{}:{}", text("username"), text("password")));
                text("username") == "AWS" && text("auth") == auth && bed.aws.is_valid(&auth)
            })
        })
    };
    at_once(bed.secret_until(&a, "a user name and a password", has_password)).await;
    at_once(bed.ready(&name)).await;
    assert_eq!(bed.aws.calls(Service::EcrPublic).len(), 1);
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 3);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
