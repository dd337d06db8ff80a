//! Callback tokens and grants.

use proptest::prelude::*;

use super::*;

#[test]
fn callback_token_identifies_exactly_one_job() {
    let key = CallbackKey::new(&"a secret".into()).expect("a key");
    let other = CallbackKey::new(&"another".into()).expect("a key");
    let token = key.callback_token("kling", "job_01");
    assert_eq!(key.verify_callback_token("kling", &token), Some("job_01"));
    assert_eq!(other.verify_callback_token("kling", &token), None);
    assert_eq!(key.verify_callback_token("generic", &token), None);
    let mac = token.strip_prefix("job_01.").expect("the job in front");
    assert_eq!(mac.len(), 43);
    for forged in [
        format!("job_02.{mac}"),
        mac.to_owned(),
        "job_01.".into(),
        "job_01".into(),
    ] {
        assert_eq!(
            key.verify_callback_token("kling", &forged),
            None,
            "{forged}"
        );
    }
    assert!(CallbackKey::new(&"".into()).is_err());
}

#[test]
fn grant_is_valid_for_its_purpose_subject_and_time_only() {
    let key = CallbackKey::new(&"a secret".into()).expect("a key");
    let grant = key.sign_grant("output", "job_01/0", at(NOW));
    let holds = |purpose, subject, now| key.verify_grant(purpose, subject, &grant, at(now));
    assert!(holds("output", "job_01/0", NOW - 1));
    assert!(!holds("output", "job_01/0", NOW));
    assert!(!holds("output", "job_01/1", NOW - 1));
    assert!(!holds("other", "job_01/0", NOW - 1));
    let later = grant.replacen(&NOW.to_string(), &(NOW + 60).to_string(), 1);
    assert!(!key.verify_grant("output", "job_01/0", &later, at(NOW - 1)));
    assert_ne!(key.mac("ab", "c"), key.mac("a", "bc"));
}

#[test]
fn tokens_and_grants_of_a_previous_secret_stay_valid() {
    let key = |secret: &str| CallbackKey::new(&secret.into()).expect("a key");
    let old = key("an old secret");
    let token = old.callback_token("kling", "job_01");
    let grant = old.sign_grant("output", "job_01/0", at(NOW));
    let rotated = key("a new secret")
        .with_previous(&["another".into(), "an old secret".into()])
        .expect("keys");
    assert_eq!(
        rotated.verify_callback_token("kling", &token),
        Some("job_01")
    );
    assert!(rotated.verify_grant("output", "job_01/0", &grant, at(NOW - 1)));
    assert!(!rotated.verify_grant("output", "job_01/0", &grant, at(NOW)));
    // The current secret signs.
    let token = rotated.callback_token("kling", "job_01");
    assert_eq!(
        key("a new secret").verify_callback_token("kling", &token),
        Some("job_01")
    );
    assert_eq!(old.verify_callback_token("kling", &token), None);
    assert!(key("a").with_previous(&["".into()]).is_err());
}

proptest! {
    #[test]
    fn changed_callback_token_character_is_rejected(
        job in "job_[0-9A-Z]{26}",
        place in any::<prop::sample::Index>(),
        character in "[!-~]",
    ) {
        let key = CallbackKey::new(&"a secret".into()).expect("a key");
        let mut token = key.callback_token("kling", &job);
        prop_assert_eq!(key.verify_callback_token("kling", &token), Some(job.as_str()));
        let place = place.index(token.len());
        prop_assume!(token[place..=place] != character);
        token.replace_range(place..=place, &character);
        prop_assert_eq!(key.verify_callback_token("kling", &token), None);
    }
}
