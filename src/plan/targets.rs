//! The index of selectors and namespaces: which EcrCredential is entitled to which Secret, updated for each event.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::core::SelectorExt;
use wildmatch::WildMatch;

use super::Uid;
use super::namespaces::{Labels, NamespaceUid, Unselected, label_line};
use super::outputs::WantedSecret;
use super::scopes::Reference;
use crate::api::OutputFormat;

/// Whether an `EcrCredential` is refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// It is refreshed.
    Active,
    /// It is suspended, or its spec is not usable. Its claims rank behind those of all others, so that no Secret expires
    /// because of it.
    Idle,
    /// It cannot be read, so its spec is unknown. It keeps its claims.
    Unreadable,
}

/// An `EcrCredential` as far as its targets depend on it.
#[derive(Clone, Debug)]
pub struct CredentialRef {
    /// Its name.
    pub name: Arc<str>,
    /// When it was created: if two select the same Secret, the older one wins.
    pub created: Timestamp,
    /// Whether it is refreshed.
    pub activity: Activity,
    /// Its Secrets, each with a name of its own: the pull secret, then the outputs.
    pub secrets: Vec<WantedSecret>,
    /// The generation of its spec.
    pub generation: Option<i64>,
    /// The references of its identities and its includes.
    pub references: BTreeSet<Reference>,
    /// The names of the ServiceAccounts to which its pull secret is attached.
    pub attach: Vec<WildMatch>,
}

impl CredentialRef {
    /// The order among those that select the same Secret.
    fn precedence(&self) -> impl Ord + use<'_> {
        (self.activity == Activity::Idle, self.created, &self.name)
    }

    fn attaches_to(&self, service_account: &str) -> bool {
        self.attach.iter().any(|glob| glob.matches(service_account))
    }

    /// The name of its pull secret.
    fn pull_secret(&self) -> &str {
        self.secrets.first().map_or("", |secret| &secret.name)
    }

    /// Labels of which a namespace must have one to be selected; the empty text if it can be selected without any of them.
    fn anchors(&self) -> BTreeSet<&str> {
        let anchors: BTreeSet<&str> =
            self.secrets.iter().filter_map(|s| Some(s.selection.as_ref()?.anchor.as_str())).collect();
        // One that selects nothing is in the index as well.
        if anchors.is_empty() { BTreeSet::from([""]) } else { anchors }
    }

    /// Whether the labels of a namespace matter to it.
    fn reads_labels(&self) -> bool {
        self.secrets
            .iter()
            .any(|secret| secret.selection.as_ref().is_some_and(|selection| selection.selector.is_some()))
    }
}

/// What an `EcrCredential` wants in one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// The Secret.
    Target,
    /// The Secret, which may not be written there.
    Denied,
    Nothing,
}

#[derive(Debug)]
struct IndexEntry {
    credential: CredentialRef,
    /// For each of its Secrets.
    targets: Vec<Targets>,
    /// The cached result of [`SelectorIndex::unselected`], until it may have changed.
    unselected: OnceCell<Unselected>,
}

/// The namespaces of one Secret.
#[derive(Debug, Default)]
struct Targets {
    /// The target namespaces.
    selected: BTreeSet<Arc<str>>,
    /// The namespaces that are selected and in which it may not be written.
    denied: BTreeSet<Arc<str>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Namespace {
    namespace_uid: NamespaceUid,
    labels: PackedLabels,
    terminating: bool,
}

/// Labels in one text: a map of its own for each namespace would take half a KiB. Kubernetes allows neither `=` nor line
/// breaks in them.
#[derive(Debug, PartialEq, Eq)]
struct PackedLabels(Box<str>);

impl PackedLabels {
    fn pack(labels: &Labels) -> Self {
        let lines: Vec<String> = labels.iter().map(|(key, value)| label_line(key, value)).collect();
        Self(lines.join("\n").into())
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }

    /// Whether they contain an anchor of an `EcrCredential`.
    fn have(&self, anchor: &str) -> bool {
        anchor.is_empty() || self.lines().any(|line| line == anchor)
    }

