//! The same tokens in other formats: each output is as safe as the pull secret, and fails alone.

use std::time::Duration;

use ::judge::logins;
use ::judge::marks::owner;
use serde_json::{Value, json};

use super::{
    Case, calm, case, has, is_secret_write, no_right, ready_reason, restart_and_late_namespace, restart_without_writes,
};
use crate::api_server::{Action, Answer, ApiServer, Kind, Request, Rule};
use crate::aws::Failure;
use crate::judge::Invariant;
use crate::judge::short::{I1, I2, I3, I4, I5, I6, I7, I9, I10, I13, I14, I17};
use crate::operator::Settings;
use crate::sim::{Sim, Until};
use crate::workloads::{self, FILE, OUTPUTS, PULLER, SECRET, TENANTS, TOKEN, credential, edit, outputs, role};

const TRIED: &[Invariant] = &[I1, I2, I3, I4, I5, I6, I7, I9, I10, I13, I14];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        with_outputs("outputs are asked for, refreshed, and not asked for any more", |sim| {
            ready(sim);
            let before = sim.secret_writes();
            sim.run_for(Duration::from_secs(1900));
            let writes = sim.secret_writes() - before;
            sim.expect(writes == 9, I7, &format!("{writes} writes for one refresh of nine Secrets"));
            edit(&sim.api, "platform", json!({ "outputs": [] }));
            sim.until(5, I13, "no output is left, and the pull secrets are", |api| {
                let left = |namespace: &&str| is_ours(api, namespace, FILE) || is_ours(api, namespace, TOKEN);
                ["a", "b", "c"].iter().all(|namespace| !left(namespace) && has(api, namespace))
            });
            calm(sim);
        }),
        with_outputs("an output is edited, and another deleted", |sim| {
            ready(sim);
            sim.api.edit(Kind::Secret, "a", TOKEN, json!({ "data": { "password": "eA==", "more": "eA==" } }));
            sim.api.delete(Kind::Secret, "b", FILE);
            sim.harm += 2;
            sim.until(5, I7, "the one that was deleted is there", |api| is_ours(api, "b", FILE));
            calm(sim);
        }),
        with_outputs("an output of another format", |sim| {
            ready(sim);
            let mut other = outputs();
            other["outputs"][1]["format"] = "Jenkins".into();
            let settings =
                Settings { outputs: vec![OUTPUTS[0].to_owned(), format!("*/{TOKEN}=Jenkins")], ..sim.settings.clone() };
            sim.restart(settings);
            edit(&sim.api, "platform", other);
            calm(sim);
        }),
        with_outputs("outputs that are not allowed any more, for an hour", |sim| {
            ready(sim);
            let allowed = sim.settings.clone();
            sim.restart(Settings { outputs: vec![], ..allowed.clone() });
            sim.harm += 1;
            sim.run_for(Duration::from_secs(3600));
            let kept = ["a", "b", "c"].iter().all(|namespace| is_ours(&sim.api, namespace, TOKEN));
            sim.expect(kept, I5, "an output is gone that may be allowed again");
            let reason = ready_reason(&sim.api, "platform");
            sim.expect(reason.as_deref() != Some("Synced"), I14, "it is ready without its outputs");
            sim.restart(allowed);
            calm(sim);
        }),
        with_outputs("a foreign Secret of the name of an output", |sim| {
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            let theirs = json!({ "metadata": { "name": TOKEN }, "data": { "password": "eA==" } });
            sim.api.create(Kind::Secret, "b", theirs);
            sim.harm += 1;
            credential(&sim.api, "platform", outputs());
            others_are_there(sim);
            sim.run_for(Duration::from_secs(900));
            let kept = sim.api.get(Kind::Secret, "b", TOKEN).is_some_and(|secret| secret["data"]["password"] == "eA==");
            sim.expect(kept, I2, "a foreign Secret was changed");
            sim.api.delete(Kind::Secret, "b", TOKEN);
            calm(sim);
        }),
        with_outputs("a quota for two of three Secrets", |sim| {
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            sim.api.set_quota("b", Some(2));
            sim.harm += 1;
            credential(&sim.api, "platform", outputs());
            // Which of them has no room is left to chance.
            sim.until(5, I9, "the others are there", |api| {
                let in_b = [SECRET, FILE, TOKEN].iter().filter(|name| is_ours(api, "b", name)).count();
                has_all(api, "a") && has_all(api, "c") && in_b == 2
            });
            sim.run_for(Duration::from_secs(900));
            let reason = ready_reason(&sim.api, "platform");
            sim.expect(reason.as_deref() != Some("Synced"), I14, "it is ready without one of its Secrets");
            sim.api.set_quota("b", None);
            calm(sim);
        }),
        with_outputs("a restart with outputs while AWS is away", |sim| {
            ready(sim);
            sim.aws.fail(Failure::Unavailable, None);
            sim.harm += 1;
            restart_and_late_namespace(sim, 600, 3, "it has all three", has_all);
            sim.aws.recover();
            calm(sim);
        }),
        with_outputs("one registry of two is denied for 14 h", |sim| {
            ready(sim);
            sim.aws.fail(Failure::Denied, Some("public"));
            sim.harm += 1;
            sim.run_for(Duration::from_secs(14 * 3600));
            sim.aws.recover();
            calm(sim);
        }),
        of_tenants("one tenant of three is denied, and has outputs", |sim| {
            ready_tenants(sim);
            sim.aws.fail_for(Failure::Denied, &role(TENANTS[1].1));
            sim.harm += 1;
            sim.run_for(Duration::from_secs(7200));
            let kept = has_all(&sim.api, "b");
            sim.expect(kept, I5, "an output of the tenant that is denied is gone");
            sim.aws.recover();
            calm(sim);
        }),
        of_tenants("a restart of tenants with outputs while AWS is away", |sim| {
            ready_tenants(sim);
            sim.aws.fail(Failure::Unavailable, None);
            sim.harm += 1;
            restart_without_writes(sim, 600);
            sim.aws.recover();
            calm(sim);
        }),
    ];
    for failure in [Failure::Denied, Failure::Hangs, Failure::Unavailable, Failure::NotBase64] {
        let name = format!("outputs at the refresh, while AWS fails for the registry of one: {failure:?}");
        cases.push(with_outputs(name, move |sim| {
            ready(sim);
            sim.aws.fail(failure, Some("public"));
            sim.harm += 1;
            let before = [FILE, TOKEN].map(|name| writes_of(sim, name));
            sim.run_for(Duration::from_secs(7200));
            let [file, token] = [FILE, TOKEN].map(|name| writes_of(sim, name));
            let (file, token) = (file - before[0], token - before[1]);
            sim.expect(file >= 9 && token == 0, I5, &format!("{file} writes of all logins and {token} of the one"));
            sim.aws.recover();
            calm(sim);
        }));
    }
    for (how, action) in [
        ("is not allowed", Action::Answer(no_right(Kind::Secret, "b", "patch"))),
        ("fails with 500", Action::Answer(Answer::refusal(500, "InternalError", "no"))),
        ("is put off with 429", Action::Answer(Answer::too_many_requests(2))),
        ("says nothing", Action::Hang),
        ("loses its answer", Action::LoseAnswer),
    ] {
        let write = action.clone();
        cases.push(with_outputs(format!("the first write of one output {how}"), move |sim| {
            workloads::namespaces(&sim.api, &["a", "b", "c"]);
            sim.api.faults().place(Rule::new(token_in_b, write.clone()));
            credential(&sim.api, "platform", outputs());
            others_are_there(sim);
            sim.run_for(Duration::from_secs(900));
            calm(sim);
        }));
        cases.push(with_outputs(format!("each later write of one output {how}"), move |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(token_in_b, action.clone()));
            let before = writes_of(sim, FILE);
            sim.run_for(Duration::from_secs(3700));
            let writes = writes_of(sim, FILE) - before;
            sim.expect(writes >= 6, I9, &format!("{writes} writes of another output in an hour"));
            calm(sim);
        }));
    }
    cases
}

