//! Which installations serve an `EcrCredential`: two that serve the same one overwrite each other's Secrets and status.
//!
//! Each keeps its name in `status.servedBy`. If another name appears there, or its own disappears, another installation is writing the
//! status. From time to time each removes the other names, and an installation that still serves the `EcrCredential` adds its name again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::{Outcome, ReportedEvent, until, with_transition};
use crate::api::EcrCredentialStatus;
use crate::api::status::{Reason, condition};
use crate::plan::schedule::later;

/// How long another installation has to add its name again. It may wait for 30 seconds between two writes of a status.
const ANSWER: Duration = Duration::from_secs(45);

/// The most other installations that are remembered.
const MOST: usize = 9;

/// This installation, and the others that serve the same `EcrCredential`.
#[derive(Clone, Debug)]
pub struct Installations {
    own: Arc<str>,
    /// How long the name of another is kept before it has to be added again.
    keep: Duration,
    /// When the others last added their names.
    others: BTreeMap<String, Timestamp>,
}

impl Installations {
    /// An installation of this name that has seen no other.
    pub const fn new(own: Arc<str>, keep: Duration) -> Self {
        Self { own, keep, others: BTreeMap::new() }
    }

    /// Compares `servedBy` as it is stored with what this process wrote last, if it wrote any.
    pub fn observe(&mut self, stored: &[String], written: Option<&[String]>, now: Timestamp) {
        let is_named = stored.iter().any(|name| **name == *self.own);
        let is_news = |name: &String| match written {
            Some(written) => !is_named || !written.contains(name),
            // Without its own name, the others are those that it replaces. With it, they served it beside its predecessor.
            None => is_named,
        };
        let seen = stored.iter().filter(|name| ***name != *self.own && is_news(name));
        for name in seen.take(MOST) {
            self.others.insert(name.clone(), now);
        }
        let keep = self.keep;
        // Those of the future were seen before the clock was set back.
        self.others.retain(|_, seen| *seen <= now && now < later(later(*seen, keep), ANSWER));
    }