    fn unpack(&self) -> Labels {
        let pairs = self.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// By namespace: the `EcrCredentials` that select a Secret there, in order of precedence: those that are refreshed before idle ones,
/// then the oldest, then by name.
type Claims = HashMap<Arc<str>, Vec<Uid>>;

/// Where Secrets may be written.
#[derive(Debug, Default)]
struct Reach {
    /// The namespaces for pull secrets, and with them for outputs of any name; `None` for all.
    namespaces: Option<BTreeSet<Arc<str>>>,
    /// Names and namespaces of outputs that are allowed wherever they are.
    outputs: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Reach {
    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(namespace))
    }

    fn has_output(&self, name: &str, namespace: &str) -> bool {
        self.outputs.iter().any(|(output, place)| **output == *name && **place == *namespace)
    }

    /// What an `EcrCredential` wants of its Secret of this number in a namespace.
    fn want(&self, number: usize, secret: &WantedSecret, namespace: &str, labels: &Labels) -> Want {
        if !secret.selection.as_ref().is_some_and(|selection| selection.matches(namespace, labels)) {
            return Want::Nothing;
        }
        if !secret.is_allowed_in(namespace) {
            return Want::Denied;
        }
        // A pull secret that has the name of an output is none.
        match self.has_namespace(namespace) || number > 0 && self.has_output(&secret.name, namespace) {
            true => Want::Target,
            // A pull secret may ask for all namespaces, and is written in those that are allowed.
            false if number == 0 => Want::Nothing,
            false => Want::Denied,
        }
    }
}

/// All namespaces and all `EcrCredentials`, with the targets of each kept up to date.
#[derive(Debug, Default)]
pub struct SelectorIndex {
    reach: Reach,
    namespaces: HashMap<Arc<str>, Namespace>,
    credentials: HashMap<Uid, IndexEntry>,
    /// `EcrCredentials` by the label that they require; those that require no label are under the empty text.
    anchored: HashMap<String, BTreeSet<Uid>>,
    /// By Secret name and namespace: the `EcrCredentials` that select it, in order of precedence.
    claims: HashMap<Arc<str>, Claims>,
    /// The `EcrCredentials` by their references.
    referring: HashMap<Reference, BTreeSet<Uid>>,
    /// Those that attach their Secret to ServiceAccounts.
    attaching: BTreeSet<Uid>,
}

impl SelectorIndex {
    /// An index that selects only among `allowed` namespaces, or among all for `None`.
    pub fn new(allowed: Option<BTreeSet<Arc<str>>>) -> Self {
        Self { reach: Reach { namespaces: allowed, outputs: BTreeSet::new() }, ..Self::default() }
    }

    /// Lets outputs be written in namespaces of their own, by name and namespace.
    pub fn with_outputs(self, outputs: BTreeSet<(Arc<str>, Arc<str>)>) -> Self {
        Self { reach: Reach { outputs, ..self.reach }, ..self }
    }

    /// Stores a namespace; returns the `EcrCredentials` whose targets, or rank in them, changed.
    pub fn set_namespace(
        &mut self,
        name: &str,
        namespace_uid: NamespaceUid,
        labels: &Labels,
        terminating: bool,
    ) -> BTreeSet<Uid> {
        let name: Arc<str> = self.namespaces.get_key_value(name).map_or_else(|| name.into(), |(k, _)| k.clone());
        let namespace = Namespace { namespace_uid, labels: PackedLabels::pack(labels), terminating };
        if self.namespaces.get(&name) == Some(&namespace) {
            return BTreeSet::new();
        }
        let candidates = self.candidates(self.namespaces.get(&name), &namespace);
        let recreated = self.namespaces.get(&name).is_some_and(|old| old.namespace_uid != namespace_uid);
        self.namespaces.insert(name.clone(), namespace);
        let (mut gained, mut lost, mut affected) = (Vec::new(), Vec::new(), BTreeSet::new());
        for uid in candidates {
            let Some(entry) = self.credentials.get_mut(&uid) else { continue };
            entry.unselected.take();
            for (number, (secret, targets)) in entry.credential.secrets.iter().zip(&mut entry.targets).enumerate() {
                let want = match terminating {
                    true => Want::Nothing,
                    false => self.reach.want(number, secret, &name, labels),
                };
                let denied = targets.denied.contains(&name);
                if denied != (want == Want::Denied) {
                    if denied {
                        targets.denied.remove(&name)
                    } else {
                        targets.denied.insert(name.clone())
                    };
                    affected.insert(uid.clone());
                }
                match (want == Want::Target, targets.selected.contains(&name)) {
                    (true, false) => gained.push((uid.clone(), number)),
                    (false, true) => lost.push((uid.clone(), number)),
                    (true, true) if recreated => {
                        affected.insert(uid.clone());
                    }
                    _ => {}
                }
            }
        }
        for (uid, number) in gained {
            self.add_claim(&uid, number, &name, &mut affected);
        }
        for (uid, number) in lost {
            self.remove_claim(&uid, number, &name, &mut affected);
        }
        affected
    }

    /// The `EcrCredentials` that may select a namespace, or may have selected it with its old labels.
    fn candidates(&self, old: Option<&Namespace>, new: &Namespace) -> BTreeSet<Uid> {
        let labels = old.into_iter().chain([new]).flat_map(|namespace| namespace.labels.lines());
        labels.chain([""]).filter_map(|anchor| self.anchored.get(anchor)).flatten().cloned().collect()
    }

    /// Removes a namespace that is gone.
    pub fn remove_namespace(&mut self, name: &str) -> BTreeSet<Uid> {
        let affected = self.set_namespace(name, NamespaceUid::default(), &Labels::new(), true);
        self.namespaces.remove(name);
        affected
    }

    /// The names of all namespaces known.
    pub fn namespace_names(&self) -> Vec<Arc<str>> {
        self.namespaces.keys().cloned().collect()
    }

