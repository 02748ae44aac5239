//! Attaches pull secrets to ServiceAccounts: watches those of the allowed names, and patches each until it names what it should.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::core::ObjectMeta;
use kube::runtime::applier;
use kube::runtime::controller::{self, Action, ReconcileRequest};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::follow::Subject;
use super::watches::follow_in;
use super::{Shared, queue};
use crate::api::status::Reason;
use crate::apply::{WriteError, Writer};
use crate::attach::{self, ATTACHED, Fault, ServiceAccountRecord, Wanted};
use crate::lenient::{Extract, Items, Object, Observed, Pairs, Text, lenient, read};
use crate::plan::schedule::RetryPolicy;
use crate::plan::scopes::AccountScope;
use crate::secret::FIELD_MANAGER;

/// How many ServiceAccounts are patched at a time, those apart whose patches are slow.
pub const CONCURRENCY: usize = 8;

/// The same with those whose patches are slow.
const WITH_SLOW: u16 = 64;

/// So many patches of one ServiceAccount in a row are sent at once. After that somebody else, such as a GitOps tool, keeps taking our
/// entry out, and is not fought.
const QUICK_PATCHES: u32 = 3;

/// The waits between further patches.
const CONTESTED: RetryPolicy = RetryPolicy { initial: Duration::from_secs(60), max: Duration::from_secs(3600) };

/// A ServiceAccount that stayed as it should for so long is not contested.
const PEACE: Duration = Duration::from_secs(600);

/// Changes of targets within this time are looked at together: thousands of namespaces may come at once.
const TOGETHER: Duration = Duration::from_millis(500);

/// A ServiceAccount as far as it is read: its name, its pull secrets, and what the operator has marked.
pub type PullSecretsOf = Observed<ServiceAccount, PullSecrets>;

/// What is kept of a ServiceAccount.
#[derive(Clone, Debug)]
pub struct PullSecrets {
    /// What decides which patch it needs.
    pub record: ServiceAccountRecord,
    /// The field manager other than the operator that has set `imagePullSecrets`, if `managedFields` says so.
    manager: Option<Box<str>>,
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
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Managed<'a> {
            #[serde(borrow)]
            managed_fields: Items<Manager<'a>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Manager<'a> {
            #[serde(borrow, deserialize_with = "lenient")]
            manager: Option<Text<'a>>,
            #[serde(borrow)]
            fields_v1: Pairs<'a, &'a RawValue>,
        }
        // An entry that cannot be read keeps its place in the list: a patch names entries by number.
        let name = |raw: &RawValue| read::<Entry>(raw).unwrap_or_default().name;
        let parts = Object::of(object);
        let mut metadata = parts.head();
        let Managed { managed_fields: Items(managers) } = parts.metadata.and_then(read).unwrap_or_default();
        let sets_list = |entry: &Manager<'_>| entry.fields_v1.get("f:imagePullSecrets").is_some();
        let mut others = managers.iter().filter(|entry| sets_list(entry)).filter_map(|entry| entry.manager.as_deref());
        let manager = others.rfind(|name| *name != FIELD_MANAGER).map(Into::into);
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
        (metadata, Self { record, manager })
    }
}

type Key = ObjectRef<PullSecretsOf>;

/// What was done to one ServiceAccount of late.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempts {
    /// The pull secrets that it was asked to name.
    asked: BTreeSet<Arc<str>>,
    /// Patches for these that were stored. More than one means that somebody else has undone them.
    patches: u32,
    /// Patches in a row that failed.
    failures: u32,
    /// Whether admission has undone the last patch.
    by_admission: bool,
    /// When the last one ended.
    last: Instant,
    /// Since when it has been as it should; none while it is not.
    right_since: Option<Instant>,
}

impl Attempts {
    const fn new(asked: BTreeSet<Arc<str>>, now: Instant) -> Self {
        Self { asked, patches: 0, failures: 0, by_admission: false, last: now, right_since: None }
    }

    /// How long the next patch waits from the last one.
    fn wait(&self, retry: &RetryPolicy, seed: &str) -> Duration {
        match (self.failures, self.patches.checked_sub(QUICK_PATCHES)) {
            (0, None | Some(0)) => Duration::ZERO,
            (0, Some(beyond)) => CONTESTED.delay(beyond, 1, seed),
            (failures, _) => retry.delay(failures, 1, seed),
        }
    }

    /// Whether the next patch waits because somebody else undoes each.
    const fn is_contested(&self) -> bool {
        self.patches > QUICK_PATCHES
    }

