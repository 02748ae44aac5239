//! The namespaces that a spec selects, by name and by label.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Expression, Selector, SelectorExt};
use wildmatch::WildMatch;

use crate::api::{LabelRequirement, NamespaceSelection, SelectorOperator};
use crate::encoding::{Digest, Fields};

/// Labels as Kubernetes has them.
pub type Labels = BTreeMap<String, String>;

/// Why a namespace selection cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Neither names nor selector.
    #[error("spec.namespaces needs names or a selector; to select all namespaces, write names: [\"*\"]")]
    Empty,
    /// `In` or `NotIn` without values.
    #[error("the requirement on {0:?} needs values")]
    NoValues(String),
}

/// `spec.namespaces`, ready to match.
#[derive(Clone, Debug)]
pub struct NamespaceMatcher {
    pub(super) names: Vec<WildMatch>,
    /// The names as they are written, in the same order.
    pub(super) patterns: Vec<String>,
    pub(super) exclude: Vec<WildMatch>,
    pub(super) selector: Option<Selector>,
    /// A label without which no namespace is selected, as [`label_line`]; empty where there is no such label.
    pub(super) anchor: String,
}

/// The parts of `spec.namespaces` that select nothing, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unselected {
    /// Names of namespaces in which the operator may not write.
    pub not_allowed: Vec<String>,
    /// Names of namespaces that do not exist, or are being deleted.
    pub missing: Vec<String>,
    /// Patterns that no namespace's name matches.
    pub unmatched: Vec<String>,
    /// Whether the selector matches the labels of no namespace.
    pub selector: bool,
}

/// The most names of each kind in a message.
pub(super) const MOST_TOLD: usize = 5;

impl Unselected {
    /// The parts that select nothing, as text after a colon; none if each part selects something.
    pub fn not_found(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("there is no namespace {}", some_of(&self.missing)));
        }
        if !self.unmatched.is_empty() {
            parts.push(format!("no namespace matches {}", some_of(&self.unmatched)));
        }
        if self.selector {
            parts.push("no namespace matches the labels of spec.namespaces.selector".to_owned());
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// The namespaces that may not be written, and what to do; none if all may be.
    pub fn out_of_reach(&self) -> Option<String> {
        (!self.not_allowed.is_empty()).then(|| {
            format!(
                "the operator is not allowed to write in namespace {}: remove it from spec.namespaces.names, or add it to the chart's namespaces (flag --namespace)",
                some_of(&self.not_allowed)
            )
        })
    }
}

fn some_of(names: &[String]) -> String {
    let told = names.iter().take(MOST_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MOST_TOLD).filter(|more| *more > 0) {
        Some(more) => format!("{told} and {more} more"),
        None => told,
    }
}

impl NamespaceMatcher {
    /// Parses the globs and the selector.
    ///
    /// # Errors
    /// [`SelectionError`] for a selection that the CRD's rules refuse as well.
    pub fn parse(spec: &NamespaceSelection) -> Result<Self, SelectionError> {
        let selector = match &spec.selector {
            None => None,
            Some(s) if s.match_labels.is_empty() && s.match_expressions.is_empty() => {
                return Err(SelectionError::Empty);
            }
            Some(s) => {
                let labels = s.match_labels.iter().map(|(k, v)| Expression::Equal(k.clone(), v.clone()));
                let mut expressions: Vec<Expression> = labels.collect();
                for requirement in &s.match_expressions {
                    expressions.push(expression(requirement)?);
                }
                Some(expressions.into_iter().collect())
            }
        };
        if spec.names.is_empty() && selector.is_none() {
            return Err(SelectionError::Empty);
        }
        let globs = |patterns: &[String]| patterns.iter().map(|p| WildMatch::new(p)).collect();
        let first = spec.selector.iter().flat_map(|s| &s.match_labels).next();
        let anchor = first.filter(|_| spec.names.is_empty()).map(|(key, value)| label_line(key, value));
        let anchor = anchor.unwrap_or_default();
        let (names, patterns, exclude) = (globs(&spec.names), spec.names.clone(), globs(&spec.exclude));
        Ok(Self { names, patterns, exclude, selector, anchor })
    }

