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

use std::collections::BTreeSet;
use std::process::{Command, Output};

use layers::forbidden_imports;
use markdown::{broken_links, files, headings, read, root, rows};
use progress_hub::config::Config;
use progress_hub::telemetry::{
    AdmissionRejection, CallOutcome, ConnectionKind, ProviderOperation, ProviderState,
    WebhookOutcome,
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
    sse: "docs/reference/sse.md",
    troubleshoot: "docs/how-to/troubleshoot.md",
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

fn error_codes(code: &str) -> BTreeSet<String> {
    let call =
        r#"(?:Problem::new|Self::new|unavailable|conflict|\.error)\((?:[^"();]|\(\))*"([a-z_]+)""#;
    let field = r#"\bcode: "([a-z_]+)""#;
    let event = r#"\\"code\\":\\"([a-z_]+)\\""#;
    [call, field, event]
        .iter()
        .flat_map(|pattern| captures(pattern, code))
        .collect()
}

#[test]
fn every_error_code_is_documented() {
    let codes = error_codes(&code(|path| layers::module(path) == "server"));
    let docs = read(ERRORS);
    assert_eq!(
        differences(&codes, &column(&docs, 0, r"\[`([a-z_]+)`\]")),
        [""; 0]
    );
    let is_code = |title: &String| {
        title
            .bytes()
            .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
    };
    let sections = headings(&docs).into_iter().filter(is_code).collect();
    assert_eq!(differences(&codes, &sections), [""; 0]);
}

#[test]
fn error_codes_are_found_in_every_syntax() {
    let code = r#"
        Problem::new(StatusCode::BAD_REQUEST, "code_a", "a detail");
        self.error(&id, "code_b", &message);
        ServerMessage::Error { id: &id, code: "code_c", message: "no" }
        format!("data: {{\"code\":\"code_d\"}}");
        Self::unavailable(
            "code_e", "a detail", wait)
        Problem::invalid("not_a_code");
    "#;
    let expected = ["code_a", "code_b", "code_c", "code_d", "code_e"].map(str::to_owned);
    assert_eq!(error_codes(code), BTreeSet::from(expected));
    let docs = "| [`code_a`](#code_a) | 400 |\n| [`code_x`](#code_x) | 400 |\n";
    let documented = column(docs, 0, r"\[`([a-z_]+)`\]");
    let codes = BTreeSet::from(["code_a".to_owned(), "code_b".to_owned()]);
    assert_eq!(
        differences(&codes, &documented),
        ["not documented: code_b", "only documented: code_x"]
    );
}

fn close_code_problems(code: &str, docs: &str) -> Vec<String> {
    let codes = captures(r#"=> \((\d{4}), ""#, code);
    differences(&codes, &column(docs, 0, r"^`(\d{4})`$"))
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
fn every_close_code_is_documented() {
    let code = code(|path| path == "src/protocol.rs");
    assert_eq!(close_code_problems(&code, &read(WEBSOCKET)), [""; 0]);
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
        ProviderState::ALL.map(ProviderState::as_str).to_vec(),
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
    let code = r#"Self::Normal => (1000, "bye"), Self::Restart => (1012, "restart"),"#;
    assert_eq!(
        close_code_problems(code, "| `1000` | `bye` |\n| `4000` | `x` |\n"),
        ["not documented: 1012", "only documented: 4000"]
    );
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
        "benches/compare/express/package-lock.json",
    ];
    for path in lock_files {
        let text = read(path);
        for part in ["resolved", "http:", "https:"] {
            assert!(!text.contains(part), "{path} contains '{part}'");
        }
    }
}
