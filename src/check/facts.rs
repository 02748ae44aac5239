//! The facts that a check reads before it makes its report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rights::{LeaseScope, Right};
use crate::api::EcrCredential;
use crate::controller::cluster_state::ClusterState;
use crate::plan::scopes::{SecretKey, SecretScope};
use crate::plan::{self, Identity, Limits, Plan, SpecError, TokenKey, TokenSpec, Uid};
use crate::secret::observed::Details;
use crate::token::TokenError;

/// For how many namespaces with an identity of their own AWS is called, for each `EcrCredential`.
pub(super) const MOST_TENANTS: usize = 20;

/// The facts.
pub(super) struct Facts {
    /// Whether this runs in the operator's own pod, with its permissions and its identity.
    pub(super) inside: bool,
    /// Whether the limits are assumed from the `EcrCredentials`, because those of the operator are unknown.
    pub(super) assumed: bool,
    /// The limits of the operator.
    pub(super) limits: Limits,
    /// Namespaces, all `EcrCredentials`, the metadata of their Secrets, and what identities refer to.
    pub(super) state: ClusterState,
    /// The `EcrCredentials` to check, by name.
    pub(super) credentials: Vec<EcrCredential>,
    /// `EcrCredentials` that cannot be read, and why.
    pub(super) unreadable: Vec<(String, String)>,
    /// The metadata of the Secrets as they are.
    pub(super) metadata: HashMap<SecretKey, Details>,
    /// Where Secrets may not be listed, and what the API server says.
    pub(super) refused: Vec<(SecretScope, String)>,
    /// The permissions of the operator, and whether they are granted; none outside of its pod.
    pub(super) rights: Option<Vec<(Right, bool)>>,
    /// The Leases of the installations that serve the `EcrCredentials`, as far as they are known.
    pub(super) leases: Vec<(LeaseScope, LeaseState)>,
    /// The policy that attaches Secrets to pods; none where no `EcrCredential` asks for it.
    pub(super) attach_policy: Option<AttachPolicy>,
    /// The responses of AWS; none if it was not called.
    pub(super) aws: Option<Answers>,
}

/// What is known of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// There is none.
    Absent,
    /// Nobody holds it, since this time if it is known.
    Free(Option<Timestamp>),
    /// Somebody holds it.
    Held {
        /// The pod.
        holder: String,
        /// When it expires unless it is renewed, by the clock of the holder, if that is known.
        expires_at: Option<Timestamp>,
    },
    /// It could not be read, and why.
    Hidden(String),
}

/// What is known of the MutatingAdmissionPolicy that attaches Secrets to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AttachPolicy {
    /// The cluster does not serve its kind.
    Unserved,
    /// There is none for `EcrCredentials`.
    Absent,
    /// There is one of this name, and no binding puts it in force.
    Unbound(String),
    /// It is installed and bound.
    Installed,
    /// It may not be read, and why.
    Hidden(String),
}

/// The responses of AWS. The tokens themselves are discarded.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Where the operator's own identity was found.
    pub(super) origin: Option<&'static str>,
    /// The caller's ARN for each identity.
    pub(super) callers: BTreeMap<Identity, Result<String, TokenError>>,
    /// The expiry of each token.
    pub(super) tokens: BTreeMap<TokenKey, Result<Timestamp, TokenError>>,
}

/// One `EcrCredential` with its validated spec.
pub(super) struct Subject<'a> {
    pub(super) object: &'a EcrCredential,
    pub(super) uid: Uid,
    pub(super) plan: Result<Plan, SpecError>,
}

/// One token, resolved to its key; in this namespace, if each has its own identity.
pub(super) struct Resolved<'a> {
    pub(super) spec: &'a TokenSpec,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) key: Result<TokenKey, SpecError>,
}

impl Facts {
    /// The `EcrCredentials` with their validated specs.
    pub(super) fn subjects(&self) -> impl Iterator<Item = Subject<'_>> {
        self.credentials.iter().filter_map(|object| {
            let uid = Uid(object.uid()?.into());
            Some(Subject { object, uid, plan: plan::plan(&object.spec, &self.limits) })
        })
    }

    /// The tokens to request from AWS.
    pub(super) fn wanted(&self) -> BTreeSet<TokenKey> {
        let mut wanted = BTreeSet::new();
        for subject in self.subjects().filter(|subject| !subject.object.spec.suspend) {
            let Ok(plan) = &subject.plan else { continue };
            let all = self.resolve(&subject.uid, plan);
            let (shared, each): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| r.namespace.is_none());
            wanted.extend(shared.into_iter().filter_map(|resolved| resolved.key.ok()));
            let first: BTreeSet<_> = each.iter().filter_map(|r| r.namespace.clone()).collect();
            let first: BTreeSet<_> = first.into_iter().take(MOST_TENANTS).collect();
            let asked = each.into_iter().filter(|r| r.namespace.as_ref().is_some_and(|n| first.contains(n)));
            wanted.extend(asked.filter_map(|resolved| resolved.key.ok()));
        }
        wanted
    }

    /// Resolves each token of a plan: once, or once for each target namespace.
    pub(super) fn resolve<'p>(&self, uid: &Uid, plan: &'p Plan) -> Vec<Resolved<'p>> {
        let targets = self.state.own_targets(uid);
        let resolve = |spec: &'p TokenSpec, namespace: Option<Arc<str>>| {
            let target = namespace.as_deref().map(|name| (name, self.state.index.namespace_uid(name)));
            let identity = spec.auth.resolve(target, &self.state.references);
            let key = identity.map(|identity| TokenKey { identity, service: spec.service.clone() });
            Resolved { spec, namespace, key }
        };
        let mut all = Vec::new();
        for spec in plan.token_specs() {
            if spec.auth.is_each_targets() {
                all.extend(targets.keys().map(|namespace| resolve(spec, Some(namespace.clone()))));
            } else {
                all.push(resolve(spec, None));
            }
        }
        all
    }
}