    /// Whether a namespace is selected.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let wanted = self.names.iter().any(|glob| glob.matches(name))
            || self.selector.as_ref().is_some_and(|selector| selector.matches(labels));
        wanted && !self.exclude.iter().any(|glob| glob.matches(name))
    }
}

fn expression(requirement: &LabelRequirement) -> Result<Expression, SelectionError> {
    let key = requirement.key.clone();
    let values = || {
        let values: BTreeSet<String> = requirement.values.iter().cloned().collect();
        if values.is_empty() { Err(SelectionError::NoValues(requirement.key.clone())) } else { Ok(values) }
    };
    Ok(match requirement.operator {
        SelectorOperator::In => Expression::In(key, values()?),
        SelectorOperator::NotIn => Expression::NotIn(key, values()?),
        SelectorOperator::Exists => Expression::Exists(key),
        SelectorOperator::DoesNotExist => Expression::DoesNotExist(key),
    })
}

/// A label as one text. Kubernetes allows neither `=` nor line breaks in its key and value.
pub(super) fn label_line(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// The identity of a namespace: a recreated namespace of the same name has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceUid {
    /// A hash of its uid.
    uid: u64,
    /// When it was created, in seconds since 1970.
    created: i64,
}

impl NamespaceUid {
    /// The identity of a namespace with this uid and creation time.
    pub fn of(uid: &str, created: Option<Timestamp>) -> Self {
        let uid = Digest::of(uid.as_bytes()).short();
        Self { uid, created: created.map(Timestamp::as_second).unwrap_or_default() }
    }

    /// Encodes it for a digest that outlives the process.
    pub fn encode(&self, fields: Fields) -> Fields {
        fields.number(self.uid.cast_signed()).number(self.created)
    }

    /// The identity of a namespace with this metadata.
    pub fn of_namespace(metadata: &ObjectMeta) -> Self {
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        Self::of(metadata.uid.as_deref().unwrap_or_default(), created)
    }

    /// Whether an object created at this time was in an earlier namespace of the same name.
    pub fn is_after(&self, created: Timestamp) -> bool {
        created.as_second() < self.created
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::NamespaceSelector;

    pub(in crate::plan) fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    pub(in crate::plan) fn selection(
        names: &[&str],
        selector: Option<NamespaceSelector>,
        exclude: &[&str],
    ) -> NamespaceSelection {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        NamespaceSelection { names: owned(names), selector, exclude: owned(exclude) }
    }

    pub(in crate::plan) fn by_label(key: &str, value: &str) -> Option<NamespaceSelector> {
        Some(NamespaceSelector { match_labels: labels(&[(key, value)]), match_expressions: Vec::new() })
    }

    #[test]
    fn a_namespace_uid_is_the_same_in_every_build() {
        let of = |uid, created| NamespaceUid::of(uid, Timestamp::from_second(created).ok());
        let digest = of("3b6cbb5c-1f5e-4f0f-8f7b-111122223333", 1_767_225_600).encode(Fields::new("t1")).finish();
        assert_eq!(digest.to_string(), "96cd8b210b6fd49e4dc5d1804d1c25fdcbc722f976624bd8bd969b5b3ec97f22");
    }

    #[test]
    fn a_namespace_is_selected_by_name_or_label_unless_excluded() {
        let spec = selection(&["payments", "team-*", "a?c"], by_label("pull", "ecr"), &["kube-*", "team-secret"]);
        let selection = NamespaceMatcher::parse(&spec).unwrap();
        let table = [
            ("payments", labels(&[]), true),
            ("payments2", labels(&[]), false),
            ("team-a", labels(&[]), true),
            ("team-secret", labels(&[("pull", "ecr")]), false),
            ("abc", labels(&[]), true),
            ("abbc", labels(&[]), false),
            ("other", labels(&[("pull", "ecr")]), true),
            ("other", labels(&[("pull", "no")]), false),
            ("kube-system", labels(&[("pull", "ecr")]), false),
        ];
        for (name, labels, expected) in table {
            assert_eq!(selection.matches(name, &labels), expected, "{name} {labels:?}");
        }
    }

    #[test]
    fn an_empty_selection_selects_nothing_and_says_so() {
        for spec in [selection(&[], None, &[]), selection(&[], Some(NamespaceSelector::default()), &[])] {
            assert_eq!(NamespaceMatcher::parse(&spec).unwrap_err(), SelectionError::Empty);
        }
    }
}
