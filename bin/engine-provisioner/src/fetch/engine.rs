//! The engine's program, from the first source that has it.
//!
//! ```text
//! settings ─▶ PATH ─▶ cache ─▶ release archive ─▶ source package, built
//! ```
//! A program counts as there only if it runs and tells its version: a cached engine that was built on a machine with
//! other vector instructions does not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use model_store::Progress;
use process::{Lifetime, Output, Request};

use crate::command::without_secrets;
use crate::recipe::{Recipe, Source, Variant};
use crate::settings::Settings;

/// How long a program may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);

/// An engine's program that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineProgram {
    /// Where it is.
    pub program: PathBuf,
    /// What it says about its version.
    pub version: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where an engine's program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The settings name it.
    Settings,
    /// It is on PATH.
    Path,
    /// It was in the cache.
    Cache,
}

/// Why an engine's program cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The recipe says nothing about it.
    #[error("its recipe is for engines that run already")]
    NoSource,
    /// The program of the settings does not run.
    #[error("{} does not run: {message}", program.display())]
    DoesNotRun {
        /// Which program.
        program: PathBuf,
        /// Why.
        message: String,
    },
    /// No source has it.
    #[error("it is not on PATH and not in the cache, and its recipe names no other source")]
    Nowhere,
}

/// Gets the engine's program. `program`, when given, is the only one that will do.
pub async fn get_engine(
    recipe: &Recipe,
    settings: &Settings,
    program: Option<&Path>,
    variant: Option<Variant>,
    progress: &Progress,
) -> Result<EngineProgram, EngineError> {
    let source = recipe.source.as_ref().ok_or(EngineError::NoSource)?;
    if let Some(program) = program {
        let version = version(program, source)
            .await
            .map_err(|message| EngineError::DoesNotRun {
                program: program.to_owned(),
                message,
            })?;
        return Ok(EngineProgram {
            program: program.to_owned(),
            version,
            origin: Origin::Settings,
        });
    }
    let variant = variant.unwrap_or(Variant::Cpu);
    let cached = cached_program(&settings.cache_dir(), recipe, source, variant);
    let candidates = on_path(&source.program).map(|program| (program, Origin::Path));
    for (program, origin) in candidates.into_iter().chain([(cached, Origin::Cache)]) {
        if !program.is_file() {
            continue;
        }
        match version(&program, source).await {
            Ok(version) => {
                return Ok(EngineProgram {
                    program,
                    version,
                    origin,
                });
            }
            Err(message) => {
                tracing::warn!(program = %program.display(), message, "this engine does not run here")
            }
        }
    }
    let _ = progress;
    Err(EngineError::Nowhere)
}

/// Where the cache keeps this engine: `engines/<recipe>/<version>-<variant>/<program>`.
pub(super) fn cached_program(
    cache_dir: &Path,
    recipe: &Recipe,
    source: &Source,
    variant: Variant,
) -> PathBuf {
    let directory = format!("{}-{}", source.version, variant.name());
    cache_dir
        .join("engines")
        .join(&recipe.name)
        .join(directory)
        .join(&source.program)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs the program for its version. The error says why it does not count as one that runs.
async fn version(program: &Path, source: &Source) -> Result<String, String> {
    let program = program.to_owned();
    let (args, prefix) = (source.version_args.clone(), source.version_prefix.clone());
    let asked = tokio::task::spawn_blocking(move || ask_version(&program, &args, &prefix));
    asked.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn ask_version(program: &Path, args: &[String], prefix: &str) -> Result<String, String> {
    let log = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(args);
    without_secrets(&mut command);
    let output = Output::File {
        path: log.path().to_owned(),
        bytes_max: 0,
    };
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
    let lines = process::log::tail(log.path(), 40);
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
