//! The parameters of a Query-protocol request.

use std::collections::BTreeMap;

use super::error::ApiError;

/// A decoded form body.
pub(super) struct Form {
    parameters: BTreeMap<String, String>,
}

impl Form {
    pub(super) fn parse(body: &[u8]) -> Self {
        Form { parameters: url::form_urlencoded::parse(body).into_owned().collect() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name).filter(|value| !value.is_empty()).ok_or_else(|| self.invalid(name, "Member must not be null"))
    }

    /// A parameter of the form that session names and source identities have: `[\w+=,.@-]{2,64}`.
    pub(super) fn name(&self, name: &str) -> Result<String, ApiError> {
        let value = self.required(name)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        match value.chars().all(fits) && (2..=64).contains(&value.len()) {
            true => Ok(value.to_owned()),
            false => Err(self.invalid(name, "Member must satisfy regular expression pattern: [\\w+=,.@-]{2,64}")),
        }
    }

    /// The members of a list: `NAME.member.1`, `NAME.member.2` and so on.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let member = |n: usize| self.get(&format!("{name}.member.{n}")).map(str::to_owned);
        (1..).map_while(member).collect()
    }

    /// The members of a list of keys with values.
    pub(super) fn pairs(&self, name: &str) -> Vec<(String, String)> {
        let part = |n: usize, part: &str| self.get(&format!("{name}.member.{n}.{part}")).map(str::to_owned);
        (1..).map_while(|n| Some((part(n, "Key")?, part(n, "Value").unwrap_or_default()))).collect()
    }

    pub(super) fn invalid(&self, name: &str, constraint: &str) -> ApiError {
        let lower = name.get(..1).unwrap_or_default().to_lowercase() + name.get(1..).unwrap_or_default();
        let value = self.get(name).map_or("null".to_owned(), |value| format!("'{value}'"));
        let message = format!(
            "1 validation error detected: Value {value} at '{lower}' failed to satisfy constraint: {constraint}"
        );
        ApiError::bad("ValidationError", message)
    }
}
