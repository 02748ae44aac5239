//! An admission webhook of a test: an HTTPS server on loopback that allows, refuses, mutates, hangs or is slow.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// How long a new webhook may take until the API server calls it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the webhook answers to one admission request.
#[derive(Clone)]
pub enum Verdict {
    /// The request is admitted.
    Allow,
    /// The request is refused with this Status: any code, reason, message and details. `retryAfterSeconds` becomes the header
    /// `Retry-After`.
    Refuse(Value),
    /// The request is admitted with a JSON patch, which is made from the object in the request.
    Mutate(Arc<dyn Fn(&Value) -> Value + Send + Sync>),
    /// No answer ever comes.
    Hang,
    /// The request is admitted after this time.
    Slow(Duration),
    /// The webhook itself fails with this HTTP status code.
    Fail(u16),
}

impl Verdict {
    /// A refusal.
    pub fn refuse(code: u16, message: &str) -> Verdict {
        Verdict::Refuse(json!({ "code": code, "message": message }))
    }
}

/// One call of the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: String,
    /// The plural of the resource, such as `secrets`.
    pub resource: String,
    /// The subresource, such as `status`; empty for the object itself.
    pub subresource: String,
    /// The namespace; empty for what is in none.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The user behind the request.
    pub user: String,
    /// Whether nothing is to be stored.
    pub dry_run: bool,
}

type Decide = Arc<dyn Fn(&Value) -> Verdict + Send + Sync>;

struct State {
    decide: Mutex<Decide>,
    calls: watch::Sender<Vec<Call>>,
}

/// A running webhook server. It runs on a thread of its own and ends when it is dropped.
pub struct Webhook {
    address: SocketAddr,
    certificate_pem: String,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Which of the two webhook kinds is registered. The API server calls mutating webhooks one after the other and validating ones
/// in parallel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may answer with [`Verdict::Mutate`].
    Mutating,
    /// It sees the object as it would be stored.
    Validating,
}

/// Which requests a webhook is called for, and what its failure means.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The name of the configuration object.
    pub name: String,
    /// Mutating or validating.
    pub kind: Kind,
    /// The API group, empty for the core.
    pub group: String,
    /// The resources, such as `secrets` or `ecrcredentials/status`.
    pub resources: Vec<String>,
    /// `CREATE`, `UPDATE`, `DELETE`.
    pub operations: Vec<String>,
    /// The namespaces, as the label `kubernetes.io/metadata.name` names them; empty for all.
    pub namespaces: Vec<String>,
    /// The labels that an object must have.
    pub object_labels: Vec<(String, String)>,
    /// The seconds that the API server waits for an answer: 1 to 30.
    pub timeout_seconds: u32,
    /// Whether a request is admitted when no answer comes (`Ignore`) or refused (`Fail`).
    pub fail_open: bool,
    /// How many webhooks of this kind there are, called at the same URL.
    pub count: usize,
}

impl Registration {
    /// Creations and updates of the Secrets in some namespaces, with the API server's default timeout of 10 s, and failing open.
    pub fn secrets(name: &str, kind: Kind, namespaces: &[&str]) -> Registration {
        Registration {
            name: name.to_owned(),
            kind,
            group: String::new(),
            resources: vec!["secrets".to_owned()],
            operations: vec!["CREATE".to_owned(), "UPDATE".to_owned()],
            namespaces: namespaces.iter().map(|namespace| (*namespace).to_owned()).collect(),
            object_labels: Vec::new(),
            timeout_seconds: 10,
            fail_open: true,
            count: 1,
        }
    }

    fn body(&self, webhook: &Webhook) -> Value {
        let namespaces = json!({ "matchExpressions": [{
            "key": "kubernetes.io/metadata.name", "operator": "In", "values": self.namespaces,
        }] });
        let labels: serde_json::Map<String, Value> =
            self.object_labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let one = |number: usize| {
            json!({
                "name": format!("n{number}.{}.example.com", self.name),
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": self.timeout_seconds,
                "failurePolicy": if self.fail_open { "Ignore" } else { "Fail" },
                "clientConfig": {
                    "url": webhook.url(),
                    "caBundle": STANDARD.encode(&webhook.certificate_pem),
                },
                "namespaceSelector": if self.namespaces.is_empty() { json!({}) } else { namespaces.clone() },
                "objectSelector": { "matchLabels": labels },
                "rules": [{
                    "apiGroups": [self.group], "apiVersions": ["*"],
                    "resources": self.resources, "operations": self.operations,
                }],
            })
        };
        json!({ "metadata": { "name": self.name }, "webhooks": (0..self.count).map(one).collect::<Vec<_>>() })
    }
}

/// A webhook that the API server calls, until it is removed.
#[must_use]
pub struct Registered {
    client: Client,
    kind: Kind,
    name: String,
}

impl Registered {
    /// Takes the configuration away again.
    pub async fn remove(self) -> Result<()> {
        let params = DeleteParams::default();
        match self.kind {
            Kind::Mutating => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(self.client);
                drop(api.delete(&self.name, &params).await?);
            }
            Kind::Validating => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client);
                drop(api.delete(&self.name, &params).await?);
            }
        }
        Ok(())
    }
}

