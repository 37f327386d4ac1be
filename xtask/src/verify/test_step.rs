//! Runs every test, shows the output as it comes, and adds up what the test runner counted.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::counts::Counts;
use super::{cargo, run, shown};

/// A test that cannot run on this machine appends a line with its name and the reason to the file named here.
const SKIPPED_FILE_VARIABLE: &str = "REMUDA_TESTS_SKIPPED_FILE";

/// How many lines of output may wait to be printed.
const LINES_WAITING_MAX: usize = 1024;

/// How long the output may be silent before it is asked whether the command is still there.
const LAST_LINES_WAIT: Duration = Duration::from_secs(2);

/// Gets the engine that the tests start, through our own provisioner, into the user's cache.
fn get_engine() -> Result<()> {
    // The provisioner has just been built, beside this program.
    let provisioner = env::current_exe()?.with_file_name("engine-provisioner");
    run(Command::new(provisioner).args(["fetch", "--recipe", "llamacpp"]))
}

/// Runs all tests. The first result says how that went, the text is the line that adds everything up.
pub(super) fn run_all(strict: bool) -> Result<(Result<()>, String)> {
    // The black-box tests start the programs from the target directory. Tests are built in the same go, because what
    // they need in addition would otherwise have the programs' dependencies built twice.
    run(cargo().args(["build", "--workspace", "--bins", "--tests", "--locked"]))?;
    get_engine()?;

    let directory = tempfile::tempdir()?;
    let skipped_file = directory.path().join("skipped");
    let mut counts = Counts::default();
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--color",
        "never",
    ]);
    let succeeded = run_counted(command.env(SKIPPED_FILE_VARIABLE, &skipped_file), &mut counts)?;

    let skipped = fs::read_to_string(&skipped_file).unwrap_or_default();
    println!();
    for (program, line) in counts.lines() {
        println!("{program}\n{line}");
    }
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    let skipped_count = skipped.lines().count() as u64;
    let outcome = match counts.failed() {
        0 if !succeeded => Err(anyhow!("cargo test failed before the tests ran")),
        0 if strict && skipped_count > 0 => Err(anyhow!(
            "{skipped_count} tests were skipped, which CI does not allow"
        )),
        0 => Ok(()),
        failed => Err(anyhow!("{failed} tests failed")),
    };
    Ok((outcome, counts.sum(skipped_count)))
}

/// Runs a command with both of its outputs in one, so that a count stands below the name of what was counted.
fn run_counted(command: &mut Command, counts: &mut Counts) -> Result<bool> {
    let shown = shown(command);
    println!("$ {shown}");
    let (reader, writer) = io::pipe()?;
    command
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .current_dir(super::root());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    // The command would hold the pipe's other end open as long as it lives.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send_line, lines) = mpsc::sync_channel(LINES_WAITING_MAX);
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if send_line.send(line).is_err() {
                return;
            }
        }
    });
    let mut status = None;
    loop {
        match lines.recv_timeout(LAST_LINES_WAIT) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                counts.read(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            // A process that a test left behind holds the pipe open; nothing more is worth waiting for then.
            Err(RecvTimeoutError::Timeout) if status.is_some() => break,
            Err(RecvTimeoutError::Timeout) => status = child.try_wait()?,
        }
    }
    counts.end();
    let status = match status {
        Some(status) => status,
        None => child.wait()?,
    };
    Ok(status.success())
}