    /// The value of `servedBy`.
    pub fn names(&self, now: Timestamp) -> Vec<String> {
        let kept = self.others.iter().filter(|(_, seen)| now < later(**seen, self.keep)).map(|(name, _)| name.clone());
        kept.chain([self.own.to_string()]).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The warning while there are others. All of them write the same one.
    pub fn warning(&self) -> Option<String> {
        let names: BTreeSet<&str> = self.others.keys().map(String::as_str).chain([&*self.own]).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        (!self.others.is_empty()).then(|| {
            format!("several installations serve this EcrCredential and overwrite each other's Secrets and status: give each a credentialSelector that the others do not match: {names}")
        })
    }

    /// When time alone changes the names or the warning.
    fn look_again(&self, now: Timestamp) -> Option<Timestamp> {
        let times =
            self.others.values().flat_map(|seen| [later(*seen, self.keep), later(later(*seen, self.keep), ANSWER)]);
        times.filter(|at| *at > now).min()
    }
}

impl Outcome {
    /// Adds who serves the `EcrCredential`, and the warning if there are several. The transition time is that of the stored
    /// status, which another may have written, so that all write the same.
    pub fn served_by(
        &mut self,
        installations: &Installations,
        previous: &EcrCredentialStatus,
        stored: &EcrCredentialStatus,
        now: Timestamp,
    ) {
        let warning = installations.warning();
        self.status.served_by.clear();
        // The name alone is not worth a write: an upgrade from a version without it writes nothing.
        if warning.is_some() || self.status != *stored {
            self.status.served_by = installations.names(now);
        }
        let Some(message) = warning else { return };
        let known: Vec<Condition> = stored.conditions.iter().chain(&previous.conditions).cloned().collect();
        let warning = (condition::CONTESTED, true, Reason::Contested, message.clone());
        self.status.conditions.push(with_transition(warning, &known, self.status.observed_generation, now));
        if !previous.conditions.iter().any(|known| known.type_ == condition::CONTESTED) {
            let reason = Reason::Contested.as_str().to_owned();
            self.events.push(ReportedEvent { warning: true, reason, message, namespace: None });
        }
        if let Some(at) = installations.look_again(now) {
            self.requeue_after = self.requeue_after.min(until(now, at).max(super::SHORTEST_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: i64 = 300;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn installation(own: &str) -> Installations {
        Installations::new(own.into(), Duration::from_secs(KEEP.unsigned_abs()))
    }

    /// The names in a warning.
    fn warned(installations: &Installations) -> String {
        let warning = installations.warning();
        warning.map(|text| text.rsplit(": ").next().unwrap().replace(',', "")).unwrap_or_default()
    }

    #[test]
    fn another_installation_is_known_by_its_name_that_appears_or_by_the_own_one_that_disappears() {
        let table = [
            ("a status that nobody has written", "", None, "b", ""),
            ("the one that it replaces", "a", None, "b", ""),
            ("its own predecessor", "b", None, "b", ""),
            ("what served beside its predecessor", "a b", None, "a b", "a b"),
            ("what it wrote itself", "b", Some("b"), "b", ""),
            ("another adds its name", "a b", Some("b"), "a b", "a b"),
            ("another that knows nothing of it", "a", Some("b"), "a b", "a b"),
            ("an older operator, which writes no name", "", Some("b"), "b", ""),
            ("another removes its name, to see whether it is still there", "a", Some("a b"), "a b", "a b"),
            ("what it wrote itself, with others", "a b", Some("a b"), "b", ""),
            ("three", "a c", Some("a b"), "a b c", "a b c"),
        ];
        for (case, stored, written, served_by, warning) in table {
            let mut b = installation("b");
            b.observe(&names(stored), written.map(names).as_deref(), at(0));
            assert_eq!(b.names(at(0)), names(served_by), "{case}");
            assert_eq!(warned(&b), warning, "{case}");
        }
    }

    #[test]
    fn the_warning_ends_a_while_after_the_other_has_added_its_name_for_the_last_time() {
        let mut b = installation("b");
        b.observe(&names("a b"), Some(&names("b")), at(0));
        let answer = i64::try_from(ANSWER.as_secs()).unwrap();
        let table = [
            (0, "a b", "a b", Some(KEEP)),
            (KEEP - 1, "a b", "a b", Some(KEEP)),
            // It asks whether the other is still there, and warns until that had the time to answer.
            (KEEP, "b", "a b", Some(KEEP + answer)),
            (KEEP + answer - 1, "b", "a b", Some(KEEP + answer)),
            (KEEP + answer, "b", "", None),
        ];
        for (second, served_by, warning, next) in table {
            let own = b.names(at(second));
            b.observe(&own, Some(&own), at(second));
            assert_eq!(b.names(at(second)), names(served_by), "{second}");
            assert_eq!(warned(&b), warning, "{second}");
            assert_eq!(b.look_again(at(second)), next.map(at), "{second}");
        }
        // A clock that was set back does not prolong it.
        b.observe(&names("a b"), Some(&names("b")), at(1000));
        b.observe(&names("a b"), Some(&names("a b")), at(999));
        assert_eq!(b.warning(), None);
    }

    /// Two installations over one status: each sees what the other has written, and writes if its own differs.
    #[test]
    fn two_installations_agree_and_write_little_for_as_long_as_both_are_there() {
        let (mut a, mut b) = (installation("a"), installation("b"));
        let (mut stored, mut writes) = (names("a"), 0);
        let mut written = [Some(names("a")), None];
        for second in 0..3000 {
            for (number, one) in [&mut a, &mut b].into_iter().enumerate() {
                one.observe(&stored, written[number].as_deref(), at(second));
                let own = one.names(at(second));
                writes += usize::from(own != stored);
                stored.clone_from(&own);
                written[number] = Some(own);
            }
            if second > 0 {
                assert_eq!((&*warned(&a), &*warned(&b)), ("a b", "a b"), "{second}");
            }
        }
        assert!(writes <= 2 + 2 * 3000 / 300, "{writes}");
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
        let (mut a, mut b) = (installation("a"), installation("b"));
        a.observe(&names("b"), Some(&names("a")), at(0));
        let mut first = empty();
        first.served_by(&a, &status(), &status(), at(0));
        b.observe(&names("a b"), Some(&names("b")), at(7));
        let mut second = empty();
        second.served_by(&b, &status(), &first.status, at(7));
        assert_eq!(first.status, second.status);
        assert_eq!(first.status.conditions.len(), 1);
        for outcome in [&first, &second] {
            let told: Vec<_> = outcome.events.iter().map(|event| (event.warning, event.reason.as_str())).collect();
            assert_eq!(told, [(true, "Contested")]);
        }
        let mut later = empty();
        later.served_by(&b, &second.status, &second.status, at(KEEP));
        assert_eq!((later.events.len(), later.requeue_after.as_secs()), (0, 7));
        let mut alone = empty();
        alone.served_by(&installation("b"), &second.status, &second.status, at(900));
        assert_eq!((alone.status.conditions.len(), &alone.status.served_by), (0, &names("b")));
    }
    #[test]
    fn the_name_alone_is_no_reason_to_write_a_status() {
        let stored = EcrCredentialStatus { observed_generation: Some(1), ..EcrCredentialStatus::default() };
        let outcome = |generation| Outcome {
            status: EcrCredentialStatus { observed_generation: Some(generation), ..stored.clone() },
            events: vec![],
            requeue_after: Duration::ZERO,
            each_targets: false,
        };
        let replaced = EcrCredentialStatus { served_by: names("a"), ..stored.clone() };
        for (generation, stored, served_by) in [(1, &stored, ""), (2, &stored, "b"), (1, &replaced, "b")] {
            let mut outcome = outcome(generation);
            outcome.served_by(&installation("b"), stored, stored, at(0));
            assert_eq!(outcome.status.served_by, names(served_by), "{generation} {stored:?}");
        }
    }
}
