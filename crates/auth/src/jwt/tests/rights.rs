//! Permissions of an authenticated caller, and minted tokens.

use super::*;

#[tokio::test]
async fn scopes_grant_the_documented_permissions() {
    let signer = shared();
    let config = trusting(&signer);
    // Columns: see an own, another's and a granted job; cancel the same three; submit, publish, update, admin.
    let none = json!("absent");
    let one = json!(["job_g"]);
    let table = [
        (json!("absent"), &none, "1.. ... ...."),
        (json!(""), &none, "... ... ...."),
        (json!("openid profile"), &none, "... ... ...."),
        (json!("jobs:read"), &none, "1.. ... ...."),
        (json!("JOBS:READ"), &none, "... ... ...."),
        (json!("jobs:write"), &none, "1.. 1.. 1..."),
        (json!(" jobs:read  jobs:write "), &none, "1.. 1.. 1..."),
        (json!("jobs:publish"), &none, "... ... .11."),
        (json!("admin"), &none, "111 111 1111"),
        (json!("absent"), &one, "..1 ... ...."),
        (json!(""), &one, "... ... ...."),
        (json!("jobs:read jobs:write"), &one, "..1 ..1 ...."),
        (json!("jobs:publish"), &one, "... ... ...."),
        (json!("admin"), &one, "..1 ..1 ...."),
        (json!("admin"), &json!([]), "... ... ...."),
    ];
    for (scope, jobs, expected) in table {
        let token = signer.sign(&with(json!({"scope": scope, "jobs": jobs})));
        let caller = check(&config, &token).await.expect("verified");
        let mark = |may: bool| if may { '1' } else { '.' };
        let jobs_of = [("job_a", "alice"), ("job_b", "bob"), ("job_g", "bob")];
        let see = jobs_of.map(|(job, owner)| mark(caller.may_see(job, owner)));
        let cancel = jobs_of.map(|(job, owner)| mark(caller.may_cancel(job, owner)));
        let rest = [
            caller.may_submit(),
            caller.may_publish(),
            caller.may_update("job_a"),
            caller.is_admin(),
        ];
        let row: String = [&see[..], &[' '], &cancel, &[' '], &rest.map(mark)]
            .concat()
            .iter()
            .collect();
        assert_eq!(row, expected, "{scope} {jobs}");
    }
    let worker = with(json!({"scope": "jobs:publish", "jobs": ["job_g", "job_f"]}));
    let caller = check(&config, &signer.sign(&worker))
        .await
        .expect("verified");
    assert!(caller.may_update("job_g") && !caller.may_update("job_a"));
    let granted = caller.granted_jobs().expect("a list");
    assert_eq!(granted.collect::<Vec<_>>(), ["job_f", "job_g"]);
}

#[tokio::test]
async fn minted_tokens_pass_the_verifier_of_the_same_configuration() {
    let mut config = trusting(&shared());
    config.issuer = Some("hub".to_owned());
    config.audience = Some("browsers".to_owned());
    let minter = Minter::new(&config).expect("a minter");
    let ttl = Duration::from_secs(900);
    let jobs = Some(vec!["job_g".to_owned()]);
    let minted = minter
        .mint("bob", jobs, Some("jobs:read"), ttl, now())
        .expect("minted");
    assert_eq!(minted.expires_at.as_second(), NOW + 900);
    let caller = check(&config, &minted.token).await.expect("verified");
    assert_eq!(caller.subject(), "bob");
    assert_eq!(caller.expires_at(), minted.expires_at);
    assert_eq!(caller.token_id(), Some(minted.id.as_str()));
    assert_eq!(minted.id.len(), 22, "128 bits in base64");
    assert!(caller.may_see("job_g", "alice") && !caller.may_see("job_b", "bob"));
    let plain = minter.mint("bob", None, None, ttl, now()).expect("minted");
    assert_ne!(plain.id, minted.id);
    let caller = check(&config, &plain.token).await.expect("verified");
    assert!(caller.may_see("job_b", "bob") && !caller.may_submit());
    assert_eq!(caller.email(), None);
    let email = Some("bob@example.com");
    let minted = minter.mint_with_email("bob", email, None, None, ttl, now());
    let token = minted.expect("minted").token;
    assert_eq!(
        check(&config, &token).await.expect("verified").email(),
        email
    );

    let many = || Some(vec!["job_0123456789".to_owned(); 1000]);
    let fails = |sub, jobs, scope, ttl| minter.mint(sub, jobs, scope, ttl, now()).err();
    assert_eq!(fails("", None, None, ttl), Some(MintError::EmptySubject));
    assert_eq!(fails("a", many(), None, ttl), Some(MintError::TooLong));
    assert_eq!(fails("a", None, None, Duration::ZERO), Some(MintError::Ttl));
    assert_eq!(fails("a", None, None, Duration::MAX), Some(MintError::Ttl));
    let unknown = MintError::UnknownScope("job:read".to_owned());
    assert_eq!(fails("a", None, Some("admin job:read"), ttl), Some(unknown));
    assert!(Minter::new(&trusting(&ed25519())).is_none());
}

#[tokio::test]
async fn email_is_ignored_unless_it_is_verified() {
    let (signer, config) = (shared(), trusting(&shared()));
    let address = "alice@example.com";
    for (claims, expected) in [
        (json!({}), None),
        (json!({ "email": address }), Some(address)),
        (
            json!({ "email": address, "email_verified": null }),
            Some(address),
        ),
        (
            json!({ "email": address, "email_verified": true }),
            Some(address),
        ),
        (
            json!({ "email": address, "email_verified": "true" }),
            Some(address),
        ),
        (json!({ "email": address, "email_verified": false }), None),
        (json!({ "email": address, "email_verified": "false" }), None),
        (json!({ "email": address, "email_verified": 1 }), None),
        (json!({ "email": [address] }), None),
        (json!({ "email": null }), None),
    ] {
        let token = signer.sign(&with(claims.clone()));
        let caller = check(&config, &token).await.expect("verified");
        assert_eq!(caller.email(), expected, "{claims}");
    }
}
