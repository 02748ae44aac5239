//! What hinders the process at its start is said in a sentence that helps, with a non-zero exit.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::bed::PATIENCE;

#[test]
fn each_mistake_at_the_start_ends_with_a_sentence_that_helps() {
    let dir = dir("mistakes");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let cases: [(&[&str], &[&str]); 16] = [
        (&["--http-address", &address], &["cannot serve HTTP on", "choose another --http-address"]),
        (&["--http-address", "8080"], &["--http-address"]),
        (&["--log", "info,["], &["--log", "is not a filter"]),
        (&["--log-format", "xml"], &["text, json"]),
        (&["--retry-initial", "soon"], &["--retry-initial", "such as 90s or 1h30m"]),
        (&["--retry-max", "0s"], &["longer than zero"]),
        (&["--aws-timeout", "10"], &["--aws-timeout", "such as 90s or 1h30m"]),
        (&["--lease-duration=-15s"], &["--lease-duration", "longer than zero"]),
        (&["--concurrency", "0"], &["1..=1024"]),
        (&["--concurrency", "many"], &["--concurrency"]),
        (&["--secret-names", "x"], &["--secret-name"]),
        (&["--secret-name", "Not_A_Name"], &["Not_A_Name", "lower case"]),
        (&["--namespace", "a.b"], &["a.b", "lower case"]),
        (&["--aws-region", "Ireland"], &["AWS region", "eu-west-1"]),
        (&["--aws-region", "eu-west-1a"], &["AWS region", "eu-west-1"]),
        (&["walk"], &["unexpected argument"]),
    ];
    for (args, words) in cases {
        let output = start(&dir, args, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?} ended well");
        assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

#[test]
fn without_a_cluster_the_error_names_where_to_set_it() {
    let dir = dir("nowhere");
    let nowhere = start(&dir, &[], &[("KUBECONFIG", "")]);
    assert_eq!(nowhere.status.code(), Some(1));
    let text = String::from_utf8(nowhere.stderr).unwrap();
    assert!(text.contains("run inside a cluster, or set KUBECONFIG"), "{text}");
}

#[test]
fn with_json_logs_the_last_error_is_json_too_and_said_once() {
    let dir = dir("json");
    let output = start(&dir, &["--log-format", "json", "--aws-region", "Ireland"], &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    let errors: Vec<&Value> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(errors[0]["message"].as_str().unwrap().contains("Ireland"), "{text}");
    let output = start(&dir, &["--log", "off", "--aws-region", "Ireland"], &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("Ireland"), "without logs the reason is still told: {text:?}");
}

/// Starts `run` with a kubeconfig that leads nowhere and a region, unless the variables say otherwise (an empty value takes
/// one away), and waits for its end.
fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-credential-operator"));
    command
        .env_clear()
        .env("HOME", dir)
        .env("KUBECONFIG", dir.join("kubeconfig"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "eu-west-1")
        .env("ECO_HTTP_ADDRESS", "127.0.0.1:0")
        .arg("run");
    for (name, value) in env {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    let mut child = command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{args:?} did not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// A home directory with a kubeconfig of a cluster that is not there.
fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let kubeconfig = r#"{
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": "http://127.0.0.1:1" } }],
        "users": [{ "name": "x", "user": {} }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }]
    }"#;
    std::fs::write(dir.join("kubeconfig"), kubeconfig).unwrap();
    dir
}
