//! What a person reads who types something wrong, and what the exit code says: compared with `typed.txt`.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::process::{Command, Stdio};

const CASES: &[&[&str]] = &[
    &["3*67"],
    &["nodse"],
    &["run", "--modle", "x", "hi"],
    &["run"],
    &["run", " "],
    &["run", "hi", "--model", "/nope"],
    &["up", "--model", "/nope"],
    &["up", "--model", "nope"],
    &["run", "hi", "--url", "ftp://x"],
    &["keys", "creat"],
    &["keys"],
    &["tasks", "submit"],
    &["tasks", "submit", "hi", "--workload", "foo"],
    &["tasks", "submit", "hi", "--pool", "p", "--deadline", "5x"],
    &["tasks", "submit", "hi", "--pool", "no such pool"],
    &["bench", "--concurrency", "0"],
    &["completions", "cmd"],
    &["certs", "issue"],
    &["models"],
    &["models", "pull", "ftp://x/m"],
    &["tasks", "list", "--limit", "0"],
    &["run", "hi", "--max-tokens", "0"],
];

/// `REMUDA_UPDATE_DOCS=1 cargo test -p remuda` writes the file anew.
#[test]
fn a_wrong_command_line_gets_a_helpful_answer() {
    let text: String = CASES.iter().map(|arguments| answer(arguments)).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/typed.txt");
    if std::env::var_os("REMUDA_UPDATE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stored == text,
        "typed.txt differs from what the program says now:\n{text}"
    );
}

fn answer(arguments: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_remuda"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let typed: Vec<_> = arguments
        .iter()
        .map(|word| {
            if word.contains([' ', '*']) {
                format!("{word:?}")
            } else {
                (*word).to_owned()
            }
        })
        .collect();
    format!(
        "$ remuda {}\n{}exit code {}\n\n",
        typed.join(" "),
        said,
        output.status.code().unwrap()
    )
}
