//! The programs that the tests use beside the operator: `tests/tools/get.sh` finds or builds them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The path of a program, which is built first where the machine has none; the script lists the names.
pub fn get(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/get.sh");
    let output = Command::new("sh").arg(&script).arg(name).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{} {name} ended with {}: see what it printed", script.display(), output.status);
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
