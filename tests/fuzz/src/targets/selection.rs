//! Globs and label selectors: as Kubernetes and the documentation say, told in the plainest way.

use arbitrary::{Result, Unstructured};
use ecr_credential_operator::api::{LabelRequirement, NamespaceSelection, SelectorOperator};
use ecr_credential_operator::plan::namespaces::{Labels, NamespaceMatcher, SelectionError};

use crate::material::{self, NAMESPACES};

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let spec = material::selection(u)?;
    let labels = material::labels(u)?;
    let name = if u.ratio(1, 2)? { (*u.choose(&NAMESPACES)?).to_owned() } else { material::glob(u)? };
    let parsed = NamespaceMatcher::parse(&spec);
    assert_eq!(parsed.as_ref().map(drop).map_err(Clone::clone), refusal(&spec));
    if let Ok(selection) = parsed {
        assert_eq!(selection.matches(&name, &labels), selects(&spec, &name, &labels), "{spec:?} {name} {labels:?}");
    }
    Ok(())
}

/// Why a selection is refused, if it is.
fn refusal(spec: &NamespaceSelection) -> std::result::Result<(), SelectionError> {
    match &spec.selector {
        Some(s) if s.match_labels.is_empty() && s.match_expressions.is_empty() => return Err(SelectionError::Empty),
        None if spec.names.is_empty() => return Err(SelectionError::Empty),
        _ => {}
    }
    let needs_values = |r: &&LabelRequirement| {
        matches!(r.operator, SelectorOperator::In | SelectorOperator::NotIn) && r.values.is_empty()
    };
    let wrong = spec.selector.iter().flat_map(|s| &s.match_expressions).find(needs_values);
    wrong.map_or(Ok(()), |requirement| Err(SelectionError::NoValues(requirement.key.clone())))
}

/// Whether a selection that is not refused selects a namespace.
pub fn selects(spec: &NamespaceSelection, name: &str, labels: &Labels) -> bool {
    let named = |globs: &[String]| globs.iter().any(|glob| fits(glob.as_bytes(), name.as_bytes()));
    let labelled = spec.selector.as_ref().is_some_and(|selector| {
        selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && selector.match_expressions.iter().all(|requirement| holds(requirement, labels))
    });
    (named(&spec.names) || labelled) && !named(&spec.exclude)
}

fn holds(requirement: &LabelRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = value.is_some_and(|value| requirement.values.contains(value));
    match requirement.operator {
        SelectorOperator::In => listed,
        SelectorOperator::NotIn => !listed,
        SelectorOperator::Exists => value.is_some(),
        SelectorOperator::DoesNotExist => value.is_none(),
    }
}

/// Whether a name fits a glob: `*` stands for any characters, `?` for one.
fn fits(glob: &[u8], name: &[u8]) -> bool {
    match (glob, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| fits(rest, &name[skipped..])),
        ([b'?', glob @ ..], [_, name @ ..]) => fits(glob, name),
        ([one, glob @ ..], [other, name @ ..]) => one == other && fits(glob, name),
        _ => false,
    }
}
