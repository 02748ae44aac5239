//! Views: what a caller is shown of lists and watches, so that the operators of many tests share one API server without meeting.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::Request;
use super::fault::Match;

type Shown = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

#[derive(Default)]
pub(super) struct Views(Mutex<Vec<(Match, Shown)>>);

impl Views {
    pub(super) fn add(&self, on: Match, shown: Shown) {
        self.0.lock().push((on, shown));
    }

    /// Whether anything may be hidden from the answer to this request.
    pub(super) fn concern(&self, request: &Request) -> bool {
        self.0.lock().iter().any(|(on, _)| on.matches(request))
    }

    /// The list without what is hidden; anything else as it is.
    pub(super) fn filter_list(&self, request: &Request, body: Bytes) -> Bytes {
        let Ok(mut list) = serde_json::from_slice::<Value>(&body) else { return body };
        let Some(items) = list["items"].as_array_mut() else { return body };
        items.retain(|object| self.shows(request, object));
        list.to_string().into()
    }

    /// Whether a watch event may be seen. Bookmarks and errors are about no object.
    pub(super) fn shows_event(&self, request: &Request, line: &[u8]) -> bool {
        if !self.concern(request) {
            return true;
        }
        let event: Value = serde_json::from_slice(line).unwrap_or_default();
        !matches!(event["type"].as_str(), Some("ADDED" | "MODIFIED" | "DELETED"))
            || self.shows(request, &event["object"])
    }

    fn shows(&self, request: &Request, object: &Value) -> bool {
        self.0.lock().iter().filter(|(on, _)| on.matches(request)).all(|(_, shown)| shown(object))
    }
}
