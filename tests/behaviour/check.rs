//! `check` as people run it, in the operator's pod and elsewhere: what it says, how it ends, and that it writes nothing and
//! gives nothing away.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use testbed::aws::{Permissions, Role, Service, Trust};
use testbed::bed::{ACCOUNT, Bed};
use testbed::proxy::Proxy;
use testbed::recorder::Invariant;

use super::demand::{spec, time};
use super::look::make_secret;
use super::rights::{from, give_verb, take_verb};
use super::{CRD, OWN, PUBLIC, bed, launch, operator};

/// What `check` printed, and how it ended.
pub(super) struct Checked {
    code: Option<i32>,
    pub(super) text: String,
    error: String,
}

impl Checked {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), text: text(output.stdout), error: text(output.stderr) }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}{}", self.text, self.error))
    }

    /// Ends with this code and says all of these.
    pub(super) fn says(&self, code: i32, words: &[&str]) {
        let all = words.iter().all(|word| self.text.contains(word));
        assert!(
            all && self.code == Some(code),
            "{:?}, not {code} and {words:#?}:\n{}{}",
            self.code,
            self.text,
            self.error
        );
    }
}

/// Runs `check` in what is the operator's pod: with its ServiceAccount, its AWS identity and its variables.
pub(super) async fn inside(bed: &Bed, args: &[&str]) -> Checked {
    let proxy = Proxy::start(bed.plane).unwrap();
    let token = bed.plane.service_account_token(&bed.home, "operator", "", 3600).await.unwrap();
    bed.recorder.canary("the token of the check", &token).unwrap();
    let kubeconfig = bed.plane.kubeconfig(&proxy.url(), &token, None).unwrap();
    let file = bed.dir().join("check-web-identity");
    bed.write_web_identity(&file).await.unwrap();
    let mut command = command(kubeconfig, args);
    command
        .env("POD_NAME", "operator-0")
        .env("POD_NAMESPACE", &bed.home)
        .env("AWS_ROLE_ARN", &bed.role)
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &file)
        .env("ECO_SECRET_NAMES", &bed.secret);
    run(bed, command, &proxy).await
}

/// Runs `check` with the rights of an administrator and nothing that says what the operator may do.
pub(super) async fn outside(bed: &Bed, args: &[&str]) -> Checked {
    let proxy = Proxy::start(bed.plane).unwrap();
    let token = std::fs::read_to_string(bed.plane.admin_kubeconfig()).unwrap();
    let token =
        serde_saphyr::from_str::<Value>(&token).unwrap()["users"][0]["user"]["token"].as_str().unwrap().to_owned();
    let kubeconfig = bed.plane.kubeconfig(&proxy.url(), &token, None).unwrap();
    run(bed, command(kubeconfig, args), &proxy).await
}

fn command(kubeconfig: PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-credential-operator"));
    command.env_clear().env("KUBECONFIG", kubeconfig).env("ECO_AWS_TIMEOUT", "3s").arg("check").args(args);
    command
}

async fn run(bed: &Bed, mut command: Command, proxy: &Proxy) -> Checked {
    command.envs(bed.aws.env()).env("ECO_CREDENTIAL_SELECTOR", format!("bed={}", bed.prefix));
    let checked = Checked::of(tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap());
    let changes: Vec<String> = proxy.log().mutations().iter().map(|request| request.summary()).collect();
    assert!(changes.is_empty(), "a check writes nothing: {changes:#?}");
    // AWS keys are read to be tried, and no other Secret.
    let by_name = |name: &str, resource: &str| resource == "secrets" && !name.is_empty() && name != "keys";
    let reads = proxy.log().all().iter().filter(|r| by_name(&r.target.name, &r.target.resource)).count();
    assert_eq!(reads, 0, "a check reads no Secret's data");
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = format!("what check prints the {}. time", RUNS.fetch_add(1, Ordering::Relaxed));
    bed.recorder.search_text(&run, format!("{}{}", checked.text, checked.error));
    checked
}

fn role_session(bed: &Bed) -> String {
    format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/ecr-credential-operator", bed.prefix)
}

