//! Checks that the documentation matches the code and that modules keep to their layers.
//!
//! Each check is a function that returns problems. One test expects none in this repository. Another
//! test expects a problem in a faulty example.

#![expect(clippy::unwrap_used, reason = "an unreadable file fails the test")]

#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/layers.rs"]
mod layers;
#[path = "docs/markdown.rs"]
mod markdown;
#[path = "docs/templates.rs"]
mod templates;

use std::collections::BTreeSet;
use std::process::{Command, Output};

use layers::forbidden_imports;
use markdown::{broken_links, files, headings, read, root, rows};
use progress_hub::config::Config;
use progress_hub::protocol::CloseReason;
use progress_hub::server::ErrorCode;
use progress_hub::telemetry::{
    AdmissionRejection, ArchiveFailure, AttemptOutcome, CallOutcome, ConnectionKind,
    DestinationKind, DestinationStatus, Limit, ProviderOperation, ProviderState, WebhookOutcome,
};
use regex_lite::Regex;

const CONFIGURATION: &str = "docs/reference/configuration.md";
const ERRORS: &str = "docs/reference/errors.md";
const HTTP_API: &str = "docs/reference/http-api.md";
const METRICS: &str = "docs/reference/metrics.md";
const WEBSOCKET: &str = "docs/reference/websocket.md";

/// Defines a test for the commands of each file.
macro_rules! commands {
    ($($test:ident: $path:literal,)*) => {
        mod commands_of {
            $(
                #[test]
                fn $test() {
                    super::commands::check($path, &super::read($path));
                }
            )*
        }

        const FILES_WITH_COMMANDS: &[&str] = &[$($path),*];
    };
}

commands! {
    readme: "README.md",
    add_a_provider: "docs/how-to/add-a-provider.md",
    add_to_your_app: "docs/tutorial/add-to-your-app.md",
    archive_outputs: "docs/how-to/archive-outputs.md",
    authenticate_users: "docs/how-to/authenticate-users.md",
    configuration: "docs/reference/configuration.md",
    connect_a_provider: "docs/how-to/connect-a-provider.md",
    deploy: "docs/how-to/deploy.md",
    first_job: "docs/tutorial/first-job.md",
    http_api: "docs/reference/http-api.md",
    limit_cost: "docs/how-to/limit-cost.md",
    load_test: "docs/how-to/load-test.md",
    monitor: "docs/how-to/monitor.md",
    receive_webhooks: "docs/how-to/receive-webhooks.md",
    report_from_a_worker: "docs/how-to/report-from-a-worker.md",
    run_multiple_nodes: "docs/how-to/run-multiple-nodes.md",
    send_webhooks: "docs/how-to/send-webhooks.md",
    sse: "docs/reference/sse.md",
    send_email: "docs/how-to/send-email.md",
    submit_without_duplicates: "docs/how-to/submit-without-duplicates.md",
    troubleshoot: "docs/how-to/troubleshoot.md",
}

#[test]
fn container_build_has_the_version_and_the_files_of_the_workspace() {
    let dockerfile = read("Dockerfile");
    let version = format!("ARG VERSION={}", env!("CARGO_PKG_VERSION"));
    assert!(dockerfile.lines().any(|line| line == version), "{version}");
    let context = read(".dockerignore");
    let included: BTreeSet<&str> = context
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    for path in [
        "Cargo.lock",
        "Cargo.toml",
        "benches",
        "crates",
        "src",
        "static",
    ] {
        assert!(included.contains(path), "{path}");
    }
    for path in included {
        assert!(root().join(path).exists(), "{path}");
    }
}

#[test]
fn every_file_with_commands_has_a_test() {
    let mut all = files("docs", "md");
    all.push("README.md".to_owned());
    let with_commands = all
        .into_iter()
        .filter(|path| commands::has_commands(&read(path)));
    let tested = FILES_WITH_COMMANDS.iter().map(|path| (*path).to_owned());
    assert_eq!(
        differences(&with_commands.collect(), &tested.collect()),
        [""; 0]
    );
}

