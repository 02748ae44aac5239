//! The product's own operator in this process, over the stand-ins for the API server and AWS; the one file that names its types.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use ecr_credential_operator::api::EcrCredential;
use ecr_credential_operator::api::registry::{AccountId, Region};
use ecr_credential_operator::cli::{Cli, Command, RunArgs};
use ecr_credential_operator::clock::{Clock, Server};
use ecr_credential_operator::operator::{self, Connection, Operator, OperatorError};
use ecr_credential_operator::plan::{Identity, Service, TokenKey};
use ecr_credential_operator::process::fence::Fence;
use ecr_credential_operator::token::{RawToken, TokenError, TokenSource};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::SignedDuration;
use kube::client::{ClientBuilder, DynBody};
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower::util::BoxService;

use crate::api_server::{ApiServer, Link};
use crate::aws::{ACCOUNT, Aws, Failure};
use crate::clock;

/// The flags that a simulation sets. All others have their defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    pub secret_names: Vec<String>,
    pub namespaces: Option<Vec<String>>,
    pub region: String,
    /// The operator's own AWS identity, which is no flag.
    pub identity: String,
    pub concurrency: Option<u16>,
    /// How long the Lease lasts; none without leader election.
    pub lease: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // One more than by default, for workloads that rename the Secret.
            secret_names: vec!["ecr-pull-secret".to_owned(), "other-secret".to_owned()],
            namespaces: None,
            // By default the AWS SDK finds it.
            region: "eu-west-1".to_owned(),
            identity: "role/operator".to_owned(),
            concurrency: None,
            // Otherwise each restart would wait until its predecessor's Lease ends. The cases of several replicas, a third of all plans
            // and half of all months have one.
            lease: None,
        }
    }
}

impl Settings {
    /// The command line of a replica, read by the operator's own parser.
    fn args(&self, number: u32) -> RunArgs {
        let mut line = vec![
            "run".to_owned(),
            format!("--replica-name={}", replica(number)),
            format!("--secret-name={}", self.secret_names.join(",")),
            format!("--aws-region={}", self.region),
        ];
        line.extend(self.namespaces.iter().map(|names| format!("--namespace={}", names.join(","))));
        line.extend(self.concurrency.map(|writes| format!("--concurrency={writes}")));
        line.push(match self.lease {
            Some(duration) => format!("--lease-duration={}s", duration.as_secs()),
            None => "--no-leader-election".to_owned(),
        });
        let program = std::iter::once("ecr-credential-operator".to_owned());
        match Cli::try_parse_from(program.chain(line)).map(|cli| cli.command) {
            Ok(Command::Run(args)) => *args,
            other => panic!("not the command line of the operator: {other:?}"),
        }
    }
}

/// A running operator.
pub struct Process {
    pub number: u32,
    link: Link,
    stop: CancellationToken,
    work: JoinHandle<Result<(), OperatorError>>,
}

/// The namespace of the operator and its Lease.
const NAMESPACE: &str = "operator";

fn replica(number: u32) -> String {
    format!("replica-{number}")
}

/// Whether the holder of the Lease is the process with this number.
pub fn is_held_by(holder: &str, number: u32) -> bool {
    holder.strip_prefix(&replica(number)).is_some_and(|rest| rest.starts_with('_'))
}

impl Process {
    /// Starts one on the runtime that is entered.
    pub fn start(number: u32, server: &ApiServer, aws: &Aws, settings: &Settings) -> Self {
        let link = Link::new(server, number);
        let stop = CancellationToken::new();
        let parts = (link.clone(), aws.clone(), settings.clone(), stop.clone());
        let work = tokio::spawn(async move {
            let (link, aws, settings, stop) = parts;
            let ended = run(number, &link, aws, &settings, stop).await;
            // What it has spawned may still run; as a process it would have ended with it.
            link.cut();
            ended
        });
        Self { number, link, stop, work }
    }

    /// SIGTERM.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// SIGKILL, as far as anybody else can tell.
    pub fn kill(&self) {
        self.link.cut();
        self.work.abort();
    }

    pub fn has_ended(&self) -> bool {
        self.work.is_finished()
    }

