//! The binary: parses the command line, runs the command, and maps the result to an exit code.

use std::fmt::Display;
use std::io::Write;
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
                print(&error);
            }
            ExitCode::FAILURE
        }
    }
}

/// The exit code of `check`: 1 if problems were found, 2 if the check failed, as clap exits for invalid arguments.
fn checked(result: &Result<check::CheckResult, check::CheckError>) -> ExitCode {
    match result {
        Ok(check::CheckResult::Well) => ExitCode::SUCCESS,
        Ok(check::CheckResult::Problems) => ExitCode::from(1),
        Err(error) => {
            print(error);
            ExitCode::from(2)
        }
    }
}

/// Writes an error to standard error for people, where logging may not have started.
fn print(error: &impl Display) {
    // Ignored if standard error is closed.
    let _ = writeln!(std::io::stderr(), "ecr-credential-operator: {error}");
}
