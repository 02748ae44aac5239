//! Secrets that are attached to ServiceAccounts, which others change at the same time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Case, calm, case, has};
use crate::api_server::{Action, Answer, ApiServer, Kind, Request, Rule, target};
use crate::judge::Invariant;
use crate::judge::short::{I1, I7, I9, I13, I14, I18, I23};
use crate::sim::{Sim, Until};
use crate::workloads::{self, BUILDER, SECRET, attached, builder, credential, edit};

const TRIED: &[Invariant] = &[I1, I7, I9, I13, I14, I18, I23];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        attaching("attached, and taken back from a namespace and from all", |sim| {
            ready(sim);
            named(sim, &["a", "b", "c"], true);
            sim.api.label_namespace("b", json!({ "pull": null }));
            named(sim, &["b"], false);
            sim.api.label_namespace("b", json!({ "pull": "ecr" }));
            named(sim, &["b"], true);
            edit(&sim.api, "platform", json!({ "attachTo": null }));
            named(sim, &["a", "b", "c"], false);
            calm(sim);
        }),
        attaching("deleted while no process runs", |sim| {
            ready(sim);
            named(sim, &["a", "b", "c"], true);
            sim.crash();
            sim.api.delete(Kind::Credential, "", "platform");
            named(sim, &["a", "b", "c"], false);
            sim.expect_quiet();
        }),
        attaching("a ServiceAccount that comes later, and is made again", |sim| {
            ready(sim);
            sim.api.delete(Kind::ServiceAccount, "b", BUILDER);
            sim.harm += 1;
            sim.run_for(Duration::from_secs(60));
            builder(&sim.api, "b");
            named(sim, &["b"], true);
            sim.api.delete(Kind::ServiceAccount, "b", BUILDER);
            builder(&sim.api, "b");
            named(sim, &["b"], true);
            calm(sim);
        }),
        attaching("a ServiceAccount that changes at the very patch", |sim| {
            ground(sim);
            let number = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let change = Action::First(Arc::new(move |api| {
                let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let entries = json!([{ "name": format!("theirs-{number}") }, { "name": "last" }]);
                api.edit(Kind::ServiceAccount, "b", BUILDER, json!({ "imagePullSecrets": entries }));
            }));
            sim.api.faults().place(Rule::new(patch_of_b, change).times(3));
            credential(&sim.api, "platform", attached());
            named(sim, &["a", "c"], true);
            sim.run_for(Duration::from_secs(60));
            let names = names(&sim.api, "b");
            sim.expect(names == ["theirs-2", "last", SECRET], I23, &format!("it names {names:?}"));
            calm(sim);
        }),
        attaching("a ServiceAccount whose entries somebody sets every second, for ten minutes", |sim| {
            ready(sim);
            let before = patches(sim);
            for second in 0..600 {
                let metadata = json!({ "labels": { "second": second.to_string() } });
                let entries = json!([{ "name": "theirs" }]);
                sim.api.edit(
                    Kind::ServiceAccount,
                    "b",
                    BUILDER,
                    json!({ "imagePullSecrets": entries, "metadata": metadata }),
                );
                sim.harm += 1;
                sim.run_for(Duration::from_secs(1));
            }
            let patches = patches(sim) - before;
            sim.expect(patches <= 12, I18, &format!("{patches} patches of a ServiceAccount that is managed elsewhere"));
            // The longest wait between two patches of one that is contested.
            sim.run_for(Duration::from_secs(3900));
            named(sim, &["a", "b", "c"], true);
            calm(sim);
        }),
        attaching("two EcrCredentials for one ServiceAccount", |sim| {
            ready(sim);
            let mut other = attached();
            other["secret"] = json!({ "name": "other-secret" });
            credential(&sim.api, "younger", other);
            sim.until(5, I9, "it names both", |api| names(api, "b") == ["theirs", SECRET, "other-secret"]);
            sim.api.delete(Kind::Credential, "", "platform");
            sim.until(5, I13, "it names the one that is left", |api| names(api, "b") == ["theirs", "other-secret"]);
            calm(sim);
        }),
        attaching("a namespace that ends at the patch", |sim| {
            let first = Action::First(Arc::new(|api| drop(api.delete(Kind::Namespace, "", "b"))));
            sim.api.faults().place(Rule::new(patch_of_b, first).times(1));
            ready(sim);
            named(sim, &["a", "c"], true);
            calm(sim);
        }),
        attaching("no right to watch the ServiceAccounts, for ten minutes", |sim| {
            let reads = |r: &Request| r.target.kind == Kind::ServiceAccount && (r.is_watch() || r.is_list());
            let refusal = Answer::no_right(&target(Kind::ServiceAccount, "", ""), "list");
            sim.api.faults().place(Rule::new(reads, Action::Answer(refusal)));
            ground(sim);
            credential(&sim.api, "platform", attached());
            sim.until(20, I9, "the namespaces have their Secrets", |api| {
                ["a", "b", "c"].iter().all(|name| has(api, name))
            });
            sim.run_for(Duration::from_secs(600));
            calm(sim);
            named(sim, &["a", "b", "c"], true);
        }),
    ];
    for (how, action) in failures() {
        let patch = action.clone();
        cases.push(attaching(format!("the first patch of one ServiceAccount {how}"), move |sim| {
            ground(sim);
            sim.api.faults().place(Rule::new(patch_of_b, patch.clone()));
            credential(&sim.api, "platform", attached());
            named(sim, &["a", "c"], true);
            sim.run_for(Duration::from_secs(900));
            let secrets = ["a", "b", "c"].iter().all(|namespace| has(&sim.api, namespace));
            sim.expect(secrets, I9, "a Secret waits for a ServiceAccount");
            calm(sim);
            named(sim, &["a", "b", "c"], true);
        }));
        let patch = action.clone();
        cases.push(attaching(format!("each patch that takes a Secret back {how}, and the process dies"), move |sim| {
            ready(sim);
            named(sim, &["a", "b", "c"], true);
            sim.api.faults().place(Rule::new(patch_of_b, patch.clone()));
            sim.api.delete(Kind::Credential, "", "platform");
            named(sim, &["a", "c"], false);
            sim.run_for(Duration::from_secs(120));
            sim.crash();
            sim.run_for(Duration::from_secs(120));
            sim.api.faults().heal();
            sim.run_for(Duration::from_secs(305));
            named(sim, &["b"], false);
            sim.expect_quiet();
        }));
    }
    cases
}