    /// A namespace's name as it is shared in memory, if it is known.
    pub fn namespace_name(&self, name: &str) -> Option<Arc<str>> {
        self.namespaces.get_key_value(name).map(|(key, _)| key.clone())
    }

    /// Which of the namespaces that had this name is there now, and whether it is terminating; none when there is none.
    pub fn namespace(&self, name: &str) -> Option<(NamespaceUid, bool)> {
        self.namespaces.get(name).map(|namespace| (namespace.namespace_uid, namespace.terminating))
    }

    /// The identity of the namespace that has this name now.
    pub fn namespace_uid(&self, namespace: &str) -> NamespaceUid {
        self.namespaces.get(namespace).map(|n| n.namespace_uid).unwrap_or_default()
    }

    /// Stores an `EcrCredential`; returns those whose targets, or rank in them, changed.
    pub fn set_credential(&mut self, uid: &Uid, credential: CredentialRef) -> BTreeSet<Uid> {
        let mut affected = self.remove_credential(uid);
        let reads_labels = credential.reads_labels();
        let anchors: BTreeSet<String> = credential.anchors().into_iter().map(str::to_owned).collect();
        let mut targets: Vec<Targets> = credential.secrets.iter().map(|_| Targets::default()).collect();
        let mut gained = Vec::new();
        let open = self.namespaces.iter().filter(|(_, namespace)| !namespace.terminating);
        for (name, namespace) in open.filter(|(_, n)| anchors.iter().any(|anchor| n.labels.have(anchor))) {
            // Unpacking the labels of all namespaces would dominate the cost of an EcrCredential.
            let labels = if reads_labels { namespace.labels.unpack() } else { Labels::new() };
            for (number, (secret, targets)) in credential.secrets.iter().zip(&mut targets).enumerate() {
                match self.reach.want(number, secret, name, &labels) {
                    Want::Target => gained.push((number, name.clone())),
                    Want::Denied => drop(targets.denied.insert(name.clone())),
                    Want::Nothing => {}
                }
            }
        }
        for anchor in anchors {
            self.anchored.entry(anchor).or_default().insert(uid.clone());
        }
        if !credential.attach.is_empty() {
            self.attaching.insert(uid.clone());
        }
        for reference in &credential.references {
            self.referring.entry(reference.clone()).or_default().insert(uid.clone());
        }
        self.credentials.insert(uid.clone(), IndexEntry { credential, targets, unselected: OnceCell::new() });
        for (number, name) in gained {
            self.add_claim(uid, number, &name, &mut affected);
        }
        affected.insert(uid.clone());
        affected
    }

    /// Removes an `EcrCredential` that is deleted or being deleted.
    pub fn remove_credential(&mut self, uid: &Uid) -> BTreeSet<Uid> {
        let mut affected = BTreeSet::new();
        let targets = self.credentials.get(uid).into_iter().flat_map(|entry| entry.targets.iter().enumerate());
        let targets: Vec<(usize, BTreeSet<Arc<str>>)> =
            targets.map(|(number, targets)| (number, targets.selected.clone())).collect();
        for (number, names) in targets {
            for name in names {
                self.remove_claim(uid, number, &name, &mut affected);
            }
        }
        self.attaching.remove(uid);
        if let Some(entry) = self.credentials.remove(uid) {
            for anchor in entry.credential.anchors() {
                remove_from(&mut self.anchored, anchor, uid);
            }
            for reference in &entry.credential.references {
                remove_from(&mut self.referring, reference, uid);
            }
        }
        affected.remove(uid);
        affected
    }

    /// Whether an `EcrCredential` with this uid exists.
    pub fn is_alive(&self, uid: &Uid) -> bool {
        self.credentials.contains_key(uid)
    }

    /// Whether what an `EcrCredential` asks for is known.
    pub fn is_readable(&self, uid: &Uid) -> bool {
        self.credentials.get(uid).is_some_and(|entry| entry.credential.activity != Activity::Unreadable)
    }

    /// Whether an `EcrCredential` is served: it is known, and neither suspended nor unusable.
    pub fn is_active(&self, uid: &Uid) -> bool {
        self.credentials.get(uid).is_some_and(|entry| entry.credential.activity == Activity::Active)
    }

    /// Whether one `EcrCredential` ranks before another where both want the same Secret.
    pub fn is_before(&self, one: &Uid, other: &Uid) -> bool {
        rank(&self.credentials, one) < rank(&self.credentials, other)
    }

    /// The name of an `EcrCredential`.
    pub fn credential_name(&self, uid: &Uid) -> Option<Arc<str>> {
        self.credentials.get(uid).map(|entry| entry.credential.name.clone())
    }

    /// The generation of an `EcrCredential`'s spec.
    pub fn generation(&self, uid: &Uid) -> Option<i64> {
        self.credentials.get(uid).and_then(|entry| entry.credential.generation)
    }

    /// The uids of all `EcrCredentials`.
    pub fn credentials(&self) -> Vec<Uid> {
        self.credentials.keys().cloned().collect()
    }

