//! Everything that a judgement rests on, and questions about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::history::{History, Key, Kind, Version, during};
use crate::hosts::{account_of, configured_hosts};
use crate::marks::owner;
use crate::selection::{Asked, asked};
use crate::{Request, Scope, Violation};

/// See the file's first line.
pub struct Evidence {
    pub scope: Scope,
    pub history: History,
    /// Of all operator processes.
    pub requests: Vec<Request>,
    /// Which of the requests went through which proxy.
    pub logs: Vec<Range<usize>>,
    pub aws: Aws,
    pub now: Timestamp,
    /// What was seen to be wrong before the end.
    pub found: Vec<Violation>,
    /// Those whose tokens may be asked for.
    pub service_accounts: Vec<Account>,
    /// The roles and users of each tenant's namespace.
    pub tenants: BTreeMap<String, BTreeSet<String>>,
    /// Entries of others that may stand in docker configs, by host.
    pub included: Vec<(String, Value)>,
}

/// What AWS knows.
#[derive(Clone, Debug, Default)]
pub struct Aws {
    /// What AWS's clock is ahead.
    pub ahead: SignedDuration,
    /// The calls for tokens.
    pub calls: Vec<Call>,
    /// From when until when it failed for everybody.
    pub failures: Vec<(Timestamp, Timestamp)>,
    /// Each login that was issued, as it is decoded: `AWS:<password>`. Empty where nobody keeps account.
    pub issued: HashMap<String, Holder>,
}

/// A call for a token.
#[derive(Clone, Debug)]
pub struct Call {
    pub identity: String,
    /// `ecr/eu-west-1` or `public`.
    pub registry: String,
    pub at: Timestamp,
    /// The process that called, where that is known.
    pub process: Option<u32>,
    /// Whether it brought no token that is of use.
    pub failed: bool,
}

/// Whom and what AWS issued a login for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub role: Option<String>,
    pub principal: String,
    /// `ecr/eu-west-1` or `public`, and maybe more.
    pub registry: String,
    /// By AWS's clock, as is the next.
    pub issued_at: Timestamp,
    pub accepted_until: Timestamp,
    /// Whether it was taken back since.
    pub revoked: bool,
}

impl Holder {
    /// The role, or whoever has none.
    pub fn identity(&self) -> &str {
        self.role.as_deref().unwrap_or(&self.principal)
    }
}

/// A ServiceAccount whose tokens the operator may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// `None` is any namespace.
    pub namespace: Option<String>,
    pub name: String,
}

/// One change of a Secret: its creation, a new version, or its end.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub key: &'a Key,
    pub version: &'a Version,
    /// The version before it, of the same object.
    pub previous: Option<&'a Version>,
}

