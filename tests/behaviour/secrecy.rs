//! I11 where a test must bring it about: every other test is judged by it as well, with the operator's log at its finest level.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use testbed::bed::Bed;
use testbed::recorder::Invariant;

use super::demand::*;
use super::{OWN, bed, launch};

#[tokio::test]
async fn a_panic_with_a_token_at_hand_tells_the_place_alone_and_the_token_is_fetched_again() {
    let bed = bed("panic").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    for format in ["text", "json"] {
        let launch = launch().env("LD_PRELOAD", broken_clock(&bed).to_str().unwrap());
        let operator = bed.operator(launch.args(&["--log-format", format, "--no-leader-election"])).await.unwrap();
        bed.recorder.excuse(
            Invariant::I15NoPanic,
            operator.log.display().to_string(),
            "a library makes it panic on purpose",
        );
        let name = bed.credential(format, spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
        bed.ready(&name).await.unwrap();
        bed.logins_until(&a, &[OWN]).await.unwrap();
        assert_eq!(log_lines(&operator, "panicked"), 1, "{}", operator.tail());
        assert_eq!(log_lines(&operator, "the message is not shown"), 1);
        assert_eq!(log_lines(&operator, "Invalid argument"), 0, "the library's message is told");
        operator.stop().await.unwrap();
        bed.credentials().delete(&name, &Default::default()).await.unwrap();
        bed.secret_until(&a, "collected", |secret| secret.is_none()).await.unwrap();
    }
    bed.finish().await.unwrap();
}

/// A library that makes the operator panic when it has read a token.
fn broken_clock(bed: &Bed) -> PathBuf {
    let library = bed.dir().join("broken_clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/behaviour/broken_clock.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(status.success(), "the C compiler that the operator's dependencies are built with");
    library
}
