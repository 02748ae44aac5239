//! Writes the status of one `EcrCredential`: when it has changed, not too often, and again where it could not be written.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use super::Context;
use super::error::Error;
use crate::answers::is_gone;
use crate::api::{EcrCredential, EcrCredentialStatus};
use crate::outcome::Outcome;
use crate::outcome::served_by::Installations;
use crate::plan::Uid;

/// The least time between two writes of the status: while thousands of namespaces are created, nobody reads every step.
const BETWEEN_STATUSES: Duration = Duration::from_millis(500);

/// The same if only the times in it have changed, as they do with each refresh among thousands.
const BETWEEN_TIMES: Duration = Duration::from_secs(30);

/// What is remembered of the status between reconciliations.
#[derive(Default)]
pub(super) struct StatusWriter {
    /// The status that was reported last.
    reported: Option<EcrCredentialStatus>,
    /// The resourceVersion with the status that was written last.
    version: Option<u64>,
    retry: Option<StatusRetry>,
    /// When it was written last, or the API server refused it.
    written: Option<Instant>,
    installations: Option<Installations>,
}

/// A status that could not be written, which is tried again.
struct StatusRetry {
    /// How often in a row.
    failures: u32,
    /// When it is tried again. One that says something else does not wait for that.
    at: Instant,
    status: EcrCredentialStatus,
}

/// What has become of a status.
pub(super) enum StatusWrite {
    /// It is stored.
    Done,
    /// It is written after so long.
    Later(Duration),
    /// The `EcrCredential` is gone.
    Gone,
}

impl StatusWriter {
    /// The status that was reported last, and the one that is stored, as far as it is known.
    pub(super) fn known(&self, object: &EcrCredential) -> (EcrCredentialStatus, EcrCredentialStatus) {
        let reported = self.reported.clone().or_else(|| object.status.clone()).unwrap_or_default();
        // Others may have changed it since. What we keep in memory still says what we reported and did.
        let is_behind = self.version.is_some_and(|written| version(object).is_none_or(|seen| seen < written));
        let stored = if is_behind { reported.clone() } else { object.status.clone().unwrap_or_default() };
        (reported, stored)
    }

    /// The installations that write the status. The log says when another one begins to, and when none does any more.
    pub(super) fn installations(
        &mut self,
        ctx: &Context,
        object: &EcrCredential,
        stored: &EcrCredentialStatus,
    ) -> &Installations {
        let installations = self.installations.get_or_insert_with(|| Installations::new(ctx.installation.clone()));
        let before = installations.warning();
        let written = self.reported.as_ref().and_then(|status| status.served_by.as_deref());
        installations.observe(stored.served_by.as_deref(), written, version(object), ctx.clock.uptime());
        match (before, installations.warning()) {
            (None, Some(warning)) => tracing::warn!(name = %object.name_any(), "{warning}"),
            (Some(_), None) => {
                tracing::info!(name = %object.name_any(), "no other installation serves the EcrCredential any more")
            }
            _ => {}
        }
        installations
    }

    /// Writes the status of an outcome if it is not what is stored, and if it is time to.
    pub(super) async fn write(
        &mut self,
        ctx: &Context,
        uid: &Uid,
        object: &EcrCredential,
        stored: &EcrCredentialStatus,
        outcome: &Outcome,
    ) -> Result<StatusWrite, Error> {
        // A write that failed may have been done all the same: perhaps only the answer was lost.
        let unsure = self.retry.is_some();
        if outcome.status != *stored || unsure {
            let wait = self.wait(stored, outcome, unsure);
            if !wait.is_zero() {
                return Ok(StatusWrite::Later(wait));
            }
            let written = ctx.writer.status(object, &outcome.status).await;
            self.written = Some(Instant::now());
            match written {
                Ok(version) => self.version = version.and_then(|version| version.parse().ok()),
                Err(source) if is_gone(&source) => return Ok(StatusWrite::Gone),
                Err(_) if !ctx.shared.is_there(uid, object) => return Ok(StatusWrite::Gone),
                Err(source) => {
                    let failures = self.retry.as_ref().map_or(1, |retry| retry.failures.saturating_add(1));
                    let wait = ctx.retry.delay(failures, 3, &uid.0);
                    let (status, at) = (outcome.status.clone(), Instant::now() + wait);
                    self.retry = Some(StatusRetry { failures, at, status });
                    // Only the status waits so long: the Secrets may be due before.
                    return Err(Error::Status { source, wait: wait.min(outcome.requeue_after) });
                }
            }
        }
        self.retry = None;
        if self.reported.as_ref() != Some(&outcome.status) {
            self.reported = Some(outcome.status.clone());
        }
        Ok(StatusWrite::Done)
    }

    /// How long a status that is not what is stored waits.
    fn wait(&mut self, stored: &EcrCredentialStatus, outcome: &Outcome, unsure: bool) -> Duration {
        let is_known = |status: &EcrCredentialStatus| outcome.status == *status || outcome.is_progress_alone(status);
        let progress = !unsure && outcome.is_progress_alone(stored);
        if progress {
            // What the previous process did not report is no more urgent.
            self.written.get_or_insert_with(Instant::now);
        }
        // If someone else keeps changing the status, we do not fight back.
        let undone = !unsure && self.reported.as_ref().is_some_and(is_known);
        let between = if progress || undone { BETWEEN_TIMES } else { BETWEEN_STATUSES };
        let retry = self.retry.as_ref().filter(|retry| outcome.repeats(&retry.status));
        let next = self.written.map(|last| last + between).max(retry.map(|retry| retry.at));
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }
}

/// The number of a resourceVersion, which grows with each change.
fn version(object: &EcrCredential) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}
