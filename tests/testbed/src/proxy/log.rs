//! Every request that went through a proxy, and questions about them.

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Match;
use super::Request;

/// A point in the log; later counts can leave out what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

/// A ServiceAccount's token that the API server handed out.
#[derive(Clone, Debug)]
pub struct GrantedToken {
    pub namespace: String,
    pub service_account: String,
    pub audiences: Vec<String>,
    /// Whoever has it is that ServiceAccount.
    pub token: String,
    pub expires: Option<Timestamp>,
}

/// The log of one proxy. It never forgets.
pub struct Log {
    requests: Mutex<Vec<Request>>,
    tokens: Mutex<Vec<GrantedToken>>,
    changed: watch::Sender<usize>,
}

impl Default for Log {
    fn default() -> Self {
        Log { requests: Mutex::default(), tokens: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Log {
    pub fn mark(&self) -> Mark {
        Mark(self.requests.lock().len())
    }

    pub fn all(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    /// The tokens of ServiceAccounts that went through, oldest first.
    pub fn granted_tokens(&self) -> Vec<GrantedToken> {
        self.tokens.lock().clone()
    }

    pub fn matching(&self, wanted: &Match) -> Vec<Request> {
        self.matching_since(Mark::default(), wanted)
    }

    pub fn matching_since(&self, mark: Mark, wanted: &Match) -> Vec<Request> {
        self.requests.lock().iter().skip(mark.0).filter(|request| wanted.matches(request)).cloned().collect()
    }

    pub fn count(&self, wanted: &Match) -> usize {
        self.count_since(Mark::default(), wanted)
    }

    pub fn count_since(&self, mark: Mark, wanted: &Match) -> usize {
        self.requests.lock().iter().skip(mark.0).filter(|request| wanted.matches(request)).count()
    }

    /// Mutating requests other than renewals of Leases.
    pub fn mutations(&self) -> Vec<Request> {
        self.matching(&Match::changes())
    }

    pub fn mutations_since(&self, mark: Mark) -> Vec<Request> {
        self.matching_since(mark, &Match::changes())
    }

    pub fn writes_to_secrets(&self) -> Vec<Request> {
        self.matching(&Match::secret_writes())
    }

    pub fn writes_to_secrets_since(&self, mark: Mark) -> Vec<Request> {
        self.matching_since(mark, &Match::secret_writes())
    }

    /// Waits until `count` matching requests have come and been answered since `mark`; the error lists what came instead.
    pub async fn wait_for(&self, mark: Mark, wanted: &Match, count: usize, timeout: Duration) -> Result<Vec<Request>> {
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            changed.borrow_and_update();
            let mut found = self.matching_since(mark, wanted);
            found.retain(|request| request.finished.is_some());
            if found.len() >= count {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                let seen: Vec<String> = self.matching_since(mark, &Match::any()).iter().map(Request::summary).collect();
                bail!("{} of {count} awaited requests in {timeout:?}; all requests:\n{}", found.len(), seen.join("\n"));
            }
        }
    }

    /// Waits until no change was requested for `quiet`; an error when that takes longer than `timeout`.
    pub async fn wait_quiet(&self, quiet: Duration, timeout: Duration) -> Result<()> {
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + timeout;
        let mut seen = self.count(&Match::changes());
        let mut quiet_at = Instant::now() + quiet;
        loop {
            match tokio::time::timeout_at(quiet_at.min(deadline), changed.changed()).await {
                Err(_) if quiet_at <= deadline => return Ok(()),
                Err(_) => bail!("still not quiet after {timeout:?}: {}", self.last_changes()),
                Ok(_) => {
                    let now = self.count(&Match::changes());
                    if now != seen {
                        (seen, quiet_at) = (now, Instant::now() + quiet);
                    }
                }
            }
        }
    }

    /// Takes note of the answer to a request for a token.
    pub(super) fn keep_token(&self, request: &Request, answer: &serde_json::Value) {
        let Some(token) = answer["status"]["token"].as_str() else { return };
        let audiences = answer["spec"]["audiences"].as_array().into_iter().flatten();
        let granted = GrantedToken {
            namespace: request.target.namespace.clone(),
            service_account: request.target.name.clone(),
            audiences: audiences.filter_map(|audience| audience.as_str().map(str::to_owned)).collect(),
            token: token.to_owned(),
            expires: answer["status"]["expirationTimestamp"].as_str().and_then(|time| time.parse().ok()),
        };
        self.tokens.lock().push(granted);
    }

    pub(super) fn push(&self, make: impl FnOnce(usize) -> Request) -> Request {
        let mut requests = self.requests.lock();
        let request = make(requests.len());
        requests.push(request.clone());
        drop(requests);
        self.changed.send_modify(|version| *version += 1);
        request
    }

    pub(super) fn update(&self, number: usize, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.requests.lock().get_mut(number) {
            change(request);
        }
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn finish(&self, number: usize, status: Option<u16>) {
        self.update(number, |request| {
            request.status = status;
            request.finished = Some(Timestamp::now());
        });
    }

    fn last_changes(&self) -> String {
        let changes = self.mutations();
        let last: Vec<String> = changes.iter().rev().take(5).map(Request::summary).collect();
        format!("{} changes, the last of them {}", changes.len(), last.join(", "))
    }
}
