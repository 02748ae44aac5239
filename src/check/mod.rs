//! The command `check`: reads the cluster, calls AWS, reports problems for people and programs, and changes nothing.

mod ask;
mod facts;
mod gather;
mod identities;
mod judge;
mod report;
mod rights;
mod targets;
mod text;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::client::ClientBuilder;

use crate::api::EcrCredential;
use crate::api::registry::{NameError, Region};
use crate::cli::{CheckArgs, LeaseArgs, Output, kube_config};
use crate::clock::Clock;
use crate::cluster::REQUEST_TIMEOUT;
use crate::controller::cluster_state::ClusterState;
use crate::plan::Limits;
use crate::plan::references::References;
use crate::token::settings::AwsSettings;
use facts::Facts;
use gather::{Cluster, Credentials};
use rights::LeaseScope;

/// How the check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// No problem was found.
    Well,
    /// Problems were found.
    Problems,
}

/// Why nothing could be checked. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The runtime could not be started.
    #[error("the runtime could not be started: {0}")]
    Runtime(#[source] std::io::Error),
    /// No cluster was found.
    #[error("no Kubernetes cluster: run inside a cluster, or set KUBECONFIG: {0}")]
    NoCluster(String),
    /// The API server did not answer.
    #[error("the Kubernetes cluster cannot be reached: {error}: {advice}")]
    Unreachable {
        /// Why.
        error: String,
        /// What to do.
        advice: &'static str,
    },
    /// The CRD is not there.
    #[error(
        "the CRD ecrcredentials.pullsecrets.dev is not installed in this cluster: install the chart, or run `ecr-credential-operator crd | kubectl apply --server-side -f -`; if it is installed, check that KUBECONFIG names the right API server"
    )]
    NoCrd,
    /// A resource may not be listed.
    #[error("{what} cannot be listed: {message}")]
    Refused {
        /// The resource.
        what: &'static str,
        /// The API server's message.
        message: String,
    },
    /// There is no such `EcrCredential`.
    #[error("there is no EcrCredential {0:?}: see `kubectl get ecrcredentials`")]
    NoSuch(String),
    /// That `EcrCredential` is being deleted.
    #[error(
        "the EcrCredential {0:?} is being deleted and a finalizer blocks the deletion: its Secrets are no longer refreshed"
    )]
    Deleting(String),
    /// A setting is wrong.
    #[error("{0}")]
    Settings(String),
    /// The region cannot be one.
    #[error("the AWS region is wrong: {0}")]
    BadRegion(#[source] NameError),
    /// The report could not be written out.
    #[error("the report could not be written: {0}")]
    Output(#[source] std::io::Error),
}

impl CheckError {
    fn of(error: kube::Error, what: &'static str) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { what, message: status.message },
            error => Self::Unreachable { advice: advice(&error), error: chain(&error) },
        }
    }
}

