//! What a simulated run tells the judges: the stand-ins know who wrote what and when, whom AWS issued what, and by whose Lease.

use std::collections::HashMap;
use std::time::Duration;

use ::judge::evidence::{Account, Aws, Call, Holder};
use ::judge::history::{History, Kind, Version};
use ::judge::hosts::Defaults;
use ::judge::{Evidence, Request, Scope, Settings, Stored, Target};
pub use ::judge::{Invariant, Violation};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::api_server::{self, Change, Sent};
use crate::aws::{ACCOUNT, Issued};
use crate::clock;
use crate::sim::Sim;

/// The invariants by their numbers alone, for tables.
pub mod short {
    pub use ::judge::Invariant::{
        I1Scope as I1, I2Foreign as I2, I3WellFormed as I3, I4Monotone as I4, I5FailStatic as I5, I6NoGap as I6,
        I7Quiet as I7, I9Isolation as I9, I10AwsBound as I10, I12SingleWriter as I12, I13Deletion as I13,
        I14TrueStatus as I14, I17Tenancy as I17, I18Neighbours as I18, I23Attach as I23,
    };
}

/// Everything that was wrong in a run.
pub fn judge(sim: &Sim) -> Vec<Violation> {
    ::judge::judge(&evidence(sim))
}

/// I6: the least remaining life of a password that a selected namespace ever had.
pub fn least_life(sim: &Sim) -> Option<SignedDuration> {
    ::judge::least_life(&evidence(sim))
}

fn evidence(sim: &Sim) -> Evidence {
    let (changes, sent) = (sim.api.changes(), sim.api.sent());
    let is_led = sim.all_settings.iter().all(|settings| settings.lease.is_some());
    Evidence {
        scope: scope(sim),
        history: history(&changes, &sent),
        requests: requests(&changes, sent, is_led),
        logs: vec![],
        aws: aws(sim),
        now: clock::true_now(),
        found: sim.complaints.clone(),
        service_accounts: sim
            .all_settings
            .iter()
            .flat_map(|all| all.service_accounts.iter().map(|flag| account(flag)))
            .collect(),
        tenants: sim.tenants.clone(),
        included: vec![],
    }
}

/// A ServiceAccount as the flag names it: `*/NAME` is one of each namespace.
fn account(flag: &str) -> Account {
    let (namespace, name) = flag.split_once('/').unwrap_or(("*", flag));
    Account { namespace: Some(namespace.to_owned()).filter(|namespace| namespace != "*"), name: name.to_owned() }
}

/// The name of an output as the flag has it: `*/NAME=FORMAT`.
fn output(flag: &str) -> String {
    let place = flag.split_once('=').map_or(flag, |(place, _)| place);
    place.rsplit_once('/').map_or(place, |(_, name)| name).to_owned()
}

fn scope(sim: &Sim) -> Scope {
    let settings = sim.all_settings.iter().map(|settings| Settings {
        secret_names: settings
            .secret_names
            .iter()
            .cloned()
            .chain(settings.outputs.iter().map(|flag| output(flag)))
            .collect(),
        namespaces: settings.namespaces.clone(),
        defaults: Defaults { region: Some(settings.region.clone()), account: Some(ACCOUNT.to_owned()) },
    });
    Scope {
        settings: settings.collect(),
        credential_prefix: String::new(),
        lease: Some(("operator".to_owned(), "ecr-credential-operator".to_owned())),
        api_audiences: vec![],
        staleness: Duration::try_from(sim.staleness).unwrap_or_default(),
        lag: Duration::ZERO,
        collection: Duration::from_secs(60),
        // Longer than the longest time without a look at the clock.
        calm: Duration::from_secs(70),
    }
}

fn history(changes: &[Change], sent: &[Sent]) -> History {
    // What changes nothing, an Event for example, bears the version of the last change before it: the first is the change itself.
    let mut done: Vec<(Timestamp, &Sent)> = sent.iter().filter_map(|sent| Some((sent.committed?.0, sent))).collect();
    done.sort_by_key(|(at, _)| *at);
    let mut when: HashMap<(u64, u32), Timestamp> = HashMap::new();
    for (_, sent) in done {
        when.entry((sent.version, sent.process)).or_insert(sent.at);
    }
    let mut history = History::default();
    for change in changes {
        let kind = match change.key.0 {
            api_server::Kind::Secret => Kind::Secret,
            api_server::Kind::Credential => Kind::Credential,
            api_server::Kind::Namespace => Kind::Namespace,
            api_server::Kind::ServiceAccount => Kind::ServiceAccount,
            api_server::Kind::Lease | api_server::Kind::Event => continue,
        };
        let sent = change.by.and_then(|process| when.get(&(change.version, process)).copied());
        let (at, by_operator) = (change.at, change.by.is_some());
        let object = change.after.clone();
        let sent = sent.unwrap_or(at);
        history.add(kind, Version { at, sent, by_operator, initial: false, deleted: change.deleted, object });
    }
    history
}

fn requests(changes: &[Change], sent: Vec<Sent>, is_led: bool) -> Vec<Request> {
    let mut versions: HashMap<&api_server::Key, Vec<&Change>> = HashMap::new();
    for change in changes {
        versions.entry(&change.key).or_default().push(change);
    }
    // The object as a request left it, whether it changed anything or not.
    let stored = |sent: &Sent| {
        let target = &sent.target;
        let versions = versions.get(&(target.kind, target.namespace.clone(), target.name.clone()))?;
        let left = versions[..versions.partition_point(|change| change.version <= sent.version)].last()?;
        let uid = left.after["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Some(Stored { uid, resource_version: left.version.to_string() })
    };
    let request = |(number, sent): (usize, Sent)| Request {
        number,
        stored: stored(&sent),
        started: sent.at,
        finished: sent.committed.map(|(at, _)| at),
        path: path(&sent.target),
        query: String::new(),
        content_type: sent.content_type,
        user_agent: String::new(),
        body: sent.body,
        committed: sent.committed.map(|(_, code)| code),
        status: sent.committed.map(|(_, code)| code),
        refusal: None,
        led: is_led.then_some(sent.leads),
        method: sent.method,
        target: Target {
            group: sent.target.kind.group().to_owned(),
            resource: sent.target.kind.resource().to_owned(),
            namespace: sent.target.namespace,
            name: sent.target.name,
            subresource: sent.target.subresource,
        },
    };
    sent.into_iter().filter(|sent| sent.is_mutation).enumerate().map(request).collect()
}

fn path(target: &api_server::Target) -> String {
    let parts = [target.kind.resource(), &target.namespace, &target.name, &target.subresource];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

fn aws(sim: &Sim) -> Aws {
    let calls = sim.aws.calls().into_iter().map(|call| Call {
        identity: call.session,
        registry: call.key,
        at: call.at,
        process: Some(call.process),
        failed: call.failure.is_some_and(|failure| !failure.is_harmless()),
    });
    let login = |Issued { text, caller, key: registry, issued_at, expires_at: accepted_until }| {
        let login = String::from_utf8(STANDARD.decode(&text).ok()?).ok()?;
        let principal = caller.arn.unwrap_or(caller.session);
        Some((login, Holder { role: None, principal, registry, issued_at, accepted_until, revoked: false }))
    };
    Aws {
        ahead: SignedDuration::ZERO,
        calls: calls.collect(),
        failures: sim.aws.failures(),
        issued: sim.aws.issued().into_iter().filter_map(login).collect(),
    }
}
