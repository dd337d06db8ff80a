//! Neither the printed configuration nor `Debug` output nor an error contains a secret.

use proptest::prelude::*;

use super::*;

#[test]
fn debug_output_contains_no_secret() {
    let config = load(ALL_SETTINGS, &[], &[]).unwrap();
    let debug = format!("{config:?}");
    for secret in all_secrets() {
        assert!(!debug.contains(secret), "{secret} is in {debug}");
    }
}

fn all_secrets() -> [&'static str; 16] {
    [
        SECRET,
        "fedcba9876543210fedcba9876543210",
        "s3cret-password",
        "00112233445566778899aabbccddeeff",
        "ffeeddccbbaa99887766554433221100",
        "access-key-of-kling",
        "secret-key-of-kling",
        "old-webhook-secret",
        "new-webhook-secret",
        "c3VibWl0dGVkIHVybHMgc2VjcmV0IDAx",
        "c3VibWl0dGVkIHVybHMgc2VjcmV0IDAy",
        "c2VjcmV0IG9mIHRoZSBhcHAsIHRoZSBuZXdlc3Q=",
        "c2VjcmV0IG9mIHRoZSBhcHAsIHRoZSBvbGRlcg==",
        "path-of-the-app",
        "query-of-the-app",
        "header-of-the-app",
    ]
}

/// Text that does not occur by chance, with characters that are special in TOML, URLs and lists.
fn secret() -> impl Strategy<Value = String> {
    r#"[a-zA-Z0-9]{12}[ -~é]{16,40}[a-zA-Z0-9]{12}"#
}

fn all_printed(config: &Config) -> String {
    format!("{}\n{config:?}", config.to_redacted_toml())
}

proptest! {
    #[test]
    fn printed_configuration_contains_no_secret(secrets in proptest::collection::vec(secret(), 6), pass in "[a-zA-Z0-9/@:]{12,20}") {
        let quoted: Vec<String> =
            secrets.iter().map(|s| toml::Value::String(s.clone()).to_string()).collect();
        let file = format!(
            "[auth]\nhs256_secrets = [{}, {}]\n[store]\nurl = \"redis://u:{}@host/1\"\n[callback]\nsecret = {}\n\
             [providers.a]\nspec = \"fal\"\napi_key = {}\nsecret_key = {}\nwebhook_secrets = [{}]\n",
            quoted[0], quoted[1], pass.replace('/', "%2F"), quoted[2], quoted[3], quoted[4], quoted[5],
        );
        let config = load(&file, &[], &[]).unwrap();
        let printed = all_printed(&config);
        for secret in &secrets {
            prop_assert!(!printed.contains(secret.as_str()), "{secret} is in {printed}");
        }
        let pass = pass.replace('/', "%2F");
        prop_assert!(!printed.contains(&pass), "{pass} is in {printed}");
    }

    #[test]
    fn config_errors_contain_no_secret(secret in secret(), raw in any::<bool>()) {
        let given = if raw { secret.clone() } else { toml::Value::String(secret.clone()).to_string() };
        let file = format!(
            "[auth]\nhs256_secrets = {given}\n[store]\nurl = {given}\n[callback]\nsecret = [{given}]\n\
             [providers.a]\nspec = \"fal\"\napi_key = {{ a = {given} }}\nwebhook_secrets = {given}\nbase_url = {given}\n\
             [webhook_defaults]\nsecret = {given}\nhosts = [{given}]\n\
             [[webhooks]]\nname = \"a\"\nurl = {given}\nsecrets = [{given}]\nheaders = {{ host = {given} }}\nevents = [{given}]\n",
        );
        let listed = format!("[{secret}");
        let short = format!("{secret} ");
        let url = format!("redis://u:{secret}@");
        let env = [
            ("PROGRESS_HUB__AUTH__HS256_SECRETS", listed.as_str()),
            ("PROGRESS_HUB__CALLBACK__SECRET", short.as_str()),
            ("PROGRESS_HUB__STORE__URL", url.as_str()),
            ("PROGRESS_HUB__AUTH__PUBLIC_KEYS", secret.as_str()),
            ("PROGRESS_HUB__PROVIDERS__A__JWKS_URL", secret.as_str()),
        ];
        for loaded in [load(&file, &[], &[]), load("", &env, &[])] {
            let reported = error_lines(loaded);
            prop_assert!(!reported.contains(secret.as_str()), "{secret} is in {reported}");
            // Nor a part of it, for example in a quoted line.
            prop_assert!(!reported.contains(&secret[..12]), "the start of {secret} is in {reported}");
        }
    }
}
