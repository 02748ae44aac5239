//! Static keys in a Secret of others: rotated, missing, read in vain. The tokens that they have fetched stay until they expire.

use std::sync::Arc;
use std::time::Duration;

use ::judge::logins;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Case, calm, case, has, restart_and_late_namespace, restart_without_writes};
use crate::api_server::{Action, Answer, ApiServer, Kind, Request, Rule, target};
use crate::aws::{ACCOUNT, Failure};
use crate::judge::Invariant;
use crate::judge::short::{I2, I4, I5, I6, I7, I9, I10, I14};
use crate::sim::{Sim, Until};
use crate::workloads::{self, PULLER, SECRET, TENANTS, credential};

const TRIED: &[Invariant] = &[I2, I4, I5, I6, I7, I9, I10, I14];

/// The namespace and the name of the Secret with the keys.
const PLACE: (&str, &str) = ("ops", "keys");

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        keys("keys that AWS does not know any more, for two hours, and then others", |sim| {
            ready(sim);
            sim.aws.remove_key("AKIA1");
            sim.harm += 1;
            kept(sim, "AccessDenied");
            rotate(sim, 2);
            sim.until(10, I9, "the new keys are in effect", uses(sim, 2));
            calm(sim);
        }),
        keys("keys that are away for two hours", |sim| {
            ready(sim);
            sim.api.delete(Kind::Secret, PLACE.0, PLACE.1);
            sim.harm += 1;
            kept(sim, "IdentityNotFound");
            put(sim, 1);
            calm(sim);
        }),
        keys("keys of which one half is away for two hours", |sim| {
            ready(sim);
            sim.api.edit(Kind::Secret, PLACE.0, PLACE.1, json!({ "data": { "AWS_SECRET_ACCESS_KEY": null } }));
            sim.harm += 1;
            kept(sim, "IdentityNotFound");
            sim.api.edit(Kind::Secret, PLACE.0, PLACE.1, json!({ "data": data(1) }));
            calm(sim);
        }),
        keys("keys that are away at a restart, while AWS is away too", |sim| {
            ready(sim);
            sim.api.delete(Kind::Secret, PLACE.0, PLACE.1);
            sim.aws.fail(Failure::Unavailable, None);
            sim.harm += 1;
            restart_and_late_namespace(sim, 3600, 1, "it has the tokens that were found again", has);
            sim.aws.recover();
            put(sim, 1);
            calm(sim);
        }),
        beside_tenants(),
        keys("keys that are not there at first", |sim| {
            ground(sim);
            sim.api.delete(Kind::Secret, PLACE.0, PLACE.1);
            sim.harm += 1;
            asked(sim);
            sim.until(5, I9, "the namespaces have the login of the other registry", |api| {
                ["a", "b", "c"].iter().all(|namespace| has(api, namespace))
            });
            sim.run_for(Duration::from_secs(600));
            put(sim, 1);
            sim.until(10, I9, "the keys are in effect", uses(sim, 1));
            calm(sim);
        }),
        keys("keys that change again while they are read", |sim| {
            ready(sim);
            sim.aws.add_key("AKIA3", "secret-3", &user());
            let again = Action::First(Arc::new(|api| {
                drop(api.edit(Kind::Secret, PLACE.0, PLACE.1, json!({ "data": data(3) })))
            }));
            sim.api.faults().place(Rule::new(is_read, again).skip(1).times(1));
            rotate(sim, 2);
            sim.until(20, I9, "the last keys are in effect", uses(sim, 3));
            calm(sim);
        }),
        keys("keys that change every second, for five minutes", |sim| {
            ready(sim);
            (2..=4).for_each(|number| sim.aws.add_key(&format!("AKIA{number}"), &format!("secret-{number}"), &user()));
            let calls = sim.aws.calls().len();
            for second in 0..300 {
                sim.api.edit(Kind::Secret, PLACE.0, PLACE.1, json!({ "data": data(2 + second % 3) }));
                sim.harm += 1;
                sim.run_for(Duration::from_secs(1));
            }
            let calls = sim.aws.calls().len() - calls;
            sim.expect(calls <= 12, I10, &format!("{calls} calls for keys that change all the time"));
            sim.run_for(Duration::from_secs(620));
            sim.until(5, I9, "the last keys are in effect", uses(sim, 4));
            calm(sim);
        }),
        keys("notes on the keys that change every second, for five minutes", |sim| {
            ready(sim);
            let (calls, writes) = (sim.aws.calls().len(), sim.secret_writes());
            for second in 0..300 {
                let note = json!({ "metadata": { "annotations": { "note": second.to_string() } } });
                sim.api.edit(Kind::Secret, PLACE.0, PLACE.1, note);
                sim.harm += 1;
                sim.run_for(Duration::from_secs(1));
            }
            let (calls, writes) = (sim.aws.calls().len() - calls, sim.secret_writes() - writes);
            sim.expect(calls == 0 && writes == 0, I10, &format!("{calls} calls and {writes} writes for nothing"));
            calm(sim);
        }),
        keys("no right to watch the keys, at a restart and for an hour", |sim| {
            ready(sim);
            let reads = |r: &Request| is_of_keys(r) && (r.is_watch() || r.is_list());
            let refusal = Answer::no_right(&target(Kind::Secret, PLACE.0, PLACE.1), "list");
            sim.api.faults().place(Rule::new(reads, Action::Answer(refusal)));
            restart_without_writes(sim, 60);
            sim.run_for(Duration::from_secs(3600));
            calm(sim);
        }),
    ];
    for (name, harm) in
        [("", nothing as fn(&mut Sim)), (", and the process dies", Sim::crash), (", while AWS is away", away)]
    {
        cases.push(keys(format!("keys are rotated{name}"), move |sim| {
            ready(sim);
            harm(sim);
            rotate(sim, 2);
            sim.aws.remove_key("AKIA1");
            sim.harm += 1;
            sim.run_for(Duration::from_secs(60));
            sim.aws.recover();
            sim.until(310, I9, "the new keys are in effect", uses(sim, 2));
            calm(sim);
        }));
    }
    for (how, action) in failures() {
        let read = action.clone();
        cases.push(keys(format!("a restart whose reads of the keys {how}"), move |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(is_read, read.clone()));
            restart_without_writes(sim, 300);
            sim.api.create_namespace("late", json!({ "pull": "ecr" }));
            sim.until(5, I9, "it has the tokens that were found again", |api| has(api, "late"));
            calm(sim);
        }));
        cases.push(keys(format!("a rotation whose reads {how}, for two hours"), move |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(is_read, action.clone()));
            rotate(sim, 2);
            sim.run_for(Duration::from_secs(7200));
            let whole = ["a", "b", "c"].iter().all(|namespace| login_count(&sim.api, namespace) == 2);
            sim.expect(whole, I5, "a namespace has lost a login that is good");
            sim.api.faults().heal();
            sim.until(370, I9, "the new keys are in effect", uses(sim, 2));
            calm(sim);
        }));
    }
    cases
}

