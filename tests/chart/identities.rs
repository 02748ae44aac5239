//! What the chart's `auth` lends to EcrCredentials: rights by name, settings, and a policy on tokens, asked as the operator.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use testbed::bed::poll;
use testbed::control_plane::shared;

use super::helm::{Helm, apply, chart, namespace, object, setting};

fn render(values: &Value) -> Vec<Value> {
    Helm::offline("v3").template("eco", "1.36.0", values).unwrap()
}

/// The rules on ServiceAccounts and on Secrets that are not written, as `NAMESPACE VERBS RESOURCE NAMES`.
fn lent(objects: &[Value]) -> Vec<String> {
    let list = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap_or_default().join(",");
    let mut all = vec![];
    for role in objects.iter().filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role") {
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or("*");
        for rule in role["rules"].as_array().unwrap() {
            let (resource, verbs) = (list(&rule["resources"]), list(&rule["verbs"]));
            if resource.starts_with("serviceaccounts") || (resource == "secrets" && !verbs.contains("patch")) {
                all.push(format!("{namespace} {verbs} {resource} {}", list(&rule["resourceNames"])));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn nothing_is_lent_unless_it_is_named() {
    let objects = render(&json!({}));
    assert_eq!(lent(&objects), Vec::<String>::new());
    assert_eq!(setting(&objects, "ECO_SERVICE_ACCOUNTS"), None);
    assert_eq!(setting(&objects, "ECO_CREDENTIALS_SECRETS"), None);
    assert_eq!(setting(&objects, "ECO_REQUIRE_WORKLOAD_IDENTITY").as_deref(), Some("true"));
    let policies: Vec<_> = objects.iter().filter(|o| o["kind"] == "ValidatingAdmissionPolicy").collect();
    assert!(
        !policies.is_empty() && policies.iter().all(|policy| !policy.to_string().contains("serviceaccounts/token"))
    );
}

#[test]
fn what_is_lent_is_granted_by_name_in_its_namespace_and_told_to_the_operator() {
    let auth = json!({
        "serviceAccounts": [{ "namespace": "a", "name": "one" }, { "name": "any" }, { "namespace": "a", "name": "two" }],
        "secrets": [{ "namespace": "a", "name": "keys" }, { "namespace": "b", "name": "keys" }],
        "requireWorkloadIdentity": false,
    });
    let objects = render(&json!({ "auth": auth }));
    assert_eq!(
        lent(&objects),
        [
            "* create serviceaccounts/token any",
            "* list,watch serviceaccounts any",
            "a create serviceaccounts/token one,two",
            "a get,list,watch secrets keys",
            "a list,watch serviceaccounts one,two",
            "b get,list,watch secrets keys",
        ]
    );
    assert_eq!(setting(&objects, "ECO_SERVICE_ACCOUNTS").as_deref(), Some("a/one,*/any,a/two"));
    assert_eq!(setting(&objects, "ECO_CREDENTIALS_SECRETS").as_deref(), Some("a/keys,b/keys"));
    assert_eq!(setting(&objects, "ECO_REQUIRE_WORKLOAD_IDENTITY"), None);

    // Where namespaces are listed, one that is left open stands for these.
    let objects = render(&json!({ "auth": { "serviceAccounts": [{ "name": "any" }] }, "namespaces": ["x", "y"] }));
    assert_eq!(setting(&objects, "ECO_SERVICE_ACCOUNTS").as_deref(), Some("x/any,y/any"));
    assert!(lent(&objects).iter().all(|rule| rule.starts_with("x ") || rule.starts_with("y ")), "{:?}", lent(&objects));
    assert_eq!(lent(&objects).len(), 4);
}

#[test]
fn a_bundle_of_certificates_is_mounted_where_its_variable_says() {
    for (kind, volume) in [("ConfigMap", json!({ "name": "ca" })), ("Secret", json!({ "secretName": "ca" }))] {
        let bundle = json!({ "kind": kind, "name": "ca", "key": "bundle.pem" });
        let extra = json!({ "name": "x", "mountPath": "/x" });
        let values =
            json!({ "aws": { "caBundle": bundle }, "extraVolumeMounts": [extra], "extraVolumes": [{ "name": "x" }] });
        let objects = render(&values);
        let pod = &object(&objects, "Deployment", "")["spec"]["template"]["spec"];
        let mounts = &pod["containers"][0]["volumeMounts"];
        let path = format!("{}/ca.crt", mounts[0]["mountPath"].as_str().unwrap());
        assert_eq!(setting(&objects, "AWS_CA_BUNDLE"), Some(path));
        let mut expected = volume;
        expected["items"] = json!([{ "key": "bundle.pem", "path": "ca.crt" }]);
        let field = if kind == "Secret" { "secret" } else { "configMap" };
        assert_eq!(pod["volumes"], json!([{ "name": mounts[0]["name"], field: expected }, { "name": "x" }]));
        assert_eq!(mounts[1], extra);
    }
}

#[tokio::test]
async fn the_operator_gets_tokens_that_aws_alone_accepts_and_of_no_other_account() {
    let plane = shared().await.unwrap();
    plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
    let admin = plane.admin_client().unwrap();
    let (home, team) = ("chart-identities", "chart-identities-team");
    for name in [home, team] {
        namespace(&admin, name).await;
    }
    for (kind, name) in [
        ("ServiceAccount", "one"),
        ("ServiceAccount", "any"),
        ("ServiceAccount", "other"),
        ("Secret", "keys"),
        ("Secret", "other"),
    ] {
        let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": team } });
        apply(&admin, &object, false).await.unwrap();
    }
    let helm = Helm::on(plane, "v3");
    let auth = json!({
        "serviceAccounts": [{ "namespace": team, "name": "one" }, { "name": "any" }],
        "audiences": ["sts.amazonaws.com", "second"], "secrets": [{ "namespace": team, "name": "keys" }],
    });
    let values = json!({ "crds": { "enabled": false }, "fullnameOverride": "operator", "auth": auth });
    let (chart, file) = (chart(), helm.values(&values));
    let args = ["install", "eco", &chart.to_string_lossy(), "--namespace", home, "--values", &file.to_string_lossy()];
    helm.run(&args).unwrap();
    let own = plane.service_account_token(home, "operator", "", 3600).await.unwrap();
    let operator = plane.client(&own).unwrap();

    let refused = async || token(&operator, team, "one", &[]).await == Err(Refusal::Policy);
    poll("the policy is in force", refused).await;
    for (account, audiences, expected) in [
        ("one", &["sts.amazonaws.com"][..], Ok(())),
        ("one", &["sts.amazonaws.com", "second"], Ok(())),
        ("any", &["second"], Ok(())),
        ("any", &[], Err(Refusal::Policy)),
        ("one", &["https://kubernetes.default.svc"], Err(Refusal::Policy)),
        ("one", &["sts.amazonaws.com", "https://kubernetes.default.svc"], Err(Refusal::Policy)),
        ("other", &["sts.amazonaws.com"], Err(Refusal::Rights)),
    ] {
        assert_eq!(token(&operator, team, account, audiences).await, expected, "{account} {audiences:?}");
    }
    // Nobody else is bound.
    assert_eq!(token(&admin, team, "other", &[]).await, Ok(()));

    let accounts: Api<ServiceAccount> = Api::namespaced(operator.clone(), team);
    let everywhere: Api<ServiceAccount> = Api::all(operator.clone());
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), team);
    let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
    assert!(accounts.list(&named("one")).await.is_ok() && everywhere.list(&named("any")).await.is_ok());
    assert!(secrets.get("keys").await.is_ok() && secrets.list(&named("keys")).await.is_ok());
    for refused in [
        everywhere.list(&named("one")).await.map(drop),
        accounts.list(&named("other")).await.map(drop),
        secrets.get("other").await.map(drop),
        secrets.delete("keys", &Default::default()).await.map(drop),
    ] {
        assert!(matches!(&refused, Err(Error::Api(status)) if status.is_forbidden()), "{refused:?}");
    }
    helm.run(&["uninstall", "eco", "--namespace", home]).unwrap();
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Rights,
    Policy,
}

async fn token(client: &Client, namespace: &str, account: &str, audiences: &[&str]) -> Result<(), Refusal> {
    let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": audiences } })).unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    match accounts.create_token_request(account, &PostParams::default(), &request).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.message.contains("auth.audiences") => Err(Refusal::Policy),
        Err(Error::Api(status)) if status.is_forbidden() => Err(Refusal::Rights),
        Err(error) => panic!("{error}"),
    }
}
