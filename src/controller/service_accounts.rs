//! Attaches pull secrets to ServiceAccounts: watches those of the allowed names, and patches each until it names what it should.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::Api;
use kube::core::ObjectMeta;
use kube::runtime::applier;
use kube::runtime::controller::{self, Action, ReconcileRequest};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::Shared;
use super::follow::{Subject, follow};
use crate::api::status::Reason;
use crate::apply::{WriteError, Writer};
use crate::attach::{self, ATTACHED, ServiceAccountRecord};
use crate::lenient::{Extract, Object, Observed, lenient, read};
use crate::plan::schedule::RetryPolicy;

/// How many ServiceAccounts are patched at a time.
const CONCURRENCY: u16 = 8;

/// So many patches of one ServiceAccount in a row are sent at once. After that somebody else, such as a GitOps tool, keeps taking our
/// entry out, and is not fought.
const QUICK_PATCHES: u32 = 3;

/// The waits between further patches.
const CONTESTED: RetryPolicy = RetryPolicy { initial: Duration::from_secs(60), max: Duration::from_secs(3600) };

/// A ServiceAccount that stayed as it should for so long is not contested.
const PEACE: Duration = Duration::from_secs(600);

const CONTESTED_MESSAGE: &str = "another client keeps removing the pull secret from the ServiceAccount, so it is added less often: add it to the source that manages the ServiceAccount, or exclude the namespace";

/// Changes of targets within this time are looked at together: thousands of namespaces may come at once.
const TOGETHER: Duration = Duration::from_millis(500);

/// A ServiceAccount as far as it is read: its name, its pull secrets, and what the operator has marked.
pub type PullSecretsOf = Observed<ServiceAccount, PullSecrets>;

/// What is kept of a ServiceAccount.
#[derive(Clone, Debug)]
pub struct PullSecrets(ServiceAccountRecord);

impl PullSecrets {
    /// What decides which patch it needs.
    pub const fn record(&self) -> &ServiceAccountRecord {
        &self.0
    }
}

impl Extract for PullSecrets {
    const METADATA_ONLY: bool = false;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Account<'a> {
            #[serde(borrow, deserialize_with = "lenient")]
            image_pull_secrets: Option<Vec<&'a RawValue>>,
        }
        #[derive(Default, Deserialize)]
        struct Entry {
            #[serde(default)]
            name: Box<str>,
        }
        // An entry that cannot be read keeps its place in the list: a patch names entries by number.
        let name = |raw: &RawValue| read::<Entry>(raw).unwrap_or_default().name;
        let mut metadata = Object::of(object).head();
        let Account { image_pull_secrets } = read(object).unwrap_or_default();
        let annotations = metadata.annotations.take();
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        let record = ServiceAccountRecord {
            uid: text(&metadata.uid),
            resource_version: text(&metadata.resource_version),
            pull_secrets: image_pull_secrets.map(|list| list.into_iter().map(name).collect()),
            attached: annotations.as_ref().and_then(|all| all.get(ATTACHED)).map(|text| text.as_str().into()),
            has_annotations: annotations.is_some(),
        };
        metadata.labels = None;
        (metadata, Self(record))
    }
}

type Key = ObjectRef<PullSecretsOf>;

/// What was done to one ServiceAccount of late.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempts {
    /// The pull secrets that it was to name.
    desired: BTreeSet<Arc<str>>,
    /// Patches for these that were stored. More than one means that somebody else has undone them.
    patches: u32,
    /// Patches in a row that failed.
    failures: u32,
    /// When the last one ended.
    last: Instant,
}

impl Attempts {
    /// How long the next patch waits from the last one.
    fn wait(&self, retry: &RetryPolicy, seed: &str) -> Duration {
        match (self.failures, self.patches.checked_sub(QUICK_PATCHES)) {
            (0, None | Some(0)) => Duration::ZERO,
            (0, Some(beyond)) => CONTESTED.delay(beyond, 1, seed),
            (failures, _) => retry.delay(failures, 1, seed),
        }
    }

    const fn is_contested(&self) -> bool {
        self.patches >= QUICK_PATCHES
    }
}

/// ServiceAccounts of one name, in one namespace or in all: no wider than the rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The ServiceAccounts' name.
    pub name: Arc<str>,
    /// The namespace; none for all.
    pub namespace: Option<Arc<str>>,
}

impl Scope {
    fn covers(&self, (namespace, name): &(String, String)) -> bool {
        *self.name == **name && self.namespace.as_deref().is_none_or(|own| own == namespace)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.as_deref().unwrap_or("*"), self.name)
    }
}

/// Attaches pull secrets to the ServiceAccounts of one scope.
pub struct Attacher {
    shared: Arc<Shared>,
    writer: Writer,
    retry: RetryPolicy,
    attempts: Mutex<HashMap<(String, String), Attempts>>,
}

impl Attacher {
    /// Patches nothing before it runs. `retry` says how long to wait after failures.
    pub fn new(shared: Arc<Shared>, writer: Writer, retry: RetryPolicy) -> Self {
        Self { shared, writer, retry, attempts: Mutex::default() }
    }