/// What to do about an API server that cannot be reached.
fn advice(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let kinds = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match kinds.last() {
        Some(ErrorKind::ConnectionRefused) => {
            "nothing listens at this address: check that the API server is running, and the address and port in KUBECONFIG"
        }
        Some(ErrorKind::TimedOut) => {
            "it does not answer in time: check firewalls, NetworkPolicies and proxies on the way to the API server, and whether it is overloaded"
        }
        _ => "check the address in KUBECONFIG, DNS and the network",
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Checks, and prints the report.
///
/// # Errors
/// [`CheckError`] when nothing could be checked.
pub fn run(args: &CheckArgs) -> Result<CheckResult, CheckError> {
    // With two providers in the binary, rustls panics unless one is installed as default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CheckError::Runtime)?;
    let clock = Clock::default();
    let facts = runtime.block_on(facts(args, &clock));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let report = judge::judge(&facts?, clock.now());
    let text = match args.output {
        Output::Text => text::render(&report),
        Output::Json => serde_json::to_string_pretty(&report).map(|text| text + "\n").unwrap_or_default(),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(CheckError::Output)?;
    Ok(if report.problem_count == 0 { CheckResult::Well } else { CheckResult::Problems })
}

/// Reads the facts.
async fn facts(args: &CheckArgs, clock: &Clock) -> Result<Facts, CheckError> {
    let settings = args.aws.settings().map_err(CheckError::Settings)?;
    let mut config = kube_config().await.map_err(|error| CheckError::NoCluster(error.to_string()))?;
    config.read_timeout = Some(REQUEST_TIMEOUT);
    let namespace = config.default_namespace.clone();
    let builder = ClientBuilder::try_from(config).map_err(|error| CheckError::NoCluster(error.to_string()))?;
    let client = builder.with_layer(&clock.layer()).build();
    let cluster = Cluster { client: client.clone() };
    let all = cluster.credentials(args.credential_selector.as_deref()).await?;
    let own = if args.offline { None } else { Some(ask::own(&settings, clock.clone()).await?) };
    let limits = limits(args, &settings, own.as_ref(), &all)?;
    let lease = lease(&args.lease, namespace);
    let mut facts = cluster_facts(args, &cluster, limits, lease, all).await?;
    if let Some(own) = own {
        facts.aws = Some(ask::ask(own, client, facts.wanted()).await);
    }
    Ok(facts)
}

/// The Lease on which the operator needs permissions, as in `run`.
fn lease(args: &LeaseArgs, own_namespace: String) -> Option<LeaseScope> {
    let namespace = args.lease_namespace.clone().unwrap_or(own_namespace).into();
    (!args.no_leader_election).then(|| LeaseScope { name: args.lease_name.as_str().into(), namespace })
}

/// The Leases whose holders serve these `EcrCredentials`. Elsewhere than in the operator's pod, the statuses tell which they are.
fn leases_of(args: &CheckArgs, own: Option<LeaseScope>, credentials: &[EcrCredential]) -> BTreeSet<LeaseScope> {
    let told = || gather::leases_as_told(credentials);
    let is_known = args.is_in_operator_pod() || args.lease.lease_namespace.is_some();
    own.map(|own| if is_known { BTreeSet::from([own]) } else { told() }).unwrap_or_default()
}

async fn cluster_facts(
    args: &CheckArgs,
    cluster: &Cluster,
    limits: Limits,
    lease: Option<LeaseScope>,
    all: Credentials,
) -> Result<Facts, CheckError> {
    let inside = args.is_in_operator_pod();
    let mut state = ClusterState::new(limits.index(), References::new(limits.identities.clone()));
    gather::set_credentials(&mut state, &all, &limits);
    cluster.namespaces(&mut state).await?;
    let scopes = gather::scopes(args.scope.all_secret_names, &limits, &all.0);
    let (metadata, refused) = cluster.secrets(&scopes, &mut state).await?;
    if let Some((_, message)) = refused.first().filter(|_| !inside) {
        return Err(CheckError::Refused { what: "Secrets", message: message.clone() });
    }
    cluster.references(&limits.identities, &mut state).await?;
    let mut needed = rights::needed(&scopes, &limits, lease.as_ref());
    if args.scope.namespace_events {
        needed.extend(rights::for_namespace_events(&limits));
    }
    let rights = if inside { Some(cluster.rights(needed).await?) } else { None };
    let (credentials, unreadable) = chosen(args.name.as_deref(), all)?;
    let read = async |scope: LeaseScope| {
        let state = cluster.lease(&scope).await;
        (scope, state)
    };
    let leases = join_all(leases_of(args, lease, &credentials).into_iter().map(read)).await;
    let attach_policy = cluster.attach_policy(&credentials).await?;
    let assumed = is_assumed(args);
    Ok(Facts {
        inside,
        assumed,
        limits,
        state,
        credentials,
        unreadable,
        metadata,
        refused,
        rights,
        leases,
        attach_policy,
        aws: None,
    })
}

/// `EcrCredentials`, and the names of those that cannot be read, with why.
type Chosen = (Vec<EcrCredential>, Vec<(String, String)>);

/// The `EcrCredentials` that were asked for.
fn chosen(name: Option<&str>, (mut good, mut bad): Credentials) -> Result<Chosen, CheckError> {
    let is_deleted = |metadata: &ObjectMeta| metadata.deletion_timestamp.is_some();
    let all = good.iter().map(|object| &object.metadata).chain(bad.iter().map(|object| &object.metadata));
    let deleted: Vec<String> = all.filter(|metadata| is_deleted(metadata)).filter_map(|m| m.name.clone()).collect();
    good.retain(|object| !is_deleted(&object.metadata));
    bad.retain(|object| !is_deleted(&object.metadata));
    let mut bad: Vec<(String, String)> =
        bad.into_iter().map(|object| (object.metadata.name.unwrap_or_default(), object.error)).collect();
    if let Some(name) = name {
        good.retain(|object| object.name_any() == name);
        bad.retain(|(other, _)| other == name);
        if good.is_empty() && bad.is_empty() {
            let is_deleted = deleted.iter().any(|other| other == name);
            return Err(if is_deleted { CheckError::Deleting } else { CheckError::NoSuch }(name.to_owned()));
        }
    }
    Ok((good, bad))
}

/// Whether no flag limits what the operator may do.
fn is_assumed(args: &CheckArgs) -> bool {
    !args.is_in_operator_pod() && args.scope.is_default()
}

fn limits(
    args: &CheckArgs,
    settings: &AwsSettings,
    own: Option<&ask::Own>,
    all: &Credentials,
) -> Result<Limits, CheckError> {
    // Outside the operator's pod, the region of this process is not that of the operator.
    let told = if args.is_in_operator_pod() { None } else { gather::region_as_told(&all.0) };
    let here = || match own {
        Some(own) => own.identity.config.region().map(|region| region.as_ref().to_owned()),
        None => settings.region.clone(),
    };
    let region = match told {
        Some(region) => Some(region),
        None => here().map(|text| Region::parse(&text)).transpose().map_err(CheckError::BadRegion)?,
    };
    let fixed_api = own.map_or(&settings.endpoints, |own| &own.identity.endpoints).ecr.is_some();
    let told = Limits { region, fixed_api, ..args.scope.limits() };
    if !is_assumed(args) {
        return Ok(told);
    }
    Ok(Limits {
        secret_names: None,
        outputs: None,
        includes: gather::includes_as_asked(&all.0),
        identities: gather::identities_as_asked(&all.0),
        ..told
    })
}

#[cfg(test)]
mod tests;