    /// The uids of the `EcrCredentials` that refer to something.
    pub fn referring_to(&self, reference: &Reference) -> BTreeSet<Uid> {
        self.referring.get(reference).cloned().unwrap_or_default()
    }

    /// The `EcrCredentials` whose pull secret a ServiceAccount should name: none that is not served.
    fn attaching_to(&self, namespace: &str, service_account: &str) -> impl Iterator<Item = (&Uid, &CredentialRef)> {
        let attaching = self.attaching.iter().filter_map(|uid| Some((uid, &self.credentials.get(uid)?.credential)));
        attaching.filter(move |(uid, credential)| {
            credential.activity == Activity::Active
                && credential.attaches_to(service_account)
                && self.winner(credential.pull_secret(), namespace) == Some(*uid)
        })
    }

    /// The Secrets of an `EcrCredential`, with the namespaces of each.
    fn secrets_with_targets<'a>(
        &'a self,
        uid: &Uid,
    ) -> impl Iterator<Item = (&'a WantedSecret, &'a Targets)> + use<'a> {
        let entry = self.credentials.get(uid).into_iter();
        entry.flat_map(|entry| entry.credential.secrets.iter().zip(&entry.targets))
    }

    /// The names of the Secrets of an `EcrCredential`, each with some of its namespaces.
    fn names_with<'a>(
        &'a self,
        uid: &Uid,
        namespaces: fn(&'a Targets) -> &'a BTreeSet<Arc<str>>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)> + use<'a> {
        self.secrets_with_targets(uid)
            .flat_map(move |(secret, targets)| namespaces(targets).iter().map(move |name| (&secret.name, name)))
    }

    /// The Secrets that a ServiceAccount should name in its `imagePullSecrets`.
    pub fn attached(&self, namespace: &str, service_account: &str) -> BTreeSet<Arc<str>> {
        let attaching = self.attaching_to(namespace, service_account);
        attaching.filter_map(|(_, credential)| Some(credential.secrets.first()?.name.clone())).collect()
    }

    /// The uids of the `EcrCredentials` whose Secret a ServiceAccount should name.
    pub fn attached_by(&self, namespace: &str, service_account: &str) -> BTreeSet<Uid> {
        self.attaching_to(namespace, service_account).map(|(uid, _)| uid.clone()).collect()
    }

    /// The uids of the `EcrCredentials` that attach their Secret to ServiceAccounts.
    pub const fn attaching(&self) -> &BTreeSet<Uid> {
        &self.attaching
    }

    /// The pull secret of an `EcrCredential` that is served and attached to the ServiceAccounts of a name.
    pub fn attaches(&self, uid: &Uid, service_account: &str) -> Option<&Arc<str>> {
        let credential = &self.credentials.get(uid)?.credential;
        let attaches = credential.activity == Activity::Active && credential.attaches_to(service_account);
        credential.secrets.first().filter(|_| attaches).map(|secret| &secret.name)
    }

    /// The pull secret of an `EcrCredential` that this ServiceAccount should name.
    pub fn attaches_in(&self, uid: &Uid, namespace: &str, service_account: &str) -> Option<&Arc<str>> {
        self.attaches(uid, service_account).filter(|secret| self.winner(secret, namespace) == Some(uid))
    }

    /// The names of the Secrets that an `EcrCredential` asks for, each with how many namespaces it selects.
    pub fn secrets<'a>(&'a self, uid: &Uid) -> impl Iterator<Item = (&'a Arc<str>, usize)> + use<'a> {
        let count = |targets: &Targets| targets.selected.len().saturating_add(targets.denied.len());
        self.secrets_with_targets(uid).map(move |(secret, targets)| (&secret.name, count(targets)))
    }

    /// The Secrets that an `EcrCredential` wants, by name and namespace: those of one name together, their namespaces in order.
    pub fn targets<'a>(&'a self, uid: &Uid) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)> + use<'a> {
        self.names_with(uid, |targets| &targets.selected)
    }

    /// The namespaces that an `EcrCredential` selects for a Secret that it may not write there, by name and namespace.
    pub fn denied<'a>(&'a self, uid: &Uid) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)> + use<'a> {
        self.names_with(uid, |targets| &targets.denied)
    }

    /// Whether an `EcrCredential` wants some Secret of a format in a namespace.
    pub fn wants_format(&self, uid: &Uid, format: OutputFormat, namespace: &str) -> bool {
        self.secrets_with_targets(uid)
            .any(|(secret, targets)| secret.format == format && targets.selected.contains(namespace))
    }

    /// Whether an `EcrCredential` selects a namespace for a Secret that it may not write there.
    pub fn is_denied(&self, uid: &Uid, secret_name: &str, namespace: &str) -> bool {
        self.secrets_with_targets(uid)
            .any(|(secret, targets)| *secret.name == *secret_name && targets.denied.contains(namespace))
    }

    /// The parts of an `EcrCredential`'s selection that select nothing.
    pub fn unselected(&self, uid: &Uid) -> Unselected {
        let Some(entry) = self.credentials.get(uid) else { return Unselected::default() };
        entry.unselected.get_or_init(|| self.find_unselected(entry)).clone()
    }

    fn find_unselected(&self, IndexEntry { credential, targets, .. }: &IndexEntry) -> Unselected {
        let mut unselected = Unselected::default();
        // For outputs, the namespaces in which they may not be written are reported instead.
        let pull_secret = credential.secrets.first().zip(targets.first());
        let Some((secret, Targets { selected, .. })) = pull_secret else { return unselected };
        let Some(selection) = &secret.selection else { return unselected };
        for (pattern, glob) in selection.patterns.iter().zip(&selection.names) {
            let list = if pattern.contains(['*', '?']) {
                // Almost always the first target matches.
                let found = selected.iter().any(|name| glob.matches(name));
                (!found).then_some(&mut unselected.unmatched)
            } else if !self.reach.has_namespace(pattern) {
                Some(&mut unselected.not_allowed)
            } else {
                let found = self.namespaces.get(pattern.as_str()).is_some_and(|namespace| !namespace.terminating);
                (!found).then_some(&mut unselected.missing)
            };
            if let Some(list) = list.filter(|_| !selection.exclude.iter().any(|glob| glob.matches(pattern))) {
                list.push(pattern.clone());
            }
        }
        if let Some(selector) = &selection.selector {
            let labels = selected.iter().filter_map(|name| Some(self.namespaces.get(name)?.labels.unpack()));
            unselected.selector = !labels.into_iter().any(|labels| selector.matches(&labels));
        }
        unselected
    }

    /// Whether an `EcrCredential` selects a Secret, whether or not it is entitled to it.
    pub fn wants(&self, uid: &Uid, secret_name: &str, namespace: &str) -> bool {
        let claims = self.claims.get(secret_name).and_then(|by_namespace| by_namespace.get(namespace));
        claims.is_some_and(|claims| claims.contains(uid))
    }

    /// The `EcrCredential` that is entitled to a Secret: the oldest that selects it and is refreshed, or the oldest if none is.
    pub fn winner(&self, secret_name: &str, namespace: &str) -> Option<&Uid> {
        self.claims.get(secret_name)?.get(namespace)?.first()
    }

    /// All `EcrCredentials` that select a Secret, in order of precedence.
    pub fn claims(&self, secret_name: &str, namespace: &str) -> Vec<Uid> {
        let claims = self.claims.get(secret_name).and_then(|by_namespace| by_namespace.get(namespace));
        claims.cloned().unwrap_or_default()
    }

    /// Whether a Secret may be touched in a namespace, which exists, is allowed, and is not terminating.
    pub fn is_open(&self, secret_name: &str, namespace: &str) -> bool {
        (self.reach.has_namespace(namespace) || self.reach.has_output(secret_name, namespace))
            && self.namespaces.get(namespace).is_some_and(|n| !n.terminating)
    }

    fn add_claim(&mut self, uid: &Uid, number: usize, namespace: &Arc<str>, affected: &mut BTreeSet<Uid>) {
        let Some((shared, entry)) = self.credentials.get_key_value(uid) else { return };
        let Some(secret) = entry.credential.secrets.get(number) else { return };
        let by_namespace = self.claims.entry(secret.name.clone()).or_default();
        // Almost always there is one. The default capacity of four would take more memory than all else kept of a namespace.
        let claims = by_namespace.entry(namespace.clone()).or_insert_with(|| Vec::with_capacity(1));
        claims.push(shared.clone());
        claims.sort_by(|a, b| rank(&self.credentials, a).cmp(&rank(&self.credentials, b)));
        affected.extend(claims.iter().cloned());
        let Some(entry) = self.credentials.get_mut(uid) else { return };
        entry.unselected.take();
        if let Some(targets) = entry.targets.get_mut(number) {
            targets.selected.insert(namespace.clone());
        }
    }

    fn remove_claim(&mut self, uid: &Uid, number: usize, namespace: &Arc<str>, affected: &mut BTreeSet<Uid>) {
        affected.insert(uid.clone());
        let Some(entry) = self.credentials.get_mut(uid) else { return };
        let (Some(secret), Some(targets)) = (entry.credential.secrets.get(number), entry.targets.get_mut(number))
        else {
            return;
        };
        targets.selected.remove(namespace);
        entry.unselected.take();
        let Some(by_namespace) = self.claims.get_mut(&secret.name) else { return };
        let Some(claims) = by_namespace.get_mut(namespace) else { return };
        claims.retain(|other| other != uid);
        affected.extend(claims.iter().cloned());
        if claims.is_empty() {
            by_namespace.remove(namespace);
            if by_namespace.is_empty() {
                self.claims.remove(&secret.name);
            }
        }
    }

    /// Whether the index is empty.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.credentials.is_empty()
            && self.anchored.is_empty()
            && self.claims.is_empty()
            && self.referring.is_empty()
            && self.attaching.is_empty()
    }
}