    /// Follows the ServiceAccounts of a scope and patches them; ends with the process. It must not begin before all EcrCredentials and
    /// namespaces are known: what nobody asks for any more is taken back.
    pub async fn run(self: Arc<Self>, client: Client, scope: Scope) {
        let api: Api<PullSecretsOf> = match &scope.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let (store, mut writer) = store();
        let (send, requests) = unbounded_channel();
        let config = watcher::Config::default().fields(&format!("metadata.name={}", scope.name));
        let subject =
            Subject { what: "ServiceAccounts to attach to", kind: "ServiceAccount", scope: format!("attach {scope}") };
        let begin = move || watcher(api.clone(), config.clone());
        let events = follow(subject, self.shared.clone(), begin, || {});
        let watched = async {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                writer.apply_watcher_event(&event);
                match &event {
                    Event::Apply(account) => request(&send, account),
                    Event::Delete(account) => self.forget(&place(account)),
                    Event::InitDone => {
                        self.forget_absent(&scope, &store);
                        self.request_all(&store, &send);
                    }
                    Event::Init | Event::InitApply(_) => {}
                }
            }
        };
        let targets = async {
            loop {
                // Before the look at the targets, so that no change falls in between.
                let mut changed = std::pin::pin!(self.shared.targets_changed());
                changed.as_mut().enable();
                self.request_all(&store, &send);
                changed.await;
                tokio::time::sleep(TOGETHER).await;
            }
        };
        tokio::select! {
            () = watched => {}
            () = targets => {}
            () = self.clone().work(store.clone(), requests) => {}
        }
    }

    /// Puts the ServiceAccounts on the queue that are not as they should be.
    fn request_all(&self, store: &Store<PullSecretsOf>, send: &UnboundedSender<Key>) {
        for account in store.state() {
            if attach::patch(account.content.record(), &self.desired(&account)).is_some() {
                request(send, &account);
            }
        }
    }

    async fn work(self: Arc<Self>, store: Store<PullSecretsOf>, requests: UnboundedReceiver<Key>) {
        let requests = futures::stream::unfold(requests, |mut requests| async move {
            requests.recv().await.map(|key| (Ok::<_, Infallible>(ReconcileRequest::from(key)), requests))
        });
        let reconciler =
            |account: Arc<PullSecretsOf>, ctx: Arc<Self>| async move { ctx.reconcile(&account).await }.boxed();
        let on_error = |_: Arc<PullSecretsOf>, _: &Infallible, _: Arc<Self>| Action::await_change();
        let config = controller::Config::default().concurrency(CONCURRENCY);
        let work = applier(reconciler, on_error, self, store, Box::pin(requests), config);
        // An object that is gone by the time its turn comes.
        let mut work = std::pin::pin!(work);
        while work.next().await.is_some() {}
    }

    fn desired(&self, account: &PullSecretsOf) -> BTreeSet<Arc<str>> {
        let (namespace, name) = place(account);
        self.shared.state.lock().index.attached(&namespace, &name)
    }

    async fn reconcile(&self, account: &PullSecretsOf) -> Result<Action, Infallible> {
        let (place, desired) = (place(account), self.desired(account));
        let Some(operations) = attach::patch(account.content.record(), &desired) else {
            self.settled(&place);
            return Ok(Action::await_change());
        };
        let known = self.attempts.lock().get(&place).filter(|known| known.desired == desired).cloned();
        let mut attempts = known.unwrap_or(Attempts { desired, patches: 0, failures: 0, last: Instant::now() });
        let left = attempts.wait(&self.retry, &place.0).saturating_sub(attempts.last.elapsed());
        if !left.is_zero() {
            if attempts.is_contested() {
                self.report(&place, Some((Reason::Contested, CONTESTED_MESSAGE.to_owned())));
            }
            return Ok(Action::requeue(left));
        }
        let result = self.writer.patch_service_account(&place.0, &place.1, &operations).await;
        attempts.last = Instant::now();
        match &result {
            Ok(()) => (attempts.patches, attempts.failures) = (attempts.patches.saturating_add(1), 0),
            // The object or its namespace is going: its event follows.
            Err(WriteError::NamespaceGone) => return Ok(Action::await_change()),
            Err(_) => attempts.failures = attempts.failures.saturating_add(1),
        }
        let wait = attempts.wait(&self.retry, &place.0);
        self.attempts.lock().insert(place.clone(), attempts);
        match result {
            Ok(()) => {
                self.report(&place, None);
                return Ok(Action::await_change());
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                self.report(&place, Some((reason, message)));
            }
            // It has changed meanwhile: the watch shows how.
            Err(WriteError::Stale | WriteError::NamespaceGone) => {}
        }
        Ok(Action::requeue(wait))
    }

    /// A ServiceAccount is as it should be. Only one that stays so is not contested.
    fn settled(&self, place: &(String, String)) {
        let mut attempts = self.attempts.lock();
        let over = |attempts: &Attempts| attempts.last.elapsed() >= PEACE;
        if attempts.get(place).is_none_or(|known| !known.is_contested() || over(known)) {
            self.report(place, None);
        }
        attempts.retain(|_, attempts| !over(attempts));
    }

    /// A whole list: who is not on it is gone, though nobody has told of its end.
    fn forget_absent(&self, scope: &Scope, store: &Store<PullSecretsOf>) {
        let present: HashSet<(String, String)> = store.state().iter().map(|account| place(account)).collect();
        let is_absent = |place: &(String, String)| scope.covers(place) && !present.contains(place);
        self.attempts.lock().retain(|place, _| !is_absent(place));
        let told: Vec<(String, String)> = {
            let cluster = self.shared.state.lock();
            cluster.unattached.keys().map(|(namespace, name)| (namespace.to_string(), name.to_string())).collect()
        };
        told.iter().filter(|place| is_absent(place)).for_each(|place| self.forget(place));
    }

    fn forget(&self, place: &(String, String)) {
        self.attempts.lock().remove(place);
        self.report(place, None);
    }

    fn report(&self, (namespace, name): &(String, String), failure: Option<(Reason, String)>) {
        self.shared.attachment(namespace, name, failure);
    }
}