#[tokio::test]
async fn when_all_is_well_it_tells_who_which_hosts_and_until_when() {
    let bed = bed("check-well").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }, { "public": {} }]), &[&a, &b])).await.unwrap();
    let object = bed.ready(&name).await.unwrap();
    let expires = time(&object, "/status/registries/0/expiresAt").unwrap().to_string();
    let mark = bed.aws.mark();
    let words = [&*role_session(&bed), OWN, PUBLIC, &expires, "2 of 2 have a valid Secret", "No problem found."];
    inside(&bed, &[]).await.says(0, &words);
    let asked = |service| bed.aws.calls_since(mark).iter().filter(|call| call.service == service).count();
    assert_eq!((asked(Service::Ecr), asked(Service::EcrPublic)), (1, 1), "AWS was really asked");

    let mark = bed.aws.mark();
    inside(&bed, &["--offline", &name]).await.says(0, &["AWS was not called", &expires]);
    assert_eq!(bed.aws.calls_since(mark).len(), 0);

    let report = inside(&bed, &["--output", "json"]).await;
    assert_eq!(report.code, Some(0));
    let mut report = report.json();
    let told = |path: &str| object.data.pointer(path).cloned().unwrap();
    let until = |number: usize| report["identities"][0]["tokens"][number]["expiresAt"].clone();
    let identity = "the operator's own identity";
    let expected = json!({
        "checkedAt": report["checkedAt"],
        "inOperatorPod": true,
        "problemCount": 0,
        "problems": [],
        "notes": [],
        "credentials": [{
            "name": name,
            "operatorSays": {
                "status": "True", "reason": "Synced",
                "message": "every target namespace has a valid token for every registry",
            },
            "problems": [],
            "notes": [],
            "registries": [
                { "service": "ecr", "region": "eu-west-1", "identity": identity, "ownForEachNamespace": false, "hosts": [OWN],
                  "issuedAt": told("/status/registries/0/issuedAt"), "expiresAt": told("/status/registries/0/expiresAt") },
                { "service": "ecr-public", "region": "us-east-1", "identity": identity, "ownForEachNamespace": false, "hosts": [PUBLIC],
                  "issuedAt": told("/status/registries/1/issuedAt"), "expiresAt": told("/status/registries/1/expiresAt") },
            ],
            "secret": bed.secret,
            "namespaces": { "selected": 2, "good": 2, "earliestExpiry": told("/status/expiresAt"), "failing": [] },
        }],
        "identities": [{
            "identity": identity,
            "kind": "operator",
            "source": "web_identity",
            "roles": [],
            "caller": role_session(&bed),
            "usedBy": [name],
            "tokens": [
                { "service": "ecr", "region": "eu-west-1", "expiresAt": until(0) },
                { "service": "ecr-public", "region": "us-east-1", "expiresAt": until(1) },
            ],
            "problems": [],
            "notes": [],
        }],
        "rights": { "asked": report["rights"]["asked"], "missing": [] },
    });
    assert!(until(0).as_str().unwrap().parse::<Timestamp>().unwrap() > Timestamp::now());
    assert!(report["rights"].take()["asked"].as_u64().unwrap() > 10);
    report["rights"] = expected["rights"].clone();
    assert_eq!(report, expected);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn each_namespace_that_lacks_a_good_secret_is_named_with_the_reason() {
    let bed = bed("check-places").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let c = bed.namespace("c", &[]).await.unwrap();
    make_secret(&bed, &a, "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", "{}")]).await;
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a, &b, &c])).await.unwrap();
    for namespace in [&b, &c] {
        bed.logins_until(namespace, &[OWN]).await.unwrap();
    }
    bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    operator.stop().await.unwrap();
    bed.secrets(&b).delete(&bed.secret, &DeleteParams::default()).await.unwrap();
    let report = inside(&bed, &[&name, "-o", "json"]).await;
    let namespaces = report.json()["credentials"][0]["namespaces"].take();
    let failing: Vec<(&str, &str, &str)> = namespaces["failing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["namespace"].as_str().unwrap(), f["state"].as_str().unwrap(), f["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(failing, [(&*a, "Foreign", "SecretNotOwned"), (&*b, "Missing", "Missing")], "{}", report.text);
    assert_eq!((&namespaces["selected"], &namespaces["good"]), (&json!(3), &json!(1)));
    assert_eq!((report.code, report.json()["problemCount"].take()), (Some(1), json!(2)));
    inside(&bed, &[]).await.says(
        1,
        &[&format!("{a}  Foreign: SecretNotOwned"), "conflictPolicy: Adopt", &format!("{b}  Missing"), "2 problems"],
    );
    outside(&bed, &["--offline"]).await.says(1, &["2 problems"]);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_output_that_is_missing_or_not_allowed_and_an_include_that_is_not_current_are_named() {
    let bed = Bed::with_secret_names("check-outputs", CRD, &["basic"]).await.unwrap();
    let (a, ops) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("ops", &[]).await.unwrap());
    let (basic, hub) = (bed.name("basic"), format!("{ops}/hub"));
    let allowed = format!("*/{basic}=BasicAuth");
    let operator = bed.operator(launch().output(&allowed).include_secret(&hub)).await.unwrap();
    let mut spec = spec(json!([{ "public": {} }]), &[&a]);
    spec["outputs"] = json!([{ "name": basic, "format": "BasicAuth", "host": PUBLIC }]);
    spec["include"] = json!([{ "secretRef": { "namespace": ops, "name": "hub" } }]);
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.condition_until(&name, "Reconciling", "True", "IncludeFailed").await.unwrap();
    operator.stop().await.unwrap();
    let args = ["--offline", "--include-secret", &hub, "--output-secret", &allowed];
    inside(&bed, &args).await.says(1, &["IncludeFailed", &hub, "does not exist", "1 problem found"]);
    bed.recorder.excuse(Invariant::I14TrueStatus, &name, "nobody is left to create the Secret again");
    bed.secrets(&a).delete(&basic, &DeleteParams::default()).await.unwrap();
    inside(&bed, &args).await.says(
        1,
        &[&format!("{a}/{basic}  Missing"), &format!("the Secret {basic} does not exist yet"), "2 problems found"],
    );
    let not_allowed = format!("add {{name: {basic}, format: BasicAuth, namespaces: [{a}]}} to the chart's outputs");
    inside(&bed, &args[..3]).await.says(1, &["OutputNotAllowed", &not_allowed]);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_denied_role_is_named_with_the_policy_that_mends_it() {
    let bed = bed("check-denied").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.aws.set_permissions(&bed.role, Permissions::none());
    let report = inside(&bed, &[]).await;
    report.says(
        1,
        &[
            "AccessDenied",
            "ecr:GetAuthorizationToken",
            "deploy/iam/policy-private.json",
            &role_session(&bed),
            "1 problem found",
        ],
    );
    // Whoever checks from elsewhere is not the operator: what AWS says of them is a note.
    let report = outside(&bed, &[]).await;
    report.says(0, &["is that of this process", "note", "NoCredentials", "No problem found."]);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let bed = bed("check-rights").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();
    take_verb(&bed, "delete").await;
    let right = format!("permission to delete secrets named {} in all namespaces", bed.secret);
    inside(&bed, &["--offline"]).await.says(1, &["Forbidden", &right, "1 problem found"]);
    give_verb(&bed, "delete").await;
    inside(&bed, &["--offline"]).await.says(0, &["No problem found."]);
    take_verb(&bed, "list").await;
    let right = format!("permission to list secrets named {} in all namespaces", bed.secret);
    inside(&bed, &["--offline"]).await.says(1, &[&right, &format!("{a}  Unknown: Forbidden")]);
    give_verb(&bed, "list").await;
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_identity_of_a_serviceaccount_is_followed_and_tried_from_anywhere() {
    let bed = bed("check-account").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{}-team", bed.prefix);
    let subject = format!("system:serviceaccount:{a}:puller");
    bed.aws.add_role(Role::new(&role).trusting(Trust::web_identity(
        &bed.plane.issuer(),
        &subject,
        "sts.amazonaws.com",
    )));
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.client.clone(), &a);
    let annotations = json!({ "eks.amazonaws.com/role-arn": role });
    let account = from(json!({ "metadata": { "name": "puller", "annotations": annotations } }));
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let mut spec = spec(json!([{ "private": {} }]), &[&a]);
    spec["auth"] = json!({ "serviceAccount": { "namespace": a, "name": "puller" } });
    bed.credential("x", spec).await.unwrap();
    let chain = format!("Identity: ServiceAccount {a}/puller → {role}");
    let caller = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}-team/ecr-credential-operator", bed.prefix);
    let report = outside(&bed, &[]).await;
    report.says(1, &[&chain, &caller, "a token until", "NotObserved", &format!("{a}  Missing")]);
    // In the operator's pod it may not be used: nobody has given that leave.
    inside(&bed, &["--offline"]).await.says(1, &["AuthNotAllowed", "--service-account"]);
    bed.aws.remove_role(&role);
    outside(&bed, &[]).await.says(1, &["PROBLEM", "AccessDenied"]);
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_checked_ends_with_two_and_a_sentence_that_helps() {
    let bed = bed("check-not").await;
    let absent = inside(&bed, &["nobody"]).await;
    assert_eq!((absent.code, &*absent.text), (Some(2), ""));
    assert!(absent.error.contains("no EcrCredential \"nobody\""), "{}", absent.error);
    let nowhere = bed.plane.kubeconfig("http://127.0.0.1:1", "x", None).unwrap();
    let without_crd = bed.plane.kubeconfig(&answering_404(), "x", None).unwrap();
    for (kubeconfig, args, words) in [
        (nowhere.clone(), vec![], "the Kubernetes cluster cannot be reached"),
        (without_crd, vec![], "the CRD ecrcredentials.pullsecrets.dev is not installed"),
        ("/nowhere".into(), vec![], "no Kubernetes cluster"),
        (nowhere.clone(), vec!["--output", "xml"], "text, json"),
        (nowhere.clone(), vec!["--aws-ca-bundle", "/nowhere"], "--aws-ca-bundle"),
        (nowhere, vec!["a", "b"], "unexpected argument"),
    ] {
        let mut command = command(kubeconfig, &args);
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        let checked = Checked::of(tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap());
        assert_eq!((checked.code, &*checked.text), (Some(2), ""), "{args:?}: {}", checked.error);
        assert!(checked.error.contains(words), "{args:?}: {}", checked.error);
    }
    bed.finish().await.unwrap();
}

/// The address of an API server that knows nothing.
fn answering_404() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404 }).to_string();
            let head = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    format!("http://{address}")
}
