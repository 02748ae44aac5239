//! A private registry as ECR is one: docker-registry behind a gate that asks the AWS stand-in whether a password is accepted.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{ADDRESS, PATIENCE, tools::Tools};
use crate::aws::{AwsStandIn, Service};
use crate::control_plane::Server;

/// Where docker-registry itself listens, without any check; pods cannot reach it.
const STORE: &str = "127.0.0.1:5001";

/// Where the gate answers for its ECR host; the second is where a client looks that knows no more than the name.
const PORTS: [u16; 2] = [5000, 80];

/// One request that came to the gate.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The request's method and path.
    pub request: String,
    /// The `auth` that it showed, as in a docker config.
    pub auth: Option<String>,
    /// The status it got.
    pub status: u16,
}

/// A running registry.
pub struct Registry {
    inner: Arc<Inner>,
    _serving: JoinSet<()>,
    _store: Server,
}

struct Inner {
    aws: AwsStandIn,
    region: String,
    http: reqwest::Client,
    visits: Mutex<Vec<Visit>>,
}

impl Registry {
    /// Starts an empty registry of one region on the node's address.
    pub async fn start(dir: &Path, tools: &Tools, aws: &AwsStandIn, region: &str) -> Result<Registry> {
        let config = dir.join("registry.yaml");
        let storage = json!({ "filesystem": { "rootdirectory": "/var/lib/registry" } });
        fs::write(
            &config,
            json!({ "version": 0.1, "storage": storage, "http": { "addr": STORE, "relativeurls": true } }).to_string(),
        )?;
        let mut command = Command::new(tools.program("docker-registry")?);
        command.arg("serve").arg(&config);
        let mut store = Server::start("docker-registry", command, dir)?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let deadline = Instant::now() + PATIENCE;
        while http.get(format!("http://{STORE}/v2/")).send().await.is_err() {
            store.check_alive()?;
            ensure!(Instant::now() < deadline, "docker-registry does not serve: {}", store.log_tail());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let inner = Inner { aws: aws.clone(), region: region.to_owned(), http, visits: Mutex::default() };
        let inner = Arc::new(inner);
        let app = axum::Router::new().fallback(gate).with_state(inner.clone());
        let mut serving = JoinSet::new();
        for port in PORTS {
            let listener = tokio::net::TcpListener::bind(SocketAddr::from((ADDRESS, port))).await?;
            let app = app.clone();
            // It ends with the run.
            serving.spawn(async move { drop(axum::serve(listener, app).await) });
        }
        Ok(Registry { inner, _serving: serving, _store: store })
    }

    /// `http://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("http://{ADDRESS}:{}", PORTS[0])
    }

    /// Puts an image of an archive of `hack/image.py` into the store, past the gate.
    pub async fn push(&self, archive: &Path, repository: &str, tag: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let tar = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(dir.path()).output()?;
        ensure!(tar.status.success(), "tar: {}", String::from_utf8_lossy(&tar.stderr));
        let read = |digest: &Value| -> Result<(String, Vec<u8>)> {
            let digest = digest.as_str().context("no digest")?.to_owned();
            let path = dir.path().join("blobs").join(digest.replace(':', "/"));
            Ok((digest, fs::read(path)?))
        };
        let index: Value = serde_json::from_slice(&fs::read(dir.path().join("index.json"))?)?;
        let (_, manifest) = read(&index["manifests"][0]["digest"])?;
        let parsed: Value = serde_json::from_slice(&manifest)?;
        let layers = parsed["layers"].as_array().into_iter().flatten();
        for part in layers.chain([&parsed["config"]]) {
            let (digest, data) = read(&part["digest"])?;
            self.upload(repository, &digest, data).await?;
        }
        let kind = parsed["mediaType"].as_str().context("no mediaType")?.to_owned();
        let url = format!("http://{STORE}/v2/{repository}/manifests/{tag}");
        let put = self.inner.http.put(url).header(header::CONTENT_TYPE, kind).body(manifest).send().await?;
        put.error_for_status().with_context(|| format!("push {repository}:{tag}"))?;
        Ok(())
    }

    async fn upload(&self, repository: &str, digest: &str, data: Vec<u8>) -> Result<()> {
        let http = &self.inner.http;
        let begun =
            http.post(format!("http://{STORE}/v2/{repository}/blobs/uploads/")).send().await?.error_for_status()?;
        let location = begun.headers().get(header::LOCATION).context("no Location")?.to_str()?;
        let mut location = begun.url().join(location)?;
        location.query_pairs_mut().append_pair("digest", digest);
        http.put(location).body(data).send().await?.error_for_status().context("upload a blob")?;
        Ok(())
    }

    /// All visits so far, oldest first.
    pub fn visits(&self) -> Vec<Visit> {
        self.inner.visits.lock().clone()
    }
}

async fn gate(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let auth = shown.and_then(|value| value.strip_prefix("Basic ")).map(str::to_owned);
    let what = format!("{} {}", request.method(), request.uri().path());
    let response = match inner.refusal(auth.as_deref()) {
        Some(refusal) => refusal,
        None => inner.forward(request).await,
    };
    inner.visits.lock().push(Visit { request: what, auth, status: response.status().as_u16() });
    response
}

impl Inner {
    /// ECR asks who has shown nothing or something unknown to log in, and tells who has shown an old password that it is old.
    fn refusal(&self, auth: Option<&str>) -> Option<Response> {
        let token = auth.and_then(|auth| self.aws.token_of(auth));
        match token {
            Some(token) if token.service != Service::Ecr || token.region != self.region => {
                Some(refuse(StatusCode::FORBIDDEN, "DENIED", "User is not authorized"))
            }
            Some(token) if self.aws.is_valid(&token.auth) => None,
            Some(_) => {
                let message = "Your authorization token has expired. Reauthenticate and try again.";
                Some(refuse(StatusCode::FORBIDDEN, "DENIED", message))
            }
            None => Some(refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Not Authorized")),
        }
    }

    async fn forward(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut forwarded = self.http.request(parts.method.clone(), format!("http://{STORE}{path}"));
        // A manifest is there only for those who accept its kind; the rest is for pushes.
        for name in [header::ACCEPT, header::RANGE, header::CONTENT_TYPE, header::CONTENT_RANGE] {
            for value in parts.headers.get_all(&name) {
                forwarded = forwarded.header(&name, value);
            }
        }
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(body) if body.is_empty() => {}
            Ok(body) => forwarded = forwarded.body(body),
            Err(error) => return refuse(StatusCode::BAD_REQUEST, "UNKNOWN", &error.to_string()),
        }
        match forwarded.send().await {
            Ok(answer) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = answer.status();
                *response.headers_mut() = answer.headers().clone();
                if parts.method != Method::HEAD {
                    *response.body_mut() = Body::from_stream(answer.bytes_stream());
                }
                response
            }
            Err(error) => refuse(StatusCode::BAD_GATEWAY, "UNKNOWN", &error.to_string()),
        }
    }
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if status == StatusCode::UNAUTHORIZED {
        let challenge = r#"Basic realm="https://ecr.amazonaws.com/",service="ecr.amazonaws.com""#;
        headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static(challenge));
    }
    response
}
