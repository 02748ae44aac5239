//! The parts of the CRD's schema that a derive cannot say: bounded lists and maps whose messages tell what to write instead.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

fn rule(rule: &str, message: &str) -> Value {
    json!([{ "rule": rule, "message": message }])
}

/// A list of strings without duplicates, each checked by a CEL rule.
fn string_set(max_items: u32, max_length: u32, check: &str, message: &str) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": max_items,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": max_length, "x-kubernetes-validations": rule(check, message) },
    })
}

pub(super) fn account_ids(_: &mut SchemaGenerator) -> Schema {
    string_set(
        100,
        64,
        "self.matches('^[0-9]{12}$')",
        "an AWS account id has 12 digits, quoted so that leading zeros stay: \"012345678901\"",
    )
}

/// A list of some of these values, without duplicates and not empty.
fn set_of(values: &[&str]) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "enum": values },
    })
}

pub(super) fn host_variants(_: &mut SchemaGenerator) -> Schema {
    set_of(&["Standard", "Fips", "DualStack", "DualStackFips"])
}

pub(super) fn public_host_variants(_: &mut SchemaGenerator) -> Schema {
    set_of(&["Standard", "DualStack"])
}

pub(super) fn extra_hosts(_: &mut SchemaGenerator) -> Schema {
    string_set(32, 260, HOST, HOST_MESSAGE)
}

pub(super) fn host(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "nullable": true,
        "maxLength": 260,
        "x-kubernetes-validations": rule(HOST, HOST_MESSAGE),
    })
}

const HOST: &str = "self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+(:[1-9][0-9]{0,4})?$') && (!self.contains(':') || int(self.split(':')[1]) <= 65535)";
const HOST_MESSAGE: &str = "a host is a lower case DNS name with an optional port, without scheme or path: vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com";

pub(super) fn globs(_: &mut SchemaGenerator) -> Schema {
    string_set(
        256,
        63,
        "self.matches('^[a-z0-9*?]([-a-z0-9*?]*[a-z0-9*?])?$')",
        "a namespace name or glob has lower case letters, digits and inner '-', with '*' for any characters and '?' for one",
    )
}

pub(super) fn service_account_globs(_: &mut SchemaGenerator) -> Schema {
    string_set(
        16,
        253,
        "self.matches('^[a-z0-9*?]([-a-z0-9.*?]*[a-z0-9*?])?$')",
        "a ServiceAccount name or glob has lower case letters, digits and inner '-' and '.', with '*' for any characters and '?' for one",
    )
}

pub(super) fn label_values(_: &mut SchemaGenerator) -> Schema {
    string_set(
        64,
        63,
        "self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')",
        "a label value has letters, digits, '-', '_' and '.', and begins and ends with a letter or digit",
    )
}

/// Removes the defaults of a schema that is an item of a list. The types have the same defaults; filled in by the API server,
/// they would make the list differ from what was applied, and tools such as Argo CD would report the difference for ever.
pub(super) fn without_defaults(schema: &mut Schema) {
    schema.remove("default");
    schemars::transform::transform_subschemas(&mut without_defaults, schema);
}

/// Percent, without the format that a derive would give: the API server warns of formats that it does not know, and repeats
/// those that it knows in its messages.
pub(super) fn percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 10, "maximum": 70 })
}

/// A label's key as CEL sees it in `k`: a prefix is a DNS name of at most 253 characters, the rest has at most 63.
const KEYS: &str = "self.all(k, k.size() <= 317 && k.indexOf('/') <= 253 && k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))";
const LABEL_VALUES: &str = "self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))";
const LABEL_KEY_MESSAGE: &str = "each key must be a label key such as team or example.com/team";
const ANNOTATION_KEY_MESSAGE: &str = "each key must be an annotation key such as note or example.com/note";
const VALUE_MESSAGE: &str = "each value must be a label value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit";
const OWN_KEYS: &str = "self.all(k, !k.startsWith('pullsecrets.dev/') && k != 'app.kubernetes.io/managed-by')";
const OWN_KEYS_MESSAGE: &str =
    "keys under pullsecrets.dev/ and app.kubernetes.io/managed-by are set by the operator: choose other keys";

fn string_map(max_value: u32, rules: &[(&str, &str)]) -> Schema {
    let rules: Vec<Value> = rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect();
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": max_value },
        "x-kubernetes-validations": rules,
    })
}

pub(super) fn label_map(_: &mut SchemaGenerator) -> Schema {
    string_map(63, &[(KEYS, LABEL_KEY_MESSAGE), (LABEL_VALUES, VALUE_MESSAGE), (OWN_KEYS, OWN_KEYS_MESSAGE)])
}

pub(super) fn match_labels(_: &mut SchemaGenerator) -> Schema {
    string_map(63, &[(KEYS, LABEL_KEY_MESSAGE), (LABEL_VALUES, VALUE_MESSAGE)])
}

pub(super) fn annotation_map(_: &mut SchemaGenerator) -> Schema {
    string_map(4096, &[(KEYS, ANNOTATION_KEY_MESSAGE), (OWN_KEYS, OWN_KEYS_MESSAGE)])
}

pub(super) fn audiences(_: &mut SchemaGenerator) -> Schema {
    string_set(4, 256, "self.size() > 0", "an audience must not be empty: sts.amazonaws.com")
}

/// Seconds, without a format: see [`percent`].
pub(super) fn session_seconds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 900, "maximum": 43200, "nullable": true })
}

const TAG_KEY: &str = "^[\\\\p{L}\\\\p{Z}\\\\p{N}_.:/=+@-]{1,128}$";

/// Keys that must be in `session_tags`, where they are checked.
pub(super) fn tag_keys(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 50,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 128 },
    })
}

pub(super) fn session_tags(_: &mut SchemaGenerator) -> Schema {
    let keys = format!("self.all(k, k.matches('{TAG_KEY}'))");
    json_schema!({
        "type": "object",
        "maxProperties": 50,
        "additionalProperties": { "type": "string", "maxLength": 256 },
        "x-kubernetes-validations": rule(&keys, "each tag key has 1 to 128 letters, digits, spaces and characters of _.:/=+@-"),
    })
}
