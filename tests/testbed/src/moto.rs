//! moto's server, an independent imitation of AWS in Python, installed once and run for as long as it is wanted.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use crate::control_plane::spawn_tied;

/// Pinned, because what it answers differs between releases.
pub const VERSION: &str = "5.2.5";

/// A running server. It knows STS and ECR but not ECR Public, checks no signature, and its tokens expired in 2015.
pub struct Moto {
    child: Child,
    endpoint: String,
    log: Arc<Mutex<String>>,
}

impl Moto {
    /// Installs it if it is not in `.cache` yet, which takes about half a minute, and starts it on a free port.
    pub async fn start() -> Result<Moto> {
        tokio::task::spawn_blocking(|| run(&Python::with_moto()?)).await?
    }

    /// `http://127.0.0.1:PORT`, for every service.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the server has written so far, a line for each request among it.
    pub fn log(&self) -> String {
        self.log.lock().clone()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the server on port 0 and reads from its first lines which port it got.
fn run(python: &Python) -> Result<Moto> {
    let mut command = python.command();
    command.args(["-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = spawn_tied(command).context("starting moto's server")?;
    let mut lines = BufReader::new(child.stderr.take().context("moto's stderr was not piped")?).lines();
    let log = Arc::new(Mutex::new(String::new()));
    while let Some(line) = lines.next().transpose()? {
        log.lock().push_str(&format!("{line}\n"));
        let Some((_, address)) = line.split_once("Running on ") else { continue };
        let endpoint = address.split_whitespace().next().unwrap_or_default().to_owned();
        let rest = log.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| rest.lock().push_str(&(line + "\n"))));
        return Ok(Moto { child, endpoint, log });
    }
    let _ = child.wait();
    bail!(
        "moto's server ended before it listened; remove {} to install it anew. It said:\n{}",
        python.home.display(),
        log.lock()
    )
}

/// A Python that can import moto.
struct Python {
    home: PathBuf,
    program: PathBuf,
    /// Where the packages are, if not in the program's own environment.
    packages: Option<PathBuf>,
}

impl Python {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(packages) = &self.packages {
            command.env("PYTHONPATH", packages);
        }
        command
    }

    /// The cached one, installed first if need be; one installation at a time.
    fn with_moto() -> Result<Python> {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
        let home = cache.join(format!("moto-{VERSION}"));
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let home = home.canonicalize()?;
        let lock = File::create(home.join("lock")).with_context(|| format!("creating a lock in {}", home.display()))?;
        lock.lock().context("waiting for another installation of moto")?;
        let done = home.join("complete");
        if !done.exists() {
            install(&home)?;
            File::create(&done)?;
        }
        Ok(Python::at(&home))
    }

    fn at(home: &Path) -> Python {
        let (own, packages) = (home.join("venv/bin/python"), home.join("packages"));
        match packages.is_dir() {
            true => Python { home: home.to_owned(), program: "python3".into(), packages: Some(packages) },
            false => Python { home: home.to_owned(), program: own, packages: None },
        }
    }
}

/// An environment of its own where Python can make one, else a directory of packages: some machines' Python lacks ensurepip.
fn install(home: &Path) -> Result<()> {
    eprintln!("installing moto {VERSION} into {}; this is done once and takes about half a minute", home.display());
    let packages = home.join("packages");
    // What an interrupted installation left behind would be taken for the whole.
    let _ = std::fs::remove_dir_all(&packages);
    let wanted = format!("moto[server]=={VERSION}");
    let venv = home.join("venv");
    let quiet = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input"];
    let make = |module: &str| report(Command::new("python3").args(["-m", module]).arg(&venv));
    if make("venv").or_else(|_| make("virtualenv")).is_ok() {
        return report(Command::new(venv.join("bin/python")).args(quiet).arg(&wanted))
            .context("installing moto with pip: is a package index within reach?");
    }
    report(Command::new("python3").args(quiet).arg("--target").arg(&packages).arg(&wanted)).context(
        "moto needs Python 3 with venv, virtualenv or pip (on Debian: apt-get install python3-venv), and a package index within reach",
    )
}

/// Runs a step of the installation and passes on what pip collects, so that nobody takes a slow network for a hang.
fn report(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|error| anyhow::anyhow!("{shown}: {error}; is python3 installed?"))?;
    let mut errors = child.stderr.take().context("stderr was not piped")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    let output = BufReader::new(child.stdout.take().context("stdout was not piped")?);
    for line in output.lines().map_while(Result::ok).filter(|line| line.starts_with("Collecting ")) {
        eprintln!("moto: {line}");
    }
    let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
    match child.wait()? {
        status if status.success() => Ok(()),
        status => bail!("{shown} ended with {status}:\n{errors}"),
    }
}
