//! Namespaces with identities of their own: each has its tokens by the ServiceAccount that is there, and fails alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::judge::logins;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Case, calm, case, failure, has, is_secret_write, restart_without_writes};
use crate::api_server::{Action, Answer, ApiServer, Kind, Request, Rule, target};
use crate::aws::Failure;
use crate::judge::Invariant;
use crate::judge::short::{I4, I5, I6, I7, I9, I10, I12, I14, I17};
use crate::sim::{Sim, Until};
use crate::workloads::{PULLER, SECRET, TENANTS, annotate, credential, of_tenants, puller, role, tenant, trusted};

const TRIED: &[Invariant] = &[I4, I5, I6, I7, I9, I10, I14, I17];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        tenants("one tenant of three is denied at first", TRIED, denied_at_first),
        tenants("one tenant of three is denied for 14 h", TRIED, |sim| {
            ready(sim);
            sim.aws.fail_for(Failure::Denied, &role(TENANTS[1].1));
            sim.harm += 1;
            sim.run_for(Duration::from_secs(14 * 3600));
            sim.aws.recover();
            calm(sim);
        }),
        tenants("a tenant takes the role of another", TRIED, another_role),
        tenants("a ServiceAccount is not there at first", TRIED, |sim| {
            ground(sim);
            sim.api.delete(Kind::ServiceAccount, "b", PULLER);
            sim.harm += 1;
            credential(&sim.api, "platform", of_tenants());
            others_are_served(sim);
            named(sim, 5, "IdentityNotFound");
            sim.run_for(Duration::from_secs(600));
            puller(sim, "b", TENANTS[1].1);
            sim.until(5, I9, "it has its Secret when its ServiceAccount is there", |api| has(api, "b"));
            calm(sim);
        }),
        tenants("a ServiceAccount is made again while its token is asked for", TRIED, |sim| {
            ground(sim);
            let again = Action::First(Arc::new(|api| {
                let account = api.get(Kind::ServiceAccount, "b", PULLER).expect("it is there");
                let metadata = json!({ "name": PULLER, "annotations": account["metadata"]["annotations"] });
                api.delete(Kind::ServiceAccount, "b", PULLER);
                api.create(Kind::ServiceAccount, "b", json!({ "metadata": metadata }));
            }));
            sim.api.faults().place(Rule::new(token_of_b, again).times(1));
            credential(&sim.api, "platform", of_tenants());
            others_are_served(sim);
            sim.until(10, I9, "it has its Secret by the new one", |api| has(api, "b"));
            calm(sim);
        }),
        tenants("a namespace is made again for another tenant", TRIED, made_again),
        tenants("twenty tenants, and a death while their first tokens are fetched", TRIED, twenty),
        tenants("a death while AWS is away", TRIED, |sim| {
            ready(sim);
            sim.aws.fail(Failure::Unavailable, None);
            sim.harm += 1;
            restart_without_writes(sim, 600);
            sim.api.label_namespace("b", json!({ "pull": null }));
            sim.run_for(Duration::from_secs(60));
            sim.aws.recover();
            sim.api.label_namespace("b", json!({ "pull": "ecr" }));
            sim.until(310, I9, "it has its Secret again", |api| has(api, "b"));
            calm(sim);
        }),
        tenants("no right to watch ServiceAccounts, for five minutes", TRIED, |sim| {
            let reads = |r: &Request| r.target.kind == Kind::ServiceAccount && (r.is_watch() || r.is_list());
            let refusal = Answer::no_right(&target(Kind::ServiceAccount, "", ""), "list");
            sim.api.faults().place(Rule::new(reads, Action::Answer(refusal)));
            ground(sim);
            credential(&sim.api, "platform", of_tenants());
            named(sim, 60, "Forbidden");
            sim.run_for(Duration::from_secs(300));
            calm(sim);
        }),
        tenants("a restart without the right to watch ServiceAccounts", TRIED, |sim| {
            ready(sim);
            let reads = |r: &Request| r.target.kind == Kind::ServiceAccount && (r.is_watch() || r.is_list());
            let refusal = Answer::no_right(&target(Kind::ServiceAccount, "", ""), "list");
            sim.api.faults().place(Rule::new(reads, Action::Answer(refusal)));
            restart_without_writes(sim, 3600);
            calm(sim);
        }),
        tenants("a role that changes every second, for five minutes", TRIED, flapping),
        tenants("deleted while a token is asked for in vain", &[I9, I17], |sim| {
            ready(sim);
            sim.api.faults().place(Rule::new(token_of_b, Action::Hang));
            sim.run_for(Duration::from_secs(3600));
            sim.api.delete(Kind::Credential, "", "platform");
            sim.until(5, I9, "no Secret is left", |api| api.all(Kind::Secret).is_empty());
            sim.expect_quiet();
        }),
        replicas(),
    ];
    for failure in [Failure::Denied, Failure::Throttled, Failure::Unavailable, Failure::Hangs, Failure::NotBase64] {
        let name = format!("AWS fails for one tenant at the refresh: {failure:?}");
        cases.push(tenants(name, TRIED, move |sim| {
            at_refresh(sim, |sim| sim.aws.fail_for(failure, &role(TENANTS[1].1)))
        }));
        let name = format!("AWS fails for all tenants at the refresh: {failure:?}");
        cases.push(tenants(name, TRIED, move |sim| {
            ready(sim);
            sim.aws.fail(failure, None);
            sim.harm += 1;
            let writes = sim.secret_writes();
            sim.run_for(Duration::from_secs(7200));
            let writes = sim.secret_writes() - writes;
            sim.expect(writes == 0, I5, &format!("{writes} writes while AWS failed"));
            sim.aws.recover();
            calm(sim);
        }));
    }
    for (how, action, reason) in refusals() {
        let refusal = action.clone();
        cases.push(tenants(format!("the first token of one ServiceAccount {how}"), TRIED, move |sim| {
            ground(sim);
            sim.api.faults().place(Rule::new(token_of_b, refusal.clone()));
            credential(&sim.api, "platform", of_tenants());
            others_are_served(sim);
            if let Some(reason) = reason {
                named(sim, 150, reason);
            }
            sim.run_for(Duration::from_secs(600));
            calm(sim);
        }));
        cases.push(tenants(format!("later tokens of one ServiceAccount: each {how}"), TRIED, move |sim| {
            at_refresh(sim, |sim| sim.api.faults().place(Rule::new(token_of_b, action.clone())));
        }));
    }
    for (name, harm) in
        [("", nothing as fn(&mut Sim)), (", and the process dies", Sim::crash), (", while AWS is away", away)]
    {
        cases
            .push(tenants(format!("the role of a ServiceAccount changes{name}"), TRIED, move |sim| changed(sim, harm)));
    }
    cases
}

