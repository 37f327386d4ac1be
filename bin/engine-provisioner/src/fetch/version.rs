//! Asking an engine's program for its version, which shows that it runs on this machine.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use process::{Lifetime, Output, Request};

use super::engine::EngineError;
use crate::command::without_secrets;
use crate::recipe::Source;

/// How long a program may take to tell its version. The first start of a large program on a slow disk takes a while.
const VERSION_TIMEOUT: Duration = Duration::from_secs(60);

/// More lines than this are not needed to find a version, or to tell why there is none.
const LINES_MAX: usize = 40;

/// How much of each line is kept.
const LINE_CHARS_MAX: usize = 300;

/// Runs the program for its version.
pub(super) async fn version_of(program: &Path, source: &Source) -> Result<String, EngineError> {
    let path = program.to_owned();
    let (args, prefix) = (source.version_args.clone(), source.version_prefix.clone());
    let asked = tokio::task::spawn_blocking(move || ask_version(&path, &args, &prefix));
    let answer = asked.await.expect("asking a program does not panic");
    answer.map_err(|message| EngineError::DoesNotRun {
        program: program.to_owned(),
        message,
    })
}

fn ask_version(program: &Path, args: &[String], prefix: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args);
    without_secrets(&mut command);
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = Arc::clone(&heard);
    let output = Output::Lines(Box::new(move |line| {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(line.chars().take(LINE_CHARS_MAX).collect());
        }
    }));
    let child = process::spawn(
        Request {
            command,
            lifetime: Lifetime::Tied,
            output,
        },
        |_| (),
    )
    .map_err(|error| daemon::exit::chain(&error))?;
    let exit = child.wait(VERSION_TIMEOUT);
    let lines = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    match exit {
        Some(exit) if exit.is_success() => Ok(find_version(&lines, prefix)),
        Some(exit) => Err(format!(
            "it {exit} when asked for its version: {}",
            lines.join(" | ")
        )),
        None => Err(format!(
            "it did not tell its version within {} s",
            VERSION_TIMEOUT.as_secs()
        )),
    }
}

fn find_version(lines: &[String], prefix: &str) -> String {
    let found = lines.iter().find_map(|line| line.trim().strip_prefix(prefix));
    found
        .or(lines.first().map(String::as_str))
        .unwrap_or("unknown")
        .trim()
        .chars()
        .take(100)
        .collect()
}
