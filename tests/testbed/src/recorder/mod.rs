//! The recorder: it sees every version of the objects of a test and every request of its operators, and judges them by the invariants.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::Client;
use parking_lot::Mutex;

use ::judge::Evidence;
use ::judge::history::{Key, Kind};
pub use ::judge::hosts::Defaults;
pub use ::judge::{Invariant, Scope, Violation};

use crate::control_plane::ControlPlane;
use crate::proxy::{Log, Mark, Request};
use declared::Declared;
use watch::{Shared, Source, sources};

mod canary;
mod declared;
mod settle;
mod texts;
mod watch;

/// Records one test. It runs on a thread of its own, so a test may block.
#[must_use = "call assert_clean at the end of the test"]
pub struct Recorder {
    scope: Scope,
    shared: Arc<Shared>,
    sources: Vec<Source>,
    client: Client,
    logs: Mutex<Vec<Arc<Log>>>,
    declared: Mutex<Declared>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// A point in the logs of all proxies.
#[derive(Clone, Debug)]
pub struct Marks(Vec<Mark>);

impl Recorder {
    /// Starts to watch; returns once everything that exists is known. The EcrCredential's definition must be installed.
    pub async fn start(plane: &ControlPlane, scope: Scope) -> Result<Recorder> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("recorder")
            .enable_all()
            .build()?;
        let (shared, sources) = (Arc::new(Shared::default()), sources(&scope));
        let mut started = vec![];
        {
            let _on_its_runtime = runtime.enter();
            let client = plane.admin_client()?;
            for source in &sources {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                runtime.spawn(source.clone().follow(client.clone(), shared.clone(), sender));
                started.push(receiver);
            }
        }
        let client = plane.admin_client()?;
        let recorder = Recorder {
            scope,
            shared,
            sources,
            client,
            logs: Mutex::default(),
            declared: Mutex::default(),
            runtime: Some(runtime),
        };
        let all = futures::future::try_join_all(started);
        let all = tokio::time::timeout(Duration::from_secs(60), all).await;
        all.context("the recorder could not list everything: is the EcrCredential definition installed?")??;
        Ok(recorder)
    }

    /// Adds an operator process, by the log of the proxy that it talks through.
    pub fn attach(&self, log: &Arc<Log>) {
        self.logs.lock().push(log.clone());
    }

    pub fn mark(&self) -> Marks {
        Marks(self.logs.lock().iter().map(|log| log.mark()).collect())
    }

    /// What all operators changed, or tried to, since the mark; renewals of Leases left out.
    pub fn changes_since(&self, marks: &Marks) -> Vec<Request> {
        let logs = self.logs.lock();
        // A log that was attached after the mark counts as a whole.
        let marks = marks.0.iter().copied().chain(std::iter::repeat(Mark::default()));
        logs.iter().zip(marks).flat_map(|(log, mark)| log.mutations_since(mark)).collect()
    }

    /// I7: nothing may have been changed since the mark.
    pub fn quiet_since(&self, marks: &Marks) {
        for request in self.changes_since(marks) {
            let about = format!("{}/{}", request.target.namespace, request.target.name);
            self.found(Violation::new(Invariant::I7Quiet, about, request.started, request.summary()));
        }
    }

    /// I7: nothing may be changed for this long, from now. It takes that long.
    pub async fn quiet_for(&self, duration: Duration) {
        let marks = self.mark();
        tokio::time::sleep(duration).await;
        self.quiet_since(&marks);
    }

    /// Waits until everything that exists was seen, and the garbage collector had its time; then everything that was wrong.
    pub async fn judge(&self) -> Result<Vec<Violation>> {
        self.settle().await?;
        let evidence = self.evidence();
        let mut violations = ::judge::judge(&evidence);
        let granted = self.logs.lock().iter().flat_map(|log| log.granted_tokens()).collect::<Vec<_>>();
        let declared = self.declared.lock();
        violations.extend(declared.search(&evidence, &granted)?);
        drop(declared);
        report(&self.scope.credential_prefix, &self.excuses(&violations, evidence.now))?;
        let declared = self.declared.lock();
        violations.retain(|violation| !declared.excuses.iter().any(|excuse| excuse.covers(violation)));
        Ok(violations)
    }

    /// Panics with the list of everything that was wrong.
    pub async fn assert_clean(&self) {
        let violations = match self.judge().await {
            Ok(violations) => violations,
            Err(error) => panic!("the recorder could not judge: {error:#}"),
        };
        let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert!(list.is_empty(), "{} violations:\n{}", list.len(), list.join("\n"));
    }

    /// Every version of a Secret that was seen, for tests that look closer.
    pub fn secret_versions(&self, namespace: &str, name: &str) -> Vec<serde_json::Value> {
        let key = Key::secret(namespace, name);
        let history = self.shared.history.lock();
        history
            .versions(&key)
            .iter()
            .filter(|version| !version.deleted)
            .map(|version| (*version.object).clone())
            .collect()
    }

    /// Every version of an EcrCredential that was seen.
    pub fn credential_versions(&self, name: &str) -> Vec<serde_json::Value> {
        let key = Key { kind: Kind::Credential, namespace: String::new(), name: name.to_owned() };
        let history = self.shared.history.lock();
        history
            .versions(&key)
            .iter()
            .filter(|version| !version.deleted)
            .map(|version| (*version.object).clone())
            .collect()
    }

    /// The Secrets that were there when last seen.
    pub fn live_secrets(&self) -> Vec<serde_json::Value> {
        self.live(Kind::Secret)
    }

    /// The EcrCredentials that were there when last seen.
    pub fn live_credentials(&self) -> Vec<serde_json::Value> {
        self.live(Kind::Credential)
    }

    fn live(&self, kind: Kind) -> Vec<serde_json::Value> {
        self.shared.history.lock().live(kind).map(|(_, version)| (*version.object).clone()).collect()
    }

    fn evidence(&self) -> Evidence {
        let declared = self.declared.lock();
        let by_log: Vec<Vec<Request>> = self.logs.lock().iter().map(|log| log.all()).collect();
        let ends = by_log.iter().scan(0, |end, requests| {
            let start = *end;
            *end += requests.len();
            Some(start..*end)
        });
        let logs = ends.collect();
        let requests: Vec<Request> = by_log.into_iter().flatten().collect();
        let mut history = self.shared.history.lock().clone();
        history.attribute(&requests);
        Evidence {
            scope: self.scope.clone(),
            history,
            requests,
            logs,
            aws: declared.aws(),
            now: Timestamp::now(),
            found: declared.found.clone(),
            service_accounts: declared.service_accounts.clone(),
            tenants: declared.tenants.clone(),
            included: declared.included.clone(),
        }
    }
}

/// Lists what a test excused, on its output, and in the file that the variable `EXCUSES` names.
fn report(test: &str, excuses: &[String]) -> Result<()> {
    let lines: String = excuses.iter().map(|excuse| format!("{test} {excuse}\n")).collect();
    print!("{lines}");
    if let Some(path) = std::env::var_os("EXCUSES").filter(|_| !lines.is_empty()) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        std::io::Write::write_all(&mut file, lines.as_bytes())?;
    }
    Ok(())
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