fn place(account: &PullSecretsOf) -> (String, String) {
    (account.namespace().unwrap_or_default(), account.name_any())
}

fn request(send: &UnboundedSender<Key>, account: &PullSecretsOf) {
    // The receiver ends with the process alone.
    let _ = send.send(ObjectRef::from_obj(account));
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_account_is_read_as_far_as_it_matters() {
        let read =
            |object: serde_json::Value| serde_json::from_str::<PullSecretsOf>(&object.to_string()).unwrap().content.0;
        let metadata = json!({ "name": "default", "namespace": "a", "uid": "u", "resourceVersion": "7" });
        let bare = read(json!({ "metadata": metadata }));
        assert_eq!((bare.pull_secrets, bare.has_annotations, bare.attached), (None, false, None));
        let mut full =
            json!({ "metadata": metadata, "imagePullSecrets": [{ "name": "x" }, {}], "secrets": [{ "name": "s" }] });
        full["metadata"]["annotations"] = json!({ ATTACHED: "x" });
        // An empty reference is accepted by the API server.
        let full = read(full);
        assert_eq!(full.pull_secrets, Some(vec!["x".into(), "".into()]));
        assert_eq!(full.attached.as_deref(), Some("x"));
    }

    #[tokio::test]
    async fn what_is_told_of_accounts_ends_with_them_also_when_their_end_was_not_seen() {
        let nobody = tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let writer = Writer::new(Client::new(nobody, "default"), 1, Duration::from_secs(1));
        let cluster = crate::controller::cluster_state::ClusterState::new(Default::default(), Default::default());
        let shared = Arc::new(Shared::new(cluster, Default::default(), unbounded_channel().0, Quiet));
        let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
        let attacher = Attacher::new(shared.clone(), writer, retry);
        let failure = || Some((Reason::Forbidden, "why".to_owned()));
        for (namespace, name) in [("a", "default"), ("b", "default"), ("b", "other")] {
            attacher.report(&(namespace.to_owned(), name.to_owned()), failure());
            let attempts = Attempts { desired: BTreeSet::new(), patches: 0, failures: 1, last: Instant::now() };
            attacher.attempts.lock().insert((namespace.to_owned(), name.to_owned()), attempts);
        }
        let (store, mut writer) = store();
        let account =
            json!({ "metadata": { "name": "default", "namespace": "a", "uid": "u", "resourceVersion": "7" } });
        let account: PullSecretsOf = serde_json::from_str(&account.to_string()).unwrap();
        for event in [Event::Init, Event::InitApply(account), Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        attacher.forget_absent(&Scope { name: "default".into(), namespace: None }, &store);
        let left = [("a", "default"), ("b", "other")].map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let mut attempts: Vec<_> = attacher.attempts.lock().keys().cloned().collect();
        attempts.sort();
        assert_eq!(attempts, left);
        let told =
            shared.state.lock().unattached.keys().map(|(ns, n)| (ns.to_string(), n.to_string())).collect::<Vec<_>>();
        assert_eq!(told, left);
    }

    struct Quiet;

    impl crate::controller::WatchObserver for Quiet {
        fn gone(&self, _: &crate::plan::Uid) {}
        fn unreadable(&self, _: &crate::plan::Uid, _: &str, _: Option<&crate::api::EcrCredentialStatus>) {}
        fn skipped(&self, _: &'static str, _: usize) {}
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_reverting_is_not_fought() {
        let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
        let attempts = |patches, failures| {
            Attempts { desired: BTreeSet::new(), patches, failures, last: Instant::now() }.wait(&retry, "a")
        };
        assert!((0..=QUICK_PATCHES).all(|patches| attempts(patches, 0).is_zero()));
        assert!(attempts(QUICK_PATCHES + 1, 0) >= Duration::from_secs(30));
        assert!(attempts(QUICK_PATCHES + 20, 0) >= Duration::from_secs(1800), "at most twice an hour in the end");
        assert!(!attempts(0, 1).is_zero() && attempts(0, 1) <= Duration::from_secs(1));
        assert!(attempts(0, 30) <= retry.max);
    }
}
