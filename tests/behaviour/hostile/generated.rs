//! Odd objects by chance, of every kind that the operator watches, created for real: the API server decides which ones there are.

use std::collections::BTreeMap;
use std::time::Duration;

use ::hostile::{Chance, Kind, OddObject};
use ecr_credential_operator::api::EcrCredentialSpec;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch, Operator, PATIENCE};
use testbed::control_plane::{ControlPlane, Options};
use testbed::recorder::Invariant;

use super::{CANARY, CRD, OWN, allow_anything, launch, page_until};

/// How many namespaces there are, each with a Secret and a ServiceAccount of the names that the operator watches.
const NAMESPACES: usize = 60;

/// How many namespaces have a Secret that is included, and one with keys.
const VAULTS: usize = 10;

/// How many EcrCredentials are tried.
const CREDENTIALS: usize = 200;

/// Each how many EcrCredentials one gets an odd status.
const STATUSES: usize = 4;

/// How often an object is tried that the API server refuses.
const TRIES: usize = 10;

/// A warning for each unknown field of a list would be more headers than a client takes.
const IGNORE: &str = "?fieldValidation=Ignore";

const PATH: &str = "/apis/pullsecrets.dev/v1alpha1/ecrcredentials";

/// Makes odd objects, and counts those that the API server accepts.
struct Maker<'a> {
    bed: &'a Bed,
    chance: Chance,
    /// How many were accepted, and how many were not, by what they are.
    counts: BTreeMap<&'static str, (usize, usize)>,
    /// What was accepted.
    accepted: Vec<String>,
}

impl Maker<'_> {
    /// Sends an odd object. Returns whether the API server accepted it.
    async fn send(&mut self, what: &'static str, request: http::request::Builder, odd: OddObject) -> bool {
        let request = request.body(odd.json.into_bytes()).unwrap();
        let counts = self.counts.entry(what).or_default();
        match self.bed.client.request_text(request).await {
            Ok(_) => {
                counts.0 += 1;
                self.accepted.push(format!("{what}: {}", odd.what));
                true
            }
            Err(kube::Error::Api(_)) => {
                counts.1 += 1;
                false
            }
            Err(error) => panic!("{what}, {}: {error:?}", odd.what),
        }
    }

    /// Creates an object with odd values, others if the API server refuses them.
    async fn create(&mut self, what: &'static str, path: &str, object: &Value) -> bool {
        for _ in 0..TRIES {
            let odd = self.chance.odd(object);
            let request = http::Request::post(format!("{path}{IGNORE}")).header("content-type", "application/json");
            if self.send(what, request, odd).await {
                return true;
            }
        }
        false
    }

    /// An ordinary object to make odd, which this test's operator would serve, with a text that may be in no log.
    fn object(&self, kind: Kind, namespace: &str, name: &str) -> Value {
        let mut object = kind.to_create(namespace, name);
        object["metadata"]["labels"]["bed"] = json!(self.bed.prefix);
        object["metadata"]["annotations"]["note"] = json!(CANARY);
        object
    }

    async fn secret(&mut self, what: &'static str, namespace: &str, name: &str, data: Value) {
        let mut object = self.object(Kind::Secret, namespace, name);
        let is_config = data.get(".dockerconfigjson").is_some();
        object["type"] = json!(if is_config { "kubernetes.io/dockerconfigjson" } else { "Opaque" });
        object["stringData"] = data;
        self.create(what, &format!("/api/v1/namespaces/{namespace}/secrets"), &object).await;
    }

    /// A namespace with a Secret and a ServiceAccount in it, all odd as far as possible.
    async fn namespace(&mut self, namespace: &str) {
        let object = self.object(Kind::Namespace, "", namespace);
        if !self.create("Namespace", "/api/v1/namespaces", &object).await {
            self.bed.namespace(namespace.strip_prefix(&self.bed.name("")).unwrap(), &[]).await.unwrap();
        }
        let config = json!({ ".dockerconfigjson": "{\"auths\":{}}" });
        self.secret("Secret", namespace, &self.bed.secret.clone(), config).await;
        let account = self.object(Kind::ServiceAccount, namespace, &self.bed.name("puller"));
        self.create("ServiceAccount", &format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account).await;
    }

    /// A Secret to include, whose docker config is odd as well, and one with keys.
    async fn vault(&mut self, vault: &str) {
        let auths =
            json!({ "auths": { "registry.example.com": { "auth": "eDp5", "username": "x", "password": "y" } } });
        let config = self.chance.odd(&auths).json;
        self.secret("Secret to include", vault, "hub", json!({ ".dockerconfigjson": config })).await;
        let keys = json!({ "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "none" });
        self.secret("Secret with keys", vault, "keys", keys).await;
    }

    /// An EcrCredential, and a status that may be odd too. Returns its name.
    async fn credential(&mut self, number: usize) -> Option<String> {
        let name = self.bed.name(&format!("odd-{number}"));
        let mut object = self.object(Kind::EcrCredential, "", &name);
        let home = self.bed.name(&format!("odd-{}", number % NAMESPACES));
        object["spec"]["namespaces"]["names"] = json!([home]);
        object["spec"]["secret"]["name"] = json!(self.bed.secret);
        object["spec"]["auth"]["serviceAccount"] = json!({ "namespace": home, "name": self.bed.name("puller") });
        let status = json!({ "status": object["status"].take() });
        if !self.create("EcrCredential", PATH, &object).await {
            return None;
        }
        if !number.is_multiple_of(STATUSES) {
            return Some(name);
        }
        let request = http::Request::patch(format!("{PATH}/{name}/status{IGNORE}"));
        let odd = self.chance.odd(&status);
        self.send("status", request.header("content-type", "application/merge-patch+json"), odd).await;
        Some(name)
    }
}

/// Which of these EcrCredentials the operator serves and cannot read.
async fn unreadable(bed: &Bed, names: &[String]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Object<'a> {
        metadata: Metadata,
        #[serde(borrow)]
        spec: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }
    let mut unreadable = Vec::new();
    for name in names {
        let request = http::Request::get(format!("{PATH}/{name}")).body(Vec::new()).unwrap();
        let text = bed.client.request_text(request).await.unwrap();
        let Object { metadata, spec } = serde_json::from_str(&text).unwrap();
        let is_served = metadata.labels.get("bed") == Some(&bed.prefix);
        let can_be_read = spec.is_some_and(|spec| serde_json::from_str::<EcrCredentialSpec>(spec.get()).is_ok());
        if is_served && !can_be_read {
            unreadable.push(name.clone());
        }
    }
    unreadable
}