    /// Why a process that has ended should not have: it was neither stopped, nor has it lost the lease.
    pub fn failure(self) -> Option<String> {
        match self.work.now_or_never()? {
            Ok(Ok(()) | Err(OperatorError::LeaseLost(_))) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// As the command `run`, with stand-ins for what that gives an operator.
async fn run(
    number: u32,
    link: &Link,
    aws: Aws,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<(), OperatorError> {
    let clock = Clock::new(clock::operator_now, clock::uptime);
    let fence = Fence::with_clock(clock::system_now);
    let operator = Operator::new(settings.args(number), clock.clone(), fence, stop);
    let timeout = operator.args.aws.aws_timeout;
    let source = Source { aws, process: number, identity: settings.identity.clone(), clock, timeout };
    let region = operator.args.aws.aws_region.as_deref().and_then(|region| Region::parse(region).ok());
    let aws = operator::Aws { source: Arc::new(source), region, fixed_api: false };
    operator.run(operator.clients(connection(link), connection(link)), aws).await
}

fn connection(link: &Link) -> Connection {
    let boxed = link.clone().map_response(|answer| answer.map(|body| Box::new(body) as Box<DynBody>));
    ClientBuilder::new(BoxService::new(boxed), NAMESPACE)
}

/// The scripted AWS as the operator sees it.
struct Source {
    aws: Aws,
    process: u32,
    identity: String,
    clock: Clock,
    timeout: Duration,
}

/// A key as the script names it: `ecr/eu-west-1` or `public`.
fn name(key: &TokenKey) -> String {
    match &key.service {
        Service::Private { region, registry_ids, .. } => {
            let ids: Vec<&str> = registry_ids.iter().map(AccountId::as_str).collect();
            let ids = if ids.is_empty() { String::new() } else { format!("/{}", ids.join("+")) };
            format!("ecr/{region}{ids}")
        }
        Service::Public => "public".to_owned(),
    }
}

impl TokenSource for Source {
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        async move {
            let sent = self.clock.uptime();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (issued, failure) = self.aws.call(self.process, &name(key));
            if failure.is_none_or(Failure::is_answered) {
                self.clock.hear(Server::Aws, &clock::aws_date(), sent);
            }
            let accounts = match &key.service {
                Service::Private { registry_ids, .. } if registry_ids.is_empty() => {
                    vec![AccountId::parse(ACCOUNT).ok()]
                }
                Service::Private { registry_ids, .. } => registry_ids.iter().cloned().map(Some).collect(),
                Service::Public => vec![None],
            };
            let good = || RawToken {
                token: Some(SecretString::from(issued.text.clone())),
                expires_at: Some(issued.expires_at),
                account: None,
            };
            let mut tokens: Vec<RawToken> =
                accounts.into_iter().map(|account| RawToken { account, ..good() }).collect();
            if let Some(failure) = failure {
                spoil(failure, &mut tokens, self.timeout).await?;
            }
            Ok(tokens)
        }
        .boxed()
    }

    fn fingerprint(&self, _: &Identity) -> String {
        self.identity.clone()
    }

    fn forget(&self, _: &Identity) {}
}

async fn spoil(failure: Failure, tokens: &mut Vec<RawToken>, timeout: Duration) -> Result<(), TokenError> {
    let text = |tokens: &mut Vec<RawToken>, text: String| {
        tokens.iter_mut().for_each(|token| token.token = Some(SecretString::from(text.clone())));
    };
    let coded = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let at = |seconds: i64| {
        clock::true_now().checked_add(SignedDuration::from_secs(seconds)).expect("a time within the run")
    };
    let expiry = |tokens: &mut Vec<RawToken>, at| tokens.iter_mut().for_each(|token| token.expires_at = at);
    match failure {
        Failure::NoCredentials => return Err(TokenError::NoCredentials("no provider".to_owned())),
        Failure::Denied => return Err(TokenError::Denied("AccessDenied".to_owned().into())),
        Failure::Throttled => return Err(TokenError::Throttled("ThrottlingException".to_owned())),
        Failure::Unavailable => return Err(TokenError::Unavailable("connection refused".to_owned())),
        Failure::Unreadable => return Err(TokenError::Unreadable("html".to_owned())),
        Failure::Hangs => {
            tokio::time::sleep(timeout).await;
            return Err(TokenError::Unavailable("timed out".to_owned()));
        }
        Failure::Panics => std::panic::resume_unwind(Box::new("a dependency panics")),
        Failure::Empty => tokens.clear(),
        Failure::NoToken => tokens.iter_mut().for_each(|token| token.token = None),
        Failure::NoExpiry => expiry(tokens, None),
        // ECR Public names none anyway: there it fails as if it were away.
        Failure::NoAccount if tokens.iter().all(|token| token.account.is_none()) => {
            return Err(TokenError::Unavailable("connection refused".to_owned()));
        }
        Failure::NoAccount => tokens.iter_mut().for_each(|token| token.account = None),
        Failure::NotBase64 => text(tokens, "%%%".to_owned()),
        Failure::NotUtf8 => text(tokens, coded(&[0xff, 0xfe])),
        Failure::NoColon => text(tokens, coded(b"AWSpassword")),
        Failure::WrongUser => text(tokens, coded(b"root:password")),
        Failure::EmptyPassword => text(tokens, coded(b"AWS:")),
        Failure::Huge => text(tokens, coded(&[b"AWS:".as_slice(), &[b'x'; 1 << 20]].concat())),
        Failure::Expired => expiry(tokens, Some(at(-60))),
        Failure::NearlyExpired => expiry(tokens, Some(at(30))),
        Failure::TwoTokens => tokens.extend(tokens.first().cloned()),
        Failure::TenYears => expiry(tokens, Some(at(10 * 365 * 86_400))),
    }
    Ok(())
}

/// A spec as the API server stores it: with every default.
pub fn is_readable(object: &serde_json::Value) -> bool {
    serde_json::from_value::<EcrCredential>(object.clone()).is_ok()
}
