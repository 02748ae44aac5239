//! In which queue a fetch waits for its turn.

use super::*;

#[test]
fn each_fetch_waits_in_the_queue_of_what_it_is_for() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let (now, past, future) = (at(1_000_000), at(999_000), at(1_900_000));
    for (turn, expires, failed, priority) in [
        (Dispatch::Immediate, None, false, Priority::Shared),
        (Dispatch::Immediate, Some(past), true, Priority::Shared),
        (Dispatch::Queued, None, false, Priority::First),
        (Dispatch::Queued, Some(past), false, Priority::First),
        (Dispatch::Queued, Some(future), false, Priority::Renewal),
        (Dispatch::Queued, Some(future), true, Priority::RetriedRenewal),
        (Dispatch::Queued, None, true, Priority::RetriedFirst),
        (Dispatch::Queued, Some(past), true, Priority::RetriedFirst),
    ] {
        let token = expires.map(|expires_at| {
            let life = Life { issued_at: past, expires_at };
            Arc::new(AuthorizationToken { tokens: Vec::new(), life, identity: Identity::operator() })
        });
        let error = TokenError::Unavailable("down".to_owned());
        let failure = failed.then_some(Failure { error, count: 1, at: now, retry_at: now });
        let slot = Slot { state: Snapshot { token, failure, in_flight: false }, ..Slot::default() };
        assert_eq!(slot.priority(turn, now), priority, "{turn:?} {expires:?} {failed}");
    }
}
