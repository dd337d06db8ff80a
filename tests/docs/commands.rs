//! Runs the commands that the documentation shows.
//!
//! The `sh` blocks of a file run in their order, in one bash shell with `set -euo pipefail`. The working
//! directory is empty except for links to the files of the repository. `progress-hub` is the program under
//! test, and `cargo run --release -- X` runs `progress-hub X`. A failed command fails the test.
//!
//! Rules for authors:
//!
//! - A block with another language whose first line is a comment with a file name (`# hub.toml`,
//!   `// app.mjs`) is written to that file. The comment itself is left out. Names in the repository are
//!   not allowed.
//! - The ports in [`PORTS`] are replaced by free ports. Use no others.
//! - Start servers in the background with `&` and wait for a condition. All processes are killed at the end.
//! - A block that cannot run has a comment directly above it: `<!-- not run: needs Docker -->`. Only its
//!   syntax is checked.
//! - Commands contain no placeholders such as `<name>` or `…`. Use variables.
//! - Output is shown in a `text` block. It is not compared.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use regex_lite::Regex;
use tempfile::TempDir;

use super::markdown::{Block, blocks, root};

/// Ports in the documentation, replaced by free ports.
const PORTS: [&str; 4] = ["8080", "8081", "8090", "8091"];

/// Maximum run time of the commands of one file.
const TIME_LIMIT: Duration = Duration::from_secs(180);

/// Maximum number of output lines in a failure message.
const SHOWN_LINES: usize = 30;

/// Reports the file and line of a failed command. Every line of the script has the line number that it
/// has in the Markdown file.
const PROLOGUE: &str = r#"set -Eeuo pipefail; trap 'status=$?; echo "$DOCS_FILE:$LINENO: exit status $status: $BASH_COMMAND" >&2' ERR; "#;

/// Replacement for `cargo` that runs the already built program.
const CARGO: &str = r#"#!/usr/bin/env bash
case "$1" in
  build) ;;
  run) while [[ "$1" != -- ]]; do shift; done; shift; exec progress-hub "$@" ;;
  *) echo "cargo $1 is not available in documentation commands" >&2; exit 1 ;;
esac
"#;

/// Returns whether a text contains commands.
pub fn has_commands(text: &str) -> bool {
    blocks(text).iter().any(|block| block.language == "sh")
}

/// Checks and runs the commands of a Markdown file.
pub fn check(path: &str, text: &str) {
    let problems = style_problems(path, text);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    if let Err(problem) = check_syntax(path, text).and_then(|()| run(path, text, TIME_LIMIT)) {
        panic!("{problem}");
    }
}

/// Returns the violations of the rules that need no shell.
pub fn style_problems(path: &str, text: &str) -> Vec<String> {
    let placeholder = Regex::new(r"…|<[a-z][a-z _-]*>").unwrap();
    let mut problems = Vec::new();
    for block in blocks(text) {
        let mut add =
            |line: usize, problem: &str| problems.push(format!("{path}:{line}: {problem}"));
        if matches!(
            block.language.as_str(),
            "console" | "bash" | "shell" | "zsh"
        ) {
            add(block.line, "use sh for commands");
        }
        let comment = block.comment.as_deref().unwrap_or("");
        if comment.starts_with("not run") && !is_skipped(&block) {
            add(block.line, "give a reason: <!-- not run: reason -->");
        }
        if file_name(&block).is_some_and(|name| is_protected(&name)) {
            add(
                block.line + 1,
                "the block would overwrite a file of the repository",
            );
        }
        for (offset, line) in block.lines.iter().enumerate() {
            if is_run(&block) && placeholder.is_match(line) {
                add(
                    block.line + 1 + offset,
                    "use a variable instead of a placeholder",
                );
            }
        }
    }
    problems
}

/// Returns whether a path leads into the repository or out of the working directory.
fn is_protected(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or("");
    name.contains("..") || root().join(first).exists()
}

