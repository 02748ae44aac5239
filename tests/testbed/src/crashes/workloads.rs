//! What users do, each with the ground that it is done on and what it comes to: create, refresh, label, unlabel, edit, delete, upgrade.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::run::Run;
use super::tenants;
use crate::bed::{Bed, logins};

pub(super) const PUBLIC: &str = "public.ecr.aws";

/// The operator's own registry, and ECR Public.
const HOSTS: [&str; 2] = ["123456789012.dkr.ecr.eu-west-1.amazonaws.com", PUBLIC];

/// What the edited spec asks for.
const EDITED: [&str; 2] =
    ["111122223333.dkr.ecr.eu-west-1.amazonaws.com", "444455556666.dkr.ecr.eu-west-1.amazonaws.com"];

/// The Secret's other name, without the prefix.
pub(super) const OTHER: &str = "other";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    Created,
    Refreshed,
    Labelled,
    Unlabelled,
    RegistriesEdited,
    Renamed,
    Retained,
    DeletedMeanwhile,
    MadeAgain,
    Inherited,
    EditedByHand,
    Upgraded,
    TenantsRefreshed,
    TenantLabelled,
}

impl Workload {
    pub const ALL: [Workload; 14] = [
        Workload::Created,
        Workload::Refreshed,
        Workload::Labelled,
        Workload::Unlabelled,
        Workload::RegistriesEdited,
        Workload::Renamed,
        Workload::Retained,
        Workload::DeletedMeanwhile,
        Workload::MadeAgain,
        Workload::Inherited,
        Workload::EditedByHand,
        Workload::Upgraded,
        Workload::TenantsRefreshed,
        Workload::TenantLabelled,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Workload::Created => "an EcrCredential is created",
            Workload::Refreshed => "a refresh is asked for",
            Workload::Labelled => "a namespace gains the label",
            Workload::Unlabelled => "a namespace loses the label",
            Workload::RegistriesEdited => "the spec asks for other registries",
            Workload::Renamed => "the spec asks for another Secret name",
            Workload::Retained => "the spec asks to retain the Secrets",
            Workload::DeletedMeanwhile => "deleted in the middle of its creation",
            Workload::MadeAgain => "deleted and made again under the same name",
            Workload::Inherited => "the older of two is deleted",
            Workload::EditedByHand => "Secrets are edited and deleted by hand",
            Workload::Upgraded => "an upgrade, and changes while no process runs",
            Workload::TenantsRefreshed => "a refresh is asked for, of namespaces with identities of their own",
            Workload::TenantLabelled => "a namespace with an identity of its own gains the label",
        }
    }

    /// A short name for the surroundings.
    pub(super) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether only the memory of the process that dies tells that a token is still the right one: the next one may fetch anew.
    pub(super) fn forgets(self) -> bool {
        matches!(self, Workload::RegistriesEdited | Workload::Inherited)
    }

    /// Whether each namespace has an identity of its own.
    pub(super) fn is_of_tenants(self) -> bool {
        matches!(self, Workload::TenantsRefreshed | Workload::TenantLabelled)
    }

    /// What is there before.
    pub(super) async fn ground(self, bed: &Bed) -> Result<()> {
        if self.is_of_tenants() {
            return tenants::ground(bed, spec(bed)).await;
        }
        for name in ["a", "b", "c"] {
            bed.namespace(name, &[(&bed.prefix, "yes")]).await?;
        }
        bed.namespace("elsewhere", &[]).await?;
        if !matches!(self, Workload::Created | Workload::DeletedMeanwhile) {
            create(bed).await?;
            synced(bed, &["a", "b", "c"], &HOSTS).await?;
        }
        if self == Workload::Inherited {
            let mut younger = spec(bed);
            younger["registries"] = json!([{ "public": {} }]);
            let name = bed.credential("younger", younger).await?;
            bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await?;
        }
        Ok(())
    }

    /// What somebody does.
    pub(super) async fn act(self, run: &mut Run<'_>) -> Result<()> {
        let bed = &run.bed;
        let edit = |spec: Value| async move { bed.change(&bed.name("x"), json!({ "spec": spec })).await };
        match self {
            Workload::Created | Workload::DeletedMeanwhile => create(bed).await,
            Workload::Refreshed | Workload::TenantsRefreshed => bed.request_refresh(&bed.name("x"), "1").await,
            Workload::Labelled | Workload::TenantLabelled => label(bed, "elsewhere", Some("yes")).await,
            Workload::Unlabelled => label(bed, "b", None).await,
            Workload::RegistriesEdited => {
                let accounts = EDITED.map(|host| &host[..12]);
                edit(json!({ "registries": [{ "private": { "region": "eu-west-1", "accountIds": accounts } }] })).await
            }
            Workload::Renamed => edit(json!({ "secret": { "name": bed.name(OTHER) } })).await,
            Workload::Retained => edit(json!({ "secret": { "deletionPolicy": "Retain" } })).await,
            Workload::MadeAgain => {
                delete(bed).await?;
                create(bed).await
            }
            Workload::Inherited => delete(bed).await,
            Workload::EditedByHand => by_hand(bed).await,
            Workload::Upgraded => {
                run.stop().await?;
                let bed = &run.bed;
                label(bed, "elsewhere", Some("yes")).await?;
                bed.secrets(&bed.name("b")).delete(&bed.secret, &DeleteParams::default()).await?;
                bed.change(&bed.name("x"), json!({ "spec": { "secret": { "labels": { "team": "x" } } } })).await?;
                run.upgrade().await
            }
        }
    }

    /// What is done once, while no process runs if one dies, else after all that was to come of the act.
    pub(super) async fn then(self, bed: &Bed) -> Result<()> {
        if self == Workload::DeletedMeanwhile { delete(bed).await } else { Ok(()) }
    }

    /// Waits for what the act comes to.
    pub(super) async fn comes_of_act(self, bed: &Bed) -> Result<()> {
        match self {
            Workload::Refreshed => {
                bed.refreshed(&bed.name("x"), "1").await?;
                synced(bed, &["a", "b", "c"], &HOSTS).await
            }
            Workload::TenantsRefreshed => {
                bed.refreshed(&bed.name("x"), "1").await?;
                tenants::synced(bed, 2).await
            }
            Workload::TenantLabelled => tenants::synced(bed, 3).await,
            Workload::Labelled | Workload::Upgraded => synced(bed, &["a", "b", "c", "elsewhere"], &HOSTS).await,
            Workload::Unlabelled => {
                gone(bed, &bed.secret, &["b"]).await?;
                synced(bed, &["a", "c"], &HOSTS).await
            }
            Workload::RegistriesEdited => synced(bed, &["a", "b", "c"], &EDITED).await,
            Workload::Renamed => {
                written(bed, &bed.name(OTHER), &["a", "b", "c"], &HOSTS).await?;
                // Those of the old name stay until their tokens expire.
                written(bed, &bed.secret, &["a", "b", "c"], &HOSTS).await?;
                counted(bed, "x", 3).await
            }
            Workload::Inherited => {
                written(bed, &bed.secret, &["a", "b", "c"], &HOSTS[1..]).await?;
                counted(bed, "younger", 3).await
            }
            Workload::Created | Workload::Retained | Workload::DeletedMeanwhile | Workload::MadeAgain => {
                synced(bed, &["a", "b", "c"], &HOSTS).await
            }
            Workload::EditedByHand => {
                let is_owned =
                    |secret: Option<&Secret>| secret.is_some_and(|secret| secret.metadata.owner_references.is_some());
                bed.secret_until(&bed.name("c"), "owned again", is_owned).await?;
                synced(bed, &["a", "b", "c"], &HOSTS).await
            }
        }
    }

    /// Waits for what all of it comes to.
    pub(super) async fn end(self, bed: &Bed) -> Result<()> {
        if self == Workload::DeletedMeanwhile {
            // The garbage collector has them.
            return gone(bed, &bed.secret, &["a", "b", "c"]).await;
        }
        self.comes_of_act(bed).await
    }
}

