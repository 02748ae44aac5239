//! The `Dockerfile`, as far as it can be tried without Docker: what it copies is there and enough, and it says what `make image` says.

use std::collections::BTreeSet;
use std::process::Command;

use super::helm::{copy, read, root};

/// The words of an instruction, one list for each time that it is used.
fn instructions(name: &str) -> Vec<Vec<String>> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let of_this = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    of_this.map(|rest| rest.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn what_it_copies_is_there_and_is_a_whole_workspace() {
    let (context, ignored) = (tempfile::tempdir().unwrap(), read(".dockerignore"));
    for words in instructions("COPY").into_iter().filter(|words| !words[0].starts_with("--from")) {
        let (to, sources) = words.split_last().unwrap();
        for source in sources {
            assert!(ignored.lines().any(|line| line == format!("!{source}")), ".dockerignore leaves {source} out");
            let (from, into) = (root().join(source), context.path().join(source));
            if from.is_dir() {
                assert_eq!(to, source);
                copy(&from, &into);
            } else {
                std::fs::copy(&from, into).unwrap_or_else(|why| panic!("{source}: {why}"));
            }
        }
    }
    let mut cargo = Command::new(env!("CARGO"));
    // Only what this platform builds: a machine has no need of the others' crates.
    cargo.args(["tree", "--locked", "--workspace", "--quiet"]).current_dir(context.path());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn it_is_built_with_the_crates_rust_and_has_the_labels_of_make_image() {
    let build =
        instructions("ARG").into_iter().find_map(|words| words[0].strip_prefix("BUILD_IMAGE=").map(str::to_owned));
    assert_eq!(build.unwrap(), format!("rust:{}-bookworm", env!("CARGO_PKG_RUST_VERSION")));
    let key = |text: &str| text.split_once('=').map(|(key, _)| key.to_owned()).filter(|key| key.contains(".image."));
    let own: BTreeSet<String> = instructions("LABEL").iter().flatten().filter_map(|word| key(word)).collect();
    let makefile = read("Makefile");
    let theirs = makefile.split("--label ").skip(1).filter_map(|rest| key(rest.trim_start_matches('"')));
    assert_eq!(own, theirs.collect());
    assert_eq!(own.len(), 6);
}
