//! Holds of one node, and convergence of the holds of several nodes.

use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn origin(owner: &str, model: &str) -> Origin {
    Origin {
        owner: owner.to_owned(),
        model: model.to_owned(),
    }
}

fn trip(cause: TripCause, seconds: i64) -> Trip {
    Trip {
        cause,
        hint: None,
        at: at(seconds),
        origins: Vec::new(),
    }
}

#[test]
fn account_rejection_holds_one_owner_and_model() {
    let mut holds = Holds::default();
    let alice = origin("alice", "x");
    let mut now = 0;
    for seconds in [60, 120, 240] {
        let tokens = holds.admit(&alice, at(now)).unwrap();
        holds.on_account_rejection(&alice, &tokens, &trip(TripCause::Auth, now));
        now += seconds;
        assert_eq!(holds.admit(&alice, at(now - 1)).unwrap_err(), at(now));
        for other in [origin("bob", "x"), origin("alice", "y")] {
            assert!(holds.admit(&other, at(now - 1)).is_ok(), "{other:?}");
        }
    }
    let probe = holds.admit(&alice, at(now)).unwrap();
    assert!(holds.admit(&alice, at(now)).is_err(), "one probe at a time");
    holds.discard(&probe);
    let probe = holds.admit(&alice, at(now)).unwrap();
    holds.on_success(&alice, &probe);
    assert!(holds.admit(&alice, at(now)).is_ok());
}

#[test]
fn repeated_failures_hold_one_owner_and_model() {
    let mut holds = Holds::default();
    let alice = origin("alice", "x");
    for second in 0..5 {
        let tokens = holds.admit(&alice, at(second)).unwrap();
        holds.on_failure(&alice, &tokens, &trip(TripCause::Technical, second));
    }
    assert_eq!(holds.admit(&alice, at(5)).unwrap_err(), at(9));
    let tokens = holds.admit(&alice, at(9)).unwrap();
    holds.on_failure(&alice, &tokens, &trip(TripCause::Technical, 9));
    assert_eq!(holds.admit(&alice, at(10)).unwrap_err(), at(19));
    assert!(holds.admit(&origin("bob", "x"), at(10)).is_ok());
}

fn is_equal(a: &Holds, b: &Holds) -> bool {
    !a.is_newer_than(b) && !b.is_newer_than(a)
}

#[test]
fn number_of_holds_is_bounded_and_snapshots_merge() {
    let hold = |owner: &str, count: i64| {
        let mut holds = Holds::default();
        for n in 0..count {
            let origin = origin(owner, &n.to_string());
            holds.on_account_rejection(&origin, &HoldTokens::default(), &trip(TripCause::Auth, n));
        }
        holds
    };
    let max = i64::try_from(MAX_HOLDS).unwrap();
    let mut alice = hold("alice", 2 * max);
    assert_eq!(alice.held(at(500)), MAX_HOLDS);
    let text = serde_json::to_string(&alice).unwrap();
    assert_eq!(serde_json::from_str::<Holds>(&text).unwrap(), alice);

    let mut bob = hold("bob", 2 * max - 10);
    assert!(alice.is_newer_than(&bob) && bob.is_newer_than(&alice));
    bob.merge(&alice, at(500));
    alice.merge(&bob, at(500));
    assert!(is_equal(&alice, &bob));
    assert_eq!(alice.held(at(500)), MAX_HOLDS);
    let (last, first) = (2 * max - 1, 2 * max - MAX_HOLDS as i64);
    for holds in [&mut alice, &mut bob] {
        assert!(
            holds
                .admit(&origin("alice", &last.to_string()), at(500))
                .is_err()
        );
        assert!(
            holds
                .admit(&origin("alice", &first.to_string()), at(500))
                .is_ok()
        );
    }
}

#[test]
fn ended_hold_disappears_on_all_nodes_and_an_old_snapshot_does_not_restore_it() {
    let alice = origin("alice", "x");
    let mut one = Holds::default();
    one.on_account_rejection(&alice, &HoldTokens::default(), &trip(TripCause::Auth, 0));
    let (mut two, old) = (one.clone(), one.clone());
    let probe = one.admit(&alice, at(60)).unwrap();
    two.merge(&one, at(60));
    assert!(two.admit(&alice, at(60)).is_err(), "the other node probes");
    one.on_success(&alice, &probe);
    two.merge(&one, at(61));
    for holds in [&mut one, &mut two] {
        assert_eq!(holds.held(at(61)), 0);
        holds.merge(&old, at(61));
        assert_eq!(holds.held(at(61)), 0);
        assert!(holds.admit(&alice, at(61)).is_ok());
    }
    // Both the hold and its old copy have expired, so that a new hold begins from the start.
    let expiry = 60 + 15 * 60;
    one.on_account_rejection(
        &alice,
        &HoldTokens::default(),
        &trip(TripCause::Auth, expiry),
    );
    one.merge(&old, at(expiry));
    assert_eq!(one.admit(&alice, at(expiry)).unwrap_err(), at(expiry + 60));
    two.merge(&old, at(expiry));
    assert_eq!(two, Holds::default());
}

