//! Which namespaces an EcrCredential means: written apart from the operator, to disagree with it when it is wrong.

use serde_json::Value;

/// A Secret that an EcrCredential asks for: its pull secret, or one of its outputs.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub name: &'a str,
    pub format: &'a str,
    /// The one host whose login it holds.
    pub host: Option<&'a str>,
    /// Whether each entry of a docker config has a user name and a password.
    pub has_password: bool,
    namespaces: &'a Value,
}

/// Every Secret that an EcrCredential asks for.
pub fn asked(credential: &Value) -> Vec<Asked<'_>> {
    let spec = &credential["spec"];
    let has_password = |of: &Value| of["loginFields"] == "AuthUsernamePassword";
    let pull_secret = Asked {
        name: spec["secret"]["name"].as_str().unwrap_or("ecr-pull-secret"),
        format: "DockerConfigJson",
        host: None,
        has_password: has_password(&spec["secret"]),
        namespaces: &spec["namespaces"],
    };
    let outputs = spec["outputs"].as_array().into_iter().flatten().map(|output| Asked {
        name: output["name"].as_str().unwrap_or_default(),
        format: output["format"].as_str().unwrap_or_default(),
        host: output["host"].as_str(),
        has_password: has_password(output),
        namespaces: if output["namespaces"].is_object() { &output["namespaces"] } else { &spec["namespaces"] },
    });
    std::iter::once(pull_secret).chain(outputs).collect()
}

impl Asked<'_> {
    /// A pull secret that nobody asks for.
    pub fn pull_secret() -> Self {
        Asked { name: "", format: "DockerConfigJson", host: None, has_password: false, namespaces: &Value::Null }
    }

    /// Whether it is to be in this namespace.
    pub fn selects(&self, namespace: &Value) -> bool {
        let wanted = self.namespaces;
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        let labels = &namespace["metadata"]["labels"];
        let listed = |field: &str| strings(&wanted[field]).any(|glob| glob_matches(glob, name));
        (listed("names") || (wanted["selector"].is_object() && selector_matches(&wanted["selector"], labels)))
            && !listed("exclude")
    }
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
            let credential = json!({"spec": {"namespaces": namespaces}});
            let namespace = json!({"metadata": {"name": name, "labels": {"pull": "ecr"}}});
            assert_eq!(asked(&credential)[0].selects(&namespace), expected, "{namespaces} {name}");
        }
    }

    #[test]
    fn an_output_has_its_own_namespaces_or_those_of_the_pull_secret() {
        let credential = json!({"spec": {"namespaces": {"names": ["a"]}, "outputs": [
            {"name": "x", "format": "Jenkins", "host": "h"},
            {"name": "y", "format": "DockerConfigFile", "namespaces": {"names": ["b"]}},
        ]}});
        let namespace = |name: &str| json!({"metadata": {"name": name}});
        let selected: Vec<_> = asked(&credential)
            .iter()
            .map(|one| (one.name, ["a", "b"].map(|name| one.selects(&namespace(name)))))
            .collect();
        let expected = [("ecr-pull-secret", [true, false]), ("x", [true, false]), ("y", [false, true])];
        assert_eq!(selected, expected);
    }
}