fn failures() -> Vec<(&'static str, Action)> {
    let place = target(Kind::ServiceAccount, "b", BUILDER);
    let policy = Answer::forbidden(&place, "ValidatingAdmissionPolicy 'no' denied request: no");
    vec![
        ("is not allowed", Action::Answer(Answer::no_right(&place, "patch"))),
        ("is refused by a policy", Action::Answer(policy)),
        ("fails with 500", Action::Answer(Answer::refusal(500, "InternalError", "no"))),
        ("is put off with 429", Action::Answer(Answer::too_many_requests(2))),
        ("is lost on its way", Action::Refuse),
        ("is lost on its way back", Action::LoseAnswer),
        ("is never answered", Action::Hang),
        ("takes twenty seconds", Action::Delay(Duration::from_secs(20))),
        ("is done after it was given up", Action::Late(Duration::from_secs(70))),
    ]
}

fn attaching(name: impl Into<String>, play: impl Fn(&mut Sim) + Send + Sync + 'static) -> Case {
    let mut case = case(name, TRIED, play);
    case.settings.attachable = vec![BUILDER.to_owned()];
    case
}

/// Three namespaces with ServiceAccounts, and nothing that asks for anything.
fn ground(sim: &mut Sim) {
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    ["a", "b", "c"].iter().for_each(|namespace| builder(&sim.api, namespace));
}

fn ready(sim: &mut Sim) {
    ground(sim);
    credential(&sim.api, "platform", attached());
    sim.wait(Until::Ready);
}

fn patch_of_b(request: &Request) -> bool {
    request.is_json_patch() && request.target.kind == Kind::ServiceAccount && request.target.namespace == "b"
}

fn patches(sim: &Sim) -> usize {
    sim.api.sent().iter().filter(|sent| sent.is_change() && sent.target.kind == Kind::ServiceAccount).count()
}

fn names(api: &ApiServer, namespace: &str) -> Vec<String> {
    let account = api.get(Kind::ServiceAccount, namespace, BUILDER);
    let entries = account.as_ref().and_then(|account| account["imagePullSecrets"].as_array());
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    entries.into_iter().flatten().map(name).collect()
}

/// The ServiceAccounts of these namespaces name our Secret after that of somebody else, or do not.
fn named(sim: &mut Sim, namespaces: &[&str], ours: bool) {
    let expected: &[&str] = if ours { &["theirs", SECRET] } else { &["theirs"] };
    sim.until(5, I9, &format!("the ServiceAccounts of {namespaces:?} name {expected:?}"), |api| {
        namespaces.iter().all(|namespace| names(api, namespace) == expected)
    });
}
