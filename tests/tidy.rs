//! The architecture as a test: floors, doors, sizes, and the tables of the README.
//!
//! Invariant: every rule is a function from files to complaints; on this repository it has none, and
//! beside it stands a broken file that it does complain of.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't read the repository fails"
)]

#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};

use progress_hub::config::Config;
use progress_hub::provider::HttpClient;
use progress_hub::telemetry::{
    AdmissionRejection, CallOutcome, Metrics, ProviderOperation, ProviderState, WebhookOutcome,
};
use source::{
    Strings, Tree, before_tests, code, file, is_code, path_starts, room, rooms_named, tree,
    words_given_to,
};

/// The house, ground floor first. A room imports from the floors below its own only.
const FLOORS: [&[&str]; 11] = [
    &["time"],
    &["job"],
    &["protocol", "auth", "telemetry"],
    &["signature"],
    &["config", "links"],
    &["hub", "store", "provider"],
    &["tracker", "guard"],
    &["feed", "submitter", "watchdog", "cancel"],
    &["fleet"],
    &["server"],
    &["main"],
];

/// Programs of their own that happen to live here: they import no room, not even each other's, and only
/// the roof starts them.
const BESIDE: [&str; 2] = ["simulator", "load"];

/// Which files may name a crate. A path that ends in `/` stands for all that is in it.
const DOORS: [(&str, &[&str]); 32] = [
    (
        "actix_codec",
        &["src/server.rs", "src/server/", "src/load/wire.rs"],
    ),
    ("actix_cors", &["src/server/routes.rs"]),
    ("actix_http", &["src/server.rs", "src/server/", "src/load/"]),
    ("actix_server", &["src/server.rs", "src/server/listener.rs"]),
    ("actix_service", &["src/server/listener.rs"]),
    ("actix_tls", &["src/server/listener.rs"]),
    (
        "actix_web",
        &["src/server.rs", "src/server/", "src/simulator/"],
    ),
    ("actix_ws", &["src/server/socket/"]),
    ("anyhow", &["src/main.rs", "src/main/"]),
    (
        "aws_lc_rs",
        &[
            "src/auth/",
            "src/signature.rs",
            "src/signature/",
            "src/simulator/",
            "src/load/signing.rs",
        ],
    ),
    (
        "base64",
        &[
            "src/auth.rs",
            "src/auth/",
            "src/signature/",
            "src/simulator/",
            "src/load/",
            "src/main.rs",
        ],
    ),
    (
        "clap",
        &["src/main.rs", "src/main/", "src/load/arguments.rs"],
    ),
    ("fred", &["src/store/redis.rs", "src/store/redis/"]),
    ("hdrhistogram", &["src/load/tally.rs"]),
    ("http_body_util", &["src/load/caller.rs"]),
    ("httpdate", &["src/provider/hints.rs"]),
    ("humantime_serde", &["src/provider/spec.rs"]),
    ("hyper", &["src/load/"]),
    ("hyper_util", &["src/load/caller.rs"]),
    ("indicatif", &["src/load/view.rs"]),
    ("jsonwebtoken", &["src/auth.rs", "src/auth/"]),
    (
        "minijinja",
        &["src/provider.rs", "src/provider/", "src/load/page.rs"],
    ),
    ("prometheus_client", &["src/telemetry/metrics.rs"]),
    ("regex_lite", &["src/provider/expression.rs"]),
    (
        "reqwest",
        &[
            "src/provider/http.rs",
            "src/provider/download.rs",
            "src/simulator/",
        ],
    ),
    ("rusqlite", &["src/store/sqlite.rs", "src/store/sqlite/"]),
    ("rust_embed", &["src/server/pages.rs"]),
    ("rustix", &["src/load/process.rs"]),
    ("rustls", &["src/server.rs", "src/server/"]),
    ("socket2", &["src/server.rs", "src/server/"]),
    (
        "toml",
        &["src/config/", "src/provider/", "src/signature/tests.rs"],
    ),
    ("tracing_subscriber", &["src/telemetry.rs"]),
];