/// An event on one of the nodes, or the arrival of a snapshot.
#[derive(Clone, Debug)]
enum Event {
    Wait(i64),
    /// A job of an origin is sent.
    Send(usize, usize),
    /// A request that was sent ends.
    End(usize, Ending),
    Reset(usize),
    TopUp(usize),
    Exchange(usize, usize),
    /// The snapshot of a node is delayed. All nodes receive it at the end.
    Delay(usize),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Success,
    NotSent,
    Technical,
    Rejected(TripCause),
}

fn event(nodes: usize) -> impl Strategy<Value = Event> {
    let ending = prop_oneof![
        Just(Ending::Success),
        Just(Ending::NotSent),
        Just(Ending::Technical),
        Just(Ending::Rejected(TripCause::Auth)),
        Just(Ending::Rejected(TripCause::Quota)),
    ];
    prop_oneof![
        2 => prop_oneof![0..5_i64, 30..300_i64, 600..2000_i64].prop_map(Event::Wait),
        4 => (0..nodes, 0..3_usize).prop_map(|(node, origin)| Event::Send(node, origin)),
        4 => (0..nodes, ending).prop_map(|(node, ending)| Event::End(node, ending)),
        1 => (0..nodes).prop_map(Event::Reset),
        1 => (0..nodes).prop_map(Event::TopUp),
        3 => (0..nodes, 0..nodes).prop_map(|(from, to)| Event::Exchange(from, to)),
        1 => (0..nodes).prop_map(Event::Delay),
    ]
}

fn histories() -> impl Strategy<Value = (usize, Vec<Event>)> {
    (2..=3_usize).prop_flat_map(|nodes| {
        let events = proptest::collection::vec(event(nodes), 0..80);
        (Just(nodes), events)
    })
}

proptest! {
    #[test]
    fn nodes_that_exchange_snapshots_have_the_same_holds((count, events) in histories()) {
        let origins = [origin("alice", "x"), origin("bob", "x"), origin("alice", "y")];
        let mut nodes = vec![Holds::default(); count];
        let mut in_flight: Vec<Vec<(&Origin, HoldTokens)>> = Vec::new();
        in_flight.resize_with(count, Vec::new);
        let mut delayed = Vec::new();
        let mut seconds = 0;
        for event in events {
            match event {
                Event::Wait(span) => seconds += span,
                Event::Send(node, origin) => {
                    if let Ok(tokens) = nodes[node].admit(&origins[origin], at(seconds)) {
                        in_flight[node].push((&origins[origin], tokens));
                    }
                }
                Event::End(node, ending) => {
                    let Some((origin, tokens)) = in_flight[node].pop() else {
                        continue;
                    };
                    let holds = &mut nodes[node];
                    match ending {
                        Ending::Success => holds.on_success(origin, &tokens),
                        Ending::NotSent => holds.discard(&tokens),
                        Ending::Technical => {
                            holds.on_failure(origin, &tokens, &trip(TripCause::Technical, seconds));
                            holds.hold_model("x".to_owned(), &trip(TripCause::Technical, seconds));
                        }
                        Ending::Rejected(cause) => {
                            holds.on_account_rejection(origin, &tokens, &trip(cause, seconds));
                        }
                    }
                }
                Event::Reset(node) => nodes[node].reset(),
                Event::TopUp(node) => nodes[node].probe_after_top_up(at(seconds)),
                Event::Exchange(from, to) => {
                    let snapshot = nodes[from].clone();
                    nodes[to].merge(&snapshot, at(seconds));
                }
                Event::Delay(node) => delayed.push(nodes[node].clone()),
            }
        }
        let now = at(seconds);
        for _ in 0..2 {
            for from in 0..count {
                let snapshot = nodes[from].clone();
                nodes.iter_mut().for_each(|node| node.merge(&snapshot, now));
            }
        }
        let first = nodes[0].clone();
        for node in &nodes[1..] {
            prop_assert!(is_equal(&first, node), "{first:?} {node:?}");
        }
        let held_until = |node: &Holds| {
            let next = |origin| node.clone().admit(origin, now).err();
            [node.held(now).to_string()].into_iter().chain(
                origins.each_ref().map(next).into_iter().map(|until| format!("{until:?}")),
            ).collect::<Vec<_>>()
        };
        for node in &mut nodes {
            prop_assert_eq!(held_until(&first), held_until(node));
            for snapshot in &delayed {
                node.merge(snapshot, now);
            }
            prop_assert!(is_equal(&first, node), "an old snapshot changes nothing");
            prop_assert_eq!(held_until(&first), held_until(node));
        }
    }
}
