//! Session policies: the JSON document that narrows what a session may do.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::ApiError;
use super::form::Form;
use super::iam::string_like;

/// A session policy, as it was sent and taken apart.
#[derive(Clone, Debug)]
pub(super) struct SessionPolicy {
    text: String,
    document: Document,
}

/// The statements of a session policy; conditions are not known here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: String,
    #[serde(default)]
    #[allow(dead_code)]
    id: Option<String>,
    statement: OneOrMany<Statement>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    #[serde(default)]
    #[allow(dead_code)]
    sid: Option<String>,
    effect: Effect,
    action: OneOrMany<String>,
    resource: OneOrMany<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn all(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

/// How much of the room for session policies and tags a session takes, in percent.
///
/// AWS packs both in a form that it does not publish. The rates here are those of its own example (100 characters of
/// policy take 6 %) and of a request that somebody measured (nine tags of 252 bytes take 498 %).
pub(super) fn packed_size(
    policy: Option<&SessionPolicy>,
    tags: &BTreeMap<String, String>,
) -> Result<Option<usize>, ApiError> {
    let policy_size = policy.map_or(0, |policy| policy.text.len() * 6).div_ceil(100);
    let tag_size = (tags.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() * 498).div_ceil(9 * 252);
    let too_large = |message: String| Err(ApiError::bad("PackedPolicyTooLarge", message));
    match policy_size + tag_size {
        0 => Ok(None),
        size if size <= 100 => Ok(Some(size)),
        size if policy.is_none() => {
            too_large(format!("Packed size of session tags consumes {size}% of allotted space."))
        }
        size => too_large(format!("Packed policy consumes {size}% of allotted space, please use smaller policy.")),
    }
}

impl SessionPolicy {
    /// Reads the parameter `Policy`, if it was sent.
    pub(super) fn read(form: &Form) -> Result<Option<Self>, ApiError> {
        let Some(text) = form.get("Policy") else { return Ok(None) };
        // 1 to 2048 characters: the limits of `Policy` in STS's API reference.
        if text.is_empty() {
            return Err(form.invalid("Policy", "Member must have length greater than or equal to 1"));
        }
        if text.chars().count() > 2048 {
            return Err(form.invalid("Policy", "Member must have length less than or equal to 2048"));
        }
        let fits = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}');
        if !text.chars().all(fits) {
            let pattern = "[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+";
            return Err(form.invalid("Policy", &format!("Member must satisfy regular expression pattern: {pattern}")));
        }
        let malformed = |why: String| ApiError::bad("MalformedPolicyDocument", why);
        let document: Document =
            serde_json::from_str(text).map_err(|error| malformed(format!("Syntax errors in policy. ({error})")))?;
        match document.version.as_str() {
            "2012-10-17" | "2008-10-17" => Ok(Some(SessionPolicy { text: text.to_owned(), document })),
            _ => Err(malformed("The policy must contain a valid version string".to_owned())),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the policy lets `action` on all resources through; `ecr:GetAuthorizationToken` knows no narrower resource.
    pub(super) fn allows(&self, action: &str) -> bool {
        let applies = |statement: &Statement| {
            let actions = statement.action.all().iter().any(|pattern| string_like(pattern, action));
            actions && statement.resource.all().iter().any(|resource| resource == "*")
        };
        let effects: Vec<Effect> =
            self.document.statement.all().iter().filter(|s| applies(s)).map(|statement| statement.effect).collect();
        effects.contains(&Effect::Allow) && !effects.contains(&Effect::Deny)
    }
}