fn nothing(_: &mut Sim) {}

fn away(sim: &mut Sim) {
    sim.aws.fail(Failure::Unavailable, None);
}

fn failures() -> Vec<(&'static str, Action)> {
    vec![
        ("are refused", Action::Answer(Answer::no_right(&target(Kind::Secret, PLACE.0, PLACE.1), "get"))),
        ("fail with 500", Action::Answer(Answer::refusal(500, "InternalError", "no"))),
        ("break before they arrive", Action::Refuse),
        ("say nothing", Action::Hang),
        ("take twenty seconds", Action::Delay(Duration::from_secs(20))),
    ]
}

fn keys(name: impl Into<String>, play: impl Fn(&mut Sim) + Send + Sync + 'static) -> Case {
    let mut case = case(name, TRIED, play);
    case.settings.key_secrets = vec![format!("{}/{}", PLACE.0, PLACE.1)];
    case
}

fn user() -> String {
    format!("arn:aws:iam::{ACCOUNT}:user/puller")
}

fn data(number: usize) -> Value {
    let texts = [("AWS_ACCESS_KEY_ID", format!("AKIA{number}")), ("AWS_SECRET_ACCESS_KEY", format!("secret-{number}"))];
    texts.into_iter().map(|(key, text)| (key.to_owned(), Value::from(STANDARD.encode(text)))).collect()
}

/// The Secret with these keys, which AWS knows.
fn put(sim: &mut Sim, number: usize) {
    sim.aws.add_key(&format!("AKIA{number}"), &format!("secret-{number}"), &user());
    sim.api.create(Kind::Secret, PLACE.0, json!({ "metadata": { "name": PLACE.1 }, "data": data(number) }));
}

fn rotate(sim: &mut Sim, number: usize) {
    sim.aws.add_key(&format!("AKIA{number}"), &format!("secret-{number}"), &user());
    sim.api.edit(Kind::Secret, PLACE.0, PLACE.1, json!({ "data": data(number) }));
}

