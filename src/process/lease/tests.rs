//! The lease on an API server that is slow, unreachable or hands it to somebody else, on virtual time.

use std::sync::Arc;

use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// An API server with one Lease, each of whose answers takes some time.
#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

struct State {
    lease: Option<Value>,
    version: u64,
    takes: Duration,
    /// Nothing is answered at all.
    silent: bool,
    /// How many requests get no answer from now on, though they are carried out.
    lost: usize,
    /// The status code with which a webhook refuses every write.
    refuses: Option<u16>,
}

impl Server {
    fn new(takes: Duration) -> Self {
        Self(Arc::new(Mutex::new(State { lease: None, version: 0, takes, silent: false, lost: 0, refuses: None })))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "home")
    }

    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let is_read = request.method() == http::Method::GET;
        let body = request.into_body().collect_bytes().await.unwrap();
        let (takes, silent) = {
            let state = self.0.lock();
            (state.takes, state.silent)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(takes).await;
        let (code, answer) = self.carry_out(is_read, serde_json::from_slice(&body).unwrap_or_default());
        let lost = {
            let mut state = self.0.lock();
            let lost = !is_read && state.lost > 0;
            state.lost -= usize::from(lost);
            lost
        };
        if lost {
            std::future::pending::<()>().await;
        }
        http::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }

    fn carry_out(&self, is_read: bool, body: Value) -> (u16, Value) {
        let mut state = self.0.lock();
        let status = |code: u16, reason: &str| {
            (code, json!({ "kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code }))
        };
        if is_read {
            return state.lease.clone().map_or_else(|| status(404, "NotFound"), |lease| (200, lease));
        }
        if let Some(code) = state.refuses {
            return status(code, "admission webhook \"w.example\" denied the request: no leases");
        }
        let stored = state.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        if stored.is_some_and(|stored| stored != body["metadata"]["resourceVersion"]) {
            return status(409, "Conflict");
        }
        state.version += 1;
        let mut lease = body;
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.lease = Some(lease.clone());
        (200, lease)
    }

    /// Somebody else writes the Lease.
    fn change(&self, field: &str, value: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        let version = state.version.to_string();
        let lease = state.lease.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = json!(version);
        lease["spec"][field] = value;
    }

    fn holder(&self) -> Option<String> {
        self.0.lock().lease.as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }
}

fn settings(identity: &str) -> LeaseSettings {
    let duration = Duration::from_secs(15);
    LeaseSettings { namespace: "home".to_owned(), name: "lease".to_owned(), identity: identity.to_owned(), duration }
}

async fn lead(server: &Server, fence: &Fence) -> Leadership {
    let leading = acquire(server.client(), settings("me"), fence.clone(), || {});
    tokio::time::timeout(HOUR, leading).await.expect("the lease can be taken")
}

/// For how long the lease was kept, at most so long, and why it was lost if it was.
async fn keep(leadership: &mut Leadership, most: Duration) -> (Duration, Option<String>) {
    let begun = Instant::now();
    let why = tokio::time::timeout(most, leadership.keep()).await.ok();
    (begun.elapsed(), why)
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_slow_api_server_costs_no_lease() {
    // Up to a third of the lease.
    for takes in [0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 4.9].map(Duration::from_secs_f64) {
        let (server, fence) = (Server::new(takes), Fence::default());
        let mut leadership = lead(&server, &fence).await;
        let (_, lost) = keep(&mut leadership, HOUR).await;
        assert_eq!(lost, None, "each answer takes {takes:?}");
        assert!(fence.deadline().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dead_without_a_sign_costs_no_lease() {
    let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
    let mut leadership = lead(&server, &fence).await;
    for _ in 0..20 {
        server.0.lock().lost = 1;
        let (_, lost) = keep(&mut leadership, Duration::from_secs(30)).await;
        assert_eq!(lost, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_given_up_before_others_take_it() {
    let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
    let mut leadership = lead(&server, &fence).await;
    server.0.lock().silent = true;
    let (kept, lost) = keep(&mut leadership, HOUR).await;
    assert!(lost.is_some() && fence.deadline().is_none());
    // Others wait for 15 s since its last renewal.
    assert!(kept <= Duration::from_secs(13), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_another_is_waited_for_and_no_longer_held_when_it_is_taken() {
    let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
    drop(acquire(server.client(), settings("other"), Fence::default(), || {}).await);
    let begun = Instant::now();
    let mut leadership = lead(&server, &fence).await;
    assert!(begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(server.holder().as_deref(), Some("me"));
    // Somebody only touches it.
    server.change("note", json!("x"));
    assert_eq!(keep(&mut leadership, Duration::from_secs(30)).await.1, None);
    server.change("holderIdentity", json!("other"));
    let (kept, lost) = keep(&mut leadership, HOUR).await;
    assert!(lost.is_some_and(|why| why.contains("other")) && kept <= Duration::from_secs(3), "{kept:?}");
    assert!(fence.deadline().is_none(), "nothing is written any more");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_is_free_at_once() {
    let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
    lead(&server, &fence).await.release().await;
    assert!(fence.deadline().is_none());
    let begun = Instant::now();
    drop(acquire(server.client(), settings("next"), Fence::default(), || {}).await);
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_five_seconds_at_most_for_the_lease_to_be_given_back() {
    // Each answer of a slow one comes in time, and two more follow because somebody has changed the Lease.
    for takes in [None, Some(4)] {
        let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
        let leadership = lead(&server, &fence).await;
        match takes {
            None => server.0.lock().silent = true,
            Some(seconds) => server.0.lock().takes = Duration::from_secs(seconds),
        }
        server.change("note", json!("x"));
        let begun = Instant::now();
        leadership.release().await;
        assert!(begun.elapsed() <= Duration::from_secs(5), "{takes:?}: {:?}", begun.elapsed());
        assert!(fence.deadline().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_meanwhile_is_given_back_all_the_same() {
    let (server, fence) = (Server::new(Duration::from_secs(1)), Fence::default());
    let leadership = lead(&server, &fence).await;
    server.change("note", json!("x"));
    leadership.release().await;
    assert_eq!(server.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_a_webhook_refuses_is_an_obstacle_and_not_the_lease_of_another() {
    for code in [404, 409] {
        // The Lease does not exist, or its holder has released it.
        for exists in [false, true] {
            let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
            if exists {
                lead(&server, &fence).await.release().await;
            }
            server.0.lock().refuses = Some(code);
            let leading = acquire(server.client(), settings("me"), fence.clone(), || panic!("{code}: it stands by"));
            assert!(tokio::time::timeout(HOUR, leading).await.is_err(), "{code}: it leads");
            assert!(fence.deadline().is_none(), "{code}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_a_webhook_refuses_is_tried_again_until_the_lease_is_over() {
    for code in [404, 409] {
        let (server, fence) = (Server::new(Duration::ZERO), Fence::default());
        let mut leadership = lead(&server, &fence).await;
        // What was read of the Lease after a conflict must not count as a renewal, nor a refusal as the end.
        server.0.lock().refuses = Some(code);
        assert_eq!(keep(&mut leadership, Duration::from_secs(7)).await.1, None, "{code}");
        server.0.lock().refuses = None;
        assert_eq!(keep(&mut leadership, HOUR).await.1, None, "{code}");
        server.0.lock().refuses = Some(code);
        let (kept, lost) = keep(&mut leadership, HOUR).await;
        assert_eq!(lost.as_deref(), Some("the lease could not be renewed in time"), "{code}");
        assert!(kept <= Duration::from_secs(13), "{kept:?}");
    }
}