fn spec(bed: &Bed) -> Value {
    json!({
        "registries": [{ "private": {} }, { "public": {} }],
        "namespaces": { "selector": { "matchLabels": { (&bed.prefix): "yes" } } },
    })
}

async fn create(bed: &Bed) -> Result<()> {
    bed.credential("x", spec(bed)).await.map(drop)
}

async fn delete(bed: &Bed) -> Result<()> {
    bed.credentials().delete(&bed.name("x"), &DeleteParams::default()).await.context("delete the EcrCredential")?;
    Ok(())
}

pub(super) async fn label(bed: &Bed, namespace: &str, value: Option<&str>) -> Result<()> {
    bed.label(&bed.name(namespace), &[(&bed.prefix, value)]).await
}

async fn by_hand(bed: &Bed) -> Result<()> {
    let empty = Patch::Merge(json!({ "data": { ".dockerconfigjson": "e30=" } }));
    bed.secrets(&bed.name("a")).patch(&bed.secret, &PatchParams::default(), &empty).await?;
    bed.secrets(&bed.name("b")).delete(&bed.secret, &DeleteParams::default()).await?;
    let stripped = json!({ "metadata": { "ownerReferences": null, "annotations": null } });
    bed.secrets(&bed.name("c")).patch(&bed.secret, &PatchParams::default(), &Patch::Merge(stripped)).await?;
    Ok(())
}

/// The Secrets are in these namespaces, and the status knows.
async fn synced(bed: &Bed, namespaces: &[&str], hosts: &[&str]) -> Result<()> {
    written(bed, &bed.secret, namespaces, hosts).await?;
    counted(bed, "x", namespaces.len()).await
}

pub(super) async fn counted(bed: &Bed, name: &str, namespaces: usize) -> Result<()> {
    let name = bed.name(name);
    bed.ready(&name).await?;
    let count = |object: &kube::api::DynamicObject| {
        let counts = &object.data["status"]["namespaces"];
        [&counts["selected"], &counts["synced"]].into_iter().all(|count| *count == namespaces)
    };
    bed.credential_until(&name, &format!("{namespaces} namespaces are in sync"), count).await.map(drop)
}

pub(super) async fn written(bed: &Bed, secret: &str, namespaces: &[&str], hosts: &[&str]) -> Result<()> {
    for namespace in namespaces {
        let holds = |secret: Option<&Secret>| {
            let found = secret.and_then(|secret| logins(secret).ok());
            found.is_some_and(|found| found.keys().eq(hosts) && found.values().all(|auth| bed.aws.is_valid(auth)))
        };
        bed.named_secret_until(&bed.name(namespace), secret, "valid logins", holds).await?;
    }
    Ok(())
}

async fn gone(bed: &Bed, secret: &str, namespaces: &[&str]) -> Result<()> {
    for namespace in namespaces {
        bed.named_secret_until(&bed.name(namespace), secret, "gone", |secret| secret.is_none()).await?;
    }
    Ok(())
}
