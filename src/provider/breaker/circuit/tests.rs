//! Transitions of one circuit.

use super::*;

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn admit(circuit: &mut Circuit, in_flight: usize, now: Time) -> PermitToken {
    match circuit.admit(in_flight, now) {
        Admission::Allowed(token) => token,
        other @ (Admission::AtCapacity | Admission::Open(_)) => panic!("{other:?} at {now}"),
    }
}

fn trip(cause: TripCause, seconds: i64) -> Trip {
    trip_with_hint(cause, None, seconds)
}

fn trip_with_hint(cause: TripCause, hint: Option<u64>, seconds: i64) -> Trip {
    Trip {
        cause,
        hint: hint.map(Duration::from_secs),
        at: at(seconds),
        origins: Vec::new(),
    }
}

fn until(circuit: &Circuit) -> Time {
    circuit.open_state().unwrap().until
}

#[test]
fn closed_circuit_allows_eight_requests_in_flight() {
    let mut circuit = Circuit::default();
    admit(&mut circuit, 7, at(0));
    assert_eq!(circuit.admit(8, at(0)), Admission::AtCapacity);
}

#[test]
fn retry_after_is_honored_then_one_probe_is_allowed() {
    let mut circuit = Circuit::default();
    let token = admit(&mut circuit, 0, at(0));
    circuit.on_rejection(token, trip_with_hint(TripCause::RateLimit, Some(30), 0));
    assert_eq!(circuit.admit(0, at(29)), Admission::Open(at(30)));
    admit(&mut circuit, 0, at(30));
    assert_eq!(circuit.admit(0, at(31)), Admission::AtCapacity);
    // The probe had no result within the timeout.
    admit(&mut circuit, 0, at(90));
}

#[test]
fn concurrency_doubles_per_round_after_recovery() {
    let mut circuit = Circuit::default();
    circuit.trip(trip(TripCause::RateLimit, 0));
    let mut rounds = vec![];
    let mut tokens = vec![admit(&mut circuit, 0, at(60))];
    while tokens.len() < MAX_IN_FLIGHT {
        rounds.push(tokens.len());
        for token in std::mem::take(&mut tokens) {
            assert!(circuit.on_success(token));
        }
        while let Admission::Allowed(token) = circuit.admit(tokens.len(), at(60)) {
            tokens.push(token);
        }
    }
    assert_eq!(rounds, [1, 2, 4]);
}

#[test]
fn open_duration_doubles_for_the_same_cause() {
    for (cause, durations) in [
        (TripCause::RateLimit, [1, 2, 4, 8, 16, 32, 60, 60]),
        (TripCause::Technical, [5, 10, 20, 40, 60, 60, 60, 60]),
        (TripCause::Quota, [60, 120, 240, 480, 900, 900, 900, 900]),
        (TripCause::Auth, [60, 120, 240, 480, 900, 900, 900, 900]),
    ] {
        let mut circuit = Circuit::default();
        circuit.trip(trip(cause, 0));
        let mut now = 0;
        for seconds in durations {
            now += seconds;
            assert_eq!(until(&circuit), at(now), "{cause:?}");
            assert_eq!(circuit.open_state().unwrap().since, at(0));
            let probe = admit(&mut circuit, 0, at(now));
            circuit.on_rejection(probe, trip(cause, now));
        }
    }
}

#[test]
fn repetition_by_the_same_origin_does_not_extend_the_wait() {
    let origin = |owner: &str| Origin {
        owner: owner.to_owned(),
        model: "x".to_owned(),
    };
    let trip_by = |owner: &str, seconds| Trip {
        origins: vec![origin(owner)],
        ..trip(TripCause::Technical, seconds)
    };
    let mut circuit = Circuit::default();
    circuit.trip(trip_by("alice", 0));
    let mut now = 5;
    for (owner, seconds) in [
        ("alice", 5),
        ("alice", 5),
        ("bob", 10),
        ("alice", 10),
        ("bob", 10),
    ] {
        assert_eq!(until(&circuit), at(now), "{owner}");
        let probe = admit(&mut circuit, 0, at(now));
        circuit.on_rejection(probe, trip_by(owner, now));
        now += seconds;
    }
    assert_eq!(until(&circuit), at(now));
}

