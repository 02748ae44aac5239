//! The product's own operator in this process, over the stand-ins for the API server and AWS; here and in `source` alone its types are named.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use ecr_credential_operator::api::EcrCredential;
use ecr_credential_operator::api::registry::Region;
use ecr_credential_operator::cli::{Cli, Command, RunArgs};
use ecr_credential_operator::clock::Clock;
use ecr_credential_operator::operator::{self, Connection, Operator, OperatorError};
use ecr_credential_operator::process::fence::Fence;
use futures::FutureExt;
use kube::client::{ClientBuilder, DynBody};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower::util::BoxService;

use crate::api_server::{ApiServer, Link};
use crate::aws::Aws;
use crate::clock;
use source::Source;

mod source;

/// The flags that a simulation sets. All others have their defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    pub secret_names: Vec<String>,
    pub namespaces: Option<Vec<String>>,
    pub region: String,
    /// The operator's own AWS identity, which is no flag.
    pub identity: String,
    pub concurrency: Option<u16>,
    /// The ServiceAccounts whose identities may be used: `NAMESPACE/NAME`, or `*/NAME` for one in each target namespace.
    pub service_accounts: Vec<String>,
    /// The Secrets whose keys may be used.
    pub key_secrets: Vec<String>,
    /// The outputs that may be written: `*/NAME=FORMAT`.
    pub outputs: Vec<String>,
    /// The names of the ServiceAccounts to which Secrets may be attached.
    pub attachable: Vec<String>,
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
            service_accounts: vec![],
            key_secrets: vec![],
            outputs: vec![],
            attachable: vec![],
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
        let listed = [
            ("service-account", &self.service_accounts),
            ("credentials-secret", &self.key_secrets),
            ("output-secret", &self.outputs),
            ("attach-service-account", &self.attachable),
        ];
        line.extend(listed.into_iter().flat_map(|(flag, all)| all.iter().map(move |one| format!("--{flag}={one}"))));
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
    let clients = operator.clients(connection(link), connection(link));
    let cluster = operator::cluster(&clients.fenced);
    let identity = settings.identity.clone();
    let source = Source { aws, process: number, identity, clock, timeout, cluster, sessions: Default::default() };
    let region = operator.args.aws.aws_region.as_deref().and_then(|region| Region::parse(region).ok());
    let aws = operator::Aws { source: Arc::new(source), region, fixed_api: false };
    operator.run(clients, aws).await
}

fn connection(link: &Link) -> Connection {
    let boxed = link.clone().map_response(|answer| answer.map(|body| Box::new(body) as Box<DynBody>));
    ClientBuilder::new(BoxService::new(boxed), NAMESPACE)
}

/// A spec as the API server stores it: with every default.
pub fn is_readable(object: &serde_json::Value) -> bool {
    serde_json::from_value::<EcrCredential>(object.clone()).is_ok()
}
