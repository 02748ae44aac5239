//! Which namespaces an EcrCredential means: written apart from the operator, to disagree with it when it is wrong.

use serde_json::Value;

use super::history::Version;

/// Whether the EcrCredential's `spec.namespaces` selects this namespace.
pub(super) fn selects(credential: &Version, namespace: &Version) -> bool {
    let wanted = &credential.object["spec"]["namespaces"];
    let name = namespace.object["metadata"]["name"].as_str().unwrap_or_default();
    let labels = &namespace.object["metadata"]["labels"];
    let listed = |field: &str| strings(&wanted[field]).any(|glob| glob_matches(glob, name));
    (listed("names") || (wanted["selector"].is_object() && selector_matches(&wanted["selector"], labels)))
        && !listed("exclude")
}

/// The name of the Secret that the EcrCredential asks for.
pub(super) fn secret_name(credential: &Version) -> &str {
    credential.object["spec"]["secret"]["name"].as_str().unwrap_or("ecr-pull-secret")
}

fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| &labels[key] == value);
    equal
        && selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|wanted| expression_matches(wanted, labels))
}

fn expression_matches(wanted: &Value, labels: &Value) -> bool {
    let value = &labels[wanted["key"].as_str().unwrap_or_default()];
    let listed = strings(&wanted["values"]).any(|candidate| value == candidate);
    match wanted["operator"].as_str() {
        Some("In") => listed,
        Some("NotIn") => !listed,
        Some("Exists") => !value.is_null(),
        Some("DoesNotExist") => value.is_null(),
        _ => false,
    }
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// `*` is any number of characters, `?` is one.
fn glob_matches(glob: &str, name: &str) -> bool {
    match (glob.as_bytes().split_first(), name.as_bytes().split_first()) {
        (None, None) => true,
        (Some((b'*', _)), _) => glob_matches(&glob[1..], name) || (!name.is_empty() && glob_matches(glob, &name[1..])),
        (Some((b'?', _)), Some(_)) => glob_matches(&glob[1..], &name[1..]),
        (Some((wanted, _)), Some((found, _))) => wanted == found && glob_matches(&glob[1..], &name[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::version;
    use super::*;

    #[test]
    fn namespaces_are_selected_by_glob_or_label_unless_excluded() {
        let cases = [
            (json!({"names": ["team-*"]}), "team-a", true),
            (json!({"names": ["team-*"]}), "steam-a", false),
            (json!({"names": ["team-?"]}), "team-ab", false),
            (json!({"names": ["*"], "exclude": ["team-a"]}), "team-a", false),
            (json!({"selector": {"matchLabels": {"pull": "ecr"}}}), "any", true),
            (json!({"selector": {"matchLabels": {"pull": "no"}}}), "any", false),
            (json!({"selector": {}}), "any", true),
            (
                json!({"selector": {"matchExpressions": [{"key": "pull", "operator": "In", "values": ["ecr"]}]}}),
                "any",
                true,
            ),
            (
                json!({"selector": {"matchExpressions": [{"key": "pull", "operator": "NotIn", "values": ["ecr"]}]}}),
                "any",
                false,
            ),
            (json!({"selector": {"matchExpressions": [{"key": "pull", "operator": "DoesNotExist"}]}}), "any", false),
            (json!({"selector": {"matchExpressions": [{"key": "pull", "operator": "Exists"}]}}), "any", true),
            (json!({}), "any", false),
        ];
        for (namespaces, name, expected) in cases {
            let credential = version(json!({"spec": {"namespaces": namespaces}}));
            let namespace = version(json!({"metadata": {"name": name, "labels": {"pull": "ecr"}}}));
            assert_eq!(selects(&credential, &namespace), expected, "{namespaces} {name}");
        }
    }
}