/// Crates of the language's own kind, for every room.
const COMMON: [&str; 17] = [
    "async_trait",
    "bytes",
    "futures_util",
    "jiff",
    "rand",
    "secrecy",
    "serde",
    "serde_json",
    "slab",
    "thiserror",
    "tokio",
    "tokio_util",
    "tracing",
    "url",
    "uuid",
    // The crate itself, as its own binary names it, and what every crate has.
    "progress_hub",
    "std",
];

/// Lines of a file without its tests.
const LONGEST: usize = 400;

// Floors.

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

fn floors(tree: &Tree) -> Vec<String> {
    let known: BTreeSet<&str> = FLOORS
        .iter()
        .flat_map(|floor| floor.iter().copied())
        .collect();
    let mut wrong = Vec::new();
    for (path, text) in tree {
        let here = room(path);
        if here == "lib" {
            continue;
        }
        let is_beside = |room: &str| BESIDE.contains(&room);
        if !is_beside(here) && !known.contains(here) {
            wrong.push(format!("{path}: the room '{here}' is on no floor"));
        }
        for there in rooms_named(path, text) {
            let is_room = known.contains(there.as_str()) || is_beside(&there);
            let is_below = match (is_beside(here), is_beside(&there)) {
                (false, true) => here == "main",
                (true, _) => false,
                (false, false) => floor_of(&there) < floor_of(here),
            };
            if is_room && there != here && !is_below {
                wrong.push(format!("{path}: '{here}' must not import '{there}'"));
            }
        }
    }
    wrong
}

#[test]
fn modules_import_only_lower_layers() {
    assert_eq!(floors(&tree("src")), [""; 0]);
}

#[test]
fn an_import_from_above_is_found_however_it_is_written() {
    for text in [
        "use crate::tracker::Tracker;",
        "use crate::{job::Job, tracker::{Stir, Tracker}};",
        "use crate::{\n    job::{self, Job},\n    tracker,\n};",
        "fn f(t: &crate::tracker::Tracker) {}",
        "use super::super::tracker::Tracker;",
        "use crate::simulator::Simulator;",
    ] {
        let tree = Tree::from([("src/store/sqlite.rs".to_owned(), text.to_owned())]);
        assert_eq!(floors(&tree).len(), 1, "{text}");
    }
    for text in [
        "use crate::job::{Job, tracker};",
        "/// See [`crate::tracker`].",
        "const A: &str = \"crate::tracker::\";",
        "use super::tracker;",
    ] {
        let tree = Tree::from([("src/store/sqlite.rs".to_owned(), text.to_owned())]);
        assert_eq!(floors(&tree), [""; 0], "{text}");
    }
    for (path, text) in [
        ("src/simulator/api.rs", "use crate::time::Time;"),
        ("src/load/run.rs", "use crate::job::Job;"),
        ("src/load/run.rs", "use crate::simulator::Simulator;"),
        ("src/server/jobs.rs", "use crate::load::Report;"),
    ] {
        let beside = Tree::from([(path.to_owned(), text.to_owned())]);
        assert_eq!(floors(&beside).len(), 1, "{path}: {text}");
    }
    let unknown = Tree::from([("src/helpers.rs".to_owned(), String::new())]);
    assert_eq!(floors(&unknown).len(), 1);
}

// Doors.

fn doors(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in tree {
        for name in path_starts(text) {
            let Some((_, open)) = DOORS.iter().find(|(door, _)| *door == name) else {
                continue;
            };
            let is_open = open
                .iter()
                .any(|open| path == open || (open.ends_with('/') && path.starts_with(open)));
            if !is_open {
                wrong.push(format!("{path}: '{name}' is behind the door of {open:?}"));
            }
        }
    }
    wrong
}

/// Crates of `[dependencies]` that have no line above, and lines above that have no crate.
fn undecided(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    let there: BTreeSet<String> = dependencies
        .keys()
        .map(|name| name.replace('-', "_"))
        .collect();
    let decided: BTreeSet<String> = DOORS
        .iter()
        .map(|(name, _)| *name)
        .chain(
            COMMON
                .iter()
                .copied()
                .filter(|name| !matches!(*name, "progress_hub" | "std")),
        )
        .map(str::to_owned)
        .collect();
    there.symmetric_difference(&decided).cloned().collect()
}

