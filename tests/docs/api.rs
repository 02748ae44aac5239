//! The reference of the API, from the schema of the CustomResourceDefinition.

use std::collections::VecDeque;
use std::fmt::Write;

use serde_json::Value;

/// One table for each object of the schema.
pub(crate) fn reference() -> String {
    let crd: Value = serde_saphyr::from_str(&ecr_credential_operator::crd::yaml().unwrap()).unwrap();
    let version = &crd["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut text = String::new();
    let mut objects: VecDeque<(String, &Value)> =
        ["spec", "status"].map(|name| (name.to_owned(), &schema["properties"][name])).into();
    while let Some((path, object)) = objects.pop_front() {
        let heading = path.replace("[]", "");
        writeln!(text, "## {heading}\n").unwrap();
        if let Some(description) = object["description"].as_str() {
            writeln!(text, "{}\n", cell(description)).unwrap();
        }
        text.push_str("| field | type | default | description |\n|---|---|---|---|\n");
        let required: Vec<&str> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut further = Vec::new();
        for (name, field) in object["properties"].as_object().unwrap() {
            let default = match field.get("default").map(|default| serde_json::to_string(default).unwrap()) {
                Some(default) => format!("`{default}`"),
                None if required.contains(&name.as_str()) => "required".to_owned(),
                None => String::new(),
            };
            let description = cell(field["description"].as_str().unwrap_or_default());
            writeln!(text, "| `{name}` | {} | {default} | {description} |", kind(field)).unwrap();
            let inner = if field["items"]["properties"].is_object() { &field["items"] } else { field };
            if inner["properties"].is_object() {
                further.push((format!("{path}.{name}"), inner));
            }
        }
        text.push('\n');
        rules(object, &mut text);
        // Deep first, so that an object stands near the one that it belongs to.
        further.into_iter().rev().for_each(|one| objects.push_front(one));
    }
    text
}

/// What the type allows.
fn kind(field: &Value) -> String {
    let base = field["type"].as_str().unwrap_or("any");
    let mut text = match base {
        "array" => format!("list of {}", kind(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map".to_owned(),
        other => other.to_owned(),
    };
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        text = values.join(", ");
    }
    if let Some(format) = field["format"].as_str().filter(|format| *format == "date-time") {
        text = format.to_owned();
    }
    let bound = |low: &str, high: &str| match (field[low].as_i64(), field[high].as_i64()) {
        (Some(low), Some(high)) => Some(format!("{low} to {high}")),
        (Some(low), None) => Some(format!("at least {low}")),
        (None, Some(high)) => Some(format!("at most {high}")),
        (None, None) => None,
    };
    let bounds =
        [("minimum", "maximum", ""), ("minItems", "maxItems", " items"), ("minLength", "maxLength", " characters")];
    for (low, high, what) in bounds {
        if let Some(bound) = bound(low, high) {
            write!(text, ", {bound}{what}").unwrap();
        }
    }
    text
}

/// The rules that the API server checks, by their messages.
fn rules(object: &Value, text: &mut String) {
    let mut messages = Vec::new();
    let mut add = |path: String, schema: &Value| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default();
            messages.push(if path.is_empty() { cell(message) } else { format!("`{path}`: {}", cell(message)) });
        }
    };
    add(String::new(), object);
    for (name, field) in object["properties"].as_object().unwrap() {
        add(name.clone(), field);
        if !field["items"]["properties"].is_object() {
            add(name.clone(), &field["items"]);
        }
    }
    if !messages.is_empty() {
        text.push_str("Rules:\n\n");
        messages.iter().for_each(|message| writeln!(text, "- {message}").unwrap());
        text.push('\n');
    }
}

/// A text in one line, as it can stand in a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
