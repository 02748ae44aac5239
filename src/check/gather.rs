//! Reads from the cluster: one list of each kind, of metadata only where that is enough.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::{AttachPolicy, LeaseState};
use super::rights::{LeaseScope, Right};
use super::{CheckError, chain};
use crate::api::observed::{ObservedCredential, Unreadable};
use crate::api::registry::Region;
use crate::api::{AttachPods, EcrCredential, GROUP, Output};
use crate::cli::LeaseArgs;
use crate::cluster::ApiServer;
use crate::controller::cluster_state::ClusterState;
use crate::controller::references::account_record;
use crate::controller::watches::{api_in, credential_ref, references as asked, unreadable};
use crate::lenient::Observed;
use crate::plan::namespaces::NamespaceUid;
use crate::plan::references::AllowedIdentities;
use crate::plan::schedule::later;
use crate::plan::scopes::{AccountScope, OutputScope, Reference, SecretKey, SecretScope};
use crate::plan::{Limits, Uid, includes};
use crate::process::lease;
use crate::secret::observed::{Details, SecretDetails};
use crate::secret::ownership::SecretRecord;
use crate::token::Cluster as _;

/// The API group of admission policies.
const ADMISSION: &str = "admissionregistration.k8s.io";

/// How many objects are listed in one request.
const PAGE: u32 = 500;

/// How many Leases are read.
const MOST_LEASES: usize = 10;

/// How many permissions are reviewed at a time.
const QUESTIONS: usize = 8;

/// Reads from one cluster.
pub(super) struct Cluster {
    pub(super) client: Client,
}

/// All `EcrCredentials`: those that can be read, and the others.
pub(super) type Credentials = (Vec<EcrCredential>, Vec<Unreadable>);

/// The metadata of Secrets by key, and the scopes that may not be listed.
pub(super) type Secrets = (HashMap<SecretKey, Details>, Vec<(SecretScope, String)>);

impl Cluster {
    /// The `EcrCredentials` with these labels, by name.
    pub(super) async fn credentials(&self, selector: Option<&str>) -> Result<Credentials, CheckError> {
        let api: Api<ObservedCredential> = Api::all(self.client.clone());
        let params = selector.map_or_else(ListParams::default, |labels| ListParams::default().labels(labels));
        let listed = pages(&api, params).await;
        let listed = listed.map_err(|error| match error {
            // For a group that is not served, the answer is a plain text, and so has no reason.
            kube::Error::Api(status) if status.code == 404 => CheckError::NoCrd,
            error => CheckError::of(error, "EcrCredentials"),
        })?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for object in listed {
            match object.content.0 {
                Ok(object) => good.push(*object),
                Err(unreadable) => bad.push(*unreadable),
            }
        }
        good.sort_by_key(ResourceExt::name_any);
        Ok((good, bad))
    }

    /// The state of a Lease.
    pub(super) async fn lease(&self, LeaseScope { namespace, name }: &LeaseScope) -> LeaseState {
        match lease::read(self.client.clone(), namespace, name).await {
            Ok(None) => LeaseState::Absent,
            Ok(Some(spec)) => lease_state(spec),
            Err(kube::Error::Api(status)) => LeaseState::Hidden(status.message),
            Err(error) => LeaseState::Hidden(chain(&error)),
        }
    }

    /// Reads all namespaces into the state.
    pub(super) async fn namespaces(&self, state: &mut ClusterState) -> Result<(), CheckError> {
        let api: Api<Observed<Namespace>> = Api::all(self.client.clone());
        let listed = pages(&api, ListParams::default()).await;
        for object in listed.map_err(|error| CheckError::of(error, "namespaces"))? {
            let terminating = object.meta().deletion_timestamp.is_some();
            let namespace_uid = NamespaceUid::of_namespace(object.meta());
            state.index.set_namespace(&object.name_any(), namespace_uid, object.labels(), terminating);
        }
        Ok(())
    }

    /// Reads the Secrets of all scopes into the state. A scope that may not be listed does not hide the others.
    pub(super) async fn secrets(
        &self,
        scopes: &[SecretScope],
        state: &mut ClusterState,
    ) -> Result<Secrets, CheckError> {
        let (mut metadata, mut refused) = (HashMap::new(), Vec::new());
        for scope in scopes {
            match self.secrets_of(scope).await {
                Err(kube::Error::Api(status)) if status.is_forbidden() => refused.push((scope.clone(), status.message)),
                Err(error) => return Err(CheckError::of(error, "Secrets")),
                Ok(found) => {
                    for object in found {
                        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
                        if let Some(record) = SecretRecord::of(&object.content.metadata()) {
                            state.set_secret(&name, &namespace, Arc::new(record));
                            metadata.insert(SecretKey::new(name, namespace), object.content);
                        }
                    }
                }
            }
        }
        Ok((metadata, refused))
    }