fn nothing(_: &mut Sim) {}

fn away(sim: &mut Sim) {
    sim.aws.fail(Failure::Unavailable, None);
}

/// How a request for a token fails, and what the status says of it.
fn refusals() -> Vec<(&'static str, Action, Option<&'static str>)> {
    let place = target(Kind::ServiceAccount, "b", PULLER);
    let policy = Answer::forbidden(&place, "ValidatingAdmissionPolicy 'no' denied request: no");
    vec![
        ("is not allowed", Action::Answer(Answer::no_right(&place, "create")), Some("Forbidden")),
        ("is refused by a policy", Action::Answer(policy), Some("AdmissionRefused")),
        ("fails with 500", Action::Answer(Answer::refusal(500, "InternalError", "no")), Some("ApiError")),
        ("is put off with 429", Action::Answer(Answer::too_many_requests(2)), None),
        ("is lost on its way", Action::Refuse, Some("ApiError")),
        ("is lost on its way back", Action::LoseAnswer, Some("ApiError")),
        ("is never answered", Action::Hang, Some("ApiError")),
        ("takes twenty seconds", Action::Delay(Duration::from_secs(20)), None),
    ]
}

fn tenants(
    name: impl Into<String>,
    tries: &'static [Invariant],
    play: impl Fn(&mut Sim) + Send + Sync + 'static,
) -> Case {
    let mut case = case(name, tries, play);
    case.settings.service_accounts = vec![format!("*/{PULLER}")];
    case
}

