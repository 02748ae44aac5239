//! The binary: reads the command line, runs what it asks for, and turns the result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use ecr_credential_operator::cli::{Cli, Command};
use ecr_credential_operator::{crd, run};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Crd => crd::print(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("{error}");
            } else {
                run::say(&error);
            }
            ExitCode::FAILURE
        }
    }
}
