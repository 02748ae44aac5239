//! What is accepted, and what the API server fills in.

use ecr_credential_operator::api::EcrCredentialSpec;
use serde_json::{Value, json};

use super::api_server::{create_for_good, credential, least, plane, set, try_create};
use super::auth_cases::PLACES;

#[tokio::test]
async fn the_least_that_can_be_said_is_completed_by_the_defaults() {
    let client = plane().await.admin_client().unwrap();
    let completed = json!({
        // Nothing is filled in inside of lists: for tools that compare them with what was applied, they would differ for ever.
        "registries": [{ "private": {} }],
        "secret": { "name": "ecr-pull-secret", "conflictPolicy": "Fail", "deletionPolicy": "Delete" },
        "namespaces": { "names": ["a"] },
        "refresh": { "atPercent": 50, "maxAge": "6h" },
        "suspend": false,
    });
    let created = try_create(&client, &credential(least())).await.unwrap();
    assert_eq!(created["spec"], completed);
    // Charts write null where a value is not given.
    let mut with_nulls = least();
    with_nulls["secret"] = Value::Null;
    with_nulls["refresh"] = json!({ "atPercent": null, "maxAge": null });
    with_nulls["suspend"] = Value::Null;
    let created = try_create(&client, &credential(with_nulls)).await.unwrap();
    assert_eq!(created["spec"], completed);
}

#[tokio::test]
async fn what_the_types_fill_in_is_what_the_api_server_fills_in() {
    let client = plane().await.admin_client().unwrap();
    let created = try_create(&client, &credential(least())).await.unwrap();
    let ours: EcrCredentialSpec = serde_json::from_value(least()).unwrap();
    let theirs: EcrCredentialSpec = serde_json::from_value(created["spec"].clone()).unwrap();
    assert_eq!(ours, theirs);
    let mut ours = serde_json::to_value(&ours).unwrap();
    let registry = &ours["registries"][0]["private"];
    assert_eq!(
        *registry,
        json!({ "hostVariants": ["Standard"], "apiEndpoint": "Standard", "requestRegistryIds": false })
    );
    ours["registries"] = created["spec"]["registries"].clone();
    assert_eq!(ours, created["spec"]);
}

