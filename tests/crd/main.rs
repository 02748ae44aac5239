//! The CRD as the API server sees it: what it refuses and says, what it accepts and fills in, and how it is shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with the first thing that goes wrong"
)]

mod accepted;
mod api_server;
mod auth_cases;
mod bounds;
mod cases;
mod refused;
mod shown;

use std::path::Path;

use ecr_credential_operator::crd;

const PATH: &str = "crds/ecrcredentials.pullsecrets.dev.yaml";

#[test]
fn the_file_is_what_the_binary_prints() {
    let file = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH)).unwrap_or_default();
    let printed = crd::yaml().unwrap();
    assert!(file == printed, "{PATH} is not current; run: cargo run -- crd > {PATH}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ecr-credential-operator")).arg("crd").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), printed);
}
