//! Leader election on a `coordination.k8s.io` Lease: only the holder writes, and it knows when it no longer may.
//!
//! The rules are those of client-go's leaderelection: another's lease has expired if it has not changed for its whole duration by our
//! own monotonic clock (clocks of different machines are never compared), and the holder stops before others may take
//! over.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::fence::Fence;
use super::stored_lease::StoredLease;
use crate::answers::{late, own_refusal, within};

/// Which Lease, and how long it holds.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Our identity; unique to this process.
    pub identity: String,
    /// How long others wait without a renewal before they take over. The holder stops writing after two thirds.
    pub duration: Duration,
}

impl LeaseSettings {
    /// How long after a renewal was sent the holder may write.
    fn hold(&self) -> Duration {
        self.duration.mul_f64(2.0 / 3.0)
    }

    /// The time between renewals, and between checks of another's lease.
    fn period(&self) -> Duration {
        self.duration.mul_f64(2.0 / 15.0)
    }
}

/// The longest that the release of a lease may take: the end of the process must not wait for a slow API server. After that, the next
/// leader waits until the lease expires.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A lease that is held, or was.
pub struct Leadership {
    api: Api<StoredLease>,
    settings: LeaseSettings,
    fence: Fence,
    lease: Lease,
    /// When the request of the last renewal was sent.
    sent: Instant,
}

/// The last observation of the Lease: when it changed by our clock, its holder, and its end if it does not change again.
struct Observed {
    version: Option<String>,
    since: Instant,
    holder: String,
    over_at: Instant,
}

/// Waits until the lease is ours. `standing_by` is called each time it is another's. It never fails: obstacles are logged when they
/// change.
pub async fn acquire(client: Client, settings: LeaseSettings, fence: Fence, standing_by: impl Fn()) -> Leadership {
    let api: Api<StoredLease> = Api::namespaced(client, &settings.namespace);
    let start = Instant::now();
    let mut observed = Observed { version: None, since: start, holder: String::new(), over_at: start };
    let mut last_error = String::new();
    loop {
        match try_acquire(&api, &settings, &mut observed).await {
            Ok(Some((lease, sent))) => {
                fence.hold_for(sent, settings.hold());
                tracing::info!(identity = settings.identity, "became the leader");
                return Leadership { api, settings, fence, lease, sent };
            }
            Ok(None) => {
                last_error.clear();
                standing_by();
            }
            Err(error) => {
                let text = error.to_string();
                if text != last_error {
                    tracing::warn!(
                        lease = settings.name,
                        namespace = settings.namespace,
                        error = text,
                        "the lease could not be read or acquired: retrying"
                    );
                    last_error = text;
                }
            }
        }
        // Checking exactly when the lease expires comes before a process that was just started.
        let next = Instant::now() + settings.period();
        let over_at = observed.over_at;
        tokio::time::sleep_until(if over_at > Instant::now() { next.min(over_at) } else { next }).await;
    }
}

/// A Lease as it is, for whoever does not compete for it; none if there is none.
///
/// # Errors
/// It could not be read.
pub async fn read(client: Client, namespace: &str, name: &str) -> Result<Option<LeaseSpec>, kube::Error> {
    let api: Api<StoredLease> = Api::namespaced(client, namespace);
    Ok(api.get_opt(name).await?.map(|lease| lease.into_lease().spec.unwrap_or_default()))
}

