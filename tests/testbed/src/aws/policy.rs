//! Session policies: the JSON document that narrows what a session may do.

use serde::Deserialize;

use super::error::ApiError;
use super::iam::string_like;

/// The statements of a session policy; conditions are not known here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct SessionPolicy {
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

impl SessionPolicy {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        // 2048 characters: the limit of `Policy` in STS's API reference.
        if text.len() > 2048 {
            return Err(ApiError::bad("PackedPolicyTooLarge", "Packed size of session policy exceeds the limit."));
        }
        let malformed = |why: String| ApiError::bad("MalformedPolicyDocument", why);
        let policy: SessionPolicy =
            serde_json::from_str(text).map_err(|error| malformed(format!("Syntax errors in policy. ({error})")))?;
        match policy.version.as_str() {
            "2012-10-17" | "2008-10-17" => Ok(policy),
            _ => Err(malformed("The policy must contain a valid version string".to_owned())),
        }
    }

    /// Whether the policy lets `action` on all resources through; `ecr:GetAuthorizationToken` knows no narrower resource.
    pub(super) fn allows(&self, action: &str) -> bool {
        let applies = |statement: &Statement| {
            let actions = statement.action.all().iter().any(|pattern| string_like(pattern, action));
            actions && statement.resource.all().iter().any(|resource| resource == "*")
        };
        let effects: Vec<Effect> =
            self.statement.all().iter().filter(|s| applies(s)).map(|statement| statement.effect).collect();
        effects.contains(&Effect::Allow) && !effects.contains(&Effect::Deny)
    }
}
