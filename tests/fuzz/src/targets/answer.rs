//! Answers of AWS as they come over HTTP: read by the SDK, sorted into classes, and told without anything that they say.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region as SdkRegion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use ecr_credential_operator::api::HostVariant;
use ecr_credential_operator::api::registry::Region;
use ecr_credential_operator::plan::auth::{Account, KeyMaterial, Keys};
use ecr_credential_operator::plan::references::KeysRecord;
use ecr_credential_operator::plan::scopes::SecretKey;
use ecr_credential_operator::plan::{Identity, Service, TokenKey};
use ecr_credential_operator::token::ecr::Ecr;
use ecr_credential_operator::token::identity::OperatorIdentity;
use ecr_credential_operator::token::settings::Endpoints;
use ecr_credential_operator::token::{Cluster, RawToken, StaticKeys, TokenError, TokenSource};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::{Builder, Runtime};

use super::grant;
use crate::material::{ACCOUNTS, AROUND, account, second};

/// A longer message (in bytes) could make a status too large.
const LONGEST: usize = 1200;

/// The first line says the service and the HTTP status, and perhaps an `x-amzn-errortype`; the rest is the body.
pub fn run(bytes: &[u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = line.split_whitespace();
    let service = service(words.next().unwrap_or_default());
    let status = words.next().and_then(|word| word.parse().ok()).unwrap_or(200);
    let body = bytes.get(end + 1..).unwrap_or_default();
    let key = TokenKey { identity: Identity::operator(), service };
    let result = AWS.with_borrow(|aws| {
        *aws.answer.lock() = Answer { status, kind: words.next().map(str::to_owned), body: body.to_vec() };
        aws.runtime.block_on(aws.ecr.fetch(&key))
    });
    match result {
        Ok(raw) => {
            tokens_are_as_sent(&raw, body);
            grant::judge(raw, &key, second(AROUND), Duration::from_secs(300));
        }
        Err(error) => tells_nothing(&error, body),
    }
}

fn service(word: &str) -> Service {
    let registry_ids = if word == "ids" { vec![account(ACCOUNTS[0]), account(ACCOUNTS[1])] } else { Vec::new() };
    let region = Region::parse("eu-west-1").expect("a region");
    match word {
        "public" => Service::Public,
        _ => Service::Private { region, endpoint: HostVariant::Standard, registry_ids },
    }
}

/// No token is made up. Escapes aside, it stands in the body.
fn tokens_are_as_sent(raw: &[RawToken], body: &[u8]) {
    let plain = !body.contains(&b'\\');
    for token in raw.iter().filter_map(|entry| entry.token.as_ref()) {
        let text = token.expose_secret().as_bytes();
        assert!(!plain || text.is_empty() || body.windows(text.len()).any(|window| window == text));
    }
}

/// A body may hold a password, and the message stands in the status and the log. An error's code is told, for it says what to do.
fn tells_nothing(error: &TokenError, body: &[u8]) {
    let message = error.to_string();
    assert!(message.len() <= LONGEST, "{} bytes", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
    let shown = format!("{error:?} {message}");
    let mut longest: Vec<&[u8]> = body.split(|b| !b.is_ascii_alphanumeric()).filter(|word| word.len() > 64).collect();
    longest.retain(|word| shown.as_bytes().windows(word.len()).any(|window| window == *word));
    assert!(longest.is_empty(), "{shown} quotes the answer");
}

struct Answer {
    status: u16,
    kind: Option<String>,
    body: Vec<u8>,
}

struct Aws {
    ecr: Ecr,
    /// The SDK sets timers, though none runs out.
    runtime: Runtime,
    answer: Arc<Mutex<Answer>>,
}

thread_local! {
    static AWS: RefCell<Aws> = RefCell::new(aws());
}

/// The operator's own client of AWS over a connection that answers at once.
fn aws() -> Aws {
    let answer = Arc::new(Mutex::new(Answer { status: 200, kind: None, body: Vec::new() }));
    let connector = SharedHttpConnector::new(Connection(answer.clone()));
    let keys = Credentials::new("AKIDEXAMPLE", "secret", None, None, "fuzz");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(SdkRegion::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .retry_config(RetryConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    let (fingerprint, endpoints, timeout) = (String::new(), Endpoints::default(), Duration::from_secs(10));
    let identity = OperatorIdentity { config, fingerprint, endpoints, timeout };
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    Aws { ecr: Ecr::new(identity, Arc::new(Nobody)), runtime, answer }
}

#[derive(Debug)]
struct Connection(Arc<Mutex<Answer>>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status.fmt(f)
    }
}

impl HttpConnector for Connection {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.lock();
        let status = answer.status.clamp(100, 999).try_into().expect("three digits");
        let mut response = HttpResponse::new(status, SdkBody::from(answer.body.clone()));
        if let Some(kind) = &answer.kind {
            let _ = response.headers_mut().try_insert("x-amzn-errortype", kind.clone());
        }
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// A cluster that is not asked.
struct Nobody;

impl Cluster for Nobody {
    fn web_identity<'a>(&'a self, _: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>> {
        unreachable!("the operator's own identity is used")
    }

    fn keys_record<'a>(&'a self, _: &'a SecretKey) -> BoxFuture<'a, Result<Option<KeysRecord>, TokenError>> {
        unreachable!("the operator's own identity is used")
    }

    fn static_keys<'a>(&'a self, _: &'a Keys, _: &'a KeyMaterial) -> BoxFuture<'a, Result<StaticKeys, TokenError>> {
        unreachable!("the operator's own identity is used")
    }
}
