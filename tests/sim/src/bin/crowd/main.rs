//! Up to a million Secrets: what each step takes in the operator's own picture of the cluster, and what the whole operator takes
//! on the API server's stand-in; that neither grows with their number for each of them.

use std::process::Command;

use clap::{Parser, ValueEnum};

mod controller;
mod cost;
mod world;

#[derive(Parser)]
struct Args {
    /// How many namespaces, all of them selected by each EcrCredential.
    #[arg(long, default_value_t = 10_000)]
    namespaces: usize,
    /// How many EcrCredentials, each with a Secret of its own name.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    credentials: Vec<usize>,
    /// Measures this alone, and in this process: its memory is then its own.
    #[arg(long)]
    only: Option<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// The operator's picture of the cluster.
    ClusterState,
    /// The whole operator.
    Controller,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::ClusterState => "cluster-state",
            Self::Controller => "controller",
        }
    }

    const fn head(self) -> &'static str {
        match self {
            Self::ClusterState => world::HEAD,
            Self::Controller => controller::HEAD,
        }
    }

    fn measure(self, credentials: usize, namespaces: usize) {
        match self {
            Self::ClusterState => world::measure(credentials, namespaces),
            Self::Controller => controller::measure(credentials, namespaces),
        }
    }
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    if let Some(part) = args.only {
        args.credentials.iter().for_each(|credentials| part.measure(*credentials, args.namespaces));
        return Ok(());
    }
    for part in [Part::ClusterState, Part::Controller] {
        println!("{}", part.head());
        for credentials in &args.credentials {
            apart(part, *credentials, args.namespaces)?;
        }
        println!();
    }
    Ok(())
}

/// Measures one size in a process of its own.
fn apart(part: Part, credentials: usize, namespaces: usize) -> std::io::Result<()> {
    let sizes = [format!("--credentials={credentials}"), format!("--namespaces={namespaces}")];
    let status = Command::new(std::env::current_exe()?).args(["--only", part.name()]).args(sizes).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("{status}"))) }
}