/// Three tenants, and nothing that asks for tokens.
fn ground(sim: &mut Sim) {
    TENANTS.iter().for_each(|(namespace, account)| tenant(sim, namespace, account));
    sim.api.create_namespace("operator", json!({}));
}

fn ready(sim: &mut Sim) {
    ground(sim);
    credential(&sim.api, "platform", of_tenants());
    sim.wait(Until::Ready);
}

fn token_of_b(request: &Request) -> bool {
    request.is_token_request() && request.target.namespace == "b"
}

fn others_are_served(sim: &mut Sim) {
    sim.until(5, I9, "the others have theirs", |api| has(api, "a") && has(api, "c"));
}

fn named(sim: &mut Sim, seconds: u64, reason: &'static str) {
    sim.until(seconds, I14, &format!("the status says {reason} of b"), |api| {
        failure(api, "platform", "b").as_deref() == Some(reason)
    });
}

fn writes_in(sim: &Sim, namespace: &str) -> usize {
    let sent = sim.api.sent();
    sent.iter().filter(|s| s.is_change() && s.target.kind == Kind::Secret && s.target.namespace == namespace).count()
}

/// Whom AWS has issued the logins of a Secret to.
fn holders(sim: &Sim, secret: &Value) -> BTreeSet<String> {
    let auths: BTreeSet<String> = logins(secret).unwrap_or_default().into_values().collect();
    let is_in =
        |text: &str| auths.contains(&String::from_utf8(STANDARD.decode(text).unwrap_or_default()).unwrap_or_default());
    let issued = sim.aws.issued().into_iter().filter(|issued| is_in(&issued.text));
    issued.map(|issued| issued.caller.arn.unwrap_or(issued.caller.session)).collect()
}

fn has_login_of(sim: &Sim, namespace: &str, arn: &str) -> bool {
    let secret = sim.api.get(Kind::Secret, namespace, SECRET);
    secret.is_some_and(|secret| holders(sim, &secret) == [arn.to_owned()].into())
}

fn denied_at_first(sim: &mut Sim) {
    ground(sim);
    sim.aws.distrust(&role(TENANTS[1].1));
    sim.harm += 1;
    credential(&sim.api, "platform", of_tenants());
    others_are_served(sim);
    named(sim, 5, "AccessDenied");
    let calls = sim.aws.calls().len();
    sim.run_for(Duration::from_secs(1200));
    let calls = sim.aws.calls().len() - calls;
    sim.expect(calls <= 40, I10, &format!("{calls} calls in twenty minutes for one tenant that is denied"));
    trusted(sim, "b", &role(TENANTS[1].1));
    sim.until(310, I9, "it has its Secret when its role trusts it", |api| has(api, "b"));
    calm(sim);
}

/// Something goes wrong for one tenant for two hours: it keeps what it has, and the others are refreshed.
fn at_refresh(sim: &mut Sim, harm: impl Fn(&mut Sim)) {
    ready(sim);
    harm(sim);
    sim.harm += 1;
    let before = ["a", "b", "c"].map(|namespace| writes_in(sim, namespace));
    sim.run_for(Duration::from_secs(7200));
    let writes: Vec<usize> =
        ["a", "b", "c"].iter().zip(before).map(|(namespace, before)| writes_in(sim, namespace) - before).collect();
    sim.expect(
        writes[0] >= 3 && writes[2] >= 3,
        I9,
        &format!("the others were refreshed {writes:?} times in two hours"),
    );
    let complete =
        sim.api.get(Kind::Secret, "b", SECRET).is_some_and(|secret| logins(&secret).is_ok_and(|all| all.len() == 2));
    sim.expect(complete, I5, "the tenant that is not refreshed has lost logins that are good");
    sim.aws.recover();
    calm(sim);
}

/// AWS refuses it, and what it has stays.
fn another_role(sim: &mut Sim) {
    ready(sim);
    let (own, others) = (role(TENANTS[1].1), role(TENANTS[0].1));
    annotate(&sim.api, "b", &others);
    sim.harm += 1;
    named(sim, 10, "AccessDenied");
    sim.run_for(Duration::from_secs(7200));
    let kept = has_login_of(sim, "b", &own);
    sim.expect(kept, I17, "it has not kept its own logins");
    annotate(&sim.api, "b", &own);
    calm(sim);
}