#[tokio::test]
async fn each_good_value_is_accepted() {
    let client = plane().await.admin_client().unwrap();
    let mut refused = vec![];
    for (path, values) in [
        ("metadata/name", vec![json!("x".repeat(63)), json!("a.b")]),
        (
            "spec/registries",
            vec![
                json!([{ "public": {} }]),
                json!([{ "private": {}, "public": null }, { "private": null, "public": {} }]),
            ],
        ),
        (
            "spec/registries/0/private/region",
            [
                "eu-west-1",
                "us-gov-west-1",
                "cn-north-1",
                "us-iso-east-1",
                "us-isob-east-1",
                "eu-isoe-west-1",
                "us-isof-south-1",
                "eusc-de-east-1",
                "ap-southeast-7",
                "mx-central-1",
            ]
            .map(|r| json!(r))
            .to_vec(),
        ),
        ("spec/registries/0/private/region", vec![Value::Null]),
        ("spec/registries/0/private/accountIds", vec![json!(["012345678901"]), json!([])]),
        (
            "spec/registries/0/private/hostVariants",
            vec![json!(["Standard", "Fips", "DualStack", "DualStackFips"]), json!(["DualStack"])],
        ),
        (
            "spec/registries/0/private/extraHosts",
            vec![json!([
                "vpce-0a1b-2c3d.dkr.ecr.eu-west-1.vpce.amazonaws.com",
                "a.b:1",
                "registry.example:65535",
                "1.2.3.4:5000"
            ])],
        ),
        ("spec/registries/0/private", vec![json!({ "requestRegistryIds": true, "accountIds": ["111122223333"] })]),
        ("spec/registries/0/private/apiEndpoint", ["Fips", "DualStack", "DualStackFips"].map(|e| json!(e)).to_vec()),
        (
            "spec/auth",
            vec![Value::Null, json!({}), json!({ "serviceAccount": null, "secretRef": null, "assumeRoles": null })],
        ),
        ("spec/secret/name", vec![json!("a"), json!("ecr.pull-secret.1"), json!("a".repeat(253))]),
        (
            "spec/secret/labels",
            vec![json!({ "team": "", "example.com/Team_1": "a.b_c-D" }), json!({ "pullsecrets.example/x": "y" })],
        ),
        (
            "spec/secret/annotations",
            vec![json!({ "note": "any text: ü\n" }), json!({ "reloader.stakater.com/match": "true" })],
        ),
        ("spec/namespaces/names", ["*", "a?c", "team-*", "*-prod", "kube-system", "0"].map(|n| json!([n])).to_vec()),
        (
            "spec/namespaces",
            vec![
                json!({ "selector": { "matchLabels": { "pull": "ecr" } } }),
                json!({ "names": ["a"], "selector": null, "exclude": ["kube-*", "*"] }),
            ],
        ),
        (
            "spec/namespaces/selector",
            vec![
                json!({ "matchExpressions": [{ "key": "example.com/k", "operator": "In", "values": ["", "a"] }, { "key": "k", "operator": "NotIn", "values": ["b"] }, { "key": "k", "operator": "Exists" }, { "key": "k", "operator": "DoesNotExist", "values": [] }] }),
            ],
        ),
        ("spec/refresh/atPercent", vec![json!(10), json!(70)]),
        ("spec/refresh/maxAge", ["1m", "60s", "12h", "1h30m", "11h59m60s", "90m"].map(|a| json!(a)).to_vec()),
        ("spec/registries/0", vec![json!({ "public": { "hostVariants": ["Standard", "DualStack"] } })]),
        (
            "spec/outputs",
            vec![
                json!([
                    { "name": "argocd-ecr", "format": "ArgoCDHelm", "host": "public.ecr.aws", "namespaces": { "names": ["argocd"] } },
                    { "name": "ecr.file", "format": "DockerConfigFile", "host": null, "namespaces": null },
                ]),
                json!([]),
            ],
        ),
        ("spec/include", vec![json!([{ "secretRef": { "namespace": "ops", "name": "hub.x" } }])]),
        ("spec/secret/loginFields", vec![json!("AuthUsernamePassword")]),
        ("spec/suspend", vec![json!(true)]),
    ] {
        for value in values {
            let mut object = credential(least());
            set(&mut object, path, value.clone());
            if let Err(refusal) = try_create(&client, &object).await {
                refused.push(format!("{path} = {value}: {:#?}", refusal.causes));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[tokio::test]
async fn each_kind_of_identity_is_accepted_and_filled_in_as_the_types_do_it() {
    let client = plane().await.admin_client().unwrap();
    let roles = [
        "arn:aws:iam::222233334444:role/y",
        "arn:aws-cn:iam::222233334444:role/a/b+=,.@_-",
        "arn:aws-us-gov:iam::222233334444:role/Z",
    ];
    let role = json!({
        "roleArn": roles[0],
        "externalId": "a:b/c",
        "sessionName": "pull",
        "durationSeconds": 3600,
        "tags": { "team": "a", "Kosten Stelle/ä": "" },
        "transitiveTagKeys": ["team"],
        "sourceIdentity": "ops@example.com",
        "sessionPolicy": "\n{\"Version\":\"2012-10-17\",\"Statement\":[]}\n",
    });
    let kinds = [
        json!({ "assumeRoles": [role, { "roleArn": roles[1] }, { "roleArn": roles[2], "durationSeconds": 43_200 }] }),
        json!({ "serviceAccount": { "namespace": "team-a", "name": "puller" } }),
        json!({ "serviceAccount": { "namespace": "a", "name": "pull.er", "roleArn": roles[1], "audiences": ["sts.amazonaws.com", "x"] } }),
        json!({ "serviceAccount": { "fromTargetNamespace": "puller" }, "assumeRoles": [{ "roleArn": roles[0] }] }),
        json!({ "secretRef": { "namespace": "ops", "name": "aws-keys" } }),
        json!({ "secretRef": { "namespace": "ops", "name": "aws-keys", "accessKeyIdKey": "id", "secretAccessKeyKey": "key", "sessionTokenKey": "a.b_c-D" }, "assumeRoles": [{ "roleArn": roles[2] }] }),
    ];
    let given = json!({ "namespace": "ops", "name": "aws-keys", "accessKeyIdKey": "AWS_ACCESS_KEY_ID", "secretAccessKeyKey": "AWS_SECRET_ACCESS_KEY" });
    for (path, _) in PLACES {
        for (number, kind) in kinds.iter().enumerate() {
            let mut object = credential(least());
            set(&mut object, path, kind.clone());
            let created = try_create(&client, &object).await.unwrap_or_else(|e| panic!("{path} = {kind}: {e:#?}"));
            let ours: EcrCredentialSpec = serde_json::from_value(object["spec"].clone()).unwrap();
            let theirs: EcrCredentialSpec = serde_json::from_value(created["spec"].clone()).unwrap();
            assert_eq!(ours, theirs, "{path} = {kind}");
            if number == 4 {
                // In an item of a list, the types alone fill it in.
                let expected = if path.contains("registries") { &kind["secretRef"] } else { &given };
                assert_eq!(created.pointer(&format!("/{path}/secretRef")), Some(expected));
            }
        }
    }
}

/// As many of the greatest identities as fit into a request: what the rules cost stays within the API server's limit.
#[tokio::test]
async fn the_greatest_identities_are_checked() {
    let client = plane().await.admin_client().unwrap();
    let tags: serde_json::Map<_, _> = (0..50).map(|i| (format!("{i:ä>128}"), json!("v".repeat(256)))).collect();
    let keys: Vec<&String> = tags.keys().collect();
    let role = json!({
        "roleArn": format!("arn:aws:iam::222233334444:role/{}", "a".repeat(2017)),
        "externalId": "a".repeat(1224),
        "sessionName": "a".repeat(64),
        "tags": tags,
        "transitiveTagKeys": keys,
        "sourceIdentity": "a".repeat(64),
        "sessionPolicy": format!("{{{}}}", " ".repeat(2046)),
    });
    let auth = json!({ "serviceAccount": { "fromTargetNamespace": "a".repeat(253) }, "assumeRoles": vec![role; 5] });
    let spec = json!({
        "registries": vec![json!({ "private": {}, "auth": auth }); 10],
        "auth": auth,
        "namespaces": { "names": ["a"] },
    });
    try_create(&client, &credential(spec)).await.unwrap();
}

/// Every list and text as long as the schema lets it be: what the rules cost at runtime stays within the API server's limit.
#[tokio::test]
async fn the_greatest_object_that_the_bounds_allow_is_stored() {
    let client = plane().await.admin_client().unwrap();
    let texts = |n: usize, text: fn(usize) -> String| (0..n).map(|i| json!(text(i))).collect::<Vec<_>>();
    let label_key = |i: usize| format!("{}/{i:0>63}", "a".repeat(253));
    let map =
        |length: usize| (0..32).map(|i| (label_key(i), json!("v".repeat(length)))).collect::<serde_json::Map<_, _>>();
    let private = json!({
        "region": "abcdefgh-abcdefghijk-abcdefghi-1",
        "accountIds": texts(100, |i| format!("{i:012}")),
        "hostVariants": ["Standard", "Fips", "DualStack", "DualStackFips"],
        "extraHosts": texts(32, |i| format!("{}{i:0>60}:65535", "a.".repeat(97))),
        "requestRegistryIds": true,
    });
    let mut registries = vec![json!({ "private": private }); 31];
    registries.push(json!({ "public": {} }));
    let expression = json!({ "key": label_key(0), "operator": "In", "values": texts(64, |i| format!("{i:0>63}")) });
    let namespaces = json!({
        "names": texts(256, |i| format!("{i:0>63}")),
        "exclude": texts(256, |i| format!("*{i:0>62}")),
        "selector": { "matchLabels": map(63), "matchExpressions": vec![expression; 16] },
    });
    // Of more, the object would be larger than what the API server stores.
    let output = |i: usize| {
        json!({
            "name": format!("{i:a>253}"), "format": "TektonBasicAuth", "host": format!("{}a:65535", "a.".repeat(126)),
            "labels": map(63), "namespaces": if i < 4 { namespaces.clone() } else { Value::Null },
        })
    };
    let include = json!({ "secretRef": { "namespace": "a".repeat(63), "name": "a".repeat(253) } });
    let spec = json!({
        "registries": registries,
        "secret": { "name": "a".repeat(253), "labels": map(63), "annotations": map(4096) },
        "namespaces": namespaces,
        "outputs": (0..16).map(output).collect::<Vec<_>>(),
        "include": vec![include; 8],
        "refresh": { "atPercent": 70, "maxAge": "00001h00001m00001s" },
    });
    let mut object = credential(spec);
    object["metadata"]["name"] = json!("greatest".repeat(7));
    create_for_good(&client, &object).await.unwrap();
}
