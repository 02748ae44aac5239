//! Answers made wrong: what a fault does to a good body.

use serde_json::{Value, json};

use super::fault::{BodyForm, Field};

/// A page as a proxy or a captive portal sends it.
const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Please sign in</h1></body></html>";

/// The content type and the bytes of a registry service's answer.
pub(super) fn json_body(form: BodyForm, mut good: Value) -> (&'static str, Vec<u8>) {
    match form {
        BodyForm::WrongTypes => edit(&mut good, &mut |entry| {
            entry["authorizationToken"] = json!(42);
            entry["expiresAt"] = json!("tomorrow");
        }),
        BodyForm::Missing(Field::Data) => good = json!({}),
        BodyForm::Missing(field) => edit(&mut good, &mut |entry| {
            entry.as_object_mut().map(|entry| entry.remove(json_name(field)));
        }),
        BodyForm::EmptyList if good["authorizationData"].is_array() => good = json!({ "authorizationData": [] }),
        BodyForm::EmptyList => good = json!({}),
        _ => {}
    }
    let mut bytes = good.to_string().into_bytes();
    if let BodyForm::Padded(size) = form {
        // White space between values means nothing in JSON.
        bytes.splice(1..1, std::iter::repeat_n(b' ', size.saturating_sub(bytes.len())));
    }
    any_body(form, "application/x-amz-json-1.1", bytes)
}

/// The same for STS.
pub(super) fn xml_body(form: BodyForm, mut good: String) -> (&'static str, Vec<u8>) {
    match form {
        BodyForm::WrongTypes => replace_element(&mut good, "Expiration", "<Expiration>tomorrow</Expiration>"),
        BodyForm::Missing(field) => replace_element(&mut good, xml_name(field), ""),
        BodyForm::EmptyList => replace_element(&mut good, "Credentials", "<Credentials></Credentials>"),
        BodyForm::Padded(size) => good.insert_str(0, &format!("<!--{}-->", " ".repeat(size))),
        _ => {}
    }
    any_body(form, "text/xml", good.into_bytes())
}

fn any_body(form: BodyForm, content_type: &'static str, mut bytes: Vec<u8>) -> (&'static str, Vec<u8>) {
    match form {
        BodyForm::Html => ("text/html", PAGE.into()),
        BodyForm::Empty => (content_type, Vec::new()),
        BodyForm::Truncated => {
            bytes.truncate(bytes.len() / 2);
            (content_type, bytes)
        }
        _ => (content_type, bytes),
    }
}

/// Changes each entry of `authorizationData`, be it a list or one object.
fn edit(answer: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    match &mut answer["authorizationData"] {
        Value::Array(entries) => entries.iter_mut().for_each(change),
        entry => change(entry),
    }
}

fn json_name(field: Field) -> &'static str {
    match field {
        Field::Data => "authorizationData",
        Field::Token => "authorizationToken",
        Field::Expiry => "expiresAt",
        Field::ProxyEndpoint => "proxyEndpoint",
    }
}

fn xml_name(field: Field) -> &'static str {
    match field {
        Field::Data => "Credentials",
        Field::Token => "SessionToken",
        Field::Expiry => "Expiration",
        Field::ProxyEndpoint => "Provider",
    }
}

fn replace_element(xml: &mut String, name: &str, with: &str) {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    if let (Some(start), Some(end)) = (xml.find(&open), xml.find(&close)) {
        xml.replace_range(start..end + close.len(), with);
    }
}
