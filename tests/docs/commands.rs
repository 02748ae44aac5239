//! The commands of the documentation: a shell reads them on Linux and macOS, and the files, values, flags and targets that they
//! name exist.

use std::io::Write;
use std::process::{Command, Stdio};

use clap::Parser;
use ecr_credential_operator::cli::Cli;
use serde_json::Value;

use super::helm::{read, root};
use super::pages::pages;

/// What only the tools of Linux understand, and what all do.
const LINUX_ONLY: [(&str, &str); 9] = [
    ("date -I", "date -u +%Y-%m-%dT%H:%M:%SZ"),
    ("date --", "date -u +%Y-%m-%dT%H:%M:%SZ"),
    ("sed -i", "sed and a new file"),
    ("base64 -w", "a template's base64decode"),
    ("base64 --wrap", "a template's base64decode"),
    ("base64 -d", "a template's base64decode"),
    ("readlink -f", "an absolute path"),
    ("grep -P", "grep -E"),
    ("xargs -r", "a loop"),
];

/// Where paths begin.
const FOLDERS: [&str; 5] = ["charts/", "crds/", "deploy/", "docs/", "tests/"];

/// The commands of one block. Where lines begin with a prompt, the others are output.
struct Script {
    place: String,
    text: String,
}

fn scripts() -> Vec<Script> {
    let blocks = pages().into_iter().flat_map(|page| page.blocks()).filter(|block| block.info == "console");
    let script = |text: &str| -> String {
        let prompted: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
        if prompted.is_empty() { text.to_owned() } else { prompted.join("\n") }
    };
    let scripts: Vec<Script> = blocks.map(|block| Script { text: script(&block.text), place: block.place }).collect();
    assert!(scripts.len() > 30, "only {} were found", scripts.len());
    scripts
}

impl Script {
    /// Its commands, each in one line, without what they read from their input.
    fn commands(&self) -> Vec<String> {
        let mut text = self.text.replace("\\\n", " ");
        while let Some((before, rest)) = text.split_once("<<EOF\n") {
            text = format!("{before}\n{}", rest.split_once("\nEOF").unwrap().1);
        }
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }
}

#[test]
fn a_shell_reads_every_script() {
    let mut broken = vec![];
    for script in scripts() {
        let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(script.text.as_bytes()).unwrap();
        let output = bash.wait_with_output().unwrap();
        if !output.status.success() || !output.stderr.is_empty() {
            broken.push(format!("{}: {}", script.place, String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn no_command_is_for_linux_alone() {
    let mut found = vec![];
    for page in pages() {
        // In code spans, too.
        for (only, instead) in LINUX_ONLY.iter().filter(|(only, _)| page.text.contains(only)) {
            found.push(format!("{}: {only}: use {instead}", page.path));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_path_in_a_command_exists() {
    let mut missing = vec![];
    for script in scripts() {
        for word in script.commands().iter().flat_map(|command| command.split([' ', '"', '\'', ')', '='])) {
            let path = word.strip_prefix("file://").unwrap_or(word);
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains('$');
            if is_path && !root().join(path).exists() {
                missing.push(format!("{}: {path}", script.place));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_value_that_is_set_exists() {
    let values: Value = serde_saphyr::from_str(&read("charts/ecr-credential-operator/values.yaml")).unwrap();
    let (mut unknown, mut known) = (vec![], 0);
    for script in scripts() {
        for command in script.commands().iter().filter(|command| command.starts_with("helm ")) {
            for setting in command.split("--set ").skip(1) {
                let key = setting.split('=').next().unwrap();
                if exists(&values, key) {
                    known += 1;
                } else {
                    unknown.push(format!("{}: {key}", script.place));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(known > 10, "only {known} were found");
}

/// Whether the chart has a value. Below a map that is empty by default, every key may be set.
fn exists(values: &Value, key: &str) -> bool {
    let mut here = values;
    for part in key.split('.') {
        match here.get(part) {
            Some(value) => here = value,
            None => return here.as_object().is_some_and(serde_json::Map::is_empty),
        }
    }
    true
}

/// kubectl takes kinds and then names, or kinds with their names: one kind for each name, and not both ways at once.
#[test]
fn kubectl_reads_every_list_of_objects() {
    const VERBS: [&str; 6] = ["get", "describe", "delete", "wait", "annotate", "patch"];
    let (mut wrong, mut known) = (vec![], 0);
    for script in scripts() {
        for command in script.commands() {
            let mut words = command.split_whitespace().skip_while(|word| *word != "kubectl").skip(1);
            if !words.next().is_some_and(|verb| VERBS.contains(&verb)) {
                continue;
            }
            let objects: Vec<&str> =
                words.take_while(|word| !word.starts_with('-')).filter(|word| !word.contains('=')).collect();
            known += 1;
            let named = objects.iter().filter(|object| object.contains('/')).count();
            let has_a_list = objects.iter().any(|object| object.contains('/') && object.contains(','));
            if has_a_list || (named > 0 && named < objects.len()) {
                wrong.push(format!("{}: {command}", script.place));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(known > 20, "only {known} were found");
}

#[test]
fn the_program_knows_every_argument_that_it_is_given() {
    let mut known = 0;
    for script in scripts() {
        for command in script.commands() {
            let Some((_, arguments)) = command.split_once("/usr/local/bin/ecr-credential-operator ") else { continue };
            let words = std::iter::once("ecr-credential-operator").chain(arguments.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{}: {error}", script.place);
            }
            known += 1;
        }
    }
    assert!(known > 2, "only {known} were found");
}

#[test]
fn every_target_of_make_exists() {
    let makefile = read("Makefile");
    for script in scripts() {
        for command in script.commands() {
            let Some(arguments) = command.strip_prefix("make ") else { continue };
            let arguments = arguments.split('#').next().unwrap();
            for target in arguments.split_whitespace().filter(|word| !word.contains('=')) {
                assert!(makefile.contains(&format!("\n{target}:")), "{}: make {target}", script.place);
            }
        }
    }
}