impl Evidence {
    /// Every change of every Secret in scope, in order for each name.
    pub fn secret_writes(&self) -> impl Iterator<Item = Write<'_>> {
        self.history.of_kind(Kind::Secret).flat_map(|(key, versions)| {
            versions.iter().enumerate().map(move |(number, version)| {
                let previous = versions[..number].last();
                let previous = previous.filter(|previous| !previous.deleted && previous.uid() == version.uid());
                Write { key, version, previous }
            })
        })
    }

    /// Those that the operator made.
    pub fn own_writes(&self) -> impl Iterator<Item = Write<'_>> {
        self.secret_writes().filter(|write| write.version.by_operator)
    }

    /// The versions, ends included, that the operator may have acted on at `time`.
    pub fn visible<'a>(&self, versions: &'a [Version], time: Timestamp) -> impl Iterator<Item = &'a Version> + use<'a> {
        during(versions, time - self.scope.staleness, time + self.scope.lag)
    }

    /// The same from when a version was sent until it was stored.
    pub fn visible_to<'a>(&self, versions: &'a [Version], to: &Version) -> impl Iterator<Item = &'a Version> + use<'a> {
        during(versions, to.sent - self.scope.staleness, to.at.max(to.sent) + self.scope.lag)
    }

    /// Every version of the EcrCredential of a Secret that the operator may have acted on when it wrote this version.
    pub fn owners<'a>(&'a self, secret: &Version) -> Vec<&'a Version> {
        let Some(uid) = owner(&secret.object) else { return vec![] };
        let all = self.history.of_kind(Kind::Credential);
        let visible = all.flat_map(|(_, versions)| self.visible_to(versions, secret));
        visible.filter(|credential| credential.uid() == uid).collect()
    }

    /// The history of the EcrCredential that this Secret belongs to.
    pub fn owner_of(&self, secret: &Version) -> &[Version] {
        let uid = owner(&secret.object).unwrap_or_default();
        let mut credentials = self.history.of_kind(Kind::Credential).map(|(_, versions)| versions);
        credentials.find(|versions| versions.iter().any(|version| version.uid() == uid)).unwrap_or(&[])
    }

    pub fn credential_uids(&self) -> BTreeSet<&str> {
        self.history.of_kind(Kind::Credential).flat_map(|(_, versions)| versions.iter().map(Version::uid)).collect()
    }

    /// The EcrCredentials that wanted this Secret at some time in between.
    pub fn claimants(&self, key: &Key, from: Timestamp, until: Timestamp) -> impl Iterator<Item = &Version> {
        let homes: Vec<&Version> = during(self.history.namespace(&key.namespace), from, until).collect();
        let all = self.history.of_kind(Kind::Credential).flat_map(move |(_, all)| during(all, from, until));
        all.filter(move |credential| homes.iter().any(|home| wants(credential, key, home)))
    }

    /// Whether an EcrCredential that could be seen at `time` wants this Secret in this namespace.
    pub fn is_wanted(&self, key: &Key, time: Timestamp, staleness: Duration) -> bool {
        self.claimants(key, time - staleness, time + self.scope.lag).next().is_some()
    }

    /// Whether a Secret that an EcrCredential asks for was to be in this namespace all the time in between.
    pub fn selects_throughout(&self, one: &Asked<'_>, home: &[Version], from: Timestamp, until: Timestamp) -> bool {
        let mut versions = during(home, from, until).peekable();
        versions.peek().is_some_and(|first| first.at <= from || first.initial)
            && versions.all(|home| home.is_active() && one.selects(&home.object))
    }

    /// The account of the tenant in whose namespace this Secret is, if it has but one.
    pub fn tenant_account(&self, namespace: &str) -> Option<&str> {
        let accounts: BTreeSet<&str> = self.tenants.get(namespace)?.iter().filter_map(|arn| account_of(arn)).collect();
        accounts.first().copied().filter(|_| accounts.len() == 1)
    }

    /// The hosts that an EcrCredential asks for in a namespace, each with what its login is for, by the settings of each process.
    /// `None` when they depend on what is not known here.
    pub fn configured(&self, credential: &Version, namespace: &str) -> Option<Vec<BTreeMap<String, String>>> {
        let tenant = self.tenant_account(namespace);
        let of = |defaults| configured_hosts(&credential.object, defaults, tenant);
        self.scope.settings.iter().map(|settings| of(&settings.defaults)).collect()
    }

    /// Whether an EcrCredential that could be seen at `time` names this ServiceAccount.
    pub fn names_account(&self, namespace: &str, name: &str, time: Timestamp) -> bool {
        let namespaces: Vec<&Version> = self.visible(self.history.namespace(namespace), time).collect();
        let is_target = |credential: &Version| {
            namespaces.iter().any(|namespace| {
                !namespace.deleted && asked(&credential.object).iter().any(|one| one.selects(&namespace.object))
            })
        };
        self.history.of_kind(Kind::Credential).any(|(_, versions)| {
            let mut credentials = self.visible(versions, time).filter(|credential| !credential.deleted);
            credentials.any(|credential| {
                auths(credential).any(|auth| match &auth["serviceAccount"] {
                    account if account["fromTargetNamespace"] == name => is_target(credential),
                    account => account["namespace"] == namespace && account["name"] == name,
                })
            })
        })
    }

    /// Whether at `time` the EcrCredential of this Secret had no more use for it.
    pub fn is_unwanted_by_owner(&self, key: &Key, secret: &Version, time: Timestamp) -> bool {
        let until = time + self.scope.lag;
        let namespaces: Vec<&Version> = during(self.history.namespace(&key.namespace), time, until).collect();
        let mut credentials = during(self.owner_of(secret), time, until);
        credentials.any(|credential| {
            namespaces.iter().any(|namespace| !namespace.is_active() || !wants(credential, key, namespace))
        })
    }

    /// The time by AWS's clock.
    pub fn aws_time(&self, time: Timestamp) -> Timestamp {
        time + self.aws.ahead
    }

    /// Since when AWS has failed, if it failed at that time.
    pub fn aws_failed_since(&self, time: Timestamp) -> Option<Timestamp> {
        let failures = self.aws.failures.iter().filter(|(from, until)| (*from..*until).contains(&time));
        failures.map(|(from, _)| *from).min()
    }

    /// Whether nothing has changed lately, so that what is said at the end should be true.
    pub fn is_calm(&self) -> bool {
        let since = self.now - self.scope.calm;
        let all = self.history.0.values();
        self.scope.calm.is_zero() || all.filter_map(|versions| versions.last()).all(|last| last.at <= since)
    }
}

/// Every `auth` of an EcrCredential: its own, and those of its registries.
fn auths(credential: &Version) -> impl Iterator<Item = &Value> {
    let spec = &credential.object["spec"];
    let registries = spec["registries"].as_array().into_iter().flatten();
    std::iter::once(&spec["auth"]).chain(registries.map(|registry| &registry["auth"]))
}

fn wants(credential: &Version, key: &Key, namespace: &Version) -> bool {
    let is_asked =
        || asked(&credential.object).iter().any(|one| one.name == key.name && one.selects(&namespace.object));
    !credential.deleted && !namespace.deleted && is_asked()
}
