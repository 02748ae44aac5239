//! Up to a million Secrets in the operator's own picture of the cluster: what each step takes for one of them, and that it does
//! not grow with their number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ecr_credential_operator::api::{NamespaceSelection, NamespaceSelector, OutputFormat};
use ecr_credential_operator::controller::cluster_state::ClusterState;
use ecr_credential_operator::plan::Uid;
use ecr_credential_operator::plan::namespaces::{Labels, NamespaceMatcher, NamespaceUid};
use ecr_credential_operator::plan::outputs::WantedSecret;
use ecr_credential_operator::plan::references::References;
use ecr_credential_operator::plan::targets::{Activity, CredentialRef, SelectorIndex};
use ecr_credential_operator::secret::ownership::{ManagedFieldsDigest, SecretRecord, Trust};
use k8s_openapi::jiff::Timestamp;

use super::cost::resident;

/// One size: everything comes in the order of a start, and then one namespace more.
struct Crowd {
    world: ClusterState,
    credentials: Vec<(Uid, Arc<str>)>,
    labels: Labels,
}

/// The head of the table.
pub(super) const HEAD: &str = "\
| EcrCredentials x namespaces | namespaces come, us | EcrCredentials come | Secrets come | a look at all | one namespace more, us for each EcrCredential | bytes |
|---|---|---|---|---|---|---|";

/// Prints what each step takes: for one namespace, for one Secret, for one EcrCredential.
pub(super) fn measure(credentials: usize, namespaces: usize) {
    let before = resident().0;
    let mut crowd = Crowd {
        world: ClusterState::new(SelectorIndex::new(None), References::default()),
        credentials: (0..credentials)
            .map(|i| (Uid(format!("uid-of-{i:03}").into()), format!("pull-{i}").into()))
            .collect(),
        labels: [("pull".to_owned(), "ecr".to_owned())].into(),
    };
    let targets = credentials * namespaces;
    let come = timed(namespaces, || (0..namespaces).for_each(|n| drop(crowd.namespace(n))));
    let claim = timed(targets, || crowd.claim());
    let store = timed(targets, || crowd.store(namespaces));
    let bytes = resident().0.saturating_sub(before) / targets;
    let look = timed(targets, || assert_eq!(crowd.look(), targets));
    let more = timed(credentials, || assert_eq!(crowd.namespace(namespaces).len(), credentials));
    println!(
        "| {credentials} x {namespaces} | {come:.1} | {claim:.2} | {store:.2} | {look:.2} | {more:.1} | {bytes} |"
    );
}

impl Crowd {
    fn namespace(&mut self, n: usize) -> BTreeSet<Uid> {
        let namespace_uid = NamespaceUid::of(&format!("uid-of-n{n}"), None);
        self.world.set_namespace(&format!("n{n}"), namespace_uid, &self.labels, false)
    }

    fn claim(&mut self) {
        let selector = NamespaceSelector { match_labels: self.labels.clone(), match_expressions: Vec::new() };
        let spec = NamespaceSelection { names: Vec::new(), selector: Some(selector), exclude: Vec::new() };
        for (uid, secret_name) in &self.credentials {
            let credential = CredentialRef {
                name: uid.0.clone(),
                created: Timestamp::UNIX_EPOCH,
                activity: Activity::Active,
                secrets: vec![WantedSecret::anywhere(secret_name, NamespaceMatcher::parse(&spec).ok())],
                generation: Some(1),
                references: BTreeSet::new(),
                attach: Vec::new(),
            };
            self.world.index.set_credential(uid, credential);
        }
    }

    fn store(&mut self, namespaces: usize) {
        for (c, (uid, secret_name)) in self.credentials.iter().enumerate() {
            for n in 0..namespaces {
                let record = SecretRecord {
                    uid: format!("00000000-0000-4000-{c:04}-{n:012}").into(),
                    resource_version: format!("{}", 1_000_000 + n).into(),
                    // As a watch brings it: a text of its own.
                    owner: Some(Uid(uid.0.as_ref().into())),
                    digest: ManagedFieldsDigest::desired(&Default::default()),
                    applied_at: 0,
                    managed_fields: None,
                    trust: Trust::Unchanged,
                    expires_at: Some(Timestamp::UNIX_EPOCH),
                    hosts: Some(1),
                    identity: Some(1),
                    format: OutputFormat::DockerConfigJson,
                    extra_keys: Box::default(),
                    sets_immutable: false,
                    applied: true,
                    held_by: None,
                    content_of: None,
                };
                self.world.set_secret(secret_name, &format!("n{n}"), Arc::new(record));
            }
        }
    }

    /// As a resync of each EcrCredential does.
    fn look(&self) -> usize {
        let targets = |uid| self.world.targets(uid, Some(1)).into_iter().flatten().count();
        self.credentials.iter().map(|(uid, _)| targets(uid)).sum()
    }
}

/// Microseconds for each.
fn timed(each: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6 / each as f64
}
