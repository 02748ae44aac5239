//! Which tokens to fetch now, when to publish a fetched token, and when to check again.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::TokenSpec;
use super::schedule::{Life, RefreshPolicy};

/// A cached token younger than this counts as new, even if another would live longer, in seconds.
const JUST_FETCHED: i64 = 60;

/// The state of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The life of the token in our Secrets.
    pub published: Option<Life>,
    /// Whether that token was fetched by another identity than the one to which the spec resolves now.
    pub outdated: bool,
    /// The life of the newest token in memory, perhaps fetched for another `EcrCredential`.
    pub cached: Option<Life>,
    /// Whether a fetch is under way.
    pub in_flight: bool,
    /// When a failed fetch may be tried again.
    pub retry_at: Option<Timestamp>,
    /// Whether it cannot be fetched until something in the cluster changes.
    pub blocked: bool,
}

/// A refresh on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Tokens issued before this are too old.
    pub since: Timestamp,
    /// Whether it has not been tried yet, so that it goes ahead of the wait after a failure.
    pub first: bool,
}

/// What to do about the tokens of one `EcrCredential`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The tokens that are due, and since when. Only a fetch of these that has failed since then is a failure to report: other tokens
    /// may be fetched early, together with one that is due or for another `EcrCredential`.
    pub due: BTreeMap<TokenSpec, Timestamp>,
    /// Tokens to fetch now.
    pub fetch: Vec<TokenSpec>,
    /// Tokens whose cached version replaces the published one. Empty while another token is fetched for the first time, so that
    /// tokens that are refreshed together reach each Secret in one write. No token waits for one whose fetch has failed.
    pub publish: Vec<TokenSpec>,
    /// A token that no Secret holds yet is being fetched.
    pub incomplete: bool,
    /// Every token is up to date.
    pub fresh: bool,
    /// Every token is up to date, or its last fetch failed, or it cannot be fetched at all.
    pub settled: bool,
    /// When the result changes by time alone.
    pub look_again: Option<Timestamp>,
}

/// Decides for all tokens of one `EcrCredential`.
pub fn step(
    policy: &RefreshPolicy,
    seed: &str,
    now: Timestamp,
    demand: Option<Demand>,
    held: &BTreeMap<TokenSpec, Held>,
) -> Step {
    let due_since = |life: Life| {
        let demanded = demand.filter(|d| life.issued_at < d.since).map(|d| d.since.min(now));
        let times = [policy.due_at(life, seed), life.expires_at].into_iter().chain(demanded);
        times.filter(|at| *at <= now).min()
    };
    let current = |life: Life| due_since(life).is_none();
    // A token new to the Secret must not shorten its recorded expiry: an older one from memory is fetched anew.
    let floor = held.values().filter_map(|h| h.published).filter(|l| l.is_valid(now)).map(|l| l.expires_at).min();
    let acceptable = |h: &Held, life: Life| {
        let newer = h.outdated || h.published.is_none_or(|p| life.issued_at > p.issued_at);
        let long_enough =
            floor.is_none_or(|f| life.expires_at >= f) || now.duration_since(life.issued_at).as_secs() < JUST_FETCHED;
        newer && long_enough && current(life)
    };
    let due = |h: &Held| match h.published {
        Some(life) if !h.outdated => due_since(life),
        // There is none, or it is that of another identity.
        _ => Some(Timestamp::MIN),
    };
    let mut step = Step {
        due: held.iter().filter_map(|(key, h)| Some((key.clone(), due(h)?))).collect(),
        fetch: Vec::new(),
        publish: Vec::new(),
        incomplete: false,
        fresh: true,
        settled: true,
        look_again: None,
    };
    let (mut pending, mut awaited) = (false, false);
    for (key, h) in held {
        let is_due = step.due.contains_key(key);
        let wanted = match h.published {
            Some(life) => is_due || (!step.due.is_empty() && policy.due_together(life, seed, now)),
            None => true,
        };
        if !wanted {
            continue;
        }
        if h.cached.is_some_and(|life| acceptable(h, life)) {
            step.publish.push(key.clone());
            continue;
        }
        step.fresh &= !is_due;
        if h.blocked {
            continue;
        }
        let waiting = h.retry_at.filter(|at| *at > now && !demand.is_some_and(|d| d.first));
        match (h.in_flight, waiting) {
            (false, Some(at)) => sooner(&mut step.look_again, at),
            (in_flight, _) => {
                pending = true;
                awaited |= h.retry_at.is_none();
                if !in_flight {
                    step.fetch.push(key.clone());
                }
            }
        }
        if (h.in_flight || waiting.is_none()) && !h.published.is_some_and(|l| l.is_valid(now)) {
            step.incomplete = true;
        }
    }
    if pending {
        step.fresh = false;
        step.settled = false;
    }
    // An expired token is replaced without waiting for others.
    let urgent = |spec: &TokenSpec| held.get(spec).and_then(|h| h.published).is_some_and(|life| !life.is_valid(now));
    if awaited && !step.publish.iter().any(urgent) {
        step.publish.clear();
    }
    look_again(&mut step, policy, seed, now, held);
    step
}