fn with_outputs(name: impl Into<String>, play: impl Fn(&mut Sim) + Send + Sync + 'static) -> Case {
    let mut case = case(name, TRIED, play);
    case.settings.outputs = OUTPUTS.map(str::to_owned).to_vec();
    case
}

fn of_tenants(name: &str, play: impl Fn(&mut Sim) + Send + Sync + 'static) -> Case {
    let mut case = with_outputs(name, play);
    case.tries = &[I5, I6, I7, I9, I14, I17];
    case.settings.service_accounts = vec![format!("*/{PULLER}")];
    case
}

fn ready(sim: &mut Sim) {
    workloads::namespaces(&sim.api, &["a", "b", "c"]);
    credential(&sim.api, "platform", outputs());
    sim.wait(Until::Ready);
}

fn ready_tenants(sim: &mut Sim) {
    TENANTS.iter().for_each(|(namespace, account)| workloads::tenant(sim, namespace, account));
    let mut spec: Value = outputs();
    spec["auth"] = workloads::of_tenants()["auth"].clone();
    credential(&sim.api, "platform", spec);
    sim.wait(Until::Ready);
}

fn token_in_b(request: &Request) -> bool {
    is_secret_write(request) && request.target.namespace == "b" && request.target.name == TOKEN
}

fn is_ours(api: &ApiServer, namespace: &str, name: &str) -> bool {
    api.get(Kind::Secret, namespace, name).is_some_and(|secret| owner(&secret).is_some())
}

/// Whether a namespace has the pull secret and both outputs, with the logins that they should have.
fn has_all(api: &ApiServer, namespace: &str) -> bool {
    let count = |name: &str| {
        api.get(Kind::Secret, namespace, name).and_then(|secret| logins(&secret).ok()).map(|all| all.len())
    };
    has(api, namespace) && count(FILE) == Some(2) && count(TOKEN) == Some(1)
}

/// All but one output in one namespace are there.
fn others_are_there(sim: &mut Sim) {
    sim.until(5, I9, "the others are there", |api| {
        has_all(api, "a") && has_all(api, "c") && has(api, "b") && is_ours(api, "b", FILE)
    });
}

fn writes_of(sim: &Sim, name: &str) -> usize {
    sim.api
        .sent()
        .iter()
        .filter(|sent| sent.is_change() && sent.target.kind == Kind::Secret && sent.target.name == name)
        .count()
}
