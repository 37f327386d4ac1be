//! Tests that cannot run on this machine say so, and are counted: `cargo xtask verify` reads what they say.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that a test cannot run here and why: `if !is_root() { return skipped("a_partition", "needs root"); }`.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
pub fn skipped(test: &str, reason: &str) {
    let is_ci =
        std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    assert!(!is_ci, "{test} was skipped ({reason}), and in CI nothing may be");
    println!("skipped: {test}: {reason}");
    if let Some(path) = std::env::var_os("REMUDA_TESTS_SKIPPED_FILE") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        // One write for each line, because tests run at once.
        file.and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()))
            .expect("the file for skipped tests can be written");
    }
}
