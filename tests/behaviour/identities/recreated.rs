//! A tenant's namespace is deleted and made again by somebody else: the new one never holds the old one's token.

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::wait::{await_condition, conditions};
use testbed::bed::{Operator, PATIENCE, Tenant, poll};
use testbed::proxy::{Action, Answer, Fault, Gate, Match};

use super::super::look::{AT_ONCE, counts, quiet};
use super::*;

/// A tenant that is to go and one that stays, both served.
struct Setting {
    bed: Bed,
    operator: Operator,
    name: String,
    gone: Tenant,
    stays: Tenant,
    /// The uid of the Secret in the old namespace.
    old_secret: String,
}

impl Setting {
    async fn new(test: &str) -> Self {
        let bed = bed(test).await;
        let (gone, stays) =
            (bed.tenant("gone", ONE, "puller").await.unwrap(), bed.tenant("stays", TWO, "puller").await.unwrap());
        let operator = bed.operator(launch().service_account("*/puller")).await.unwrap();
        let name = bed.credential("x", spec_as(as_each("puller"), &[&gone.namespace, &stays.namespace])).await.unwrap();
        bed.ready(&name).await.unwrap();
        quiet(&bed).await;
        let old_secret = bed.secret(&gone.namespace).await.unwrap().unwrap().metadata.uid.unwrap();
        Self { bed, operator, name, gone, stays, old_secret }
    }

    /// Deletes the one namespace and makes one of the same name without a ServiceAccount for it.
    async fn make_again(&self) {
        let namespaces: Api<Namespace> = Api::all(self.bed.client.clone());
        let uid = namespaces.get(&self.gone.namespace).await.unwrap().metadata.uid.unwrap();
        self.bed.delete_namespace(&self.gone.namespace).await.unwrap();
        let deleted = await_condition(namespaces, &self.gone.namespace, conditions::is_deleted(&uid));
        tokio::time::timeout(PATIENCE, deleted).await.expect("the namespace is gone").unwrap();
        assert_eq!(self.bed.namespace("gone", &[]).await.unwrap(), self.gone.namespace);
    }

    /// Waits until the namespace has no Secret any more.
    async fn takes_back(&self) {
        let gone = |secret: Option<&Secret>| secret.is_none();
        let taken_back = self.bed.secret_until(&self.gone.namespace, "taken back", gone);
        tokio::time::timeout(AT_ONCE, taken_back).await.expect("it was to happen at once").unwrap();
    }

    /// The namespace of somebody else is told to lack its ServiceAccount, and the other one is as it was.
    async fn is_told(&self) {
        let words = ["puller does not exist", "create it"];
        namespace_fails(&self.bed, &self.name, &self.gone.namespace, "IdentityNotFound", &words).await;
        let told = |object: &DynamicObject| counts(object) == [2, 1, 1];
        self.bed.credential_until(&self.name, "one of two", told).await.unwrap();
        quiet(&self.bed).await;
        token_of(&self.bed, &self.stays.namespace, &self.stays.role).await;
    }

    /// Whether nothing was stored in the new namespace that another role's session had fetched, not even for a moment.
    fn holds_only(&self, role: &str) -> bool {
        let versions = self.bed.recorder.secret_versions(&self.gone.namespace, &self.bed.secret);
        let later = versions.into_iter().filter(|version| version["metadata"]["uid"] != json!(self.old_secret));
        let secrets = later.map(|version| serde_json::from_value::<Secret>(version).unwrap());
        let mut auths = secrets.flat_map(|secret| logins(&secret).unwrap().into_values());
        auths.all(|auth| self.bed.aws.token_of(&auth).is_some_and(|token| token.is_of(role)))
    }

    /// Waits until a whole round has been worked off after everything that the operator has heard so far: one that writes the Secret
    /// of the namespace that stays.
    async fn round(&self) {
        quiet(&self.bed).await;
        let number = self.bed.recorder.secret_versions(&self.stays.namespace, &self.bed.secret).len().to_string();
        let annotations = json!({ "spec": { "secret": { "annotations": { "round": number } } } });
        self.bed.change(&self.name, annotations).await.unwrap();
        let written =
            |secret: Option<&Secret>| secret.is_some_and(|secret| secret.annotations().get("round") == Some(&number));
        self.bed.secret_until(&self.stays.namespace, "written in this round", written).await.unwrap();
        quiet(&self.bed).await;
    }