#[test]
fn external_crates_are_used_only_in_their_module() {
    assert_eq!(doors(&tree("src")), [""; 0]);
    assert_eq!(undecided(&file("Cargo.toml")), [""; 0]);
}

#[test]
fn a_crate_that_comes_in_elsewhere_is_found() {
    for text in [
        "use rusqlite::Connection;",
        "let a: rusqlite::Result<()> = x;",
        "use rusqlite;",
    ] {
        let tree = Tree::from([("src/hub.rs".to_owned(), text.to_owned())]);
        assert_eq!(doors(&tree).len(), 1, "{text}");
    }
    let inside = Tree::from([(
        "src/server.rs".to_owned(),
        "rustls::crypto::aws_lc_rs::x();".to_owned(),
    )]);
    assert_eq!(doors(&inside), [""; 0]);
    let more = file("Cargo.toml").replace("[dependencies]", "[dependencies]\nleft-pad = \"1\"");
    assert_eq!(undecided(&more), ["left_pad"]);
}

// Files.

fn purposes(tree: &Tree) -> Vec<String> {
    let lacks = tree.iter().filter(|(_, text)| !text.starts_with("//! "));
    lacks
        .map(|(path, _)| format!("{path}: begins without its purpose"))
        .collect()
}

fn sizes(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in tree {
        let is_test = path.contains("/tests");
        let lines = if is_test {
            0
        } else {
            before_tests(text).lines().count()
        };
        if lines > LONGEST {
            wrong.push(format!("{path}: {lines} lines, look for the second idea"));
        }
    }
    wrong
}

#[test]
fn every_file_has_a_module_doc_and_fits_the_size_limit() {
    let tree = tree("src");
    assert_eq!(purposes(&tree), [""; 0]);
    assert_eq!(sizes(&tree), [""; 0]);
}

#[test]
fn a_file_without_a_purpose_or_with_two_is_found() {
    let long = Tree::from([("src/a.rs".to_owned(), "fn a() {}\n".repeat(401))]);
    assert_eq!((purposes(&long).len(), sizes(&long).len()), (1, 1));
    let tested = format!(
        "//! A.\n#[cfg(test)]\nmod tests {{\n{}}}",
        "// x\n".repeat(500)
    );
    let tested = Tree::from([("src/a.rs".to_owned(), tested)]);
    assert_eq!((purposes(&tested).len(), sizes(&tested).len()), (0, 0));
}

#[test]
fn what_comes_by_npm_comes_from_no_registry_of_ours() {
    for lock in [
        "tests/browser/package-lock.json",
        "benches/compare/express/package-lock.json",
    ] {
        let text = file(lock);
        for word in ["resolved", "http:", "https:"] {
            assert!(!text.contains(word), "{lock} names an address: {word}");
        }
    }
}

// Tables of the README.

/// The rows of the table under a heading: the words in backticks of the first cell, and the cells.
fn table(readme: &str, heading: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    let mut lines = readme.lines().skip_while(|line| {
        line.trim_start_matches('#').trim() != heading || !line.starts_with('#')
    });
    assert!(
        lines.next().is_some(),
        "the README has no heading '{heading}'"
    );
    let section = lines.take_while(|line| !line.starts_with('#'));
    for line in section.filter(|line| line.starts_with("| `")) {
        let cells: Vec<String> = line
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect();
        for word in cells[0].split('`').skip(1).step_by(2) {
            rows.insert(word.to_owned(), cells.clone());
        }
    }
    assert!(
        !rows.is_empty(),
        "the README has no table under '{heading}'"
    );
    rows
}

/// What is on one side only.
fn apart(ours: &BTreeSet<String>, theirs: &BTreeSet<String>) -> Vec<String> {
    let missing = ours
        .difference(theirs)
        .map(|word| format!("not in the README: {word}"));
    let stale = theirs
        .difference(ours)
        .map(|word| format!("only in the README: {word}"));
    missing.chain(stale).collect()
}

fn words(rows: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    rows.keys().cloned().collect()
}

