//! Running a tool to its end, with its output in a log.

use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Lifetime, LineTap, Output, Request, SpawnError};
use tokio::sync::oneshot;

use crate::command::without_secrets;

/// The bound of a log of tools.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How many of its last lines are told when a tool fails.
const LAST_LINES: usize = 8;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It failed.
    #[error("{tool} {exit}; its last words:\n{}\nAll of them are in {}", last_lines.join("\n"), log.display())]
    Failed {
        /// Which tool.
        tool: String,
        /// How it ended.
        exit: process::Exit,
        /// The end of its output.
        last_lines: Vec<String>,
        /// All of its output.
        log: PathBuf,
    },
}

/// Runs `command` to its end. Dropping the future kills it.
pub(super) async fn run(mut command: Command, log: &Path, on_line: Option<LineTap>) -> Result<(), ToolError> {
    without_secrets(&mut command);
    let tool = command.get_program().to_string_lossy().into_owned();
    let (sender, ended) = oneshot::channel();
    let output = Output::Log {
        path: log.to_owned(),
        bytes_max: LOG_BYTES_MAX,
        on_line,
    };
    let _child = process::spawn(
        Request {
            command,
            lifetime: Lifetime::Tied,
            output,
        },
        move |exit| {
            // Nobody listens when the future was dropped.
            let _ = sender.send(exit);
        },
    )?;
    let exit = ended
        .await
        .expect("the end of a child is told before its sender goes away");
    if exit.is_success() {
        return Ok(());
    }
    Err(ToolError::Failed {
        tool,
        exit,
        last_lines: process::log::tail(log, LAST_LINES),
        log: log.to_owned(),
    })
}

/// The program `name` on PATH.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate))
}

/// Whether there is a file that may be run.
pub(super) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
