//! The image. The `Dockerfile`, as far as it can be tried without Docker: what it copies is there and enough, and its labels are those
//! of `make image`, which is run on a small program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

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
        let words: Vec<String> = words.into_iter().filter(|word| !word.starts_with("--chmod=")).collect();
        let (to, sources) = words.split_last().unwrap();
        for source in sources {
            assert!(ignored.lines().any(|line| line == format!("!{source}")), ".dockerignore leaves {source} out");
            let (from, into) = (root().join(source), context.path().join(source));
            if from.is_dir() {
                assert_eq!(to, source);
                copy(&from, &into);
            } else {
                std::fs::create_dir_all(into.parent().unwrap()).unwrap();
                std::fs::copy(&from, into).unwrap_or_else(|why| panic!("{source}: {why}"));
            }
        }
    }
    let sources_of_tests = instructions("COPY").into_iter().flatten().filter(|word| word.starts_with("tests/"));
    let others: Vec<String> = sources_of_tests.filter(|word| !word.ends_with("/Cargo.toml")).collect();
    assert!(others.is_empty(), "the image is built without the source of the tests: {others:?}");
    let mut cargo = Command::new(env!("CARGO"));
    // Only what this platform builds: a machine has no need of the others' crates.
    cargo.args(["tree", "--locked", "--workspace", "--quiet"]).current_dir(context.path());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_permissions_of_a_checkout_do_not_reach_the_image() {
    let dockerfile = read("Dockerfile");
    let last = dockerfile.rfind("\nFROM ").unwrap();
    let copies: Vec<&str> = dockerfile[last..].lines().filter(|line| line.starts_with("COPY ")).collect();
    assert!(!copies.is_empty());
    // What another stage has made has the permissions that it was given there.
    let own = copies.iter().filter(|line| !line.starts_with("COPY --from="));
    assert!(own.clone().all(|line| line.starts_with("COPY --chmod=")), "{:?}", own.collect::<Vec<_>>());
}

#[test]
fn its_base_images_are_supported_and_given_by_digest() {
    let bases: Vec<String> =
        instructions("ARG").into_iter().flatten().filter(|word| word.contains("_IMAGE=")).collect();
    let rust = format!("BUILD_IMAGE=rust:{}-trixie@sha256:", env!("CARGO_PKG_RUST_VERSION"));
    let wanted = [rust.as_str(), "RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot@sha256:"];
    assert_eq!(bases.len(), wanted.len());
    for (base, wanted) in bases.iter().zip(wanted) {
        let digest = base.strip_prefix(wanted).unwrap_or_else(|| panic!("{base} is not {wanted}"));
        assert!(digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()), "{base}");
    }
    // What the compiler of the build image does not do alone would be installed here.
    assert!(instructions("RUN").iter().flatten().all(|word| word != "apt-get"));
}

#[test]
fn its_labels_are_those_of_make_image() {
    let key = |text: &str| text.split_once('=').map(|(key, _)| key.to_owned()).filter(|key| key.contains(".image."));
    let own: BTreeSet<String> = instructions("LABEL").iter().flatten().filter_map(|word| key(word)).collect();
    let makefile = read("Makefile");
    let theirs = makefile.split("--label ").skip(1).filter_map(|rest| key(rest.trim_start_matches('"')));
    assert_eq!(own, theirs.collect());
    assert_eq!(own.len(), 6);
}

/// An archive as `make image` makes it, of a program that every machine has.
fn archive(folder: &Path, name: &str) -> Vec<u8> {
    let output = folder.join(name);
    let mut python = Command::new("python3");
    python.arg(root().join("hack/image.py")).args(["--program", "/bin/true", "--name", "example/true:1", "--output"]);
    let made = python.arg(&output).env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(output).unwrap()
}

/// What `tar` prints.
fn tar(args: &[&str]) -> String {
    let output = Command::new("tar").args(args).output().unwrap();
    assert!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_program_gives_the_same_bytes_with_the_licenses_of_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    assert!(archive(folder.path(), "a.tar") == archive(folder.path(), "b.tar"), "two runs gave different bytes");

    let inside = folder.path().to_string_lossy().into_owned();
    tar(&["--extract", "--file", &format!("{inside}/a.tar"), "--directory", &inside]);
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.path().join("manifest.json")).unwrap()).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap().iter().filter_map(Value::as_str);
    let files: String =
        layers.map(|layer| tar(&["--list", "--gzip", "--file", &format!("{inside}/{layer}")])).collect();
    for wanted in ["usr/local/bin/true", "etc/ssl/certs/ca-certificates.crt", "LICENSE", "THIRD_PARTY_NOTICES.txt"] {
        assert!(files.lines().any(|file| file == wanted), "{wanted} is not among\n{files}");
    }
}

#[test]
fn both_ways_to_build_it_add_the_notices() {
    let copied = instructions("COPY").into_iter().flatten();
    assert_eq!(copied.filter(|word| word == "LICENSE" || word == "THIRD_PARTY_NOTICES.txt").count(), 2);
    let notices = read("THIRD_PARTY_NOTICES.txt");
    for package in ["tokio", "kube", "aws-lc-sys", "rustls", "k8s-openapi"] {
        assert!(notices.contains(&format!("- {package} ")), "{package} is not named");
    }
}