/// The order in which `EcrCredentials` are entitled to the same Secret.
fn rank<'a>(credentials: &'a HashMap<Uid, IndexEntry>, uid: &'a Uid) -> impl Ord + use<'a> {
    (credentials.get(uid).map(|entry| entry.credential.precedence()), uid)
}

fn remove_from<K, Q>(by_key: &mut HashMap<K, BTreeSet<Uid>>, key: &Q, uid: &Uid)
where
    K: std::borrow::Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    if let Some(uids) = by_key.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            by_key.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{LabelRequirement, NamespaceSelection, NamespaceSelector, SelectorOperator};
    use crate::plan::namespaces::NamespaceMatcher;
    use crate::plan::namespaces::tests::{by_label, labels, selection};

    fn credential(second: i64, spec: &NamespaceSelection) -> CredentialRef {
        CredentialRef {
            name: format!("c{second}").into(),
            created: Timestamp::from_second(second).unwrap(),
            activity: Activity::Active,
            secrets: vec![WantedSecret::anywhere("pull", NamespaceMatcher::parse(spec).ok())],
            generation: Some(1),
            references: BTreeSet::new(),
            attach: Vec::new(),
        }
    }

    fn uid(text: &str) -> Uid {
        Uid(text.into())
    }

    #[test]
    fn what_selects_nothing_is_told_and_no_longer_when_it_does() {
        let (me, here) = (uid("me"), |name: &str| NamespaceUid::of(name, None));
        let mut index = SelectorIndex::new(Some(["a", "team-1", "gone"].map(Arc::from).into()));
        index.set_namespace("a", here("a"), &labels(&[]), false);
        index.set_namespace("b", here("b"), &labels(&[]), false);
        let of = |index: &SelectorIndex| {
            let unselected = index.unselected(&me);
            (unselected.out_of_reach(), unselected.not_found())
        };
        let spec = selection(&["a", "*"], None, &[]);
        index.set_credential(&me, credential(1, &spec));
        assert_eq!(of(&index), (None, None), "whoever asks for all is content with what there is");
        let spec = selection(&["a", "b", "gone", "team-*", "not"], by_label("pull", "ecr"), &["not"]);
        index.set_credential(&me, credential(1, &spec));
        let (reach, found) = of(&index);
        assert!(reach.unwrap().contains("not allowed to write in namespace b:"));
        assert_eq!(
            found.unwrap(),
            "there is no namespace gone, no namespace matches team-*, no namespace matches the labels of spec.namespaces.selector"
        );
        index.set_namespace("gone", here("gone"), &labels(&[]), false);
        assert!(!of(&index).1.unwrap().contains("gone"));
        index.set_namespace("gone", here("gone"), &labels(&[]), true);
        assert!(of(&index).1.unwrap().contains("there is no namespace gone"), "it is being deleted");
        index.set_namespace("team-1", here("team-1"), &labels(&[]), false);
        assert!(!of(&index).1.unwrap().contains("team-*"));
        // Selected before and after, by its name.
        index.set_namespace("a", here("a"), &labels(&[("pull", "ecr")]), false);
        assert!(!of(&index).1.unwrap().contains("spec.namespaces.selector"));
        index.set_namespace("a", here("a"), &labels(&[]), false);
        assert!(of(&index).1.unwrap().contains("spec.namespaces.selector"));
        index.remove_namespace("team-1");
        assert!(of(&index).1.unwrap().contains("team-*"));
        let many: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        index.set_credential(&me, credential(1, &selection(&many, None, &[])));
        assert!(of(&index).0.unwrap().contains("n0, n1, n2, n3, n4 and 4 more:"));
        index.remove_credential(&me);
        assert_eq!(of(&index), (None, None));
    }

    #[test]
    fn where_an_output_may_be_written_no_pull_secret_of_its_name_may() {
        let outputs = BTreeSet::from([("pull".into(), "argocd".into())]);
        let mut index = SelectorIndex::new(Some(BTreeSet::from(["a".into()]))).with_outputs(outputs);
        for name in ["a", "argocd"] {
            index.set_namespace(name, NamespaceUid::of(name, None), &labels(&[]), false);
        }
        index.set_credential(&uid("x"), credential(1, &selection(&["*"], None, &[])));
        assert_eq!(index.targets(&uid("x")).collect::<Vec<_>>(), [(&"pull".into(), &"a".into())]);
        index.set_credential(&uid("x"), credential(1, &selection(&["argocd"], None, &[])));
        assert!(index.unselected(&uid("x")).out_of_reach().unwrap().contains("namespace argocd"));
    }

    #[test]
    fn the_older_of_two_wins_and_the_other_inherits() {
        let mut index = SelectorIndex::default();
        index.set_namespace("a", NamespaceUid::default(), &labels(&[]), false);
        let spec = selection(&["*"], None, &[]);
        index.set_credential(&uid("young"), credential(20, &spec));
        assert_eq!(index.winner("pull", "a"), Some(&uid("young")));
        let affected = index.set_credential(&uid("old"), credential(10, &spec));
        assert_eq!(affected, BTreeSet::from([uid("old"), uid("young")]));
        assert_eq!(index.winner("pull", "a"), Some(&uid("old")));
        assert_eq!(index.remove_credential(&uid("old")), BTreeSet::from([uid("young")]));
        assert_eq!(index.winner("pull", "a"), Some(&uid("young")));
    }

    #[test]
    fn labels_gained_and_lost_move_the_target_and_nothing_else() {
        let mut index = SelectorIndex::default();
        index.set_credential(&uid("x"), credential(1, &selection(&[], by_label("pull", "ecr"), &[])));
        index.set_credential(&uid("y"), credential(2, &selection(&["other"], None, &[])));
        assert!(index.set_namespace("a", NamespaceUid::default(), &labels(&[]), false).is_empty());
        assert_eq!(
            index.set_namespace("a", NamespaceUid::default(), &labels(&[("pull", "ecr")]), false),
            BTreeSet::from([uid("x")])
        );
        assert_eq!(index.targets(&uid("x")).count(), 1);
        assert!(
            index.set_namespace("a", NamespaceUid::default(), &labels(&[("pull", "ecr")]), false).is_empty(),
            "an unchanged namespace is no news"
        );
        assert_eq!(
            index.set_namespace("a", NamespaceUid::default(), &labels(&[("pull", "ecr")]), true),
            BTreeSet::from([uid("x")])
        );
        assert_eq!(index.targets(&uid("x")).count(), 0, "a terminating namespace is never a target");
        assert!(!index.is_open("pull", "a"));
    }

    #[test]
    fn a_label_that_no_selection_reads_is_no_news() {
        let mut index = SelectorIndex::default();
        index.set_credential(&uid("by label"), credential(1, &selection(&[], by_label("pull", "ecr"), &[])));
        index.set_credential(&uid("by name"), credential(2, &selection(&["*"], None, &[])));
        let all = [("pull", "ecr"), ("team", "a"), ("note", "1")];
        assert!(!index.set_namespace("a", NamespaceUid::default(), &labels(&all[..1]), false).is_empty());
        for some in [&all[..2], &all[..3], &all[..1]] {
            assert!(index.set_namespace("a", NamespaceUid::default(), &labels(some), false).is_empty(), "{some:?}");
        }
    }

    #[test]
    fn a_namespace_concerns_whoever_selects_it_by_whatever_label_expression_or_name() {
        let two =
            Some(NamespaceSelector { match_labels: labels(&[("a", "1"), ("b", "2")]), match_expressions: Vec::new() });
        let by_expression = Some(NamespaceSelector {
            match_labels: Labels::new(),
            match_expressions: vec![LabelRequirement {
                key: "b".to_owned(),
                operator: SelectorOperator::Exists,
                values: Vec::new(),
            }],
        });
        let specs = [
            ("one", selection(&[], by_label("a", "1"), &[])),
            ("two", selection(&[], two, &[])),
            ("expression", selection(&[], by_expression, &[])),
            ("name", selection(&["n"], None, &[])),
            ("label or name", selection(&["n"], by_label("a", "1"), &[])),
        ];
        let table = [
            ("n", labels(&[]), vec!["label or name", "name"]),
            ("n", labels(&[("a", "1")]), vec!["label or name", "name", "one"]),
            ("m", labels(&[("a", "1")]), vec!["label or name", "one"]),
            ("m", labels(&[("a", "1"), ("b", "2")]), vec!["expression", "label or name", "one", "two"]),
            ("m", labels(&[("a", "2"), ("b", "2")]), vec!["expression"]),
            ("m", labels(&[]), vec![]),
        ];
        let before = labels(&[("a", "1"), ("old", "x")]);
        for namespace_first in [false, true] {
            for (name, labels, expected) in &table {
                let mut index = SelectorIndex::default();
                // What it was before must not matter.
                index.set_namespace(name, NamespaceUid::default(), &before, false);
                if namespace_first {
                    index.set_namespace(name, NamespaceUid::default(), labels, false);
                }
                for (second, (name, spec)) in (1..).zip(&specs) {
                    index.set_credential(&uid(name), credential(second, spec));
                }
                index.set_namespace(name, NamespaceUid::default(), labels, false);
                let wanting = specs.iter().map(|(name, _)| *name).filter(|who| index.targets(&uid(who)).count() == 1);
                let mut wanting: Vec<&str> = wanting.collect();
                wanting.sort_unstable();
                assert_eq!(&wanting, expected, "{name} {labels:?}");
            }
        }
    }

    #[test]
    fn an_index_remembers_labels_as_they_are() {
        for all in [labels(&[]), labels(&[("a", "")]), labels(&[("example.com/a", "b_c.d"), ("e", ""), ("f", "g")])] {
            assert_eq!(PackedLabels::pack(&all).unpack(), all);
        }
    }

    #[test]
    fn only_allowed_namespaces_are_targets() {
        let mut index = SelectorIndex::new(Some(BTreeSet::from(["a".into()])));
        index.set_credential(&uid("x"), credential(1, &selection(&["*"], None, &[])));
        index.set_namespace("a", NamespaceUid::default(), &labels(&[]), false);
        index.set_namespace("b", NamespaceUid::default(), &labels(&[]), false);
        assert_eq!(index.targets(&uid("x")).map(|(_, namespace)| &**namespace).collect::<Vec<&str>>(), ["a"]);
    }

    /// The targets or what is denied as `name/namespace`.
    fn pairs<'a>(pairs: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>) -> Vec<String> {
        pairs.map(|(name, namespace)| format!("{name}/{namespace}")).collect()
    }

    #[test]
    fn each_secret_has_namespaces_of_its_own() {
        let mut one = credential(1, &selection(&["a", "b"], None, &[]));
        let by_label = NamespaceMatcher::parse(&selection(&[], by_label("pull", "ecr"), &[])).ok();
        one.secrets.push(WantedSecret::anywhere("out", by_label));
        let mut index = SelectorIndex::default();
        index.set_credential(&uid("x"), one.clone());
        index.set_namespace("a", NamespaceUid::default(), &labels(&[]), false);
        assert_eq!(pairs(index.targets(&uid("x"))), ["pull/a"]);
        let gained = index.set_namespace("a", NamespaceUid::default(), &labels(&[("pull", "ecr")]), false);
        assert_eq!(gained, BTreeSet::from([uid("x")]));
        index.set_namespace("c", NamespaceUid::default(), &labels(&[("pull", "ecr")]), false);
        assert_eq!(pairs(index.targets(&uid("x"))), ["pull/a", "out/a", "out/c"]);
        assert_eq!(index.winner("out", "c"), Some(&uid("x")));
        // A younger one may have the Secret that the older one does not ask for.
        index.set_credential(
            &uid("y"),
            CredentialRef { name: "c2".into(), ..credential(2, &selection(&["c"], None, &[])) },
        );
        assert_eq!(index.winner("pull", "c"), Some(&uid("y")));
        one.secrets.pop();
        index.set_credential(&uid("x"), one);
        assert_eq!(pairs(index.targets(&uid("x"))), ["pull/a"]);
        assert!(!index.wants(&uid("x"), "out", "a"));
        assert_eq!(index.winner("out", "a"), None);
    }

    #[test]
    fn a_namespace_of_an_output_alone_has_no_pull_secret() {
        let mut one = credential(1, &selection(&["a"], None, &[]));
        one.attach = vec![WildMatch::new("*")];
        let placed = NamespaceMatcher::parse(&selection(&["argocd"], None, &[])).ok();
        one.secrets.push(WantedSecret::anywhere("out", placed));
        let mut index = SelectorIndex::default();
        index.set_credential(&uid("x"), one);
        for namespace in ["a", "argocd"] {
            index.set_namespace(namespace, NamespaceUid::default(), &labels(&[]), false);
        }
        assert_eq!(pairs(index.targets(&uid("x"))), ["pull/a", "out/argocd"]);
        let counts = index.secrets(&uid("x")).map(|(name, count)| (&**name, count));
        assert_eq!(counts.collect::<Vec<_>>(), [("pull", 1), ("out", 1)]);
        assert!(!index.wants(&uid("x"), "pull", "argocd") && !index.is_denied(&uid("x"), "pull", "argocd"));
        let attached = ["a", "argocd"].map(|namespace| index.attached(namespace, "default").len());
        assert_eq!(attached, [1, 0]);
    }

    #[test]
    fn an_output_is_denied_where_it_may_not_be_written_and_claims_nothing_there() {
        let mut one = credential(1, &selection(&["*"], None, &[]));
        let everywhere = NamespaceMatcher::parse(&selection(&["*"], None, &[])).ok();
        let allowed = Some(BTreeSet::from(["b".into()]));
        one.secrets.push(WantedSecret { allowed, ..WantedSecret::anywhere("out", everywhere.clone()) });
        one.secrets.push(WantedSecret::anywhere("free", everywhere));
        for namespace_first in [false, true] {
            let outputs = BTreeSet::from([("out".into(), "b".into())]);
            let mut index = SelectorIndex::new(Some(BTreeSet::from(["a".into()]))).with_outputs(outputs);
            if !namespace_first {
                index.set_credential(&uid("x"), one.clone());
            }
            for namespace in ["a", "b"] {
                index.set_namespace(namespace, NamespaceUid::default(), &labels(&[]), false);
            }
            if namespace_first {
                index.set_credential(&uid("x"), one.clone());
            }
            assert_eq!(pairs(index.targets(&uid("x"))), ["pull/a", "out/b", "free/a"]);
            assert_eq!(pairs(index.denied(&uid("x"))), ["out/a", "free/b"]);
            assert_eq!(index.winner("out", "a"), None);
            assert!(index.is_open("out", "b") && !index.is_open("pull", "b"));
            let affected = index.set_namespace("a", NamespaceUid::default(), &labels(&[]), true);
            assert_eq!(
                (affected, pairs(index.denied(&uid("x")))),
                (BTreeSet::from([uid("x")]), vec!["free/b".to_owned()])
            );
        }
    }
}
