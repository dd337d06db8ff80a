//! Reads Rust files as far as the rules need it: comments, strings, paths, and where tests begin.
//!
//! Invariant: what stands in a comment or a string is no import, and a nested brace hides none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Files by their path under the repository's root, with `/` between its parts.
pub type Tree = BTreeMap<String, String>;

/// Every `.rs` file under `folder` of this repository.
pub fn tree(folder: &str) -> Tree {
    let mut tree = Tree::new();
    walk(&root().join(folder), folder, &mut tree);
    tree
}

/// A file of this repository.
pub fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, name: &str, tree: &mut Tree) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &name, tree);
        } else if name.ends_with(".rs") {
            tree.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// What of a text is kept by [`code`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strings {
    Keep,
    Drop,
}

/// The text without comments, and where wanted without what stands in strings; lines stay lines.
pub fn code(text: &str, strings: Strings) -> String {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or(' ');
    let mut out = String::new();
    let mut here = 0;
    while here < text.len() {
        let (from, is_string) = (here, matches!(at(here), '"'));
        match (at(here), at(here + 1)) {
            ('/', '/') => {
                while here < text.len() && at(here) != '\n' {
                    here += 1;
                }
                continue;
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(here), at(here + 1)) {
                        ('/', '*') => (depth, here) = (depth + 1, here + 2),
                        ('*', '/') => (depth, here) = (depth - 1, here + 2),
                        _ => here += 1,
                    }
                    if depth == 0 || here >= text.len() {
                        break;
                    }
                }
                continue;
            }
            ('r', '"' | '#')
                if !is_word(at(from.wrapping_sub(1))) || at(from.wrapping_sub(1)) == 'b' =>
            {
                let hashes = (1..).take_while(|step| at(here + step) == '#').count();
                if at(here + 1 + hashes) != '"' {
                    out.push('r');
                    here += 1;
                    continue;
                }
                here += 2 + hashes;
                while here < text.len()
                    && !(at(here) == '"' && (1..=hashes).all(|step| at(here + step) == '#'))
                {
                    here += 1;
                }
                here += 1 + hashes;
            }
            ('"', _) => {
                here += 1;
                while here < text.len() && at(here) != '"' {
                    here += if at(here) == '\\' { 2 } else { 1 };
                }
                here += 1;
            }
            ('\'', '\\') => {
                here += 3;
                while at(here) != '\'' && here < text.len() {
                    here += 1;
                }
                here += 1;
            }
            ('\'', _) if at(here + 2) == '\'' => here += 3,
            (other, _) => {
                out.push(other);
                here += 1;
                continue;
            }
        }
        let literal: String = text[from..here.min(text.len())].iter().collect();
        match strings {
            Strings::Keep if is_string || literal.starts_with('r') => out.push_str(&literal),
            Strings::Keep | Strings::Drop => {
                out.push_str("\"\"");
                out.extend(literal.chars().filter(|sign| *sign == '\n'));
            }
        }
    }
    out
}

fn is_word(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

/// The text up to its module of tests.
pub fn before_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

/// `store` for `src/store.rs` and for all of `src/store/`.
pub fn room(path: &str) -> &str {
    let path = path.strip_prefix("src/").unwrap_or(path);
    path.split(['/', '.']).next().unwrap_or(path)
}

/// The first names after each `crate::`, `progress_hub::` and chain of `super::` that leaves the
/// room, into nested braces.
pub fn rooms_named(path: &str, text: &str) -> BTreeSet<String> {
    let code: String = code(text, Strings::Drop);
    let depth = depth(path);
    let mut names = BTreeSet::new();
    for start in ["crate::", "progress_hub::"] {
        for (at, _) in code.match_indices(start) {
            if !code[..at].ends_with(is_word) && !code[..at].ends_with("::") {
                first_names(&code[at + start.len()..], &mut names);
            }
        }
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") || code[..at].ends_with(is_word) {
            continue;
        }
        let mut rest = &code[at..];
        let mut supers = 0;
        while let Some(further) = rest.strip_prefix("super::") {
            (supers, rest) = (supers + 1, further);
        }
        if supers >= depth {
            first_names(rest, &mut names);
        }
    }
    names
}

/// How many `super::` lead from a file's module to the crate.
fn depth(path: &str) -> usize {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.trim_end_matches("/mod").split('/').count()
}

fn first_names(rest: &str, names: &mut BTreeSet<String>) {
    let rest = rest.trim_start();
    let Some(inside) = rest.strip_prefix('{') else {
        let name: String = rest.chars().take_while(|sign| is_word(*sign)).collect();
        names.insert(name);
        return;
    };
    let (mut depth, mut is_first) = (1, true);
    for (at, sign) in inside.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => is_first = true,
            sign if is_word(sign) && depth == 1 && is_first => {
                first_names(&inside[at..], names);
                is_first = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

/// Every name that begins a path: `rusqlite` in `rusqlite::Connection`, but not in `a::rusqlite::b`.
pub fn path_starts(text: &str) -> BTreeSet<String> {
    let code = code(text, Strings::Drop);
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("::") {
        let before = &code[..at];
        let start = before
            .rfind(|sign| !is_word(sign))
            .map_or(0, |last| last + 1);
        if !before[..start].ends_with("::") {
            names.insert(before[start..].to_owned());
        }
    }
    for line in code.lines() {
        if let Some(name) = line.trim().strip_prefix("use ") {
            let name: String = name.chars().take_while(|sign| is_word(*sign)).collect();
            names.insert(name);
        }
    }
    names
}

/// The first text literal that is a lower-case word, within the parentheses after each `call(`.
pub fn words_given_to(call: &str, text: &str) -> Vec<String> {
    let code = code(before_tests(text), Strings::Keep);
    let mut words = Vec::new();
    for (at, _) in code.match_indices(call) {
        let rest = &code[at + call.len()..];
        let mut depth = 1;
        let mut end = rest.len();
        for (index, sign) in rest.char_indices() {
            match sign {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = index;
                break;
            }
        }
        let literals = rest[..end].split('"').skip(1).step_by(2);
        words.extend(
            literals
                .filter(|word| is_code(word))
                .take(1)
                .map(str::to_owned),
        );
    }
    words
}

/// Whether a text looks like a stable word.
pub fn is_code(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}