    async fn secrets_of(&self, scope: &SecretScope) -> Result<Vec<SecretDetails>, kube::Error> {
        let api: Api<SecretDetails> = api_in(self.client.clone(), scope.namespace.as_deref());
        let params = scope.name.as_ref().map_or_else(ListParams::default, |name| named(name));
        pages(&api, params).await
    }

    /// Reads the objects that identities may refer to into the state.
    pub(super) async fn references(
        &self,
        allowed: &AllowedIdentities,
        state: &mut ClusterState,
    ) -> Result<(), CheckError> {
        for scope in &allowed.accounts {
            self.accounts(scope, state).await?;
        }
        for scope in &allowed.keys {
            self.keys(scope, state).await;
        }
        Ok(())
    }

    async fn accounts(&self, scope: &AccountScope, state: &mut ClusterState) -> Result<(), CheckError> {
        let api: Api<Observed<ServiceAccount>> = api_in(self.client.clone(), scope.namespace.as_deref());
        match pages(&api, named(&scope.name)).await {
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                state.references.set_accounts_refused(scope, true);
            }
            Err(error) => return Err(CheckError::of(error, "ServiceAccounts")),
            Ok(found) => {
                for object in found {
                    let namespace = object.namespace().unwrap_or_default();
                    state.references.set_account(&namespace, &object.name_any(), account_record(object.meta()));
                }
            }
        }
        Ok(())
    }

    async fn keys(&self, scope: &SecretKey, state: &mut ClusterState) {
        match ApiServer::new(self.client.clone()).keys_record(scope).await {
            Ok(record) => state.references.set_keys(scope, record),
            Err(error) => state.references.set_keys_unread(scope, error.into()),
        };
    }

    /// The policy that attaches Secrets to pods, if any of these asks for it.
    pub(super) async fn attach_policy(
        &self,
        credentials: &[EcrCredential],
    ) -> Result<Option<AttachPolicy>, CheckError> {
        let asks = |object: &EcrCredential| {
            object.spec.attach_to.as_ref().is_some_and(|attach_to| attach_to.pods == AttachPods::MatchingImages)
        };
        if !credentials.iter().any(asks) {
            return Ok(None);
        }
        let what = "MutatingAdmissionPolicies";
        let served = self.client.list_api_group_resources(&format!("{ADMISSION}/v1")).await;
        let served = served.map_err(|error| CheckError::of(error, what))?;
        if !served.resources.iter().any(|resource| resource.name == "mutatingadmissionpolicies") {
            return Ok(Some(AttachPolicy::Unserved));
        }
        let listed = futures::try_join!(
            self.admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
            self.admission("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings"),
        );
        match listed {
            Ok((policies, bindings)) => Ok(Some(attach_policy(&policies, &bindings))),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Some(AttachPolicy::Hidden(status.message))),
            Err(error) => Err(CheckError::of(error, what)),
        }
    }

    async fn admission(&self, kind: &str, plural: &str) -> Result<Vec<DynamicObject>, kube::Error> {
        let resource = ApiResource {
            group: ADMISSION.to_owned(),
            version: "v1".to_owned(),
            api_version: format!("{ADMISSION}/v1"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        pages(&api, ListParams::default()).await
    }

    /// Which of the permissions of the operator this process has.
    pub(super) async fn rights(&self, needed: Vec<Right>) -> Result<Vec<(Right, bool)>, CheckError> {
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let ask = async |right: Right| {
            let answer = api.create(&PostParams::default(), &question(&right)).await;
            let answer = answer.map_err(|error| CheckError::of(error, "the permissions of this process"))?;
            Ok((right, answer.status.is_some_and(|status| status.allowed)))
        };
        stream::iter(needed).map(ask).buffered(QUESTIONS).try_collect().await
    }
}

/// Whether one of these policies has `EcrCredentials` as parameters, and one of these bindings binds it.
pub(super) fn attach_policy(policies: &[DynamicObject], bindings: &[DynamicObject]) -> AttachPolicy {
    let text =
        |object: &DynamicObject, path: &str| object.data.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let is_ours = |policy: &&DynamicObject| {
        let version = text(policy, "/spec/paramKind/apiVersion").unwrap_or_default();
        version.split('/').next() == Some(GROUP)
            && text(policy, "/spec/paramKind/kind").as_deref() == Some("EcrCredential")
    };
    let names: Vec<String> = policies.iter().filter(is_ours).map(ResourceExt::name_any).collect();
    let is_bound = |name: &String| bindings.iter().any(|one| text(one, "/spec/policyName").as_ref() == Some(name));
    match names.into_iter().reduce(|found, other| if is_bound(&found) { found } else { other }) {
        None => AttachPolicy::Absent,
        Some(name) if is_bound(&name) => AttachPolicy::Installed,
        Some(name) => AttachPolicy::Unbound(name),
    }
}

/// All pages of a list.
async fn pages<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, kube::Error> {
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

fn named(name: &str) -> ListParams {
    ListParams::default().fields(&format!("metadata.name={name}"))
}

fn question(right: &Right) -> SelfSubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(right.verb.to_owned()),
        namespace: right.namespace.as_deref().map(str::to_owned),
        name: right.name.as_deref().map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    SelfSubjectAccessReview { spec, ..Default::default() }
}

/// Reads all `EcrCredentials` into the state, including those that cannot be parsed.
pub(super) fn set_credentials(state: &mut ClusterState, (good, bad): &Credentials, limits: &Limits) {
    let good = good.iter().map(|object| (object.meta(), credential_ref(object, limits)));
    let bad = bad.iter().map(|object| (&object.metadata, unreadable(object)));
    for (metadata, credential) in good.chain(bad).filter(|(metadata, _)| metadata.deletion_timestamp.is_none()) {
        if let Some(uid) = metadata.uid.as_deref() {
            state.set_credential(&Uid(uid.into()), credential);
        }
    }
}

/// The scopes of Secrets that cover everything the operator may write.
pub(super) fn scopes(any_name: bool, limits: &Limits, credentials: &[EcrCredential]) -> Vec<SecretScope> {
    let asked = || credentials.iter().map(|object| object.spec.secret.name.as_str().into()).collect();
    let limits = Limits {
        secret_names: limits.secret_names.clone().or_else(|| (!any_name).then(asked)),
        outputs: Some(limits.outputs.clone().unwrap_or_else(|| outputs_as_asked(credentials))),
        ..limits.clone()
    };
    limits.secret_scopes()
}

/// The outputs of all `EcrCredentials`.
fn outputs_as_asked(credentials: &[EcrCredential]) -> BTreeSet<OutputScope> {
    let outputs = credentials.iter().flat_map(|object| &object.spec.outputs);
    let scope =
        |output: &Output| OutputScope { namespace: None, name: output.name.as_str().into(), format: output.format };
    outputs.map(scope).collect()
}

/// The includes of all `EcrCredentials`.
pub(super) fn includes_as_asked(credentials: &[EcrCredential]) -> BTreeSet<SecretKey> {
    credentials.iter().flat_map(|object| includes(&object.spec)).collect()
}

fn lease_state(spec: LeaseSpec) -> LeaseState {
    let renewed = spec.renew_time.map(|time| time.0);
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
    match spec.holder_identity.filter(|holder| !holder.is_empty()) {
        None => LeaseState::Free(renewed),
        Some(holder) => {
            LeaseState::Held { holder, expires_at: renewed.map(|at| later(at, Duration::from_secs(seconds))) }
        }
    }
}

/// The Leases of the installations that serve these, by their statuses. Whoever may write a status may write any name there.
pub(super) fn leases_as_told(credentials: &[EcrCredential]) -> BTreeSet<LeaseScope> {
    let told = credentials.iter().filter_map(|object| object.status.as_ref()?.served_by.as_deref());
    let leases = told.filter_map(LeaseArgs::of_installation);
    let scopes = leases.map(|(namespace, name)| LeaseScope { namespace: namespace.into(), name: name.into() });
    scopes.collect::<BTreeSet<_>>().into_iter().take(MOST_LEASES).collect()
}

/// The operator's own region by its statuses: that of a registry whose spec names none.
pub(super) fn region_as_told(credentials: &[EcrCredential]) -> Option<Region> {
    credentials.iter().find_map(|object| {
        let status =
            object.status.as_ref().filter(|status| status.observed_generation == object.metadata.generation)?;
        let mut entries = object.spec.registries.iter().zip(&status.registries);
        entries.find_map(|(entry, told)| {
            let nameless = entry.private.as_ref().is_some_and(|private| private.region.is_none());
            told.region.as_deref().filter(|_| nameless).and_then(|region| Region::parse(region).ok())
        })
    })
}

/// The identities of all `EcrCredentials`.
pub(super) fn identities_as_asked(credentials: &[EcrCredential]) -> AllowedIdentities {
    let mut allowed = AllowedIdentities::default();
    for reference in credentials.iter().flat_map(|object| asked(&object.spec)) {
        match reference {
            Reference::Account(scope) => allowed.accounts.insert(scope),
            Reference::Keys(scope) => allowed.keys.insert(scope),
            Reference::Include(_) => false,
        };
    }
    allowed
}
