//! Which installations serve an `EcrCredential`: two that serve the same one overwrite each other's Secrets and status.
//!
//! Each writes its name to `status.servedBy`. If another name is there after its own was, another installation has written the status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::{LONGEST_EVENT, Outcome, ReportedEvent, SHORTEST_WAIT, cut, with_transition};
use crate::api::EcrCredentialStatus;
use crate::api::status::{Reason, condition};

/// How long another installation counts after it was seen. One that is still there writes its name again after 30 seconds, and after a
/// minute if its writes are slow.
const KEEP: Duration = Duration::from_secs(90);

/// The most other installations that are remembered.
const MOST: usize = 3;

/// This installation, and the others that serve the same `EcrCredential`.
#[derive(Clone, Debug)]
pub struct Installations {
    own: Arc<str>,
    /// Whether the own name was in the status. The name before that is of an installation that this one replaces.
    has_written: bool,
    /// The resourceVersion that was observed last.
    version: Option<u64>,
    /// How long each of the others has to be seen again, by [`crate::clock::Clock::uptime`].
    others: BTreeMap<String, Duration>,
    uptime: Duration,
}

impl Installations {
    /// An installation of this name that has seen no other.
    pub const fn new(own: Arc<str>) -> Self {
        Self { own, has_written: false, version: None, others: BTreeMap::new(), uptime: Duration::ZERO }
    }

    /// Takes `servedBy` as it is stored in this resourceVersion, and as this process wrote it last, if it did.
    pub fn observe(&mut self, stored: Option<&str>, written: Option<&str>, version: Option<u64>, uptime: Duration) {
        self.uptime = uptime;
        self.others.retain(|_, until| *until > uptime);
        let is_own = |name: Option<&str>| name == Some(&*self.own);
        self.has_written |= is_own(stored) || is_own(written);
        let other = stored.filter(|name| self.has_written && **name != *self.own && is_name(name));
        if let Some(other) = other
            && (version.is_none() || version != self.version)
            && (self.others.len() < MOST || self.others.contains_key(other))
        {
            self.others.insert(other.to_owned(), uptime.saturating_add(KEEP));
        }
        self.version = version;
    }

    /// The warning while there are others. All of them write the same one.
    pub fn warning(&self) -> Option<String> {
        let names: BTreeSet<&str> = self.others.keys().map(String::as_str).chain([&*self.own]).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        (!self.others.is_empty()).then(|| {
            format!("several installations serve this EcrCredential and overwrite each other's Secrets and status: give each a credentialSelector that the others do not match: {names}")
        })
    }

    /// How long the warning stays at least as it is.
    fn unchanged_for(&self) -> Option<Duration> {
        self.others.values().min().map(|until| until.saturating_sub(self.uptime))
    }
}

/// Whether it can be the namespace and name of a Lease: whoever may write the status could write anything.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    text.len() <= 317
        && text.split_once('/').is_some_and(|(namespace, name)| (namespace.to_owned() + name).chars().all(is_part))
}

