//! Values read from files that environment variables name, and overridden keys of the configuration
//! file.

use super::*;

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn value_is_read_from_the_file_in_the_variable() {
    let folder = TempDir::new().unwrap();
    let secrets = file(&folder, "secrets", &format!("{SECRET},{SECRET}\n"));
    let password = file(&folder, "password", "#any@text%\r\n");
    let key = file(&folder, "key", "a key");
    let env = [
        ("PROGRESS_HUB__AUTH__HS256_SECRETS_FILE", secrets.as_str()),
        ("PROGRESS_HUB__STORE__PASSWORD_FILE", &password),
        ("PROGRESS_HUB__STORE__URL", "redis://redis"),
        ("PROGRESS_HUB__PROVIDERS__MY_FAL__SPEC", "fal"),
        ("PROGRESS_HUB__PROVIDERS__MY_FAL__API_KEY_FILE", &key),
        ("PROGRESS_HUB__CALLBACK__SECRET_FILE", ""),
    ];
    let config = load("", &env, &[]).unwrap();
    assert_eq!(config.auth.hs256_secrets.len(), 2);
    assert_eq!(config.auth.hs256_secrets[0].expose_secret(), SECRET);
    let password = config.store.password.unwrap();
    assert_eq!(password.expose_secret(), "#any@text%");
    let provider = &config.providers["my-fal"];
    assert_eq!(provider.api_key.as_ref().unwrap().expose_secret(), "a key");
    assert!(config.callback.secret.is_none());
}

#[test]
fn unreadable_files_are_reported_by_key_and_without_their_path() {
    let folder = TempDir::new().unwrap();
    let empty = file(&folder, "empty", "\n");
    let short = file(&folder, "short", "hunter2\n");
    let env = [
        (
            "PROGRESS_HUB__AUTH__HS256_SECRETS_FILE",
            "a-secret-by-mistake",
        ),
        ("PROGRESS_HUB__AUTH__ISSUR_FILE", "nowhere"),
        ("PROGRESS_HUB__CALLBACK__SECRET_FILE", &short),
        ("PROGRESS_HUB__PROVIDERS__FAL__SPEC_FILE", &empty),
        ("PROGRESS_HUB__STORE__URL", "redis://redis"),
        ("PROGRESS_HUB__STORE__URL_FILE", &short),
    ];
    assert_snapshot!(error_lines(load("", &env, &[])), @r"
    auth.hs256_secrets: failed to read the file in PROGRESS_HUB__AUTH__HS256_SECRETS_FILE: No such file or directory (os error 2)
    store.url: set by more than one environment variable
    callback.secret: must have at least 32 bytes, found 7
    providers.fal.spec: failed to read the file in PROGRESS_HUB__PROVIDERS__FAL__SPEC_FILE: file is empty
    auth.issur: unknown key; did you mean issuer?
    ");
}

#[test]
fn later_sources_override_a_file_that_cannot_be_read() {
    let env = [("PROGRESS_HUB__AUTH__HS256_SECRETS_FILE", "nowhere")];
    let flags = [("auth.hs256_secrets", SECRET)];
    assert!(load("", &env, &flags).is_ok());
}

#[test]
fn password_needs_a_redis_url_without_one() {
    for (url, expected) in [
        ("redis://redis", ""),
        ("redis-cluster://hub@a,b", ""),
        (
            "sqlite://hub.db",
            "store.password: SQLite has no password\n",
        ),
        (
            "redis://hub:hunter2@redis",
            "store.password: store.url contains a password too\n",
        ),
        ("mysql://db", "store.url: "),
    ] {
        let flags = [("store.url", url), ("store.password", "p")];
        let errors = match load(&with_secret(""), &[], &flags) {
            Ok(_) => String::new(),
            loaded => error_lines(loaded),
        };
        assert!(errors.starts_with(expected), "{url}: {errors}");
        assert_eq!(errors.is_empty(), expected.is_empty(), "{url}: {errors}");
        assert!(errors.lines().count() <= 1, "{url}: {errors}");
    }
}

#[test]
fn passwords_that_redis_would_misread_are_rejected() {
    for password in ["two words", "a\"b", "it's", "a\nb", "a\tb"] {
        let flags = [("store.url", "redis://redis"), ("store.password", password)];
        assert_eq!(
            error_lines(load(&with_secret(""), &[], &flags)),
            "store.password: must have no white space, quotes or control characters\n"
        );
    }
}

#[test]
fn overridden_keys_of_the_file_are_recorded() {
    let file = with_secret("[server]\nbind = \"127.0.0.1:9000\"\ndrain = \"5s\"\n");
    let env = [
        ("PROGRESS_HUB__SERVER__BIND", "0.0.0.0:8080"),
        ("PROGRESS_HUB__SERVER__DRAIN", ""),
        ("PROGRESS_HUB__SERVER__MAX_CONNECTIONS", "5"),
    ];
    let flags = [("server.max_connections", "6")];
    let config = load(&file, &env, &flags).unwrap();
    assert_eq!(Vec::from_iter(config.overridden), ["server.bind"]);
}
