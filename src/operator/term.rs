//! The time in which this process leads: it begins with the lease and ends with its loss or its release.

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::process::lease::Leadership;

/// See the file's first line.
#[derive(Default)]
pub(super) struct Term {
    /// The task that renews the lease; none without leader election.
    keeper: Option<JoinHandle<Result<Leadership, String>>>,
    /// Ends the renewals.
    end: CancellationToken,
}

impl Term {
    /// Renews the lease on a task of its own, so that long reconciliations cannot delay it.
    pub(super) fn of(mut leadership: Leadership) -> Self {
        let end = CancellationToken::new();
        let until = end.clone();
        let keeper = tokio::spawn(async move {
            let why = tokio::select! {
                why = leadership.keep() => Some(why),
                () = until.cancelled() => None,
            };
            why.map_or(Ok(leadership), Err)
        });
        Self { keeper: Some(keeper), end }
    }

    /// Waits until the lease is lost, and returns why. Without leader election it never is.
    pub(super) async fn lost(&mut self) -> String {
        match &mut self.keeper {
            Some(keeper) => reason(keeper.await),
            None => std::future::pending().await,
        }
    }

    /// Releases the lease.
    pub(super) async fn release(self) {
        self.end.cancel();
        if let Some(keeper) = self.keeper
            && let Ok(Ok(leadership)) = keeper.await
        {
            leadership.release().await;
        }
    }
}

fn reason(ended: Result<Result<Leadership, String>, JoinError>) -> String {
    match ended {
        Ok(Err(why)) => why,
        Ok(Ok(_)) => "it was given back".to_owned(),
        // The error would quote the message of the panic.
        Err(_) => "the task that renews the lease has died".to_owned(),
    }
}
