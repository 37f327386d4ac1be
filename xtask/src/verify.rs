//! `cargo xtask verify`: everything that decides whether a change may land, in the order CI runs it.
//!
//! Cheap checks come first. Each step prints a heading and how long it took; the first that fails ends the run unless
//! `--keep-going` is given. What a step needs and this machine lacks is installed first: cargo's own tools into the
//! user's cache directory, Debian packages when this runs as root, the engine through our own provisioner.
//!
//! With `CI=true` nothing may be skipped: a test that says it was skipped is a failure there.

mod counts;
mod packages;
mod test_step;
mod tools;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

/// Check everything that CI checks, in the same order
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask verify\n  cargo xtask verify --only format,lint\n  \
    cargo xtask verify --only tests --keep-going"
)]
pub(crate) struct Verify {
    /// Run these steps only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STEP")]
    only: Vec<Step>,

    /// Go on after a step that failed, and fail at the end
    #[arg(long)]
    keep_going: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// cargo fmt --check
    Format,
    /// cargo clippy, no warning allowed
    Lint,
    /// cargo doc, no warning allowed
    Docs,
    /// cargo deny: licences, sources, doubles
    Deny,
    /// cargo machete: dependencies that nobody uses
    UnusedDependencies,
    /// Programs of the operating system that the tests need
    Needs,
    /// cargo test: every test of every crate, with the engine that they need
    Tests,
}

impl Verify {
    /// Whether everything holds.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let began = Instant::now();
        let mut failed = Vec::new();
        let mut counts_line = None;
        let steps = Step::value_variants().iter().copied();
        for step in steps.filter(|step| self.only.is_empty() || self.only.contains(step)) {
            let name = step.name();
            println!("\n== {name} ==");
            let step_began = Instant::now();
            let outcome = run_step(step, &mut counts_line);
            let took = seconds(step_began.elapsed());
            match outcome {
                Ok(()) => println!("{name}: ok, {took}"),
                Err(error) => {
                    println!("{name}: failed, {took}: {error:#}");
                    failed.push(name);
                    if !self.keep_going {
                        break;
                    }
                }
            }
        }
        println!("\nall steps: {}", seconds(began.elapsed()));
        if !failed.is_empty() {
            println!("failed: {}", failed.join(", "));
        }
        // The counts stand last, so that whoever reads the end of a log reads what the test runner said.
        if let Some(counts_line) = counts_line {
            fs::write(root().join("target/verify-counts"), format!("{counts_line}\n"))?;
            println!("{counts_line}");
        }
        Ok(if failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value()
            .expect("no step is hidden")
            .get_name()
            .to_owned()
    }
}

fn run_step(step: Step, counts_line: &mut Option<String>) -> Result<()> {
    match step {
        Step::Format => run(cargo().args(["fmt", "--all", "--check"])),
        Step::Lint => run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])),
        Step::Docs => run(cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-Dwarnings")),
        // Advisories are left out: their database lives on a git host, and a check that needs it would fail on a
        // machine that reaches package registries only.
        Step::Deny => {
            let deny = tools::cargo_deny()?;
            let checks = ["bans", "licenses", "sources"];
            run(Command::new(deny)
                .args(["--locked", "check", "--hide-inclusion-graph"])
                .args(checks))
        }
        Step::UnusedDependencies => run(Command::new(tools::cargo_machete()?).arg(".")),
        Step::Needs => packages::install_missing(is_ci()),
        Step::Tests => {
            let (outcome, line) = test_step::run_all(is_ci())?;
            *counts_line = Some(line);
            outcome
        }
    }
}

/// Whether nothing may be skipped.
fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

/// The workspace's root, where every command runs.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// The user's cache directory for Remuda.
pub(crate) fn cache_directory() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("remuda"))
}

pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").as_deref().unwrap_or(OsStr::new("cargo")))
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    println!("$ {shown}");
    let status = command
        .current_dir(root())
        .status()
        .with_context(|| format!("starting {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// The command as a person would type it, the program by its name alone.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