fn is_skipped(block: &Block) -> bool {
    let reason = block
        .comment
        .as_deref()
        .and_then(|text| text.strip_prefix("not run:"));
    reason.is_some_and(|reason| !reason.trim().is_empty())
}

fn is_run(block: &Block) -> bool {
    block.language == "sh" && !is_skipped(block)
}

/// Checks the syntax of all commands, including those that do not run.
fn check_syntax(path: &str, text: &str) -> Result<(), String> {
    let script = script(text, |block| block.language == "sh");
    let mut bash = Command::new("bash");
    let output = bash.args(["-n", "-c", &script, path]).output();
    let output = output.map_err(|error| format!("bash: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Returns a script with the commands of the selected blocks and the files of the other blocks. Every
/// line keeps its number.
fn script(text: &str, is_selected: impl Fn(&Block) -> bool) -> String {
    let mut lines = vec![String::new(); text.lines().count() + 1];
    for block in blocks(text) {
        if is_selected(&block) {
            lines[block.line..][..block.lines.len()].clone_from_slice(&block.lines);
        } else if let Some(name) = file_name(&block) {
            let (first, end) = (block.line, block.line + block.lines.len());
            lines[first..end].clone_from_slice(&block.lines);
            lines[first] =
                format!("mkdir -p \"$(dirname '{name}')\"; cat >'{name}' <<'END_OF_FILE'");
            lines[end] = "END_OF_FILE".to_owned();
        }
    }
    lines.join("\n")
}

/// Returns the name of the file that a block is written to.
fn file_name(block: &Block) -> Option<String> {
    if matches!(block.language.as_str(), "" | "sh" | "text") {
        return None;
    }
    let comment =
        Regex::new(r"^(?:#|//|<!--|/\*) *([\w.-][\w./-]*\.\w+)(?: *(?:-->|\*/))?$").unwrap();
    let found = comment.captures(block.lines.first()?.trim())?;
    Some(found[1].to_owned())
}

/// Runs the commands of a text.
///
/// # Errors
/// Returns the failed command or the exceeded time limit, with the end of the output.
pub fn run(path: &str, text: &str, limit: Duration) -> Result<(), String> {
    let folder = scratch_folder();
    let script = with_free_ports(&script(text, is_run));
    let file = folder.path().join("commands.sh");
    fs::write(&file, format!("{PROLOGUE}{script}\n")).unwrap();
    let log = fs::File::create(folder.path().join("commands.log")).unwrap();
    let path_variable = std::env::var("PATH").unwrap_or_default();
    let mut bash = Command::new("bash");
    bash.arg(&file)
        .current_dir(folder.path())
        .env_clear()
        .env(
            "PATH",
            format!("{}/bin:{path_variable}", folder.path().display()),
        )
        .env("HOME", folder.path())
        .env("TMPDIR", folder.path())
        .env("LANG", "C.UTF-8")
        .env("DOCS_FILE", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0);
    let outcome = wait(bash, limit);
    outcome.map_err(|problem| {
        let log = fs::read(folder.path().join("commands.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        format!("{path}: {problem}\n{}", shown.join("\n"))
    })
}

/// Waits for the shell, then kills all processes that it started.
fn wait(mut bash: Command, limit: Duration) -> Result<(), String> {
    let mut shell = bash.spawn().map_err(|error| format!("bash: {error}"))?;
    let group = shell.id();
    let (sender, receiver) = mpsc::channel();
    let waiting = thread::spawn(move || sender.send(shell.wait()));
    let status = receiver.recv_timeout(limit);
    kill_group(group);
    waiting.join().unwrap().ok();
    match status {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("the commands failed with {status}")),
        Ok(Err(error)) => Err(format!("failed to wait for the shell: {error}")),
        Err(_) => Err(format!(
            "the commands did not end within {} s",
            limit.as_secs()
        )),
    }
}

fn kill_group(group: u32) {
    let mut kill = Command::new("bash");
    kill.args(["-c", "kill -KILL -- \"-$0\"", &group.to_string()]);
    // Fails if no process is left.
    kill.stderr(Stdio::null()).status().ok();
}

/// Returns a folder with links to the files of the repository and to the program.
fn scratch_folder() -> TempDir {
    let folder = TempDir::with_prefix("docs-").unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_progress-hub"), bin.join("progress-hub")).unwrap();
    fs::write(bin.join("cargo"), CARGO).unwrap();
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let is_hidden = name.to_string_lossy().starts_with('.');
        if !is_hidden && name != "target" {
            symlink(entry.path(), folder.path().join(Path::new(&name))).unwrap();
        }
    }
    folder
}

/// Replaces the ports in [`PORTS`] by free ports.
fn with_free_ports(script: &str) -> String {
    // Binds all ports at the same time, so that they differ.
    let listeners = PORTS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let free = listeners.map(|listener| listener.local_addr().unwrap().port());
    let port = Regex::new(&format!(r"\b(?:{})\b", PORTS.join("|"))).unwrap();
    let mut replaced = String::new();
    let mut end = 0;
    for found in port.find_iter(script) {
        let index = PORTS.iter().position(|port| *port == found.as_str());
        replaced.push_str(&script[end..found.start()]);
        write!(replaced, "{}", free[index.unwrap()]).unwrap();
        end = found.end();
    }
    replaced + &script[end..]
}

/// Checks the syntax of a text and runs its commands.
fn run_example(text: &str) -> Result<(), String> {
    check_syntax("example.md", text).and_then(|()| run("example.md", text, TIME_LIMIT))
}

#[test]
fn commands_share_a_shell_and_see_files_and_the_program() {
    let text = "```toml\n# conf/hub.toml\n[server]\nbind = \"127.0.0.1:8080\"\n```\n\
                ```sh\nFILE=conf/hub.toml\n```\n\
                ```sh\n[[ \"$(head -1 $FILE)\" == '[server]' ]]\n! grep 80''80 $FILE\n\
                export PROGRESS_HUB__AUTH__HS256_SECRETS=0123456789abcdef0123456789abcdef\n\
                cargo build --release\ncargo run --release -- check -c $FILE\ntest -f docs/examples/acme.toml\n```\n";
    assert_eq!(run_example(text), Ok(()));
}

#[test]
fn failed_command_is_reported_with_its_line() {
    let problem = run_example("# Title\n\n```sh\ntrue\nfalse | cat\n```\n").unwrap_err();
    assert!(problem.contains("example.md:5: exit status 1"), "{problem}");
}

#[test]
fn skipped_block_is_not_run_but_its_syntax_is_checked() {
    let skipped = "<!-- not run: needs root -->\n```sh\nfalse\n```\n";
    assert_eq!(run_example(skipped), Ok(()));
    let problem = run_example(&skipped.replace("false", "if false")).unwrap_err();
    assert!(problem.contains("syntax error"), "{problem}");
}

#[test]
fn commands_that_do_not_end_are_killed() {
    let text = "```sh\nsleep 1000 &\nsleep 1000\n```\n";
    let problem = run("example.md", text, Duration::from_millis(200)).unwrap_err();
    assert!(problem.contains("did not end"), "{problem}");
}

#[test]
fn placeholders_and_other_shells_and_overwritten_files_are_rejected() {
    let text = "```console\n$ ls\n```\n```sh\ncat <file> …\n```\n<!-- not run -->\n```sh\n```\n";
    assert_eq!(
        style_problems("a.md", text).len(),
        3,
        "{:?}",
        style_problems("a.md", text)
    );
    let overwriting = "```toml\n# docs/examples/acme.toml\n```\n";
    assert_eq!(style_problems("a.md", overwriting).len(), 1);
    let fine = "```sh\ncat <<'END'\n<b>\nEND\njq -r .id <hub.json >out\n```\n";
    assert_eq!(style_problems("a.md", &fine.replace("<b>", "")), [""; 0]);
}