impl Webhook {
    /// A server on a loopback port with a certificate of its own. It allows everything until it is told otherwise.
    pub fn start() -> Result<Webhook> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([Ipv4Addr::LOCALHOST.to_string()])?.self_signed(&key)?;
        let tls = tls(&certificate, &key)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("webhook")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("open a port for the webhook")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state =
            Arc::new(State { decide: Mutex::new(Arc::new(|_| Verdict::Allow)), calls: watch::channel(Vec::new()).0 });
        let listener = {
            let _on_its_runtime = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), state.clone()));
        Ok(Webhook { address, certificate_pem: certificate.pem(), state, runtime: Some(runtime) })
    }

    /// Where the API server calls it.
    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// Gives every request this answer from now on. A dry run is allowed at once all the same: it shows that the webhook is in
    /// force.
    pub fn answer(&self, verdict: Verdict) {
        self.decide(move |_| verdict.clone());
    }

    /// Decides from the `request` of the AdmissionReview from now on.
    pub fn decide(&self, decide: impl Fn(&Value) -> Verdict + Send + Sync + 'static) {
        *self.state.decide.lock() = Arc::new(decide);
    }

    /// Every call so far, dry runs apart.
    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.borrow().iter().filter(|call| !call.dry_run).cloned().collect()
    }

    /// Waits until so many calls have come, dry runs apart.
    pub async fn called(&self, count: usize) -> Result<()> {
        self.wait(|calls| calls.iter().filter(|call| !call.dry_run).count() >= count).await
    }

    /// Registers the webhook. Where it concerns the Secrets of a namespace, this waits until it is in force; elsewhere use
    /// [`until_in_force`](Self::until_in_force).
    pub async fn register(&self, client: &Client, registration: &Registration) -> Result<Registered> {
        let body = registration.body(self);
        let params = PostParams::default();
        match registration.kind {
            Kind::Mutating => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
                drop(api.create(&params, &serde_json::from_value(body)?).await?);
            }
            Kind::Validating => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
                drop(api.create(&params, &serde_json::from_value(body)?).await?);
            }
        }
        let created_secrets =
            registration.resources == ["secrets"] && registration.operations.contains(&"CREATE".into());
        if let Some(namespace) = registration.namespaces.first().filter(|_| created_secrets) {
            let labels: serde_json::Map<String, Value> =
                registration.object_labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
            let probe: Secret =
                serde_json::from_value(json!({ "metadata": { "name": "webhook-probe", "labels": labels } }))?;
            let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
            let dry_run = PostParams { dry_run: true, ..PostParams::default() };
            self.until_in_force(async || drop(secrets.create(&dry_run, &probe).await)).await?;
        }
        Ok(Registered { client: client.clone(), kind: registration.kind, name: registration.name.clone() })
    }

    /// Repeats a dry run that concerns the webhook until the API server calls it for one.
    pub async fn until_in_force(&self, dry_run: impl AsyncFn()) -> Result<()> {
        let before = self.state.calls.borrow().len();
        let called = || self.state.calls.borrow().iter().skip(before).any(|call| call.dry_run);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !called() {
            if tokio::time::Instant::now() > deadline {
                bail!("the API server does not call the webhook");
            }
            dry_run().await;
        }
        Ok(())
    }

    async fn wait(&self, reached: impl Fn(&[Call]) -> bool) -> Result<()> {
        let mut calls = self.state.calls.subscribe();
        let waited = tokio::time::timeout(PATIENCE, calls.wait_for(|calls| reached(calls))).await;
        waited.context("the webhook was not called")??;
        Ok(())
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test drops this within its own runtime, where waiting for another one is not allowed.
            runtime.shutdown_background();
        }
    }
}

fn tls(certificate: &rcgen::Certificate, key: &KeyPair) -> Result<ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, tls.clone(), state.clone()));
    }
}

/// An error is a connection that the API server has given up.
async fn serve(stream: TcpStream, tls: TlsAcceptor, state: Arc<State>) -> Result<()> {
    let stream = tls.accept(stream).await?;
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(respond(&state, request).await) }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn respond(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let request = &review["request"];
    let call = call(request);
    let verdict = if call.dry_run {
        Verdict::Allow
    } else {
        let decide = state.decide.lock().clone();
        decide(request)
    };
    state.calls.send_modify(|calls| calls.push(call));
    match &verdict {
        Verdict::Hang => std::future::pending().await,
        Verdict::Slow(time) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let (status, body) = match &verdict {
        Verdict::Fail(code) => (*code, b"the webhook failed".to_vec()),
        verdict => (200, review_of(request, verdict).to_string().into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The AdmissionReview with the answer.
fn review_of(request: &Value, verdict: &Verdict) -> Value {
    let mut response = json!({ "uid": request["uid"], "allowed": true });
    match verdict {
        Verdict::Refuse(status) => {
            response["allowed"] = json!(false);
            response["status"] = status.clone();
        }
        Verdict::Mutate(patch) => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch(&request["object"]).to_string()));
        }
        _ => {}
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

fn call(request: &Value) -> Call {
    let text = |path: &str| request.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    Call {
        operation: text("/operation"),
        resource: text("/resource/resource"),
        subresource: text("/subResource"),
        namespace: text("/namespace"),
        name: text("/name"),
        user: text("/userInfo/username"),
        dry_run: request["dryRun"].as_bool().unwrap_or_default(),
    }
}
