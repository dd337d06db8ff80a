//! Checks that a module imports only from the layers below its own.

use std::collections::BTreeSet;

use regex_lite::Regex;

/// The modules, lowest layer first.
const LAYERS: [&[&str]; 11] = [
    &["time", "rate_limit", "egress", "template"],
    &["job"],
    &["protocol", "telemetry", "outbox"],
    &["config", "links"],
    &["hub", "store", "provider"],
    &["destinations"],
    &["tracker", "admission"],
    &["cancellation"],
    &["background"],
    &["server"],
    &["main"],
];

/// Returns the top-level module of a file: `store` for `src/store.rs` and for all files of `src/store/`.
pub fn module(path: &str) -> &str {
    let path = path.strip_prefix("src/").unwrap_or(path);
    path.split(['/', '.']).next().unwrap_or(path)
}

/// Returns the forbidden imports of a file.
pub fn forbidden_imports(path: &str, text: &str) -> Vec<String> {
    let own = module(path);
    if own == "lib" {
        return Vec::new();
    }
    if layer(own).is_none() {
        return vec![format!("{path}: '{own}' is in no layer")];
    }
    let imports = imports(text).into_iter();
    let forbidden = imports.filter(|other| other != own && !may_import(own, other));
    forbidden
        .map(|other| format!("{path}: '{own}' must not import '{other}'"))
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn may_import(own: &str, other: &str) -> bool {
    layer(other) < layer(own)
}

/// Returns the modules that a file names after `crate::` or `progress_hub::`, also in braces.
fn imports(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let start = Regex::new(r"\b(?:crate|progress_hub)::(\w+|\{)").unwrap();
    let mut names = BTreeSet::new();
    for found in start.captures_iter(&code) {
        match &found[1] {
            "{" => names.extend(group(&code[found.get(0).unwrap().end()..])),
            name => _ = names.insert(name.to_owned()),
        }
    }
    let is_module = |name: &String| layer(name).is_some();
    names.retain(is_module);
    names
}

/// Returns the first segment of every path in an import group. `text` starts after the opening brace.
fn group(text: &str) -> Vec<String> {
    let mut depth = 1;
    let mut paths = String::new();
    for character in text.chars() {
        depth += i32::from(character == '{') - i32::from(character == '}');
        match depth {
            0 => break,
            1 => paths.push(character),
            _ => {}
        }
    }
    let name = |path: &str| path.trim().split("::").next().unwrap_or("").to_owned();
    paths.split(',').map(name).collect()
}

#[test]
fn imports_from_higher_layers_are_found() {
    for text in [
        "use crate::tracker::Tracker;",
        "use crate::{job::Job, tracker::{Tracker, Wakeups}};",
        "use crate::{\n    job::{self, Job},\n    tracker,\n};",
        "fn f(tracker: &crate::tracker::Tracker) {}",
        "use crate::hub::Hub;",
    ] {
        assert_eq!(
            forbidden_imports("src/store/sqlite.rs", text).len(),
            1,
            "{text}"
        );
    }
    for text in [
        "use crate::job::{Job, tracker};",
        "use crate::store::Store;",
        "    /// See [`crate::tracker`].",
    ] {
        assert_eq!(
            forbidden_imports("src/store/sqlite.rs", text),
            [""; 0],
            "{text}"
        );
    }
    assert_eq!(forbidden_imports("src/helpers.rs", "").len(), 1);
}
