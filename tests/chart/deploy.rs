//! What is in `deploy/`: samples, kustomize, IAM.

use std::collections::BTreeSet;
use std::process::Command;

use ecr_credential_operator::api::EcrCredentialSpec;
use ecr_credential_operator::api::registry::Region;
use ecr_credential_operator::plan::references::AllowedIdentities;
use ecr_credential_operator::plan::scopes::Reference;
use ecr_credential_operator::plan::{Limits, RegistryPlan, plan};
use serde_json::{Value, json};
use testbed::bed::PATIENCE;
use testbed::control_plane::{ControlPlane, Options, shared};

use super::helm::{apply, documents, get, namespace, object, read, root};

fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<String> =
        entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy())).collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_sample_is_accepted_and_can_be_done() {
    let plane = shared().await.unwrap();
    plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
    let client = plane.admin_client().unwrap();
    let samples = files("deploy/samples");
    assert!(samples.len() >= 6);
    let limits = Limits { region: Some(Region::parse("eu-west-1").unwrap()), ..Limits::default() };
    let mut names = BTreeSet::new();
    for file in samples {
        for sample in documents(&read(&file)) {
            let stored = apply(&client, &sample, true).await.unwrap_or_else(|why| panic!("{file}: {why}"));
            let spec: EcrCredentialSpec = serde_json::from_value(stored["spec"].clone()).unwrap();
            let limits = Limits { identities: lent_to(&spec), ..limits.clone() };
            let plan = plan(&spec, &limits).unwrap_or_else(|halt| panic!("{file}: {}", halt.message));
            let refusal = plan.registries.iter().find_map(RegistryPlan::refusal);
            assert!(refusal.is_none(), "{file}: {refusal:?}");
            assert!(names.insert(sample["metadata"]["name"].to_string()), "{file}: another sample has this name");
        }
    }
}

/// What the chart must lend for a sample.
fn lent_to(spec: &EcrCredentialSpec) -> AllowedIdentities {
    let auths = spec.registries.iter().filter_map(|registry| registry.auth.as_ref()).chain(&spec.auth);
    let mut allowed = AllowedIdentities::default();
    for reference in auths.filter_map(Reference::of) {
        match reference {
            Reference::Account(scope) => allowed.accounts.insert(scope),
            Reference::Keys(scope) => allowed.keys.insert(scope),
            // An auth refers to none.
            Reference::Include(_) => false,
        };
    }
    allowed
}

#[test]
fn the_sample_with_every_field_has_every_field() {
    let crd: Value = serde_saphyr::from_str(super::CRD).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let sample = documents(&read("deploy/samples/every-field.yaml")).remove(0);
    let mut written = BTreeSet::new();
    values(&sample["spec"], "spec", &mut written);
    let mut known = BTreeSet::new();
    fields(schema, "spec", &mut known);
    // What `auth` has for all registries it has for one of them.
    let is_missing = |path: &&String| !written.contains(&path.replace("spec.auth.", "spec.registries.auth."));
    let missing: Vec<&String> = known.iter().filter(is_missing).collect();
    assert!(known.len() > 40 && missing.is_empty(), "{missing:#?}");
}

/// The paths of all fields in a schema.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields(field, &path, found);
        found.insert(path);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], path, found);
    }
}

/// The paths of all fields in a value; entries of lists have that of their list.
fn values(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        values(field, &path, found);
        found.insert(path);
    }
    for entry in value.as_array().into_iter().flatten() {
        values(entry, path, found);
    }
}

#[tokio::test]
async fn kustomize_builds_the_base_and_each_overlay_and_the_api_server_accepts_them() {
    let plane = shared().await.unwrap();
    plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
    let client = plane.admin_client().unwrap();
    namespace(&client, "ecr-credential-operator").await;
    for (folder, region, annotations) in [
        ("deploy", None, Value::Null),
        (
            "deploy/overlays/irsa",
            Some("eu-west-1"),
            json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/ecr-pull" }),
        ),
        ("deploy/overlays/pod-identity", Some("eu-west-1"), Value::Null),
    ] {
        let output = Command::new(get("kubectl")).args(["kustomize"]).arg(root().join(folder)).output().unwrap();
        assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
        let objects = documents(&String::from_utf8(output.stdout).unwrap());
        for object in &objects {
            apply(&client, object, true).await.unwrap_or_else(|why| panic!("{folder}: {why}"));
        }
        let env = &object(&objects, "Deployment", "")["spec"]["template"]["spec"]["containers"][0]["env"];
        let found = env.as_array().unwrap().iter().find(|entry| entry["name"] == "AWS_REGION");
        assert_eq!(found.map(|entry| &entry["value"]), region.map(|r| json!(r)).as_ref());
        assert_eq!(object(&objects, "ServiceAccount", "")["metadata"]["annotations"], annotations);
    }
}