    /// How long one that is as it should be has to stay so to be forgotten.
    fn peace_in(&mut self, now: Instant) -> Duration {
        let since = *self.right_since.get_or_insert(now);
        PEACE.saturating_sub(now.duration_since(since))
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

    /// Follows the ServiceAccounts of a scope and patches them; ends with the process. It must not begin before all EcrCredentials, Secrets and
    /// namespaces are known: what nobody asks for any more is taken back.
    pub async fn run(self: Arc<Self>, client: Client, scope: AccountScope) {
        let (store, mut writer) = store();
        let (send, requests) = unbounded_channel();
        let subject =
            Subject { what: "ServiceAccounts to attach to", kind: "ServiceAccount", scope: format!("attach {scope}") };
        let selected = (scope.namespace.as_deref(), Some(&*scope.name));
        let refused = || self.shared.accounts_watched(&scope, false);
        let events = follow_in(client, selected, subject, self.shared.clone(), refused);
        let watched = async {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                writer.apply_watcher_event(&event);
                match &event {
                    Event::Apply(account) => request(&send, account),
                    Event::Delete(account) => self.forget(&place(account)),
                    Event::InitDone => {
                        self.shared.accounts_watched(&scope, true);
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

    /// Puts the ServiceAccounts on the queue that are not as they should be, or that are reported.
    fn request_all(&self, store: &Store<PullSecretsOf>, send: &UnboundedSender<Key>) {
        for account in store.state() {
            let wanted = self.wanted(&account);
            let is_right = wanted.foreign.is_empty() && attach::patch(&account.content.record, &wanted).is_none();
            if !is_right || self.is_reported(&place(&account)) {
                request(send, &account);
            }
        }
    }

    async fn work(self: Arc<Self>, store: Store<PullSecretsOf>, requests: UnboundedReceiver<Key>) {
        let requests =
            queue(requests, std::future::pending()).map(|key| Ok::<_, Infallible>(ReconcileRequest::from(key)));
        let present = store.clone();
        let reconciler = move |account: Arc<PullSecretsOf>, ctx: Arc<Self>| {
            let present = present.clone();
            async move {
                let action = ctx.reconcile(&account).await;
                let now = present.get(&ObjectRef::from_obj(&*account));
                if now.is_some_and(|now| now.uid() == account.uid()) {
                    return action;
                }
                // It is gone, or another by now that has a request of its own. What a late answer to its patch has left is forgotten
                // again: no event would do so.
                ctx.forget(&place(&account));
                Ok(Action::await_change())
            }
            .boxed()
        };
        let on_error = |_: Arc<PullSecretsOf>, _: &Infallible, _: Arc<Self>| Action::await_change();
        let config = controller::Config::default().concurrency(WITH_SLOW);
        let work = applier(reconciler, on_error, self, store, Box::pin(requests), config);
        // An object that is gone by the time its turn comes.
        let mut work = std::pin::pin!(work);
        while work.next().await.is_some() {}
    }

    fn wanted(&self, account: &PullSecretsOf) -> Wanted {
        let (namespace, name) = place(account);
        self.shared.pull_secrets_of(&namespace, &name, &account.content.record)
    }

    async fn reconcile(&self, account: &PullSecretsOf) -> Result<Action, Infallible> {
        let (place, wanted) = (place(account), self.wanted(account));
        let operations = attach::patch(&account.content.record, &wanted);
        let Some(operations) = operations else { return Ok(self.settled(&place, &wanted)) };
        let known = self.attempts.lock().get(&place).filter(|known| known.asked == wanted.asked()).cloned();
        let mut attempts = known.unwrap_or_else(|| Attempts::new(wanted.asked(), Instant::now()));
        attempts.right_since = None;
        let contested = |attempts: &Attempts| attempts.is_contested().then(|| contested(attempts, account));
        let left = attempts.wait(&self.retry, &place.0).saturating_sub(attempts.last.elapsed());
        if !left.is_zero() {
            if let Some(contested) = contested(&attempts) {
                self.report(&place, Some(contested), &wanted);
            }
            self.attempts.lock().insert(place, attempts);
            return Ok(Action::requeue(left));
        }
        let result = self.writer.patch_service_account::<PullSecrets>(&place.0, &place.1, &operations).await;
        attempts.last = Instant::now();
        match &result {
            Ok(stored) => {
                let was_by_admission = attempts.by_admission;
                attempts.by_admission = attach::patch(&stored.content.record, &wanted).is_some();
                let before = match attempts.by_admission {
                    // To try again at once would lead to the same.
                    true => attempts.patches.max(QUICK_PATCHES),
                    // Admission has let it through, and nobody else has undone any.
                    false if was_by_admission => 0,
                    false => attempts.patches,
                };
                (attempts.patches, attempts.failures) = (before.saturating_add(1), 0);
            }
            // The object or its namespace is going: its event follows.
            Err(WriteError::NamespaceGone) => return Ok(Action::await_change()),
            Err(_) => attempts.failures = attempts.failures.saturating_add(1),
        }
        let (wait, contested) = (attempts.wait(&self.retry, &place.0), contested(&attempts));
        let by_admission = attempts.by_admission;
        self.attempts.lock().insert(place.clone(), attempts);
        match result {
            Ok(_) => {
                // A contested one has the entry until it is removed again: the status must not flap.
                self.report(&place, contested, &wanted);
                // Where admission has undone the patch, nothing has changed and no event comes.
                return Ok(if by_admission { Action::requeue(wait) } else { Action::await_change() });
            }
            Err(WriteError::Unchangeable(reason, message) | WriteError::Refused(reason, message)) => {
                self.report(&place, Some((reason, message)), &wanted);
            }
            // It has changed meanwhile: the watch shows how.
            Err(WriteError::Stale | WriteError::NamespaceGone) => {}
        }
        Ok(Action::requeue(wait))
    }

    /// A ServiceAccount is as it should be. One that was contested is reported until it has stayed so for a while. It is examined
    /// again then, because no event may come.
    fn settled(&self, place: &(String, String), wanted: &Wanted) -> Action {
        let now = Instant::now();
        let left = {
            let mut attempts = self.attempts.lock();
            let known = attempts.get_mut(place).filter(|known| known.asked == wanted.asked());
            let left = known.map(|known| (known.peace_in(now), known.is_contested()));
            let left = left.filter(|(left, _)| !left.is_zero());
            if left.is_none() {
                attempts.remove(place);
            }
            left
        };
        if !left.is_some_and(|(_, contested)| contested) {
            self.report(place, None, wanted);
        }
        left.map_or_else(Action::await_change, |(left, _)| Action::requeue(left))
    }

    /// A whole list: who is not on it is gone, though nobody has told of its end.
    fn forget_absent(&self, scope: &AccountScope, store: &Store<PullSecretsOf>) {
        let present: HashSet<(String, String)> = store.state().iter().map(|account| place(account)).collect();
        let is_in_scope = |(namespace, name): &(String, String)| {
            *scope.name == **name && scope.namespace.as_deref().is_none_or(|own| own == namespace)
        };
        let is_absent = |place: &(String, String)| is_in_scope(place) && !present.contains(place);
        self.attempts.lock().retain(|place, _| !is_absent(place));
        let told: Vec<(String, String)> = {
            let cluster = self.shared.state.lock();
            cluster.unattached.keys().map(|(namespace, name)| (namespace.to_string(), name.to_string())).collect()
        };
        told.iter().filter(|place| is_absent(place)).for_each(|place| self.forget(place));
    }

    fn forget(&self, place: &(String, String)) {
        self.attempts.lock().remove(place);
        self.report(place, None, &Wanted::default());
    }

    fn report(&self, (namespace, name): &(String, String), failure: Option<(Reason, String)>, wanted: &Wanted) {
        self.shared.attachment(namespace, name, Fault { failure, foreign: wanted.foreign.clone() });
    }

    fn is_reported(&self, (namespace, name): &(String, String)) -> bool {
        self.shared.state.lock().unattached.contains_key(&(namespace.as_str().into(), name.as_str().into()))
    }
}

/// What the status says of a ServiceAccount from which somebody, or admission, keeps removing our entry.
fn contested(attempts: &Attempts, account: &PullSecretsOf) -> (Reason, String) {
    if attempts.by_admission {
        let message = "admission (a mutating webhook or policy) removes the pull secret from the ServiceAccount, so it is added less often: exempt the ServiceAccount from it, or exclude the namespace";
        return (Reason::Contested, message.to_owned());
    }
    // The field manager that has set the list.
    let manager = account.content.manager.as_deref();
    let who = manager.map(|name| format!(" (field manager {name:?})")).unwrap_or_default();
    let message = format!(
        "another client{who} keeps removing the pull secret from the ServiceAccount, so it is added less often: add it to the source that manages the ServiceAccount, or exclude the namespace"
    );
    (Reason::Contested, message)
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
    use k8s_openapi::jiff::Timestamp;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::NamespaceSelection;
    use crate::controller::cluster_state::ClusterState;
    use crate::plan::Uid;
    use crate::plan::namespaces::{Labels, NamespaceMatcher, NamespaceUid};
    use crate::plan::outputs::WantedSecret;
    use crate::plan::scopes::{SecretKey, SecretScope};
    use crate::plan::targets::{Activity, CredentialRef};
    use crate::secret::ownership::{ManagedFieldsDigest, SecretRecord};

    #[test]
    fn a_service_account_is_read_as_far_as_it_matters() {
        let read = |object: serde_json::Value| {
            serde_json::from_str::<PullSecretsOf>(&object.to_string()).unwrap().content.record
        };
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

    /// An attacher to an API server that accepts each patch, and how many it has accepted.
    fn attacher() -> (Attacher, Arc<Mutex<usize>>) {
        attacher_to(|added| added)
    }

    /// The same where admission makes something of the entries that a patch adds.
    fn attacher_to(admission: fn(Vec<Value>) -> Vec<Value>) -> (Attacher, Arc<Mutex<usize>>) {
        let patches: Arc<Mutex<usize>> = Arc::default();
        let counted = patches.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            *counted.lock() += 1;
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let operations: Vec<Value> = serde_json::from_slice(&body).unwrap();
                let list = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                let adds = |operation: &&Value| {
                    operation["op"] == "add" && operation["path"].as_str().unwrap().starts_with("/imagePullSecrets")
                };
                let added = operations.iter().filter(adds).flat_map(|operation| list(&operation["value"]));
                let answer = json!({
                    "metadata": { "name": "default", "namespace": "a" }, "imagePullSecrets": admission(added.collect()),
                });
                Ok::<_, Infallible>(Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        let writer = Writer::new(Client::new(server, "default"), 1, Duration::from_secs(1));
        let cluster = ClusterState::new(Default::default(), Default::default());
        let shared = Arc::new(Shared::new(cluster, Default::default(), unbounded_channel().0, Quiet));
        let retry = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
        (Attacher::new(shared, writer, retry), patches)
    }

    /// An `EcrCredential` whose Secret `pull` in the namespace `a` is attached to `default`.
    fn attach(attacher: &Attacher, uid: &str, activity: Activity) {
        attach_in(attacher, uid, activity, ("pull", "a"), "default");
    }

    /// An `EcrCredential` whose Secret of a name and namespace is attached to the ServiceAccounts of a name.
    fn attach_in(attacher: &Attacher, uid: &str, activity: Activity, (secret, namespace): (&str, &str), to: &str) {
        let selection = NamespaceSelection { names: vec![namespace.to_owned()], ..NamespaceSelection::default() };
        let credential = CredentialRef {
            name: uid.into(),
            created: Timestamp::UNIX_EPOCH,
            activity,
            secrets: vec![WantedSecret::anywhere(secret, NamespaceMatcher::parse(&selection).ok())],
            generation: Some(1),
            references: BTreeSet::new(),
            attach: vec![wildmatch::WildMatch::new(to)],
        };
        let mut state = attacher.shared.state.lock();
        state.set_namespace("a", NamespaceUid::default(), &Labels::new(), false);
        state.set_credential(&Uid(uid.into()), credential);
    }

    /// The ServiceAccount `default` of the namespace `a` that names these pull secrets. `manager` wrote the list.
    fn account(names: &[&str], attached: Option<&str>, manager: &str) -> PullSecretsOf {
        let names: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
        let fields = |field: &str| json!({ field: {} });
        let object = json!({
            "metadata": {
                "name": "default", "namespace": "a", "uid": "u", "resourceVersion": "7",
                "annotations": attached.map(|text| json!({ ATTACHED: text })),
                "managedFields": [
                    { "manager": "kubectl", "operation": "Update", "fieldsV1": fields("f:secrets") },
                    { "manager": manager, "operation": "Update", "fieldsV1": fields("f:imagePullSecrets") },
                ],
            },
            "imagePullSecrets": names,
        });
        serde_json::from_str(&object.to_string()).unwrap()
    }

    fn told(attacher: &Attacher) -> Option<(Reason, String)> {
        told_of(attacher, "x").map(|told| (told.reason, told.message))
    }

    fn told_of(attacher: &Attacher, uid: &str) -> Option<attach::Unattached> {
        attacher.shared.state.lock().unattached_of(&Uid(uid.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn while_somebody_keeps_removing_the_entry_it_is_added_less_often_and_what_is_told_does_not_change() {
        let (attacher, patches) = attacher();
        attach(&attacher, "x", Activity::Active);
        let (removed, added) =
            (account(&["theirs"], Some("pull"), "gitops"), account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER));
        let mut seen = Vec::new();
        let begun = Instant::now();
        // It takes the entry out as soon as it is there, and others settle meanwhile.
        while begun.elapsed() < Duration::from_secs(24 * 3600) {
            let action = attacher.reconcile(&removed).await.unwrap();
            seen.push(told(&attacher));
            if action == Action::await_change() {
                attacher.reconcile(&added).await.unwrap();
                seen.push(told(&attacher));
            }
            attacher.settled(&("b".to_owned(), "default".to_owned()), &Wanted::default());
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        let sent = *patches.lock();
        assert!((24..60).contains(&sent), "about one in an hour in the end, not {sent} in a day");
        let first = seen.iter().position(Option::is_some).unwrap();
        seen.drain(..first);
        seen.dedup();
        let [Some((Reason::Contested, message))] = &seen[..] else { panic!("{seen:?}") };
        assert!(message.contains("\"gitops\""), "{message}");
        // It ends when the entry has stayed for a while, though nothing happens then.
        let action = attacher.reconcile(&added).await.unwrap();
        assert_eq!(action, Action::requeue(PEACE));
        tokio::time::advance(PEACE).await;
        assert!(told(&attacher).is_some());
        assert_eq!(attacher.reconcile(&added).await.unwrap(), Action::await_change());
        assert_eq!((told(&attacher), attacher.attempts.lock().len()), (None, 0));
        // A single removal after that is repaired at once.
        attacher.reconcile(&removed).await.unwrap();
        assert_eq!((told(&attacher), *patches.lock()), (None, sent + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_attached_stays_while_the_credential_is_suspended_and_its_secret_is_there() {
        let (attacher, patches) = attacher();
        let digest = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let secret = || Arc::new(SecretRecord::fixture(Some(Uid("x".into())), "7", digest));
        let (bare, ours) =
            (account(&["theirs"], None, "gitops"), account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER));
        for activity in [Activity::Idle, Activity::Unreadable] {
            let begun = *patches.lock();
            attach(&attacher, "x", activity);
            attacher.shared.secret_changed("pull", "a", secret());
            for account in [&bare, &ours] {
                assert_eq!(attacher.reconcile(account).await.unwrap(), Action::await_change(), "{activity:?}");
            }
            assert_eq!(*patches.lock(), begun, "{activity:?}: nothing is added and nothing removed");
            // What somebody else has removed is not added again.
            let marked = account(&["theirs"], Some("pull"), "gitops");
            let operations = attach::patch(&marked.content.record, &attacher.wanted(&marked));
            assert!(!json!(operations).to_string().contains("imagePullSecrets"), "{operations:?}");
            attacher.shared.secret_gone("pull", "a", None);
            assert!(attach::patch(&ours.content.record, &attacher.wanted(&ours)).is_some(), "the Secret is gone");
        }
        attacher.shared.secret_changed("pull", "a", secret());
        attach(&attacher, "x", Activity::Active);
        assert!(attach::patch(&bare.content.record, &attacher.wanted(&bare)).is_some());
        attacher.shared.state.lock().remove_credential(&Uid("x".into()));
        assert!(attach::patch(&ours.content.record, &attacher.wanted(&ours)).is_some(), "the EcrCredential is gone");
    }

    #[tokio::test]
    async fn the_secret_of_an_old_name_stays_attached_until_the_one_of_the_new_name_is_there() {
        type Arrival = fn(&Shared, Arc<SecretRecord>);
        let arrivals: [(&str, Arrival); 3] = [
            ("listed", |shared, record| shared.secret_listed("new", "a", record)),
            ("an event", |shared, record| shared.secret_changed("new", "a", record)),
            ("the answer to a write", |shared, record| {
                shared.write_begins(SecretKey::new("new", "a"), None).stored(record, &Uid("x".into()));
            }),
        ];
        let (attacher, _) = attacher();
        let shared = attacher.shared.clone();
        let digest = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let secret =
            |owner: Option<&str>| Arc::new(SecretRecord::fixture(owner.map(|owner| Uid(owner.into())), "7", digest));
        let bare = account(&["theirs"], None, "gitops");
        let both = account(&["theirs", "pull", "new"], Some("new,pull"), FIELD_MANAGER);
        let is_right =
            |account: &PullSecretsOf| attach::patch(&account.content.record, &attacher.wanted(account)).is_none();
        let rename = |(secret, namespace), to| attach_in(&attacher, "x", Activity::Active, (secret, namespace), to);
        shared.secret_changed("pull", "a", secret(Some("x")));
        rename(("new", "a"), "default");
        for (what, arrival) in arrivals {
            assert!(is_right(&both), "{what}: the old Secret alone is there");
            assert!(attacher.wanted(&bare).kept.is_empty(), "what somebody else has removed is not added again");
            let mut woken = std::pin::pin!(shared.targets_changed());
            woken.as_mut().enable();
            arrival(&shared, secret(Some("x")));
            assert!(woken.now_or_never().is_some(), "{what}: ServiceAccounts are looked at again");
            assert!(!is_right(&both), "{what}: the new Secret is there");
            shared.secret_gone("new", "a", None);
        }
        shared.secret_changed("new", "a", secret(None));
        assert!(is_right(&both), "the Secret of the new name is not ours");
        for (what, place, to) in [
            ("the namespace was deselected", ("new", "b"), "default"),
            ("the ServiceAccount was deselected", ("new", "a"), "builder"),
        ] {
            rename(place, to);
            assert!(attacher.wanted(&both).kept.is_empty(), "{what}");
        }
        rename(("new", "a"), "default");
        let mut woken = std::pin::pin!(shared.targets_changed());
        woken.as_mut().enable();
        shared.secret_gone("pull", "a", None);
        assert!(woken.now_or_never().is_some() && !is_right(&both), "the old Secret is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_admission_undoes_is_told_at_once_and_seldom_tried_again_though_no_event_comes() {
        let (attacher, patches) = attacher_to(|_| Vec::new());
        attach(&attacher, "x", Activity::Active);
        let bare = account(&["theirs"], None, "gitops");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(24 * 3600) {
            let action = attacher.reconcile(&bare).await.unwrap();
            assert_ne!(action, Action::await_change(), "nothing has changed, so nothing will be seen");
            let Some((Reason::Contested, message)) = told(&attacher) else { panic!("{:?}", told(&attacher)) };
            assert!(message.contains("admission"), "{message}");
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        assert!((24..60).contains(&*patches.lock()), "{} in a day", patches.lock());
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_of_somebody_else_is_not_attached_until_it_is_the_operators() {
        let (attacher, patches) = attacher();
        let digest = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let secret =
            |owner: Option<&str>| Arc::new(SecretRecord::fixture(owner.map(|owner| Uid(owner.into())), "7", digest));
        let shared = attacher.shared.clone();
        attach(&attacher, "x", Activity::Active);
        let (bare, ours) =
            (account(&["theirs"], None, "gitops"), account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER));
        let woken = |change: &dyn Fn()| {
            let mut woken = std::pin::pin!(shared.targets_changed());
            woken.as_mut().enable();
            change();
            woken.now_or_never().is_some()
        };
        assert!(woken(&|| shared.secret_changed("pull", "a", secret(None))), "ServiceAccounts are looked at again");
        for account in [&bare, &ours] {
            assert_eq!(attacher.reconcile(account).await.unwrap(), Action::await_change());
            assert!(matches!(told(&attacher), Some((Reason::SecretNotOwned, message)) if message.contains("pull")));
        }
        assert_eq!(*patches.lock(), 0, "nothing is added, and what was added stays");
        assert!(woken(&|| shared.secret_changed("pull", "a", secret(Some("x")))), "it was adopted");
        attacher.reconcile(&bare).await.unwrap();
        assert_eq!((told(&attacher), *patches.lock()), (None, 1));
        assert!(!woken(&|| shared.secret_gone("pull", "a", None)), "its own Secret will come back");
        shared.secret_changed("pull", "a", secret(None));
        assert!(woken(&|| shared.secret_gone("pull", "a", None)), "somebody else has deleted theirs");
        assert!(attach::patch(&bare.content.record, &attacher.wanted(&bare)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_admission_lets_through_again_is_attached_and_nobody_is_accused() {
        static IS_REPAIRED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        let (attacher, _) =
            attacher_to(
                |added| if IS_REPAIRED.load(std::sync::atomic::Ordering::Relaxed) { added } else { Vec::new() },
            );
        attach(&attacher, "x", Activity::Active);
        let (bare, ours) =
            (account(&["theirs"], None, "gitops"), account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER));
        for _ in 0..3 {
            attacher.reconcile(&bare).await.unwrap();
            assert!(told(&attacher).is_some_and(|(_, message)| message.contains("admission")));
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
        IS_REPAIRED.store(true, std::sync::atomic::Ordering::Relaxed);
        for account in [&bare, &ours] {
            attacher.reconcile(account).await.unwrap();
            assert_eq!(told(&attacher), None);
        }
    }

    #[tokio::test]
    async fn a_secret_of_somebody_else_is_told_to_those_who_attach_it_alone() {
        let (attacher, patches) = attacher();
        let digest = ManagedFieldsDigest::desired(&ObjectMeta::default());
        let names = [("x", "pull"), ("y", "other"), ("z", "third")];
        for (uid, secret) in names {
            attach_in(&attacher, uid, Activity::Active, (secret, "a"), "default");
        }
        let foreign = Arc::new(SecretRecord::fixture(None, "7", digest));
        for secret in ["other", "third"] {
            attacher.shared.secret_changed(secret, "a", foreign.clone());
        }
        let added = account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER);
        for account in [&account(&["theirs"], None, "gitops"), &added] {
            attacher.reconcile(account).await.unwrap();
            assert_eq!(told(&attacher), None, "its own Secret is attached");
            for (uid, secret) in &names[1..] {
                let told = told_of(&attacher, uid).unwrap();
                assert_eq!((told.count, &*told.account, told.reason), (1, "a/default", Reason::SecretNotOwned));
                assert!(told.message.contains(&format!("Secret {secret} ")), "{uid}: {}", told.message);
            }
        }
        assert_eq!(*patches.lock(), 1);
    }

    #[tokio::test]
    async fn what_was_attached_stays_while_it_is_unknown_whether_its_secret_is_there() {
        let (attacher, _) = attacher();
        attach(&attacher, "x", Activity::Idle);
        let scope = |name: &str| SecretScope { name: Some(name.into()), namespace: None };
        let (bare, ours) =
            (account(&["theirs"], None, "gitops"), account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER));
        let is_right =
            |account: &PullSecretsOf| attach::patch(&account.content.record, &attacher.wanted(account)).is_none();
        attacher.shared.secrets_refused(&scope("other"));
        assert!(!is_right(&ours), "the Secret is not there");
        attacher.shared.secrets_refused(&scope("pull"));
        assert!(is_right(&ours) && is_right(&bare), "the Secret may be there");
        let mut woken = std::pin::pin!(attacher.shared.targets_changed());
        woken.as_mut().enable();
        attacher.shared.secrets_listed(&scope("pull"));
        assert!(woken.now_or_never().is_some() && !is_right(&ours), "the Secret is not there");
    }

    #[tokio::test]
    async fn accounts_that_may_not_be_watched_are_told_of_until_they_are_listed() {
        let (send, mut queued) = unbounded_channel();
        let cluster = ClusterState::new(Default::default(), Default::default());
        let shared = Arc::new(Shared::new(cluster, Default::default(), send, Quiet));
        let attacher = Attacher { shared: shared.clone(), ..attacher().0 };
        attach(&attacher, "x", Activity::Active);
        let me = Uid("x".into());
        let scope = |name: &str| AccountScope { name: name.into(), namespace: None };
        let unattached = || shared.state.lock().unattached_of(&me);
        shared.accounts_watched(&scope("other"), false);
        assert_eq!(unattached(), None, "it attaches to another");
        shared.accounts_watched(&scope("default"), false);
        let told = unattached().unwrap();
        assert_eq!((told.count, &*told.account, told.reason), (0, "*/default", Reason::Forbidden));
        for (namespace, concerned) in [("a", true), ("b", false)] {
            let scope = AccountScope { namespace: Some(namespace.into()), name: "default".into() };
            let shared = Shared::new(
                ClusterState::new(Default::default(), Default::default()),
                Default::default(),
                unbounded_channel().0,
                Quiet,
            );
            let attacher = Attacher { shared: Arc::new(shared), ..super::tests::attacher().0 };
            attach(&attacher, "x", Activity::Active);
            attacher.shared.accounts_watched(&scope, false);
            assert_eq!(told_of(&attacher, "x").is_some(), concerned, "it selects the namespace a alone: {namespace}");
        }
        shared.accounts_watched(&scope("default"), false);
        shared.accounts_watched(&scope("default"), true);
        assert_eq!(unattached(), None);
        let mut news = 0;
        while queued.try_recv().is_ok() {
            news += 1;
        }
        assert_eq!(news, 3, "each change queues it once");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_told_of_a_contested_account_that_nobody_attaches_to_any_more() {
        let (attacher, _) = attacher();
        attach(&attacher, "x", Activity::Active);
        let removed = account(&[], Some("pull"), "gitops");
        for _ in 0..10 {
            attacher.reconcile(&removed).await.unwrap();
        }
        assert!(told(&attacher).is_some());
        attacher.shared.state.lock().remove_credential(&Uid("x".into()));
        assert_eq!(attacher.reconcile(&account(&[], None, "gitops")).await.unwrap(), Action::await_change());
        let told = attacher.shared.state.lock().unattached.len();
        assert_eq!((told, attacher.attempts.lock().len()), (0, 0));
    }

    #[tokio::test]
    async fn what_is_told_of_accounts_ends_with_them_also_when_their_end_was_not_seen() {
        let (attacher, _) = attacher();
        let shared = attacher.shared.clone();
        let failure = || Some((Reason::Forbidden, "why".to_owned()));
        for (namespace, name) in [("a", "default"), ("b", "default"), ("b", "other")] {
            attacher.report(&(namespace.to_owned(), name.to_owned()), failure(), &Wanted::default());
            let attempts = Attempts { failures: 1, ..Attempts::new(BTreeSet::new(), Instant::now()) };
            attacher.attempts.lock().insert((namespace.to_owned(), name.to_owned()), attempts);
        }
        let (store, mut writer) = store();
        let account =
            json!({ "metadata": { "name": "default", "namespace": "a", "uid": "u", "resourceVersion": "7" } });
        let account: PullSecretsOf = serde_json::from_str(&account.to_string()).unwrap();
        for event in [Event::Init, Event::InitApply(account), Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        attacher.forget_absent(&AccountScope { name: "default".into(), namespace: None }, &store);
        let left = [("a", "default"), ("b", "other")].map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let mut attempts: Vec<_> = attacher.attempts.lock().keys().cloned().collect();
        attempts.sort();
        assert_eq!(attempts, left);
        let told =
            shared.state.lock().unattached.keys().map(|(ns, n)| (ns.to_string(), n.to_string())).collect::<Vec<_>>();
        assert_eq!(told, left);
    }

    #[tokio::test(start_paused = true)]
    async fn the_late_answer_to_a_patch_is_not_told_of_an_account_that_is_gone_or_another_by_now() {
        let refused = || {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                "message": "admission webhook \"w.example\" denied the request: no", "reason": "Forbidden" });
            Response::builder().status(403).body(Body::from(status.to_string().into_bytes())).unwrap()
        };
        let stored =
            || Response::new(Body::from(json!({ "metadata": { "name": "default" } }).to_string().into_bytes()));
        let mut successor = account(&["theirs", "pull"], Some("pull"), FIELD_MANAGER);
        kube::Resource::meta_mut(&mut successor).uid = Some("another".to_owned());
        let after = [None, Some(&successor)];
        for (is_refused, after) in [true, false].into_iter().flat_map(|refused| after.map(|after| (refused, after))) {
            let (sent, mut asked) = unbounded_channel();
            let server = tower::service_fn(move |_: Request<Body>| {
                let (answer, awaited) = tokio::sync::oneshot::channel();
                sent.send(answer).unwrap();
                async move { Ok::<_, Infallible>(awaited.await.unwrap()) }
            });
            let writer = Writer::new(Client::new(server, "default"), 1, Duration::from_secs(65));
            let attacher = Arc::new(Attacher { writer, ..attacher().0 });
            attach(&attacher, "x", Activity::Active);
            let ((store, mut writer), (send, requests)) = (store(), unbounded_channel());
            let bare = account(&["theirs"], None, "gitops");
            for event in [Event::Init, Event::InitApply(bare.clone()), Event::InitDone] {
                writer.apply_watcher_event(&event);
            }
            request(&send, &bare);
            let follow = async {
                let held: tokio::sync::oneshot::Sender<Response<Body>> = asked.recv().await.unwrap();
                writer.apply_watcher_event(&Event::Delete(bare.clone()));
                attacher.forget(&place(&bare));
                if let Some(after) = after {
                    writer.apply_watcher_event(&Event::Apply(after.clone()));
                    request(&send, after);
                }
                held.send(if is_refused { refused() } else { stored() }).unwrap();
                // Longer than any wait after a failure, and not as long as a contested one is reported.
                tokio::time::sleep(PEACE / 2).await;
            };
            tokio::select! {
                () = attacher.clone().work(store, requests) => panic!("its queue has not ended"),
                () = follow => {}
            }
            let kept = attacher.attempts.lock().len();
            assert_eq!(
                (told(&attacher), kept),
                (None, 0),
                "refused: {is_refused}, then {:?}",
                after.map(|after| after.uid())
            );
        }
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
            Attempts { patches, failures, ..Attempts::new(BTreeSet::new(), Instant::now()) }.wait(&retry, "a")
        };
        assert!((0..=QUICK_PATCHES).all(|patches| attempts(patches, 0).is_zero()));
        assert!(attempts(QUICK_PATCHES + 1, 0) >= Duration::from_secs(30));
        assert!(attempts(QUICK_PATCHES + 20, 0) >= Duration::from_secs(1800), "at most twice an hour in the end");
        assert!(!attempts(0, 1).is_zero() && attempts(0, 1) <= Duration::from_secs(1));
        assert!(attempts(0, 30) <= retry.max);
    }
}