/// Another role of the same account: its tokens replace those of the old one, which stay until then.
fn changed(sim: &mut Sim, harm: impl Fn(&mut Sim)) {
    ready(sim);
    let other = format!("arn:aws:iam::{}:role/other", TENANTS[1].1);
    trusted(sim, "b", &other);
    let writes = writes_in(sim, "a");
    harm(sim);
    annotate(&sim.api, "b", &other);
    sim.harm += 1;
    sim.run_for(Duration::from_secs(60));
    let writes = writes_in(sim, "a") - writes;
    sim.expect(writes == 0, I7, &format!("{writes} writes to another tenant"));
    sim.aws.recover();
    sim.run_for(Duration::from_secs(310));
    let taken = has_login_of(sim, "b", &other);
    sim.expect(taken, I9, "the new role is not in effect");
    calm(sim);
}

/// The new tenant has nothing of the old one, at no time.
fn made_again(sim: &mut Sim) {
    ready(sim);
    sim.api.delete(Kind::Namespace, "", "b");
    sim.harm += 1;
    sim.run_for(Duration::from_secs(6));
    let (new, since) = (role("444444444444"), sim.api.changes().len());
    tenant(sim, "b", "444444444444");
    sim.until(10, I9, "the new tenant has its Secret", |api| has(api, "b"));
    calm(sim);
    let of_b =
        |change: &crate::api_server::Change| change.key.0 == Kind::Secret && change.key.1 == "b" && !change.deleted;
    let versions: Vec<_> = sim.api.changes().into_iter().skip(since).filter(of_b).collect();
    let strangers = versions.iter().filter(|change| holders(sim, &change.after) != [new.clone()].into()).count();
    sim.expect(strangers == 0, I17, &format!("{strangers} versions with logins of somebody else"));
}

fn twenty(sim: &mut Sim) {
    for number in 0..20_u64 {
        tenant(sim, &format!("n{number:02}"), &(500_000_000_000 + number).to_string());
    }
    sim.api.create_namespace("operator", json!({}));
    credential(&sim.api, "platform", of_tenants());
    sim.run_for(Duration::from_millis(250));
    sim.crash();
    sim.wait(Until::Ready);
    let calls = sim.aws.calls().len();
    sim.expect(calls <= 80, I10, &format!("{calls} calls for two tokens of twenty tenants, and a death"));
    calm(sim);
}

/// Each change takes effect at once at first, and later now and then; the last one does in the end.
fn flapping(sim: &mut Sim) {
    ready(sim);
    let roles = ["pull", "other"].map(|name| format!("arn:aws:iam::{}:role/{name}", TENANTS[1].1));
    trusted(sim, "b", &roles[1]);
    let calls = sim.aws.calls().len();
    for second in 0..301 {
        annotate(&sim.api, "b", &roles[(second + 1) % 2]);
        sim.harm += 1;
        sim.run_for(Duration::from_secs(1));
    }
    let calls = sim.aws.calls().len() - calls;
    sim.expect(calls <= 24, I10, &format!("{calls} calls for a role that changes all the time"));
    sim.run_for(Duration::from_secs(620));
    let taken = has_login_of(sim, "b", &roles[1]);
    sim.expect(taken, I9, "the last role is not in effect");
    calm(sim);
}

fn replicas() -> Case {
    let mut case =
        tenants("the leader of two dies while tokens of tenants are refreshed", &[I4, I7, I12, I17], |sim| {
            sim.replicas = 2;
            ready(sim);
            let die = Action::First(Arc::new(ApiServer::cut_watches));
            sim.api.faults().place(Rule::new(is_secret_write, die).times(1));
            sim.run_for(Duration::from_secs(1600));
            if let Some(index) = sim.leader() {
                sim.kill_one(index);
            }
            sim.run_for(Duration::from_secs(600));
            calm(sim);
        });
    case.settings.lease = Some(Duration::from_secs(15));
    case
}