/// Acquires the lease if it is free; returns it, and when the request was sent.
async fn try_acquire(
    api: &Api<StoredLease>,
    settings: &LeaseSettings,
    observed: &mut Observed,
) -> Result<Option<(Lease, Instant)>, kube::Error> {
    let Some(lease) = limited(settings, api.get_opt(&settings.name)).await?.map(StoredLease::into_lease) else {
        let fresh = Lease {
            metadata: ObjectMeta { name: Some(settings.name.clone()), ..ObjectMeta::default() },
            spec: Some(claim(settings, None, Timestamp::now())),
        };
        let sent = Instant::now();
        return lost_race(limited(settings, api.create(&PostParams::default(), &StoredLease::of(fresh))).await, sent);
    };
    if lease.resource_version() != observed.version {
        observed.version = lease.resource_version();
        observed.since = Instant::now();
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let theirs =
        spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(settings.duration, Duration::from_secs);
    observed.over_at = observed.since + theirs;
    if !holder.is_empty() && holder != settings.identity && Instant::now() < observed.over_at {
        if holder != observed.holder {
            tracing::info!(leader = holder, "standing by");
            holder.clone_into(&mut observed.holder);
        }
        return Ok(None);
    }
    let taken = Lease { spec: Some(claim(settings, Some(&spec), Timestamp::now())), ..lease };
    let (sent, params) = (Instant::now(), PostParams::default());
    lost_race(limited(settings, api.replace(&settings.name, &params, &StoredLease::of(taken))).await, sent)
}

/// Losing a race for the lease is no error, but a webhook that refuses with 409 is one.
fn lost_race(result: Result<StoredLease, kube::Error>, sent: Instant) -> Result<Option<(Lease, Instant)>, kube::Error> {
    match result {
        Ok(lease) => Ok(Some((lease.into_lease(), sent))),
        Err(error) if is_conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A slow but healthy API server. Only the lease itself decides when a response is too late.
async fn limited<T>(
    settings: &LeaseSettings,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    within(settings.hold(), call).await
}

fn is_conflict(error: &kube::Error) -> bool {
    own_refusal(error).is_some_and(|status| status.code == 409)
}

fn claim(settings: &LeaseSettings, previous: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
    let same = previous.is_some_and(|p| p.holder_identity.as_deref() == Some(&settings.identity));
    let transitions = previous.and_then(|p| p.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: i32::try_from(settings.duration.as_secs().max(1)).ok(),
        acquire_time: previous.filter(|_| same).and_then(|p| p.acquire_time.clone()).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if same || previous.is_none() { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

impl Leadership {
    /// Renews the lease until it is lost: taken by another, or not renewed in time. Returns the reason.
    pub async fn keep(&mut self) -> String {
        loop {
            // Measured between requests: slow responses must not delay the next renewal.
            tokio::time::sleep_until(self.sent + self.settings.period()).await;
            let Some(deadline) = self.fence.deadline() else {
                self.fence.close();
                return "the lease could not be renewed in time".to_owned();
            };
            match self.renew(deadline).await {
                Ok((lease, sent)) => {
                    (self.lease, self.sent) = (lease, sent);
                    self.fence.hold_for(sent, self.settings.hold());
                    continue;
                }
                Err(error) if own_refusal(&error).is_some_and(|status| matches!(status.code, 404 | 409)) => {
                    if let Some(why) = self.look().await {
                        self.fence.close();
                        return why;
                    }
                }
                Err(error) => tracing::warn!(%error, "the lease could not be renewed: retrying"),
            }
            tokio::time::sleep(self.settings.period()).await;
        }
    }

    /// Renews the lease once; returns it, and when the request was sent. A response may take until `deadline`. After half of that time, the
    /// request is sent again in parallel: a connection may be dead without notice.
    async fn renew(&self, deadline: Instant) -> Result<(Lease, Instant), kube::Error> {
        let mut next = self.lease.clone();
        next.spec = Some(claim(&self.settings, self.lease.spec.as_ref(), Timestamp::now()));
        let (next, params) = (&StoredLease::of(next), &PostParams::default());
        let send = || async move {
            let sent = Instant::now();
            self.api.replace(&self.settings.name, params, next).await.map(|lease| (lease.into_lease(), sent))
        };
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let mut requests = FuturesUnordered::from_iter([send()]);
        let mut again = true;
        loop {
            tokio::select! {
                Some(answer) = requests.next() => match answer {
                    Err(error) if !requests.is_empty() && !is_conflict(&error) => {}
                    // The API server rejects the second of two requests for one version of the Lease. The first one was successful then,
                    // and its response may never arrive.
                    answer => return answer,
                },
                () = tokio::time::sleep_until(half), if again => {
                    again = false;
                    requests.push(send());
                }
                () = tokio::time::sleep_until(deadline) => return Err(late()),
            }
        }
    }

    /// After a conflict: another process holds the lease, or only changed its metadata. Returns why it is lost.
    async fn look(&mut self) -> Option<String> {
        match limited(&self.settings, self.api.get_opt(&self.settings.name)).await {
            Ok(Some(lease)) => {
                let lease = lease.into_lease();
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
                if holder != self.settings.identity {
                    return Some(format!("the lease was taken by {holder:?}"));
                }
                self.lease = lease;
                None
            }
            Ok(None) => Some("the lease was deleted".to_owned()),
            Err(_) => None,
        }
    }

    /// Releases the lease, so that the next leader need not wait for its expiry. Nothing is written afterwards. It takes at most 5
    /// seconds.
    pub async fn release(mut self) {
        self.fence.close();
        match within(RELEASE_TIMEOUT, self.release_or_look()).await {
            Ok(true) => tracing::info!("the lease was released"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the lease could not be released: the next leader waits until it expires");
            }
        }
    }

    /// Releases the lease; returns false if it is another's already.
    async fn release_or_look(&mut self) -> Result<bool, kube::Error> {
        match self.try_release().await {
            // A renewal in flight may have changed the Lease: then it is read and released again.
            Err(error) if is_conflict(&error) => match self.look().await {
                Some(_) => Ok(false),
                None => self.try_release().await.map(|()| true),
            },
            released => released.map(|()| true),
        }
    }

    async fn try_release(&self) -> Result<(), kube::Error> {
        let mut next = self.lease.clone();
        if let Some(spec) = &mut next.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        limited(&self.settings, self.api.replace(&self.settings.name, &PostParams::default(), &StoredLease::of(next)))
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests;