    async fn finish(self) {
        self.operator.stop().await.unwrap();
        self.bed.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_namespace_that_is_made_again_before_the_operators_eyes_gets_nothing() {
    let s = Setting::new("seen").await;
    s.make_again().await;
    s.is_told().await;
    assert!(s.holds_only("nobody"));
    assert!(s.bed.secret(&s.gone.namespace).await.unwrap().is_none());
    s.finish().await;
}

/// The operator sees nothing while the namespace is made again. Then it hears of all in this order, each when what the one
/// before it brings about, if anything, is done: of namespaces by a new list, which has the name as ever, of the others by
/// their events.
async fn made_again_unseen(s: &Setting, order: &[&[&str]]) {
    let (proxy, gate) = (&s.bed.proxy, Gate::new);
    let expired = Action::Answer(Answer::refusal(410, "Expired", "too old"));
    let lists = proxy.place(Fault::new(Match::any().method("GET").resource("namespaces"), expired));
    proxy.cut_watches(&Match::watches("namespaces"));
    let stalls: Vec<_> = ["serviceaccounts", "secrets"].into_iter().map(|resource| (resource, gate())).collect();
    for (resource, gate) in &stalls {
        proxy.place(Fault::new(Match::watches(resource), Action::StallWatch(gate.clone())));
    }
    s.make_again().await;
    for resources in order {
        let mark = proxy.log().mark();
        for (_, gate) in stalls.iter().filter(|(resource, _)| resources.contains(resource)) {
            gate.open();
        }
        if resources.contains(&"namespaces") {
            lists.remove();
            proxy.log().wait_for(mark, &Match::watches("namespaces"), 1, PATIENCE).await.unwrap();
        }
        s.round().await;
    }
    proxy.heal();
    s.is_told().await;
    assert!(s.holds_only("nobody"));
    assert!(s.bed.secret(&s.gone.namespace).await.unwrap().is_none());
}

#[tokio::test]
async fn a_namespace_that_is_made_again_behind_the_operators_back_gets_nothing() {
    let s = Setting::new("unseen").await;
    made_again_unseen(&s, &[&["namespaces", "serviceaccounts"], &["secrets"]]).await;
    s.finish().await;
}

#[tokio::test]
async fn a_namespace_whose_end_is_heard_of_last_gets_nothing() {
    let s = Setting::new("heard-last").await;
    made_again_unseen(&s, &[&["serviceaccounts"], &["secrets"], &["namespaces"]]).await;
    s.finish().await;
}

#[tokio::test]
async fn a_namespace_whose_service_account_is_heard_of_last_gets_nothing() {
    let orders: [&[&[&str]]; 2] = [
        &[&["secrets"], &["namespaces"], &["serviceaccounts"]],
        &[&["namespaces"], &["secrets"], &["serviceaccounts"]],
    ];
    for order in orders {
        let s = Setting::new("account-last").await;
        made_again_unseen(&s, order).await;
        s.finish().await;
    }
}

#[tokio::test]
async fn a_write_that_was_under_way_when_the_namespace_was_made_again_is_taken_back() {
    let s = Setting::new("under-way").await;
    let gate = Gate::new();
    let writes = Match::secret_writes().namespace(&s.gone.namespace);
    let held = s.bed.proxy.place(Fault::new(writes, Action::HoldRequest(gate.clone())).once());
    super::super::demand::demand(&s.bed, &s.name, "1").await;
    gate.arrived(1).await;
    s.make_again().await;
    held.remove();
    gate.open();
    // No precondition of an apply names the namespace's uid: what was sent may be stored, and must not stay.
    s.is_told().await;
    s.takes_back().await;
    s.finish().await;
}

#[tokio::test]
async fn a_creation_that_was_under_way_when_the_namespace_was_made_again_is_taken_back() {
    let s = Setting::new("creation").await;
    let gate = Gate::new();
    let writes = Match::secret_writes().namespace(&s.gone.namespace);
    let held = s.bed.proxy.place(Fault::new(writes, Action::HoldRequest(gate.clone())).once());
    s.bed.secrets(&s.gone.namespace).delete(&s.bed.secret, &Default::default()).await.unwrap();
    gate.arrived(1).await;
    s.make_again().await;
    held.remove();
    gate.open();
    let stored = || {
        let versions = s.bed.recorder.secret_versions(&s.gone.namespace, &s.bed.secret);
        versions.into_iter().any(|version| version["metadata"]["uid"] != json!(s.old_secret))
    };
    // Nothing refuses it: no uid is in it, and the namespace of that name is there.
    poll("it is stored in the new namespace", async || stored()).await;
    s.takes_back().await;
    s.is_told().await;
    assert!(s.bed.secret(&s.gone.namespace).await.unwrap().is_none());
    s.finish().await;
}

#[tokio::test]
async fn a_new_tenant_of_the_same_name_gets_its_own_token_and_not_the_old_ones() {
    let s = Setting::new("successor").await;
    let role = format!("arn:aws:iam::333333333333:role/{}-successor", s.bed.prefix);
    s.make_again().await;
    s.bed.recorder.tenant(&s.gone.namespace, &role);
    s.bed.aws.add_role(Role::new(&role).trusting(s.bed.trust_of(&s.gone.namespace, "puller")));
    // Admission may take the new namespace for a moment for the old one, which is ending.
    poll("its ServiceAccount can be created", async || {
        s.bed.service_account(&s.gone.namespace, "puller", &[(ROLE_ARN, &role)]).await.is_ok()
    })
    .await;
    token_of(&s.bed, &s.gone.namespace, &role).await;
    s.bed.logins_until(&s.gone.namespace, &[&host_of("333333333333")]).await.unwrap();
    assert!(s.holds_only(&role));
    assert_eq!(counts(&s.bed.ready(&s.name).await.unwrap()), [2, 2, 0]);
    s.finish().await;
}