fn ground(sim: &mut Sim) {
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    sim.api.create_namespace(PLACE.0, json!({}));
    put(sim, 1);
}

/// One registry by the keys, and one by the operator's own identity.
fn asked(sim: &mut Sim) {
    asked_with(sim, &json!({ "public": {} }));
}

/// One registry by the keys, and another.
fn asked_with(sim: &mut Sim, other: &Value) {
    let reference = json!({
        "namespace": PLACE.0, "name": PLACE.1,
        "accessKeyIdKey": "AWS_ACCESS_KEY_ID", "secretAccessKeyKey": "AWS_SECRET_ACCESS_KEY",
    });
    let private = json!({
        "region": "eu-west-1", "accountIds": [ACCOUNT], "hostVariants": ["Standard"], "requestRegistryIds": false,
    });
    let registries = json!([{ "private": private, "auth": { "secretRef": reference } }, other]);
    credential(&sim.api, "platform", json!({ "registries": registries }));
}

fn ready(sim: &mut Sim) {
    ground(sim);
    asked(sim);
    sim.wait(Until::Ready);
}

/// One registry by the keys for all, and one by the identity of each namespace.
fn beside_tenants() -> Case {
    let mut case = keys("keys that are away at a restart beside tokens of tenants, while AWS is away too", |sim| {
        TENANTS.iter().for_each(|(namespace, account)| workloads::tenant(sim, namespace, account));
        for own in sim.tenants.values_mut() {
            own.insert(user());
        }
        sim.api.create_namespace(PLACE.0, json!({}));
        put(sim, 1);
        asked_with(sim, &json!({ "public": {}, "auth": { "serviceAccount": { "fromTargetNamespace": PULLER } } }));
        sim.wait(Until::Ready);
        sim.api.delete(Kind::Secret, PLACE.0, PLACE.1);
        sim.aws.fail(Failure::Unavailable, None);
        sim.harm += 1;
        let calls = sim.aws.calls().len();
        restart_without_writes(sim, 600);
        let calls = sim.aws.calls().len() - calls;
        sim.expect(calls == 0, I10, &format!("{calls} calls for tokens that are in the Secrets"));
        sim.aws.recover();
        put(sim, 1);
        calm(sim);
    });
    case.settings.service_accounts = vec![format!("*/{PULLER}")];
    case
}

fn is_of_keys(request: &Request) -> bool {
    let names_it = request.target.name == PLACE.1 || request.parameter("fieldSelector").ends_with(PLACE.1);
    request.target.kind == Kind::Secret && request.target.namespace == PLACE.0 && names_it
}

fn is_read(request: &Request) -> bool {
    is_of_keys(request) && request.verb() == "get"
}

fn login_count(api: &ApiServer, namespace: &str) -> usize {
    api.get(Kind::Secret, namespace, SECRET).and_then(|secret| logins(&secret).ok()).map_or(0, |logins| logins.len())
}

/// Two hours in which no token comes of the keys: what there is stays, the other registry is refreshed, and the status says why.
fn kept(sim: &mut Sim, reason: &str) {
    let writes = sim.secret_writes();
    sim.run_for(Duration::from_secs(7200));
    let writes = sim.secret_writes() - writes;
    sim.expect(writes >= 9, I9, &format!("{writes} writes of the other registry's tokens in two hours"));
    let whole = ["a", "b", "c"].iter().all(|namespace| login_count(&sim.api, namespace) == 2);
    sim.expect(whole, I5, "a namespace has lost a login that is good");
    let object = sim.api.get(Kind::Credential, "", "platform").expect("it is there");
    let said = object["status"]["registries"][0]["reason"].clone();
    sim.expect(said == reason, I14, &format!("the status says {said} of the registry"));
}

/// Whether every namespace has a token that these keys have fetched.
fn uses(sim: &Sim, number: usize) -> impl Fn(&ApiServer) -> bool + use<> {
    let (aws, by) = (sim.aws.clone(), format!("{} by AKIA{number}", user()));
    move |api| {
        let decoded = |text: &str| String::from_utf8(STANDARD.decode(text).unwrap_or_default()).unwrap_or_default();
        let issued: Vec<String> = aws
            .issued()
            .iter()
            .filter(|issued| issued.caller.session == by)
            .map(|issued| decoded(&issued.text))
            .collect();
        ["a", "b", "c"].iter().all(|namespace| {
            let secret = api.get(Kind::Secret, namespace, SECRET);
            secret.is_some_and(|secret| logins(&secret).is_ok_and(|all| all.values().any(|one| issued.contains(one))))
        })
    }
}
