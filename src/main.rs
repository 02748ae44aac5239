//! The binary: reads the command line, runs what it asks for, and turns the result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use ecr_credential_operator::cli::{Cli, Command};
use ecr_credential_operator::process::panics;
use ecr_credential_operator::{check, crd, run};

fn main() -> ExitCode {
    panics::tell_without_data();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => return checked(&check::run(&args)),
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

/// Scripts tell problems found from a check that could not be made; clap ends with 2 for wrong arguments, too.
fn checked(result: &Result<check::Verdict, check::CheckError>) -> ExitCode {
    match result {
        Ok(check::Verdict::Well) => ExitCode::SUCCESS,
        Ok(check::Verdict::Problems) => ExitCode::from(1),
        Err(error) => {
            check::say(error);
            ExitCode::from(2)
        }
    }
}