#[test]
fn probe_is_left_to_others_for_a_grace_period() {
    let alice = Origin {
        owner: "alice".to_owned(),
        model: "x".to_owned(),
    };
    let bob = Origin {
        owner: "bob".to_owned(),
        ..alice.clone()
    };
    let mut circuit = Circuit::default();
    circuit.trip(Trip {
        origins: vec![alice.clone()],
        ..trip(TripCause::Technical, 0)
    });
    let probe = admit(&mut circuit, 0, at(5));
    assert_eq!(circuit.defers_probe(probe, &alice, at(9)), Some(at(10)));
    assert_eq!(circuit.defers_probe(probe, &bob, at(5)), None);
    assert_eq!(circuit.defers_probe(probe, &alice, at(10)), None);
}

#[test]
fn full_recovery_resets_the_backoff() {
    let mut circuit = Circuit::default();
    circuit.trip(trip(TripCause::Quota, 0));
    let probe = admit(&mut circuit, 0, at(60));
    circuit.on_success(probe);
    circuit.trip(trip(TripCause::Quota, 100));
    assert_eq!(until(&circuit), at(220), "one success is not enough");
    let mut now = until(&circuit);
    for _ in 0..MAX_IN_FLIGHT {
        let token = admit(&mut circuit, 0, now);
        circuit.on_success(token);
        now = now + Duration::from_secs(1);
    }
    circuit.trip(trip(TripCause::Quota, 1000));
    assert_eq!(until(&circuit), at(1060));
}

#[test]
fn results_from_before_the_trip_are_ignored() {
    let mut circuit = Circuit::default();
    let early: Vec<PermitToken> = (0..4).map(|n| admit(&mut circuit, n, at(0))).collect();
    circuit.on_rejection(early[0], trip(TripCause::RateLimit, 1));
    circuit.on_rejection(early[1], trip(TripCause::RateLimit, 1));
    assert_eq!(until(&circuit), at(2));
    assert!(!circuit.on_success(early[2]));
    circuit.on_rejection(early[3], trip(TripCause::Technical, 1));
    assert_eq!(until(&circuit), at(2));
    let hint = trip_with_hint(TripCause::RateLimit, Some(5), 1);
    circuit.on_rejection(early[2], hint);
    assert_eq!(
        until(&circuit),
        at(6),
        "the longest requested delay applies"
    );
    circuit.on_rejection(early[3], trip(TripCause::Quota, 1));
    assert_eq!(circuit.open_state().unwrap().cause, TripCause::Quota);
}

#[test]
fn failed_probe_keeps_the_quota_cause() {
    let mut circuit = Circuit::default();
    circuit.trip(trip(TripCause::Quota, 0));
    let probe = admit(&mut circuit, 0, at(60));
    circuit.on_rejection(probe, trip(TripCause::Technical, 60));
    assert_eq!(circuit.open_state().unwrap().cause, TripCause::Quota);
    assert_eq!(until(&circuit), at(180));
}

#[test]
fn unused_probe_is_returned() {
    let mut circuit = Circuit::default();
    circuit.trip(trip(TripCause::Auth, 0));
    let unused = admit(&mut circuit, 0, at(60));
    assert_eq!(circuit.admit(1, at(60)), Admission::AtCapacity);
    circuit.discard_probe(unused);
    admit(&mut circuit, 0, at(60));
}

#[test]
fn merge_keeps_the_newer_snapshot() {
    let mut ours = Circuit::default();
    let in_flight = admit(&mut ours, 0, at(0));
    let mut theirs = Circuit::default();
    theirs.trip(trip(TripCause::RateLimit, 1));
    ours.merge(&theirs);
    assert_eq!(ours, theirs);
    assert!(!ours.on_success(in_flight), "sent before the merge");
    // One node sends a probe. The other waits for its result.
    let probe = admit(&mut theirs, 0, at(60));
    ours.merge(&theirs);
    assert_eq!(ours.admit(0, at(61)), Admission::AtCapacity);
    theirs.on_success(probe);
    ours.merge(&theirs);
    assert!(ours.open_state().is_none());
    ours.merge(&Circuit::default());
    assert_eq!(ours, theirs, "an older snapshot is ignored");
    // Both open at the same time: the longer duration applies to both.
    ours.trip(trip_with_hint(TripCause::RateLimit, Some(9), 70));
    theirs.trip(trip_with_hint(TripCause::RateLimit, Some(5), 70));
    theirs.merge(&ours);
    assert_eq!(until(&theirs), at(79));
}

#[test]
fn circuit_round_trips_through_json() {
    let mut circuit = Circuit::default();
    circuit.trip(trip(TripCause::Auth, 0));
    let text = serde_json::to_string(&circuit).unwrap();
    assert_eq!(serde_json::from_str::<Circuit>(&text).unwrap(), circuit);
}