#[tokio::test]
async fn in_another_namespace_and_with_a_prefix_the_policy_still_holds_the_operator() {
    // The policy would hold the accounts of other tests too.
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = plane.admin_client().unwrap();
    let overlay = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let up = "../".repeat(overlay.path().canonicalize().unwrap().components().count() - 1);
    let resource =
        format!("{up}{}", root().join("deploy").canonicalize().unwrap().strip_prefix("/").unwrap().display());
    let kustomization = json!({ "namespace": "platform", "namePrefix": "our-", "resources": [resource] });
    std::fs::write(overlay.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let kubectl = |args: &[&str]| {
        let output =
            Command::new(get("kubectl")).env("KUBECONFIG", plane.admin_kubeconfig()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    kubectl(&["create", "namespace", "platform"]);
    kubectl(&["apply", "-k", &overlay.path().to_string_lossy()]);

    let token = plane.service_account_token("platform", "our-ecr-credential-operator", "", 3600).await.unwrap();
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "ecr-pull-secret", "namespace": "default" }, "type": "Opaque" });
    let operator = plane.client(&token).unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The API server tells no one when it has taken note of a policy.
    loop {
        let answer = apply(&operator, &secret, true).await;
        if answer.as_ref().is_err_and(|why| why.contains("ValidatingAdmissionPolicy 'our-ecr-credential-operator'")) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the policy does not hold the operator: {answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    apply(&client, &secret, true).await.expect("nobody else is held");
}

/// With a prefix, each binding must name the policy that is there. Older versions of kustomize know nothing of them.
#[test]
fn each_binding_of_a_policy_follows_its_policy_also_with_an_old_kustomize() {
    let overlay = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let up = "../".repeat(overlay.path().canonicalize().unwrap().components().count() - 1);
    let resource =
        format!("{up}{}", root().join("deploy").canonicalize().unwrap().strip_prefix("/").unwrap().display());
    let kustomization = json!({ "namespace": "platform", "namePrefix": "our-", "resources": [resource] });
    std::fs::write(overlay.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let mut newest = Command::new(get("kubectl"));
    newest.arg("kustomize");
    let mut oldest = Command::new(get("kustomize"));
    oldest.arg("build");
    for mut command in [newest, oldest] {
        let output = command.arg(overlay.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let objects = documents(&String::from_utf8(output.stdout).unwrap());
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let policies: BTreeSet<String> =
            of_kind("ValidatingAdmissionPolicy").map(|policy| policy["metadata"]["name"].to_string()).collect();
        let bound: BTreeSet<String> = of_kind("ValidatingAdmissionPolicyBinding")
            .map(|binding| binding["spec"]["policyName"].to_string())
            .collect();
        assert_eq!(policies, bound);
        assert!(policies.len() >= 2 && policies.iter().all(|name| name.starts_with("\"our-")), "{policies:?}");
        // What has a namespace is moved to the new one, so nothing may be bound to another.
        let bindings = of_kind("RoleBinding").chain(of_kind("ClusterRoleBinding"));
        for binding in bindings {
            assert_eq!(binding["subjects"][0]["namespace"], "platform", "{binding}");
        }
    }
}

#[test]
fn the_iam_policies_allow_what_a_login_and_a_pull_need_and_nothing_else() {
    let private = [
        "ecr:BatchCheckLayerAvailability",
        "ecr:BatchGetImage",
        "ecr:GetAuthorizationToken",
        "ecr:GetDownloadUrlForLayer",
    ];
    let public = ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"];
    for (file, expected) in [
        ("policy-private", private.to_vec()),
        ("policy-public", public.to_vec()),
        ("policy-both", [&private[..], &public[..]].concat()),
        ("policy-pull-through-cache", vec!["ecr:BatchImportUpstreamImage", "ecr:CreateRepository"]),
    ] {
        let policy = iam(file);
        let mut actions = BTreeSet::new();
        for statement in policy["Statement"].as_array().unwrap() {
            assert_eq!(statement["Effect"], "Allow");
            let of_this: Vec<&str> = match &statement["Action"] {
                Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            // AWS knows no resources for these.
            let login = of_this.iter().any(|action| action.contains(":Get") && !action.contains("DownloadUrl"));
            assert_eq!(statement["Resource"] == "*", login, "{file}: {statement}");
            actions.extend(of_this);
        }
        assert_eq!(actions, expected.into_iter().collect(), "{file}");
    }
}

#[test]
fn the_repository_policy_allows_one_role_what_a_pull_needs_and_nothing_else() {
    let policy = iam("repository-policy");
    let [statement] = policy["Statement"].as_array().unwrap().as_slice() else { panic!("{policy}") };
    let pull = &iam("policy-private")["Statement"][1];
    assert_eq!((&pull["Sid"], &statement["Effect"]), (&json!("Pull"), &json!("Allow")));
    assert_eq!(statement["Action"], pull["Action"]);
    assert_eq!(statement["Principal"], json!({ "AWS": "arn:aws:iam::111122223333:role/ecr-pull" }));
    // The repository that has the policy is the resource: ECR refuses one that names another.
    assert!(statement.get("Resource").is_none());
}

#[test]
fn the_trust_policies_name_one_service_account() {
    let account = "ecr-credential-operator";
    for (file, subject) in
        [("trust-irsa", format!("{account}:{account}")), ("trust-tenant", "team-a:ecr-puller".to_owned())]
    {
        let statement = &iam(file)["Statement"][0];
        assert_eq!(statement["Action"], "sts:AssumeRoleWithWebIdentity");
        let provider = statement["Principal"]["Federated"].as_str().unwrap().split_once("oidc-provider/").unwrap().1;
        let conditions = &statement["Condition"]["StringEquals"];
        assert_eq!(conditions[format!("{provider}:aud")], "sts.amazonaws.com");
        assert_eq!(conditions[format!("{provider}:sub")], format!("system:serviceaccount:{subject}"));
    }
    let statement = &iam("trust-pod-identity")["Statement"][0];
    assert_eq!(statement["Principal"], json!({ "Service": "pods.eks.amazonaws.com" }));
    assert_eq!(statement["Action"], json!(["sts:AssumeRole", "sts:TagSession"]));
    assert_eq!(statement["Condition"]["StringEquals"]["aws:RequestTag/kubernetes-service-account"], account);
}

#[test]
fn both_ends_of_a_role_chain_allow_the_same_to_each_other() {
    let (from, to) = (iam("policy-assume-role"), iam("trust-assume-role"));
    let from = &from["Statement"][0];
    let trusted = to["Statement"].as_array().unwrap();
    let actions: Vec<&Value> = trusted.iter().map(|statement| &statement["Action"]).collect();
    assert_eq!(json!(actions), from["Action"]);
    assert_eq!(json!(actions), json!(["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]));
    assert!(trusted.iter().all(|statement| statement["Principal"]["AWS"] == "arn:aws:iam::111122223333:role/ecr-pull"));
    assert_ne!(from["Resource"], trusted[0]["Principal"]["AWS"]);
    // The external id is AssumeRole's own: a condition on it would never hold for the others.
    assert!(trusted[0]["Condition"]["StringEquals"]["sts:ExternalId"].is_string());
    assert!(trusted[1..].iter().all(|statement| statement.get("Condition").is_none()));
}

#[test]
fn the_readme_of_the_policies_tells_of_each_file_and_of_no_other() {
    let readme = read("deploy/iam/README.md");
    let told: BTreeSet<&str> = readme.split('`').filter(|word| word.ends_with(".json")).collect();
    let there = files("deploy/iam");
    let there = there.iter().map(|file| file.rsplit('/').next().unwrap()).filter(|name| *name != "README.md");
    assert_eq!(told, there.collect());
}

fn iam(name: &str) -> Value {
    serde_json::from_str(&read(&format!("deploy/iam/{name}.json"))).unwrap()
}
