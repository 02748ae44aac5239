//! Values at the edge of what is allowed: what the user gives meets what the chart has, looks like a number, or is null.

use serde_json::{Value, json};

use super::helm::{Helm, apply, namespace, object, read, version_of};
use super::modes::{everything, plane_with_all_kinds};

const NEWEST: &str = "1.36.0";

fn render(values: &Value) -> Vec<Value> {
    Helm::offline("v3").template("eco", NEWEST, values).unwrap_or_else(|why| panic!("{values}: {why}"))
}

/// What is empty by default may be null; what is not is an error that names the place, and never one of the templates.
#[test]
fn null_is_nothing_where_nothing_is_allowed_and_else_an_error_that_says_where() {
    let values: Value = serde_saphyr::from_str(&read("charts/ecr-credential-operator/values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("charts/ecr-credential-operator/values.schema.json")).unwrap();
    let shown = json!({ "enabled": true });
    let on = ["networkPolicy", "serviceMonitor", "prometheusRule", "grafanaDashboard"].map(|name| (name, &shown));
    let on = json!(std::collections::BTreeMap::from(on));
    let (mut empty, mut cleared, mut one_by_one) = (json!({}), json!({}), vec![]);
    for (place, required) in places(&values, &schema, "") {
        let default = values.pointer(&place).unwrap();
        let mut given = json!(null);
        for key in place.rsplit('/').filter(|key| !key.is_empty()) {
            given = json!({ key: given });
        }
        if required || schema.pointer(&place.replace('/', "/properties/")).unwrap()["properties"].is_object() {
            one_by_one.push((place, required, given));
        } else if is_empty(default) {
            merge(&mut empty, &given);
        } else {
            // The one whose template says what is wrong; the test of budgets asks it.
            let own_words = place == "/podDisruptionBudget/maxUnavailable";
            assert!(default.is_object() || default.is_array() || own_words, "{place} would be lost silently");
            merge(&mut cleared, &given);
        }
    }
    merge(&mut cleared, &json!({ "podDisruptionBudget": { "minAvailable": 1 } }));
    for helm in ["v3", "v4"].map(Helm::offline) {
        for (nulls, base) in [(&empty, Some(json!({}))), (&empty, Some(on.clone())), (&cleared, None)] {
            let mut nulls = nulls.clone();
            merge(&mut nulls, base.as_ref().unwrap_or(&on));
            let objects = helm.template("eco", NEWEST, &nulls).unwrap_or_else(|why| panic!("{nulls}: {why}"));
            assert!(base.is_none_or(|base| objects == render(&base)), "null is not the same as empty");
        }
        for (place, required, given) in &one_by_one {
            let key = place.rsplit('/').next().unwrap();
            match helm.template("eco", NEWEST, given) {
                Err(why) => assert!(*required && why.contains(&format!("missing property '{key}'")), "{place}: {why}"),
                Ok(objects) => assert!(!required && objects == render(&json!({})), "{place} is lost silently"),
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value == "" || value == false || value == &json!({}) || value == &json!([])
}

/// The pointers to all that values.yaml has and the schema knows, and whether the schema wants it.
fn places(values: &Value, schema: &Value, path: &str) -> Vec<(String, bool)> {
    let known = schema["properties"].as_object().into_iter().flatten().filter(|(key, _)| values.get(key).is_some());
    let places = known.flat_map(|(key, under)| {
        let path = format!("{path}/{key}");
        let required = schema["required"].as_array().is_some_and(|all| all.contains(&json!(key)));
        [vec![(path.clone(), required)], places(&values[key], under, &path)].concat()
    });
    places.collect()
}

#[test]
fn the_network_policy_opens_what_is_needed_and_no_more() {
    let (agent, node) = (["169.254.170.23/32", "fd00:ec2::23/128"], ["169.254.169.254/32", "fd00:ec2::254/128"]);
    for (metadata, required, expected) in
        [(true, true, agent.to_vec()), (true, false, [agent, node].concat()), (false, false, vec![])]
    {
        let values = json!({
            "networkPolicy": { "enabled": true, "awsMetadata": metadata, "metricsFrom": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] },
            "auth": { "requireWorkloadIdentity": required },
        });
        let objects = render(&values);
        let spec = &object(&objects, "NetworkPolicy", "")["spec"];
        let rules = spec["egress"].as_array().unwrap().iter();
        let places = rules.filter_map(|rule| rule["to"].as_array()).flatten();
        assert_eq!(places.map(|to| &to["ipBlock"]["cidr"]).collect::<Vec<_>>(), expected);
        let chosen = |selector: &Value, pod: &Value| {
            let labels = &pod["metadata"]["labels"];
            let wanted = selector["matchLabels"].as_object();
            wanted.is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
        };
        // The pods of `helm test` may come in, and are not held themselves.
        let peers = spec["ingress"][0]["from"].as_array().unwrap();
        assert_eq!(peers.len(), 2);
        for pod in objects.iter().filter(|object| object["kind"] == "Pod") {
            assert!(peers.iter().any(|peer| chosen(&peer["podSelector"], pod)), "{peers:?}");
            assert!(!chosen(&spec["podSelector"], pod));
        }
        assert!(chosen(&spec["podSelector"], &object(&objects, "Deployment", "")["spec"]["template"]));
    }
}

#[test]
fn the_network_policy_opens_the_ports_of_the_clusters_dns() {
    // Those of a Service's pods count where the network translates addresses first, as in OpenShift.
    for (openshift, expected) in [(false, vec![53, 53]), (true, vec![53, 53, 5353, 5353])] {
        let objects = render(&json!({ "networkPolicy": { "enabled": true }, "openshift": openshift }));
        let ports = object(&objects, "NetworkPolicy", "")["spec"]["egress"][0]["ports"].as_array().unwrap().clone();
        assert_eq!(ports.iter().map(|port| port["port"].as_u64().unwrap()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn the_pods_of_helm_test_can_start_where_the_operator_can_and_are_as_guarded() {
    let objects = render(&everything());
    let operator = &object(&objects, "Deployment", "")["spec"]["template"]["spec"];
    let pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "Pod").collect();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let (name, pod) = (&pod["metadata"]["name"], &pod["spec"]);
        for field in ["imagePullSecrets", "securityContext", "nodeSelector", "tolerations", "affinity"] {
            assert!(operator[field].is_object() || operator[field].is_array(), "{field}");
            assert_eq!(pod[field], operator[field], "{name} {field}");
        }
        let (own, operators) = (&pod["containers"][0], &operator["containers"][0]);
        assert_eq!(own["securityContext"], operators["securityContext"], "{name}");
        assert!(own["image"].as_str().unwrap().contains("@sha256:"), "{name}: {}", own["image"]);
        // Only the operator's own program is given the operator's rights.
        assert_eq!(pod["automountServiceAccountToken"] == true, own["image"] == operators["image"], "{name}");
    }
}

#[test]
fn a_budget_says_how_many_pods_may_be_away_or_must_stay() {
    for (budget, expected) in [
        (json!({}), Some(json!({ "maxUnavailable": 1 }))),
        (json!({ "maxUnavailable": 0 }), Some(json!({ "maxUnavailable": 0 }))),
        (json!({ "minAvailable": 0 }), Some(json!({ "minAvailable": 0 }))),
        (json!({ "minAvailable": "50%", "maxUnavailable": null }), Some(json!({ "minAvailable": "50%" }))),
        (json!({ "minAvailable": null }), Some(json!({ "maxUnavailable": 1 }))),
        (json!({ "maxUnavailable": "" }), None),
        (json!({ "maxUnavailable": null, "minAvailable": null }), None),
    ] {
        let rendered = Helm::offline("v3").template("eco", NEWEST, &json!({ "podDisruptionBudget": budget }));
        let Some(expected) = expected else {
            assert!(rendered.unwrap_err().contains("podDisruptionBudget needs"), "{budget}");
            continue;
        };
        let mut found = object(&rendered.unwrap(), "PodDisruptionBudget", "")["spec"].clone();
        found.as_object_mut().unwrap().remove("selector");
        assert_eq!(found, expected, "{budget}");
    }
}

#[tokio::test]
async fn names_that_look_like_numbers_and_long_ones_are_accepted_by_the_api_server() {
    let client = plane_with_all_kinds().await.admin_client().unwrap();
    for name in ["456", "1e3"] {
        namespace(&client, name).await;
    }
    let numbers = json!({
        "namespaces": ["1e3"], "secretNames": ["1"], "priorityClassName": "2", "imagePullSecrets": [{ "name": "3" }],
        "serviceAccount": { "name": "4" }, "aws": { "region": "eu-west-1", "caBundle": { "name": "5", "key": "6" } },
        "auth": { "serviceAccounts": [{ "namespace": "1e3", "name": "7" }], "secrets": [{ "namespace": "1e3", "name": "8" }] },
        "credentials": [{ "name": "9", "spec": { "registries": [{ "private": {} }], "namespaces": { "names": ["1e3"] } } }],
        "podLabels": { "a": "10" }, "podAnnotations": { "b": "true" },
        "outputs": [{ "name": "11", "format": "BasicAuth", "namespaces": ["1e3"] }],
        "include": { "secrets": [{ "namespace": "1e3", "name": "12" }] },
    });
    let kubernetes = version_of(&client).await;
    let mut refused = vec![];
    for (release, own) in [
        ("1e3", json!({})),
        ("123", json!({ "nameOverride": "2024" })),
        ("a.b", json!({ "fullnameOverride": "0x10", "nameOverride": "on" })),
        (&"9".repeat(53), json!({ "nameOverride": "n".repeat(63) })),
    ] {
        let mut values = everything();
        merge(&mut values, &numbers);
        merge(&mut values, &json!({ "nameOverride": "", "fullnameOverride": "" }));
        merge(&mut values, &own);
        for version in ["v3", "v4"] {
            let objects = Helm::offline(version).template_as(release, "456", &kubernetes, &values).unwrap();
            for object in &objects {
                if let Err(why) = apply(&client, object, true).await {
                    refused.push(format!("{version} {release} {own}: {why}"));
                }
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// Replaces what is given, as helm does.
fn merge(values: &mut Value, with: &Value) {
    for (key, value) in with.as_object().unwrap() {
        match values.get_mut(key) {
            Some(own) if own.is_object() && value.is_object() => merge(own, value),
            _ => values[key] = value.clone(),
        }
    }
}

/// `documents` refuses keys that are there twice.
#[test]
fn labels_annotations_and_variables_of_the_user_replace_the_charts_but_not_what_selects() {
    let ours = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"];
    let labels = json!({
        ours[0]: "theirs", ours[1]: "theirs", ours[2]: "theirs", "app.kubernetes.io/version": "theirs", "helm.sh/chart": "theirs", "own": "theirs",
    });
    let keep = json!({ "helm.sh/resource-policy": "theirs" });
    let spec = json!({ "registries": [{ "private": {} }], "namespaces": { "names": ["*"] } });
    let shown = json!({ "enabled": true, "labels": labels });
    let all = render(&json!({
        "podLabels": labels, "podAnnotations": { "kubectl.kubernetes.io/default-container": "theirs" },
        "serviceMonitor": shown, "prometheusRule": shown, "grafanaDashboard": shown,
        "credentials": [{ "name": "x", "labels": labels, "annotations": keep, "spec": spec }],
        "aws": { "region": "eu-west-1" }, "extraEnv": [{ "name": "AWS_REGION", "value": "theirs" }],
    }));
    let deployment = object(&all, "Deployment", "");
    let pod = &deployment["spec"]["template"];
    let labelled =
        ["ServiceMonitor", "PrometheusRule", "ConfigMap", "EcrCredential"].map(|kind| object(&all, kind, ""));
    for object in labelled.into_iter().chain([pod]) {
        let found = &object["metadata"]["labels"];
        for name in ["app.kubernetes.io/version", "helm.sh/chart", "own"] {
            assert_eq!(found[name], "theirs", "{name} of {found}");
        }
        for name in ours {
            assert_ne!(found[name], "theirs", "{name} of {found}");
        }
    }
    for (name, value) in deployment["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&pod["metadata"]["labels"][name], value);
    }
    assert_eq!(pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "theirs");
    let credential = &object(&all, "EcrCredential", "")["metadata"]["annotations"];
    assert_eq!(credential["helm.sh/resource-policy"], "theirs");
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    let regions: Vec<&Value> = env.iter().filter(|e| e["name"] == "AWS_REGION").map(|e| &e["value"]).collect();
    assert_eq!(regions, ["theirs"]);

    for object in render(&json!({ "commonLabels": labels })) {
        let found = &object["metadata"]["labels"];
        assert_eq!(found["own"], "theirs", "{} {}", object["kind"], object["metadata"]["name"]);
        assert!(ours.iter().all(|name| found[name] != "theirs"), "{found}");
    }
}