#[test]
fn modules_import_from_lower_layers_only() {
    let files = files("src", "rs");
    let forbidden = files
        .iter()
        .flat_map(|path| forbidden_imports(path, &read(path)));
    assert_eq!(forbidden.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn links_between_files_resolve() {
    let mut all = files("docs", "md");
    all.extend(files("benches", "md"));
    all.extend(["README.md".to_owned(), "CHANGELOG.md".to_owned()]);
    let broken = all.iter().flat_map(|path| broken_links(path, &read(path)));
    assert_eq!(broken.collect::<Vec<_>>(), [""; 0]);
}

/// Returns the names that only the code or only the documentation contains.
fn differences(code: &BTreeSet<String>, docs: &BTreeSet<String>) -> Vec<String> {
    let missing = code
        .difference(docs)
        .map(|name| format!("not documented: {name}"));
    let stale = docs
        .difference(code)
        .map(|name| format!("only documented: {name}"));
    missing.chain(stale).collect()
}

/// Returns all matches of the first group of a pattern.
fn captures(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    let found = pattern.captures_iter(text);
    found.map(|found| found[1].to_owned()).collect()
}

/// Returns all matches of the first group of a pattern in one column of the tables.
fn column(docs: &str, index: usize, pattern: &str) -> BTreeSet<String> {
    let rows = rows(docs).into_iter();
    let cells = rows.filter_map(|row| row.get(index).cloned());
    cells.flat_map(|cell| captures(pattern, &cell)).collect()
}

/// Returns the code of the selected files without comments and unit tests.
fn code(is_selected: impl Fn(&str) -> bool) -> String {
    let mut code = String::new();
    let all = [files("src", "rs"), files("crates", "rs")].concat();
    for path in all.iter().filter(|path| is_selected(path)) {
        let text = read(path);
        let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
        let lines = before_tests.lines();
        for line in lines.filter(|line| !line.trim_start().starts_with("//")) {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Returns one text for each error code: the columns of its row in the table of codes.
fn error_codes() -> BTreeSet<String> {
    let row = |code: &ErrorCode| {
        let name = code.as_str();
        let status = code
            .status()
            .map_or("–".to_owned(), |status| status.as_u16().to_string());
        let websocket = if code.occurs_on_websocket() {
            "yes"
        } else {
            "–"
        };
        let retryable = if code.is_retryable() { "yes" } else { "no" };
        format!("[`{name}`](#{name}) | {status} | {websocket} | {retryable}")
    };
    ErrorCode::ALL.iter().map(row).collect()
}

/// Returns the rows of the tables whose first column matches.
fn table_rows(docs: &str, first_column: &str) -> BTreeSet<String> {
    let first_column = Regex::new(first_column).unwrap();
    let rows = rows(docs).into_iter();
    let matching = rows.filter(|row| first_column.is_match(&row[0]));
    matching.map(|row| row.join(" | ")).collect()
}

#[test]
fn every_error_code_is_documented() {
    let docs = read(ERRORS);
    assert_eq!(
        differences(&error_codes(), &table_rows(&docs, r"^\[`[a-z_]+`\]")),
        [""; 0]
    );
    let is_code = |title: &String| {
        title
            .bytes()
            .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
    };
    let sections = headings(&docs).into_iter().filter(is_code).collect();
    let codes = ErrorCode::ALL.iter().map(|code| code.as_str().to_owned());
    assert_eq!(differences(&codes.collect(), &sections), [""; 0]);
}

#[test]
fn every_close_code_is_documented() {
    let codes = CloseReason::ALL.map(|reason| {
        let (code, name) = reason.code_and_reason();
        format!("`{code}` | `{name}`")
    });
    let documented = table_rows(&read(WEBSOCKET), r"^`\d{4}`$").into_iter();
    let documented = documented.map(|row| {
        let (columns, _cause) = row.rsplit_once(" | ").unwrap();
        columns.to_owned()
    });
    assert_eq!(
        differences(&BTreeSet::from(codes), &documented.collect()),
        [""; 0]
    );
}

#[test]
fn wrong_and_missing_codes_are_found() {
    let docs = "| [`code_a`](#code_a) | 400 | – | no |\n| [`code_x`](#code_x) | 503 | yes | yes |\n| b |\n";
    let codes = [
        "[`code_a`](#code_a) | 400 | – | no",
        "[`code_x`](#code_x) | 500 | yes | yes",
    ];
    assert_eq!(
        differences(
            &codes.map(str::to_owned).into(),
            &table_rows(docs, r"^\[`[a-z_]+`\]")
        ),
        [
            "not documented: [`code_x`](#code_x) | 500 | yes | yes",
            "only documented: [`code_x`](#code_x) | 503 | yes | yes"
        ]
    );
}

fn route_problems(code: &str, docs: &str) -> Vec<String> {
    let parameter = Regex::new(r"\{\w+\}").unwrap();
    let generic = |paths: BTreeSet<String>| {
        let paths = paths.iter().map(|path| parameter.replace_all(path, "{}"));
        paths.map(String::from).collect()
    };
    let routes = captures(r#""(/v1/[^"]+|/metrics)""#, code);
    let documented = column(docs, 1, r"^\[?`(/v1/[^`]+|/metrics)`");
    differences(&generic(routes), &generic(documented))
}

/// Compares names and help texts of the metrics with the table.
fn metric_problems(code: &str, docs: &str) -> Vec<String> {
    let call = r#"register\w*\((?:\s*r,)?\s*"(\w+)",\s*"([^"]+)""#;
    let calls = Regex::new(call).unwrap();
    let registered = calls.captures_iter(code);
    let registered = registered.map(|call| format!("{}: {}", &call[1], call[2].to_lowercase()));
    let documented = rows(docs).into_iter().filter_map(|row| {
        let name = row[0].strip_prefix("`progress_hub_")?.strip_suffix('`')?;
        let name = name.trim_end_matches("_total").trim_end_matches("_seconds");
        let meaning = row.last()?.replace('`', "").to_lowercase();
        Some(format!("{name}: {meaning}"))
    });
    differences(&registered.collect(), &documented.collect())
}

#[test]
fn every_route_is_documented() {
    let code = code(|path| path.ends_with("server/routes.rs"));
    assert_eq!(route_problems(&code, &read(HTTP_API)), [""; 0]);
}

#[test]
fn every_metric_is_documented() {
    let code = code(|path| path.ends_with("telemetry/metrics.rs"));
    assert_eq!(metric_problems(&code, &read(METRICS)), [""; 0]);
}

#[test]
fn every_label_value_is_documented() {
    let docs = read(METRICS);
    let values = [
        ConnectionKind::ALL.map(ConnectionKind::as_str).to_vec(),
        WebhookOutcome::ALL.map(WebhookOutcome::as_str).to_vec(),
        ProviderOperation::ALL
            .map(ProviderOperation::as_str)
            .to_vec(),
        CallOutcome::ALL.map(CallOutcome::as_str).to_vec(),
        AdmissionRejection::ALL
            .map(AdmissionRejection::as_str)
            .to_vec(),
        ArchiveFailure::ALL.map(ArchiveFailure::as_str).to_vec(),
        ProviderState::ALL.map(ProviderState::as_str).to_vec(),
        Limit::ALL.map(Limit::as_str).to_vec(),
        DestinationKind::ALL.map(DestinationKind::as_str).to_vec(),
        AttemptOutcome::ALL.map(AttemptOutcome::as_str).to_vec(),
        DestinationStatus::ALL
            .map(DestinationStatus::as_str)
            .to_vec(),
    ];
    for value in values.concat() {
        assert!(
            docs.contains(&format!("`{value}`")),
            "not documented: {value}"
        );
    }
}

#[test]
fn missing_and_removed_names_are_found() {
    let code = r#"("/v1/jobs/{id}", vec![]), ("/v1/tokens", vec![]), ("/metrics", vec![]),"#;
    assert_eq!(
        route_problems(
            code,
            "| GET | `/v1/jobs/{job}` |\n| GET | [`/metrics`](a.md) |\n| GET | `/v1/x` |\n"
        ),
        ["not documented: /v1/tokens", "only documented: /v1/x"]
    );
    let code = r#"register(r, "a", "Help a"); register(r, "b", "B"); registry.register_with_unit("c", "C", x);"#;
    assert_eq!(
        metric_problems(
            code,
            "| `progress_hub_a_total` | help `a` |\n| `progress_hub_c_seconds` | d |\n"
        ),
        [
            "not documented: b: b",
            "not documented: c: c",
            "only documented: c: d"
        ]
    );
}

/// Runs `progress-hub check` with these settings only.
fn check(settings: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_progress-hub"));
    program.arg("check").env_clear().current_dir(root());
    for (key, value) in settings {
        program.args(["--set", &format!("{key}={value}")]);
    }
    program.output().unwrap()
}

const SECRET: (&str, &str) = (
    "auth.hs256_secrets",
    "a secret of at least thirty-two bytes",
);

/// Returns the differences between the declared settings and the rows of the tables.
fn setting_problems(docs: &str) -> Vec<String> {
    let rows = rows(docs).into_iter();
    let documented = rows.filter(|row| row[0].starts_with('`') && row[0].contains('.'));
    let documented = documented.map(|row| row.join(" | "));
    let declared = Config::reference().into_iter().map(|setting| {
        let key = format!("`{}`", setting.key);
        [key, setting.default, setting.limits, setting.meaning].join(" | ")
    });
    differences(&declared.collect(), &documented.collect())
}

#[test]
fn every_setting_is_documented_as_declared() {
    assert_eq!(setting_problems(&read(CONFIGURATION)), [""; 0]);
}

#[test]
fn missing_unknown_and_different_settings_are_found() {
    let docs = read(CONFIGURATION);
    let row = "| `socket.heartbeat` | `25s` | 1s to 10m | Interval of heartbeats. |";
    let missing =
        "not documented: `socket.heartbeat` | `25s` | 1s to 10m | Interval of heartbeats.";
    let faulty = row.replace("25s", "26s");
    assert_eq!(setting_problems(&docs.replace(row, "")), [missing]);
    assert_eq!(
        setting_problems(&docs.replace(row, &faulty)),
        [
            missing,
            "only documented: `socket.heartbeat` | `26s` | 1s to 10m | Interval of heartbeats."
        ]
    );
}

#[test]
fn example_definition_is_valid_and_shown_unchanged() {
    let example = "docs/examples/acme.toml";
    let output = check(&[
        SECRET,
        ("providers.acme.spec", example),
        ("providers.acme.api_key", "key-1"),
        ("providers.acme.webhook_secrets", "shared-secret"),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(read("docs/how-to/add-a-provider.md").contains(&read(example)));
}

/// Returns the functions that a text mentions as `Type::function` but the code does not define.
fn unknown_functions(docs: &str, code: &str) -> Vec<String> {
    let named = captures(r"`(\w+::[a-z]\w*)`", docs).into_iter();
    let is_unknown = |path: &String| {
        let name = path.rsplit("::").next().unwrap_or("");
        !["(", "<"]
            .iter()
            .any(|end| code.contains(&format!("fn {name}{end}")))
    };
    named.filter(is_unknown).collect()
}

#[test]
fn architecture_names_existing_functions() {
    let code = code(|_| true);
    let docs = read("docs/explanation/architecture.md");
    assert_eq!(unknown_functions(&docs, &code), [""; 0]);
    assert_eq!(
        unknown_functions("`Hub::deliver` `Hub::broadcast`", "fn deliver("),
        ["Hub::broadcast"]
    );
}

#[test]
fn npm_lock_files_name_no_registry() {
    let lock_files = [
        "tests/browser/package-lock.json",
        "tests/libraries/package-lock.json",
        "benches/compare/express/package-lock.json",
    ];
    for path in lock_files {
        let text = read(path);
        for part in ["resolved", "http:", "https:"] {
            assert!(!text.contains(part), "{path} contains '{part}'");
        }
    }
}