impl Outcome {
    /// Adds which installation writes the status, and the warning if there are several. The transition time is that of the stored
    /// status, which another may have written, so that all write the same.
    pub fn served_by(
        &mut self,
        installations: &Installations,
        previous: &EcrCredentialStatus,
        stored: &EcrCredentialStatus,
        now: Timestamp,
    ) {
        let own = Some(installations.own.to_string());
        let warning = installations.warning();
        self.status.served_by.clone_from(&stored.served_by);
        // The own name alone is not worth a write: an upgrade from a version without it writes nothing.
        if warning.is_some() || self.status != *stored || (stored.served_by.is_some() && stored.served_by != own) {
            self.status.served_by = own;
        }
        let Some(mut message) = warning else { return };
        let known: Vec<Condition> = stored.conditions.iter().chain(&previous.conditions).cloned().collect();
        let warning = (condition::CONTESTED, true, Reason::Contested, message.clone());
        self.status.conditions.push(with_transition(warning, &known, self.status.observed_generation, now));
        if previous.condition(condition::CONTESTED).is_none() {
            cut(&mut message, LONGEST_EVENT);
            self.events.push(ReportedEvent::of_credential(true, Reason::Contested, message));
        }
        if let Some(wait) = installations.unchanged_for() {
            self.requeue_after = self.requeue_after.min(wait.max(SHORTEST_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn up(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn installation(own: &str) -> Installations {
        Installations::new(own.into())
    }

    /// The names in a warning.
    fn warned(installations: &Installations) -> String {
        let warning = installations.warning();
        warning.map(|text| text.rsplit(": ").next().unwrap().replace(',', "")).unwrap_or_default()
    }

    #[test]
    fn another_installation_is_known_by_its_name_that_comes_after_the_own_one() {
        let long = format!("n/{}", "x".repeat(800_000));
        // What is stored, and what was written.
        type Observed<'a> = (Option<&'a str>, Option<&'a str>);
        let table: [(&str, &[Observed<'_>], &str); 8] = [
            ("a status that nobody has written", &[(None, None)], ""),
            ("the one that it replaces", &[(Some("n/a"), None), (Some("n/b"), Some("n/b"))], ""),
            ("its own predecessor", &[(Some("n/b"), None)], ""),
            ("one that replaces or serves beside it", &[(Some("n/b"), None), (Some("n/a"), None)], "n/a n/b"),
            ("another that came before it saw its own", &[(Some("n/a"), Some("n/b"))], "n/a n/b"),
            ("an older operator, which writes no name", &[(Some("n/b"), None), (None, Some("n/b"))], ""),
            ("three", &[(Some("n/b"), None), (Some("n/a"), None), (Some("n/c"), None)], "n/a n/b n/c"),
            ("what is no name", &[(Some("n/b"), None), (Some("A"), None), (Some(&long), None)], ""),
        ];
        for (case, observed, warning) in table {
            let mut b = installation("n/b");
            for (version, (stored, written)) in (1..).zip(observed) {
                b.observe(*stored, *written, Some(version), up(0));
            }
            assert_eq!(warned(&b), warning, "{case}");
        }
    }

    #[test]
    fn the_warning_ends_a_while_after_the_other_has_written_for_the_last_time() {
        let mut b = installation("n/b");
        b.observe(Some("n/b"), None, Some(1), up(10));
        b.observe(Some("n/a"), Some("n/b"), Some(2), up(20));
        assert_eq!(b.unchanged_for(), Some(KEEP));
        // What is still stored, because the own status cannot be written, is no news.
        b.observe(Some("n/a"), Some("n/b"), Some(2), up(109));
        assert_eq!((&*warned(&b), b.unchanged_for()), ("n/a n/b", Some(up(1))));
        b.observe(Some("n/a"), Some("n/b"), Some(2), up(110));
        assert_eq!((b.warning(), b.unchanged_for()), (None, None));
        // However many names there are, few are remembered.
        for version in 3..100 {
            b.observe(Some(&format!("n/a{version}")), Some("n/b"), Some(version), up(300));
        }
        assert_eq!(warned(&b).split(' ').count(), MOST + 1);
    }

    /// Each writes its name when another is stored, as rarely as it fights for its status.
    #[test]
    fn all_that_serve_one_agree_for_as_long_as_they_are_there_and_the_rest_is_forgotten() {
        let mut all = ["n/a", "n/b", "n/c"].map(|name| (installation(name), 0));
        let (mut stored, mut version) = (Some("n/a"), 1);
        for second in 0..3000 {
            // The third one stops.
            let there = if second < 500 { 3 } else { 2 };
            for ((one, last), own) in all.iter_mut().zip(["n/a", "n/b", "n/c"]).take(there) {
                one.observe(stored, None, Some(version), up(second));
                if stored != Some(own) && second >= *last + 30 {
                    (stored, *last) = (Some(own), second);
                    version += 1;
                    one.observe(stored, None, Some(version), up(second));
                }
            }
            for (one, _) in all.iter().take(there).filter(|_| second >= 60) {
                assert!(one.warning().is_some(), "{second}");
                assert!(second < 800 || warned(one) == "n/a n/b", "{second}");
            }
        }
        assert!(version < 3000 / 10, "{version} writes");
    }

    #[test]
    fn all_write_the_same_condition_and_each_sends_one_event() {
        let status = EcrCredentialStatus::default;
        let empty = || Outcome {
            status: status(),
            events: vec![],
            requeue_after: Duration::from_secs(50),
            each_targets: false,
        };
        let (mut a, mut b) = (installation("n/a"), installation("n/b"));
        a.observe(Some("n/b"), Some("n/a"), Some(1), up(0));
        let mut first = empty();
        first.served_by(&a, &status(), &status(), at(0));
        b.observe(Some("n/a"), Some("n/b"), Some(2), up(7));
        let mut second = empty();
        second.served_by(&b, &status(), &first.status, at(7));
        assert_eq!(first.status.conditions, second.status.conditions);
        assert_eq!(first.status.conditions.len(), 1);
        for outcome in [&first, &second] {
            let told: Vec<_> = outcome.events.iter().map(|event| (event.warning, event.reason.as_str())).collect();
            assert_eq!(told, [(true, "Contested")]);
        }
        b.observe(Some("n/b"), Some("n/b"), Some(3), up(90));
        let mut later = empty();
        later.served_by(&b, &second.status, &second.status, at(180));
        assert_eq!((later.events.len(), later.requeue_after.as_secs()), (0, 7));
        let mut alone = empty();
        alone.served_by(&installation("n/b"), &second.status, &second.status, at(900));
        assert_eq!((alone.status.conditions.len(), alone.status.served_by.as_deref()), (0, Some("n/b")));
    }

    #[test]
    fn the_own_name_alone_is_no_reason_to_write_a_status_and_that_of_another_is() {
        let stored = EcrCredentialStatus { observed_generation: Some(1), ..EcrCredentialStatus::default() };
        let outcome = |generation| Outcome {
            status: EcrCredentialStatus { observed_generation: Some(generation), ..stored.clone() },
            events: vec![],
            requeue_after: Duration::ZERO,
            each_targets: false,
        };
        let replaced = EcrCredentialStatus { served_by: Some("n/a".to_owned()), ..stored.clone() };
        for (generation, stored, served_by) in
            [(1, &stored, None), (2, &stored, Some("n/b")), (1, &replaced, Some("n/b"))]
        {
            let mut outcome = outcome(generation);
            outcome.served_by(&installation("n/b"), stored, stored, at(0));
            assert_eq!(outcome.status.served_by.as_deref(), served_by, "{generation} {stored:?}");
        }
    }
}