/// The operator with everything that it can watch, and `check` with the same flags.
fn everything(bed: &Bed, vaults: &[String]) -> (Launch, Vec<String>) {
    let puller = bed.name("puller");
    let mut launch = launch().service_account(&format!("*/{puller}")).attaching(&puller);
    for vault in vaults {
        launch = launch.include_secret(&format!("{vault}/hub")).credentials_secret(&format!("{vault}/keys"));
    }
    let flags = ["--service-account", "--attach-service-account", "--include-secret", "--credentials-secret"];
    let pairs = launch.args.windows(2).filter(|pair| flags.contains(&&*pair[0])).flatten().cloned();
    let args = pairs.collect();
    (launch, args)
}

/// Waits until the metrics tell how many EcrCredentials cannot be read. Every object has a name, so no other is skipped.
async fn metrics_until(operator: &Operator, unreadable: usize) {
    let line = format!("credentials{{state=\"unreadable\"}} {unreadable}\n");
    let text = page_until(operator, "/metrics", |_, text| text.contains(&line)).await;
    let skipped =
        |line: &&str| line.starts_with("ecr_credential_operator_unreadable_objects{") && !line.ends_with(" 0");
    assert_eq!(text.lines().find(skipped), None);
}

/// Waits until the statuses of these say that they cannot be read. They are read as text: no client has a type for all of them.
async fn told_of(bed: &Bed, names: &[String]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for name in names {
        loop {
            let request = http::Request::get(format!("{PATH}/{name}")).body(Vec::new()).unwrap();
            let text = bed.client.request_text(request).await.unwrap();
            if text.contains("\"reason\":\"InvalidSpec\"") && text.contains("the EcrCredential cannot be read") {
                break;
            }
            let part: String = text.chars().take(5000).collect();
            assert!(tokio::time::Instant::now() < deadline, "the status of {name} does not say so: {part}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn odd_objects_by_chance_stop_nobody_and_those_that_cannot_be_read_are_counted_and_named() {
    let seed = std::env::var("HOSTILE_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("HOSTILE_SEED={seed}");
    // A control plane of its own: other tests list namespaces as well, and its CRD is changed.
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let bed = Bed::on(plane, "generated", CRD).await.unwrap();
    // Many say that they belong to an EcrCredential that there never was. What is deleted is in no watch.
    bed.plane.stop_controller_manager();
    bed.recorder.excuse(
        Invariant::I2Foreign,
        "*",
        "odd objects are adopted, and some say that the operator wrote them",
    );
    for number in 0..NAMESPACES {
        let secret = format!("{}/{}", bed.name(&format!("odd-{number}")), bed.secret);
        bed.recorder.excuse(Invariant::I3WellFormed, &*secret, "some say that the operator wrote them");
        bed.recorder.excuse(Invariant::I6NoGap, secret, "a status that this test writes says that one is ready");
    }
    for number in (0..CREDENTIALS).step_by(STATUSES) {
        for invariant in [Invariant::I14TrueStatus, Invariant::I20TrueWords] {
            bed.recorder.excuse(invariant, bed.name(&format!("odd-{number}")), "this test writes their status");
        }
    }
    let a = bed.namespace("a", &[]).await.unwrap();
    let mut vaults = Vec::new();
    for number in 0..VAULTS {
        vaults.push(bed.namespace(&format!("vault-{number}"), &[]).await.unwrap());
    }
    let (launch, args) = everything(&bed, &vaults);
    let first = bed.operator(launch.clone()).await.unwrap();
    // The oldest, so that no odd one takes a namespace from it.
    let spec = |names: Value| json!({ "registries": [{ "private": {} }], "namespaces": { "names": names } });
    let good = bed.credential("good", spec(json!([a, bed.name("new-*")]))).await.unwrap();
    bed.ready(&good).await.unwrap();
    allow_anything(&bed, "", &good).await;
    // It looks at every odd Secret and every odd ServiceAccount.
    let mut all = spec(json!([bed.name("odd-*")]));
    all["secret"]["conflictPolicy"] = json!("Adopt");
    all["attachTo"] = json!({ "serviceAccounts": [bed.name("puller")] });
    bed.credential("all", all).await.unwrap();

    // As lines of the watches.
    let mut maker = Maker { bed: &bed, chance: Chance::new(seed), counts: BTreeMap::new(), accepted: Vec::new() };
    for number in 0..NAMESPACES {
        maker.namespace(&bed.name(&format!("odd-{number}"))).await;
    }
    for (number, vault) in vaults.iter().enumerate() {
        maker.vault(vault).await;
        let mut spec = spec(json!([bed.name(&format!("vaulted-{number}"))]));
        spec["include"] = json!([{ "secretRef": { "namespace": vault, "name": "hub" } }]);
        bed.credential(&format!("hub-{number}"), spec.clone()).await.unwrap();
        spec.as_object_mut().unwrap().remove("include");
        spec["auth"] = json!({ "secretRef": { "namespace": vault, "name": "keys" } });
        bed.credential(&format!("keys-{number}"), spec).await.unwrap();
    }
    let mut names = Vec::new();
    for number in 0..CREDENTIALS {
        names.extend(maker.credential(number).await);
    }
    println!("accepted and refused: {:#?}", maker.counts);
    let at_least = [
        ("EcrCredential", CREDENTIALS / 2),
        ("Namespace", NAMESPACES / 2),
        ("Secret", NAMESPACES / 2),
        ("Secret to include", VAULTS / 2),
        ("Secret with keys", VAULTS / 2),
        ("ServiceAccount", NAMESPACES / 2),
        ("status", CREDENTIALS / STATUSES / 2),
    ];
    for (what, least) in at_least {
        let accepted = maker.counts.get(what).map_or(0, |counts| counts.0);
        assert!(accepted >= least, "the API server accepted {accepted} of {what}: {:#?}", maker.accepted);
    }
    let bad = unreadable(&bed, &names).await;
    println!("{} EcrCredentials cannot be read", bad.len());
    assert!(bad.len() >= CREDENTIALS / 10, "{bad:?} cannot be read");
    let new = bed.namespace("new-1", &[]).await.unwrap();
    bed.logins_until(&new, &[OWN]).await.unwrap();
    metrics_until(&first, bad.len()).await;
    told_of(&bed, &bad).await;

    // As items of the lists of whoever comes next.
    let log = first.log.clone();
    first.stop().await.unwrap();
    let second = bed.operator(launch).await.unwrap();
    let new = bed.namespace("new-2", &[]).await.unwrap();
    bed.logins_until(&new, &[OWN]).await.unwrap();
    metrics_until(&second, bad.len()).await;
    bed.ready(&good).await.unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let named: Vec<String> = bad.iter().map(|name| format!("EcrCredential {name} cannot be read")).collect();
    let words: Vec<&str> = named.iter().map(String::as_str).chain([&*good]).collect();
    super::super::check::inside(&bed, &args).await.says(1, &words);
    for log in [log, second.log.clone()] {
        let text = std::fs::read_to_string(&log).unwrap();
        let whole = text.lines().find(|line| line.contains(CANARY) || line.contains(&"x".repeat(1000)));
        assert_eq!(whole.map(|line| line.chars().take(2000).collect::<String>()), None, "an object is in {log:?}");
    }
    second.stop().await.unwrap();
    let found = bed.judge().await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
    bed.plane.stop_api_server();
}
