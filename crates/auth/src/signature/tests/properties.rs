//! Properties for arbitrary bodies, headers, times and keys.

use proptest::prelude::*;

use super::*;

fn signing_schemes() -> impl Strategy<Value = Scheme> {
    prop_oneof![Just(standard()), Just(timed_hmac()), Just(fielded_hmac())]
}

proptest! {
    #[test]
    fn signed_request_verifies(
        scheme in signing_schemes(),
        body in any::<Vec<u8>>(),
        id in "[a-zA-Z0-9_-]{1,24}",
        drift in -300_i64..=300,
    ) {
        let key = secret(WHSEC);
        let sent = scheme.sign(&key, &id, &body, at(NOW)).expect("signed");
        prop_assert!(verify(&scheme, &sent, &body, &[key], NOW + drift).is_ok());
    }

    #[test]
    fn flipped_body_bit_is_rejected(
        scheme in signing_schemes(),
        body in prop::collection::vec(any::<u8>(), 1..200),
        place in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let key = secret(WHSEC);
        let sent = scheme.sign(&key, "m", &body, at(NOW)).expect("signed");
        let mut changed = body.clone();
        changed[place.index(body.len())] ^= 1 << bit;
        prop_assert_eq!(rejection(&scheme, &sent, &changed, &[key], NOW), SignatureError::Mismatch);
    }

    #[test]
    fn changed_header_character_is_rejected(
        scheme in signing_schemes(),
        header in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        character in "[!-~]",
    ) {
        let key = secret(WHSEC);
        let mut sent = scheme.sign(&key, "msg_1", b"body", at(NOW)).expect("signed");
        let at_header = header.index(sent.len());
        let value = &mut sent[at_header].1;
        let place = place.index(value.len());
        let before = value[place..=place].to_owned();
        // Hex digits are case-insensitive.
        let hex = value.starts_with("t=");
        prop_assume!(before != character && !(hex && before.eq_ignore_ascii_case(&character)));
        value.replace_range(place..=place, &character);
        prop_assert!(verify(&scheme, &sent, b"body", &[key], NOW).is_err());
    }

    #[test]
    fn missing_header_is_rejected(
        scheme in signing_schemes(),
        header in any::<prop::sample::Index>(),
    ) {
        let key = secret(WHSEC);
        let mut sent = scheme.sign(&key, "m", b"x", at(NOW)).expect("signed");
        let (name, _) = sent.remove(header.index(sent.len()));
        let rejection = rejection(&scheme, &sent, b"x", &[key], NOW);
        prop_assert_eq!(rejection, SignatureError::MissingHeader(name.into()));
    }

    #[test]
    fn timestamp_beyond_tolerance_is_stale(
        scheme in signing_schemes(),
        beyond in 301_i64..1_000_000_000,
        early in any::<bool>(),
    ) {
        let key = secret(WHSEC);
        let sent = scheme.sign(&key, "m", b"x", at(NOW)).expect("signed");
        let now = if early { NOW - beyond } else { NOW + beyond };
        prop_assert_eq!(rejection(&scheme, &sent, b"x", &[key], now), SignatureError::StaleTimestamp);
    }

    #[test]
    fn any_active_secret_verifies_in_any_order(
        order in Just(vec![0_usize, 1, 2, 3]).prop_shuffle(),
        signatures in Just(vec![0_usize, 1, 2, 3]).prop_shuffle(),
        signed_by in prop::collection::btree_set(0_usize..4, 1..4),
        active in prop::collection::btree_set(0_usize..4, 1..4),
    ) {
        let name = |n: usize| BASE64.encode(format!("the secret number {n}"));
        for (scheme, field) in [(standard(), 2), (fielded_hmac(), 0)] {
            let mut sent: Pairs = Vec::new();
            let mut tags = Vec::new();
            for n in signatures.iter().filter(|n| signed_by.contains(n)) {
                sent = scheme.sign(&secret(&name(*n)), "m", b"x", at(NOW)).expect("signed");
                tags.push(sent[field].1.clone());
            }
            sent[field].1 = match field {
                2 => tags.join(" "),
                _ => {
                    let bare: Vec<_> = tags.iter().filter_map(|t| t.split_once(',')).collect();
                    let rest: Vec<_> = bare.iter().map(|(_, v1)| *v1).collect();
                    format!("{},{}", bare[0].0, rest.join(","))
                }
            };
            let keys: Vec<_> = order.iter().filter(|n| active.contains(n)).map(|n| secret(&name(*n))).collect();
            let accepted = verify(&scheme, &sent, b"x", &keys, NOW).is_ok();
            prop_assert_eq!(accepted, !signed_by.is_disjoint(&active));
        }
    }

    #[test]
    fn verification_never_panics(
        scheme in signing_schemes(),
        names in prop::collection::vec("webhook-(id|timestamp|signature)|x-(sig|time|id)", 0..6),
        values in prop::collection::vec("(v1[,=]|t=|[ ,=.])*[ -~]{0,40}", 6),
        body in any::<Vec<u8>>(),
    ) {
        let sent: Pairs = names.into_iter().zip(values).collect();
        prop_assert!(verify(&scheme, &sent, &body, &[secret(WHSEC)], NOW).is_err());
    }
}
