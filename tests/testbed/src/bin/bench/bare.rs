//! The bare client: kube's own and nothing around it, writing what the operator writes, in three ways.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Serialize;

use crate::cluster::HANDS;

/// As many writes under way as the operator has by default.
const CONCURRENCY: usize = 32;

/// The name of its field manager.
const MANAGER: &str = "bare";

/// A way to write a Secret that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Server-side apply with uid and resourceVersion, as the operator does.
    Apply,
    /// The same beside a metadata watch of those Secrets, such as whoever wants to notice edits must hold.
    Watched,
    /// The same with the field validation that the API server does unless told otherwise.
    Validated,
    /// A JSON merge patch with the resourceVersion.
    Merge,
    /// A PUT without a resourceVersion.
    Put,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 5] = [Verb::Apply, Verb::Watched, Verb::Validated, Verb::Merge, Verb::Put];

    /// Whether it is server-side apply.
    fn applies(self) -> bool {
        !matches!(self, Verb::Merge | Verb::Put)
    }

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Apply => "apply",
            Verb::Watched => "apply beside a watch",
            Verb::Validated => "apply with field validation",
            Verb::Merge => "merge patch",
            Verb::Put => "PUT",
        }
    }

    /// Its Secrets' name: each way has its own, so that no field ever has two managers.
    pub fn secret(self) -> &'static str {
        match self {
            Verb::Apply => "bare-apply",
            Verb::Watched => "bare-watched",
            Verb::Validated => "bare-validated",
            Verb::Merge => "bare-merge",
            Verb::Put => "bare-put",
        }
    }
}

/// A Secret's uid and resourceVersion.
type Version = (String, String);

/// The client, and what it remembers of its Secrets.
pub struct Bare {
    client: Client,
    versions: BTreeMap<(Verb, usize), Version>,
}

/// What is sent, in the operator's order. Everything but the first three fields is alike in all namespaces.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    metadata: Meta<'a>,
    api_version: &'static str,
    kind: &'static str,
    #[serde(rename = "type")]
    type_: &'a Option<String>,
    data: &'a Option<BTreeMap<String, ByteString>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
    labels: &'a Option<BTreeMap<String, String>>,
    annotations: &'a Option<BTreeMap<String, String>>,
    owner_references: &'a Option<Vec<OwnerReference>>,
}

impl Bare {
    /// A client that has written nothing.
    pub fn new(client: Client) -> Bare {
        Bare { client, versions: BTreeMap::new() }
    }

    /// Makes its Secrets in `n0` to `n{count - 1}`.
    pub async fn create(&mut self, verb: Verb, count: usize, model: &Secret, admin: &Client) -> Result<()> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(verb.secret().to_owned()),
                labels: model.metadata.labels.clone(),
                annotations: model.metadata.annotations.clone(),
                owner_references: model.metadata.owner_references.clone(),
                ..ObjectMeta::default()
            },
            type_: model.type_.clone(),
            data: model.data.clone(),
            ..Secret::default()
        };
        if verb.applies() {
            self.write(verb, count, model).await?;
            return Ok(());
        }
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let made = futures::stream::iter(0..count).map(|i| {
            let api: Api<Secret> = Api::namespaced(admin.clone(), &format!("n{i}"));
            let (params, secret) = (&params, &secret);
            async move { Ok::<_, kube::Error>(((verb, i), version(api.create(params, secret).await?.metadata))) }
        });
        let made: Vec<_> = made.buffer_unordered(HANDS).try_collect().await?;
        self.versions.extend(made);
        Ok(())
    }

    /// Writes all of them once, with the labels, annotations and data of `model`; returns how long it took.
    pub async fn write(&mut self, verb: Verb, count: usize, model: &Secret) -> Result<Duration> {
        let start = Instant::now();
        let written = futures::stream::iter(0..count).map(|i| {
            let known = self.versions.get(&(verb, i));
            let this = &*self;
            async move { Ok::<_, kube::Error>(((verb, i), this.write_one(verb, &format!("n{i}"), model, known).await?)) }
        });
        let written: Vec<_> = written.buffer_unordered(CONCURRENCY).try_collect().await?;
        let took = start.elapsed();
        self.versions.extend(written);
        Ok(took)
    }

    /// Writes one Secret.
    pub async fn write_one(
        &self,
        verb: Verb,
        namespace: &str,
        model: &Secret,
        known: Option<&Version>,
    ) -> Result<Version, kube::Error> {
        let metadata = Meta {
            name: verb.secret(),
            uid: known.map(|(uid, _)| uid.as_str()),
            resource_version: known.filter(|_| verb != Verb::Put).map(|(_, version)| version.as_str()),
            labels: &model.metadata.labels,
            annotations: &model.metadata.annotations,
            owner_references: &model.metadata.owner_references,
        };
        let body = Body { metadata, api_version: "v1", kind: "Secret", type_: &model.type_, data: &model.data };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let lax = PatchParams { field_validation: Some(ValidationDirective::Ignore), ..params.clone() };
        let answer = match verb {
            Verb::Apply | Verb::Watched => {
                api.patch_metadata(verb.secret(), &lax.force(), &Patch::Apply(&body)).await?.metadata
            }
            Verb::Validated => api.patch_metadata(verb.secret(), &params.force(), &Patch::Apply(&body)).await?.metadata,
            Verb::Merge => api.patch_metadata(verb.secret(), &params, &Patch::Merge(&body)).await?.metadata,
            Verb::Put => self.put(namespace, &body).await?,
        };
        Ok(version(answer))
    }

    /// A PUT whose answer is the metadata alone, which kube has no call for.
    async fn put(&self, namespace: &str, body: &Body<'_>) -> Result<ObjectMeta, kube::Error> {
        let bytes = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let mut request = Request::new(Secret::url_path(&(), Some(namespace)))
            .replace(Verb::Put.secret(), &params, bytes)
            .map_err(kube::Error::BuildRequest)?;
        let only_metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(only_metadata));
        let answer: kube::core::PartialObjectMeta<Secret> = self.client.request(request).await?;
        Ok(answer.metadata)
    }
}

/// The operator's Secret in a namespace: what is to be written as well.
pub async fn model(client: &Client, namespace: &str, name: &str) -> Result<Secret> {
    Api::namespaced(client.clone(), namespace).get(name).await.context("read the operator's Secret")
}

fn version(metadata: ObjectMeta) -> Version {
    (metadata.uid.unwrap_or_default(), metadata.resource_version.unwrap_or_default())
}
