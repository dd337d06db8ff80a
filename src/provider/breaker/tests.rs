//! Circuit breakers of several nodes.

use super::*;

async fn assign(breaker: &Arc<CircuitBreaker>) -> Result<Permit, Time> {
    let permit = breaker.try_acquire_submits(1, Time::now()).pop();
    permit.expect("a permit").assign_to("alice", "x").await
}

#[tokio::test]
async fn other_nodes_send_no_second_probe_of_a_hold() {
    let [one, two] = [(); 2].map(|()| CircuitBreaker::new("p", AccountCheck::KeyAndCredit));
    let synchronize = || {
        let snapshot = one.snapshots().borrow().clone().expect("a snapshot");
        two.merge_snapshot(&snapshot).unwrap();
    };
    let rejected = RequestResult::Failure(FailureKind::Quota, None);
    assign(&one).await.unwrap().complete(rejected);
    synchronize();
    assert_eq!(two.health(Time::now()).holds, 1);
    // The balance is positive, so the hold allows a probe.
    one.record_account_check(AccountVerdict::Good, Time::now());
    let probe = assign(&one).await.unwrap();
    synchronize();
    assert!(assign(&two).await.is_err(), "a probe is in flight");
    probe.complete(RequestResult::Success);
    synchronize();
    for breaker in [&one, &two] {
        assert_eq!(breaker.health(Time::now()).holds, 0);
        assert!(assign(breaker).await.is_ok());
    }
}