/// Every word that an answer of the hub has as its `code`.
fn codes(tree: &Tree) -> BTreeSet<String> {
    let calls = [
        "Problem::new(",
        "Self::new(",
        "unavailable(",
        "conflict(",
        ".error(",
    ];
    let mut found = BTreeSet::new();
    for (path, text) in tree.iter().filter(|(path, _)| room(path) == "server") {
        for call in calls {
            found.extend(words_given_to(call, text));
        }
        let code = code(before_tests(text), Strings::Keep);
        for mark in ["code: \"", "\\\"code\\\":\\\""] {
            let given = code
                .split(mark)
                .skip(1)
                .filter_map(|rest| rest.split(['"', '\\']).next());
            found.extend(given.filter(|word| is_code(word)).map(str::to_owned));
        }
        assert!(!found.contains(""), "{path}");
    }
    found
}

#[test]
fn the_readme_has_every_error_code_and_no_other() {
    let told = words(&table(&file("README.md"), "Error codes"));
    assert_eq!(apart(&codes(&tree("src")), &told), [""; 0]);
}

#[test]
fn an_error_code_is_found_however_it_is_told() {
    let text = r#"
        fn a() { Problem::new(StatusCode::BAD_REQUEST, "one_code", "a detail"); }
        fn b() { self.error(&id, "two_code", &message); }
        fn c() { HubMessage::Error { id: &id, code: "three_code", message: "no" } }
        fn d() { format!("data: {{\"code\":\"four_code\"}}"); }
        fn e() { Self::unavailable("five_code", "an explanation", wait) }
        // Problem::new(StatusCode::OK, "no_code", "")
    "#;
    let tree = Tree::from([("src/server/a.rs".to_owned(), text.to_owned())]);
    let found: Vec<String> = codes(&tree).into_iter().collect();
    assert_eq!(
        found,
        [
            "five_code",
            "four_code",
            "one_code",
            "three_code",
            "two_code"
        ]
    );
}

#[test]
fn the_readme_has_every_close_code() {
    let protocol = file("src/protocol.rs");
    let code = code(&protocol, Strings::Drop);
    let ours = code
        .split("=> (")
        .skip(1)
        .filter_map(|rest| rest.split(',').next());
    let ours: BTreeSet<String> = ours
        .filter(|number| number.parse::<u16>().is_ok())
        .map(str::to_owned)
        .collect();
    assert!(ours.len() > 5, "{ours:?}");
    let told = words(&table(&file("README.md"), "Close codes"));
    assert_eq!(apart(&ours, &told), [""; 0]);
}

/// Every key with its default as `progress-hub check` prints it, a provider's with `<name>`.
fn keys() -> BTreeMap<String, String> {
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let flags = vec![
        set(
            "auth.hs256_secrets",
            "a secret of at least thirty-two bytes",
        ),
        set("providers.one.spec", "kling"),
    ];
    let shown = Config::load(None, std::iter::empty(), flags)
        .unwrap()
        .to_redacted_toml();
    let mut keys = BTreeMap::new();
    let mut section = String::new();
    for line in shown.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').replace(".one", ".<name>");
        } else if let Some((key, value)) = line.split_once(" = ") {
            let value = value.trim_matches('"');
            let is_ours = matches!(key, "hs256_secrets" | "spec");
            let value = if is_ours || matches!(value, "[]" | "{}") {
                ""
            } else {
                value
            };
            keys.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    keys
}

fn key_complaints(readme: &str) -> Vec<String> {
    let (keys, told) = (keys(), table(readme, "Configuration"));
    let mut wrong = apart(&keys.keys().cloned().collect(), &words(&told));
    for (key, default) in &keys {
        let Some(cells) = told.get(key) else { continue };
        let written = cells[1].trim_matches('`');
        // Left open here means none, or that the spec says.
        let agrees = match default.as_str() {
            "" => !cells[1].starts_with('`'),
            default => written == default,
        };
        if !agrees {
            wrong.push(format!(
                "{key}: the default is '{default}', the README says '{written}'"
            ));
        }
    }
    wrong
}

#[test]
fn the_readme_has_every_setting_with_its_default() {
    assert_eq!(key_complaints(&file("README.md")), [""; 0]);
}

