//! The reference of the command line, from what the program parses.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use ecr_credential_operator::cli::Cli;

/// One table for each heading of each command.
pub(crate) fn reference() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = String::new();
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        writeln!(text, "## {}\n", command.get_name()).unwrap();
        let about =
            command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
        writeln!(text, "{}\n", line(&about)).unwrap();
        tables(command, &mut text);
    }
    text
}

fn tables(command: &Command, text: &mut String) {
    let shown: Vec<&Arg> = command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").collect();
    let mut headings: Vec<Option<&str>> = shown.iter().map(|arg| arg.get_help_heading()).collect();
    headings.sort();
    headings.dedup();
    for heading in headings {
        if let Some(heading) = heading {
            writeln!(text, "### {} of {}\n", heading, command.get_name()).unwrap();
        }
        text.push_str("| flag | variable | default | description |\n|---|---|---|---|\n");
        for arg in shown.iter().filter(|arg| arg.get_help_heading() == heading) {
            writeln!(text, "{}", row(arg)).unwrap();
        }
        text.push('\n');
    }
}

fn row(arg: &Arg) -> String {
    let takes_value = arg.get_action().takes_values();
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
    let flag = match arg.get_long() {
        Some(long) if takes_value => format!("`--{long} {name}`"),
        Some(long) => format!("`--{long}`"),
        None => format!("`[{name}]`"),
    };
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let default: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut help = line(&help);
    if takes_value && !values.is_empty() {
        write!(help, ". One of {}", values.join(", ")).unwrap();
    }
    format!("| {flag} | {variable} | {} | {help} |", default.join(", "))
}

/// A text in one line, as it can stand in a table.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
