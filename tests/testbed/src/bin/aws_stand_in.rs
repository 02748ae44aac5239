//! The AWS stand-in as a program for demonstrations: prints its endpoints as JSON, then each call as a line of JSON, until it is told to end.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use jiff::SignedDuration;
use serde_json::json;
use testbed::aws::{AwsStandIn, Call, Mark, Role, Service, Trust};

/// A strict stand-in for STS, ECR and ECR Public.
#[derive(Parser)]
struct Args {
    /// Address to listen on; the ports are free ones.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// ARN of a role, as often as wanted.
    #[arg(long = "role-arn", required = true)]
    role_arns: Vec<String>,
    /// Issuer of the web identity tokens, their `iss`.
    #[arg(long)]
    issuer: String,
    /// File with the issuer's keys (JWKS), read at every token.
    #[arg(long, conflicts_with = "jwks_url", required_unless_present = "jwks_url")]
    jwks_file: Option<PathBuf>,
    /// URL of the issuer's keys, asked at every token.
    #[arg(long)]
    jwks_url: Option<String>,
    /// File with the CA certificate (PEM) of the URL's server.
    #[arg(long, requires = "jwks_url")]
    jwks_ca_file: Option<PathBuf>,
    /// File with a bearer token for the URL's server.
    #[arg(long, requires = "jwks_url")]
    jwks_token_file: Option<PathBuf>,
    /// Subject that the roles trust; `*` is any run of characters.
    #[arg(long, default_value = "system:serviceaccount:*")]
    subject: String,
    /// Audience that the roles expect.
    #[arg(long, default_value = "sts.amazonaws.com")]
    audience: String,
    /// Life of a registry token in seconds.
    #[arg(long, default_value_t = 43200)]
    token_life: i64,
    /// Life of a session in seconds, whatever is asked for.
    #[arg(long)]
    session_life: Option<i64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let aws = AwsStandIn::start_on(args.listen)?;
    for arn in &args.role_arns {
        aws.add_role(Role::new(arn).trusting(Trust::web_identity(&args.issuer, &args.subject, &args.audience)));
    }
    aws.set_token_life(SignedDuration::from_secs(args.token_life));
    aws.set_session_life(args.session_life.map(SignedDuration::from_secs));
    trust_issuer(&aws, &args)?;
    let env: serde_json::Map<_, _> = aws.env().into_iter().map(|(name, value)| (name, value.into())).collect();
    let endpoints = Service::ALL.map(|service| (service.signing_name().to_owned(), json!(aws.endpoint(service))));
    print_line(&json!({ "endpoints": serde_json::Map::from_iter(endpoints), "env": env }))?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = print_calls(&aws) => done,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn trust_issuer(aws: &AwsStandIn, args: &Args) -> Result<()> {
    if let Some(file) = args.jwks_file.clone() {
        aws.set_jwks_source(&args.issuer, move || {
            let file = file.clone();
            Box::pin(
                async move { std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display())) },
            )
        });
        return Ok(());
    }
    let url = args.jwks_url.clone().context("either --jwks-file or --jwks-url is needed")?;
    // reqwest is built without a TLS provider and takes the process's.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut client = reqwest::Client::builder();
    if let Some(file) = &args.jwks_ca_file {
        let pem = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        client = client.tls_certs_only([reqwest::Certificate::from_pem(&pem)?]);
    }
    let (client, token_file) = (client.build()?, args.jwks_token_file.clone());
    aws.set_jwks_source(&args.issuer, move || Box::pin(fetch(client.clone(), url.clone(), token_file.clone())));
    Ok(())
}

async fn fetch(client: reqwest::Client, url: String, token_file: Option<PathBuf>) -> Result<String> {
    let mut request = client.get(&url);
    if let Some(file) = token_file {
        let token = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        request = request.bearer_auth(token.trim());
    }
    Ok(request.send().await?.error_for_status()?.text().await?)
}

/// Prints every call as it comes.
async fn print_calls(aws: &AwsStandIn) -> Result<()> {
    let mut mark = Mark::default();
    loop {
        aws.wait_for_call_after(mark).await;
        for call in aws.calls_since(mark) {
            print_line(&line(&call))?;
            mark.0 += 1;
        }
    }
}

fn line(call: &Call) -> serde_json::Value {
    json!({
        "at": call.at.to_string(),
        "api": format!("{}:{}", call.service.signing_name(), call.api),
        "region": call.region,
        "principal": call.principal,
        "code": call.code,
    })
}

/// Standard output is this program's interface; a closed pipe ends it.
fn print_line(value: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
