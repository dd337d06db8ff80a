//! Reads the parts of Markdown that the checks need: code blocks, headings, links and tables.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

/// A fenced code block.
#[derive(Debug)]
pub struct Block {
    /// Line of the opening fence, counted from 1.
    pub line: usize,
    /// First word after the fence.
    pub language: String,
    pub lines: Vec<String>,
    /// Text of an HTML comment directly above the fence.
    pub comment: Option<String>,
}

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the paths of all files below `folder` with this extension, relative to the root.
/// Skips installed packages, build output and hidden directories.
pub fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    collect(&root().join(folder), extension, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "node_modules" && name != "target" {
                collect(&path, extension, found);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            let path = path.strip_prefix(root()).unwrap();
            found.push(path.to_string_lossy().into_owned());
        }
    }
}

/// Returns the fenced code blocks of a text.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    let mut previous = "";
    for (index, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let fence = line.trim_start().strip_prefix("```");
        open = match (open, fence) {
            (Some((block, _)), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some((mut block, indent)), None) => {
                block
                    .lines
                    .push(line.get(indent..).unwrap_or("").to_owned());
                Some((block, indent))
            }
            (None, Some(info)) => {
                let block = Block {
                    line: index + 1,
                    language: info.split_whitespace().next().unwrap_or("").to_owned(),
                    lines: Vec::new(),
                    comment: html_comment(previous),
                };
                Some((block, indent))
            }
            (None, None) => None,
        };
        previous = line;
    }
    assert!(open.is_none(), "a code block is not closed");
    blocks
}

fn html_comment(line: &str) -> Option<String> {
    let comment = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    Some(comment.trim().to_owned())
}

/// Returns the text with every code block replaced by empty lines.
fn without_blocks(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    for block in blocks(text) {
        lines[block.line - 1..=block.line + block.lines.len()].fill("");
    }
    lines.join("\n")
}

/// Returns the headings of a text.
pub fn headings(text: &str) -> Vec<String> {
    let text = without_blocks(text);
    let headings = text.lines().filter_map(|line| {
        let title = line.trim_start_matches('#');
        let is_heading = title.len() < line.len() && title.starts_with(' ');
        is_heading.then(|| title.trim().to_owned())
    });
    headings.collect()
}

/// Returns the anchors of a text: the ones that GitHub generates for headings, and `<a id>`.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let link = Regex::new(r"\[([^\]]*)\]\([^)]*\)").unwrap();
    let mut uses: HashMap<String, usize> = HashMap::new();
    let anchors = headings(text).into_iter().map(|title| {
        let slug: String = link
            .replace_all(&title, "$1")
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = uses.entry(slug.clone()).or_default();
        *count += 1;
        match *count {
            1 => slug,
            n => format!("{slug}-{}", n - 1),
        }
    });
    let explicit = Regex::new(r#"<a (?:id|name)="([^"]+)""#).unwrap();
    let explicit = explicit
        .captures_iter(text)
        .map(|found| found[1].to_owned());
    anchors.chain(explicit).collect()
}

/// Returns the targets of the links and images of a text.
fn links(text: &str) -> Vec<String> {
    let code = Regex::new("`[^`\n]*`").unwrap();
    let target = Regex::new(r#"(?:\]\(|^\[[^\]]+\]: |(?:src|href)=")([^)\s"]+)"#).unwrap();
    let text = without_blocks(text);
    let text = code.replace_all(&text, "``");
    let lines = text.lines().flat_map(|line| target.captures_iter(line));
    lines.map(|found| found[1].to_owned()).collect()
}

/// Returns the links of a file whose target file or heading does not exist.
pub fn broken_links(path: &str, text: &str) -> Vec<String> {
    let is_broken = |link: &String| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = match file {
            "" => PathBuf::from(path),
            file => Path::new(path).parent().unwrap().join(file),
        };
        let target = root().join(target);
        if file.is_empty() {
            return !anchors(text).contains(anchor);
        }
        let is_markdown = target.extension().is_some_and(|found| found == "md");
        match fs::read_to_string(&target) {
            Ok(text) if is_markdown && !anchor.is_empty() => !anchors(&text).contains(anchor),
            Ok(_) | Err(_) => !target.exists(),
        }
    };
    let is_relative = |link: &String| !link.contains("://") && !link.starts_with("mailto:");
    let broken = links(text)
        .into_iter()
        .filter(is_relative)
        .filter(is_broken);
    broken.map(|link| format!("{path}: {link}")).collect()
}

/// Returns the cells of every table row of a text.
pub fn rows(text: &str) -> Vec<Vec<String>> {
    let text = without_blocks(text);
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.map(|line| {
        let line = line.replace("| |", "|  |");
        let cells = line.trim().trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

#[test]
fn blocks_have_a_line_a_language_and_a_comment() {
    let text =
        "a\n<!-- not run: slow -->\n```sh\none\n```\n- b\n  ```toml\n  two\n    three\n  ```\n";
    let blocks = blocks(text);
    assert_eq!((blocks[0].line, blocks[0].language.as_str()), (3, "sh"));
    assert_eq!(blocks[0].comment.as_deref(), Some("not run: slow"));
    assert_eq!(blocks[1].lines, ["two", "  three"]);
    assert_eq!(blocks[1].comment, None);
}

#[test]
fn links_to_missing_files_and_headings_are_broken() {
    let text = "# A `b_c`\n# A `b_c`\n[1](#a-b_c) [2](#a-b_c-1) [3](Cargo.toml) [4](docs/)\n\
                [5](https://example.com) `[6](none.md)` [7](#none) [8](none.md) [9](README.md#none)\n";
    assert_eq!(
        broken_links("example.md", text),
        [
            "example.md: #none",
            "example.md: none.md",
            "example.md: README.md#none"
        ]
    );
}