#[test]
fn a_setting_that_is_forgotten_or_told_wrong_is_found() {
    let readme = file("README.md");
    let forgotten = readme.replace("| `socket.heartbeat` |", "| heartbeat |");
    assert_eq!(
        key_complaints(&forgotten),
        ["not in the README: socket.heartbeat"]
    );
    let wrong = readme.replace(
        "| `socket.heartbeat` | `25s` |",
        "| `socket.heartbeat` | `26s` |",
    );
    assert_eq!(key_complaints(&wrong).len(), 1);
    let invented = readme.replace(
        "| `socket.heartbeat` |",
        "| `socket.heartbeat`, `socket.colour` |",
    );
    assert_eq!(
        key_complaints(&invented),
        ["only in the README: socket.colour"]
    );
}

#[test]
fn the_readme_has_every_metric() {
    let metrics = Metrics::new();
    metrics.webhook("kling", WebhookOutcome::Applied);
    metrics.provider_request("kling", ProviderOperation::Submit, CallOutcome::Ok);
    metrics.set_provider_state("kling", ProviderState::Available, |_| 0);
    metrics.set_provider_balance("kling", 1.0);
    metrics.socket_closed(1000);
    metrics.submission_rejected(AdmissionRejection::Budget);
    metrics.reserved("kling", 1);
    metrics.spent("kling", 1);
    let text = metrics.render();
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let ours = described.map(|line| match line.split_once(' ') {
        Some((name, "counter")) => format!("{name}_total"),
        Some((name, _)) => name.to_owned(),
        None => line.to_owned(),
    });
    let told = words(&table(&file("README.md"), "Metrics"));
    assert_eq!(apart(&ours.collect(), &told), [""; 0]);
}

/// Files and functions that the walkthroughs name and the code has not.
fn lost(guide: &str, tree: &Tree) -> Vec<String> {
    let all: String = tree.values().map(String::as_str).collect();
    let mut lost = Vec::new();
    for word in guide.split('`').skip(1).step_by(2) {
        let is_there = match word.rsplit_once("::") {
            Some((_, name)) if is_code(name) => {
                let forms = [
                    format!("fn {name}("),
                    format!("fn {name}<"),
                    format!("mod {name};"),
                ];
                forms.iter().any(|form| all.contains(form))
            }
            Some((_, name)) => all.contains(name),
            None if word.ends_with(".rs") && !word.contains("tests/") => {
                let path = word.strip_prefix("src/").unwrap_or(word);
                tree.contains_key(&format!("src/{path}"))
            }
            None => true,
        };
        if !is_there {
            lost.push(word.to_owned());
        }
    }
    lost
}

#[test]
fn architecture_doc_references_exist() {
    let tree = tree("src");
    assert_eq!(lost(&file("docs/architecture.md"), &tree), [""; 0]);
    let wrong = "`Hub::deliver` then `Hub::broadcast` in `hub/manager.rs`";
    assert_eq!(lost(wrong, &tree), ["Hub::broadcast", "hub/manager.rs"]);
}

#[test]
fn the_example_of_a_spec_is_whole_and_shown_as_it_is() {
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/acme.toml");
    let flags = vec![
        set(
            "auth.hs256_secrets",
            "a secret of at least thirty-two bytes",
        ),
        set("providers.acme.spec", path),
        set("providers.acme.api_key", "key-1"),
        set("providers.acme.webhook_secrets", "shared-secret"),
    ];
    let config = Config::load(None, std::iter::empty(), flags).unwrap();
    let checked = progress_hub::server::validate(&config, &HttpClient::new().unwrap());
    assert_eq!(checked.err().unwrap_or_default(), []);
    assert!(file("docs/providers.md").contains(&file("docs/examples/acme.toml")));
}

#[test]
fn the_readme_has_every_route() {
    let (readme, server) = (file("README.md"), file("src/server/routes.rs"));
    let server = code(&server, Strings::Keep);
    let paths = server
        .split('"')
        .filter(|text| text.starts_with("/v1/") || *text == "/metrics");
    let paths: BTreeSet<&str> = paths.collect();
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths {
        let path = path.replace("/{provider}/{token}", "/{provider}/{callback_token}");
        assert!(readme.contains(&path), "the README has not {path}");
    }
}
