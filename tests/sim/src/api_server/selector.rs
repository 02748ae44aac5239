//! Which objects a list or watch is about: namespace, name, labels.

use serde_json::Value;

use super::request::Request;

/// See the file's first line.
#[derive(Clone, Debug)]
pub struct Selector {
    namespace: String,
    name: Option<String>,
    labels: Vec<(String, String)>,
}

impl Selector {
    pub fn of(request: &Request) -> Self {
        let name = request.parameter("fieldSelector").strip_prefix("metadata.name=").map(str::to_owned);
        let labels = request.parameter("labelSelector").split(',').filter_map(|part| part.split_once('='));
        Self {
            namespace: request.target.namespace.clone(),
            name,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }

    /// The namespace; empty for all.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it may mean an object of this namespace and name: what can be told without its labels.
    pub fn names(&self, namespace: &str, name: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
    }

    pub fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        (self.namespace.is_empty() || metadata["namespace"] == self.namespace.as_str())
            && self.name.as_ref().is_none_or(|name| metadata["name"] == name.as_str())
            && self.labels.iter().all(|(key, value)| metadata["labels"][key] == value.as_str())
    }
}
