//! What a test tells the recorder: what goes wrong on purpose, what must stay secret, what belongs to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use ::judge::Excuse;
use ::judge::evidence::{Account, Aws, Call, Holder};
use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Recorder;
use super::canary::Canaries;
use super::{Invariant, Violation};
use crate::aws::{AwsStandIn, IssuedToken, Service};

/// What the test told.
#[derive(Default)]
pub(super) struct Declared {
    pub(super) aws_failures: Vec<(Timestamp, Timestamp)>,
    pub(super) excuses: Vec<Excuse>,
    pub(super) canaries: Canaries,
    pub(super) files: Vec<PathBuf>,
    pub(super) texts: BTreeMap<String, Vec<u8>>,
    pub(super) found: Vec<Violation>,
    pub(super) service_accounts: Vec<Account>,
    pub(super) tenants: BTreeMap<String, BTreeSet<String>>,
    pub(super) included: Vec<(String, Value)>,
    aws: Option<AwsStandIn>,
}

impl Recorder {
    /// I5: from now on AWS refuses, lies, or does not answer.
    pub fn aws_fails(&self) {
        self.declared.lock().aws_failures.push((Timestamp::now(), Timestamp::MAX));
    }

    /// I5: from now on AWS is well.
    pub fn aws_recovers(&self) {
        if let Some((_, until)) = self.declared.lock().aws_failures.last_mut() {
            *until = Timestamp::now();
        }
    }

    /// From now on the invariant may be broken about this, for a reason: `namespace/name`, an EcrCredential's name, or `*`.
    pub fn excuse(&self, invariant: Invariant, about: impl Into<String>, why: &str) {
        let (about, why) = (about.into(), why.to_owned());
        let excuse = Excuse { invariant, about, from: Timestamp::now(), until: Timestamp::MAX, why };
        self.declared.lock().excuses.push(excuse);
    }

    /// Ends [`excuse`](Self::excuse).
    pub fn end_excuse(&self, invariant: Invariant, about: &str) {
        let now = Timestamp::now();
        let mut declared = self.declared.lock();
        let open =
            declared.excuses.iter_mut().filter(|e| e.invariant == invariant && e.about == about && e.until > now);
        open.for_each(|excuse| excuse.until = now);
    }

    /// Every excuse that was granted, with how many violations it covers.
    pub fn excuses(&self, violations: &[Violation], now: Timestamp) -> Vec<String> {
        self.declared.lock().excuses.iter().map(|excuse| excuse.tell(violations, now)).collect()
    }

    /// I11: this must not appear outside of Secrets; `name` stands for it in a violation. At least 8 bytes.
    pub fn canary(&self, name: &str, secret: impl AsRef<[u8]>) -> Result<()> {
        self.declared.lock().canaries.add(name, secret.as_ref())
    }

    /// I11: a file of the operator's output, read at the end.
    pub fn search_file(&self, path: impl Into<PathBuf>) {
        self.declared.lock().files.push(path.into());
    }

    /// I11: a text of the operator, such as its metrics; `name` says where it comes from.
    pub fn search_text(&self, name: &str, text: impl Into<Vec<u8>>) {
        self.declared.lock().texts.insert(name.to_owned(), text.into());
    }

    /// I10: how often AWS was asked for a token for one identity in one region, and how often at most it should have been.
    pub fn aws_calls(&self, identity: &str, region: &str, calls: usize, bound: usize) {
        if calls > bound {
            let detail = format!("{calls} calls, at most {bound} are right");
            self.found(Violation::new(
                Invariant::I10AwsBound,
                format!("{identity} in {region}"),
                Timestamp::now(),
                detail,
            ));
        }
    }

    /// I1: the operator may ask for tokens of this ServiceAccount, `None` for that of every namespace, as long as an EcrCredential
    /// names it.
    pub fn allow_tokens_of(&self, namespace: Option<&str>, service_account: &str) {
        let account = Account { namespace: namespace.map(str::to_owned), name: service_account.to_owned() };
        self.declared.lock().service_accounts.push(account);
    }

    /// I17: the Secrets of this namespace may hold logins that AWS issued to this role or user, and to nobody else who is not
    /// declared for it as well.
    pub fn tenant(&self, namespace: &str, arn: &str) {
        self.declared.lock().tenants.entry(namespace.to_owned()).or_default().insert(arn.to_owned());
    }

    /// I3: docker configs may have this entry of others, just as it is.
    pub fn include(&self, host: &str, entry: Value) {
        self.declared.lock().included.push((host.to_owned(), entry));
    }

    /// I17: who issues the logins.
    pub fn issued_by(&self, aws: &AwsStandIn) {
        self.declared.lock().aws = Some(aws.clone());
    }

    pub(super) fn found(&self, violation: Violation) {
        self.declared.lock().found.push(violation);
    }
}

impl Declared {
    /// What AWS knows.
    pub(super) fn aws(&self) -> Aws {
        let failures = self.aws_failures.clone();
        let Some(aws) = &self.aws else { return Aws { failures, ..Aws::default() } };
        let (now, real) = (Timestamp::now(), Instant::now());
        let registry = |service: &Service, region: &str| match service {
            Service::EcrPublic => "public".to_owned(),
            _ => format!("ecr/{region}"),
        };
        let calls = aws.calls_since(Default::default());
        let calls = calls.into_iter().filter(|call| call.api == "GetAuthorizationToken").map(|call| Call {
            identity: call.role.or(call.principal).unwrap_or_default(),
            registry: registry(&call.service, call.region.as_deref().unwrap_or_default()),
            at: now - SignedDuration::try_from(real.duration_since(call.received)).unwrap_or_default(),
            // Processes come after each other at the same endpoint.
            process: None,
            failed: call.code != "OK",
        });
        let login = |token: IssuedToken| {
            // What no login can be made of is none.
            let login = String::from_utf8(BASE64_STANDARD.decode(&token.auth).ok()?).ok()?;
            let registry = registry(&token.service, &token.region);
            let IssuedToken { role, principal, issued: issued_at, accepted_until, revoked, .. } = token;
            Some((login, Holder { role, principal, registry, issued_at, accepted_until, revoked }))
        };
        Aws {
            ahead: aws.clock().now().duration_since(now),
            calls: calls.collect(),
            failures,
            issued: aws.tokens().into_iter().filter_map(login).collect(),
        }
    }
}