/// Times at which a published token is due or expires.
fn look_again(step: &mut Step, policy: &RefreshPolicy, seed: &str, now: Timestamp, held: &BTreeMap<TokenSpec, Held>) {
    for (key, h) in held {
        let life = if step.publish.contains(key) { h.cached } else { h.published };
        let Some(life) = life else { continue };
        for at in [policy.due_at(life, seed), life.expires_at] {
            if at > now {
                sooner(&mut step.look_again, at);
            }
        }
    }
}

fn sooner(slot: &mut Option<Timestamp>, at: Timestamp) {
    *slot = Some(slot.map_or(at, |old| old.min(at)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::HostVariant;
    use crate::api::registry::Region;
    use crate::plan::Service;
    use crate::plan::auth::AuthPlan;
    use std::sync::Arc;
    use std::time::Duration;

    const HOUR: i64 = 3600;
    const POLICY: RefreshPolicy = RefreshPolicy { at_percent: 50, max_age: Duration::from_secs(6 * 3600) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn life(issued: i64) -> Option<Life> {
        Some(Life { issued_at: at(issued), expires_at: at(issued + 12 * HOUR) })
    }

    fn key(region: &str) -> TokenSpec {
        let region = Region::parse(region).unwrap();
        let service = Service::Private { region, endpoint: HostVariant::Standard, registry_ids: Vec::new() };
        TokenSpec { auth: Arc::new(AuthPlan::operator()), service }
    }

    fn decide(now: i64, demand: Option<Demand>, held: &[(&str, Held)]) -> Step {
        let held = held.iter().map(|(region, h)| (key(region), *h)).collect();
        step(&POLICY, "seed", at(now), demand, &held)
    }

    #[test]
    fn a_first_token_is_fetched_and_nothing_published_until_it_is_there() {
        let step = decide(0, None, &[("eu-west-1", Held::default())]);
        assert_eq!(step.fetch, [key("eu-west-1")]);
        assert!(step.incomplete && step.publish.is_empty());
        let step = decide(1, None, &[("eu-west-1", Held { cached: life(1), ..Held::default() })]);
        assert!(step.fetch.is_empty() && !step.incomplete && step.fresh);
        assert_eq!(step.publish, [key("eu-west-1")]);
    }

    #[test]
    fn a_fresh_token_needs_nothing_until_it_is_due() {
        let step = decide(HOUR, None, &[("eu-west-1", Held { published: life(0), ..Held::default() })]);
        assert!(step.fetch.is_empty() && step.publish.is_empty() && step.fresh);
        assert!(step.look_again.unwrap() >= at(20_520) && step.look_again.unwrap() <= at(6 * HOUR));
    }

    #[test]
    fn a_token_is_due_by_its_age_a_request_or_another_identity_and_not_because_another_is() {
        let issued = |hour: i64| Held { published: life(hour * HOUR), ..Held::default() };
        let demand = |since| Some(Demand { since: at(since), first: true });
        let due_at = POLICY.due_at(life(0).unwrap(), "seed");
        for (what, held, demand, since) in [
            ("young", issued(5), None, None),
            ("fetched together with the other", issued(1), None, None),
            ("by its age", issued(0), None, Some(due_at)),
            ("expired", issued(-12), None, Some(POLICY.due_at(life(-12 * HOUR).unwrap(), "seed"))),
            ("requested", issued(5), demand(6 * HOUR), Some(at(6 * HOUR))),
            ("requested later than it was due", issued(0), demand(6 * HOUR), Some(due_at)),
            ("newer than the request", issued(5), demand(4 * HOUR), None),
            ("of another identity", Held { outdated: true, ..issued(5) }, None, Some(Timestamp::MIN)),
            ("never fetched", Held::default(), None, Some(Timestamp::MIN)),
        ] {
            let step = decide(6 * HOUR, demand, &[("eu-west-1", held), ("eu-west-2", Held::default())]);
            assert_eq!(step.due.get(&key("eu-west-1")), since.as_ref(), "{what}");
        }
    }

    #[test]
    fn a_token_fetched_for_another_saves_the_call() {
        let held = Held { published: life(0), cached: life(5 * HOUR), ..Held::default() };
        let step = decide(6 * HOUR, None, &[("eu-west-1", held)]);
        assert!(step.fetch.is_empty());
        assert_eq!(step.publish, [key("eu-west-1")]);
    }

    #[test]
    fn an_unneeded_newer_token_is_left_alone() {
        let held = Held { published: life(0), cached: life(HOUR), ..Held::default() };
        let step = decide(2 * HOUR, None, &[("eu-west-1", held)]);
        assert!(step.fetch.is_empty() && step.publish.is_empty(), "one write for each refresh");
    }

    #[test]
    fn tokens_near_their_time_are_renewed_together_and_published_in_one_write() {
        let old = Held { published: life(0), ..Held::default() };
        let younger = Held { published: life(HOUR), ..Held::default() };
        let young = Held { published: life(5 * HOUR), ..Held::default() };
        let step = decide(6 * HOUR, None, &[("eu-west-1", old), ("eu-west-2", younger), ("eu-west-3", young)]);
        assert_eq!(step.fetch, [key("eu-west-1"), key("eu-west-2")]);
        let one_back = Held { cached: life(6 * HOUR), ..old };
        let other_under_way = Held { in_flight: true, ..younger };
        let step = decide(6 * HOUR + 1, None, &[("eu-west-1", one_back), ("eu-west-2", other_under_way)]);
        assert!(step.publish.is_empty(), "waits for the one under way");
        let other_failed = Held { retry_at: Some(at(6 * HOUR + 30)), ..younger };
        let step = decide(6 * HOUR + 1, None, &[("eu-west-1", one_back), ("eu-west-2", other_failed)]);
        assert_eq!(step.publish, [key("eu-west-1")], "a failure holds nobody up");
        assert_eq!(step.look_again, Some(at(6 * HOUR + 30)));
    }

    #[test]
    fn a_token_waits_only_for_first_tries_of_others_and_one_that_replaces_a_dead_one_for_nobody() {
        let (good, dead) =
            (Held { published: life(0), ..Held::default() }, Held { published: life(-7 * HOUR), ..Held::default() });
        let back = |held: Held| Held { cached: life(6 * HOUR), ..held };
        let under_way = |held: Held| Held { in_flight: true, ..held };
        let again = |held: Held| Held { in_flight: true, retry_at: Some(at(6 * HOUR)), ..held };
        let denied = |held: Held| Held { retry_at: Some(at(6 * HOUR + 30)), ..held };
        let none = Held::default();
        for (what, ready, other, published) in [
            ("both new, the other under way", back(none), under_way(none), false),
            ("both new, the other to be fetched", back(none), none, false),
            ("both new, the other is tried again", back(none), again(none), true),
            ("both new, the other waits after a failure", back(none), denied(none), true),
            ("both due, the other under way", back(good), under_way(good), false),
            ("both due, the other is tried again", back(good), again(good), true),
            ("due, the other dead and under way", back(good), under_way(dead), false),
            ("due, the other dead and tried again", back(good), again(dead), true),
            ("dead, the other new and under way", back(dead), under_way(none), true),
            ("dead, the other due and under way", back(dead), under_way(good), true),
            ("dead, the other dead and tried again", back(dead), again(dead), true),
        ] {
            let step = decide(6 * HOUR + 1, None, &[("eu-west-1", ready), ("eu-west-2", other)]);
            assert_eq!(step.publish, if published { vec![key("eu-west-1")] } else { vec![] }, "{what}");
            assert!(!step.fresh, "{what}");
        }
    }

    #[test]
    fn after_a_failure_nothing_is_fetched_before_the_wait_is_over() {
        let held = Held { published: life(0), retry_at: Some(at(6 * HOUR + 10)), ..Held::default() };
        assert!(decide(6 * HOUR, None, &[("eu-west-1", held)]).fetch.is_empty());
        assert_eq!(decide(6 * HOUR + 10, None, &[("eu-west-1", held)]).fetch.len(), 1);
    }

    #[test]
    fn a_demand_goes_ahead_of_the_wait_once() {
        let held = Held { published: life(0), retry_at: Some(at(HOUR + 100)), ..Held::default() };
        let demand = |first| Some(Demand { since: at(HOUR), first });
        assert_eq!(decide(HOUR, demand(true), &[("eu-west-1", held)]).fetch.len(), 1);
        let step = decide(HOUR, demand(false), &[("eu-west-1", held)]);
        assert!(step.fetch.is_empty() && !step.fresh);
    }

    #[test]
    fn a_registry_new_to_the_spec_does_not_shorten_the_expiry() {
        let published = Held { published: life(5 * HOUR), ..Held::default() };
        let new = Held { cached: life(HOUR), ..Held::default() };
        let step = decide(6 * HOUR, None, &[("eu-west-1", published), ("eu-west-2", new)]);
        assert_eq!(step.fetch, [key("eu-west-2")]);
    }

    #[test]
    fn a_token_that_another_identity_fetched_is_replaced_at_once_and_stands_until_then() {
        let held = Held { published: life(0), outdated: true, ..Held::default() };
        let step = decide(HOUR, None, &[("eu-west-1", held)]);
        assert_eq!(step.fetch, [key("eu-west-1")]);
        assert!(!step.incomplete, "what is published is still good");
        let step = decide(HOUR, None, &[("eu-west-1", Held { cached: life(0), ..held })]);
        assert_eq!(step.publish, [key("eu-west-1")], "though it is no younger");
    }

    #[test]
    fn what_cannot_be_fetched_holds_nobody_up() {
        let blocked = Held { published: life(0), outdated: true, blocked: true, ..Held::default() };
        let back = Held { published: life(0), cached: life(6 * HOUR), ..Held::default() };
        let step = decide(6 * HOUR, None, &[("eu-west-1", blocked), ("eu-west-2", back)]);
        assert!(step.fetch.is_empty() && !step.fresh && !step.incomplete);
        assert_eq!(step.publish, [key("eu-west-2")]);
        let missing = Held { blocked: true, ..Held::default() };
        assert!(!decide(0, None, &[("eu-west-1", missing)]).incomplete, "there is nothing to wait for");
    }
}
