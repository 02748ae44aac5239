//! The rules and bounds of a schema, and which of them a refusal names.

use std::collections::BTreeSet;

use serde_json::Value;

/// One rule or bound at one place of the schema.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bound {
    /// Where: `spec.registries[].private`.
    pub(crate) path: String,
    /// Which: `maxItems`, or the message of a CEL rule.
    pub(crate) what: String,
}

/// The fields that are maps of texts.
const MAPS: [&str; 4] = ["labels", "annotations", "matchLabels", "tags"];

/// Collects the bounds of a schema and all below it.
pub(crate) fn bounds_of(schema: &Value, path: &str, found: &mut BTreeSet<Bound>) {
    let mut add = |what: &str, path: &str| found.insert(Bound { path: path.to_owned(), what: what.to_owned() });
    for bound in
        ["maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minimum", "maximum", "enum", "pattern"]
    {
        if schema.get(bound).is_some() {
            add(bound, path);
        }
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        add(rule["message"].as_str().expect("every rule has a message"), path);
    }
    if schema["x-kubernetes-list-type"] == "set" {
        add("duplicate", &format!("{path}[]"));
    }
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        add("required", &join(path, field));
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        bounds_of(schema, &join(path, field), found);
    }
    if let Some(items) = schema.get("items") {
        bounds_of(items, &format!("{path}[]"), found);
    }
    if let Some(values) = schema.get("additionalProperties") {
        bounds_of(values, &format!("{path}{{}}"), found);
    }
}

impl Bound {
    /// The bound that a cause such as `spec.registries: Too many: 33: must have at most 32 items` names.
    pub(crate) fn named_by(cause: &str) -> Option<Self> {
        let (field, text) = cause.split_once(": ")?;
        let text = text.strip_prefix("Invalid value: ").unwrap_or(text);
        let words = [
            ("Too long", "maxLength"),
            ("chars long", "minLength"),
            ("should have at least", "minItems"),
            ("greater than or equal", "minimum"),
            ("less than or equal", "maximum"),
            ("Unsupported value", "enum"),
            ("Required value", "required"),
            ("Duplicate value", "duplicate"),
            ("must be of type", "type"),
        ];
        let mut path: String =
            field.split(['[', ']']).enumerate().map(|(n, part)| if n % 2 == 0 { part } else { "[]" }).collect();
        // Entries of maps are named as if they were fields.
        for map in MAPS {
            if let Some((parent, _)) = path.split_once(&format!("{map}.k")) {
                path = format!("{parent}{map}{{}}");
            }
        }
        let of_map = MAPS.iter().any(|map| path.ends_with(&format!(".{map}")));
        let what = match words.iter().find(|(word, _)| text.contains(word)) {
            Some((_, what)) => *what,
            None if text.starts_with("Too many") => {
                if of_map {
                    "maxProperties"
                } else {
                    "maxItems"
                }
            }
            None => text,
        };
        let path = if path == "<nil>" { String::new() } else { path };
        Some(Self { path, what: what.to_owned() })
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
